//! Owned tables: what the builder writes, the exact inverse of the reader.

use alloc::vec::Vec;

use iommu_types::{AddrRange, HostPhys, Segment};

use crate::rule::Rule;
use crate::structure::{Atsr, Drhd, Malformed, Satc, Structure, StructureType};
use crate::table::{Dmar, TableFlags};

mod emit;
mod scope;

pub use emit::BuildError;
pub use scope::OwnedScope;

/// A DMAR table to be changed, or to be written from nothing. Length and checksum are computed by
/// [`OwnedDmar::build`]; everything else is written as it stands here, right or wrong, so that broken
/// firmware can be built as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedDmar {
    /// Revision of the table format: 1, or 2 on recent machines.
    pub revision: u8,
    /// Who made the machine.
    pub oem_id: [u8; 6],
    /// The maker's name for the table.
    pub oem_table_id: [u8; 8],
    /// The maker's revision.
    pub oem_revision: u32,
    /// The tool that made the table.
    pub creator_id: [u8; 4],
    /// The tool's revision.
    pub creator_revision: u32,
    /// The host address width byte: one less than the number of bits.
    pub host_address_width: u8,
    /// The flags.
    pub flags: TableFlags,
    /// Reserved bytes at the end of the header; 0.
    pub reserved: [u8; 10],
    /// The structures, in table order. The specification wants ascending types.
    pub structures: Vec<OwnedStructure>,
}

impl OwnedDmar {
    /// A table without structures and flags, for a platform whose DMA reaches `host_address_bits` bits of
    /// physical addresses (0 counts as 1).
    #[must_use]
    pub fn new(host_address_bits: u8) -> Self {
        Self {
            revision: 1,
            oem_id: *b"PORTCU",
            oem_table_id: *b"PORTCULL",
            oem_revision: 1,
            creator_id: *b"PORT",
            creator_revision: 1,
            host_address_width: host_address_bits.saturating_sub(1),
            flags: TableFlags::default(),
            reserved: [0; 10],
            structures: Vec::new(),
        }
    }

    /// The same table with these flags.
    #[must_use]
    pub fn flags(mut self, flags: TableFlags) -> Self {
        self.flags = flags;
        self
    }

    /// The same table with one more structure at its end.
    #[must_use]
    pub fn with(mut self, structure: impl Into<OwnedStructure>) -> Self {
        self.structures.push(structure.into());
        self
    }

    /// An owned copy of a table, from which [`OwnedDmar::build`] makes the same bytes again.
    ///
    /// A structure whose bytes the typed form cannot hold (reserved bytes that are not 0, an unreadable scope
    /// list, extra bytes) is kept whole as [`OwnedStructure::Raw`]. The checksum is not judged here.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when the walk over the table does not reach its end, or bytes follow the last structure.
    pub fn from_table(table: Dmar<'_>) -> Result<Self, Malformed> {
        let header = table.header();
        let structures = table
            .structures()
            .map(|structure| structure.map(OwnedStructure::from_view))
            .collect::<Result<_, _>>()?;
        let trailing = table.trailing().len();
        if trailing > 0 {
            return Err(Malformed {
                offset: table.bytes().len() - trailing,
                rule: Rule::TrailingBytes,
                length: 0,
                limit: trailing,
            });
        }
        Ok(Self {
            revision: header.revision,
            oem_id: header.oem_id,
            oem_table_id: header.oem_table_id,
            oem_revision: header.oem_revision,
            creator_id: header.creator_id,
            creator_revision: header.creator_revision,
            host_address_width: header.host_address_width,
            flags: header.flags,
            reserved: header.reserved,
            structures,
        })
    }

    /// The bytes of the table, with the lengths and the checksum that belong to it.
    ///
    /// # Errors
    ///
    /// [`BuildError`] when something does not fit its length field.
    pub fn build(&self) -> Result<Vec<u8>, BuildError> {
        emit::table(self)
    }
}

