//! Nothing stays mapped: buffers, devices, containers and whole drivers go away at any point.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use iommu_types::{Bdf, GuestPhys, HostPhys, Iova, Perms, SystemMemory};
use iommu_vfio::{
    Container, DmaPool, Driver, EventFd, Group, GuestAddressSpace, GuestRange, InterruptKind, IovaPolicy, Platform,
    PlatformOptions, SgList, Software, Type1, VfioError,
};
use soft_platform::{Machine, MachineDescription};

const DISK: &str = "03:00.0";

fn platform() -> (Platform, Software, Bdf) {
    let description = MachineDescription::two_socket().unwrap();
    let machine = Machine::build(&description, &description.to_dmar().unwrap()).unwrap();
    let platform = Platform::bring_up(machine, PlatformOptions::default()).unwrap();
    let disk: Bdf = DISK.parse().unwrap();
    platform.bind(disk, Driver::Vfio).unwrap();
    let backend = Software::new(&platform, platform.user("driver"));
    (platform, backend, disk)
}

fn container(backend: &Software, function: Bdf) -> Container<Type1> {
    let platform = backend.platform();
    let mut container = Container::open(backend).unwrap();
    let group = Group::open(backend, platform.group_of(function).unwrap().id).unwrap();
    container.attach(group.viable().unwrap()).unwrap();
    container.set_iommu().unwrap()
}

/// Whether the device can write at `at` now. Bus mastering is forced on, as a device could.
fn reaches(platform: &Platform, function: Bdf, at: Iova) -> bool {
    let result = platform.machine().with_function(function, |function, bus| {
        let _ = function.config_mut().write16(4, 6);
        function.dma_write(bus, at, &[0x77; 8])
    });
    result.unwrap().is_ok()
}

fn allocated() -> IovaPolicy {
    IovaPolicy::Allocated {
        last: Iova::new(0xffff_ffff),
    }
}

#[test]
fn a_dropped_buffer_is_unmapped_and_its_memory_and_address_come_back() {
    let (platform, backend, disk) = platform();
    let pool = DmaPool::new(container(&backend, disk), allocated()).unwrap();
    let device = pool.container().open_device(disk).unwrap();
    let free = platform.machine().memory().free_bytes(None);
    let buffer = pool.buffer(4 << 20).unwrap();
    let at = buffer.iova();
    assert_eq!(at.raw() % (2 << 20), 0, "large pages are possible");
    assert!(reaches(&platform, disk, at));
    let mut seen = [0; 8];
    buffer.read(0, &mut seen).unwrap();
    assert_eq!(seen, [0x77; 8]);
    drop(buffer);
    assert!(!reaches(&platform, disk, at));
    assert!(pool.container().mappings().is_empty());
    // Page tables may stay.
    assert!(platform.machine().memory().free_bytes(None) + (64 << 10) >= free);
    for _ in 0..4096 {
        drop(pool.buffer(1 << 20).unwrap());
    }
    drop(device);
}

#[test]
fn the_identity_policy_uses_the_programs_own_addresses() {
    let (_platform, backend, disk) = platform();
    let pool = DmaPool::new(container(&backend, disk), IovaPolicy::Identity).unwrap();
    let buffer = pool.buffer(64 << 10).unwrap();
    let address = buffer.pointer().unwrap().addr().get();
    assert_eq!(buffer.iova().raw(), address as u64);
}

#[test]
fn lists_of_pieces_join_cut_gather_and_scatter() {
    let (_platform, backend, disk) = platform();
    let pool = DmaPool::new(container(&backend, disk), allocated()).unwrap();
    let (a, b) = (pool.buffer(8192).unwrap(), pool.buffer(4096).unwrap());
    let mut list = SgList::new();
    list.push(a.piece(0, 100).unwrap());
    list.push(a.piece(100, 200).unwrap());
    list.push(b.piece(4000, 96).unwrap());
    assert_eq!(list.size(), 396);
    let (ia, ib) = (a.iova(), b.iova());
    let at = |base: Iova, offset: u64| Iova::new(base.raw() + offset);
    assert_eq!(list.segments(u64::MAX), [(ia, 300), (at(ib, 4000), 96)]);
    assert_eq!(
        list.segments(128),
        [(ia, 128), (at(ia, 128), 128), (at(ia, 256), 44), (at(ib, 4000), 96)]
    );
    let bytes: Vec<u8> = (0..=255).cycle().take(396).collect();
    list.scatter(&bytes).unwrap();
    let mut back = vec![0; 396];
    list.gather(&mut back).unwrap();
    assert_eq!(back, bytes);
    let mut tail = [0; 96];
    b.read(4000, &mut tail).unwrap();
    assert_eq!(tail[..], bytes[300..]);
    assert!(matches!(
        list.gather(&mut [0; 397]),
        Err(VfioError::OutsideMemory { .. })
    ));
    assert!(b.piece(4000, 97).is_err());
    assert!(b.piece(u64::MAX, 2).is_err());
}

