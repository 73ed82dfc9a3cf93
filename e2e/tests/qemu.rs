//! The model against QEMU: the same random programs must give the same answers.
//!
//! `PORTCULLIS_QEMU` names the program and `PORTCULLIS_QEMU_DMAS` the number of DMAs; without the former the test
//! says that it compared nothing (`cargo xtask test` then counts it as skipped).
//!
//! Differences that are QEMU's and known carry the numbers of a catalogue: each is recognised by its cause, not
//! by its effect, so that any other difference fails.
//!
//! | number | what QEMU does |
//! |---|---|
//! | D-02 | what a page in its IOTLB does not permit is dropped without a fault |
//! | D-07 | before 11.1 the PASID field of a record is all-ones for requests without PASID |
//! | E-02 | a reserved field of a context entry (0Bh) is recorded although FPD is set; the table of fault conditions (VT-d §7.1.3, LCT.3) says qualified |
//! | E-01 | a record keeps address bits above the widest supported address width, which the specification zeroes |

#![expect(clippy::expect_used, reason = "a test reports by panicking, its helpers too")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use e2e::differential::{FaultLog, Modelled, Twin, take_faults};
use e2e::qtest::{EDU_SOURCE, Qemu, QtestError};
use vtd_spec::register::offset;

const ROOT: u64 = 0x100_0000;
const CONTEXT: u64 = 0x100_1000;
/// Tables from the top level down: one each, and two leaf tables.
const TABLES: [u64; 5] = [0x101_0000, 0x101_1000, 0x101_2000, 0x101_3000, 0x101_4000];
const QUEUE: u64 = 0x103_0000;
const STATUS: u64 = 0x105_0000;
/// Pages that entries point to.
const DATA: u64 = 0x110_0000;
const DATA_PAGES: u64 = 64;
/// A page that stays mapped, to bring to light what a read found.
const WITNESS_IOVA: u64 = 0x1f_f000;
const WITNESS: u64 = 0x104_0000;

const READ_WRITE: u64 = 3;
const DOMAIN: u64 = 1;

/// The position of the requester's context entry.
const fn context_entry() -> u64 {
    CONTEXT + EDU_SOURCE as u64 * 16
}

/// Both machines, programmed alike.
struct Pair {
    qemu: Qemu,
    model: Modelled,
    /// The next free descriptor, in bytes from the start of the queue.
    tail: u64,
    /// Value of the last wait.
    waits: u64,
    /// Pages that QEMU has in its IOTLB.
    cached: BTreeSet<u64>,
    seen: Seen,
}

/// What was compared.
#[derive(Default)]
struct Seen {
    dmas: u32,
    passed: u32,
    reasons: std::collections::BTreeMap<u8, u32>,
    d02: u32,
    e02: u32,
}

impl Pair {
    fn start(iommu: &str) -> Result<Option<Self>, QtestError> {
        let Some(program) = std::env::var_os("PORTCULLIS_QEMU").map(PathBuf::from) else {
            return Ok(None);
        };
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let mut qemu = Qemu::start(&program, &folder, iommu)?;
        let capability = qemu.register64(offset::CAP)?;
        let extended = qemu.register64(offset::ECAP)?;
        let model = Modelled::resembling(capability, extended).expect("QEMU reports consistent capabilities");
        let mut pair = Self {
            qemu,
            model,
            tail: 0,
            waits: 0,
            cached: BTreeSet::new(),
            seen: Seen::default(),
        };
        pair.bring_up()?;
        Ok(Some(pair))
    }

    fn both(&mut self, mut act: impl FnMut(&mut dyn Actor) -> Result<(), QtestError>) -> Result<(), QtestError> {
        act(&mut self.qemu)?;
        act(&mut self.model)
    }

    fn write(&mut self, at: u64, value: u64) -> Result<(), QtestError> {
        self.both(|twin| twin.put(at, value))
    }

    fn register(&mut self, at: u32, value: u32) -> Result<(), QtestError> {
        self.both(|twin| twin.put_register(at, value))?;
        let [qemu, model] = [self.qemu.register(offset::GSTS)?, self.model.register(offset::GSTS)?];
        assert_eq!(
            qemu, model,
            "global status after writing {value:#x} to register {at:#x}"
        );
        Ok(())
    }

