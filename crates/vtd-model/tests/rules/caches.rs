//! What caches keep and what each invalidation must and must not drop (VT-d §6.2, §6.5).

use iommu_testkit::raw::{self, translation_type};

use crate::rig::{DID, NIC, Rig, spec};

/// Two functions in two domains, each with a 4 KiB page at 1000h and 3000h and a 2 MiB page at 4020_0000h, all cached.
struct Warm {
    rig: Rig,
    tops: [u64; 2],
}

const OTHER: u16 = 0x0020;
const OTHER_DID: u16 = 6;
const PAGES: [u64; 3] = [0x1000, 0x3000, 0x4020_0000];
const RW: u64 = raw::SS_READ | raw::SS_WRITE;

impl Warm {
    fn new() -> Self {
        let (mut rig, top) = Rig::with_domain(spec());
        let other = rig.tables.page();
        rig.context(OTHER, translation_type::UNTRANSLATED, other, 2, OTHER_DID);
        let mut warm = Self {
            rig,
            tops: [top, other],
        };
        warm.remap(0x100_0000);
        warm.heat();
        warm
    }

    /// Points every page `by` further, behind the unit's back.
    fn remap(&mut self, by: u64) {
        for top in self.tops {
            self.rig.map(top, PAGES[0], by + 0x1000);
            self.rig.map(top, PAGES[1], by + 0x3000);
            self.rig.tables.second_stage(top, 4, PAGES[2], by + 0x20_0000, 2, RW);
        }
    }

    fn heat(&mut self) -> [[u64; 3]; 2] {
        [NIC, OTHER].map(|sid| PAGES.map(|page| self.rig.host(sid, page)))
    }

    /// Changes all tables, sends the descriptor, and tells which pages show the change.
    fn dropped_by(descriptor: [u64; 2]) -> [[bool; 3]; 2] {
        let mut warm = Self::new();
        warm.remap(0x200_0000);
        assert!(
            warm.heat().as_flattened().iter().all(|host| *host < 0x200_0000),
            "stale until invalidated"
        );
        warm.rig.invalidate(&[descriptor]);
        warm.heat().map(|hosts| hosts.map(|host| host >= 0x200_0000))
    }
}

#[test]
fn global_iotlb_invalidation_drops_everything() {
    assert_eq!(Warm::dropped_by(raw::descriptor::IOTLB_GLOBAL), [[true; 3]; 2]);
}

#[test]
fn domain_iotlb_invalidation_drops_its_domain_only() {
    assert_eq!(
        Warm::dropped_by(raw::descriptor::iotlb_domain(DID)),
        [[true; 3], [false; 3]]
    );
    assert_eq!(
        Warm::dropped_by(raw::descriptor::iotlb_domain(OTHER_DID)),
        [[false; 3], [true; 3]]
    );
    assert_eq!(Warm::dropped_by(raw::descriptor::iotlb_domain(7)), [[false; 3]; 2]);
}

#[test]
fn page_iotlb_invalidation_drops_the_pages_in_range_only() {
    let drops = |address, am| Warm::dropped_by(raw::descriptor::iotlb_pages(DID, address, am, true));
    assert_eq!(drops(0x1000, 0), [[true, false, false], [false; 3]]);
    assert_eq!(drops(0x2000, 0), [[false; 3]; 2]);
    assert_eq!(drops(0x0000, 1), [[true, false, false], [false; 3]]);
    assert_eq!(drops(0x0000, 2), [[true, true, false], [false; 3]]);
    // The address is aligned to the mask.
    assert_eq!(drops(0x3000, 2), [[true, true, false], [false; 3]]);
    // One small page inside a large one drops the large one.
    assert_eq!(drops(0x4031_1000, 0), [[false, false, true], [false; 3]]);
    assert_eq!(drops(0x4020_0000, 9), [[false, false, true], [false; 3]]);
    assert_eq!(drops(0x4000_0000, 9), [[false; 3]; 2]);
    // A gigabyte.
    assert_eq!(drops(0x4000_0000, 18), [[false, false, true], [false; 3]]);
    assert_eq!(drops(0, 18), [[true, true, false], [false; 3]]);
}

#[test]
fn context_invalidations_do_not_drop_translations() {
    for descriptor in [
        raw::descriptor::CONTEXT_GLOBAL,
        raw::descriptor::context_domain(DID),
        raw::descriptor::context_device(DID, NIC, 0),
    ] {
        assert_eq!(Warm::dropped_by(descriptor), [[false; 3]; 2]);
    }
    assert_eq!(Warm::dropped_by(raw::descriptor::INTERRUPT_GLOBAL), [[false; 3]; 2]);
}

/// Moves the NIC to the other tables and tells whether the descriptor makes the unit see it.
fn context_seen(descriptor: [u64; 2]) -> bool {
    let mut warm = Warm::new();
    warm.rig.map(warm.tops[1], 0x1000, 0x900_0000);
    warm.rig
        .context(NIC, translation_type::UNTRANSLATED, warm.tops[1], 2, 9);
    assert_eq!(warm.rig.host(NIC, 0x1000), 0x100_1000, "stale until invalidated");
    warm.rig.invalidate(&[descriptor]);
    warm.rig.host(NIC, 0x1000) == 0x900_0000
}