/// The life of a driver, step by step; `stop` is asked before each and ends it by unwinding.
fn life(backend: &Software, disk: Bdf, mut stop: impl FnMut()) {
    stop();
    let id = backend.platform().group_of(disk).unwrap().id;
    let group = Group::open(backend, id).unwrap();
    stop();
    let group = group.viable().unwrap();
    let mut container = Container::open(backend).unwrap();
    stop();
    container.attach(group).unwrap();
    stop();
    let container = container.set_iommu().unwrap();
    stop();
    let device = container.open_device(disk).unwrap();
    stop();
    let pool = DmaPool::new(container, allocated()).unwrap();
    let first = pool.buffer(1 << 20).unwrap();
    stop();
    let event = EventFd::new(0o4000).unwrap();
    device.enable_interrupts(InterruptKind::Msi, &[&event]).unwrap();
    device.set_bus_master(true);
    stop();
    let second = pool.buffer_with(4096, Perms::READ).unwrap();
    assert!(reaches(backend.platform(), disk, first.iova()));
    assert!(!reaches(backend.platform(), disk, second.iova()));
    stop();
    drop(first);
    stop();
    device.reset().unwrap();
    stop();
    drop(device);
    stop();
}

#[test]
fn a_driver_that_dies_at_any_step_leaves_nothing_behind() {
    let (platform, backend, disk) = platform();
    let mut steps = 0;
    life(&backend, disk, || steps += 1);
    assert!(steps >= 12);
    // What a device of a driver that lives sees, for comparison.
    let free = platform.machine().memory().free_bytes(None);
    std::panic::set_hook(Box::new(|_| {}));
    for at in 0..steps {
        let mut step = 0;
        let died = catch_unwind(AssertUnwindSafe(|| {
            life(&backend, disk, || {
                assert_ne!(step, at, "killed");
                step += 1;
            });
        }));
        assert!(died.is_err(), "{at}");
        for page in [0x1000u64, 0x20_0000, 0xfff0_0000, 0xffe0_0000, 0x1_0000_0000] {
            assert!(!reaches(&platform, disk, Iova::new(page)), "step {at}: {page:#x}");
        }
        // Everything is there for the next one.
        life(&backend, disk, || {});
    }
    let _ = std::panic::take_hook();
    let left = platform.machine().memory().free_bytes(None);
    assert!(left + (64 << 10) >= free, "{left:#x} of {free:#x} bytes free");
}

#[test]
fn a_device_outlives_its_container_and_the_last_of_both_unmaps() {
    let (platform, backend, disk) = platform();
    let container = container(&backend, disk);
    let memory = container.allocate(4096).unwrap();
    container
        .dma_map(Iova::new(0x10_0000), &memory, 0, 4096, Perms::READ_WRITE)
        .unwrap();
    let device = container.open_device(disk).unwrap();
    device.set_bus_master(true);
    drop(container);
    assert!(reaches(&platform, disk, Iova::new(0x10_0000)), "the device keeps it");
    drop(device);
    assert!(!reaches(&platform, disk, Iova::new(0x10_0000)));
    memory.release().map_err(|(error, _)| error).unwrap();
}

#[test]
fn a_page_table_entry_that_is_corrupted_behind_the_layer_faults() {
    let (platform, backend, disk) = platform();
    let container = container(&backend, disk);
    let memory = container.allocate(8192).unwrap();
    let base = Iova::new(0x40_0000);
    container.dma_map(base, &memory, 0, 8192, Perms::READ_WRITE).unwrap();
    let machine = platform.machine();
    // By hand, as VT-d §9 has the structures: root entry, context entry, then nine bits of the address a level.
    let unit = machine.function(disk).unwrap().service.unit().unwrap();
    let registers = machine.registers(unit).unwrap();
    let root = iommu_types::Registers::read64(&registers, 0x20) & !0xfff;
    let read = |at: u64| machine.read_u64(HostPhys::new(at)).unwrap();
    let context = (read(root + 16 * u64::from(disk.bus())) & !0xfff) + 16 * u64::from(disk.devfn().raw());
    let levels = (read(context + 8) & 7) + 2;
    let mut table = read(context) & !0xfff;
    for level in (1..levels).rev() {
        table = read(table + 8 * (base.raw() >> (12 + 9 * level) & 511)) & 0x000f_ffff_ffff_f000;
    }
    let entry = HostPhys::new(table + 8 * (base.raw() >> 12 & 511));
    let sound = machine.read_u64(entry).unwrap();
    assert_eq!(
        sound & 0x000f_ffff_ffff_f000,
        memory.at(0).unwrap().raw(),
        "the right entry"
    );
    // A reserved bit: an address beyond what the machine has.
    machine.write_u64(entry, sound | 1 << 51).unwrap();
    let _ = platform.drain_faults();
    assert!(!reaches(&platform, disk, base));
    let faults = platform.drain_faults().faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(faults[0].functions, [disk]);
    assert!(
        reaches(&platform, disk, Iova::new(base.raw() + 4096)),
        "its neighbour is sound"
    );
    machine.write_u64(entry, sound).unwrap();
    assert!(reaches(&platform, disk, base));
}

