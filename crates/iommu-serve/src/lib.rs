//! A remapping unit and the functions behind it, served to a VMM over vfio-user.
//!
//! # Purpose
//!
//! A VMM that speaks vfio-user (QEMU since 10.1) can use PCI functions of another process. This crate is such a process: it
//! offers a VT-d remapping unit as a PCI function whose BAR 0 is the unit's register window, and functions whose DMA goes
//! through that unit. With the DMAR table of [`dmar_table`], an unmodified guest kernel finds the unit, drives it, and puts
//! its devices behind it. Who writes an IOMMU driver can run it under the model's sanitizer; who writes a VMM gets devices
//! with an IOMMU in front of them without writing one.
//!
//! | what | where |
//! |---|---|
//! | the unit and the functions behind it, sockets, threads | [`Machine`], [`Server`], [`Slot`] |
//! | what the guest and the client did wrong | [`Notices`], [`BrokenRule`] |
//! | the table that describes them to the guest's firmware | [`dmar_table`] |
//! | the command line of a QEMU, and starting it | [`qemu`] |
//! | everything that went into the unit and came out, as text, replayed with no VM | [`trace`] |
//! | messages of the protocol | [`protocol`] |
//!
//! Functions may keep translations of their own: with a unit that offers device-TLBs, ATS works for every served function.
//!
//! # Place in the stack
//!
//! Layer 6, std, Linux. The unit is `vtd-model`'s, the functions are `iommu-devices`'; this crate adds the protocol, the
//! client's memory and the threads.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//!
//! use iommu_devices::{DmaEngine, DmaEngineOptions};
//! use iommu_serve::{Machine, dmar_table};
//! use iommu_types::SourceId;
//! use vtd_model::UnitConfig;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = UnitConfig::builder().interrupt_remapping(false).extended_interrupts(false).build()?;
//! let options = DmaEngineOptions::default();
//! let engine = DmaEngine::new(DmaEngine::describe(options).build()?, options)?;
//! let machine = Machine::new(config, "00:06.0".parse::<SourceId>()?, Box::new(()))?
//!     .with("engine", "00:07.0".parse()?, Box::new(engine))?;
//! let table = dmar_table(&config, 0xfebd_5000, machine.behind())?;
//! assert_eq!(&table[..4], b"DMAR");
//!
//! let directory = std::env::temp_dir().join(format!("iommu-serve-{}", std::process::id()));
//! std::fs::create_dir_all(&directory)?;
//! let server = machine.serve(&directory, Arc::new(()))?;
//! assert_eq!(server.sockets().count(), 2);
//! drop(server); // ends connections, removes sockets
//! # std::fs::remove_dir(&directory)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What the guest needs
//!
//! * The DMAR table with the address that the guest's firmware gives the unit's BAR, which depends on what else is plugged in.
//!   [`qemu::Launch::learn`] finds it in a short start; [`Server::machine`] tells it while a guest runs ([`Machine::unit_base`]).
//! * For Linux the words `intel_iommu=on intremap=off`: while it looks for interrupt remapping, it claims the unit's registers
//!   before PCI does, and the BAR is moved away.
//!
//! # What it does not do
//!
//! * Interrupt remapping: the client delivers interrupts, so the unit should not offer it.
//! * PASIDs and page requests.
//! * Memory that a client does not share is reached by messages, by functions only; the unit's tables have to be shared. A
//!   read of such memory fails if the client asks for something meanwhile: both would wait for each other.
//! * Files that can shrink are not mapped: a client could end the server by shrinking one.
//! * Migration, regions mapped by the client, notification by file descriptors, a second socket for the server's own commands.
//!
//! # Where the protocol is described
//!
//! QEMU's documentation, "vfio-user Protocol Specification"; section names are those of its commands.
#![forbid(unsafe_code)]

mod bus;
mod device_tlb;
mod firmware;
mod irqs;
mod link;
pub mod protocol;
pub mod qemu;
mod ram;
mod remapper;
mod report;
mod server;
mod session;
mod slot;
pub mod trace;
mod unit_function;

pub use firmware::dmar_table;
pub use link::{LinkError, Traffic};
pub use remapper::Remapper;
pub use report::{BrokenRule, Entry, Report};
pub use server::{Machine, Notices, ServeError, Server};
pub use slot::Slot;
pub use unit_function::UnitFunction;
