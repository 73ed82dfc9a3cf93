//! PASID table entries.

use arbitrary_int::{u2, u3, u52};
use bitbybit::{bitenum, bitfield};
use iommu_types::{GuestPhys, HostPhys, Pasid};

use crate::agaw::Agaw;
use crate::features::UnitFeatures;

/// PGTT: how requests of a PASID are translated. VT-d §9.6 (Scalable-Mode PASID Table Entry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PasidTranslation {
    /// 001: first stage only. Needs ECAP.FSTS.
    FirstStage,
    /// 010: second stage only. Needs ECAP.SSTS.
    SecondStage,
    /// 011: first stage, its addresses through the second stage. Needs ECAP.NEST.
    Nested,
    /// 100: requests pass unchanged. Needs ECAP.PT.
    PassThrough,
}

impl PasidTranslation {
    /// The code of the field.
    #[must_use]
    pub const fn code(self) -> u3 {
        match self {
            Self::FirstStage => u3::new(1),
            Self::SecondStage => u3::new(2),
            Self::Nested => u3::new(3),
            Self::PassThrough => u3::new(4),
        }
    }

    /// What a code means; `None` for the reserved codes 0, 5, 6 and 7.
    #[must_use]
    pub const fn from_code(code: u3) -> Option<Self> {
        match code.value() {
            1 => Some(Self::FirstStage),
            2 => Some(Self::SecondStage),
            3 => Some(Self::Nested),
            4 => Some(Self::PassThrough),
            _ => None,
        }
    }

    /// Whether requests go through a first-stage table.
    #[must_use]
    pub const fn uses_first_stage(self) -> bool {
        matches!(self, Self::FirstStage | Self::Nested)
    }

    /// Whether requests go through a second-stage table.
    #[must_use]
    pub const fn uses_second_stage(self) -> bool {
        matches!(self, Self::SecondStage | Self::Nested)
    }
}

/// FSPM: levels of the first-stage tables. VT-d §9.6 (Scalable-Mode PASID Table Entry).
#[bitenum(u2, exhaustive = true)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum FirstStagePagingMode {
    /// 4 levels, 48 bits.
    FourLevel = 0,
    /// 5 levels, 57 bits. Needs CAP.FS5LP.
    FiveLevel = 1,
    /// Reserved.
    Reserved2 = 2,
    /// Reserved.
    Reserved3 = 3,
}

/// First word of a PASID table entry: presence, translation type, second stage. VT-d §9.6.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PasidControl {
    /// P: present.
    #[bit(0, rw)]
    p: bool,
    /// FPD: fault processing disable; counts also in an entry that is not present.
    #[bit(1, rw)]
    fpd: bool,
    /// AW: address width code of the second stage; see [`Self::agaw`].
    #[bits(2..=4, rw)]
    aw: u3,
    /// PGTT: translation type; see [`Self::translation`].
    #[bits(6..=8, rw)]
    pgtt: u3,
    /// SSADE: second-stage accessed and dirty flags are set. Needs ECAP.SSADS.
    #[bit(9, rw)]
    ssade: bool,
    /// SSPTPTR: second-stage table pointer, bits 63:12.
    #[bits(12..=63, rw)]
    ssptptr: u52,
}

page_address!(
    PasidControl,
    HostPhys,
    /// Host physical address of the second-stage root table.
    second_stage_table, with_second_stage_table => ssptptr, with_ssptptr
);

impl PasidControl {
    /// The translation type; `None` for a reserved code.
    #[must_use]
    pub const fn translation(self) -> Option<PasidTranslation> {
        PasidTranslation::from_code(self.pgtt())
    }

    /// The word with another translation type.
    #[must_use]
    pub const fn with_translation(self, translation: PasidTranslation) -> Self {
        self.with_pgtt(translation.code())
    }

    /// The address width of the second stage; `None` for a reserved code.
    #[must_use]
    pub const fn agaw(self) -> Option<Agaw> {
        Agaw::from_code(self.aw().value())
    }

    /// The word with another address width of the second stage.
    #[must_use]
    pub const fn with_agaw(self, agaw: Agaw) -> Self {
        self.with_aw(u3::extract_u8(agaw.code(), 0))
    }
}

