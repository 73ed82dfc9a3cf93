//! What is known about the machine beyond its table.

use alloc::collections::BTreeMap;
use core::fmt;

use iommu_types::{AddrRange, Bdf, HostPhys, Segment, SourceId};

use crate::topology::{BusTopology, Seen, Upstream};

/// A PCI function of the machine, as far as the rules care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciFunction {
    /// Where it is.
    pub at: Bdf,
    /// Secondary and subordinate bus of a bridge (header type 1); `None` for other functions.
    pub buses: Option<(u8, u8)>,
    /// Base class, subclass and programming interface.
    pub class: [u8; 3],
    /// Whether it has the ATS capability, which lies in extended configuration space; `None` if unreadable.
    pub ats: Option<bool>,
}

/// What a range of physical memory is, by the firmware's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// RAM that the operating system may use.
    Usable,
    /// Memory that the firmware reserves.
    Reserved,
}

/// A range of the firmware's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// The bytes.
    pub range: AddrRange<HostPhys>,
    /// What they are.
    pub kind: MemoryKind,
}

/// A version of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 in 6.3.
    pub major: u16,
    /// 3 in 6.3.
    pub minor: u16,
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What is known about the machine. What stays `None` leaves rules unjudged; it never passes them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine<'a> {
    /// Every PCI function.
    pub functions: Option<&'a [PciFunction]>,
    /// The firmware's memory map.
    pub memory: Option<&'a [MemoryRegion]>,
    /// Physical address bits of the CPU.
    pub cpu_address_bits: Option<u16>,
    /// The kernel that reads the table.
    pub kernel: Option<KernelVersion>,
    /// Ids of the I/O APICs in the MADT.
    pub io_apics: Option<&'a [u8]>,
    /// Numbers of the HPETs that can send MSIs.
    pub hpets: Option<&'a [u8]>,
    /// Register bases of units whose capability registers read all ones.
    pub dead_units: Option<&'a [HostPhys]>,
    /// Full paths of the devices in the ACPI namespace.
    pub namespace: Option<&'a [&'a str]>,
    /// Whether the running kernel has any IOMMU group.
    pub has_groups: Option<bool>,
}

/// A list of functions as the view of the buses: what is not in the list is absent.
#[derive(Clone, Debug)]
pub struct FunctionList<'a> {
    functions: BTreeMap<Bdf, &'a PciFunction>,
    /// The bridge above each bus that has one.
    parents: BTreeMap<(Segment, u8), SourceId>,
}

impl<'a> FunctionList<'a> {
    /// The view that `functions` gives.
    #[must_use]
    pub fn new(functions: &'a [PciFunction]) -> Self {
        let parents = functions.iter().filter_map(|function| match function.buses {
            Some((secondary, _)) if secondary != 0 => Some(((function.at.segment, secondary), function.at.source)),
            _ => None,
        });
        Self {
            parents: parents.collect(),
            functions: functions.iter().map(|function| (function.at, function)).collect(),
        }
    }

    /// The function at `at`, if the list has it.
    #[must_use]
    pub fn get(&self, at: Bdf) -> Option<&'a PciFunction> {
        self.functions.get(&at).copied()
    }
}

impl BusTopology for FunctionList<'_> {
    fn function(&self, at: Bdf) -> Seen {
        match self.get(at) {
            Some(PciFunction {
                buses: Some((secondary, subordinate)),
                ..
            }) => Seen::Bridge {
                secondary: *secondary,
                subordinate: *subordinate,
            },
            Some(_) => Seen::Endpoint,
            None => Seen::Absent,
        }
    }

    fn parent_bridge(&self, segment: Segment, bus: u8) -> Upstream {
        self.parents
            .get(&(segment, bus))
            .map_or(Upstream::Root, |bridge| Upstream::Bridge(*bridge))
    }
}
