//! The remapping structures of a table and the walk over them (VT-d §8.2).

use core::fmt;

use crate::bytes::{byte, le16, le32, le64, tail};
use crate::rule::Rule;
use crate::scope::Scopes;
use iommu_types::{AddrRange, HostPhys, Segment};

iommu_types::open_enum! {
    /// The type of a remapping structure.
    pub struct StructureType(u16) {
        /// Remapping hardware unit definition.
        DRHD = 0,
        /// Reserved memory region reporting.
        RMRR = 1,
        /// Root port ATS capability reporting.
        ATSR = 2,
        /// Remapping hardware static affinity.
        RHSA = 3,
        /// ACPI name-space device declaration.
        ANDD = 4,
        /// SoC integrated address translation cache.
        SATC = 5,
        /// SoC integrated device property.
        SIDP = 6,
    }
}

impl StructureType {
    /// Bytes before the device scopes (or before the name), which every structure of the type has.
    #[must_use]
    pub const fn fixed_len(self) -> usize {
        match self {
            Self::DRHD => 16,
            Self::RMRR => 24,
            Self::ATSR | Self::ANDD | Self::SATC | Self::SIDP => 8,
            Self::RHSA => 20,
            _ => STRUCTURE_HEADER,
        }
    }

    /// The full name as the specification gives it.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::DRHD => "Remapping Hardware Unit Definition",
            Self::RMRR => "Reserved Memory Region",
            Self::ATSR => "Root Port ATS Capability",
            Self::RHSA => "Remapping Hardware Static Affinity",
            Self::ANDD => "ACPI Namespace Device Declaration",
            Self::SATC => "SoC Integrated Address Translation Cache",
            Self::SIDP => "SoC Integrated Device Property",
            _ => "Unknown",
        }
    }
}

/// Type and length, which every structure starts with.
pub(crate) const STRUCTURE_HEADER: usize = 4;

/// A length that cannot be right, where it stands, and the rule that it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Offset in the table, in bytes, of the structure or scope entry.
    pub offset: usize,
    /// The rule that is broken.
    pub rule: Rule,
    /// What the length field says, in bytes.
    pub length: usize,
    /// How many bytes there are, or for [`Rule::StructureBelowType`] how many the type needs.
    pub limit: usize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            offset,
            rule,
            length,
            limit,
        } = self;
        write!(f, "{rule} at offset {offset:#x}: ")?;
        match rule {
            Rule::TableTruncated => write!(f, "the table ends after {limit} of its {length} bytes"),
            Rule::StructureTooShort => write!(f, "a structure says that it is {length} bytes long; 4 is the least"),
            Rule::StructureBelowType => write!(f, "a structure of {length} bytes, whose type needs {limit}"),
            Rule::ScopeLength => write!(
                f,
                "a device scope says that it is {length} bytes long, where {limit} are left and 6 + 2n (n > 0) is expected"
            ),
            _ => write!(
                f,
                "a structure says that it is {length} bytes long, but {limit} are left"
            ),
        }
    }
}

impl core::error::Error for Malformed {}

macro_rules! views {
    ($( $(#[$meta:meta])* $name:ident; )*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $name<'a> {
                bytes: &'a [u8],
                offset: usize,
            }

            impl<'a> $name<'a> {
                /// Offset of the structure in the table, in bytes.
                #[must_use]
                pub const fn offset(self) -> usize {
                    self.offset
                }

                /// The structure's bytes, type and length included.
                #[must_use]
                pub const fn bytes(self) -> &'a [u8] {
                    self.bytes
                }
            }
        )*
    };
}

views! {
    /// Remapping hardware unit definition (VT-d §8.3): one unit and the devices that it serves.
    Drhd;
    /// Reserved memory region (VT-d §8.4): memory that the listed devices need identity-mapped.
    Rmrr;
    /// Root port ATS capability (VT-d §8.5): ports below which ATS may be enabled.
    Atsr;
    /// Static affinity (VT-d §8.6): the NUMA node of a unit.
    Rhsa;
    /// Namespace device declaration (VT-d §8.7): the name behind the enumeration id of a namespace scope.
    Andd;
    /// SoC integrated address translation cache (VT-d §8.8): integrated endpoints whose ATS is validated.
    Satc;
    /// SoC integrated device property (VT-d §8.9): what integrated devices demand of their page tables.
    Sidp;
    /// A structure of a type that this crate does not know. It is kept, not judged.
    Unknown;
}

