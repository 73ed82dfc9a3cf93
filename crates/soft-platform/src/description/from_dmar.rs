//! A machine to go with a firmware table, when nothing else is known about it.

use std::collections::{BTreeMap, BTreeSet};

use acpi_dmar::{DeviceScope, Dmar, ParseError, ScopeType};
use iommu_types::{AddrRange, Bdf, DevFn, HostPhys, NodeId, PAGE_SIZE, Segment, SourceId};

use super::{BusRange, FunctionDescription, FunctionKind, HostBridge, MachineDescription};
use crate::memory::MemoryRange;

/// Most functions that are made for one table. A table of 64 KiB could name thousands.
const MAX_FUNCTIONS: usize = 512;
/// Most nodes with memory of their own.
const MAX_NODES: usize = 8;
/// Longest reserved region that is believed, in bytes; real ones are at most some hundred MiB.
pub(crate) const MAX_RMRR: u64 = 1 << 30;
/// Memory below 4 GiB, on node 0, in bytes.
const LOW_MEMORY: u64 = 2 << 30;
/// Memory of each node above 4 GiB, in bytes.
const HIGH_MEMORY: u64 = 2 << 30;
/// First and last address that registers of devices may have: above memory, below the units of most machines.
const MMIO: (u64, u64) = (LOW_MEMORY, 0xfdff_ffff);
/// Granularity of a host bridge's window, in bytes.
const WINDOW: u64 = 1 << 24;
/// Vendor of what is made up: Intel, whose integrated endpoints reach each other only through the unit.
const VENDOR: u16 = 0x8086;
/// ACS controls of ports that are made up: everything that isolation needs, as ports of servers have it.
const PORT_ACS: u16 = iommu_groups::pci::acs::REQUIRED | iommu_groups::pci::acs::TRANSLATION_BLOCKING;

/// Something that a table names and the machine made for it lacks, or that was assumed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Assumption {
    /// There are more functions than are made.
    #[error("the table names more than {MAX_FUNCTIONS} functions; the rest is left out")]
    TooManyFunctions,
    /// There are no bus numbers left below a root bus.
    #[error("no bus number is left for what is below {0}; it is left out")]
    NoBusLeft(Bdf),
    /// A hop of a path is out of range.
    #[error("the scope at offset {0:#x} has a path that no machine can have; it is left out")]
    BadPath(usize),
    /// Bus numbers behind ports are not in the table.
    #[error("buses behind {0} are numbered from {1:02x}: the table gives paths, not bus numbers")]
    BusNumbers(Bdf, u8),
    /// A function stands for what the table does not name.
    #[error("{0} is synthetic: it stands for what unit {1} serves without naming it")]
    Synthetic(Bdf, usize),
    /// A reserved region has no memory behind it.
    #[error("the reserved region {0} is too large or out of reach; there is no memory behind it")]
    NoMemory(AddrRange<HostPhys>),
    /// No address is left for registers of devices.
    #[error("the reserved regions leave no addresses for registers of devices; functions have none")]
    NoWindow,
}

/// A function that the table names, by the path to it.
#[derive(Debug, Default)]
struct Named {
    bridge: bool,
    synthetic: bool,
    children: BTreeMap<DevFn, Named>,
}

/// The functions of one root bus.
type Bus = BTreeMap<DevFn, Named>;

