//! A driver for Intel VT-d remapping units.
//!
//! # Purpose
//!
//! Takes remapping units over from firmware, blocks every device, and then lets each reach what it is given and
//! nothing else: for kernels, hypervisors and anything else that owns the machine. What hardware has not confirmed
//! is treated as reachable by devices; the rules that other drivers learnt from bugs are types here, or tests.
//!
//! # Place in the stack
//!
//! Layer 3: `no_std` with `alloc`, above `vtd-spec` (which knows the bits), `iommu-pagetable` (which writes
//! the tables of both stages) and `iommu-types`. It reaches hardware only through the traits of `iommu-types`: a register
//! window, memory for tables, cache write-back and a clock. It allocates no IOVAs: that is the caller's, whose
//! *lease* on addresses travels through [`Domain::unmap`] and [`Domain::flush`].
//!
//! # Bring-up
//!
//! [`Unit::found`] looks, [`Unit::take_over`] turns off what was left on and installs clean tables,
//! [`Unit::reserve`] keeps what firmware needs, [`Unit::enable`] switches translation on. There is no way to attach
//! a device to a unit that was not taken over.
//!
//! # Example
//!
//! ```
//! use iommu_types::{AddrRange, Clock, Coherence, HostPhys, Iova, Perms, Registers, TableMemory};
//! use vtd_driver::{BringUpError, DomainOptions, Requester, Unit, UnitOptions};
//!
//! fn isolate<R: Registers, P: TableMemory + Coherence + Clock>(
//!     registers: R,
//!     host: P,
//! ) -> Result<(), Box<dyn std::error::Error>> {
//!     let unit = Unit::found(registers, host, UnitOptions::default())?;
//!     let unit = unit.take_over().map_err(|error| error.cause)?;
//!     let unit = unit.enable().map_err(|error| error.cause)?;
//!
//!     // A network card gets an address space with one buffer in it.
//!     let nic = Requester::new("02:00.0".parse()?);
//!     let domain = unit.create_domain(DomainOptions::default())?;
//!     domain.map(Iova::new(0x10_0000), HostPhys::new(0x4000_0000), 0x2000, Perms::READ_WRITE)?;
//!     unit.attach(&nic, &domain)?;
//!
//!     // The buffer's addresses come back only when the card cannot reach it any more.
//!     let buffer = AddrRange::from_base_len(Iova::new(0x10_0000), 0x2000).ok_or("no range")?;
//!     let pending = domain.unmap(buffer, "the lease").map_err(|refused| refused.error)?;
//!     let lease = domain.flush(pending).map_err(|(error, _still_reachable)| error)?;
//!     assert_eq!(lease, "the lease");
//!     Ok(())
//! }
//! # mod unit { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/unit.rs")); }
//! # let host = unit::Host(iommu_testkit::SparseMemory::new(1 << 36));
//! # isolate(unit::Window::new(&host.0), &host)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! It runs on the unit of `doc/unit.rs`. A host of one's own brings four traits: [`Registers`] is the unit's window,
//! [`TableMemory`] hands out frames, [`Coherence`] writes cache lines back, [`Clock`] makes waits end. The kernel in `bare-metal/`
//! is such a host; `e2e/tests/driver/` runs the driver on `vtd-model`.
//!
//! [`Registers`]: iommu_types::Registers
//! [`TableMemory`]: iommu_types::TableMemory
//! [`Coherence`]: iommu_types::Coherence
//! [`Clock`]: iommu_types::Clock
//!
//! # Choices where the specification leaves freedom
//!
//! | matter | choice |
//! |---|---|
//! | TE of a previous owner | turned off before the new root table is set: with TE on, the old and the new table would have to agree (VT-d §11.4.5) |
//! | domain identifier 0 | never used, with or without caching mode |
//! | context entry replaced | not present, flushed, then the new one: requests in between are blocked. No 128-bit store is asked of the host |
//! | ITE | every batch in flight is submitted again, at most twice; after that the call fails, the unit stays good, and the same call can be made again |
//! | a device did not leave, or get back to, the domain of its reserved regions | it counts as attached; detaching it again repeats what was not confirmed |
//! | IQE | the refused descriptor becomes a wait without effect, its batch fails, the unit counts as poisoned |
//! | requests without PASID in scalable mode | go by PASID 0 on every unit |
//! | first-stage domains | one identifier each, never shared with another (rule D10) |
//! | tables of several units | never shared: see [`Ioas`] |
//! | dependent invalidations (context, PASID, IOTLB, device-TLB) | each waits for the one before: a unit may carry out what is behind one wait in any order |
//! | many unmaps flushed together | up to 8 blocks by page, more by domain, in both cases behind one wait |
//! | memory of several guests | [`Ioas::owned_by`] maps only what [`PageOwners`] say is the owner's; [`Domain`] asks nobody |
//! | ATS | only where the caller names the ATSR or SATC that allows it, for trusted functions; PASID is on before or not used |
//! | empty context tables | kept until the unit is given up |
//! | snoop control | set on every leaf where the unit has it |
//!
//! # Tests that leave steps out
//!
//! Every step that is taken because of one of the rules D1 to D25 can be left out by a test (`iommu_types::omission`, cargo
//! feature `mutation`, which no product has); each one left out makes a test fail. `RULES.md` has the table.
//!
//! # What it does not do
//!
//! No page requests: PRS is never enabled. No suspend, no hand-over of a previous kernel's tables, no posted interrupts.
//! No IOVA allocation (`iommu-iova`), no DMA API (`iommu-dma`), no parsing of firmware tables (`acpi-dmar`), no
//! groups (`iommu-groups`). It must not be called from an interrupt handler that can interrupt another call on the
//! same unit: its locks spin. [`Unit::drain_faults`] takes a lock of its own only.
//!
//! # Map to the specification
//!
//! | here | VT-d |
//! |---|---|
//! | [`Unit::take_over`], [`Unit::enable`] | §11.4.4 (GCMD_REG), §11.4.5 (RTADDR_REG) |
//! | [`Unit::attach`], [`Unit::detach`] | §3.4, §6.5.3.3 (Guidance to Software for Invalidations) |
//! | [`TableMode`], [`NestedDomain`], [`Unit::attach_pasid`] | §3.4.3, §3.8 (Nested Translation), §9.4 to §9.6 |
//! | [`Domain`] | §3.7, §6.1 (Caching Mode), §6.2.3.1 (domain identifiers), §6.8 (Write Buffer Flushing) |
//! | the queue behind all of it | §6.5.2 |
//! | [`Unit::attach_with_ats`] | §4 (Support For Device-TLBs), §6.5.2.5, §6.5.2.6, §8.5 (ATSR), §8.8 (SATC) |
//! | [`Domain::read_dirty`] | §3.7.2 (accessed and dirty flags), §9.6 (SSADE) |
//! | [`Unit::drain_faults`] | §7.2.1, §11.4.7 |
//! | [`Unit::start_interrupt_remapping`] | §5.1, §9.9 (IRTE) |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod attach;
mod capabilities;
mod command;
mod dirty;
mod domain;
mod error;
mod fault;
mod health;
mod ids;
mod interrupt;
mod invalidate;
mod ioas;
mod legacy;
mod nested;
mod options;
mod owners;
mod pages;
mod queue;
mod quirks;
mod scalable;
mod shared;
mod space;
mod structures;
#[cfg(test)]
mod testing;
mod unit;
mod wait;

