//! Registers, in-memory structures, invalidation descriptors, interrupt messages and fault reasons of Intel VT-d,
//! as types.
//!
//! # Purpose
//!
//! A driver and a model of the same hardware must agree on every bit, and neither may decide alone where a bit is.
//! This crate is the one place in the workspace that knows bit numbers: each register, table entry and
//! descriptor is a type over the plain integer, with the fields at the absolute positions that the specification
//! prints, and with the reserved bits, access classes and reset values as data.
//!
//! # Place in the stack
//!
//! Layer 1: `no_std`, no allocation, above `iommu-types` only. The driver (`vtd-driver`), the model (`vtd-model`) and
//! the page tables (`iommu-pagetable`) build on it and share nothing else.
//!
//! # Example
//!
//! ```
//! use iommu_types::{DomainId, HostPhys};
//! use vtd_spec::Agaw;
//! use vtd_spec::entry::{ContextEntry, ContextTranslation};
//! use vtd_spec::register::{Capability, offset};
//!
//! // What a server unit reports at offset 008h.
//! assert_eq!(offset::CAP, 0x008);
//! let cap = Capability::new_with_raw_value(0x08D2_078C_106F_0466);
//! assert_eq!(cap.domain_count(), 65536);
//! assert!(cap.supports_agaw(Agaw::Bits48));
//!
//! // A context entry that sends a device through 4-level tables at ABC000h as domain 5.
//! let entry = ContextEntry::DEFAULT
//!     .with_p(true)
//!     .with_tt(ContextTranslation::Untranslated)
//!     .with_agaw(Agaw::Bits48)
//!     .with_second_stage_table(HostPhys::new(0xABC000))
//!     .with_domain(DomainId(5));
//! assert_eq!(entry.to_words(), [0x00AB_C001, 0x502]);
//! ```
//!
//! # How types are made
//!
//! * A register or structure of up to 128 bits is one `bitbybit` bit field. Field names are the specification's
//!   abbreviations in lower case; `x()` reads field X, `with_x(v)` gives a copy with X replaced, `X_BITS` and `x_mask()` tell
//!   where it lies. `DEFAULT` is all zero, or for an invalidation descriptor its type code only.
//! * Where a field is an address, a domain or a source, a second accessor with a spoken name takes and gives that
//!   type (`ctp` is bits 63:12 as a number, `context_table` is a [`HostPhys`](iommu_types::HostPhys)). Setters of
//!   addresses keep the bits that the field has and drop the rest.
//! * Everything is readable and writable as a *value*, also registers that hardware makes read-only: a model has to
//!   produce what a driver reads. What a write to the register does is in [`access`].
//! * `reserved(…)` gives the bits that must be zero for a unit with given [`UnitFeatures`].
//!
//! # Map to the specification
//!
//! | here | VT-d |
//! |---|---|
//! | [`register`], [`access`] | chapter 11 |
//! | [`entry`] | chapter 9, §7.4.1.1 (page request descriptor) |
//! | [`descriptor`] | §6.5.2, §7.6.1 |
//! | [`message`] | §5.1.2, §5.1.5, §5.1.6 |
//! | [`fault`] | §7.1.3, §5.1.4.1 |
//!
//! # What it does not do
//!
//! No algorithms: no walk, no invalidation, no command sequence. It holds only decoding that is one expression of
//! the fields, such as "how many domains" or "where is fault record 3".
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
mod layout;

pub mod access;
mod agaw;
#[cfg(test)]
mod bit_positions;
pub mod descriptor;
pub mod encoding;
pub mod entry;
pub mod fault;
mod features;
pub mod message;
pub mod register;

pub use agaw::{Agaw, TABLE_INDEX_BITS, level_shift, table_index};
pub use fault::FaultReason;
pub use features::UnitFeatures;

/// Revision of the *Intel Virtualization Technology for Directed I/O Architecture Specification* (order number
/// D51397-018) that every `VT-d §` citation in this workspace refers to.
///
/// Section numbers move between revisions; the register or table name that follows in brackets does not.
pub const VTD_SPEC_REVISION: &str = "5.10";
