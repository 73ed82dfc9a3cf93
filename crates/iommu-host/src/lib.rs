//! A real machine.
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
mod listing;
pub mod log;
mod machine;
mod pci_ids;
pub mod snapshot;
mod sysfs;
mod tar;
mod tree;

pub use buses::Buses;
pub use config::ConfigSpace;
pub use item::{Answer, Item, overall};
pub use knowledge::{Knowledge, Obstacle};
pub use machine::{KernelGroup, Machine, OpenError, Origin, PciFunction, ReservedRegion, Unit};
pub use pci_ids::PciIds;
pub use tar::ArchiveError;
