//! The fast allocator: stock that a core keeps to itself, in front of a tree of gaps.

use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_types::sync::{AtomicU64, Ordering};
use iommu_types::{AddrRange, Iova, PAGE_SHIFT};
use spin::Mutex;

use crate::allocator::IovaAllocator;
use crate::class::{CLASSES, MAX_CACHED, class_align, class_of, class_pages};
use crate::error::{AllocError, ClaimError};
use crate::lease::Lease;
use crate::request::{IovaRequest, MAX_PAGES};
use crate::space::{IovaSpace, LOW_LAST};
use crate::tree::{GapTree, Need, NoMemory};

/// The most ranges a magazine holds.
const MAGAZINE: usize = 127;
/// The most pages a magazine holds, whatever their class: 64 MiB.
const MAGAZINE_PAGES: u64 = 1 << 14;
/// A magazine holds at most this part of the pages it is filled from.
const MAGAZINE_SHARE: u64 = 256;
/// How many ranges are taken from the tree at a time when stock runs out.
const REFILL: u64 = 32;
/// How many ranges of a magazine are compared with a request's limit before the tree is asked.
const LOOK: usize = 8;

/// Number of the last page below 4 GiB.
const LOW_LAST_PAGE: u64 = LOW_LAST.raw() >> PAGE_SHIFT;
/// Stock is kept apart for addresses below 4 GiB, and for any.
const ZONES: usize = 2;
const LOW: usize = 0;
const ANY: usize = 1;

/// First pages of free ranges of one class.
type Magazine = Vec<u64>;

/// An allocator whose usual path touches no shared memory.
///
/// Each core owns a [`CoreCache`]: for each size class two magazines of free ranges. Whole magazines are exchanged with
/// a shared depot under a short lock; behind the depot a tree of gaps finds the highest gap that is large enough, or
/// knows that none is, in logarithmic time. Lengths are rounded up to size classes, four for each doubling; aligned
/// requests to powers of two.
#[derive(Debug)]
pub struct CachedAllocator {
    space: IovaSpace,
    shared: Mutex<Shared>,
    /// How many ranges a magazine holds, for each zone and class.
    capacity: [[usize; CLASSES]; ZONES],
    /// Counts moments of want: each core then gives its stock back when it frees next.
    want: AtomicU64,
    identity: Arc<()>,
}

#[derive(Debug)]
struct Shared {
    tree: GapTree,
    /// Full magazines.
    depot: [[Vec<Magazine>; CLASSES]; ZONES],
    /// Empty magazines, kept for their memory.
    empty: Vec<Magazine>,
}

/// What one core keeps to itself.
///
/// Dropping it takes its stock out of use for good; [`IovaAllocator::retire`] gives it back.
#[derive(Debug)]
#[must_use = "addresses in a core's cache are lost when it is dropped; give it back with IovaAllocator::retire"]
pub struct CoreCache {
    stock: [[Stock; CLASSES]; ZONES],
    identity: Arc<()>,
    want: u64,
    counters: CacheCounters,
}

#[derive(Debug, Default)]
struct Stock {
    loaded: Magazine,
    spare: Magazine,
}

/// How often a core's own stock was enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CacheCounters {
    /// Ranges handed out from stock.
    pub hits: u64,
    /// Ranges for which shared memory was touched.
    pub misses: u64,
    /// Ranges taken back.
    pub frees: u64,
}

impl CoreCache {
    /// How often the core's own stock was enough.
    #[must_use]
    pub const fn counters(&self) -> CacheCounters {
        self.counters
    }

    /// Takes a range from stock whose last page is at or below `last`.
    fn pop(&mut self, zone: usize, class: usize, last: u64) -> Option<u64> {
        let stock = self.stock.get_mut(zone)?.get_mut(class)?;
        if stock.loaded.is_empty() {
            core::mem::swap(&mut stock.loaded, &mut stock.spare);
        }
        let first = *stock.loaded.last()?;
        let pages = class_pages(class);
        if first + pages - 1 <= last {
            return stock.loaded.pop();
        }
        let place = stock
            .loaded
            .iter()
            .rev()
            .take(LOOK)
            .position(|&first| first + pages - 1 <= last)?;
        let index = stock.loaded.len() - 1 - place;
        Some(stock.loaded.swap_remove(index))
    }
}

