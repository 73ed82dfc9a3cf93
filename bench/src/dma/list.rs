//! B13: lists of buffers, as one block of addresses with one wait.

use std::cell::{Cell, RefCell};
use std::hint::black_box;

use iommu_dma::{Buffer, Device, Direction, Invalidation};
use iommu_testkit::SparseMemory;
use iommu_types::HostPhys;

use super::{LinuxShaped, Outcome, RING, api, judge};
use crate::floors::Strict as Floor;
use crate::pair::compare;
use crate::peers::PAGE;
use crate::row::Row;

/// Where in its page a buffer begins, and its length: some meet on page boundaries, the last one crosses one.
const MIXED: [(u64, u64); 5] = [(0, 4096), (256, 1500), (1536, 2560), (0, 2048), (3072, 1500)];
/// The longest segment of the device that has a limit.
const SHORT: u64 = 64 << 10;

/// What lists are made of, and what the device asks of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Pages,
    Mixed,
    Short,
    Bounded,
}

impl Shape {
    const fn name(self) -> &'static str {
        match self {
            Self::Pages => "pages",
            Self::Mixed => "buffers at mixed offsets",
            Self::Short => "pages, segments <= 64 KiB",
            Self::Bounded => "pages, 4 GiB boundary",
        }
    }

    const fn device(self) -> Device {
        let any = Device::with_address_bits(64);
        match self {
            Self::Pages | Self::Mixed => any,
            Self::Short => any.max_segment(SHORT),
            Self::Bounded => any.boundary_mask(u32::MAX as u64),
        }
    }

    /// Buffers, none beside the one before in memory.
    fn list(self, count: u64) -> Vec<Buffer> {
        let page = |number: u64| 0x1_0000_0000 + (number * 7 % 4096) * 2 * PAGE;
        let mixed = MIXED.iter().cycle();
        (0..count)
            .zip(mixed)
            .map(|(number, &(offset, len))| match self {
                Self::Mixed => Buffer::new(HostPhys::new(page(number) + offset), len),
                _ => Buffer::new(HostPhys::new(page(number)), PAGE),
            })
            .collect()
    }

    /// The fewest segments that say where the buffers are: two buffers are one where they meet on a page boundary.
    fn fewest(self, list: &[Buffer]) -> u64 {
        let ends_apart = |pair: &&[Buffer]| match pair {
            [one, next] => (one.phys.raw() + one.len) % PAGE != 0 || next.phys.page_offset() != 0,
            _ => false,
        };
        let runs = 1 + list.windows(2).filter(ends_apart).count() as u64;
        match self {
            // All of it is one run, cut by its length.
            Self::Short => list.iter().map(|buffer| buffer.len).sum::<u64>().div_ceil(SHORT),
            _ => runs,
        }
    }
}

/// Pages that a list touches, in order.
fn pages(list: &[Buffer]) -> Vec<u64> {
    let touched = |buffer: &Buffer| {
        let end = buffer.phys.raw() + buffer.len;
        (buffer.phys.page().raw()..end).step_by(4096)
    };
    list.iter().flat_map(touched).collect()
}

/// Buffers of a list.
const COUNTS: [u64; 4] = [1, 8, 64, 256];

/// B13.
pub(super) fn rows(quick: bool) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for shape in [Shape::Pages, Shape::Mixed, Shape::Short, Shape::Bounded] {
        let few = |count: &u64| !quick || *count >= 8;
        for count in COUNTS.into_iter().filter(few) {
            rows.extend(strict(quick, shape, count)?);
        }
        for count in COUNTS.into_iter().filter(few) {
            rows.extend(deferred(quick, shape, count)?);
        }
    }
    Ok(rows)
}

