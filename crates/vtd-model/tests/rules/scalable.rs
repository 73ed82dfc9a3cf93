//! Scalable mode: every condition of VT-d §7.1.3 that it can meet, what passes, and what its invalidations drop.

use iommu_testkit::raw::{self, descriptor};
use iommu_types::{Access, HostPhys, Iova, Pasid, Perms, SourceId};
use vtd_model::{DeviceInvalidation, PasidScope, Profile, Request, RequestKind, Response, UnitConfigBuilder};
use vtd_spec::register::{QueueError, offset};

use crate::rig::{DID, NIC, QUEUE, Rig, STATUS, spec};

const DTE: u64 = 1 << 2;
const PASIDE: u64 = 1 << 3;
const PWSNP: u64 = 1 << 23;
const SSADE: u64 = 1 << 9;
const RW: u64 = raw::SS_READ | raw::SS_WRITE;
const FS_ALL: u64 = raw::FS_PRESENT | raw::FS_WRITE | raw::FS_USER;
/// PASID of requests without one in these tests.
const RID: u32 = 0;

fn full() -> UnitConfigBuilder {
    spec().full_scalable_mode().device_tlb(true)
}

/// The NIC with PASIDs allowed and a directory.
struct Bench {
    rig: Rig,
    directory: u64,
    context: u64,
}

impl Bench {
    fn new(builder: UnitConfigBuilder) -> Self {
        Self::with_enables(builder, DTE | PASIDE)
    }

    fn with_enables(builder: UnitConfigBuilder, enables: u64) -> Self {
        let mut rig = Rig::scalable(builder);
        let directory = rig.tables.page();
        let entry = raw::scalable_context_entry(directory, 0, RID.into(), enables);
        let context = rig.tables.scalable_context(rig.root, NIC, entry);
        Self {
            rig,
            directory,
            context,
        }
    }

    fn pasid(&mut self, pasid: u32, words: [u64; 8]) -> u64 {
        self.rig.tables.pasid(self.directory, pasid, words)
    }

    /// Second-stage tables for `pasid`; answers the top table.
    fn second(&mut self, pasid: u32, flags: u64) -> u64 {
        let top = self.rig.tables.page();
        let mut words = raw::pasid_second_stage(top, 2, DID);
        words[0] |= flags;
        words[1] |= PWSNP;
        self.pasid(pasid, words);
        top
    }

    /// 4-level first-stage tables for `pasid`.
    fn first(&mut self, pasid: u32) -> u64 {
        let top = self.rig.tables.page();
        let mut words = raw::pasid_first_stage(top, 4, DID);
        words[1] |= PWSNP;
        self.pasid(pasid, words);
        top
    }

    fn ask(&mut self, request: &Request) -> Result<u64, (u8, &'static str)> {
        match self.rig.dma(request) {
            Ok(answer) => Ok(answer.phys.raw()),
            Err(fault) => Err((fault.reason.0, fault.condition.map_or("", |condition| condition.name()))),
        }
    }
}

fn read(pasid: u32, address: u64) -> Request {
    Request::read(SourceId::from_raw(NIC), Iova::new(address), 8).with_pasid(Pasid::new(pasid).expect("20 bits"))
}

fn write(pasid: u32, address: u64) -> Request {
    Request::write(SourceId::from_raw(NIC), Iova::new(address), 8).with_pasid(Pasid::new(pasid).expect("20 bits"))
}

fn plain(address: u64) -> Request {
    Request::read(SourceId::from_raw(NIC), Iova::new(address), 8)
}

