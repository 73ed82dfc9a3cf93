//! MAP_DMA.

use iommu_types::{Iova, PAGE_SIZE, Perms};

use super::{Bench, Case, Judged, MEMORY, MOST_MAPPINGS, Stop, WRAPS, case, refused, same};
use crate::backend::{Backend, DmaMemory};
use crate::error::{Errno, VfioError};

/// Where interrupts are: nothing can be mapped there on x86.
const INTERRUPTS: u64 = 0xfee0_0000;
const INTERRUPTS_END: u64 = 0xfef0_0000;

pub(super) fn cases<B: Backend>() -> Vec<Case<B>> {
    vec![
        case("map: one page", |b| {
            b.map(0, 1)?;
            b.exactly(&[(0, 1)])
        }),
        case("map: read-only, write-only, both", |b| {
            for (page, perms) in [(0, Perms::READ), (1, Perms::WRITE), (2, Perms::READ_WRITE)] {
                b.container.dma_map(b.at(page), &b.memory, 0, PAGE_SIZE, perms)?;
            }
            b.exactly(&[(0, 3)])
        }),
        case("map: no rights is EINVAL", |b| {
            let result = b.container.dma_map(b.at(0), &b.memory, 0, PAGE_SIZE, Perms::NONE);
            refused(result, &[Errno::Einval])?;
            b.exactly(&[])
        }),
        case("map: no bytes is EINVAL", |b| refused(b.map(0, 0), &[Errno::Einval])),
        case("map: half a page is EINVAL", |b| {
            refused(b.map_at(b.at(0), PAGE_SIZE / 2), &[Errno::Einval])
        }),
        case("map: a page and a byte is EINVAL", |b| {
            refused(b.map_at(b.at(0), PAGE_SIZE + 1), &[Errno::Einval])
        }),
        case("map: an address inside a page is EINVAL", |b| {
            refused(b.map_at(Iova::new(b.base + 8), PAGE_SIZE), &[Errno::Einval])
        }),
        case("map: memory from inside a page is EINVAL", |b| {
            let result = b.container.dma_map(b.at(0), &b.memory, 8, PAGE_SIZE, Perms::READ);
            refused(result, &[Errno::Einval])
        }),
        case("map: memory past its end is EINVAL", |b| {
            let result = b.container.dma_map(b.at(0), &b.memory, MEMORY, PAGE_SIZE, Perms::READ);
            refused(result, &[Errno::Einval])?;
            b.exactly(&[])
        }),
        case("map: a range that wraps is refused (exception 1)", |b| {
            refused(b.map_at(Iova::new(u64::MAX - 0xfff), 2 * PAGE_SIZE), &WRAPS)
        }),
        case("map: 2^63 bytes are refused", |b| {
            refused(b.map_at(b.at(0), 1 << 63), &WRAPS)
        }),
        case("map: all bytes but a page are refused", |b| {
            refused(b.map_at(b.at(0), u64::MAX - 0xfff), &WRAPS)
        }),
        case("map: the last page of the 64-bit space is outside, not a wrap", |b| {
            b.last()?;
            refused(b.map_at(Iova::new(u64::MAX - 0xfff), PAGE_SIZE), &[Errno::Einval])
        }),
        case("map: the same range again is EEXIST", |b| {
            b.map(4, 4)?;
            refused(b.map(4, 4), &[Errno::Eexist])?;
            b.exactly(&[(4, 4)])
        }),
        case("map: over the first page of a mapping is EEXIST", |b| {
            b.map(4, 4)?;
            refused(b.map(2, 3), &[Errno::Eexist])?;
            b.exactly(&[(4, 4)])
        }),
        case("map: over the last page of a mapping is EEXIST", |b| {
            b.map(4, 4)?;
            refused(b.map(7, 3), &[Errno::Eexist])?;
            b.exactly(&[(4, 4)])
        }),
        case("map: inside a mapping is EEXIST", |b| {
            b.map(4, 4)?;
            refused(b.map(5, 2), &[Errno::Eexist])?;
            b.exactly(&[(4, 4)])
        }),
        case("map: around a mapping is EEXIST", |b| {
            b.map(4, 4)?;
            refused(b.map(2, 10), &[Errno::Eexist])?;
            b.exactly(&[(4, 4)])
        }),
        case("map: right below and right above a mapping", |b| {
            b.map(4, 4)?;
            b.map(3, 1)?;
            b.map(8, 1)?;
            b.exactly(&[(3, 1), (4, 4), (8, 1)])
        }),
        case("map: what EEXIST left out can be mapped", |b| {
            b.map(4, 4)?;
            refused(b.map(6, 4), &[Errno::Eexist])?;
            b.map(8, 2)?;
            b.exactly(&[(4, 4), (8, 2)])
        }),
        case("map: no rights over a mapping is EINVAL, not EEXIST", |b| {
            b.map(0, 1)?;
            let result = b.container.dma_map(b.at(0), &b.memory, 0, PAGE_SIZE, Perms::NONE);
            refused(result, &[Errno::Einval])
        }),
        case("map: half a page over a mapping is EINVAL, not EEXIST", |b| {
            b.map(0, 1)?;
            refused(b.map_at(b.at(0), PAGE_SIZE / 2), &[Errno::Einval])
        }),
        case("map: address 0", |b| {
            if !b.info.ranges.iter().any(|range| range.contains(Iova::ZERO)) {
                return Err(Stop::Skipped("address 0 is not among the valid ranges".to_owned()));
            }
            b.map_at(Iova::ZERO, PAGE_SIZE)?;
            refused(b.map_at(Iova::ZERO, PAGE_SIZE), &[Errno::Eexist])?;
            same(
                "bytes unmapped",
                b.container.dma_unmap(Iova::ZERO, PAGE_SIZE)?,
                PAGE_SIZE,
            )
        }),
        case("map: the interrupt range is EINVAL", |b| {
            refused(b.map_at(Iova::new(INTERRUPTS), PAGE_SIZE), &[Errno::Einval])?;
            refused(
                b.map_at(Iova::new(INTERRUPTS_END - PAGE_SIZE), PAGE_SIZE),
                &[Errno::Einval],
            )
        }),
        case("map: into the interrupt range is EINVAL", |b| {
            refused(
                b.map_at(Iova::new(INTERRUPTS - PAGE_SIZE), 2 * PAGE_SIZE),
                &[Errno::Einval],
            )
        }),
        case("map: out of the interrupt range is EINVAL", |b| {
            refused(
                b.map_at(Iova::new(INTERRUPTS_END - PAGE_SIZE), 2 * PAGE_SIZE),
                &[Errno::Einval],
            )
        }),
        case("map: over the whole interrupt range is EINVAL", |b| {
            let size = INTERRUPTS_END - INTERRUPTS + 2 * PAGE_SIZE;
            refused(b.map_at(Iova::new(INTERRUPTS - PAGE_SIZE), size), &[Errno::Einval])
        }),
        case("map: right below and right above the interrupt range", |b| {
            b.map_at(Iova::new(INTERRUPTS - PAGE_SIZE), PAGE_SIZE)?;
            b.map_at(Iova::new(INTERRUPTS_END), PAGE_SIZE)?;
            same("bytes unmapped", b.container.dma_unmap_all()?, 2 * PAGE_SIZE)
        }),
        case("map: the last page of the valid ranges", |b| {
            let last = b.last()?.raw() - (PAGE_SIZE - 1);
            b.map_at(Iova::new(last), PAGE_SIZE)?;
            same(
                "bytes unmapped",
                b.container.dma_unmap(Iova::new(last), PAGE_SIZE)?,
                PAGE_SIZE,
            )
        }),
        case("map: past the last page of the valid ranges is EINVAL", |b| {
            let last = b.last()?.raw();
            refused(
                b.map_at(Iova::new(last - (PAGE_SIZE - 1)), 2 * PAGE_SIZE),
                &[Errno::Einval],
            )?;
            refused(b.map_at(Iova::new(last + 1), PAGE_SIZE), &[Errno::Einval])
        }),
        case("map: overlap comes before valid ranges", |b| {
            let last = b.last()?.raw() - (PAGE_SIZE - 1);
            b.map_at(Iova::new(last), PAGE_SIZE)?;
            refused(b.map_at(Iova::new(last), 2 * PAGE_SIZE), &[Errno::Eexist])
        }),
        case("map: the same memory at two addresses", |b| {
            b.map(0, 4)?;
            b.map(100, 4)?;
            b.exactly(&[(0, 4), (100, 4)])
        }),
        case("map: 2 MiB at a multiple of 2 MiB, and off it", |b| {
            let pages = (2 << 20) / PAGE_SIZE;
            b.map(0, pages)?;
            b.map(pages + 1, pages)?;
            b.exactly(&[(0, pages), (pages + 1, pages)])
        }),
        case("map: memory keeps what is in it", |b| {
            let pattern = *b"what devices and programs share!";
            b.memory.write_at(5000, &pattern)?;
            b.map(0, 4)?;
            let mut back = [0; 32];
            b.memory.read_at(5000, &mut back)?;
            same("bytes while mapped", back, pattern)?;
            b.unmap(0, 4)?;
            b.memory.read_at(5000, &mut back)?;
            same("bytes after", back, pattern)
        }),
        case("info: 4 KiB pages, valid ranges in order and without interrupts", |b| {
            same("granule", b.info.granule(), PAGE_SIZE)?;
            let ranges = &b.info.ranges;
            let ordered = ranges
                .iter()
                .zip(ranges.iter().skip(1))
                .all(|(a, b)| a.last() < b.first());
            same("in order", ordered, true)?;
            let interrupts = |at: u64| ranges.iter().any(|range| range.contains(Iova::new(at)));
            same(
                "holds interrupts",
                interrupts(INTERRUPTS) || interrupts(INTERRUPTS_END - 1),
                false,
            )
        }),
        case("limit: a mapping costs one, an unmapping gives it back", |b| {
            let free = || -> Result<u32, Stop> {
                let info = b.container.info()?;
                info.free_mappings
                    .ok_or_else(|| Stop::Skipped("exception 2".to_owned()))
            };
            let before = free()?;
            b.map(0, 8)?;
            same("left after a mapping of many pages", free()?, before - 1)?;
            refused(b.map(0, 8), &[Errno::Eexist])?;
            same("left after a refusal", free()?, before - 1)?;
            b.unmap(0, 8)?;
            same("left after unmapping", free()?, before)
        }),
        case("limit: past the last mapping is ENOSPC", |b| exhaust(b)),
    ]
}

