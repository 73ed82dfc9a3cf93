//! B12: copies through bounce buffers, against copying the same bytes and against pools behind one lock.

mod crossover;

use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use iommu_dma::{BouncePool, Buffer, Device, Direct, Direction, DmaApi, DmaCore, Invalidation, Mapping, Trust};
use iommu_types::{AddrRange, HostPhys, Iova, SystemMemory};

use super::Outcome;
use super::slots::RunLengths;
use crate::pair::{Comparison, Random, compare, median, summary};
use crate::peers::{FlatMemory, PAGE, pin};
use crate::row::Row;

/// The pool lies low, where the device reaches it.
const POOL: u64 = 64 << 20;
/// Buffers lie above what the device can address.
const MASK: u64 = (128 << 20) - 1;
const BUFFERS: u64 = 128 << 20;
const MEMORY: u64 = 192 << 20;
/// What mapping and unmapping may cost besides the copies.
const BESIDES: f64 = 15.0;
/// Buffers that are copied.
const LENS: [u64; 5] = [64, 256, 1500, 4096, 65_536];

type Api<'a> = DmaApi<Direct, &'a FlatMemory>;

fn api(memory: &FlatMemory) -> Outcome<Api<'_>> {
    let pool = BouncePool::new(HostPhys::ZERO, POOL, 2)?;
    Ok(DmaApi::new(Direct, memory).with_pool(pool))
}

const fn narrow() -> Device {
    Device::new(Iova::new(MASK))
}

/// B12.
pub(super) fn rows(quick: bool) -> Outcome<Vec<Row>> {
    let memory = FlatMemory::new(usize::try_from(MEMORY)?);
    let api = api(&memory)?;
    let device = narrow();
    let mut core = api.new_core();
    let mut rows = Vec::new();
    for (direction, name, copies) in [
        (Direction::ToDevice, "to the device", 1_u64),
        (Direction::FromDevice, "from the device", 2),
        (Direction::Bidirectional, "both ways", 2),
    ] {
        for len in LENS {
            let buffer = Buffer::new(HostPhys::new(BUFFERS), len);
            judge(&api, &memory, buffer)?;
            let mut failed = 0_u64;
            let comparison = compare(
                quick,
                &mut |turns| {
                    for _ in 0..turns {
                        let mapping = api.map(&mut core, &device, black_box(buffer), direction);
                        failed += u64::from(!mapping.is_ok_and(|mapping| api.unmap(&mut core, mapping).is_ok()));
                    }
                },
                &mut |turns| {
                    for _ in 0..turns {
                        for _ in 0..copies {
                            let done = memory.copy(black_box(buffer.phys), HostPhys::ZERO, len);
                            let _ = black_box(done);
                        }
                    }
                },
            );
            if failed > 0 {
                return Err(format!("{failed} operations failed").into());
            }
            let case = format!("{len} bytes {name}, {copies} copies, hot");
            rows.push(besides(case, &comparison));
            let copied = copied(&api, buffer, direction)?;
            let case = format!("bytes copied, {len} bytes {name}");
            rows.push(Row::counted(
                "B12",
                case,
                [copied, len].map(number),
                "the buffer",
                number(copies * len),
            ));
            rows.push(cold(quick, &memory, len, direction, name)?);
        }
    }
    for from_device in [true, false] {
        rows.push(partial(quick, &memory, from_device)?);
        rows.push(cold_partial(quick, &memory, from_device)?);
    }
    for hot in [true, false] {
        rows.extend(crossover::rows(quick, &memory, hot)?);
    }
    rows.extend(against_pools(quick, &memory)?);
    for len in LENS {
        rows.extend(two_threads(quick, &memory, len)?);
    }
    rows.extend(head_and_tail(quick, &memory)?);
    Ok(rows)
}

/// A row of what a mapping costs besides its copies.
fn besides(case: String, comparison: &Comparison) -> Row {
    let more = comparison.ours_ns - comparison.peer_ns;
    Row {
        target: format!("<= the copies + {BESIDES} ns (takes {more:.1} ns more)"),
        ..Row::at_most(
            "B12",
            case,
            comparison,
            "the copies alone",
            comparison.peer_ns + BESIDES,
        )
    }
}

