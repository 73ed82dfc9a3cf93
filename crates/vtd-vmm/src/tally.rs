//! What the walks of many threads add up to, without the threads' meeting.

use iommu_types::sync::{AtomicU64, Ordering};
use vtd_model::{Counters, Lookups, TableReads, WalkReport};

/// Numbers of a [`WalkReport`].
const REPORT: usize = 17;
/// Where the requests and the interrupts stand.
const REQUESTS: usize = REPORT;
const INTERRUPTS: usize = REPORT + 1;
/// Where direct requests stand, by the entries that they read less one.
const DIRECT: usize = REPORT + 2;
/// Entries that a direct request reads at most.
const LEVELS: usize = 5;
const WORDS: usize = DIRECT + LEVELS;

/// The numbers of one slot.
#[derive(Debug)]
#[repr(align(128))]
struct Sums([AtomicU64; WORDS]);

impl Default for Sums {
    fn default() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }
}

/// One set of numbers for each slot of [`crate::protocol::Readers`], and one for those who share.
#[derive(Debug)]
pub(crate) struct Tallies {
    own: Box<[Sums]>,
    shared: Sums,
}

impl Tallies {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            own: (0..slots).map(|_| Sums::default()).collect(),
            shared: Sums::default(),
        }
    }

    /// Bytes that these take on the heap with `slots` slots.
    pub(crate) const fn memory_bound(slots: usize) -> usize {
        slots.saturating_mul(size_of::<Sums>())
    }

    /// Counts for whoever is in `slot`; nobody else is in it.
    pub(crate) fn at(&self, slot: Option<usize>) -> Tally<'_> {
        match slot.and_then(|slot| self.own.get(slot)) {
            Some(sums) => Tally { sums, alone: true },
            None => Tally {
                sums: &self.shared,
                alone: false,
            },
        }
    }

    /// Adds everything to `counters`.
    pub(crate) fn add_to(&self, counters: &mut Counters) {
        for Sums(words) in self.own.iter().chain([&self.shared]) {
            let words = words.each_ref().map(|word| word.load(Ordering::Relaxed));
            let (report, [requests, interrupts, direct @ ..]) = from_words(words);
            counters.walks.add(&report);
            counters.requests += requests;
            counters.interrupts += interrupts;
            for (reads, count) in (1u64..).zip(direct) {
                counters.requests += count;
                counters.walks.context.hits += count;
                counters.walks.iotlb.misses += count;
                counters.walks.reads.second_stage += reads * count;
            }
        }
    }
}

/// Where a reader counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally<'t> {
    sums: &'t Sums,
    /// Nobody else counts here, so no locked addition is needed.
    alone: bool,
}

impl Tally<'_> {
    #[inline]
    fn add(self, at: usize, count: u64) {
        let Sums(words) = self.sums;
        let Some(word) = words.get(at).filter(|_| count != 0) else {
            return;
        };
        if self.alone {
            // Whoever was in the slot before left it by an atomic operation that this reader's entering follows.
            word.store(word.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
        } else {
            word.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn add_report(self, report: &WalkReport) {
        for (at, count) in to_words(report).into_iter().enumerate() {
            self.add(at, count);
        }
    }

    /// A memory request that was walked for.
    pub(crate) fn request(self, report: &WalkReport) {
        self.add(REQUESTS, 1);
        self.add_report(report);
    }

    /// A memory request that was walked for with its context entry known, by `reads` second-stage entries.
    #[inline]
    pub(crate) fn direct_request(self, reads: u8) {
        self.add(DIRECT - 1 + usize::from(reads), 1);
    }

    /// An interrupt request.
    pub(crate) fn interrupt(self, report: &WalkReport) {
        self.add(INTERRUPTS, 1);
        self.add_report(report);
    }
}

fn to_words(report: &WalkReport) -> [u64; REPORT] {
    let WalkReport {
        reads,
        context,
        pasid,
        iotlb,
        paging,
        interrupt,
    } = report;
    [
        reads.root,
        reads.context,
        reads.pasid_directory,
        reads.pasid,
        reads.second_stage,
        reads.first_stage,
        reads.interrupt,
        context.hits,
        context.misses,
        pasid.hits,
        pasid.misses,
        iotlb.hits,
        iotlb.misses,
        paging.hits,
        paging.misses,
        interrupt.hits,
        interrupt.misses,
    ]
}

/// The inverse of [`to_words`], and the words behind it.
fn from_words(words: [u64; WORDS]) -> (WalkReport, [u64; WORDS - REPORT]) {
    let [
        root,
        context,
        pasid_directory,
        pasid,
        second_stage,
        first_stage,
        interrupt,
        lookups @ ..,
    ] = words;
    let reads = TableReads {
        root,
        context,
        pasid_directory,
        pasid,
        second_stage,
        first_stage,
        interrupt,
    };
    let [a, b, c, d, e, f, g, h, i, j, rest @ ..] = lookups;
    let [context, pasid, iotlb, paging, interrupt] =
        [(a, b), (c, d), (e, f), (g, h), (i, j)].map(|(hits, misses)| Lookups { hits, misses });
    let report = WalkReport {
        reads,
        context,
        pasid,
        iotlb,
        paging,
        interrupt,
    };
    (report, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_finds_its_place_again() {
        let words = core::array::from_fn(|at| at as u64 + 100);
        let (report, rest) = from_words(words);
        assert_eq!(to_words(&report)[..], words[..REQUESTS]);
        assert_eq!(rest[..], words[REQUESTS..]);
    }

    #[test]
    fn slots_of_their_own_and_the_shared_one_add_up() {
        let tallies = Tallies::new(2);
        for slot in [Some(0), Some(1), Some(1), Some(7), None] {
            tallies.at(slot).direct_request(4);
        }
        let mut counters = Counters::default();
        tallies.add_to(&mut counters);
        assert_eq!((counters.requests, counters.walks.reads.second_stage), (5, 20));
        assert_eq!((counters.walks.context.hits, counters.walks.iotlb.misses), (5, 5));
    }
}