/// Second word of a PASID table entry: domain, snooping, memory types. VT-d §9.6.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PasidTags {
    /// DID: domain identifier.
    #[bits(0..=15, rw)]
    did: u16,
    /// PWSNP: page walks snoop. Needs ECAP.SMPWCS.
    #[bit(23, rw)]
    pwsnp: bool,
    /// PGSNP: accesses to the final page snoop. Needs ECAP.SC.
    #[bit(24, rw)]
    pgsnp: bool,
    /// CD: cache disable. Needs ECAP.MTS.
    #[bit(25, rw)]
    cd: bool,
    /// EMTE: extended memory type enable. Needs ECAP.MTS.
    #[bit(26, rw)]
    emte: bool,
    /// PAT: page attribute table, eight memory types; see [`crate::encoding::MemoryType`]. Needs ECAP.MTS.
    #[bits(32..=34, rw, stride = 4)]
    pat: [u3; 8],
}

domain_field!(
    PasidTags,
    /// The domain that cached translations of the PASID are tagged with.
    domain, with_domain => did, with_did
);

/// Third word of a PASID table entry: first stage. VT-d §9.6.
///
/// Earlier revisions used bits 1 (ERE), 5 (NXE) and 6 (SMEP).
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PasidFirstStage {
    /// SRE: supervisor requests enable. Needs ECAP.SRS.
    #[bit(0, rw)]
    sre: bool,
    /// FSPM: paging mode.
    #[bits(2..=3, rw)]
    fspm: FirstStagePagingMode,
    /// WPE: write protection holds for supervisor requests too.
    #[bit(4, rw)]
    wpe: bool,
    /// EAFE: extended accessed flags are set. Needs ECAP.EAFS.
    #[bit(7, rw)]
    eafe: bool,
    /// FSPTPTR: first-stage table pointer, bits 63:12.
    #[bits(12..=63, rw)]
    fsptptr: u52,
}

page_address!(
    PasidFirstStage,
    HostPhys,
    /// Host physical address of the first-stage root table, for first stage only.
    table, with_table => fsptptr, with_fsptptr
);
page_address!(
    PasidFirstStage,
    GuestPhys,
    /// Guest physical address of the first-stage root table, for nested translation.
    nested_table, with_nested_table => fsptptr, with_fsptptr
);

/// Fifth word of a PASID table entry: host permission table. VT-d §9.6.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PasidHostPermission {
    /// HPTSZ: size of the top table; 4 KiB shifted left by the code. See
    /// [`hpt_root_address_bits`](crate::entry::hpt_root_address_bits).
    #[bits(0..=1, rw)]
    hptsz: u2,
    /// HPTPFD: no prefetching into the host permission table cache.
    #[bit(2, rw)]
    hptpfd: bool,
    /// HPTPTR: pointer to the top table, bits 63:12.
    #[bits(12..=63, rw)]
    hptptr: u52,
}

page_address!(
    PasidHostPermission,
    HostPhys,
    /// Host physical address of the top host permission table.
    table, with_table => hptptr, with_hptptr
);

/// Sixth word of a PASID table entry: domain of the host permission table. VT-d §9.6.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PasidHostPermissionTag {
    /// HPTDID: domain identifier that cached host permission table entries are tagged with.
    #[bits(0..=15, rw)]
    hptdid: u16,
}

domain_field!(
    PasidHostPermissionTag,
    /// The domain that cached host permission table entries are tagged with.
    domain, with_domain => hptdid, with_hptdid
);

/// PASID table entry: 64 bytes, 64 to a table. VT-d §9.6 (Scalable-Mode PASID Table Entry).
///
/// Hardware may read it in pieces, so software writes the word with P last when it enables an entry and first when it
/// disables one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct PasidEntry {
    /// Word 0.
    pub control: PasidControl,
    /// Word 1.
    pub tags: PasidTags,
    /// Word 2.
    pub first_stage: PasidFirstStage,
    /// Word 3, reserved.
    pub reserved3: u64,
    /// Word 4.
    pub host_permission: PasidHostPermission,
    /// Word 5.
    pub host_permission_tag: PasidHostPermissionTag,
    /// Words 6 and 7, reserved.
    pub reserved6: [u64; 2],
}

impl PasidEntry {
    /// Size of an entry in bytes.
    pub const BYTES: u64 = 64;

