//! Putting a machine together: units from the table, everything else from the description.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use acpi_dmar::{BusTopology, Dmar, Doubt, Owner, Seen, Upstream};
use iommu_devices::{Acs, Bar, ConfigBuilder, ConfigSpace, DmaEngine, DmaEngineOptions, Function, PlainFunction};
use iommu_groups::pci::{PortType, class};
use iommu_types::{Bdf, NodeId, Segment};

use super::functions::{FunctionInfo, Slot};
use super::{Machine, MachineError, MachineOptions, Service, Shared};
use crate::description::{FunctionDescription, FunctionKind, MAX_RMRR, MachineDescription};
use crate::fabric::{Decodes, Meters};
use crate::interrupts::Sink;
use crate::memory::MachineMemory;
use crate::placement::{self, Placement, WindowFull};
use crate::route::{Decode, Tree};
use crate::units::{RefusedUnit, UnitInfo, UnitRefusal, UnitSlot};

/// Length of the internal buffer of DMA engines: large enough to move data at memory speed.
const ENGINE_BUFFER: u32 = 1 << 20;
/// Registers of a function without an engine: one page, so that it can be reached at all.
const PLAIN_BAR: u64 = 4096;
/// Address bits that the model of a unit can have.
pub(super) const MODEL_WIDTHS: std::ops::RangeInclusive<u16> = 32..=52;

pub(super) fn machine(
    description: &MachineDescription,
    dmar: Option<&[u8]>,
    options: MachineOptions,
) -> Result<Machine, MachineError> {
    let table = dmar.map(Dmar::parse).transpose()?;
    if let Some(table) = table.filter(|table| table.host_address_bits() < *MODEL_WIDTHS.start()) {
        return Err(MachineError::Width(table.host_address_bits()));
    }
    let mut reserved: Vec<_> = description.rmrrs.iter().map(|rmrr| rmrr.range).collect();
    reserved.extend(table.into_iter().flat_map(Dmar::rmrrs).filter_map(|rmrr| rmrr.region()));
    // Firmware that reserves everything would leave nothing to run with; such a region is not believed.
    reserved.retain(|region| region.len().is_some_and(|len| len <= MAX_RMRR));
    let memory = MachineMemory::new(&description.memory, &reserved)?;
    let Units {
        slots,
        refused,
        by_drhd,
    } = match table {
        Some(table) => units(table, &memory, options)?,
        None => Units::default(),
    };
    let placement = placement::place(description, |index| description.functions.get(index).and_then(bar_size))
        .map_err(|WindowFull { function, window }| MachineError::WindowFull { function, window })?;
    let mut functions = Vec::with_capacity(description.functions.len());
    for (index, function) in description.functions.iter().enumerate() {
        let service = table.map_or(Service::Uncovered, |table| {
            service(table, description, function.bdf, &by_drhd)
        });
        functions.push(slot(description, function, index, &placement, service)?);
    }
    let decodes = functions.iter().map(|slot| match slot.function.lock() {
        Ok(function) => Decode::of(function.config()),
        Err(_) => Decode::default(),
    });
    Ok(Machine {
        shared: Arc::new(Shared {
            decodes: RwLock::new(Decodes::new(decodes.collect())),
            description: description.clone(),
            dmar: dmar.unwrap_or_default().to_vec(),
            memory,
            reserved,
            units: slots,
            refused,
            tree: Tree::new(&description.functions),
            functions,
            interrupts: Sink::default(),
            blocked: Mutex::new(VecDeque::new()),
            meters: Meters::default(),
            uncovered: options.uncovered,
            started: Instant::now(),
        }),
    })
}

/// The units of a table, and which of them each DRHD structure is.
#[derive(Default)]
struct Units {
    slots: Vec<UnitSlot>,
    refused: Vec<RefusedUnit>,
    by_drhd: Vec<Option<usize>>,
}

fn units(table: Dmar<'_>, memory: &MachineMemory, options: MachineOptions) -> Result<Units, MachineError> {
    let width = table
        .host_address_bits()
        .clamp(*MODEL_WIDTHS.start(), *MODEL_WIDTHS.end());
    let config = options
        .unit
        .profile(options.profile)
        .host_address_width(u8::try_from(width).unwrap_or(u8::MAX))
        .build()?;
    let mut units = Units::default();
    for (drhd, structure) in table.units().enumerate() {
        let base = structure.register_base();
        let why = if !structure.has_usable_base() {
            Some(UnitRefusal::NoBase)
        } else if base.page_offset() != 0 {
            Some(UnitRefusal::Unaligned)
        } else if memory.node_of(base).is_some() {
            Some(UnitRefusal::InMemory)
        } else {
            let earlier = units.slots.iter_mut().find(|slot| slot.info.base == base);
            earlier.map(|slot| {
                slot.info.drhds.push(drhd);
                slot.info.include_pci_all |= structure.include_pci_all();
                UnitRefusal::Duplicate(slot.info.index)
            })
        };
        match why {
            Some(why) => {
                units.refused.push(RefusedUnit {
                    drhd,
                    offset: structure.offset(),
                    base,
                    why,
                });
                units.by_drhd.push(match why {
                    UnitRefusal::Duplicate(index) => Some(index),
                    _ => None,
                });
            }
            None => {
                let index = units.slots.len();
                units.by_drhd.push(Some(index));
                let info = UnitInfo {
                    index,
                    drhds: vec![drhd],
                    base,
                    segment: structure.segment(),
                    node: table.proximity_domain(structure).map(NodeId),
                    include_pci_all: structure.include_pci_all(),
                };
                units.slots.push(UnitSlot::new(info, config));
            }
        }
    }
    Ok(units)
}

