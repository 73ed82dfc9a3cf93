//! Context entries of scalable mode.

use arbitrary_int::{u3, u20, u52};
use bitbybit::bitfield;
use iommu_types::{DevFn, HostPhys, Pasid};

use crate::features::UnitFeatures;

/// Context entry of scalable mode: one for each device and function, 32 bytes, of which the upper 16 are reserved.
/// VT-d §9.4 (Scalable-Mode Context-Entry).
///
/// The type is the lower 16 bytes; [`Self::reserved`] covers all four words.
#[bitfield(u128, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct ScalableContextEntry {
    /// P: present.
    #[bit(0, rw)]
    p: bool,
    /// FPD: fault processing disable; counts also in an entry that is not present.
    #[bit(1, rw)]
    fpd: bool,
    /// DTE: device-TLB enable. Needs ECAP.DT.
    #[bit(2, rw)]
    dte: bool,
    /// PASIDE: requests with PASID are allowed. Needs ECAP.PASID.
    #[bit(3, rw)]
    paside: bool,
    /// PRE: page requests are allowed. Needs ECAP.PRS and DTE.
    #[bit(4, rw)]
    pre: bool,
    /// HPTE: translated requests are checked against the host permission table. Needs ECAP.HPTS.
    #[bit(5, rw)]
    hpte: bool,
    /// EPTR: translated requests may have a PASID. Needs ECAP.PTRS and PASIDE.
    #[bit(6, rw)]
    eptr: bool,
    /// PDTS: PASID directory size; see [`Self::directory_entries`].
    #[bits(9..=11, rw)]
    pdts: u3,
    /// PASIDDIRPTR: PASID directory pointer, bits 63:12.
    #[bits(12..=63, rw)]
    pasiddirptr: u52,
    /// RID_PASID: PASID that stands for requests without PASID. Needs ECAP.RPS.
    #[bits(64..=83, rw)]
    rid_pasid: u20,
    /// RID_PRIV: requests without PASID are privileged. Needs ECAP.RPRIVS.
    #[bit(84, rw)]
    rid_priv: bool,
}

words128!(ScalableContextEntry padded);
page_address!(
    ScalableContextEntry,
    HostPhys,
    /// Host physical address of the PASID directory.
    pasid_directory, with_pasid_directory => pasiddirptr, with_pasiddirptr
);
pasid_field!(
    ScalableContextEntry,
    /// The PASID that stands for requests without PASID.
    request_id_pasid, with_request_id_pasid => rid_pasid, with_rid_pasid
);

impl ScalableContextEntry {
    /// Number of entries in the PASID directory: 2^(PDTS+7).
    #[must_use]
    pub const fn directory_entries(self) -> u32 {
        0x80 << self.pdts().value()
    }

    /// Length of the PASID directory in bytes.
    #[must_use]
    pub const fn directory_bytes(self) -> u64 {
        self.directory_entries() as u64 * 8
    }

    /// The largest PASID that the directory covers.
    #[must_use]
    pub const fn max_pasid(self) -> Pasid {
        match Pasid::new(self.directory_entries() * 64 - 1) {
            Some(pasid) => pasid,
            // Not reached: 2^14 directory entries of 64 PASIDs are 2^20.
            None => Pasid::MAX,
        }
    }

    /// Offset in bytes of the entry for a function in its half of the context table.
    #[must_use]
    pub const fn byte_offset(devfn: DevFn) -> u64 {
        (devfn.raw() & 0x7F) as u64 * Self::BYTES
    }

    /// Bits that must be 0 in a present entry, on a unit with these features, for each word.
    #[must_use]
    pub const fn reserved(features: &UnitFeatures) -> [u64; 4] {
        let ecap = features.extended;
        let mut low = 0x180 | features.address_reserved();
        if !ecap.dt() {
            low |= 1 << 2;
        }
        if !ecap.pasid() {
            low |= 1 << 3;
        }
        if !ecap.prs() {
            low |= 1 << 4;
        }
        if !ecap.hpts() {
            low |= 1 << 5;
        }
        if !ecap.ptrs() {
            low |= 1 << 6;
        }
        let mut second = 0xFFFF_FFFF_FFE0_0000;
        if !ecap.rps() {
            second |= 0xF_FFFF;
        }
        if !ecap.rprivs() {
            second |= 1 << 20;
        }
        [low, second, u64::MAX, u64::MAX]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tests::features;

    #[test]
    fn example_entry_encodes() {
        let e = ScalableContextEntry::DEFAULT
            .with_p(true)
            .with_pasid_directory(HostPhys::new(0x11_1000))
            .with_request_id_pasid(Pasid::new(0x12345).expect("20 bits"));
        assert_eq!(e.to_words_256(), [0x0011_1001, 0x12345, 0, 0]);
        assert_eq!((e.directory_entries(), e.directory_bytes()), (128, 1024));
        assert_eq!(e.max_pasid().raw(), 0x1FFF);
    }

    #[test]
    fn flags_match_the_figure() {
        let e = ScalableContextEntry::from_words([0xE7E, 0x10_0000]);
        assert!(!e.p() && e.fpd() && e.dte() && e.paside() && e.pre() && e.hpte() && e.eptr() && e.rid_priv());
        assert_eq!(e.pdts().value(), 7);
        assert_eq!(e.max_pasid(), Pasid::MAX);
        assert_eq!(ScalableContextEntry::byte_offset(DevFn::from_raw(0x81)), 32);
    }

    #[test]
    fn reserved_bits_follow_the_capabilities() {
        assert_eq!(
            ScalableContextEntry::reserved(&features(0, 0, 46)),
            [0xFFFF_C000_0000_01FC, u64::MAX, u64::MAX, u64::MAX]
        );
        // DT, PRS, PASID, RPS, RPRIVS, HPTS, PTRS.
        let ecap = 1 << 2 | 1 << 29 | 1 << 40 | 1 << 49 | 1 << 53 | 1 << 55 | 1 << 56;
        assert_eq!(
            ScalableContextEntry::reserved(&features(0, ecap, 46)),
            [0xFFFF_C000_0000_0180, 0xFFFF_FFFF_FFE0_0000, u64::MAX, u64::MAX]
        );
    }
}
