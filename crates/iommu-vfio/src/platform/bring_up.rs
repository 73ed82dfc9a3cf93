//! Bringing the units of a machine into service, step by step.

use std::fmt;
use std::sync::{Arc, Mutex};

use acpi_dmar::{Applies, Dmar, TableFlags};
use iommu_groups::pci::{acs, header};
use iommu_groups::{Facts, Groups, Roots, Topology, group};
use iommu_types::{AddrRange, Bdf, HostPhys, NodeId, Registers};
use soft_platform::{Machine, UnitInfo, UnitRegisters};
use vtd_driver::{ApicMode, Blocked, InterruptOptions, ReservedRegion, Unit, UnitOptions};
use vtd_spec::register::{RootTableAddress, offset};

use crate::software::Events;

use super::{DriverUnit, Platform, PlatformError, PlatformOptions, Shared, State, requester};

/// Base class of display controllers, and class and subclass of USB controllers: their reserved regions serve
/// the boot phase only (rule of Linux's `device_rmrr_is_relaxable`).
const DISPLAY: u16 = 0x03;
const USB: u16 = 0x0c03;

/// What happened when the units were brought up.
#[derive(Clone, Debug, Default)]
pub struct BringUp {
    /// One for each unit.
    pub units: Vec<UnitStep>,
    /// One for each RMRR structure of the table.
    pub regions: Vec<RegionStep>,
    /// One for each function with ACS.
    pub acs: Vec<AcsStep>,
    /// Whether the table allows interrupt remapping (INTR_REMAP).
    pub interrupts_allowed: bool,
}

/// A unit that was brought up, or not.
#[derive(Clone, Debug)]
pub struct UnitStep {
    /// Position among the machine's units.
    pub unit: usize,
    /// Its registers.
    pub base: HostPhys,
    /// The node that RHSA names for it.
    pub node: Option<NodeId>,
    /// The node where its root table is.
    pub structures: Option<NodeId>,
    /// Architecture version, major and minor.
    pub version: (u8, u8),
    /// CAP_REG.
    pub capability: u64,
    /// ECAP_REG.
    pub extended_capability: u64,
    /// Whether interrupts are remapped; an error tells why not.
    pub interrupts: Result<(), String>,
    /// Whether it translates; an error tells what went wrong.
    pub outcome: Result<(), String>,
}

impl fmt::Display for UnitStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {} at {}", self.unit, self.base)?;
        match &self.outcome {
            Err(why) => return write!(f, ": not in service: {why}"),
            Ok(()) => write!(f, ": version {}.{}, translation on", self.version.0, self.version.1)?,
        }
        if let Some(node) = self.structures {
            write!(f, ", tables on node {node}")?;
        }
        match &self.interrupts {
            Ok(()) => f.write_str(", interrupts remapped"),
            Err(why) => write!(f, ", interrupts not remapped ({why})"),
        }
    }
}

/// A reserved region.
#[derive(Clone, Debug)]
pub struct RegionStep {
    /// Offset of the RMRR structure in the table, in bytes.
    pub offset: usize,
    /// The memory; `None` if base and limit make no range.
    pub range: Option<AddrRange<HostPhys>>,
    /// The functions of the machine that it is for.
    pub functions: Vec<Bdf>,
    /// Whether it ends when a user gets the device.
    pub relaxable: bool,
    /// What became of it.
    pub outcome: RegionOutcome,
}

/// What became of a reserved region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegionOutcome {
    /// It is identity-mapped for its functions.
    Mapped,
    /// No function of the machine is named by it.
    NoFunction,
    /// It was refused; the functions are blocked.
    Refused(String),
}

impl fmt::Display for RegionStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.range {
            Some(range) => write!(f, "reserved memory {range}")?,
            None => write!(f, "reserved memory of the structure at offset {:#x}", self.offset)?,
        }
        if !self.functions.is_empty() {
            let names: Vec<String> = self.functions.iter().map(Bdf::to_string).collect();
            write!(f, " for {}", names.join(", "))?;
        }
        match &self.outcome {
            RegionOutcome::Mapped if self.relaxable => {
                f.write_str(": identity-mapped until the device is given to a user")
            }
            RegionOutcome::Mapped => f.write_str(": identity-mapped"),
            RegionOutcome::NoFunction => f.write_str(": names no function that is there"),
            RegionOutcome::Refused(why) => write!(f, ": refused: {why}"),
        }
    }
}