#[test]
fn guests_see_their_own_addresses_holes_read_only_ranges_and_plugged_memory() {
    let (platform, backend, disk) = platform();
    // A second device, behind another unit.
    let unit = |bdf: Bdf| platform.machine().function(bdf).unwrap().service.unit();
    let other = platform
        .machine()
        .functions()
        .filter(|f| f.engine && unit(f.bdf).is_some() && unit(f.bdf) != unit(disk))
        .map(|f| f.bdf)
        .find(|bdf| platform.group_of(*bdf).unwrap().members.len() == 1)
        .unwrap();
    platform.bind(other, Driver::Vfio).unwrap();
    let container = container(&backend, disk);
    let ram = Arc::new(container.allocate(4 << 20).unwrap());
    let rom = Arc::new(container.allocate(64 << 10).unwrap());
    let plugged = Arc::new(container.allocate(1 << 20).unwrap());
    let mut guest = GuestAddressSpace::new(container);
    let high = GuestPhys::new(1 << 32);
    guest
        .add(vec![
            GuestRange::ram(GuestPhys::new(0), ram.clone()).part(0, 640 << 10),
            GuestRange::ram(high, ram.clone()).part(1 << 20, 3 << 20),
            GuestRange::ram(GuestPhys::new(0xffff_0000), rom).read_only(),
        ])
        .unwrap();
    let group = Group::open(&backend, platform.group_of(other).unwrap().id).unwrap();
    guest.attach(group.viable().unwrap()).unwrap();
    let devices = [guest.open_device(disk).unwrap(), guest.open_device(other).unwrap()];
    for device in &devices {
        let function = device.function();
        let reaches = |at: u64| reaches(&platform, function, Iova::new(at));
        assert!(reaches(0x9_f000) && reaches(1 << 32) && reaches((1 << 32) + (3 << 20) - 8));
        assert!(!reaches(0xa_0000), "hole");
        assert!(!reaches(0xffff_0000), "read-only");
        assert!(!reaches((1 << 32) + (3 << 20)), "past the end");
        assert!(!reaches(0x200_0000), "not plugged yet");
    }
    guest.write(GuestPhys::new(0xffff_0010), b"firmware").unwrap();
    let read = platform.machine().with_function(other, |function, bus| {
        let mut bytes = [0; 8];
        function
            .dma_read(bus, Iova::new(0xffff_0010), &mut bytes)
            .map(|()| bytes)
    });
    assert_eq!(&read.unwrap().unwrap(), b"firmware");
    // Plugged in while it runs, and out again.
    let at = GuestPhys::new(0x200_0000);
    guest.add(vec![GuestRange::ram(at, plugged.clone())]).unwrap();
    assert!(
        devices
            .iter()
            .all(|device| reaches(&platform, device.function(), Iova::new(at.raw())))
    );
    let mut seen = [0; 8];
    guest.read(at, &mut seen).unwrap();
    assert_eq!(seen, [0x77; 8]);
    // All or nothing.
    let more = vec![
        GuestRange::ram(GuestPhys::new(0x300_0000), plugged.clone()),
        GuestRange::ram(GuestPhys::new(0x9_0000), plugged),
    ];
    assert!(matches!(guest.add(more), Err(VfioError::Exists { .. })));
    assert!(!reaches(&platform, disk, Iova::new(0x300_0000)));
    assert_eq!(guest.ranges().count(), 4);
    guest.remove(at).unwrap();
    assert!(
        devices
            .iter()
            .all(|device| !reaches(&platform, device.function(), Iova::new(at.raw())))
    );
    assert!(matches!(guest.remove(at), Err(VfioError::NoGuestMemory(_))));
}
