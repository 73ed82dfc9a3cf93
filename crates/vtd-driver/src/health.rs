//! What a running unit can still be trusted with.

use core::fmt;

use iommu_types::sync::{AtomicU8, Ordering};

/// What a unit has stopped doing. Nothing set means that everything asked of it was confirmed so far.
///
/// A unit that lost an acknowledgement stays poisoned: what it may still have cached cannot be known any more,
/// so nothing that devices could reach through it is reused. Changes that need its confirmation are refused
/// from then on; reading faults still works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// A global command (`VT-d §11.4.4 (GCMD_REG)`) was not acknowledged: the state of the unit's enable bits
    /// is unknown.
    pub command_lost: bool,
    /// An invalidation was not confirmed or the queue could not be repaired: stale translations may be in
    /// use.
    pub invalidation_lost: bool,
    /// The register window reads all-ones: the unit is gone, powered down or was unplugged.
    pub gone: bool,
}

impl Health {
    /// Whether the unit can be relied on.
    #[must_use]
    pub const fn is_good(self) -> bool {
        !self.command_lost && !self.invalidation_lost && !self.gone
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_good() {
            return f.write_str("good");
        }
        let mut separator = "";
        for (set, text) in [
            (self.command_lost, "a global command was not acknowledged"),
            (self.invalidation_lost, "an invalidation was not confirmed"),
            (self.gone, "the registers read all-ones"),
        ] {
            if set {
                write!(f, "{separator}{text}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

/// One kind of loss.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    Command,
    Invalidation,
    Gone,
}

impl Loss {
    const fn bit(self) -> u8 {
        match self {
            Self::Command => 1,
            Self::Invalidation => 2,
            Self::Gone => 4,
        }
    }
}

/// The flags behind [`Health`]; they are only ever set.
#[derive(Debug, Default)]
pub(crate) struct Poison(AtomicU8);

impl Poison {
    pub(crate) fn record(&self, loss: Loss) {
        self.0.fetch_or(loss.bit(), Ordering::AcqRel);
    }

    pub(crate) fn health(&self) -> Health {
        let bits = self.0.load(Ordering::Acquire);
        let has = |loss: Loss| bits & loss.bit() != 0;
        Health {
            command_lost: has(Loss::Command),
            invalidation_lost: has(Loss::Invalidation),
            gone: has(Loss::Gone),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn losses_accumulate_and_are_named() {
        let poison = Poison::default();
        assert!(poison.health().is_good());
        assert_eq!(poison.health().to_string(), "good");
        poison.record(Loss::Invalidation);
        poison.record(Loss::Gone);
        assert!(!poison.health().is_good());
        assert_eq!(
            poison.health().to_string(),
            "an invalidation was not confirmed, the registers read all-ones"
        );
    }
}
