//! Attacks on the disk, the DMA engine, and on configuration spaces.

use iommu_types::Registers;

use super::random::Random;
use super::unit::fill_with_entries;
use crate::edu;
use crate::hardware::{Playground, Window};
use crate::pci::Function;

/// Where firmware puts configuration spaces in QEMU's q35 machine, 4 KiB for each function.
const SPACES: u64 = 0xb000_0000;
const SPACE_LEN: u32 = 0x1000;
/// The command register, and memory space and bus mastering in it.
const COMMAND: u32 = 0x04;
const MEMORY_AND_MASTER: u16 = 0x6;
/// Base address registers and that of the expansion ROM are left alone: the functions have to stay within reach.
const ADDRESSES: [core::ops::Range<u32>; 2] = [0x10..0x28, 0x30..0x34];
/// Where most registers are.
const CLASSIC_LEN: u32 = 0x100;

/// A configuration space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config(Window);

impl Config {
    pub(super) fn of(function: Function) -> Option<Self> {
        let at = SPACES + u64::from(function.0.raw()) * u64::from(SPACE_LEN);
        Window::new(at, SPACE_LEN).map(Self)
    }

    /// Turns memory decoding and bus mastering on, if they are not.
    pub(super) fn enable(self) {
        let command = self.0.any_read16(COMMAND);
        if command & MEMORY_AND_MASTER != MEMORY_AND_MASTER {
            self.0.any_write16(COMMAND, command | MEMORY_AND_MASTER);
        }
    }

    /// Reads or writes somewhere.
    pub(super) fn attack(self, random: &mut Random) {
        let end = random.one([CLASSIC_LEN, CLASSIC_LEN, SPACE_LEN]);
        let offset = random.below32(end);
        // The widest access reaches seven bytes further.
        let hit = offset & !7..offset + 8;
        if ADDRESSES
            .iter()
            .all(|left| hit.end <= left.start || hit.start >= left.end)
        {
            random.access_at(self.0, offset);
        }
    }
}

/// Registers of the common configuration (virtio 1.2 §4.1.4.3).
mod common {
    pub(super) const DRIVER_FEATURE_SELECT: u32 = 8;
    pub(super) const DEVICE_FEATURE_SELECT: u32 = 0;
    pub(super) const DEVICE_FEATURE: u32 = 4;
    pub(super) const DRIVER_FEATURE: u32 = 12;
    pub(super) const CONFIG_VECTOR: u32 = 16;
    pub(super) const STATUS: u32 = 20;
    pub(super) const QUEUE_SELECT: u32 = 22;
    pub(super) const QUEUE_SIZE: u32 = 24;
    pub(super) const QUEUE_VECTOR: u32 = 26;
    pub(super) const QUEUE_ENABLE: u32 = 28;
    pub(super) const QUEUE_DESCRIPTORS: u32 = 32;
    pub(super) const QUEUE_DRIVER: u32 = 40;
    pub(super) const QUEUE_DEVICE: u32 = 48;
    pub(super) const LEN: u32 = 56;
}

/// Device status: acknowledged and with a driver, features chosen, running (virtio 1.2 §2.1).
const STATUS: [u8; 3] = [0x3, 0xb, 0xf];
/// Where queues are notified in the disk's registers.
const NOTIFY: u32 = 0x3000;
/// Bytes of a descriptor of a ring.
const DESCRIPTOR: u64 = 16;
/// Numbers of a request's kinds: read, write, flush, identification, discard, zeroes, secure erase (virtio 1.2 §5.2.6).
const KINDS: [u64; 7] = [0, 1, 4, 8, 11, 13, 14];
/// Flags of a descriptor: continued, written by the device, a table of others (virtio 1.2 §2.7.5).
const NEXT: u64 = 1;
const WRITE: u64 = 2;

/// The disk.
pub(super) struct Disk {
    pub(super) registers: Window,
    common: u32,
    /// Pages of descriptors and of the ring of what is available.
    rings: [u64; 2],
    entries: u16,
    available: u16,
}

impl Disk {
    pub(super) const fn new(registers: Window, common: u32) -> Self {
        Self {
            registers,
            common,
            rings: [Playground::FIRST, Playground::FIRST + 0x1000],
            entries: 1,
            available: 0,
        }
    }

