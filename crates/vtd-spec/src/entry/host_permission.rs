//! Host permission table entries.

use arbitrary_int::{u4, u40};
use bitbybit::bitfield;
use iommu_types::{HostPhys, Perms};

use crate::features::UnitFeatures;

/// Entry of a host permission table of level 4, 3 or 2: 16 bytes. VT-d §9.12.1 (HPTL4E), §9.12.2 (HPTL3E), §9.12.3 (HPTL2E).
///
/// Level 4 has no permissions, level 3 has eight of 1 GiB each, level 2 sixteen of 2 MiB each. A permission that is not zero ends
/// the walk.
#[bitfield(u128, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct HptTableEntry {
    /// PP: permissions; see [`hpt_pair_perms`].
    #[bits(0..=3, rw)]
    pp: [u4; 16],
    /// AV: the address is valid.
    #[bit(64, rw)]
    av: bool,
    /// ADDR: bits 51:12 of the next table.
    #[bits(76..=115, rw)]
    addr: u40,
}

words128!(HptTableEntry);

impl HptTableEntry {
    /// Host physical address of the next table.
    #[must_use]
    pub const fn next_table(self) -> HostPhys {
        HostPhys::new(self.addr().value() << 12)
    }

    /// The entry with another next table; bits 11:0 and 63:52 of the address are dropped.
    #[must_use]
    pub const fn with_next_table(self, address: HostPhys) -> Self {
        self.with_addr(u40::extract_u64(address.raw(), 12))
    }

    /// Bits that must be 0 in this entry of a level, on a unit with these features, for each word.
    #[must_use]
    pub const fn reserved(self, level: u8, features: &UnitFeatures) -> [u64; 2] {
        let low = match level {
            4 => u64::MAX,
            3 if features.extended.hpt1gps() => 0xFFFF_FFFF_CCCC_CCCC,
            3 => u64::MAX,
            _ => 0xCCCC_CCCC_CCCC_CCCC,
        };
        let address = if self.av() {
            features.paging_address_reserved()
        } else {
            0
        };
        [low, 0xFFE | address]
    }
}

/// Entry of a host permission table of level 1: 16 bytes, 32 permissions of 4 KiB each. VT-d §9.12.4 (HPTL1E).
#[bitfield(u128, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct HptPageEntry {
    /// PP: permissions; see [`hpt_pair_perms`].
    #[bits(0..=3, rw)]
    pp: [u4; 32],
}

words128!(HptPageEntry);

impl HptPageEntry {
    /// Bits that must be 0, for each word.
    pub const RESERVED: [u64; 2] = [0xCCCC_CCCC_CCCC_CCCC; 2];
}

/// What one permission field grants: bit 0 read, bit 1 write. VT-d §9.12.
#[must_use]
pub const fn hpt_pair_perms(pair: u4) -> Perms {
    Perms {
        read: pair.value() & 1 != 0,
        write: pair.value() & 2 != 0,
    }
}

/// Index of the entry for a host physical address in the table of a level (4 to 1). VT-d §4.2.4.
///
/// The index of level 4 is not cut to the size of the table; other numbers than 1 to 4 count as the nearer of them.
#[must_use]
pub const fn hpt_index(address: HostPhys, level: u8) -> u64 {
    match level {
        0 | 1 => address.raw() >> 17 & 0xFF,
        2 => address.raw() >> 25 & 0xFF,
        3 => address.raw() >> 33 & 0xFF,
        _ => address.raw() >> 41,
    }
}

/// Which permission of the entry applies to a host physical address at a level (3 to 1); `None` at level 4, which has none.
/// VT-d §4.2.4.
#[must_use]
pub const fn hpt_pair_index(address: HostPhys, level: u8) -> Option<usize> {
    match level {
        1 => Some((address.raw() >> 12 & 0x1F) as usize),
        2 => Some((address.raw() >> 21 & 0xF) as usize),
        3 => Some((address.raw() >> 30 & 0x7) as usize),
        _ => None,
    }
}

/// Number of address bits that a top table of size code HPTSZ (0 to 3) covers: 49 to 52. VT-d §9.6.
#[must_use]
pub const fn hpt_root_address_bits(hptsz: u8) -> u8 {
    49 + (hptsz & 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tests::features;

    #[test]
    fn table_entry_matches_the_figure() {
        let e = HptTableEntry::from_words([0x3210, 0x0000_0012_3456_7001]);
        assert!(e.av());
        assert_eq!(e.next_table(), HostPhys::new(0x12_3456_7000));
        assert_eq!(
            [0, 1, 2, 3].map(|i| hpt_pair_perms(e.pp(i))),
            [Perms::NONE, Perms::READ, Perms::WRITE, Perms::READ_WRITE]
        );
        let back = HptTableEntry::DEFAULT
            .with_av(true)
            .with_next_table(HostPhys::new(0x12_3456_7000));
        assert_eq!(back.to_words(), [0, 0x0000_0012_3456_7001]);
    }

    #[test]
    fn page_entry_spreads_over_both_words() {
        let e = HptPageEntry::from_words([1, 0x3000_0000_0000_0000]);
        assert_eq!(hpt_pair_perms(e.pp(0)), Perms::READ);
        assert_eq!(hpt_pair_perms(e.pp(31)), Perms::READ_WRITE);
    }

    #[test]
    fn each_level_takes_its_own_address_bits() {
        let a = HostPhys::new(5 << 41 | 4 << 33 | 3 << 25 | 2 << 17);
        assert_eq!([4, 3, 2, 1].map(|l| hpt_index(a, l)), [5, 4, 3, 2]);
        let a = HostPhys::new(7 << 30 | 15 << 21 | 31 << 12);
        assert_eq!(
            [4, 3, 2, 1].map(|l| hpt_pair_index(a, l)),
            [None, Some(7), Some(15), Some(31)]
        );
        assert_eq!([0, 1, 2, 3].map(hpt_root_address_bits), [49, 50, 51, 52]);
    }

    #[test]
    fn reserved_bits_follow_level_and_validity() {
        let f = features(0, 1 << 59, 46);
        let valid = HptTableEntry::DEFAULT.with_av(true);
        let high = 0x000F_C000_0000_0FFE;
        assert_eq!(valid.reserved(4, &f), [u64::MAX, high]);
        assert_eq!(valid.reserved(3, &f), [0xFFFF_FFFF_CCCC_CCCC, high]);
        assert_eq!(valid.reserved(2, &f), [0xCCCC_CCCC_CCCC_CCCC, high]);
        assert_eq!(HptTableEntry::DEFAULT.reserved(2, &f)[1], 0xFFE);
        assert_eq!(valid.reserved(3, &features(0, 0, 46))[0], u64::MAX);
    }
}
