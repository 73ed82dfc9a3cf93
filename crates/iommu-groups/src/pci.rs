//! Where things stand in PCI configuration space.
//!
//! Offsets are in bytes from the start of the configuration space, or of the capability where the text says
//! so. Masks are of the register at that offset, in its own width. `PCIe §` means the PCI Express Base
//! Specification, revision 6.0; names outlive the numbering.

/// Bytes of configuration space that every function has. PCIe §7.2.1 (PCI-compatible Configuration Mechanism).
pub const CONVENTIONAL_LEN: u16 = 256;
/// Bytes of configuration space of a PCI Express function. PCIe §7.2.2 (ECAM).
pub const EXTENDED_LEN: u16 = 4096;
/// What a read returns when no function answers.
pub const NO_FUNCTION: u32 = 0xffff_ffff;

/// The header that all functions share. PCIe §7.5.1.1 (Type 0/1 Common Configuration Space).
pub mod header {
    /// Vendor ID (16 bits), device ID above it.
    pub const VENDOR_ID: u16 = 0x00;
    /// Device ID (16 bits).
    pub const DEVICE_ID: u16 = 0x02;
    /// Command (16 bits).
    pub const COMMAND: u16 = 0x04;
    /// Status (16 bits).
    pub const STATUS: u16 = 0x06;
    /// Revision ID (8 bits), class code in the 24 bits above it.
    pub const REVISION: u16 = 0x08;
    /// Cache line size (8 bits).
    pub const CACHE_LINE_SIZE: u16 = 0x0c;
    /// Header type (8 bits).
    pub const HEADER_TYPE: u16 = 0x0e;
    /// Base address register 0 (32 bits); type 0 has six, type 1 two.
    pub const BAR0: u16 = 0x10;
    /// Subsystem vendor ID (16 bits) of a type 0 header, subsystem ID above it.
    pub const SUBSYSTEM: u16 = 0x2c;
    /// Offset of the first capability (8 bits).
    pub const CAPABILITIES: u16 = 0x34;
    /// Offset of the first capability (8 bits) of a CardBus bridge.
    pub const CARDBUS_CAPABILITIES: u16 = 0x14;
    /// Interrupt line (8 bits).
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin (8 bits): 1 to 4 for INTA to INTD, 0 for none.
    pub const INTERRUPT_PIN: u16 = 0x3d;

    /// Command: I/O Space Enable.
    pub const COMMAND_IO: u16 = 1 << 0;
    /// Command: Memory Space Enable.
    pub const COMMAND_MEMORY: u16 = 1 << 1;
    /// Command: Bus Master Enable.
    pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
    /// Command: Parity Error Response.
    pub const COMMAND_PARITY: u16 = 1 << 6;
    /// Command: SERR# Enable.
    pub const COMMAND_SERR: u16 = 1 << 8;
    /// Command: Interrupt Disable.
    pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
    /// Status: Interrupt Status.
    pub const STATUS_INTX: u16 = 1 << 3;
    /// Status: Capabilities List present.
    pub const STATUS_CAPABILITIES: u16 = 1 << 4;
    /// Status: the bits that a one clears.
    pub const STATUS_W1C: u16 = 0xf900;
    /// Header type: the layout, without the multifunction bit.
    pub const HEADER_LAYOUT: u8 = 0x7f;
    /// Header type: Multi-Function Device.
    pub const HEADER_MULTIFUNCTION: u8 = 1 << 7;
    /// Layout of an ordinary function.
    pub const LAYOUT_FUNCTION: u8 = 0;
    /// Layout of a bridge.
    pub const LAYOUT_BRIDGE: u8 = 1;
    /// Layout of a CardBus bridge.
    pub const LAYOUT_CARDBUS: u8 = 2;
}

/// Base address registers. PCIe §7.5.1.2.1 (Base Address Registers).
pub mod bar {
    /// I/O space, not memory.
    pub const IO: u32 = 1 << 0;
    /// The type field of a memory BAR.
    pub const TYPE: u32 = 0b110;
    /// Type: this BAR and the next form one 64-bit address.
    pub const TYPE_64: u32 = 0b100;
    /// Prefetchable memory.
    pub const PREFETCHABLE: u32 = 1 << 3;
    /// Address bits of a memory BAR.
    pub const MEMORY_ADDRESS: u32 = 0xffff_fff0;
    /// Address bits of an I/O BAR.
    pub const IO_ADDRESS: u32 = 0xffff_fffc;
}