/// A function whose access control was turned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcsStep {
    /// The function.
    pub function: Bdf,
    /// The controls that are on now, as in PCI Express' ACS control register.
    pub control: u16,
    /// The controls that isolation needs and the function lacks.
    pub lacks: u16,
}

pub(super) fn platform(machine: Machine, options: PlatformOptions) -> Result<Platform, PlatformError> {
    let functions: Vec<Bdf> = machine.functions().map(|info| info.bdf).collect();
    let unit_infos: Vec<UnitInfo> = machine.units().cloned().collect();
    let table = machine.dmar().ok_or(PlatformError::NoTable)?;
    let mut report = BringUp {
        interrupts_allowed: table.flags().contains(TableFlags::INTR_REMAP),
        ..BringUp::default()
    };

    // Until translation is on, units let everything through: endpoints may not send before.
    for info in machine.functions().filter(|info| !info.kind.is_bridge()) {
        machine.set_command(info.bdf, header::COMMAND_BUS_MASTER, false);
    }
    // Groups count on access control, so it comes first.
    report.acs = functions.iter().filter_map(|bdf| enable_acs(&machine, *bdf)).collect();
    let topology = Topology::from_functions(&machine, functions.iter().copied(), Roots::Inferred, &Facts::default());

    let mut regions = regions(table, &machine, &topology);
    let mut units = Vec::with_capacity(unit_infos.len());
    for info in &unit_infos {
        let Some(registers) = machine.registers(info.index) else {
            continue;
        };
        let mut step = UnitStep {
            unit: info.index,
            base: info.base,
            node: info.node,
            structures: None,
            version: (0, 0),
            capability: registers.read64(offset::CAP),
            extended_capability: registers.read64(offset::ECAP),
            interrupts: Err("the unit is not in service".to_owned()),
            outcome: Ok(()),
        };
        let unit = take_over(&machine, registers.clone(), info, table, options, &mut step)
            .and_then(|unit| enable(unit, info.index, &mut regions, &machine, &topology));
        if let Ok(unit) = &unit {
            let root = RootTableAddress::new_with_raw_value(registers.read64(offset::RTADDR)).root_table();
            step.structures = machine.memory().node_of(root);
            step.interrupts = interrupts(unit, report.interrupts_allowed, options);
        }
        step.outcome = unit.as_ref().map(|_| ()).map_err(Clone::clone);
        report.units.push(step);
        units.push(unit);
    }
    report.regions = regions;
    let groups: Groups = group(&topology, options.rules);
    let events = Arc::new(Events::default());
    let heard = events.clone();
    // A machine that was brought up before keeps its first listener: interrupts then only show as arrivals.
    let _ = machine.listen_to_interrupts(move |arrival| heard.arrived(arrival));
    Ok(Platform {
        shared: Arc::new(Shared {
            machine: machine.clone(),
            units,
            topology,
            groups,
            report,
            options,
            events,
            state: Mutex::new(State::default()),
        }),
    })
}

/// Turns on every control that isolation needs and the function has, as Linux does at boot with an IOMMU.
fn enable_acs(machine: &Machine, function: Bdf) -> Option<AcsStep> {
    let at = machine
        .with_function(function, |function, _| function.config().acs_at())
        .ok()??;
    let offered = machine.config_read16(function, at + acs::CAPABILITIES);
    let control = machine.config_read16(function, at + acs::CONTROL) | (offered & acs::REQUIRED);
    machine.config_write(function, at + acs::CONTROL, &control.to_le_bytes());
    let control = machine.config_read16(function, at + acs::CONTROL);
    Some(AcsStep {
        function,
        control,
        lacks: acs::REQUIRED & !control,
    })
}

