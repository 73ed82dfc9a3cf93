//! The free gaps of an address space, in a balanced tree that knows the largest gap below each node.
//!
//! Only gaps are kept, not what is handed out: a lease knows its own length. The tree is an AVL tree over page numbers,
//! its nodes in one vector. Every operation, a failing one included, looks at a number of nodes that is logarithmic in
//! the number of gaps; height is at most 1.45 log2(n), so recursion is at most 46 deep for 2^32 nodes.

use alloc::vec::Vec;

use crate::space::Run;

/// No node.
const NIL: u32 = u32::MAX;
/// The most nodes on a path from the root; an AVL tree of 2^32 nodes is not higher.
const MAX_HEIGHT: usize = 48;

/// What a gap must offer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    pages: u64,
    align: u64,
    /// Length from which a gap holds an aligned run wherever it begins.
    any: u64,
    /// Base-2 logarithm of a block that holds an aligned run and is itself aligned.
    order: u8,
}

impl Need {
    /// `pages` pages at a multiple of `align`, a power of two.
    pub(crate) const fn new(pages: u64, align: u64) -> Self {
        let block = pages.next_power_of_two();
        let block = if block < align { align } else { block };
        Self {
            pages,
            align,
            any: pages + align - 1,
            order: log2(block),
        }
    }

    const fn fits(self, len: u64, order: u8) -> bool {
        len >= self.any || (order >= self.order && len >= self.pages)
    }
}

/// Base-2 logarithm, rounded down; of 0, 0.
const fn log2(value: u64) -> u8 {
    let [low, ..] = (u64::BITS - 1 - (value | 1).leading_zeros()).to_le_bytes();
    low
}

/// Base-2 logarithm of the largest naturally aligned block of pages inside a run.
const fn largest_block(start: u64, len: u64) -> u8 {
    let order = log2(len);
    let block = 1 << order;
    // A run of 2^n pages may straddle every block of that size; it then holds one of half the size.
    let first = (start + block - 1) & !(block - 1);
    if first + block <= start + len {
        order
    } else {
        order.saturating_sub(1)
    }
}

