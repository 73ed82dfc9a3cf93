//! The table itself: header, flags, checks (VT-d §8.1).

use core::fmt;

use crate::bytes::{array, byte, checksum, le32};
use crate::rule::Rule;
use crate::structure::{Andd, Atsr, Drhd, Malformed, Rhsa, Rmrr, STRUCTURE_HEADER, Satc, Sidp, Structure, Structures};

/// Bytes of the header, after which the structures follow.
pub const HEADER_LEN: usize = 48;

/// What every DMAR table starts with.
pub const SIGNATURE: [u8; 4] = *b"DMAR";

/// The table's flags byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TableFlags(pub u8);

impl TableFlags {
    /// The platform supports interrupt remapping. When clear, it must not be used, whatever the units say.
    pub const INTR_REMAP: Self = Self(1 << 0);
    /// The firmware asks the operating system not to enable x2APIC.
    pub const X2APIC_OPT_OUT: Self = Self(1 << 1);
    /// The firmware promises that at hand-over no DMA of the platform's own goes outside RMRRs.
    pub const DMA_CTRL_PLATFORM_OPT_IN: Self = Self(1 << 2);

    const NAMES: [(Self, &'static str); 3] = [
        (Self::INTR_REMAP, "INTR_REMAP"),
        (Self::X2APIC_OPT_OUT, "X2APIC_OPT_OUT"),
        (Self::DMA_CTRL_PLATFORM_OPT_IN, "DMA_CTRL_PLATFORM_OPT_IN"),
    ];

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The names of the bits that are set, lowest first.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .into_iter()
            .filter_map(move |(flag, name)| self.contains(flag).then_some(name))
    }

    /// The bits that the specification leaves reserved.
    #[must_use]
    pub const fn reserved(self) -> u8 {
        self.0 & 0xf8
    }
}

impl fmt::Debug for TableFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

/// The header's fields, as they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the whole table in bytes.
    pub length: u32,
    /// Revision of the table format.
    pub revision: u8,
    /// The byte that makes the sum of all bytes 0.
    pub checksum: u8,
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
    /// Reserved bytes at the end of the header.
    pub reserved: [u8; 10],
}

/// Why no view of a table can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer bytes than a header has.
    #[error("{given} bytes are too few for a DMAR table, whose header alone has 48; give the binary table")]
    TooShort {
        /// How many bytes were given.
        given: usize,
    },
    /// Another table, or no table.
    #[error("the data starts with {} at offset 0, not with \"DMAR\"; give the binary DMAR table", found.escape_ascii())]
    Signature {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The length field (offset 4) is smaller than the header.
    #[error("the header says at offset 4 that the table is {length} bytes long; its header alone has 48")]
    LengthBelowHeader {
        /// What the field says, in bytes.
        length: u32,
    },
    /// The length field (offset 4) is larger than the data.
    #[error("the header says at offset 4 that the table is {length} bytes long, but only {given} bytes were given")]
    Truncated {
        /// What the field says, in bytes.
        length: u32,
        /// How many bytes were given.
        given: usize,
    },
}

impl ParseError {
    /// The rule that the data breaks.
    #[must_use]
    pub const fn rule(self) -> Rule {
        match self {
            Self::Truncated { .. } => Rule::TableTruncated,
            Self::TooShort { .. } | Self::Signature { .. } | Self::LengthBelowHeader { .. } => Rule::NotATable,
        }
    }

    /// Offset of the field that is wrong, in bytes.
    #[must_use]
    pub const fn offset(self) -> usize {
        match self {
            Self::TooShort { given } => given,
            Self::Signature { .. } => 0,
            Self::LengthBelowHeader { .. } | Self::Truncated { .. } => 4,
        }
    }
}

/// A DMAR table: a view of its bytes. Reading allocates nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dmar<'a> {
    /// The table without what follows it; shorter than its length field only after [`Dmar::inspect`].
    bytes: &'a [u8],
    /// Bytes that were given after the table.
    after: usize,
}