#[test]
fn root_and_context_conditions_block_with_their_codes() {
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
fn requests_that_the_context_does_not_allow_are_blocked() {
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
fn pasid_structures_block_with_their_codes() {
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
fn execute_and_privileged_requests_need_their_permission() {
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
fn second_stage_conditions_block_with_scalable_codes() {
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
fn first_stage_conditions_block_with_their_codes() {
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
fn flags_without_snooping_block() {
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
fn nested_conditions_block_with_their_codes() {
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
fn pass_through_checks_width_and_interrupt_range() {
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
fn translation_requests_get_answers_by_the_fault_table() {
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

/// PASID 1 and 2 first-stage, PASID 3 second-stage, all domain 5; PASID 4 first-stage of domain 6.
struct Warm {
    bench: Bench,
    tops: [u64; 4],
}

impl Warm {
    fn new() -> Self {
        let mut bench = Bench::new(full());
        let tops = [
            bench.first(1),
            bench.first(2),
            bench.second(3, 0),
            bench.rig.tables.page(),
        ];
        let mut words = raw::pasid_first_stage(tops[3], 4, 6);
        words[1] |= PWSNP;
        bench.pasid(4, words);
        let mut warm = Self { bench, tops };
        warm.remap(0x100_0000);
        warm.heat();
        warm
    }

    fn remap(&mut self, by: u64) {
        let tables = &mut self.bench.rig.tables;
        for (index, top) in self.tops.into_iter().enumerate() {
            for page in [0x1000, 0x3000] {
                if index == 2 {
                    tables.second_stage(top, 4, page, by + page, 1, RW);
                } else {
                    tables.first_stage(top, 4, page, by + page, 1, FS_ALL | raw::FS_ACCESSED);
                }
            }
        }
    }

    fn heat(&mut self) -> [[u64; 2]; 4] {
        [1, 2, 3, 4].map(|pasid| [0x1000, 0x3000].map(|page| self.bench.ask(&read(pasid, page)).expect("mapped")))
    }

    fn dropped_by(words: [u64; 2]) -> [[bool; 2]; 4] {
        let mut warm = Self::new();
        warm.remap(0x200_0000);
        assert!(
            warm.heat().as_flattened().iter().all(|host| *host < 0x200_0000),
            "stale until invalidated"
        );
        warm.bench.rig.invalidate(&[words]);
        warm.heat().map(|hosts| hosts.map(|host| host >= 0x200_0000))
    }
}

const KEPT: [bool; 2] = [false; 2];
const GONE: [bool; 2] = [true; 2];

#[test]
fn pasid_based_iotlb_invalidation_drops_its_pasid_only() {
    assert_eq!(
        Warm::dropped_by(descriptor::pasid_iotlb_all(DID, 1)),
        [GONE, KEPT, KEPT, KEPT]
    );
    assert_eq!(
        Warm::dropped_by(descriptor::pasid_iotlb_all(DID, 3)),
        [KEPT, KEPT, GONE, KEPT]
    );
    assert_eq!(Warm::dropped_by(descriptor::pasid_iotlb_all(6, 1)), [KEPT; 4]);
    assert_eq!(
        Warm::dropped_by(descriptor::pasid_iotlb_all(6, 4)),
        [KEPT, KEPT, KEPT, GONE]
    );
}

#[test]
fn page_selective_pasid_invalidation_drops_first_stage_pages_only() {
    let one = [true, false];
    assert_eq!(
        Warm::dropped_by(descriptor::pasid_iotlb_pages(DID, 1, 0x1000, 0)),
        [one, KEPT, KEPT, KEPT]
    );
    assert_eq!(
        Warm::dropped_by(descriptor::pasid_iotlb_pages(DID, 2, 0x0000, 2)),
        [KEPT, GONE, KEPT, KEPT]
    );
    assert_eq!(
        Warm::dropped_by(descriptor::pasid_iotlb_pages(DID, 3, 0x1000, 0)),
        [KEPT; 4]
    );
    // Any mask is accepted.
    assert_eq!(
        Warm::dropped_by(descriptor::pasid_iotlb_pages(DID, 1, 0, 63)),
        [GONE, KEPT, KEPT, KEPT]
    );
}

#[test]
fn plain_iotlb_invalidation_drops_all_first_stage_entries_of_the_domain() {
    let one = [true, false];
    assert_eq!(
        Warm::dropped_by(descriptor::iotlb_pages(DID, 0x1000, 0, true)),
        [GONE, GONE, one, KEPT]
    );
    assert_eq!(
        Warm::dropped_by(descriptor::iotlb_domain(DID)),
        [GONE, GONE, GONE, KEPT]
    );
    assert_eq!(Warm::dropped_by(descriptor::IOTLB_GLOBAL), [GONE; 4]);
    assert_eq!(Warm::dropped_by(descriptor::CONTEXT_GLOBAL), [KEPT; 4]);
    assert_eq!(Warm::dropped_by(descriptor::PASID_GLOBAL), [KEPT; 4]);
}

#[test]
fn pasid_entries_stay_cached_until_their_domain_and_pasid_are_invalidated() {
    let seen = |words: [u64; 2]| {
        let mut warm = Warm::new();
        let other = warm.bench.rig.tables.page();
        warm.bench
            .rig
            .tables
            .first_stage(other, 4, 0x1000, 0x900_0000, 1, FS_ALL);
        let mut entry = raw::pasid_first_stage(other, 4, 9);
        entry[1] |= PWSNP;
        warm.bench.pasid(1, entry);
        assert_eq!(
            warm.bench.ask(&read(1, 0x1000)),
            Ok(0x100_1000),
            "stale until invalidated"
        );
        warm.bench.rig.invalidate(&[words]);
        warm.bench.ask(&read(1, 0x1000)) == Ok(0x900_0000)
    };
    assert!(seen(descriptor::PASID_GLOBAL));
    assert!(seen(descriptor::pasid_cache_domain(DID)));
    assert!(
        !seen(descriptor::pasid_cache_domain(9)),
        "tagged with the domain it was read with"
    );
    assert!(seen(descriptor::pasid_cache(DID, 1)));
    assert!(!seen(descriptor::pasid_cache(DID, 2)));
    assert!(!seen(descriptor::IOTLB_GLOBAL));
    assert!(!seen(descriptor::CONTEXT_GLOBAL));
}

#[test]
fn in_scalable_mode_a_domain_context_invalidation_is_global_and_device_ignores_the_domain() {
    for words in [descriptor::context_domain(77), descriptor::context_device(77, NIC, 0)] {
        let mut bench = Bench::new(full());
        let top = bench.second(RID, 0);
        bench.rig.map(top, 0x1000, 0x5000);
        let _ = bench.ask(&plain(0x1000));
        let context = bench.context;
        bench.rig.tables.flip(context, 0);
        assert_eq!(bench.ask(&plain(0x1000)), Ok(0x5000));
        bench.rig.invalidate(&[words]);
        assert_eq!(bench.ask(&plain(0x1000)), Err((0x41, "SCT.2")));
    }
}

#[test]
fn caching_mode_keeps_faulting_pasid_entries_under_domain_0() {
    let mut bench = Bench::new(full().profile(Profile::Silicon).caching_mode(true));
    bench.pasid(1, [0; 8]);
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x59, "SPT.2")));
    let top = bench.second(1, 0);
    bench.rig.map(top, 0x1000, 0x5000);
    bench.rig.invalidate(&[descriptor::pasid_cache(DID, 1)]);
    assert_eq!(bench.ask(&read(1, 0x1000)), Err((0x59, "SPT.2")));
    bench.rig.invalidate(&[descriptor::pasid_cache(0, 1)]);
    assert_eq!(bench.ask(&read(1, 0x1000)), Ok(0x5000));
}

#[test]
fn switching_translation_off_drops_all_translations() {
    let mut bench = Bench::new(full());
    let top = bench.second(RID, 0);
    bench.rig.map(top, 0x1000, 0x5000);
    let _ = bench.ask(&plain(0x1000));
    bench.rig.map(top, 0x1000, 0x6000);
    bench.rig.command(|c| c.with_te(false));
    bench.rig.command(|c| c.with_te(true));
    assert_eq!(bench.ask(&plain(0x1000)), Ok(0x6000));
}

#[test]
fn entries_of_one_table_mode_never_serve_the_other() {
    let mut bench = Bench::new(full().enhanced_root_pointer(false));
    let top = bench.second(RID, 0);
    bench.rig.map(top, 0x1000, 0x5000);
    let _ = bench.ask(&plain(0x1000));
    // Legacy tables for the same function; nothing is invalidated.
    let (root, legacy) = (bench.rig.tables.page(), bench.rig.tables.page());
    bench
        .rig
        .tables
        .legacy_context(root, NIC, raw::legacy_context_entry(0, legacy, 2, DID));
    bench.rig.map(legacy, 0x1000, 0x7000);
    bench.rig.set_root(root);
    assert_eq!(bench.ask(&plain(0x1000)), Ok(0x7000));
}

#[test]
fn narrow_queues_and_wrong_types_stop_in_scalable_mode() {
    let mut rig = Rig::new(full());
    rig.enable_queue();
    rig.set_root(rig.root | 1 << 10);
    rig.write64(offset::IQT, 0x10);
    assert_eq!(rig.queue_error().error(), QueueError::INVALID_WIDTH);
    // In legacy mode a wide queue is served, but not the types of scalable mode.
    for (words, error) in [
        (descriptor::IOTLB_GLOBAL, None),
        (descriptor::PASID_GLOBAL, Some(QueueError::INVALID_TYPE)),
    ] {
        let mut rig = Rig::scalable(full().enhanced_root_pointer(true));
        rig.set_root(rig.root);
        rig.submit(&[words]);
        assert_eq!(rig.fault_status().iqe().then(|| rig.queue_error().error()), error);
    }
    for words in [
        // Granularities that do not exist, reserved bits.
        [6, 0],
        [6 | 1 << 4, 0],
        [7 | 2 << 4, 0],
        [7 | 3 << 4 | 1 << 6, 0],
        [6 | 2 << 4 | 1 << 52, 0],
    ] {
        let mut rig = Rig::scalable(full());
        rig.submit(&[words]);
        assert_eq!(rig.queue_error().error(), QueueError::RESERVED_FIELD, "{words:x?}");
    }
    // The upper half of a 256-bit descriptor is reserved.
    let mut rig = Rig::scalable(full());
    rig.tables.put_words(QUEUE, &[descriptor::IOTLB_GLOBAL[0], 0, 1, 0]);
    rig.write64(offset::IQT, 0x20);
    assert_eq!(rig.queue_error().error(), QueueError::RESERVED_FIELD);
    // Page group responses and host permission tables are not supported.
    for kind in [9, 0xA] {
        let mut rig = Rig::scalable(full());
        rig.submit(&[[kind, 0]]);
        assert_eq!(rig.queue_error().error(), QueueError::INVALID_TYPE);
    }
}

#[test]
fn abort_dma_mode_blocks_every_request() {
    let mut rig = Rig::scalable(full().enhanced_root_pointer(true));
    rig.set_root(3 << 10);
    assert_eq!(rig.fault(NIC, 0x1000), (0x33, "RTA.4"));
    let fault = rig.dma(&read(1, 0x1000)).expect_err("blocked");
    assert_eq!((fault.reason.0, fault.response), (0x33, Response::UnsupportedRequest));
    rig.invalidate(&[descriptor::IOTLB_GLOBAL]);
}

#[test]
fn device_tlb_invalidations_hold_up_the_wait_until_the_device_answers() {
    let mut bench = Bench::new(full());
    let rig = &mut bench.rig;
    let source = SourceId::from_raw(NIC);
    rig.submit(&[
        descriptor::device_tlb_all(NIC),
        descriptor::pasid_device_tlb_all(NIC, 7),
        descriptor::wait_status(STATUS, 1),
    ]);
    assert_eq!(rig.peek(STATUS), 0);
    let first = rig.unit.take_device_invalidation().expect("a message");
    let everything = DeviceInvalidation {
        tag: first.tag,
        source,
        pasid: None,
        first: Iova::ZERO,
        order: 52,
    };
    assert_eq!(first, everything);
    let second = rig.unit.take_device_invalidation().expect("a message");
    assert_eq!(second.pasid, Pasid::new(7).map(PasidScope::One));
    assert_eq!(rig.unit.take_device_invalidation(), None);
    rig.unit.complete_device_invalidation(rig.memory, source, second.tag);
    assert_eq!(rig.peek(STATUS), 0);
    rig.unit.complete_device_invalidation(rig.memory, source, first.tag);
    assert_eq!(rig.peek(STATUS), 1);
    assert_eq!(rig.fault_status().raw_value(), 0);
}

#[test]
fn an_unexpected_completion_is_an_error_that_does_not_stop_the_queue() {
    let mut bench = Bench::new(full());
    let rig = &mut bench.rig;
    rig.unit
        .complete_device_invalidation(rig.memory, SourceId::from_raw(0x99), 0);
    assert!(rig.fault_status().ice());
    assert_eq!(rig.queue_error().completion_source().raw(), 0x99);
    rig.submit(&[descriptor::wait_status(STATUS, 4)]);
    assert_eq!(rig.peek(STATUS), 4);
    rig.write32(offset::FSTS, 1 << 5);
    assert_eq!(rig.fault_status().raw_value(), 0);
}

#[test]
fn a_time_out_stops_the_queue_and_the_pending_wait_never_completes() {
    let mut bench = Bench::new(full());
    let rig = &mut bench.rig;
    let source = SourceId::from_raw(NIC);
    rig.submit(&[
        descriptor::device_tlb_page(NIC, 0x1000),
        descriptor::wait_status(STATUS, 1),
    ]);
    let message = rig.unit.take_device_invalidation().expect("a message");
    assert_eq!((message.first.raw(), message.order), (0x1000, 0));
    rig.unit.time_out_device_invalidation(source, message.tag);
    assert!(rig.fault_status().ite());
    assert_eq!(rig.queue_error().timeout_source(), source);
    rig.submit(&[descriptor::wait_status(STATUS + 8, 2)]);
    assert_eq!(rig.peek(STATUS + 8), 0, "nothing is fetched");
    rig.write32(offset::FSTS, 1 << 6);
    assert_eq!((rig.peek(STATUS), rig.peek(STATUS + 8)), (0, 2));
}

#[test]
fn the_queue_stands_still_while_all_tags_are_in_use() {
    let mut bench = Bench::new(full());
    let rig = &mut bench.rig;
    rig.submit(&[descriptor::device_tlb_all(NIC); 40]);
    assert_eq!(rig.read64(offset::IQH), 32 * 32);
    let message = rig.unit.take_device_invalidation().expect("a message");
    rig.unit
        .complete_device_invalidation(rig.memory, message.source, message.tag);
    assert_eq!(rig.read64(offset::IQH), 33 * 32);
}
