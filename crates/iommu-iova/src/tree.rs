//! The free gaps of an address space, in a balanced tree that knows the largest gap below each node.
//!
//! Only gaps are kept, not what is handed out: a lease knows its own length. The tree is an AVL tree over page numbers,
//! its nodes in one vector. Every operation, a failing one included, looks at a number of nodes that is logarithmic in
//! the number of gaps; height is at most 1.45 log2(n), so recursion is at most 46 deep for 2^32 nodes.

mod need;
mod shape;

use alloc::vec::Vec;

pub(crate) use self::need::Need;
use self::need::largest_block;
use self::shape::{NIL, Node};
use crate::space::Run;

/// The most nodes on a path from the root; an AVL tree of 2^32 nodes is not higher.
const MAX_HEIGHT: usize = 48;

/// First page and length of a gap.
type Gap = (u64, u64);

/// The free gaps. Page numbers are below 2^52, so sums of two do not overflow.
#[derive(Debug)]
pub(crate) struct GapTree {
    nodes: Vec<Node>,
    /// Unused places in `nodes`, linked through `left`.
    unused: u32,
    root: u32,
    gaps: usize,
    /// Runs handed out that can come back one by one: each may leave one more gap.
    pieces: usize,
}

/// No memory for another gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoMemory;

impl GapTree {
    /// The gaps `runs`, which do not touch each other.
    pub(crate) fn new(runs: impl Iterator<Item = Run>) -> Self {
        let mut tree = Self {
            nodes: Vec::new(),
            unused: NIL,
            root: NIL,
            gaps: 0,
            pieces: 0,
        };
        for run in runs {
            tree.insert(run.first, run.last + 1 - run.first);
        }
        tree
    }

    /// Number of gaps.
    #[cfg(test)]
    pub(crate) const fn gaps(&self) -> usize {
        self.gaps
    }

    /// Makes sure that `pieces` more runs can be given back without memory for it. Freeing then never fails.
    fn make_room(&mut self, pieces: usize) -> Result<(), NoMemory> {
        // Each run that comes back adds at most one gap, and so does a cut out of the middle of one.
        let wanted = self.gaps + self.pieces + 2 * pieces;
        let missing = wanted.saturating_sub(self.nodes.len());
        if u32::try_from(wanted).is_err() {
            return Err(NoMemory);
        }
        self.nodes.try_reserve(missing).map_err(|_| NoMemory)
    }

    /// Takes the highest run of `pages` pages at a multiple of `align` that ends at or below page `last`. It may come
    /// back in up to `pieces` parts.
    ///
    /// Where the alignment is neither one page nor the length itself, a run can be missed.
    pub(crate) fn take(&mut self, need: Need, last: u64, pieces: usize) -> Result<Option<u64>, NoMemory> {
        self.make_room(pieces)?;
        let Some((start, len, end)) = self.find(need, last) else {
            return Ok(None);
        };
        let first = (end - need.pages) & !(need.align - 1);
        self.cut(start, len, first, need.pages);
        self.pieces += pieces;
        Ok(Some(first))
    }

    /// Takes exactly the pages `first..first + pages`, if all are free.
    pub(crate) fn take_at(&mut self, first: u64, pages: u64) -> Result<bool, NoMemory> {
        self.make_room(1)?;
        let (below, _) = self.neighbours(first);
        match below {
            Some((start, len)) if start + len >= first + pages => {
                self.cut(start, len, first, pages);
                self.pieces += 1;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Gives a run back. False, and nothing done, if a part of it is free already.
    pub(crate) fn give(&mut self, first: u64, pages: u64) -> bool {
        let end = first + pages;
        let (below, above) = self.neighbours(first);
        if below.is_some_and(|(start, len)| start + len > first) || above.is_some_and(|(start, _)| start < end) {
            return false;
        }
        let below = below.filter(|&(start, len)| start + len == first);
        let above = above.filter(|&(start, _)| start == end);
        match (below, above) {
            (Some((start, len)), Some((next, more))) => {
                self.root = self.remove(self.root, next);
                self.resize(start, start, len + pages + more);
            }
            (Some((start, len)), None) => self.resize(start, start, len + pages),
            (None, Some((next, more))) => self.resize(next, first, pages + more),
            (None, None) => self.insert(first, pages),
        }
        self.pieces = self.pieces.saturating_sub(1);
        true
    }

    /// Removes a part of the gap that begins at `start`.
    fn cut(&mut self, start: u64, len: u64, first: u64, pages: u64) {
        let below = first - start;
        let above = start + len - (first + pages);
        match (below, above) {
            (0, 0) => self.root = self.remove(self.root, start),
            (0, _) => self.resize(start, first + pages, above),
            (_, 0) => self.resize(start, start, below),
            _ => {
                self.resize(start, start, below);
                self.insert(first + pages, above);
            }
        }
    }

    /// The gap at or below page `at`, and the one above it.
    fn neighbours(&self, at: u64) -> (Option<Gap>, Option<Gap>) {
        let (mut below, mut above) = (None, None);
        let mut next = self.root;
        while let Some(node) = self.node(next) {
            let gap = Some((node.start, node.len));
            if node.start <= at {
                below = gap;
                next = node.right;
            } else {
                above = gap;
                next = node.left;
            }
        }
        (below, above)
    }

    /// The highest gap that offers what is needed at or below page `last`: start, length, and the end (exclusive) of
    /// its usable part.
    fn find(&self, need: Need, last: u64) -> Option<(u64, u64, u64)> {
        // Nothing in the whole tree is large enough: known at once.
        let root = self.node(self.root)?;
        if !need.fits(root.max_len, root.max_order) {
            return None;
        }
        // Down to the highest gap that begins at or below the limit; gaps passed on the left are candidates.
        let mut path = [NIL; MAX_HEIGHT];
        let mut depth = 0;
        let mut next = self.root;
        while let Some(node) = self.node(next) {
            if node.start <= last {
                *path.get_mut(depth)? = next;
                depth += 1;
                next = node.right;
            } else {
                next = node.left;
            }
        }
        // Highest first: each candidate, then what lies below it. Only the very first can reach over the limit.
        for &at in path.iter().take(depth).rev() {
            let node = self.node(at)?;
            let end = (node.start + node.len).min(last + 1);
            let len = end - node.start;
            let order = if len == node.len {
                node.order
            } else {
                largest_block(node.start, len)
            };
            if need.fits(len, order) {
                return Some((node.start, node.len, end));
            }
            if let Some(below) = self.node(node.left)
                && need.fits(below.max_len, below.max_order)
            {
                return self.highest(node.left, need);
            }
        }
        None
    }

    /// The highest gap of a subtree that is known to hold one.
    fn highest(&self, root: u32, need: Need) -> Option<(u64, u64, u64)> {
        let mut node = self.node(root)?;
        loop {
            if let Some(right) = self.node(node.right)
                && self.subtree_fits(right, need)
            {
                node = right;
            } else if need.fits(node.len, node.order) {
                return Some((node.start, node.len, node.start + node.len));
            } else {
                node = self.node(node.left)?;
            }
        }
    }

    const fn subtree_fits(&self, node: &Node, need: Need) -> bool {
        need.fits(node.max_len, node.max_order)
    }
}

#[cfg(test)]
mod tests;