    /// A reset, and a queue in random places.
    pub(super) fn set_up(&mut self, random: &mut Random) {
        let at = |register| self.common + register;
        let registers = self.registers;
        let [known, chosen, running] = STATUS;
        registers.any_write8(at(common::STATUS), 0);
        registers.any_write8(at(common::STATUS), known);
        for half in 0..2 {
            registers.write32(at(common::DEVICE_FEATURE_SELECT), half);
            registers.write32(at(common::DRIVER_FEATURE_SELECT), half);
            let offered = registers.read32(at(common::DEVICE_FEATURE));
            let taken = if random.once_in(4) { random.word32() } else { offered };
            registers.write32(at(common::DRIVER_FEATURE), taken);
        }
        registers.any_write8(at(common::STATUS), chosen);
        registers.any_write16(at(common::CONFIG_VECTOR), random.one([0, 1, u16::MAX]));
        registers.any_write16(at(common::QUEUE_SELECT), random.one([0, 0, 0, 1, 7]));
        self.entries = random.one([1, 4, 16, 64, 64, 256]);
        let size = if random.once_in(8) {
            random.word16()
        } else {
            self.entries
        };
        registers.any_write16(at(common::QUEUE_SIZE), size);
        registers.any_write16(at(common::QUEUE_VECTOR), random.one([0, 1, 2, u16::MAX]));
        self.rings = [random.page(), random.page()];
        let [descriptors, driver] = self.rings;
        let device = if random.once_in(4) {
            random.address()
        } else {
            random.page()
        };
        let descriptors = if random.once_in(8) {
            random.address()
        } else {
            descriptors
        };
        registers.any_write64(at(common::QUEUE_DESCRIPTORS), descriptors);
        registers.any_write64(at(common::QUEUE_DRIVER), driver);
        registers.any_write64(at(common::QUEUE_DEVICE), device);
        registers.any_write16(at(common::QUEUE_ENABLE), 1);
        registers.any_write8(at(common::STATUS), running);
        self.available = 0;
    }

    /// Any access to the common configuration.
    pub(super) fn registers(&self, random: &mut Random) {
        let offset = random.below32(common::LEN);
        random.access_at(self.registers, self.common + offset);
    }

    /// Fills the rings and notifies.
    pub(super) fn submit(&mut self, random: &mut Random) {
        let [descriptors, driver] = self.rings;
        let entries = u64::from(self.entries);
        if random.once_in(16) {
            fill_with_entries(random.one(self.rings), random);
        } else {
            for index in 0..entries.min(64) {
                let descriptor = Self::descriptor(index, entries, random);
                for (word, value) in [0, 8].into_iter().zip(descriptor) {
                    Playground::write(descriptors + index * DESCRIPTOR + word, value);
                }
            }
        }
        // Four numbers of 16 bits a word; the first word begins with flags and how many there are.
        let head = |random: &mut Random| match random.below(16) {
            0 => random.raw() & 0xffff,
            1 => random.below(entries),
            // Where requests begin.
            _ => random.below(entries) / 3 * 3,
        };
        // More than the ring holds are an error that ends the queue.
        let step = if random.once_in(16) {
            random.word16()
        } else {
            random.one([1, 1, 2, 4]).min(self.entries)
        };
        self.available = self.available.wrapping_add(step);
        for word in 1..=entries.div_ceil(4).min(64) {
            let heads = (0..4).fold(0, |heads, _| heads << 16 | head(random));
            Playground::write(driver + word * 8, heads);
        }
        let first = head(random) << 48 | head(random) << 32 | u64::from(self.available) << 16 | random.below(2);
        Playground::write(driver, first);
        self.registers.any_write16(NOTIFY, random.one([0, 0, 0, 1]));
        if random.once_in(64) {
            self.set_up(random);
        }
    }

    /// A descriptor: mostly a part of a request as it should be.
    fn descriptor(index: u64, entries: u64, random: &mut Random) -> [u64; 2] {
        let next = if random.once_in(8) {
            random.below(entries)
        } else {
            (index + 1) % entries
        };
        let place = random.address();
        // Requests of three parts: a header, data, a status.
        let (len, flags) = match index % 3 {
            _ if random.once_in(8) => (random.raw() & 0xffff_ffff, random.below(8)),
            0 => {
                Playground::write(place & !7, random.one(KINDS));
                Playground::write((place & !7) + 8, random.one([0, 1, 0xffff, u64::MAX]));
                (16, NEXT)
            }
            1 => (random.below(256) * 512, NEXT | random.one([0, WRITE])),
            _ => (1, WRITE),
        };
        let place = if index.is_multiple_of(3) { place & !7 } else { place };
        [place, next << 48 | flags << 32 | len]
    }
}

/// The DMA engine.
pub(super) struct Engine {
    pub(super) registers: Window,
}

impl Engine {
    pub(super) const fn new(registers: Window) -> Self {
        Self { registers }
    }

    /// A transfer: mostly between its buffer and a random address.
    pub(super) fn transfer(&self, random: &mut Random) {
        let place = |random: &mut Random| match random.below(8) {
            0..=3 => edu::BUFFER + random.below(64) * 8,
            _ => random.address(),
        };
        let (source, destination) = (place(random), place(random));
        let count = match random.below(8) {
            0 => random.word(),
            1 => random.below(1 << 20),
            _ => random.below(0x1001),
        };
        let command = if random.once_in(8) {
            random.word()
        } else {
            1 | random.below(8)
        };
        self.registers.any_write64(edu::SOURCE, source);
        self.registers.any_write64(edu::DESTINATION, destination);
        self.registers.any_write64(edu::COUNT, count);
        self.registers.any_write64(edu::COMMAND, command);
        _ = self.registers.any_read32(edu::COMMAND);
    }
}
