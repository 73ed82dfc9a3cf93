//! A machine in software: units, memory, functions and a PCI fabric.
//!
//! # Purpose
//!
//! To show what a device can reach, something has to be the machine. This crate builds one from a readable file
//! or from a firmware table: memory on NUMA nodes, one VT-d unit for each DRHD structure of the table, PCI
//! functions with configuration space and DMA engines, and a **fabric** that carries each request the way a real
//! one goes. Requests behind conventional bridges lose their requester ID, functions without ACS reach each
//! other before any unit can look, everything else is translated, blocked or delivered as an interrupt. So
//! groups can be proven by traffic.
//!
//! # Place in the stack
//!
//! Layer 5. It joins `vtd-model` (what a unit does), `iommu-devices` (what functions do) and `acpi-dmar` (who
//! serves whom). It holds no driver code: a driver is given [`UnitRegisters`] and the [`Machine`] itself as its
//! host ([`iommu_types::TableMemory`], [`iommu_types::Coherence`], [`iommu_types::Clock`]).
//!
//! # Example
//!
//! ```
//! use iommu_devices::Bus;
//! use iommu_types::{Bdf, Iova, SourceId};
//! use soft_platform::{Machine, MachineDescription, Route};
//!
//! let description = MachineDescription::two_socket()?;
//! let machine = Machine::build(&description, &description.to_dmar()?)?;
//! assert_eq!(machine.units().len(), 4);
//!
//! // A card behind the PCIe-to-PCI bridge reaches the unit with the bridge's requester ID.
//! let card: Bdf = "0c:04.0".parse()?;
//! let bridge: SourceId = "0c:00.0".parse()?;
//! assert_eq!(machine.route(card, Iova::new(0x10_0000)), Some(Route::Upstream { source: bridge }));
//!
//! // No driver has turned translation on: DMA passes, as after boot.
//! machine.bus(card).ok_or("no such function")?.dma_write(Iova::new(0x10_0000), b"hello")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is modelled, and by which rule
//!
//! | what | rule |
//! |---|---|
//! | requester ID behind a PCIe-to-PCI bridge: (secondary bus, 00.0); behind a conventional bridge: the bridge's | PCIe-to-PCI bridge §2.3; VT-d §3.4.1 (Source Identifier) |
//! | functions of one device meet inside it, with what is below those that are ports or bridges, unless ACS request redirect is on | PCIe §6.12 (Access Control Services) |
//! | ports of a switch likewise, and the upstream port's registers; a root port without ACS sends requests back to its own link | PCIe §6.12 |
//! | registers of ports, where these have any, are reached from below unless ACS redirects (or enhanced ACS redirects or blocks) | PCIe §7.7.11.3 (ACS Control Register) |
//! | egress control: on, with a vector that lets everything through | PCIe §6.12.3 |
//! | devices that are known to isolate without saying so, such as Intel's integrated endpoints | the tables of `iommu-groups`; VT-d §4.5 |
//! | source validation at root and downstream ports | PCIe §6.12.1.1 |
//! | a 4-byte write to FEEx_xxxxh is an interrupt; everything else there is a fault | VT-d §3.15 |
//! | who serves a function | [`acpi_dmar::Dmar::owner`] (VT-d §8.3) |
//! | a function whose unit cannot be known is blocked, one that no unit covers passes (or not: [`Uncovered`]) | fail closed; hardware |
//!
//! # What it does not do
//!
//! Bus numbers are the description's: software that renumbers buses is not followed. There is no ATS, no PASID,
//! no prefetchable or 64-bit bridge window, no hot-plug, no legacy interrupt line. Peer-to-peer between root
//! ports of different devices always goes through the unit.
#![forbid(unsafe_code)]

mod description;
mod fabric;
mod interrupts;
mod machine;
mod memory;
mod placement;
mod route;
mod units;

pub use description::{
    Assumption, AtsrDescription, BusRange, DescriptionError, FunctionDescription, FunctionKind, HostBridge,
    MachineDescription, RmrrDescription, SatcDescription, ScopeDescription, ScopeKind, ScopePath, TWO_SOCKET,
    UnitDescription,
};
pub use fabric::{FabricCounters, FunctionBus};
pub use interrupts::{Arrival, Sender};
pub use machine::{FunctionInfo, Machine, MachineError, MachineOptions, NoFunction, PlatformBlock, Service, Uncovered};
pub use memory::{
    LAST_32_BIT, MachineMemory, MemoryLayoutError, MemoryRange, OutOfPages, PageRequest, Pages, Placement, Zone,
};
pub use route::{Refusal, Route, Shortcut};
pub use units::{RefusedUnit, UnitInfo, UnitRefusal, UnitRegisters};
pub use vtd_model::{Profile, UnitConfigBuilder};
