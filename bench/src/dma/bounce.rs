//! B12: copies through bounce buffers, against copying the same bytes.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use iommu_dma::{BouncePool, Buffer, Device, Direct, Direction, DmaApi};
use iommu_types::{HostPhys, SystemMemory};

use super::Outcome;
use crate::pair::{compare, median};
use crate::peers::FlatMemory;
use crate::row::Row;

/// The pool lies low, where the device reaches it.
const POOL: u64 = 64 << 20;
/// Buffers lie above what the device can address.
const MASK: u64 = (128 << 20) - 1;
const BUFFERS: u64 = 128 << 20;
const MEMORY: u64 = 192 << 20;
/// What mapping and unmapping may cost besides the copies.
const BESIDES: f64 = 15.0;

type Api<'a> = DmaApi<Direct, &'a FlatMemory>;

fn api(memory: &FlatMemory) -> Outcome<Api<'_>> {
    let pool = BouncePool::new(HostPhys::ZERO, POOL, 2)?;
    Ok(DmaApi::new(Direct, memory).with_pool(pool))
}

const fn narrow() -> Device {
    Device::new(iommu_types::Iova::new(MASK))
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
    ] {
        for len in [64, 256, 1500, 4096, 65_536] {
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
            let most = comparison.peer_ns + BESIDES;
            rows.push(Row {
                target: format!("<= the copies + {BESIDES} ns"),
                ..Row::at_most("B12", case, &comparison, "the copies alone", most)
            });
        }
    }
    rows.push(cold(quick, &memory)?);
    rows.push(two_threads(quick, &memory)?);
    Ok(rows)
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

/// Buffers that are not in the cache.
fn cold(quick: bool, memory: &FlatMemory) -> Outcome<Row> {
    let api = api(memory)?;
    let (device, len) = (narrow(), 4096);
    let mut core = api.new_core();
    let place = |turn: u64| HostPhys::new(BUFFERS + (turn * 7919 % 16_000) * 4096);
    let (mut turn, mut other, mut failed) = (0, 8000, 0_u64);
    let comparison = compare(
        quick,
        &mut |turns| {
            for _ in 0..turns {
                turn += 1;
                let mapping = api.map(&mut core, &device, Buffer::new(place(turn), len), Direction::ToDevice);
                failed += u64::from(!mapping.is_ok_and(|mapping| api.unmap(&mut core, mapping).is_ok()));
            }
        },
        &mut |turns| {
            for _ in 0..turns {
                other += 1;
                let _ = black_box(memory.copy(place(other), HostPhys::ZERO, len));
            }
        },
    );
    if failed > 0 {
        return Err(format!("{failed} operations failed").into());
    }
    let case = "4096 bytes to the device, cold".to_owned();
    Ok(Row::within("B12", case, &comparison, "the copy alone", 1.1))
}

/// The time of the slowest of some threads, each with buffers and an area of its own.
fn together(api: &Api<'_>, threads: u64, operations: u64) -> Outcome<f64> {
    let barrier = Barrier::new(usize::try_from(threads)?);
    let took: Vec<Option<Duration>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut core = api.new_core();
                    let device = narrow();
                    let buffer = Buffer::new(HostPhys::new(BUFFERS + thread * (1 << 20)), 1500);
                    barrier.wait();
                    let start = Instant::now();
                    for _ in 0..operations {
                        let mapping = api.map(&mut core, &device, buffer, Direction::FromDevice).ok()?;
                        api.unmap(&mut core, mapping).ok()?;
                    }
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
    Ok(slowest.as_secs_f64())
}

fn two_threads(quick: bool, memory: &FlatMemory) -> Outcome<Row> {
    let api = api(memory)?;
    let (runs, operations) = if quick { (3, 2000) } else { (31, 20_000) };
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        one.push(together(&api, 1, operations)?);
        two.push(together(&api, 2, operations)?);
    }
    let factor = 2.0 * median(&mut one) / median(&mut two);
    let case = "1500 bytes from the device, 2 threads".to_owned();
    Ok(Row::speed_up("B12", case, factor, 1.9))
}
