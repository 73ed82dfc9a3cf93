//! PASID-based IOTLB invalidation.

use arbitrary_int::{u6, u7, u20, u52};
use bitbybit::bitfield;
use iommu_types::Iova;

use super::descriptor;
use crate::encoding::PasidIotlbGranularity;

/// PASID-based IOTLB Invalidate Descriptor. VT-d §6.5.2.4 (P_IOTLB). Queues of 256-bit descriptors only.
#[bitfield(u128, default = 6, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PasidIotlbInvalidation {
    /// Type: 6.
    #[bits([0..=3, 9..=11], rw)]
    kind: u7,
    /// G: granularity.
    #[bits(4..=5, rw)]
    g: PasidIotlbGranularity,
    /// DID: domain identifier.
    #[bits(16..=31, rw)]
    did: u16,
    /// PASID; see [`Self::pasid`].
    #[bits(32..=51, rw)]
    pasid_value: u20,
    /// AM: address mask, for page-selective requests; 2^AM pages of 4 KiB, naturally aligned.
    #[bits(64..=69, rw)]
    am: u6,
    /// IH: invalidation hint, for page-selective requests; only leaf entries changed.
    #[bit(70, rw)]
    ih: bool,
    /// ADDR: page address, bits 63:12, for page-selective requests.
    #[bits(76..=127, rw)]
    addr: u52,
}

descriptor!(PasidIotlbInvalidation, PASID_IOTLB);
domain_field!(
    PasidIotlbInvalidation,
    /// The domain.
    domain, with_domain => did, with_did
);
pasid_field!(
    PasidIotlbInvalidation,
    /// The PASID.
    pasid, with_pasid => pasid_value, with_pasid_value
);
page_address!(
    PasidIotlbInvalidation,
    Iova,
    /// The first page of page-selective requests.
    address, with_address => addr, with_addr
);

impl PasidIotlbInvalidation {
    /// Bits that must be 0.
    pub const RESERVED: u128 = !(Self::kind_mask()
        | Self::g_mask()
        | Self::did_mask()
        | Self::pasid_value_mask()
        | Self::am_mask()
        | Self::ih_mask()
        | Self::addr_mask());
}

#[cfg(test)]
mod tests {
    use iommu_types::{DomainId, Pasid};

    use super::*;

    #[test]
    fn example_encodes_and_decodes() {
        let d = PasidIotlbInvalidation::DEFAULT
            .with_g(PasidIotlbGranularity::Page)
            .with_domain(DomainId(5))
            .with_pasid(Pasid::new(0x123).expect("20 bits"));
        assert_eq!(d.to_words_256(), [0x0000_0123_0005_0036, 0, 0, 0]);
        let d = PasidIotlbInvalidation::from_words([0x000F_FFFF_0005_0026, 0x0020_0049]);
        assert_eq!(d.g(), PasidIotlbGranularity::Pasid);
        assert_eq!(d.pasid(), Pasid::MAX);
        assert_eq!((d.address(), d.am().value(), d.ih()), (Iova::new(0x20_0000), 9, true));
    }

    #[test]
    fn reserved_bits_match_the_figure() {
        assert_eq!(
            crate::layout::split(PasidIotlbInvalidation::RESERVED),
            [0xFFF0_0000_0000_F1C0, 0xF80]
        );
    }
}
