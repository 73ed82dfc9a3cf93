//! Waits that end.

use iommu_types::Clock;

/// How long the driver waits for hardware before it gives up, in nanoseconds.
///
/// Giving up is never silent: it poisons the unit ([`crate::Health`]) and the error says what may still be
/// reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a global command to show in the status register, and for a previous owner's queue to drain.
    pub command_ns: u64,
    /// For a batch of invalidations to be confirmed. A device that was pulled out can hold up a device-TLB
    /// invalidation for as long as PCI Express lets a completion take.
    pub invalidation_ns: u64,
}

impl Default for Timeouts {
    /// One second for a command, ten for an invalidation.
    fn default() -> Self {
        Self {
            command_ns: 1_000_000_000,
            invalidation_ns: 10_000_000_000,
        }
    }
}

/// Polls `ready` until it has an answer or `limit_ns` have passed; then the time waited is the error.
///
/// The condition is looked at once more after the deadline, so that a waiter that was itself kept from
/// running does not report a loss that did not happen.
pub(crate) fn poll<C: Clock, T>(clock: &C, limit_ns: u64, mut ready: impl FnMut() -> Option<T>) -> Result<T, u64> {
    let start = clock.now_ns();
    loop {
        let waited = clock.now_ns().saturating_sub(start);
        if let Some(answer) = ready() {
            return Ok(answer);
        }
        if waited >= limit_ns {
            return Err(waited);
        }
        clock.relax();
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    struct Ticking(Cell<u64>);

    impl Clock for Ticking {
        fn now_ns(&self) -> u64 {
            self.0.get()
        }
        fn relax(&self) {
            self.0.set(self.0.get() + 10);
        }
    }

    #[test]
    fn a_condition_that_never_holds_ends_at_the_deadline() {
        let clock = Ticking(Cell::new(5));
        assert_eq!(poll(&clock, 100, || None::<()>), Err(100));
    }

    #[test]
    fn a_condition_that_holds_at_the_deadline_counts() {
        let clock = Ticking(Cell::new(0));
        assert_eq!(poll(&clock, 30, || (clock.now_ns() >= 30).then_some(7)), Ok(7));
    }
}