/// A structure of an owned table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnedStructure {
    /// A unit.
    Drhd(OwnedDrhd),
    /// A reserved memory region.
    Rmrr(OwnedRmrr),
    /// Root ports with ATS.
    Atsr(OwnedAtsr),
    /// The node of a unit.
    Rhsa(OwnedRhsa),
    /// A namespace device.
    Andd(OwnedAndd),
    /// Integrated endpoints with ATS.
    Satc(OwnedSatc),
    /// Properties of integrated devices.
    Sidp(OwnedSidp),
    /// Bytes of any type, written as they stand.
    Raw(RawStructure),
}

impl OwnedStructure {
    /// The typed form where it holds every byte, else the bytes.
    fn from_view(view: Structure<'_>) -> Self {
        Self::typed(view)
            .filter(|typed| emit::structure(0, typed).is_ok_and(|bytes| bytes == view.bytes()))
            .unwrap_or_else(|| {
                let body = view.bytes().get(crate::structure::STRUCTURE_HEADER..).unwrap_or(&[]);
                Self::Raw(RawStructure {
                    kind: view.kind(),
                    body: body.to_vec(),
                })
            })
    }

    fn typed(view: Structure<'_>) -> Option<Self> {
        let scopes = match view.scope_list() {
            Some((_, scopes)) => scopes
                .map(|scope| scope.ok().map(OwnedScope::from_view))
                .collect::<Option<Vec<_>>>()?,
            None => Vec::new(),
        };
        Some(match view {
            Structure::Drhd(s) => Self::Drhd(OwnedDrhd {
                flags: s.flags(),
                size: s.size(),
                segment: s.segment(),
                register_base: s.register_base(),
                scopes,
            }),
            Structure::Rmrr(s) => Self::Rmrr(OwnedRmrr {
                segment: s.segment(),
                base: s.base(),
                limit: s.limit(),
                scopes,
            }),
            Structure::Atsr(s) => Self::Atsr(OwnedAtsr {
                flags: s.flags(),
                segment: s.segment(),
                scopes,
            }),
            Structure::Rhsa(s) => Self::Rhsa(OwnedRhsa {
                register_base: s.register_base(),
                proximity_domain: s.proximity_domain(),
            }),
            Structure::Andd(s) => Self::Andd(OwnedAndd {
                device_number: s.device_number(),
                name: s.name_bytes().to_vec(),
            }),
            Structure::Satc(s) => Self::Satc(OwnedSatc {
                flags: s.flags(),
                segment: s.segment(),
                scopes,
            }),
            Structure::Sidp(s) => Self::Sidp(OwnedSidp {
                segment: s.segment(),
                scopes,
            }),
            Structure::Unknown(_) => return None,
        })
    }
}

/// A unit and the devices that it serves; see [`Drhd`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedDrhd {
    /// The flags byte.
    pub flags: u8,
    /// The size byte: the register set takes two to the power of bits 3:0 pages.
    pub size: u8,
    /// The PCI segment.
    pub segment: Segment,
    /// Where the registers are.
    pub register_base: HostPhys,
    /// The devices.
    pub scopes: Vec<OwnedScope>,
}

impl OwnedDrhd {
    /// A unit with one page of registers at `register_base` that lists nothing yet.
    #[must_use]
    pub const fn new(segment: Segment, register_base: HostPhys) -> Self {
        Self {
            flags: 0,
            size: 0,
            segment,
            register_base,
            scopes: Vec::new(),
        }
    }

    /// The same unit, serving all that no other unit lists.
    #[must_use]
    pub const fn include_pci_all(mut self) -> Self {
        self.flags |= Drhd::INCLUDE_PCI_ALL;
        self
    }

    /// The same unit with a register set of two to the power of `size` pages.
    #[must_use]
    pub const fn size(mut self, size: u8) -> Self {
        self.size = size;
        self
    }
}

/// A reserved memory region; see [`crate::Rmrr`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRmrr {
    /// The PCI segment of the devices.
    pub segment: Segment,
    /// First byte.
    pub base: HostPhys,
    /// Last byte (inclusive).
    pub limit: HostPhys,
    /// The devices that use the region.
    pub scopes: Vec<OwnedScope>,
}

