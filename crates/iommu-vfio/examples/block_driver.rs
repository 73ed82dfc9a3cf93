//! A user-space driver for a virtio disk, the same on every backend.
//!
//! `block_driver` makes a machine in software with a disk; `block_driver BDF` drives a real one that is bound to vfio-pci.
//! It writes the first sectors, reads them back, and puts back what was there.

#[path = "support/hal.rs"]
mod hal;

use std::error::Error;
use std::time::{Duration, Instant};

use iommu_devices::virtio::{MemoryDisk, VirtioBlk, VirtioBlkOptions};
use iommu_types::{Bdf, Iova};
use iommu_vfio::virtio::VirtioTransport;
use iommu_vfio::{
    Backend, Container, DmaPool, Driver, EventFd, Group, InterruptKind, IovaPolicy, Platform, PlatformOptions, Software,
};
use soft_platform::{Machine, MachineDescription};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};

use crate::hal::SharedMemory;

/// Sectors that are written and read back.
const SECTORS: usize = 64;
/// Open an event that does not block when it is read (`EFD_NONBLOCK`).
const NON_BLOCKING: i32 = 0o4000;
/// How long interrupts may take.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1) {
        #[cfg(target_os = "linux")]
        Some(function) => drive(&iommu_vfio::Linux::new(), function.parse()?),
        #[cfg(not(target_os = "linux"))]
        Some(_) => Err("real devices need Linux".into()),
        None => {
            let (backend, function) = machine()?;
            drive(&backend, function)
        }
    }
}

/// A machine in software with a disk of 4 MiB, and somebody who may have it.
fn machine() -> Result<(Software, Bdf), Box<dyn Error>> {
    let description = MachineDescription::two_socket()?;
    let machine = Machine::build(&description, &description.to_dmar()?)?;
    let function: Bdf = "03:00.0".parse()?;
    let options = VirtioBlkOptions::default();
    let config = VirtioBlk::describe(options).build()?;
    machine.replace(
        function,
        Box::new(VirtioBlk::new(config, Box::new(MemoryDisk::new(4 << 20)), options)?),
    )?;
    let platform = Platform::bring_up(machine, PlatformOptions::default())?;
    platform.bind(function, Driver::Vfio)?;
    let user = platform.user("block driver");
    Ok((Software::new(&platform, user), function))
}

/// The driver.
fn drive<B: Backend + 'static>(backend: &B, function: Bdf) -> Result<(), Box<dyn Error>> {
    // Group, container, device: each step is a type, so none can be forgotten.
    let group = Group::open(backend, backend.group_of(function)?)?.viable()?;
    let mut container = Container::open(backend)?;
    container.attach(group)?;
    let container = container.set_iommu()?;
    let device = container.open_device(function)?;

    // The only memory that the device will see.
    let pool = DmaPool::new(
        container,
        IovaPolicy::Allocated {
            last: Iova::new(0xffff_ffff),
        },
    )?;
    let shared = pool.buffer(1 << 20)?;
    let first = shared.pointer().ok_or("the shared memory is not in one piece")?;
    SharedMemory::<0>::share(shared.iova(), shared.size(), first);

    // Interrupts: one for changes, one for the queue.
    let events = [EventFd::new(NON_BLOCKING)?, EventFd::new(NON_BLOCKING)?];
    println!("{function}: {} MSI-X vectors", device.interrupts(InterruptKind::MsiX));
    let transport = VirtioTransport::open(device, &[&events[0], &events[1]])?;
    let mut disk = VirtIOBlk::<SharedMemory<0>, _>::new(transport)?;
    println!("{function}: {} sectors of {SECTOR_SIZE} bytes", disk.capacity());

    let mut before = vec![0; SECTORS * SECTOR_SIZE];
    disk.read_blocks(0, &mut before)?;
    let pattern: Vec<u8> = (0u8..=250).cycle().take(SECTORS * SECTOR_SIZE).collect();
    disk.write_blocks(0, &pattern)?;
    let mut back = vec![0; SECTORS * SECTOR_SIZE];
    disk.read_blocks(0, &mut back)?;
    disk.write_blocks(0, &before)?;
    disk.flush()?;
    if back != pattern {
        return Err("what was read is not what was written".into());
    }
    println!("{function}: {SECTORS} sectors written, read back and put back");

    let started = Instant::now();
    let interrupts = loop {
        match events[1].read() {
            Ok(count) => break count,
            Err(_) if started.elapsed() < PATIENCE => std::thread::yield_now(),
            Err(error) => return Err(format!("no interrupt arrived: {error}").into()),
        }
    };
    println!("{function}: {interrupts} interrupts");
    // The driver goes first: it resets the device, and only then is the memory taken back.
    drop(disk);
    drop(shared);
    Ok(())
}

#[test]
fn it_runs_in_software() -> Result<(), Box<dyn Error>> {
    let (backend, function) = machine()?;
    drive(&backend, function)
}
