//! Allocators behind one interface, so that a trace is written once.

use std::collections::BTreeMap;

use buddy_system_allocator::FrameAllocator;
use iommu_iova::{CachedAllocator, CoreCache, IovaAllocator, IovaRequest, IovaSpace, Lease};
use iommu_types::sync::{AtomicU64, Ordering};
use iommu_types::{AddrRange, Iova};
use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};

use super::linux::{Linux, Processor, Range};
use crate::peers::PAGE;

/// An allocator that several threads use.
pub(crate) trait Side: Sync {
    /// What a thread keeps to itself.
    type Core: Send;
    /// What is handed out.
    type Range: Send;

    fn core(&self) -> Self::Core;
    fn take(&self, core: &mut Self::Core, pages: u64) -> Option<Self::Range>;
    fn give(&self, core: &mut Self::Core, range: Self::Range);
    /// First page, and length in pages.
    fn pages(range: &Self::Range) -> (u64, u64);
}

impl Side for CachedAllocator {
    type Core = CoreCache;
    type Range = Lease;

    fn core(&self) -> CoreCache {
        self.new_core()
    }
    #[inline]
    fn take(&self, core: &mut CoreCache, pages: u64) -> Option<Lease> {
        let request = IovaRequest::pages(pages);
        let request = if pages == 1 {
            request
        } else {
            request.naturally_aligned()
        };
        self.allocate(core, request).ok()
    }
    #[inline]
    fn give(&self, core: &mut CoreCache, lease: Lease) {
        self.free(core, lease);
    }
    fn pages(lease: &Lease) -> (u64, u64) {
        (lease.iova().raw() >> 12, lease.reserved_pages())
    }
}

impl Side for Linux {
    type Core = Processor;
    type Range = Range;

    fn core(&self) -> Processor {
        Self::processor()
    }
    #[inline]
    fn take(&self, core: &mut Processor, pages: u64) -> Option<Range> {
        self.allocate(core, pages)
    }
    #[inline]
    fn give(&self, core: &mut Processor, range: Range) {
        self.free(core, range);
    }
    fn pages(range: &Range) -> (u64, u64) {
        *range
    }
}

/// The buddy allocator under a lock, as several threads would use it.
pub(crate) struct LockedBuddy(std::sync::Mutex<FrameAllocator<33>>);

impl LockedBuddy {
    pub(crate) fn new() -> Self {
        let mut frames = FrameAllocator::new();
        frames.add_frame(1, super::PEER_PAGES);
        Self(std::sync::Mutex::new(frames))
    }
}

impl Side for LockedBuddy {
    type Core = ();
    type Range = (usize, usize);

    fn core(&self) {}
    fn take(&self, (): &mut (), pages: u64) -> Option<(usize, usize)> {
        let pages = usize::try_from(pages).ok()?;
        Some((self.0.lock().ok()?.alloc(pages)?, pages))
    }
    fn give(&self, (): &mut (), (first, pages): (usize, usize)) {
        if let Ok(mut frames) = self.0.lock() {
            frames.dealloc(first, pages);
        }
    }
    fn pages(&(first, pages): &(usize, usize)) -> (u64, u64) {
        (first as u64, pages as u64)
    }
}

/// rust-vmm's allocator under a lock.
pub(crate) struct LockedFirstMatch(std::sync::Mutex<AddressAllocator>);

impl LockedFirstMatch {
    pub(crate) fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let addresses = AddressAllocator::new(PAGE, PAGE << 24).map_err(|error| format!("{error:?}"))?;
        Ok(Self(std::sync::Mutex::new(addresses)))
    }
}

impl Side for LockedFirstMatch {
    type Core = ();
    type Range = RangeInclusive;

    fn core(&self) {}
    fn take(&self, (): &mut (), pages: u64) -> Option<RangeInclusive> {
        let len = pages * PAGE;
        self.0.lock().ok()?.allocate(len, PAGE, AllocPolicy::FirstMatch).ok()
    }
    fn give(&self, (): &mut (), range: RangeInclusive) {
        if let Ok(mut addresses) = self.0.lock() {
            // What was allocated can be freed.
            let _done = addresses.free(&range);
        }
    }
    fn pages(range: &RangeInclusive) -> (u64, u64) {
        (range.start() / PAGE, range.len() / PAGE)
    }
}

/// No allocator at all: an array of each thread's own, the least that hands pages out.
pub(crate) struct Private;

/// The first page that the next thread's array begins with.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Side for Private {
    type Core = Vec<u64>;
    type Range = u64;

    fn core(&self) -> Vec<u64> {
        let first = NEXT.fetch_add(1 << 20, Ordering::Relaxed);
        (first..first + 8192).collect()
    }
    #[inline]
    fn take(&self, core: &mut Vec<u64>, _pages: u64) -> Option<u64> {
        core.pop()
    }
    #[inline]
    fn give(&self, core: &mut Vec<u64>, page: u64) {
        core.push(page);
    }
    fn pages(&page: &u64) -> (u64, u64) {
        (page, 1)
    }
}

/// Our allocator over a 48-bit space.
pub(crate) fn ours() -> Result<CachedAllocator, Box<dyn std::error::Error>> {
    let aperture = AddrRange::new(Iova::ZERO, Iova::new((1 << 48) - 1)).ok_or("no aperture")?;
    Ok(CachedAllocator::new(IovaSpace::new(aperture)?))
}

/// No two of these share a page.
pub(crate) fn disjoint<'a, S: Side + 'a>(
    ranges: impl Iterator<Item = &'a S::Range>,
) -> Result<(), Box<dyn std::error::Error>>
where
    S::Range: 'a,
{
    let mut account: BTreeMap<u64, u64> = BTreeMap::new();
    for (first, pages) in ranges.map(S::pages) {
        let below = account.range(..first + pages).next_back();
        if below.is_some_and(|(&start, &len)| start + len > first) {
            return Err(format!("{pages} pages from {first:#x} were handed out twice").into());
        }
        account.insert(first, pages);
    }
    Ok(())
}
