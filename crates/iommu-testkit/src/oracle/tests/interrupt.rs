use iommu_types::HostPhys;

use super::*;
use crate::SparseMemory;
use crate::raw::{self, RawTables, exact_source, remappable_address};

const TABLE: u64 = 0x10_0000;
/// IRES and CFIS.
const GSTS: u32 = 1 << 25 | 1 << 23;
/// QI, IR, EIM.
const ECAP: u64 = 0b11010;

/// 256 entries, APIC IDs of 8 bits, posting.
const UNIT: OracleInterruptUnit = OracleInterruptUnit {
    irta: TABLE | 7,
    gsts: GSTS,
    cap: 1 << 59,
    ecap: ECAP,
    haw: 39,
};

fn fault(reason: u8, suppressed: bool, index: u32) -> InterruptOutcome {
    InterruptOutcome::Fault {
        reason,
        suppressed,
        index: Some(index),
    }
}

fn table(memory: &SparseMemory) -> RawTables<'_, SparseMemory> {
    let mut tables = RawTables::new(memory, TABLE);
    tables.page();
    tables
}

fn send(memory: &SparseMemory, unit: &OracleInterruptUnit, sid: u16, handle: u16) -> InterruptOutcome {
    remap_interrupt(memory, unit, sid, remappable_address(handle, false), 0)
}

#[test]
fn an_entry_replaces_the_whole_message() {
    let memory = SparseMemory::new(1 << 24);
    let mut tables = table(&memory);
    tables.irte(
        TABLE,
        0x21,
        [0x0000_0700_0031_0001 | 1 << 4 | 3 << 2 | 1 << 5, 0x0004_0018],
    );
    let interrupt = OracleInterrupt {
        vector: 0x31,
        delivery: 1,
        destination: 7,
        logical: true,
        redirect: true,
        level: true,
    };
    assert_eq!(send(&memory, &UNIT, 0x18, 0x21), InterruptOutcome::Remapped(interrupt));
    assert_eq!(send(&memory, &UNIT, 0x19, 0x21), fault(0x26, false, 0x21));
    // A sub-handle counts from the handle.
    let address = remappable_address(0x20, true);
    assert_eq!(
        remap_interrupt(&memory, &UNIT, 0x18, address, 1),
        InterruptOutcome::Remapped(interrupt)
    );
    assert_eq!(
        remap_interrupt(&memory, &UNIT, 0x18, address, 0x1_0001),
        fault(0x20, false, 0x20)
    );
}

#[test]
fn indexes_beyond_the_table_do_not_wrap() {
    let memory = SparseMemory::new(1 << 24);
    let mut tables = table(&memory);
    tables.irte(TABLE, 0, raw::irte(0x31, 0x700, 0));
    assert_eq!(send(&memory, &UNIT, 0, 0x100), fault(0x21, false, 0x100));
    let wide = OracleInterruptUnit {
        irta: TABLE | 15,
        ..UNIT
    };
    let overflow = remap_interrupt(&memory, &wide, 0, remappable_address(0xffff, true), 1);
    assert_eq!(overflow, fault(0x21, false, 0x1_0000));
    let nowhere = OracleInterruptUnit {
        irta: 0x200_0000 | 7,
        ..UNIT
    };
    assert_eq!(send(&memory, &nowhere, 0, 0), fault(0x23, false, 0));
}

#[test]
fn compatibility_messages_pass_only_where_they_may() {
    let memory = SparseMemory::new(1 << 24);
    let send = |unit: OracleInterruptUnit| remap_interrupt(&memory, &unit, 0, 0xfee0_1000, 0x31);
    let none = |reason| InterruptOutcome::Fault {
        reason,
        suppressed: false,
        index: None,
    };
    let with = |irta, gsts, ecap| OracleInterruptUnit {
        irta,
        gsts,
        ecap,
        ..UNIT
    };
    let eime = TABLE | 7 | 1 << 11;
    assert_eq!(send(with(TABLE, 0, ECAP)), InterruptOutcome::Compatibility);
    assert_eq!(send(with(TABLE, 0, ECAP | 1 << 62)), none(0x2b));
    assert_eq!(send(with(TABLE, GSTS, ECAP)), InterruptOutcome::Compatibility);
    assert_eq!(send(with(TABLE, 1 << 25, ECAP)), none(0x25));
    assert_eq!(send(with(eime, GSTS, ECAP)), none(0x25));
    assert_eq!(send(with(TABLE, GSTS, ECAP | 1 << 61)), none(0x2a));
}

#[test]
fn each_bad_entry_has_its_reason_and_fpd_silences_it() {
    let memory = SparseMemory::new(1 << 24);
    let mut tables = table(&memory);
    let at = tables.irte(TABLE, 1, raw::irte(0x31, 0x700, exact_source(0x18)));
    for (word, bit, reason) in [
        (at, 0, 0x22),
        (at, 12, 0x24),
        (at, 32, 0x24),
        (at, 63, 0x24),
        (at + 8, 20, 0x24),
        (at + 8, 0, 0x26),
    ] {
        tables.flip(word, bit);
        assert_eq!(send(&memory, &UNIT, 0x18, 1), fault(reason, false, 1), "bit {bit}");
        tables.flip(at, 1);
        assert_eq!(send(&memory, &UNIT, 0x18, 1), fault(reason, true, 1), "bit {bit}");
        tables.flip(at, 1);
        tables.flip(word, bit);
    }
    // All 32 bits of the destination count in extended mode.
    let extended = OracleInterruptUnit {
        irta: UNIT.irta | 1 << 11,
        ..UNIT
    };
    tables.flip(at, 63);
    let outcome = send(&memory, &extended, 0x18, 1);
    assert!(matches!(outcome, InterruptOutcome::Remapped(i) if i.destination == 0x8000_0700));
}

