//! Random scalable-mode tables, all translation types: the model against the testkit's walker, flags included.

use iommu_testkit::{oracle, raw};
use iommu_types::{Access, Iova, Pasid, SourceId};
use proptest::prelude::*;
use vtd_model::{Profile, Request, RequestKind};

use crate::oracle::{compare, oracle_request, oracle_unit};
use crate::rig::{Rig, spec};

/// A page in the tables of a PASID: where, level, flags, and where it leads.
type Page = (u64, u64, u32, u64, u64);

/// One PASID: translation type, flags of the entry, and its pages.
#[derive(Clone, Debug)]
struct Space {
    pgtt: u64,
    aw: u64,
    five: bool,
    ssade: bool,
    pwsnp: bool,
    wpe: bool,
    eafe: bool,
    sre: bool,
    first: Vec<Page>,
    second: Vec<Page>,
}

fn pages() -> impl Strategy<Value = Vec<Page>> {
    proptest::collection::vec((0u64..6, 0u64..3, 1u32..4, any::<u64>(), 0u64..6), 1..10)
}

fn spaces() -> impl Strategy<Value = Space> {
    let kind = prop_oneof![12 => 1u64..4, 2 => Just(4u64), 1 => 0u64..8];
    let aw = prop_oneof![6 => Just(2u64), 1 => 1u64..4];
    (kind, aw, any::<[bool; 6]>(), pages(), pages()).prop_map(|(pgtt, aw, on, first, second)| Space {
        pgtt,
        aw,
        five: on[0],
        ssade: on[1],
        pwsnp: on[2] || on[3],
        wpe: on[3],
        eafe: on[4],
        sre: on[5],
        first,
        second,
    })
}

fn requests() -> impl Strategy<Value = Request> {
    let address = prop_oneof![
        8 => (0u64..6, 0u64..3, 0u64..0x1000).prop_map(|(page, big, at)| page << 12 | big << 21 | at & 0xFF8),
        1 => (0u64..3).prop_map(|at| at << 39 | 0x1008),
        1 => Just(0xFEE0_0008),
        1 => Just(0xFFFF_FFFF_FFFF_F000),
        1 => any::<u64>().prop_map(|at| at & !7),
    ];
    let access = prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::Atomic)];
    let kind = prop_oneof![
        5 => Just(RequestKind::Untranslated),
        2 => Just(RequestKind::Translation),
        1 => Just(RequestKind::Translated),
    ];
    let pasid = prop_oneof![4 => Just(None), 6 => (0u32..4).prop_map(Some), 1 => (0u32..0x10_0000).prop_map(Some)];
    (0u16..3, address, access, kind, pasid, 0u64..3, any::<[bool; 3]>()).prop_map(
        |(sid, address, access, kind, pasid, len, on)| {
            let access = if kind == RequestKind::Translation {
                Access::Read
            } else {
                access
            };
            // Functions of both halves of the bus.
            let mut request = Request::new(SourceId::from_raw(sid * 0x7F), Iova::new(address), len * 4, access);
            request = request.with_kind(kind);
            if let Some(pasid) = pasid {
                request = request.with_pasid(Pasid::new(pasid).expect("20 bits"));
            }
            if on[0] && on[1] {
                request = request.with_privilege();
            }
            if on[1] {
                request = request.with_no_write();
            }
            if on[2] && len == 0 {
                request.with_execute()
            } else {
                request
            }
        },
    )
}

/// DTE and PASIDE, mostly both.
fn enables() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(3u64), 1 => 0u64..4]
}

/// Where second-stage pages and first-stage tables lie: a region that tables of both stages can name.
const DATA: u64 = 0x100_0000;

