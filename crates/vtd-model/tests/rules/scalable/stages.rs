//! First-stage and second-stage tables of scalable mode (VT-d §3.6, §3.7).

use iommu_testkit::raw::{self, descriptor};
use iommu_types::{Access, Iova, Pasid, SourceId};
use vtd_model::Request;

use super::{Bench, FS_ALL, PWSNP, RID, RW, SSADE, full, plain, read, write};
use crate::rig::{DID, NIC};

#[test]
pub(crate) fn second_stage_conditions_block_with_scalable_codes() {
    let mut bench = Bench::new(full());
    let top = bench.second(RID, 0);
    assert_eq!(bench.ask(&plain(0x1000)), Err((0x79, "SSS.2")));
    assert_eq!(bench.ask(&plain(1 << 48)), Err((0x84, "SGN.5")));
    bench.rig.tables.second_stage(top, 4, 0x1000, 0x5000, 1, raw::SS_READ);
    bench.rig.tables.second_stage(top, 4, 0x2000, 0x6000, 1, raw::SS_WRITE);
    bench.rig.tables.second_stage(top, 4, 0x3000, 1 << 51, 1, RW);
    bench.rig.tables.second_stage(top, 4, 0x4000, 0xFEE0_0000, 1, RW);
    let write = |address| Request::write(SourceId::from_raw(NIC), Iova::new(address), 8);
    assert_eq!(bench.ask(&plain(0x1008)), Ok(0x5008));
    assert_eq!(bench.ask(&write(0x1000)), Err((0x85, "SGN.6")));
    assert_eq!(bench.ask(&plain(0x2000)), Err((0x86, "SGN.7")));
    assert_eq!(bench.ask(&plain(0x3000)), Err((0x7A, "SSS.3")));
    assert_eq!(bench.ask(&plain(0x4000)), Err((0x87, "SGN.8.1")));
    // Each level permits something, together they permit nothing.
    let above = bench.rig.tables.entry_at(top, 4, 0x1000, 2, RW);
    bench.rig.tables.put(above, bench.rig.peek(above) & !raw::SS_READ);
    assert_eq!(bench.ask(&plain(0x1800)), Ok(0x5800), "cached");
    bench.rig.invalidate(&[descriptor::IOTLB_GLOBAL]);
    assert_eq!(bench.ask(&plain(0x1000)), Err((0x79, "SSS.2")));
    let leaf = bench.rig.tables.entry_at(top, 4, 0x5000, 1, RW);
    bench.rig.break_bus(leaf, 8);
    assert_eq!(bench.ask(&plain(0x5000)), Err((0x78, "SSS.1")));
    bench.rig.break_bus(top, 8);
    assert_eq!(bench.ask(&plain(0x5000)), Err((0x7B, "SSS.4")));
}

#[test]
pub(crate) fn first_stage_conditions_block_with_their_codes() {
    let mut bench = Bench::new(full().first_stage_1g(false));
    let top = bench.first(1);
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x71, "SFS.2")));
    for address in [1 << 47, 0xFFFF_0000_0000_0000] {
        assert_eq!(bench.ask(&read(1, address)), Err((0x80, "SGN.1")));
    }
    let tables = &mut bench.rig.tables;
    tables.first_stage(top, 4, 0x1000, 0x5000, 1, FS_ALL);
    tables.first_stage(top, 4, 0x2000, 0x6000, 1, raw::FS_PRESENT | raw::FS_USER);
    tables.first_stage(top, 4, 0x3000, 0x7000, 1, raw::FS_PRESENT | raw::FS_WRITE);
    tables.first_stage(top, 4, 0x4000, 1 << 51, 1, FS_ALL);
    tables.first_stage(top, 4, 0x5000, 0xFEE0_0000, 1, FS_ALL);
    tables.first_stage(top, 4, 0xC000_0000, 0, 3, FS_ALL);
    tables.first_stage(top, 4, 0xFFFF_FFFF_FFFF_F000, 0x9000, 1, FS_ALL);
    assert_eq!(bench.ask(&read(1, 0x1008)), Ok(0x5008));
    assert_eq!(
        bench.ask(&read(1, 0xFFFF_FFFF_FFFF_F008)),
        Ok(0x9008),
        "the canonical upper half"
    );
    assert_eq!(bench.ask(&read(1, 0x2000)), Ok(0x6000));
    assert_eq!(bench.ask(&write(1, 0x2000)), Err((0x85, "SGN.6")));
    assert_eq!(bench.ask(&read(1, 0x3000)), Err((0x81, "SGN.2")));
    assert_eq!(bench.ask(&read(1, 0x4000)), Err((0x72, "SFS.3")));
    assert_eq!(bench.ask(&read(1, 0x5000)), Err((0x87, "SGN.8.1")));
    assert_eq!(
        bench.ask(&read(1, 0xC000_0000)),
        Err((0x72, "SFS.3")),
        "1 GiB needs the capability"
    );
    let leaf = bench.rig.tables.entry_at(top, 4, 0x6000, 1, FS_ALL);
    bench.rig.break_bus(leaf, 8);
    assert_eq!(bench.ask(&read(1, 0x6000)), Err((0x70, "SFS.1")));
    bench.rig.break_bus(top, 8);
    assert_eq!(bench.ask(&read(1, 0x7000)), Err((0x73, "SFS.4")));
}

