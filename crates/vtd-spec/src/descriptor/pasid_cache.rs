//! PASID-cache invalidation.

use arbitrary_int::{u7, u20};
use bitbybit::bitfield;

use super::descriptor;
use crate::encoding::PasidCacheGranularity;

/// PASID-cache Invalidate Descriptor. VT-d §6.5.2.2. Queues of 256-bit descriptors only.
#[bitfield(u128, default = 7, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PasidCacheInvalidation {
    /// Type: 7.
    #[bits([0..=3, 9..=11], rw)]
    kind: u7,
    /// G: granularity.
    #[bits(4..=5, rw)]
    g: PasidCacheGranularity,
    /// DID: domain identifier, unless global.
    #[bits(16..=31, rw)]
    did: u16,
    /// PASID, for PASID-selective requests; see [`Self::pasid`].
    #[bits(32..=51, rw)]
    pasid_value: u20,
}

descriptor!(PasidCacheInvalidation, PASID_CACHE);
domain_field!(
    PasidCacheInvalidation,
    /// The domain, unless global.
    domain, with_domain => did, with_did
);
pasid_field!(
    PasidCacheInvalidation,
    /// The PASID of PASID-selective requests.
    pasid, with_pasid => pasid_value, with_pasid_value
);

impl PasidCacheInvalidation {
    /// Bits that must be 0.
    pub const RESERVED: u128 = !(Self::kind_mask() | Self::g_mask() | Self::did_mask() | Self::pasid_value_mask());
}

#[cfg(test)]
mod tests {
    use iommu_types::{DomainId, Pasid};

    use super::*;

    #[test]
    fn example_encodes_and_decodes() {
        let d = PasidCacheInvalidation::DEFAULT
            .with_g(PasidCacheGranularity::Pasid)
            .with_domain(DomainId(5))
            .with_pasid(Pasid::new(0x123).expect("20 bits"));
        assert_eq!(d.to_words_256(), [0x0000_0123_0005_0017, 0, 0, 0]);
        let global = PasidCacheInvalidation::from_words([0x37, 0]);
        assert_eq!(global.g(), PasidCacheGranularity::Global);
    }

    #[test]
    fn reserved_bits_match_the_figure() {
        assert_eq!(
            crate::layout::split(PasidCacheInvalidation::RESERVED),
            [0xFFF0_0000_0000_F1C0, u64::MAX]
        );
    }
}
