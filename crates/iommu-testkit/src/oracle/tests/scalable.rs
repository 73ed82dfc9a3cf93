use super::*;
use crate::SparseMemory;
use crate::raw::{self, RawTables};

/// 16-bit domain-ids, 3 and 4 levels, MGAW 48, ZLR, large pages in both stages.
const CAP: u64 = 6 | 0b110 << 8 | 47 << 16 | 1 << 22 | 3 << 34 | 1 << 56;
/// QI DT PT SC NEST PRS SRS EAFS PSS=19 PASID SMTS SSADS SSTS FSTS SMPWCS RPS RPRIVS.
const ECAP: u64 = 1 << 1
    | 1 << 2
    | 1 << 6
    | 1 << 7
    | 1 << 26
    | 1 << 29
    | 1 << 31
    | 1 << 34
    | 19 << 35
    | 1 << 40
    | 1 << 43
    | 0b11111 << 45
    | 1 << 53;
const SID: u16 = 0x0280;
const PASIDE: u64 = 1 << 3;
const DTE: u64 = 1 << 2;

const UNIT: OracleUnit = OracleUnit {
    rtaddr: 0x10_0400,
    cap: CAP,
    ecap: ECAP,
    ver: 0x60,
    haw: 39,
};

struct Bench<'m> {
    memory: &'m SparseMemory,
    tables: RawTables<'m, SparseMemory>,
    context: u64,
    directory: u64,
    pages: u64,
}

/// Root 10_0000h, PASID directory 10_1000h, paging root 10_2000h; RID_PASID 0, PASIDs below 2^13.
fn bench(memory: &SparseMemory, enables: u64) -> Bench<'_> {
    let mut tables = RawTables::new(memory, 0x10_0000);
    let (root, directory, pages) = (tables.page(), tables.page(), tables.page());
    let context = tables.scalable_context(root, SID, raw::scalable_context_entry(directory, 0, 0, enables));
    Bench {
        memory,
        tables,
        context,
        directory,
        pages,
    }
}

impl Bench<'_> {
    fn send(&self, request: OracleRequest) -> Result<u64, (u8, bool)> {
        brief(translate(self.memory, &UNIT, &request))
    }
    fn read(&self, address: u64) -> Result<u64, (u8, bool)> {
        self.send(OracleRequest::new(SID, address, OracleAccess::Read))
    }
    fn write(&self, address: u64) -> Result<u64, (u8, bool)> {
        self.send(OracleRequest::new(SID, address, OracleAccess::Write))
    }
    fn ask(&self, address: u64) -> OracleOutcome {
        translate(self.memory, &UNIT, &OracleRequest::translation(SID, address))
    }
}

#[test]
fn second_stage_tells_absent_pages_from_missing_rights() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 0);
    b.tables.pasid(b.directory, 0, raw::pasid_second_stage(b.pages, 2, 5));
    b.tables.second_stage(b.pages, 4, 0x7000, 0x20_3000, 1, raw::SS_READ);
    b.tables.second_stage(b.pages, 4, 0x8000, 0x20_4000, 1, raw::SS_WRITE);
    assert_eq!(b.read(0x7008), Ok(0x20_3008));
    assert_eq!(b.write(0x7008), Err((0x85, false)));
    assert_eq!(b.read(0x8000), Err((0x86, false)));
    assert_eq!(b.read(0x9000), Err((0x79, false)));
    assert_eq!(b.read(1 << 48), Err((0x84, false)));
    b.tables.flip(b.pages, 7);
    assert_eq!(b.read(0x7008), Err((0x7a, false)));
}

