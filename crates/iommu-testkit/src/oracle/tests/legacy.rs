use super::*;
use crate::SparseMemory;
use crate::raw::{self, RawTables};

/// 16-bit domain-ids, 3 and 4 levels, MGAW 48, ZLR, 2 MiB and 1 GiB pages.
const CAP: u64 = 6 | 0b110 << 8 | 47 << 16 | 1 << 22 | 3 << 34;
/// QI, DT, PT.
const ECAP: u64 = 1 << 1 | 1 << 2 | 1 << 6;
const SID: u16 = 0x0210;

const UNIT: OracleUnit = OracleUnit {
    rtaddr: 0x10_0000,
    cap: CAP,
    ecap: ECAP,
    ver: 0x10,
    haw: 39,
};

struct Bench<'m> {
    tables: RawTables<'m, SparseMemory>,
    context: u64,
    pages: u64,
}

/// Root table at 10_0000h, second-stage root at 10_1000h, context table at 10_2000h.
fn bench(memory: &SparseMemory, tt: u64) -> Bench<'_> {
    let mut tables = RawTables::new(memory, 0x10_0000);
    let (root, pages) = (tables.page(), tables.page());
    let context = tables.legacy_context(root, SID, raw::legacy_context_entry(tt, pages, 2, 5));
    Bench { tables, context, pages }
}

fn read(memory: &SparseMemory, address: u64) -> Result<u64, (u8, bool)> {
    brief(translate(
        memory,
        &UNIT,
        &OracleRequest::new(SID, address, OracleAccess::Read),
    ))
}

fn write(memory: &SparseMemory, address: u64) -> Result<u64, (u8, bool)> {
    brief(translate(
        memory,
        &UNIT,
        &OracleRequest::new(SID, address, OracleAccess::Write),
    ))
}

#[test]
fn a_mapped_page_translates_with_its_rights_and_size() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 0);
    b.tables.second_stage(b.pages, 4, 0x7000, 0x20_3000, 1, raw::SS_READ);
    b.tables
        .second_stage(b.pages, 4, 0x4020_0000, 0x60_0000, 2, raw::SS_WRITE);
    let request = OracleRequest::new(SID, 0x7123, OracleAccess::Read);
    let expected = OracleOutcome::Pass {
        host: 0x20_3123,
        page_shift: 12,
        read: true,
        write: false,
    };
    assert_eq!(translate(&memory, &UNIT, &request), expected);
    assert_eq!(write(&memory, 0x7123), Err((5, false)));
    assert_eq!(write(&memory, 0x403f_ffff), Ok(0x7f_ffff));
    assert_eq!(read(&memory, 0x4020_0000), Err((6, false)));
    assert_eq!(read(&memory, 0x8000), Err((6, false)));
    assert_eq!(write(&memory, 0x8000), Err((5, false)));
}

#[test]
fn a_right_missing_at_any_level_is_missing() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 0);
    b.tables.second_stage(b.pages, 4, 0x7000, 0x20_3000, 1, 3);
    assert_eq!(write(&memory, 0x7000), Ok(0x20_3000));
    b.tables.flip(b.pages, 1);
    assert_eq!(write(&memory, 0x7000), Err((5, false)));
    assert_eq!(read(&memory, 0x7000), Ok(0x20_3000));
    let atomic = OracleRequest::new(SID, 0x7000, OracleAccess::Atomic);
    assert_eq!(brief(translate(&memory, &UNIT, &atomic)), Err((5, false)));
}

#[test]
fn a_zero_length_read_of_a_write_only_page_passes_only_with_zlr() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 0);
    b.tables.second_stage(b.pages, 4, 0x7000, 0x20_3000, 1, raw::SS_WRITE);
    let mut request = OracleRequest::new(SID, 0x7000, OracleAccess::Read);
    request.zero_length = true;
    assert_eq!(brief(translate(&memory, &UNIT, &request)), Ok(0x20_3000));
    let without = OracleUnit {
        cap: CAP & !(1 << 22),
        ..UNIT
    };
    assert_eq!(brief(translate(&memory, &without, &request)), Err((6, false)));
}