    /// From the 64-bit words, lowest address first.
    #[must_use]
    pub const fn from_words(words: [u64; 8]) -> Self {
        let [w0, w1, w2, w3, w4, w5, w6, w7] = words;
        Self {
            control: PasidControl::new_with_raw_value(w0),
            tags: PasidTags::new_with_raw_value(w1),
            first_stage: PasidFirstStage::new_with_raw_value(w2),
            reserved3: w3,
            host_permission: PasidHostPermission::new_with_raw_value(w4),
            host_permission_tag: PasidHostPermissionTag::new_with_raw_value(w5),
            reserved6: [w6, w7],
        }
    }

    /// The 64-bit words, lowest address first.
    #[must_use]
    pub const fn to_words(self) -> [u64; 8] {
        [
            self.control.raw_value(),
            self.tags.raw_value(),
            self.first_stage.raw_value(),
            self.reserved3,
            self.host_permission.raw_value(),
            self.host_permission_tag.raw_value(),
            self.reserved6[0],
            self.reserved6[1],
        ]
    }

    /// Index of the entry for a PASID in its table.
    #[must_use]
    pub const fn index(pasid: Pasid) -> u32 {
        pasid.raw() & 0x3F
    }

    /// Bits that must be 0 in this entry if it is present, on a unit with these features, for each word. `hpte` is HPTE of
    /// the context entry.
    ///
    /// Fields that the translation type does not use are ignored and so not listed, except where the unit lacks the
    /// capability altogether.
    #[must_use]
    pub const fn reserved(&self, features: &UnitFeatures, hpte: bool) -> [u64; 8] {
        let ecap = features.extended;
        // A reserved translation type uses no field that could be told; judge it as if it used all.
        let (first, second) = match self.control.translation() {
            Some(translation) => (translation.uses_first_stage(), translation.uses_second_stage()),
            None => (true, true),
        };
        let nested = matches!(self.control.translation(), Some(PasidTranslation::Nested));

        let mut control = 0xC20;
        if !ecap.ssts() {
            control |= PasidControl::aw_mask() | PasidControl::ssade_mask() | PasidControl::ssptptr_mask();
        } else {
            if !ecap.ssads() {
                control |= PasidControl::ssade_mask();
            }
            if second {
                control |= features.address_reserved();
            }
        }

        let mut tags = 0x8888_8888_F87F_0000 | features.domain_reserved(0);
        if !ecap.smpwcs() {
            tags |= PasidTags::pwsnp_mask();
        }
        if !ecap.sc() {
            tags |= PasidTags::pgsnp_mask();
        }
        if !ecap.mts() {
            tags |= PasidTags::cd_mask() | PasidTags::emte_mask() | 0xFFFF_FFFF_0000_0000;
        }

        let mut first_stage = 0xF02;
        if !ecap.srs() {
            first_stage |= PasidFirstStage::sre_mask();
        }
        if !ecap.eafs() {
            first_stage |= PasidFirstStage::eafe_mask();
        }
        if !ecap.fsts() {
            first_stage |= PasidFirstStage::fspm_mask() | PasidFirstStage::wpe_mask() | PasidFirstStage::fsptptr_mask();
        } else if first && !nested {
            // A nested pointer is guest physical: SPT.4.4 judges it, not the host width.
            first_stage |= features.address_reserved();
        }

        let (mut host_permission, mut host_permission_tag) = (0xFF8, 0xFFFF_FFFF_FFFF_0000);
        if !ecap.hpts() {
            (host_permission, host_permission_tag) = (u64::MAX, u64::MAX);
        } else if hpte {
            host_permission |= features.address_reserved();
            host_permission_tag |= features.domain_reserved(0);
        }

        [
            control,
            tags,
            first_stage,
            u64::MAX,
            host_permission,
            host_permission_tag,
            u64::MAX,
            u64::MAX,
        ]
    }
}

#[cfg(test)]
mod tests {
    use iommu_types::DomainId;

    use super::*;
    use crate::features::tests::features;