impl MachineDescription {
    /// A machine with the functions that the scopes of a table name.
    ///
    /// What a table does not say is made up and reported: bus numbers behind ports, memory, and one function
    /// for each INCLUDE_PCI_ALL unit without PCI scopes. Ports are taken to have ACS, as those of servers do;
    /// a bridge two hops deep with devices right below it is taken for a PCIe-to-PCI bridge.
    ///
    /// # Errors
    /// [`ParseError`] if the bytes are not a DMAR table at all.
    pub fn from_dmar(bytes: &[u8]) -> Result<(Self, Vec<Assumption>), ParseError> {
        let table = Dmar::parse(bytes)?;
        let mut notes = Vec::new();
        let mut roots = named(table, &mut notes);
        synthetic(table, &mut roots, &mut notes);
        let memory = memory(table, &mut notes);
        let (host_bridges, functions) = enumerate(table, &roots, &mut notes);
        let width = u8::try_from(table.host_address_bits()).unwrap_or(u8::MAX);
        let description = Self {
            name: String::from_utf8_lossy(&table.header().oem_table_id)
                .trim_matches(['\0', ' '])
                .to_owned(),
            host_address_width: width,
            interrupt_remapping: table.flags().contains(acpi_dmar::TableFlags::INTR_REMAP),
            x2apic_opt_out: table.flags().contains(acpi_dmar::TableFlags::X2APIC_OPT_OUT),
            dma_opt_in: table.flags().contains(acpi_dmar::TableFlags::DMA_CTRL_PLATFORM_OPT_IN),
            memory,
            host_bridges,
            units: Vec::new(),
            rmrrs: Vec::new(),
            atsrs: Vec::new(),
            satcs: Vec::new(),
            functions,
        };
        Ok((description, notes))
    }
}

/// All PCI functions that scopes name, as trees below root buses.
fn named(table: Dmar<'_>, notes: &mut Vec<Assumption>) -> BTreeMap<(Segment, u8), Bus> {
    let mut roots: BTreeMap<(Segment, u8), Bus> = BTreeMap::new();
    let mut count = 0usize;
    // Bounded by the length of the table: each structure takes at least 4 bytes, each scope 8.
    for structure in table.structures().map_while(Result::ok) {
        let Some((segment, scopes)) = structure.scope_list() else {
            continue;
        };
        for scope in scopes.map_while(Result::ok).filter(|scope| scope.kind().is_pci()) {
            if count == MAX_FUNCTIONS {
                notes.push(Assumption::TooManyFunctions);
                return roots;
            }
            match hops(scope) {
                None => notes.push(Assumption::BadPath(scope.offset())),
                Some(hops) => {
                    count += 1;
                    let bus = roots.entry((segment, scope.start_bus())).or_default();
                    insert(bus, &hops, scope.kind() == ScopeType::SUB_HIERARCHY);
                }
            }
        }
    }
    roots
}

fn hops(scope: DeviceScope<'_>) -> Option<Vec<DevFn>> {
    scope.path().map(|hop| hop.devfn()).collect()
}

/// Adds a path; every hop but the last is a bridge. At most 124 hops: the length is one byte.
fn insert(bus: &mut Bus, hops: &[DevFn], bridge: bool) {
    let Some((first, rest)) = hops.split_first() else {
        return;
    };
    let named = bus.entry(*first).or_default();
    named.bridge |= bridge || !rest.is_empty();
    insert(&mut named.children, rest, bridge);
}

/// One function for each INCLUDE_PCI_ALL unit without PCI scopes: the highest free device below 1f.
fn synthetic(table: Dmar<'_>, roots: &mut BTreeMap<(Segment, u8), Bus>, notes: &mut Vec<Assumption>) {
    for (index, unit) in table.units().enumerate() {
        let names_pci = unit.scopes().map_while(Result::ok).any(|scope| scope.kind().is_pci());
        if !unit.include_pci_all() || names_pci {
            continue;
        }
        let bus = roots.entry((unit.segment(), 0)).or_default();
        let free = (1..=0x1e)
            .rev()
            .filter_map(|device| DevFn::new(device, 0))
            .find(|slot| bus.keys().all(|taken| taken.device() != slot.device()));
        if let Some(devfn) = free {
            bus.insert(
                devfn,
                Named {
                    synthetic: true,
                    ..Named::default()
                },
            );
            let bdf = Bdf::new(unit.segment(), SourceId::new(0, devfn));
            notes.push(Assumption::Synthetic(bdf, index));
        }
    }
}

