//! Interrupt remapping (VT-d §5.1, §9.9).

use iommu_testkit::raw;
use vtd_model::{Interrupt, RemappedInterrupt};
use vtd_spec::encoding::DeliveryMode;
use vtd_spec::register::offset;

use crate::rig::{NIC, Rig, spec};

const S_256: u64 = 7;
const EIME: u64 = 1 << 11;

/// A unit that remaps interrupts through a table of 256 entries.
fn remapping(flags: u64) -> (Rig, u64) {
    let mut rig = Rig::new(spec());
    rig.enable_queue();
    let table = rig.tables.page();
    rig.write64(offset::IRTA, table | S_256 | flags);
    rig.command(|c| c.with_sirtp(true));
    rig.command(|c| c.with_ire(true));
    (rig, table)
}

fn message(index: u16) -> u64 {
    raw::remappable_address(index, false)
}

fn reason(rig: &mut Rig, sid: u16, address: u64, data: u32) -> u8 {
    rig.interrupt(sid, address, data).expect_err("blocked").reason.0
}

#[test]
fn an_entry_decides_vector_and_destination() {
    let (mut rig, table) = remapping(0);
    rig.tables
        .irte(table, 3, raw::irte(0x31, 0x700, raw::exact_source(NIC)));
    assert_eq!(
        rig.interrupt(NIC, message(3), 0),
        Ok(Interrupt::Remapped(RemappedInterrupt {
            index: 3,
            destination: 7,
            logical: false,
            redirection_hint: false,
            delivery_mode: DeliveryMode::Fixed,
            level: false,
            vector: 0x31,
        }))
    );
    let [low, high] = raw::irte(0x80, 0x700, 0);
    // Logical, redirection hint, level, lowest priority.
    rig.tables.irte(table, 4, [low | 0b0011_1100, high]);
    let Ok(Interrupt::Remapped(got)) = rig.interrupt(0x99, message(4), 0xFFFF_FFFF) else {
        panic!("remapped");
    };
    assert!(got.logical && got.redirection_hint && got.level);
    assert_eq!(got.delivery_mode, DeliveryMode::LowestPriority);
}

#[test]
pub(crate) fn the_sub_handle_is_added() {
    let (mut rig, table) = remapping(0);
    rig.tables.irte(table, 3, raw::irte(0x33, 0, 0));
    let got = rig
        .interrupt(NIC, raw::remappable_address(1, true), 2)
        .expect("delivered");
    assert_eq!(got.vector(), 0x33);
    // Without SHV the data does not count.
    assert_eq!(
        rig.interrupt(NIC, raw::remappable_address(3, false), 2)
            .expect("delivered")
            .vector(),
        0x33
    );
    assert_eq!(reason(&mut rig, NIC, raw::remappable_address(1, true), 0x1_0002), 0x20);
}

#[test]
pub(crate) fn an_index_beyond_the_table_is_refused_without_reading_it() {
    let (mut rig, table) = remapping(0);
    rig.tables.put_words(table + 4096, &raw::irte(0x31, 0, 0));
    assert_eq!(reason(&mut rig, NIC, message(256), 0), 0x21);
    assert_eq!(reason(&mut rig, NIC, raw::remappable_address(255, true), 1), 0x21);
    // 17 bits: no wrap to entry 0.
    rig.tables.irte(table, 0, raw::irte(0x31, 0, 0));
    assert_eq!(reason(&mut rig, NIC, raw::remappable_address(0xFFFF, true), 1), 0x21);
    assert_eq!(rig.unit.counters().walks.reads.interrupt, 0);
}

#[test]
pub(crate) fn entries_that_are_absent_reserved_or_unreadable_block() {
    let (mut rig, table) = remapping(0);
    assert_eq!(reason(&mut rig, NIC, message(1), 0), 0x22);
    let [low, high] = raw::irte(0x31, 0x700, 0);
    for words in [
        [low | 1 << 12, high],
        [low | 1 << 24, high],
        [low | 1 << 32, high],
        [low | 1 << 48, high],
        [low, high | 1 << 20],
        // Delivery modes 3 and 6, and posting without the capability.
        [low | 3 << 5, high],
        [low | 6 << 5, high],
        [low | 1 << 15, high],
    ] {
        rig.tables.irte(table, 2, words);
        assert_eq!(reason(&mut rig, NIC, message(2), 0), 0x24, "{words:x?}");
    }
    rig.break_bus(table + 32, 16);
    assert_eq!(reason(&mut rig, NIC, message(2), 0), 0x23);
}

#[test]
pub(crate) fn source_validation_compares_under_the_qualifier() {
    let (mut rig, table) = remapping(0);
    for (index, sq, source, passes) in [
        (0u32, 0u64, 0x0018u16, true),
        (1, 0, 0x0019, false),
        (2, 1, 0x001C, true),
        (3, 1, 0x001A, false),
        (4, 2, 0x001E, true),
        (5, 2, 0x001F, false),
        (6, 3, 0x001F, true),
        (7, 3, 0x0020, false),
    ] {
        rig.tables
            .irte(table, index, raw::irte(0x31, 0, raw::exact_source(NIC) | sq << 16));
        let got = rig.interrupt(source, message(index as u16), 0);
        assert_eq!(
            got.map_err(|fault| fault.reason.0).err(),
            (!passes).then_some(0x26),
            "{sq} {source:x}"
        );
    }
}

