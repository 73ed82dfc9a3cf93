//! Host permission table cache invalidation.

use arbitrary_int::{u2, u6, u7, u52};
use bitbybit::bitfield;
use iommu_types::HostPhys;

use super::descriptor;
use crate::encoding::IotlbGranularity;

/// HPT Cache Invalidate Descriptor. VT-d §6.5.2.7. Queues of 256-bit descriptors only. Needs ECAP.HPTS.
#[bitfield(u128, default = 0xA, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct HostPermissionInvalidation {
    /// Type: Ah.
    #[bits([0..=3, 9..=11], rw)]
    kind: u7,
    /// G: granularity.
    #[bits(4..=5, rw)]
    g: IotlbGranularity,
    /// HPTDID: domain identifier of the host permission table, unless global.
    #[bits(16..=31, rw)]
    hptdid: u16,
    /// AM: address mask, for page-selective requests; 2^AM pages of 4 KiB, naturally aligned.
    #[bits(64..=69, rw)]
    am: u6,
    /// IH: which levels changed, unless global: 0 level 1, 1 levels 1 and 2, 2 levels 1 to 3, 3 all.
    #[bits(70..=71, rw)]
    ih: u2,
    /// ADDR: host physical page address, bits 63:12, for page-selective requests.
    #[bits(76..=127, rw)]
    addr: u52,
}

descriptor!(HostPermissionInvalidation, HOST_PERMISSION);
domain_field!(
    HostPermissionInvalidation,
    /// The domain of the host permission table, unless global.
    domain, with_domain => hptdid, with_hptdid
);
page_address!(
    HostPermissionInvalidation,
    HostPhys,
    /// The first page of page-selective requests.
    address, with_address => addr, with_addr
);

impl HostPermissionInvalidation {
    /// Bits that must be 0.
    pub const RESERVED: u128 = !(Self::kind_mask()
        | Self::g_mask()
        | Self::hptdid_mask()
        | Self::am_mask()
        | Self::ih_mask()
        | Self::addr_mask());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_match_the_figure() {
        let d = HostPermissionInvalidation::from_words([0x0005_003A, 0x0020_00C9]);
        assert_eq!(d.g(), IotlbGranularity::Page);
        assert_eq!(d.domain().0, 5);
        assert_eq!((d.am().value(), d.ih().value()), (9, 3));
        assert_eq!(d.address(), HostPhys::new(0x20_0000));
        assert_eq!(HostPermissionInvalidation::DEFAULT.to_words_256(), [0xA, 0, 0, 0]);
    }

    #[test]
    fn reserved_bits_match_the_figure() {
        assert_eq!(
            crate::layout::split(HostPermissionInvalidation::RESERVED),
            [0xFFFF_FFFF_0000_F1C0, 0xF00]
        );
    }
}
