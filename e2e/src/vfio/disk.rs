//! A driver for a virtio disk, whose content somebody else knows: it reads what was put there, and fills the rest.

use std::thread;
use std::time::{Duration, Instant};

use iommu_types::{Bdf, Iova};
use iommu_vfio::virtio::VirtioTransport;
use iommu_vfio::{Backend, DmaPool, EventFd, IovaPolicy, VfioError};
use thiserror::Error;
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};

use super::hal::SharedMemory;

/// Sectors that the owner of the image filled, from 0 on.
pub const GIVEN: usize = 512;
/// Sectors that the driver fills, after those.
pub const WRITTEN: usize = 512;
/// Sectors of the image; what comes last stays zero.
pub const CAPACITY: usize = 2048;
/// Sectors of one request.
const REQUEST: usize = 32;
/// Bytes that the device may see.
const SHARED: u64 = 1 << 20;
/// An event that does not block when it is read (`EFD_NONBLOCK`).
const NON_BLOCKING: i32 = 0o4000;
/// How long the last interrupt may take. Against hanging only.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who filled a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The owner of the image.
    Owner,
    /// The driver.
    Driver,
}

/// What an author puts into `sectors` sectors from `first` on.
#[must_use]
pub fn content(author: Author, first: usize, sectors: usize) -> Vec<u8> {
    let salt = match author {
        Author::Owner => 0,
        Author::Driver => 1 << 40,
    };
    (first * SECTOR_SIZE..(first + sectors) * SECTOR_SIZE)
        .map(|at| {
            let position = u64::try_from(at).unwrap_or(0) | salt;
            let [.., high] = position.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
            high
        })
        .collect()
}

/// Why the disk could not be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// VFIO refused a step.
    #[error("{0}")]
    Vfio(#[from] VfioError),
    /// The driver gave up.
    #[error("the disk's driver: {0}")]
    Driver(#[from] virtio_drivers::Error),
    /// The transport could not be opened, or an event not be made.
    #[error("{0}")]
    Other(String),
    /// A sector does not hold what it should.
    #[error("sectors from {0} on do not hold what was put there")]
    Content(usize),
}

/// Reads what the owner wrote, writes its own part and reads that back. Returns how many interrupts arrived.
///
/// # Errors
/// [`DiskError`].
pub fn run<B: Backend + 'static>(backend: &B, function: Bdf) -> Result<u64, DiskError> {
    let other = |why: &dyn std::fmt::Display| DiskError::Other(why.to_string());
    let container = super::container(backend, function)?;
    let device = container.open_device(function)?;
    let last = Iova::new(0xffff_ffff);
    let pool = DmaPool::new(container, IovaPolicy::Allocated { last }).map_err(|why| other(&why))?;
    let shared = pool.buffer(SHARED).map_err(|why| other(&why))?;
    let first = shared.pointer();
    let first = first.ok_or_else(|| DiskError::Other("the shared memory is not in one piece".to_owned()))?;
    SharedMemory::<0>::share(shared.iova(), shared.size(), first);
    let event = || EventFd::new(NON_BLOCKING).map_err(|why| other(&why));
    let (changes, queue) = (event()?, event()?);
    let transport = VirtioTransport::open(device, &[&changes, &queue]).map_err(|why| other(&why))?;
    let mut disk = VirtIOBlk::<SharedMemory<0>, _>::new(transport)?;
    if disk.capacity() != u64::try_from(CAPACITY).unwrap_or(0) {
        return Err(DiskError::Other(format!("the disk has {} sectors", disk.capacity())));
    }
    let mut bytes = vec![0; REQUEST * SECTOR_SIZE];
    for first in (0..GIVEN).step_by(REQUEST) {
        disk.read_blocks(first, &mut bytes)?;
        if bytes != content(Author::Owner, first, REQUEST) {
            return Err(DiskError::Content(first));
        }
    }
    for first in (GIVEN..GIVEN + WRITTEN).step_by(REQUEST) {
        disk.write_blocks(first, &content(Author::Driver, first, REQUEST))?;
    }
    disk.flush()?;
    for first in (GIVEN..GIVEN + WRITTEN).step_by(REQUEST) {
        disk.read_blocks(first, &mut bytes)?;
        if bytes != content(Author::Driver, first, REQUEST) {
            return Err(DiskError::Content(first));
        }
    }
    let start = Instant::now();
    let interrupts = loop {
        match queue.read() {
            Ok(count) => break count,
            Err(_) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(1)),
            Err(why) => return Err(DiskError::Other(format!("no interrupt arrived: {why}"))),
        }
    };
    // The driver resets the device, and only then is the memory taken back.
    drop(disk);
    drop(shared);
    Ok(interrupts)
}