/// What a request comes down to.
#[derive(Clone, Copy)]
struct Plan {
    pages: u64,
    /// Pages set aside.
    reserved: u64,
    need: Need,
    class: Option<usize>,
}

impl Plan {
    fn new(request: IovaRequest) -> Self {
        let (pages, align) = (request.page_count(), request.align_pages());
        let rounded = pages.next_power_of_two();
        // Alignment up to the length comes with the classes that are powers of two; more of it only the tree finds.
        let class = match align {
            1 => class_of(pages),
            _ if align <= rounded => class_of(rounded),
            _ => None,
        };
        match class {
            Some(class) => {
                let reserved = class_pages(class);
                Self {
                    pages,
                    reserved,
                    need: Need::new(reserved, class_align(reserved)),
                    class: Some(class),
                }
            }
            None => Self {
                pages,
                reserved: pages,
                need: Need::new(pages, align),
                class: None,
            },
        }
    }
}

impl CachedAllocator {
    /// An allocator with everything in `space` free.
    #[must_use]
    pub fn new(space: IovaSpace) -> Self {
        let pages: u64 = space.free_runs().map(|run| run.last - run.first + 1).sum();
        let capacity = [pages.min(LOW_LAST_PAGE + 1), pages].map(|available| {
            core::array::from_fn(|class| {
                let most = (available / MAGAZINE_SHARE).min(MAGAZINE_PAGES) / class_pages(class);
                usize::try_from(most).unwrap_or(MAGAZINE).min(MAGAZINE)
            })
        });
        Self {
            shared: Mutex::new(Shared {
                tree: GapTree::new(space.free_runs()),
                depot: Default::default(),
                empty: Vec::new(),
            }),
            space,
            capacity,
            want: AtomicU64::new(0),
            identity: Arc::new(()),
        }
    }

    fn owns(&self, core: &CoreCache) -> bool {
        Arc::ptr_eq(&self.identity, &core.identity)
    }

    fn capacity(&self, zone: usize, class: usize) -> usize {
        self.capacity
            .get(zone)
            .and_then(|zone| zone.get(class))
            .copied()
            .unwrap_or(0)
    }

    /// Takes a range from the depot or the tree.
    #[cold]
    fn refill(&self, core: &mut CoreCache, plan: Plan, zone: usize, last: u64) -> Result<Option<u64>, NoMemory> {
        core.counters.misses += 1;
        let mut shared = self.shared.lock();
        let Some(class) = plan.class else {
            return shared.tree.take(plan.need, last, 1);
        };
        let stock = core.stock.get_mut(zone).and_then(|zone| zone.get_mut(class));
        if let Some(stock) = stock {
            // Both magazines are empty, or hold nothing low enough. A full one is exchanged for an empty one.
            if stock.loaded.is_empty()
                && let Some(full) = shared
                    .depot
                    .get_mut(zone)
                    .and_then(|d| d.get_mut(class))
                    .and_then(Vec::pop)
            {
                let empty = core::mem::replace(&mut stock.loaded, full);
                if empty.capacity() > 0 && shared.empty.try_reserve(1).is_ok() {
                    shared.empty.push(empty);
                }
                drop(shared);
                if let Some(first) = core.pop(zone, class, last) {
                    return Ok(Some(first));
                }
                shared = self.shared.lock();
            }
        }
        // Several at once, side by side: later requests find neighbours.
        let count = u64::try_from(self.capacity(zone, class) / 2).unwrap_or(0).min(REFILL);
        let stock = core.stock.get_mut(zone).and_then(|zone| zone.get_mut(class));
        if let Some(stock) = stock
            && count > 1
            && stock.loaded.is_empty()
            && self.magazine(&mut shared, &mut stock.loaded)
        {
            let run = Need::new(plan.reserved * count, class_align(plan.reserved));
            let pieces = usize::try_from(count).unwrap_or(1);
            if let Some(first) = shared.tree.take(run, last, pieces)? {
                // The lowest is handed out first.
                stock.loaded.extend((1..count).rev().map(|n| first + n * plan.reserved));
                return Ok(Some(first));
            }
        }
        shared.tree.take(plan.need, last, 1)
    }