#[test]
fn each_malformed_structure_has_its_reason() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 0);
    let leaf = b.tables.second_stage(b.pages, 4, 0x7000, 0x20_3000, 1, 3);
    let root_entry = 0x10_0020;
    // Word, bit to turn over, expected reason.
    let cases = [
        (root_entry, 0, 0x01),
        (root_entry, 11, 0x0a),
        (root_entry, 39, 0x0a),
        (root_entry + 8, 63, 0x0a),
        (root_entry, 30, 0x09),
        (b.context, 0, 0x02),
        (b.context, 4, 0x0b),
        (b.context, 39, 0x0b),
        (b.context + 8, 7, 0x0b),
        (b.context + 8, 24, 0x0b),
        (b.context + 8, 0, 0x03),
        (b.context + 8, 1, 0x03),
        (b.context, 38, 0x03),
        (b.pages, 38, 0x07),
        (b.pages, 7, 0x0c),
        (b.pages, 11, 0x0c),
        (b.pages, 51, 0x0c),
        (leaf, 11, 0x0c),
        (leaf, 39, 0x0c),
        (leaf, 62, 0x0c),
    ];
    for (at, bit, reason) in cases {
        b.tables.flip(at, bit);
        assert_eq!(read(&memory, 0x7000), Err((reason, false)), "bit {bit} of {at:#x}");
        b.tables.flip(at, bit);
    }
    for ignored in [2, 3, 6, 7, 8, 9, 10, 52, 60, 61, 63] {
        b.tables.flip(leaf, ignored);
        assert_eq!(read(&memory, 0x7000), Ok(0x20_3000), "bit {ignored}");
        b.tables.flip(leaf, ignored);
    }
    assert_eq!(read(&memory, 0x7000), Ok(0x20_3000));
}

#[test]
fn large_pages_must_be_supported_and_aligned() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 0);
    let huge = b.tables.second_stage(b.pages, 4, 0x8000_0000, 0x4000_0000, 3, 3);
    assert_eq!(read(&memory, 0xbfff_fffc), Ok(0x7fff_fffc));
    b.tables.flip(huge, 29);
    assert_eq!(read(&memory, 0x8000_0000), Err((0x0c, false)));
    b.tables.flip(huge, 29);
    let unit = OracleUnit {
        cap: CAP & !(1 << 35),
        ..UNIT
    };
    let request = OracleRequest::new(SID, 0x8000_0000, OracleAccess::Read);
    assert_eq!(brief(translate(&memory, &unit, &request)), Err((0x0c, false)));
}

#[test]
fn fpd_silences_qualified_faults_even_in_an_absent_entry() {
    let memory = SparseMemory::new(1 << 24);
    let b = bench(&memory, 0);
    b.tables.flip(b.context, 1);
    assert_eq!(read(&memory, 0x7000), Err((6, true)));
    b.tables.flip(b.context, 0);
    assert_eq!(read(&memory, 0x7000), Err((2, true)));
    b.tables.flip(0x10_0020, 0);
    assert_eq!(read(&memory, 0x7000), Err((1, false)));
}

#[test]
fn addresses_end_at_the_smaller_of_mgaw_and_agaw() {
    let memory = SparseMemory::new(1 << 24);
    let b = bench(&memory, 0);
    assert_eq!(read(&memory, 1 << 48), Err((4, false)));
    assert_eq!(read(&memory, (1 << 48) - 8), Err((6, false)));
    b.tables.put(b.context + 8, 5 << 8 | 1);
    assert_eq!(read(&memory, 1 << 39), Err((4, false)));
    let unit = OracleUnit {
        cap: CAP & !(0x3f << 16) | 37 << 16,
        ..UNIT
    };
    let request = OracleRequest::new(SID, 1 << 38, OracleAccess::Read);
    assert_eq!(brief(translate(&memory, &unit, &request)), Err((4, false)));
}

#[test]
fn pass_through_is_bounded_by_the_host_width_and_blocks_other_kinds() {
    let memory = SparseMemory::new(1 << 24);
    let b = bench(&memory, 2);
    assert_eq!(write(&memory, (1 << 39) - 8), Ok((1 << 39) - 8));
    assert_eq!(write(&memory, 1 << 39), Err((4, false)));
    // The pointer is not used, hence not judged.
    b.tables.flip(b.context, 45);
    assert_eq!(write(&memory, 0x7000), Ok(0x7000));
    b.tables.flip(b.context, 45);
    let ask = OracleRequest::translation(SID, 0x7000);
    assert_eq!(brief(translate(&memory, &UNIT, &ask)), Err((0x0d, false)));
    let without = OracleUnit {
        ecap: ECAP & !(1 << 6),
        ..UNIT
    };
    let request = OracleRequest::new(SID, 0x7000, OracleAccess::Read);
    assert_eq!(brief(translate(&memory, &without, &request)), Err((3, false)));
}

