//! Context-cache invalidation.

use arbitrary_int::u7;
use bitbybit::bitfield;

use super::descriptor;
use crate::encoding::{ContextGranularity, FunctionMask};

/// Context-cache Invalidate Descriptor. VT-d §6.5.2.1.
#[bitfield(u128, default = 1, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct ContextCacheInvalidation {
    /// Type: 1.
    #[bits([0..=3, 9..=11], rw)]
    kind: u7,
    /// G: granularity.
    #[bits(4..=5, rw)]
    g: ContextGranularity,
    /// DID: domain identifier, for domain- and device-selective requests.
    #[bits(16..=31, rw)]
    did: u16,
    /// SID: source identifier, for device-selective requests.
    #[bits(32..=47, rw)]
    sid: u16,
    /// FM: function bits of SID that are left out.
    #[bits(48..=49, rw)]
    fm: FunctionMask,
}

descriptor!(ContextCacheInvalidation, CONTEXT_CACHE);
domain_field!(
    ContextCacheInvalidation,
    /// The domain of domain- and device-selective requests.
    domain, with_domain => did, with_did
);
source_field!(
    ContextCacheInvalidation,
    /// The source of device-selective requests.
    source, with_source => sid, with_sid
);

impl ContextCacheInvalidation {
    /// Bits that must be 0.
    pub const RESERVED: u128 =
        !(Self::kind_mask() | Self::g_mask() | Self::did_mask() | Self::sid_mask() | Self::fm_mask());
}

#[cfg(test)]
mod tests {
    use iommu_types::{DomainId, SourceId};

    use super::*;

    #[test]
    fn example_encodes_and_decodes() {
        let d = ContextCacheInvalidation::DEFAULT
            .with_g(ContextGranularity::Device)
            .with_domain(DomainId(5))
            .with_source(SourceId::from_raw(0x0018));
        assert_eq!(d.to_words(), [0x0000_0018_0005_0031, 0]);
        assert_eq!(d.to_words_256(), [0x0000_0018_0005_0031, 0, 0, 0]);
        let d = ContextCacheInvalidation::from_words([0x0003_0018_0005_0031, 0]);
        assert_eq!(d.fm(), FunctionMask::Bits2To0);
        assert_eq!(d.source(), SourceId::from_raw(0x0018));
        assert_eq!(ContextCacheInvalidation::TYPE.0, 1);
    }

    #[test]
    fn reserved_bits_match_the_figure() {
        assert_eq!(
            crate::layout::split(ContextCacheInvalidation::RESERVED),
            [0xFFFC_0000_0000_F1C0, u64::MAX]
        );
    }
}
