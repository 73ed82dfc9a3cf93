//! The right to use a range of addresses.

use iommu_types::{AddrRange, Iova, PAGE_SHIFT, PAGE_SIZE, PageSize};

/// The right to use a range of I/O virtual addresses, until [`crate::IovaAllocator::free`] takes it back.
///
/// It is not `Copy` and not `Clone`: a range has one owner. Dropping a lease leaks its range, which is always
/// safe; the reverse, a range with two owners, lets one device reach another's buffer.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropping a lease takes its addresses out of use for ever; give it back with IovaAllocator::free"]
pub struct Lease {
    range: AddrRange<Iova>,
    /// At most [`crate::MAX_PAGES`], so that a lease stays small.
    reserved: u32,
    /// The stock it came from, and goes back to; [`NO_STOCK`] for none.
    stock: u8,
}

/// The range belongs to no stock.
const NO_STOCK: u8 = u8::MAX;

impl Lease {
    /// For implementors of [`crate::IovaAllocator`]: the right to `pages` pages from page number `first`, of which
    /// the allocator set `reserved` (at least `pages`) aside. `None` if that is not a range.
    #[must_use]
    #[inline]
    pub fn from_allocator(first: u64, pages: u64, reserved: u64) -> Option<Self> {
        if reserved < pages || first >> (u64::BITS - PAGE_SHIFT) != 0 {
            return None;
        }
        let range = AddrRange::from_base_len(Iova::new(first << PAGE_SHIFT), pages.checked_mul(PAGE_SIZE)?)?;
        Some(Self {
            range,
            reserved: u32::try_from(reserved).ok()?,
            stock: NO_STOCK,
        })
    }

    /// A lease on pages that an allocator of this crate found free: below 2^52, and at least one.
    #[inline]
    pub(crate) fn found(first: u64, pages: u64, reserved: u64, stock: Option<u8>) -> Self {
        let first = Iova::new(first << PAGE_SHIFT);
        let last = Iova::new(first.raw() + (pages << PAGE_SHIFT) - 1);
        Self {
            // In order by what the caller states; the page stands for the impossible case only.
            range: AddrRange::new(first, last).unwrap_or(AddrRange::page_around(first, PageSize::Size4K)),
            // Requests beyond the maximum are refused before.
            reserved: u32::try_from(reserved).unwrap_or(u32::MAX),
            stock: stock.unwrap_or(NO_STOCK),
        }
    }

    /// The stock that the range came from, if any.
    #[inline]
    pub(crate) fn stock(&self) -> Option<u8> {
        (self.stock != NO_STOCK).then_some(self.stock)
    }

    /// The addresses: whole 4 KiB pages.
    #[must_use]
    pub const fn range(&self) -> AddrRange<Iova> {
        self.range
    }

    /// The first address.
    #[must_use]
    pub const fn iova(&self) -> Iova {
        self.range.first()
    }

    /// How many 4 KiB pages the lease grants.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.range.page_count()
    }

    /// How many 4 KiB pages the allocator set aside for it: size classes round up.
    #[must_use]
    pub const fn reserved_pages(&self) -> u64 {
        self.reserved as u64
    }

    /// Number of the first page.
    pub(crate) const fn first_page(&self) -> u64 {
        self.range.first().raw() >> PAGE_SHIFT
    }
}
