//! Nested translation (VT-d §3.8).

use iommu_testkit::raw::{self, descriptor};
use iommu_types::HostPhys;

use super::{Bench, FS_ALL, PWSNP, RW, SSADE, full, read, write};
use crate::rig::DID;

/// PASID 1 nested: guest pages map through second-stage tables with 4 levels.
fn nested(flags: u64) -> (Bench, u64, u64) {
    let mut bench = Bench::new(full());
    let (first, second) = (bench.rig.tables.page(), bench.rig.tables.page());
    let mut words = raw::pasid_nested(first, 4, second, 2, DID);
    words[0] |= flags;
    words[1] |= PWSNP;
    bench.pasid(1, words);
    bench.rig.tables.first_stage(first, 4, 0x1000, 0x9000, 1, FS_ALL);
    // First-stage tables lie at the same guest and host addresses.
    let end = bench.rig.tables.page() + 0x10_0000;
    for at in (0x10_0000..end).step_by(0x1000) {
        bench.rig.map(second, at, at);
    }
    bench.rig.map(second, 0x9000, 0x5000);
    (bench, first, second)
}

#[test]
fn nested_translation_goes_through_both_stages() {
    let (mut bench, first, second) = nested(0);
    assert_eq!(bench.ask(&write(1, 0x1008)), Ok(0x5008));
    // A large first-stage page over small second-stage pages ends as a small one.
    bench
        .rig
        .tables
        .first_stage(first, 4, 0x4000_0000, 0x60_0000, 2, FS_ALL);
    bench.rig.map(second, 0x60_3000, 0x7000);
    let answer = bench.rig.dma(&read(1, 0x4000_3008)).expect("mapped");
    assert_eq!(answer.phys, HostPhys::new(0x7008));
    assert_eq!(
        (answer.page.first().raw(), answer.page.last().raw()),
        (0x4000_3000, 0x4000_3FFF)
    );
    assert_eq!(bench.ask(&read(1, 0x4000_4000)), Err((0x79, "SSS.2")));
}

#[test]
pub(crate) fn nested_conditions_block_with_their_codes() {
    let (mut bench, first, second) = nested(0);
    let table = bench.rig.peek(first) & 0x000F_FFFF_FFFF_F000;
    bench.rig.tables.first_stage(first, 4, 0x2000, 1 << 47, 1, FS_ALL);
    assert_eq!(bench.ask(&read(1, 0x2000)), Err((0x79, "SSS.2")));
    let narrow = |bench: &mut Bench| {
        let top = bench.rig.tables.page();
        let mut words = raw::pasid_nested(first, 4, top, 1, 7);
        words[1] |= PWSNP;
        bench.pasid(2, words);
        top
    };
    let top = narrow(&mut bench);
    for at in (0x10_0000..0x20_0000).step_by(0x1000) {
        bench.rig.tables.second_stage(top, 3, at, at, 1, RW);
    }
    assert_eq!(bench.ask(&read(2, 0x2000)), Err((0x74, "SFS.5")));
    // The final page is not readable, not writable.
    bench
        .rig
        .tables
        .second_stage(second, 4, 0x9000, 0x5000, 1, raw::SS_WRITE);
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x86, "SGN.7")));
    bench
        .rig
        .tables
        .second_stage(second, 4, 0x9000, 0x5000, 1, raw::SS_READ);
    assert_eq!(bench.ask(&write(1, 0x1000)), Err((0x85, "SGN.6")));
    // Flags of a table that the second stage keeps read-only.
    bench.rig.tables.first_stage(first, 4, 0x3000, 0x9000, 1, FS_ALL);
    let leaf = bench.rig.tables.entry_at(first, 4, 0x3000, 1, FS_ALL);
    bench
        .rig
        .tables
        .second_stage(second, 4, leaf & !0xFFF, leaf & !0xFFF, 1, raw::SS_READ);
    assert_eq!(bench.ask(&read(1, 0x3000)), Err((0x77, "SFS.8")));
    // Tables that may not be read.
    bench.rig.tables.second_stage(second, 4, table, table, 1, raw::SS_WRITE);
    assert_eq!(bench.ask(&read(1, 0x3000)), Err((0x76, "SFS.7")));
    bench.rig.tables.second_stage(second, 4, first, first, 1, raw::SS_WRITE);
    assert_eq!(bench.ask(&read(1, 0x3000)), Err((0x75, "SFS.6")));
}

#[test]
fn nested_table_reads_count_as_writes_with_second_stage_flags() {
    let (mut bench, first, second) = nested(SSADE);
    assert_eq!(bench.ask(&read(1, 0x1000)), Ok(0x5000));
    let table = bench.rig.tables.entry_at(second, 4, first, 1, RW);
    assert_eq!(bench.rig.peek(table) & 0xFFF, RW | raw::SS_ACCESSED | raw::SS_DIRTY);
    let page = bench.rig.tables.entry_at(second, 4, 0x9000, 1, RW);
    assert_eq!(bench.rig.peek(page) & 0xFFF, RW | raw::SS_ACCESSED, "only read");
    // A table that may not be written cannot be read either.
    bench
        .rig
        .tables
        .second_stage(second, 4, first, first, 1, raw::SS_READ | raw::SS_ACCESSED);
    bench.rig.invalidate(&[descriptor::IOTLB_GLOBAL]);
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x75, "SFS.6")));
}

#[test]
fn the_leaf_of_the_second_stage_forces_snooping_through_both_stages() {
    // VT-d §3.10: SNP of the second-stage leaf; the first stage has no such bit.
    let (mut bench, _, second) = nested(0);
    let snooped = |bench: &mut Bench| {
        let answer = bench.rig.dma(&read(1, 0x1000).with_no_snoop()).expect("mapped");
        assert_eq!(answer.snooped, answer.no_snoop_forbidden);
        answer.snooped
    };
    assert!(!snooped(&mut bench));
    bench
        .rig
        .tables
        .second_stage(second, 4, 0x9000, 0x5000, 1, RW | 1 << 11);
    bench.rig.invalidate(&[descriptor::IOTLB_GLOBAL]);
    assert!(snooped(&mut bench));
}
