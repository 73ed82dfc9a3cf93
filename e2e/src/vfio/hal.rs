//! The process-global part of `virtio-drivers`: one run of memory that a device and the program share. Buffers of
//! requests are copied into it and out of it, so the device sees nothing else of the process.
#![allow(unsafe_code, reason = "the other crate's `Hal` is an unsafe trait over pointers")]

use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use iommu_vfio::virtio::PageMap;
use iommu_vfio::{Backend, DmaBuffer};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// The shared memory: which pages are used, and where the first is.
struct Area {
    pages: PageMap,
    first: usize,
}

static AREA: Mutex<Option<Area>> = Mutex::new(None);

fn area() -> MutexGuard<'static, Option<Area>> {
    AREA.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shares `buffer` from now on. False if it is not in one piece in this process. Whoever calls keeps the buffer until
/// no driver is left, and has one driver at a time.
pub(super) fn share<B: Backend>(buffer: &DmaBuffer<B>) -> bool {
    *area() = buffer.pointer().map(|first| Area {
        pages: PageMap::new(buffer.iova(), buffer.size()),
        first: first.as_ptr().expose_provenance(),
    });
    area().is_some()
}

/// Takes pages: their address for the device, and where they are.
fn take(pages: usize) -> Option<(PhysAddr, NonNull<u8>)> {
    let mut area = area();
    let area = area.as_mut()?;
    let offset = area.pages.take(pages)?;
    let memory = std::ptr::with_exposed_provenance_mut::<u8>(area.first + offset);
    Some((area.pages.address(offset), NonNull::new(memory)?))
}

/// Where the device's address `paddr` is; gives its pages back.
fn give(paddr: PhysAddr, pages: usize) -> Option<NonNull<u8>> {
    let mut area = area();
    let area = area.as_mut()?;
    let offset = area.pages.offset(paddr)?;
    area.pages.give(offset, pages);
    NonNull::new(std::ptr::with_exposed_provenance_mut(area.first + offset))
}

/// The `Hal` over the shared memory.
#[derive(Debug)]
pub(super) struct SharedMemory;

// SAFETY: pages are handed out once until they are given back, lie in memory that `share`'s caller keeps, start on a page,
// and are zeroed here.
unsafe impl Hal for SharedMemory {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let Some((paddr, memory)) = take(pages) else {
            return (0, NonNull::dangling());
        };
        // SAFETY: as many pages are ours.
        unsafe { memory.write_bytes(0, pages * PAGE_SIZE) };
        (paddr, memory)
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        if give(paddr, pages).is_some() { 0 } else { -1 }
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        // Registers are reached through the device; the transport never asks.
        NonNull::dangling()
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let Some((paddr, memory)) = take(buffer.len().div_ceil(PAGE_SIZE)) else {
            // Page 0 is never mapped: a device that is sent there is blocked.
            return 0;
        };
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the buffer is valid and the pages are as long.
            unsafe { memory.copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
        }
        paddr
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let memory = give(paddr, buffer.len().div_ceil(PAGE_SIZE));
        if let (Some(memory), true) = (memory, direction != BufferDirection::DriverToDevice) {
            // SAFETY: the buffer is valid, and the pages were shared with its length.
            unsafe { buffer.cast().copy_from_nonoverlapping(memory, buffer.len()) };
        }
    }
}
