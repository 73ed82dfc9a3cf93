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
/// Stock is kept apart for addresses below 4 GiB, and for any: a stock of each for every class.
const STOCKS: usize = 2 * CLASSES;

/// Which addresses a stock holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zone {
    /// Below 4 GiB.
    Low,
    /// Wherever there was room.
    Any,
}

impl Zone {
    /// The number of the stock for a class.
    #[inline]
    const fn stock(self, class: usize) -> usize {
        match self {
            Self::Low => class,
            Self::Any => CLASSES + class,
        }
    }

    /// All numbers of its stocks.
    const fn stocks(self) -> core::ops::Range<usize> {
        let first = self.stock(0);
        first..first + CLASSES
    }
}

/// The length in pages of what a stock holds.
fn stock_pages(stock: usize) -> u64 {
    class_pages(stock % CLASSES)
}

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
    /// How many ranges a magazine holds, for each stock.
    capacity: [usize; STOCKS],
    /// Counts moments of want: each core then gives its stock back when it frees next.
    want: AtomicU64,
    identity: Arc<()>,
}

#[derive(Debug)]
struct Shared {
    tree: GapTree,
    /// How many magazines are in the depot.
    parked: usize,
    /// Full magazines, for each stock.
    depot: [Vec<Magazine>; STOCKS],
    /// Empty magazines, kept for their memory.
    empty: Vec<Magazine>,
    /// Whether stock for any address was ever filled from below 4 GiB.
    low_in_any: bool,
}

/// What one core keeps to itself.
///
/// Dropping it takes its stock out of use for good; [`IovaAllocator::retire`] gives it back.
#[derive(Debug)]
#[must_use = "addresses in a core's cache are lost when it is dropped; give it back with IovaAllocator::retire"]
pub struct CoreCache {
    stock: [Stock; STOCKS],
    identity: Arc<()>,
    want: u64,
    counters: CacheCounters,
}

#[derive(Debug, Default)]
struct Stock {
    loaded: Magazine,
    spare: Magazine,
    /// How many ranges a magazine holds.
    limit: usize,
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
    fn pop(&mut self, stock: usize, pages: u64, last: u64) -> Option<u64> {
        let stock = self.stock.get_mut(stock)?;
        stock.pop_top(pages, last + 1).or_else(|| stock.pop_slowly(pages, last))
    }
}

impl Stock {
    /// Takes the range on top, if it ends before page `end`.
    #[inline]
    fn pop_top(&mut self, pages: u64, end: u64) -> Option<u64> {
        let &first = self.loaded.last()?;
        if first + pages > end {
            return None;
        }
        self.loaded.pop()
    }

    /// Looks further than at the range on top.
    fn pop_slowly(&mut self, pages: u64, last: u64) -> Option<u64> {
        if self.loaded.is_empty() {
            core::mem::swap(&mut self.loaded, &mut self.spare);
        }
        let place = self
            .loaded
            .iter()
            .rev()
            .take(LOOK)
            .position(|&first| first + pages - 1 <= last)?;
        let index = self.loaded.len() - 1 - place;
        Some(self.loaded.swap_remove(index))
    }

    /// Adds a range if the loaded magazine has room.
    #[inline]
    fn push(&mut self, first: u64) -> bool {
        let room = self.loaded.len() < self.limit && self.loaded.len() < self.loaded.capacity();
        if room {
            self.loaded.push(first);
        }
        room
    }
}

/// What a request comes down to.
#[derive(Clone, Copy)]
struct Plan {
    pages: u64,
    align: u64,
    /// Pages set aside.
    reserved: u64,
    class: Option<usize>,
}

impl Plan {
    #[inline]
    fn new(request: IovaRequest) -> Self {
        let (pages, align) = (request.page_count(), request.align_pages());
        // Alignment up to the length comes with the classes that are powers of two; more of it only the tree finds.
        let class = request.class_length().and_then(class_of);
        match class {
            Some(class) => {
                let reserved = class_pages(class);
                Self {
                    pages,
                    align: class_align(reserved),
                    reserved,
                    class: Some(class),
                }
            }
            None => Self {
                pages,
                align,
                reserved: pages,
                class: None,
            },
        }
    }

