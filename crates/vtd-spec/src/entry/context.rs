//! Context entries of legacy mode.

use arbitrary_int::{u3, u4, u52};
use bitbybit::{bitenum, bitfield};
use iommu_types::HostPhys;

use crate::agaw::Agaw;
use crate::features::UnitFeatures;

/// TT: what a legacy context entry does with requests. VT-d §9.3 (Context Entry).
#[bitenum(u2, exhaustive = true)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum ContextTranslation {
    /// Untranslated requests go through the second-stage table; translation requests and translated requests are blocked.
    Untranslated = 0,
    /// Untranslated and translation requests go through the second-stage table, translated requests pass. Needs
    /// ECAP.DT.
    WithDeviceTlb = 1,
    /// Untranslated requests pass unchanged; translation requests and translated requests are blocked. Needs ECAP.PT.
    PassThrough = 2,
    /// Reserved.
    Reserved = 3,
}

/// Context entry of legacy mode: one for each device and function, 16 bytes. VT-d §9.3 (Context Entry).
#[bitfield(u128, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct ContextEntry {
    /// P: present.
    #[bit(0, rw)]
    p: bool,
    /// FPD: fault processing disable; counts also in an entry that is not present.
    #[bit(1, rw)]
    fpd: bool,
    /// TT: translation type.
    #[bits(2..=3, rw)]
    tt: ContextTranslation,
    /// SSPTPTR: second-stage table pointer, bits 63:12; ignored for pass-through.
    #[bits(12..=63, rw)]
    ssptptr: u52,
    /// AW: address width code; see [`Self::agaw`].
    #[bits(64..=66, rw)]
    aw: u3,
    /// Bits that hardware ignores, free for software.
    #[bits(67..=70, rw)]
    avail: u4,
    /// DID: domain identifier.
    #[bits(72..=87, rw)]
    did: u16,
}

words128!(ContextEntry);
page_address!(
    ContextEntry,
    HostPhys,
    /// Host physical address of the second-stage root table.
    second_stage_table, with_second_stage_table => ssptptr, with_ssptptr
);
domain_field!(
    ContextEntry,
    /// The domain that cached translations of this function are tagged with.
    domain, with_domain => did, with_did
);

impl ContextEntry {
    /// The address width; `None` for a reserved code.
    #[must_use]
    pub const fn agaw(self) -> Option<Agaw> {
        Agaw::from_code(self.aw().value())
    }

    /// The entry with another address width.
    #[must_use]
    pub const fn with_agaw(self, agaw: Agaw) -> Self {
        self.with_aw(u3::extract_u8(agaw.code(), 0))
    }

    /// Bits that must be 0 in a present entry, on a unit with these features. For pass-through entries the pointer is
    /// ignored: take [`Self::reserved_pass_through`].
    #[must_use]
    pub const fn reserved(features: &UnitFeatures) -> u128 {
        Self::reserved_pass_through(features) | features.address_reserved() as u128
    }

    /// As [`Self::reserved`] without the bits of the table pointer, which pass-through entries ignore.
    #[must_use]
    pub const fn reserved_pass_through(features: &UnitFeatures) -> u128 {
        let defined = Self::p_mask()
            | Self::fpd_mask()
            | Self::tt_mask()
            | Self::ssptptr_mask()
            | Self::aw_mask()
            | Self::avail_mask()
            | Self::did_mask();
        !defined | (features.domain_reserved(8) as u128) << 64
    }
}

#[cfg(test)]
mod tests {
    use iommu_types::DomainId;

    use super::*;
    use crate::features::tests::features;

    #[test]
    fn example_entry_encodes() {
        let e = ContextEntry::DEFAULT
            .with_p(true)
            .with_agaw(Agaw::Bits48)
            .with_second_stage_table(HostPhys::new(0xABC000))
            .with_domain(DomainId(5));
        assert_eq!(e.to_words(), [0x00AB_C001, 0x502]);
        let e = ContextEntry::from_words([0x00AB_C001, 0x502]);
        assert_eq!(e.tt(), ContextTranslation::Untranslated);
        assert_eq!(e.agaw(), Some(Agaw::Bits48));
        assert_eq!(e.domain(), DomainId(5));
        assert!(!e.fpd());
    }

    #[test]
    fn small_fields_match_the_figure() {
        let e = ContextEntry::from_words([0x0A, 0x78]);
        assert!(!e.p() && e.fpd());
        assert_eq!(e.tt(), ContextTranslation::PassThrough);
        assert_eq!(e.avail().value(), 0xF);
        assert_eq!(e.agaw(), None);
    }

    #[test]
    fn reserved_bits_follow_host_width_and_domain_width() {
        // 8-bit domain identifiers.
        let f = features(0x2, 0, 39);
        assert_eq!(
            crate::layout::split(ContextEntry::reserved(&f)),
            [0xFFFF_FF80_0000_0FF0, 0xFFFF_FFFF_FFFF_0080]
        );
        let f = features(0x6, 0, 52);
        assert_eq!(
            crate::layout::split(ContextEntry::reserved(&f)),
            [0xFFF0_0000_0000_0FF0, 0xFFFF_FFFF_FF00_0080]
        );
        assert_eq!(crate::layout::split(ContextEntry::reserved_pass_through(&f))[0], 0xFF0);
    }
}