#[test]
fn a_device_tlb_is_told_rights_rather_than_faults() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 1);
    b.tables.second_stage(b.pages, 4, 0x7000, 0x20_3000, 1, raw::SS_READ);
    let granted = OracleOutcome::Completion {
        host: 0x20_3000,
        page_shift: 12,
        read: true,
        write: false,
        untranslated_only: false,
    };
    let nothing = OracleOutcome::Completion {
        host: 0,
        page_shift: 12,
        read: false,
        write: false,
        untranslated_only: false,
    };
    let ask = |address| translate(&memory, &UNIT, &OracleRequest::translation(SID, address));
    assert_eq!(ask(0x7000), granted);
    assert_eq!(ask(0x9000), nothing);
    assert_eq!(ask(1 << 50), nothing);
    let own_interrupts = OracleOutcome::Completion {
        host: 0,
        page_shift: 12,
        read: false,
        write: true,
        untranslated_only: true,
    };
    assert_eq!(ask(0xfee0_1000), own_interrupts);
    // A malformed entry is not recoverable.
    b.tables.flip(b.pages, 7);
    let abort = OracleOutcome::Fault {
        reason: 0x0c,
        suppressed: false,
        condition: "LSS.2",
        response: Response::CompleterAbort,
    };
    assert_eq!(ask(0x7000), abort);
    let translated = |address| {
        let request = OracleRequest::translated(SID, address, OracleAccess::Write);
        brief(translate(&memory, &UNIT, &request))
    };
    assert_eq!(translated(0x5_5000), Ok(0x5_5000));
    assert_eq!(translated(1 << 39), Err((4, false)));
    assert_eq!(translated(0xfeef_f000), Err((0x0e, false)));
}

#[test]
fn the_interrupt_range_is_never_translated_and_never_reached() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 0);
    let msi = OracleRequest {
        len: 4,
        ..OracleRequest::new(SID, 0xfee0_0010, OracleAccess::Write)
    };
    assert_eq!(translate(&memory, &UNIT, &msi), OracleOutcome::Interrupt);
    assert_eq!(write(&memory, 0xfee0_0010), Err((0x29, false)));
    assert_eq!(read(&memory, 0xfeef_ffff), Err((0x29, false)));
    let probe = OracleRequest {
        zero_length: true,
        ..OracleRequest::new(SID, 0xfee0_0000, OracleAccess::Read)
    };
    assert_eq!(translate(&memory, &UNIT, &probe), OracleOutcome::NoData);
    b.tables.second_stage(b.pages, 4, 0x7000, 0xfee0_0000, 1, 3);
    assert_eq!(write(&memory, 0x7000), Err((0x0e, false)));
}

#[test]
fn modes_the_unit_lacks_block_everything() {
    let memory = SparseMemory::new(1 << 24);
    let _b = bench(&memory, 2);
    let request = OracleRequest::new(SID, 0x7000, OracleAccess::Read);
    let with = |rtaddr, ecap| brief(translate(&memory, &OracleUnit { rtaddr, ecap, ..UNIT }, &request));
    assert_eq!(with(0x10_0c00, ECAP), Err((0x30, false)));
    assert_eq!(with(0x10_0c00, ECAP | 1 << 52), Err((0x33, false)));
    assert_eq!(with(0x10_0800, ECAP), Err((0x30, false)));
    assert_eq!(with(0x10_0400, ECAP), Err((0x30, false)));
    assert_eq!(with(0x10_0080, ECAP | 1 << 57), Err((0x30, false)));
    assert_eq!(with(0x10_0080, ECAP), Ok(0x7000));
    let tagged = translate(&memory, &UNIT, &request.with_pasid(3));
    assert_eq!(brief(tagged), Err((0x31, false)));
    let tagged = OracleRequest::translated(SID, 0x7000, OracleAccess::Read).with_pasid(3);
    assert_eq!(translate(&memory, &UNIT, &tagged), OracleOutcome::Refused);
}

#[test]
fn domain_ids_wider_than_the_unit_knows_are_reserved() {
    let memory = SparseMemory::new(1 << 24);
    let b = bench(&memory, 0);
    let unit = OracleUnit {
        cap: CAP & !7 | 2,
        ..UNIT
    };
    let send = || {
        let request = OracleRequest::new(SID, 0x7000, OracleAccess::Read);
        brief(translate(&memory, &unit, &request))
    };
    b.tables.put(b.context + 8, 0xff << 8 | 2);
    assert_eq!(send(), Err((6, false)));
    b.tables.put(b.context + 8, 0x100 << 8 | 2);
    assert_eq!(send(), Err((0x0b, false)));
    assert_eq!(read(&memory, 0x7000), Err((6, false)), "sixteen bits take it");
}