impl<'a> Dmar<'a> {
    /// A view of the table that `bytes` starts with.
    ///
    /// Only an unusable header is refused. Everything else that may be wrong is found while reading: the
    /// checksum by [`Dmar::checksum_ok`], lengths by the walk, the rest by `lint`.
    ///
    /// # Errors
    ///
    /// [`ParseError`] when the signature is another, or the length is below 48 or above what was given.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let table = Self::inspect(bytes)?;
        if table.missing_len().is_some() {
            return Err(ParseError::Truncated {
                length: table.header().length,
                given: bytes.len(),
            });
        }
        Ok(table)
    }

    /// As [`Dmar::parse`], but a truncated table is accepted for looking at: its walk ends with
    /// [`Rule::TableTruncated`], and who serves a device is *unknown*.
    ///
    /// # Errors
    ///
    /// [`ParseError`] when there is no whole header, the signature is another, or the length is below 48.
    pub fn inspect(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let found = array(bytes, 0);
        if bytes.len() >= SIGNATURE.len() && found != SIGNATURE {
            return Err(ParseError::Signature { found });
        }
        if bytes.len() < HEADER_LEN {
            return Err(ParseError::TooShort { given: bytes.len() });
        }
        let length = le32(bytes, 4);
        // On a 16-bit host a length may not fit; it is then more than the given bytes in any case.
        let stated = usize::try_from(length).unwrap_or(usize::MAX);
        if stated < HEADER_LEN {
            return Err(ParseError::LengthBelowHeader { length });
        }
        let table = bytes.get(..stated).unwrap_or(bytes);
        Ok(Self {
            bytes: table,
            after: bytes.len() - table.len(),
        })
    }

    /// The table's bytes, without anything that was given after it.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// How many bytes were given after the end of the table.
    #[must_use]
    pub const fn bytes_after(self) -> usize {
        self.after
    }

    /// The length that the header states, when there are fewer bytes (only after [`Dmar::inspect`]).
    #[must_use]
    pub fn missing_len(self) -> Option<usize> {
        let stated = usize::try_from(self.header().length).unwrap_or(usize::MAX);
        (stated > self.bytes.len()).then_some(stated)
    }

    /// The header's fields.
    #[must_use]
    pub fn header(self) -> Header {
        let bytes = self.bytes;
        Header {
            length: le32(bytes, 4),
            revision: byte(bytes, 8),
            checksum: byte(bytes, 9),
            oem_id: array(bytes, 10),
            oem_table_id: array(bytes, 16),
            oem_revision: le32(bytes, 24),
            creator_id: array(bytes, 28),
            creator_revision: le32(bytes, 32),
            host_address_width: byte(bytes, 36),
            flags: TableFlags(byte(bytes, 37)),
            reserved: array(bytes, 38),
        }
    }

    /// The header's flags.
    #[must_use]
    pub fn flags(self) -> TableFlags {
        self.header().flags
    }

    /// Bits of a physical address that DMA can reach: the header's byte plus one, 1 to 256.
    #[must_use]
    pub fn host_address_bits(self) -> u16 {
        u16::from(self.header().host_address_width) + 1
    }

    /// Whether the bytes of the table sum to 0. What to do about a wrong sum is up to the caller: `iommu run` says it and
    /// uses the table, as operating systems do.
    #[must_use]
    pub fn checksum_ok(self) -> bool {
        checksum(self.bytes) == 0
    }

    /// The structures, in table order.
    #[must_use]
    pub fn structures(self) -> Structures<'a> {
        Structures::new(self.bytes, self.missing_len(), HEADER_LEN)
    }

    /// The first structure that cannot be read, if any. While there is one, the table may hold units and
    /// regions that nobody sees.
    #[must_use]
    pub fn first_malformed(self) -> Option<Malformed> {
        self.structures().find_map(Result::err)
    }

    /// Bytes at the end of the table that are too few for a structure.
    #[must_use]
    pub fn trailing(self) -> &'a [u8] {
        let end = self.structures().try_fold(HEADER_LEN, |end, structure| {
            let structure = structure.ok()?;
            Some(structure.offset().max(end) + structure.bytes().len())
        });
        let rest = end.and_then(|end| self.bytes.get(end..)).unwrap_or(&[]);
        if rest.len() < STRUCTURE_HEADER { rest } else { &[] }
    }

    fn readable<S>(self, pick: impl Fn(Structure<'a>) -> Option<S>) -> impl Iterator<Item = S> {
        self.structures().filter_map(Result::ok).filter_map(pick)
    }

    /// The readable units, in table order; their position is the unit's index. See [`Dmar::first_malformed`].
    pub fn units(self) -> impl Iterator<Item = Drhd<'a>> {
        self.readable(|s| if let Structure::Drhd(s) = s { Some(s) } else { None })
    }

    /// The readable reserved memory regions.
    pub fn rmrrs(self) -> impl Iterator<Item = Rmrr<'a>> {
        self.readable(|s| if let Structure::Rmrr(s) = s { Some(s) } else { None })
    }

    /// The readable root port ATS structures.
    pub fn atsrs(self) -> impl Iterator<Item = Atsr<'a>> {
        self.readable(|s| if let Structure::Atsr(s) = s { Some(s) } else { None })
    }

    /// The readable static affinity structures.
    pub fn rhsas(self) -> impl Iterator<Item = Rhsa<'a>> {
        self.readable(|s| if let Structure::Rhsa(s) = s { Some(s) } else { None })
    }

    /// The readable namespace device declarations.
    pub fn andds(self) -> impl Iterator<Item = Andd<'a>> {
        self.readable(|s| if let Structure::Andd(s) = s { Some(s) } else { None })
    }

    /// The readable integrated translation cache structures.
    pub fn satcs(self) -> impl Iterator<Item = Satc<'a>> {
        self.readable(|s| if let Structure::Satc(s) = s { Some(s) } else { None })
    }

    /// The readable integrated device property structures.
    pub fn sidps(self) -> impl Iterator<Item = Sidp<'a>> {
        self.readable(|s| if let Structure::Sidp(s) = s { Some(s) } else { None })
    }

    /// The proximity domain (as in the SRAT) of a unit, when an RHSA names it.
    #[must_use]
    pub fn proximity_domain(self, unit: Drhd<'_>) -> Option<u32> {
        self.rhsas()
            .find(|rhsa| rhsa.register_base() == unit.register_base())
            .map(Rhsa::proximity_domain)
    }
}
