//! Interrupt remapping: random entries and messages, what is passed on, what is recorded.

use e2e::qtest::{EDU_SOURCE, QtestError};
use vtd_spec::register::offset;

use iommu_testkit::Random;

use crate::trio::{QUEUE, STATUS, Tally, Trio, message_data};

const TABLE: u64 = 0x104_0000;
/// Entries of the table: IRTA.S = 3.
const ENTRIES: u64 = 16;
const STAGING: u64 = STATUS + 0x1000;

/// A random entry, right in most of its fields.
fn entry(random: &mut Random) -> [u64; 2] {
    let source = u64::from(EDU_SOURCE);
    let mut low = u64::from(!random.once_in(8)) | random.below(8) << 2;
    low |= u64::from(random.once_in(4)) << 1;
    low |= random.pick([0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]) << 5;
    low |= random.below(16) << 8;
    low |= random.below(256) << 16;
    // Without extended mode the destination is bits 47:40.
    // Nobody has these: an NMI would wake the processor.
    low |= (1 + random.below(254)) << 40;
    if random.once_in(12) {
        low |= 1 << 15;
    }
    if random.once_in(12) {
        low |= 1 << random.pick([12, 13, 14, 24, 31, 32, 39, 48, 63]);
    }
    let sid = match random.below(6) {
        0..=2 => source,
        3 => source ^ 1 << random.below(3),
        4 => random.pick([0x0000, 0x0005, 0x0500, 0x0105]),
        _ => random.below(1 << 16),
    };
    let mut high = sid | random.below(4) << 16 | random.pick([0, 0, 1, 1, 1, 2, 2, 3]) << 18;
    if random.once_in(16) {
        high |= 1 << (20 + random.below(44));
    }
    [low, high]
}

/// One message on all three.
fn message(trio: &mut Trio, random: &mut Random) -> Result<(), QtestError> {
    let handle = match random.below(16) {
        0 => random.below(1 << 16),
        1 => ENTRIES,
        _ => random.below(ENTRIES),
    };
    let sub = random.once_in(3);
    let mut address = 0xfee0_0000 | (handle & 0x7fff) << 5 | (handle >> 15) << 2;
    address |= u64::from(!random.once_in(10)) << 4 | u64::from(sub) << 3;
    let mut data = u32::try_from(random.below(ENTRIES)).expect("small");
    // More than 16 bits come from the DMA engine; an MSI has no more.
    let wide = sub && random.once_in(4);
    if wide {
        data |= 1 << (16 + random.below(16));
    } else if random.once_in(8) {
        // Nothing but fixed delivery, should it pass as it is.
        data = message_data(random) & !0x700;
    }
    trio.tally.interrupts += 1;
    // Others than the requester may have sent some.
    trio.qemu.take_interrupts()?;
    let index = if sub { handle + u64::from(data & 0xffff) } else { handle };
    let [low, high] = if index < ENTRIES {
        [
            trio.strict_word(TABLE + index * 16)?,
            trio.strict_word(TABLE + index * 16 + 8)?,
        ]
    } else {
        [0; 2]
    };
    trio.posted = low >> 15 & 1 == 1;
    // Bits that a destination of 8 bits does not have.
    trio.wide_destination = low >> 32 & 0xffff_00ff != 0;
    trio.edge_only = low >> 4 & 1 == 1 && matches!(low >> 5 & 7, 2 | 4 | 5 | 7);
    trio.unknown_mode = matches!(low >> 5 & 7, 3 | 6);
    trio.bus_range = high >> 18 & 3 == 2;
    let what = format!("message {address:#x} {data:#x}, entry {low:#x} {high:#x}");
    if wide {
        trio.qemu.dma_write_wide(address, data, STAGING)?;
        for model in [&mut trio.strict, &mut trio.alike] {
            // QEMU forgets who that is (E-08).
            model.interrupt(u16::MAX, address, data);
        }
    } else {
        trio.all(|twin| twin.dma_write(address, data))?;
    }
    trio.compare_faults(&what, None)?;
    trio.compare_interrupts(&what)
}

/// Random messages until `count` were compared.
pub(crate) fn run(count: u32) -> Result<Option<Tally>, QtestError> {
    let Some(mut trio) = Trio::start("interrupts", |_| Some("aw-bits=48,intremap=on,eim=off"))? else {
        return Ok(None);
    };
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    trio.clear(TABLE)?;
    trio.all(|twin| twin.set_register64(offset::IQA, QUEUE))?;
    trio.command(0x0400_0000)?;
    trio.all(|twin| twin.set_register64(offset::IRTA, TABLE | 3))?;
    trio.command(0x0500_0000)?;
    let (mut enabled, mut status) = (false, 0x0400_0000);
    while trio.tally.interrupts < count {
        for _ in 0..1 + random.below(4) {
            let index = random.below(ENTRIES);
            let words = entry(&mut random);
            trio.write(TABLE + index * 16, words[0])?;
            trio.write(TABLE + index * 16 + 8, words[1])?;
            let mask = random.below(4);
            let one = 4 | 1 << 4 | mask << 27 | (index >> mask << mask) << 32;
            let descriptor = random.pick([4, one, one]);
            trio.invalidate(&[[descriptor, 0]])?;
        }
        // Remapping is on most of the time.
        if enabled == random.once_in(10) {
            enabled = !enabled;
            status ^= 0x0200_0000;
            trio.command(status)?;
        }
        for _ in 0..12 {
            message(&mut trio, &mut random)?;
        }
    }
    let seen = &trio.tally;
    assert!(seen.passed > count / 10, "too few interrupts passed: {seen}");
    Ok(Some(trio.tally))
}
