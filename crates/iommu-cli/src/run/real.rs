//! A real machine as something to rehearse on: its functions and their table, from a root folder or a snapshot.
//!
//! Functions, bridges, access control, the DMAR table and what the units can do are the machine's own. Where its memory
//! is, and where its registers are, a snapshot does not say: that is made up, and said.

use std::collections::BTreeMap;
use std::path::Path;

use iommu_groups::pci::PortType;
use iommu_groups::{Function, Layout, Presence, Topology};
use iommu_host::{Knowledge, Machine as Host, Unit};
use iommu_types::{AddrRange, HostPhys, Segment};
use soft_platform::{
    Assumption, BusRange, FunctionDescription, FunctionKind, HostBridge, MachineDescription, MachineOptions,
};
use vtd_model::UnitConfig;

use super::source::Source;
use crate::exit::Failure;

/// Functions that get a DMA engine, and with it a row in the matrix; more would say no more.
const MOST_ENGINES: usize = 64;
/// Granularity of a host bridge's window.
const WINDOW: u64 = 1 << 24;

/// The machine at `path`.
pub(crate) fn load(path: &Path) -> Result<Source, Failure> {
    let host = crate::host::open(path)?;
    describe(&host, &path.display().to_string())
}

fn describe(host: &Host, name: &str) -> Result<Source, Failure> {
    let dmar = match &host.dmar {
        Knowledge::Known(bytes) => bytes.clone(),
        Knowledge::Absent => {
            return Err(Failure::Nothing(format!(
                "{name}: the machine has no DMAR table: VT-d is off in its firmware setup, or it has none (`iommu doctor \
                 --root {name}` tells); nothing can be rehearsed on it. `iommu run` without --root takes a sample machine"
            )));
        }
        Knowledge::Unknown(obstacle) => {
            return Err(Failure::Measure(format!(
                "{name}: whether the machine has a DMAR table is not known; {}",
                obstacle.remedy()
            )));
        }
    };
    let made = MachineDescription::from_dmar(&dmar).map_err(|why| {
        let rule = why.rule();
        Failure::Input(format!("{name}: {rule}: {why}. {}", rule.advice()))
    })?;
    let (mut description, assumptions) = made;
    let mut notes: Vec<String> = vec![
        "memory: a snapshot does not say where it is; some is made up, and what the table reserves".to_owned(),
        "addresses of registers (BARs): made up, below 4 GiB".to_owned(),
    ];
    // What was made up about functions is replaced by what is there.
    let about_memory = |note: &&Assumption| matches!(note, Assumption::NoMemory(_) | Assumption::NoWindow);
    notes.extend(assumptions.iter().filter(about_memory).map(ToString::to_string));
    notes.extend(host.notes.iter().cloned());
    let topology = host.topology();
    description.name = name.to_owned();
    description.functions = functions(&topology, &mut notes);
    description.host_bridges = host_bridges(&description, &mut notes);
    let options = MachineOptions {
        unit: units(host, description.host_address_width, &mut notes),
        ..MachineOptions::default()
    };
    Ok(Source {
        origin: name.to_owned(),
        table_origin: format!("{name}: its DMAR table"),
        description,
        dmar,
        notes,
        options,
    })
}

/// What the units can do, as far as it is known and the model does it.
fn units(host: &Host, width: u8, notes: &mut Vec<String>) -> vtd_model::UnitConfigBuilder {
    let default = UnitConfig::builder();
    let known: Vec<(&Unit, _, _)> = match &host.units {
        Knowledge::Known(units) => units
            .iter()
            .filter_map(|unit| Some((unit, *unit.cap.known()?, *unit.ecap.known()?)))
            .collect(),
        _ => Vec::new(),
    };
    let Some((unit, cap, ecap)) = known.first() else {
        let remedy = host
            .units
            .obstacle()
            .map_or("a running kernel that uses them tells", |o| o.remedy());
        notes.push(format!(
            "units: what they can do is not known, an ordinary unit is assumed; {remedy}"
        ));
        return default;
    };
    let builder = default.resembling(*cap, *ecap);
    // The table gives the width of host addresses, and the machine is built with it.
    if let Err(why) = builder.host_address_width(width).build() {
        notes.push(format!(
            "units: {} reports CAP {:#x}, ECAP {:#x}, which cannot be modelled ({why}); an ordinary unit is assumed",
            unit.name,
            cap.raw_value(),
            ecap.raw_value()
        ));
        return default;
    }
    notes.push(format!(
        "units: as {} reports itself (CAP {:#x}, ECAP {:#x}), as far as the model does it",
        unit.name,
        cap.raw_value(),
        ecap.raw_value()
    ));
    let others = known.iter().filter(|(_, c, e)| (c, e) != (cap, ecap));
    let others: Vec<&str> = others.map(|(unit, ..)| unit.name.as_str()).collect();
    if !others.is_empty() {
        let (names, unit) = (others.join(" "), &unit.name);
        notes.push(format!(
            "units: {names} can do something else, and are taken to be like {unit}"
        ));
    }
    builder
}

