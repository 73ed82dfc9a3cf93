//! What a machine consists of, as a readable file.

mod check;
mod dmar;
mod file;
mod from_dmar;
mod value;

use std::fmt;
use std::path::Path;

use iommu_types::{AddrRange, Bdf, HostPhys, NodeId, Segment};

pub use self::from_dmar::Assumption;
pub(crate) use self::from_dmar::MAX_RMRR;
pub use self::value::{BusRange, ScopePath};
use crate::memory::MemoryRange;

/// The machine that is used when none is named: `machines/two-socket.toml`.
pub const TWO_SOCKET: &str = include_str!("../../../machines/two-socket.toml");

/// A machine: memory, units and functions, and what its firmware says about them.
///
/// Read one with [`MachineDescription::parse`]; the file `machines/two-socket.toml` shows every key with a
/// comment. What was read is consistent: bus numbers nest, each function has a place, addresses do not collide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDescription {
    /// What people call it.
    pub name: String,
    /// Bits of a physical address.
    pub host_address_width: u8,
    /// DMAR flag INTR_REMAP.
    pub interrupt_remapping: bool,
    /// DMAR flag X2APIC_OPT_OUT.
    pub x2apic_opt_out: bool,
    /// DMAR flag DMA_CTRL_PLATFORM_OPT_IN.
    pub dma_opt_in: bool,
    /// Memory, in address order.
    pub memory: Vec<MemoryRange>,
    /// The buses of each host bridge and the addresses where it places registers of devices.
    pub host_bridges: Vec<HostBridge>,
    /// Remapping units in table order.
    pub units: Vec<UnitDescription>,
    /// Reserved memory that devices keep access to (RMRR).
    pub rmrrs: Vec<RmrrDescription>,
    /// Root ports below which ATS may be used (ATSR).
    pub atsrs: Vec<AtsrDescription>,
    /// Integrated endpoints with an address translation cache (SATC).
    pub satcs: Vec<SatcDescription>,
    /// PCI functions; a parent stands before what is below it.
    pub functions: Vec<FunctionDescription>,
}

/// A host bridge: the top of a tree of buses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostBridge {
    /// The segment of its buses.
    pub segment: Segment,
    /// Its buses; the first is the root bus.
    pub buses: BusRange,
    /// Addresses below 4 GiB for registers of devices.
    pub window: AddrRange<HostPhys>,
}

/// A remapping unit as a DRHD structure and, with a node, an RHSA structure describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitDescription {
    /// What people call it.
    pub name: String,
    /// Where its registers are; aligned to 4 KiB.
    pub base: HostPhys,
    /// The segment it serves.
    pub segment: Segment,
    /// The node for its tables (RHSA).
    pub node: Option<NodeId>,
    /// Whether it serves every function of the segment that no other unit names.
    pub include_pci_all: bool,
    /// What it serves by name.
    pub scopes: Vec<ScopeDescription>,
}

/// One entry of a device scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeDescription {
    /// What kind of device.
    pub kind: ScopeKind,
    /// Where it is.
    pub path: ScopePath,
}

/// The kinds of device a scope can name. VT-d §8.3.1 (Device Scope Structure).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    /// One PCI function.
    Endpoint,
    /// A bridge or port and everything below it.
    SubHierarchy,
    /// An I/O APIC, by its APIC ID.
    IoApic(u8),
    /// An HPET timer block, by its number.
    Hpet(u8),
}

/// Reserved memory that devices keep access to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RmrrDescription {
    /// The segment of its devices.
    pub segment: Segment,
    /// The memory: whole 4 KiB pages.
    pub range: AddrRange<HostPhys>,
    /// Its devices.
    pub scopes: Vec<ScopeDescription>,
}

/// Root ports that support Address Translation Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtsrDescription {
    /// The segment of the ports.
    pub segment: Segment,
    /// All ports of the segment; `scopes` is empty then.
    pub all_ports: bool,
    /// The ports.
    pub scopes: Vec<ScopeDescription>,
}

/// Integrated endpoints with a validated address translation cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SatcDescription {
    /// The segment of the endpoints.
    pub segment: Segment,
    /// Whether they need their cache to work.
    pub atc_required: bool,
    /// The endpoints.
    pub scopes: Vec<ScopeDescription>,
}