#[test]
fn each_malformed_structure_has_its_reason() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, PASIDE | DTE);
    let entry = b.tables.pasid(b.directory, 0, raw::pasid_second_stage(b.pages, 2, 5));
    b.tables.second_stage(b.pages, 4, 0x7000, 0x20_3000, 1, raw::SS_READ);
    let (half, link) = (0x10_0028, b.directory);
    for (at, bit, reason) in [
        (half, 0, 0x39),
        (half, 1, 0x3a),
        (half, 38, 0x40),
        (b.context, 0, 0x41),
        (b.context, 7, 0x42),
        (b.context, 5, 0x42),
        (b.context, 6, 0x42),
        (b.context + 8, 21, 0x42),
        (b.context + 16, 0, 0x42),
        (b.context + 24, 63, 0x42),
        (b.context + 8, 13, 0x43),
        (b.context, 38, 0x50),
        (link, 0, 0x51),
        (link, 2, 0x52),
        (link, 38, 0x58),
        (entry, 0, 0x59),
        (entry, 5, 0x5a),
        (entry, 39, 0x5a),
        (entry + 8, 16, 0x5a),
        (entry + 8, 25, 0x5a),
        (entry + 16, 1, 0x5a),
        (entry + 24, 0, 0x5a),
        (entry + 32, 12, 0x5a),
        (entry + 56, 0, 0x5a),
        (entry, 8, 0x5b),
        (entry, 7, 0x5b),
        (entry, 4, 0x5b),
        (entry, 38, 0x7b),
    ] {
        b.tables.flip(at, bit);
        assert_eq!(b.read(0x7000), Err((reason, false)), "bit {bit} of {at:#x}");
        b.tables.flip(at, bit);
    }
    b.tables.flip(b.context, 4);
    b.tables.flip(b.context, 2);
    assert_eq!(b.read(0x7000), Err((0x43, false)));
    assert_eq!(
        b.send(OracleRequest::translation(SID, 0x7000)),
        Err((0x43, false)),
        "the entry's own checks come before those of the request"
    );
}

#[test]
fn pasids_are_checked_against_width_directory_and_rid_pasid() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, PASIDE);
    b.tables.put(b.context + 8, 7);
    b.tables.pasid(b.directory, 0x41, raw::pasid_pass_through(1));
    let with = |b: &Bench<'_>, pasid| b.send(OracleRequest::new(SID, 0x7000, OracleAccess::Read).with_pasid(pasid));
    assert_eq!(with(&b, 0x41), Ok(0x7000));
    assert_eq!(with(&b, 7), Err((0x48, false)));
    assert_eq!(with(&b, 0x2000), Err((0x46, false)));
    assert_eq!(with(&b, 0x10_0000), Err((0x89, false)));
    b.tables.flip(b.context, 3);
    assert_eq!(with(&b, 0x41), Err((0x45, false)));
    b.tables.flip(b.context, 1);
    assert_eq!(with(&b, 0x41), Err((0x45, true)));
}

#[test]
fn first_stage_judges_canonical_addresses_privilege_and_writes() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 0);
    let entry = b.tables.pasid(b.directory, 0, raw::pasid_first_stage(b.pages, 4, 6));
    // Snooped walks, so that flags can be set.
    b.tables.flip(entry + 8, 23);
    let used = raw::FS_PRESENT | raw::FS_USER;
    let high = 0xffff_8000_0000_1000;
    b.tables
        .first_stage(b.pages, 4, high, 0x20_3000, 1, used | raw::FS_WRITE);
    b.tables.first_stage(b.pages, 4, 0x5000, 0x20_4000, 1, used);
    b.tables
        .first_stage(b.pages, 4, 0x6000, 0x20_5000, 1, raw::FS_PRESENT | raw::FS_WRITE);
    assert_eq!(b.write(high + 8), Ok(0x20_3008));
    assert_eq!(b.read(0x0000_8000_0000_1000), Err((0x80, false)));
    assert_eq!(b.write(0x5000), Err((0x85, false)));
    assert_eq!(b.read(0x6000), Err((0x81, false)));
    assert_eq!(b.read(0x7000), Err((0x71, false)));
    // RID_PRIV: refused without SRE; with it, user bits and, without WPE, write bits do not count.
    b.tables.flip(b.context + 8, 20);
    assert_eq!(b.read(0x6000), Err((0x5d, false)));
    b.tables.flip(entry + 16, 0);
    assert_eq!(b.read(0x6000), Ok(0x20_5000));
    assert_eq!(b.write(0x5000), Ok(0x20_4000));
    b.tables.flip(entry + 16, 4);
    assert_eq!(b.write(0x5000), Err((0x85, false)));
}

