//! One battery for every format, depth and set of page sizes: random operations, a naive model, and a walker in plain
//! shifts that reads memory as hardware sees it.
#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::collections::BTreeMap;

use iommu_pagetable::{
    Config, FirstStage, Format, Holes, LeafSizes, Levels, MapError, PageTable, Partial, SecondStage, UnmapError,
    UnmapRules, Unmapped,
};
use iommu_testkit::SparseMemory;
use iommu_types::{AddrRange, HostPhys, Iova, Perms, SystemMemory, TableMemory};
use proptest::prelude::*;

const PAGE: u64 = 0x1000;

/// What is mapped: first byte → (last byte, output of the first byte, rights).
type Model = BTreeMap<u64, (u64, u64, Perms)>;

#[derive(Clone, Debug)]
enum Op {
    Map {
        iova: u64,
        phys: u64,
        pages: u64,
        perms: Perms,
        fail: Option<u64>,
    },
    Unmap {
        iova: u64,
        pages: u64,
        rules: UnmapRules,
    },
    Prune,
}

fn address() -> impl Strategy<Value = u64> {
    // Few windows, and offsets around the boundaries of tables, so that operations meet.
    let window = prop_oneof![Just(0u64), Just(1), Just(2), Just(511)];
    let middle = prop_oneof![Just(0u64), Just(1), Just(2), Just(511)];
    let low = prop_oneof![4 => Just(0u64), 1 => Just(1), 1 => Just(255), 2 => Just(511)];
    (window, middle, low).prop_map(|(w, m, l)| w << 30 | m << 21 | l << 12)
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 1u64..4,
        2 => Just(511u64),
        4 => Just(512u64),
        2 => Just(513u64),
        2 => Just(1024u64),
        1 => Just(1536u64),
        2 => Just(1u64 << 18),
        1 => Just((1u64 << 18) + 513),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let perms = prop_oneof![Just(Perms::READ), Just(Perms::WRITE), Just(Perms::READ_WRITE)];
    let shift = prop_oneof![4 => Just(1u64 << 38), 1 => Just((1 << 38) + PAGE), 1 => Just((1 << 38) + (1 << 21))];
    let fail = prop_oneof![5 => Just(None), 1 => (0u64..3).prop_map(Some)];
    let rules = (any::<bool>(), any::<bool>()).prop_map(|(split, skip)| UnmapRules {
        superpages: if split { Partial::Split } else { Partial::Refuse },
        holes: if skip { Holes::Skip } else { Holes::Refuse },
    });
    prop_oneof![
        5 => (address(), shift, length(), perms, fail)
            .prop_map(|(iova, shift, pages, perms, fail)| Op::Map { iova, phys: iova + shift, pages, perms, fail }),
        4 => (address(), length(), rules).prop_map(|(iova, pages, rules)| Op::Unmap { iova, pages, rules }),
        1 => Just(Op::Prune),
    ]
}

/// First and last byte of each extent that has a byte in `first..=last`.
fn hits(model: &Model, first: u64, last: u64) -> Vec<u64> {
    model
        .iter()
        .filter(|&(&f, &(l, ..))| f <= last && first <= l)
        .map(|(&f, _)| f)
        .collect()
}

fn subtract(model: &mut Model, first: u64, last: u64) {
    for start in hits(model, first, last) {
        let (end, phys, perms) = model.remove(&start).expect("just found");
        if start < first {
            model.insert(start, (first - 1, phys, perms));
        }
        if end > last {
            model.insert(last + 1, (end, phys + (last + 1 - start), perms));
        }
    }
}

fn covered(model: &Model, first: u64, last: u64) -> bool {
    let mut at = first;
    for start in hits(model, first, last) {
        if start > at {
            return false;
        }
        at = model[&start].0 + 1;
    }
    at > last
}

/// Walks as hardware does, in plain numbers: output address and rights.
fn hardware_walk(memory: &SparseMemory, second_stage: bool, root: u64, levels: u32, iova: u64) -> Option<(u64, Perms)> {
    let (mut at, mut perms) = (root, Perms::READ_WRITE);
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let word = memory
            .hardware()
            .read_u64(HostPhys::new(at + 8 * ((iova >> shift) & 0x1ff)))
            .expect("table memory");
        let grants = if second_stage {
            Perms {
                read: word & 1 != 0,
                write: word & 2 != 0,
            }
        } else {
            Perms {
                read: word & 1 != 0,
                write: word & 3 == 3,
            }
        };
        if grants.is_none() {
            return None;
        }
        assert!(second_stage || word & 4 != 0, "a user request needs U/S in {word:#x}");
        perms = perms.intersect(grants);
        let address = word & 0x000f_ffff_ffff_f000;
        if level == 1 || (level <= 3 && word & 0x80 != 0) {
            let mask = (1u64 << shift) - 1;
            assert_eq!(
                address & mask,
                0,
                "reserved address bits of a leaf at level {level}: {word:#x}"
            );
            return Some((address | (iova & mask), perms));
        }
        assert_eq!(word & 0x80, 0, "PS is reserved in a link at level {level}");
        at = address;
    }
    None
}

