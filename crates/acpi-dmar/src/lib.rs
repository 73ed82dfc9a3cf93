//! The ACPI DMAR table: reader, builder, lint and scope resolution.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod bytes;
mod matching;
mod owned;
mod owner;
mod rule;
mod scope;
mod structure;
mod table;
mod topology;

pub use matching::{Applies, ScopeMatch};
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