fn number(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Bytes that one mapping copies, there and back.
fn copied(api: &Api<'_>, buffer: Buffer, direction: Direction) -> Outcome<u64> {
    let mut core = api.new_core();
    let mapping = api.map(&mut core, &narrow(), buffer, direction)?;
    api.unmap(&mut core, mapping).map_err(|error| format!("{error:?}"))?;
    Ok(api.counters(&core).bounced_bytes)
}

/// What the device finds is what the buffer holds, and what it writes arrives.
fn judge(api: &Api<'_>, memory: &FlatMemory, buffer: Buffer) -> Outcome<()> {
    let mut core = api.new_core();
    let mapping = api.map(&mut core, &narrow(), buffer, Direction::Bidirectional)?;
    let segment = mapping.segment().ok_or("more than one segment")?;
    let len = usize::try_from(buffer.len)?;
    let (mut there, mut here) = (vec![0; len], vec![0; len]);
    let at = HostPhys::new(segment.address.raw());
    memory.read(at, &mut there)?;
    memory.read(buffer.phys, &mut here)?;
    if there != here || at == buffer.phys {
        return Err("the device does not see the buffer's bytes in a copy".into());
    }
    there.iter_mut().for_each(|byte| *byte = !*byte);
    memory.write(at, &there)?;
    api.unmap(&mut core, mapping).map_err(|error| format!("{error:?}"))?;
    memory.read(buffer.phys, &mut here)?;
    if there != here {
        return Err("what the device wrote did not arrive".into());
    }
    Ok(())
}

/// The part of a buffer that is synced: where it begins, and its length.
const PART: (u64, u64) = (1024, 256);

/// Syncs that part of a mapping.
fn sync(
    api: &Api<'_>,
    core: &mut DmaCore<()>,
    mapping: &Mapping<Direct>,
    from_device: bool,
) -> Result<(), iommu_types::BusError> {
    let (from, len) = PART;
    if from_device {
        api.sync_for_cpu(core, mapping, from, len)
    } else {
        api.sync_for_device(core, mapping, from, len)
    }
}

/// A part of a buffer is copied while the device keeps it.
fn partial(quick: bool, memory: &FlatMemory, from_device: bool) -> Outcome<Row> {
    let api = api(memory)?;
    let mut core = api.new_core();
    let buffer = Buffer::new(HostPhys::new(BUFFERS), 4096);
    let mapping = api.map(&mut core, &narrow(), buffer, Direction::Bidirectional)?;
    let (_, len) = PART;
    let before = api.counters(&core).bounced_bytes;
    sync(&api, &mut core, &mapping, from_device)?;
    let copied = api.counters(&core).bounced_bytes - before;
    if copied != len {
        return Err(format!("{copied} bytes were copied for {len}").into());
    }
    let mut failed = 0_u64;
    let comparison = compare(
        quick,
        &mut |turns| {
            for _ in 0..turns {
                let done = sync(&api, &mut core, black_box(&mapping), from_device);
                failed += u64::from(done.is_err());
            }
        },
        &mut |turns| {
            for _ in 0..turns {
                let _ = black_box(memory.copy(HostPhys::ZERO, black_box(buffer.phys), len));
            }
        },
    );
    api.unmap(&mut core, mapping).map_err(|error| format!("{error:?}"))?;
    if failed > 0 {
        return Err(format!("{failed} operations failed").into());
    }
    let way = if from_device { "from" } else { "to" };
    let case = format!("{len} of 4096 bytes synced {way} the device, hot");
    Ok(besides(case, &comparison))
}

/// The same of many buffers, none of which is in the cache when its turn comes.
fn cold_partial(quick: bool, memory: &FlatMemory, from_device: bool) -> Outcome<Row> {
    const COUNT: u64 = 12_288;
    let api = api(memory)?;
    let mut core = api.new_core();
    let buffer = |turn: u64| HostPhys::new(BUFFERS + turn * 7919 % COUNT * PAGE);
    let mut mappings = Vec::new();
    for number in 0..COUNT {
        let at = HostPhys::new(BUFFERS + number * PAGE);
        mappings.push(api.map(&mut core, &narrow(), Buffer::new(at, 4096), Direction::Bidirectional)?);
    }
    let (from, len) = PART;
    let (mut turn, mut other, mut failed) = (0_u64, COUNT / 2, 0_u64);
    let comparison = compare(
        quick,
        &mut |turns| {
            for _ in 0..turns {
                turn += 1;
                let mapping = usize::try_from(turn * 7919 % COUNT)
                    .ok()
                    .and_then(|at| mappings.get(at));
                let done = mapping.map(|mapping| sync(&api, &mut core, mapping, from_device));
                failed += u64::from(!matches!(done, Some(Ok(()))));
            }
        },
        &mut |turns| {
            for _ in 0..turns {
                other += 1;
                // Between the same pages, in the same direction.
                let near = HostPhys::new(buffer(other).raw() + from);
                let far = HostPhys::new(near.raw() - BUFFERS);
                let (source, target) = if from_device { (far, near) } else { (near, far) };
                let _ = black_box(memory.copy(source, target, len));
            }
        },
    );
    for mapping in mappings {
        api.unmap(&mut core, mapping).map_err(|error| format!("{error:?}"))?;
    }
    if failed > 0 {
        return Err(format!("{failed} operations failed").into());
    }
    let way = if from_device { "from" } else { "to" };
    let case = format!("{len} of 4096 bytes synced {way} the device, cold");
    Ok(Row::within("B12", case, &comparison, "the copy alone", 1.1))
}

/// Buffers that are not in the cache.
fn cold(quick: bool, memory: &FlatMemory, len: u64, direction: Direction, name: &str) -> Outcome<Row> {
    let api = api(memory)?;
    let device = narrow();
    let mut core = api.new_core();
    // One behind the other in 64 MiB: short ones with pages of their own would leave most of those unread, and fit a cache.
    let stride = len.next_multiple_of(64);
    let places = (MEMORY - BUFFERS) / stride;
    // Both sides go the same way, half a turn apart: no buffer is still in the cache when its turn comes.
    let place = |turn: u64| HostPhys::new(BUFFERS + (turn * 7919 % places) * stride);
    let (mut turn, mut other, mut failed) = (0, places / 2, 0_u64);
    let comparison = compare(
        quick,
        &mut |turns| {
            for _ in 0..turns {
                turn += 1;
                let mapping = api.map(&mut core, &device, Buffer::new(place(turn), len), direction);
                failed += u64::from(!mapping.is_ok_and(|mapping| api.unmap(&mut core, mapping).is_ok()));
            }
        },
        &mut |turns| {
            for _ in 0..turns {
                other += 1;
                let _ = black_box(memory.copy(place(other), HostPhys::ZERO, len));
                if direction != Direction::ToDevice {
                    let _ = black_box(memory.copy(HostPhys::ZERO, place(other), len));
                }
            }
        },
    );
    if failed > 0 {
        return Err(format!("{failed} operations failed").into());
    }
    let case = format!("{len} bytes {name}, cold");
    Ok(Row::within("B12", case, &comparison, "the copies alone", 1.1))
}

/// One thread, against the pools behind one lock.
fn against_pools(quick: bool, memory: &FlatMemory) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for (hashed, name) in [(false, "one lock, run lengths"), (true, "one lock, HashMap of slots")] {
        let (api, peer) = (api(memory)?, RunLengths::new(POOL, hashed));
        let (device, mut core) = (narrow(), api.new_core());
        for len in [64, 1500, 4096, 65_536] {
            let buffer = Buffer::new(HostPhys::new(BUFFERS), len);
            let (mut failed, mut peer_failed) = (0_u64, 0_u64);
            let comparison = compare(
                quick,
                &mut |turns| {
                    for _ in 0..turns {
                        let mapping = api.map(&mut core, &device, black_box(buffer), Direction::FromDevice);
                        failed += u64::from(!mapping.is_ok_and(|mapping| api.unmap(&mut core, mapping).is_ok()));
                    }
                },
                &mut |turns| {
                    for _ in 0..turns {
                        let at = peer.map(memory, black_box(buffer).phys, len);
                        let done = at.and_then(|at| peer.unmap(memory, at, true));
                        peer_failed += u64::from(done.is_none());
                    }
                },
            );
            if failed + peer_failed > 0 {
                return Err(format!("{failed} operations failed, and {peer_failed} of the peer").into());
            }
            let case = format!("{len} bytes from the device, against a pool");
            rows.push(Row::reported("B12", case, &comparison, name));
        }
    }
    Ok(rows)
}

