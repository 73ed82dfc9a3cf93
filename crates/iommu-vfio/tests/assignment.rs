//! Assigning devices of the default machine: what is refused, what is reached, what is blocked and logged.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail this way, and its helpers too"
)]

use iommu_types::{AddrRange, AddressSpace, Bdf, GuestPhys, HostPhys, Iova, Perms, SystemMemory};
use iommu_vfio::{
    Container, Driver, Errno, FaultedAccess, Group, GuestMemory, HostSpace, Platform, PlatformOptions, RegionOutcome,
    Type1, Uncontained, UserId, VfioError, Viable,
};
use soft_platform::{Machine, MachineDescription, MachineOptions, PageRequest, Sender, TWO_SOCKET, Zone};
use vtd_driver::InterruptTarget;

const NVME: &str = "03:00.0";
const GPU: &str = "04:00.0";
const NIC0: &str = "06:00.0";
const NIC1: &str = "06:00.1";
const ACCELERATOR: &str = "00:1d.0";
const USB: &str = "00:1a.0";
const SD: &str = "00:1e.0";
const SOUND: &str = "0c:04.0";
const SERIAL: &str = "0c:05.0";
const MIB: u64 = 1 << 20;

fn bdf(text: &str) -> Bdf {
    text.parse().expect("bdf")
}

fn platform() -> Platform {
    platform_with(MachineOptions::default())
}

fn platform_with(options: MachineOptions) -> Platform {
    let description = MachineDescription::two_socket().expect("sound");
    let table = description.to_dmar().expect("fits");
    let machine = Machine::build_with(&description, &table, options).expect("builds");
    Platform::bring_up(machine, PlatformOptions::default()).expect("has a table")
}

fn viable(platform: &Platform, function: &str) -> Group<Viable> {
    let group = platform.group_of(bdf(function)).expect("there");
    for member in &group.members {
        platform.bind(*member, Driver::Vfio).expect("free");
    }
    platform.open_group(group.id).expect("closed").viable().expect("viable")
}

fn container(platform: &Platform, user: UserId, function: &str) -> Container<Type1> {
    let mut container = Container::new(platform, user);
    container.attach(viable(platform, function)).expect("free");
    container.set_iommu().expect("attaches")
}

fn guest(platform: &Platform, user: UserId, bytes: u64) -> GuestMemory {
    let request = PageRequest::scattered(bytes, 256 << 10);
    GuestMemory::new(platform.allocate(user, request).expect("memory"))
}

fn store(platform: &Platform, function: &str, to: Iova, data: &[u8]) -> bool {
    platform
        .machine()
        .with_engine(bdf(function), |engine, bus| {
            engine.buffer_mut()[..data.len()].copy_from_slice(data);
            engine.store(bus, to, 0, data.len() as u64).is_ok()
        })
        .expect("has an engine")
}

fn fetch(platform: &Platform, function: &str, from: Iova, len: usize) -> Option<Vec<u8>> {
    platform
        .machine()
        .with_engine(bdf(function), |engine, bus| {
            engine.fetch(bus, from, 0, len as u64).ok()?;
            Some(engine.buffer()[..len].to_vec())
        })
        .expect("has an engine")
}

/// The one fault that was recorded since the last call.
fn the_fault(platform: &Platform) -> iommu_vfio::Fault {
    let mut drain = platform.drain_faults();
    assert_eq!(drain.faults.len(), 1, "{:?}", drain.faults);
    drain.faults.remove(0)
}

#[test]
fn every_unit_comes_up_with_its_tables_where_its_rhsa_says() {
    let platform = platform();
    let report = platform.report();
    assert_eq!(report.units.len(), 4);
    for step in &report.units {
        assert_eq!(step.outcome, Ok(()), "{step}");
        assert_eq!(step.interrupts, Ok(()), "{step}");
        assert_eq!(step.structures, step.node, "{step}");
    }
    assert_eq!(report.regions.len(), 1);
    assert_eq!(report.regions[0].outcome, RegionOutcome::Mapped);
    assert_eq!(report.regions[0].functions, [bdf(USB)]);
    assert!(report.regions[0].relaxable);
    assert!(report.acs.iter().all(|step| step.lacks == 0));
}

