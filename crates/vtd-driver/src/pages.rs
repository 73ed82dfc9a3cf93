//! From an address range to page-selective invalidations.

use iommu_types::omission::{Step, kept};
use iommu_types::{AddrRange, Iova, PAGE_SHIFT, PAGE_SIZE, PageSize};

/// Most page-selective invalidations that one range is split into before the whole domain is flushed
/// instead. Each costs a descriptor and a lookup in the unit.
pub(crate) const MAX_BLOCKS: usize = 8;

/// A naturally aligned block of `2^mask` pages, as page-selective invalidation takes it
/// (`VT-d §6.5.2.3 (IOTLB Invalidate)`, fields ADDR and AM).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// The first address.
    pub(crate) address: Iova,
    /// AM: base-2 logarithm of the number of pages.
    pub(crate) mask: u8,
}

impl Block {
    /// The smallest aligned block that covers `range`.
    ///
    /// Rounding only the size of an unaligned range would leave part of it cached (rule D7): the mask is the
    /// number of low page-number bits in which the first and the last page may differ.
    pub(crate) fn covering(range: AddrRange<Iova>) -> Self {
        let first = range.first().raw() >> PAGE_SHIFT;
        let last = range.last().raw() >> PAGE_SHIFT;
        let differing = if kept(Step::WholeRange) {
            first ^ last
        } else {
            last - first
        };
        let bits = u64::BITS - differing.leading_zeros();
        let address = (first >> bits << bits) << PAGE_SHIFT;
        Self {
            address: Iova::new(address),
            mask: u8::try_from(bits).unwrap_or(u8::MAX),
        }
    }
}

/// Addresses whose translations a unit has to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stale {
    pub(crate) range: AddrRange<Iova>,
    /// No table page was unlinked, so pointers to tables may stay cached (rule D9).
    pub(crate) leaf_only: bool,
}

/// What to invalidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// These blocks, each with its hint; the first `usize` of the array.
    Blocks([(Block, bool); MAX_BLOCKS], usize),
    /// Everything of the domain.
    Domain,
}

impl Plan {
    /// The blocks; `None` for everything of the domain.
    pub(crate) fn blocks(&self) -> Option<&[(Block, bool)]> {
        match self {
            Self::Blocks(blocks, count) => blocks.get(..*count),
            Self::Domain => None,
        }
    }
}

/// Chooses how to invalidate what is `stale` on a unit whose largest address mask is `max_mask`
/// (`CAP_REG.MAMV`; `None` where `CAP_REG.PSI` is 0).
///
/// For each range the maximal aligned pieces where these are few, else the smallest covering block. Pieces are never
/// cut below their natural size: a block smaller than a superpage leaf would not have to drop it (rule D21). If all
/// of it together is more than [`MAX_BLOCKS`], the domain is flushed once instead.
pub(crate) fn plan(stale: &[Stale], max_mask: Option<u8>) -> Plan {
    let Some(max_mask) = max_mask else { return Plan::Domain };
    let none = (
        Block::covering(AddrRange::page_around(Iova::ZERO, PageSize::Size4K)),
        false,
    );
    let mut all = [none; MAX_BLOCKS];
    let mut used = 0;
    for Stale { range, leaf_only } in stale {
        let mut blocks = [none.0; MAX_BLOCKS];
        let Some(count) = blocks_of(*range, max_mask, &mut blocks) else {
            return Plan::Domain;
        };
        for block in blocks.iter().take(count) {
            let Some(slot) = all.get_mut(used) else {
                return Plan::Domain;
            };
            *slot = (*block, *leaf_only);
            used += 1;
        }
    }
    Plan::Blocks(all, used)
}

/// The blocks for one range; `None` if the domain has to be flushed.
fn blocks_of(range: AddrRange<Iova>, max_mask: u8, blocks: &mut [Block; MAX_BLOCKS]) -> Option<usize> {
    if !kept(Step::LeafSizes) {
        // One small block, whatever is mapped there.
        let mask = 0;
        *blocks = [Block {
            mask,
            ..Block::covering(range)
        }; MAX_BLOCKS];
        return Some(1);
    }
    if let Some(count) = split(range, max_mask, blocks) {
        return Some(count);
    }
    let covering = Block::covering(range);
    (covering.mask <= max_mask).then(|| {
        *blocks = [covering; MAX_BLOCKS];
        1
    })
}