/// The time of the slowest of some threads for one operation, in nanoseconds. `work` is told which thread it is in and
/// how often to work.
fn together(threads: u64, operations: u32, work: &(dyn Fn(u64, u32) -> Option<()> + Sync)) -> Outcome<f64> {
    let barrier = Barrier::new(usize::try_from(threads)?);
    let took: Vec<Option<Duration>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || {
                    pin(usize::try_from(thread).unwrap_or(0));
                    barrier.wait();
                    let start = Instant::now();
                    work(thread, operations)?;
                    Some(start.elapsed())
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().ok().flatten()).collect()
    });
    let mut slowest = Duration::ZERO;
    for took in took {
        slowest = slowest.max(took.ok_or("a thread failed")?);
    }
    Ok(slowest.as_secs_f64() * 1e9 / f64::from(operations))
}

/// Two threads, each with buffers of its own: areas of their own here, one lock for both at the peer.
fn two_threads(quick: bool, memory: &FlatMemory, len: u64) -> Outcome<Vec<Row>> {
    let (api, peer) = (api(memory)?, RunLengths::new(POOL, false));
    let buffer = |thread: u64| Buffer::new(HostPhys::new(BUFFERS + thread * (1 << 20)), len);
    let ours = |thread: u64, operations: u32| {
        let mut core = api.new_core();
        let device = narrow();
        for _ in 0..operations {
            let mapping = api.map(&mut core, &device, buffer(thread), Direction::FromDevice);
            api.unmap(&mut core, mapping.ok()?).ok()?;
        }
        Some(())
    };
    let peers = |thread: u64, operations: u32| {
        for _ in 0..operations {
            let Buffer { phys, len } = buffer(thread);
            let at = peer.map(memory, phys, len)?;
            peer.unmap(memory, at, true)?;
        }
        Some(())
    };
    let (runs, operations) = if quick { (3, 2000) } else { (31, 20_000) };
    let operations = if len > 4096 { operations / 20 } else { operations };
    let (mut one, mut two, mut peer_two) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        one.push(together(1, operations, &ours)?);
        two.push(together(2, operations, &ours)?);
        peer_two.push(together(2, operations, &peers)?);
    }
    let factor = 2.0 * median(&mut one) / median(&mut two.clone());
    let comparison = summary(&mut two, &mut peer_two, &mut Random::new(0x5eed));
    let case = format!("{len} bytes from the device, 2 threads");
    Ok(vec![
        Row::speed_up("B12", case.clone(), factor, 1.9),
        Row::reported("B12", case, &comparison, "one lock, run lengths"),
    ])
}

