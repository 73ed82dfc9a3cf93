//! A virtio queue of rust-vmm behind the unit.
#![allow(clippy::expect_used, reason = "helpers of tests")]

mod common;

use common::{DOMAIN, Guest, RW, device};
use iommu_testkit::raw::descriptor;
use iommu_types::{HostPhys, SystemMemory};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// Where the driver of the guest maps its ring and its buffers: neighbours for the device, apart in memory.
const RING: u64 = 0x8000_0000;
const RING_PHYS: u64 = 0x40_0000;
const BUFFER: u64 = 0x9000_0000;
const BUFFER_PHYS: [u64; 2] = [0x55_0000, 0x47_0000];

const WRITE: u16 = 2;
const NEXT: u16 = 1;

/// The driver's side, by physical address: descriptors at 0, available ring at 1000h, used ring at 2000h.
struct Driver<'g>(&'g Guest);

impl Driver<'_> {
    fn put(&self, at: u64, bytes: &[u8]) {
        self.0
            .bus()
            .write(HostPhys::new(RING_PHYS + at), bytes)
            .expect("memory");
    }

    fn descriptor(&self, index: u64, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(index * 16, &bytes);
    }

    fn offer(&self, slot: u64, head: u16) {
        self.put(0x1000 + 4 + slot * 2, &head.to_le_bytes());
        self.put(0x1000 + 2, &u16::try_from(slot + 1).expect("small").to_le_bytes());
    }

    fn used(&self) -> u16 {
        let mut bytes = [0; 2];
        self.0
            .bus()
            .read(HostPhys::new(RING_PHYS + 0x2000 + 2), &mut bytes)
            .expect("memory");
        u16::from_le_bytes(bytes)
    }
}

fn queue() -> Queue {
    let mut queue = Queue::new(16).expect("a power of two");
    queue.set_size(16);
    queue.set_desc_table_address(Some(0x8000_0000), Some(0));
    queue.set_avail_ring_address(Some(0x8000_1000), Some(0));
    queue.set_used_ring_address(Some(0x8000_2000), Some(0));
    queue.set_ready(true);
    queue
}

fn guest() -> Guest {
    let mut guest = Guest::new();
    for page in 0..3 {
        guest.map(RING + page * 0x1000, RING_PHYS + page * 0x1000, 1, RW);
    }
    for (page, phys) in (0..).zip(BUFFER_PHYS) {
        guest.map(BUFFER + page * 0x1000, phys, 1, RW);
    }
    guest
}

#[test]
fn a_queue_serves_requests_whose_ring_and_buffers_are_iovas() {
    let guest = guest();
    let driver = Driver(&guest);
    // A request of 16 bytes and an answer that crosses into a page elsewhere.
    driver.descriptor(0, BUFFER + 0x100, 16, NEXT, 1);
    driver.descriptor(1, BUFFER + 0xF80, 0x100, WRITE, 0);
    driver.offer(0, 0);
    guest
        .bus()
        .write(HostPhys::new(BUFFER_PHYS[0] + 0x100), b"sixteen bytes!!!")
        .expect("memory");

    let mut queue = queue();
    guest.unit.section(device(), |dma| {
        assert!(queue.is_valid(dma));
        let chain = queue.pop_descriptor_chain(dma).expect("a request");
        let head = chain.head_index();
        let mut request = Vec::new();
        let mut answered = 0;
        for part in chain {
            let len = usize::try_from(part.len()).expect("small");
            if part.is_write_only() {
                dma.write_slice(&vec![0xA5; len], part.addr()).expect("mapped");
                answered += part.len();
            } else {
                request.resize(len, 0);
                dma.read_slice(&mut request, part.addr()).expect("mapped");
            }
        }
        assert_eq!(request, b"sixteen bytes!!!");
        queue.add_used(dma, head, answered).expect("mapped");
        assert!(queue.pop_descriptor_chain(dma).is_none());
    });

    assert_eq!(driver.used(), 1);
    let mut tail = [0; 0x81];
    guest
        .bus()
        .read(HostPhys::new(BUFFER_PHYS[1]), &mut tail)
        .expect("memory");
    assert!(tail[..0x80].iter().all(|byte| *byte == 0xA5) && tail[0x80] == 0);
    assert_eq!(guest.unit.counters().blocked, 0);
}

#[test]
fn reader_and_writer_of_virtio_queue_work_in_a_section() {
    use std::io::{Read, Write};
    let guest = guest();
    let driver = Driver(&guest);
    driver.descriptor(0, BUFFER, 8, NEXT, 1);
    driver.descriptor(1, BUFFER + 0xFFC, 8, WRITE, 0);
    driver.offer(0, 0);
    let mut queue = queue();
    guest.unit.section(device(), |dma| {
        let chain = queue.pop_descriptor_chain(dma).expect("a request");
        let mut word = [1; 8];
        chain
            .clone()
            .reader(dma)
            .expect("mapped")
            .read_exact(&mut word)
            .expect("8 bytes");
        chain.writer(dma).expect("mapped").write_all(&[7; 8]).expect("8 bytes");
    });
    let mut word = [0; 4];
    guest
        .unit
        .section(device(), |dma| dma.read_slice(&mut word, GuestAddress(BUFFER + 0x1000)))
        .expect("mapped");
    assert_eq!(word, [7; 4]);
}

#[test]
fn a_ring_that_is_unmapped_is_a_fault_and_not_a_read_of_the_old_page() {
    let mut guest = guest();
    Driver(&guest).offer(0, 0);
    let mut queue = queue();
    guest.map(RING + 0x1000, 0, 1, 0);
    guest.invalidate(descriptor::iotlb_pages(DOMAIN, RING + 0x1000, 0, true), 1);
    guest.unit.section(device(), |dma| {
        assert!(!queue.is_valid(dma));
        assert!(queue.pop_descriptor_chain(dma).is_none());
    });
    assert!(guest.unit.counters().faults_recorded > 0);
}
