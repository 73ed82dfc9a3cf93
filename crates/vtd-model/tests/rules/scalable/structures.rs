//! Root, context and PASID structures: what they block and what they let pass (VT-d §9.2, §9.4 to §9.6).

use iommu_testkit::raw::{self, descriptor};
use iommu_types::{Pasid, Perms};
use vtd_model::{RequestKind, Response};

use super::{Bench, FS_ALL, PASIDE, RID, RW, full, plain, read, write};
use crate::rig::{DID, NIC, Rig, spec};

#[test]
pub(crate) fn root_and_context_conditions_block_with_their_codes() {
    let mut rig = Rig::scalable(full());
    assert_eq!(rig.fault(NIC, 0x1000), (0x39, "SRT.2"));
    rig.tables.put(rig.root, 0x2003);
    assert_eq!(rig.fault(NIC, 0x1000), (0x3A, "SRT.3"));
    // The other half has its own present bit.
    assert_eq!(rig.fault(0x0080, 0x1000), (0x39, "SRT.2"));
    rig.tables.put(rig.root, 0);
    let directory = rig.tables.page();
    let entry = raw::scalable_context_entry(directory, 0, 0, 0);
    let at = rig.tables.scalable_context(rig.root, NIC, entry);
    for (word, bits, outcome) in [
        (0, 1, (0x41, "SCT.2")),
        (0, 1 << 7, (0x42, "SCT.3")),
        (0, 1 << 48, (0x42, "SCT.3")),
        (1, 1 << 21, (0x42, "SCT.3")),
        (2, 1, (0x42, "SCT.3")),
        (3, 1 << 63, (0x42, "SCT.3")),
        // Page requests are not supported, so PRE is reserved.
        (0, 1 << 4, (0x42, "SCT.3")),
    ] {
        let mut words = entry;
        words[word] ^= bits;
        rig.tables.put_words(at, &words);
        assert_eq!(rig.fault(NIC, 0x1000), outcome, "{words:x?}");
    }
    rig.tables
        .put_words(at, &raw::scalable_context_entry(directory, 0, 1 << 13, 0));
    assert_eq!(rig.fault(NIC, 0x1000), (0x43, "SCT.4.2"));
    // A contradictory entry is a readable one, and cached.
    rig.break_bus(at, 8);
    assert_eq!(rig.fault(NIC, 0x1000), (0x43, "SCT.4.2"));
    rig.invalidate(&[descriptor::CONTEXT_GLOBAL]);
    assert_eq!(rig.fault(NIC, 0x1000), (0x40, "SCT.1"));
    rig.break_bus(rig.root, 8);
    assert_eq!(rig.fault(NIC, 0x1000), (0x38, "SRT.1"));
}

#[test]
pub(crate) fn requests_that_the_context_does_not_allow_are_blocked() {
    let mut bench = Bench::with_enables(full(), 0);
    bench.second(RID, 0);
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x45, "SCT.6")));
    for kind in [RequestKind::Translation, RequestKind::Translated] {
        assert_eq!(bench.ask(&plain(0x1000).with_kind(kind)), Err((0x44, "SCT.5")));
    }
    let mut bench = Bench::new(full());
    assert_eq!(bench.ask(&read(1 << 13, 0x1000)), Err((0x46, "SCT.7")));
    assert_eq!(bench.ask(&read(RID, 0x1000)), Err((0x48, "SCT.9")));
    // Without PTRS a translated request with PASID is malformed.
    assert_eq!(
        bench.ask(&read(1, 0x1000).with_kind(RequestKind::Translated)),
        Err((0, ""))
    );
    let mut narrow = Bench::new(full().pasid_bits(Some(8)));
    assert_eq!(narrow.ask(&read(0x100, 0x1000)), Err((0x89, "SGN.10")));
}