#[test]
fn source_validation_masks_functions_and_ranges_buses() {
    let memory = SparseMemory::new(1 << 24);
    let mut tables = table(&memory);
    let passes = |validation: u64, sid: u16, tables: &mut RawTables<'_, SparseMemory>| {
        tables.irte(TABLE, 0, raw::irte(0x31, 0x700, validation));
        matches!(send(&memory, &UNIT, sid, 0), InterruptOutcome::Remapped(_))
    };
    assert!(passes(0, 0xffff, &mut tables));
    assert!(passes(exact_source(0x18) | 1 << 16, 0x1c, &mut tables));
    assert!(!passes(exact_source(0x18) | 1 << 16, 0x1a, &mut tables));
    assert!(passes(exact_source(0x18) | 2 << 16, 0x1e, &mut tables));
    assert!(!passes(exact_source(0x18) | 2 << 16, 0x19, &mut tables));
    assert!(passes(exact_source(0x18) | 3 << 16, 0x1f, &mut tables));
    assert!(passes(raw::bus_range(2, 4), 0x04ff, &mut tables));
    assert!(!passes(raw::bus_range(2, 4), 0x0500, &mut tables));
    assert!(!passes(3 << 18, 0, &mut tables));
}

#[test]
fn posting_sets_the_vector_and_notifies_once() {
    let memory = SparseMemory::new(1 << 24);
    let mut tables = table(&memory);
    let descriptor = 0x20_0040;
    tables.irte(TABLE, 0, raw::irte_posted(0x41, descriptor, false, 0));
    tables.put_words(descriptor, &raw::posted_descriptor(0xf2, 0x300));
    let notify = OracleInterrupt {
        vector: 0xf2,
        delivery: 0,
        destination: 3,
        logical: false,
        redirect: false,
        level: false,
    };
    let posted = |outcome| match outcome {
        InterruptOutcome::Posted(posting) => posting,
        other => panic!("not posted: {other:?}"),
    };
    let first = posted(send(&memory, &UNIT, 0, 0));
    assert_eq!(first.descriptor, descriptor);
    assert_eq!(first.after, [0, 2, 0, 0, 0x300_00f2_0001, 0, 0, 0]);
    assert_eq!(first.notify, Some(notify));
    tables.put_words(descriptor, &first.after);
    assert_eq!(posted(send(&memory, &UNIT, 0, 0)).notify, None);
    // Suppressed unless urgent.
    tables.put(descriptor + 32, 0x300_00f2_0002);
    assert_eq!(posted(send(&memory, &UNIT, 0, 0)).notify, None);
    tables.flip(TABLE, 14);
    assert_eq!(posted(send(&memory, &UNIT, 0, 0)).notify, Some(notify));
    tables.flip(descriptor + 32, 2);
    assert_eq!(send(&memory, &UNIT, 0, 0), fault(0x28, false, 0));
    let plain = OracleInterruptUnit { cap: 0, ..UNIT };
    assert_eq!(send(&memory, &plain, 0, 0), fault(0x24, false, 0));
    memory.break_bus(iommu_types::AddrRange::from_base_len(HostPhys::new(descriptor), 8).expect("not empty"));
    assert_eq!(send(&memory, &UNIT, 0, 0), fault(0x27, false, 0));
}

#[test]
fn addresses_beyond_the_host_width_are_told_apart() {
    let memory = SparseMemory::new(1 << 24);
    let mut tables = table(&memory);
    // The last entries of a table at the top of the address space lie beyond it.
    let top = OracleInterruptUnit {
        irta: ((1 << 39) - 0x1000) | 15,
        ..UNIT
    };
    assert_eq!(send(&memory, &top, 0, 0xff), fault(0x23, false, 0xff));
    assert_eq!(send(&memory, &top, 0, 0x100), fault(0x21, false, 0x100));
    tables.irte(TABLE, 0, raw::irte_posted(0x41, 1 << 38, false, 0));
    assert_eq!(send(&memory, &UNIT, 0, 0), fault(0x27, false, 0));
    tables.irte(TABLE, 0, raw::irte_posted(0x41, 1 << 39, false, 0));
    assert_eq!(send(&memory, &UNIT, 0, 0), fault(0x24, false, 0));
}

#[test]
fn notification_destinations_have_the_width_of_the_mode() {
    let memory = SparseMemory::new(1 << 24);
    let mut tables = table(&memory);
    tables.irte(TABLE, 0, raw::irte_posted(0x41, 0x20_0000, false, 0));
    tables.put_words(0x20_0000, &raw::posted_descriptor(0xf2, 0x1_0300));
    assert_eq!(send(&memory, &UNIT, 0, 0), fault(0x28, false, 0));
    let extended = OracleInterruptUnit {
        irta: UNIT.irta | 1 << 11,
        ..UNIT
    };
    let outcome = send(&memory, &extended, 0, 0);
    let destination = match outcome {
        InterruptOutcome::Posted(posting) => posting.notify.map(|n| n.destination),
        _ => None,
    };
    assert_eq!(destination, Some(0x1_0300));
}