/// What a function is, seen from the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FunctionKind {
    /// A port of the root complex.
    RootPort,
    /// The side of a switch that faces the root complex.
    SwitchUpstream,
    /// A side of a switch that faces devices.
    SwitchDownstream,
    /// A bridge from PCI Express to conventional PCI.
    PcieToPciBridge,
    /// A bridge between two conventional buses.
    PciBridge,
    /// A PCI Express device.
    Endpoint,
    /// A device inside the root complex.
    IntegratedEndpoint,
    /// A conventional PCI device.
    Conventional,
}

impl FunctionKind {
    /// Whether there is a bus below it.
    #[must_use]
    pub const fn is_bridge(self) -> bool {
        matches!(
            self,
            Self::RootPort | Self::SwitchUpstream | Self::SwitchDownstream | Self::PcieToPciBridge | Self::PciBridge
        )
    }

    /// Whether it speaks conventional PCI on its upper side: no requester ID of its own, no extended
    /// configuration space.
    #[must_use]
    pub const fn is_conventional(self) -> bool {
        matches!(self, Self::PciBridge | Self::Conventional)
    }

    /// The word for it in a machine file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RootPort => "root-port",
            Self::SwitchUpstream => "switch-upstream",
            Self::SwitchDownstream => "switch-downstream",
            Self::PcieToPciBridge => "pcie-to-pci-bridge",
            Self::PciBridge => "pci-bridge",
            Self::Endpoint => "endpoint",
            Self::IntegratedEndpoint => "integrated-endpoint",
            Self::Conventional => "conventional",
        }
    }
}

impl fmt::Display for FunctionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionDescription {
    /// What people call it.
    pub name: String,
    /// Where it is.
    pub bdf: Bdf,
    /// What it is.
    pub kind: FunctionKind,
    /// The function that leads to its bus: an index into [`MachineDescription::functions`], less than its own;
    /// `None` on a root bus.
    pub parent: Option<usize>,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code, 24 bits: base class, subclass, programming interface.
    pub class: u32,
    /// The header's Multi-Function Device bit.
    pub multifunction: bool,
    /// The buses below a bridge.
    pub buses: Option<BusRange>,
    /// The ACS capability register, or `None` without that capability. The bits are PCI Express's own:
    /// `iommu_groups::pci::acs`.
    pub acs: Option<u16>,
    /// Address bits it can put on the bus: 32 or 64.
    pub dma_bits: u8,
    /// Whether it has a DMA engine to be told what to do.
    pub engine: bool,
    /// Whether a bridge or port has registers in memory (BAR 0). Functions that are no bridges have them anyway.
    pub registers: bool,
    /// Made up, because a table implies that something is there but does not name it.
    pub synthetic: bool,
}

/// A mistake in a machine file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {problem}")]
pub struct DescriptionError {
    /// The file as the caller named it.
    pub file: String,
    /// The line, counted from 1; 0 if the file could not be read at all.
    pub line: usize,
    /// The column in characters, counted from 1; 0 if the file could not be read at all.
    pub column: usize,
    /// What is wrong and what was expected.
    pub problem: String,
}

impl MachineDescription {
    /// Reads a description from `text`; `file` is its name in messages.
    ///
    /// # Errors
    /// [`DescriptionError`] with the place of the first mistake.
    pub fn parse(file: &str, text: &str) -> Result<Self, DescriptionError> {
        file::read(text).map_err(|mistake| mistake.locate(file, text))
    }

    /// Reads a description from a file.
    ///
    /// # Errors
    /// [`DescriptionError`], also if the file cannot be read.
    pub fn load(path: &Path) -> Result<Self, DescriptionError> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&file, &text),
            Err(error) => Err(DescriptionError {
                file,
                line: 0,
                column: 0,
                problem: format!("cannot be read as UTF-8 text: {error}"),
            }),
        }
    }

    /// The machine of [`TWO_SOCKET`].
    ///
    /// # Errors
    /// None, as long as the file in this repository is sound; a test holds that.
    pub fn two_socket() -> Result<Self, DescriptionError> {
        Self::parse("machines/two-socket.toml", TWO_SOCKET)
    }

    /// The function at `bdf`.
    #[must_use]
    pub fn function(&self, bdf: Bdf) -> Option<&FunctionDescription> {
        self.functions.iter().find(|function| function.bdf == bdf)
    }
}

#[cfg(test)]
mod tests;