    /// Gives a magazine its memory, from an empty one if there is one.
    fn magazine(&self, shared: &mut Shared, magazine: &mut Magazine) -> bool {
        if magazine.capacity() >= MAGAZINE {
            return true;
        }
        if let Some(empty) = shared.empty.pop() {
            *magazine = empty;
            return true;
        }
        magazine.try_reserve_exact(MAGAZINE).is_ok()
    }

    /// Puts a range into stock when the loaded magazine has no room: exchanges magazines.
    #[cold]
    fn exchange(&self, core: &mut CoreCache, zone: usize, class: usize, first: u64) {
        let capacity = self.capacity(zone, class);
        let Some(stock) = core.stock.get_mut(zone).and_then(|zone| zone.get_mut(class)) else {
            return;
        };
        if capacity == 0 {
            self.shared.lock().tree.give(first, class_pages(class));
            return;
        }
        if stock.loaded.len() >= capacity {
            core::mem::swap(&mut stock.loaded, &mut stock.spare);
        }
        if stock.loaded.len() < capacity.min(stock.loaded.capacity()) {
            stock.loaded.push(first);
            return;
        }
        let mut shared = self.shared.lock();
        if stock.loaded.len() >= capacity {
            let depot = shared.depot.get_mut(zone).and_then(|zone| zone.get_mut(class));
            if let Some(depot) = depot
                && depot.try_reserve(1).is_ok()
            {
                depot.push(core::mem::take(&mut stock.loaded));
            } else {
                // No memory for the depot's list: the tree has room for every range that is out.
                for first in stock.loaded.drain(..) {
                    shared.tree.give(first, class_pages(class));
                }
            }
        }
        if self.magazine(&mut shared, &mut stock.loaded) {
            stock.loaded.push(first);
        } else {
            shared.tree.give(first, class_pages(class));
        }
    }

    /// Gives a core's stock back to the tree, one magazine under each lock.
    fn empty_stock(&self, core: &mut CoreCache) {
        for zone in &mut core.stock {
            for (class, stock) in zone.iter_mut().enumerate() {
                for magazine in [&mut stock.loaded, &mut stock.spare] {
                    if magazine.is_empty() {
                        continue;
                    }
                    let mut shared = self.shared.lock();
                    for first in magazine.drain(..) {
                        shared.tree.give(first, class_pages(class));
                    }
                }
            }
        }
    }

    /// Gives all stock that this core can reach back to the tree, and asks the other cores for theirs.
    ///
    /// The lock is held for one magazine at a time; at most as many turns as magazines were in the depot.
    #[cold]
    fn reclaim(&self, core: &mut CoreCache) {
        core.want = self.want.fetch_add(1, Ordering::Relaxed) + 1;
        self.empty_stock(core);
        for zone in 0..ZONES {
            for class in 0..CLASSES {
                let magazines = |shared: &Shared| shared.depot.get(zone).and_then(|d| d.get(class)).map_or(0, Vec::len);
                let bound = magazines(&self.shared.lock());
                for _ in 0..bound {
                    let mut shared = self.shared.lock();
                    let full = shared
                        .depot
                        .get_mut(zone)
                        .and_then(|d| d.get_mut(class))
                        .and_then(Vec::pop);
                    let Some(mut full) = full else { break };
                    for first in full.drain(..) {
                        shared.tree.give(first, class_pages(class));
                    }
                    if shared.empty.try_reserve(1).is_ok() {
                        shared.empty.push(full);
                    }
                }
            }
        }
    }

    /// Tries the stock of a zone, then what is behind it.
    fn try_zone(&self, core: &mut CoreCache, plan: Plan, zone: usize, last: u64) -> Result<Option<u64>, NoMemory> {
        if let Some(class) = plan.class
            && let Some(first) = core.pop(zone, class, last)
        {
            core.counters.hits += 1;
            return Ok(Some(first));
        }
        self.refill(core, plan, zone, last)
    }

