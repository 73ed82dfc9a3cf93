//! First-stage paging entries.

use arbitrary_int::u40;
use bitbybit::bitfield;
use iommu_types::{HostPhys, PageSize};

use crate::features::UnitFeatures;

/// First-stage paging entry, in the format of the processor's 4- and 5-level paging: 8 bytes, 512 to a table.
/// VT-d §9.7 (First-Stage Paging Entries).
///
/// Addresses are host physical for first-stage translation alone, guest physical under nested translation.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct FirstStageEntry {
    /// P: present.
    #[bit(0, rw)]
    p: bool,
    /// R/W: writable.
    #[bit(1, rw)]
    rw: bool,
    /// U/S: user.
    #[bit(2, rw)]
    us: bool,
    /// PWT: page-level write-through, of a leaf; part of the memory type index.
    #[bit(3, rw)]
    pwt: bool,
    /// PCD: page-level cache disable, of a leaf; part of the memory type index.
    #[bit(4, rw)]
    pcd: bool,
    /// A: accessed.
    #[bit(5, rw)]
    a: bool,
    /// D: dirty, of a leaf.
    #[bit(6, rw)]
    d: bool,
    /// PS: page size in entries of levels 2 and 3; PAT in a level 1 entry, see [`Self::pat`].
    #[bit(7, rw)]
    ps: bool,
    /// G: global; ignored.
    #[bit(8, rw)]
    g: bool,
    /// EA: extended accessed; used if EAFE.
    #[bit(10, rw)]
    ea: bool,
    /// ADDR: bits 51:12 of the page or the next table; bit 12 is PAT in a large leaf. See [`Self::address`].
    #[bits(12..=51, rw)]
    addr: u40,
    /// XD: execute disable; ignored.
    #[bit(63, rw)]
    xd: bool,
}

impl FirstStageEntry {
    /// PAT of a 2-MiB or 1-GiB leaf.
    pub const LARGE_PAT: u64 = 1 << 12;
    /// The bits that this revision leaves to software in entries of every level.
    pub const SOFTWARE: u64 = 0x7FF0_0000_0000_0A00;

    /// The address field: the next table or, for a 4-KiB leaf, the page.
    #[must_use]
    pub const fn address(self) -> HostPhys {
        HostPhys::new(self.addr().value() << 12)
    }

    /// The entry with another address; bits 11:0 and 63:52 are dropped.
    #[must_use]
    pub const fn with_address(self, address: HostPhys) -> Self {
        self.with_addr(u40::extract_u64(address.raw(), 12))
    }

    /// Address of the page that a leaf of a size maps; PAT and reserved low bits are left out.
    #[must_use]
    pub const fn page(self, size: PageSize) -> HostPhys {
        self.address().align_down(size)
    }

    /// Whether a present entry of a level is a leaf. PS at levels 4 and 5 is reserved and counts for nothing here.
    #[must_use]
    pub const fn is_leaf(self, level: u8) -> bool {
        level <= 1 || (level <= 3 && self.ps())
    }

    /// The PAT bit of a leaf: bit 7 of a 4-KiB leaf, bit 12 of a larger one.
    #[must_use]
    pub const fn pat(self, size: PageSize) -> bool {
        match size {
            PageSize::Size4K => self.ps(),
            PageSize::Size2M | PageSize::Size1G => self.raw_value() & Self::LARGE_PAT != 0,
        }
    }

    /// Index into the PASID entry's PAT that a leaf chooses: PAT, PCD, PWT from high to low. VT-d §3.11.1.
    #[must_use]
    pub const fn memory_type_index(self, size: PageSize) -> u8 {
        (self.pat(size) as u8) << 2 | (self.pcd() as u8) << 1 | self.pwt() as u8
    }

    /// Bits that must be 0 in a present entry of a level, on a unit with these features.
    #[must_use]
    pub const fn reserved(self, level: u8, features: &UnitFeatures) -> u64 {
        let mut reserved = features.paging_address_reserved();
        let large_supported = match level {
            0..=2 => true,
            3 => features.capability.fs1gp(),
            _ => false,
        };
        if !large_supported {
            reserved |= Self::ps_mask();
        }
        if self.is_leaf(level) {
            reserved |= match level {
                2 => 0x001F_E000,
                3 => 0x3FFF_E000,
                _ => 0,
            };
        }
        reserved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tests::features;

    #[test]
    fn flags_match_the_processor_format() {
        let e = FirstStageEntry::new_with_raw_value(0x8000_0012_3456_75FF);
        assert!(
            e.p() && e.rw() && e.us() && e.pwt() && e.pcd() && e.a() && e.d() && e.ps() && e.g() && e.ea() && e.xd()
        );
        assert_eq!(e.address(), HostPhys::new(0x12_3456_7000));
        assert_eq!(FirstStageEntry::DEFAULT.with_ea(true).raw_value(), 0x400);
    }

    #[test]
    fn memory_type_index_takes_pat_from_the_place_of_the_page_size() {
        let small = FirstStageEntry::new_with_raw_value(0x81);
        assert_eq!(small.memory_type_index(PageSize::Size4K), 4);
        assert_eq!(small.memory_type_index(PageSize::Size2M), 0);
        let large = FirstStageEntry::new_with_raw_value(0x1099);
        assert_eq!(large.memory_type_index(PageSize::Size2M), 7);
        assert_eq!(large.page(PageSize::Size2M), HostPhys::ZERO);
    }

    #[test]
    fn reserved_bits_follow_level_and_features() {
        // CAP.FS1GP.
        let f = features(1 << 56, 0, 46);
        let plain = FirstStageEntry::new_with_raw_value(1);
        let large = FirstStageEntry::new_with_raw_value(0x81);
        assert_eq!(plain.reserved(1, &f), 0x000F_C000_0000_0000);
        assert_eq!(large.reserved(1, &f), 0x000F_C000_0000_0000);
        assert_eq!(large.reserved(2, &f), 0x000F_C000_001F_E000);
        assert_eq!(large.reserved(3, &f), 0x000F_C000_3FFF_E000);
        assert_eq!(plain.reserved(4, &f), 0x000F_C000_0000_0080);
        assert_eq!(plain.reserved(3, &features(0, 0, 52)), 0x80);
    }
}