/// The header of a bridge. PCIe §7.5.1.3 (Type 1 Configuration Space Header).
pub mod bridge {
    /// Primary bus number (8 bits).
    pub const PRIMARY: u16 = 0x18;
    /// Secondary bus number (8 bits): the bus right below the bridge.
    pub const SECONDARY: u16 = 0x19;
    /// Subordinate bus number (8 bits): the highest bus below the bridge.
    pub const SUBORDINATE: u16 = 0x1a;
    /// I/O base (8 bits), I/O limit above it.
    pub const IO_WINDOW: u16 = 0x1c;
    /// Secondary status (16 bits).
    pub const SECONDARY_STATUS: u16 = 0x1e;
    /// Memory base (16 bits), memory limit above it: address bits 31:20 in bits 15:4.
    pub const MEMORY_WINDOW: u16 = 0x20;
    /// Prefetchable memory base (16 bits), limit above it; bit 0 of each says 64-bit.
    pub const PREFETCHABLE_WINDOW: u16 = 0x24;
    /// Upper 32 bits of the prefetchable base.
    pub const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
    /// Upper 32 bits of the prefetchable limit.
    pub const PREFETCHABLE_LIMIT_UPPER: u16 = 0x2c;
    /// Bridge control (16 bits).
    pub const CONTROL: u16 = 0x3e;
    /// Bridge control: Secondary Bus Reset.
    pub const CONTROL_RESET: u16 = 1 << 6;
    /// Bridge control: the bits software may set (parity, SERR#, ISA, VGA, VGA16, reset).
    pub const CONTROL_RW: u16 = 0x005f;
    /// Address bits in each half of a memory window register.
    pub const WINDOW_ADDRESS: u16 = 0xfff0;
    /// Prefetchable window: 64-bit addresses.
    pub const WINDOW_64: u16 = 1;
}

/// The list in the first 256 bytes. PCIe §7.5.1.1.11 (Capabilities Pointer).
pub mod capability {
    /// First offset at which a capability may stand.
    pub const FIRST: u16 = 0x40;
    /// From the capability: offset of the next one (8 bits); zero ends the list.
    pub const NEXT: u16 = 1;
    /// Power management.
    pub const POWER_MANAGEMENT: u8 = 0x01;
    /// Message-signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// PCI-X.
    pub const PCI_X: u8 = 0x07;
    /// Vendor-specific: its length (8 bits) stands after the offset of the next capability.
    pub const VENDOR_SPECIFIC: u8 = 0x09;
    /// Subsystem identity of a bridge.
    pub const BRIDGE_SUBSYSTEM: u8 = 0x0d;
    /// PCI Express.
    pub const PCI_EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSI_X: u8 = 0x11;
    /// Conventional PCI advanced features.
    pub const ADVANCED_FEATURES: u8 = 0x13;
}

/// The list from byte 256. PCIe §7.6.3 (PCI Express Extended Capability Header).
pub mod extended {
    /// Where the list starts.
    pub const FIRST: u16 = 0x100;
    /// The identifier in a header dword.
    pub const ID: u32 = 0xffff;
    /// Lowest bit of the version in a header dword.
    pub const VERSION_SHIFT: u32 = 16;
    /// Lowest bit of the next offset in a header dword.
    pub const NEXT_SHIFT: u32 = 20;
    /// Device serial number.
    pub const SERIAL_NUMBER: u16 = 0x0003;
    /// Access control services.
    pub const ACS: u16 = 0x000d;
    /// Alternative routing-ID interpretation.
    pub const ARI: u16 = 0x000e;
    /// Address translation services.
    pub const ATS: u16 = 0x000f;
    /// Single-root I/O virtualization.
    pub const SRIOV: u16 = 0x0010;
    /// Page request interface.
    pub const PRI: u16 = 0x0013;
    /// Process address space identifiers.
    pub const PASID: u16 = 0x001b;
}

