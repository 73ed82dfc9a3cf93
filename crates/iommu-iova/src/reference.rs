//! The allocator that is obviously right.

use alloc::collections::BTreeMap;

use iommu_types::{AddrRange, Iova, PAGE_SHIFT};
use spin::Mutex;

use crate::allocator::IovaAllocator;
use crate::error::{AllocError, ClaimError};
use crate::lease::Lease;
use crate::request::{IovaRequest, MAX_PAGES};
use crate::space::{IovaSpace, LOW_LAST, Run};

/// An ordered map of what is handed out, searched from the top down, under one lock.
///
/// Every request looks at every gap until one fits: linear, and simple enough to be trusted. It judges the fast
/// allocator in tests, and serves where a handful of mappings live.
#[derive(Debug)]
pub struct ReferenceAllocator {
    space: IovaSpace,
    /// First page to number of pages of each live lease.
    live: Mutex<BTreeMap<u64, u64>>,
}

impl ReferenceAllocator {
    /// An allocator with everything in `space` free.
    #[must_use]
    pub const fn new(space: IovaSpace) -> Self {
        Self {
            space,
            live: Mutex::new(BTreeMap::new()),
        }
    }

    /// How many 4 KiB pages are handed out.
    pub fn live_pages(&self) -> u64 {
        self.live.lock().values().sum()
    }

    /// The highest place for `request` with its last page at or below `last`.
    fn place(&self, live: &BTreeMap<u64, u64>, request: IovaRequest, last: u64) -> Option<u64> {
        let mut best = None;
        for run in self.space.free_runs() {
            let mut start = run.first;
            for (&first, &pages) in live.range(run.first..=run.last) {
                if let Some(end) = first.checked_sub(1) {
                    best = highest(
                        Run {
                            first: start,
                            last: end.min(last),
                        },
                        request,
                    )
                    .or(best);
                }
                start = first + pages;
            }
            best = highest(
                Run {
                    first: start,
                    last: run.last.min(last),
                },
                request,
            )
            .or(best);
        }
        best
    }
}

/// The highest aligned start of a run of the wanted length inside `gap`, which may be empty (`last < first`).
fn highest(gap: Run, request: IovaRequest) -> Option<u64> {
    let end = gap.last.checked_add(1)?;
    let start = end.checked_sub(request.page_count())? & !(request.align_pages() - 1);
    (start >= gap.first).then_some(start)
}

impl IovaAllocator for ReferenceAllocator {
    type Core = ();

    fn new_core(&self) -> Self::Core {}

    fn allocate(&self, _core: &mut (), request: IovaRequest) -> Result<Lease, AllocError> {
        request.check()?;
        let last = request.last_page().ok_or(request.exhausted())?;
        let mut live = self.live.lock();
        let low = LOW_LAST.raw() >> PAGE_SHIFT;
        let first = if request.is_low_first() {
            self.place(&live, request, last.min(low))
                .or_else(|| self.place(&live, request, last))
        } else {
            self.place(&live, request, last)
        };
        let pages = request.page_count();
        let first = first.ok_or(request.exhausted())?;
        let lease = Lease::from_allocator(first, pages, pages).ok_or(request.exhausted())?;
        live.insert(first, pages);
        Ok(lease)
    }

    fn claim(&self, _core: &mut (), range: AddrRange<Iova>) -> Result<Lease, ClaimError> {
        let range = range.to_pages();
        let pages = range.page_count();
        if pages > MAX_PAGES {
            return Err(ClaimError::TooLarge { range });
        }
        let taken = ClaimError::Taken { range };
        let first = range.first().raw() >> PAGE_SHIFT;
        let last = range.last().raw() >> PAGE_SHIFT;
        if !self.space.free_runs().any(|run| run.first <= first && last <= run.last) {
            return Err(taken);
        }
        let mut live = self.live.lock();
        let below = live.range(..=last).next_back();
        if below.is_some_and(|(&start, &pages)| start + pages > first) {
            return Err(taken);
        }
        let lease = Lease::from_allocator(first, pages, pages).ok_or(taken)?;
        live.insert(first, pages);
        Ok(lease)
    }