/// The reserved regions of the table and the functions that they are for.
fn regions(table: Dmar<'_>, machine: &Machine, topology: &Topology) -> Vec<RegionStep> {
    let mut steps = Vec::new();
    for rmrr in table.rmrrs() {
        let mut functions = Vec::new();
        let mut doubtful = None;
        for info in machine.functions() {
            match rmrr.applies_to(info.bdf, machine.description()) {
                Applies::Yes { .. } => functions.push(info.bdf),
                Applies::No => {}
                Applies::Unknown { at } => doubtful = Some((info.bdf, at)),
            }
        }
        let relaxable = !functions.is_empty()
            && functions.iter().all(|bdf| {
                topology.get(*bdf).is_some_and(|f| {
                    let class = f.class_code();
                    class == USB || class >> 8 == DISPLAY
                })
            });
        let range = rmrr.region();
        let outcome = match (range, doubtful) {
            (None, _) => RegionOutcome::Refused(format!(
                "base {} and limit {} make no range; the firmware has to be corrected",
                rmrr.base(),
                rmrr.limit()
            )),
            // Nobody is given memory on a suspicion.
            (Some(_), Some((bdf, at))) if functions.is_empty() => RegionOutcome::Refused(format!(
                "it may be for {bdf}, but the entry at offset {at:#x} cannot be read"
            )),
            (Some(_), _) if functions.is_empty() => RegionOutcome::NoFunction,
            // An identity mapping of memory that others are given would open it to the device.
            (Some(range), _) if !machine.keeps_reserved(range) => RegionOutcome::Refused(
                "it is so large that the machine cannot keep it out of use, and the device would reach memory of \
                 others; the firmware has to be corrected"
                    .to_owned(),
            ),
            (Some(_), _) => RegionOutcome::Mapped,
        };
        steps.push(RegionStep {
            offset: rmrr.offset(),
            range,
            functions,
            relaxable,
            outcome,
        });
    }
    steps
}

type TakenUnit = Unit<UnitRegisters, Machine, Blocked>;

fn take_over(
    machine: &Machine,
    registers: UnitRegisters,
    info: &UnitInfo,
    table: Dmar<'_>,
    options: PlatformOptions,
    step: &mut UnitStep,
) -> Result<TakenUnit, String> {
    let unit_options = UnitOptions {
        host_address_width: u8::try_from(table.host_address_bits()).unwrap_or(u8::MAX),
        node: info.node,
        timeouts: options.timeouts,
        ..UnitOptions::default()
    };
    let unit = Unit::found(registers, machine.clone(), unit_options).map_err(|error| error.to_string())?;
    let version = unit.capabilities().version;
    step.version = (version.max().value(), version.min().value());
    unit.take_over().map_err(|error| error.to_string())
}

/// Reserved regions first, then translation on.
fn enable(
    mut unit: TakenUnit,
    index: usize,
    regions: &mut [RegionStep],
    machine: &Machine,
    topology: &Topology,
) -> Result<DriverUnit, String> {
    let here = |bdf: &Bdf| machine.function(*bdf).and_then(|info| info.service.unit()) == Some(index);
    for step in regions {
        let requesters: Vec<_> = step
            .functions
            .iter()
            .filter(|bdf| here(bdf))
            .map(|bdf| requester(topology, *bdf))
            .collect();
        let (Some(range), false) = (step.range, requesters.is_empty()) else {
            continue;
        };
        if step.outcome != RegionOutcome::Mapped {
            continue;
        }
        let region = ReservedRegion {
            range,
            requesters,
            relaxable: step.relaxable,
        };
        if let Err(error) = unit.reserve(&region) {
            step.outcome = RegionOutcome::Refused(error.to_string());
        }
    }
    unit.enable().map_err(|error| error.to_string())
}

fn interrupts(unit: &DriverUnit, allowed: bool, options: PlatformOptions) -> Result<(), String> {
    if !allowed {
        return Err("the firmware table does not allow it (INTR_REMAP)".to_owned());
    }
    let options = InterruptOptions {
        entries: options.interrupt_entries,
        mode: ApicMode::XApic,
    };
    unit.start_interrupt_remapping(options)
        .map_err(|error| error.to_string())
}
