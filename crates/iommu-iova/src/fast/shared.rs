//! What all cores share, under one lock: the tree of gaps, and a depot of full magazines.

use alloc::vec::Vec;

use iommu_types::PAGE_SHIFT;

use super::stock::{MAGAZINE, Magazine, STOCKS, stock_pages};
use crate::tree::GapTree;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) tree: GapTree,
    /// How many magazines are in the depot.
    pub(super) parked: usize,
    /// Full magazines, for each stock.
    depot: [Vec<Magazine>; STOCKS],
    /// Empty magazines, kept for their memory.
    empty: Vec<Magazine>,
    /// Whether stock for any address was ever filled from below 4 GiB.
    pub(super) low_in_any: bool,
}

impl Shared {
    pub(super) fn new(tree: GapTree) -> Self {
        Self {
            tree,
            parked: 0,
            depot: core::array::from_fn(|_| Vec::new()),
            empty: Vec::new(),
            low_in_any: false,
        }
    }

    /// Takes a full magazine from the depot.
    pub(super) fn unpark(&mut self, stock: usize) -> Option<Magazine> {
        let full = self.depot.get_mut(stock)?.pop()?;
        self.parked -= 1;
        Some(full)
    }

    /// Puts a full magazine into the depot.
    pub(super) fn park(&mut self, stock: usize, mut full: Magazine) {
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

    /// Gives everything in a magazine back to the tree. At most as many turns as it holds ranges.
    pub(super) fn give_all(&mut self, stock: usize, magazine: &mut Magazine) {
        while let Some(first) = magazine.pop() {
            self.tree.give(first >> PAGE_SHIFT, stock_pages(stock));
        }
    }

    /// Keeps an empty magazine for its memory.
    pub(super) fn keep(&mut self, empty: Magazine) {
        if empty.size() == MAGAZINE && self.empty.try_reserve(1).is_ok() {
            self.empty.push(empty);
        }
    }

    /// Gives a magazine its memory, from an empty one if there is one that fits.
    pub(super) fn equip(&mut self, magazine: &mut Magazine, size: usize) -> bool {
        if magazine.size() == 0
            && size == MAGAZINE
            && let Some(empty) = self.empty.pop()
        {
            *magazine = empty;
        }
        magazine.equip(size)
    }
}