    fn bring_up(&mut self) -> Result<(), QtestError> {
        self.reset_tables(4)?;
        self.both(|twin| twin.put_register64(offset::IQA, QUEUE))?;
        self.register(offset::GCMD, 0x0400_0000)?;
        self.both(|twin| twin.put_register64(offset::RTADDR, ROOT))?;
        self.register(offset::GCMD, 0x4400_0000)?;
        self.register(offset::GCMD, 0x8400_0000)
    }

    /// Legal tables of `levels` levels with nothing mapped but the witness.
    fn reset_tables(&mut self, levels: u64) -> Result<(), QtestError> {
        for table in [ROOT, CONTEXT].into_iter().chain(TABLES) {
            self.qemu.zero(table, 0x1000)?;
            for word in 0..512 {
                self.model.write(table + word * 8, 0)?;
            }
        }
        self.write(ROOT, CONTEXT | 1)?;
        // 4 levels: AW code 2 and the top table; 3 levels: code 1 and the one below.
        let top = TABLES[usize::try_from(4 - levels).expect("3 or 4")];
        self.write(context_entry() + 8, DOMAIN << 8 | (levels - 2))?;
        self.write(context_entry(), top | 1)?;
        self.write(TABLES[0], TABLES[1] | READ_WRITE)?;
        self.write(TABLES[1], TABLES[2] | READ_WRITE)?;
        self.write(TABLES[2], TABLES[3] | READ_WRITE)?;
        self.write(TABLES[2] + 8, TABLES[4] | READ_WRITE)?;
        self.write(TABLES[3] + (WITNESS_IOVA >> 12) * 8, WITNESS | READ_WRITE)
    }

    /// Puts a descriptor and a wait into both queues and sees both complete.
    fn invalidate(&mut self, descriptor: [u64; 2]) -> Result<(), QtestError> {
        self.waits += 1;
        let wait = [self.waits << 32 | 0x25, STATUS];
        for words in [descriptor, wait] {
            self.write(QUEUE + self.tail, words[0])?;
            self.write(QUEUE + self.tail + 8, words[1])?;
            self.tail = (self.tail + 16) % 0x1000;
        }
        let tail = self.tail;
        self.both(|twin| twin.put_register64(offset::IQT, tail))?;
        for done in [self.qemu.read(STATUS)?, self.model.read(STATUS)?] {
            assert_eq!(done & 0xffff_ffff, self.waits, "a wait did not complete");
        }
        self.cached.clear();
        Ok(())
    }

    /// All cached contexts and translations.
    fn invalidate_everything(&mut self) -> Result<(), QtestError> {
        self.invalidate([0x11, 0])?;
        self.invalidate([0x12 | 0xc0, 0])
    }

    /// One DMA on both machines; they must agree on memory, status and record.
    fn dma(&mut self, iova: u64, write: Option<u32>, situation: &str) -> Result<FaultLog, QtestError> {
        self.seen.dmas += 1;
        self.both(|twin| twin.act(iova, write))?;
        let [mut qemu, model] = [take_faults(&mut self.qemu)?, take_faults(&mut self.model)?];
        // D-07: bits 59:40 of the record.
        if qemu.details >> 31 & 1 == 0 {
            qemu.details &= !0x0fff_ff00_0000_0000;
        }
        // E-01: 48 bits are the widest here.
        qemu.information &= (1 << 48) - 1;
        let page = iova >> 12;
        let faulted = model.status != 0;
        if matches!((model.status, model.reason()), (2, 5 | 6)) && qemu.status == 0 && self.cached.contains(&page) {
            self.seen.d02 += 1;
        } else if qemu.reason() == 0xb && !faulted && self.model.read(context_entry())? & 2 == 2 {
            // E-02: the model blocked the access too, without a record.
            self.seen.e02 += 1;
            return Ok(model);
        } else if faulted || qemu.status != 0 {
            assert_eq!(
                qemu, model,
                "QEMU (left) and the model differ: {situation}, IOVA {iova:#x}, write {write:x?}"
            );
        }
        if faulted {
            *self.seen.reasons.entry(model.reason()).or_default() += 1;
        } else {
            self.seen.passed += 1;
            if write.is_none() {
                self.show_what_was_read(situation)?;
            }
        }
        Ok(model)
    }

