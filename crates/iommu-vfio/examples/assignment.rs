//! How a VMM gives devices to a guest: one memory map for all of them, filled from the guest's map, changed while it runs.
//!
//! `assignment` works on a machine in software; `assignment BDF…` on Linux, with the devices bound to vfio-pci.

use std::error::Error;
use std::sync::Arc;

use iommu_types::{Bdf, GuestPhys};
use iommu_vfio::{
    Backend, Container, Device, Driver, EventFd, Group, GroupId, GuestAddressSpace, GuestRange, InterruptKind,
    Platform, PlatformOptions, Software,
};
use soft_platform::{Machine, MachineDescription};

const MIB: u64 = 1 << 20;
/// Where a PC keeps its firmware: the last megabyte below 4 GiB.
const ROM: GuestPhys = GuestPhys::new(0xfff0_0000);
/// Memory from 4 GiB up.
const HIGH: GuestPhys = GuestPhys::new(1 << 32);
/// Memory that is plugged in later.
const PLUGGED: GuestPhys = GuestPhys::new((1 << 32) + 64 * MIB);

fn main() -> Result<(), Box<dyn Error>> {
    let functions = std::env::args()
        .skip(1)
        .map(|name| name.parse())
        .collect::<Result<Vec<Bdf>, _>>()?;
    if functions.is_empty() {
        let (backend, functions) = machine()?;
        return assign(&backend, &functions);
    }
    #[cfg(target_os = "linux")]
    return assign(&iommu_vfio::Linux::new(), &functions);
    #[cfg(not(target_os = "linux"))]
    Err("real devices need Linux".into())
}

/// A machine in software, and two of its devices, which are behind different units.
fn machine() -> Result<(Software, Vec<Bdf>), Box<dyn Error>> {
    let description = MachineDescription::two_socket()?;
    let machine = Machine::build(&description, &description.to_dmar()?)?;
    let platform = Platform::bring_up(machine, PlatformOptions::default())?;
    let functions: Vec<Bdf> = vec!["03:00.0".parse()?, "06:00.0".parse()?];
    for function in &functions {
        let group = platform.group_of(*function).ok_or("no such function")?;
        for member in group.members {
            platform.bind(member, Driver::Vfio)?;
        }
    }
    let user = platform.user("guest");
    Ok((Software::new(&platform, user), functions))
}

/// What a VMM does.
fn assign<B: Backend + 'static>(backend: &B, functions: &[Bdf]) -> Result<(), Box<dyn Error>> {
    // Groups, each once: devices that cannot be kept apart come together.
    let mut groups: Vec<GroupId> = Vec::new();
    for function in functions {
        let group = backend.group_of(*function)?;
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    let (first, others) = groups.split_first().ok_or("name a device")?;
    let mut container = Container::open(backend)?;
    container.attach(Group::open(backend, *first)?.viable()?)?;
    let container = container.set_iommu()?;

    // The guest's memory: 128 MiB below the gap that devices and interrupts have, 64 MiB above, firmware.
    let ram = Arc::new(container.allocate(192 * MIB)?);
    let rom = Arc::new(container.allocate(MIB)?);
    let mut guest = GuestAddressSpace::new(container);
    guest.add(vec![
        GuestRange::ram(GuestPhys::new(0), ram.clone()).part(0, 128 * MIB),
        GuestRange::ram(HIGH, ram).part(128 * MIB, 64 * MIB),
        GuestRange::ram(ROM, rom).read_only(),
    ])?;

    // The other groups see the same map, on whatever units they are.
    for group in others {
        guest.attach(Group::open(backend, *group)?.viable()?)?;
    }

    // Devices, with an event for each interrupt: what a hypervisor injects from.
    let mut devices: Vec<(Device<B>, Vec<EventFd>)> = Vec::new();
    for function in functions {
        let device = guest.open_device(*function)?;
        let kind = [InterruptKind::MsiX, InterruptKind::Msi, InterruptKind::Line]
            .into_iter()
            .find(|kind| device.interrupts(*kind) > 0);
        let mut events = Vec::new();
        if let Some(kind) = kind {
            let count = device.interrupts(kind).min(4);
            events = (0..count).map(|_| EventFd::new(0)).collect::<Result<_, _>>()?;
            device.enable_interrupts(kind, &events.iter().collect::<Vec<_>>())?;
        }
        device.set_bus_master(true);
        let regions = (0..6).filter_map(|bar| device.region_size(bar)).count();
        let kind = kind.map_or("none", InterruptKind::name);
        println!("{function}: {regions} regions, {} interrupts ({kind})", events.len());
        devices.push((device, events));
    }

    // The guest runs. Memory is plugged in, every device sees it; and it is taken out again.
    let plugged = Arc::new(guest.container().allocate(16 * MIB)?);
    guest.add(vec![GuestRange::ram(PLUGGED, plugged)])?;
    guest.container().start_dirty_tracking()?;
    let dirty = guest.dirty(HIGH)?;
    println!(
        "{} of {} pages above 4 GiB may have been written",
        dirty.count(),
        dirty.pages()
    );
    guest.container().stop_dirty_tracking()?;
    guest.remove(PLUGGED)?;
    let bytes: u64 = guest.ranges().map(|range| range.size).sum();
    println!("{} devices share {} MiB of guest memory", devices.len(), bytes / MIB);
    Ok(())
}

#[test]
fn it_runs_in_software() -> Result<(), Box<dyn Error>> {
    let (backend, functions) = machine()?;
    assign(&backend, &functions)
}
