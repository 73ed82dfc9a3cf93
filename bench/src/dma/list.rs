//! B13: lists of buffers, as one block of addresses with one wait.

use std::cell::{Cell, RefCell};
use std::hint::black_box;

use iommu_dma::{Buffer, Device, Direction, Invalidation};
use iommu_testkit::SparseMemory;
use iommu_types::HostPhys;

use super::{LinuxShaped, Outcome, RING, api, judge};
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

/// B13.
pub(super) fn rows(quick: bool) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for shape in [Shape::Pages, Shape::Mixed] {
        for count in [1, 8, 64, 256] {
            rows.extend(strict(quick, shape, count)?);
        }
        for count in [8, 256] {
            rows.push(deferred(quick, shape, count)?);
        }
    }
    for shape in [Shape::Short, Shape::Bounded] {
        for count in [64, 256] {
            rows.extend(strict(quick, shape, count)?);
        }
    }
    Ok(rows)
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
    if did != [1, 1, 1] {
        return Err(format!("IOVAs, invalidations and waits of one list: {did:?}").into());
    }
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
    if failed.get() > 0 || others.iter().any(Option::is_none) {
        return Err(format!("{} operations failed", failed.get()).into());
    }
    api.unmap(&mut core.borrow_mut(), kept)
        .map_err(|error| format!("{error:?}"))?;

    let name = shape.name();
    let case = format!("map_sg + unmap_sg, {count} {name}");
    let target = match count {
        8 => Some(15.0),
        256 => Some(6.0),
        _ => None,
    };
    let number = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let a_segment = each.ours_ns / number(count);
    let mut rows = vec![Row::alone("B13", format!("{case}, a segment"), a_segment, target)];
    let loop_name = "map + unmap in a loop";
    rows.push(if count == 256 {
        Row::at_least("B13", case.clone(), &each, loop_name, 7.0)
    } else {
        Row::reported("B13", case.clone(), &each, loop_name)
    });
    rows.push(Row::reported("B13", case, &linux, "Linux-shaped, 1024 cached"));
    let fewest = shape.fewest(&list);
    let counts = [segments, count].map(number);
    let case = format!("output segments, {count} {name}");
    rows.push(Row::counted("B13", case, counts, "one a buffer", number(fewest)));
    Ok(rows)
}

/// Unmaps put off, 256 at a time, against strict ones.
fn deferred(quick: bool, shape: Shape, count: u64) -> Outcome<Row> {
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
    let case = format!("map_sg + unmap_sg, {count} {}, deferred 256", shape.name());
    Ok(Row::reported("B13", case, &comparison, "strict"))
}