/// The functions, bridges before what is below them.
fn functions(topology: &Topology, notes: &mut Vec<String>) -> Vec<FunctionDescription> {
    let mut order: Vec<&Function> = topology.functions().iter().collect();
    order.sort_by_key(|f| (f.bdf.segment, topology.bridges_above(f.bdf).count(), f.bdf));
    let mut described: Vec<FunctionDescription> = Vec::with_capacity(order.len());
    let (mut engines, mut left_out, mut unknown_acs) = (0, 0, Vec::new());
    for f in order {
        let above = topology.parent(f.bdf);
        let parent = above.and_then(|above| described.iter().position(|other| other.bdf == above.bdf));
        let kind = kind(
            f,
            parent.and_then(|index| described.get(index)).map(|above| above.kind),
            notes,
        );
        let engine = !kind.is_bridge() && engines < MOST_ENGINES && f.class_code() != HOST_BRIDGE;
        engines += usize::from(engine);
        left_out += usize::from(!kind.is_bridge() && !engine && f.class_code() != HOST_BRIDGE);
        if f.acs == Presence::Unknown {
            unknown_acs.push(f.bdf.to_string());
        }
        described.push(FunctionDescription {
            name: format!("{:04x}:{:04x} {}", f.vendor, f.device, f.describe()),
            bdf: f.bdf,
            kind,
            parent,
            vendor: f.vendor,
            device: f.device,
            class: f.class,
            multifunction: f.multifunction,
            buses: f.buses.filter(|_| kind.is_bridge()).map(|buses| BusRange {
                first: buses.secondary,
                last: buses.subordinate,
            }),
            acs: match (f.acs, kind.is_conventional()) {
                (Presence::Present(state), false) => Some(state.capability),
                _ => None,
            },
            dma_bits: 64,
            engine,
            registers: f.has_memory && kind.is_bridge(),
            synthetic: false,
        });
    }
    if left_out > 0 {
        notes.push(format!(
            "functions: the first {MOST_ENGINES} get a DMA engine; {left_out} others are there and send nothing"
        ));
    }
    if !unknown_acs.is_empty() {
        let (some, more) = unknown_acs.split_at(unknown_acs.len().min(6));
        let more = if more.is_empty() { "" } else { " …" };
        notes.push(format!(
            "access control (ACS) of {}{more} is not known and taken to be absent: groups may be smaller in truth; read \
             the machine as root",
            some.join(" ")
        ));
    }
    notes.push("functions: how many address lines each drives is not known; 64 are assumed".to_owned());
    described
}

/// Class and subclass of host bridges, which have no DMA.
const HOST_BRIDGE: u16 = iommu_groups::pci::class::HOST_BRIDGE;

/// What a function is on the fabric.
fn kind(f: &Function, above: Option<FunctionKind>, notes: &mut Vec<String>) -> FunctionKind {
    let plain = match above {
        None => FunctionKind::IntegratedEndpoint,
        Some(FunctionKind::PciBridge | FunctionKind::PcieToPciBridge) => FunctionKind::Conventional,
        Some(_) => FunctionKind::Endpoint,
    };
    let bridge = f.layout == Layout::Bridge || f.layout == Layout::CardBus;
    match f.port {
        Presence::Present(PortType::ROOT_PORT) => FunctionKind::RootPort,
        Presence::Present(PortType::UPSTREAM_PORT) => FunctionKind::SwitchUpstream,
        Presence::Present(PortType::DOWNSTREAM_PORT) => FunctionKind::SwitchDownstream,
        Presence::Present(PortType::PCIE_TO_PCI_BRIDGE) => FunctionKind::PcieToPciBridge,
        Presence::Unknown if bridge && above.is_none() => {
            notes.push(format!(
                "{}: which kind of bridge it is is not known; a root port is assumed",
                f.bdf
            ));
            FunctionKind::RootPort
        }
        _ if bridge => FunctionKind::PciBridge,
        _ => plain,
    }
}

/// The root buses with windows for the registers below them, in proportion to how many functions there are.
fn host_bridges(made: &MachineDescription, notes: &mut Vec<String>) -> Vec<HostBridge> {
    let mut roots: BTreeMap<(Segment, u8), u64> = BTreeMap::new();
    for function in made.functions.iter().filter(|function| function.parent.is_none()) {
        roots.entry((function.bdf.segment, function.bdf.bus())).or_default();
    }
    for function in &made.functions {
        let root = roots
            .range_mut(..=(function.bdf.segment, function.bdf.bus()))
            .next_back()
            .filter(|((segment, _), _)| *segment == function.bdf.segment);
        if let Some((_, count)) = root {
            *count += 1;
        }
    }
    let first = made.host_bridges.iter().map(|bridge| bridge.window.first().raw()).min();
    let last = made.host_bridges.iter().map(|bridge| bridge.window.last().raw()).max();
    let (Some(first), Some(last)) = (first, last) else {
        notes.push("no addresses are left for registers of devices; functions have none".to_owned());
        return Vec::new();
    };
    let units = (last - first + 1) / WINDOW;
    let all: u64 = roots.values().map(|count| count + 1).sum();
    let keys: Vec<(Segment, u8)> = roots.keys().copied().collect();
    let (mut bridges, mut taken, mut counted) = (Vec::new(), 0, 0);
    for (index, ((segment, bus), count)) in roots.iter().enumerate() {
        counted += count + 1;
        let end = units * counted / all.max(1);
        let next = keys.get(index + 1).filter(|(other, _)| other == segment);
        let buses = BusRange {
            first: *bus,
            last: next.map_or(u8::MAX, |(_, next)| next - 1),
        };
        let base = HostPhys::new(first + taken * WINDOW);
        if let Some(window) = AddrRange::from_base_len(base, (end - taken) * WINDOW) {
            bridges.push(HostBridge {
                segment: *segment,
                buses,
                window,
            });
        }
        taken = end;
    }
    bridges
}
