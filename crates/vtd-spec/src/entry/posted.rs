//! Posted interrupts: the posted form of interrupt remapping table entries, and the descriptor they point to.

use arbitrary_int::{u4, u58};
use bitbybit::bitfield;
use iommu_types::HostPhys;

use super::irte::SourceValidation;
use crate::encoding::FunctionMask;
use crate::features::UnitFeatures;

/// Interrupt remapping table entry in posted form (IM = 1), 16 bytes. VT-d §9.10 (IRTE for Posted Interrupts). Needs CAP.PI.
#[bitfield(u128, default = 0x8000, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PostedIrte {
    /// P: present.
    #[bit(0, rw)]
    p: bool,
    /// FPD: fault processing disable; counts also in an entry that is not present.
    #[bit(1, rw)]
    fpd: bool,
    /// AVAIL: free for software.
    #[bits(8..=11, rw)]
    avail: u4,
    /// URG: urgent; notifies although notification is suppressed.
    #[bit(14, rw)]
    urg: bool,
    /// IM: interrupt mode; 1 posted.
    #[bit(15, rw)]
    im: bool,
    /// VV: virtual vector.
    #[bits(16..=23, rw)]
    vv: u8,
    /// SID: source identifier to compare with, or first and last bus.
    #[bits(64..=79, rw)]
    sid: u16,
    /// SQ: source-id bits that are left out.
    #[bits(80..=81, rw)]
    sq: FunctionMask,
    /// SVT: source validation type.
    #[bits(82..=83, rw)]
    svt: SourceValidation,
    /// PDA: posted descriptor address, bits 31:6 from bits 63:38 and bits 63:32 from bits 127:96.
    #[bits([38..=63, 96..=127], rw)]
    pda: u58,
}

words128!(PostedIrte);
source_field!(
    PostedIrte,
    /// The requester to compare with.
    source, with_source => sid, with_sid
);

impl PostedIrte {
    /// Host physical address of the posted interrupt descriptor, aligned to 64 bytes.
    #[must_use]
    pub const fn descriptor(self) -> HostPhys {
        HostPhys::new(self.pda().value() << 6)
    }

    /// The entry with another descriptor; bits 5:0 of the address are dropped.
    #[must_use]
    pub const fn with_descriptor(self, address: HostPhys) -> Self {
        self.with_pda(u58::extract_u64(address.raw(), 6))
    }

    /// Bits that must be 0 in a present entry with IM = 1, on a unit with these features.
    #[must_use]
    pub const fn reserved(features: &UnitFeatures) -> u128 {
        let address = features.address_reserved();
        // Address bits 31:n of a tiny host width stand in the lower word, 32 bits lower down or not at all.
        let low = 0x0000_003F_FF00_30FC | (address & 0xFFFF_FFC0) << 32;
        let high = 0x0000_0000_FFF0_0000 | address & 0xFFFF_FFFF_0000_0000;
        crate::layout::join([low, high])
    }
}

/// The word of a posted interrupt descriptor that governs notifications: bits 319:256. VT-d §9.11 (PID).
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PostedInterruptControl {
    /// ON: outstanding notification.
    #[bit(0, rw)]
    on: bool,
    /// SN: suppress notification of interrupts that are not urgent.
    #[bit(1, rw)]
    sn: bool,
    /// NV: notification vector.
    #[bits(16..=23, rw)]
    nv: u8,
    /// NDST: notification destination as it stands; see [`Self::destination`].
    #[bits(32..=63, rw)]
    ndst: u32,
}

impl PostedInterruptControl {
    /// The physical APIC ID to notify: the whole of NDST with extended interrupt mode, else NDST bits 15:8.
    #[must_use]
    pub const fn destination(self, eime: bool) -> u32 {
        if eime { self.ndst() } else { self.ndst() >> 8 & 0xFF }
    }

    /// The word with another APIC ID to notify. Without extended interrupt mode an APIC ID has 8 bits; the rest is dropped.
    #[must_use]
    pub const fn with_destination(self, apic_id: u32, eime: bool) -> Self {
        self.with_ndst(if eime { apic_id } else { (apic_id & 0xFF) << 8 })
    }
}

