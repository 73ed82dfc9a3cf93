//! B5: two threads on one allocator.
//!
//! Both start at a barrier and do the same number of operations; what counts is the slower one. The machine may have no
//! second processor to spare at that moment, so medians of many short runs are taken, alternating with the peer's.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::Outcome;
use super::linux::Linux;
use super::sides::{LockedBuddy, LockedFirstMatch, Private, Side, disjoint, ours};
use crate::pair::{Comparison, Random, summary};
use crate::peers::{Channel, pin};
use crate::row::Row;

/// Operations of each thread in one run.
const OPERATIONS: u64 = 20_000;

/// Runs `work` on `threads` threads at once; the time of the slowest, for one operation.
fn together<S: Side>(
    side: &S,
    threads: usize,
    operations: u64,
    work: impl Fn(&S, &mut S::Core, usize, &mut dyn FnMut()) -> Option<Vec<S::Range>> + Sync,
) -> Outcome<f64> {
    let barrier = Barrier::new(threads);
    let results: Vec<Option<(Duration, Vec<S::Range>)>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let (barrier, work) = (&barrier, &work);
                scope.spawn(move || {
                    pin(thread);
                    let mut core = side.core();
                    let mut start = Instant::now();
                    let live = work(side, &mut core, thread, &mut || {
                        barrier.wait();
                        start = Instant::now();
                    })?;
                    Some((start.elapsed(), live))
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().ok().flatten()).collect()
    });
    let mut slowest = Duration::ZERO;
    let mut live = Vec::new();
    for result in results {
        let (took, ranges) = result.ok_or("a thread got no range")?;
        slowest = slowest.max(took);
        live.extend(ranges);
    }
    disjoint::<S>(live.iter())?;
    let mut core = side.core();
    live.into_iter().for_each(|range| side.give(&mut core, range));
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    Ok(slowest.as_secs_f64() * 1e9 / operations as f64)
}

/// A ring of each thread's own: the oldest range goes, a new one comes.
fn rings<S: Side>(side: &S, threads: usize, live: usize, pages: u64, operations: u64) -> Outcome<f64> {
    together(side, threads, operations, |side, core, _, start| {
        let mut slots: Vec<Option<S::Range>> = (0..live).map(|_| side.take(core, pages)).collect();
        let mut turn = |slots: &mut [Option<S::Range>], from: usize, count: usize| {
            let mut at = from;
            for _ in 0..count {
                if let Some(slot) = slots.get_mut(at) {
                    if let Some(range) = slot.take() {
                        side.give(core, range);
                    }
                    *slot = side.take(core, pages);
                }
                at = if at + 1 == live { 0 } else { at + 1 };
            }
        };
        turn(&mut slots, 0, 2 * live);
        start();
        turn(&mut slots, 0, usize::try_from(operations).ok()?);
        slots.into_iter().collect()
    })
}

/// One thread allocates, the other frees what it is sent through a ring of 1,024 slots. The cost of the ring alone is
/// taken off.
fn handed_over<S: Side>(side: &S, operations: u64) -> Outcome<f64> {
    let run = |allocate: bool| -> Outcome<f64> {
        let mut ring: Channel<Option<S::Range>> = Channel::new(1024);
        let (mut send, mut receive) = ring.ends();
        let wait = Barrier::new(2);
        let took = std::thread::scope(|scope| {
            let wait = &wait;
            let other = scope.spawn(move || {
                pin(1);
                let mut core = side.core();
                wait.wait();
                for _ in 0..operations {
                    if let Some(Some(range)) = receive.receive() {
                        side.give(&mut core, range);
                    }
                }
            });
            let mut core = side.core();
            wait.wait();
            let start = Instant::now();
            for _ in 0..operations {
                send.send(if allocate { side.take(&mut core, 1) } else { None });
            }
            other.join().map(|()| start.elapsed()).map_err(|_| "a thread died")
        })?;
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        Ok(took.as_secs_f64() * 1e9 / operations as f64)
    };
    Ok((run(true)? - run(false)?).max(0.0))
}

/// Allocates `count` pages, then frees all of them, on each thread.
fn burst<S: Side>(side: &S, threads: usize, count: usize) -> Outcome<f64> {
    let rounds = 4;
    together(side, threads, (count * rounds) as u64, |side, core, _, start| {
        let mut live: Vec<S::Range> = Vec::with_capacity(count);
        let mut round = |live: &mut Vec<S::Range>| {
            live.extend((0..count).filter_map(|_| side.take(core, 1)));
            live.drain(..).for_each(|range| side.give(core, range));
        };
        round(&mut live);
        start();
        (0..rounds).for_each(|_| round(&mut live));
        Some(live)
    })
}

