//! Scalable mode: root, context and PASID tables, one stage of page tables, 256-bit descriptors.

use e2e::qtest::{EDU_SOURCE, QtestError};
use vtd_model::QemuVersion;

use iommu_testkit::Random;

use crate::trio::{CONTEXT, DATA, DATA_PAGES, DOMAIN, ROOT, TABLES, Tally, Trio, WITNESS, WITNESS_IOVA, message_data};

const DIRECTORY: u64 = 0x102_0000;
const PASID_TABLE: u64 = 0x102_1000;
/// RTADDR.TTM: scalable mode.
const SCALABLE: u64 = 0x400;

/// The position of the requester's context entry.
const fn context_entry() -> u64 {
    CONTEXT + EDU_SOURCE as u64 * 32
}

/// Which stage a program uses, and what an entry of its tables looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    First,
    Second,
}

impl Stage {
    /// Bits of an entry that points to a table, or to a page that anybody may use.
    const fn open(self) -> u64 {
        match self {
            Self::First => 7,
            Self::Second => 3,
        }
    }

    /// Bits of an entry with some permission, or not present.
    fn some(self, random: &mut Random) -> u64 {
        match self {
            Self::First => random.pick([0, 1, 3, 5, 5, 7, 7, 7]),
            Self::Second => random.below(4),
        }
    }

    /// The first word of the PASID entry for tables of `levels` levels.
    fn control(self, levels: u64) -> u64 {
        match self {
            Self::First => 1 << 6 | 1,
            Self::Second => top(levels) | 2 << 6 | (levels - 2) << 2 | 1,
        }
    }
}

/// The domain of PASID entries, whose table walks snoop (PWSNP): without it flags cannot be set (E-05).
const TAGS: u64 = DOMAIN | 1 << 23;

fn top(levels: u64) -> u64 {
    TABLES[usize::try_from(4 - levels).expect("3 or 4")]
}

/// Legal tables with nothing mapped but the witness.
fn reset_tables(trio: &mut Trio, stage: Stage, levels: u64) -> Result<(), QtestError> {
    for table in [ROOT, CONTEXT, DIRECTORY, PASID_TABLE].into_iter().chain(TABLES) {
        trio.clear(table)?;
    }
    trio.write(ROOT, CONTEXT | 1)?;
    trio.write(context_entry(), DIRECTORY | 1)?;
    trio.write(DIRECTORY, PASID_TABLE | 1)?;
    trio.write(PASID_TABLE, stage.control(levels))?;
    trio.write(PASID_TABLE + 8, TAGS)?;
    if stage == Stage::First {
        trio.write(PASID_TABLE + 16, top(4))?;
    }
    let open = stage.open();
    trio.write(TABLES[0], TABLES[1] | open)?;
    trio.write(TABLES[1], TABLES[2] | open)?;
    trio.write(TABLES[2], TABLES[3] | open)?;
    trio.write(TABLES[2] + 8, TABLES[4] | open)?;
    trio.write(TABLES[3] + (WITNESS_IOVA >> 12) * 8, WITNESS | open)
}

/// Drops all that a change of any entry can have left in caches: globally, for the domain, or for requester and PASID.
fn invalidate(trio: &mut Trio, random: &mut Random, stage: Stage) -> Result<(), QtestError> {
    let (domain, source) = (DOMAIN << 16, u64::from(EDU_SOURCE) << 32);
    // The context entry itself has no domain in scalable mode: the field is ignored, and device-selective
    // invalidation finds the requester.
    let context = random.pick([0x11, 0x31 | source]);
    let pasid = random.pick([0x37, 0x07 | domain, 0x17 | domain]);
    let pages = match stage {
        Stage::Second => random.pick([0x12, 0x22 | domain]) | 0xc0,
        // Type 6, all of the PASID.
        Stage::First => random.pick([0x12 | 0xc0, 0x22 | 0xc0 | domain, 0x26 | domain]),
    };
    trio.invalidate(&[[context, 0], [pasid, 0], [pages, 0]])
}