#[test]
fn first_stage_flags_are_set_once_and_need_a_snooped_walk() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 0);
    let entry = b.tables.pasid(b.directory, 0, raw::pasid_first_stage(b.pages, 4, 6));
    let leaf = b.tables.first_stage(b.pages, 4, 0x20_0000, 0x40_0000, 2, 7);
    assert_eq!(b.read(0x20_0000), Err((0x90, false)));
    b.tables.flip(entry + 8, 23);
    let judged = judge(&memory, &UNIT, &OracleRequest::new(SID, 0x20_0008, OracleAccess::Write));
    let set: Vec<(u64, u64)> = judged.updates.iter().map(|u| (u.at, u.set)).collect();
    let upper = leaf & !0xfff;
    assert_eq!(set, [(b.pages, 0x20), (upper - 0x1000, 0x20), (leaf, 0x60)]);
    for update in &judged.updates {
        b.tables.put(update.at, b.tables.get(update.at) | update.set);
    }
    let again = judge(&memory, &UNIT, &OracleRequest::new(SID, 0x20_0008, OracleAccess::Write));
    assert_eq!(again.updates, []);
    b.tables.flip(entry + 8, 23);
    assert_eq!(b.write(0x20_0000), Ok(0x40_0000), "nothing to set, nothing to snoop");
}

/// Nested: guest memory at 0..40_0000h lies at host 80_0000h; the guest's tables start at guest 10_0000h.
fn nested(memory: &SparseMemory) -> (Bench<'_>, u64, RawTables<'_, SparseMemory>) {
    let mut b = bench(memory, DTE);
    for page in 0..2 {
        let at = page << 21;
        b.tables.second_stage(b.pages, 4, at, 0x80_0000 + at, 2, 3);
    }
    let entry = b
        .tables
        .pasid(b.directory, 0, raw::pasid_nested(0x10_0000, 4, b.pages, 2, 9));
    b.tables.flip(entry + 8, 23);
    let guest = RawTables::new(memory, 0x90_0000);
    (b, entry, guest)
}

#[test]
fn nested_takes_each_guest_address_through_the_second_stage() {
    let memory = SparseMemory::new(1 << 24);
    let (mut b, _, _) = nested(&memory);
    // Guest tables at guest 10_0000h .. 10_3000h, that is host 90_0000h ...
    let put = |guest: u64, value: u64| b.tables.put(0x80_0000 + guest, value);
    put(0x10_0000, 0x10_1007);
    put(0x10_1000, 0x10_2007);
    put(0x10_2000, 0x10_3007);
    put(0x10_3000 + 8 * 7, 0x3_5007);
    put(0x10_3000 + 8 * 8, 0x60_0007);
    put(0x10_3000 + 8 * 9, (1 << 38) | 7);
    assert_eq!(b.read(0x7010), Ok(0x83_5010));
    assert_eq!(b.read(0x8000), Err((0x79, false)));
    assert_eq!(b.read(0x9000), Err((0x79, false)));
    let completion = OracleOutcome::Completion {
        host: 0x83_5000,
        page_shift: 12,
        read: true,
        write: true,
        untranslated_only: false,
    };
    assert_eq!(b.ask(0x7000), completion);
    // A guest page of 1 GiB over host pages of 2 MiB: the smaller counts.
    put(0x10_1000 + 8, 0x87);
    let completion = OracleOutcome::Completion {
        host: 0xa0_0000,
        page_shift: 21,
        read: true,
        write: true,
        untranslated_only: false,
    };
    assert_eq!(b.ask(0x4020_0000), completion);
    // A guest table whose page may not be read.
    let leaf = b.tables.entry_at(b.pages, 4, 0, 2, 3);
    b.tables.flip(leaf, 0);
    assert_eq!(b.read(0x7010), Err((0x75, false)));
    b.tables.flip(leaf, 0);
    // A guest table whose page may not be written: accessed flags cannot be set.
    b.tables.flip(leaf, 1);
    assert_eq!(b.read(0x7010), Err((0x77, false)));
}

