//! The ACPI DMAR table: reader, builder, lint and scope resolution.
//!
//! # Purpose
//!
//! The firmware's DMAR table says where the machine's remapping units are, which devices each of them serves,
//! and which memory some devices cannot do without. It is the root of every answer to "which unit contains
//! this device", and it comes from firmware that is often wrong. This crate reads it without trusting it.
//!
//! | part | what it does |
//! |---|---|
//! | [`Dmar`] | a view of the bytes: header, [`Structures`], [`Scopes`]; no allocation, every walk bounded |
//! | [`Dmar::owner`] | which unit serves a function, and the statement that says so; *unknown* is an answer |
//! | [`Rmrr::applies_to`], [`Atsr::applies_to`], [`Satc::applies_to`], [`Sidp::applies_to`] | what else holds for it |
//! | [`OwnedDmar`] | the builder, exact inverse of the reader |
//! | [`lint`] | fifty rules with stable ids, severity, byte offset and advice |
//!
//! # Place in the stack
//!
//! Layer 1: `no_std`, above `iommu-types` only. Reading allocates nothing; the builder and `lint` need the feature `alloc`, which is on
//! by default.
//!
//! # Example
//!
//! ```
//! use acpi_dmar::{Dmar, NoTopology, OwnedDmar, OwnedDrhd, OwnedScope, Owner, TableFlags};
//! use iommu_types::{HostPhys, Segment};
//!
//! let graphics = OwnedDrhd::new(Segment(0), HostPhys::new(0xfed9_0000))
//!     .scope(OwnedScope::endpoint("00:02.0".parse()?));
//! let all_else = OwnedDrhd::new(Segment(0), HostPhys::new(0xfed9_1000)).include_pci_all();
//! let bytes = OwnedDmar::new(39)
//!     .flags(TableFlags::INTR_REMAP)
//!     .with(graphics)
//!     .with(all_else)
//!     .build()?;
//!
//! let table = Dmar::parse(&bytes)?;
//! assert!(table.checksum_ok());
//! assert!(matches!(table.owner("00:02.0".parse()?, &NoTopology), Owner::Unit(0, _)));
//! assert!(matches!(table.owner("00:1f.3".parse()?, &NoTopology), Owner::Unit(1, _)));
//! assert_eq!(table.owner("0001:00:1f.3".parse()?, &NoTopology), Owner::NotCovered);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Choices
//!
//! * A truncated table, a wrong length and an unreadable path make answers *unknown*, never *not covered*: what
//!   was not read may have listed the device. A wrong checksum is left to the caller ([`Dmar::checksum_ok`]).
//! * Two units that claim a device equally well are a conflict, not a race that the first one wins. Entries with
//!   the same register base are one unit.
//! * A device scope of an unknown type casts doubt on the functions that no entry names, unless it stands in
//!   the INCLUDE_PCI_ALL unit, where it makes no difference.
//! * A path of one hop that starts on a bus other than a root bus is taken for the function's own bus, as Linux
//!   does, and reported ([`Why::Named`]).
//!
//! # What it does not do
//!
//! It reads no memory, no configuration space and no ACPI namespace: the caller brings bytes and a
//! [`BusTopology`]. It sets no policy: whether a finding is reason to refuse a table is for the caller to say.
//! Hot-plugged units (`_DSM`) are not merged.
//!
//! # Where the specification is
//!
//! | VT-d | here |
//! |---|---|
//! | §8.1 table, flags | [`Dmar`], [`Header`], [`TableFlags`] |
//! | §8.2 structure types | [`StructureType`], [`Structures`] |
//! | §8.3 DRHD, §8.3.1 device scope | [`Drhd`], [`DeviceScope`], [`Dmar::owner`] |
//! | §8.4 RMRR, §8.5 ATSR, §8.6 RHSA, §8.7 ANDD, §8.8 SATC, §8.9 SIDP | the type of that name |
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;

mod bytes;
#[cfg(feature = "alloc")]
pub mod lint;
mod matching;
#[cfg(feature = "alloc")]
mod owned;
mod owner;
mod rule;
mod scope;
mod structure;
mod table;
mod topology;

pub use matching::{Applies, ScopeMatch};
#[cfg(feature = "alloc")]
pub use owned::{
    BuildError, OwnedAndd, OwnedAtsr, OwnedDmar, OwnedDrhd, OwnedRhsa, OwnedRmrr, OwnedSatc, OwnedScope, OwnedSidp,
    OwnedStructure, RawStructure,
};
pub use owner::{Doubt, Located, Owner, Why};
pub use rule::{Needs, Rule, Severity};
pub use scope::{DeviceScope, PathEnd, PathHop, ScopeFlags, ScopeType, Scopes};
pub use structure::{
    Andd, Atsr, Drhd, Malformed, Rhsa, Rmrr, Satc, Sidp, Structure, StructureType, Structures, Unknown,
};
pub use table::{Dmar, HEADER_LEN, Header, ParseError, SIGNATURE, TableFlags};
pub use topology::{BusTopology, NoTopology, Seen, Upstream};
