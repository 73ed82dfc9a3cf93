//! What the walks of many threads add up to, without the threads' meeting.

use iommu_types::sync::{AtomicU64, Ordering};
use vtd_model::{Counters, Lookups, TableReads, WalkReport};

/// Numbers of a [`WalkReport`], the requests and the interrupts.
const WORDS: usize = 19;
/// Where the requests and the interrupts stand.
const REQUESTS: usize = WORDS - 2;
const INTERRUPTS: usize = WORDS - 1;

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
            let (report, [requests, interrupts]) = from_words(words);
            counters.walks.add(&report);
            counters.requests += requests;
            counters.interrupts += interrupts;
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
        self.add(REQUESTS, 1);
        self.add(SECOND_STAGE_READS, reads.into());
        self.add(CONTEXT_HITS, 1);
        self.add(IOTLB_MISSES, 1);
    }

    /// An interrupt request.
    pub(crate) fn interrupt(self, report: &WalkReport) {
        self.add(INTERRUPTS, 1);
        self.add_report(report);
    }
}

/// Where [`to_words`] puts what a direct walk counts.
const SECOND_STAGE_READS: usize = 4;
const CONTEXT_HITS: usize = 7;
const IOTLB_MISSES: usize = 12;

fn to_words(report: &WalkReport) -> [u64; WORDS - 2] {
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
fn from_words(words: [u64; WORDS]) -> (WalkReport, [u64; 2]) {
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
    let [a, b, c, d, e, f, g, h, i, j, requests, interrupts] = lookups;
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
    (report, [requests, interrupts])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_finds_its_place_again() {
        let words = core::array::from_fn(|at| at as u64 + 100);
        let (report, rest) = from_words(words);
        assert_eq!(to_words(&report)[..], words[..REQUESTS]);
        assert_eq!(rest, [words[REQUESTS], words[INTERRUPTS]]);
        assert_eq!(report.reads.second_stage, words[SECOND_STAGE_READS]);
        assert_eq!(report.context.hits, words[CONTEXT_HITS]);
        assert_eq!(report.iotlb.misses, words[IOTLB_MISSES]);
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
    }
}
