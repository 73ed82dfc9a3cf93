//! Both allocators against one naive record of who owns which page, and against each other.
#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use iommu_iova::{
    AllocError, CachedAllocator, IovaAllocator, IovaRequest, IovaSpace, Lease, MSI_WINDOW_FIRST, MSI_WINDOW_LAST,
    ReferenceAllocator,
};
use iommu_types::{AddrRange, Iova, PageSize};
use proptest::prelude::*;

fn range(first: u64, last: u64) -> AddrRange<Iova> {
    AddrRange::new(Iova::new(first), Iova::new(last)).expect("ordered")
}

#[derive(Clone, Debug)]
enum Op {
    Allocate {
        core: usize,
        pages: u64,
        align: Align,
        limit: Option<u64>,
        low_first: bool,
    },
    Free {
        core: usize,
        which: usize,
    },
    Claim {
        core: usize,
        page: u64,
        pages: u64,
    },
    Retire {
        core: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum Align {
    Page,
    Natural,
    Large,
}

const CORES: usize = 3;

fn op(spread: u64) -> impl Strategy<Value = Op> {
    let pages = prop_oneof![6 => 1u64..4, 3 => 1u64..40, 1 => 1u64..700];
    let align = prop_oneof![4 => Just(Align::Page), 3 => Just(Align::Natural), 1 => Just(Align::Large)];
    let limit = prop_oneof![3 => Just(None), 1 => (0..spread).prop_map(Some), 1 => Just(Some(0xffff_ffff))];
    prop_oneof![
        10 => (0..CORES, pages.clone(), align, limit, any::<bool>())
            .prop_map(|(core, pages, align, limit, low_first)| Op::Allocate { core, pages, align, limit, low_first }),
        9 => (0..CORES, any::<usize>()).prop_map(|(core, which)| Op::Free { core, which }),
        1 => (0..CORES, 0..spread >> 12, pages).prop_map(|(core, page, pages)| Op::Claim { core, page, pages }),
        1 => (0..CORES).prop_map(|core| Op::Retire { core }),
    ]
}

struct Bench<A: IovaAllocator> {
    iovas: A,
    cores: Vec<A::Core>,
    live: Vec<Lease>,
    aperture: AddrRange<Iova>,
    reserved: Vec<AddrRange<Iova>>,
}

fn reserved_range(lease: &Lease) -> AddrRange<Iova> {
    AddrRange::from_base_len(lease.iova(), lease.reserved_pages() << 12).expect("a range")
}

impl<A: IovaAllocator> Bench<A> {
    fn new(iovas: A) -> Self {
        Self {
            cores: (0..CORES).map(|_| iovas.new_core()).collect(),
            live: Vec::new(),
            aperture: iovas.space().aperture(),
            reserved: iovas.space().reserved().collect(),
            iovas,
        }
    }

    fn request(pages: u64, align: Align, limit: Option<u64>, low_first: bool) -> IovaRequest {
        let request = IovaRequest::pages(pages);
        let request = match align {
            Align::Page => request,
            Align::Natural => request.naturally_aligned(),
            Align::Large => request.aligned_to(PageSize::Size2M),
        };
        let request = limit.map_or(request, |limit| request.below(Iova::new(limit)));
        if low_first { request.low_first() } else { request }
    }

    /// Runs of pages that belong to nobody.
    fn free_runs(&self) -> Vec<(u64, u64)> {
        let mut taken: Vec<_> = self
            .live
            .iter()
            .map(reserved_range)
            .chain(self.reserved.iter().copied())
            .collect();
        taken.sort_by_key(|r| r.first());
        let (mut runs, mut at) = (Vec::new(), self.aperture.first().raw());
        for r in taken {
            if r.first().raw() > at && at <= self.aperture.last().raw() {
                runs.push((at, (r.first().raw() - 1).min(self.aperture.last().raw())));
            }
            at = at.max(r.last().raw() + 1);
        }
        if at <= self.aperture.last().raw() {
            runs.push((at, self.aperture.last().raw()));
        }
        runs
    }

    fn check(&self, new: &Lease) {
        let mine = reserved_range(new);
        assert!(mine.covers(new.range()) && self.aperture.covers(mine));
        assert!(new.range().is_aligned(PageSize::Size4K));
        for other in self
            .live
            .iter()
            .map(reserved_range)
            .chain(self.reserved.iter().copied())
        {
            assert!(!mine.overlaps(other), "{mine} and {other}");
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Allocate {
                core,
                pages,
                align,
                limit,
                low_first,
            } => {
                let request = Self::request(pages, align, limit, low_first);
                match self.iovas.allocate(&mut self.cores[core], request) {
                    Ok(lease) => {
                        self.check(&lease);
                        assert!(lease.range().last() <= request.last(), "{lease:?} for {request:?}");
                        assert_eq!(lease.iova().raw() % (request.align_pages() << 12), 0);
                        assert_eq!(lease.pages(), pages);
                        self.live.push(lease);
                    }
                    Err(AllocError::Exhausted { .. }) => self.check_exhausted(request),
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Free { core, which } => {
                if !self.live.is_empty() {
                    let lease = self.live.swap_remove(which % self.live.len());
                    self.iovas.free(&mut self.cores[core], lease);
                }
            }
            Op::Claim { core, page, pages } => {
                let wanted = AddrRange::from_base_len(Iova::new(page << 12), pages << 12).expect("a range");
                if let Ok(lease) = self.iovas.claim(&mut self.cores[core], wanted) {
                    assert_eq!(lease.range(), wanted);
                    self.check(&lease);
                    self.live.push(lease);
                }
            }
            Op::Retire { core } => {
                let old = std::mem::replace(&mut self.cores[core], self.iovas.new_core());
                self.iovas.retire(old);
            }
        }
    }

    /// A refusal is right if even the length that size classes round up to has no place. Stock of other cores counts
    /// as taken, so every core gives its own back first.
    fn check_exhausted(&mut self, request: IovaRequest) {
        for core in 0..CORES {
            self.apply(&Op::Retire { core });
        }
        if request.align_pages() != 1 && request.align_pages() != request.page_count() {
            return;
        }
        let pages = request.page_count();
        let rounded = if pages <= 512 {
            (pages * 5 / 4 + 1).min(pages.next_power_of_two())
        } else {
            pages
        };
        let need = rounded << 12;
        let fits = |&(first, last): &(u64, u64)| {
            let last = last.min(
                request.last().raw() & !0xfff
                    | if request.last().raw() & 0xfff == 0xfff {
                        0xfff
                    } else {
                        0
                    },
            );
            let align = if pages <= 512 && rounded.is_power_of_two() {
                need
            } else {
                request.align_pages() << 12
            };
            first
                .next_multiple_of(align)
                .checked_add(need - 1)
                .is_some_and(|end| end <= last && last & 0xfff == 0xfff)
        };
        let place = self.free_runs().into_iter().find(fits);
        if place.is_some() {
            // The first refusal may have been for stock held elsewhere; now nothing is.
            let again = self.iovas.allocate(&mut self.cores[0], request);
            let lease = again.unwrap_or_else(|error| panic!("{error}, but {place:x?} is free"));
            self.check(&lease);
            self.live.push(lease);
        }
    }

    /// Everything comes back: the space is one piece again.
    fn finish(mut self) {
        while let Some(lease) = self.live.pop() {
            let core = self.live.len() % CORES;
            self.iovas.free(&mut self.cores[core], lease);
        }
        for core in self.cores.drain(..) {
            self.iovas.retire(core);
        }
        let mut core = self.iovas.new_core();
        for (first, last) in self.free_runs() {
            // Claims are at most 1 GiB long.
            let mut at = first;
            while at < last {
                let end = last.min(at + (1 << 30) - 1);
                let lease = self.iovas.claim(&mut core, range(at, end)).expect("nothing was lost");
                self.live.push(lease);
                at = end + 1;
            }
        }
    }
}

fn space(last: u64) -> IovaSpace {
    IovaSpace::new(range(0, last))
        .expect("large")
        .reserve(range(0x20_0000, 0x20_0fff))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_crowded_space_is_shared_without_overlap_or_loss(ops in prop::collection::vec(op(0x60_0000), 1..250)) {
        let mut fast = Bench::new(CachedAllocator::new(space(0x5f_ffff)));
        let mut reference = Bench::new(ReferenceAllocator::new(space(0x5f_ffff)));
        for op in &ops {
            fast.apply(op);
            reference.apply(op);
        }
        fast.finish();
        reference.finish();
    }

    #[test]
    fn a_wide_space_is_shared_without_overlap_or_loss(ops in prop::collection::vec(op(0x2_0000_0000), 1..250)) {
        let mut fast = Bench::new(CachedAllocator::new(space(0x1_ffff_ffff)));
        let mut reference = Bench::new(ReferenceAllocator::new(space(0x1_ffff_ffff)));
        for op in &ops {
            fast.apply(op);
            reference.apply(op);
        }
        fast.finish();
        reference.finish();
    }
}

#[test]
fn stock_of_freed_ranges_obeys_a_later_narrower_mask() {
    let iovas = CachedAllocator::new(space((1 << 48) - 1));
    let mut core = iovas.new_core();
    let wide: Vec<_> = (0..100)
        .map(|_| iovas.allocate(&mut core, IovaRequest::pages(1)).expect("room"))
        .collect();
    for lease in wide {
        assert!(lease.iova().raw() > 0xffff_ffff, "top down");
        iovas.free(&mut core, lease);
    }
    for bits in [47, 36, 33, 32, 30, 24] {
        let mask = Iova::new((1 << bits) - 1);
        for _ in 0..40 {
            let lease = iovas
                .allocate(&mut core, IovaRequest::pages(1).below(mask))
                .expect("room");
            assert!(lease.range().last() <= mask, "{lease:?} under {bits} bits");
            iovas.free(&mut core, lease);
        }
    }
}

#[test]
fn the_msi_window_stays_free_however_full_the_space_is() {
    let first = MSI_WINDOW_FIRST.raw() - 0x10_0000;
    let iovas = CachedAllocator::new(IovaSpace::new(range(first, MSI_WINDOW_LAST.raw() + 0x10_0000)).expect("large"));
    let mut core = iovas.new_core();
    let window = range(MSI_WINDOW_FIRST.raw(), MSI_WINDOW_LAST.raw());
    let mut pages = 0;
    while let Ok(lease) = iovas.allocate(&mut core, IovaRequest::pages(1)) {
        assert!(!lease.range().overlaps(window));
        pages += 1;
        drop(lease);
    }
    assert_eq!(pages, 512);
    assert!(iovas.claim(&mut core, range(0xfee0_0000, 0xfee0_0fff)).is_err());
}

#[test]
fn want_empties_the_stock_of_other_cores_when_they_free_next() {
    // 1024 pages: too small for batches, large enough for stock.
    let iovas = CachedAllocator::new(IovaSpace::new(range(0x1000, 0x40_0fff)).expect("large"));
    let (mut a, mut b) = (iovas.new_core(), iovas.new_core());
    let mut leases: Vec<_> = (0..1024)
        .map(|_| iovas.allocate(&mut a, IovaRequest::pages(1)).expect("room"))
        .collect();
    let last = leases.pop().expect("many");
    for lease in leases.drain(..).rev().take(3) {
        iovas.free(&mut b, lease);
    }
    let full = iovas.allocate(&mut a, IovaRequest::pages(1));
    assert!(full.is_err(), "the only free pages are in b's stock");
    iovas.free(&mut b, last);
    assert!(
        iovas.allocate(&mut a, IovaRequest::pages(1)).is_ok(),
        "b gave its stock back"
    );
}

#[test]
fn a_cache_of_another_allocator_is_refused() {
    let (one, other) = (
        CachedAllocator::new(space(0xf_ffff)),
        CachedAllocator::new(space(0xf_ffff)),
    );
    let mut core = one.new_core();
    assert_eq!(
        other.allocate(&mut core, IovaRequest::pages(1)),
        Err(AllocError::ForeignCore)
    );
    let lease = one.allocate(&mut core, IovaRequest::pages(1)).expect("room");
    let mut foreign = other.new_core();
    one.free(&mut foreign, lease);
    assert_eq!(foreign.counters().frees, 0, "not into the stock of another allocator");
}

#[test]
fn requests_up_to_a_gigabyte_are_served_and_larger_ones_named() {
    let iovas = CachedAllocator::new(space((1 << 39) - 1));
    let mut core = iovas.new_core();
    for pages in [1, 2, 511, 512, 513, 1 << 15, 1 << 18] {
        let lease = iovas
            .allocate(&mut core, IovaRequest::pages(pages).naturally_aligned())
            .expect("room");
        assert_eq!(lease.iova().raw() % (pages.next_power_of_two() << 12), 0);
        iovas.free(&mut core, lease);
    }
    let pages = (1 << 18) + 1;
    assert_eq!(
        iovas.allocate(&mut core, IovaRequest::pages(pages)),
        Err(AllocError::TooLarge { pages })
    );
    assert_eq!(
        iovas.allocate(&mut core, IovaRequest::pages(0)),
        Err(AllocError::ZeroPages)
    );
}

#[test]
fn threads_never_share_a_page() {
    let iovas = CachedAllocator::new(space((1 << 48) - 1));
    let owners: Vec<std::sync::atomic::AtomicBool> = (0..1 << 16).map(|_| false.into()).collect();
    let claim = |lease: &Lease, value: bool| {
        // The highest pages are used first, so a small map of them is enough.
        let top = (1u64 << 36) - 1 - (lease.iova().raw() >> 12);
        for page in top.saturating_sub(lease.reserved_pages() - 1)..=top {
            if let Some(owner) = usize::try_from(page).ok().and_then(|page| owners.get(page)) {
                let before = owner.swap(value, std::sync::atomic::Ordering::AcqRel);
                assert_ne!(before, value, "page {page} from the top");
            }
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (iovas, claim) = (&iovas, &claim);
            scope.spawn(move || {
                let mut core = iovas.new_core();
                let mut live = std::collections::VecDeque::new();
                for n in 0..4000u64 {
                    let pages = 1 + (n * 7 + thread) % 5;
                    let lease = iovas.allocate(&mut core, IovaRequest::pages(pages)).expect("room");
                    claim(&lease, true);
                    live.push_back(lease);
                    if live.len() > 300 + usize::try_from(n % 17).unwrap_or(0) {
                        let old = live.pop_front().expect("many");
                        claim(&old, false);
                        iovas.free(&mut core, old);
                    }
                }
                for lease in live {
                    claim(&lease, false);
                    iovas.free(&mut core, lease);
                }
                iovas.retire(core);
            });
        }
    });
}
