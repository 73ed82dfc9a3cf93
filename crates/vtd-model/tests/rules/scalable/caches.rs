//! What each invalidation of scalable mode drops and keeps (VT-d §6.5.2).

use iommu_testkit::raw::{self, descriptor};
use vtd_model::Profile;

use super::{Bench, FS_ALL, PWSNP, RID, RW, full, plain, read};
use crate::rig::{DID, NIC};

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