    /// Brings what both requesters read last to light.
    fn show_what_was_read(&mut self, situation: &str) -> Result<(), QtestError> {
        let context = [self.model.read(context_entry())?, self.model.read(context_entry() + 8)?];
        let mapped = self.model.read(TABLES[3] + (WITNESS_IOVA >> 12) * 8)? == WITNESS | READ_WRITE;
        if context[0] & 0xf != 1 || !mapped {
            return Ok(());
        }
        self.both(|twin| twin.write_back())?;
        let [qemu, model] = [self.qemu.read(WITNESS)?, self.model.read(WITNESS)?];
        assert_eq!(qemu, model, "the two requesters read different data: {situation}");
        for log in [take_faults(&mut self.qemu)?, take_faults(&mut self.model)?] {
            assert_eq!(log.status, 0, "the witness page faulted: {situation}");
        }
        Ok(())
    }

    /// Every page that entries can point to must hold the same on both.
    fn compare_memory(&mut self) -> Result<(), QtestError> {
        for page in 0..DATA_PAGES {
            for word in 0..4 {
                let at = DATA + page * 0x1000 + word * 8;
                assert_eq!(self.qemu.read(at)?, self.model.read(at)?, "memory at {at:#x}");
            }
        }
        Ok(())
    }
}

/// [`Twin`] as an object, for programs that treat both alike.
trait Actor {
    fn put(&mut self, at: u64, value: u64) -> Result<(), QtestError>;
    fn put_register(&mut self, at: u32, value: u32) -> Result<(), QtestError>;
    fn put_register64(&mut self, at: u32, value: u64) -> Result<(), QtestError>;
    fn act(&mut self, iova: u64, write: Option<u32>) -> Result<(), QtestError>;
    fn write_back(&mut self) -> Result<(), QtestError>;
}

impl<T: Twin> Actor for T {
    fn put(&mut self, at: u64, value: u64) -> Result<(), QtestError> {
        self.write(at, value)
    }
    fn put_register(&mut self, at: u32, value: u32) -> Result<(), QtestError> {
        self.set_register(at, value)
    }
    fn put_register64(&mut self, at: u32, value: u64) -> Result<(), QtestError> {
        self.set_register64(at, value)
    }
    fn act(&mut self, iova: u64, write: Option<u32>) -> Result<(), QtestError> {
        match write {
            Some(value) => self.dma_write(iova, value),
            None => self.dma_read(iova),
        }
    }
    fn write_back(&mut self) -> Result<(), QtestError> {
        self.dma_write_back(WITNESS_IOVA)
    }
}

