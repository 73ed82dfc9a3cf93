//! Interrupt remapping table entries, remapped form.

use arbitrary_int::{u3, u4};
use bitbybit::{bitenum, bitfield};

use crate::encoding::{DeliveryMode, FunctionMask};
use crate::features::UnitFeatures;

/// SVT: how the requester of an interrupt is checked. VT-d §9.9 (IRTE).
#[bitenum(u2, exhaustive = true)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum SourceValidation {
    /// Any requester.
    None = 0,
    /// The requester equals SID, but for the bits that SQ leaves out.
    Requester = 1,
    /// The requester's bus lies in the range from SID 15:8 to SID 7:0, both included.
    BusRange = 2,
    /// Reserved.
    Reserved = 3,
}

/// Interrupt remapping table entry in remapped form (IM = 0), 16 bytes. VT-d §9.9 (IRTE for Remapped Interrupts).
///
/// IM says which form an entry has; for IM = 1 see [`PostedIrte`](crate::entry::PostedIrte).
#[bitfield(u128, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct Irte {
    /// P: present.
    #[bit(0, rw)]
    p: bool,
    /// FPD: fault processing disable; counts also in an entry that is not present.
    #[bit(1, rw)]
    fpd: bool,
    /// DM: destination mode; 1 is logical.
    #[bit(2, rw)]
    dm: bool,
    /// RH: redirection hint.
    #[bit(3, rw)]
    rh: bool,
    /// TM: trigger mode; 1 is level.
    #[bit(4, rw)]
    tm: bool,
    /// DLM: delivery mode; see [`Self::delivery_mode`].
    #[bits(5..=7, rw)]
    dlm: u3,
    /// AVAIL: free for software.
    #[bits(8..=11, rw)]
    avail: u4,
    /// IM: interrupt mode; 0 remapped, 1 posted.
    #[bit(15, rw)]
    im: bool,
    /// V: vector.
    #[bits(16..=23, rw)]
    v: u8,
    /// DST: destination as the register holds it; see [`Self::destination`].
    #[bits(32..=63, rw)]
    dst: u32,
    /// SID: source identifier to compare with, or first and last bus.
    #[bits(64..=79, rw)]
    sid: u16,
    /// SQ: source-id bits that are left out.
    #[bits(80..=81, rw)]
    sq: FunctionMask,
    /// SVT: source validation type.
    #[bits(82..=83, rw)]
    svt: SourceValidation,
}

words128!(Irte);
source_field!(
    Irte,
    /// The requester to compare with.
    source, with_source => sid, with_sid
);

impl Irte {
    /// The delivery mode; `None` for the codes without meaning (3 and 6).
    #[must_use]
    pub const fn delivery_mode(self) -> Option<DeliveryMode> {
        DeliveryMode::from_code(self.dlm().value())
    }

    /// The entry with another delivery mode.
    #[must_use]
    pub const fn with_delivery_mode(self, mode: DeliveryMode) -> Self {
        self.with_dlm(mode.raw_value())
    }

    /// The destination APIC: the whole of DST with extended interrupt mode, else DST bits 15:8.
    #[must_use]
    pub const fn destination(self, eime: bool) -> u32 {
        if eime { self.dst() } else { self.dst() >> 8 & 0xFF }
    }

    /// The entry with another destination APIC. Without extended interrupt mode an APIC ID has 8 bits; the rest is dropped.
    #[must_use]
    pub const fn with_destination(self, apic_id: u32, eime: bool) -> Self {
        self.with_dst(if eime { apic_id } else { (apic_id & 0xFF) << 8 })
    }

    /// Bits that must be 0 in a present entry with IM = 0, on a unit with these features. `eime` is IRTA.EIME.
    #[must_use]
    pub const fn reserved(features: &UnitFeatures, eime: bool) -> u128 {
        let mut reserved = 0xFFFF_FFFF_FFF0_0000_0000_0000_FF00_7000;
        if !features.capability.pi() {
            reserved |= Self::im_mask();
        }
        if !eime {
            reserved |= 0xFFFF_00FF_0000_0000;
        }
        reserved
    }
}

#[cfg(test)]
mod tests {
    use iommu_types::SourceId;

    use super::*;
    use crate::features::tests::features;

    #[test]
    fn example_entry_encodes() {
        // Vector 31h, fixed, edge, physical, xAPIC 7, source 00:03.0 compared in full.
        let e = Irte::DEFAULT
            .with_p(true)
            .with_v(0x31)
            .with_delivery_mode(DeliveryMode::Fixed)
            .with_destination(7, false)
            .with_source(SourceId::from_raw(0x0018))
            .with_svt(SourceValidation::Requester);
        assert_eq!(e.to_words(), [0x0000_0700_0031_0001, 0x0004_0018]);
    }

    #[test]
    fn small_fields_match_the_figure() {
        let e = Irte::from_words([0x1122_3344_00AB_8FBE, 0x000B_1234]);
        assert!(!e.p() && e.fpd() && e.dm() && e.rh() && e.tm() && e.im());
        assert_eq!(e.delivery_mode(), Some(DeliveryMode::Init));
        assert_eq!(e.avail().value(), 0xF);
        assert_eq!(e.v(), 0xAB);
        assert_eq!(e.destination(true), 0x1122_3344);
        assert_eq!(e.destination(false), 0x33);
        assert_eq!((e.sq(), e.svt()), (FunctionMask::Bits2To0, SourceValidation::BusRange));
    }

    #[test]
    fn reserved_bits_follow_posting_support_and_interrupt_mode() {
        let split = crate::layout::split;
        let no_posting = features(0, 0, 46);
        assert_eq!(
            split(Irte::reserved(&no_posting, false)),
            [0xFFFF_00FF_FF00_F000, 0xFFFF_FFFF_FFF0_0000]
        );
        let posting = features(1 << 59, 0, 46);
        assert_eq!(
            split(Irte::reserved(&posting, true)),
            [0x0000_0000_FF00_7000, 0xFFFF_FFFF_FFF0_0000]
        );
    }
}
