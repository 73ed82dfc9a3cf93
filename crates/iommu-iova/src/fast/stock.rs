//! What a core keeps to itself: magazines of free ranges.

use alloc::vec::Vec;
use core::num::NonZeroU64;

use iommu_types::{PAGE_SHIFT, PAGE_SIZE};

use crate::class::{CLASSES, class_pages};
use crate::lease::{Lease, Shape};
use crate::space::{IovaSpace, LOW_LAST};

/// The most ranges a magazine holds.
pub(super) const MAGAZINE: usize = 127;
/// The most pages a magazine holds, whatever their class: 64 MiB.
pub(super) const MAGAZINE_PAGES: u64 = 1 << 14;
/// A magazine holds at most this part of the pages it is filled from.
const MAGAZINE_SHARE: u64 = 256;
/// How many ranges of a magazine are compared with a request's limit before the tree is asked.
const LOOK: usize = 8;
/// Number of the last page below 4 GiB.
pub(super) const LOW_LAST_PAGE: u64 = LOW_LAST.raw() >> PAGE_SHIFT;
/// Stock is kept apart for addresses below 4 GiB, and for any: a stock of each for every class.
pub(super) const STOCKS: usize = 2 * CLASSES;

/// Which addresses a stock holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zone {
    /// Below 4 GiB.
    Low,
    /// Wherever there was room.
    Any,
}

impl Zone {
    /// The number of the stock for a class.
    #[inline]
    pub(super) const fn stock(self, class: usize) -> usize {
        match self {
            Self::Low => class,
            Self::Any => CLASSES + class,
        }
    }

    /// All numbers of its stocks.
    pub(super) const fn stocks(self) -> core::ops::Range<usize> {
        let first = self.stock(0);
        first..first + CLASSES
    }
}

/// The length in pages of what a stock holds.
pub(super) fn stock_pages(stock: usize) -> u64 {
    class_pages(stock % CLASSES)
}

/// First addresses of free ranges of one length, the last one on top.
///
/// The vector is as long as the magazine is large, so that one comparison tells whether there is room; it is empty
/// until memory was found for it.
#[derive(Debug, Default)]
pub(super) struct Magazine {
    slots: Vec<u64>,
    used: usize,
}

impl Magazine {
    #[inline]
    pub(super) const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// How many ranges fit; 0 before [`Self::equip`].
    pub(super) const fn size(&self) -> usize {
        self.slots.len()
    }

    /// Puts a range on top, if there is room.
    #[inline]
    pub(super) fn push(&mut self, first: u64) -> bool {
        let Some(slot) = self.slots.get_mut(self.used) else {
            return false;
        };
        *slot = first;
        self.used += 1;
        true
    }

    /// The range on top.
    #[inline]
    fn top(&self) -> Option<u64> {
        self.slots.get(self.used.wrapping_sub(1)).copied()
    }

    /// Takes the range on top.
    pub(super) fn pop(&mut self) -> Option<u64> {
        let top = self.top()?;
        self.used -= 1;
        Some(top)
    }

    /// Takes one of the uppermost ranges that ends at or below `last`.
    fn pop_below(&mut self, last: u64, extent: u64) -> Option<u64> {
        let held = self.slots.get_mut(..self.used)?;
        let place = held.iter().rev().take(LOOK).position(|&first| first + extent <= last)?;
        let index = held.len() - 1 - place;
        held.swap(index, self.used - 1);
        self.pop()
    }

    /// Gets its memory, for `size` ranges. Tells whether it has it.
    pub(super) fn equip(&mut self, size: usize) -> bool {
        if self.slots.len() < size && self.slots.try_reserve_exact(size).is_ok() {
            self.slots.resize(size, 0);
        }
        self.slots.len() >= size
    }
}

/// Ranges of one class and zone, and what is known of all of them.
// On lines of its own: the number of a stock becomes its place by a shift.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Stock {
    pub(super) loaded: Magazine,
    /// Bytes of a range, less one.
    extent: u64,
    /// What a lease on such a range looks like, but for the pages that are granted.
    shape: Shape,
    /// The first address of the space.
    lowest: u64,
    /// How far above it a range can begin.
    spread: u64,
    /// How many ranges a magazine holds.
    pub(super) limit: usize,
    pub(super) spare: Magazine,
}

impl Stock {
    /// The empty stock of this number for a space of which `pages` pages can be handed out.
    fn new(number: usize, space: &IovaSpace, pages: u64) -> Self {
        let low = Zone::Low.stocks().contains(&number);
        let available = if low { pages.min(LOW_LAST_PAGE + 1) } else { pages };
        let held = stock_pages(number);
        let most = (available / MAGAZINE_SHARE).min(MAGAZINE_PAGES) / held;
        Self {
            loaded: Magazine::default(),
            extent: held * PAGE_SIZE - 1,
            shape: Shape::reserving(held, u8::try_from(number).ok()),
            lowest: space.first_page() << PAGE_SHIFT,
            // A space that is shorter than the range has a limit of 0, so that none of them is ever held.
            spread: (space.last_page() + 1 - space.first_page()).saturating_sub(held) << PAGE_SHIFT,
            limit: usize::try_from(most).unwrap_or(MAGAZINE).min(MAGAZINE),
            spare: Magazine::default(),
        }
    }

    /// A lease on `pages` pages of the range on top, if that one ends at or below address `last`.
    #[inline]
    pub(super) fn pop_top(&mut self, pages: NonZeroU64, last: u64) -> Option<Lease> {
        let first = self.loaded.top()?;
        // No range of the space passes its end, so this does not overflow.
        if first + self.extent > last {
            return None;
        }
        self.loaded.used -= 1;
        Some(Lease::shaped(first, self.shape.granting(pages)))
    }

    /// Looks further than at the range on top: the first address of one that ends at or below address `last`.
    pub(super) fn pop_slowly(&mut self, last: u64) -> Option<u64> {
        if self.loaded.is_empty() {
            core::mem::swap(&mut self.loaded, &mut self.spare);
        }
        self.loaded.pop_below(last, self.extent)
    }

    /// Puts a range on top that can be one of this space, if there is room.
    #[inline]
    pub(super) fn push(&mut self, first: u64) -> bool {
        first.wrapping_sub(self.lowest) <= self.spread && self.loaded.push(first)
    }
}

/// What one core keeps to itself.
///
/// Dropping it takes its stock out of use for good; [`crate::IovaAllocator::retire`] gives it back.
#[derive(Debug)]
#[must_use = "addresses in a core's cache are lost when it is dropped; give it back with IovaAllocator::retire"]
pub struct CoreCache {
    pub(super) stock: [Stock; STOCKS],
    /// The allocator's own number.
    pub(super) allocator: u64,
    /// The allocator's epoch that this core has seen.
    pub(super) epoch: u64,
    pub(super) counters: CacheCounters,
}

impl CoreCache {
    pub(super) fn new(allocator: u64, epoch: u64, space: &IovaSpace, pages: u64) -> Self {
        Self {
            stock: core::array::from_fn(|number| Stock::new(number, space, pages)),
            allocator,
            epoch,
            counters: CacheCounters::default(),
        }
    }

    /// How often the core's own stock was enough.
    #[must_use]
    pub const fn counters(&self) -> CacheCounters {
        self.counters
    }
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