/// Changes one entry; says how, for the message of a difference.
fn mutate(trio: &mut Trio, random: &mut Random, stage: Stage, levels: u64) -> Result<String, QtestError> {
    let data = DATA + random.below(DATA_PAGES) * 0x1000;
    let kinds = random.pick([66, 66, 66, 66, 66, 66, 66, 80]);
    Ok(match random.below(kinds) {
        0..=49 => {
            let table = TABLES[3 + usize::try_from(random.below(2)).expect("small")];
            let (index, bits) = (random.below(16), stage.some(random));
            trio.write(table + index * 8, data | bits)?;
            format!("page {index} of table {table:#x} with {bits:#x}")
        }
        50..=55 => {
            let (index, bit) = (random.below(16), 48 + random.below(4));
            let bits = stage.some(random);
            trio.write(TABLES[3] + index * 8, data | bits | 1 << bit)?;
            format!("page {index} with reserved bit {bit} and {bits:#x}")
        }
        56..=60 => {
            let bits = stage.some(random);
            trio.write(TABLES[2] + 2 * 8, (DATA & !0x1f_ffff) | 0x80 | bits)?;
            format!("2 MiB page with {bits:#x}")
        }
        61..=63 => {
            let bits = stage.some(random);
            trio.write(TABLES[2] + 8, TABLES[4] | bits)?;
            format!("second leaf table with {bits:#x}")
        }
        64..=65 => {
            trio.write(TABLES[3] + 17 * 8, 0xfee0_0000 | stage.open())?;
            "page 17 into the interrupt range".to_owned()
        }
        66..=69 => {
            // The context entry: not present, FPD, reserved bits; RID_PASID and the rest stay 0.
            let words = random.pick([
                [0, 0],
                [2, 0],
                [DIRECTORY | 3, 0],
                [DIRECTORY | 0x21, 0],
                [DIRECTORY | 1, 1 << 40],
            ]);
            trio.write(context_entry() + 8, words[1])?;
            trio.write(context_entry(), words[0])?;
            format!("context entry {words:x?}")
        }
        70..=71 => {
            let word = random.pick([
                0,
                PASID_TABLE | 3,
                PASID_TABLE | 2,
                PASID_TABLE | 1 << 3 | 1,
                PASID_TABLE | 1,
            ]);
            trio.write(DIRECTORY, word)?;
            format!("directory entry {word:#x}")
        }
        72..=73 => {
            let word = random.pick([0, CONTEXT | 3, CONTEXT | 1, CONTEXT | 1]);
            trio.write(ROOT, word)?;
            format!("root entry {word:#x}")
        }
        74..=75 => {
            let at = random.pick([6, 7]);
            trio.write(PASID_TABLE + at * 8, 1 << random.below(12))?;
            format!("word {at} of the PASID entry")
        }
        _ => {
            let control = stage.control(levels);
            let (word, second) = random.pick([
                (0, 0),
                (control & !1, TAGS),
                (control | 2, TAGS),
                (control | 0x1c0, TAGS),
                (control & !0x1c0 | 5 << 6, TAGS),
                (control & !0x1c0 | 3 << 6, TAGS),
                (control ^ 2 << 2, TAGS),
                (control ^ 1 << 2, TAGS),
                (4 << 6 | 2 << 2 | 1, TAGS),
                (control, TAGS | 1 << 16),
            ]);
            trio.write(PASID_TABLE, word)?;
            trio.write(PASID_TABLE + 8, second)?;
            format!("PASID entry {word:#x} {second:#x}")
        }
    })
}

/// One page changes while the IOTLB holds it; only this page is invalidated, or an aligned block around it.
fn page_selective(trio: &mut Trio, random: &mut Random, stage: Stage) -> Result<(), QtestError> {
    let page = random.below(16);
    trio.dma(page << 12, None, "before a page changes")?;
    let (data, bits) = (DATA + random.below(DATA_PAGES) * 0x1000, stage.some(random));
    trio.write(TABLES[3] + page * 8, data | bits)?;
    let mask = random.below(5);
    let second = (page >> mask << mask) << 12 | mask;
    let first = match stage {
        Stage::Second => 0xf2,
        Stage::First => 0x36,
    };
    trio.invalidate(&[[first | DOMAIN << 16, second]])?;
    for write in [Some(message_data(random)), None] {
        let situation = format!("page {page} changed to {bits:#x} and invalidated alone");
        trio.dma(page << 12, write, &situation)?;
    }
    Ok(())
}