struct Bench<F> {
    memory: SparseMemory,
    table: PageTable<F>,
    model: Model,
    second_stage: bool,
    levels: Levels,
    sizes: LeafSizes,
}

impl<F: Format> Bench<F> {
    fn new(format: F, second_stage: bool, levels: Levels, sizes: LeafSizes, coherent: bool) -> Self {
        let builder = SparseMemory::builder().ram(0, 1 << 32);
        let memory = if coherent {
            builder.build()
        } else {
            builder.non_coherent().build()
        };
        let config = Config::new(levels).leaf_sizes(sizes);
        let config = if coherent { config } else { config.non_coherent() };
        let table = PageTable::new(format, config, &memory).expect("memory");
        Self {
            memory,
            table,
            model: Model::new(),
            second_stage,
            levels,
            sizes,
        }
    }

    fn confirm(&self, mut unmapped: Unmapped) {
        // As after the flush: nothing may be left behind in the table pages' place.
        let remainder = unmapped.take_remainder();
        for frame in unmapped.into_frames() {
            self.memory.free(frame);
        }
        if let Some(remainder) = remainder {
            self.table
                .restore(&self.memory, remainder)
                .expect("tables were set aside");
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Map {
                iova,
                phys,
                pages,
                perms,
                fail,
            } => self.map(iova, phys, pages * PAGE, perms, fail),
            Op::Unmap { iova, pages, rules } => self.unmap(iova, iova + pages * PAGE - 1, rules),
            Op::Prune => {
                let pruned = self
                    .table
                    .prune(&self.memory, self.table.aperture())
                    .expect("in the aperture");
                assert_eq!(pruned.structure_changed(), !pruned.frames().is_empty());
                self.confirm(pruned);
            }
        }
        self.check();
    }

    fn map(&mut self, iova: u64, phys: u64, len: u64, perms: Perms, fail: Option<u64>) {
        let frames = self.memory.live_frames().len();
        if let Some(n) = fail {
            self.memory.fail_allocation(n);
        }
        let done = self
            .table
            .map(&self.memory, Iova::new(iova), HostPhys::new(phys), len, perms);
        self.memory.heal_allocations();
        let last = iova + len - 1;
        let hit = hits(&self.model, iova, last);
        if done.is_err() {
            assert_eq!(self.memory.live_frames().len(), frames, "a failed map keeps no table");
        }
        match done {
            Ok(()) => {
                assert!(hit.is_empty(), "overlap with {hit:x?} accepted");
                assert!(last <= self.table.aperture().last().raw());
                let perms = self.table.format().granted(perms).expect("some right");
                self.model.insert(iova, (last, phys, perms));
            }
            Err(MapError::Overlap { at }) => {
                assert!(!hits(&self.model, at.raw(), at.raw()).is_empty() && iova <= at.raw() && at.raw() <= last);
            }
            Err(MapError::OutOfFrames(_)) => assert!(fail.is_some()),
            Err(MapError::OutsideAperture { .. }) => assert!(last > self.table.aperture().last().raw()),
            Err(error) => panic!("{error}"),
        }
    }

    fn unmap(&mut self, first: u64, last: u64, rules: UnmapRules) {
        let range = AddrRange::new(Iova::new(first), Iova::new(last)).expect("ordered");
        let page_at = |at| self.table.lookup(&self.memory, Iova::new(at)).map(|m| m.page);
        let cut = [first, last]
            .into_iter()
            .filter_map(page_at)
            .any(|page| !range.covers(page));
        let holes = !covered(&self.model, first, last);
        match self.table.unmap(&self.memory, range, rules) {
            Ok(unmapped) => {
                assert!(rules.superpages == Partial::Split || !cut);
                assert!(rules.holes == Holes::Skip || !holes);
                assert!(unmapped.range().covers(range));
                assert_eq!(unmapped.remainder().is_some(), cut);
                let cut_off = self.hardware(first).or(self.hardware(last));
                assert_eq!(cut_off, None, "reachable by a walk after unmap");
                self.confirm(unmapped);
                subtract(&mut self.model, first, last);
            }
            Err(UnmapError::Split { page }) => {
                assert!(cut && rules.superpages == Partial::Refuse && page.overlaps(range))
            }
            Err(UnmapError::NotMapped { at }) => {
                assert!(rules.holes == Holes::Refuse && hits(&self.model, at.raw(), at.raw()).is_empty());
            }
            Err(UnmapError::OutsideAperture { .. }) => assert!(last > self.table.aperture().last().raw()),
            Err(error) => panic!("{error}"),
        }
    }

