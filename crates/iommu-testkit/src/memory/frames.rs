//! Which frames are free, which are out, and what went wrong with them.

use std::collections::BTreeMap;

use iommu_types::{FrameRequest, HostPhys, PAGE_SHIFT};

use super::pages::Region;

/// A rule of [`iommu_types::TableMemory`] that the code under test broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// A frame came back that is not out: it was freed before.
    FreedTwice {
        /// Where the frame starts.
        base: HostPhys,
    },
    /// A frame came back that this memory never handed out in that size.
    NotHandedOut {
        /// Where the frame starts.
        base: HostPhys,
        /// Base-2 logarithm of its pages.
        order: u8,
    },
    /// A word of a freed frame no longer held the poison when the frame was handed out again.
    WrittenAfterFree {
        /// The changed word.
        at: HostPhys,
        /// What it held.
        found: u64,
    },
}

/// How many table frames were handed out and came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FrameCounters {
    /// Frames handed out so far.
    pub allocated: u64,
    /// Frames that came back.
    pub freed: u64,
    /// Frames that are out now.
    pub live: u64,
    /// Most frames that were ever out at once.
    pub peak: u64,
    /// Requests that were refused, by lack of memory or on purpose.
    pub refused: u64,
}

/// The allocator's books. All numbers are page numbers.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// For each region, free runs: first page → pages. Runs never touch each other.
    free: Vec<BTreeMap<u64, u64>>,
    /// Frames that are out: first page → order.
    live: BTreeMap<u64, u8>,
    pub(super) counters: FrameCounters,
    pub(super) violations: Vec<Violation>,
    /// Numbers of coming allocations that fail; `attempts` counts up to them.
    fail_at: Vec<u64>,
    fail_from: Option<u64>,
    attempts: u64,
}

impl Frames {
    pub(super) fn new(regions: &[Region]) -> Self {
        let run = |r: &Region| {
            if r.frames {
                BTreeMap::from([(r.first_page, r.pages)])
            } else {
                BTreeMap::new()
            }
        };
        Self {
            free: regions.iter().map(run).collect(),
            ..Self::default()
        }
    }

    pub(super) fn fail_nth(&mut self, n: u64) {
        self.fail_at.push(self.attempts.saturating_add(n));
    }

    pub(super) fn fail_after(&mut self, n: u64) {
        self.fail_from = Some(self.attempts.saturating_add(n));
    }

    pub(super) fn heal(&mut self) {
        self.fail_at.clear();
        self.fail_from = None;
    }

    pub(super) fn live(&self) -> impl Iterator<Item = (HostPhys, u8)> + '_ {
        self.live
            .iter()
            .map(|(page, order)| (HostPhys::new(page << PAGE_SHIFT), *order))
    }

    /// Takes the highest free frame that satisfies `request`: highest, so that code that forgets its limit
    /// gets an address beyond it. The preferred node comes first.
    pub(super) fn take(&mut self, regions: &[Region], request: FrameRequest) -> Option<u64> {
        let attempt = self.attempts;
        self.attempts += 1;
        let refused = self.fail_at.contains(&attempt) || self.fail_from.is_some_and(|from| attempt >= from);
        let found = if refused { None } else { self.find(regions, request) };
        let Some((region, first)) = found else {
            self.counters.refused += 1;
            return None;
        };
        self.carve(region, first, 1 << request.order);
        self.live.insert(first, request.order);
        self.counters.allocated += 1;
        self.counters.live += 1;
        self.counters.peak = self.counters.peak.max(self.counters.live);
        Some(first)
    }

    fn find(&self, regions: &[Region], request: FrameRequest) -> Option<(usize, u64)> {
        let pages = 1u64.checked_shl(u32::from(request.order)).filter(|p| *p != 0)?;
        // Pages wholly at or below the limit end here (exclusive).
        let limit = if request.last == HostPhys::MAX {
            1 << (64 - PAGE_SHIFT)
        } else {
            (request.last.raw() + 1) >> PAGE_SHIFT
        };
        let best = |wanted: bool| {
            let mut best: Option<(usize, u64)> = None;
            for (index, (region, free)) in regions.iter().zip(&self.free).enumerate() {
                if request.node.is_some() && (region.node == request.node) != wanted {
                    continue;
                }
                for (first, length) in free.iter().rev() {
                    let end = (first + length).min(limit);
                    let Some(at) = end.checked_sub(pages).map(|at| at & !(pages - 1)) else {
                        continue;
                    };
                    if at >= *first {
                        if best.is_none_or(|(_, other)| at > other) {
                            best = Some((index, at));
                        }
                        break;
                    }
                }
            }
            best
        };
        best(true).or_else(|| best(false))
    }

    fn carve(&mut self, region: usize, at: u64, pages: u64) {
        let Some(free) = self.free.get_mut(region) else { return };
        let Some((&first, &length)) = free.range(..=at).next_back() else {
            return;
        };
        free.remove(&first);
        if at > first {
            free.insert(first, at - first);
        }
        let (end, taken_end) = (first + length, at + pages);
        if end > taken_end {
            free.insert(taken_end, end - taken_end);
        }
    }

    /// Books a frame's return; `false` (and a violation) if it is not out.
    pub(super) fn give_back(&mut self, regions: &[Region], first: u64, order: u8) -> bool {
        let base = HostPhys::new(first << PAGE_SHIFT);
        if self.live.get(&first) != Some(&order) {
            let in_free_run = self.free.iter().any(|free| {
                free.range(..=first)
                    .next_back()
                    .is_some_and(|(start, len)| first < start + len)
            });
            self.violations.push(if in_free_run {
                Violation::FreedTwice { base }
            } else {
                Violation::NotHandedOut { base, order }
            });
            return false;
        }
        self.live.remove(&first);
        self.counters.freed += 1;
        self.counters.live -= 1;
        let Some(index) = regions.iter().position(|r| r.contains(first)) else {
            return false;
        };
        let Some(free) = self.free.get_mut(index) else {
            return false;
        };
        let (mut start, mut end) = (first, first + (1 << order));
        if let Some((&before, &length)) = free.range(..start).next_back()
            && before + length == start
        {
            free.remove(&before);
            start = before;
        }
        if let Some(length) = free.remove(&end) {
            end += length;
        }
        free.insert(start, end - start);
        true
    }
}
