//! Configuration spaces for tests, written byte by byte with the offsets typed in from the specification: they
//! share no constant with the crate they judge.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::collections::BTreeMap;

use iommu_groups::{BusId, ConfigAccess, Facts, Groups, LinuxVersion, Roots, Rules, Topology, group};
use iommu_types::{Bdf, Segment};

/// ACS with SV, TB, RR, CR, UF capable.
pub const ACS_CAP: u16 = 0x1f;
/// SV, RR, CR, UF on.
pub const ACS_ON: u16 = 0x1d;
/// Enhanced ACS capable, besides.
pub const ACS_ENHANCED: u16 = 0x80;

pub const ENDPOINT: u8 = 0;
pub const ROOT_PORT: u8 = 4;
pub const UPSTREAM: u8 = 5;
pub const DOWNSTREAM: u8 = 6;
pub const PCIE_TO_PCI: u8 = 7;
pub const PCI_TO_PCIE: u8 = 8;
pub const INTEGRATED: u8 = 9;

pub fn bdf(text: &str) -> Bdf {
    text.parse().expect("a valid bus:device.function")
}

/// One function's configuration space.
#[derive(Clone, Debug)]
pub struct Space {
    pub bytes: Vec<u8>,
    /// Offsets from here on cannot be read.
    pub readable: usize,
    next_extended: usize,
    last_extended: Option<usize>,
}

impl Space {
    pub fn new(vendor: u16, device: u16) -> Self {
        let mut space = Self {
            bytes: vec![0; 256],
            readable: 4096,
            next_extended: 0x100,
            last_extended: None,
        };
        space.put16(0, vendor);
        space.put16(2, device);
        space
    }

    pub fn put8(&mut self, at: usize, value: u8) {
        self.bytes[at] = value;
    }
    pub fn put16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    pub fn put32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// A bridge header with these bus numbers; the primary one is filled in when it is placed.
    pub fn bridge(mut self, secondary: u8, subordinate: u8) -> Self {
        self.bytes[0x0e] |= 1;
        self.put8(0x0b, 0x06);
        self.put8(0x0a, 0x04);
        self.put8(0x19, secondary);
        self.put8(0x1a, subordinate);
        self
    }

    /// The PCI Express capability at 0x40.
    pub fn express(mut self, kind: u8) -> Self {
        self.bytes.resize(4096, 0);
        self.put16(0x06, 0x10);
        self.put8(0x34, 0x40);
        self.put8(0x40, 0x10);
        self.put16(0x42, 2 | u16::from(kind) << 4);
        self
    }

    pub fn multifunction(mut self) -> Self {
        self.bytes[0x0e] |= 0x80;
        self
    }

    pub fn memory_bar(mut self) -> Self {
        self.put32(0x10, 0xfe00_0000);
        self
    }

    pub fn class(mut self, class: u32) -> Self {
        self.put32(8, class << 8);
        self
    }

    pub fn subsystem(mut self, vendor: u16, id: u16) -> Self {
        self.put16(0x2c, vendor);
        self.put16(0x2e, id);
        self
    }

    /// Function level reset.
    pub fn flr(mut self) -> Self {
        self.put32(0x44, 1 << 28);
        self
    }

    pub fn ari_forwarding(mut self) -> Self {
        self.put16(0x40 + 0x28, 0x20);
        self
    }

    pub fn extended(mut self, id: u16, len: usize) -> (Self, usize) {
        let at = self.next_extended;
        self.put32(at, 1 << 16 | u32::from(id));
        if let Some(last) = self.last_extended {
            let head = u32::from_le_bytes(self.bytes[last..last + 4].try_into().unwrap());
            self.put32(last, head | u32::try_from(at).unwrap() << 20);
        }
        self.last_extended = Some(at);
        self.next_extended = at + len;
        (self, at)
    }

    pub fn acs(self, capability: u16, control: u16) -> Self {
        let (mut space, at) = self.extended(0x000d, 8);
        space.put16(at + 4, capability);
        space.put16(at + 6, control);
        space
    }

    pub fn ari(self, next: u8) -> Self {
        let (mut space, at) = self.extended(0x000e, 8);
        space.put8(at + 5, next);
        space
    }

    pub fn sriov(self, count: u16, offset: u16, stride: u16, device: u16) -> Self {
        let (mut space, at) = self.extended(0x0010, 0x40);
        space.put16(at + 0x08, 1);
        space.put16(at + 0x0e, count);
        space.put16(at + 0x10, count);
        space.put16(at + 0x14, offset);
        space.put16(at + 0x16, stride);
        space.put16(at + 0x1a, device);
        space
    }

    /// Only the first `len` bytes can be read.
    pub fn readable(mut self, len: usize) -> Self {
        self.readable = len;
        self
    }
}

pub fn root_port(secondary: u8, subordinate: u8) -> Space {
    Space::new(0x1b36, 0x000c)
        .bridge(secondary, subordinate)
        .express(ROOT_PORT)
}

pub fn upstream(secondary: u8, subordinate: u8) -> Space {
    Space::new(0x104c, 0x8232)
        .bridge(secondary, subordinate)
        .express(UPSTREAM)
}

pub fn downstream(secondary: u8, subordinate: u8) -> Space {
    Space::new(0x104c, 0x8233)
        .bridge(secondary, subordinate)
        .express(DOWNSTREAM)
}

pub fn endpoint() -> Space {
    Space::new(0x1af4, 0x1041).express(ENDPOINT)
}

pub fn conventional() -> Space {
    Space::new(0x1af4, 0x1000)
}

/// A machine: functions by their place.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub spaces: BTreeMap<Bdf, Space>,
    pub roots: Vec<BusId>,
}

impl Machine {
    pub fn new() -> Self {
        Self {
            spaces: BTreeMap::new(),
            roots: vec![BusId::new(Segment(0), 0)],
        }
    }

    pub fn with(mut self, at: &str, mut space: Space) -> Self {
        let at = bdf(at);
        if space.bytes[0x0e] & 0x7f == 1 {
            space.put8(0x18, at.bus());
        }
        self.spaces.insert(at, space);
        self
    }

    pub fn scan(&self) -> Topology {
        Topology::scan(self, &self.roots)
    }

    pub fn listed(&self) -> Topology {
        Topology::from_functions(self, self.spaces.keys().copied(), Roots::Inferred, &Facts::default())
    }

    pub fn linux(&self) -> Groups {
        group(&self.scan(), Rules::Linux(LinuxVersion::LATEST))
    }

    pub fn strict(&self) -> Groups {
        group(&self.scan(), Rules::Strict)
    }
}

impl ConfigAccess for Machine {
    fn read32(&self, function: Bdf, offset: u16) -> Option<u32> {
        let Some(space) = self.spaces.get(&function) else {
            return Some(u32::MAX);
        };
        let at = usize::from(offset);
        if at >= space.readable {
            return None;
        }
        let bytes = space.bytes.get(at..at + 4).map_or([0xff; 4], |b| b.try_into().unwrap());
        Some(u32::from_le_bytes(bytes))
    }
}

/// A partition as text: `a b | c`, members and groups ascending.
pub fn partition(groups: &Groups) -> String {
    let mut parts: Vec<Vec<String>> = groups
        .all()
        .iter()
        .map(|group| {
            let names = group.members.iter().map(|bdf| {
                let name = bdf.to_string();
                name.strip_prefix("0000:").map_or(name.clone(), str::to_owned)
            });
            names.collect()
        })
        .collect();
    parts.sort();
    parts.iter().map(|part| part.join(" ")).collect::<Vec<_>>().join(" | ")
}