#[test]
fn groups_are_those_that_the_topology_implies() {
    let platform = platform();
    let members = |text: &str| platform.group_of(bdf(text)).expect("there").members;
    assert_eq!(members(NVME), [bdf(NVME)]);
    assert_eq!(members(GPU), [bdf(GPU)]);
    assert_eq!(members(NIC0), [bdf(NIC0), bdf(NIC1)]);
    assert!(members(SOUND).contains(&bdf(SERIAL)));
    assert_eq!(members(ACCELERATOR), [bdf(ACCELERATOR)]);
    let nic = platform.group_of(bdf(NIC0)).expect("there");
    assert!(!nic.reasons.is_empty());
    for hop in nic.reasons {
        assert!(!hop.to_string().is_empty());
    }
}

#[test]
fn what_nobody_was_given_is_blocked_and_logged() {
    let platform = platform();
    for function in [NVME, GPU, NIC0, NIC1, ACCELERATOR, SD, SOUND, SERIAL] {
        platform.machine().set_command(bdf(function), 4, true);
        assert!(
            !store(&platform, function, Iova::new(0x10_0000), &[1; 64]),
            "{function}"
        );
        let fault = the_fault(&platform);
        assert!(fault.functions.contains(&bdf(function)), "{fault}");
        assert!(
            matches!(fault.access, FaultedAccess::Memory(_, page) if page == Iova::new(0x10_0000)),
            "{fault}"
        );
        assert_eq!(fault.owner, None);
    }
}

#[test]
fn a_reserved_region_is_reached_by_its_device_and_by_no_other() {
    let platform = platform();
    let region = platform.report().regions[0].range.expect("range");
    let at = Iova::new(region.first().raw() + 0x100);
    for function in [USB, SD, NVME] {
        platform.machine().set_command(bdf(function), 4, true);
    }
    assert!(store(&platform, USB, at, b"keyboard"));
    let mut seen = [0; 8];
    platform
        .machine()
        .read(HostPhys::new(at.raw()), &mut seen)
        .expect("memory");
    assert_eq!(&seen, b"keyboard");
    assert!(!store(&platform, USB, Iova::new(region.last().raw() + 1), &[1]));
    for other in [SD, NVME] {
        assert!(!store(&platform, other, at, &[1]), "{other}");
    }
    assert_eq!(platform.drain_faults().faults.len(), 3);
    // Relaxable: it ends when a user gets the device, and comes back afterwards.
    let user = platform.user("guest");
    let owned = container(&platform, user, USB);
    assert!(!store(&platform, USB, at, &[1]));
    drop(owned);
    assert!(store(&platform, USB, at, &[1]));
}

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
fn a_guest_moves_data_through_its_own_addresses() {
    let platform = platform();
    let user = platform.user("guest A");
    for function in [NVME, NIC1, SOUND] {
        let owned = container(&platform, user, function);
        let guest = guest(&platform, user, 4 * MIB);
        owned.map_guest(&guest, Perms::READ_WRITE).expect("maps");
        let device = owned.open_device(bdf(function)).expect("on a VFIO driver");
        device.set_bus_master(true);
        // Over the border of two runs that are apart in host memory.
        let at = (256 << 10) - 1000;
        let data: Vec<u8> = (0..5000u32).map(|i| (i % 253) as u8).collect();
        assert!(store(&platform, function, Iova::new(at), &data), "{function}");
        let mut seen = vec![0; 5000];
        guest.read(GuestPhys::new(at), &mut seen).expect("guest memory");
        assert_eq!(seen, data, "{function}");
        guest.write(GuestPhys::new(at), &[0x77; 5000]).expect("guest memory");
        assert_eq!(fetch(&platform, function, Iova::new(at), 5000), Some(vec![0x77; 5000]));
        assert!(platform.drain_faults().faults.is_empty());
        drop(device);
        assert_eq!(owned.dma_unmap_all().expect("confirmed"), 4 * MIB);
        owned.close().expect("closes");
        guest
            .into_memory()
            .release()
            .map_err(|(error, _)| error)
            .expect("nothing is mapped any more");
    }
}

