//! Device-TLB invalidation.

use arbitrary_int::{u5, u7, u52};
use bitbybit::bitfield;
use iommu_types::Iova;

use super::descriptor;

/// Device-TLB Invalidate Descriptor. VT-d §6.5.2.5.
#[bitfield(u128, default = 3, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct DeviceTlbInvalidation {
    /// Type: 3.
    #[bits([0..=3, 9..=11], rw)]
    kind: u7,
    /// PFSID: source identifier of the physical function whose throttle applies; see [`Self::physical_function`]. Needs
    /// ECAP.DIT.
    #[bits([12..=15, 52..=63], rw)]
    pfsid: u16,
    /// MIP: maximum invalidations pending, the function's invalidate queue depth; 0 stands for 32.
    #[bits(16..=20, rw)]
    mip: u5,
    /// SID: source identifier of the function.
    #[bits(32..=47, rw)]
    sid: u16,
    /// S: size; 1 means that the lowest zero bit of ADDR tells the size.
    #[bit(64, rw)]
    s: bool,
    /// ADDR: page address, bits 63:12, with the size encoded if S is set; see [`Self::with_range`].
    #[bits(76..=127, rw)]
    addr: u52,
}

descriptor!(DeviceTlbInvalidation, DEVICE_TLB);
source_field!(
    DeviceTlbInvalidation,
    /// The function whose device-TLB is meant.
    source, with_source => sid, with_sid
);
source_field!(
    DeviceTlbInvalidation,
    /// The physical function whose throttle applies.
    physical_function, with_physical_function => pfsid, with_pfsid
);
page_address!(
    DeviceTlbInvalidation,
    Iova,
    /// The address field as it stands, size encoding included.
    address, with_address => addr, with_addr
);

impl DeviceTlbInvalidation {
    /// Bits that must be 0.
    pub const RESERVED: u128 = !(Self::kind_mask()
        | Self::pfsid_mask()
        | Self::mip_mask()
        | Self::sid_mask()
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

/// S and ADDR of a range of 2^`order` pages: with k ones from bit 12 upwards and a zero above them, S = 1 means 2^(k+1)
/// pages. VT-d §6.5.2.5.
pub(super) const fn encode_size(address: Iova, order: u8) -> (bool, u52) {
    let page = address.raw() >> 12;
    if order == 0 {
        return (false, u52::extract_u64(page, 0));
    }
    if order >= 52 {
        return (true, u52::extract_u64(u64::MAX >> 13, 0));
    }
    let base = page & !((1 << order) - 1);
    (true, u52::extract_u64(base | ((1 << (order - 1)) - 1), 0))
}

/// The inverse of [`encode_size`].
pub(super) const fn decode_size(s: bool, addr: u52) -> (Iova, u8) {
    let page = addr.value();
    if !s {
        return (Iova::new(page << 12), 0);
    }
    let ones = page.trailing_ones();
    if ones >= 51 {
        return (Iova::ZERO, 52);
    }
    let order = (ones & 0x3F) as u8 + 1;
    (Iova::new((page & !((1 << order) - 1)) << 12), order)
}

#[cfg(test)]
mod tests {
    use iommu_types::SourceId;

    use super::*;

    #[test]
    fn everything_is_all_ones_but_the_top_bit() {
        let d = DeviceTlbInvalidation::DEFAULT
            .with_source(SourceId::from_raw(0x0300))
            .with_range(Iova::new(0x1234_5000), 52);
        assert_eq!(d.to_words(), [0x0000_0300_0000_0003, 0x7FFF_FFFF_FFFF_F001]);
        assert_eq!(d.range(), (Iova::ZERO, 52));
        let all = DeviceTlbInvalidation::from_words([3, 0xFFFF_FFFF_FFFF_F001]);
        assert_eq!(all.range(), (Iova::ZERO, 52));
    }

    #[test]
    fn sizes_follow_the_lowest_zero_bit() {
        let words = |address, order| {
            DeviceTlbInvalidation::DEFAULT
                .with_range(Iova::new(address), order)
                .to_words()[1]
        };
        assert_eq!(words(0x1234_5678, 0), 0x1234_5000);
        // Two pages: bit 12 is the lowest zero bit.
        assert_eq!(words(0x1234_5000, 1), 0x1234_4001);
        // Four pages: one 1 from bit 12.
        assert_eq!(words(0x1234_5000, 2), 0x1234_5001);
        // 2 MiB: eight ones from bit 12.
        assert_eq!(words(0x4020_0000, 9), 0x402F_F001);
        for order in 0..=52 {
            let d = DeviceTlbInvalidation::DEFAULT.with_range(Iova::ZERO, order);
            assert_eq!(d.range(), (Iova::ZERO, order));
        }
    }

    #[test]
    fn split_source_of_the_physical_function_joins() {
        let d = DeviceTlbInvalidation::from_words([0xABC0_0018_001F_D003, 0]);
        assert_eq!(d.physical_function(), SourceId::from_raw(0xABCD));
        assert_eq!(d.mip().value(), 31);
        assert_eq!(d.source(), SourceId::from_raw(0x0018));
        let back = DeviceTlbInvalidation::DEFAULT.with_physical_function(SourceId::from_raw(0xABCD));
        assert_eq!(back.to_words()[0], 0xABC0_0000_0000_D003);
    }

    #[test]
    fn reserved_bits_match_the_figure() {
        assert_eq!(
            crate::layout::split(DeviceTlbInvalidation::RESERVED),
            [0x000F_0000_FFE0_01F0, 0xFFE]
        );
    }
}