/// From the PCI Express capability. PCIe §7.5.3 (PCI Express Capability Structure).
pub mod express {
    /// Capability register (16 bits).
    pub const CAPABILITIES: u16 = 0x02;
    /// Device capabilities (32 bits).
    pub const DEVICE_CAPABILITIES: u16 = 0x04;
    /// Device control (16 bits).
    pub const DEVICE_CONTROL: u16 = 0x08;
    /// Device status (16 bits).
    pub const DEVICE_STATUS: u16 = 0x0a;
    /// Link capabilities (32 bits).
    pub const LINK_CAPABILITIES: u16 = 0x0c;
    /// Link control (16 bits).
    pub const LINK_CONTROL: u16 = 0x10;
    /// Link status (16 bits).
    pub const LINK_STATUS: u16 = 0x12;
    /// Device capabilities 2 (32 bits).
    pub const DEVICE_CAPABILITIES_2: u16 = 0x24;
    /// Device control 2 (16 bits).
    pub const DEVICE_CONTROL_2: u16 = 0x28;
    /// Length of a version 2 structure in bytes.
    pub const LEN: u16 = 0x3c;
    /// Capability register: structure version 2.
    pub const VERSION_2: u16 = 2;
    /// Capability register: lowest bit of the device/port type.
    pub const TYPE_SHIFT: u16 = 4;
    /// Capability register: width of the device/port type.
    pub const TYPE_MASK: u16 = 0xf;
    /// Device capabilities: Role-Based Error Reporting, always set since PCIe 1.1.
    pub const ROLE_BASED_ERRORS: u32 = 1 << 15;
    /// Device capabilities: Function Level Reset.
    pub const FLR_CAPABLE: u32 = 1 << 28;
    /// Device control: Initiate Function Level Reset; reads as zero.
    pub const INITIATE_FLR: u16 = 1 << 15;
    /// Device control: the bits software may set.
    pub const DEVICE_CONTROL_RW: u16 = 0x7fff;
    /// Device status: the bits that a one clears.
    pub const DEVICE_STATUS_W1C: u16 = 0x000f;
    /// Device capabilities 2 and device control 2: ARI Forwarding, of ports.
    pub const ARI_FORWARDING: u16 = 1 << 5;
}

/// From the power management capability. PCIe §7.5.2 (PCI Power Management Capability Structure).
pub mod power {
    /// Capabilities (16 bits).
    pub const CAPABILITIES: u16 = 0x02;
    /// Control and status (16 bits).
    pub const CONTROL: u16 = 0x04;
    /// Length of the structure in bytes.
    pub const LEN: u16 = 8;
    /// Capabilities: interface version 1.2.
    pub const VERSION_3: u16 = 3;
    /// Control: the power state.
    pub const STATE: u16 = 0b11;
    /// Control: power state D3hot.
    pub const STATE_D3HOT: u16 = 0b11;
    /// Control: No Soft Reset; without it the way from D3hot to D0 resets the function.
    pub const NO_SOFT_RESET: u16 = 1 << 3;
    /// Control: PME Status, cleared by a one.
    pub const PME_STATUS: u16 = 1 << 15;
}

/// From the MSI capability with a 64-bit address. PCIe §7.7.1 (MSI Capability Structures).
pub mod msi {
    /// Message control (16 bits).
    pub const CONTROL: u16 = 0x02;
    /// Message address, low 32 bits.
    pub const ADDRESS: u16 = 0x04;
    /// Message address, high 32 bits.
    pub const ADDRESS_UPPER: u16 = 0x08;
    /// Message data (16 bits).
    pub const DATA: u16 = 0x0c;
    /// Length of the structure without mask bits, in bytes.
    pub const LEN: u16 = 0x10;
    /// Control: MSI Enable.
    pub const ENABLE: u16 = 1 << 0;
    /// Control: lowest bit of Multiple Message Capable (log2 of the vectors).
    pub const CAPABLE_SHIFT: u16 = 1;
    /// Control: lowest bit of Multiple Message Enable (log2 of the vectors).
    pub const ENABLED_SHIFT: u16 = 4;
    /// Control: the three bits of either field, once shifted down.
    pub const COUNT_MASK: u16 = 0b111;
    /// Control: 64-bit Address Capable.
    pub const ADDRESS_64: u16 = 1 << 7;
    /// Most vectors one function can have, as a power of two.
    pub const MAX_LOG2_VECTORS: u8 = 5;
}

