//! Interrupt entry cache invalidation.

use arbitrary_int::{u5, u7};
use bitbybit::bitfield;

use super::descriptor;
use crate::encoding::InterruptGranularity;

/// Interrupt Entry Cache Invalidate Descriptor. VT-d §6.5.2.8.
#[bitfield(u128, default = 4, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct InterruptEntryInvalidation {
    /// Type: 4.
    #[bits([0..=3, 9..=11], rw)]
    kind: u7,
    /// G: granularity.
    #[bits(4..=4, rw)]
    g: InterruptGranularity,
    /// IM: index mask; 2^IM entries, naturally aligned, at most ECAP.MHMV.
    #[bits(27..=31, rw)]
    im: u5,
    /// IIDX: interrupt index, for index-selective requests.
    #[bits(32..=47, rw)]
    iidx: u16,
}

descriptor!(InterruptEntryInvalidation, INTERRUPT_ENTRY);

impl InterruptEntryInvalidation {
    /// Bits that must be 0.
    pub const RESERVED: u128 = !(Self::kind_mask() | Self::g_mask() | Self::im_mask() | Self::iidx_mask());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_encodes_and_decodes() {
        let d = InterruptEntryInvalidation::DEFAULT
            .with_g(InterruptGranularity::Index)
            .with_iidx(0x40)
            .with_im(u5::new(3));
        assert_eq!(d.to_words(), [0x0000_0040_1800_0014, 0]);
        let d = InterruptEntryInvalidation::from_words([0x0000_0040_1800_0014, 0]);
        assert_eq!(
            (d.g(), d.im().value(), d.iidx()),
            (InterruptGranularity::Index, 3, 0x40)
        );
    }

    #[test]
    fn reserved_bits_match_the_figure() {
        assert_eq!(
            crate::layout::split(InterruptEntryInvalidation::RESERVED),
            [0xFFFF_0000_07FF_F1E0, u64::MAX]
        );
    }
}
