//! Second-stage paging entries.

use arbitrary_int::{u3, u40};
use bitbybit::bitfield;
use iommu_types::{HostPhys, PageSize, Perms};

use crate::features::UnitFeatures;

/// Second-stage paging entry: 8 bytes, 512 to a table. VT-d §9.8 (Second-Stage Paging Entries).
///
/// Levels count from 1 (page table) to 5 (PML5 table). A leaf is a level 1 entry, or a level 2 or 3 entry with PS set.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct SecondStageEntry {
    /// R: read.
    #[bit(0, rw)]
    r: bool,
    /// W: write.
    #[bit(1, rw)]
    w: bool,
    /// EMT: extended memory type of a leaf; ignored in legacy mode and unless MTS and EMTE.
    #[bits(3..=5, rw)]
    emt: u3,
    /// IPAT: ignore PAT, of a leaf; ignored as EMT is.
    #[bit(6, rw)]
    ipat: bool,
    /// PS: page size; 1 makes an entry of level 2 or 3 a leaf.
    #[bit(7, rw)]
    ps: bool,
    /// A: accessed; used if SSADE.
    #[bit(8, rw)]
    a: bool,
    /// D: dirty, of a leaf; used if SSADE.
    #[bit(9, rw)]
    d: bool,
    /// SNP: snoop, of a leaf; needs ECAP.SC.
    #[bit(11, rw)]
    snp: bool,
    /// ADDR: bits 51:12 of the page or the next table; see [`Self::address`].
    #[bits(12..=51, rw)]
    addr: u40,
    /// IR: I/O read; takes the place of R if SSIRWE.
    #[bit(61, rw)]
    ir: bool,
    /// IW: I/O write; takes the place of W if SSIRWE.
    #[bit(62, rw)]
    iw: bool,
}

impl SecondStageEntry {
    /// The bits that this revision leaves to software in entries of every level: hardware ignores them whatever the mode.
    pub const SOFTWARE: u64 = 0x9FF0_0000_0000_0404;

    /// The address field: host physical address of the next table or, for a 4-KiB leaf, of the page.
    #[must_use]
    pub const fn address(self) -> HostPhys {
        HostPhys::new(self.addr().value() << 12)
    }

    /// The entry with another address; bits 11:0 and 63:52 are dropped.
    #[must_use]
    pub const fn with_address(self, address: HostPhys) -> Self {
        self.with_addr(u40::extract_u64(address.raw(), 12))
    }

    /// Host physical address of the page that a leaf of a size maps; reserved low bits are left out.
    #[must_use]
    pub const fn page(self, size: PageSize) -> HostPhys {
        self.address().align_down(size)
    }

    /// What the entry permits, by R and W.
    #[must_use]
    pub const fn perms(self) -> Perms {
        Perms {
            read: self.r(),
            write: self.w(),
        }
    }

    /// The entry with other permissions, in R and W.
    #[must_use]
    pub const fn with_perms(self, perms: Perms) -> Self {
        self.with_r(perms.read).with_w(perms.write)
    }

    /// What the entry permits under SSIRWE, by IR and IW.
    #[must_use]
    pub const fn io_perms(self) -> Perms {
        Perms {
            read: self.ir(),
            write: self.iw(),
        }
    }

    /// The entry with other permissions, in IR and IW.
    #[must_use]
    pub const fn with_io_perms(self, perms: Perms) -> Self {
        self.with_ir(perms.read).with_iw(perms.write)
    }