/// Memory: some on node 0, some on each node that an RHSA structure names, and what RMRR structures name.
fn memory(table: Dmar<'_>, notes: &mut Vec<Assumption>) -> Vec<MemoryRange> {
    let width = u32::from(table.host_address_bits()).min(52);
    let limit = 1u64 << width;
    let mut nodes: BTreeSet<u32> = table.rhsas().map(|rhsa| rhsa.proximity_domain()).collect();
    nodes.insert(0);
    let mut memory: Vec<MemoryRange> = Vec::new();
    let mut add = |node: u32, base: u64, len: u64| {
        let range = AddrRange::from_base_len(HostPhys::new(base), len);
        if let Some(range) = range.filter(|range| range.last().raw() < limit) {
            memory.push(MemoryRange {
                node: NodeId(node),
                range,
            });
        }
    };
    add(0, 0, LOW_MEMORY.min(limit));
    for (slot, node) in (0u64..).zip(nodes.into_iter().take(MAX_NODES)) {
        add(node, (4 << 30) + slot * HIGH_MEMORY, HIGH_MEMORY);
    }
    for region in table.rmrrs().filter_map(|rmrr| rmrr.region()) {
        let pages = region.to_pages();
        if pages.len().is_none_or(|len| len > MAX_RMRR) || pages.last().raw() >= limit {
            notes.push(Assumption::NoMemory(region));
            continue;
        }
        for range in without(pages, &memory) {
            memory.push(MemoryRange { node: NodeId(0), range });
        }
    }
    memory.sort_by_key(|range| range.range.first());
    memory
}

/// What `range` has outside of `memory`.
fn without(range: AddrRange<HostPhys>, memory: &[MemoryRange]) -> Vec<AddrRange<HostPhys>> {
    let mut left = vec![range];
    for taken in memory {
        left = left.into_iter().flat_map(|part| cut(part, taken.range)).collect();
    }
    left
}

/// The parts of `range` below and above `taken`.
fn cut(range: AddrRange<HostPhys>, taken: AddrRange<HostPhys>) -> impl Iterator<Item = AddrRange<HostPhys>> {
    let (below, above) = if range.overlaps(taken) {
        (
            taken
                .first()
                .checked_sub(1)
                .and_then(|last| AddrRange::new(range.first(), last)),
            taken
                .last()
                .checked_add(1)
                .and_then(|first| AddrRange::new(first, range.last())),
        )
    } else {
        (Some(range), None)
    };
    below.into_iter().chain(above)
}

/// Bus numbers, host bridges and function descriptions for the named functions.
fn enumerate(
    table: Dmar<'_>,
    roots: &BTreeMap<(Segment, u8), Bus>,
    notes: &mut Vec<Assumption>,
) -> (Vec<HostBridge>, Vec<FunctionDescription>) {
    let mut windows = windows(table, roots.len());
    if windows.len() < roots.len() {
        notes.push(Assumption::NoWindow);
    }
    let mut bridges = Vec::new();
    let mut functions = Vec::new();
    let mut keys = roots.keys().peekable();
    for (key, bus) in roots {
        keys.next();
        let (segment, first) = *key;
        // A root bus owns the numbers up to the next root bus of its segment.
        let last = match keys.peek() {
            Some((next, bus)) if *next == segment => bus - 1,
            _ => u8::MAX,
        };
        let buses = BusRange { first, last };
        let window = windows.pop();
        bridges.extend(window.map(|window| HostBridge { segment, buses, window }));
        let mut walk = Walk {
            segment,
            last,
            next: u16::from(first) + 1,
            engine: window.is_some(),
            functions: &mut functions,
            notes,
        };
        walk.bus(bus, first, None);
    }
    (bridges, functions)
}

/// `count` windows for registers of devices, away from reserved memory and units.
fn windows(table: Dmar<'_>, count: usize) -> Vec<AddrRange<HostPhys>> {
    let Some(mmio) = AddrRange::new(HostPhys::new(MMIO.0), HostPhys::new(MMIO.1)) else {
        return Vec::new();
    };
    let taken = table
        .rmrrs()
        .filter_map(|rmrr| rmrr.region())
        .chain(table.units().filter_map(|unit| {
            AddrRange::from_base_len(HostPhys::new(unit.register_base().raw()), unit.register_set_len())
        }));
    let mut gaps = vec![mmio];
    for taken in taken {
        gaps = gaps.into_iter().flat_map(|gap| cut(gap, taken)).collect();
    }
    // The largest gap, in equal parts.
    let size = |gap: &AddrRange<HostPhys>| {
        let start = gap.first().raw().next_multiple_of(WINDOW);
        (gap.last().raw().saturating_add(1) & !(WINDOW - 1)).saturating_sub(start)
    };
    let Some(gap) = gaps.into_iter().max_by_key(size) else {
        return Vec::new();
    };
    let start = gap.first().raw().next_multiple_of(WINDOW);
    let parts = u64::try_from(count.max(1)).unwrap_or(u64::MAX);
    let part = (size(&gap) / parts) & !(WINDOW - 1);
    (0..parts)
        .rev()
        .filter_map(|index| AddrRange::from_base_len(HostPhys::new(start + index * part), part))
        .collect()
}