#[derive(Clone, Copy, Debug)]
struct Node {
    start: u64,
    len: u64,
    /// Largest `len` in this subtree.
    max_len: u64,
    left: u32,
    right: u32,
    height: u8,
    /// [`largest_block`] of this gap.
    order: u8,
    /// Largest `order` in this subtree.
    max_order: u8,
}

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

    fn node(&self, at: u32) -> Option<&Node> {
        self.nodes.get(usize::try_from(at).ok()?)
    }

    fn node_mut(&mut self, at: u32) -> Option<&mut Node> {
        self.nodes.get_mut(usize::try_from(at).ok()?)
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

    fn summary(&self, at: u32) -> (u8, u64, u8) {
        self.node(at)
            .map_or((0, 0, 0), |node| (node.height, node.max_len, node.max_order))
    }

    /// Computes what a node knows of its subtree.
    fn refresh(&mut self, at: u32) {
        let Some(&Node { left, right, .. }) = self.node(at) else {
            return;
        };
        let (left, right) = (self.summary(left), self.summary(right));
        if let Some(node) = self.node_mut(at) {
            node.height = left.0.max(right.0) + 1;
            node.max_len = node.len.max(left.1).max(right.1);
            node.max_order = node.order.max(left.2).max(right.2);
        }
    }

    /// Moves the ends of the gap that begins at `start`; its place among the others stays.
    fn resize(&mut self, start: u64, new_start: u64, new_len: u64) {
        let mut path = [NIL; MAX_HEIGHT];
        let mut depth = 0;
        let mut next = self.root;
        while let Some(node) = self.node_mut(next) {
            if let Some(place) = path.get_mut(depth) {
                *place = next;
                depth += 1;
            }
            if node.start == start {
                node.start = new_start;
                node.len = new_len;
                node.order = largest_block(new_start, new_len);
                break;
            }
            next = if start < node.start { node.left } else { node.right };
        }
        for &at in path.iter().take(depth).rev() {
            self.refresh(at);
        }
    }

    fn insert(&mut self, start: u64, len: u64) {
        let order = largest_block(start, len);
        let node = Node {
            start,
            len,
            max_len: len,
            left: NIL,
            right: NIL,
            height: 1,
            order,
            max_order: order,
        };
        let at = if let Some(place) = self.node(self.unused).map(|node| node.left) {
            let at = core::mem::replace(&mut self.unused, place);
            if let Some(slot) = self.node_mut(at) {
                *slot = node;
            }
            at
        } else {
            // Room was made when the run was taken. At the very start it is made here.
            let at = u32::try_from(self.nodes.len()).unwrap_or(NIL);
            self.nodes.push(node);
            at
        };
        self.gaps += 1;
        self.root = self.attach(self.root, at, start);
    }

    fn attach(&mut self, root: u32, at: u32, start: u64) -> u32 {
        let Some(node) = self.node(root) else { return at };
        let (left, right) = (node.left, node.right);
        if start < node.start {
            let child = self.attach(left, at, start);
            self.set_left(root, child);
        } else {
            let child = self.attach(right, at, start);
            self.set_right(root, child);
        }
        self.balance(root)
    }

    /// Removes the gap that begins at `start` from a subtree; tells the subtree's new root.
    fn remove(&mut self, root: u32, start: u64) -> u32 {
        let Some(&Node {
            left,
            right,
            start: here,
            ..
        }) = self.node(root)
        else {
            return NIL;
        };
        if start < here {
            let child = self.remove(left, start);
            self.set_left(root, child);
        } else if start > here {
            let child = self.remove(right, start);
            self.set_right(root, child);
        } else {
            self.release(root);
            if left == NIL {
                return right;
            }
            if right == NIL {
                return left;
            }
            let (rest, next) = self.detach_first(right);
            self.set_left(next, left);
            self.set_right(next, rest);
            return self.balance(next);
        }
        self.balance(root)
    }

    /// Takes the lowest node out of a subtree: the subtree's new root, and the node.
    fn detach_first(&mut self, root: u32) -> (u32, u32) {
        let Some(&Node { left, right, .. }) = self.node(root) else {
            return (NIL, NIL);
        };
        if left == NIL {
            return (right, root);
        }
        let (rest, first) = self.detach_first(left);
        self.set_left(root, rest);
        (self.balance(root), first)
    }

    fn release(&mut self, at: u32) {
        let unused = self.unused;
        self.set_left(at, unused);
        self.unused = at;
        self.gaps -= 1;
    }

    fn set_left(&mut self, at: u32, child: u32) {
        if let Some(node) = self.node_mut(at) {
            node.left = child;
        }
    }

    fn set_right(&mut self, at: u32, child: u32) {
        if let Some(node) = self.node_mut(at) {
            node.right = child;
        }
    }

    /// Restores the balance of a node whose subtrees are balanced and differ by at most two.
    fn balance(&mut self, at: u32) -> u32 {
        let Some(&Node { left, right, .. }) = self.node(at) else {
            return at;
        };
        let (left_height, right_height) = (self.summary(left).0, self.summary(right).0);
        if left_height > right_height + 1 {
            let Some(&Node {
                left: outer,
                right: inner,
                ..
            }) = self.node(left)
            else {
                return at;
            };
            if self.summary(inner).0 > self.summary(outer).0 {
                let child = self.rotate_left(left);
                self.set_left(at, child);
            }
            return self.rotate_right(at);
        }
        if right_height > left_height + 1 {
            let Some(&Node {
                left: inner,
                right: outer,
                ..
            }) = self.node(right)
            else {
                return at;
            };
            if self.summary(inner).0 > self.summary(outer).0 {
                let child = self.rotate_right(right);
                self.set_right(at, child);
            }
            return self.rotate_left(at);
        }
        self.refresh(at);
        at
    }

    fn rotate_left(&mut self, at: u32) -> u32 {
        let Some(up) = self.node(at).map(|node| node.right) else {
            return at;
        };
        let Some(inner) = self.node(up).map(|node| node.left) else {
            return at;
        };
        self.set_right(at, inner);
        self.refresh(at);
        self.set_left(up, at);
        self.refresh(up);
        up
    }

    fn rotate_right(&mut self, at: u32) -> u32 {
        let Some(up) = self.node(at).map(|node| node.left) else {
            return at;
        };
        let Some(inner) = self.node(up).map(|node| node.right) else {
            return at;
        };
        self.set_left(at, inner);
        self.refresh(at);
        self.set_right(up, at);
        self.refresh(up);
        up
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    impl GapTree {
        /// All gaps in order; checks every rule of the tree on the way.
        fn check(&self) -> Vec<(u64, u64)> {
            let mut all = Vec::new();
            self.check_below(self.root, &mut all);
            assert_eq!(all.len(), self.gaps());
            assert!(
                all.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0),
                "sorted, and never adjacent: {all:?}"
            );
            all
        }

        fn check_below(&self, at: u32, all: &mut Vec<(u64, u64)>) -> (u8, u64, u8) {
            let Some(&node) = self.node(at) else { return (0, 0, 0) };
            let left = self.check_below(node.left, all);
            all.push((node.start, node.len));
            let right = self.check_below(node.right, all);
            assert!(left.0.abs_diff(right.0) <= 1, "balance");
            assert_eq!(node.height, left.0.max(right.0) + 1);
            assert_eq!(node.max_len, node.len.max(left.1).max(right.1));
            assert_eq!(node.order, largest_block(node.start, node.len));
            assert_eq!(node.max_order, node.order.max(left.2).max(right.2));
            (node.height, node.max_len, node.max_order)
        }
    }

    #[test]
    fn the_largest_aligned_block_is_found_in_every_run() {
        for start in 0..64u64 {
            for len in 1..64u64 {
                let holds = |order: u32| {
                    let block = 1u64 << order;
                    start.next_multiple_of(block) + block <= start + len
                };
                let naive = (0..7).rev().find(|&order| holds(order)).expect("a page is a block");
                assert_eq!(u32::from(largest_block(start, len)), naive, "{len} from {start}");
            }
        }
    }

    fn at(page: u64) -> usize {
        usize::try_from(page).expect("small")
    }

    /// The highest place by looking at every page.
    fn naive(free: &[bool], pages: u64, align: u64, last: u64) -> Option<u64> {
        let fits = |first: u64| (first..first + pages).all(|p| free.get(at(p)).is_some_and(|&f| f));
        (0..=last)
            .rev()
            .find(|&first| first % align == 0 && first + pages - 1 <= last && fits(first))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn takes_and_gives_agree_with_a_map_of_pages(
            ops in prop::collection::vec((any::<bool>(), 1u64..20, 0u32..4, 0u64..300), 1..150),
        ) {
            let mut free = std::vec![false; 300];
            free[1..100].fill(true);
            free[120..280].fill(true);
            let mut tree = GapTree::new([Run { first: 1, last: 99 }, Run { first: 120, last: 279 }].into_iter());
            let mut out: Vec<(u64, u64)> = Vec::new();
            for (take, pages, order, number) in ops {
                if take {
                    let align = (1u64 << order).min(pages.next_power_of_two());
                    let got = tree.take(Need::new(pages, align), number, 1).expect("memory");
                    let want = naive(&free, pages, align, number);
                    if align == pages || align == 1 {
                        prop_assert_eq!(got, want);
                    } else {
                        // Other alignments may miss, but never invent a place.
                        prop_assert!(got.is_none() || want.is_some());
                    }
                    if let Some(first) = got {
                        prop_assert!(first % align == 0 && first + pages - 1 <= number);
                        for p in first..first + pages {
                            prop_assert!(std::mem::replace(&mut free[at(p)], false));
                        }
                        out.push((first, pages));
                    }
                } else if !out.is_empty() {
                    let (first, pages) = out.swap_remove(at(number) % out.len());
                    prop_assert!(tree.give(first, pages));
                    prop_assert!(!tree.give(first, pages), "twice");
                    free[at(first)..at(first + pages)].fill(true);
                }
                tree.check();
            }
            for (first, pages) in out {
                prop_assert!(tree.give(first, pages));
            }
            prop_assert_eq!(tree.check(), [(1, 99), (120, 160)]);
        }
    }

    #[test]
    fn giving_back_needs_no_memory() {
        let mut tree = GapTree::new(core::iter::once(Run { first: 0, last: 9999 }));
        let mut out = Vec::new();
        while let Ok(Some(first)) = tree.take(Need::new(2, 1), 9999, 1) {
            out.push(first);
        }
        let capacity = tree.nodes.capacity();
        for first in out.iter().step_by(2).chain(out.iter().skip(1).step_by(2)) {
            assert!(tree.give(*first, 2));
        }
        assert_eq!(tree.nodes.capacity(), capacity);
        assert_eq!(tree.check(), [(0, 10_000)]);
    }

    #[test]
    fn exactly_a_free_place_can_be_taken() {
        let mut tree = GapTree::new(core::iter::once(Run { first: 10, last: 19 }));
        assert_eq!(tree.take_at(12, 3), Ok(true));
        assert_eq!(tree.take_at(14, 1), Ok(false));
        assert_eq!(tree.take_at(18, 3), Ok(false));
        assert_eq!(tree.take_at(9, 1), Ok(false));
        assert_eq!(tree.check(), [(10, 2), (15, 5)]);
        assert!(tree.give(12, 3));
        assert_eq!(tree.check(), [(10, 10)]);
    }
}