/// 64 KiB that begin and end inside pages, for a device behind an IOMMU that is not trusted: only the first and the
/// last page are copied. Against copying all of it.
fn head_and_tail(quick: bool, memory: &FlatMemory) -> Outcome<Vec<Row>> {
    let pool = BouncePool::new(HostPhys::ZERO, POOL, 2)?;
    let split = super::api(Invalidation::Strict, memory)?.with_pool(pool);
    let whole = api(memory)?;
    let (untrusted, narrow) = (Device::with_address_bits(64).trust(Trust::Untrusted), narrow());
    let (mut core, mut whole_core) = (split.new_core(), whole.new_core());
    // A mapping beside keeps the tables.
    let beside = Buffer::new(HostPhys::new(BUFFERS + (1 << 20)), PAGE);
    let kept = split.map(&mut core, &untrusted, beside, Direction::ToDevice)?;
    let buffer = Buffer::new(HostPhys::new(BUFFERS + 0x200), 65_536);
    let copied = judge_parts(&split, memory, &untrusted, buffer)?;
    let pool_pages = pool_pages(&split, &untrusted, buffer)?;

    let mut failed = 0_u64;
    let mut rows = Vec::new();
    for (direction, name) in [
        (Direction::ToDevice, "to the device"),
        (Direction::FromDevice, "from the device"),
    ] {
        let comparison = compare(
            quick,
            &mut |turns| {
                for _ in 0..turns {
                    let mapping = split.map(&mut core, &untrusted, black_box(buffer), direction);
                    failed += u64::from(!mapping.is_ok_and(|mapping| split.unmap(&mut core, mapping).is_ok()));
                }
            },
            &mut |turns| {
                for _ in 0..turns {
                    let mapping = whole.map(&mut whole_core, &narrow, black_box(buffer), direction);
                    let _ = black_box(mapping.is_ok_and(|mapping| whole.unmap(&mut whole_core, mapping).is_ok()));
                }
            },
        );
        let case = format!("65536 bytes at 0x200 {name}, head and tail");
        rows.push(Row::reported("B12", case, &comparison, "all bytes copied, no IOMMU"));
    }
    split.unmap(&mut core, kept).map_err(|error| format!("{error:?}"))?;
    if failed > 0 {
        return Err(format!("{failed} operations failed").into());
    }
    let case = "bytes copied of 65536 at 0x200, head and tail".to_owned();
    let counts = [copied, buffer.len].map(|bytes| f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)));
    rows.push(Row::counted("B12", case, counts, "all of it", 2.0 * 4096.0));
    let case = "pages of the pool in 100 mappings, head and tail".to_owned();
    rows.push(Row::counted(
        "B12",
        case,
        [number(pool_pages), 200.0],
        "new ones each time",
        2.0,
    ));
    Ok(rows)
}

