//! Root entries of legacy mode.

use arbitrary_int::u52;
use bitbybit::bitfield;
use iommu_types::HostPhys;

use crate::features::UnitFeatures;

/// Root entry of legacy mode: one for each bus, 16 bytes. VT-d §9.1 (Root Entry).
#[bitfield(u128, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct RootEntry {
    /// P: present.
    #[bit(0, rw)]
    p: bool,
    /// CTP: context table pointer, bits 63:12.
    #[bits(12..=63, rw)]
    ctp: u52,
}

words128!(RootEntry);
page_address!(
    RootEntry,
    HostPhys,
    /// Host physical address of the context table of the bus.
    context_table, with_context_table => ctp, with_ctp
);

impl RootEntry {
    /// Bits that must be 0 in a present entry, on a unit with these features.
    #[must_use]
    pub const fn reserved(features: &UnitFeatures) -> u128 {
        !(Self::p_mask() | Self::ctp_mask()) | features.address_reserved() as u128
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tests::features;

    #[test]
    fn example_entry_encodes() {
        let e = RootEntry::DEFAULT
            .with_p(true)
            .with_context_table(HostPhys::new(0x123_4000));
        assert_eq!(e.to_words(), [0x0123_4001, 0]);
        let e = RootEntry::from_words([0x0123_4001, 0]);
        assert!(e.p());
        assert_eq!(e.context_table(), HostPhys::new(0x123_4000));
    }

    #[test]
    fn reserved_bits_are_the_gap_the_upper_word_and_addresses_beyond_the_host_width() {
        let reserved = RootEntry::reserved(&features(0, 0, 46));
        assert_eq!(crate::layout::split(reserved), [0xFFFF_C000_0000_0FFE, u64::MAX]);
    }
}
