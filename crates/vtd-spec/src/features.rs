//! What a unit implements, as far as layouts depend on it.

use crate::layout::bits64;
use crate::register::{Capability, ExtendedCapability};

/// The facts about one unit that decide which bits of a structure are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitFeatures {
    /// CAP_REG as the unit reports it.
    pub capability: Capability,
    /// ECAP_REG as the unit reports it.
    pub extended: ExtendedCapability,
    /// HAW: number of host physical address bits that the platform implements, 12 to 64. Firmware reports it in the
    /// DMAR table.
    pub host_address_width: u8,
}

impl UnitFeatures {
    /// Bits 63:HAW, which are reserved in an address field of bits 63:12.
    #[must_use]
    pub const fn address_reserved(&self) -> u64 {
        bits64(63, self.address_low_limit())
    }

    /// Bits 51:HAW, which are reserved in an address field of bits 51:12 (paging entries).
    #[must_use]
    pub const fn paging_address_reserved(&self) -> u64 {
        bits64(51, self.address_low_limit())
    }

    /// Bits of a 16-bit domain-id field at its place `shift` that lie above the width of CAP.ND.
    #[must_use]
    pub const fn domain_reserved(&self, shift: u8) -> u64 {
        (0xFFFF & !(self.capability.domain_count() as u64 - 1)) << shift
    }

    const fn address_low_limit(&self) -> u8 {
        // A width below a page would declare every address bit reserved twice; the page offset is not ours to judge.
        if self.host_address_width < 12 {
            12
        } else {
            self.host_address_width
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A unit that reports these registers.
    pub(crate) fn features(cap: u64, ecap: u64, host_address_width: u8) -> UnitFeatures {
        UnitFeatures {
            capability: Capability::new_with_raw_value(cap),
            extended: ExtendedCapability::new_with_raw_value(ecap),
            host_address_width,
        }
    }

    #[test]
    fn address_bits_from_the_host_width_upwards_are_reserved() {
        let f = features(0, 0, 39);
        assert_eq!(f.address_reserved(), 0xFFFF_FF80_0000_0000);
        assert_eq!(f.paging_address_reserved(), 0x000F_FF80_0000_0000);
        let all = features(0, 0, 64);
        assert_eq!((all.address_reserved(), all.paging_address_reserved()), (0, 0));
        assert_eq!(features(0, 0, 52).paging_address_reserved(), 0);
        assert_eq!(features(0, 0, 0).address_reserved(), 0xFFFF_FFFF_FFFF_F000);
    }

    #[test]
    fn domain_bits_above_the_width_are_reserved_in_place() {
        assert_eq!(features(0, 0, 46).domain_reserved(8), 0xFF_F000);
        assert_eq!(features(2, 0, 46).domain_reserved(0), 0xFF00);
        assert_eq!(features(6, 0, 46).domain_reserved(0), 0);
    }
}
