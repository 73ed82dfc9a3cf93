//! Attacks on the remapping unit.

use iommu_types::Registers;
use vtd_spec::register::{GlobalCommand, offset};

use super::random::Random;
use crate::hardware::{Playground, Window};

/// Bytes of a page and of a word.
const PAGE: u64 = 0x1000;
const WORD: u64 = 8;

/// The registers that drivers use; others are hit by accesses anywhere.
const REGISTERS: [u32; 24] = [
    offset::GCMD,
    offset::RTADDR,
    offset::CCMD,
    offset::FSTS,
    offset::FECTL,
    offset::FEDATA,
    offset::FEADDR,
    offset::FEUADDR,
    offset::PMEN,
    offset::PLMBASE,
    offset::IQH,
    offset::IQT,
    offset::IQA,
    offset::ICS,
    offset::IECTL,
    offset::IEADDR,
    offset::IQERCD,
    offset::IRTA,
    offset::PQH,
    offset::PQT,
    offset::PQA,
    offset::PRS,
    offset::PECTL,
    offset::VCMD,
];

/// The low bits of entries that get far in a walk: present or readable and writable, some with the bits beside.
const USEFUL: [u64; 8] = [0x1, 0x3, 0x3, 0x7, 0x9, 0x23, 0x67, 0x83];
/// Both halves of a context entry in legacy mode that passes requests through: present, type pass-through, width of four
/// levels, domain 1 (VT-d §9.3).
const PASS_THROUGH: [u64; 2] = [0x9, 0x102];
/// The same with tables of four levels: present, type second-stage.
const WITH_TABLES: [u64; 2] = [0x1, 0x102];
/// Descriptors that make the unit forget everything: contexts, PASIDs, translations (VT-d §6.5.2).
const FORGET: [u64; 6] = [0x11, 0, 0x37, 0, 0x12, 0];
/// The queue's tail behind them.
const FORGET_TAIL: u64 = 0x30;
/// Numbers of descriptors that get far: they are 1 to 9 so far.
const KINDS: u64 = 12;
/// Where a descriptor's flags and numbers are in its lower word.
const FLAGS: u64 = 0xffff_0070;
/// The status that a wait descriptor writes.
const STATUS: u64 = 0xffff_ffff_0000_0000;
/// The fault event's registers get an interrupt message now and then: vector 32 for the first processor.
const MESSAGE: (u32, u32) = (0xfee0_0000, 32);

/// The pages that are filled.
pub(super) fn pages() -> impl Iterator<Item = u64> {
    (0..Playground::LEN / PAGE).map(|index| Playground::FIRST + index * PAGE)
}

/// Fills a page with entries: as a table of any kind it leads on to other pages, mostly.
pub(super) fn fill_with_entries(page: u64, random: &mut Random) {
    for word in 0..PAGE / WORD {
        let entry = match random.below(8) {
            0 => random.word(),
            1 => 0,
            // The upper half of a context entry: an address width and a domain.
            2 => random.below(1 << 16) << 8 | random.below(4),
            _ => random.address() & !(PAGE - 1) | random.one(USEFUL),
        };
        Playground::write(page + word * WORD, entry);
    }
}

/// Fills a page with descriptors.
fn fill_with_descriptors(page: u64, random: &mut Random) {
    for descriptor in 0..PAGE / (2 * WORD) {
        let kind = random.below(KINDS);
        let (low, high) = match random.below(4) {
            // All that is reserved is zero, mostly.
            0 | 1 => (kind | random.raw() & FLAGS, random.address() & !(PAGE - 1)),
            2 => (kind | random.raw() & (STATUS | FLAGS), random.address() & !3),
            _ => (random.word(), random.word()),
        };
        let at = page + descriptor * 2 * WORD;
        Playground::write(at, low);
        Playground::write(at + WORD, high);
    }
}

/// The unit.
pub(super) struct RemappingUnit {
    pub(super) registers: Window,
    /// The page of its queue, as far as this kernel set it.
    queue: u64,
}

impl RemappingUnit {
    pub(super) const fn new(registers: Window) -> Self {
        Self {
            registers,
            queue: Playground::FIRST,
        }
    }