/// From the MSI-X capability. PCIe §7.7.2 (MSI-X Capability and Table Structure).
pub mod msix {
    /// Message control (16 bits).
    pub const CONTROL: u16 = 0x02;
    /// Table offset and BAR number (32 bits).
    pub const TABLE: u16 = 0x04;
    /// Pending bit array offset and BAR number (32 bits).
    pub const PENDING: u16 = 0x08;
    /// Length of the structure in bytes.
    pub const LEN: u16 = 0x0c;
    /// Length of a table entry in bytes.
    pub const ENTRY_LEN: u64 = 16;
    /// From a table entry: the message's address, low and high 32 bits.
    pub const ENTRY_ADDRESS: u64 = 0;
    /// From a table entry: the message's data (32 bits).
    pub const ENTRY_DATA: u64 = 8;
    /// From a table entry: vector control (32 bits).
    pub const ENTRY_CONTROL: u64 = 12;
    /// Vector control: the vector is masked; set after a reset.
    pub const ENTRY_MASKED: u32 = 1 << 0;
    /// Most vectors one function can have.
    pub const MAX_VECTORS: u16 = 2048;
    /// Control: the number of vectors less one.
    pub const SIZE: u16 = 0x07ff;
    /// Control: Function Mask.
    pub const MASK: u16 = 1 << 14;
    /// Control: MSI-X Enable.
    pub const ENABLE: u16 = 1 << 15;
    /// Table and pending array: the BAR number in the low bits.
    pub const BAR: u32 = 0b111;
}

/// From the advanced features capability. PCIe §7.9.21 (Conventional PCI Advanced Features Capability).
pub mod advanced {
    /// Length of the structure (8 bits).
    pub const LENGTH: u16 = 0x02;
    /// Capabilities (8 bits).
    pub const CAPABILITIES: u16 = 0x03;
    /// Control (8 bits).
    pub const CONTROL: u16 = 0x04;
    /// Length of the structure in bytes.
    pub const LEN: u16 = 6;
    /// Capabilities: Transactions Pending is implemented.
    pub const TRANSACTIONS_PENDING: u8 = 1 << 0;
    /// Capabilities: Function Level Reset.
    pub const FLR_CAPABLE: u8 = 1 << 1;
    /// Control: Initiate Function Level Reset; reads as zero.
    pub const INITIATE_FLR: u8 = 1 << 0;
}

/// From the ACS extended capability. PCIe §7.7.11 (ACS Extended Capability).
pub mod acs {
    /// Capability register (16 bits).
    pub const CAPABILITIES: u16 = 0x04;
    /// Control register (16 bits).
    pub const CONTROL: u16 = 0x06;
    /// Egress control vector (32 bits and more), present with [`EGRESS_CONTROL`].
    pub const EGRESS_VECTOR: u16 = 0x08;
    /// Length of the structure without egress control, in bytes.
    pub const LEN: u16 = 8;
    /// SV: Source Validation.
    pub const SOURCE_VALIDATION: u16 = 0x01;
    /// TB: Translation Blocking.
    pub const TRANSLATION_BLOCKING: u16 = 0x02;
    /// RR: P2P Request Redirect.
    pub const REQUEST_REDIRECT: u16 = 0x04;
    /// CR: P2P Completion Redirect.
    pub const COMPLETION_REDIRECT: u16 = 0x08;
    /// UF: Upstream Forwarding.
    pub const UPSTREAM_FORWARDING: u16 = 0x10;
    /// EC: P2P Egress Control.
    pub const EGRESS_CONTROL: u16 = 0x20;
    /// DT: Direct Translated P2P.
    pub const DIRECT_TRANSLATED: u16 = 0x40;
    /// Capability bit: ACS Enhanced Capability.
    pub const ENHANCED: u16 = 0x80;
    /// Control bit of enhanced ACS: I/O Request Blocking.
    pub const IO_REQUEST_BLOCKING: u16 = 0x80;
    /// Control bit of enhanced ACS: downstream port memory target access is blocked.
    pub const DSP_TARGET_BLOCKING: u16 = 0x100;
    /// Control bit of enhanced ACS: requests to downstream port memory targets are redirected.
    pub const DSP_TARGET_REDIRECT: u16 = 0x200;
    /// Control bit of enhanced ACS: upstream port memory target access is blocked.
    pub const USP_TARGET_BLOCKING: u16 = 0x400;
    /// Control bit of enhanced ACS: requests to upstream port memory targets are redirected.
    pub const USP_TARGET_REDIRECT: u16 = 0x800;
    /// Control bit of enhanced ACS: requests that no downstream port claims are redirected.
    pub const UNCLAIMED_REDIRECT: u16 = 0x1000;
    /// Control: all bits that enhanced ACS adds.
    pub const ENHANCED_CONTROL: u16 = 0x1f80;
    /// Capability: lowest bit of the egress control vector size.
    pub const EGRESS_SIZE_SHIFT: u16 = 8;
    /// Capability: the seven control bits every port may have.
    pub const BASIC: u16 = 0x7f;
    /// What isolation needs: no forged requester IDs, requests and completions redirected upstream,
    /// everything else forwarded upstream.
    pub const REQUIRED: u16 = SOURCE_VALIDATION | REQUEST_REDIRECT | COMPLETION_REDIRECT | UPSTREAM_FORWARDING;
}

