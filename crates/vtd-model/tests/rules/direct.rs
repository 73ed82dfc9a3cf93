//! The walk by itself: it gives the answer of a full translation, or none.

use iommu_types::{Access, AddrRange, HostPhys, Iova, SourceId, SystemMemory};
use proptest::prelude::*;
use vtd_model::{CacheSizes, DirectWalker, Profile, QemuVersion, Request};

use crate::rig::{DID, NIC, Rig, spec};

const NO_CACHES: CacheSizes = CacheSizes {
    contexts: 0,
    pasids: 0,
    pages: 0,
    tables: 0,
    interrupts: 0,
};

/// Table pages, one behind the other: entries point at each other, at memory or at the interrupt range.
const TABLES: u64 = 0x80_0000;
const PAGES: u64 = 5;

fn entry() -> impl Strategy<Value = u64> {
    let target = prop_oneof![
        4 => (0..PAGES).prop_map(|page| TABLES + page * 0x1000),
        2 => Just(0x1234_5000u64),
        1 => Just(0xFEE0_0000u64),
        1 => Just(0xC000_0000u64),
        // Not memory.
        1 => Just(0x40_0000_0000u64),
    ];
    // Permissions, PS, and now and then a bit that may be reserved.
    (
        target,
        prop_oneof![4 => Just(3u64), 2 => 0..4u64],
        any::<u8>(),
        0..64u32,
    )
        .prop_map(|(target, perms, odd, bit)| {
            let large = if odd & 3 == 0 { 1 << 7 } else { 0 };
            let stray = if odd & 0x1C == 0 { 1 << bit } else { 0 };
            target | perms | large | stray
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn it_answers_as_the_full_translation_or_not_at_all(
        entries in prop::collection::vec((0..PAGES, 0..4u64, entry()), 4..24),
        levels in 3..=5u8,
        large in any::<(bool, bool)>(),
        snoop_control in any::<bool>(),
        addresses in prop::collection::vec((0..4u64, 0..4u64, 0..4u64, 0..4u64, 0..0x1000u64, 0..12u32), 16),
        write in any::<bool>(),
    ) {
        let builder = spec()
            .five_levels(true)
            .pages_2m(large.0 || large.1)
            .pages_1g(large.1)
            .snoop_control(snoop_control)
            .cache_sizes(Some(NO_CACHES));
        let mut rig = Rig::legacy(builder);
        let walker = DirectWalker::new(rig.unit.config()).expect("the profile of the specification");
        rig.context(NIC, 0, TABLES, u64::from(levels) - 2, DID);
        // Most walks get through: the first entry of every page leads to the next.
        for page in 0..PAGES {
            rig.tables.put(TABLES + page * 0x1000, (TABLES + (page + 1) % PAGES * 0x1000) | 3);
        }
        for (page, index, value) in entries {
            rig.tables.put(TABLES + page * 0x1000 + index * 8, value);
        }
        for (a, b, c, d, offset, high) in addresses {
            // Some beyond the width, and some in the interrupt range.
            let beyond = if high == 0 { 1 << (12 + 9 * levels) } else { 0 };
            let address = if high == 1 {
                0xFEE0_0000 | offset
            } else {
                a << 39 | b << 30 | c << 21 | d << 12 | offset | beyond
            };
            let access = if write { Access::Write } else { Access::Read };
            let request = Request::new(SourceId::from_raw(NIC), Iova::new(address), 1, access);
            let memory = rig.memory;
            let direct = walker
                .page(TABLES, levels, address, |at| memory.read_u64(at).ok())
                .filter(|page| page.perms.allows(access));
            match (rig.dma(&request), direct) {
                (Ok(full), Some(page)) => {
                    prop_assert_eq!(full.phys, HostPhys::new(page.phys.raw() + (address - page.base)));
                    prop_assert_eq!(Some(full.page), AddrRange::from_base_len(Iova::new(page.base), page.size.bytes()));
                    prop_assert_eq!(full.perms, page.perms);
                }
                (Err(_), None) => {}
                (full, direct) => prop_assert!(false, "{:x?} but {:x?}", full, direct),
            }
        }
    }
}

#[test]
fn profiles_that_do_more_on_a_walk_than_look_have_none() {
    for (profile, there) in [
        (Profile::Spec, true),
        (Profile::Silicon, false),
        (Profile::Qemu(QemuVersion::V11_1), false),
    ] {
        let config = spec().profile(profile).build().expect("consistent");
        assert_eq!(DirectWalker::new(&config).is_some(), there, "{profile:?}");
    }
}