/// How many pages of the pool a hundred mappings of a buffer use, one after the other: used again, they stay in caches.
fn pool_pages(api: &DmaApi<super::Ours, &FlatMemory>, device: &Device, buffer: Buffer) -> Outcome<u64> {
    let mut core = api.new_core();
    let mut pages = BTreeSet::new();
    for _ in 0..100 {
        let mapping = api.map(&mut core, device, buffer, Direction::ToDevice)?;
        let segment = mapping.segment().ok_or("more than one segment")?;
        let space = api.backend().space();
        for at in [segment.address, Iova::new(segment.address.raw() + buffer.len - 1)] {
            let found = space
                .table
                .lookup(&space.memory, at.page())
                .ok_or("a page is missing")?;
            pages.insert(found.phys.raw());
        }
        api.unmap(&mut core, mapping).map_err(|error| format!("{error:?}"))?;
    }
    Ok(pages.len() as u64)
}

/// The device finds every byte of the buffer and none beside it, and what it writes arrives. Tells how many bytes were
/// copied for the device to read.
fn judge_parts(
    api: &DmaApi<super::Ours, &FlatMemory>,
    memory: &FlatMemory,
    device: &Device,
    buffer: Buffer,
) -> Outcome<u64> {
    let mut core = api.new_core();
    let mapping = api.map(&mut core, device, buffer, Direction::Bidirectional)?;
    let copied = api.counters(&core).bounced_bytes;
    let segment = mapping.segment().ok_or("more than one segment")?;
    let space = api.backend().space();
    let reached = AddrRange::from_base_len(segment.address.page(), buffer.len + PAGE).ok_or("no such range")?;
    let last = segment.address.checked_add(buffer.len).ok_or("no such address")?;
    let mut at = reached.first().raw();
    while at <= reached.last().raw() {
        let page = space
            .table
            .lookup(&space.memory, Iova::new(at))
            .ok_or("a page is missing")?;
        for byte in 0..PAGE {
            let place = page.phys.checked_add(byte).ok_or("no such address")?;
            let mut seen = [0];
            memory.read(place, &mut seen)?;
            let inside = at + byte >= segment.address.raw() && at + byte < last.raw();
            let mut wanted = [0];
            if inside {
                let offset = at + byte - segment.address.raw();
                memory.read(buffer.phys.checked_add(offset).ok_or("no such address")?, &mut wanted)?;
            }
            if seen != wanted {
                return Err(format!("the device reads {seen:?} at {:#x}, not {wanted:?}", at + byte).into());
            }
            if inside {
                memory.write(place, &[!seen[0]])?;
            }
        }
        at += PAGE;
    }
    let mut before = vec![0; usize::try_from(buffer.len)?];
    memory.read(buffer.phys, &mut before)?;
    let ends = [before[0], before[before.len() - 1]];
    api.unmap(&mut core, mapping).map_err(|error| format!("{error:?}"))?;
    let mut after = before.clone();
    memory.read(buffer.phys, &mut after)?;
    if [after[0], after[after.len() - 1]] != ends.map(|byte| !byte) {
        return Err("what the device wrote did not arrive".into());
    }
    Ok(copied)
}