/// The access matrix of one guest's device: each cell once.
#[test]
fn each_cell_of_the_matrix_is_as_mappings_and_groups_predict() {
    let platform = platform();
    let (a, b) = (platform.user("guest A"), platform.user("guest B"));
    let region = platform.report().regions[0].range.expect("range").first();
    for function in [NVME, GPU, NIC0, NIC1, ACCELERATOR, SD, SOUND, SERIAL] {
        let owned = container(&platform, a, function);
        let mine = guest(&platform, a, MIB);
        let theirs = guest(&platform, b, MIB);
        let host = platform
            .machine()
            .memory()
            .allocate_pages(PageRequest::contiguous(4096).zone(Zone::Below4G))
            .expect("memory");
        let high = Iova::new(0x4000_0000);
        owned
            .dma_map(high, mine.memory(), 0, 0x4000, Perms::READ_WRITE)
            .expect("maps");
        owned
            .dma_map(Iova::new(0x5000_0000), mine.memory(), 0x4000, 0x1000, Perms::READ)
            .expect("maps");
        let device = owned.open_device(bdf(function)).expect("opens");
        device.set_bus_master(true);
        let _ = platform.drain_faults();

        assert!(store(&platform, function, high, &[1; 128]), "{function}: own mapping");
        assert!(
            fetch(&platform, function, Iova::new(0x5000_0000), 16).is_some(),
            "{function}: read-only read"
        );
        let blocked = [
            ("read-only written", 0x5000_0000),
            (
                "other guest",
                theirs.translate(GuestPhys::new(0)).expect("memory").raw(),
            ),
            ("host memory", host.extents()[0].first().raw()),
            ("reserved region", region.raw()),
        ];
        for (what, at) in blocked {
            // A 32-bit function cannot even say a higher address.
            if at >> 32 != 0 && device.info().expect("there").dma_bits == 32 {
                continue;
            }
            assert!(
                !store(&platform, function, Iova::new(at), &[9; 64]),
                "{function}: {what}"
            );
            let fault = the_fault(&platform);
            assert!(fault.functions.contains(&bdf(function)), "{function}: {what}: {fault}");
            assert_eq!(fault.owner.as_deref(), Some("guest A"));
        }
        // The interrupt range: a message that was not given to this function.
        assert!(
            !store(&platform, function, Iova::new(0xfee0_0000), &[0x31, 0, 0, 0]),
            "{function}: MSI"
        );
        assert!(matches!(the_fault(&platform).access, FaultedAccess::Interrupt(_)));
        assert!(platform.take_interrupts().is_empty());
        // Registers of others: only functions of the same group are reached, and no unit sees it.
        for peer in [NVME, NIC0, NIC1, SOUND, SERIAL] {
            let (from, to) = (bdf(function), bdf(peer));
            if from == to {
                continue;
            }
            let together = platform.grouping().together(from, to).expect("there");
            let bar = platform.machine().bar_range(to, 0).expect("answers");
            let at = Iova::new(bar.first().raw() + iommu_devices::registers::BUFFER);
            assert_eq!(
                store(&platform, function, at, &[5; 4]),
                together,
                "{function} -> {peer}"
            );
            assert_eq!(platform.drain_faults().faults.len(), usize::from(!together));
        }
        // Unmapped again.
        assert_eq!(owned.dma_unmap(high, 0x4000).expect("confirmed"), 0x4000);
        assert!(!store(&platform, function, high, &[1; 4]), "{function}: unmapped again");
        assert_eq!(platform.drain_faults().faults.len(), 1);
        drop(device);
        owned.close().expect("closes");
        platform.machine().memory().release_pages(host);
        for guest in [mine, theirs] {
            guest.into_memory().release().map_err(|(error, _)| error).expect("free");
        }
    }
}

