//! Registers: reset values, what can be written, global commands, queue errors, events.

use e2e::differential::Twin;
use e2e::qtest::QtestError;
use vtd_spec::register::offset;

use iommu_testkit::Random;

use crate::trio::{QUEUE, ROOT, STATUS, Tally, Trio};

/// Every register of these units lies below.
const LAST: u32 = 0x230;
/// IOTLB_REG of these units.
const IOTLB: u32 = 0xf8;
/// FSTS.PFO.
const OVERFLOW: u32 = 1;
/// The descriptor that a program spoils and repairs.
const UNKNOWN_TYPE: u64 = 0xf;

/// One QEMU, from reset on.
struct Episode {
    trio: Trio,
    random: Random,
    /// What software believes GSTS to be.
    status: u32,
    /// An invalidation through registers was asked for while the queue was on.
    stuck: bool,
    tail: u64,
    waits: u64,
}

impl Episode {
    /// All registers of all three after `what`.
    fn compare(&mut self, what: &str) -> Result<(), QtestError> {
        for at in (0..LAST).step_by(4) {
            let trio = &mut self.trio;
            let [qemu, strict, alike] = [
                trio.qemu.register(at)?,
                trio.strict.register(at)?,
                trio.alike.register(at)?,
            ];
            trio.tally.registers += 1;
            assert_eq!(
                qemu, alike,
                "QEMU and the model in its profile: register {at:#x} after {what}"
            );
            if qemu == strict {
                continue;
            }
            let number = match at & !7 {
                offset::IQERCD => "D-17",
                offset::IQA => "D-20",
                offset::CCMD | IOTLB if self.stuck => "D-21",
                _ if at == offset::IEDATA => "E-13",
                _ if at == offset::FECTL && (qemu ^ strict) == 1 << 30 => "D-26",
                // The one requester has faulted again while its record was pending.
                _ if at == offset::FSTS && strict == qemu | OVERFLOW && trio.tally.dmas > 1 => "D-36",
                _ => panic!("QEMU {qemu:#x}, the specification {strict:#x}: register {at:#x} after {what}"),
            };
            trio.tally.deviates(number);
        }
        Ok(())
    }

    /// A global command with one change.
    fn command(&mut self, bits: u32) -> Result<String, QtestError> {
        let one_shot = bits & 0x4100_0000;
        self.status ^= bits & !one_shot;
        let value = self.status & 0x96ff_ffff | one_shot;
        self.trio.all(|twin| twin.set_register(offset::GCMD, value))?;
        Ok(format!("command {value:#x}"))
    }

    fn is_on(&self, bit: u32) -> bool {
        self.status >> bit & 1 == 1
    }

    /// Switches the queue, which was switched on just now, off and on again: without a wait QEMU does not let it go
    /// (D-18).
    fn let_the_queue_go(&mut self) -> Result<(), QtestError> {
        self.command(0x0400_0000)?;
        let trio = &mut self.trio;
        let [qemu, strict, alike] = [
            trio.qemu.register(offset::GSTS)?,
            trio.strict.register(offset::GSTS)?,
            trio.alike.register(offset::GSTS)?,
        ];
        assert_eq!(qemu, alike, "status after the queue was switched off without a wait");
        assert_eq!(strict >> 26 & 1, 0, "the specification: it is off");
        if qemu != strict {
            trio.tally.deviates("D-18");
        }
        self.command(0x0400_0000).map(drop)
    }

    /// Puts a descriptor at the tail.
    fn put(&mut self, words: [u64; 2]) -> Result<(), QtestError> {
        let at = QUEUE + self.tail;
        self.trio.write(at, words[0])?;
        self.trio.write(at + 8, words[1])?;
        self.tail = (self.tail + 16) % 0x1000;
        Ok(())
    }

    fn ring(&mut self) -> Result<(), QtestError> {
        let tail = self.tail;
        self.trio.all(|twin| twin.set_register64(offset::IQT, tail))
    }

    /// A wait with status write, or with interrupt.
    fn wait(&mut self) -> Result<(), QtestError> {
        self.waits += 1;
        let flags = self.random.pick([0x25, 0x65, 0x15]);
        self.put([self.waits << 32 | flags, STATUS])
    }

    /// A descriptor that stops the queue, and the way out of it.
    fn queue_error(&mut self) -> Result<String, QtestError> {
        let at = QUEUE + self.tail;
        let bad = self.random.pick([
            [UNKNOWN_TYPE, 0],
            [0x1, 0],
            [0x11 | 1 << 6, 0],
            [0x11, 1],
            [0x02, 0],
            [0x12 | 1 << 40, 0],
            [0x32, 19],
            [0x32, 1 << 11],
            [0x25, 1],
        ]);
        self.put(bad)?;
        self.wait()?;
        self.ring()?;
        self.compare(&format!("bad descriptor {bad:x?}"))?;
        self.trio.write(at, 0x11)?;
        self.trio.write(at + 8, 0)?;
        self.trio.all(|twin| twin.set_register(offset::FSTS, 0x10))?;
        let [qemu, strict] = [
            self.trio.qemu.register(offset::IQH)?,
            self.trio.strict.register(offset::IQH)?,
        ];
        if qemu != strict {
            // The specification: the queue goes on now.
            self.trio.tally.deviates("D-15");
        }
        self.ring()?;
        Ok(format!("recovery from descriptor {bad:x?}"))
    }

