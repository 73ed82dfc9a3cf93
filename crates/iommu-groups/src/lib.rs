//! PCI topology, DMA aliases, ACS and IOMMU groups, with the reasons.
//!
//! # Purpose
//!
//! An IOMMU can keep two PCI functions apart only if their requests reach it, and carry requester IDs that tell
//! them apart. This crate finds out from configuration space where that is not so: it reads the bridges between
//! functions, computes every requester ID a function's requests can carry, and puts functions that cannot be
//! kept apart into groups. For every group it can say why, hop by hop, with the missing control bit, the shared
//! requester ID or the known defect by name.
//!
//! Groups are made by two sets of rules. [`Rules::Linux`] gives what `/sys/kernel/iommu_groups` shows, holes
//! included; [`Rules::Strict`] gives what PCI Express lets functions reach. [`differences`] names the places
//! where a kernel promises more than the hardware keeps.
//!
//! # Place in the stack
//!
//! Layer 3, `no_std` with `alloc`. It reads configuration space through [`ConfigAccess`] and knows neither sysfs
//! nor any emulated machine. [`pci`] holds the offsets of PCI configuration space for the whole workspace.
//!
//! # Example
//!
//! ```
//! use iommu_groups::{BusId, ConfigAccess, Explanation, LinuxVersion, Rules, Topology, group, pci};
//! use iommu_types::{Bdf, Segment};
//!
//! /// Two conventional functions of one device, 00:1f.0 and 00:1f.1.
//! struct Chipset;
//! impl ConfigAccess for Chipset {
//!     fn read32(&self, function: Bdf, offset: u16) -> Option<u32> {
//!         let present = function.to_string().starts_with("0000:00:1f.") && function.devfn().function() < 2;
//!         Some(match offset {
//!             _ if !present => pci::NO_FUNCTION,
//!             0x00 => 0x1234_8086,
//!             0x0c => 0x0080_0000, // several functions
//!             _ => 0,
//!         })
//!     }
//! }
//!
//! let topology = Topology::scan(&Chipset, &[BusId::new(Segment(0), 0)]);
//! let groups = group(&topology, Rules::Linux(LinuxVersion::LATEST));
//! let (a, b) = ("00:1f.0".parse().unwrap(), "00:1f.1".parse().unwrap());
//! assert_eq!(groups.of(a), groups.of(b));
//!
//! let Some(Explanation::Together(chain)) = groups.explain(&topology, a, b) else { panic!() };
//! assert_eq!(
//!     chain[0].to_string(),
//!     "0000:00:1f.1 and 0000:00:1f.0: they are functions of one device, and 0000:00:1f.1 can reach the others \
//!      inside it: it is conventional PCI, which cannot isolate"
//! );
//! ```
//!
//! # Invariants
//!
//! - What could not be read is [`Presence::Unknown`], never absent, and unknown never isolates. Groups that rest
//!   on it say so ([`Group::uncertain`]).
//! - Every walk over what configuration space says is bounded, and contradictions are [`Problem`]s, not errors:
//!   what can be used is used, on the safe side.
//! - Under [`Rules::Strict`] every requester ID belongs to functions of one group, and the partition depends on
//!   no order.
//! - Every two members of a group are connected by [`Hop`]s.
//!
//! # What it does not do
//!
//! It never writes: ACS controls count as found, or as Linux would set them ([`AcsControl`]). Egress control
//! vectors (partial isolation) count as off. It does not see the PASID rules of switches, functions behind a
//! non-transparent bridge, or requester IDs that only a device's own registers tell: those are supplied as
//! [`Facts`]. Linux's grouping series of 2025 is not among the rules. PCI-X specifics beyond the requester ID are
//! not modelled, and no independent judge for them exists; nor does one for domains behind a VMD, which no emulator at hand
//! has. Fixtures judge both.
//!
//! # Source map
//!
//! | what | from | where |
//! |---|---|---|
//! | offsets, masks | PCIe §7 | [`pci`] |
//! | requester IDs through bridges | PCI Express to PCI/PCI-X Bridge §2.3; Linux `pci_for_each_dma_alias` | [`Topology::aliases`] |
//! | isolation of a function or port | PCIe §6.12 (Access Control Services); Linux `pci_acs_enabled` | [`Topology::isolation`] |
//! | groups as Linux has them | Linux `pci_device_group` | [`Rules::Linux`] |
//! | known devices | Linux `drivers/pci/quirks.c`, line by line in the tables | [`AcsQuirk`], [`AliasQuirk`], [`BridgeQuirk`] |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod access;
mod acs;
mod capability;
mod function;
mod groups;
pub mod pci;
mod problem;
mod quirks;
mod reason;
mod topology;

pub use access::{ConfigAccess, Presence};
pub use acs::{AcsBits, Grounds, Isolation, Lack};
pub use function::{AcsState, AtsState, Function, Layout, PasidState, PriState, Resets, SriovState};
pub use groups::{Barrier, Difference, Explanation, Group, Groups, LinuxVersion, Rules, differences, group};
pub use problem::{ListFault, Problem};
pub use quirks::{AcsQuirk, AcsQuirkKind, AliasEffect, AliasQuirk, BridgeQuirk, BridgeQuirkKind, Devices, Source};
pub use reason::{Hop, Reason};
pub use topology::{AcsControl, Alias, AliasVia, BusId, BusNumbers, Facts, Origin, Roots, Topology};
