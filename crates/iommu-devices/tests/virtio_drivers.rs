//! The block device behind the driver of another crate, `virtio-drivers`.
#![allow(unsafe_code, reason = "the other crate's `Hal` is an unsafe trait")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking"
)]

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Mutex;

use iommu_devices::virtio::registers::{self as reg, common};
use iommu_devices::virtio::{FileDisk, MemoryDisk, VirtioBlk, VirtioBlkOptions};
use iommu_devices::{Bus, DmaError, DmaErrorKind, Function};
use iommu_types::Iova;
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Addresses start here, so that 0 is none.
const BASE: u64 = 0x10_0000;

/// Pages and shared buffers: the address says where in the list.
static SHARED: Mutex<Vec<Region>> = Mutex::new(Vec::new());

struct Region {
    at: u64,
    len: usize,
    memory: usize,
    writable: bool,
}

fn insert(memory: usize, len: usize, writable: bool) -> u64 {
    let mut shared = SHARED.lock().unwrap();
    let at = shared.last().map_or(BASE, |last| {
        (last.at + last.len as u64).next_multiple_of(PAGE_SIZE as u64) + PAGE_SIZE as u64
    });
    shared.push(Region {
        at,
        len,
        memory,
        writable,
    });
    at
}

/// What is not shared is not there, as behind an IOMMU.
fn find(iova: Iova, len: usize, write: bool) -> Result<NonNull<u8>, DmaError> {
    let shared = SHARED.lock().unwrap();
    let region = shared.iter().find(|region| {
        let end = region.at + region.len as u64;
        iova.raw() >= region.at && iova.raw() + len as u64 <= end && (region.writable || !write)
    });
    let error = DmaError::new(iova, DmaErrorKind::Blocked);
    let region = region.ok_or(error)?;
    NonNull::new((region.memory + (iova.raw() - region.at) as usize) as *mut u8).ok_or(error)
}

struct Shared;

// SAFETY: pages come zeroed and aligned from the allocator and stay until they are given back.
unsafe impl Hal for Shared {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let layout = std::alloc::Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap();
        // SAFETY: the size is not zero.
        let memory = unsafe { std::alloc::alloc_zeroed(layout) };
        let memory = NonNull::new(memory).unwrap();
        (insert(memory.as_ptr() as usize, pages * PAGE_SIZE, true), memory)
    }
    unsafe fn dma_dealloc(paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        SHARED.lock().unwrap().retain(|region| region.at != paddr);
        let layout = std::alloc::Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap();
        // SAFETY: allocated above with this layout.
        unsafe { std::alloc::dealloc(vaddr.as_ptr(), layout) };
        0
    }
    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("the transport has no memory-mapped registers")
    }
    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let memory = buffer.as_ptr().cast::<u8>() as usize;
        insert(memory, buffer.len(), direction != BufferDirection::DriverToDevice)
    }
    unsafe fn unshare(paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {
        SHARED.lock().unwrap().retain(|region| region.at != paddr);
    }
}

struct SharedBus;

impl Bus for SharedBus {
    fn dma_read(&self, iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        let from = find(iova, into.len(), false)?;
        // SAFETY: the region is that long, and its owner waits for the device.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
        Ok(())
    }
    fn dma_write(&self, iova: Iova, from: &[u8]) -> Result<(), DmaError> {
        let to = find(iova, from.len(), true)?;
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
        Ok(())
    }
}

/// The PCI transport, which accepts translation on behalf of the driver.
struct Pci<'a>(&'a RefCell<VirtioBlk>);

impl Pci<'_> {
    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.borrow_mut().bar_read(0, offset, &mut bytes);
        bytes
    }
    fn write(&self, offset: u64, bytes: &[u8]) {
        self.0.borrow_mut().bar_write(0, offset, bytes, &SharedBus);
    }
}