#[test]
fn nested_guest_pointers_are_bounded_by_the_second_stage_width() {
    let memory = SparseMemory::new(1 << 24);
    let (b, entry, _) = nested(&memory);
    let narrow = OracleUnit {
        cap: CAP & !(0x3f << 16) | 35 << 16,
        ..UNIT
    };
    let read = || {
        let request = OracleRequest::new(SID, 0x7000, OracleAccess::Read);
        brief(translate(&memory, &narrow, &request))
    };
    b.tables.put(0x90_0000, 1 << 37 | 7);
    assert_eq!(read(), Err((0x74, false)));
    b.tables.put(entry + 16, 1 << 37);
    assert_eq!(read(), Err((0x5b, false)));
}

#[test]
fn second_stage_flags_follow_ssade() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, DTE);
    let mut words = raw::pasid_second_stage(b.pages, 2, 5);
    words[0] |= 1 << 9;
    let entry = b.tables.pasid(b.directory, 0, words);
    let leaf = b.tables.second_stage(b.pages, 4, 0x4000_0000, 0x4000_0000, 3, 3);
    assert_eq!(b.read(0x4000_0000), Err((0x7c, false)));
    b.tables.flip(entry + 8, 23);
    let updates = |request| {
        let judged = judge(&memory, &UNIT, &request);
        judged.updates.iter().map(|u| (u.at, u.set)).collect::<Vec<_>>()
    };
    let read = OracleRequest::new(SID, 0x4000_0000, OracleAccess::Read);
    let write = OracleRequest::new(SID, 0x4000_0000, OracleAccess::Write);
    assert_eq!(updates(read), [(b.pages, 0x100), (leaf, 0x100)]);
    assert_eq!(updates(write), [(b.pages, 0x100), (leaf, 0x300)]);
    // A translation request counts as a write, unless it says otherwise on a unit that listens.
    let mut ask = OracleRequest::translation(SID, 0x4000_0000);
    assert_eq!(updates(ask), [(b.pages, 0x100), (leaf, 0x300)]);
    ask.no_write = true;
    assert_eq!(updates(ask), [(b.pages, 0x100), (leaf, 0x300)]);
    let listening = OracleUnit {
        ecap: ECAP | 1 << 33,
        ..UNIT
    };
    let judged = judge(&memory, &listening, &ask);
    assert_eq!(judged.updates.last().map(|u| u.set), Some(0x100));
    assert!(matches!(
        judged.outcome,
        OracleOutcome::Completion {
            write: false,
            read: true,
            ..
        }
    ));
}

#[test]
fn pass_through_and_translated_requests_end_at_the_host_width() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, DTE);
    b.tables.pasid(b.directory, 0, raw::pasid_pass_through(1));
    assert_eq!(b.write(0x7000), Ok(0x7000));
    assert_eq!(b.write(1 << 39), Err((0x83, false)));
    let translated = |b: &Bench<'_>, address| b.send(OracleRequest::translated(SID, address, OracleAccess::Read));
    assert_eq!(translated(&b, 0x9000), Ok(0x9000));
    assert_eq!(translated(&b, 1 << 39), Err((0x83, false)));
    assert_eq!(translated(&b, 0xfee0_0000), Err((0x87, false)));
    b.tables.flip(b.context, 2);
    assert_eq!(translated(&b, 0x9000), Err((0x44, false)));
}