#[test]
fn privilege_changes_what_the_first_stage_permits() {
    let mut bench = Bench::new(full());
    let top = bench.rig.tables.page();
    let mut words = raw::pasid_first_stage(top, 4, DID);
    words[1] |= PWSNP;
    words[2] |= 1;
    bench.pasid(1, words);
    words[2] |= 1 << 4;
    words[1] = words[1] & !0xFFFF | 9;
    bench.pasid(2, words);
    bench.rig.tables.first_stage(top, 4, 0x1000, 0x5000, 1, raw::FS_PRESENT);
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x81, "SGN.2")));
    assert_eq!(bench.ask(&read(1, 0x1000).with_privilege()), Ok(0x5000));
    // Without WPE a supervisor writes through a read-only page.
    assert_eq!(bench.ask(&write(1, 0x1000).with_privilege()), Ok(0x5000));
    assert_eq!(bench.ask(&write(2, 0x1000).with_privilege()), Err((0x85, "SGN.6")));
    // What a privileged request left in the cache does not help a user.
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x81, "SGN.2")));
}

#[test]
fn first_stage_flags_are_set_on_the_way_and_dirty_on_every_first_write() {
    let mut bench = Bench::new(full());
    let top = bench.first(1);
    let leaf = bench.rig.tables.first_stage(top, 4, 0x1000, 0x5000, 1, FS_ALL);
    let _ = bench.ask(&read(1, 0x1000));
    assert_eq!(bench.rig.peek(leaf) & 0xFFF, FS_ALL | raw::FS_ACCESSED);
    for level in 2..=4 {
        let at = bench.rig.tables.entry_at(top, 4, 0x1000, level, FS_ALL);
        assert_eq!(bench.rig.peek(at) & 0xFFF, FS_ALL | raw::FS_ACCESSED);
    }
    // The entry is cached now, and the write still finds its way to the dirty flag.
    let _ = bench.ask(&write(1, 0x1000));
    assert_eq!(bench.rig.peek(leaf) & 0xFFF, FS_ALL | raw::FS_ACCESSED | raw::FS_DIRTY);
    // A flag that software cleared is not set again before an invalidation.
    bench.rig.tables.put(leaf, 0x5000 | FS_ALL);
    let _ = bench.ask(&write(1, 0x1000));
    assert_eq!(bench.rig.peek(leaf) & 0xFFF, FS_ALL);
    bench.rig.invalidate(&[descriptor::pasid_iotlb_all(DID, 1)]);
    let _ = bench.ask(&write(1, 0x1000));
    assert_eq!(bench.rig.peek(leaf) & 0xFFF, FS_ALL | raw::FS_ACCESSED | raw::FS_DIRTY);
}

