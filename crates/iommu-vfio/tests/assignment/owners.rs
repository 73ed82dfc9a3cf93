//! Who gets groups, devices and pages, and what is left when they go.

use iommu_types::{Iova, Perms, Registers};
use iommu_vfio::{Container, Driver, Errno, Platform, PlatformOptions, Uncontained, VfioError};
use soft_platform::{Machine, MachineDescription, MachineOptions, PageRequest, TWO_SOCKET};
use vtd_spec::register::{GSTS_PERSISTENT, offset};

use crate::{GPU, MIB, NIC0, NIC1, NVME, SD, SERIAL, bdf, container, platform, store, viable};

/// GCMD_REG and GSTS_REG: queued invalidation is on (VT-d §11.4.4).
const QUEUED_INVALIDATION: u32 = 1 << 26;

#[test]
fn a_group_is_given_as_a_whole_or_not_at_all() {
    let platform = platform();
    let group = platform.group_of(bdf(NIC0)).expect("there").id;
    platform.bind(bdf(NIC0), Driver::Vfio).expect("free");
    let refused = platform
        .open_group(group)
        .expect("closed")
        .viable()
        .expect_err("the other port is the host's");
    assert!(
        matches!(refused.cause, VfioError::NotViable { member, .. } if member == bdf(NIC1)),
        "{refused}"
    );
    assert_eq!(refused.cause.errno(), Errno::Eperm);
    assert!(refused.to_string().contains("06:00.1"), "{refused}");
    assert!(
        matches!(platform.open_group(group), Err(VfioError::GroupOpen(_))),
        "one open at a time"
    );
    drop(refused);
    platform.bind(bdf(NIC1), Driver::None).expect("free");
    let (a, b) = (platform.user("guest A"), platform.user("guest B"));
    let mut first = Container::new(&platform, a);
    first
        .attach(platform.open_group(group).expect("closed").viable().expect("viable"))
        .expect("free");
    assert!(matches!(platform.open_group(group), Err(VfioError::GroupOpen(_))));
    assert!(matches!(
        platform.bind(bdf(NIC1), Driver::Host),
        Err(VfioError::GroupOwned { .. })
    ));
    assert!(matches!(platform.host_space(bdf(NIC0)), Err(VfioError::NotForUsers(_))));
    let empty = Container::new(&platform, b).set_iommu().expect_err("no group");
    assert!(matches!(empty.cause, VfioError::NoGroupAttached));
    drop(first);
    assert!(platform.open_group(group).is_ok(), "closed with its container");
}

#[test]
fn a_page_of_another_guest_or_of_the_host_is_refused() {
    let platform = platform();
    let (a, b) = (platform.user("guest A"), platform.user("guest B"));
    let owned = container(&platform, a, NVME);
    let theirs = platform.allocate(b, PageRequest::contiguous(0x4000)).expect("memory");
    let refused = owned
        .dma_map(Iova::new(0x1000), &theirs, 0, 0x1000, Perms::READ)
        .expect_err("foreign");
    assert_eq!(refused.errno(), Errno::Eperm);
    assert!(refused.to_string().contains("guest B"), "{refused}");
    let host = platform
        .machine()
        .memory()
        .allocate_pages(PageRequest::contiguous(0x1000))
        .expect("memory");
    let refused = owned
        .dma_map_phys(Iova::new(0x1000), host.extents()[0].first(), 0x1000, Perms::READ)
        .expect_err("the host's");
    assert!(refused.to_string().contains("the host"), "{refused}");
    assert!(owned.mappings().is_empty());
    assert_eq!(
        platform.page_owner(theirs.extents()[0].first()).as_deref(),
        Some("guest B")
    );
    assert_eq!(platform.page_owner(host.extents()[0].first()), None);

    let mine = platform.allocate(a, PageRequest::contiguous(0x4000)).expect("memory");
    owned
        .dma_map(Iova::new(0x1000), &mine, 0, 0x1000, Perms::READ)
        .expect("maps");
    let (error, mine) = mine.release().expect_err("mapped");
    assert_eq!(error.errno(), Errno::Ebusy);
    owned.dma_unmap_all().expect("confirmed");
    mine.release().map_err(|(error, _)| error).expect("free");
}

