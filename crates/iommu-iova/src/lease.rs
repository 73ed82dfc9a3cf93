//! The right to use a range of addresses.

use core::num::NonZeroU64;

use iommu_types::{AddrRange, Iova, PAGE_SHIFT, PAGE_SIZE, PageSize};

use crate::request::MAX_PAGES;

/// The right to use a range of I/O virtual addresses, until [`crate::IovaAllocator::free`] takes it back.
///
/// It is not `Copy` and not `Clone`: a range has one owner. Dropping a lease leaks its range, which is always
/// safe; the reverse, a range with two owners, lets one device reach another's buffer.
// Two words, so that a lease and an `Option` of one travel in registers: in memory they would be written in words and
// read back in halves, which stalls a processor for longer than an allocation takes.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropping a lease takes its addresses out of use for ever; give it back with IovaAllocator::free"]
pub struct Lease {
    first: Iova,
    shape: Shape,
}

/// Lengths and origin of a lease: from bit 0 on the pages granted (24 bits, at least one), the pages set aside
/// (32 bits), and the stock it came from and goes back to (8 bits, all ones for none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape(NonZeroU64);

/// The range belongs to no stock.
const NO_STOCK: u8 = u8::MAX;

impl Shape {
    const PAGES_BITS: u32 = 24;
    const STOCK_SHIFT: u32 = 56;

    fn new(pages: u64, reserved: u64, stock: u8) -> Self {
        let word = pages | reserved << Self::PAGES_BITS | u64::from(stock) << Self::STOCK_SHIFT;
        // At least one page; the one stands for the impossible case only.
        Self(NonZeroU64::new(word).unwrap_or(NonZeroU64::MIN))
    }

    /// What leases on ranges of `reserved` pages, which is not 0, have in common.
    pub(crate) fn reserving(reserved: u64, stock: Option<u8>) -> Self {
        Self::new(0, reserved, stock.unwrap_or(NO_STOCK))
    }

    /// The same with `pages` granted. Only for shapes from [`Self::reserving`], and lengths below 2^24.
    #[inline]
    pub(crate) fn granting(self, pages: NonZeroU64) -> Self {
        Self(self.0 | pages)
    }

    const fn pages(self) -> u64 {
        self.0.get() & ((1 << Self::PAGES_BITS) - 1)
    }

    const fn reserved(self) -> u64 {
        (self.0.get() >> Self::PAGES_BITS) & u32::MAX as u64
    }

    const fn stock(self) -> u8 {
        let [.., stock] = self.0.get().to_le_bytes();
        stock
    }
}

impl Lease {
    /// For implementors of [`crate::IovaAllocator`]: the right to `pages` pages from page number `first`, of which
    /// the allocator set `reserved` (at least `pages`) aside. `None` if that is not a range, or longer than
    /// [`MAX_PAGES`].
    #[must_use]
    #[inline]
    pub fn from_allocator(first: u64, pages: u64, reserved: u64) -> Option<Self> {
        let in_bounds = (1..=MAX_PAGES).contains(&pages) && reserved >= pages && u32::try_from(reserved).is_ok();
        if !in_bounds || first >> (u64::BITS - PAGE_SHIFT) != 0 {
            return None;
        }
        let first = Iova::new(first << PAGE_SHIFT);
        // The range must have an end.
        first.checked_add(pages * PAGE_SIZE - 1)?;
        Some(Self {
            first,
            shape: Shape::new(pages, reserved, NO_STOCK),
        })
    }

    /// A lease on pages that an allocator of this crate found free: below 2^52, at least one and at most [`MAX_PAGES`].
    pub(crate) fn found(first: u64, pages: u64, reserved: u64, stock: Option<u8>) -> Self {
        Self {
            first: Iova::new(first << PAGE_SHIFT),
            shape: Shape::new(pages, reserved, stock.unwrap_or(NO_STOCK)),
        }
    }

    /// A lease on what begins at address `first`.
    #[inline]
    pub(crate) const fn shaped(first: u64, shape: Shape) -> Self {
        Self {
            first: Iova::new(first),
            shape,
        }
    }

    /// The number of the stock that the range came from; beyond all stocks if there is none.
    #[inline]
    pub(crate) fn stock_index(&self) -> usize {
        usize::from(self.shape.stock())
    }

    /// The stock that the range came from, if any.
    #[inline]
    pub(crate) const fn stock(&self) -> Option<u8> {
        let stock = self.shape.stock();
        if stock == NO_STOCK { None } else { Some(stock) }
    }

    /// The addresses: whole 4 KiB pages.
    #[must_use]
    #[inline]
    pub fn range(&self) -> AddrRange<Iova> {
        // In order by construction; the page stands for the impossible case only.
        AddrRange::from_base_len(self.first, self.shape.pages() << PAGE_SHIFT)
            .unwrap_or(AddrRange::page_around(self.first, PageSize::Size4K))
    }

    /// The first address.
    #[must_use]
    #[inline]
    pub const fn iova(&self) -> Iova {
        self.first
    }

    /// How many 4 KiB pages the lease grants.
    #[must_use]
    #[inline]
    pub const fn pages(&self) -> u64 {
        self.shape.pages()
    }

    /// How many 4 KiB pages the allocator set aside for it: size classes round up.
    #[must_use]
    #[inline]
    pub const fn reserved_pages(&self) -> u64 {
        self.shape.reserved()
    }

    /// Number of the first page.
    #[inline]
    pub(crate) const fn first_page(&self) -> u64 {
        self.first.raw() >> PAGE_SHIFT
    }
}

/// A lease has at most so many pages as its shape can tell.
const _: () = assert!(MAX_PAGES < 1 << Shape::PAGES_BITS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_tells_what_it_was_made_of_and_stays_two_words() {
        let lease = Lease::from_allocator(5, MAX_PAGES, u64::from(u32::MAX)).expect("a range");
        assert_eq!((lease.first_page(), lease.pages()), (5, MAX_PAGES));
        assert_eq!((lease.reserved_pages(), lease.stock()), (u64::from(u32::MAX), None));
        assert_eq!(lease.range().page_count(), MAX_PAGES);
        let lease = Lease::found((1 << 52) - 1, 1, 3, Some(63));
        assert_eq!((lease.range().last(), lease.reserved_pages()), (Iova::MAX, 3));
        assert_eq!(lease.stock(), Some(63));
        assert_eq!(size_of::<Option<Lease>>(), 16);
    }

    #[test]
    fn what_is_no_range_is_no_lease() {
        assert_eq!(Lease::from_allocator(1, 0, 1), None);
        assert_eq!(Lease::from_allocator(1, 2, 1), None);
        assert_eq!(Lease::from_allocator(1, MAX_PAGES + 1, MAX_PAGES + 1), None);
        assert_eq!(Lease::from_allocator(1, 1, 1 << 32), None);
        assert_eq!(Lease::from_allocator(1 << 52, 1, 1), None);
        assert_eq!(Lease::from_allocator((1 << 52) - 1, 2, 2), None);
    }
}