impl OwnedRmrr {
    /// The region `range`, without devices yet.
    #[must_use]
    pub const fn new(segment: Segment, range: AddrRange<HostPhys>) -> Self {
        Self {
            segment,
            base: range.first(),
            limit: range.last(),
            scopes: Vec::new(),
        }
    }
}

/// Root ports that support ATS; see [`Atsr`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedAtsr {
    /// The flags byte.
    pub flags: u8,
    /// The PCI segment.
    pub segment: Segment,
    /// The ports.
    pub scopes: Vec<OwnedScope>,
}

impl OwnedAtsr {
    /// An entry that lists no ports yet.
    #[must_use]
    pub const fn new(segment: Segment) -> Self {
        Self {
            flags: 0,
            segment,
            scopes: Vec::new(),
        }
    }

    /// An entry for every root port of the segment.
    #[must_use]
    pub const fn all_ports(segment: Segment) -> Self {
        Self {
            flags: Atsr::ALL_PORTS,
            segment,
            scopes: Vec::new(),
        }
    }
}

/// The node of a unit; see [`crate::Rhsa`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnedRhsa {
    /// Register base of the unit.
    pub register_base: HostPhys,
    /// Proximity domain, as in the SRAT.
    pub proximity_domain: u32,
}

/// A namespace device; see [`crate::Andd`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedAndd {
    /// The number that namespace scopes refer to.
    pub device_number: u8,
    /// The bytes of the name, terminator and padding included.
    pub name: Vec<u8>,
}

impl OwnedAndd {
    /// The device with this full path; the terminating NUL is added.
    #[must_use]
    pub fn new(device_number: u8, path: &str) -> Self {
        let mut name = path.as_bytes().to_vec();
        name.push(0);
        Self { device_number, name }
    }
}

/// Integrated endpoints with an address-translation cache; see [`Satc`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedSatc {
    /// The flags byte.
    pub flags: u8,
    /// The PCI segment.
    pub segment: Segment,
    /// The endpoints.
    pub scopes: Vec<OwnedScope>,
}

impl OwnedSatc {
    /// An entry that lists no endpoint yet; `atc_required` when they do not work without ATS.
    #[must_use]
    pub const fn new(segment: Segment, atc_required: bool) -> Self {
        Self {
            flags: if atc_required { Satc::ATC_REQUIRED } else { 0 },
            segment,
            scopes: Vec::new(),
        }
    }
}

/// Properties of integrated devices; see [`crate::Sidp`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedSidp {
    /// The PCI segment.
    pub segment: Segment,
    /// The devices; the flags of each entry are its properties.
    pub scopes: Vec<OwnedScope>,
}

impl OwnedSidp {
    /// An entry that lists no device yet.
    #[must_use]
    pub const fn new(segment: Segment) -> Self {
        Self {
            segment,
            scopes: Vec::new(),
        }
    }
}

/// A structure of any type as bytes: of a type that this crate does not know, or with content that the typed
/// form cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawStructure {
    /// The type.
    pub kind: StructureType,
    /// What follows type and length.
    pub body: Vec<u8>,
}

macro_rules! into_structure {
    ($($variant:ident($owned:ident)),* $(,)?) => {
        $(
            impl From<$owned> for OwnedStructure {
                fn from(owned: $owned) -> Self {
                    Self::$variant(owned)
                }
            }
        )*
    };
}

into_structure!(
    Drhd(OwnedDrhd),
    Rmrr(OwnedRmrr),
    Atsr(OwnedAtsr),
    Rhsa(OwnedRhsa),
    Andd(OwnedAndd),
    Satc(OwnedSatc),
    Sidp(OwnedSidp),
    Raw(RawStructure),
);

macro_rules! with_scopes {
    ($($owned:ident),*) => {
        $(
            impl $owned {
                /// The same structure with one more device scope entry at its end.
                #[must_use]
                pub fn scope(mut self, scope: OwnedScope) -> Self {
                    self.scopes.push(scope);
                    self
                }
            }
        )*
    };
}

with_scopes!(OwnedDrhd, OwnedRmrr, OwnedAtsr, OwnedSatc, OwnedSidp);