#[test]
fn a_bus_range_has_its_first_bus_in_the_high_byte() {
    let (mut rig, table) = remapping(0);
    rig.tables.irte(table, 0, raw::irte(0x31, 0, raw::bus_range(0, 5)));
    for (bus, passes) in [(0u16, true), (5, true), (6, false), (255, false)] {
        assert_eq!(
            rig.interrupt(bus << 8 | 0x18, message(0), 0).is_ok(),
            passes,
            "bus {bus}"
        );
    }
    // First above last: no bus.
    rig.tables.irte(table, 1, raw::irte(0x31, 0, raw::bus_range(5, 0)));
    assert_eq!(reason(&mut rig, 0x0018, message(1), 0), 0x26);
    assert_eq!(reason(&mut rig, 0x0518, message(1), 0), 0x26);
}

#[test]
fn the_reserved_validation_type_fails_closed() {
    let (mut rig, table) = remapping(0);
    rig.tables.irte(table, 0, raw::irte(0x31, 0, 3 << 18 | u64::from(NIC)));
    assert_eq!(reason(&mut rig, NIC, message(0), 0), 0x26);
}

#[test]
fn a_forged_source_is_reported_before_reserved_fields() {
    let (mut rig, table) = remapping(0);
    let [low, high] = raw::irte(0x31, 0, raw::exact_source(NIC));
    rig.tables.irte(table, 0, [low | 1 << 12, high]);
    assert_eq!(reason(&mut rig, 0x0020, message(0), 0), 0x26);
}

#[test]
fn extended_mode_uses_32_bit_destinations() {
    let (mut rig, table) = remapping(EIME);
    rig.tables.irte(table, 0, raw::irte(0x31, 0x0001_2345, 0));
    let Ok(Interrupt::Remapped(got)) = rig.interrupt(NIC, message(0), 0) else {
        panic!("remapped");
    };
    assert_eq!(got.destination, 0x0001_2345);
}

#[test]
pub(crate) fn compatibility_interrupts_pass_by_mode_and_flag() {
    let compatibility = 0xFEE0_7000;
    let (mut rig, _) = remapping(0);
    assert_eq!(reason(&mut rig, NIC, compatibility, 0x31), 0x25);
    rig.command(|c| c.with_cfi(true));
    let passed = Interrupt::Unmodified {
        address: compatibility,
        data: 0x31,
    };
    assert_eq!(rig.interrupt(NIC, compatibility, 0x31), Ok(passed));
    let (mut extended, _) = remapping(EIME);
    extended.command(|c| c.with_cfi(true));
    assert_eq!(reason(&mut extended, NIC, compatibility, 0x31), 0x25);
    // Remapping off: everything passes, in both formats.
    rig.command(|c| c.with_ire(false));
    assert_eq!(rig.interrupt(NIC, compatibility, 0x31), Ok(passed));
    assert!(rig.interrupt(NIC, message(9), 0).is_ok());
}

#[test]
fn fault_records_carry_the_index_and_respect_fpd() {
    let (mut rig, table) = remapping(0);
    let fault = rig.interrupt(NIC, message(0x12), 0).expect_err("not present");
    assert_eq!(fault.interrupt_index, Some(0x12));
    assert_eq!(
        rig.record(0).to_words(),
        [0x12 << 48, 1 << 63 | 0x22 << 32 | u64::from(NIC)]
    );
    rig.tables.irte(table, 0x13, [2, 0]);
    assert!(!rig.interrupt(NIC, message(0x13), 0).expect_err("not present").recorded);
    assert!(!rig.record(1).f());
}

#[test]
fn an_entry_stays_cached_until_it_is_invalidated() {
    let dropped_by = |descriptor: Option<[u64; 2]>| {
        let (mut rig, table) = remapping(0);
        rig.tables.irte(table, 0x40, raw::irte(0x31, 0, 0));
        let _ = rig.interrupt(NIC, message(0x40), 0).expect("delivered");
        rig.tables.irte(table, 0x40, raw::irte(0x32, 0, 0));
        if let Some(descriptor) = descriptor {
            rig.invalidate(&[descriptor]);
        }
        rig.interrupt(NIC, message(0x40), 0).expect("delivered").vector() == 0x32
    };
    assert!(!dropped_by(None));
    assert!(dropped_by(Some(raw::descriptor::INTERRUPT_GLOBAL)));
    assert!(dropped_by(Some(raw::descriptor::interrupt_entries(0x40, 0))));
    assert!(!dropped_by(Some(raw::descriptor::interrupt_entries(0x41, 0))));
    assert!(dropped_by(Some(raw::descriptor::interrupt_entries(0x43, 2))));
    assert!(!dropped_by(Some(raw::descriptor::interrupt_entries(0x44, 2))));
    assert!(dropped_by(Some(raw::descriptor::interrupt_entries(0, 15))));
    assert!(!dropped_by(Some(raw::descriptor::IOTLB_GLOBAL)));
}

#[test]
fn setting_the_table_pointer_drops_entries_only_with_the_capability() {
    for (enhanced, vector) in [(false, 0x31), (true, 0x32)] {
        let mut rig = Rig::new(spec().enhanced_interrupt_pointer(enhanced));
        let table = rig.tables.page();
        rig.write64(offset::IRTA, table | S_256);
        rig.command(|c| c.with_sirtp(true));
        rig.command(|c| c.with_ire(true));
        rig.tables.irte(table, 0, raw::irte(0x31, 0, 0));
        let _ = rig.interrupt(NIC, message(0), 0).expect("delivered");
        rig.tables.irte(table, 0, raw::irte(0x32, 0, 0));
        rig.command(|c| c.with_sirtp(true));
        assert_eq!(rig.interrupt(NIC, message(0), 0).expect("delivered").vector(), vector);
    }
}

#[test]
fn a_table_address_takes_effect_when_it_is_set() {
    let (mut rig, table) = remapping(0);
    rig.tables.irte(table, 0, raw::irte(0x31, 0, 0));
    rig.write64(offset::IRTA, 0x7000 | EIME);
    assert_eq!(rig.interrupt(NIC, message(0), 0).expect("delivered").vector(), 0x31);
}
