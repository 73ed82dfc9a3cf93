//! PASID-based device-TLB invalidation.

use arbitrary_int::{u5, u7, u20, u52};
use bitbybit::bitfield;
use iommu_types::Iova;

use super::descriptor;
use super::device_tlb::{decode_size, encode_size};

/// PASID-based Device-TLB Invalidate Descriptor. VT-d §6.5.2.6. Queues of 256-bit descriptors only.
#[bitfield(u128, default = 8, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PasidDeviceTlbInvalidation {
    /// Type: 8.
    #[bits([0..=3, 9..=11], rw)]
    kind: u7,
    /// MIP: maximum invalidations pending, the function's invalidate queue depth; 0 stands for 32.
    #[bits(4..=8, rw)]
    mip: u5,
    /// PFSID: source identifier of the physical function whose throttle applies; see [`Self::physical_function`]. Needs
    /// ECAP.DIT.
    #[bits([12..=15, 52..=63], rw)]
    pfsid: u16,
    /// SID: source identifier of the function.
    #[bits(16..=31, rw)]
    sid: u16,
    /// PASID, unless GI; see [`Self::pasid`].
    #[bits(32..=51, rw)]
    pasid_value: u20,
    /// GI: global invalidate; all PASIDs.
    #[bit(64, rw)]
    gi: bool,
    /// S: size; 1 means that the lowest zero bit of ADDR tells the size.
    #[bit(75, rw)]
    s: bool,
    /// ADDR: page address, bits 63:12, with the size encoded if S is set; see [`Self::with_range`].
    #[bits(76..=127, rw)]
    addr: u52,
}

descriptor!(PasidDeviceTlbInvalidation, PASID_DEVICE_TLB);
source_field!(
    PasidDeviceTlbInvalidation,
    /// The function whose device-TLB is meant.
    source, with_source => sid, with_sid
);
source_field!(
    PasidDeviceTlbInvalidation,
    /// The physical function whose throttle applies.
    physical_function, with_physical_function => pfsid, with_pfsid
);
pasid_field!(
    PasidDeviceTlbInvalidation,
    /// The PASID, unless GI.
    pasid, with_pasid => pasid_value, with_pasid_value
);
page_address!(
    PasidDeviceTlbInvalidation,
    Iova,
    /// The address field as it stands, size encoding included.
    address, with_address => addr, with_addr
);

impl PasidDeviceTlbInvalidation {
    /// Bits that must be 0.
    pub const RESERVED: u128 = !(Self::kind_mask()
        | Self::mip_mask()
        | Self::pfsid_mask()
        | Self::sid_mask()
        | Self::pasid_value_mask()
        | Self::gi_mask()
        | Self::s_mask()
        | Self::addr_mask());

    /// The descriptor for 2^`order` pages of 4 KiB around `address`, naturally aligned. From order 52 on it means
    /// everything.
    #[must_use]
    pub const fn with_range(self, address: Iova, order: u8) -> Self {
        let (s, field) = encode_size(address, order);
        self.with_s(s).with_addr(field)
    }

    /// First page and order of the range: 2^order pages of 4 KiB. Order 52 is everything.
    #[must_use]
    pub const fn range(self) -> (Iova, u8) {
        decode_size(self.s(), self.addr())
    }
}

#[cfg(test)]
mod tests {
    use iommu_types::{Pasid, SourceId};

    use super::*;

    #[test]
    fn everything_is_all_ones_but_the_top_bit() {
        let d = PasidDeviceTlbInvalidation::DEFAULT
            .with_source(SourceId::from_raw(0x0300))
            .with_pasid(Pasid::new(0x12345).expect("20 bits"))
            .with_range(Iova::ZERO, 52);
        assert_eq!(d.to_words_256(), [0x0001_2345_0300_0008, 0x7FFF_FFFF_FFFF_F800, 0, 0]);
        assert_eq!(d.range(), (Iova::ZERO, 52));
    }

    #[test]
    fn fields_match_the_figure() {
        let d = PasidDeviceTlbInvalidation::from_words([0xABC0_0007_0018_D1F8, 0x4020_0001]);
        assert_eq!(d.mip().value(), 31);
        assert_eq!(d.physical_function(), SourceId::from_raw(0xABCD));
        assert_eq!(d.source(), SourceId::from_raw(0x0018));
        assert_eq!(d.pasid(), Pasid::new(7).expect("20 bits"));
        assert!(d.gi() && !d.s());
        assert_eq!(d.range(), (Iova::new(0x4020_0000), 0));
    }

    #[test]
    fn reserved_bits_match_the_figure() {
        assert_eq!(
            crate::layout::split(PasidDeviceTlbInvalidation::RESERVED),
            [0x0000_0000_0000_0000, 0x7FE]
        );
    }
}
