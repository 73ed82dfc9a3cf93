//! Device scope entries: who a structure speaks about (VT-d §8.3.1, Device Scope Structure).

use core::fmt;

use iommu_types::{Bdf, DevFn, Segment, SourceId};

use crate::bytes::{byte, tail};
use crate::rule::Rule;
use crate::structure::Malformed;
use crate::topology::{BusTopology, Seen};

iommu_types::open_enum! {
    /// What a device scope entry names.
    pub struct ScopeType(u8) {
        /// One PCI function, bridges excepted.
        ENDPOINT = 1,
        /// A PCI bridge and everything below it.
        SUB_HIERARCHY = 2,
        /// An I/O APIC of the MADT; the enumeration id is its I/O APIC id.
        IO_APIC = 3,
        /// An HPET timer block that can send MSIs; the enumeration id is its HPET number.
        HPET = 4,
        /// A device of the ACPI namespace; the enumeration id is the device number of an ANDD.
        NAMESPACE = 5,
    }
}

impl ScopeType {
    /// Whether the entry names PCI functions.
    #[must_use]
    pub const fn is_pci(self) -> bool {
        matches!(self, Self::ENDPOINT | Self::SUB_HIERARCHY)
    }
}

impl fmt::Display for ScopeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::ENDPOINT => "endpoint",
            Self::SUB_HIERARCHY => "sub-hierarchy",
            Self::IO_APIC => "I/O APIC",
            Self::HPET => "HPET",
            Self::NAMESPACE => "ACPI namespace device",
            Self(other) => return write!(f, "unknown type {other:#04x}"),
        })
    }
}

/// The properties byte of a scope entry in an SIDP structure (VT-d §8.9); 0 everywhere else.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ScopeFlags(pub u8);

impl ScopeFlags {
    /// Requests without PASID should not use a nested PASID-table entry.
    pub const REQ_WO_PASID_NESTED_NOTALLOWED: Self = Self(1 << 0);
    /// Requests without PASID must not use a PASID-table entry with PWSNP set.
    pub const REQ_WO_PASID_PWSNP_NOTALLOWED: Self = Self(1 << 1);
    /// Requests without PASID must not use a PASID-table entry with PGSNP set.
    pub const REQ_WO_PASID_PGSNP_NOTALLOWED: Self = Self(1 << 2);
    /// The address-translation cache is validated: translated requests can be trusted.
    pub const ATC_HARDENED: Self = Self(1 << 3);
    /// The device does not work without its address-translation cache.
    pub const ATC_REQUIRED: Self = Self(1 << 4);

    const NAMES: [(Self, &'static str); 5] = [
        (Self::REQ_WO_PASID_NESTED_NOTALLOWED, "REQ_WO_PASID_NESTED_NOTALLOWED"),
        (Self::REQ_WO_PASID_PWSNP_NOTALLOWED, "REQ_WO_PASID_PWSNP_NOTALLOWED"),
        (Self::REQ_WO_PASID_PGSNP_NOTALLOWED, "REQ_WO_PASID_PGSNP_NOTALLOWED"),
        (Self::ATC_HARDENED, "ATC_HARDENED"),
        (Self::ATC_REQUIRED, "ATC_REQUIRED"),
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
        self.0 & 0xe0
    }
}

impl fmt::Debug for ScopeFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

/// One hop of a scope path, as it stands in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PathHop {
    /// Device number; valid from 0 to 31.
    pub device: u8,
    /// Function number; valid from 0 to 7.
    pub function: u8,
}

impl PathHop {
    /// The hop as device and function, or `None` when a number is out of range ([`Rule::PathElement`]).
    #[must_use]
    pub const fn devfn(self) -> Option<DevFn> {
        DevFn::new(self.device, self.function)
    }
}

impl fmt::Display for PathHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.device, self.function)
    }
}

/// Where a scope path leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathEnd {
    /// To this function (or, for an I/O APIC, HPET or namespace device, to this source ID).
    At(Bdf),
    /// Nowhere: a bridge on the way is absent, not a bridge, or has no buses assigned.
    Nowhere,
    /// It cannot be known: the topology does not know a bridge on the way, its bus numbers contradict the
    /// bus it stands on, or a path element is out of range.
    Unknown,
}

