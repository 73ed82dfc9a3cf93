//! Inclusive address ranges.

use core::fmt;

use crate::address::Address;
use crate::page::{PAGE_SIZE, PageSize};

/// A non-empty range of bytes, both ends included.
///
/// Inclusive ends make the last page of the 64-bit space expressible and leave no sum that could wrap.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddrRange<A> {
    first: A,
    last: A,
}

impl<A: Address> AddrRange<A> {
    /// The bytes `first..=last`, or `None` if `last` lies below `first`.
    #[must_use]
    pub fn new(first: A, last: A) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// `len` bytes from `base`, or `None` if `len` is 0 or the range would pass the end of the space.
    #[must_use]
    pub fn from_base_len(base: A, len: u64) -> Option<Self> {
        let last = base.to_raw().checked_add(len.checked_sub(1)?)?;
        Some(Self {
            first: base,
            last: A::from_raw(last),
        })
    }

    /// The page of `size` that holds `at`.
    #[must_use]
    pub fn page_around(at: A, size: PageSize) -> Self {
        let mask = size.bytes() - 1;
        Self {
            first: A::from_raw(at.to_raw() & !mask),
            last: A::from_raw(at.to_raw() | mask),
        }
    }

    /// The first byte.
    #[must_use]
    pub const fn first(self) -> A
    where
        A: Copy,
    {
        self.first
    }

    /// The last byte.
    #[must_use]
    pub const fn last(self) -> A
    where
        A: Copy,
    {
        self.last
    }

    /// Length in bytes; `None` for the whole 64-bit space, whose length does not fit.
    #[must_use]
    pub fn len(self) -> Option<u64> {
        (self.last.to_raw() - self.first.to_raw()).checked_add(1)
    }

    /// Always false: ranges are not empty. Present because `len` is.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Whether byte `at` is inside.
    #[must_use]
    pub fn contains(self, at: A) -> bool {
        self.first <= at && at <= self.last
    }

    /// Whether all of `other` is inside.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether the two share at least one byte.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The bytes that both hold, if any.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// The smallest range that holds both, and whatever lies between.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }

    /// The smallest run of whole 4 KiB pages that holds the range.
    #[must_use]
    pub fn to_pages(self) -> Self {
        let mask = PAGE_SIZE - 1;
        Self {
            first: A::from_raw(self.first.to_raw() & !mask),
            last: A::from_raw(self.last.to_raw() | mask),
        }
    }

    /// Whether both ends lie on boundaries of `size` pages.
    #[must_use]
    pub fn is_aligned(self, size: PageSize) -> bool {
        let mask = size.bytes() - 1;
        self.first.to_raw() & mask == 0 && self.last.to_raw() & mask == mask
    }

    /// How many 4 KiB pages the range touches.
    #[must_use]
    pub fn page_count(self) -> u64 {
        (self.last.to_raw() / PAGE_SIZE) - (self.first.to_raw() / PAGE_SIZE) + 1
    }
}

impl<A: Address> fmt::Debug for AddrRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:?}..={:?}]", self.first, self.last)
    }
}

impl<A: Address> fmt::Display for AddrRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HostPhys, Iova};

    fn range(first: u64, last: u64) -> AddrRange<Iova> {
        AddrRange::new(Iova::new(first), Iova::new(last)).expect("ordered")
    }

    #[test]
    fn the_whole_space_is_a_range_without_a_length() {
        let all = range(0, u64::MAX);
        assert_eq!(all.len(), None);
        assert_eq!(all.page_count(), 1 << 52);
        assert!(all.covers(range(5, 6)));
    }

    #[test]
    fn empty_and_wrapping_ranges_do_not_exist() {
        assert_eq!(AddrRange::from_base_len(HostPhys::new(0x1000), 0), None);
        assert_eq!(AddrRange::from_base_len(HostPhys::new(u64::MAX), 2), None);
        assert!(AddrRange::from_base_len(HostPhys::new(u64::MAX), 1).is_some());
        assert_eq!(AddrRange::new(Iova::new(2), Iova::new(1)), None);
    }

    #[test]
    fn overlap_counts_shared_bytes_only() {
        assert!(range(0, 0xfff).overlaps(range(0xfff, 0x1000)));
        assert!(!range(0, 0xfff).overlaps(range(0x1000, 0x1fff)));
        assert_eq!(
            range(0, 0x1fff).intersection(range(0x1000, 0x5000)),
            Some(range(0x1000, 0x1fff))
        );
    }

    #[test]
    fn pages_are_rounded_outwards() {
        let r = range(0x1234, 0x2000);
        assert_eq!(r.to_pages(), range(0x1000, 0x2fff));
        assert_eq!(r.page_count(), 2);
        assert!(r.to_pages().is_aligned(PageSize::Size4K));
    }
}