#[test]
fn interrupts_arrive_through_entries_that_only_their_device_can_use() {
    let platform = platform();
    let (a, b) = (platform.user("guest A"), platform.user("guest B"));
    for (function, other) in [(NVME, GPU), (SOUND, SD)] {
        let mine = container(&platform, a, function);
        let theirs = container(&platform, b, other);
        let device = mine.open_device(bdf(function)).expect("opens");
        let forger = theirs.open_device(bdf(other)).expect("opens");
        device.set_bus_master(true);
        forger.set_bus_master(true);
        let message = device
            .enable_msi(&[InterruptTarget::fixed(0x42, 1)])
            .expect("entries are free");
        let _ = platform.take_interrupts();
        // A command whose end raises an interrupt: cause 1, through the register that raises causes.
        device
            .region_write(0, iommu_devices::registers::INTERRUPT_RAISE, &1u32.to_le_bytes())
            .expect("inside");
        let arrivals = platform.take_interrupts();
        assert_eq!(arrivals.len(), 1, "{function}");
        assert_eq!((arrivals[0].vector, arrivals[0].destination), (0x42, 1));
        assert!(matches!(arrivals[0].sender, Sender::Function(_)));
        assert_eq!(arrivals[0].entry, device.interrupt_entries().map(|(first, _)| first));

        // The same message from another function: the source does not match.
        assert!(!store(
            &platform,
            other,
            Iova::new(message.address),
            &message.data.to_le_bytes()
        ));
        assert!(platform.take_interrupts().is_empty());
        let fault = the_fault(&platform);
        assert!(matches!(fault.access, FaultedAccess::Interrupt(_)), "{fault}");
        assert_eq!(fault.reason, vtd_spec::fault::FaultReason::INTERRUPT_SOURCE_INVALID);
        assert!(fault.functions.contains(&bdf(other)));
        device.disable_msi().expect("confirmed");
        assert!(!store(
            &platform,
            function,
            Iova::new(message.address),
            &message.data.to_le_bytes()
        ));
        assert!(the_fault(&platform).functions.contains(&bdf(function)));
    }
}

