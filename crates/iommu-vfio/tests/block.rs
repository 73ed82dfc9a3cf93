//! The whole way of a block request in software: another crate's driver, this crate's transport and buffers, remapping
//! units, the emulated disk.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking"
)]

#[path = "../examples/support/hal.rs"]
mod hal;

use std::any::Any;
use std::sync::{Mutex, MutexGuard, PoisonError};

use iommu_devices::virtio::{MemoryDisk, VirtioBlk, VirtioBlkOptions};
use iommu_types::{Bdf, Iova};
use iommu_vfio::virtio::VirtioTransport;
use iommu_vfio::{Container, Device, DmaPool, Driver, EventFd, Group, IovaPolicy, Platform, PlatformOptions, Software};
use soft_platform::{Machine, MachineDescription};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};

use crate::hal::SharedMemory;

/// `Hal` is one for the process.
static ONE: Mutex<()> = Mutex::new(());

struct Rig {
    platform: Platform,
    function: Bdf,
    pool: DmaPool,
    device: Option<Device>,
    _one: MutexGuard<'static, ()>,
}

fn rig() -> Rig {
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let description = MachineDescription::two_socket().unwrap();
    let machine = Machine::build(&description, &description.to_dmar().unwrap()).unwrap();
    let function: Bdf = "03:00.0".parse().unwrap();
    let options = VirtioBlkOptions::default();
    let config = VirtioBlk::describe(options).build().unwrap();
    let disk = VirtioBlk::new(config, Box::new(MemoryDisk::new(1 << 20)), options).unwrap();
    machine.replace(function, Box::new(disk)).unwrap();
    let platform = Platform::bring_up(machine, PlatformOptions::default()).unwrap();
    platform.bind(function, Driver::Vfio).unwrap();
    let backend = Software::new(&platform, platform.user("driver"));
    let mut container = Container::open(&backend).unwrap();
    let group = Group::open(&backend, platform.group_of(function).unwrap().id).unwrap();
    container.attach(group.viable().unwrap()).unwrap();
    let container = container.set_iommu().unwrap();
    let device = container.open_device(function).unwrap();
    let policy = IovaPolicy::Allocated {
        last: Iova::new(0xffff_ffff),
    };
    Rig {
        pool: DmaPool::new(container, policy).unwrap(),
        platform,
        function,
        device: Some(device),
        _one: one,
    }
}

fn event() -> EventFd {
    EventFd::new(0o4000).unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 11 % 251) as u8).collect()
}

#[test]
fn a_disk_is_written_and_read_through_the_units_and_interrupts_are_counted() {
    let mut rig = rig();
    let shared = rig.pool.buffer(1 << 20).unwrap();
    SharedMemory::<0>::share(shared.iova(), shared.size(), shared.pointer().unwrap());
    let (changes, queue) = (event(), event());
    let transport = VirtioTransport::open(rig.device.take().unwrap(), &[&changes, &queue]).unwrap();
    let mut driver = VirtIOBlk::<SharedMemory<0>, _>::new(transport).unwrap();
    assert_eq!(driver.capacity(), 2048);
    for sector in (0..2048).step_by(64) {
        let mut data = pattern(64 * SECTOR_SIZE);
        data[0] = (sector / 64) as u8;
        driver.write_blocks(sector, &data).unwrap();
    }
    assert!(queue.read().unwrap() > 0);
    assert!(changes.read().is_err(), "nothing changed");
    for sector in (0..2048).step_by(64) {
        let mut back = vec![0; 64 * SECTOR_SIZE];
        driver.read_blocks(sector, &mut back).unwrap();
        let mut data = pattern(64 * SECTOR_SIZE);
        data[0] = (sector / 64) as u8;
        assert_eq!(back, data);
    }
    let drain = rig.platform.drain_faults();
    assert!(drain.faults.is_empty(), "{:?}", drain.faults);
    assert!(rig.platform.take_interrupts().is_empty(), "all were counted");
    drop(driver);
    drop(shared);
    // Closed: the device is blocked and its interrupts are off.
    let sent = rig.platform.machine().with_function(rig.function, |function, bus| {
        let _ = function.config_mut().write16(4, 4);
        function.dma_write(bus, Iova::new(0x10_0000), &[1; 8])
    });
    assert!(sent.unwrap().is_err());
}

#[test]
fn a_dma_outside_the_mappings_is_a_fault_and_nowhere_in_memory() {
    let mut rig = rig();
    let shared = rig.pool.buffer(1 << 20).unwrap();
    SharedMemory::<0>::share(shared.iova(), shared.size(), shared.pointer().unwrap());
    let transport = VirtioTransport::open(rig.device.take().unwrap(), &[]).unwrap();
    let mut driver = VirtIOBlk::<SharedMemory<0>, _>::new(transport).unwrap();
    driver.write_blocks(0, &pattern(SECTOR_SIZE)).unwrap();
    let beyond = Iova::new(shared.iova().raw() + shared.size());
    // The device is sent beyond what is mapped, as a broken driver would do.
    let result = rig.platform.machine().with_function(rig.function, |function, bus| {
        function.dma_write(bus, beyond, &[0xee; 64])
    });
    assert!(result.unwrap().is_err());
    let drain = rig.platform.drain_faults();
    let fault = drain.faults.first().unwrap();
    assert!(fault.to_string().contains(&format!("write to {beyond}")), "{fault}");
    assert_eq!(fault.functions, [rig.function]);
    let mut back = [0; SECTOR_SIZE];
    driver.read_blocks(0, &mut back).unwrap();
    assert_eq!(back.to_vec(), pattern(SECTOR_SIZE), "the driver goes on");
}

#[test]
fn memory_that_was_taken_away_stops_the_device() {
    let mut rig = rig();
    let shared = rig.pool.buffer(1 << 20).unwrap();
    SharedMemory::<0>::share(shared.iova(), shared.size(), shared.pointer().unwrap());
    let (iova, size) = (shared.iova(), shared.size());
    let transport = VirtioTransport::open(rig.device.take().unwrap(), &[]).unwrap();
    let mut driver = VirtIOBlk::<SharedMemory<0>, _>::new(transport).unwrap();
    driver.write_blocks(0, &pattern(SECTOR_SIZE)).unwrap();
    assert_eq!(rig.pool.container().dma_unmap(iova, size).unwrap(), size);
    let served = |rig: &Rig| {
        let requests = rig.platform.machine().with_function(rig.function, |function, _| {
            let any: &mut dyn Any = function;
            let disk = any.downcast_mut::<VirtioBlk>().unwrap();
            (disk.requests(), disk.status())
        });
        requests.unwrap()
    };
    let before = served(&rig).0;
    let request = &mut virtio_drivers::device::blk::BlkReq::default();
    let response = &mut virtio_drivers::device::blk::BlkResp::default();
    // SAFETY: the buffers stay until the driver is gone.
    #[allow(unsafe_code, reason = "the driver's non-blocking requests keep references")]
    let token = unsafe { driver.write_blocks_nb(0, request, &[0; SECTOR_SIZE], response) };
    assert!(token.is_ok());
    let (after, status) = served(&rig);
    assert_eq!(after, before, "the ring cannot be read");
    assert_ne!(status & 64, 0, "and the device says that it needs a reset");
    assert!(!rig.platform.drain_faults().faults.is_empty());
}
