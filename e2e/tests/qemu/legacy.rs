//! Legacy mode: second-stage tables, context and root entries, 128-bit descriptors.

use e2e::qtest::{EDU_SOURCE, QtestError};
use vtd_spec::register::offset;

use iommu_testkit::Random;

use crate::trio::{CONTEXT, DATA, DATA_PAGES, DOMAIN, ROOT, TABLES, Tally, Trio, WITNESS, WITNESS_IOVA, message_data};

const READ_WRITE: u64 = 3;

/// The position of the requester's context entry.
const fn context_entry() -> u64 {
    CONTEXT + EDU_SOURCE as u64 * 16
}

/// Legal tables of `levels` levels with nothing mapped but the witness.
fn reset_tables(trio: &mut Trio, levels: u64) -> Result<(), QtestError> {
    for table in [ROOT, CONTEXT].into_iter().chain(TABLES) {
        trio.clear(table)?;
    }
    trio.write(ROOT, CONTEXT | 1)?;
    // 4 levels: AW code 2 and the top table; 3 levels: code 1 and the one below.
    let top = TABLES[usize::try_from(4 - levels).expect("3 or 4")];
    trio.write(context_entry() + 8, DOMAIN << 8 | (levels - 2))?;
    trio.write(context_entry(), top | 1)?;
    trio.write(TABLES[0], TABLES[1] | READ_WRITE)?;
    trio.write(TABLES[1], TABLES[2] | READ_WRITE)?;
    trio.write(TABLES[2], TABLES[3] | READ_WRITE)?;
    trio.write(TABLES[2] + 8, TABLES[4] | READ_WRITE)?;
    trio.write(TABLES[3] + (WITNESS_IOVA >> 12) * 8, WITNESS | READ_WRITE)
}

/// Drops all that a change of any entry of the requester's can have left in caches: globally, for the domain, or
/// for the requester.
fn invalidate(trio: &mut Trio, random: &mut Random) -> Result<(), QtestError> {
    let (domain, source) = (DOMAIN << 16, u64::from(EDU_SOURCE) << 32);
    let context = random.pick([0x11, 0x21 | domain, 0x31 | domain | source]);
    let iotlb = random.pick([0x12, 0x22 | domain]) | 0xc0;
    trio.invalidate(&[[context, 0], [iotlb, 0]])
}

/// Changes one entry; says how, for the message of a difference.
fn mutate(trio: &mut Trio, random: &mut Random, levels: u64) -> Result<String, QtestError> {
    let data = DATA + random.below(DATA_PAGES) * 0x1000;
    let kinds = random.pick([76, 76, 76, 76, 80]);
    Ok(match random.below(kinds) {
        0..=55 => {
            // A 4 KiB page with some permission. The witness's own entry stays.
            let table = TABLES[3 + usize::try_from(random.below(2)).expect("small")];
            let (index, permission) = (random.below(16), random.below(4));
            trio.write(table + index * 8, data | permission)?;
            format!("page {index} of table {table:#x} with permission {permission}")
        }
        56..=63 => {
            let index = random.below(16);
            let bit = 48 + random.below(4);
            let permission = random.pick([READ_WRITE, READ_WRITE, 1, 2]);
            trio.write(TABLES[3] + index * 8, data | permission | 1 << bit)?;
            format!("page {index} with reserved bit {bit} and permission {permission}")
        }
        64..=67 => {
            // A 2 MiB page: the data lies in one, so its base is aligned down.
            let permission = random.below(4);
            trio.write(TABLES[2] + 2 * 8, (DATA & !0x1f_ffff) | 0x80 | permission)?;
            format!("2 MiB page with permission {permission}")
        }
        68..=71 => {
            let permission = random.below(4);
            trio.write(TABLES[2] + 8, TABLES[4] | permission)?;
            format!("second leaf table with permission {permission}")
        }
        72..=75 => {
            trio.write(TABLES[3] + 17 * 8, 0xfee0_0000 | READ_WRITE)?;
            "page 17 into the interrupt range".to_owned()
        }
        76 => {
            trio.write(context_entry(), 0)?;
            "context not present".to_owned()
        }
        77 => {
            let (low, high) = [(0x3, 0), (0xd, 0), (1 << 4 | 1, 0), (1, 1 << 30), (1, 1 << 7)]
                [usize::try_from(random.below(5)).expect("small")];
            trio.write(context_entry() + 8, DOMAIN << 8 | (levels - 2) | high)?;
            let top = TABLES[usize::try_from(4 - levels).expect("3 or 4")];
            trio.write(context_entry(), top | low)?;
            format!("context entry with {low:#x} and {high:#x}")
        }
        78 => {
            trio.write(
                ROOT,
                [0, CONTEXT | 3, CONTEXT | 1][usize::try_from(random.below(3)).expect("small")],
            )?;
            "root entry changed".to_owned()
        }
        _ => {
            // Fault processing disabled: faults block and leave no trace.
            let top = TABLES[usize::try_from(4 - levels).expect("3 or 4")];
            trio.write(context_entry(), top | 3)?;
            "fault processing disabled".to_owned()
        }
    })
}

