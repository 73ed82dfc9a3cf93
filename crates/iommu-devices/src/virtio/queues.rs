//! What every virtio function has: features, status, queues, interrupts. Virtio §4.1.4.3 (Common Configuration
//! Structure Layout), §3.1 (Device Initialization).

use std::cell::Cell;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::registers::{self, common};
use crate::msi_x::MsiXTable;

/// One feature, by its bit number.
pub(super) const fn feature(bit: u32) -> u64 {
    1 << bit
}

/// A status bit as the 8-bit register has it.
fn status(bit: u32) -> u8 {
    u8::try_from(bit).unwrap_or_default()
}

/// A queue as the driver describes it.
#[derive(Debug)]
pub(super) struct QueueRegisters {
    size: u16,
    pub(super) vector: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    /// Made when the driver enables the queue.
    pub(super) ring: Option<Queue>,
}

/// Register state of the transport.
#[derive(Debug)]
pub(super) struct Queues {
    offered: u64,
    require_access_platform: bool,
    max_size: u16,
    accepted: u64,
    device_select: u32,
    driver_select: u32,
    status: u8,
    select: u16,
    config_vector: u16,
    pub(super) each: Vec<QueueRegisters>,
    /// A read clears it, and reads through the configuration window do not have the function mutably.
    isr: Cell<u8>,
    pub(super) messages: MsiXTable,
}

/// What a write to the common configuration set in motion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Stored,
    /// The driver wrote 0 to the status register.
    Reset,
    /// The driver described a queue that cannot be.
    Broken,
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}

impl Queues {
    pub(super) fn new(offered: u64, require_access_platform: bool, queues: u16, max_size: u16) -> Self {
        let each = || QueueRegisters {
            size: max_size,
            vector: common::NO_VECTOR,
            descriptors: 0,
            driver: 0,
            device: 0,
            ring: None,
        };
        Self {
            offered,
            require_access_platform,
            max_size,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            status: 0,
            select: 0,
            config_vector: common::NO_VECTOR,
            each: (0..queues).map(|_| each()).collect(),
            isr: Cell::new(0),
            // One for each queue and one for changes of the configuration.
            messages: MsiXTable::new(queues + 1),
        }
    }

    /// What a status of 0 clears: everything but the MSI-X table, which belongs to PCI.
    pub(super) fn reset(&mut self) {
        let queues = u16::try_from(self.each.len()).unwrap_or(0);
        let fresh = Self::new(self.offered, self.require_access_platform, queues, self.max_size);
        let messages = std::mem::replace(&mut self.messages, MsiXTable::new(0));
        *self = fresh;
        self.messages = messages;
    }

    /// Whether the driver has finished setting up and nothing is wrong.
    pub(super) fn runs(&self) -> bool {
        let bad = status(VIRTIO_CONFIG_S_NEEDS_RESET) | status(VIRTIO_CONFIG_S_FAILED);
        self.status & (status(VIRTIO_CONFIG_S_DRIVER_OK) | bad) == status(VIRTIO_CONFIG_S_DRIVER_OK)
    }

    pub(super) fn accepted(&self, bit: u32) -> bool {
        self.accepted & feature(bit) != 0
    }

    pub(super) const fn status(&self) -> u8 {
        self.status
    }

    /// Nothing is done for this driver any more until it resets the device. Virtio §2.1 (Device Status Field).
    pub(super) fn break_down(&mut self) {
        self.status |= status(VIRTIO_CONFIG_S_NEEDS_RESET);
    }

    pub(super) fn isr(&self) -> u8 {
        self.isr.get()
    }

