//! Encodings of small fields that several registers, entries and descriptors share.

use arbitrary_int::u3;
use bitbybit::bitenum;
use iommu_types::SourceId;

/// Scope of a context-cache invalidation: CCMD.CIRG, CCMD.CAIG and G of the context-cache descriptor.
/// VT-d §11.4.6.1 (CCMD_REG), §6.5.2.1.
#[bitenum(u2, exhaustive = true)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum ContextGranularity {
    /// As a request: reserved, an error. As actual granularity: the request was ignored.
    None = 0,
    /// Every entry.
    Global = 1,
    /// Entries of one domain.
    Domain = 2,
    /// Entries of one source, or of the functions that a mask adds to it.
    Device = 3,
}

/// Scope of an IOTLB or host permission table invalidation: IOTLB.IIRG, IOTLB.IAIG, G of the IOTLB descriptor and of the
/// HPT cache descriptor. VT-d §11.4.6.3 (IOTLB_REG), §6.5.2.3, §6.5.2.7.
#[bitenum(u2, exhaustive = true)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum IotlbGranularity {
    /// As a request: reserved, an error. As actual granularity: the request was ignored.
    None = 0,
    /// Every entry.
    Global = 1,
    /// Entries of one domain.
    Domain = 2,
    /// Entries of an address range of one domain.
    Page = 3,
}

/// Scope of a PASID-based IOTLB invalidation. VT-d §6.5.2.4 (P_IOTLB).
#[bitenum(u2, exhaustive = true)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum PasidIotlbGranularity {
    /// Reserved, an error.
    Reserved0 = 0,
    /// Reserved, an error.
    Reserved1 = 1,
    /// Entries of one PASID of one domain.
    Pasid = 2,
    /// Entries of an address range of one PASID of one domain.
    Page = 3,
}

/// Scope of a PASID-cache invalidation. VT-d §6.5.2.2.
#[bitenum(u2, exhaustive = true)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum PasidCacheGranularity {
    /// Entries of one domain.
    Domain = 0,
    /// Entries of one PASID of one domain.
    Pasid = 1,
    /// Reserved, an error.
    Reserved = 2,
    /// Every entry.
    Global = 3,
}

/// Scope of an interrupt entry cache invalidation. VT-d §6.5.2.8.
#[bitenum(u1, exhaustive = true)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum InterruptGranularity {
    /// Every entry.
    Global = 0,
    /// A block of interrupt indices.
    Index = 1,
}

/// Function-number bits that a comparison of source identifiers leaves out: CCMD.FM, FM of the context-cache
/// descriptor and SQ of an interrupt remapping entry. VT-d §11.4.6.1 (CCMD_REG), §9.9 (IRTE).
#[bitenum(u2, exhaustive = true)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum FunctionMask {
    /// All 16 bits are compared.
    Exact = 0,
    /// Bit 2 is left out.
    Bit2 = 1,
    /// Bits 2:1 are left out.
    Bits2To1 = 2,
    /// Bits 2:0 are left out: every function of the device.
    Bits2To0 = 3,
}

impl FunctionMask {
    /// The bits of a source identifier that are left out.
    #[must_use]
    pub const fn ignored(self) -> u16 {
        match self {
            Self::Exact => 0b000,
            Self::Bit2 => 0b100,
            Self::Bits2To1 => 0b110,
            Self::Bits2To0 => 0b111,
        }
    }

    /// Whether two sources are the same under this mask.
    #[must_use]
    pub const fn matches(self, a: SourceId, b: SourceId) -> bool {
        (a.raw() ^ b.raw()) & !self.ignored() == 0
    }
}

/// PCI Express address type (AT) of a memory request.
#[bitenum(u2, exhaustive = true)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum AddressType {
    /// The address is to be translated.
    Untranslated = 0,
    /// The function asks for a translation to cache in its device-TLB.
    TranslationRequest = 1,
    /// The address comes from the function's device-TLB.
    Translated = 2,
    /// Reserved.
    Reserved = 3,
}

/// Delivery mode of an interrupt. VT-d §9.9 (IRTE, DLM), §5.1.2.1.
///
/// Codes 3 and 6 have no meaning.
#[bitenum(u3, exhaustive = false)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum DeliveryMode {
    /// To every processor of the destination, with the vector.
    Fixed = 0,
    /// To the processor of the destination that runs at the lowest priority.
    LowestPriority = 1,
    /// System management interrupt; the vector must be 0.
    Smi = 2,
    /// Non-maskable interrupt; the vector is ignored.
    Nmi = 4,
    /// INIT; the vector is ignored.
    Init = 5,
    /// As from an external 8259A controller.
    ExtInt = 7,
}

impl DeliveryMode {
    /// The delivery mode with `code`, or `None` for codes without meaning.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match Self::new_with_raw_value(u3::extract_u8(code & 7, 0)) {
            Ok(mode) if code < 8 => Some(mode),
            _ => None,
        }
    }

    /// Whether interrupts of this mode are edge triggered whatever their trigger mode says.
    #[must_use]
    pub const fn is_always_edge(self) -> bool {
        !matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

iommu_types::open_enum! {
    /// Memory type: MTRRs, PAT entries and EMT fields. VT-d §3.11.
    pub struct MemoryType(u8) {
        /// Uncacheable.
        UC = 0,
        /// Write combining.
        WC = 1,
        /// Write through.
        WT = 4,
        /// Write protected.
        WP = 5,
        /// Write back.
        WB = 6,
        /// Uncacheable unless the MTRRs say write combining; only in PAT entries.
        UC_MINUS = 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_mask_leaves_out_the_bits_of_the_specification() {
        let a = SourceId::from_raw(0x0018);
        assert!(FunctionMask::Exact.matches(a, a));
        assert!(!FunctionMask::Exact.matches(a, SourceId::from_raw(0x001C)));
        assert!(FunctionMask::Bit2.matches(a, SourceId::from_raw(0x001C)));
        assert!(!FunctionMask::Bit2.matches(a, SourceId::from_raw(0x001E)));
        assert!(FunctionMask::Bits2To1.matches(a, SourceId::from_raw(0x001E)));
        assert!(!FunctionMask::Bits2To1.matches(a, SourceId::from_raw(0x001F)));
        assert!(FunctionMask::Bits2To0.matches(a, SourceId::from_raw(0x001F)));
        assert!(!FunctionMask::Bits2To0.matches(a, SourceId::from_raw(0x0020)));
    }

    #[test]
    fn delivery_modes_3_and_6_have_no_meaning() {
        assert_eq!(DeliveryMode::from_code(4), Some(DeliveryMode::Nmi));
        assert_eq!([3, 6, 8, 255].map(DeliveryMode::from_code), [None; 4]);
        assert!(DeliveryMode::Smi.is_always_edge());
        assert!(!DeliveryMode::LowestPriority.is_always_edge());
    }
}
