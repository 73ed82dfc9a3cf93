//! Arbitrary bytes against everything that reads bytes from outside, for as long as there is time.
//!
//! `PORTCULLIS_FUZZ_SECONDS` is the time for each target; half a second without it. The generator is seeded, and
//! the seed is printed: `PORTCULLIS_FUZZ_SEED` repeats a run. A target fails by panicking, by an endless loop (the
//! whole test has a limit of its own where it is run), or by breaking what it asserts.

#![expect(clippy::expect_used, reason = "a test reports by panicking, its helpers too")]

mod firmware;
mod host;
mod unit;

use std::time::{Duration, Instant};

/// A generator with a printed seed (xorshift64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[2]
    }
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }
    /// A number whose interesting values are likely: small, one bit, near the top, anything.
    pub(crate) fn word(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(16),
            1 => 1 << self.below(64),
            2 => u64::MAX - self.below(0x2000),
            _ => self.next(),
        }
    }
}

/// Runs `target` until the time is over; says how often.
pub(crate) fn fuzz(name: &str, mut target: impl FnMut(&mut Random)) {
    let number = |variable: &str| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("PORTCULLIS_FUZZ_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.subsec_nanos().into())
    });
    println!("{name}: PORTCULLIS_FUZZ_SEED={seed}");
    let time = number("PORTCULLIS_FUZZ_SECONDS").map_or(Duration::from_millis(500), Duration::from_secs);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (start, mut runs) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        target(&mut random);
        runs += 1;
    }
    println!("fuzzed: {runs} runs of {name}");
    assert!(runs > 0);
}
