//! The profile that finds what emulators hide.

use iommu_testkit::raw::{self, translation_type};
use vtd_model::{Profile, UnitConfigBuilder};
use vtd_spec::register::{ContextCommand, GlobalCommand, offset};

use crate::rig::{DID, NIC, Rig, STATUS, spec};

fn silicon() -> UnitConfigBuilder {
    spec().profile(Profile::Silicon)
}

#[test]
fn commands_complete_later_and_the_pointer_status_drops_meanwhile() {
    let mut rig = Rig::new(silicon());
    rig.set_root(rig.root);
    assert!(rig.status().rtps());
    let again = GlobalCommand::DEFAULT.with_srtp(true).raw_value();
    rig.write32(offset::GCMD, again);
    assert!(!rig.status().rtps());
    assert!(rig.unit.step(rig.memory));
    assert!(rig.status().rtps());
    assert!(!rig.unit.step(rig.memory));
}

#[test]
fn a_second_command_before_the_first_is_done_is_lost() {
    let mut rig = Rig::new(silicon());
    rig.write32(offset::GCMD, GlobalCommand::DEFAULT.with_srtp(true).raw_value());
    rig.write32(offset::GCMD, GlobalCommand::DEFAULT.with_te(true).raw_value());
    rig.settle();
    assert!(!rig.status().tes());
    assert_eq!(rig.unit.counters().misuses, 1);
}

#[test]
fn descriptors_take_a_step_each() {
    let mut rig = Rig::new(silicon());
    rig.enable_queue();
    rig.enqueue(&[raw::descriptor::IOTLB_GLOBAL, raw::descriptor::wait_status(STATUS, 1)]);
    rig.write64(offset::IQT, 0x20);
    assert_eq!((rig.peek(STATUS), rig.read64(offset::IQH)), (0, 0));
    assert!(rig.unit.step(rig.memory));
    assert_eq!((rig.peek(STATUS), rig.read64(offset::IQH)), (0, 0x10));
    assert!(rig.unit.step(rig.memory));
    assert_eq!(rig.peek(STATUS), 1);
}

#[test]
fn register_invalidations_complete_later() {
    let mut rig = Rig::new(silicon());
    rig.write64(offset::CCMD, 0xA000_0000_0000_0000);
    assert!(ContextCommand::new_with_raw_value(rig.read64(offset::CCMD)).icc());
    assert!(rig.unit.step(rig.memory));
    assert!(!ContextCommand::new_with_raw_value(rig.read64(offset::CCMD)).icc());
}

#[test]
fn caching_mode_keeps_faulting_entries_until_they_are_invalidated() {
    let (mut rig, top) = Rig::with_domain(silicon().caching_mode(true));
    // A page that was not present.
    assert_eq!(rig.fault(NIC, 0x1000), (0x06, "LGN.3"));
    rig.map(top, 0x1000, 0x5000);
    assert_eq!(rig.fault(NIC, 0x1000), (0x06, "LGN.3"));
    rig.invalidate(&[raw::descriptor::iotlb_pages(DID, 0x1000, 0, false)]);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
    // A context entry that was not present is tagged with domain 0.
    assert_eq!(rig.fault(0x30, 0x1000), (0x02, "LCT.2"));
    rig.context(0x30, translation_type::UNTRANSLATED, top, 2, DID);
    rig.invalidate(&[raw::descriptor::context_device(DID, 0x30, 0)]);
    assert_eq!(rig.fault(0x30, 0x1000), (0x02, "LCT.2"));
    rig.invalidate(&[raw::descriptor::context_device(0, 0x30, 0)]);
    assert_eq!(rig.host(0x30, 0x1000), 0x5000);
}

#[test]
fn without_caching_mode_faulting_entries_are_not_kept() {
    let (mut rig, top) = Rig::with_domain(silicon());
    assert_eq!(rig.fault(NIC, 0x1000), (0x06, "LGN.3"));
    rig.map(top, 0x1000, 0x5000);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
}

#[test]
fn a_hint_that_only_leaves_changed_keeps_the_pointers_to_tables() {
    for (leaf_only, host) in [(true, 0x5000), (false, 0x9000)] {
        let (mut rig, top) = Rig::with_domain(silicon());
        rig.map(top, 0x1000, 0x5000);
        rig.host(NIC, 0x1000);
        // Another table of the lowest level takes the place of the first.
        let link = raw::SS_READ | raw::SS_WRITE;
        let above = rig.tables.entry_at(top, 4, 0x1000, 2, link);
        let page = rig.tables.page();
        rig.tables.put(page + 8, 0x9000 | link);
        rig.tables.put(above, page | link);
        rig.invalidate(&[raw::descriptor::iotlb_pages(DID, 0x1000, 0, leaf_only)]);
        assert_eq!(rig.host(NIC, 0x1000), host, "a wrong hint is found out");
    }
}

#[test]
fn a_forgotten_iotlb_invalidation_after_a_context_change_is_found_out() {
    let (mut rig, top) = Rig::with_domain(silicon());
    rig.map(top, 0x1000, 0x5000);
    rig.host(NIC, 0x1000);
    // New tables under the same domain identifier.
    let other = rig.tables.page();
    rig.map(other, 0x1000, 0x6000);
    rig.context(NIC, translation_type::UNTRANSLATED, other, 2, DID);
    rig.invalidate(&[raw::descriptor::context_device(DID, NIC, 0)]);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
    rig.invalidate(&[raw::descriptor::iotlb_domain(DID)]);
    assert_eq!(rig.host(NIC, 0x1000), 0x6000);
}

#[test]
fn small_caches_evict_but_never_lie() {
    let (mut rig, top) = Rig::with_domain(silicon());
    for page in 1..200u64 {
        rig.map(top, page << 12, (page << 12) + 0x100_0000);
    }
    for _ in 0..2 {
        for page in 1..200u64 {
            assert_eq!(rig.host(NIC, page << 12), (page << 12) + 0x100_0000);
        }
    }
    assert!(rig.unit.counters().walks.iotlb.misses > 200);
}
