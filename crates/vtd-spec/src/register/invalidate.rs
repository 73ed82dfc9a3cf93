//! Register-based invalidation: context command, invalidate address and IOTLB invalidate.

use arbitrary_int::{u6, u52};
use bitbybit::bitfield;
use iommu_types::Iova;

use crate::encoding::{ContextGranularity, FunctionMask, IotlbGranularity};

/// Context Command Register. VT-d §11.4.6.1 (CCMD_REG). 64 bits.
///
/// A write of the upper half with ICC set starts the command. Units of major version 6 and later ignore it.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct ContextCommand {
    /// DID: domain identifier for domain- and device-selective requests.
    #[bits(0..=15, rw)]
    did: u16,
    /// SID: source identifier for device-selective requests; write only.
    #[bits(16..=31, rw)]
    sid: u16,
    /// FM: function bits of SID that are left out; write only.
    #[bits(32..=33, rw)]
    fm: FunctionMask,
    /// CAIG: granularity that the unit applied; read only.
    #[bits(59..=60, rw)]
    caig: ContextGranularity,
    /// CIRG: granularity that is asked for.
    #[bits(61..=62, rw)]
    cirg: ContextGranularity,
    /// ICC: start; cleared by the unit on completion.
    #[bit(63, rw)]
    icc: bool,
}

domain_field!(
    ContextCommand,
    /// The domain of domain- and device-selective requests.
    domain, with_domain => did, with_did
);
source_field!(
    ContextCommand,
    /// The source of device-selective requests.
    source, with_source => sid, with_sid
);

/// Invalidate Address Register. VT-d §11.4.6.4 (IVA_REG). 64 bits, write only.
///
/// Written before [`IotlbInvalidate`] for a page-selective request.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct InvalidateAddress {
    /// AM: address mask; 2^AM pages of 4 KiB, naturally aligned.
    #[bits(0..=5, rw)]
    am: u6,
    /// IH: invalidation hint; only leaf entries changed.
    #[bit(6, rw)]
    ih: bool,
    /// ADDR: page address, bits 63:12.
    #[bits(12..=63, rw)]
    addr: u52,
}

page_address!(
    InvalidateAddress,
    Iova,
    /// The first page of the request.
    address, with_address => addr, with_addr
);

/// IOTLB Invalidate Register. VT-d §11.4.6.3 (IOTLB_REG). 64 bits.
///
/// A write of the upper half with IVT set starts the command. Units of major version 6 and later ignore it.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct IotlbInvalidate {
    /// DID: domain identifier for domain- and page-selective requests.
    #[bits(32..=47, rw)]
    did: u16,
    /// DW: drain writes.
    #[bit(48, rw)]
    dw: bool,
    /// DR: drain reads.
    #[bit(49, rw)]
    dr: bool,
    /// IAIG: granularity that the unit applied; read only.
    #[bits(57..=58, rw)]
    iaig: IotlbGranularity,
    /// IIRG: granularity that is asked for.
    #[bits(60..=61, rw)]
    iirg: IotlbGranularity,
    /// IVT: start; cleared by the unit on completion.
    #[bit(63, rw)]
    ivt: bool,
}

domain_field!(
    IotlbInvalidate,
    /// The domain of domain- and page-selective requests.
    domain, with_domain => did, with_did
);

#[cfg(test)]
mod tests {
    use iommu_types::{DomainId, SourceId};

    use super::*;

    #[test]
    fn context_commands_encode_as_in_the_examples() {
        let go = ContextCommand::DEFAULT.with_icc(true);
        assert_eq!(
            go.with_cirg(ContextGranularity::Global).raw_value(),
            0xA000_0000_0000_0000
        );
        let device = go
            .with_cirg(ContextGranularity::Device)
            .with_domain(DomainId(5))
            .with_source(SourceId::from_raw(0x0018));
        assert_eq!(device.raw_value(), 0xE000_0000_0018_0005);
        let masked = ContextCommand::new_with_raw_value(0x5000_0003_0000_0000);
        assert_eq!(masked.fm(), FunctionMask::Bits2To0);
        assert_eq!(
            (masked.cirg(), masked.caig()),
            (ContextGranularity::Domain, ContextGranularity::Domain)
        );
    }

    #[test]
    fn iotlb_commands_encode_as_in_the_examples() {
        let go = IotlbInvalidate::DEFAULT.with_ivt(true);
        assert_eq!(
            go.with_iirg(IotlbGranularity::Global).raw_value(),
            0x9000_0000_0000_0000
        );
        let drain = go.with_dr(true).with_dw(true).with_domain(DomainId(5));
        assert_eq!(
            drain.with_iirg(IotlbGranularity::Domain).raw_value(),
            0xA003_0005_0000_0000
        );
        assert_eq!(
            drain.with_iirg(IotlbGranularity::Page).raw_value(),
            0xB003_0005_0000_0000
        );
        let done = IotlbInvalidate::new_with_raw_value(0x0400_0000_0000_0000);
        assert_eq!(done.iaig(), IotlbGranularity::Domain);
    }

    #[test]
    fn invalidate_address_has_mask_and_hint_in_the_page_offset() {
        let a = InvalidateAddress::new_with_raw_value(0x0020_0049);
        assert_eq!(a.address(), Iova::new(0x20_0000));
        assert_eq!(a.am().value(), 9);
        assert!(a.ih());
    }
}