/// One page, mapped at as many addresses as are allowed.
fn exhaust<B: Backend>(b: &Bench<B>) -> Judged {
    let Some(free) = b.info.free_mappings.filter(|free| *free <= MOST_MAPPINGS) else {
        return Err(Stop::Skipped("exception 2, or too many to try".to_owned()));
    };
    // Every second page, so that nothing could be joined. The room may be smaller than that: what follows it is free.
    let room = u64::from(free) * 2 * PAGE_SIZE;
    let fits = |range: &iommu_types::AddrRange<Iova>| range.len().is_some_and(|len| len > room + (1 << 30));
    let Some(range) = b.info.ranges.iter().rev().find(|range| fits(range)) else {
        return Err(Stop::Skipped("the valid ranges are too small".to_owned()));
    };
    let first = range.first().raw().next_multiple_of(1 << 21);
    let at = |n: u32| Iova::new(first + u64::from(n) * 2 * PAGE_SIZE);
    for n in 0..free {
        match b.map_at(at(n), PAGE_SIZE) {
            Ok(()) => {}
            // The process may not pin as much: another limit, which is not tried here.
            Err(VfioError::PinLimit { .. }) => return Err(Stop::Skipped("pinned memory runs out first".to_owned())),
            Err(error) => return Err(error.into()),
        }
    }
    refused(b.map_at(at(free), PAGE_SIZE), &[Errno::Enospc])?;
    refused(b.map_at(at(0), PAGE_SIZE), &[Errno::Eexist])?;
    same("bytes unmapped", b.container.dma_unmap(at(7), PAGE_SIZE)?, PAGE_SIZE)?;
    b.map_at(at(free), PAGE_SIZE)?;
    same(
        "bytes unmapped",
        b.container.dma_unmap_all()?,
        u64::from(free) * PAGE_SIZE,
    )
}
