//! The list of checks, and bringing the unit up.

use alloc::format;
use alloc::string::String;

use acpi_dmar::{Dmar, Owner};
use iommu_types::{Bdf, Iova, Perms, Segment};
use vtd_driver::{DomainOptions, QuirkEffect, Unit, UnitOptions, UnitQuirks, quirks_of};
use vtd_spec::fault::FaultReason;
use vtd_spec::register::FaultedRequest;

use crate::apic::Apic;
use crate::edu::{Edu, TRANSFER};
use crate::hardware::Window;
use crate::memory::{BOARD, BUFFERS};
use crate::pci::{Buses, Function};
use crate::rig::{Checked, Expected, Rig, Running, SOURCE, ensure, text};
use crate::virtio::Disk;
use crate::{console, disk, firmware, interrupts, lending, translation, unprotected};

/// What the checks came to.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
}

impl Report {
    /// Runs one check; what it made, if it passed.
    pub(crate) fn check<T>(&mut self, name: &str, run: impl FnOnce() -> Result<T, String>) -> Option<T> {
        match run() {
            Ok(made) => {
                self.passed += 1;
                console::line(format_args!("PASS {name}"));
                Some(made)
            }
            Err(why) => {
                self.failed += 1;
                console::line(format_args!("FAIL {name}: {why}"));
                None
            }
        }
    }
}

/// The devices of all checks.
pub(crate) struct Devices {
    pub(crate) edus: [Edu; 2],
    pub(crate) disk: Disk,
}

/// What the firmware table says about the unit.
#[derive(Clone, Copy)]
struct Found {
    registers: Window,
    options: UnitOptions,
}

/// All checks. Those that need what failed are left out, which the count shows.
pub(crate) fn run(report: &mut Report, expected: Expected) {
    BOARD.calibrate();
    let devices = report.check("the devices are found", || {
        let edus = Edu::find().ok_or("no edu on bus 0 or behind a port")?;
        let disk = Disk::find().ok_or("no virtio disk, or its registers are out of reach")?;
        Ok::<_, String>(Devices { edus, disk })
    });
    let apic = report.check("the local APIC is on", || {
        Apic::enable().ok_or(String::from("no local APIC"))
    });
    let (Some(devices), Some(apic)) = (devices, apic) else {
        return;
    };
    let table = firmware::dmar();
    report.check(
        "the machine has a DMAR table, or has none, as this run says",
        || match (table, expected.unit) {
            (None, true) => Err(String::from("there is no DMAR table")),
            (Some(_), false) => Err(String::from("there is a DMAR table")),
            _ => Ok(()),
        },
    );
    let Some(table) = table else {
        return unprotected::run(report, &devices, &apic);
    };
    let found = report.check("the firmware table names the unit of the devices", || {
        read_table(table, &devices, expected)
    });
    let Some(found) = found else { return };
    report.check("a unit that nobody used is given up", || {
        bring_up(found)?.shut_down().map_err(text)
    });
    let Some(unit) = report.check("the unit is taken over and translates", || bring_up(found)) else {
        return;
    };
    with_unit(report, &unit, found, &devices, &apic, expected);
    // As after a kernel that crashed: translation, interrupt remapping and queue are on, and there are mappings.
    let Some(second) = report.check("a unit that is in use is taken over", || bring_up(found)) else {
        return;
    };
    after_take_over(report, &second, found, &devices, &apic, expected);
}

/// Reads the DMAR table as a kernel would.
fn read_table(bytes: &[u8], devices: &Devices, expected: Expected) -> Result<Found, String> {
    let table = Dmar::parse(bytes).map_err(text)?;
    ensure(table.checksum_ok(), "the checksum of the DMAR table is wrong")?;
    if let Some(malformed) = table.first_malformed() {
        return Err(format!("{malformed:?}"));
    }
    let [edu, other] = &devices.edus;
    let sources = [edu.source(), other.source(), devices.disk.source()];
    let owners = sources.map(|source| table.owner(Bdf::new(Segment(0), source), &Buses));
    console::line(format_args!("{owners:?}"));
    let [Some(index), Some(same), Some(third)] = owners.map(Owner::unit) else {
        return Err(format!("no unit serves a device: {owners:?}"));
    };
    let unit = table.units().nth(index).filter(|_| index == same && index == third);
    let unit = unit.ok_or("the devices are behind different units")?;
    let len = u32::try_from(unit.register_set_len()).map_err(text)?;
    let options = UnitOptions {
        host_address_width: u8::try_from(table.host_address_bits()).map_err(text)?,
        mode: expected.mode,
        quirks: quirks(),
        ..UnitOptions::default()
    };
    let at = unit.register_base();
    console::line(format_args!("unit at {at}, {len:#x} bytes"));
    let registers = Window::new(at.raw(), len).ok_or("the unit's registers are not mapped")?;
    Ok(Found { registers, options })
}

