//! The fast allocator under loom: cores that exchange magazines through the depot, and that want each other's stock.
//!
//! This is an ordinary test (`cargo test -p iommu-iova --test loom`): the lock around the shared part is a parameter, and
//! here it is loom's. What cores keep to themselves needs no checking; where they meet, every order is tried.
#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::atomic::AtomicBool as Quiet;

use iommu_iova::{CachedAllocator, CoreCache, Exclusive, IovaAllocator, IovaRequest, IovaSpace, Lease, LockKind};
use iommu_types::{AddrRange, Iova};
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// The lock of the model checker.
struct Checked;

struct CheckedLock<T>(Mutex<T>);

impl LockKind for Checked {
    type Lock<T: Send> = CheckedLock<T>;
}

impl<T: Send> Exclusive<T> for CheckedLock<T> {
    fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }
    fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        work(&mut self.0.lock().expect("no panic inside"))
    }
}

/// An allocator, and who owns each page: taking one that is taken is what must not happen.
struct Setup {
    iovas: CachedAllocator<Checked>,
    owned: Vec<Quiet>,
    /// The same for first pages, with the memory model's freedom.
    ordered: Vec<AtomicBool>,
    first: u64,
}

impl Setup {
    /// `pages` pages from address `first` on.
    fn new(first: u64, pages: usize) -> Arc<Self> {
        let range = AddrRange::from_base_len(Iova::new(first), pages as u64 * 4096).expect("a range");
        Arc::new(Self {
            iovas: CachedAllocator::with_lock(IovaSpace::new(range).expect("not empty")),
            owned: (0..pages).map(|_| Quiet::new(false)).collect(),
            ordered: (0..pages).map(|_| AtomicBool::new(false)).collect(),
            first,
        })
    }

    /// A core, made on a stack of ordinary size: those of the model checker are smaller than the steps of making one.
    fn core(&self) -> Box<CoreCache> {
        let iovas = &self.iovas;
        std::thread::scope(|scope| scope.spawn(|| Box::new(iovas.new_core())).join()).expect("no panic")
    }

    fn mark(&self, lease: &Lease, taken: bool) {
        let page = usize::try_from((lease.iova().raw() - self.first) / 4096).expect("small");
        let pages = usize::try_from(lease.reserved_pages()).expect("small");
        for owner in &self.owned[page..page + pages] {
            assert_ne!(owner.swap(taken, Ordering::Relaxed), taken, "page {page}");
        }
        // The allocator itself must order one owner before the next.
        let owner = &self.ordered[page];
        assert_ne!(owner.load(Ordering::Relaxed), taken, "page {page}");
        owner.store(taken, Ordering::Relaxed);
    }

    fn take(&self, core: &mut CoreCache, pages: u64) -> Option<Lease> {
        let lease = self.iovas.allocate(core, IovaRequest::pages(pages)).ok()?;
        self.mark(&lease, true);
        Some(lease)
    }

    fn give(&self, core: &mut CoreCache, lease: Lease) {
        self.mark(&lease, false);
        self.iovas.free(core, lease);
    }

    /// Everything came back: the space can be handed out in one piece, with a core that holds nothing.
    fn whole(&self) {
        let mut core = self.core();
        let len = self.owned.len() as u64 * 4096;
        let range = AddrRange::from_base_len(Iova::new(self.first), len).expect("a range");
        let all = self.iovas.claim(&mut core, range);
        assert!(all.is_ok(), "nothing was lost");
    }
}

fn check(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.max_branches = 10_000;
    builder.check(body);
}

#[test]
fn two_cores_share_a_crowded_space_without_overlap_or_loss() {
    // Too small for stock: every request meets the tree.
    check(|| {
        let setup = Setup::new(0x10_0000, 3);
        let work = |setup: &Setup| {
            let mut core = setup.core();
            let two = setup.take(&mut core, 2);
            let one = setup.take(&mut core, 1);
            for lease in [two, one].into_iter().flatten() {
                setup.give(&mut core, lease);
            }
            setup.iovas.retire(*core);
        };
        let other = Arc::clone(&setup);
        let other = thread::spawn(move || work(&other));
        work(&setup);
        other.join().expect("no panic");
        setup.whole();
    });
}

#[test]
fn magazines_change_hands_without_overlap_or_loss() {
    // 1024 pages: a magazine holds four, and two are taken from the tree at a time.
    check(|| {
        let setup = Setup::new(0x10_0000, 1024);
        let work = |setup: &Setup| {
            let mut core = setup.core();
            let mut live: Vec<_> = (0..9).filter_map(|_| setup.take(&mut core, 1)).collect();
            assert_eq!(live.len(), 9);
            // Three magazines full: one of them goes to the depot, where the other core may find it.
            for lease in live.drain(..) {
                setup.give(&mut core, lease);
            }
            live.extend((0..9).filter_map(|_| setup.take(&mut core, 1)));
            for lease in live {
                setup.give(&mut core, lease);
            }
            setup.iovas.retire(*core);
        };
        let other = Arc::clone(&setup);
        let other = thread::spawn(move || work(&other));
        work(&setup);
        other.join().expect("no panic");
        setup.whole();
    });
}

#[test]
fn a_page_freed_on_another_core_serves_its_next_owner_there() {
    check(|| {
        let setup = Setup::new(0x10_0000, 512);
        let mut core = setup.core();
        let leases: Vec<_> = (0..4).filter_map(|_| setup.take(&mut core, 1)).collect();
        let theirs = Arc::clone(&setup);
        let other = thread::spawn(move || {
            let mut core = theirs.core();
            for lease in leases {
                theirs.give(&mut core, lease);
            }
            let again = theirs.take(&mut core, 1).expect("in stock");
            theirs.give(&mut core, again);
            theirs.iovas.retire(*core);
        });
        // Meanwhile the first core wants all there is, in pieces that no stock has.
        let large = setup.take(&mut core, 300);
        if let Some(lease) = large {
            setup.give(&mut core, lease);
        }
        other.join().expect("no panic");
        setup.iovas.retire(*core);
        setup.whole();
    });
}