    fn hardware(&self, iova: u64) -> Option<(u64, Perms)> {
        let levels = u32::from(self.levels.count());
        hardware_walk(&self.memory, self.second_stage, self.table.root().raw(), levels, iova)
    }

    fn see(&self, iova: u64, expected: Option<(u64, Perms)>) {
        if iova > self.table.aperture().last().raw() {
            return;
        }
        let found = self.table.lookup(&self.memory, Iova::new(iova));
        assert_eq!(found.map(|m| (m.phys.raw(), m.perms)), expected, "lookup of {iova:#x}");
        assert_eq!(self.hardware(iova), expected, "hardware's walk of {iova:#x}");
        assert!(found.is_none_or(|m| self.sizes.allows(m.size)));
    }

    fn check(&self) {
        for (&first, &(last, phys, perms)) in &self.model {
            let middle = first + (last - first) / 2;
            for at in [first, first + 8, middle, last - 0xfff, last] {
                self.see(at, Some((phys + (at - first), perms)));
            }
            for at in [first.checked_sub(1), last.checked_add(1)].into_iter().flatten() {
                if hits(&self.model, at, at).is_empty() {
                    self.see(at, None);
                }
            }
        }
        assert_eq!(
            self.memory.unseen_by_hardware(),
            [],
            "entries that were not written back"
        );
        assert!(self.memory.violations().is_empty());
    }

    fn finish(mut self) {
        let rules = UnmapRules {
            superpages: Partial::Split,
            holes: Holes::Refuse,
        };
        for (first, (last, ..)) in std::mem::take(&mut self.model) {
            let range = AddrRange::new(Iova::new(first), Iova::new(last)).expect("ordered");
            self.confirm(self.table.unmap(&self.memory, range, rules).expect("mapped"));
        }
        self.apply(&Op::Prune);
        assert_eq!(self.memory.live_frames().len(), 1, "only the root is left");
        self.table.free(&self.memory);
        self.memory.assert_clean();
    }
}

fn run<F: Format>(format: F, second_stage: bool, levels: Levels, sizes: LeafSizes, coherent: bool, ops: &[Op]) {
    let mut bench = Bench::new(format, second_stage, levels, sizes, coherent);
    for op in ops {
        bench.apply(op);
    }
    bench.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_format_and_depth_agrees_with_the_model(
        ops in prop::collection::vec(op(), 1..24),
        size_2m in any::<bool>(),
        size_1g in any::<bool>(),
        coherent in any::<bool>(),
    ) {
        let sizes = LeafSizes { size_2m, size_1g };
        for levels in Levels::ALL {
            run(SecondStage::default(), true, levels, sizes, coherent, &ops);
            run(SecondStage::default().force_snoop(), true, levels, sizes, coherent, &ops);
            run(SecondStage::default().track_dirty(), true, levels, sizes, coherent, &ops);
            run(FirstStage::default(), false, levels, sizes, coherent, &ops);
            run(FirstStage::default().track_dirty(), false, levels, sizes, coherent, &ops);
        }
    }
}

#[test]
fn mappings_up_to_the_last_page_of_every_depth_work() {
    for levels in Levels::ALL {
        let mut bench = Bench::new(SecondStage::default(), true, levels, LeafSizes::ALL, true);
        let last = bench.table.aperture().last().raw();
        assert_eq!(
            last,
            [(1 << 39) - 1, (1 << 48) - 1, (1 << 57) - 1][usize::from(levels.count()) - 3]
        );
        bench.map(last - 0x3fff_ffff, 1 << 31, 1 << 30, Perms::READ, None);
        bench.check();
        let beyond = bench.table.map(
            &bench.memory,
            Iova::new(last - 0xfff),
            HostPhys::ZERO,
            0x2000,
            Perms::READ,
        );
        assert!(matches!(beyond, Err(MapError::OutsideAperture { .. })));
        bench.finish();
    }
}

