//! A real machine: its PCI functions, groups, remapping units, firmware tables and kernel log.
//!
//! # Purpose
//!
//! Somebody wants to know what a machine keeps apart, whether its IOMMU works, and what a fault in its log means;
//! often the machine is somebody else's. This crate reads a machine from
//!
//! * a root folder with sysfs, procfs and ACPI tables: `/`, or a copy of it ([`Machine::open`]);
//! * a snapshot, one tar archive that [`snapshot::take`] writes, or that another tool wrote;
//! * text: `lspci -vvv` or `-xxxx`, with `dmesg` and `acpidump` where they stand in the same file.
//!
//! Every fact is three-valued ([`Knowledge`]): known, absent, or unknown with what would make it known. What a reader
//! lacks the rights for is never taken for absent.
//!
//! # Place in the stack
//!
//! Layer 6. [`Machine`] is the configuration space that `iommu-groups` scans, and gives `acpi-dmar` the table and the
//! buses ([`Buses`]); the commands of `iommu-cli` render what [`doctor`], [`check`], [`blame`] and [`caps`] find.
//!
//! | module | holds |
//! |---|---|
//! | [`log`] | faults in all shapes that kernels print, and what they say at boot |
//! | [`blame`] | which device is behind a fault, what the address was, what to do |
//! | [`doctor`] | whether the IOMMU works, and who turned it off |
//! | [`check`] | whether functions can be given to a guest |
//! | [`plan`] | the commands that give them to a guest, and those that take them back |
//! | [`lint`] | what is wrong with the DMAR table, by all that is known of the machine |
//! | [`caps`] | what the capability registers say (VT-d §11.4.2 CAP_REG, §11.4.3 ECAP_REG) |
//! | [`snapshot`] | writing a snapshot, scrubbed or not |
//!
//! # Example
//!
//! ```
//! use iommu_groups::group;
//! use iommu_host::Machine;
//!
//! let text = "\
//! 00:02.0 VGA compatible controller [0300]: Intel Corporation Graphics [8086:46a6]
//! \tStatus: Cap+ 66MHz-
//! \tIOMMU group: 0
//! \tCapabilities: [70] Express (v2) Root Complex Integrated Endpoint, MSI 00
//! 00:1f.0 ISA bridge [0601]: Intel Corporation LPC [8086:5182]
//! \tStatus: Cap- 66MHz-
//! \tIOMMU group: 1
//! ";
//! let machine = Machine::from_listing(text.as_bytes());
//! let groups = group(&machine.topology(), machine.linux_rules());
//! assert_eq!(groups.all().len(), 2);
//! // The text has no tables, which does not mean that the machine has none.
//! assert!(machine.dmar.is_unknown());
//! ```
//!
//! # What it does not do
//!
//! It decides nothing about groups (`iommu-groups` does), changes nothing on any machine, and never unpacks an archive
//! to disk. Tables and registers of AMD's and Arm's IOMMUs are not decoded.
#![forbid(unsafe_code)]

pub mod blame;
mod buses;
pub mod caps;
pub mod check;
mod config;
pub mod doctor;
mod item;
mod kmsg;
mod knowledge;
pub mod lint;
mod listing;
pub mod log;
mod machine;
mod pci_ids;
pub mod plan;
mod platform;
pub mod snapshot;
mod sysfs;
mod tar;
mod tree;
mod vmd;

pub use buses::Buses;
pub use config::ConfigSpace;
pub use item::{Answer, Item, count, overall};
pub use knowledge::{Knowledge, Obstacle};
pub use machine::{KernelGroup, Machine, OpenError, Origin, PciFunction, ReservedRegion, Unit};
pub use pci_ids::PciIds;
pub use platform::Platform;
pub use tar::ArchiveError;