#[test]
fn the_host_permission_table_gates_translated_requests() {
    let memory = SparseMemory::new(1 << 24);
    let unit = OracleUnit {
        ecap: ECAP | 1 << 55 | 1 << 59,
        ..UNIT
    };
    let mut b = bench(&memory, DTE | 1 << 5);
    let entry = b.tables.pasid(b.directory, 0, raw::pasid_pass_through(1));
    let tables: Vec<u64> = (0..4).map(|_| b.tables.page()).collect();
    b.tables.put(entry + 32, tables[0]);
    b.tables.put_words(tables[0], &[0, tables[1] | 1]);
    // 1 GiB at 4000_0000h readable; below that, tables.
    b.tables.put_words(tables[1], &[1 << 4, tables[2] | 1]);
    // 2 MiB at 20_0000h writable.
    b.tables.put_words(tables[2], &[2 << 4, tables[3] | 1]);
    // 4 KiB at 1_0000h (slot 16) readable and writable.
    b.tables.put_words(tables[3], &[0, 3]);
    let send = |address, access| {
        let request = OracleRequest::translated(SID, address, access);
        brief(translate(&memory, &unit, &request))
    };
    assert_eq!(send(0x4000_0000, OracleAccess::Read), Ok(0x4000_0000));
    assert_eq!(send(0x4000_0000, OracleAccess::Write), Err((0xa4, false)));
    assert_eq!(send(0x20_0000, OracleAccess::Write), Ok(0x20_0000));
    assert_eq!(send(0x20_0000, OracleAccess::Read), Err((0xa5, false)));
    assert_eq!(send(0x1_0000, OracleAccess::Atomic), Ok(0x1_0000));
    assert_eq!(send(0x1_1000, OracleAccess::Read), Err((0xa5, false)));
    assert_eq!(send(1 << 49, OracleAccess::Read), Err((0x60, false)));
    // A zero-length read passes with any right.
    let zero = |address| {
        let mut request = OracleRequest::translated(SID, address, OracleAccess::Read);
        request.zero_length = true;
        brief(translate(&memory, &unit, &request))
    };
    assert_eq!(zero(0x20_0000), Ok(0x20_0000));
    assert_eq!(zero(0x1_1000), Err((0xa3, false)));
    b.tables.put(tables[3], 4);
    assert_eq!(send(0x1_0000, OracleAccess::Read), Err((0xa1, false)));
}

#[test]
fn a_page_without_write_right_never_gets_dirty() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, DTE);
    let mut words = raw::pasid_second_stage(b.pages, 2, 5);
    words[0] |= 1 << 9;
    words[1] |= 1 << 23;
    b.tables.pasid(b.directory, 0, words);
    let leaf = b.tables.second_stage(b.pages, 4, 0x7000, 0x20_3000, 1, raw::SS_READ);
    let judged = judge(&memory, &UNIT, &OracleRequest::translation(SID, 0x7000));
    assert!(judged.updates.contains(&FlagUpdate { at: leaf, set: 0x100 }));
    let refused = judge(&memory, &UNIT, &OracleRequest::new(SID, 0x7000, OracleAccess::Write));
    assert_eq!(refused.updates, []);
}

#[test]
fn a_translated_page_must_not_hold_the_interrupt_range() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, DTE);
    b.tables.pasid(b.directory, 0, raw::pasid_second_stage(b.pages, 2, 5));
    b.tables.second_stage(b.pages, 4, 0x4000_0000, 0xc000_0000, 3, 3);
    // An access is judged by its own address, a completion by the whole page.
    assert_eq!(b.write(0x4000_0000), Ok(0xc000_0000));
    assert_eq!(b.write(0x7ee0_0000), Err((0x87, false)));
    let abort = OracleOutcome::Fault {
        reason: 0x87,
        suppressed: false,
        condition: "SGN.8.2",
        response: Response::CompleterAbort,
    };
    assert_eq!(b.ask(0x4000_0000), abort);
    // With a PASID the interrupt range is an address like any other, unless it comes out again.
    b.tables.flip(b.context, 3);
    b.tables.pasid(b.directory, 1, raw::pasid_second_stage(b.pages, 2, 5));
    b.tables.second_stage(b.pages, 4, 0xfee0_0000, 0x20_3000, 1, 3);
    b.tables.pasid(b.directory, 2, raw::pasid_pass_through(5));
    let with = |pasid| b.send(OracleRequest::new(SID, 0xfee0_0000, OracleAccess::Write).with_pasid(pasid));
    assert_eq!(with(1), Ok(0x20_3000));
    assert_eq!(with(2), Err((0x87, false)));
}