    /// One round through the zones that a request may use.
    fn try_zones(&self, core: &mut CoreCache, plan: Plan, last: u64, low_first: bool) -> Result<Option<u64>, NoMemory> {
        if last <= LOW_LAST_PAGE {
            return self.try_zone(core, plan, LOW, last);
        }
        if low_first && let Some(first) = self.try_zone(core, plan, LOW, LOW_LAST_PAGE)? {
            return Ok(Some(first));
        }
        self.try_zone(core, plan, ANY, last)
    }
}

impl IovaAllocator for CachedAllocator {
    type Core = CoreCache;

    fn new_core(&self) -> CoreCache {
        CoreCache {
            stock: Default::default(),
            identity: Arc::clone(&self.identity),
            want: self.want.load(Ordering::Relaxed),
            counters: CacheCounters::default(),
        }
    }

    fn allocate(&self, core: &mut CoreCache, request: IovaRequest) -> Result<Lease, AllocError> {
        request.check()?;
        if !self.owns(core) {
            return Err(AllocError::ForeignCore);
        }
        let last = request
            .last_page()
            .ok_or(request.exhausted())?
            .min(self.space.last_page());
        let plan = Plan::new(request);
        let no_memory = |_: NoMemory| AllocError::NoMemory;
        let mut first = self
            .try_zones(core, plan, last, request.is_low_first())
            .map_err(no_memory)?;
        if first.is_none() {
            self.reclaim(core);
            first = self
                .try_zones(core, plan, last, request.is_low_first())
                .map_err(no_memory)?;
        }
        let lease = first.and_then(|first| Lease::from_allocator(first, plan.pages, plan.reserved));
        lease.ok_or(request.exhausted())
    }

    fn claim(&self, core: &mut CoreCache, range: AddrRange<Iova>) -> Result<Lease, ClaimError> {
        if !self.owns(core) {
            return Err(ClaimError::ForeignCore);
        }
        let range = range.to_pages();
        let pages = range.page_count();
        if pages > MAX_PAGES {
            return Err(ClaimError::TooLarge { range });
        }
        let taken = ClaimError::Taken { range };
        let first = range.first().raw() >> PAGE_SHIFT;
        let take = || {
            self.shared
                .lock()
                .tree
                .take_at(first, pages)
                .map_err(|_| ClaimError::NoMemory)
        };
        let mut found = take()?;
        if !found {
            // Parts of it may be in stock.
            self.reclaim(core);
            found = take()?;
        }
        let lease = if found {
            Lease::from_allocator(first, pages, pages)
        } else {
            None
        };
        lease.ok_or(taken)
    }

    fn free(&self, core: &mut CoreCache, lease: Lease) {
        let (first, reserved) = (lease.first_page(), lease.reserved_pages());
        let last = first + reserved - 1;
        if first < self.space.first_page() || last > self.space.last_page() {
            return;
        }
        if !self.owns(core) {
            self.shared.lock().tree.give(first, reserved);
            return;
        }
        core.counters.frees += 1;
        let want = self.want.load(Ordering::Relaxed);
        if core.want != want {
            core.want = want;
            self.empty_stock(core);
        }
        // Only what a class would have handed out goes into its stock: claims lie anywhere.
        let class = class_of(reserved).filter(|&class| class_pages(class) == reserved);
        let Some(class) = class.filter(|_| first & (class_align(reserved) - 1) == 0) else {
            self.shared.lock().tree.give(first, reserved);
            return;
        };
        let zone = if last <= LOW_LAST_PAGE { LOW } else { ANY };
        let capacity = self.capacity(zone, class);
        if let Some(stock) = core.stock.get_mut(zone).and_then(|zone| zone.get_mut(class))
            && stock.loaded.len() < capacity.min(stock.loaded.capacity())
        {
            stock.loaded.push(first);
            return;
        }
        self.exchange(core, zone, class, first);
    }

    fn retire(&self, mut core: CoreCache) {
        if self.owns(&core) {
            self.empty_stock(&mut core);
        }
    }

    fn space(&self) -> &IovaSpace {
        &self.space
    }
}

/// Classes end where the largest magazine does.
const _: () = assert!(MAX_CACHED <= MAGAZINE_PAGES && MAX_CACHED <= MAX_PAGES);
