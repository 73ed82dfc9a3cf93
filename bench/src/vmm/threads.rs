//! Two threads on one unit against two threads that share nothing.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::pair::{Comparison, compare_timed, timed};
use crate::row::Row;

use super::{Trace, Unit, host_page, in_one_section, in_own_sections, unit};

const PAGES: u64 = 1024;
/// Lookups before each batch: its unit was not the one of the batch before.
const WARM_UP: u64 = 8192;
/// Turns of a waiting thread before it lets others on its processor.
const SPINS: u64 = 4096;

/// Translates as many addresses as it is told.
type Work = fn(&Unit, &mut Trace, u64);

/// Where two threads wait for each other without sleeping, so that their batches overlap.
#[derive(Default)]
struct Start(AtomicU64);

impl Start {
    fn meet(&self) {
        let before = self.0.fetch_add(1, Ordering::AcqRel);
        // The second of a pair makes the number even.
        let both = (before | 1) + 1;
        let mut turns = 0;
        while self.0.load(Ordering::Acquire) < both {
            turns += 1;
            if turns % SPINS == 0 {
                thread::yield_now();
            } else {
                spin_loop();
            }
        }
    }
}

/// The rows of this benchmark.
pub(super) fn rows(quick: bool) -> Vec<Row> {
    let [Some(shared), Some(one), Some(other)] = [(); 3].map(|()| unit(PAGES, host_page)) else {
        return Vec::new();
    };
    let cases: [(&str, Work); 2] = [
        ("two threads, shared hits", in_one_section),
        ("two threads, a section for each hit", in_own_sections),
    ];
    cases
        .into_iter()
        .map(|(case, work)| {
            let comparison = two_threads(quick, work, &shared, [&one, &other]);
            Row::at_least("B8", case.to_owned(), &comparison, "a unit for each thread", 0.95)
        })
        .collect()
}

/// Both threads on `shared` against each on one of `own`. The slower thread counts.
fn two_threads(quick: bool, work: Work, shared: &Unit, own: [&Unit; 2]) -> Comparison {
    let start = Start::default();
    let run = |unit: &Unit, trace: &mut Trace, turns| {
        work(unit, trace, WARM_UP);
        start.meet();
        timed(|| work(unit, trace, turns))
    };
    let run = &run;
    let [one, other] = own;
    thread::scope(|scope| {
        // In here, so that the second thread sees the channel close and ends.
        let (orders, ordered) = mpsc::channel::<(&Unit, u64)>();
        let (times, other_time) = mpsc::channel::<Duration>();
        scope.spawn(move || {
            let mut trace = Trace::new(PAGES);
            // Half a trace away from the first thread.
            let _ = trace.take(WARM_UP / 2);
            for (unit, turns) in ordered {
                if times.send(run(unit, &mut trace, turns)).is_err() {
                    break;
                }
            }
        });
        let both = |[first, second]: [_; 2], trace: &mut Trace, turns| {
            if orders.send((second, turns)).is_err() {
                return Duration::ZERO;
            }
            let time = run(first, trace, turns);
            other_time.recv().map_or(Duration::ZERO, |other| time.max(other))
        };
        let [mut ours, mut theirs] = [Trace::new(PAGES), Trace::new(PAGES)];
        compare_timed(
            quick,
            &mut |turns| both([shared, shared], &mut ours, turns),
            &mut |turns| both([one, other], &mut theirs, turns),
        )
    })
}