/// Who serves a function: what the table says, unless the unit it names could not be made.
fn service(table: Dmar<'_>, description: &MachineDescription, bdf: Bdf, by_drhd: &[Option<usize>]) -> Service {
    match table.owner(bdf, description) {
        Owner::NotCovered => Service::Uncovered,
        Owner::Unknown(doubt) => Service::Blocked(doubt),
        Owner::Unit(drhd, why) => match by_drhd.get(drhd).copied().flatten() {
            Some(index) => Service::Unit(index, why),
            None => Service::Blocked(Doubt::UnusableUnit {
                index: drhd,
                unit: table.units().nth(drhd).map_or(0, |unit| unit.offset()),
            }),
        },
    }
}

/// The buses as firmware numbered them.
impl BusTopology for MachineDescription {
    fn function(&self, at: Bdf) -> Seen {
        match Self::function(self, at) {
            None => Seen::Absent,
            Some(FunctionDescription { buses: Some(buses), .. }) => Seen::Bridge {
                secondary: buses.first,
                subordinate: buses.last,
            },
            Some(_) => Seen::Endpoint,
        }
    }

    fn parent_bridge(&self, segment: Segment, bus: u8) -> Upstream {
        let bridge = self
            .functions
            .iter()
            .find(|function| function.bdf.segment == segment && function.buses.is_some_and(|buses| buses.first == bus));
        bridge.map_or(Upstream::Root, |bridge| Upstream::Bridge(bridge.bdf.source))
    }
}

fn engine_options(function: &FunctionDescription) -> DmaEngineOptions {
    DmaEngineOptions {
        address_bits: function.dma_bits,
        buffer_len: ENGINE_BUFFER,
    }
}

/// The size of BAR 0, for functions that have one.
fn bar_size(function: &FunctionDescription) -> Option<u64> {
    if function.engine {
        Some(engine_options(function).bar_size())
    } else if function.kind.is_bridge() {
        function.registers.then_some(PLAIN_BAR)
    } else if function.class >> 8 == u32::from(class::HOST_BRIDGE) {
        None
    } else {
        Some(PLAIN_BAR)
    }
}

fn slot(
    description: &MachineDescription,
    function: &FunctionDescription,
    index: usize,
    placement: &Placement,
    service: Service,
) -> Result<Slot, MachineError> {
    let error = |problem: String| MachineError::Function {
        function: function.bdf,
        problem,
    };
    let config = config(function, index, placement)
        .build()
        .map_err(|e| error(e.to_string()))?;
    let made: Box<dyn Function> = if function.engine {
        Box::new(DmaEngine::new(config, engine_options(function)).map_err(|e| error(e.to_string()))?)
    } else {
        Box::new(PlainFunction::new(config))
    };
    Ok(Slot {
        info: FunctionInfo {
            bdf: function.bdf,
            name: function.name.clone(),
            kind: function.kind,
            parent: function
                .parent
                .and_then(|parent| description.functions.get(parent))
                .map(|parent| parent.bdf),
            engine: function.engine,
            dma_bits: function.dma_bits,
            synthetic: function.synthetic,
            service,
        },
        function: Mutex::new(made),
    })
}

/// The configuration space of a function after firmware has enumerated the buses: bridges forward, endpoints
/// answer but may not send yet, ACS is off.
fn config(function: &FunctionDescription, index: usize, placement: &Placement) -> ConfigBuilder {
    let (vendor, device) = (function.vendor, function.device);
    let mut builder = if function.kind.is_bridge() {
        let builder = ConfigSpace::bridge(vendor, device).bus_master().memory_space();
        let builder = match function.buses {
            Some(buses) => builder.buses(function.bdf.bus(), buses.first, buses.last),
            None => builder,
        };
        match placement.windows.get(&index) {
            Some(window) => builder.memory_window(*window),
            None => builder,
        }
    } else {
        ConfigSpace::function(vendor, device).memory_space()
    };
    builder = builder.class(function.class);
    if let (Some(size), Some(base)) = (bar_size(function), placement.bars.get(&index)) {
        let bar = if function.kind.is_conventional() {
            Bar::memory32(size)
        } else {
            Bar::memory64(size)
        };
        builder = builder.bar(0, bar.at(*base)).msi(0).interrupt_pin(1);
    }
    if function.multifunction {
        builder = builder.multifunction();
    }
    builder = match port_type(function.kind) {
        Some(port) if function.kind.is_bridge() => builder.express(port),
        Some(port) => builder.express(port).flr(),
        None if function.kind.is_bridge() => builder,
        None => builder.advanced_features(),
    };
    match function.acs {
        Some(capability) => builder.acs(Acs { capability, control: 0 }),
        None => builder,
    }
}

const fn port_type(kind: FunctionKind) -> Option<PortType> {
    match kind {
        FunctionKind::RootPort => Some(PortType::ROOT_PORT),
        FunctionKind::SwitchUpstream => Some(PortType::UPSTREAM_PORT),
        FunctionKind::SwitchDownstream => Some(PortType::DOWNSTREAM_PORT),
        FunctionKind::PcieToPciBridge => Some(PortType::PCIE_TO_PCI_BRIDGE),
        FunctionKind::Endpoint => Some(PortType::ENDPOINT),
        FunctionKind::IntegratedEndpoint => Some(PortType::INTEGRATED_ENDPOINT),
        FunctionKind::PciBridge | FunctionKind::Conventional => None,
    }
}
