//! PCI topology, DMA aliases, ACS and IOMMU groups with reasons.
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
pub use topology::{AcsControl, Alias, AliasVia, BusId, BusNumbers, Facts, Roots, Topology};
