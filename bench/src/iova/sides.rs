//! Allocators behind one interface, so that a trace is written once.

use std::collections::BTreeMap;

use buddy_system_allocator::FrameAllocator;
use iommu_iova::{CachedAllocator, CoreCache, IovaAllocator, IovaRequest, IovaSpace, Lease};
use iommu_types::{AddrRange, Iova};

use super::linux::{Linux, Processor, Range};

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
