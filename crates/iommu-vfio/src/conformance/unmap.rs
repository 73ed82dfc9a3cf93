//! UNMAP_DMA.

use iommu_types::{Iova, PAGE_SIZE};

use super::{Case, WRAPS, case, refused, same};
use crate::backend::Backend;
use crate::error::Errno;

pub(super) fn cases<B: Backend>() -> Vec<Case<B>> {
    vec![
        case("unmap: a mapping, and tells its bytes", |b| {
            b.map(0, 8)?;
            same("bytes", b.unmap(0, 8)?, 8 * PAGE_SIZE)?;
            b.exactly(&[])
        }),
        case("unmap: nothing there is no error", |b| same("bytes", b.unmap(0, 8)?, 0)),
        case("unmap: twice", |b| {
            b.map(0, 1)?;
            same("bytes", b.unmap(0, 1)?, PAGE_SIZE)?;
            same("bytes again", b.unmap(0, 1)?, 0)
        }),
        case("unmap: no bytes is EINVAL", |b| {
            b.map(0, 1)?;
            refused(b.unmap(0, 0), &[Errno::Einval])?;
            b.exactly(&[(0, 1)])
        }),
        case("unmap: half a page is EINVAL", |b| {
            b.map(0, 1)?;
            refused(b.container.dma_unmap(b.at(0), PAGE_SIZE / 2), &[Errno::Einval])?;
            b.exactly(&[(0, 1)])
        }),
        case("unmap: an address inside a page is EINVAL", |b| {
            b.map(0, 2)?;
            refused(
                b.container.dma_unmap(Iova::new(b.base + 8), PAGE_SIZE),
                &[Errno::Einval],
            )?;
            b.exactly(&[(0, 2)])
        }),
        case("unmap: a range that wraps is refused (exception 1)", |b| {
            b.map(0, 1)?;
            refused(
                b.container.dma_unmap(Iova::new(u64::MAX - 0xfff), 2 * PAGE_SIZE),
                &WRAPS,
            )?;
            refused(b.container.dma_unmap(b.at(0), u64::MAX - 0xfff), &WRAPS)?;
            b.exactly(&[(0, 1)])
        }),
        case("unmap: up to the last byte of the 64-bit space (exception 3)", |b| {
            b.map(3, 2)?;
            let size = 0u64.wrapping_sub(b.base);
            match b.container.dma_unmap(b.at(0), size)? {
                0 => b.exactly(&[(3, 2)]),
                bytes => same("bytes", bytes, 2 * PAGE_SIZE),
            }
        }),
        case("unmap: the last page of the 64-bit space", |b| {
            same(
                "bytes",
                b.container.dma_unmap(Iova::new(u64::MAX - 0xfff), PAGE_SIZE)?,
                0,
            )
        }),
        case("unmap: the front of a mapping is EINVAL and changes nothing", |b| {
            b.map(4, 4)?;
            refused(b.unmap(4, 2), &[Errno::Einval])?;
            b.exactly(&[(4, 4)])
        }),
        case("unmap: the back of a mapping is EINVAL and changes nothing", |b| {
            b.map(4, 4)?;
            refused(b.unmap(6, 2), &[Errno::Einval])?;
            b.exactly(&[(4, 4)])
        }),
        case("unmap: the middle of a mapping is EINVAL and changes nothing", |b| {
            b.map(4, 4)?;
            refused(b.unmap(5, 2), &[Errno::Einval])?;
            b.exactly(&[(4, 4)])
        }),
        case("unmap: from below into a mapping is EINVAL and changes nothing", |b| {
            b.map(4, 4)?;
            refused(b.unmap(0, 6), &[Errno::Einval])?;
            b.exactly(&[(4, 4)])
        }),
        case(
            "unmap: from inside a mapping upwards is EINVAL and changes nothing",
            |b| {
                b.map(4, 4)?;
                refused(b.unmap(6, 10), &[Errno::Einval])?;
                b.exactly(&[(4, 4)])
            },
        ),
        case(
            "unmap: a whole mapping and half of the next is EINVAL and changes nothing",
            |b| {
                b.map(0, 4)?;
                b.map(4, 4)?;
                refused(b.unmap(0, 6), &[Errno::Einval])?;
                b.exactly(&[(0, 4), (4, 4)])
            },
        ),
        case(
            "unmap: half of a mapping and the whole next is EINVAL and changes nothing",
            |b| {
                b.map(0, 4)?;
                b.map(4, 4)?;
                refused(b.unmap(2, 6), &[Errno::Einval])?;
                b.exactly(&[(0, 4), (4, 4)])
            },
        ),
        case("unmap: more than the mapping", |b| {
            b.map(4, 4)?;
            same("bytes", b.unmap(0, 100)?, 4 * PAGE_SIZE)?;
            b.exactly(&[])
        }),
        case("unmap: several mappings with holes tells the sum", |b| {
            for page in [0, 3, 9] {
                b.map(page, 2)?;
            }
            same("bytes", b.unmap(0, 11)?, 6 * PAGE_SIZE)?;
            b.exactly(&[])
        }),
        case("unmap: neighbours together", |b| {
            b.map(0, 2)?;
            b.map(2, 3)?;
            same("bytes", b.unmap(0, 5)?, 5 * PAGE_SIZE)?;
            b.exactly(&[])
        }),
        case("unmap: one of two neighbours", |b| {
            b.map(0, 2)?;
            b.map(2, 3)?;
            same("bytes", b.unmap(0, 2)?, 2 * PAGE_SIZE)?;
            b.exactly(&[(2, 3)])
        }),
        case("unmap: some of many leaves the others", |b| {
            for page in 0..64 {
                b.map(2 * page, 1)?;
            }
            same("bytes", b.unmap(20, 21)?, 11 * PAGE_SIZE)?;
            for page in (0..10).chain(21..64) {
                same("bytes of one", b.unmap(2 * page, 1)?, PAGE_SIZE)?;
            }
            b.exactly(&[])
        }),
        case("unmap: the interrupt range holds nothing", |b| {
            same("bytes", b.container.dma_unmap(Iova::new(0xfee0_0000), 1 << 20)?, 0)
        }),
        case("unmap: then map again, larger", |b| {
            b.map(4, 2)?;
            b.unmap(4, 2)?;
            b.map(2, 8)?;
            b.exactly(&[(2, 8)])
        }),
        case("unmap: 4 MiB of one mapping", |b| {
            let pages = super::MEMORY / PAGE_SIZE;
            b.map(7, pages)?;
            same("bytes", b.unmap(7, pages)?, super::MEMORY)
        }),
        case("unmap all: nothing there", |b| {
            same("bytes", b.container.dma_unmap_all()?, 0)
        }),
        case("unmap all: tells the sum", |b| {
            b.map(0, 2)?;
            b.map(100, 3)?;
            b.map_at(Iova::new(b.base + (32 << 20)), 2 << 20)?;
            same("bytes", b.container.dma_unmap_all()?, 5 * PAGE_SIZE + (2 << 20))?;
            b.exactly(&[])
        }),
        case("unmap all: then map again", |b| {
            b.map(0, 2)?;
            b.container.dma_unmap_all()?;
            b.map(0, 2)?;
            b.exactly(&[(0, 2)])
        }),
    ]
}