#[test]
fn translation_requests_hear_of_absent_entries_but_not_of_pages() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, DTE);
    let nothing = OracleOutcome::Completion {
        host: 0,
        page_shift: 12,
        read: false,
        write: false,
        untranslated_only: false,
    };
    assert_eq!(b.ask(0x7000), nothing, "no PASID directory entry: SPD.2");
    let entry = b.tables.pasid(b.directory, 0, raw::pasid_second_stage(b.pages, 2, 5));
    assert_eq!(b.ask(0x7000), nothing, "no page: SSS.2");
    assert_eq!(b.ask(1 << 50), nothing, "out of reach: SGN.5");
    b.tables.flip(entry, 5);
    let abort = OracleOutcome::Fault {
        reason: 0x5a,
        suppressed: false,
        condition: "SPT.3",
        response: Response::CompleterAbort,
    };
    assert_eq!(b.ask(0x7000), abort);
    b.tables.flip(b.context, 2);
    let unsupported = OracleOutcome::Fault {
        reason: 0x44,
        suppressed: false,
        condition: "SCT.5",
        response: Response::UnsupportedRequest,
    };
    assert_eq!(b.ask(0x7000), unsupported);
}

#[test]
fn execution_is_refused_by_version() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, PASIDE);
    b.tables.pasid(b.directory, 1, raw::pasid_pass_through(5));
    let mut request = OracleRequest::new(SID, 0x7000, OracleAccess::Read).with_pasid(1);
    request.execute = true;
    assert_eq!(b.send(request), Err((0x5c, false)));
    let newer = OracleUnit { ver: 0x80, ..UNIT };
    assert_eq!(brief(translate(&memory, &newer, &request)), Err((0x34, false)));
}

/// Each field of the PASID entry that a capability unlocks: word, bits, capability bit of ECAP.
#[test]
fn fields_of_absent_capabilities_are_reserved() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 0);
    let all = ECAP | 1 << 25 | 1 << 55;
    let entry = b.tables.pasid(b.directory, 0, raw::pasid_pass_through(1));
    let send = |ecap| {
        let request = OracleRequest::new(SID, 0x7000, OracleAccess::Read);
        brief(translate(&memory, &OracleUnit { ecap, ..UNIT }, &request))
    };
    for (word, bits, capability) in [
        (0, 1 << 2, 46),
        (0, 1 << 9, 45),
        (0, 1 << 9, 46),
        (0, 0x1000, 46),
        (1, 1 << 23, 48),
        (1, 1 << 24, 7),
        (1, 1 << 25, 25),
        (1, 1 << 26, 25),
        (1, 6 << 32, 25),
        (2, 1, 31),
        (2, 1 << 2, 47),
        (2, 1 << 4, 47),
        (2, 1 << 7, 34),
        (2, 0x1000, 47),
        (4, 3, 55),
        (4, 0x1000, 55),
        (5, 1, 55),
    ] {
        let at = entry + 8 * word;
        let before = b.tables.get(at);
        b.tables.put(at, before | bits);
        assert_eq!(send(all), Ok(0x7000), "word {word}, bits {bits:#x}");
        assert_eq!(
            send(all & !(1 << capability)),
            Err((0x5a, false)),
            "word {word}, bits {bits:#x}"
        );
        b.tables.put(at, before);
    }
    b.tables.put(entry + 8, 8 << 32 | 1);
    assert_eq!(send(all), Err((0x5a, false)), "bit 3 of a PAT entry");
}

#[test]
fn pasids_in_translated_requests_need_eptr_which_needs_paside() {
    let memory = SparseMemory::new(1 << 24);
    let unit = OracleUnit {
        ecap: ECAP | 1 << 56,
        ..UNIT
    };
    let b = bench(&memory, DTE | PASIDE | 1 << 6);
    let send = |request: OracleRequest| brief(translate(&memory, &unit, &request));
    let tagged = OracleRequest::translated(SID, 0x7000, OracleAccess::Read).with_pasid(1);
    let untagged = OracleRequest::translated(SID, 0x7000, OracleAccess::Read);
    assert_eq!(send(tagged), Ok(0x7000));
    b.tables.flip(b.context, 6);
    assert_eq!(send(tagged), Err((0x49, false)));
    assert_eq!(send(untagged), Ok(0x7000));
    b.tables.flip(b.context, 6);
    b.tables.flip(b.context, 3);
    assert_eq!(send(tagged), Err((0x43, false)));
    assert_eq!(send(untagged), Err((0x43, false)));
    let plain = OracleRequest::new(SID, 0x7000, OracleAccess::Read).with_pasid(1);
    assert_eq!(send(plain), Err((0x45, false)));
}