/// From the ARI extended capability. PCIe §7.8.8 (ARI Extended Capability).
pub mod ari {
    /// Capability register (16 bits): next function number in the high byte.
    pub const CAPABILITIES: u16 = 0x04;
    /// Control register (16 bits).
    pub const CONTROL: u16 = 0x06;
    /// Length of the structure in bytes.
    pub const LEN: u16 = 8;
    /// Capability: lowest bit of the next function number.
    pub const NEXT_FUNCTION_SHIFT: u16 = 8;
}

/// From the ATS extended capability. PCIe §10.5.1 (ATS Extended Capability).
pub mod ats {
    /// Capability register (16 bits).
    pub const CAPABILITIES: u16 = 0x04;
    /// Control register (16 bits).
    pub const CONTROL: u16 = 0x06;
    /// Length of the structure in bytes.
    pub const LEN: u16 = 8;
    /// Capability: Invalidate Queue Depth, zero for 32.
    pub const QUEUE_DEPTH: u16 = 0x1f;
    /// Capability: Page Aligned Request.
    pub const PAGE_ALIGNED: u16 = 1 << 5;
    /// Control: Smallest Translation Unit, log2 in 4 KiB pages.
    pub const SMALLEST_UNIT: u16 = 0x1f;
    /// Control: Enable.
    pub const ENABLE: u16 = 1 << 15;
}

/// From the page request extended capability. PCIe §10.5.2 (Page Request Extended Capability Structure).
pub mod pri {
    /// Control register (16 bits).
    pub const CONTROL: u16 = 0x04;
    /// Status register (16 bits).
    pub const STATUS: u16 = 0x06;
    /// Outstanding Page Request Capacity (32 bits).
    pub const CAPACITY: u16 = 0x08;
    /// Outstanding Page Request Allocation (32 bits).
    pub const ALLOCATION: u16 = 0x0c;
    /// Length of the structure in bytes.
    pub const LEN: u16 = 16;
    /// Control: Enable.
    pub const ENABLE: u16 = 1 << 0;
    /// Status: Response Failure and Unexpected Page Request Group Index, cleared by a one.
    pub const STATUS_W1C: u16 = 0b11;
    /// Status: Stopped.
    pub const STOPPED: u16 = 1 << 8;
}

/// From the PASID extended capability. PCIe §7.8.9 (PASID Extended Capability Structure).
pub mod pasid {
    /// Capability register (16 bits).
    pub const CAPABILITIES: u16 = 0x04;
    /// Control register (16 bits).
    pub const CONTROL: u16 = 0x06;
    /// Length of the structure in bytes.
    pub const LEN: u16 = 8;
    /// Capability and control: Execute Permission.
    pub const EXECUTE: u16 = 1 << 1;
    /// Capability and control: Privileged Mode.
    pub const PRIVILEGED: u16 = 1 << 2;
    /// Capability: lowest bit of Max PASID Width.
    pub const WIDTH_SHIFT: u16 = 8;
    /// Capability: Max PASID Width, once shifted down.
    pub const WIDTH_MASK: u16 = 0x1f;
    /// Control: PASID Enable.
    pub const ENABLE: u16 = 1 << 0;
}