/// What the machine's host bridge says about its unit.
fn quirks() -> UnitQuirks {
    let effects = |effect| quirks_of(Function::HOST_BRIDGE.id(), true).any(|quirk| quirk.effect == effect);
    UnitQuirks {
        first_stage_width: effects(QuirkEffect::FirstStageWidth),
        ..UnitQuirks::default()
    }
}

fn bring_up(found: Found) -> Result<Running, String> {
    let unit = Unit::found(found.registers, &BOARD, found.options).map_err(text)?;
    console::line(format_args!("{:x?}", unit.capabilities()));
    let unit = unit.take_over().map_err(text)?;
    let unit = unit.enable().map_err(text)?;
    ensure(unit.health().is_good(), "the unit is not in good health")?;
    Ok(unit)
}

fn with_unit(report: &mut Report, unit: &Running, found: Found, devices: &Devices, apic: &Apic, expected: Expected) {
    let options = DomainOptions {
        stage: expected.stage,
        ..DomainOptions::default()
    };
    let Some(domain) = report.check("a domain is made", || unit.create_domain(options).map_err(text)) else {
        return;
    };
    let [edu, other] = &devices.edus;
    let rig = Rig {
        unit,
        domain: &domain,
        edu,
        other,
        disk: &devices.disk,
        apic,
        registers: found.registers,
        expected,
    };
    report.check("a device that was never attached is blocked", || {
        let physical = Iova::new(BUFFERS.at(1).raw());
        rig.write_blocked(physical, 1, FaultReason::ROOT_NOT_PRESENT)
    });
    let attached = report.check("the device is attached", || {
        rig.map(SOURCE, 0, Perms::READ_WRITE)?;
        unit.attach(&rig.requester(), &domain).map_err(text)
    });
    if attached.is_none() {
        return;
    }
    for (name, check) in translation::CHECKS.iter().chain(lending::CHECKS) {
        report.check(name, || check(&rig));
    }
    for (name, check) in interrupts::CHECKS.iter().chain(disk::CHECKS) {
        report.check(name, || check(&rig));
    }
    report.check("the unit has confirmed everything", || {
        rig.no_fault()?;
        ensure(unit.health().is_good(), "the unit is not in good health")
    });
}

/// What a kernel sees that finds the unit as another one left it.
fn after_take_over(
    report: &mut Report,
    unit: &Running,
    found: Found,
    devices: &Devices,
    apic: &Apic,
    expected: Expected,
) {
    let options = DomainOptions {
        stage: expected.stage,
        ..DomainOptions::default()
    };
    let Some(domain) = report.check("a domain is made after take-over", || {
        unit.create_domain(options).map_err(text)
    }) else {
        return;
    };
    let [edu, other] = &devices.edus;
    let rig = Rig {
        unit,
        domain: &domain,
        edu,
        other,
        disk: &devices.disk,
        apic,
        registers: found.registers,
        expected,
    };
    report.check("mappings of the owner before are gone", || {
        rig.read(SOURCE)?;
        rig.faulted(SOURCE, FaultedRequest::Read, FaultReason::ROOT_NOT_PRESENT)
    });
    report.check("the device works in a domain of the new owner", || {
        rig.map(SOURCE, 0, Perms::READ_WRITE)?;
        let at = Iova::new(0x1000_5000);
        rig.map(at, 5, Perms::READ_WRITE)?;
        unit.attach(&rig.requester(), &domain).map_err(text)?;
        rig.lands(0x31, at, 5)
    });
    report.check("a disk works for the new owner", || disk::after_take_over(&rig));
    report.check("after shut-down DMA is not translated", || shut_down(&rig));
}

fn shut_down(rig: &Rig<'_>) -> Checked {
    rig.load(0x32)?;
    rig.unit.shut_down().map_err(text)?;
    BUFFERS.fill(6, 0);
    rig.write(Iova::new(BUFFERS.at(6).raw()))?;
    let arrived = BUFFERS.holds(6, 0x32, TRANSFER);
    ensure(arrived, "translation is still on")
}