    const fn need(self) -> Need {
        Need::new(self.reserved, self.align)
    }
}

impl CachedAllocator {
    /// An allocator with everything in `space` free.
    #[must_use]
    pub fn new(space: IovaSpace) -> Self {
        let pages: u64 = space.free_runs().map(|run| run.last - run.first + 1).sum();
        let capacity = core::array::from_fn(|stock| {
            let low = Zone::Low.stocks().contains(&stock);
            let available = if low { pages.min(LOW_LAST_PAGE + 1) } else { pages };
            let most = (available / MAGAZINE_SHARE).min(MAGAZINE_PAGES) / stock_pages(stock);
            usize::try_from(most).unwrap_or(MAGAZINE).min(MAGAZINE)
        });
        Self {
            shared: Mutex::new(Shared {
                tree: GapTree::new(space.free_runs()),
                depot: core::array::from_fn(|_| Vec::new()),
                parked: 0,
                empty: Vec::new(),
                low_in_any: false,
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

    /// Takes a range from the depot or the tree.
    fn refill(&self, core: &mut CoreCache, plan: Plan, zone: Zone, last: u64) -> Result<Option<u64>, NoMemory> {
        core.counters.misses += 1;
        let mut shared = self.shared.lock();
        let Some(class) = plan.class else {
            return shared.tree.take(plan.need(), last, 1);
        };
        let number = zone.stock(class);
        let Some(stock) = core.stock.get_mut(number) else {
            return Ok(None);
        };
        // Both magazines are empty, or hold nothing low enough. An empty one is exchanged for a full one.
        if stock.loaded.is_empty()
            && let Some(full) = shared.unpark(number)
        {
            let empty = core::mem::replace(&mut stock.loaded, full);
            shared.keep(empty);
            if let Some(first) = stock.pop_slowly(plan.reserved, last) {
                return Ok(Some(first));
            }
        }
        // Several at once, side by side: later requests find neighbours.
        let count = u64::try_from(stock.limit / 2).unwrap_or(0).min(REFILL);
        if count > 1 && stock.loaded.is_empty() && shared.equip(&mut stock.loaded) {
            let run = Need::new(plan.reserved * count, plan.align);
            let pieces = usize::try_from(count).unwrap_or(1);
            if let Some(first) = shared.tree.take(run, last, pieces)? {
                shared.low_in_any |= zone == Zone::Any && first <= LOW_LAST_PAGE;
                // The lowest is handed out first.
                stock.loaded.extend((1..count).rev().map(|n| first + n * plan.reserved));
                return Ok(Some(first));
            }
        }
        let found = shared.tree.take(plan.need(), last, 1);
        if let Ok(Some(first)) = found {
            shared.low_in_any |= zone == Zone::Any && first <= LOW_LAST_PAGE;
        }
        found
    }

    /// Puts a range into stock when the loaded magazine has no room: exchanges magazines.
    #[cold]
    #[inline(never)]
    fn exchange(&self, stock: &mut Stock, number: usize, first: u64) {
        let pages = stock_pages(number);
        if stock.limit == 0 {
            self.shared.lock().tree.give(first, pages);
            return;
        }
        if stock.loaded.len() >= stock.limit {
            core::mem::swap(&mut stock.loaded, &mut stock.spare);
        }
        if stock.push(first) {
            return;
        }
        let mut shared = self.shared.lock();
        if stock.loaded.len() >= stock.limit {
            shared.park(number, core::mem::take(&mut stock.loaded));
        }
        if shared.equip(&mut stock.loaded) {
            stock.loaded.push(first);
        } else {
            shared.tree.give(first, pages);
        }
    }

    /// Gives a core's stock back to the tree, one magazine under each lock.
    fn empty_stock(&self, core: &mut CoreCache) {
        for (number, stock) in core.stock.iter_mut().enumerate() {
            for magazine in [&mut stock.loaded, &mut stock.spare] {
                if !magazine.is_empty() {
                    self.shared.lock().give_all(number, magazine);
                }
            }
        }
    }

    /// Gives all stock that this core can reach back to the tree, and asks the other cores for theirs.
    ///
    /// Only stock that can lie at or below page `last` is of use. The lock is held for one magazine at a time; at most
    /// as many turns as magazines were in the depot.
    fn reclaim(&self, core: &mut CoreCache, last: u64) {
        core.want = self.want.fetch_add(1, Ordering::Relaxed) + 1;
        self.empty_stock(core);
        let (any, mut turns) = {
            let shared = self.shared.lock();
            (last > LOW_LAST_PAGE || shared.low_in_any, shared.parked)
        };
        let stocks = if any { 0..STOCKS } else { Zone::Low.stocks() };
        for number in stocks {
            while turns > 0 {
                let mut shared = self.shared.lock();
                let Some(mut full) = shared.unpark(number) else { break };
                shared.give_all(number, &mut full);
                shared.keep(full);
                turns -= 1;
            }
            if turns == 0 {
                break;
            }
        }
    }

    /// Whether a lease lies inside the space, as all do that this allocator made.
    #[inline]
    fn holds(&self, lease: &Lease) -> bool {
        let first = lease.first_page();
        let last = first + lease.reserved_pages() - 1;
        first >= self.space.first_page() && last <= self.space.last_page()
    }

    /// Takes back what does not simply go on top of the core's own stock.
    #[cold]
    #[inline(never)]
    fn free_slowly(&self, core: &mut CoreCache, lease: Lease) {
        if !self.holds(&lease) {
            return;
        }
        let (first, reserved) = (lease.first_page(), lease.reserved_pages());
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
        // What was claimed, or is too long for stock, goes straight back.
        let stock = lease.stock().map(usize::from);
        let Some((number, stock)) = stock.and_then(|number| Some((number, core.stock.get_mut(number)?))) else {
            self.shared.lock().tree.give(first, reserved);
            return;
        };
        if !stock.push(first) {
            self.exchange(stock, number, first);
        }
    }

    /// Serves a request from the core's own stock, or from wherever else. Where it cannot, it says why through
    /// `refusal`: this way the answer fits into registers. Inlined, so that a size known to the caller decides the class
    /// when it is compiled.
    #[inline(always)]
    fn take(&self, core: &mut CoreCache, request: IovaRequest, refusal: &mut AllocError) -> Option<Lease> {
        if self.owns(core)
            && let Some(class) = request.class_length().and_then(class_of)
        {
            let end = request.end_page().min(self.space.last_page() + 1);
            let (zone, end) = if end <= LOW_LAST_PAGE + 1 {
                (Zone::Low, end)
            } else if request.is_low_first() {
                (Zone::Low, LOW_LAST_PAGE + 1)
            } else {
                (Zone::Any, end)
            };
            let (number, reserved) = (zone.stock(class), class_pages(class));
            if let Some(stock) = core.stock.get_mut(number)
                && let Some(first) = stock.pop_top(reserved, end)
            {
                core.counters.hits += 1;
                let pages = request.page_count();
                return Some(Lease::found(first, pages, reserved, u8::try_from(number).ok()));
            }
        }
        self.take_slowly(core, request, refusal)
    }

    /// Serves a request that the core's own stock did not.
    #[cold]
    #[inline(never)]
    fn take_slowly(&self, core: &mut CoreCache, request: IovaRequest, refusal: &mut AllocError) -> Option<Lease> {
        self.search(core, request).map_err(|why| *refusal = why).ok()
    }

    fn search(&self, core: &mut CoreCache, request: IovaRequest) -> Result<Lease, AllocError> {
        if !self.owns(core) {
            return Err(AllocError::ForeignCore);
        }
        request.check()?;
        let last = request.last_page().ok_or_else(|| request.exhausted())?;
        let last = last.min(self.space.last_page());
        let plan = Plan::new(request);
        let no_memory = |_: NoMemory| AllocError::NoMemory;
        let mut first = self
            .try_zones(core, plan, last, request.is_low_first())
            .map_err(no_memory)?;
        if first.is_none() {
            self.reclaim(core, last);
            first = self
                .try_zones(core, plan, last, request.is_low_first())
                .map_err(no_memory)?;
        }
        let (first, zone) = first.ok_or_else(|| request.exhausted())?;
        let stock = plan.class.and_then(|class| u8::try_from(zone.stock(class)).ok());
        Ok(Lease::found(first, plan.pages, plan.reserved, stock))
    }

    /// Tries the stock of a zone, then what is behind it.
    fn try_zone(&self, core: &mut CoreCache, plan: Plan, zone: Zone, last: u64) -> Result<Option<u64>, NoMemory> {
        if let Some(class) = plan.class
            && let Some(first) = core.pop(zone.stock(class), plan.reserved, last)
        {
            core.counters.hits += 1;
            return Ok(Some(first));
        }
        self.refill(core, plan, zone, last)
    }

    /// One round through the zones that a request may use.
    fn try_zones(&self, core: &mut CoreCache, plan: Plan, last: u64, low_first: bool) -> Result<Found, NoMemory> {
        if last <= LOW_LAST_PAGE {
            return Ok(self
                .try_zone(core, plan, Zone::Low, last)?
                .map(|first| (first, Zone::Low)));
        }
        if low_first && let Some(first) = self.try_zone(core, plan, Zone::Low, LOW_LAST_PAGE)? {
            return Ok(Some((first, Zone::Low)));
        }
        Ok(self
            .try_zone(core, plan, Zone::Any, last)?
            .map(|first| (first, Zone::Any)))
    }
}

/// The first page of a range, and the zone whose stock it belongs to.
type Found = Option<(u64, Zone)>;

impl Shared {
    /// Takes a full magazine from the depot.
    fn unpark(&mut self, stock: usize) -> Option<Magazine> {
        let full = self.depot.get_mut(stock)?.pop()?;
        self.parked -= 1;
        Some(full)
    }

    /// Puts a full magazine into the depot.
    fn park(&mut self, stock: usize, mut full: Magazine) {
        if let Some(depot) = self.depot.get_mut(stock)
            && depot.try_reserve(1).is_ok()
        {
            depot.push(full);
            self.parked += 1;
        } else {
            // No memory for the depot's list: the tree has room for every range that is out.
            self.give_all(stock, &mut full);
        }
    }

    /// Gives everything in a magazine back to the tree.
    fn give_all(&mut self, stock: usize, magazine: &mut Magazine) {
        for first in magazine.drain(..) {
            self.tree.give(first, stock_pages(stock));
        }
    }

    /// Keeps an empty magazine for its memory.
    fn keep(&mut self, empty: Magazine) {
        if empty.capacity() >= MAGAZINE && self.empty.try_reserve(1).is_ok() {
            self.empty.push(empty);
        }
    }

    /// Gives a magazine its memory, from an empty one if there is one.
    fn equip(&mut self, magazine: &mut Magazine) -> bool {
        if magazine.capacity() >= MAGAZINE {
            return true;
        }
        if let Some(empty) = self.empty.pop() {
            *magazine = empty;
            return true;
        }
        magazine.try_reserve_exact(MAGAZINE).is_ok()
    }
}

impl IovaAllocator for CachedAllocator {
    type Core = CoreCache;

    fn new_core(&self) -> CoreCache {
        CoreCache {
            stock: self.capacity.map(|limit| Stock {
                limit,
                ..Stock::default()
            }),
            identity: Arc::clone(&self.identity),
            want: self.want.load(Ordering::Relaxed),
            counters: CacheCounters::default(),
        }
    }

    #[inline(always)]
    fn allocate(&self, core: &mut CoreCache, request: IovaRequest) -> Result<Lease, AllocError> {
        let mut refusal = AllocError::NoMemory;
        self.take(core, request, &mut refusal).ok_or(refusal)
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
            self.reclaim(core, first + pages - 1);
            found = take()?;
        }
        let lease = if found {
            Lease::from_allocator(first, pages, pages)
        } else {
            None
        };
        lease.ok_or(taken)
    }

    #[inline(always)]
    fn free(&self, core: &mut CoreCache, lease: Lease) {
        if self.owns(core)
            && self.holds(&lease)
            && core.want == self.want.load(Ordering::Relaxed)
            && let Some(number) = lease.stock()
            && let Some(stock) = core.stock.get_mut(usize::from(number))
            && stock.push(lease.first_page())
        {
            core.counters.frees += 1;
            return;
        }
        self.free_slowly(core, lease);
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