/// A generator with a fixed seed (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Changes one entry; says how, for the message of a difference.
fn mutate(pair: &mut Pair, random: &mut Random, levels: u64) -> Result<String, QtestError> {
    let data = DATA + random.below(DATA_PAGES) * 0x1000;
    Ok(match random.below(80) {
        0..=55 => {
            // A 4 KiB page with some permission. The witness's own entry stays.
            let table = TABLES[3 + usize::try_from(random.below(2)).expect("small")];
            let (index, permission) = (random.below(16), random.below(4));
            pair.write(table + index * 8, data | permission)?;
            format!("page {index} of table {table:#x} with permission {permission}")
        }
        56..=63 => {
            let index = random.below(16);
            let bit = 48 + random.below(4);
            pair.write(TABLES[3] + index * 8, data | READ_WRITE | 1 << bit)?;
            format!("page {index} with reserved bit {bit}")
        }
        64..=67 => {
            // A 2 MiB page: the data lies in one, so its base is aligned down.
            let permission = random.below(4);
            pair.write(TABLES[2] + 2 * 8, (DATA & !0x1f_ffff) | 0x80 | permission)?;
            format!("2 MiB page with permission {permission}")
        }
        68..=71 => {
            let permission = random.below(4);
            pair.write(TABLES[2] + 8, TABLES[4] | permission)?;
            format!("second leaf table with permission {permission}")
        }
        72..=75 => {
            pair.write(TABLES[3] + 17 * 8, 0xfee0_0000 | READ_WRITE)?;
            "page 17 into the interrupt range".to_owned()
        }
        76 => {
            pair.write(context_entry(), 0)?;
            "context not present".to_owned()
        }
        77 => {
            let (low, high) = [(0x3, 0), (0xd, 0), (1 << 4 | 1, 0), (1, 1 << 30), (1, 1 << 7)]
                [usize::try_from(random.below(5)).expect("small")];
            pair.write(context_entry() + 8, DOMAIN << 8 | (levels - 2) | high)?;
            let top = TABLES[usize::try_from(4 - levels).expect("3 or 4")];
            pair.write(context_entry(), top | low)?;
            format!("context entry with {low:#x} and {high:#x}")
        }
        78 => {
            pair.write(
                ROOT,
                [0, CONTEXT | 3, CONTEXT | 1][usize::try_from(random.below(3)).expect("small")],
            )?;
            "root entry changed".to_owned()
        }
        _ => {
            // Fault processing disabled: faults block and leave no trace.
            let top = TABLES[usize::try_from(4 - levels).expect("3 or 4")];
            pair.write(context_entry(), top | 3)?;
            "fault processing disabled".to_owned()
        }
    })
}

fn random_programs(pair: &mut Pair, dmas: u32) -> Result<(), QtestError> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    while pair.seen.dmas < dmas {
        let levels = 3 + random.below(2);
        pair.reset_tables(levels)?;
        pair.invalidate_everything()?;
        for _ in 0..3 {
            let mut situation = format!("{levels} levels");
            for _ in 0..3 + random.below(6) {
                situation = format!("{situation}, {}", mutate(pair, &mut random, levels)?);
            }
            pair.invalidate_everything()?;
            for _ in 0..8 {
                let page = match random.below(8) {
                    0..=3 => random.below(18),
                    4..=5 => 0x200 + random.below(16),
                    6 => 0x400 + ((DATA >> 12) & 0x1ff) + random.below(DATA_PAGES),
                    // Beyond the width of 3 levels, and of 4.
                    _ => [1 << 27, 1 << 36][usize::try_from(random.below(2)).expect("small")],
                };
                let iova = (page << 12) | (random.below(4) * 8);
                // The data of an MSI has 16 bits.
                let write = (random.below(2) == 0).then(|| u32::try_from(random.below(1 << 16)).expect("16 bits"));
                let log = pair.dma(iova, write, &situation)?;
                if log.status == 0 {
                    // Approximates what QEMU's IOTLB now holds; a fault in both is still compared exactly.
                    pair.cached.insert(page);
                    if page >> 9 == 2 {
                        pair.cached.extend(0x400..0x600);
                    }
                }
            }
        }
        pair.compare_memory()?;
    }
    Ok(())
}

#[test]
fn random_programs_give_the_same_answers_on_qemu_and_on_the_model() {
    let dmas = std::env::var("PORTCULLIS_QEMU_DMAS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2000);
    let Some(mut pair) = Pair::start("aw-bits=48,intremap=off").expect("QEMU starts") else {
        println!("compared: nothing, PORTCULLIS_QEMU names no QEMU");
        return;
    };
    random_programs(&mut pair, dmas).expect("QEMU stays alive");
    let seen = &pair.seen;
    assert!(
        seen.passed > dmas / 8,
        "too few DMAs were let through to compare anything: {}",
        seen.passed
    );
    assert!(
        seen.reasons.len() >= 8,
        "too few kinds of fault were reached: {:x?}",
        seen.reasons
    );
    println!(
        "compared: {} DMAs with the same answers, {} let through, fault reasons {:x?}, D-02 {} times, E-02 {} times",
        seen.dmas, seen.passed, seen.reasons, seen.d02, seen.e02
    );
}