#[test]
fn a_dropped_container_leaves_its_devices_blocked_and_its_memory_free() {
    let platform = platform();
    let user = platform.user("guest");
    let memory = platform.allocate(user, PageRequest::contiguous(MIB)).expect("memory");
    let owned = container(&platform, user, NVME);
    owned
        .dma_map(Iova::new(0), &memory, 0, MIB, Perms::READ_WRITE)
        .expect("maps");
    let device = owned.open_device(bdf(NVME)).expect("opens");
    assert!(matches!(owned.open_device(bdf(NVME)), Err(VfioError::DeviceOpen(_))));
    assert!(matches!(owned.open_device(bdf(GPU)), Err(VfioError::NotInContainer(_))));
    let group = platform.group_of(bdf(NVME)).expect("there").id;
    assert!(matches!(owned.detach(group), Err(VfioError::DevicesOpen(_))));
    device.set_bus_master(true);
    drop(owned);
    // The device keeps the container alive.
    assert!(store(&platform, NVME, Iova::new(0), &[1; 16]));
    drop(device);
    platform.machine().set_command(bdf(NVME), 4, true);
    assert!(!store(&platform, NVME, Iova::new(0), &[1; 16]));
    assert_eq!(platform.drain_faults().faults.len(), 1);
    memory.release().map_err(|(error, _)| error).expect("nothing is mapped");
    platform.open_group(group).expect("closed again");
}

#[test]
fn a_group_that_joins_later_sees_what_is_mapped() {
    let platform = platform();
    let user = platform.user("guest");
    let owned = container(&platform, user, NVME);
    let memory = platform.allocate(user, PageRequest::contiguous(MIB)).expect("memory");
    owned
        .dma_map(Iova::new(0x10_0000), &memory, 0, MIB, Perms::READ_WRITE)
        .expect("maps");
    // Behind another unit, on another node.
    owned.attach(viable(&platform, NIC0)).expect("joins");
    let device = owned.open_device(bdf(NIC0)).expect("opens");
    device.set_bus_master(true);
    assert!(store(&platform, NIC0, Iova::new(0x10_0000), b"both"));
    let mut seen = [0; 4];
    memory.read(0, &mut seen).expect("inside");
    assert_eq!(&seen, b"both");
    drop(device);
    owned
        .detach(platform.group_of(bdf(NIC0)).expect("there").id)
        .expect("no device is open");
    platform.machine().set_command(bdf(NIC0), 4, true);
    assert!(!store(&platform, NIC0, Iova::new(0x10_0000), b"gone"));
}

#[test]
fn a_device_can_be_reset_and_keeps_its_addresses() {
    let platform = platform();
    let user = platform.user("guest");
    for function in [NVME, SERIAL] {
        let owned = container(&platform, user, function);
        let device = owned.open_device(bdf(function)).expect("opens");
        let size = device.region_size(0).expect("answers");
        let bar = platform.machine().bar_range(bdf(function), 0);
        device
            .region_write(0, iommu_devices::registers::LIVENESS, &5u32.to_le_bytes())
            .expect("inside");
        device.set_bus_master(true);
        device.reset().expect("has FLR");
        assert_eq!(platform.machine().bar_range(bdf(function), 0), bar, "{function}");
        let mut value = [0; 4];
        device
            .region_read(0, iommu_devices::registers::LIVENESS, &mut value)
            .expect("inside");
        assert_eq!(value, [0; 4], "{function} forgot");
        assert!(!store(&platform, function, Iova::new(0), &[1]), "bus mastering is off");
        assert!(platform.drain_faults().faults.is_empty(), "nothing was sent");
        let refused = device.config_write(0x10, &[0; 4]).expect_err("the host's");
        assert!(refused.to_string().contains("base address registers"), "{refused}");
        assert!(device.region_read(0, size - 2, &mut value).is_err());
        assert!(device.region_read(9, 0, &mut value).is_err());
    }
}