#[test]
pub(crate) fn pasid_structures_block_with_their_codes() {
    let mut bench = Bench::new(full());
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x51, "SPD.2")));
    bench.rig.tables.put(bench.directory, 0x2005);
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x52, "SPD.3")));
    bench.rig.tables.put(bench.directory, 0);
    let top = bench.rig.tables.page();
    let good = raw::pasid_second_stage(top, 2, DID);
    for (word, bits, outcome) in [
        (0, 1, (0x59, "SPT.2")),
        (0, 1 << 5, (0x5A, "SPT.3")),
        (1, 1 << 16, (0x5A, "SPT.3")),
        (1, 1 << 25, (0x5A, "SPT.3")),
        (3, 1, (0x5A, "SPT.3")),
        (6, 1, (0x5A, "SPT.3")),
        (7, 1 << 63, (0x5A, "SPT.3")),
        // Translation type 0, address width 3 without 5 levels.
        (0, 2 << 6, (0x5B, "SPT.4.2")),
        (0, 1 << 2, (0x5B, "SPT.4.1")),
    ] {
        let mut words = good;
        words[word] ^= bits;
        bench.pasid(1, words);
        assert_eq!(bench.ask(&read(1, 0x1000)), Err(outcome), "{words:x?}");
    }
    // 5-level first-stage tables without the capability, and a reserved mode.
    for mode in [1u64, 2] {
        let mut words = raw::pasid_first_stage(top, 4, DID);
        words[2] |= mode << 2;
        bench.pasid(1, words);
        assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x5B, "SPT.4.3")));
    }
    // Nested: the first-stage pointer is beyond the second stage.
    bench.pasid(1, raw::pasid_nested(1 << 40, 4, top, 1, DID));
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x5B, "SPT.4.4")));
    let at = bench.pasid(1, good);
    bench.rig.break_bus(at, 8);
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x58, "SPT.1")));
    bench.rig.break_bus(bench.directory, 8);
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x50, "SPD.1")));
}

#[test]
fn translation_types_of_missing_features_are_refused() {
    let without = spec()
        .scalable_mode(true)
        .scalable_second_stage(true)
        .pasid_bits(Some(20))
        .pass_through(false);
    let mut bench = Bench::with_enables(without, PASIDE);
    let top = bench.rig.tables.page();
    // First-stage fields are reserved without FSTS; the type alone is what is judged here.
    for words in [
        [1 | 1 << 6, 5, 0, 0, 0, 0, 0, 0],
        [1 | 3 << 6 | 2 << 2 | top, 5, 0, 0, 0, 0, 0, 0],
        raw::pasid_pass_through(5),
    ] {
        bench.pasid(1, words);
        assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x5B, "SPT.4.2")));
    }
    bench.second(2, 0);
    assert_eq!(
        bench.ask(&read(2, 0x1000)),
        Err((0x5A, "SPT.3")),
        "PWSNP needs coherency"
    );
}

#[test]
pub(crate) fn execute_and_privileged_requests_need_their_permission() {
    let mut bench = Bench::new(full());
    let top = bench.second(1, 0);
    bench.rig.map(top, 0x1000, 0x5000);
    assert_eq!(bench.ask(&read(1, 0x1000).with_execute()), Err((0x5C, "SPT.5")));
    assert_eq!(bench.ask(&read(1, 0x1000).with_privilege()), Err((0x5D, "SPT.6")));
    let mut newer = Bench::new(full().version((8, 0)));
    newer.second(1, 0);
    assert_eq!(newer.ask(&read(1, 0x1000).with_execute()), Err((0x34, "RTA.5")));
    // RID_PRIV makes requests without PASID privileged.
    bench.second(RID, 0);
    let context = bench.context;
    bench.rig.tables.flip(context + 8, 20);
    bench.rig.invalidate(&[descriptor::CONTEXT_GLOBAL]);
    assert_eq!(bench.ask(&plain(0x1000)), Err((0x5D, "SPT.6")));
}