impl Transport for Pci<'_> {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }
    fn read_device_features(&mut self) -> u64 {
        self.write(common::DEVICE_FEATURE_SELECT, &0u32.to_le_bytes());
        let low = u32::from_le_bytes(self.read(common::DEVICE_FEATURE));
        self.write(common::DEVICE_FEATURE_SELECT, &1u32.to_le_bytes());
        u64::from(u32::from_le_bytes(self.read(common::DEVICE_FEATURE))) << 32 | u64::from(low)
    }
    fn write_driver_features(&mut self, features: u64) {
        let features = features | 1 << 33;
        for (select, word) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
            self.write(common::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            self.write(common::DRIVER_FEATURE, &word.to_le_bytes());
        }
    }
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.write(common::QUEUE_SELECT, &queue.to_le_bytes());
        u16::from_le_bytes(self.read(common::QUEUE_SIZE)).into()
    }
    fn notify(&mut self, queue: u16) {
        self.write(
            reg::NOTIFY + reg::NOTIFY_STRIDE * u64::from(queue),
            &queue.to_le_bytes(),
        );
    }
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.read::<1>(common::STATUS)[0].into())
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.write(common::STATUS, &[status.bits() as u8]);
    }
    fn set_guest_page_size(&mut self, _size: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, queue: u16, size: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        self.write(common::QUEUE_SELECT, &queue.to_le_bytes());
        self.write(common::QUEUE_SIZE, &(size as u16).to_le_bytes());
        self.write(common::QUEUE_DESCRIPTORS, &descriptors.to_le_bytes());
        self.write(common::QUEUE_DRIVER, &driver.to_le_bytes());
        self.write(common::QUEUE_DEVICE, &device.to_le_bytes());
        self.write(common::QUEUE_ENABLE, &1u16.to_le_bytes());
    }
    fn queue_unset(&mut self, _queue: u16) {}
    fn queue_used(&mut self, queue: u16) -> bool {
        self.write(common::QUEUE_SELECT, &queue.to_le_bytes());
        self.read::<2>(common::QUEUE_ENABLE) != [0, 0]
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_truncate(self.read::<1>(reg::ISR)[0].into())
    }
    fn read_config_generation(&self) -> u32 {
        self.read::<1>(common::GENERATION)[0].into()
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let mut bytes = vec![0; size_of::<T>()];
        self.0.borrow_mut().bar_read(0, reg::DEVICE + offset as u64, &mut bytes);
        T::read_from_bytes(&bytes).map_err(|_| virtio_drivers::Error::ConfigSpaceTooSmall)
    }
    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> virtio_drivers::Result<()> {
        self.write(reg::DEVICE + offset as u64, value.as_bytes());
        Ok(())
    }
}

fn device(disk: Box<dyn iommu_devices::virtio::Disk>) -> RefCell<VirtioBlk> {
    let options = VirtioBlkOptions::default();
    let config = VirtioBlk::describe(options)
        .bus_master()
        .memory_space()
        .build()
        .unwrap();
    RefCell::new(VirtioBlk::new(config, disk, options).unwrap())
}

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| ((i + salt) * 13 % 253) as u8).collect()
}

#[test]
fn virtio_drivers_reads_and_writes_the_disk() {
    let device = device(Box::new(MemoryDisk::new(1 << 20)));
    let mut driver = VirtIOBlk::<Shared, _>::new(Pci(&device)).unwrap();
    assert_eq!(driver.capacity(), (1 << 20) / SECTOR_SIZE as u64);
    assert!(!driver.readonly());
    let mut id = [0; 20];
    let len = driver.device_id(&mut id).unwrap();
    assert_eq!(&id[..len], b"portcullis");
    // More requests than the ring has entries.
    for sector in (0..1024).step_by(32) {
        driver.write_blocks(sector, &pattern(32 * SECTOR_SIZE, sector)).unwrap();
    }
    for sector in (0..1024).step_by(32) {
        let mut back = vec![0; 32 * SECTOR_SIZE];
        driver.read_blocks(sector, &mut back).unwrap();
        assert_eq!(back, pattern(32 * SECTOR_SIZE, sector));
    }
    driver.flush().unwrap();
    assert!(driver.read_blocks(2048, &mut [0; SECTOR_SIZE]).is_err(), "past the end");
    assert!(driver.ack_interrupt().contains(InterruptStatus::QUEUE_INTERRUPT));
    drop(driver);
    assert!(device.borrow().requests() > 60);
    assert_eq!(device.borrow().last_error(), None, "nothing outside what was shared");
}

#[test]
fn virtio_drivers_writes_a_file() {
    let path = std::env::temp_dir().join(format!("virtio-blk-{}", std::process::id()));
    std::fs::write(&path, pattern(16 * SECTOR_SIZE, 0)).unwrap();
    let open = |write| std::fs::OpenOptions::new().read(true).write(write).open(&path).unwrap();
    {
        let device = device(Box::new(FileDisk::new(open(true), false).unwrap()));
        let mut driver = VirtIOBlk::<Shared, _>::new(Pci(&device)).unwrap();
        let mut sector = [0; SECTOR_SIZE];
        driver.read_blocks(3, &mut sector).unwrap();
        assert_eq!(
            sector.to_vec(),
            pattern(16 * SECTOR_SIZE, 0)[3 * SECTOR_SIZE..4 * SECTOR_SIZE]
        );
        driver.write_blocks(3, &[0xa5; SECTOR_SIZE]).unwrap();
    }
    let mut expected = pattern(16 * SECTOR_SIZE, 0);
    expected[3 * SECTOR_SIZE..4 * SECTOR_SIZE].fill(0xa5);
    assert_eq!(std::fs::read(&path).unwrap(), expected);
    {
        let device = device(Box::new(FileDisk::new(open(false), true).unwrap()));
        let mut driver = VirtIOBlk::<Shared, _>::new(Pci(&device)).unwrap();
        assert!(driver.readonly());
        assert!(driver.write_blocks(0, &[0; SECTOR_SIZE]).is_err());
    }
    assert_eq!(std::fs::read(&path).unwrap(), expected);
    std::fs::remove_file(&path).unwrap();
}
