//! Root entries of scalable mode.

use arbitrary_int::u52;
use bitbybit::bitfield;
use iommu_types::{DevFn, HostPhys};

use crate::features::UnitFeatures;

/// Root entry of scalable mode: one for each bus, 16 bytes. VT-d §9.2 (Scalable-mode Root Entry).
///
/// Each half names the context table of one half of the functions of the bus.
#[bitfield(u128, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct ScalableRootEntry {
    /// LP: lower half present.
    #[bit(0, rw)]
    lp: bool,
    /// LCTP: context table pointer for devfn 00h to 7Fh, bits 63:12.
    #[bits(12..=63, rw)]
    lctp: u52,
    /// UP: upper half present.
    #[bit(64, rw)]
    up: bool,
    /// UCTP: context table pointer for devfn 80h to FFh, bits 63:12.
    #[bits(76..=127, rw)]
    uctp: u52,
}

words128!(ScalableRootEntry);
page_address!(
    ScalableRootEntry,
    HostPhys,
    /// Host physical address of the context table for devfn 00h to 7Fh.
    lower_context_table, with_lower_context_table => lctp, with_lctp
);
page_address!(
    ScalableRootEntry,
    HostPhys,
    /// Host physical address of the context table for devfn 80h to FFh.
    upper_context_table, with_upper_context_table => uctp, with_uctp
);

impl ScalableRootEntry {
    /// The context table for a function: `None` if that half is not present.
    #[must_use]
    pub const fn context_table(self, devfn: DevFn) -> Option<HostPhys> {
        if devfn.raw() < 0x80 {
            if self.lp() {
                Some(self.lower_context_table())
            } else {
                None
            }
        } else if self.up() {
            Some(self.upper_context_table())
        } else {
            None
        }
    }

    /// The half of an entry that serves a function: 0 the lower word, 1 the upper one.
    #[must_use]
    pub const fn half(devfn: DevFn) -> usize {
        if devfn.raw() < 0x80 { 0 } else { 1 }
    }

    /// Bits of each word that must be 0 if that half is present, on a unit with these features.
    #[must_use]
    pub const fn reserved(features: &UnitFeatures) -> [u64; 2] {
        let half = 0xFFE | features.address_reserved();
        [half, half]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tests::features;

    #[test]
    fn halves_serve_their_functions() {
        let e = ScalableRootEntry::from_words([0x0111_1001, 0x0222_2000]);
        assert_eq!(e.context_table(DevFn::from_raw(0x7F)), Some(HostPhys::new(0x111_1000)));
        assert_eq!(e.context_table(DevFn::from_raw(0x80)), None);
        let e = ScalableRootEntry::DEFAULT
            .with_up(true)
            .with_upper_context_table(HostPhys::new(0x222_2000));
        assert_eq!(e.to_words(), [0, 0x0222_2001]);
        assert_eq!(e.context_table(DevFn::from_raw(0xFF)), Some(HostPhys::new(0x222_2000)));
        assert_eq!(
            [0x00, 0x7F, 0x80, 0xFF].map(|d| ScalableRootEntry::half(DevFn::from_raw(d))),
            [0, 0, 1, 1]
        );
        assert_eq!(
            ScalableRootEntry::reserved(&features(0, 0, 46)),
            [0xFFFF_C000_0000_0FFE; 2]
        );
    }
}
