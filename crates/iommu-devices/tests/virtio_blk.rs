//! The block device behind a driver that is written out step by step.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::cell::RefCell;

use iommu_devices::virtio::registers::{self as reg, common};
use iommu_devices::virtio::{MemoryDisk, VirtioBlk, VirtioBlkOptions};
use iommu_devices::{Bus, DmaError, DmaErrorKind, Function};
use iommu_groups::pci::{header, msix};
use iommu_types::Iova;
use proptest::prelude::*;

const MEMORY: usize = 1 << 20;
const RINGS: u64 = 0x1000;
const QUEUE_BYTES: u64 = 0x3000;
const HEADER: u64 = 0x4_0000;
const STATUS: u64 = 0x4_1000;
const DATA: u64 = 0x5_0000;
const ACCESS_PLATFORM: u64 = 1 << 33;
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Memory of the driver: IOVA is the offset, except for a window that is blocked.
#[derive(Debug)]
struct Memory {
    bytes: RefCell<Vec<u8>>,
    messages: RefCell<Vec<(u64, u32)>>,
    blocked: RefCell<std::ops::Range<u64>>,
}

impl Memory {
    fn new() -> Self {
        Self {
            bytes: RefCell::new(vec![0; MEMORY]),
            messages: RefCell::default(),
            blocked: RefCell::new(0..0),
        }
    }
    fn range(&self, iova: Iova, len: usize) -> Result<std::ops::Range<usize>, DmaError> {
        let at = iova.raw();
        let blocked = self.blocked.borrow().clone();
        let end = at.checked_add(len as u64).filter(|end| *end <= MEMORY as u64);
        match end {
            Some(end) if end <= blocked.start || at >= blocked.end => Ok(at as usize..end as usize),
            _ => Err(DmaError::new(iova, DmaErrorKind::Blocked)),
        }
    }
    fn put(&self, at: u64, bytes: &[u8]) {
        self.bytes.borrow_mut()[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }
    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        self.bytes.borrow()[at as usize..at as usize + len].to_vec()
    }
    fn get16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.get(at, 2).try_into().unwrap())
    }
    fn get32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.get(at, 4).try_into().unwrap())
    }
}

impl Bus for Memory {
    fn dma_read(&self, iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        let range = self.range(iova, into.len())?;
        into.copy_from_slice(&self.bytes.borrow()[range]);
        Ok(())
    }
    fn dma_write(&self, iova: Iova, from: &[u8]) -> Result<(), DmaError> {
        if (0xfee0_0000..0xfef0_0000).contains(&iova.raw()) {
            let data = u32::from_le_bytes(from.try_into().unwrap());
            self.messages.borrow_mut().push((iova.raw(), data));
            return Ok(());
        }
        let range = self.range(iova, from.len())?;
        self.bytes.borrow_mut()[range].copy_from_slice(from);
        Ok(())
    }
}

struct Driver {
    device: VirtioBlk,
    memory: Memory,
    size: u16,
    next: Vec<u16>,
}

impl Driver {
    fn new(disk: MemoryDisk, options: VirtioBlkOptions) -> Self {
        let config = VirtioBlk::describe(options)
            .bus_master()
            .memory_space()
            .build()
            .unwrap();
        Self {
            device: VirtioBlk::new(config, Box::new(disk), options).unwrap(),
            memory: Memory::new(),
            size: 8,
            next: vec![0; usize::from(options.queues)],
        }
    }

