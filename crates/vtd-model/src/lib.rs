//! One VT-d remapping unit in software.
//!
//! # Purpose
//!
//! A remapping unit stands between devices and memory: it translates the addresses that devices use, blocks and records
//! what is not mapped, and remaps interrupts. This crate is such a unit as the specification describes it, for VMMs
//! that give their guests an IOMMU, for tests of drivers, and for readers who want to see what the hardware does. Each
//! step stands in the order of the specification, with section and register or table name beside it, and a blocked
//! request comes back as the condition of the specification that blocked it.
//!
//! It has two halves. [`translate`](translate()) and [`remap_interrupt`] are pure: they change nothing but the caches they
//! are given, and accessed and dirty flags where tables ask for them; [`inspect`] changes nothing at all. [`Unit`] holds what
//! changes: registers, invalidation queue, fault log. It can be saved and restored at any moment ([`Unit::save`]).
//!
//! A driver is tested with [`Profile::Silicon`] and the sanitizer ([`UnitConfigBuilder::sanitizer`]), which names the rules
//! that the driver breaks and the translations that it lets devices use too long.
//!
//! [`Profile::Qemu`] departs from the specification as QEMU does; [`QemuVersion`] says in which points.
//!
//! # Place in the stack
//!
//! Layer 3: `no_std` with `alloc`, above `vtd-spec` and `iommu-types`. It knows no driver. `soft-platform` builds
//! machines from it.
//!
//! # Example
//!
//! ```
//! use iommu_types::{HostPhys, Iova, SystemMemory};
//! use vtd_model::{AccessWidth, Request, Unit, UnitConfig};
//! use vtd_spec::register::{GlobalCommand, offset};
//!
//! # fn main() -> Result<(), vtd_model::ConfigError> {
//! // Memory of the test kit; an embedder implements `SystemMemory` for its own, or takes `vtd-vmm`.
//! let memory = iommu_testkit::SparseMemory::new(0x10_0000);
//! let mut unit = Unit::new(UnitConfig::builder().build()?);
//!
//! // Software points the unit at an (empty) root table and switches translation on.
//! memory.write(HostPhys::new(0x1000), &[0; 4096]).expect("it is memory");
//! unit.write(&memory, offset::RTADDR, AccessWidth::Qword, 0x1000);
//! for command in [GlobalCommand::DEFAULT.with_srtp(true), GlobalCommand::DEFAULT.with_te(true)] {
//!     unit.write(&memory, offset::GCMD, AccessWidth::Dword, command.raw_value().into());
//! }
//!
//! // A device asks for memory: its bus has no root entry.
//! let nic = "02:00.0".parse().expect("a source");
//! let fault = unit.dma(&memory, &Request::read(nic, Iova::new(0x4000), 64)).expect_err("nothing is mapped");
//! assert_eq!(fault.reason, vtd_spec::FaultReason::ROOT_NOT_PRESENT);
//! # Ok(())
//! # }
//! ```
//!
//! # Choices where the specification leaves freedom
//!
//! | matter | choice |
//! |---|---|
//! | two fields changed by one GCMD write | the write is ignored |
//! | TE or IRE before the table pointer was set | ignored: the status bit stays 0 |
//! | accesses that are misaligned or outside the window | read all ones, writes ignored |
//! | IQA written while the queue is enabled | takes effect at the next enable |
//! | tail already behind the head when the queue is enabled | processed at once |
//! | IOTLB descriptor with more pages than CAP.MAMV, or reserved granularity | queue error, reserved field |
//! | permission against reserved bits in one walk | reserved bits at each level, permissions of all levels at the end |
//! | translation type against address width in a context entry | type first |
//! | contradictions within a scalable-mode context entry | in the order of the fault table; SGN.10 before them |
//! | reserved bits of the half of a root entry that a request does not use | not looked at |
//! | tables that change during a walk that has to set flags | the walk starts again, at most 16 times |
//! | reserved source validation type | source validation failed (26h) |
//!
//! # What it does not do
//!
//! * It never moves data: [`Unit::dma`] answers where the data is, the embedder moves it.
//! * Page requests, posted interrupts, performance counters, the host permission table and memory types are not modelled
//!   and not advertised. `SPEC-COVERAGE.md` at the top of the repository lists section by section what is.
//!
//! # Map to the specification
//!
//! | here | VT-d |
//! |---|---|
//! | [`UnitConfig`] | §11.4.1 to §11.4.3 |
//! | [`translate`](translate()) | §3, §7.1 |
//! | [`remap_interrupt`] | §5.1 |
//! | [`cache`] | §6.1, §6.2 |
//! | [`Unit`] | §4.3, §6.5, §7.2, §7.3, §11 |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod cache;
mod condition;
mod config;
mod counters;
mod interrupt;
mod latched;
mod qemu;
mod registers;
mod request;
mod sanitizer;
mod translate;
mod unit;

pub use cache::{CacheSizes, Caches, TranslationCache};
pub use condition::Condition;
pub use config::{ConfigError, Profile, UnitConfig, UnitConfigBuilder};
pub use counters::{Counters, Invalidations, Lookups, TableReads, WalkReport};
pub use interrupt::{Interrupt, InterruptOutcome, InterruptRequest, RemappedInterrupt, remap_interrupt};
pub use latched::Latched;
pub use qemu::QemuVersion;
pub use registers::AccessWidth;
pub use request::{Fault, Request, RequestKind, Translation};
pub use sanitizer::{Finding, NoCache, Rule, Use};
pub use translate::{DirectPage, DirectWalker, Outcome, inspect, translate};
pub use unit::{
    DESCRIPTORS_PER_WRITE, DeviceInvalidation, DrainToken, EventMessage, EventSource, PasidScope, RestoreError, Unit,
};
pub use vtd_spec::fault::Response;