    /// Does one random thing; says what.
    fn step(&mut self) -> Result<String, QtestError> {
        let value = self.random.next();
        let low = u32::try_from(value & 0xffff_ffff).expect("32 bits");
        Ok(match self.random.below(16) {
            0..=2 => {
                let at = self.random.pick([
                    offset::FEDATA,
                    offset::FEADDR,
                    offset::FEUADDR,
                    offset::IEDATA,
                    offset::IEADDR,
                    offset::IEUADDR,
                    offset::VER,
                    offset::CAP,
                    offset::ECAP,
                    offset::GSTS,
                    offset::IQH,
                    offset::RTADDR + 4,
                ]);
                self.trio.all(|twin| twin.set_register(at, low))?;
                format!("write of {low:#x} to register {at:#x}")
            }
            3 => {
                let at = self.random.pick([offset::FECTL, offset::IECTL]);
                let mask = low & 0x8000_0000;
                self.trio.all(|twin| twin.set_register(at, mask))?;
                format!("write of {mask:#x} to register {at:#x}")
            }
            4 => {
                let value = value & 0xffff_ffff_f000;
                self.trio.all(|twin| twin.set_register64(offset::IRTA, value | 3))?;
                format!("IRTA {value:#x}")
            }
            5 => {
                self.trio.all(|twin| twin.set_register64(offset::RTADDR, ROOT))?;
                self.command(0x4000_0000)?
            }
            6 => self.command(0x0100_0000)?,
            7 if self.trio.qemu.register(offset::GSTS)? >> 30 & 1 == 1 => self.command(0x8000_0000)?,
            8 if self.trio.qemu.register(offset::GSTS)? >> 24 & 1 == 1 => self.command(0x0200_0000)?,
            9 if !self.is_on(26) => {
                self.tail = 0;
                self.trio.all(|twin| twin.set_register64(offset::IQT, 0))?;
                self.trio.all(|twin| twin.set_register64(offset::IQA, QUEUE))?;
                self.command(0x0400_0000)?;
                if self.random.once_in(3) {
                    self.let_the_queue_go()?;
                }
                self.wait()?;
                self.ring()?;
                "queue on and a wait".to_owned()
            }
            9 => self.command(0x0400_0000)?,
            10..=11 if self.is_on(26) => self.queue_error()?,
            12 if self.is_on(26) => {
                self.wait()?;
                self.ring()?;
                "wait".to_owned()
            }
            13 => {
                let at = self.random.pick([offset::ICS, offset::FSTS]);
                self.trio.all(|twin| twin.set_register(at, u32::MAX))?;
                format!("all ones to register {at:#x}")
            }
            14 if self.is_on(31) => {
                let iova = value & 0xf000;
                self.trio.tally.dmas += 1;
                self.trio.all(|twin| twin.dma_write(iova, 1))?;
                format!("DMA to {iova:#x}")
            }
            15 => {
                self.trio.all(|twin| twin.set_register(0x22c, 0x8000_0000))?;
                "F cleared".to_owned()
            }
            _ => {
                let (at, command) =
                    self.random
                        .pick([(offset::CCMD, 0xa << 60), (IOTLB, 0x9 << 60), (IOTLB, 0xa << 60)]);
                self.stuck |= self.is_on(26);
                self.trio.all(|twin| twin.set_register64(at, command))?;
                format!("command {command:#x} in register {at:#x}")
            }
        })
    }
}

/// Episodes of random steps, each from reset.
pub(crate) fn run(count: u32) -> Result<Option<Tally>, QtestError> {
    let mut random = Random(0x6c07_8965_27d4_eb2f);
    let mut tally = Tally::default();
    for _ in 0..(count / 50).clamp(4, 40) {
        let Some(mut trio) = Trio::start("registers", |_| Some("aw-bits=48,intremap=on,eim=off"))? else {
            return Ok(None);
        };
        trio.clear(ROOT)?;
        let mut episode = Episode {
            trio,
            // Two neighbours of the sequence would begin the same one.
            random: Random(random.next().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            status: 0,
            stuck: false,
            tail: 0,
            waits: 0,
        };
        episode.compare("reset")?;
        let mut past = String::new();
        for _ in 0..30 {
            past = format!("{past}, {}", episode.step()?);
            episode.compare(&past)?;
        }
        tally.add(&episode.trio.tally);
    }
    Ok(Some(tally))
}