    fn running(disk: MemoryDisk, features: u64) -> Self {
        let mut driver = Self::new(disk, VirtioBlkOptions::default());
        assert!(driver.negotiate(VERSION_1 | ACCESS_PLATFORM | features));
        driver.enable_queue(0, 1);
        driver.status(15);
        driver
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.device.bar_write(0, offset, bytes, &self.memory);
    }
    fn read(&mut self, offset: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        self.device.bar_read(0, offset, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    }
    fn status(&mut self, status: u8) -> u8 {
        self.write(common::STATUS, &[status]);
        self.read(common::STATUS, 1) as u8
    }

    /// Whether the device agreed.
    fn negotiate(&mut self, features: u64) -> bool {
        self.status(0);
        self.status(3);
        for select in 0..2u32 {
            self.write(common::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            let word = (features >> (32 * select)) as u32;
            self.write(common::DRIVER_FEATURE, &word.to_le_bytes());
        }
        self.status(11) & 8 != 0
    }

    fn offered(&mut self) -> u64 {
        self.write(common::DEVICE_FEATURE_SELECT, &1u32.to_le_bytes());
        let high = self.read(common::DEVICE_FEATURE, 4);
        self.write(common::DEVICE_FEATURE_SELECT, &0u32.to_le_bytes());
        high << 32 | self.read(common::DEVICE_FEATURE, 4)
    }

    fn rings(queue: u16) -> (u64, u64, u64) {
        let base = RINGS + QUEUE_BYTES * u64::from(queue);
        (base, base + 0x1000, base + 0x2000)
    }

    fn enable_queue(&mut self, queue: u16, vector: u16) {
        let (descriptors, driver, device) = Self::rings(queue);
        self.write(common::QUEUE_SELECT, &queue.to_le_bytes());
        let size = self.size;
        self.write(common::QUEUE_SIZE, &size.to_le_bytes());
        self.write(common::QUEUE_VECTOR, &vector.to_le_bytes());
        self.write(common::QUEUE_DESCRIPTORS, &descriptors.to_le_bytes());
        // By halves, as 32-bit drivers do.
        self.write(common::QUEUE_DRIVER, &(driver as u32).to_le_bytes());
        self.write(common::QUEUE_DRIVER + 4, &0u32.to_le_bytes());
        self.write(common::QUEUE_DEVICE, &device.to_le_bytes());
        self.write(common::QUEUE_ENABLE, &1u16.to_le_bytes());
    }

    fn enable_msi_x(&mut self, vectors: u16) {
        for vector in 0..vectors {
            let at = reg::MSI_X_TABLE + msix::ENTRY_LEN * u64::from(vector);
            self.write(at, &0xfee0_1000u64.to_le_bytes());
            self.write(at + msix::ENTRY_DATA, &(0x40 + u32::from(vector)).to_le_bytes());
            self.write(at + msix::ENTRY_CONTROL, &0u32.to_le_bytes());
        }
        self.msi_x_control(msix::ENABLE);
    }

    fn msi_x_control(&mut self, control: u16) {
        let at = self.device.config().msi_x_at().unwrap();
        let _ = self.device.config_write(at + msix::CONTROL, &control.to_le_bytes());
        self.device.settle(&self.memory);
    }

    fn describe(&self, table: u64, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let mut descriptor = at.to_le_bytes().to_vec();
        descriptor.extend(len.to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend(next.to_le_bytes());
        self.memory.put(table + 16 * u64::from(index), &descriptor);
    }

    /// Makes the chain that starts at `head` available.
    fn offer(&mut self, queue: u16, head: u16) {
        let (_, ring, _) = Self::rings(queue);
        let next = &mut self.next[usize::from(queue)];
        self.memory
            .put(ring + 4 + 2 * u64::from(*next % self.size), &head.to_le_bytes());
        *next = next.wrapping_add(1);
        self.memory.put(ring + 2, &next.to_le_bytes());
    }

    fn kick(&mut self, queue: u16) {
        let at = reg::NOTIFY + reg::NOTIFY_STRIDE * u64::from(queue);
        self.write(at, &queue.to_le_bytes());
    }

    fn used(&self, queue: u16) -> (u16, u32) {
        let (_, _, ring) = Self::rings(queue);
        let index = self.memory.get16(ring + 2);
        let last = index.wrapping_sub(1) % self.size;
        (index, self.memory.get32(ring + 8 + 8 * u64::from(last)))
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.memory.put(HEADER, &header);
    }

    /// Header, data, status in three descriptors on queue 0; returns the status byte and the used length.
    fn request(&mut self, kind: u32, sector: u64, len: u32, device_writes: bool) -> (u8, u32) {
        self.request_on(0, kind, sector, len, device_writes)
    }

    fn request_on(&mut self, queue: u16, kind: u32, sector: u64, len: u32, device_writes: bool) -> (u8, u32) {
        let (table, _, _) = Self::rings(queue);
        self.header(kind, sector);
        self.memory.put(STATUS, &[0xee]);
        self.describe(table, 0, HEADER, 16, NEXT, 1);
        self.describe(table, 1, DATA, len, NEXT | if device_writes { WRITE } else { 0 }, 2);
        self.describe(table, 2, STATUS, 1, WRITE, 0);
        if len == 0 {
            self.describe(table, 0, HEADER, 16, NEXT, 2);
        }
        self.offer(queue, 0);
        self.kick(queue);
        (self.memory.get(STATUS, 1)[0], self.used(queue).1)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 251) as u8).collect()
}

#[test]
fn a_driver_that_declines_translation_is_turned_away() {
    let mut driver = Driver::new(MemoryDisk::new(4096), VirtioBlkOptions::default());
    let offered = driver.offered();
    assert_eq!(offered & (VERSION_1 | ACCESS_PLATFORM), VERSION_1 | ACCESS_PLATFORM);
    assert!(!driver.negotiate(VERSION_1));
    assert!(!driver.negotiate(ACCESS_PLATFORM));
    assert!(
        !driver.negotiate(VERSION_1 | ACCESS_PLATFORM | 1 << 34),
        "packed rings are not offered"
    );
    assert_eq!(driver.status(15) & 4, 0, "not driven without agreement");
    assert!(driver.negotiate(VERSION_1 | ACCESS_PLATFORM));
    let options = VirtioBlkOptions {
        require_access_platform: false,
        ..VirtioBlkOptions::default()
    };
    assert!(Driver::new(MemoryDisk::new(4096), options).negotiate(VERSION_1));
}

#[test]
fn tables_of_buffers_are_refused_where_they_are_not_offered() {
    let wanted = VERSION_1 | ACCESS_PLATFORM | INDIRECT;
    let mut options = VirtioBlkOptions::default();
    assert!(Driver::new(MemoryDisk::new(4096), options).negotiate(wanted));
    options.indirect = false;
    let mut driver = Driver::new(MemoryDisk::new(4096), options);
    assert_eq!(driver.offered() & INDIRECT, 0);
    assert!(!driver.negotiate(wanted));
    assert!(driver.negotiate(wanted & !INDIRECT));
}

#[test]
fn what_is_written_is_read_back_and_interrupts_arrive() {
    let mut driver = Driver::running(MemoryDisk::new(64 << 10), 0);
    driver.enable_msi_x(2);
    let data = pattern(3 * 512);
    driver.memory.put(DATA, &data);
    assert_eq!(driver.request(1, 5, 3 * 512, false), (0, 1));
    driver.memory.put(DATA, &[0; 3 * 512]);
    assert_eq!(driver.request(0, 5, 3 * 512, true), (0, 3 * 512 + 1));
    assert_eq!(driver.memory.get(DATA, 3 * 512), data);
    assert_eq!(*driver.memory.messages.borrow(), [(0xfee0_1000, 0x41); 2]);
    assert_eq!(driver.read(reg::ISR, 1), 1);
    assert_eq!(driver.read(reg::ISR, 1), 0, "reading clears it");
    assert_eq!(driver.read(reg::DEVICE, 8), 128, "sectors");
    assert_eq!(driver.device.requests(), 2);
}

#[test]
fn requests_that_cannot_be_end_with_a_status_and_change_nothing() {
    let mut driver = Driver::running(MemoryDisk::with_bytes(pattern(8192)), 1 << 9);
    driver.memory.put(DATA, &[0x55; 4096]);
    for (kind, sector, len, device_writes, status) in [
        (0, 16, 512, true, 1),       // past the end
        (0, u64::MAX, 512, true, 1), // offset overflows
        (0, 15, 1024, true, 1),      // ends past the end
        (0, 0, 100, true, 1),        // not whole sectors
        (1, 16, 512, false, 1),      // write past the end
        (11, 0, 512, true, 2),       // discard is not offered
        (99, 0, 512, true, 2),       // no such request
        (4, 0, 0, true, 0),          // flush
    ] {
        assert_eq!(
            driver.request(kind, sector, len, device_writes).0,
            status,
            "{kind} {sector} {len}"
        );
        assert_eq!(driver.memory.get(DATA, 4096), [0x55; 4096], "{kind} {sector} {len}");
    }
    assert_eq!(driver.request(8, 0, 20, true), (0, 21));
    assert_eq!(driver.memory.get(DATA, 10), b"portcullis");
    // Writing zeros: sector 2, 3 sectors.
    let mut range = 2u64.to_le_bytes().to_vec();
    range.extend(3u32.to_le_bytes());
    range.extend(0u32.to_le_bytes());
    driver.memory.put(DATA, &range);
    assert_eq!(driver.request(13, 0, 16, false).0, 0);
    let mut expected = pattern(8192);
    expected[1024..2560].fill(0);
    let mut back = vec![0; 8192];
    driver.device.disk_mut().read_at(0, &mut back).unwrap();
    assert_eq!(back, expected);
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let mut driver = Driver::running(MemoryDisk::with_bytes(pattern(4096)).read_only(), 0);
    assert_ne!(driver.offered() & 1 << 5, 0);
    assert_eq!(driver.request(1, 0, 512, false), (1, 1));
    assert_eq!(driver.request(0, 0, 512, true).0, 0);
    assert_eq!(driver.memory.get(DATA, 512), pattern(512));
}

#[test]
fn data_that_cannot_be_reached_is_an_io_error_and_lost_rings_need_a_reset() {
    let mut driver = Driver::running(MemoryDisk::with_bytes(pattern(8192)), 0);
    *driver.memory.blocked.borrow_mut() = DATA + 0x1000..DATA + 0x2000;
    driver.memory.put(DATA + 0x1000, &[0x77; 512]);
    assert_eq!(driver.request(0, 0, 0x1200, true).0, 1);
    assert_eq!(driver.memory.get(DATA + 0x1000, 512), [0x77; 512]);
    let stopped = driver.device.last_error().unwrap();
    assert!((DATA..DATA + 0x2000).contains(&stopped.address.raw()), "{stopped}");
    assert_eq!(driver.request(0, 0, 512, true).0, 0, "the device goes on");
    let (_, _, used) = Driver::rings(0);
    *driver.memory.blocked.borrow_mut() = used..used + 0x1000;
    driver.request(0, 0, 512, true);
    assert_ne!(driver.device.status() & 64, 0, "DEVICE_NEEDS_RESET");
    assert_eq!(driver.read(reg::ISR, 1) & 2, 2, "told by a configuration interrupt");
    *driver.memory.blocked.borrow_mut() = 0..0;
    assert_eq!(
        driver.request(0, 0, 512, true).0,
        0xee,
        "nothing is served before a reset"
    );
    assert!(driver.negotiate(VERSION_1 | ACCESS_PLATFORM));
    driver.next[0] = 0;
    driver.memory.put(used, &[0; 64]);
    driver.enable_queue(0, 1);
    driver.status(15);
    assert_eq!(driver.request(0, 0, 512, true).0, 0);
}

#[test]
fn without_bus_mastering_nothing_is_sent() {
    let mut driver = Driver::running(MemoryDisk::new(4096), 0);
    let _ = driver
        .device
        .config_write(header::COMMAND, &header::COMMAND_MEMORY.to_le_bytes());
    assert_eq!(driver.request(0, 0, 512, true).0, 0xee);
    assert_eq!(
        driver.device.last_error().unwrap().kind,
        DmaErrorKind::BusMasterDisabled
    );
}

#[test]
fn headers_and_status_may_be_cut_anywhere_and_tables_may_be_indirect() {
    let mut driver = Driver::running(MemoryDisk::with_bytes(pattern(8192)), INDIRECT);
    driver.header(0, 1);
    let indirect = DATA + 0x8000;
    driver.describe(indirect, 0, HEADER, 5, NEXT, 1);
    driver.describe(indirect, 1, HEADER + 5, 11, NEXT, 2);
    driver.describe(indirect, 2, DATA, 300, NEXT | WRITE, 3);
    driver.describe(indirect, 3, DATA + 300, 213, WRITE, 0);
    driver.describe(Driver::rings(0).0, 4, indirect, 64, 4, 0);
    driver.memory.put(DATA, &[0xee; 513]);
    driver.offer(0, 4);
    driver.kick(0);
    assert_eq!(driver.used(0), (1, 513));
    assert_eq!(driver.memory.get(DATA, 512), pattern(8192)[512..1024]);
    assert_eq!(driver.memory.get(DATA + 512, 1), [0]);
}

#[test]
fn each_queue_has_its_vector_and_masked_ones_wait() {
    let options = VirtioBlkOptions {
        queues: 3,
        ..VirtioBlkOptions::default()
    };
    let mut driver = Driver::new(MemoryDisk::with_bytes(pattern(4096)), options);
    assert_ne!(driver.offered() & 1 << 12, 0, "MQ");
    assert!(driver.negotiate(VERSION_1 | ACCESS_PLATFORM | 1 << 12));
    for queue in 0..3 {
        driver.enable_queue(queue, queue + 1);
    }
    driver.status(15);
    driver.enable_msi_x(4);
    assert_eq!(driver.request_on(2, 0, 0, 512, true).0, 0);
    assert_eq!(driver.request_on(1, 0, 0, 512, true).0, 0);
    let sent = |driver: &Driver| driver.memory.messages.borrow().iter().map(|m| m.1).collect::<Vec<_>>();
    assert_eq!(sent(&driver), [0x43, 0x42]);
    driver.msi_x_control(msix::ENABLE | msix::MASK);
    assert_eq!(driver.request_on(0, 0, 0, 512, true).0, 0);
    assert_eq!(sent(&driver).len(), 2);
    driver.msi_x_control(msix::ENABLE);
    assert_eq!(sent(&driver), [0x43, 0x42, 0x41]);
    // A vector that does not exist reads back as none.
    driver.write(common::QUEUE_VECTOR, &9u16.to_le_bytes());
    assert_eq!(driver.read(common::QUEUE_VECTOR, 2), u64::from(common::NO_VECTOR));
    driver.write(common::QUEUE_SELECT, &3u16.to_le_bytes());
    assert_eq!(driver.read(common::QUEUE_SIZE, 2), 0, "no such queue");
}

#[test]
fn drivers_that_want_no_interrupt_get_none() {
    let mut driver = Driver::running(MemoryDisk::new(4096), 0);
    driver.enable_msi_x(2);
    driver.memory.put(Driver::rings(0).1, &1u16.to_le_bytes());
    assert_eq!(driver.request(0, 0, 512, true).0, 0);
    assert!(driver.memory.messages.borrow().is_empty());

    let mut driver = Driver::running(MemoryDisk::new(4096), EVENT_IDX);
    driver.enable_msi_x(2);
    let used_event = Driver::rings(0).1 + 4 + 2 * u64::from(driver.size);
    driver.memory.put(used_event, &2u16.to_le_bytes());
    for done in 1..=4u16 {
        assert_eq!(driver.request(0, 0, 512, true).0, 0);
        let avail_event = Driver::rings(0).2 + 4 + 8 * u64::from(driver.size);
        assert_eq!(driver.memory.get16(avail_event), done, "notify at the next request");
    }
    assert_eq!(driver.memory.messages.borrow().len(), 1, "only after the third");
}

#[test]
fn without_msi_x_the_line_is_pulled_until_the_status_is_read() {
    let mut driver = Driver::running(MemoryDisk::new(4096), 0);
    assert_eq!(driver.request(0, 0, 512, true).0, 0);
    assert!(driver.device.line_asserted());
    assert_ne!(driver.device.config().read16(header::STATUS) & header::STATUS_INTX, 0);
    driver.read(reg::ISR, 1);
    assert!(!driver.device.line_asserted());
    assert_eq!(driver.device.config().read16(header::STATUS) & header::STATUS_INTX, 0);
}

#[test]
fn broken_chains_and_rings_need_a_reset() {
    let setups: [fn(&mut Driver); 7] = [
        // A chain that leads back to itself.
        |d| {
            d.describe(Driver::rings(0).0, 0, HEADER, 16, NEXT, 0);
            d.offer(0, 0);
        },
        // No status byte.
        |d| {
            d.describe(Driver::rings(0).0, 0, HEADER, 16, 0, 0);
            d.offer(0, 0);
        },
        // Status before header.
        |d| {
            d.describe(Driver::rings(0).0, 0, STATUS, 1, NEXT | WRITE, 1);
            d.describe(Driver::rings(0).0, 1, HEADER, 16, 0, 0);
            d.offer(0, 0);
        },
        // A head outside the table.
        |d| d.offer(0, 200),
        // The index jumps past everything.
        |d| d.memory.put(Driver::rings(0).1 + 2, &100u16.to_le_bytes()),
        // An indirect table inside an indirect table.
        |d| {
            d.describe(DATA, 0, DATA + 64, 32, 4, 0);
            d.describe(Driver::rings(0).0, 0, DATA, 16, 4, 0);
            d.offer(0, 0);
        },
        // Buffers past the end of the address space.
        |d| {
            d.describe(Driver::rings(0).0, 0, HEADER, 16, NEXT, 1);
            d.describe(Driver::rings(0).0, 1, u64::MAX, 2, WRITE, 0);
            d.offer(0, 0);
        },
    ];
    for (number, setup) in setups.into_iter().enumerate() {
        let mut driver = Driver::running(MemoryDisk::new(4096), INDIRECT);
        driver.header(4, 0);
        setup(&mut driver);
        driver.kick(0);
        assert_ne!(driver.device.status() & 64, 0, "{number}");
        assert_eq!(driver.used(0).0, 0, "{number}");
        assert_eq!(driver.device.requests(), 0, "{number}");
    }
}

#[test]
fn the_window_among_the_capabilities_reaches_the_registers() {
    let mut driver = Driver::running(MemoryDisk::with_bytes(pattern(4096)), 0);
    let window = driver.device.config().capabilities(9).nth(4).unwrap();
    let point = |driver: &mut Driver, offset: u64, width: u32| {
        let _ = driver.device.config_write(window + 8, &(offset as u32).to_le_bytes());
        let _ = driver.device.config_write(window + 12, &width.to_le_bytes());
    };
    point(&mut driver, reg::DEVICE, 4);
    let mut capacity = [0; 4];
    driver.device.config_read(window + 16, &mut capacity);
    assert_eq!(u32::from_le_bytes(capacity), 8);
    // A notification through the window is served when there is a bus.
    driver.memory.put(STATUS, &[0xee]);
    let (table, _, _) = Driver::rings(0);
    driver.header(0, 0);
    driver.describe(table, 0, HEADER, 16, NEXT, 1);
    driver.describe(table, 1, DATA, 512, NEXT | WRITE, 2);
    driver.describe(table, 2, STATUS, 1, WRITE, 0);
    driver.offer(0, 0);
    point(&mut driver, reg::NOTIFY, 2);
    let _ = driver.device.config_write(window + 16, &[0, 0]);
    assert_eq!(driver.memory.get(STATUS, 1), [0xee]);
    driver.device.settle(&driver.memory);
    assert_eq!(driver.memory.get(STATUS, 1), [0]);
    assert_eq!(driver.memory.get(DATA, 512), pattern(512));
}

#[test]
fn a_function_level_reset_forgets_the_driver_but_not_the_disk() {
    let mut driver = Driver::running(MemoryDisk::new(4096), 0);
    driver.enable_msi_x(2);
    driver.memory.put(DATA, &pattern(512));
    assert_eq!(driver.request(1, 0, 512, false).0, 0);
    let at = driver.device.config().express_at().unwrap() + 8;
    let _ = driver.device.config_write(at, &0x8000u16.to_le_bytes());
    assert_eq!(driver.device.status(), 0);
    assert!(!driver.device.config().bus_master());
    let mut row = [0; 4];
    driver
        .device
        .bar_read(0, reg::MSI_X_TABLE + msix::ENTRY_CONTROL, &mut row);
    assert_eq!(row, [1, 0, 0, 0], "masked again");
    let mut back = [0; 512];
    driver.device.disk_mut().read_at(0, &mut back).unwrap();
    assert_eq!(back.to_vec(), pattern(512));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a driver writes, wherever its rings point, the device answers and comes back.
    #[test]
    fn a_hostile_driver_gets_an_end_and_no_panic(
        steps in prop::collection::vec((0u8..8, 0u64..0x1_0200, any::<u64>(), 0usize..5), 1..60),
        descriptors in prop::collection::vec((0u64..0x6_0000, any::<u32>(), any::<u16>(), 0u16..10), 0..24),
        heads in prop::collection::vec(0u16..12, 0..16),
    ) {
        let mut driver = Driver::running(MemoryDisk::new(8192), EVENT_IDX | INDIRECT);
        driver.enable_msi_x(2);
        let (table, _, _) = Driver::rings(0);
        for (index, (at, len, flags, next)) in descriptors.iter().enumerate() {
            let len = if len % 3 == 0 { *len } else { len % 0x2000 };
            driver.describe(table, index as u16, *at, len, flags % 8, *next);
        }
        driver.header(1, 0);
        for head in heads {
            driver.offer(0, head);
        }
        driver.kick(0);
        for (what, at, value, width) in steps {
            let width = [1, 2, 4, 8, 3][width];
            match what {
                0..=2 => {
                    let at = if at % 2 == 0 { at % 0x40 } else { at };
                    driver.write(at, &value.to_le_bytes()[..width]);
                }
                3 => { driver.read(at, width); }
                4 => { let _ = driver.device.config_write((at % 0x1100) as u16, &value.to_le_bytes()[..width]); }
                5 => { let mut bytes = [0; 8]; driver.device.config_read((at % 0x1100) as u16, &mut bytes[..width]); }
                6 => driver.kick(0),
                _ => driver.memory.put(at, &value.to_le_bytes()),
            }
            driver.device.settle(&driver.memory);
        }
    }
}
