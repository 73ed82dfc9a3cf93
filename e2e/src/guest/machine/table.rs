//! A DMAR table of our own for a guest.

use acpi_dmar::{
    BuildError, OwnedAndd, OwnedAtsr, OwnedDmar, OwnedDrhd, OwnedRhsa, OwnedRmrr, OwnedSatc, OwnedScope, OwnedSidp,
    TableFlags,
};
use iommu_types::{AddrRange, DevFn, HostPhys, Segment, SourceId};

use super::RootFunction;
use super::build::Random;

/// Where QEMU has its unit.
const UNIT: HostPhys = HostPhys::new(0xfed9_0000);
/// The requester ID of QEMU's I/O APIC: ff:00.0.
const IO_APIC: SourceId = SourceId::from_raw(0xff00);
/// Device numbers below this one are the generator's.
const CHIPSET: u8 = 0x1f;
/// The end of the firmware's first megabyte, reserved in the memory map as Linux wants a reserved region to be.
const FIRMWARE: (HostPhys, HostPhys) = (HostPhys::new(0xf_0000), HostPhys::new(0xf_ffff));

/// A table for the one unit that QEMU has, with a structure of every type. The unit serves everything, or names
/// the devices on root buses one by one and leaves some out, whose requests are then not remapped.
///
/// Linux takes a replacement for QEMU's own table if it has the same names and a higher revision.
pub(super) fn table(functions: &[RootFunction], seed: u64) -> Result<Vec<u8>, BuildError> {
    let mut random = Random::new(seed);
    let segment = Segment(0);
    let mut unit = OwnedDrhd::new(segment, UNIT).scope(OwnedScope::io_apic(0, IO_APIC));
    if random.chance(50) {
        unit = unit.scope(OwnedScope::hpet(0, source(0, 0x1e, 0)));
    }
    if random.chance(25) {
        unit = unit.include_pci_all();
    } else {
        // Whole devices are left out, one at least: functions of one device may share a group.
        let devices: Vec<u8> = functions
            .iter()
            .map(|f| f.device)
            .filter(|d| *d != 0 && *d < CHIPSET)
            .collect();
        let one = random.below(u8::try_from(devices.len()).unwrap_or(u8::MAX));
        let one = devices.get(usize::from(one)).copied();
        let left_out: Vec<u8> = (1..CHIPSET).filter(|d| Some(*d) == one || random.chance(20)).collect();
        unit = functions
            .iter()
            .filter(|f| f.bus != 0 || !left_out.contains(&f.device))
            .fold(unit, |unit, f| unit.scope(scope(f)));
    }
    let mut table = OwnedDmar {
        oem_id: *b"BOCHS ",
        oem_table_id: *b"BXPC    ",
        oem_revision: 2,
        ..OwnedDmar::new(48)
    }
    .flags(TableFlags::INTR_REMAP)
    .with(unit);
    let disk = OwnedScope::endpoint(source(0, CHIPSET, 2));
    if let Some(range) = AddrRange::new(FIRMWARE.0, FIRMWARE.1) {
        table = table.with(OwnedRmrr::new(segment, range).scope(disk));
    }
    let port = functions.iter().find(|f| f.is_bridge);
    table = table.with(match port {
        Some(port) if random.chance(50) => OwnedAtsr::new(segment).scope(scope(port)),
        _ => OwnedAtsr::all_ports(segment),
    });
    let bus = || OwnedScope::endpoint(source(0, CHIPSET, 3));
    table
        .with(OwnedRhsa {
            register_base: UNIT,
            proximity_domain: 0,
        })
        .with(OwnedAndd::new(random.below(16), "\\_SB.I2C1"))
        .with(OwnedSatc::new(segment, random.chance(50)).scope(bus()))
        .with(OwnedSidp::new(segment).scope(bus()))
        .build()
}

fn scope(f: &RootFunction) -> OwnedScope {
    let at = source(f.bus, f.device, f.function);
    if f.is_bridge {
        OwnedScope::sub_hierarchy(at)
    } else {
        OwnedScope::endpoint(at)
    }
}

fn source(bus: u8, device: u8, function: u8) -> SourceId {
    SourceId::new(bus, DevFn::new(device, function).unwrap_or_default())
}
