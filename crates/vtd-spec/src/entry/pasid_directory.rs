//! PASID directory entries.

use arbitrary_int::u52;
use bitbybit::bitfield;
use iommu_types::HostPhys;

use crate::features::UnitFeatures;

/// PASID directory entry: one for each 64 PASIDs, 8 bytes. VT-d §9.5 (Scalable-Mode PASID Directory Entry).
///
/// Index: PASID bits 19:6, see [`Self::index`].
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PasidDirectoryEntry {
    /// P: present.
    #[bit(0, rw)]
    p: bool,
    /// FPD: fault processing disable; counts also in an entry that is not present.
    #[bit(1, rw)]
    fpd: bool,
    /// SMPTBLPTR: PASID table pointer, bits 63:12.
    #[bits(12..=63, rw)]
    smptblptr: u52,
}

page_address!(
    PasidDirectoryEntry,
    HostPhys,
    /// Host physical address of the PASID table.
    pasid_table, with_pasid_table => smptblptr, with_smptblptr
);

impl PasidDirectoryEntry {
    /// Size of an entry in bytes.
    pub const BYTES: u64 = 8;

    /// Index of the directory entry for a PASID.
    #[must_use]
    pub const fn index(pasid: iommu_types::Pasid) -> u32 {
        pasid.raw() >> 6
    }

    /// Bits that must be 0 in a present entry, on a unit with these features.
    #[must_use]
    pub const fn reserved(features: &UnitFeatures) -> u64 {
        0xFFC | features.address_reserved()
    }
}

#[cfg(test)]
mod tests {
    use iommu_types::Pasid;

    use super::*;
    use crate::features::tests::features;

    #[test]
    fn fields_match_the_figure() {
        let e = PasidDirectoryEntry::new_with_raw_value(0x0000_0012_3456_7003);
        assert!(e.p() && e.fpd());
        assert_eq!(e.pasid_table(), HostPhys::new(0x12_3456_7000));
        assert_eq!(
            PasidDirectoryEntry::reserved(&features(0, 0, 46)),
            0xFFFF_C000_0000_0FFC
        );
    }

    #[test]
    fn index_is_the_pasid_without_its_low_six_bits() {
        assert_eq!(PasidDirectoryEntry::index(Pasid::new(0x12345).expect("20 bits")), 0x48D);
        assert_eq!(PasidDirectoryEntry::index(Pasid::MAX), 0x3FFF);
    }
}
