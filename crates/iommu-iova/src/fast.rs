//! The fast allocator: stock that a core keeps to itself, in front of a tree of gaps.

mod shared;
mod stock;

use core::fmt;
use core::num::NonZeroU64;

use iommu_types::sync::{AtomicU64, Ordering};
use iommu_types::{AddrRange, Iova, PAGE_SHIFT};

use self::shared::Shared;
pub use self::stock::{CacheCounters, CoreCache};
use self::stock::{LOW_LAST_PAGE, MAGAZINE_PAGES, STOCKS, Stock, Zone, stock_pages};
use crate::allocator::IovaAllocator;
use crate::class::{MAX_CACHED, class_align, class_of, class_pages};
use crate::error::{AllocError, ClaimError};
use crate::lease::Lease;
use crate::lock::{Exclusive, LockKind, SpinLock};
use crate::request::{IovaRequest, MAX_PAGES};
use crate::space::{IovaSpace, LOW_LAST};
use crate::tree::{GapTree, Need, NoMemory};

/// How many ranges are taken from the tree at a time when stock runs out.
const REFILL: u64 = 32;

/// Names allocators and their epochs; no number is given out twice.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

fn number() -> u64 {
    NUMBERS.fetch_add(1, Ordering::Relaxed)
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

/// Where a request was served: the first page, and the zone whose stock it belongs to.
type Found = Option<(u64, Zone)>;

/// An allocator whose usual path touches no shared memory.
///
/// Each core owns a [`CoreCache`]: for each size class two magazines of free ranges. Whole magazines are exchanged with
/// a shared depot under a short lock; behind the depot a tree of gaps finds the highest gap that is large enough, or
/// knows that none is, in logarithmic time. Lengths are rounded up to size classes, four for each doubling; aligned
/// requests to powers of two.
///
/// `L` is the lock around the shared part; see [`LockKind`].
pub struct CachedAllocator<L: LockKind = SpinLock> {
    space: IovaSpace,
    shared: L::Lock<Shared>,
    /// Pages of the space that stock is a share of.
    pages: u64,
    /// Changes in moments of want: each core then gives its stock back when it next frees, or next needs more.
    ///
    /// A core that has seen this number was made by this allocator, since numbers are not given out twice.
    epoch: AtomicU64,
    /// The last address of the space.
    last: u64,
    number: u64,
}

impl<L: LockKind> fmt::Debug for CachedAllocator<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedAllocator")
            .field("space", &self.space)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl CachedAllocator {
    /// An allocator with everything in `space` free, its shared part under a spin lock.
    #[must_use]
    pub fn new(space: IovaSpace) -> Self {
        Self::with_lock(space)
    }
}

impl<L: LockKind> CachedAllocator<L> {
    /// An allocator with everything in `space` free, its shared part under a lock of kind `L`.
    #[must_use]
    pub fn with_lock(space: IovaSpace) -> Self {
        let number = number();
        Self {
            shared: L::Lock::new(Shared::new(GapTree::new(space.free_runs()))),
            pages: space.free_runs().map(|run| run.last - run.first + 1).sum(),
            last: last_byte(space.last_page()),
            space,
            epoch: AtomicU64::new(number),
            number,
        }
    }

    /// The same without stock: every call asks the tree. For spaces so scarce that no core may keep addresses in
    /// reserve. It concerns cores made from now on.
    #[must_use]
    pub fn without_stock(mut self) -> Self {
        self.pages = 0;
        self
    }

    const fn owns(&self, core: &CoreCache) -> bool {
        self.number == core.allocator
    }

    /// Whether a core is one of this allocator's, and nobody waits for its stock.
    #[inline]
    fn is_current(&self, core: &CoreCache) -> bool {
        core.epoch == self.epoch.load(Ordering::Relaxed)
    }

    /// Gives the stock of a core back if somebody waits for it.
    fn heed(&self, core: &mut CoreCache) {
        let epoch = self.epoch.load(Ordering::Relaxed);
        if core.epoch != epoch {
            core.epoch = epoch;
            self.empty_stock(core);
        }
    }

    /// Takes a range from the depot or the tree.
    fn refill(&self, core: &mut CoreCache, plan: Plan, zone: Zone, last: u64) -> Result<Option<u64>, NoMemory> {
        core.counters.misses += 1;
        let number = plan.class.map(|class| zone.stock(class));
        let Some((number, stock)) = number.and_then(|number| Some((number, core.stock.get_mut(number)?))) else {
            return self.shared.with(|shared| shared.tree.take(plan.need(), last, 1));
        };
        self.shared
            .with(|shared| Self::restock(shared, stock, number, plan, zone, last))
    }

    fn restock(
        shared: &mut Shared,
        stock: &mut Stock,
        number: usize,
        plan: Plan,
        zone: Zone,
        last: u64,
    ) -> Result<Option<u64>, NoMemory> {
        // Both magazines are empty, or hold nothing low enough. An empty one is exchanged for a full one.
        if stock.loaded.is_empty()
            && let Some(full) = shared.unpark(number)
        {
            let empty = core::mem::replace(&mut stock.loaded, full);
            shared.keep(empty);
            if let Some(first) = stock.pop_slowly(last_byte(last)) {
                return Ok(Some(first >> PAGE_SHIFT));
            }
        }
        // Several at once, side by side: later requests find neighbours.
        let count = u64::try_from(stock.limit / 2).unwrap_or(0).min(REFILL);
        if count > 1 && stock.loaded.is_empty() && shared.equip(&mut stock.loaded, stock.limit) {
            let run = Need::new(plan.reserved * count, plan.align);
            let pieces = usize::try_from(count).unwrap_or(1);
            if let Some(first) = shared.tree.take(run, last, pieces)? {
                shared.low_in_any |= zone == Zone::Any && first <= LOW_LAST_PAGE;
                // The lowest is handed out first.
                for n in (1..count).rev() {
                    let first = first + n * plan.reserved;
                    if !stock.loaded.push(first << PAGE_SHIFT) {
                        shared.tree.give(first, plan.reserved);
                    }
                }
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
    fn exchange(&self, stock: &mut Stock, number: usize, first: u64) {
        let give = |shared: &mut Shared| shared.tree.give(first >> PAGE_SHIFT, stock_pages(number));
        if stock.limit == 0 {
            self.shared.with(give);
            return;
        }
        if stock.loaded.size() >= stock.limit {
            core::mem::swap(&mut stock.loaded, &mut stock.spare);
        }
        if stock.push(first) {
            return;
        }
        self.shared.with(|shared| {
            if stock.loaded.size() >= stock.limit {
                shared.park(number, core::mem::take(&mut stock.loaded));
            }
            if !(shared.equip(&mut stock.loaded, stock.limit) && stock.push(first)) {
                give(shared);
            }
        });
    }

    /// Gives a core's stock back to the tree, one magazine under each lock.
    fn empty_stock(&self, core: &mut CoreCache) {
        for (number, stock) in core.stock.iter_mut().enumerate() {
            for magazine in [&mut stock.loaded, &mut stock.spare] {
                if !magazine.is_empty() {
                    self.shared.with(|shared| shared.give_all(number, magazine));
                }
            }
        }
    }

    /// Gives all stock that this core can reach back to the tree, and asks the other cores for theirs.
    ///
    /// Only stock that can lie at or below page `last` is of use. The lock is held for one magazine at a time; at most
    /// as many turns as magazines were in the depot.
    fn reclaim(&self, core: &mut CoreCache, last: u64) {
        core.epoch = number();
        self.epoch.store(core.epoch, Ordering::Relaxed);
        self.empty_stock(core);
        let (any, mut turns) = self
            .shared
            .with(|shared| (last > LOW_LAST_PAGE || shared.low_in_any, shared.parked));
        let stocks = if any { 0..STOCKS } else { Zone::Low.stocks() };
        for number in stocks {
            while turns > 0 {
                let found = self.shared.with(|shared| {
                    let Some(mut full) = shared.unpark(number) else {
                        return false;
                    };
                    shared.give_all(number, &mut full);
                    shared.keep(full);
                    true
                });
                if !found {
                    break;
                }
                turns -= 1;
            }
            if turns == 0 {
                break;
            }
        }
    }

    /// Whether a lease lies inside the space, as all do that this allocator made.
    const fn holds(&self, lease: &Lease) -> bool {
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
        let give = |shared: &mut Shared| {
            shared.tree.give(first, reserved);
        };
        if !self.owns(core) {
            self.shared.with(give);
            return;
        }
        core.counters.frees += 1;
        self.heed(core);
        // What was claimed, or is too long for stock, goes straight back.
        let stock = lease.stock().map(usize::from);
        let Some((number, stock)) = stock.and_then(|number| Some((number, core.stock.get_mut(number)?))) else {
            self.shared.with(give);
            return;
        };
        let first = lease.iova().raw();
        if !stock.push(first) {
            self.exchange(stock, number, first);
        }
    }

    /// Serves a request from the core's own stock, or from wherever else. Where it cannot, it says why through
    /// `refusal`: this way the answer fits into registers. Inlined, so that a size known to the caller decides the class
    /// when it is compiled.
    #[inline(always)]
    fn take(&self, core: &mut CoreCache, request: IovaRequest, refusal: &mut AllocError) -> Option<Lease> {
        if let Some(pages) = NonZeroU64::new(request.page_count())
            && let Some(class) = request.class_length().and_then(class_of)
            && self.is_current(core)
        {
            let last = request.last().raw().min(self.last);
            let low = last <= LOW_LAST.raw() || request.is_low_first();
            // Stock of the low zone ends below 4 GiB, so the limit of a request that only prefers it does no harm.
            let zone = if low { Zone::Low } else { Zone::Any };
            // The mask shows the compiler that the number is one of a stock.
            let stock = &mut core.stock[zone.stock(class) % STOCKS];
            if let Some(lease) = stock.pop_top(pages, last) {
                core.counters.hits += 1;
                return Some(lease);
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
        self.heed(core);
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
            && let Some(stock) = core.stock.get_mut(zone.stock(class))
            && let Some(first) = stock.pop_slowly(last_byte(last))
        {
            core.counters.hits += 1;
            return Ok(Some(first >> PAGE_SHIFT));
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

/// The last byte of page number `page`, which is below 2^52.
const fn last_byte(page: u64) -> u64 {
    page << PAGE_SHIFT | ((1 << PAGE_SHIFT) - 1)
}

impl<L: LockKind> IovaAllocator for CachedAllocator<L> {
    type Core = CoreCache;

    fn new_core(&self) -> CoreCache {
        CoreCache::new(self.number, self.epoch.load(Ordering::Relaxed), &self.space, self.pages)
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
                .with(|shared| shared.tree.take_at(first, pages))
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
        if self.is_current(core)
            && let Some(stock) = core.stock.get_mut(lease.stock_index())
            && stock.push(lease.iova().raw())
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