impl<'a> Drhd<'a> {
    /// Flags bit: the unit serves every PCI device of the segment that no other unit lists.
    pub const INCLUDE_PCI_ALL: u8 = 1 << 0;

    /// The flags byte.
    #[must_use]
    pub fn flags(self) -> u8 {
        byte(self.bytes, 4)
    }

    /// Whether the unit serves every PCI device of its segment that no unit lists.
    #[must_use]
    pub fn include_pci_all(self) -> bool {
        self.flags() & Self::INCLUDE_PCI_ALL != 0
    }

    /// The size byte as it stands; bits 7:4 are reserved.
    #[must_use]
    pub fn size(self) -> u8 {
        byte(self.bytes, 5)
    }

    /// Bytes that the register set takes at least: 4 KiB times two to the power of the size field.
    ///
    /// A driver maps more when the unit's capability registers point beyond.
    #[must_use]
    pub fn register_set_len(self) -> u64 {
        iommu_types::PAGE_SIZE << (self.size() & 0xf)
    }

    /// The PCI segment that the unit serves.
    #[must_use]
    pub fn segment(self) -> Segment {
        Segment::from(le16(self.bytes, 6))
    }

    /// Where the registers are.
    #[must_use]
    pub fn register_base(self) -> HostPhys {
        HostPhys::new(le64(self.bytes, 8))
    }

    /// Whether the base can be the address of a unit: neither 0 nor all ones, which broken firmware reports.
    #[must_use]
    pub fn has_usable_base(self) -> bool {
        !matches!(self.register_base(), HostPhys::ZERO | HostPhys::MAX)
    }

    /// The devices that the unit lists.
    #[must_use]
    pub fn scopes(self) -> Scopes<'a> {
        scopes(self.bytes, self.offset, StructureType::DRHD)
    }
}

impl<'a> Rmrr<'a> {
    /// The PCI segment of the listed devices.
    #[must_use]
    pub fn segment(self) -> Segment {
        Segment::from(le16(self.bytes, 6))
    }

    /// First byte of the region.
    #[must_use]
    pub fn base(self) -> HostPhys {
        HostPhys::new(le64(self.bytes, 8))
    }

    /// Last byte of the region (inclusive), as it stands in the table.
    #[must_use]
    pub fn limit(self) -> HostPhys {
        HostPhys::new(le64(self.bytes, 16))
    }

    /// The region as whole pages, rounded outwards, or `None` when it is inverted or empty (0 to 0).
    #[must_use]
    pub fn region(self) -> Option<AddrRange<HostPhys>> {
        if self.base() == HostPhys::ZERO && self.limit() == HostPhys::ZERO {
            return None;
        }
        AddrRange::new(self.base(), self.limit()).map(AddrRange::to_pages)
    }

    /// The devices that use the region.
    #[must_use]
    pub fn scopes(self) -> Scopes<'a> {
        scopes(self.bytes, self.offset, StructureType::RMRR)
    }
}

impl<'a> Atsr<'a> {
    /// Flags bit: every root port of the segment supports ATS.
    pub const ALL_PORTS: u8 = 1 << 0;

    /// The flags byte.
    #[must_use]
    pub fn flags(self) -> u8 {
        byte(self.bytes, 4)
    }

    /// Whether every root port of the segment supports ATS.
    #[must_use]
    pub fn all_ports(self) -> bool {
        self.flags() & Self::ALL_PORTS != 0
    }

    /// The PCI segment of the ports.
    #[must_use]
    pub fn segment(self) -> Segment {
        Segment::from(le16(self.bytes, 6))
    }

    /// The root ports that support ATS.
    #[must_use]
    pub fn scopes(self) -> Scopes<'a> {
        scopes(self.bytes, self.offset, StructureType::ATSR)
    }
}

impl Rhsa<'_> {
    /// Register base of the unit that this speaks about.
    #[must_use]
    pub fn register_base(self) -> HostPhys {
        HostPhys::new(le64(self.bytes, 8))
    }

    /// The proximity domain, as in the SRAT.
    #[must_use]
    pub fn proximity_domain(self) -> u32 {
        le32(self.bytes, 16)
    }
}