/// From the SR-IOV extended capability. PCIe §9.3.3 (SR-IOV Extended Capability).
pub mod sriov {
    /// Capabilities (32 bits).
    pub const CAPABILITIES: u16 = 0x04;
    /// Control (16 bits).
    pub const CONTROL: u16 = 0x08;
    /// InitialVFs (16 bits).
    pub const INITIAL_VFS: u16 = 0x0c;
    /// TotalVFs (16 bits).
    pub const TOTAL_VFS: u16 = 0x0e;
    /// NumVFs (16 bits).
    pub const NUM_VFS: u16 = 0x10;
    /// First VF Offset (16 bits), in requester IDs from the physical function.
    pub const FIRST_OFFSET: u16 = 0x14;
    /// VF Stride (16 bits), in requester IDs.
    pub const STRIDE: u16 = 0x16;
    /// VF Device ID (16 bits).
    pub const VF_DEVICE_ID: u16 = 0x1a;
    /// Supported Page Sizes (32 bits).
    pub const SUPPORTED_PAGES: u16 = 0x1c;
    /// System Page Size (32 bits).
    pub const SYSTEM_PAGE: u16 = 0x20;
    /// VF BAR 0 of six.
    pub const VF_BAR0: u16 = 0x24;
    /// Length of the structure in bytes.
    pub const LEN: u16 = 0x40;
    /// Control: VF Enable.
    pub const VF_ENABLE: u16 = 1 << 0;
    /// Control: VF Memory Space Enable.
    pub const VF_MEMORY: u16 = 1 << 3;
    /// Control: ARI Capable Hierarchy.
    pub const ARI_HIERARCHY: u16 = 1 << 4;
    /// Supported Page Sizes: 4 KiB and 8, 64, 256 KiB, 1 and 4 MiB, which are all mandatory.
    pub const MANDATORY_PAGES: u32 = 0x553;
}

/// From the device serial number extended capability. PCIe §7.9.3 (Device Serial Number Extended Capability).
pub mod serial {
    /// The number, low 32 bits first.
    pub const NUMBER: u16 = 0x04;
    /// Length of the structure in bytes.
    pub const LEN: u16 = 12;
}

iommu_types::open_enum! {
    /// Device/port type of a PCI Express function. PCIe §7.5.3.2 (PCI Express Capabilities Register).
    pub struct PortType(u8) {
        /// PCI Express endpoint.
        ENDPOINT = 0x0,
        /// Legacy PCI Express endpoint.
        LEGACY_ENDPOINT = 0x1,
        /// Root port of a root complex.
        ROOT_PORT = 0x4,
        /// Upstream port of a switch.
        UPSTREAM_PORT = 0x5,
        /// Downstream port of a switch.
        DOWNSTREAM_PORT = 0x6,
        /// PCI Express to PCI or PCI-X bridge.
        PCIE_TO_PCI_BRIDGE = 0x7,
        /// PCI or PCI-X to PCI Express bridge.
        PCI_TO_PCIE_BRIDGE = 0x8,
        /// Root complex integrated endpoint.
        INTEGRATED_ENDPOINT = 0x9,
        /// Root complex event collector.
        EVENT_COLLECTOR = 0xa,
    }
}

impl PortType {
    /// The words `lspci` uses, or `unknown PCI Express type`.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::ENDPOINT => "endpoint",
            Self::LEGACY_ENDPOINT => "legacy endpoint",
            Self::ROOT_PORT => "root port",
            Self::UPSTREAM_PORT => "switch upstream port",
            Self::DOWNSTREAM_PORT => "switch downstream port",
            Self::PCIE_TO_PCI_BRIDGE => "PCIe-to-PCI bridge",
            Self::PCI_TO_PCIE_BRIDGE => "PCI-to-PCIe bridge",
            Self::INTEGRATED_ENDPOINT => "root complex integrated endpoint",
            Self::EVENT_COLLECTOR => "root complex event collector",
            _ => "unknown PCI Express type",
        }
    }
}

/// Class codes (base class and subclass) that the rules look at.
pub mod class {
    /// Host bridge.
    pub const HOST_BRIDGE: u16 = 0x0600;
    /// PCI-to-PCI bridge.
    pub const PCI_BRIDGE: u16 = 0x0604;
    /// Other bridge; non-transparent bridges report it.
    pub const OTHER_BRIDGE: u16 = 0x0680;
}