    #[test]
    fn second_stage_example_encodes() {
        let e = PasidEntry {
            control: PasidControl::DEFAULT
                .with_p(true)
                .with_translation(PasidTranslation::SecondStage)
                .with_agaw(Agaw::Bits48)
                .with_second_stage_table(HostPhys::new(0xABC000)),
            tags: PasidTags::DEFAULT.with_domain(DomainId(5)),
            ..PasidEntry::default()
        };
        assert_eq!(e.to_words(), [0x00AB_C089, 5, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn first_stage_example_encodes() {
        let e = PasidEntry {
            control: PasidControl::DEFAULT
                .with_p(true)
                .with_translation(PasidTranslation::FirstStage),
            tags: PasidTags::DEFAULT.with_domain(DomainId(6)).with_pwsnp(true),
            first_stage: PasidFirstStage::DEFAULT
                .with_wpe(true)
                .with_table(HostPhys::new(0xDEF000)),
            ..PasidEntry::default()
        };
        assert_eq!(e.to_words(), [0x41, 0x0080_0006, 0x00DE_F010, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn fields_match_the_figure() {
        let words = [
            0x0000_0000_1234_5352,
            0x7654_0160_0780_ABCD,
            0x0000_0000_0DEF_0095,
            3,
            0x0000_0000_0FED_0007,
            0x1234,
            6,
            7,
        ];
        let e = PasidEntry::from_words(words);
        assert_eq!(e.to_words(), words);
        assert!(!e.control.p() && e.control.fpd() && e.control.ssade());
        assert_eq!(e.control.aw().value(), 4);
        assert_eq!(e.control.agaw(), None);
        assert_eq!(e.control.pgtt().value(), 5);
        assert_eq!(e.control.translation(), None);
        assert_eq!(e.control.second_stage_table(), HostPhys::new(0x1234_5000));
        assert_eq!(e.tags.domain(), DomainId(0xABCD));
        assert!(e.tags.pwsnp() && e.tags.pgsnp() && e.tags.cd() && e.tags.emte());
        assert_eq!(
            core::array::from_fn(|i| e.tags.pat(i).value()),
            [0, 6, 1, 0, 4, 5, 6, 7]
        );
        assert!(e.first_stage.sre() && e.first_stage.wpe() && e.first_stage.eafe());
        assert_eq!(e.first_stage.fspm(), FirstStagePagingMode::FiveLevel);
        assert_eq!(e.first_stage.nested_table(), GuestPhys::new(0xDEF_0000));
        assert_eq!(e.host_permission.hptsz().value(), 3);
        assert!(e.host_permission.hptpfd());
        assert_eq!(e.host_permission.table(), HostPhys::new(0xFED_0000));
        assert_eq!(e.host_permission_tag.domain(), DomainId(0x1234));
    }

    #[test]
    fn without_capabilities_nearly_everything_is_reserved() {
        let e = PasidEntry::default();
        assert_eq!(
            e.reserved(&features(6, 0, 46), false),
            [
                0xFFFF_FFFF_FFFF_FE3C,
                0xFFFF_FFFF_FFFF_0000,
                0xFFFF_FFFF_FFFF_FF9F,
                u64::MAX,
                u64::MAX,
                u64::MAX,
                u64::MAX,
                u64::MAX
            ]
        );
    }

    #[test]
    fn pointers_of_unused_stages_are_ignored() {
        // SC, MTS, SRS, EAFS, SSADS, SSTS, FSTS, SMPWCS, HPTS.
        let ecap = 1 << 7 | 1 << 25 | 1 << 31 | 1 << 34 | 1 << 45 | 1 << 46 | 1 << 47 | 1 << 48 | 1 << 55;
        let f = features(6, ecap, 46);
        let entry = |pgtt: u64| PasidEntry::from_words([1 | pgtt << 6, 0, 0, 0, 0, 0, 0, 0]);
        let address = 0xFFFF_C000_0000_0000;
        let of = |pgtt| {
            let r = entry(pgtt).reserved(&f, false);
            (r[0], r[2])
        };
        assert_eq!(of(1), (0xC20, address | 0xF02));
        assert_eq!(of(2), (address | 0xC20, 0xF02));
        assert_eq!(of(3), (address | 0xC20, 0xF02));
        assert_eq!(of(4), (0xC20, 0xF02));
        let r = entry(2).reserved(&f, false);
        assert_eq!(
            (r[1], r[4], r[5]),
            (0x8888_8888_F87F_0000, 0xFF8, 0xFFFF_FFFF_FFFF_0000)
        );
        let r = entry(2).reserved(&features(0, ecap, 46), true);
        assert_eq!(
            (r[1], r[4], r[5]),
            (0x8888_8888_F87F_FFF0, address | 0xFF8, 0xFFFF_FFFF_FFFF_FFF0)
        );
    }

    #[test]
    fn index_is_the_low_six_bits() {
        assert_eq!(PasidEntry::index(Pasid::new(0x12345).expect("20 bits")), 5);
    }
}
