//! Between a change and the completion of an invalidation that covers it a request sees the old or the new translation;
//! afterwards only the new one. Random programs against a page-by-page account.

use std::collections::BTreeMap;

use iommu_testkit::raw::{self, descriptor, translation_type};
use iommu_types::{Iova, Pasid, SourceId};
use proptest::prelude::*;
use vtd_model::{Profile, Request, Unit};

use crate::rig::{NIC, Rig, spec};

const RW: u64 = raw::SS_READ | raw::SS_WRITE;
const FS_ALL: u64 = raw::FS_PRESENT | raw::FS_WRITE | raw::FS_USER | raw::FS_ACCESSED | raw::FS_DIRTY;
/// Pages of each address space: three small ones, then two large ones.
const PAGES: usize = 5;
/// Where large pages begin; small ones lie below.
const LARGE: u64 = 0x4000_0000;

#[derive(Clone, Debug)]
enum Step {
    /// A page leads elsewhere, or nowhere.
    Change {
        space: usize,
        page: usize,
        to: u64,
    },
    Access {
        space: usize,
        page: usize,
        write: bool,
    },
    Global,
    Domain(usize),
    /// Domain, page and address mask.
    Pages(usize, usize, u64, bool),
    /// PASID-based, of a whole PASID.
    Pasid(usize),
    /// PASID-based, of pages.
    PasidPages(usize, usize, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (space, page) = (0usize..3, 0usize..PAGES);
    let step = prop_oneof![
        6 => (space.clone(), page.clone(), 0u64..9).prop_map(|(space, page, to)| Step::Change { space, page, to }),
        12 => (space.clone(), page.clone(), any::<bool>())
            .prop_map(|(space, page, write)| Step::Access { space, page, write }),
        1 => Just(Step::Global),
        1 => space.clone().prop_map(Step::Domain),
        3 => (space.clone(), page.clone(), 0u64..19, any::<bool>())
            .prop_map(|(space, page, mask, hint)| Step::Pages(space, page, mask, hint)),
        1 => space.clone().prop_map(Step::Pasid),
        2 => (space, page, 0u64..40).prop_map(|(space, page, mask)| Step::PasidPages(space, page, mask)),
    ];
    proptest::collection::vec(step, 1..80)
}

/// First address and level of a page.
fn address(page: usize) -> (u64, u32) {
    match u64::try_from(page).expect("small") {
        small @ 0..3 => (0x1000 + (small << 12), 1),
        large => (LARGE + ((large - 3) << 21), 2),
    }
}

fn size(level: u32) -> u64 {
    1 << (12 + 9 * (level - 1))
}

/// Whether the block of `2^mask` pages around `at` holds all of the page.
fn covers(at: u64, mask: u64, page: usize) -> bool {
    let (first, level) = address(page);
    let bytes = 0x1000u64.checked_shl(mask as u32).unwrap_or(u64::MAX);
    let base = at & !(bytes - 1);
    base <= first && first + size(level) - 1 <= base + (bytes - 1)
}

/// Three address spaces: legacy domains, or in scalable mode PASIDs (first-stage, first-stage, second-stage) of which the
/// first two share a domain.
struct Bench {
    rig: Rig,
    scalable: bool,
    tops: [u64; 3],
    /// What each page may still lead to: 0 is nowhere.
    allowed: BTreeMap<(usize, usize), Vec<u64>>,
}

impl Bench {
    fn new(scalable: bool, profile: Profile) -> Self {
        let builder = spec().profile(profile).sanitizer(true);
        let mut rig = if scalable {
            Rig::scalable(builder.full_scalable_mode())
        } else {
            Rig::legacy(builder)
        };
        let tops = [0; 3].map(|_| rig.tables.page());
        if scalable {
            let directory = rig.tables.page();
            rig.tables
                .scalable_context(rig.root, NIC, raw::scalable_context_entry(directory, 0, 0, 1 << 3));
            for (space, top) in tops.into_iter().enumerate() {
                let did = Self::domain(true, space);
                let mut words = if space < 2 {
                    raw::pasid_first_stage(top, 4, did)
                } else {
                    raw::pasid_second_stage(top, 2, did)
                };
                words[1] |= 1 << 23;
                rig.tables.pasid(directory, Self::pasid(space), words);
            }
        } else {
            for (space, top) in tops.into_iter().enumerate() {
                let sid = NIC + u16::try_from(space).expect("small");
                rig.context(sid, translation_type::UNTRANSLATED, top, 2, Self::domain(false, space));
            }
        }
        Self {
            rig,
            scalable,
            tops,
            allowed: BTreeMap::new(),
        }
    }

    fn domain(scalable: bool, space: usize) -> u16 {
        let space = u16::try_from(space).expect("small");
        if scalable { 5 + space / 2 } else { 5 + space }
    }