#[test]
fn a_request_that_faults_sets_no_dirty_flag() {
    let mut bench = Bench::new(full());
    let top = bench.first(1);
    let leaf = bench.rig.tables.first_stage(top, 4, 0x1000, 0xFEE0_0000, 1, FS_ALL);
    assert_eq!(bench.ask(&write(1, 0x1000)), Err((0x87, "SGN.8.1")));
    assert_eq!(bench.rig.peek(leaf) & raw::FS_DIRTY, 0);
    let second = bench.second(2, SSADE);
    let leaf = bench
        .rig
        .tables
        .second_stage(second, 4, 0x1000, 0x5000, 1, raw::SS_WRITE);
    let atomic = Request::new(SourceId::from_raw(NIC), Iova::new(0x1000), 8, Access::Atomic)
        .with_pasid(Pasid::new(2).expect("20 bits"));
    assert_eq!(bench.ask(&atomic), Err((0x86, "SGN.7")));
    assert_eq!(bench.rig.peek(leaf) & raw::SS_DIRTY, 0);
}

#[test]
fn second_stage_flags_are_kept_only_if_enabled() {
    let mut bench = Bench::new(full());
    for (pasid, flags, expected) in [(1, 0, RW), (2, SSADE, RW | raw::SS_ACCESSED | raw::SS_DIRTY)] {
        let top = bench.second(pasid, flags);
        let leaf = bench.rig.map(top, 0x1000, 0x5000);
        assert_eq!(bench.ask(&write(pasid, 0x1000)), Ok(0x5000));
        assert_eq!(bench.rig.peek(leaf) & 0xFFF, expected);
    }
}

#[test]
pub(crate) fn flags_without_snooping_block() {
    let mut bench = Bench::new(full());
    let top = bench.rig.tables.page();
    bench.pasid(1, raw::pasid_first_stage(top, 4, DID));
    bench.rig.tables.first_stage(top, 4, 0x1000, 0x5000, 1, FS_ALL);
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x90, "SFS.9")));
    let top = bench.rig.tables.page();
    let mut words = raw::pasid_second_stage(top, 2, DID);
    words[0] |= SSADE;
    bench.pasid(2, words);
    bench.rig.map(top, 0x1000, 0x5000);
    assert_eq!(bench.ask(&read(2, 0x1000)), Err((0x7C, "SSS.5")));
}

#[test]
fn the_extended_accessed_flag_is_set_where_enabled() {
    let mut bench = Bench::new(full());
    let top = bench.rig.tables.page();
    let mut words = raw::pasid_first_stage(top, 4, DID);
    words[1] |= PWSNP;
    words[2] |= 1 << 7;
    bench.pasid(1, words);
    let leaf = bench.rig.tables.first_stage(top, 4, 0x1000, 0x5000, 1, FS_ALL);
    let _ = bench.ask(&read(1, 0x1000));
    assert_eq!(bench.rig.peek(leaf) & 0xFFF, FS_ALL | raw::FS_ACCESSED | 1 << 10);
}

#[test]
fn snooping_is_forced_by_the_pasid_entry_or_by_the_leaf() {
    // VT-d §3.10: PGSNP of the PASID entry for all of its pages, SNP of a second-stage leaf for one.
    const PGSNP: u64 = 1 << 24;
    for forced in [false, true] {
        let mut bench = Bench::new(full());
        let [first, second] = [(); 2].map(|()| bench.rig.tables.page());
        let entries = [
            raw::pasid_first_stage(first, 4, DID),
            raw::pasid_second_stage(second, 2, DID),
            raw::pasid_pass_through(DID),
        ];
        for (pasid, mut words) in (1..).zip(entries) {
            words[1] |= PWSNP | if forced { PGSNP } else { 0 };
            bench.pasid(pasid, words);
        }
        bench.rig.tables.first_stage(first, 4, 0x1000, 0x5000, 1, FS_ALL);
        bench.rig.map(second, 0x1000, 0x5000);
        bench
            .rig
            .tables
            .second_stage(second, 4, 0x2000, 0x6000, 1, RW | 1 << 11);
        let mut snooped = |pasid, address| {
            let answer = bench.rig.dma(&read(pasid, address).with_no_snoop()).expect("mapped");
            assert_eq!(answer.snooped, answer.no_snoop_forbidden);
            answer.snooped
        };
        assert_eq!([1, 2, 3].map(|pasid| snooped(pasid, 0x1000)), [forced; 3]);
        assert!(snooped(2, 0x2000));
        assert!(bench.rig.dma(&read(1, 0x1000)).expect("mapped").snooped, "asked for");
    }
}
