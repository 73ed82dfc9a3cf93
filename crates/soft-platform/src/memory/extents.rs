//! Free runs of 4 KiB pages, ordered by page number.

use std::collections::BTreeMap;

/// A set of free pages as maximal runs: first page number → number of pages.
///
/// Page numbers are absolute (address / 4 KiB). Runs never touch each other, so the cost of every operation
/// depends on how fragmented the memory is and not on how much of it there is.
#[derive(Debug, Default)]
pub(super) struct Extents {
    runs: BTreeMap<u64, u64>,
    pages: u64,
}

impl Extents {
    /// `count` free pages from page `first`.
    pub(super) fn new(first: u64, count: u64) -> Self {
        let mut extents = Self::default();
        extents.give(first, count);
        extents
    }

    /// How many pages are free.
    pub(super) fn free_pages(&self) -> u64 {
        self.pages
    }

    /// Removes whatever is free of the pages `first..=last`.
    pub(super) fn carve(&mut self, first: u64, last: u64) {
        // Runs that overlap start at or before `last`; collect first, because the map changes below.
        let hit: Vec<(u64, u64)> = self
            .runs
            .range(..=last)
            .rev()
            .map(|(&start, &count)| (start, count))
            .take_while(|&(start, count)| start + (count - 1) >= first)
            .collect();
        for (start, count) in hit {
            self.remove(start);
            let end = start + (count - 1);
            if start < first {
                self.give(start, first - start);
            }
            if end > last {
                self.give(last + 1, end - last);
            }
        }
    }

    /// Takes `count` adjacent pages from as far down as possible, on a multiple of `align` pages, all of them at or below
    /// page `last`.
    pub(super) fn take_low(&mut self, count: u64, first: u64, last: u64, align: u64) -> Option<u64> {
        // The run that reaches over `first` from below comes before those that start inside.
        let from = self.runs.range(..=first).next_back().map_or(first, |(&start, _)| start);
        let (start, run, at) = self.runs.range(from..).find_map(|(&start, &run)| {
            let at = start.max(first).checked_next_multiple_of(align)?;
            let end = (start + (run - 1)).min(last);
            (at <= end && end - at >= count - 1).then_some((start, run, at))
        })?;
        self.split(start, run, at, count);
        Some(at)
    }

    /// Takes `count` adjacent pages (a power of two), naturally aligned, from as far up as possible, all of
    /// them at or below page `last`.
    pub(super) fn take_high_aligned(&mut self, count: u64, last: u64) -> Option<u64> {
        let (start, run, at) = self.runs.range(..=last).rev().find_map(|(&start, &run)| {
            let end = (start + (run - 1)).min(last);
            // The highest aligned block that ends at or below `end`.
            let at = (end + 1).checked_sub(count)? & !(count - 1);
            (at >= start).then_some((start, run, at))
        })?;
        self.split(start, run, at, count);
        Some(at)
    }

    /// Gives `count` pages from page `first` back; they must not be free.
    pub(super) fn give(&mut self, first: u64, count: u64) {
        if count == 0 {
            return;
        }
        self.pages += count;
        let (mut start, mut run) = (first, count);
        if let Some((&before, &length)) = self.runs.range(..first).next_back()
            && before + length == first
        {
            self.runs.remove(&before);
            (start, run) = (before, run + length);
        }
        if let Some(length) = self.runs.remove(&(first + count)) {
            run += length;
        }
        self.runs.insert(start, run);
    }

    fn remove(&mut self, start: u64) {
        if let Some(run) = self.runs.remove(&start) {
            self.pages -= run;
        }
    }

    /// Cuts `count` pages at `at` out of the run `start`/`run`.
    fn split(&mut self, start: u64, run: u64, at: u64, count: u64) {
        self.remove(start);
        self.give(start, at - start);
        self.give(at + count, (start + run) - (at + count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_given_back_join_their_neighbours() {
        let mut free = Extents::new(0x100, 0x100);
        let a = free.take_low(0x10, 0, u64::MAX, 1).expect("space");
        let b = free.take_low(0x10, 0, u64::MAX, 1).expect("space");
        assert_eq!((a, b), (0x100, 0x110));
        free.give(a, 0x10);
        free.give(b, 0x10);
        assert_eq!(free.free_pages(), 0x100);
        assert_eq!(
            free.take_low(0x100, 0, u64::MAX, 1),
            Some(0x100),
            "one run again, not three pieces"
        );
    }

    #[test]
    fn aligned_blocks_come_from_the_top_below_the_limit() {
        let mut free = Extents::new(0x101, 0x1ff);
        assert_eq!(free.take_high_aligned(1, u64::MAX), Some(0x2ff));
        assert_eq!(free.take_high_aligned(0x10, u64::MAX), Some(0x2e0));
        assert_eq!(free.take_high_aligned(0x80, 0x1ff), Some(0x180));
        assert_eq!(
            free.take_high_aligned(0x100, 0x1ff),
            None,
            "0x100 is not free and 0x180 is taken"
        );
    }

    #[test]
    fn carved_pages_are_not_handed_out() {
        let mut free = Extents::new(0, 0x40);
        free.carve(0x10, 0x1f);
        free.carve(0x3f, 0x100);
        assert_eq!(free.free_pages(), 0x2f);
        assert_eq!(free.take_low(0x11, 0, u64::MAX, 1), Some(0x20));
        assert_eq!(free.take_low(0x10, 0, u64::MAX, 1), Some(0));
        assert_eq!(free.take_low(0x10, 0, u64::MAX, 1), None);
    }

    #[test]
    fn a_floor_is_respected_inside_a_run() {
        let mut free = Extents::new(0, 0x40);
        assert_eq!(free.take_low(4, 0x21, u64::MAX, 1), Some(0x21));
        assert_eq!(free.take_low(4, 0, 2, 1), None);
        assert_eq!(free.take_low(3, 0, 2, 1), Some(0));
    }
}