#[test]
fn refused_arguments_say_why() {
    let bench = Bench::new(SecondStage::default(), true, Levels::Four, LeafSizes::ALL, true);
    let map = |iova, phys, len, perms| {
        bench
            .table
            .map(&bench.memory, Iova::new(iova), HostPhys::new(phys), len, perms)
    };
    assert!(matches!(
        map(0x800, 0, PAGE, Perms::READ),
        Err(MapError::Misaligned { .. })
    ));
    assert!(matches!(
        map(0, 0x10, PAGE, Perms::READ),
        Err(MapError::Misaligned { .. })
    ));
    assert!(matches!(map(0, 0, 0, Perms::READ), Err(MapError::Misaligned { .. })));
    assert!(matches!(map(0, 0, PAGE, Perms::NONE), Err(MapError::NoRights { .. })));
    assert!(matches!(
        map(0, (1 << 52) - PAGE, 2 * PAGE, Perms::READ),
        Err(MapError::OutsideHost { .. })
    ));
    assert!(matches!(
        map(u64::MAX - 0xfff, 0, 2 * PAGE, Perms::READ),
        Err(MapError::OutsideAperture { .. })
    ));
    bench.finish();
}

#[test]
fn large_mappings_use_the_fewest_tables() {
    let mut bench = Bench::new(SecondStage::default(), true, Levels::Four, LeafSizes::SMALL, true);
    bench.map(1 << 30, 1 << 34, 1 << 30, Perms::READ_WRITE, None);
    assert_eq!(
        bench.memory.live_frames().len(),
        1 + 1 + 1 + 512,
        "root, level 3, level 2, and a table for each 2 MiB"
    );
    bench.finish();
    let mut bench = Bench::new(SecondStage::default(), true, Levels::Four, LeafSizes::ALL, true);
    bench.map(1 << 30, 1 << 34, 3 << 30, Perms::READ_WRITE, None);
    assert_eq!(
        bench.memory.live_frames().len(),
        2,
        "three entries of 1 GiB in the level 3 table"
    );
    bench.finish();
}

#[test]
fn a_line_is_written_back_once_for_a_range() {
    let mut bench = Bench::new(SecondStage::default(), true, Levels::Four, LeafSizes::SMALL, false);
    bench.map(0x20_0000, 1 << 33, PAGE, Perms::READ, None);
    let _ = bench.memory.take_write_backs();
    bench.map(0x24_0000, 1 << 33, 256 * PAGE, Perms::READ, None);
    let lines: u64 = bench
        .memory
        .take_write_backs()
        .iter()
        .map(|r| (r.last().raw() >> 6) - (r.first().raw() >> 6) + 1)
        .sum();
    assert_eq!(lines, 32, "256 entries of 8 bytes");
    bench.finish();
}

#[test]
fn an_unmap_of_a_whole_table_frees_it_only_through_the_token() {
    let mut bench = Bench::new(SecondStage::default(), true, Levels::Three, LeafSizes::SMALL, true);
    bench.map(0x20_0000, 1 << 33, 0x20_0000, Perms::READ, None);
    let live = bench.memory.live_frames().len();
    let range = AddrRange::from_base_len(Iova::new(0x20_0000), 0x20_0000).expect("a range");
    let unmapped = bench
        .table
        .unmap(&bench.memory, range, UnmapRules::STRICT)
        .expect("mapped");
    assert!(unmapped.structure_changed());
    assert_eq!((unmapped.pages(), unmapped.frames().len()), (512, 1));
    assert_eq!(bench.memory.live_frames().len(), live, "waits for the flush");
    bench.confirm(unmapped);
    assert_eq!(bench.memory.live_frames().len(), live - 1);
    bench.model.clear();
    bench.finish();
}

#[test]
fn threads_on_disjoint_pages_of_one_table_never_disturb_each_other() {
    for coherent in [true, false] {
        let bench = Bench::new(SecondStage::default(), true, Levels::Four, LeafSizes::ALL, coherent);
        let (table, memory) = (&bench.table, &bench.memory);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                scope.spawn(move || {
                    for round in 0..40u64 {
                        // Neighbouring pages of four tables that nobody has made yet, or that a prune took out.
                        for k in 0..4u64 {
                            let iova = Iova::new(round << 31 | k << 21 | thread << 12);
                            let phys = HostPhys::new(1 << 40 | iova.raw());
                            table
                                .map(memory, iova, phys, PAGE, Perms::READ_WRITE)
                                .expect("own page");
                            assert_eq!(table.lookup(memory, iova).map(|m| m.phys), Some(phys));
                            let seen = hardware_walk(memory, true, table.root().raw(), 4, iova.raw());
                            assert_eq!(seen, Some((phys.raw(), Perms::READ_WRITE)), "usable on return");
                        }
                        for k in 0..4u64 {
                            let range = AddrRange::from_base_len(Iova::new(round << 31 | k << 21 | thread << 12), PAGE);
                            let unmapped = table.unmap(memory, range.expect("a range"), UnmapRules::STRICT);
                            assert!(unmapped.expect("mapped").frames().is_empty(), "shared tables stay");
                        }
                    }
                });
            }
        });
        bench.finish();
    }
}