    /// Reads the interrupt status, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.replace(0)
    }

    /// Notes a reason to interrupt, and the vector that goes with it.
    pub(super) fn raise(&mut self, why: u8, vector: u16) {
        self.isr.set(self.isr.get() | why);
        if vector != common::NO_VECTOR {
            self.messages.raise(vector);
        }
    }

    /// Notes that the status changed by itself.
    pub(super) fn raise_config(&mut self) {
        self.raise(registers::ISR_CONFIG, self.config_vector);
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.each.get(usize::from(self.select))
    }

    /// The structure's bytes as they read now.
    fn image(&self) -> [u8; 56] {
        let mut image = [0; 56];
        let mut put = |at: u64, value: &[u8]| {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            if let Some(place) = image.get_mut(at..at.saturating_add(value.len())) {
                place.copy_from_slice(value);
            }
        };
        // A select past the second word shows no features.
        let word = |features: u64, select: u32| match select {
            0 => low(features),
            1 => low(features >> 32),
            _ => 0,
        };
        put(common::DEVICE_FEATURE_SELECT, &self.device_select.to_le_bytes());
        put(
            common::DEVICE_FEATURE,
            &word(self.offered, self.device_select).to_le_bytes(),
        );
        put(common::DRIVER_FEATURE_SELECT, &self.driver_select.to_le_bytes());
        put(
            common::DRIVER_FEATURE,
            &word(self.accepted, self.driver_select).to_le_bytes(),
        );
        put(common::CONFIG_VECTOR, &self.config_vector.to_le_bytes());
        let queues = u16::try_from(self.each.len()).unwrap_or(0);
        put(common::QUEUES, &queues.to_le_bytes());
        put(common::STATUS, &[self.status]);
        put(common::QUEUE_SELECT, &self.select.to_le_bytes());
        // A queue that does not exist has size 0.
        if let Some(queue) = self.selected() {
            put(common::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(common::QUEUE_VECTOR, &queue.vector.to_le_bytes());
            put(common::QUEUE_ENABLE, &u16::from(queue.ring.is_some()).to_le_bytes());
            put(common::QUEUE_NOTIFY, &self.select.to_le_bytes());
            put(common::QUEUE_DESCRIPTORS, &queue.descriptors.to_le_bytes());
            put(common::QUEUE_DRIVER, &queue.driver.to_le_bytes());
            put(common::QUEUE_DEVICE, &queue.device.to_le_bytes());
        }
        image
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        let image = self.image();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(image.len());
        let here = image.get(start..).unwrap_or_default();
        let n = here.len().min(into.len());
        let (inside, outside) = into.split_at_mut(n);
        inside.copy_from_slice(here.get(..n).unwrap_or_default());
        outside.fill(0xff);
    }

    /// Writes a register in its own width; the 64-bit addresses also by halves. Others are dropped.
    pub(super) fn write(&mut self, offset: u64, from: &[u8]) -> Outcome {
        let mut bytes = [0; 8];
        match bytes.get_mut(..from.len()) {
            Some(place) => place.copy_from_slice(from),
            None => return Outcome::Stored,
        }
        let value = u64::from_le_bytes(bytes);
        let word = u16::try_from(value & u64::from(u16::MAX)).unwrap_or_default();
        match (offset, from) {
            (common::STATUS, [value]) => return self.set_status(*value),
            (common::DEVICE_FEATURE_SELECT, [_, _, _, _]) => self.device_select = low(value),
            (common::DRIVER_FEATURE_SELECT, [_, _, _, _]) => self.driver_select = low(value),
            (common::DRIVER_FEATURE, [_, _, _, _]) => self.accept(low(value)),
            (common::CONFIG_VECTOR, [_, _]) => self.config_vector = self.vector(word),
            (common::QUEUE_SELECT, [_, _]) => self.select = word,
            _ => return self.write_queue(offset, from, value, word),
        }
        Outcome::Stored
    }

    /// Features can be changed until the device has agreed.
    fn accept(&mut self, word: u32) {
        if self.status & status(VIRTIO_CONFIG_S_FEATURES_OK) != 0 {
            return;
        }
        let word = u64::from(word);
        match self.driver_select {
            0 => self.accepted = self.accepted >> 32 << 32 | word,
            1 => self.accepted = word << 32 | self.accepted & u64::from(u32::MAX),
            _ => {}
        }
    }

    /// A vector that does not exist reads back as none, which tells the driver.
    fn vector(&self, wanted: u16) -> u16 {
        if wanted < self.messages.vectors() {
            wanted
        } else {
            common::NO_VECTOR
        }
    }

    fn write_queue(&mut self, offset: u64, from: &[u8], value: u64, word: u16) -> Outcome {
        let vector = self.vector(word);
        let event_idx = self.accepted(VIRTIO_RING_F_EVENT_IDX);
        let max_size = self.max_size;
        let Some(queue) = self.each.get_mut(usize::from(self.select)) else {
            return Outcome::Stored;
        };
        match (offset, from) {
            (common::QUEUE_VECTOR, [_, _]) => queue.vector = vector,
            // A queue that is in use keeps its shape until the device is reset.
            _ if queue.ring.is_some() => {}
            (common::QUEUE_SIZE, [_, _]) => queue.size = word,
            (common::QUEUE_ENABLE, [_, _]) if word == 1 => match queue.build(max_size, event_idx) {
                Some(ring) => queue.ring = Some(ring),
                None => return Outcome::Broken,
            },
            (common::QUEUE_DESCRIPTORS.., _) => queue.set_address(offset, from.len(), value),
            _ => {}
        }
        Outcome::Stored
    }

    fn set_status(&mut self, value: u8) -> Outcome {
        if value == 0 {
            return Outcome::Reset;
        }
        let features_ok = status(VIRTIO_CONFIG_S_FEATURES_OK);
        let needs_reset = status(VIRTIO_CONFIG_S_NEEDS_RESET);
        // The driver adds bits; it takes none back and cannot clear what the device says.
        let mut next = self.status | (value & !needs_reset);
        if next & features_ok != 0 && self.status & features_ok == 0 && !self.agrees() {
            next &= !features_ok;
        }
        // Nothing is driven before features are agreed on.
        if next & features_ok == 0 {
            next &= !status(VIRTIO_CONFIG_S_DRIVER_OK);
        }
        self.status = next;
        Outcome::Stored
    }

    fn agrees(&self) -> bool {
        let platform = self.accepted(VIRTIO_F_ACCESS_PLATFORM) || !self.require_access_platform;
        self.accepted & !self.offered == 0 && self.accepted(VIRTIO_F_VERSION_1) && platform
    }
}

