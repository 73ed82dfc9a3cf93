//! What `virtio-drivers` asks of its machine: memory that the device may use. The crate wants it process-global.
//!
//! All of it is one DMA buffer of a container: rings are pages of it, and the driver's buffers are copied in and out, so
//! that the device reaches nothing else of the process.
#![allow(unsafe_code, reason = "`Hal` of another crate is an unsafe trait over pointers")]

use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iommu_types::Iova;
use iommu_vfio::virtio::PageMap;
use iommu_vfio::{Backend, DmaBuffer, VfioError};
use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::Transport;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// An address that nothing maps: where data go that are withheld from the device.
pub(super) const NOWHERE: Iova = Iova::new(0x7f00_0000);

/// A DMA buffer of any backend: what is process-global has one type.
trait Buffer: Send {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), VfioError>;
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), VfioError>;
    fn pointer(&self) -> Option<NonNull<u8>>;
}

impl<B: Backend> Buffer for DmaBuffer<B>
where
    Self: Send,
{
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), VfioError> {
        Self::read(self, offset, into)
    }
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), VfioError> {
        Self::write(self, offset, from)
    }
    fn pointer(&self) -> Option<NonNull<u8>> {
        Self::pointer(self)
    }
}

/// The memory in use.
struct Area {
    buffer: Box<dyn Buffer>,
    pages: PageMap,
    /// Data, though not headers and rings, are not given to the device.
    withheld: bool,
}

static AREA: Mutex<Option<Area>> = Mutex::new(None);

fn area() -> MutexGuard<'static, Option<Area>> {
    // Each change is one assignment.
    AREA.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shares `buffer` with drivers from now on; false if it is not in one piece in this process.
pub(super) fn install<B: Backend + 'static>(buffer: DmaBuffer<B>) -> bool
where
    DmaBuffer<B>: Send,
{
    if buffer.pointer().is_none() {
        return false;
    }
    let pages = PageMap::new(buffer.iova(), buffer.size());
    *area() = Some(Area {
        buffer: Box::new(buffer),
        pages,
        withheld: false,
    });
    true
}

/// Takes the memory away. No driver may be left.
pub(super) fn remove() {
    let taken = area().take();
    drop(taken);
}

/// Whether data are withheld from the device from now on.
pub(super) fn withhold(withheld: bool) {
    if let Some(area) = area().as_mut() {
        area.withheld = withheld;
    }
}

/// Reads or writes one sector whose data are withheld: the device is told that they are at [`NOWHERE`]. A device may
/// answer that with an error, with success or, having given up, not at all; then there is no disk in the result: its
/// driver is gone, and the device was reset.
pub(super) fn withheld_request<T: Transport>(
    mut disk: VirtIOBlk<Shared, T>,
    sector: usize,
    write: bool,
    patience: Duration,
) -> (Option<VirtIOBlk<Shared, T>>, virtio_drivers::Result) {
    let (mut request, mut data, mut response) = (BlkReq::default(), [0; SECTOR_SIZE], BlkResp::default());
    withhold(true);
    let token = if write {
        // SAFETY: nobody touches the three until the request is completed, or the device is reset and its queue is gone.
        unsafe { disk.write_blocks_nb(sector, &mut request, &data, &mut response) }
    } else {
        // SAFETY: as above.
        unsafe { disk.read_blocks_nb(sector, &mut request, &mut data, &mut response) }
    };
    withhold(false);
    let token = match token {
        Ok(token) => token,
        Err(why) => return (Some(disk), Err(why)),
    };
    let started = Instant::now();
    while disk.peek_used() != Some(token) {
        if started.elapsed() > patience {
            drop(disk);
            return (None, Err(virtio_drivers::Error::NotReady));
        }
        std::thread::yield_now();
    }
    let answer = if write {
        // SAFETY: the three are those of the request.
        unsafe { disk.complete_write_blocks(token, &request, &data, &mut response) }
    } else {
        // SAFETY: as above.
        unsafe { disk.complete_read_blocks(token, &request, &mut data, &mut response) }
    };
    (Some(disk), answer)
}

/// The memory of a program, shared page by page.
#[derive(Debug)]
pub(super) struct Shared;

impl Area {
    /// Copies `bytes` to the device's side, or makes room for as many.
    fn lend(&mut self, len: usize, bytes: Option<&[u8]>) -> Option<PhysAddr> {
        if self.withheld && len >= SECTOR_SIZE {
            return Some(NOWHERE.raw());
        }
        let offset = self.pages.take(len.div_ceil(PAGE_SIZE))?;
        if let Some(bytes) = bytes {
            self.buffer.write(u64::try_from(offset).ok()?, bytes).ok()?;
        }
        Some(self.pages.address(offset))
    }

    /// Takes `len` bytes back; where they are in the buffer.
    fn take_back(&mut self, address: PhysAddr, len: usize) -> Option<u64> {
        let offset = self.pages.offset(address).filter(|_| address != NOWHERE.raw())?;
        self.pages.give(offset, len.div_ceil(PAGE_SIZE));
        u64::try_from(offset).ok()
    }
}

// SAFETY: pages are handed out once until they come back, zeroed, from a buffer that stays as long as drivers do; there
// are no memory-mapped registers.
unsafe impl Hal for Shared {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let taken = area().as_mut().and_then(|area| {
            let offset = area.pages.take(pages)?;
            let zeros = vec![0; pages * PAGE_SIZE];
            area.buffer.write(u64::try_from(offset).ok()?, &zeros).ok()?;
            let first = area.buffer.pointer()?.as_ptr();
            let at = NonNull::new(first.wrapping_add(offset))?;
            Some((area.pages.address(offset), at))
        });
        // Address 0 says that there is none.
        taken.unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(address: PhysAddr, _at: NonNull<u8>, pages: usize) -> i32 {
        let back = area()
            .as_mut()
            .and_then(|area| area.take_back(address, pages * PAGE_SIZE));
        if back.is_some() { 0 } else { -1 }
    }

    unsafe fn mmio_phys_to_virt(_at: PhysAddr, _size: usize) -> NonNull<u8> {
        // The transport reaches registers through the device and never asks.
        NonNull::dangling()
    }

    unsafe fn share(buffer: NonNull<[u8]>, way: BufferDirection) -> PhysAddr {
        let bytes = if way == BufferDirection::DeviceToDriver {
            None
        } else {
            // SAFETY: the caller's buffer is valid, and nobody writes to it during this call.
            Some(unsafe { buffer.as_ref() })
        };
        let lent = area().as_mut().and_then(|area| area.lend(buffer.len(), bytes));
        // Where there is no room the device is sent to where nothing is.
        lent.unwrap_or(NOWHERE.raw())
    }

    unsafe fn unshare(address: PhysAddr, mut buffer: NonNull<[u8]>, way: BufferDirection) {
        let mut area = area();
        let Some(area) = area.as_mut() else { return };
        let Some(offset) = area.take_back(address, buffer.len()) else {
            return;
        };
        if way != BufferDirection::DriverToDevice {
            // SAFETY: the caller's buffer is valid, and nobody else uses it during this call.
            let into = unsafe { buffer.as_mut() };
            // The pages were as long as the buffer; if not, the driver keeps what it had.
            let _ = area.buffer.read(offset, into);
        }
    }
}