/// Turns of a list of 256 pages, strict.
pub(super) fn turns(turns: u64) -> Outcome<()> {
    let memory = SparseMemory::new(1 << 20);
    let (list, device) = (Shape::Pages.list(256), Shape::Pages.device());
    let api = api(Invalidation::Strict, memory.hardware())?;
    let mut core = api.new_core();
    let beside = Buffer::new(HostPhys::new(0), PAGE);
    let kept = api.map(&mut core, &device, beside, Direction::ToDevice)?;
    for _ in 0..turns {
        let mapping = api.map_sg(&mut core, &device, black_box(&list), Direction::FromDevice)?;
        api.unmap(&mut core, mapping).map_err(|error| format!("{error:?}"))?;
    }
    Ok(api.unmap(&mut core, kept).map_err(|error| format!("{error:?}"))?)
}

/// One list against mapping its buffers one by one, and against the Linux-shaped peer.
fn strict(quick: bool, shape: Shape, count: u64) -> Outcome<Vec<Row>> {
    let memory = SparseMemory::new(1 << 20);
    let (list, device) = (shape.list(count), shape.device());
    let api = api(Invalidation::Strict, memory.hardware())?;
    let (core, mut peer_core) = (RefCell::new(api.new_core()), api.new_core());
    // A mapping beside keeps the tables, as other traffic of a device does.
    let beside = Buffer::new(HostPhys::new(0), PAGE);
    let kept = api.map(&mut core.borrow_mut(), &device, beside, Direction::ToDevice)?;
    let before = (api.counters(&core.borrow()), api.backend().space().waits.get());
    let mapping = api.map_sg(&mut core.borrow_mut(), &device, &list, Direction::FromDevice)?;
    judge(api.backend().space(), &mapping, &list)?;
    let segments = mapping.segments().len() as u64;
    api.unmap(&mut core.borrow_mut(), mapping)
        .map_err(|error| format!("{error:?}"))?;
    let after = (api.counters(&core.borrow()), api.backend().space().waits.get());
    let did = [
        after.0.iovas - before.0.iovas,
        after.0.invalidations - before.0.invalidations,
        after.1 - before.1,
    ];
    let failed = Cell::new(0_u64);
    let mut ours = |turns: u64| {
        let core = &mut core.borrow_mut();
        for _ in 0..turns {
            let mapping = api.map_sg(core, &device, black_box(&list), Direction::FromDevice);
            let done = mapping.is_ok_and(|mapping| api.unmap(core, mapping).is_ok());
            failed.set(failed.get() + u64::from(!done));
        }
    };
    let each = compare(quick, &mut ours, &mut |turns| {
        for _ in 0..turns {
            let mut mappings = Vec::with_capacity(list.len());
            for &buffer in black_box(&list) {
                mappings.extend(api.map(&mut peer_core, &device, buffer, Direction::FromDevice));
            }
            for mapping in mappings {
                let done = api.unmap(&mut peer_core, mapping).is_ok();
                failed.set(failed.get() + u64::from(!done));
            }
        }
    });
    let mut peer = LinuxShaped::new();
    // Other mappings of the device fill the cache.
    let full = RING - usize::try_from(count * 2)?;
    let others: Vec<_> = (0..full).map(|_| peer.map(0x1_0000_0000)).collect();
    let touched = pages(&list);
    let linux = compare(quick, &mut ours, &mut |turns| {
        for _ in 0..turns {
            match peer.map_list(black_box(&touched).iter().copied()) {
                Some(range) => peer.unmap_list(range, touched.len() as u64),
                None => failed.set(failed.get() + 1),
            }
        }
    });
    let mut floor = Floor::new(RING)?;
    let ends: Vec<(u64, u64)> = list.iter().map(|buffer| (buffer.phys.raw(), buffer.len)).collect();
    let least = compare(quick, &mut ours, &mut |turns| {
        for _ in 0..turns {
            let done = floor.list(black_box(&ends));
            failed.set(failed.get() + u64::from(!done));
        }
    });
    if failed.get() > 0 || others.iter().any(Option::is_none) {
        return Err(format!("{} operations failed", failed.get()).into());
    }
    api.unmap(&mut core.borrow_mut(), kept)
        .map_err(|error| format!("{error:?}"))?;

    let case = format!("map_sg + unmap_sg, {}", case_of(count, shape));
    let target = match count {
        8 => Some(15.0),
        256 => Some(6.0),
        _ => None,
    };
    let a_segment = each.ours_ns / number(count);
    let mut rows = vec![Row::alone("B13", format!("{case}, a segment"), a_segment, target)];
    let loop_name = "map + unmap in a loop";
    rows.push(if count == 256 {
        Row::at_least("B13", case.clone(), &each, loop_name, 7.0)
    } else {
        Row::reported("B13", case.clone(), &each, loop_name)
    });
    rows.push(Row::reported("B13", case.clone(), &linux, "Linux-shaped, 1024 cached"));
    let limit = format!("{case}, limit");
    rows.push(Row::within("B13", limit, &least, "the least that does it", 3.0));
    for (what, count) in ["IOVAs", "invalidations", "waits"].into_iter().zip(did) {
        let case = format!("{what} of one list, {}", case_of(list.len() as u64, shape));
        rows.push(Row::counted(
            "B13",
            case,
            [count, list.len() as u64].map(number),
            "one a buffer",
            1.0,
        ));
    }
    let fewest = shape.fewest(&list);
    let counts = [segments, count].map(number);
    let case = format!("output segments, {}", case_of(count, shape));
    rows.push(Row::counted("B13", case, counts, "one a buffer", number(fewest)));
    Ok(rows)
}