/// Alternates runs of two sides, in an order drawn for each pair.
fn alternate(
    runs: usize,
    mut ours: impl FnMut() -> Outcome<f64>,
    mut peer: impl FnMut() -> Outcome<f64>,
) -> Outcome<Comparison> {
    let mut random = Random::new(0x5eed);
    let (mut ours_ns, mut peer_ns) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let ours_first = random.next() & 1 == 0;
        if ours_first {
            ours_ns.push(ours()?);
        }
        peer_ns.push(peer()?);
        if !ours_first {
            ours_ns.push(ours()?);
        }
    }
    Ok(summary(&mut ours_ns, &mut peer_ns, &mut random))
}

/// B5.
pub(super) fn rows(quick: bool) -> Outcome<Vec<Row>> {
    let runs = if quick { 3 } else { 31 };
    let operations = if quick { OPERATIONS / 10 } else { OPERATIONS };
    let mut rows = Vec::new();
    for live in [64, 512, 4096] {
        let (side, linux) = (ours()?, Linux::new(true));
        let comparison = alternate(
            runs,
            || rings(&side, 2, live, 1, operations),
            || rings(&linux, 2, live, 1, operations),
        )?;
        let case = format!("(a) 2 threads, 1 page, {live} live each");
        rows.push(Row::at_most("B5", case, &comparison, "Linux-shaped", 8.0));
        let alone = alternate(
            runs,
            || rings(&side, 2, live, 1, operations),
            || rings(&side, 1, live, 1, operations),
        )?;
        // Twice the work in the same time would be 2.
        let speed_up = 2.0 * alone.ratio;
        let case = format!("(a) speed-up of 2 threads, {live} live each");
        rows.push(Row::speed_up("B5", case, speed_up, 1.9));
    }
    for live in [64, 512, 4096] {
        let (side, buddy) = (ours()?, LockedBuddy::new());
        let comparison = alternate(
            runs,
            || rings(&side, 2, live, 1, operations),
            || rings(&buddy, 2, live, 1, operations),
        )?;
        let case = format!("(a) 2 threads, 1 page, {live} live each");
        rows.push(Row::reported(
            "B5",
            case.clone(),
            &comparison,
            "buddy_system_allocator, locked",
        ));
        let floor = alternate(
            runs,
            || rings(&side, 2, live, 1, operations),
            || rings(&Private, 2, live, 1, operations),
        )?;
        let limit = format!("{case}, limit");
        rows.push(Row::within("B5", limit, &floor, "an array of each thread", 3.0));
        if live == 64 {
            // It looks at every range under its lock: a tenth of the operations shows it.
            let first = LockedFirstMatch::new()?;
            let comparison = alternate(
                runs,
                || rings(&side, 2, live, 1, operations),
                || rings(&first, 2, live, 1, operations / 10),
            )?;
            rows.push(Row::reported("B5", case, &comparison, "vm-allocator, locked"));
        }
    }
    for live in [64, 512, 4096] {
        let (side, linux) = (ours()?, Linux::new(true));
        // The peer scans under its lock: a tenth of the operations shows it.
        let comparison = alternate(
            runs,
            || rings(&side, 2, live, 64, operations),
            || rings(&linux, 2, live, 64, operations / 10),
        )?;
        let case = format!("(b) 2 threads, 64 pages, {live} live each");
        rows.push(Row::at_most("B5", case, &comparison, "Linux-shaped", 40.0).and_at_least(&comparison, 60.0));
    }
    let (side, linux) = (ours()?, Linux::new(true));
    let comparison = alternate(
        runs,
        || handed_over(&side, operations),
        || handed_over(&linux, operations),
    )?;
    let case = "(c) one allocates, the other frees, sending taken off".to_owned();
    rows.push(Row::at_most("B5", case, &comparison, "Linux-shaped", 25.0));
    for count in [4000, 20_000] {
        for threads in [1, 2] {
            let (side, linux) = (ours()?, Linux::new(true));
            let comparison = alternate(
                runs.min(11),
                || burst(&side, threads, count),
                || burst(&linux, threads, count),
            )?;
            let case = format!("(d) {count} allocated, then freed, {threads} threads");
            let row = Row::at_most("B5", case, &comparison, "Linux-shaped", 20.0);
            rows.push(match count {
                20_000 => row.and_at_least(&comparison, 3.0),
                _ => row,
            });
        }
    }
    Ok(rows)
}