/// Posted interrupt descriptor: 64 bytes, aligned to 64 bytes, updated as a whole. VT-d §9.11 (PID).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct PostedInterruptDescriptor {
    /// PIR: posted interrupt requests, bit v for vector v.
    pub requests: [u64; 4],
    /// Notification control.
    pub control: PostedInterruptControl,
    /// Bits 511:320, reserved.
    pub reserved: [u64; 3],
}

impl PostedInterruptDescriptor {
    /// Size in bytes.
    pub const BYTES: u64 = 64;

    /// From the 64-bit words, lowest address first.
    #[must_use]
    pub const fn from_words(words: [u64; 8]) -> Self {
        let [r0, r1, r2, r3, control, z0, z1, z2] = words;
        Self {
            requests: [r0, r1, r2, r3],
            control: PostedInterruptControl::new_with_raw_value(control),
            reserved: [z0, z1, z2],
        }
    }

    /// The 64-bit words, lowest address first.
    #[must_use]
    pub const fn to_words(self) -> [u64; 8] {
        let [r0, r1, r2, r3] = self.requests;
        let [z0, z1, z2] = self.reserved;
        [r0, r1, r2, r3, self.control.raw_value(), z0, z1, z2]
    }

    /// Whether an interrupt with a vector is posted.
    #[must_use]
    pub const fn is_requested(&self, vector: u8) -> bool {
        self.requests[(vector >> 6) as usize] & 1 << (vector & 0x3F) != 0
    }

    /// The descriptor with an interrupt posted.
    #[must_use]
    pub const fn with_request(mut self, vector: u8) -> Self {
        self.requests[(vector >> 6) as usize] |= 1 << (vector & 0x3F);
        self
    }

    /// Bits that must be 0, for each word. `eime` is IRTA.EIME.
    #[must_use]
    pub const fn reserved(eime: bool) -> [u64; 8] {
        let control = if eime { 0xFF00_FFFC } else { 0xFFFF_00FF_FF00_FFFC };
        [0, 0, 0, 0, control, u64::MAX, u64::MAX, u64::MAX]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tests::features;

    #[test]
    fn posted_entry_splits_the_descriptor_address() {
        let e = PostedIrte::DEFAULT
            .with_p(true)
            .with_urg(true)
            .with_vv(0x31)
            .with_descriptor(HostPhys::new(0x0000_0012_3456_7FC0));
        assert_eq!(e.to_words(), [0x3456_7FC0_0031_C001, 0x0000_0012_0000_0000]);
        assert_eq!(e.descriptor(), HostPhys::new(0x12_3456_7FC0));
        assert!(PostedIrte::DEFAULT.im());
    }

    #[test]
    fn posted_entry_keeps_source_validation_in_place() {
        let e = PostedIrte::from_words([0x8F02, 0x000A_1234]);
        assert!(!e.p() && e.fpd() && e.im());
        assert_eq!(e.avail().value(), 0xF);
        assert_eq!(e.sid(), 0x1234);
        assert_eq!((e.sq(), e.svt()), (FunctionMask::Bits2To1, SourceValidation::BusRange));
    }

    #[test]
    fn posted_entry_reserved_bits_follow_the_host_width() {
        let split = crate::layout::split;
        assert_eq!(
            split(PostedIrte::reserved(&features(0, 0, 46))),
            [0x0000_003F_FF00_30FC, 0xFFFF_C000_FFF0_0000]
        );
        assert_eq!(
            split(PostedIrte::reserved(&features(0, 0, 30))),
            [0xC000_003F_FF00_30FC, 0xFFFF_FFFF_FFF0_0000]
        );
    }

    #[test]
    fn descriptor_fields_match_the_figure() {
        let d = PostedInterruptDescriptor::from_words([0, 0, 0, 1 << 63, 0x1122_3344_00F2_0003, 0, 0, 0]);
        assert!(d.is_requested(0xFF) && !d.is_requested(0xFE));
        assert!(d.control.on() && d.control.sn());
        assert_eq!(d.control.nv(), 0xF2);
        assert_eq!(
            (d.control.destination(true), d.control.destination(false)),
            (0x1122_3344, 0x33)
        );
        let d = PostedInterruptDescriptor::default().with_request(0x41);
        assert_eq!(d.to_words(), [0, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            PostedInterruptDescriptor::reserved(false),
            [0, 0, 0, 0, 0xFFFF_00FF_FF00_FFFC, u64::MAX, u64::MAX, u64::MAX]
        );
    }
}