fn number(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn case_of(count: u64, shape: Shape) -> String {
    format!("{count} {}", shape.name())
}

/// Unmaps put off, 256 at a time, against strict ones.
fn deferred(quick: bool, shape: Shape, count: u64) -> Outcome<Vec<Row>> {
    let memory = SparseMemory::new(1 << 20);
    let (list, device) = (shape.list(count), shape.device());
    let failed = Cell::new(0_u64);
    let sides = [Invalidation::Deferred { entries: 256 }, Invalidation::Strict]
        .map(|invalidation| api(invalidation, memory.hardware()));
    let [later, now] = sides;
    let (later, now) = (later?, now?);
    let (mut later_core, mut now_core) = (later.new_core(), now.new_core());
    let turn = |api: &iommu_dma::DmaApi<super::Ours, _>, core: &mut _, turns: u64| {
        for _ in 0..turns {
            let mapping = api.map_sg(core, &device, black_box(&list), Direction::FromDevice);
            let done = mapping.is_ok_and(|mapping| api.unmap(core, mapping).is_ok());
            failed.set(failed.get() + u64::from(!done));
        }
    };
    let comparison = compare(quick, &mut |turns| turn(&later, &mut later_core, turns), &mut |turns| {
        turn(&now, &mut now_core, turns);
    });
    if failed.get() > 0 {
        return Err(format!("{} operations failed", failed.get()).into());
    }
    let case = format!("map_sg + unmap_sg, {}, deferred 256", case_of(count, shape));
    let segment = Row::alone(
        "B13",
        format!("{case}, a segment"),
        comparison.ours_ns / number(count),
        None,
    );
    // 256 lists whole, so that each queue is flushed once.
    let before = (later.counters(&later_core), later.backend().space().waits.get());
    turn(&later, &mut later_core, 256);
    let after = (later.counters(&later_core), later.backend().space().waits.get());
    let did = [
        ("invalidations", after.0.invalidations - before.0.invalidations),
        ("waits", after.1 - before.1),
    ];
    let mut rows = vec![Row::reported("B13", case, &comparison, "strict"), segment];
    for (what, counted) in did {
        let case = format!("{what} of 256 lists, {}, deferred 256", case_of(count, shape));
        rows.push(Row::counted("B13", case, [number(counted), 256.0], "strict", 1.0));
    }
    Ok(rows)
}
