//! The right to use a range of addresses.

use iommu_types::{AddrRange, Iova, PAGE_SHIFT, PAGE_SIZE};

/// The right to use a range of I/O virtual addresses, until [`crate::IovaAllocator::free`] takes it back.
///
/// It is not `Copy` and not `Clone`: a range has one owner. Dropping a lease leaks its range, which is always
/// safe; the reverse, a range with two owners, lets one device reach another's buffer.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropping a lease takes its addresses out of use for ever; give it back with IovaAllocator::free"]
pub struct Lease {
    range: AddrRange<Iova>,
    reserved: u64,
}

impl Lease {
    /// For implementors of [`crate::IovaAllocator`]: the right to `pages` pages from page number `first`, of which
    /// the allocator set `reserved` (at least `pages`) aside. `None` if that is not a range.
    #[must_use]
    pub fn from_allocator(first: u64, pages: u64, reserved: u64) -> Option<Self> {
        if reserved < pages || first >> (u64::BITS - PAGE_SHIFT) != 0 {
            return None;
        }
        let range = AddrRange::from_base_len(Iova::new(first << PAGE_SHIFT), pages.checked_mul(PAGE_SIZE)?)?;
        Some(Self { range, reserved })
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
        self.reserved
    }

    /// Number of the first page.
    pub(crate) const fn first_page(&self) -> u64 {
        self.range.first().raw() >> PAGE_SHIFT
    }
}