/// Splits `range` into maximal naturally aligned blocks; `None` if one needs a mask above `max_mask` or there
/// are more than fit.
fn split(range: AddrRange<Iova>, max_mask: u8, blocks: &mut [Block; MAX_BLOCKS]) -> Option<usize> {
    let mut at = range.first().raw() >> PAGE_SHIFT;
    let last = range.last().raw() >> PAGE_SHIFT;
    let mut count = 0;
    while at <= last {
        let left = last - at + 1;
        let mask = at.trailing_zeros().min(left.ilog2());
        let mask = u8::try_from(mask).ok().filter(|&mask| mask <= max_mask)?;
        *blocks.get_mut(count)? = Block {
            address: Iova::new(at * PAGE_SIZE),
            mask,
        };
        count += 1;
        at += 1 << mask;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn pages(first: u64, count: u64) -> AddrRange<Iova> {
        AddrRange::from_base_len(Iova::new(first << PAGE_SHIFT), count << PAGE_SHIFT).expect("in range")
    }

    /// The plan for one range of which only leaves are stale.
    fn plan_one(range: AddrRange<Iova>, max_mask: Option<u8>) -> Plan {
        let leaf_only = true;
        plan(&[Stale { range, leaf_only }], max_mask)
    }

    #[test]
    fn the_covering_block_moves_the_start_of_an_unaligned_range_down() {
        let vectors = [
            (0x0, 1, 0, 0x0),
            (0x1ff, 1, 0, 0x1ff),
            (0x1, 2, 2, 0x0),
            (0x3, 2, 3, 0x0),
            (0x100, 3, 2, 0x100),
            (0x102, 4, 3, 0x100),
            (0x7ff, 2, 12, 0x0),
            (0xf_ffff, 2, 21, 0x0),
        ];
        for (first, count, mask, page) in vectors {
            let expected = Block {
                address: Iova::new(page << PAGE_SHIFT),
                mask,
            };
            assert_eq!(
                Block::covering(pages(first, count)),
                expected,
                "{count} pages from {first:#x}"
            );
        }
    }

    #[test]
    fn a_unit_without_page_selection_gets_a_domain_flush() {
        assert_eq!(plan_one(pages(0, 1), None), Plan::Domain);
    }

    #[test]
    fn a_range_beyond_the_largest_mask_gets_a_domain_flush() {
        assert_eq!(plan_one(pages(0, 1 << 10), Some(9)), Plan::Domain);
        assert!(matches!(plan_one(pages(0, 1 << 9), Some(9)), Plan::Blocks(_, 1)));
    }

    #[test]
    fn two_pages_across_a_wide_boundary_are_two_exact_blocks() {
        // The covering block would need mask 21, which this unit lacks.
        match plan_one(pages(0xf_ffff, 2), Some(18)) {
            Plan::Blocks(blocks, 2) => {
                let [first, second, ..] = blocks.map(|(block, _)| block);
                assert_eq!(first.address, Iova::new(0xffff_f000));
                assert_eq!(second.address, Iova::new(0x1_0000_0000));
                assert_eq!((first.mask, second.mask), (0, 0));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_whole_address_space_is_a_domain_flush_and_does_not_overflow() {
        let all = AddrRange::new(Iova::ZERO, Iova::MAX).expect("ordered");
        assert_eq!(plan_one(all, Some(18)), Plan::Domain);
        assert_eq!(
            plan_one(all, Some(63)).blocks(),
            Some(&[(Block::covering(all), true)][..])
        );
    }

    #[test]
    fn several_ranges_share_a_batch_until_a_domain_flush_is_cheaper() {
        let small = |first| Stale {
            range: pages(first, 1),
            leaf_only: first == 3,
        };
        let few = [small(3), small(7), small(9)];
        let blocks = few.map(|stale| (Block::covering(stale.range), stale.leaf_only));
        assert_eq!(plan(&few, Some(0)).blocks(), Some(&blocks[..]));
        let many: Vec<Stale> = (0..9).map(|number| small(number * 4)).collect();
        assert_eq!(plan(&many, Some(18)), Plan::Domain);
        assert!(plan(&many[..8], Some(18)).blocks().is_some());
        assert_eq!(plan(&few, None), Plan::Domain);
    }

    proptest! {
        #[test]
        fn every_page_of_the_range_is_covered(first in 0u64..1 << 40, count in 1u64..5000, max in 0u8..20) {
            let range = pages(first, count);
            if let Plan::Blocks(blocks, used) = plan_one(range, Some(max)) {
                let mut at = first;
                for (block, _) in blocks.iter().take(used) {
                    prop_assert!(block.mask <= max);
                    let start = block.address.raw() >> PAGE_SHIFT;
                    prop_assert_eq!(start % (1 << block.mask), 0);
                    prop_assert!(start <= at);
                    at = start + (1 << block.mask);
                }
                prop_assert!(at >= first + count);
            }
        }
    }
}