    fn free(&self, _core: &mut (), lease: Lease) {
        let mut live = self.live.lock();
        if live.get(&lease.first_page()) == Some(&lease.reserved_pages()) {
            live.remove(&lease.first_page());
        }
    }

    fn retire(&self, _core: ()) {}

    fn space(&self) -> &IovaSpace {
        &self.space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> AddrRange<Iova> {
        AddrRange::new(Iova::new(first), Iova::new(last)).expect("ordered")
    }

    fn allocator(first: u64, last: u64) -> ReferenceAllocator {
        ReferenceAllocator::new(IovaSpace::new(range(first, last)).expect("large"))
    }

    #[test]
    fn the_highest_free_range_is_taken_first() {
        let iovas = allocator(0, 0xffff);
        let a = iovas.allocate(&mut (), IovaRequest::pages(2)).expect("room");
        assert_eq!(a.range(), range(0xe000, 0xffff));
        let b = iovas.allocate(&mut (), IovaRequest::pages(1)).expect("room");
        assert_eq!(b.iova(), Iova::new(0xd000));
        iovas.free(&mut (), a);
        let c = iovas.allocate(&mut (), IovaRequest::pages(1)).expect("room");
        assert_eq!(c.iova(), Iova::new(0xf000));
    }

    #[test]
    fn the_msi_window_is_stepped_over() {
        let iovas = allocator(0xfedf_f000, 0xfef0_0fff);
        let above = iovas.allocate(&mut (), IovaRequest::pages(1)).expect("room");
        let below = iovas.allocate(&mut (), IovaRequest::pages(1)).expect("room");
        assert_eq!(above.iova(), Iova::new(0xfef0_0000));
        assert_eq!(below.iova(), Iova::new(0xfedf_f000));
        assert!(iovas.allocate(&mut (), IovaRequest::pages(1)).is_err());
    }

    #[test]
    fn page_zero_is_never_handed_out() {
        let iovas = allocator(0, 0x1fff);
        let only = iovas.allocate(&mut (), IovaRequest::pages(1)).expect("room");
        assert_eq!(only.iova(), Iova::new(0x1000));
        assert!(iovas.allocate(&mut (), IovaRequest::pages(1)).is_err());
        assert!(iovas.claim(&mut (), range(0, 0xfff)).is_err());
    }

    #[test]
    fn low_first_goes_high_when_low_is_full() {
        let iovas = allocator(0xffff_f000, 0x1_0000_0fff);
        let request = IovaRequest::pages(1).low_first();
        assert_eq!(
            iovas.allocate(&mut (), request).expect("room").iova(),
            Iova::new(0xffff_f000)
        );
        assert_eq!(
            iovas.allocate(&mut (), request).expect("room").iova(),
            Iova::new(0x1_0000_0000)
        );
        let error = iovas.allocate(&mut (), request.below(LOW_LAST)).expect_err("full");
        assert_eq!(
            error,
            AllocError::Exhausted {
                pages: 1,
                align: 1,
                last: LOW_LAST
            }
        );
    }

    #[test]
    fn a_claim_succeeds_once_and_a_stranger_frees_nothing() {
        let iovas = allocator(0, 0xf_ffff);
        let lease = iovas.claim(&mut (), range(0x5100, 0x5200)).expect("free");
        assert_eq!(lease.range(), range(0x5000, 0x5fff));
        assert!(iovas.claim(&mut (), range(0x4000, 0x5fff)).is_err());
        assert!(iovas.claim(&mut (), range(0x5000, 0x6fff)).is_err());
        let stranger = Lease::from_allocator(5, 2, 2).expect("a range");
        iovas.free(&mut (), stranger);
        assert_eq!(iovas.live_pages(), 1);
        iovas.free(&mut (), lease);
        assert_eq!(iovas.live_pages(), 0);
    }
}