impl<'a> Andd<'a> {
    /// The number that namespace scopes refer to.
    #[must_use]
    pub fn device_number(self) -> u8 {
        byte(self.bytes, 7)
    }

    /// The bytes of the name as they stand, terminator and padding included.
    #[must_use]
    pub fn name_bytes(self) -> &'a [u8] {
        tail(self.bytes, StructureType::ANDD.fixed_len())
    }

    /// The object's full path, up to the NUL, or `None` when it has no NUL or is not ASCII.
    #[must_use]
    pub fn name(self) -> Option<&'a str> {
        let name = core::ffi::CStr::from_bytes_until_nul(self.name_bytes()).ok()?;
        name.to_str().ok().filter(|name| name.is_ascii())
    }
}

impl<'a> Satc<'a> {
    /// Flags bit: the devices do not work without their address-translation cache.
    pub const ATC_REQUIRED: u8 = 1 << 0;

    /// The flags byte.
    #[must_use]
    pub fn flags(self) -> u8 {
        byte(self.bytes, 4)
    }

    /// Whether the listed devices need ATS to work.
    #[must_use]
    pub fn atc_required(self) -> bool {
        self.flags() & Self::ATC_REQUIRED != 0
    }

    /// The PCI segment of the devices.
    #[must_use]
    pub fn segment(self) -> Segment {
        Segment::from(le16(self.bytes, 6))
    }

    /// The integrated endpoints.
    #[must_use]
    pub fn scopes(self) -> Scopes<'a> {
        scopes(self.bytes, self.offset, StructureType::SATC)
    }
}

impl<'a> Sidp<'a> {
    /// The PCI segment of the devices.
    #[must_use]
    pub fn segment(self) -> Segment {
        Segment::from(le16(self.bytes, 6))
    }

    /// The devices; the flags of each entry are its properties.
    #[must_use]
    pub fn scopes(self) -> Scopes<'a> {
        scopes(self.bytes, self.offset, StructureType::SIDP)
    }
}

impl<'a> Unknown<'a> {
    /// The type as it stands.
    #[must_use]
    pub fn kind(self) -> StructureType {
        StructureType(le16(self.bytes, 0))
    }

    /// The bytes after type and length.
    #[must_use]
    pub fn body(self) -> &'a [u8] {
        tail(self.bytes, STRUCTURE_HEADER)
    }
}

fn scopes(bytes: &[u8], offset: usize, kind: StructureType) -> Scopes<'_> {
    let fixed = kind.fixed_len();
    Scopes::new(tail(bytes, fixed), offset + fixed)
}