#[test]
fn five_levels_and_huge_pages_of_the_first_stage_need_their_capabilities() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 0);
    let entry = b.tables.pasid(b.directory, 0, raw::pasid_first_stage(b.pages, 5, 6));
    b.tables.flip(entry + 8, 23);
    b.tables.first_stage(b.pages, 5, 1 << 52, 0x4000_0000, 3, 7);
    let read = |cap, address| {
        let request = OracleRequest::new(SID, address, OracleAccess::Read);
        brief(translate(&memory, &OracleUnit { cap, ..UNIT }, &request))
    };
    assert_eq!(read(CAP, 1 << 52), Err((0x5b, false)));
    assert_eq!(read(CAP | 1 << 60, (1 << 52) + 0x123_4560), Ok(0x4123_4560));
    assert_eq!(read(CAP | 1 << 60, 1 << 56), Err((0x80, false)));
    assert_eq!(read((CAP | 1 << 60) & !(1 << 56), 1 << 52), Err((0x72, false)));
    b.tables.put(entry + 16, b.pages | 2 << 2);
    assert_eq!(read(CAP | 1 << 60, 1 << 52), Err((0x5b, false)));
}

#[test]
fn the_extended_accessed_flag_is_set_when_enabled() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 0);
    let entry = b.tables.pasid(b.directory, 0, raw::pasid_first_stage(b.pages, 4, 6));
    b.tables.flip(entry + 8, 23);
    b.tables.flip(entry + 16, 7);
    let leaf = b
        .tables
        .first_stage(b.pages, 4, 0x5000, 0x20_4000, 1, 7 | raw::FS_ACCESSED);
    let judged = judge(&memory, &UNIT, &OracleRequest::new(SID, 0x5000, OracleAccess::Read));
    assert_eq!(judged.updates.len(), 4);
    assert_eq!(judged.updates.last(), Some(&FlagUpdate { at: leaf, set: 1 << 10 }));
}

#[test]
fn io_permission_bits_replace_the_others_under_ssirwe() {
    let memory = SparseMemory::new(1 << 24);
    let mut b = bench(&memory, 0);
    b.tables.pasid(b.directory, 0, raw::pasid_second_stage(b.pages, 1, 5));
    // 39 bits, three levels; bits 0 and 1 everywhere, then bit 61 too.
    let leaf = b.tables.second_stage(b.pages, 3, 0x7000, 0x20_3000, 1, 3);
    let unit = OracleUnit {
        rtaddr: UNIT.rtaddr | 1 << 7,
        ecap: ECAP | 1 << 57,
        ..UNIT
    };
    let send = |access| brief(translate(&memory, &unit, &OracleRequest::new(SID, 0x7000, access)));
    assert_eq!(b.read(0x7000), Ok(0x20_3000));
    assert_eq!(send(OracleAccess::Read), Err((0x79, false)));
    for level in 1..=3 {
        let at = b.tables.entry_at(b.pages, 3, 0x7000, level, 3);
        b.tables.flip(at, 61);
    }
    assert_eq!(send(OracleAccess::Read), Ok(0x20_3000));
    assert_eq!(send(OracleAccess::Write), Err((0x85, false)));
    b.tables.put(leaf, b.tables.get(leaf) & !3 | 1 << 62);
    assert_eq!(
        send(OracleAccess::Write),
        Err((0x85, false)),
        "W of the upper levels is missing"
    );
    assert_eq!(send(OracleAccess::Read), Ok(0x20_3000));
}