/// Depth first over the named functions of one root bus.
struct Walk<'a> {
    segment: Segment,
    /// The last bus number of the host bridge.
    last: u8,
    /// The next free bus number.
    next: u16,
    /// Whether there are addresses for registers.
    engine: bool,
    functions: &'a mut Vec<FunctionDescription>,
    notes: &'a mut Vec<Assumption>,
}

impl Walk<'_> {
    /// The functions of bus `number` below function `parent`. As deep as paths are long: 124 hops at most.
    fn bus(&mut self, bus: &Bus, number: u8, parent: Option<usize>) {
        let above = parent
            .and_then(|parent| self.functions.get(parent))
            .map(|above| above.kind);
        for (devfn, named) in bus {
            let bdf = Bdf::new(self.segment, SourceId::new(number, *devfn));
            let shared = bus.keys().filter(|other| other.device() == devfn.device()).count() > 1;
            let kind = kind(named, above);
            let index = self.functions.len();
            self.functions.push(FunctionDescription {
                name: format!("{}{kind}", if named.synthetic { "synthetic " } else { "" }),
                bdf,
                kind,
                parent,
                vendor: VENDOR,
                device: 0,
                class: if kind.is_bridge() { 0x06_0400 } else { 0x08_8000 },
                multifunction: shared || devfn.function() != 0,
                buses: None,
                acs: matches!(kind, FunctionKind::RootPort | FunctionKind::SwitchDownstream).then_some(PORT_ACS),
                dma_bits: 64,
                engine: !kind.is_bridge() && self.engine,
                registers: false,
                synthetic: named.synthetic,
            });
            if named.bridge {
                self.below(named, bdf, index);
            }
        }
    }

    fn below(&mut self, named: &Named, bdf: Bdf, index: usize) {
        let first = match u8::try_from(self.next) {
            Ok(first) if first <= self.last => first,
            _ => {
                self.notes.push(Assumption::NoBusLeft(bdf));
                return;
            }
        };
        self.next += 1;
        if !named.children.is_empty() {
            self.notes.push(Assumption::BusNumbers(bdf, first));
        }
        // The kind of the children depends on this function's; its range is known after them.
        self.bus(&named.children, first, Some(index));
        let last = u8::try_from(self.next - 1).unwrap_or(self.last);
        if let Some(function) = self.functions.get_mut(index) {
            function.buses = Some(BusRange { first, last });
        }
    }
}

/// What a named function is, as far as its place tells.
fn kind(named: &Named, above: Option<FunctionKind>) -> FunctionKind {
    let has_bridge_below = named.children.values().any(|child| child.bridge);
    match (above, named.bridge) {
        (None, true) => FunctionKind::RootPort,
        (None, false) => FunctionKind::IntegratedEndpoint,
        (Some(FunctionKind::SwitchUpstream), true) => FunctionKind::SwitchDownstream,
        (Some(FunctionKind::PcieToPciBridge | FunctionKind::PciBridge), true) => FunctionKind::PciBridge,
        (Some(FunctionKind::PcieToPciBridge | FunctionKind::PciBridge), false) => FunctionKind::Conventional,
        (Some(_), true) if has_bridge_below => FunctionKind::SwitchUpstream,
        (Some(_), true) => FunctionKind::PcieToPciBridge,
        (Some(_), false) => FunctionKind::Endpoint,
    }
}

// Whole pages only: the memory that is made must be usable.
const _: () = assert!(LOW_MEMORY.is_multiple_of(PAGE_SIZE) && HIGH_MEMORY.is_multiple_of(PAGE_SIZE));
