//! Timing two things against each other so that the comparison survives a noisy machine.
//!
//! Subject and peer alternate batch by batch in one process, in an order drawn for each pair, so that both see
//! the same clock frequency and the same neighbours. What is reported is the median of the ratios of pairs with
//! a bootstrap interval, never a ratio of two separate runs and never a minimum.

use std::time::{Duration, Instant};

/// One side of a comparison: runs `operations` operations.
pub(crate) type Batch<'a> = &'a mut dyn FnMut(u64);
/// The same for a side that has something to prepare: tells how long the operations took without it.
pub(crate) type TimedBatch<'a> = &'a mut dyn FnMut(u64) -> Duration;

/// How long a batch should take: long against the cost of reading the clock.
const BATCH: Duration = Duration::from_micros(80);
/// Pairs of a full measurement, and of a smoke test.
const PAIRS: (usize, usize) = (300, 20);
/// Resamples of the bootstrap.
const RESAMPLES: usize = 1000;

/// What one comparison came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Comparison {
    /// Median time of one operation of the subject, in nanoseconds.
    pub(crate) ours_ns: f64,
    /// Median time of one operation of the peer, in nanoseconds.
    pub(crate) peer_ns: f64,
    /// Median over pairs of peer / ours: above 1, ours is faster.
    pub(crate) ratio: f64,
    /// Lower end of the 95 % bootstrap interval of the ratio.
    pub(crate) ratio_low: f64,
}

/// Compares `ours` with `peer`.
pub(crate) fn compare(quick: bool, ours: Batch<'_>, peer: Batch<'_>) -> Comparison {
    compare_timed(quick, &mut |turns| timed(|| ours(turns)), &mut |turns| {
        timed(|| peer(turns))
    })
}

/// How long `work` takes.
pub(crate) fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Compares sides that read the clock themselves.
pub(crate) fn compare_timed(quick: bool, ours: TimedBatch<'_>, peer: TimedBatch<'_>) -> Comparison {
    let our_operations = calibrate(ours);
    let peer_operations = calibrate(peer);
    let pairs = if quick { PAIRS.1 } else { PAIRS.0 };
    let mut random = Random::new(0x5eed);
    let (mut our_times, mut peer_times) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let (a, b) = if random.next() & 1 == 0 {
            let a = per_operation(ours, our_operations);
            (a, per_operation(peer, peer_operations))
        } else {
            let b = per_operation(peer, peer_operations);
            (per_operation(ours, our_operations), b)
        };
        our_times.push(a);
        peer_times.push(b);
    }
    summary(&mut our_times, &mut peer_times, &mut random)
}

/// What pairs of times, in nanoseconds for one operation, come to. Both lists are as long.
pub(crate) fn summary(ours: &mut [f64], peer: &mut [f64], random: &mut Random) -> Comparison {
    let mut ratios: Vec<f64> = peer.iter().zip(ours.iter()).map(|(peer, ours)| peer / ours).collect();
    Comparison {
        ratio_low: bootstrap_low(&ratios, random),
        ratio: median(&mut ratios),
        ours_ns: median(ours),
        peer_ns: median(peer),
    }
}

/// How many operations fill a batch, after a warm-up.
fn calibrate(side: TimedBatch<'_>) -> u64 {
    let mut operations = 1;
    loop {
        let took = side(operations);
        if took >= BATCH / 2 || operations >= 1 << 24 {
            let scale = BATCH.as_secs_f64() / took.as_secs_f64().max(1e-9);
            // A batch holds at least one operation whatever it takes.
            return scaled(operations, scale).max(1);
        }
        operations *= 2;
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an estimate of a batch size, far below the limits of either type"
)]
fn scaled(operations: u64, by: f64) -> u64 {
    (operations as f64 * by.min(16.0)) as u64
}

#[expect(clippy::cast_precision_loss, reason = "batch sizes stay far below 2^52")]
fn per_operation(side: TimedBatch<'_>, operations: u64) -> f64 {
    side(operations).as_secs_f64() * 1e9 / operations as f64
}

/// The value in the middle.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The 2.5 % quantile of the medians of resampled ratios.
fn bootstrap_low(ratios: &[f64], random: &mut Random) -> f64 {
    let count = ratios.len() as u64;
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut sample: Vec<f64> = ratios
                .iter()
                .filter_map(|_| ratios.get(usize::try_from(random.next() % count).ok()?).copied())
                .collect();
            median(&mut sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    medians.get(RESAMPLES / 40).copied().unwrap_or(f64::NAN)
}

/// A small generator with a fixed seed (xorshift64), so that every run draws the same numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A generator that starts at `seed`, which must not be 0.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_does_twice_the_work_gives_a_ratio_near_two() {
        let spin = |turns: u64| {
            let mut random = Random::new(7);
            for _ in 0..turns {
                std::hint::black_box(random.next());
            }
        };
        let result = compare(true, &mut |n| spin(n * 100), &mut |n| spin(n * 200));
        assert!((1.5..2.7).contains(&result.ratio), "{result:?}");
    }
}