    /// Tables that work, so that what comes behind them is reached too: every function is passed through, or has a window
    /// whose addresses all lead to some page of random contents. Everything else is forgotten by
    /// the descriptors of a queue.
    pub(super) fn set_working_tables(&mut self, random: &mut Random) {
        let [queue, root, contexts, tables @ ..] = [(); 7].map(|()| random.page());
        let words = || (0..PAGE / WORD).map(|word| word * WORD);
        let mut page = 0;
        let mut next = |random: &mut Random| {
            // The same offset in another page, mostly.
            page += PAGE;
            Playground::FIRST
                + if random.once_in(16) {
                    random.below(Playground::LEN)
                } else {
                    page % Playground::LEN
                }
        };
        let [low, high] = if random.once_in(2) { PASS_THROUGH } else { WITH_TABLES };
        let [top, ..] = tables;
        for at in words().step_by(2) {
            Playground::write(root + at, contexts | 1);
            Playground::write(root + at + WORD, 0);
            Playground::write(contexts + at, if low == 1 { top | low } else { low });
            Playground::write(contexts + at + WORD, high);
        }
        for (table, below) in tables.iter().zip(tables.iter().skip(1)) {
            for at in words() {
                Playground::write(table + at, below | 0x3);
            }
        }
        let [.., last] = tables;
        for at in words() {
            Playground::write(last + at, next(random) & !(PAGE - 1) | 0x3);
        }
        let registers = self.registers;
        for (at, word) in (0..).step_by(8).zip(FORGET) {
            Playground::write(queue + at, word);
        }
        let off = GlobalCommand::DEFAULT;
        registers.write32(offset::GCMD, off.raw_value());
        registers.write32(offset::FSTS, u32::MAX);
        registers.write64(offset::RTADDR, root);
        registers.write32(offset::GCMD, off.with_srtp(true).raw_value());
        registers.write64(offset::IQA, queue);
        self.queue = queue;
        registers.write32(offset::GCMD, off.with_qie(true).raw_value());
        registers.write64(offset::IQT, FORGET_TAIL);
        registers.write32(offset::GCMD, off.with_qie(true).with_te(!random.once_in(3)).raw_value());
    }

    /// New tables of random entries.
    pub(super) fn set_tables(&self, random: &mut Random) {
        for _ in 0..random.below(4) {
            fill_with_entries(random.page(), random);
        }
        // The low bits are the mode.
        let root = random.address() & !(PAGE - 1) | random.below(4) << 10;
        self.registers.write64(offset::RTADDR, root);
        let command = self.lasting(random).with_srtp(true);
        self.registers.write32(offset::GCMD, command.raw_value());
    }

    /// A queue of random descriptors.
    pub(super) fn set_queue(&mut self, random: &mut Random) {
        self.queue = random.page();
        fill_with_descriptors(self.queue, random);
        // The low bits are the length and the width of descriptors.
        let low = random.one([0, 0, 1, 7]) | random.one([0, 0, 1 << 11]);
        let place = if random.once_in(8) {
            random.address() & !(PAGE - 1)
        } else {
            self.queue
        };
        self.registers.write64(offset::IQA, place | low);
        let command = self.lasting(random).with_qie(!random.once_in(8));
        self.registers.write32(offset::GCMD, command.raw_value());
    }

    /// Moves the queue's tail.
    pub(super) fn submit(&self, random: &mut Random) {
        if random.once_in(4) {
            fill_with_descriptors(self.queue, random);
        }
        let tail = match random.below(8) {
            0 => random.value(),
            _ => random.below(PAGE / 16) * 16,
        };
        self.registers.write64(offset::IQT, tail);
        // An error that is not cleared would end all that comes.
        if random.once_in(2) {
            self.registers.write32(offset::FSTS, u32::MAX);
        }
    }

    /// A global command.
    pub(super) fn command(&self, random: &mut Random) {
        let command = match random.below(4) {
            0 => random.word32(),
            _ => self.lasting(random).raw_value(),
        };
        self.registers.write32(offset::GCMD, command);
    }

    /// A register that drivers use.
    pub(super) fn registers(&self, random: &mut Random) {
        if random.once_in(8) {
            let (address, data) = MESSAGE;
            self.registers.write32(offset::FEADDR, address);
            self.registers.write32(offset::FEUADDR, 0);
            self.registers.write32(offset::FEDATA, data);
            self.registers.write32(offset::FECTL, 0);
        } else {
            let at = random.one(REGISTERS);
            random.access_at(self.registers, at);
        }
    }

    /// Lasting bits of the global command, mostly on.
    fn lasting(&self, random: &mut Random) -> GlobalCommand {
        GlobalCommand::DEFAULT
            .with_te(!random.once_in(3))
            .with_qie(!random.once_in(8))
            .with_ire(random.once_in(8))
    }
}
