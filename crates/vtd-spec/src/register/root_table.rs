//! Root table address.

use arbitrary_int::u52;
use bitbybit::{bitenum, bitfield};
use iommu_types::HostPhys;

/// TTM: which tables a unit walks. VT-d §11.4.5 (RTADDR_REG).
#[bitenum(u2, exhaustive = true)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum TranslationTableMode {
    /// Legacy mode: root, context and second-stage tables.
    Legacy = 0,
    /// Scalable mode: root, context, PASID and first- or second-stage tables. Needs ECAP.SMTS.
    Scalable = 1,
    /// Reserved.
    Reserved = 2,
    /// Abort-DMA mode: every request is blocked. Needs ECAP.ADMS.
    AbortDma = 3,
}

/// Root Table Address Register. VT-d §11.4.5 (RTADDR_REG). 64 bits, read-write.
///
/// Takes effect when GCMD.SRTP is written.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct RootTableAddress {
    /// SSIRWE: second-stage permissions come from the I/O bits 61 and 62. Needs ECAP.SSIRWS and scalable mode.
    #[bit(7, rw)]
    ssirwe: bool,
    /// TTM: translation table mode.
    #[bits(10..=11, rw)]
    ttm: TranslationTableMode,
    /// RTA: root table address, bits 63:12.
    #[bits(12..=63, rw)]
    rta: u52,
}

page_address!(
    RootTableAddress,
    HostPhys,
    /// Host physical address of the root table.
    root_table, with_root_table => rta, with_rta
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_match_the_figure() {
        let r = RootTableAddress::new_with_raw_value(0x0000_0012_3456_7C80);
        assert_eq!(r.root_table(), HostPhys::new(0x12_3456_7000));
        assert_eq!(r.ttm(), TranslationTableMode::AbortDma);
        assert!(r.ssirwe());
        let scalable = RootTableAddress::DEFAULT
            .with_root_table(HostPhys::new(0x1000))
            .with_ttm(TranslationTableMode::Scalable);
        assert_eq!(scalable.raw_value(), 0x1400);
    }
}
