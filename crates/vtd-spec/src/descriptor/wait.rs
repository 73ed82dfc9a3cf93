//! Wait descriptor.

use arbitrary_int::{u7, u62};
use bitbybit::bitfield;
use iommu_types::HostPhys;

use super::descriptor;

/// Invalidation Wait Descriptor. VT-d §6.5.2.9.
#[bitfield(u128, default = 5, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct WaitDescriptor {
    /// Type: 5.
    #[bits([0..=3, 9..=11], rw)]
    kind: u7,
    /// IF: interrupt flag; set ICS.IWC on completion.
    #[bit(4, rw)]
    r#if: bool,
    /// SW: status write; write the status data on completion.
    #[bit(5, rw)]
    sw: bool,
    /// FN: fence; later descriptors start after this one completed.
    #[bit(6, rw)]
    r#fn: bool,
    /// PD: page-request drain. Needs ECAP.PDS.
    #[bit(7, rw)]
    pd: bool,
    /// Status data, with SW.
    #[bits(32..=63, rw)]
    status_data: u32,
    /// Status address, bits 63:2, with SW; see [`Self::status_address`].
    #[bits(66..=127, rw)]
    status_addr: u62,
}

descriptor!(WaitDescriptor, WAIT);

impl WaitDescriptor {
    /// Bits that must be 0.
    pub const RESERVED: u128 = !(Self::kind_mask()
        | Self::if_mask()
        | Self::sw_mask()
        | Self::fn_mask()
        | Self::pd_mask()
        | Self::status_data_mask()
        | Self::status_addr_mask());

    /// Where the 32-bit status goes: host physical, 4-byte aligned.
    #[must_use]
    pub const fn status_address(self) -> HostPhys {
        HostPhys::new(self.status_addr().value() << 2)
    }

    /// The descriptor with another status address; bits 1:0 are dropped.
    #[must_use]
    pub const fn with_status_address(self, address: HostPhys) -> Self {
        self.with_status_addr(u62::extract_u64(address.raw(), 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_encodes_and_decodes() {
        let d = WaitDescriptor::DEFAULT
            .with_sw(true)
            .with_status_data(2)
            .with_status_address(HostPhys::new(0x1234_5678));
        assert_eq!(d.to_words(), [0x0000_0002_0000_0025, 0x1234_5678]);
        let d = WaitDescriptor::from_words([0x0000_0002_0000_00D5, 0x1234_567C]);
        assert!(d.r#if() && !d.sw() && d.r#fn() && d.pd());
        assert_eq!(d.status_data(), 2);
        assert_eq!(d.status_address(), HostPhys::new(0x1234_567C));
    }

    #[test]
    fn reserved_bits_match_the_figure() {
        assert_eq!(
            crate::layout::split(WaitDescriptor::RESERVED),
            [0x0000_0000_FFFF_F100, 3]
        );
    }
}
