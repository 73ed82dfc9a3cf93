//! Protected memory regions.

use bitbybit::bitfield;
use iommu_types::{AddrRange, HostPhys};

/// Protected Memory Enable Register. VT-d §11.4.8.1 (PMEN_REG). 32 bits.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct ProtectedMemoryEnable {
    /// PRS: protected region status; follows EPM when the change has taken effect; read only.
    #[bit(0, rw)]
    prs: bool,
    /// EPM: enable protected memory.
    #[bit(31, rw)]
    epm: bool,
}

/// Number of low address bits that base and limit registers do not implement, from what a register reads after all ones
/// were written to it; `None` if it reads 0 (no such region). VT-d §11.4.8.2 (PLMBASE_REG).
///
/// The granule of the region is 2 to this power bytes.
#[must_use]
pub const fn protected_granule_bits(read_back: u64) -> Option<u8> {
    if read_back == 0 {
        return None;
    }
    // Below 64 because the value is not zero.
    Some((read_back.trailing_zeros() & 0x3F) as u8)
}

/// The region that base and limit registers protect, both ends included, for a granule of 2^`granule_bits` bytes; `None` if
/// the limit lies below the base, which disables the region. VT-d §11.4.8.3 (PLMLIMIT_REG), §11.4.8.5 (PHMLIMIT_REG).
#[must_use]
pub fn protected_region(base: u64, limit: u64, granule_bits: u8) -> Option<AddrRange<HostPhys>> {
    let low = 1u64
        .checked_shl(u32::from(granule_bits))
        .map_or(u64::MAX, |granule| granule - 1);
    AddrRange::new(HostPhys::new(base & !low), HostPhys::new(limit | low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enable_and_status_are_at_the_two_ends() {
        assert!(ProtectedMemoryEnable::new_with_raw_value(0x8000_0000).epm());
        assert!(ProtectedMemoryEnable::new_with_raw_value(1).prs());
    }

    #[test]
    fn equal_base_and_limit_protect_one_granule() {
        assert_eq!(protected_granule_bits(0xFFE0_0000), Some(21));
        let one = protected_region(0x20_0000, 0x20_0000, 21).expect("one granule");
        assert_eq!(
            (one.first(), one.last()),
            (HostPhys::new(0x20_0000), HostPhys::new(0x3F_FFFF))
        );
    }

    #[test]
    fn limit_below_base_disables_the_region() {
        assert_eq!(protected_region(0x40_0000, 0x20_0000, 21), None);
        assert_eq!(protected_granule_bits(0), None);
        assert!(protected_region(0, 0, 64).is_some());
    }
}