impl Space {
    fn build(&self, rig: &mut Rig, did: u16) -> [u64; 8] {
        let levels = raw::levels_of_aw(self.aw);
        let top = rig.tables.page();
        let first_levels = if self.five { 5 } else { 4 };
        let first_top = rig.tables.page();
        for (page, big, level, bits, to) in &self.first {
            let iova = Self::aligned(page << 12 | big << 21, *level);
            let flags = bits & 0x67 | if bits & 0xF000 == 0 { 0 } else { 1 };
            // Under nested translation the target is guest physical.
            let target = Self::aligned(if self.pgtt == 3 { to << 12 } else { DATA + (to << 21) }, *level);
            rig.tables
                .first_stage(first_top, first_levels, iova, target, *level, flags);
        }
        for (page, big, level, bits, to) in &self.second {
            let iova = Self::aligned(page << 12 | big << 21, *level);
            let flags = bits & 0x303 | if bits & 0xF000 == 0 { 0 } else { raw::SS_READ };
            let target = Self::aligned(if *to == 5 { 0xFEE0_0000 } else { DATA + (to << 21) }, *level);
            rig.tables.second_stage(top, levels, iova, target, *level, flags);
        }
        if self.pgtt == 3 {
            // First-stage tables lie at guest addresses equal to their host addresses.
            let end = rig.tables.page();
            for at in (0x10_0000..=end).step_by(0x1000) {
                let rights = if at & 0x7000 == 0x7000 {
                    raw::SS_READ
                } else {
                    raw::SS_READ | raw::SS_WRITE
                };
                let leaf = rig.tables.entry_at(top, levels, at, 1, raw::SS_READ | raw::SS_WRITE);
                if rig.peek(leaf) == 0 {
                    rig.tables.put(leaf, at | rights);
                }
            }
        }
        let on = |flag: bool, bit: u32| u64::from(flag) << bit;
        let [second, first] = [matches!(self.pgtt, 2 | 3), matches!(self.pgtt, 1 | 3)];
        [
            1 | self.pgtt << 6 | self.aw << 2 | on(self.ssade && second, 9) | if second { top } else { 0 },
            u64::from(did) | on(self.pwsnp, 23),
            on(self.sre, 0)
                | if first {
                    first_top | on(self.five, 2) | on(self.wpe, 4) | on(self.eafe, 7)
                } else {
                    0
                },
            0,
            0,
            0,
            0,
            0,
        ]
    }

    fn aligned(address: u64, level: u32) -> u64 {
        address >> (12 + 9 * (level - 1)) << (12 + 9 * (level - 1))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn scalable_requests_end_as_the_oracle_says(
        silicon in any::<bool>(),
        full in any::<[bool; 4]>(),
        enables in proptest::collection::vec((enables(), 0u64..4, any::<bool>(), proptest::bool::weighted(0.2)), 3),
        spaces in proptest::collection::vec(spaces(), 3),
        flips in proptest::collection::vec((any::<u64>(), 0u32..64), 0..4),
        requests in proptest::collection::vec(requests(), 1..24),
    ) {
        let profile = if silicon { Profile::Silicon } else { Profile::Spec };
        let builder = spec()
            .full_scalable_mode()
            .five_levels(full[0])
            .first_stage_five_levels(full[1])
            .device_tlb(true)
            .no_write_flag(full[2])
            .second_stage_dirty(full[3])
            .profile(profile);
        let mut rig = Rig::scalable(builder);
        let directory = rig.tables.page();
        for (pasid, space) in (0u32..).zip(&spaces) {
            let mut words = space.build(&mut rig, 0x10 + pasid as u16);
            if !full[3] {
                words[0] &= !(1 << 9);
            }
            rig.tables.pasid(directory, pasid, words);
        }
        for (index, (low, rid_pasid, private, fpd)) in (0u16..).zip(enables) {
            // DTE and PASIDE at random; RID_PASID among the PASIDs.
            let [a, mut b, c, d] = raw::scalable_context_entry(directory, 0, rid_pasid, low << 2);
            b |= u64::from(private) << 20;
            rig.tables.scalable_context(rig.root, index * 0x7F, [a | u64::from(fpd) << 1, b, c, d]);
        }
        let last = rig.tables.page();
        // Bits turned over in first- and second-stage tables and in the structures above, PASID entries excepted:
        // which of their unused fields are reserved is not agreed upon.
        let entries = rig.peek(directory) & !0xFFF;
        for (at, bit) in flips {
            let at = rig.root + at % (last - rig.root) / 8 * 8;
            if !(entries..entries + 0x1000).contains(&at) {
                rig.tables.flip(at, bit);
            }
        }
        for request in requests.iter().chain(&requests) {
            let judged = oracle::judge(rig.memory, &oracle_unit(&rig), &oracle_request(request));
            compare(&mut rig, request);
            // Every flag that has to be set is set.
            for update in &judged.updates {
                let word = rig.peek(update.at);
                prop_assert_eq!(word & update.set, update.set, "{:x?} {:?}", update, request);
            }
        }
    }
}