impl QueueRegisters {
    fn set_address(&mut self, offset: u64, width: usize, value: u64) {
        let (base, field) = match offset & !7 {
            common::QUEUE_DESCRIPTORS => (common::QUEUE_DESCRIPTORS, &mut self.descriptors),
            common::QUEUE_DRIVER => (common::QUEUE_DRIVER, &mut self.driver),
            common::QUEUE_DEVICE => (common::QUEUE_DEVICE, &mut self.device),
            _ => return,
        };
        match (offset - base, width) {
            (0, 8) => *field = value,
            (0, 4) => *field = *field >> 32 << 32 | value,
            (4, 4) => *field = value << 32 | *field & u64::from(u32::MAX),
            _ => {}
        }
    }

    /// The ring, if size and addresses are possible. An available ring at address 0 is not (`virtio-queue` takes 0 for
    /// "not set").
    fn build(&self, max_size: u16, event_idx: bool) -> Option<Queue> {
        let mut ring = Queue::new(max_size).ok()?;
        ring.try_set_size(self.size).ok()?;
        ring.try_set_desc_table_address(GuestAddress(self.descriptors)).ok()?;
        ring.try_set_avail_ring_address(GuestAddress(self.driver)).ok()?;
        ring.try_set_used_ring_address(GuestAddress(self.device)).ok()?;
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        (self.driver != 0).then_some(ring)
    }
}