/// One page changes while the IOTLB holds it; only this page is invalidated, or an aligned block around it.
fn page_selective(trio: &mut Trio, random: &mut Random) -> Result<(), QtestError> {
    let page = random.below(16);
    trio.dma(page << 12, None, "before a page changes")?;
    let (data, permission) = (DATA + random.below(DATA_PAGES) * 0x1000, random.below(4));
    trio.write(TABLES[3] + page * 8, data | permission)?;
    let mask = random.below(5);
    let first = page >> mask << mask;
    trio.invalidate(&[[0xf2 | DOMAIN << 16, first << 12 | mask]])?;
    for write in [Some(message_data(random)), None] {
        let situation = format!("page {page} changed to permission {permission} and invalidated alone");
        trio.dma(page << 12, write, &situation)?;
    }
    Ok(())
}

/// The table modes that the unit does not have, which QEMU takes for legacy mode (D-09, D-33).
fn table_modes(trio: &mut Trio) -> Result<(), QtestError> {
    for mode in [0x400, 0x800, 0xc00] {
        trio.all(|twin| twin.set_register64(offset::RTADDR, ROOT | mode))?;
        trio.command(0x4000_0000)?;
        trio.command(0x8000_0000)?;
        for write in [Some(7), None] {
            trio.dma(WITNESS_IOVA, write, &format!("table mode {mode:#x}"))?;
        }
        trio.command(0)?;
    }
    Ok(())
}

/// Random programs until `dmas` DMAs were compared.
pub(crate) fn run(dmas: u32) -> Result<Option<Tally>, QtestError> {
    let Some(mut trio) = Trio::start("legacy", |_| Some("aw-bits=48,intremap=off"))? else {
        return Ok(None);
    };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    reset_tables(&mut trio, 4)?;
    table_modes(&mut trio)?;
    trio.bring_up(ROOT)?;
    while trio.tally.dmas < dmas {
        let levels = 3 + random.below(2);
        reset_tables(&mut trio, levels)?;
        invalidate(&mut trio, &mut random)?;
        page_selective(&mut trio, &mut random)?;
        let mut situation = format!("{levels} levels");
        for _ in 0..8 + random.below(12) {
            situation = format!("{situation}, {}", mutate(&mut trio, &mut random, levels)?);
        }
        invalidate(&mut trio, &mut random)?;
        for _ in 0..16 {
            let page = match random.below(8) {
                0..=3 => random.below(18),
                4..=5 => 0x200 + random.below(16),
                6 => 0x400 + ((DATA >> 12) & 0x1ff) + random.below(DATA_PAGES),
                // Beyond the width of 3 levels, and of 4.
                _ => random.pick([1 << 27, 1 << 36]),
            };
            let iova = (page << 12) | (random.below(4) * 8);
            let write = random.once_in(2).then(|| message_data(&mut random));
            trio.dma(iova, write, &situation)?;
        }
        trio.compare_memory()?;
    }
    let seen = &trio.tally;
    assert!(
        seen.passed > dmas / 12,
        "too few DMAs were let through to compare anything: {seen}"
    );
    assert!(seen.reasons.len() >= 6, "too few kinds of fault were reached: {seen}");
    Ok(Some(trio.tally))
}