#[test]
fn context_invalidation_acts_by_source_and_old_domain() {
    assert!(context_seen(raw::descriptor::CONTEXT_GLOBAL));
    assert!(context_seen(raw::descriptor::context_domain(DID)));
    assert!(!context_seen(raw::descriptor::context_domain(OTHER_DID)));
    // The entry is tagged with the domain it was read with, not the one it names now.
    assert!(!context_seen(raw::descriptor::context_domain(9)));
    assert!(context_seen(raw::descriptor::context_device(DID, NIC, 0)));
    assert!(!context_seen(raw::descriptor::context_device(9, NIC, 0)));
    assert!(!context_seen(raw::descriptor::context_device(DID, OTHER, 0)));
    assert!(!context_seen(raw::descriptor::IOTLB_GLOBAL));
}

#[test]
fn a_function_mask_widens_a_device_invalidation() {
    // 0018h is device 3 function 0; 001Ch is function 4 and 001Fh function 7 of the same device.
    assert!(!context_seen(raw::descriptor::context_device(DID, 0x001C, 0)));
    assert!(context_seen(raw::descriptor::context_device(DID, 0x001C, 1)));
    assert!(!context_seen(raw::descriptor::context_device(DID, 0x001E, 1)));
    assert!(context_seen(raw::descriptor::context_device(DID, 0x001E, 2)));
    assert!(!context_seen(raw::descriptor::context_device(DID, 0x001F, 2)));
    assert!(context_seen(raw::descriptor::context_device(DID, 0x001F, 3)));
    assert!(!context_seen(raw::descriptor::context_device(DID, 0x0020, 3)));
}

#[test]
fn domain_bits_above_the_width_are_ignored_in_commands() {
    let (mut rig, top) = Rig::with_domain(spec().domain_id_bits(8));
    rig.map(top, 0x1000, 0x5000);
    rig.host(NIC, 0x1000);
    rig.map(top, 0x1000, 0x6000);
    rig.invalidate(&[raw::descriptor::iotlb_domain(DID | 0x100)]);
    assert_eq!(rig.host(NIC, 0x1000), 0x6000);
}

#[test]
fn a_hit_reads_no_table() {
    let (mut rig, top) = Rig::with_domain(spec());
    rig.map(top, 0x1000, 0x5000);
    rig.host(NIC, 0x1000);
    let before = rig.unit.counters().walks;
    assert_eq!(
        (before.reads.root, before.reads.context, before.reads.second_stage),
        (1, 1, 4)
    );
    rig.host(NIC, 0x1FF8);
    let after = rig.unit.counters().walks;
    assert_eq!(after.reads, before.reads);
    assert_eq!((after.iotlb.hits, after.context.hits), (1, 1));
}

#[test]
fn entries_that_fault_are_not_cached_without_caching_mode() {
    let (mut rig, top) = Rig::with_domain(spec());
    rig.fault(NIC, 0x1000);
    rig.map(top, 0x1000, 0x5000);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
    // Also while another requester faults on its context entry.
    assert_eq!(rig.fault(0x30, 0x1000).0, 0x02);
    rig.context(0x30, translation_type::UNTRANSLATED, top, 2, DID);
    assert_eq!(rig.host(0x30, 0x1000), 0x5000);
}

#[test]
fn two_tables_under_one_domain_identifier_do_not_mix_in_the_strict_profile() {
    let (mut rig, top) = Rig::with_domain(spec());
    let other = rig.tables.page();
    rig.context(OTHER, translation_type::UNTRANSLATED, other, 2, DID);
    rig.map(top, 0x1000, 0x5000);
    rig.map(other, 0x1000, 0x6000);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
    assert_eq!(rig.host(OTHER, 0x1000), 0x6000);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
}

#[test]
fn requesters_of_one_domain_share_translations() {
    let (mut rig, top) = Rig::with_domain(spec());
    rig.context(OTHER, translation_type::UNTRANSLATED, top, 2, DID);
    rig.map(top, 0x1000, 0x5000);
    rig.host(NIC, 0x1000);
    rig.host(OTHER, 0x1000);
    assert_eq!(rig.unit.counters().walks.reads.second_stage, 4);
}

#[test]
fn keys_that_differ_only_in_high_bits_do_not_mix() {
    let (mut rig, top) = Rig::with_domain(spec());
    let other = rig.tables.page();
    rig.context(0xFF18, translation_type::UNTRANSLATED, other, 2, 0xFF05);
    rig.map(top, 0x7F00_0000_1000, 0x5000);
    rig.map(top, 0x1000, 0x6000);
    rig.map(other, 0x1000, 0x7000);
    for _ in 0..2 {
        assert_eq!(rig.host(NIC, 0x7F00_0000_1000), 0x5000);
        assert_eq!(rig.host(NIC, 0x1000), 0x6000);
        assert_eq!(rig.host(0xFF18, 0x1000), 0x7000);
        assert_eq!(rig.fault(0xFF18, 0x7F00_0000_1000).0, 0x06);
    }
}

#[test]
fn setting_the_root_pointer_drops_caches_only_with_the_capability() {
    for (enhanced, host) in [(false, 0x5000), (true, 0x6000)] {
        let (mut rig, top) = Rig::with_domain(spec().enhanced_root_pointer(enhanced));
        rig.map(top, 0x1000, 0x5000);
        rig.host(NIC, 0x1000);
        rig.map(top, 0x1000, 0x6000);
        rig.set_root(rig.root);
        assert_eq!(rig.host(NIC, 0x1000), host);
    }
}