#[test]
pub(crate) fn pass_through_checks_width_and_interrupt_range() {
    let mut bench = Bench::new(full().host_address_width(40));
    bench.pasid(1, raw::pasid_pass_through(DID));
    assert_eq!(bench.ask(&write(1, 0x1234_5678)), Ok(0x1234_5678));
    assert_eq!(bench.ask(&read(1, 1 << 40)), Err((0x83, "SGN.4.2")));
    assert_eq!(bench.ask(&read(1, 0xFEE0_0000)), Err((0x87, "SGN.8.1")));
    let translated = |address| plain(address).with_kind(RequestKind::Translated);
    assert_eq!(bench.ask(&translated(0x7000)), Ok(0x7000));
    assert_eq!(bench.ask(&translated(1 << 40)), Err((0x83, "SGN.4.1")));
    assert_eq!(bench.ask(&translated(0xFEE0_0000)), Err((0x87, "SGN.8.3")));
}

#[test]
pub(crate) fn translation_requests_get_answers_by_the_fault_table() {
    let mut bench = Bench::new(full());
    let top = bench.first(1);
    bench
        .rig
        .tables
        .first_stage(top, 4, 0x1000, 0x5000, 1, raw::FS_PRESENT | raw::FS_USER);
    bench.rig.tables.first_stage(top, 4, 0x2000, 1 << 51, 1, FS_ALL);
    let ask = |pasid, address| read(pasid, address).with_kind(RequestKind::Translation);
    let answer = bench.rig.dma(&ask(1, 0x1000)).expect("completes");
    assert_eq!((answer.phys.raw(), answer.perms), (0x5000, Perms::READ));
    // Not present, not canonical, reserved bits, no PASID entry: success without access, and no record.
    for request in [
        ask(1, 0x3000),
        ask(1, 1 << 47),
        ask(1, 0x2000),
        ask(9, 0x1000),
        ask(70, 0x1000),
    ] {
        assert_eq!(bench.rig.dma(&request).expect("completes").perms, Perms::NONE);
    }
    assert_eq!(bench.rig.fault_status().raw_value(), 0);
    let top = bench.second(2, 0);
    bench.rig.tables.second_stage(top, 4, 0x1000, 1 << 51, 1, RW);
    let fault = bench.rig.dma(&ask(2, 0x1000)).expect_err("blocked");
    assert_eq!((fault.reason.0, fault.response), (0x7A, Response::CompleterAbort));
    // A page that reaches into the interrupt range.
    bench.rig.tables.second_stage(top, 4, 0x4000_0000, 0xC000_0000, 3, RW);
    let fault = bench.rig.dma(&ask(2, 0x4000_0000)).expect_err("blocked");
    assert_eq!(
        (fault.reason.0, fault.condition.map(|c| c.name())),
        (0x87, Some("SGN.8.2"))
    );
}

#[test]
fn fault_processing_disable_counts_at_every_structure() {
    for place in 0..3 {
        let mut bench = Bench::new(full());
        let top = bench.rig.tables.page();
        let entry = bench.pasid(1, raw::pasid_second_stage(top, 2, DID));
        let at = [bench.context, bench.directory, entry][place];
        bench.rig.tables.flip(at, 1);
        for _ in 0..2 {
            assert!(!bench.rig.dma(&read(1, 0x1000)).expect_err("blocked").recorded);
        }
        assert_eq!(bench.rig.fault_status().raw_value(), 0);
    }
}

#[test]
fn records_of_requests_with_pasid_carry_it() {
    let mut bench = Bench::new(full());
    bench.second(0xFFF, 0);
    let _ = bench.ask(&read(0xFFF, 0x1000).with_privilege());
    let record = bench.rig.record(0);
    assert_eq!((record.pasid(), record.pp()), (Pasid::new(0xFFF), true));
    assert_eq!(record.privilege(), vtd_spec::register::Privilege::Supervisor);
    assert_eq!(record.reason().0, 0x5D);
}