    /// Whether the entry is present: it permits something. Under SSIRWE ask [`Self::io_perms`] instead.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.r() || self.w()
    }

    /// Whether a present entry of a level is a leaf. PS at levels 4 and 5 is reserved and counts for nothing here.
    #[must_use]
    pub const fn is_leaf(self, level: u8) -> bool {
        level <= 1 || (level <= 3 && self.ps())
    }

    /// Bits that must be 0 in a present entry of a level, on a unit with these features. `ssirwe` is RTADDR.SSIRWE.
    ///
    /// PS counts as reserved where it is set and the size it asks for is not supported.
    #[must_use]
    pub const fn reserved(self, level: u8, features: &UnitFeatures, ssirwe: bool) -> u64 {
        let cap = features.capability;
        let mut reserved = features.paging_address_reserved();
        if !ssirwe {
            reserved |= Self::iw_mask();
        }
        let large_supported = match level {
            0 | 1 => true,
            2 => cap.second_stage_2m(),
            3 => cap.second_stage_1g(),
            _ => false,
        };
        if !large_supported {
            reserved |= Self::ps_mask();
        }
        if self.is_leaf(level) {
            if !features.extended.sc() {
                reserved |= Self::snp_mask();
            }
            reserved |= match level {
                2 => 0x001F_F000,
                3 => 0x3FFF_F000,
                _ => 0,
            };
        } else {
            reserved |= Self::snp_mask();
        }
        reserved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tests::features;

    /// CAP with 2-MiB and 1-GiB second-stage pages.
    const LARGE: u64 = 0x0000_000C_0000_0000;
    /// ECAP.SC.
    const SC: u64 = 0x80;

    #[test]
    fn fields_match_the_figure() {
        let e = SecondStageEntry::new_with_raw_value(0x6000_0012_3456_7BFB);
        assert_eq!(e.address(), HostPhys::new(0x12_3456_7000));
        assert_eq!(e.perms(), Perms::READ_WRITE);
        assert_eq!(e.io_perms(), Perms::READ_WRITE);
        assert_eq!(e.emt().value(), 7);
        assert!(e.ipat() && e.ps() && e.a() && e.d() && e.snp());
        assert_eq!(SecondStageEntry::DEFAULT.with_perms(Perms::WRITE).raw_value(), 2);
        assert_eq!(
            SecondStageEntry::DEFAULT.with_io_perms(Perms::READ).raw_value(),
            1 << 61
        );
        assert_eq!(SecondStageEntry::DEFAULT.with_snp(true).raw_value(), 0x800);
    }

    #[test]
    fn no_permission_means_not_present() {
        assert!(!SecondStageEntry::new_with_raw_value(0x1234_5000).is_present());
        assert!(SecondStageEntry::new_with_raw_value(1).is_present());
        assert!(SecondStageEntry::new_with_raw_value(2).is_present());
    }

    #[test]
    fn leaves_are_level_1_and_large_pages_of_levels_2_and_3() {
        let plain = SecondStageEntry::new_with_raw_value(3);
        let large = SecondStageEntry::new_with_raw_value(0x83);
        assert_eq!(
            [1, 2, 3, 4, 5].map(|l| plain.is_leaf(l)),
            [true, false, false, false, false]
        );
        assert_eq!(
            [1, 2, 3, 4, 5].map(|l| large.is_leaf(l)),
            [true, true, true, false, false]
        );
        let two_mib = SecondStageEntry::new_with_raw_value(0x4020_1083);
        assert_eq!(two_mib.page(PageSize::Size2M), HostPhys::new(0x4020_0000));
    }

    #[test]
    fn reserved_bits_follow_level_and_features() {
        let f = features(LARGE, SC, 46);
        let plain = SecondStageEntry::new_with_raw_value(3);
        let large = SecondStageEntry::new_with_raw_value(0x83);
        assert_eq!(plain.reserved(1, &f, false), 0x400F_C000_0000_0000);
        assert_eq!(plain.reserved(1, &f, true), 0x000F_C000_0000_0000);
        assert_eq!(plain.reserved(2, &f, false), 0x400F_C000_0000_0800);
        assert_eq!(large.reserved(2, &f, false), 0x400F_C000_001F_F000);
        assert_eq!(large.reserved(3, &f, false), 0x400F_C000_3FFF_F000);
        assert_eq!(large.reserved(4, &f, false), 0x400F_C000_0000_0880);
        let none = features(0, 0, 52);
        assert_eq!(plain.reserved(1, &none, false), 0x4000_0000_0000_0800);
        assert_eq!(large.reserved(2, &none, false), 0x4000_0000_001F_F880);
    }

    #[test]
    fn software_bits_are_defined_nowhere() {
        let f = features(LARGE, SC, 12);
        for level in 1..=5 {
            for raw in [3, 0x83] {
                let reserved = SecondStageEntry::new_with_raw_value(raw).reserved(level, &f, false);
                assert_eq!(reserved & SecondStageEntry::SOFTWARE, 0);
            }
        }
    }
}
