//! What configuration space does not say, or says wrongly, about particular devices.
//!
//! The tables are data: which devices, what is so, and where it is known from. Nothing outside this module
//! compares vendor and device IDs.

mod acs;
mod alias;
mod ats;

use core::fmt;

pub(crate) use self::acs::acs_quirks;
pub use self::acs::{AcsQuirk, AcsQuirkKind};
pub(crate) use self::acs::{PCH_VALIDATION, PCH_VALIDATION_ON, WIDE_ACS_CONTROL, has_wide_acs_registers, is_pch_port};
pub use self::alias::{AliasEffect, AliasQuirk, BridgeQuirk, BridgeQuirkKind};
pub(crate) use self::alias::{bridge_quirks, dma_aliases};
pub(crate) use self::ats::ats_is_broken;

/// Devices of one vendor, by ranges of device IDs with both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Devices {
    /// The vendor ID.
    pub vendor: u16,
    /// First and last device ID of each range.
    pub ranges: &'static [(u16, u16)],
    /// Whether only even device IDs count.
    pub even_only: bool,
}

impl Devices {
    /// The device IDs in `ranges` of `vendor`.
    #[must_use]
    pub const fn new(vendor: u16, ranges: &'static [(u16, u16)]) -> Self {
        Self {
            vendor,
            ranges,
            even_only: false,
        }
    }

    /// The even device IDs in `ranges` of `vendor`.
    #[must_use]
    pub const fn even(vendor: u16, ranges: &'static [(u16, u16)]) -> Self {
        Self {
            vendor,
            ranges,
            even_only: true,
        }
    }

    /// All devices of `vendor`.
    #[must_use]
    pub const fn all(vendor: u16) -> Self {
        Self::new(vendor, &[(0, 0xffff)])
    }

    /// Whether a device is one of them.
    #[must_use]
    pub fn contains(&self, vendor: u16, device: u16) -> bool {
        vendor == self.vendor
            && (!self.even_only || device.is_multiple_of(2))
            && self
                .ranges
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&device))
    }
}

/// Where a quirk is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(pub &'static str);

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_include_both_ends_and_even_means_even() {
        let some = Devices::even(0x8086, &[(0x1d10, 0x1d1e)]);
        assert!(some.contains(0x8086, 0x1d10));
        assert!(some.contains(0x8086, 0x1d1e));
        assert!(!some.contains(0x8086, 0x1d11));
        assert!(!some.contains(0x8086, 0x1d20));
        assert!(!some.contains(0x1022, 0x1d10));
    }
}