#[test]
fn memory_of_a_mapping_that_no_unit_confirmed_stays_with_its_user() {
    let description = MachineDescription::two_socket().expect("sound");
    let table = description.to_dmar().expect("fits");
    let mut machine = MachineOptions::default();
    // With caching mode the unit is told of new mappings too.
    machine.unit = machine.unit.caching_mode(true);
    let machine = Machine::build_with(&description, &table, machine).expect("builds");
    let mut options = PlatformOptions::default();
    options.timeouts.invalidation_ns = 1_000_000;
    let platform = Platform::bring_up(machine, options).expect("has a table");
    let user = platform.user("guest");
    let owned = container(&platform, user, NVME);
    let memory = platform.allocate(user, PageRequest::contiguous(MIB)).expect("memory");
    for unit in 0..platform.report().units.len() {
        let registers = platform.machine().registers(unit).expect("there");
        // Somebody stops the queue: what is in it is not carried out any more (VT-d §11.4.4, GCMD_REG.QIE).
        let running = registers.read32(offset::GSTS) & GSTS_PERSISTENT;
        registers.write32(offset::GCMD, running & !QUEUED_INVALIDATION);
    }
    let failed = owned.dma_map(Iova::new(MIB), &memory, 0, MIB, Perms::READ_WRITE);
    assert!(matches!(failed, Err(VfioError::Map { .. })), "{failed:?}");
    let (refused, memory) = memory.release().expect_err("devices may reach it");
    assert!(matches!(refused, VfioError::Pinned { .. }), "{refused}");
    drop(owned);
    let (refused, _) = memory.release().expect_err("nobody confirmed meanwhile either");
    assert!(matches!(refused, VfioError::Pinned { .. }), "{refused}");
}

#[test]
fn functions_that_no_unit_contains_are_not_assigned() {
    let text = TWO_SOCKET.replacen("include-pci-all = true\n", "", 1);
    let description = MachineDescription::parse("m.toml", &text).expect("sound");
    let machine = Machine::build(&description, &description.to_dmar().expect("fits")).expect("builds");
    let platform = Platform::bring_up(machine, PlatformOptions::default()).expect("has a table");
    let group = platform.group_of(bdf(SD)).expect("there");
    platform.bind(bdf(SD), Driver::Vfio).expect("free");
    let refused = platform
        .open_group(group.id)
        .expect("closed")
        .viable()
        .expect_err("not contained");
    assert!(
        matches!(
            refused.cause,
            VfioError::NotContained {
                why: Uncontained::NotCovered,
                ..
            }
        ),
        "{refused}"
    );
}

#[test]
fn without_interrupt_remapping_assignment_is_refused_unless_accepted() {
    let text = TWO_SOCKET.replacen("interrupt-remapping = true", "interrupt-remapping = false", 1);
    let description = MachineDescription::parse("m.toml", &text).expect("sound");
    for accepted in [false, true] {
        let machine = Machine::build(&description, &description.to_dmar().expect("fits")).expect("builds");
        let options = PlatformOptions {
            unsafe_interrupts: accepted,
            ..PlatformOptions::default()
        };
        let platform = Platform::bring_up(machine, options).expect("has a table");
        assert!(platform.report().units.iter().all(|step| step.interrupts.is_err()));
        platform.bind(bdf(NVME), Driver::Vfio).expect("free");
        let group = platform.group_of(bdf(NVME)).expect("there").id;
        assert_eq!(platform.open_group(group).expect("closed").viable().is_ok(), accepted);
    }
}