/// A device scope entry: a view of its bytes in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceScope<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> DeviceScope<'a> {
    /// Bytes before the path.
    pub(crate) const FIXED: usize = 6;

    /// Offset of the entry in the table, in bytes.
    #[must_use]
    pub const fn offset(self) -> usize {
        self.offset
    }

    /// The entry's bytes, path included.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// What kind of device the entry names.
    #[must_use]
    pub fn kind(self) -> ScopeType {
        ScopeType(byte(self.bytes, 0))
    }

    /// The properties byte; meaningful in SIDP structures only.
    #[must_use]
    pub fn flags(self) -> ScopeFlags {
        ScopeFlags(byte(self.bytes, 2))
    }

    /// The reserved byte after the flags.
    #[must_use]
    pub fn reserved(self) -> u8 {
        byte(self.bytes, 3)
    }

    /// I/O APIC id, HPET number or ACPI device number, by the kind of the entry; reserved for others.
    #[must_use]
    pub fn enumeration_id(self) -> u8 {
        byte(self.bytes, 4)
    }

    /// The bus that the path starts on, a root bus if the firmware follows the specification.
    #[must_use]
    pub fn start_bus(self) -> u8 {
        byte(self.bytes, 5)
    }

    /// The hops of the path: one or more, at most 124.
    pub fn path(self) -> impl ExactSizeIterator<Item = PathHop> + Clone + 'a {
        tail(self.bytes, Self::FIXED).chunks_exact(2).map(|pair| PathHop {
            device: byte(pair, 0),
            function: byte(pair, 1),
        })
    }

    /// Follows the path: each hop but the last is a bridge on the bus reached so far, and its secondary bus
    /// is where the next hop stands (VT-d §8.3.1).
    ///
    /// A path of one hop needs no topology. The bus numbers are those of the moment, so a caller that
    /// renumbers buses asks again.
    #[must_use]
    pub fn resolve<T: BusTopology + ?Sized>(self, segment: Segment, topology: &T) -> PathEnd {
        let mut bus = self.start_bus();
        let mut hops = self.path(); // at most 124 hops: the length is one byte
        let Some(mut hop) = hops.next() else {
            return PathEnd::Unknown;
        };
        for next in hops {
            let Some(devfn) = hop.devfn() else {
                return PathEnd::Unknown;
            };
            match topology.function(Bdf::new(segment, SourceId::new(bus, devfn))) {
                Seen::Bridge { secondary: 0, .. } | Seen::Absent | Seen::Endpoint => return PathEnd::Nowhere,
                Seen::Bridge { secondary, .. } if secondary > bus => bus = secondary,
                Seen::Bridge { .. } | Seen::Unknown => return PathEnd::Unknown,
            }
            hop = next;
        }
        match hop.devfn() {
            Some(devfn) => PathEnd::At(Bdf::new(segment, SourceId::new(bus, devfn))),
            None => PathEnd::Unknown,
        }
    }
}

/// Prints as `[endpoint] bus 00 path 1c.0 00.0`.
impl fmt::Display for DeviceScope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] bus {:02x} path", self.kind(), self.start_bus())?;
        self.path().try_for_each(|hop| write!(f, " {hop}"))
    }
}

/// The device scope entries of a structure.
///
/// An entry whose length cannot be right ends the walk with a [`Malformed`]: what follows is unreadable.
#[derive(Clone, Debug)]
pub struct Scopes<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Scopes<'a> {
    /// The entries in `rest`, which stands at `offset` in the table.
    pub(crate) const fn new(rest: &'a [u8], offset: usize) -> Self {
        Self { rest, offset }
    }

    fn malformed(&mut self, length: usize) -> Malformed {
        let limit = self.rest.len();
        self.rest = &[];
        Malformed {
            offset: self.offset,
            rule: Rule::ScopeLength,
            length,
            limit,
        }
    }
}

impl<'a> Iterator for Scopes<'a> {
    type Item = Result<DeviceScope<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        // A lone last byte has no length; 0 stands for it, and is as wrong.
        let length = usize::from(byte(self.rest, 1));
        let has_whole_path = length > DeviceScope::FIXED && length % 2 == DeviceScope::FIXED % 2;
        match self.rest.split_at_checked(length) {
            Some((bytes, rest)) if has_whole_path => {
                let offset = self.offset;
                // Advances by 8 bytes at least, so the walk ends.
                self.rest = rest;
                self.offset += length;
                Some(Ok(DeviceScope { bytes, offset }))
            }
            _ => Some(Err(self.malformed(length))),
        }
    }
}

impl core::iter::FusedIterator for Scopes<'_> {}