/// One remapping structure: a view of its bytes in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Structure<'a> {
    /// A unit.
    Drhd(Drhd<'a>),
    /// A reserved memory region.
    Rmrr(Rmrr<'a>),
    /// Root ports with ATS.
    Atsr(Atsr<'a>),
    /// The node of a unit.
    Rhsa(Rhsa<'a>),
    /// A namespace device.
    Andd(Andd<'a>),
    /// Integrated endpoints with ATS.
    Satc(Satc<'a>),
    /// Properties of integrated devices.
    Sidp(Sidp<'a>),
    /// A type that this crate does not know.
    Unknown(Unknown<'a>),
}

impl<'a> Structure<'a> {
    fn new(bytes: &'a [u8], offset: usize) -> Self {
        match StructureType(le16(bytes, 0)) {
            StructureType::DRHD => Self::Drhd(Drhd { bytes, offset }),
            StructureType::RMRR => Self::Rmrr(Rmrr { bytes, offset }),
            StructureType::ATSR => Self::Atsr(Atsr { bytes, offset }),
            StructureType::RHSA => Self::Rhsa(Rhsa { bytes, offset }),
            StructureType::ANDD => Self::Andd(Andd { bytes, offset }),
            StructureType::SATC => Self::Satc(Satc { bytes, offset }),
            StructureType::SIDP => Self::Sidp(Sidp { bytes, offset }),
            _ => Self::Unknown(Unknown { bytes, offset }),
        }
    }

    /// The structure's bytes, type and length included.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8] {
        match self {
            Self::Drhd(s) => s.bytes,
            Self::Rmrr(s) => s.bytes,
            Self::Atsr(s) => s.bytes,
            Self::Rhsa(s) => s.bytes,
            Self::Andd(s) => s.bytes,
            Self::Satc(s) => s.bytes,
            Self::Sidp(s) => s.bytes,
            Self::Unknown(s) => s.bytes,
        }
    }

    /// Offset of the structure in the table, in bytes.
    #[must_use]
    pub const fn offset(self) -> usize {
        match self {
            Self::Drhd(s) => s.offset,
            Self::Rmrr(s) => s.offset,
            Self::Atsr(s) => s.offset,
            Self::Rhsa(s) => s.offset,
            Self::Andd(s) => s.offset,
            Self::Satc(s) => s.offset,
            Self::Sidp(s) => s.offset,
            Self::Unknown(s) => s.offset,
        }
    }

    /// The type.
    #[must_use]
    pub fn kind(self) -> StructureType {
        StructureType(le16(self.bytes(), 0))
    }

    /// The segment and the device scopes, for the types that have them.
    #[must_use]
    pub fn scope_list(self) -> Option<(Segment, Scopes<'a>)> {
        match self {
            Self::Drhd(s) => Some((s.segment(), s.scopes())),
            Self::Rmrr(s) => Some((s.segment(), s.scopes())),
            Self::Atsr(s) => Some((s.segment(), s.scopes())),
            Self::Satc(s) => Some((s.segment(), s.scopes())),
            Self::Sidp(s) => Some((s.segment(), s.scopes())),
            Self::Rhsa(_) | Self::Andd(_) | Self::Unknown(_) => None,
        }
    }
}

/// The walk over the structures of a table.
///
/// It always advances and always ends. A length below 4 or past the end of the table ends it with a
/// [`Malformed`]; a structure too short for its type is a [`Malformed`] too, after which the walk goes on.
/// Bytes after the last structure that are too few for another (1 to 3) end it quietly: no structure can be
/// lost in them, and [`Rule::TrailingBytes`] reports them.
#[derive(Clone, Debug)]
pub struct Structures<'a> {
    /// The table, or what there is of it.
    table: &'a [u8],
    /// The length that the header states, when `table` is shorter.
    missing: Option<usize>,
    offset: usize,
}

impl<'a> Structures<'a> {
    /// The structures of `table` from `offset` on; `missing` is the stated length of a truncated table.
    pub(crate) const fn new(table: &'a [u8], missing: Option<usize>, offset: usize) -> Self {
        Self { table, missing, offset }
    }

    /// Ends the walk with `rule`.
    fn end(&mut self, rule: Rule, length: usize, limit: usize) -> Malformed {
        let offset = self.offset;
        self.offset = self.table.len();
        self.missing = None;
        Malformed {
            offset,
            rule,
            length,
            limit,
        }
    }

    /// What is wrong with a structure that needs bytes which are not there.
    fn overrun(&mut self, length: usize, left: usize) -> Malformed {
        match self.missing {
            Some(stated) => self.end(Rule::TableTruncated, stated, self.table.len()),
            None => self.end(Rule::StructureOverrun, length, left),
        }
    }
}

impl<'a> Iterator for Structures<'a> {
    type Item = Result<Structure<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = tail(self.table, self.offset);
        if rest.len() < STRUCTURE_HEADER {
            return self.missing.map(|_| Err(self.overrun(0, rest.len())));
        }
        let length = usize::from(le16(rest, 2));
        if length < STRUCTURE_HEADER {
            return Some(Err(self.end(Rule::StructureTooShort, length, rest.len())));
        }
        let Some(bytes) = rest.get(..length) else {
            return Some(Err(self.overrun(length, rest.len())));
        };
        let offset = self.offset;
        // Advances by 4 bytes at least, so the walk ends.
        self.offset += length;
        let structure = Structure::new(bytes, offset);
        let fixed = structure.kind().fixed_len();
        if length < fixed {
            return Some(Err(Malformed {
                offset,
                rule: Rule::StructureBelowType,
                length,
                limit: fixed,
            }));
        }
        Some(Ok(structure))
    }
}

impl core::iter::FusedIterator for Structures<'_> {}
