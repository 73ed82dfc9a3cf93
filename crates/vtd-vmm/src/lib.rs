//! A VT-d remapping unit for VMMs: shared by threads, in front of guest memory.
//!
//! # Purpose
//!
//! A VMM that gives its guest an IOMMU has vCPU threads that program the unit and device threads that go through it, all
//! at once. [`VmmUnit`] is the unit of `vtd-model` made for that: a translation that is cached takes no lock, walks run in
//! parallel, and when the guest is told that an invalidation is complete, no device still uses what was invalidated.
//!
//! Device models reach memory through a [`Section`]: guest memory as one requester sees it, for the time of one request
//! or batch. It implements [`vm_memory::GuestMemory`], so `virtio-queue` and other rust-vmm code work behind the unit
//! unchanged.
//!
//! # Place in the stack
//!
//! Layer 4, std. Rules of translation are `vtd-model`'s; this crate keeps its answers and knows when they end.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//!
//! use iommu_types::SourceId;
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//! use vtd_model::{AccessWidth, UnitConfig};
//! use vtd_spec::register::{GlobalCommand, offset};
//! use vtd_vmm::{Requester, VmmUnit};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
//! let config = UnitConfig::builder().two_phase_waits(true).build()?;
//! let unit = VmmUnit::new(config, Arc::new(memory), ())?;
//!
//! // Before the guest switches translation on, addresses pass as they are.
//! let nic = Requester::new("02:00.0".parse::<SourceId>()?);
//! unit.section(nic, |dma| dma.write_obj(0xC0FFEE_u32, GuestAddress(0x4000)))?;
//!
//! // The guest points the unit at an (empty) root table and switches it on: what is not mapped is blocked.
//! unit.write(offset::RTADDR, AccessWidth::Qword, 0x1000);
//! for command in [GlobalCommand::DEFAULT.with_srtp(true), GlobalCommand::DEFAULT.with_te(true)] {
//!     unit.write(offset::GCMD, AccessWidth::Dword, command.raw_value().into());
//! }
//! assert!(unit.section(nic, |dma| dma.read_obj::<u32>(GuestAddress(0x4000))).is_err());
//! assert_eq!(unit.counters().faults_recorded, 1);
//! # Ok(())
//! # }
//! ```
//!
//! `examples/vmm.rs` is a whole VMM in small: registers on a bus, a virtio queue behind the unit, interrupts out.
//!
//! # The guarantee
//!
//! Opening a section and closing it are one atomic operation each, on a slot of the thread's own. A command that drops
//! translations first makes them unfindable and then looks at every slot: sections that open later cannot find them,
//! sections that are open are waited for. The model asks for this before a wait descriptor completes behind any
//! invalidation, and before GSTS, PMEN, CCMD and IOTLB_REG show their command as done; they do when the last section
//! closes, on the thread that closes it. Nothing blocks, and a queue runs on behind the wait only when it is complete.
//!
//! | freedom | choice |
//! |---|---|
//! | context and PASID commands | drop all cached answers: they are rare, and translations are looked up again |
//! | PASID-selective IOTLB commands | drop the domain |
//! | page-selective commands of more than 8 pages of a size, or with first-stage pages in the domain | drop the domain |
//! | requesters of one domain | do not share cached answers, since an answer depends on the requester's context too |
//! | a miss of a requester whose legacy context entry is known | walks the second-stage tables and nothing else |
//! | a sanitizer | has every access take the lock: findings are exact, threads are not parallel |
//! | a range that vm-memory asks to read and write | judged as an atomic access |
//!
//! # Bounds
//!
//! A unit holds at most [`VmmUnit::memory_bound`] bytes, whatever its guest does: less than 2 MiB by default. A register
//! write processes at most one ring of descriptors, and each of these looks at no more than a fixed number of lines of
//! the IOTLB, however many pages it names.
//!
//! # What it does not do
//!
//! * `Profile::Silicon`: it needs someone to step it.
//! * Counting translations that need no walk: [`VmmUnit::counters`] counts walks and what happens under the lock.
//! * Paging-structure caches: a miss walks from the top.
//! * Extended destination IDs in messages that pass unremapped are not read; only encoded.
//!
//! # Map to the specification
//!
//! | here | VT-d |
//! |---|---|
//! | [`Section::translate`], [`Section::answer`] | §3 |
//! | [`VmmUnit::interrupt`], [`RoutedInterrupt`] | §5.1 |
//! | cached answers and what drops them | §6.2, §6.5 |
//! | drains | §6.5.2.9 (wait), §6.5.1 (registers), §11.4.4.1 (TE, SRTP) |
//! | [`VmmUnit::read_bytes`], [`VmmUnit::write_bytes`] | §11.1 |
#![forbid(unsafe_code)]

mod bus;
mod interrupt;
mod listener;
mod mmio;
#[doc(hidden)]
pub mod protocol;
mod requester;
mod section;
mod store;
mod tally;
mod unit;

pub use bus::GuestBus;
pub use interrupt::{DestinationMode, DestinationTooLarge, InterruptDropped, MsiMessage, RoutedInterrupt, Trigger};
pub use listener::Listener;
pub use requester::Requester;
pub use section::{Place, Section, Slices};
pub use unit::{VmmError, VmmUnit};
