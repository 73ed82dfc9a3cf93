//! Timing two things against each other so that the comparison survives a noisy machine.
//!
//! Subject and peer alternate batch by batch in one process, in an order drawn for each pair, so that both see
//! the same clock frequency and the same neighbours. What is reported is the median of the ratios of pairs with
//! a bootstrap interval, never a ratio of two separate runs and never a minimum.

use std::hint::black_box;
use std::sync::Mutex;
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
/// Multiplications of one look at the core's clock, each of which waits for the one before: about 5 µs.
const CLOCK_STEPS: u32 = 4000;
/// Cycles of one of them.
const CLOCK_CYCLES: f64 = 3.0;
/// How far the clock may differ before and after a pair; the pair is measured again if it differs more.
const CLOCK_DRIFT: f64 = 1.1;

/// The core's clock at all pairs so far in GHz, and how many pairs were dropped because it changed.
static CLOCK: Mutex<(Vec<f64>, u64)> = Mutex::new((Vec::new(), 0));

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
    /// The time of one operation of the subject that all but one batch in a thousand stay within.
    pub(crate) ours_p999: f64,
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
    let mut again = pairs;
    while our_times.len() < pairs {
        let before = core_clock();
        let (a, b) = if random.next() & 1 == 0 {
            let a = per_operation(ours, our_operations);
            (a, per_operation(peer, peer_operations))
        } else {
            let b = per_operation(peer, peer_operations);
            (per_operation(ours, our_operations), b)
        };
        // On a machine whose clock never rests, pairs are taken as they come after as many again.
        if steady(before, core_clock()) || again == 0 {
            our_times.push(a);
            peer_times.push(b);
        } else {
            again -= 1;
        }
    }
    summary(&mut our_times, &mut peer_times, &mut random)
}

/// Medians of several sides that take turns, in nanoseconds for one operation.
pub(crate) fn medians(quick: bool, sides: &mut [TimedBatch<'_>]) -> Vec<f64> {
    let operations: Vec<u64> = sides.iter_mut().map(|side| calibrate(side)).collect();
    let mut times = vec![Vec::new(); sides.len()];
    let mut random = Random::new(0x5eed);
    let rounds = if quick { PAIRS.1 } else { PAIRS.0 };
    for _ in 0..rounds {
        // Another one begins each time.
        let first = usize::try_from(random.next() % sides.len().max(1) as u64).unwrap_or(0);
        for turn in 0..sides.len() {
            let at = (first + turn) % sides.len();
            times[at].push(per_operation(sides[at], operations[at]));
        }
    }
    times.iter_mut().map(|times| median(times)).collect()
}

/// The core's clock in GHz: a chain of squares, three cycles each, which neither compilers nor processors shorten. (An
/// addition between them would be folded into its neighbour.)
fn core_clock() -> f64 {
    let start = Instant::now();
    let mut value = black_box(3_u64);
    for _ in 0..CLOCK_STEPS {
        value = value.wrapping_mul(value);
    }
    black_box(value);
    f64::from(CLOCK_STEPS) * CLOCK_CYCLES / (start.elapsed().as_secs_f64() * 1e9)
}

/// Whether two looks at the clock agree; notes them down.
fn steady(before: f64, after: f64) -> bool {
    let steady = before.max(after) <= before.min(after) * CLOCK_DRIFT;
    if let Ok(mut clock) = CLOCK.lock() {
        clock.0.push(before);
        clock.1 += u64::from(!steady);
    }
    steady
}

/// What the core's clock was, in words.
pub(crate) fn clock() -> String {
    let Ok(mut clock) = CLOCK.lock() else {
        return String::new();
    };
    let (looks, dropped) = (clock.0.len(), clock.1);
    let middle = median(&mut clock.0);
    let at = |part: usize| clock.0.get(looks * part / 100).copied().unwrap_or(f64::NAN);
    format!(
        "core clock {middle:.2} GHz ({:.2} to {:.2} in nine of ten pairs); {dropped} of {looks} pairs dropped because it changed",
        at(5),
        at(95)
    )
}

/// What pairs of times, in nanoseconds for one operation, come to. Both lists are as long.
pub(crate) fn summary(ours: &mut [f64], peer: &mut [f64], random: &mut Random) -> Comparison {
    let mut ratios: Vec<f64> = peer.iter().zip(ours.iter()).map(|(peer, ours)| peer / ours).collect();
    Comparison {
        ratio_low: bootstrap_low(&ratios, random),
        ratio: median(&mut ratios),
        ours_ns: median(ours),
        peer_ns: median(peer),
        ours_p999: ours.get(ours.len() * 999 / 1000).copied().unwrap_or(f64::NAN),
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
                black_box(random.next());
            }
        };
        let result = compare(true, &mut |n| spin(n * 100), &mut |n| spin(n * 200));
        assert!((1.5..2.7).contains(&result.ratio), "{result:?}");
    }
}
