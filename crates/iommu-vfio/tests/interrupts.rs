//! Interrupts in eventfds on the software backend: the line with its mask, and messages through the remapping tables.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use iommu_devices::registers;
use iommu_groups::pci::header;
use iommu_types::{Bdf, Iova, Perms};
use iommu_vfio::{
    Container, Device, DmaMemory, Driver, Errno, EventFd, Group, InterruptKind, Platform, PlatformOptions, Software,
    Type1, VfioError,
};
use soft_platform::{Machine, MachineDescription};

fn rig(options: PlatformOptions) -> (Platform, Container<Type1>, Device) {
    let description = MachineDescription::two_socket().unwrap();
    let machine = Machine::build(&description, &description.to_dmar().unwrap()).unwrap();
    let platform = Platform::bring_up(machine, options).unwrap();
    let disk: Bdf = "03:00.0".parse().unwrap();
    platform.bind(disk, Driver::Vfio).unwrap();
    let backend = Software::new(&platform, platform.user("driver"));
    let mut container = Container::open(&backend).unwrap();
    let group = Group::open(&backend, platform.group_of(disk).unwrap().id).unwrap();
    container.attach(group.viable().unwrap()).unwrap();
    let container = container.set_iommu().unwrap();
    let device = container.open_device(disk).unwrap();
    device.set_bus_master(true);
    (platform, container, device)
}

fn event() -> EventFd {
    EventFd::new(0o4000).unwrap()
}

/// What was counted since the last look.
fn count(event: &EventFd) -> u64 {
    event.read().unwrap_or(0)
}

fn raise(device: &Device) {
    device
        .region_write(0, registers::INTERRUPT_RAISE, &1u32.to_le_bytes())
        .unwrap();
}

fn acknowledge(device: &Device) {
    device
        .region_write(0, registers::INTERRUPT_ACKNOWLEDGE, &1u32.to_le_bytes())
        .unwrap();
}

#[test]
fn a_line_is_counted_once_until_it_is_unmasked() {
    let (_platform, _container, device) = rig(PlatformOptions::default());
    let line = event();
    device.enable_interrupts(InterruptKind::Line, &[&line]).unwrap();
    assert_eq!(count(&line), 0);
    raise(&device);
    raise(&device);
    assert_eq!(count(&line), 1, "masked after the first");
    device.unmask_line().unwrap();
    assert_eq!(count(&line), 1, "still pulled");
    acknowledge(&device);
    device.unmask_line().unwrap();
    assert_eq!(count(&line), 0);
    raise(&device);
    assert_eq!(count(&line), 1);
    acknowledge(&device);
    device.unmask_line().unwrap();
    // The device's own mask: Interrupt Disable.
    let command = header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER | header::COMMAND_INTX_DISABLE;
    device.config_write(header::COMMAND, &command.to_le_bytes()).unwrap();
    raise(&device);
    assert_eq!(count(&line), 0);
    device.disable_interrupts(InterruptKind::Line).unwrap();
    acknowledge(&device);
}

#[test]
fn messages_are_counted_until_they_are_turned_off() {
    let (platform, _container, device) = rig(PlatformOptions::default());
    let (first, second) = (event(), event());
    device.enable_interrupts(InterruptKind::Msi, &[&first]).unwrap();
    raise(&device);
    assert_eq!(count(&first), 1);
    assert!(platform.take_interrupts().is_empty(), "counted, not kept");
    // Another event in its place.
    device.enable_interrupts(InterruptKind::Msi, &[&second]).unwrap();
    raise(&device);
    assert_eq!((count(&first), count(&second)), (0, 1));
    device.reset().unwrap();
    device.set_bus_master(true);
    raise(&device);
    assert_eq!(count(&second), 0, "off after a reset");
    assert_eq!(device.interrupt_entries(), None);
}

#[test]
fn more_interrupts_than_there_are_and_none_at_all_are_refused() {
    let (_platform, _container, device) = rig(PlatformOptions::default());
    let events = [event(), event()];
    let refused = |kind, events: &[&EventFd]| match device.enable_interrupts(kind, events) {
        Err(error @ VfioError::InterruptCount { .. }) => error.errno() == Errno::Einval,
        _ => false,
    };
    assert_eq!(device.interrupts(InterruptKind::MsiX), 0);
    assert!(refused(InterruptKind::MsiX, &[&events[0]]));
    assert!(refused(InterruptKind::Msi, &[&events[0], &events[1]]));
    assert!(refused(InterruptKind::Line, &[]));
}

#[test]
fn a_user_pins_no_more_than_it_may() {
    let (_platform, container, device) = rig(PlatformOptions {
        pin_limit: Some(1 << 20),
        ..PlatformOptions::default()
    });
    let memory = container.allocate(2 << 20).unwrap();
    let map = |at: u64, size: u64| container.dma_map(Iova::new(at), &memory, 0, size, Perms::READ);
    map(0x10_0000, 768 << 10).unwrap();
    let refused = map(0x100_0000, 512 << 10).unwrap_err();
    assert_eq!(refused.errno(), Errno::Enomem);
    assert!(refused.to_string().contains("RLIMIT_MEMLOCK"), "{refused}");
    // The same pages count again: they are held twice.
    map(0x100_0000, 256 << 10).unwrap();
    assert!(map(0x200_0000, 4096).is_err());
    container.dma_unmap(Iova::new(0x10_0000), 768 << 10).unwrap();
    map(0x200_0000, 768 << 10).unwrap();
    container.dma_unmap_all().unwrap();
    drop(device);
    drop(container);
    memory.give_back().map_err(|(error, _)| error).unwrap();
}
