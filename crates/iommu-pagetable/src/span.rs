//! The part of a table that a range of addresses falls into.

use iommu_types::{AddrRange, Iova, PAGE_SHIFT, TABLE_ENTRIES};

/// Input addresses inside one table, both ends included, whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// One entry of a table, and the part of a span that it translates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) index: usize,
    pub(crate) span: Span,
    /// Whether the span holds everything the entry translates.
    pub(crate) whole: bool,
}

/// Base-2 logarithm of the bytes that one entry of a table at `level` translates.
pub(crate) const fn shift(level: u8) -> u32 {
    // 4 KiB at level 1; each level multiplies by the number of entries in a table.
    PAGE_SHIFT + (level as u32 - 1) * TABLE_ENTRIES.trailing_zeros()
}

/// Which entry of a table at `level` translates `iova`.
pub(crate) const fn index(iova: u64, level: u8) -> usize {
    ((iova >> shift(level)) & 0x1ff) as usize
}

impl Span {
    pub(crate) fn of(range: AddrRange<Iova>) -> Self {
        Self {
            first: range.first().raw(),
            last: range.last().raw(),
        }
    }

    /// Whether all of it lies in one leaf table.
    #[inline]
    pub(crate) const fn is_in_one_leaf_table(self) -> bool {
        (self.first ^ self.last) >> shift(2) == 0
    }

    /// Whether it is all that a leaf table translates, or more.
    #[inline]
    pub(crate) const fn fills_a_leaf_table(self) -> bool {
        self.last - self.first >= (1 << shift(2)) - 1
    }

    /// The addresses again.
    pub(crate) fn range(self) -> AddrRange<Iova> {
        let first = Iova::new(self.first);
        // A span is ordered by construction; the page stands for the impossible case only.
        AddrRange::new(first, Iova::new(self.last))
            .unwrap_or(AddrRange::page_around(first, iommu_types::PageSize::Size4K))
    }

    /// The entries of a table at `level` that the span touches, lowest first: at most 512.
    pub(crate) fn slots(self, level: u8) -> impl Iterator<Item = Slot> {
        let shift = shift(level);
        let mask = (1u64 << shift) - 1;
        ((self.first >> shift)..=(self.last >> shift)).map(move |number| {
            let base = number << shift;
            let span = Self {
                first: base.max(self.first),
                last: (base | mask).min(self.last),
            };
            Slot {
                index: index(base, level),
                span,
                whole: span.first == base && span.last == base | mask,
            }
        })
    }

    /// First and last entry of a table at `level` that the span touches.
    pub(crate) const fn indices(self, level: u8) -> (usize, usize) {
        (index(self.first, level), index(self.last, level))
    }

    /// The addresses that the entry of a table at `level` translates which holds `iova`.
    pub(crate) const fn around(iova: u64, level: u8) -> Self {
        let mask = (1 << shift(level)) - 1;
        Self {
            first: iova & !mask,
            last: iova | mask,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn slots_cut_a_range_at_entry_boundaries() {
        let span = Span {
            first: 0x1f_f000,
            last: 0x60_0fff,
        };
        let slots: Vec<_> = span
            .slots(2)
            .map(|s| (s.index, s.span.first, s.span.last, s.whole))
            .collect();
        assert_eq!(
            slots,
            [
                (0, 0x1f_f000, 0x1f_ffff, false),
                (1, 0x20_0000, 0x3f_ffff, true),
                (2, 0x40_0000, 0x5f_ffff, true),
                (3, 0x60_0000, 0x60_0fff, false),
            ]
        );
    }

    #[test]
    fn indices_are_nine_bits_per_level() {
        let iova = 3 << 48 | 5 << 39 | 7 << 30 | 9 << 21 | 11 << 12;
        assert_eq!([1, 2, 3, 4, 5].map(|level| index(iova, level)), [11, 9, 7, 5, 3]);
    }
}
