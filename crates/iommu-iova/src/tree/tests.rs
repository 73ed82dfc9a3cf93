//! The tree against a map of pages, and its own rules.

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
