//! The parts of a configuration space that take more than one number to describe.

use iommu_groups::pci::acs;

/// Whether a function forgets its state on the way from D3hot to D0: a way to reset it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftReset {
    /// The function resets (No Soft Reset is clear).
    Resets,
    /// The function keeps its state (No Soft Reset is set).
    Keeps,
}

/// The ACS capability: which controls exist and how firmware left them. Bits as in [`acs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acs {
    /// The capability register.
    pub capability: u16,
    /// The control register before software changes it.
    pub control: u16,
}

impl Acs {
    /// Everything that isolation needs is there and on.
    pub const ISOLATING: Self = Self {
        capability: acs::REQUIRED | acs::TRANSLATION_BLOCKING,
        control: acs::REQUIRED,
    };
    /// The same capability, with every control off.
    pub const OFF: Self = Self {
        capability: acs::REQUIRED | acs::TRANSLATION_BLOCKING,
        control: 0,
    };
}

/// The ATS capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ats {
    /// Invalidations the device-TLB can hold, 1 to 32.
    pub queue_depth: u8,
    /// Whether untranslated addresses in translation requests are always page aligned.
    pub page_aligned: bool,
}

/// The MSI-X capability; table and pending bits lie in a BAR of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiX {
    /// Vectors, 1 to 2048.
    pub vectors: u16,
    /// The BAR that holds both structures.
    pub bar: u8,
    /// Byte offset of the table in that BAR, a multiple of 8.
    pub table: u32,
    /// Byte offset of the pending bits in that BAR, a multiple of 8.
    pub pending: u32,
}

/// A vendor-specific capability: bytes whose meaning the vendor gives. PCIe §7.9.4 (Vendor-Specific Capability).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct VendorSpecific {
    /// What follows identifier, next offset and length; at most 252 bytes.
    pub body: Vec<u8>,
    /// The bits of `body` that software may write; bytes that it does not have are read-only.
    pub writable: Vec<u8>,
}

/// The SR-IOV capability of a physical function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sriov {
    /// Virtual functions that can exist.
    pub total: u16,
    /// Virtual functions that firmware enabled; zero leaves VF Enable clear.
    pub enabled: u16,
    /// Requester IDs from the physical function to its first virtual function.
    pub first_offset: u16,
    /// Requester IDs from one virtual function to the next.
    pub stride: u16,
    /// Device ID of the virtual functions.
    pub device: u16,
    /// Memory per virtual function behind VF BAR 0, a power of two of at least 4096; zero for none.
    pub bar_size: u32,
}
