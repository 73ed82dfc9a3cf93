//! The vocabulary that every IOMMU crate shares.
//!
//! # Purpose
//!
//! An IOMMU stack confuses kinds of numbers at its peril: an address a device uses is not an address the
//! memory controller uses, and a requester ID is not an index. This crate gives each kind its own type with
//! checked arithmetic, and holds the few traits through which drivers, models and tests meet.
//!
//! | what | types |
//! |---|---|
//! | addresses, one type for each space, and inclusive ranges | [`Iova`], [`HostPhys`], [`GuestPhys`], [`AddrRange`], [`PageSize`] |
//! | who asks, and for what | [`SourceId`], [`Bdf`], [`Segment`], [`Pasid`], [`DomainId`], [`Access`], [`Perms`] |
//! | what a driver's host brings | [`Registers`], [`TableMemory`], [`Coherence`], [`Clock`] |
//! | memory as devices and walkers see it | [`SystemMemory`] |
//! | what the DMA API needs of any IOMMU | [`AddressSpace`] |
//! | numbers that hardware may extend | [`open_enum!`] |
//!
//! # Place in the stack
//!
//! Layer 0: `no_std`, no dependencies, used by everything.
//!
//! # Example
//!
//! ```
//! use iommu_types::{AddrRange, Iova, SourceId};
//!
//! let buffer = AddrRange::from_base_len(Iova::new(0x10_0000), 0x2000).expect("fits the address space");
//! assert!(buffer.contains(Iova::new(0x10_1fff)));
//! assert!(!buffer.contains(Iova::new(0x10_2000)));
//!
//! let nic: SourceId = "02:00.1".parse().expect("bus:device.function");
//! assert_eq!(nic.raw(), 0x0201);
//! ```
//!
//! # What it does not do
//!
//! It knows no bit position of any table or register; those live in `vtd-spec`.
//!
//! # Features
//!
//! `mutation` lets tests leave out single steps of a driver ([`omission`]). No product has it.
#![no_std]
#![forbid(unsafe_code)]

mod access;
mod address;
mod address_space;
mod domain;
mod hardware;
mod memory;
pub mod omission;
mod open_enum;
mod page;
mod range;
mod source;
pub mod sync;

pub use access::{Access, Perms};
pub use address::{Address, GuestPhys, HostPhys, Iova};
pub use address_space::{AddressSpace, Piece, UnmapRefused};
pub use domain::{DomainId, NodeId, Pasid};
pub use hardware::{
    Clock, Coherence, FrameRequest, OutOfFrames, Registers, TABLE_ENTRIES, Table, TableFrame, TableMemory,
};
pub use memory::{BusError, SystemMemory};
pub use page::{PAGE_SHIFT, PAGE_SIZE, PageSize};
pub use range::AddrRange;
pub use source::{Bdf, DevFn, ParseBdfError, Segment, SourceId};