/// Accessed and dirty flags of all entries that programs use.
fn compare_tables(trio: &mut Trio) -> Result<(), QtestError> {
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;
    const FLAGS: u64 = ACCESSED | DIRTY;
    for (table, entries) in TABLES.into_iter().zip([1, 1, 3, 18, 16]) {
        for entry in 0..entries {
            let at = table + entry * 8;
            let [qemu, strict, alike] = trio.words(at)?;
            assert_eq!(qemu, alike, "the model in QEMU's profile: table entry at {at:#x}");
            if qemu & DIRTY < strict & DIRTY {
                trio.tally.deviates("D-01");
            }
            if qemu & FLAGS & !strict != 0 {
                trio.tally.deviates("E-04");
            }
            assert_eq!(qemu & !FLAGS, strict & !FLAGS, "table entry at {at:#x}");
            let lost = strict & ACCESSED & !qemu;
            assert_eq!(lost, 0, "accessed flag of the table entry at {at:#x}");
        }
    }
    Ok(())
}

fn run(mut trio: Trio, dmas: u32, stage: Stage) -> Result<Option<Tally>, QtestError> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    trio.wide = true;
    reset_tables(&mut trio, stage, 4)?;
    trio.bring_up(ROOT | SCALABLE)?;
    while trio.tally.dmas < dmas {
        let levels = match stage {
            Stage::First => 4,
            Stage::Second => 3 + random.below(2),
        };
        reset_tables(&mut trio, stage, levels)?;
        invalidate(&mut trio, &mut random, stage)?;
        page_selective(&mut trio, &mut random, stage)?;
        let mut situation = format!("{levels} levels");
        for _ in 0..8 + random.below(12) {
            situation = format!("{situation}, {}", mutate(&mut trio, &mut random, stage, levels)?);
        }
        invalidate(&mut trio, &mut random, stage)?;
        for _ in 0..16 {
            let page = match random.below(8) {
                0..=3 => random.below(18),
                4..=5 => 0x200 + random.below(16),
                6 => 0x400 + ((DATA >> 12) & 0x1ff) + random.below(DATA_PAGES),
                _ => random.pick([1 << 27, 1 << 35, 1 << 36]),
            };
            let iova = (page << 12) | (random.below(4) * 8);
            let write = random.once_in(2).then(|| message_data(&mut random));
            trio.dma(iova, write, &situation)?;
        }
        trio.compare_memory()?;
        compare_tables(&mut trio)?;
    }
    let seen = &trio.tally;
    assert!(
        seen.passed > dmas / 12,
        "too few DMAs were let through to compare anything: {seen}"
    );
    assert!(seen.reasons.len() >= 6, "too few kinds of fault were reached: {seen}");
    Ok(Some(trio.tally))
}

/// Second-stage tables, both versions.
pub(crate) fn second_stage(dmas: u32) -> Result<Option<Tally>, QtestError> {
    let properties = |version| {
        Some(match version {
            QemuVersion::V7_2 => "aw-bits=48,intremap=off,x-scalable-mode=on",
            _ => "aw-bits=48,intremap=off,scalable-mode=on",
        })
    };
    match Trio::start("second", properties)? {
        Some(trio) => run(trio, dmas, Stage::Second),
        None => Ok(None),
    }
}

/// First-stage tables, which 7.2 does not have.
pub(crate) fn first_stage(dmas: u32) -> Result<Option<Tally>, QtestError> {
    let properties = |version| match version {
        QemuVersion::V7_2 => None,
        _ => Some("aw-bits=48,intremap=off,scalable-mode=on,fsts=on"),
    };
    match Trio::start("first", properties)? {
        Some(trio) => run(trio, dmas, Stage::First),
        None => Ok(None),
    }
}
