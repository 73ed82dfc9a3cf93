//! Time that passes only when it is looked at.

use std::fmt;

use iommu_types::Clock;
use iommu_types::sync::{AtomicU64, Ordering};

/// A clock for tests: each look and each turn of a polling loop moves it by a fixed amount.
///
/// No test that uses it can hang on real time, and every time-out is reached after a number of turns that is
/// known beforehand. The hook, run in each [`Clock::relax`], is where a model takes its step.
pub struct TestClock<H = fn()> {
    now: AtomicU64,
    per_look: u64,
    per_turn: u64,
    turns: AtomicU64,
    hook: H,
}

impl TestClock {
    /// A clock at 0 ns that moves 1 µs with each look and 10 µs with each turn.
    #[must_use]
    pub fn new() -> Self {
        Self::with_hook(|| {})
    }
}

impl Default for TestClock {
    fn default() -> Self {
        Self::new()
    }
}

impl<H: Fn()> TestClock<H> {
    /// As [`TestClock::new`], with `hook` run in each turn of a polling loop.
    #[must_use]
    pub const fn with_hook(hook: H) -> Self {
        Self {
            now: AtomicU64::new(0),
            per_look: 1_000,
            per_turn: 10_000,
            turns: AtomicU64::new(0),
            hook,
        }
    }

    /// Moves `look` nanoseconds with each look and `turn` with each turn.
    #[must_use]
    pub fn advancing(mut self, look: u64, turn: u64) -> Self {
        self.per_look = look;
        self.per_turn = turn;
        self
    }

    /// Lets `ns` nanoseconds pass.
    pub fn advance(&self, ns: u64) {
        self.now.fetch_add(ns, Ordering::AcqRel);
    }

    /// How often a polling loop turned.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Acquire)
    }
}

impl<H: Fn()> Clock for TestClock<H> {
    fn now_ns(&self) -> u64 {
        self.now.fetch_add(self.per_look, Ordering::AcqRel)
    }

    fn relax(&self) {
        self.now.fetch_add(self.per_turn, Ordering::AcqRel);
        self.turns.fetch_add(1, Ordering::AcqRel);
        (self.hook)();
    }
}

impl<H> fmt::Debug for TestClock<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestClock")
            .field("now", &self.now)
            .field("per_look", &self.per_look)
            .field("per_turn", &self.per_turn)
            .field("turns", &self.turns)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn time_passes_by_looking_and_by_turning() {
        let clock = TestClock::new().advancing(3, 100);
        assert_eq!((clock.now_ns(), clock.now_ns()), (0, 3));
        clock.relax();
        assert_eq!(clock.now_ns(), 106);
        clock.advance(1_000);
        assert_eq!((clock.now_ns(), clock.turns()), (1_109, 1));
    }

    #[test]
    fn each_turn_runs_the_hook() {
        let steps = Cell::new(0);
        let clock = TestClock::with_hook(|| steps.set(steps.get() + 1));
        clock.relax();
        clock.relax();
        assert_eq!(steps.get(), 2);
    }
}
