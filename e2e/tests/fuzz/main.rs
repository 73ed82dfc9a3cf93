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

use iommu_testkit::Random;

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