#[test]
fn mapping_keeps_every_rule_of_type_1_version_2() {
    let platform = platform();
    let user = platform.user("guest");
    let owned = container(&platform, user, NVME);
    let memory = platform.allocate(user, PageRequest::contiguous(MIB)).expect("memory");
    let map = |iova: u64, offset: u64, size: u64, perms| owned.dma_map(Iova::new(iova), &memory, offset, size, perms);
    let errno = |result: Result<(), VfioError>| result.map_err(|error| error.errno());
    let rw = Perms::READ_WRITE;

    assert_eq!(errno(map(0x1000, 0, 0x1000, Perms::NONE)), Err(Errno::Einval));
    assert_eq!(errno(map(0x1000, 0, 0, rw)), Err(Errno::Einval));
    assert_eq!(errno(map(0x1000, 0, 0x1800, rw)), Err(Errno::Einval));
    assert_eq!(errno(map(0x1800, 0, 0x1000, rw)), Err(Errno::Einval));
    assert_eq!(errno(map(0x1000, 0x10, 0x1000, rw)), Err(Errno::Einval));
    assert_eq!(errno(map(u64::MAX - 0xfff, 0, 0x2000, rw)), Err(Errno::Eoverflow));
    assert_eq!(
        errno(map(u64::MAX - 0xfff, 0, 0x1000, rw)),
        Err(Errno::Einval),
        "past the aperture"
    );
    assert_eq!(errno(map(0xfee0_0000, 0, 0x1000, rw)), Err(Errno::Einval), "interrupts");
    assert_eq!(
        errno(map(0x1000, MIB, 0x1000, rw)),
        Err(Errno::Einval),
        "past the memory"
    );
    assert_eq!(errno(map(0x10_0000, 0, 0x4000, rw)), Ok(()));
    assert_eq!(errno(map(0x10_3000, 0, 0x1000, rw)), Err(Errno::Eexist));
    assert_eq!(errno(map(0xf_f000, 0, 0x2000, rw)), Err(Errno::Eexist));
    assert_eq!(errno(map(0x10_4000, 0x4000, 0x2000, Perms::READ)), Ok(()));
    assert_eq!(owned.mappings().len(), 2);

    let unmap = |iova: u64, size: u64| owned.dma_unmap(Iova::new(iova), size).map_err(|error| error.errno());
    assert_eq!(unmap(0x10_0000, 0x1000), Err(Errno::Einval), "bisects at the end");
    assert_eq!(unmap(0x10_1000, 0x3000), Err(Errno::Einval), "bisects at the start");
    assert_eq!(unmap(0x10_0000, 0), Err(Errno::Einval));
    assert_eq!(unmap(0x10_0800, 0x1000), Err(Errno::Einval));
    assert_eq!(owned.mappings().len(), 2, "nothing changed");
    assert_eq!(unmap(0x40_0000, 0x1000), Ok(0), "nothing is mapped there");
    assert_eq!(unmap(0, 0x8000_0000), Ok(0x6000), "several mappings and holes");
    assert_eq!(owned.mappings().len(), 0);
    memory.release().map_err(|(error, _)| error).expect("nothing is mapped");
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

#[test]
fn a_host_driver_maps_two_pages_that_are_apart_as_one() {
    let platform = platform();
    let host: HostSpace = platform.host_space(bdf(SD)).expect("the host's");
    assert!(matches!(
        platform.bind(bdf(SD), Driver::Vfio),
        Err(VfioError::GroupOwned { .. })
    ));
    let request = PageRequest::scattered(0x2000, 0x1000).zone(Zone::Above4G);
    let pages = platform.machine().memory().allocate_pages(request).expect("memory");
    let iova = Iova::new(0x20_0000);
    for (index, page) in (0u64..).zip(pages.extents()) {
        let at = Iova::new(iova.raw() + index * 0x1000);
        host.map(at, page.first(), 0x1000, Perms::READ_WRITE).expect("maps");
    }
    platform.machine().set_command(bdf(SD), 4, true);
    let data: Vec<u8> = (0..0x2000u32).map(|i| (i % 251) as u8).collect();
    assert!(
        store(&platform, SD, iova, &data),
        "32 address bits reach memory above 4 GiB"
    );
    for (page, part) in pages.extents().iter().zip(data.chunks(0x1000)) {
        let mut seen = vec![0; 0x1000];
        platform.machine().read(page.first(), &mut seen).expect("memory");
        assert_eq!(seen, part);
    }
    let range = AddrRange::from_base_len(iova, 0x2000).expect("range");
    let pending = host.unmap(range, ()).map_err(|refused| refused.error).expect("mapped");
    host.flush(pending).map_err(|(error, _)| error).expect("confirmed");
    assert!(!store(&platform, SD, iova, &data));
    drop(host);
    platform.bind(bdf(SD), Driver::Vfio).expect("free again");
}

#[test]
fn units_that_take_their_time_and_keep_what_they_may_serve_as_well() {
    let platform = platform_with(MachineOptions {
        profile: soft_platform::Profile::Silicon,
        ..MachineOptions::default()
    });
    let user = platform.user("guest");
    for function in [NVME, NIC0, SERIAL] {
        let owned = container(&platform, user, function);
        let guest = guest(&platform, user, MIB);
        owned.map_guest(&guest, Perms::READ_WRITE).expect("maps");
        let device = owned.open_device(bdf(function)).expect("opens");
        device.set_bus_master(true);
        assert!(store(&platform, function, Iova::new(0x8_0000), &[3; 4096]));
        assert_eq!(owned.dma_unmap_all().expect("confirmed"), MIB);
        assert!(
            !store(&platform, function, Iova::new(0x8_0000), &[4; 4096]),
            "{function}"
        );
        owned
            .dma_map(Iova::new(0x8_0000), guest.memory(), 0, 0x1000, Perms::READ_WRITE)
            .expect("maps");
        assert!(
            store(&platform, function, Iova::new(0x8_0000), &[5; 4096]),
            "{function}"
        );
        let mut seen = [0; 1];
        guest.memory().read(0, &mut seen).expect("inside");
        assert_eq!(seen, [5]);
    }
}

#[test]
fn threads_map_and_unmap_while_devices_of_other_threads_write() {
    let platform = platform();
    let memories: Vec<_> = [NVME, GPU, NIC0]
        .into_iter()
        .map(|function| {
            let user = platform.user(function);
            let owned = container(&platform, user, function);
            let memory = platform
                .allocate(user, PageRequest::contiguous(0x4000))
                .expect("memory");
            (function, owned, memory)
        })
        .collect();
    std::thread::scope(|scope| {
        for (function, owned, memory) in &memories {
            let platform = &platform;
            scope.spawn(move || {
                let device = owned.open_device(bdf(function)).expect("opens");
                device.set_bus_master(true);
                for round in 0..50u8 {
                    let at = Iova::new(0x1_0000 + u64::from(round) * 0x4000);
                    owned.dma_map(at, memory, 0, 0x4000, Perms::READ_WRITE).expect("maps");
                    assert!(store(platform, function, at, &[round; 0x4000]));
                    owned.dma_unmap(at, 0x4000).expect("confirmed");
                    assert!(!store(platform, function, at, &[0xff; 16]));
                    let mut seen = [0; 16];
                    memory.read(0x3ff0, &mut seen).expect("inside");
                    assert_eq!(seen, [round; 16], "nothing is written after the unmap is confirmed");
                }
            });
        }
    });
}
