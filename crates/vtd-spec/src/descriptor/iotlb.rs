//! IOTLB invalidation.

use arbitrary_int::{u6, u7, u52};
use bitbybit::bitfield;
use iommu_types::Iova;

use super::descriptor;
use crate::encoding::IotlbGranularity;

/// IOTLB Invalidate Descriptor. VT-d §6.5.2.3.
#[bitfield(u128, default = 2, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct IotlbInvalidation {
    /// Type: 2.
    #[bits([0..=3, 9..=11], rw)]
    kind: u7,
    /// G: granularity; page-selective needs CAP.PSI.
    #[bits(4..=5, rw)]
    g: IotlbGranularity,
    /// DW: drain writes.
    #[bit(6, rw)]
    dw: bool,
    /// DR: drain reads.
    #[bit(7, rw)]
    dr: bool,
    /// DID: domain identifier, for domain- and page-selective requests.
    #[bits(16..=31, rw)]
    did: u16,
    /// AM: address mask, for page-selective requests; 2^AM pages of 4 KiB, naturally aligned, at most CAP.MAMV.
    #[bits(64..=69, rw)]
    am: u6,
    /// IH: invalidation hint, for page-selective requests; only leaf entries changed.
    #[bit(70, rw)]
    ih: bool,
    /// ADDR: page address, bits 63:12, for page-selective requests.
    #[bits(76..=127, rw)]
    addr: u52,
}

descriptor!(IotlbInvalidation, IOTLB);
domain_field!(
    IotlbInvalidation,
    /// The domain of domain- and page-selective requests.
    domain, with_domain => did, with_did
);
page_address!(
    IotlbInvalidation,
    Iova,
    /// The first page of page-selective requests.
    address, with_address => addr, with_addr
);

impl IotlbInvalidation {
    /// Bits that must be 0.
    pub const RESERVED: u128 = !(Self::kind_mask()
        | Self::g_mask()
        | Self::dw_mask()
        | Self::dr_mask()
        | Self::did_mask()
        | Self::am_mask()
        | Self::ih_mask()
        | Self::addr_mask());
}

#[cfg(test)]
mod tests {
    use iommu_types::DomainId;

    use super::*;

    #[test]
    fn example_encodes_and_decodes() {
        let d = IotlbInvalidation::DEFAULT
            .with_g(IotlbGranularity::Page)
            .with_dr(true)
            .with_dw(true)
            .with_domain(DomainId(5))
            .with_am(u6::new(9))
            .with_address(Iova::new(0x20_0000));
        assert_eq!(d.to_words(), [0x0000_0000_0005_00F2, 0x0020_0009]);
        let d = IotlbInvalidation::from_words([0x0000_0000_0005_0072, 0x0020_0049]);
        assert!(d.dw() && !d.dr() && d.ih());
        assert_eq!(d.am().value(), 9);
        assert_eq!(d.address(), Iova::new(0x20_0000));
    }

    #[test]
    fn reserved_bits_match_the_figure() {
        assert_eq!(
            crate::layout::split(IotlbInvalidation::RESERVED),
            [0xFFFF_FFFF_0000_F100, 0xF80]
        );
    }
}