pub use iommu_pagetable::{DirtyBits, DirtyError};

pub use attach::{AtsRefusal, AttachError, DetachError};
pub use capabilities::Capabilities;
pub use command::Command;
pub use dirty::DirtyReadError;
pub use domain::{
    DestroyError, Domain, DomainError, DomainOptions, FlushError, MapError, NotDestroyed, PendingFlush, SpaceError,
    Stage, UnmapError,
};
pub use error::{HardwareError, Reachable, TableError, Unconfirmed, UnitError};
pub use fault::{Drained, EventMessage, FaultBudget, FaultReport};
pub use health::Health;
pub use interrupt::{
    ApicMode, InterruptBlock, InterruptError, InterruptOptions, InterruptSource, InterruptTarget, Polarity,
};
pub use ioas::{Ioas, IoasPending, JoinError, PartlyFlushed};
pub use nested::NestedDomain;
pub use options::{AtsListing, DeviceTlb, PassThrough, Requester, ReservedRegion, TableMode, UnitOptions};
pub use owners::{OwnerId, OwnershipError, PageOwners};
pub use quirks::{FunctionId, QUIRKS, Quirk, QuirkEffect, UnitQuirks, quirks_of};
pub use shared::Host;
pub use space::GuestTable;
pub use unit::{Blocked, BringUpError, Found, ReserveError, State, TakenOver, Translating, Unit};
pub use wait::Timeouts;