    fn pasid(space: usize) -> u32 {
        u32::try_from(space).expect("small") + 1
    }

    fn change(&mut self, space: usize, page: usize, to: u64) {
        let (at, level) = address(page);
        let phys = if to == 0 { 0 } else { 0x1_0000_0000 + (to << 21) };
        let tables = &mut self.rig.tables;
        if self.scalable && space < 2 {
            tables.first_stage(self.tops[space], 4, at, phys, level, if to == 0 { 0 } else { FS_ALL });
        } else {
            tables.second_stage(self.tops[space], 4, at, phys, level, if to == 0 { 0 } else { RW });
        }
        self.allowed.entry((space, page)).or_insert_with(|| vec![0]).push(phys);
    }

    fn access(&mut self, space: usize, page: usize, write: bool) {
        let (at, _) = address(page);
        let sid = if self.scalable {
            NIC
        } else {
            NIC + u16::try_from(space).expect("small")
        };
        let source = SourceId::from_raw(sid);
        let request = if write {
            Request::write(source, Iova::new(at), 8)
        } else {
            Request::read(source, Iova::new(at), 8)
        };
        let request = if self.scalable {
            request.with_pasid(Pasid::new(Self::pasid(space)).expect("20 bits"))
        } else {
            request
        };
        let host = self.rig.dma(&request).map_or(0, |answer| answer.phys.raw());
        let allowed = self.allowed.entry((space, page)).or_insert_with(|| vec![0]);
        assert!(allowed.contains(&host), "{request}: {host:x} is none of {allowed:x?}");
    }

    fn access_all(&mut self) {
        for (space, page) in (0..3).flat_map(|space| (0..PAGES).map(move |page| (space, page))) {
            self.access(space, page, false);
            self.access(space, page, true);
        }
    }

    /// Forgets old translations of the pages for which `gone` holds.
    fn settled(&mut self, gone: impl Fn(usize, usize) -> bool) {
        for ((space, page), allowed) in &mut self.allowed {
            if gone(*space, *page) {
                let last = *allowed.last().expect("never empty");
                *allowed = vec![last];
            }
        }
    }

    fn run(&mut self, step: &Step) {
        let scalable = self.scalable;
        let same = move |a: usize, b: usize| Self::domain(scalable, a) == Self::domain(scalable, b);
        let first = move |space: usize| scalable && space < 2;
        match *step {
            // Cached first, so that there is something to be stale.
            Step::Change { space, page, to } => {
                self.access(space, page, false);
                self.change(space, page, to);
            }
            Step::Access { space, page, write } => self.access(space, page, write),
            Step::Global => {
                self.rig.invalidate(&[descriptor::IOTLB_GLOBAL]);
                self.settled(|_, _| true);
            }
            Step::Domain(space) => {
                self.rig
                    .invalidate(&[descriptor::iotlb_domain(Self::domain(scalable, space))]);
                self.settled(|other, _| same(space, other));
            }
            Step::Pages(space, page, mask, hint) => {
                let (at, _) = address(page);
                // Only leaves change here, so the hint is always true to the facts for pages; tables appear only.
                let words = descriptor::iotlb_pages(Self::domain(scalable, space), at, mask, hint);
                self.rig.invalidate(&[words]);
                self.settled(|other, page| same(space, other) && (first(other) || covers(at, mask, page)));
            }
            Step::Pasid(space) if scalable => {
                let words = descriptor::pasid_iotlb_all(Self::domain(true, space), Self::pasid(space));
                self.rig.invalidate(&[words]);
                self.settled(|other, _| other == space);
            }
            Step::PasidPages(space, page, mask) if scalable => {
                let (at, _) = address(page);
                let words = descriptor::pasid_iotlb_pages(Self::domain(true, space), Self::pasid(space), at, mask);
                self.rig.invalidate(&[words]);
                self.settled(|other, page| other == space && first(other) && covers(at, mask, page));
            }
            Step::Pasid(_) | Step::PasidPages(..) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn no_request_sees_a_translation_that_was_invalidated(
        scalable in any::<bool>(),
        silicon in any::<bool>(),
        steps in steps(),
    ) {
        let mut bench = Bench::new(scalable, if silicon { Profile::Silicon } else { Profile::Spec });
        for step in &steps {
            bench.run(step);
            if !matches!(step, Step::Change { .. } | Step::Access { .. }) {
                bench.access_all();
            }
        }
        // With everything invalidated, the sanitizer has nothing more to say.
        bench.run(&Step::Global);
        while bench.rig.unit.take_finding().is_some() {}
        bench.access_all();
        bench.access_all();
        prop_assert_eq!(bench.rig.unit.take_finding(), None);
    }
}

#[test]
fn a_unit_can_move_between_threads() {
    fn movable<T: Send + Sync + 'static>() {}
    movable::<Unit>();
}
