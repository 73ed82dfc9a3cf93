//! Races made on purpose: a second caller acts at the exact moment the first one is between two steps.
#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::cell::Cell;

use iommu_pagetable::{Config, LeafSizes, Levels, PageTable, Partial, SecondStage, UnmapRules};
use iommu_testkit::SparseMemory;
use iommu_types::{
    AddrRange, Coherence, FrameRequest, HostPhys, Iova, OutOfFrames, Perms, SystemMemory, Table, TableFrame,
    TableMemory,
};

#[derive(Clone, Copy, PartialEq)]
enum Moment {
    Allocate,
    WriteBackOf(HostPhys),
    /// A new, empty table is written back, right before it is linked.
    WriteBackOfTable,
    Never,
}

/// Memory that lets a second caller map a page once, at a chosen moment.
struct Racing<'a> {
    memory: &'a SparseMemory,
    table: &'a PageTable<SecondStage>,
    moment: Cell<Moment>,
    rival: Iova,
}

impl Racing<'_> {
    fn strike(&self) {
        self.moment.set(Moment::Never);
        self.table
            .map(self.memory, self.rival, HostPhys::new(0x7000), 0x1000, Perms::READ)
            .expect("own page");
        assert_eq!(
            leaf(self.memory, self.table, self.rival),
            0x7001,
            "usable by hardware on return"
        );
    }
}

impl TableMemory for Racing<'_> {
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        let frame = self.memory.allocate(request);
        if self.moment.get() == Moment::Allocate {
            self.strike();
        }
        frame
    }
    fn free(&self, frame: TableFrame) {
        self.memory.free(frame);
    }
    fn table(&self, at: HostPhys) -> Option<&Table> {
        self.memory.table(at)
    }
}

impl Coherence for Racing<'_> {
    fn write_back(&self, at: HostPhys, len: u64) {
        let now = self.moment.get();
        if now == Moment::WriteBackOf(at) || (now == Moment::WriteBackOfTable && len == 0x1000) {
            self.strike();
        }
        self.memory.write_back(at, len);
    }
}

/// The leaf entry for `iova` in a three-level tree, as hardware sees it.
fn leaf(memory: &SparseMemory, table: &PageTable<SecondStage>, iova: Iova) -> u64 {
    let mut word = table.root().raw() | 3;
    for shift in [30, 21, 12] {
        let at = (word & 0x000f_ffff_ffff_f000) + 8 * ((iova.raw() >> shift) & 0x1ff);
        word = memory.hardware().read_u64(HostPhys::new(at)).expect("memory");
    }
    word
}

fn range(first: u64, len: u64) -> AddrRange<Iova> {
    AddrRange::from_base_len(Iova::new(first), len).expect("a range")
}

#[test]
fn the_loser_of_a_table_race_gives_its_page_back_and_maps_in_the_winners() {
    // A rival that is done before the first caller looks again, and one that comes between its look and its exchange.
    for moment in [Moment::Allocate, Moment::WriteBackOfTable] {
        let memory = SparseMemory::builder().ram(0, 1 << 30).non_coherent().build();
        let config = Config::new(Levels::Three).non_coherent();
        let table = PageTable::new(SecondStage::default(), config, &memory).expect("memory");
        let racing = Racing {
            memory: &memory,
            table: &table,
            moment: Cell::new(moment),
            rival: Iova::new(0x2000),
        };
        table
            .map(&racing, Iova::new(0x1000), HostPhys::new(0x5000), 0x1000, Perms::READ)
            .expect("own page");
        assert!(racing.moment.get() == Moment::Never, "the rival acted");
        assert_eq!(leaf(&memory, &table, Iova::new(0x1000)), 0x5001);
        assert_eq!(leaf(&memory, &table, Iova::new(0x2000)), 0x7001);
        assert_eq!(memory.live_frames().len(), 3, "one table a level");
        table.free(&memory);
        memory.assert_clean();
    }
}

#[test]
fn a_mapping_below_a_link_on_its_way_to_memory_is_usable_on_return() {
    let memory = SparseMemory::builder().ram(0, 1 << 30).non_coherent().build();
    let config = Config::new(Levels::Three).non_coherent();
    let table = PageTable::new(SecondStage::default(), config, &memory).expect("memory");
    let racing = Racing {
        memory: &memory,
        table: &table,
        // The root's first entry was just set, and is not yet visible to hardware.
        moment: Cell::new(Moment::WriteBackOf(table.root())),
        rival: Iova::new(0x2000),
    };
    table
        .map(&racing, Iova::new(0x1000), HostPhys::new(0x5000), 0x1000, Perms::READ)
        .expect("own page");
    assert!(racing.moment.get() == Moment::Never, "the rival acted");
    assert_eq!(leaf(&memory, &table, Iova::new(0x1000)), 0x5001);
    table.free(&memory);
    memory.assert_clean();
}

#[test]
fn the_rest_of_a_cut_superpage_comes_back_even_when_memory_ran_out() {
    let memory = SparseMemory::new(1 << 30);
    let config = Config::new(Levels::Three).leaf_sizes(LeafSizes::ALL);
    let table = PageTable::new(SecondStage::default(), config, &memory).expect("memory");
    table
        .map(&memory, Iova::new(0), HostPhys::new(1 << 40), 1 << 30, Perms::READ)
        .expect("free");
    let rules = UnmapRules {
        superpages: Partial::Split,
        ..UnmapRules::STRICT
    };
    let mut unmapped = table.unmap(&memory, range(0x1234_5000, 0x1000), rules).expect("split");
    assert_eq!(
        unmapped.range(),
        range(0, 1 << 30),
        "all of the superpage must be invalidated"
    );
    assert_eq!(unmapped.pages(), 1 << 18);
    let remainder = unmapped.take_remainder().expect("two pieces");
    let ranges: Vec<_> = remainder.ranges().collect();
    assert_eq!(
        ranges,
        [range(0, 0x1234_5000), range(0x1234_6000, (1 << 30) - 0x1234_6000)]
    );
    assert_eq!(table.lookup(&memory, Iova::ZERO), None, "not before the flush");

    memory.fail_allocations_after(0);
    assert!(unmapped.into_frames().is_empty());
    table.restore(&memory, remainder).expect("tables were set aside");
    assert_eq!(table.lookup(&memory, Iova::new(0x1234_5000)), None);
    assert_eq!(
        table.lookup(&memory, Iova::new(0x1234_4fff)).map(|m| m.phys),
        Some(HostPhys::new(0x100_1234_4fff))
    );
    assert_eq!(
        memory.live_frames().len(),
        3,
        "one table for 2 MiB pages, one for 4 KiB pages, the root"
    );
    table.free(&memory);
    memory.assert_clean();
}

#[test]
fn a_superpage_cut_at_one_end_needs_one_table() {
    for (cut, rest) in [(0, 0x1000), (0x1f_f000, 0)] {
        let memory = SparseMemory::new(1 << 30);
        let config = Config::new(Levels::Three).leaf_sizes(LeafSizes::ALL);
        let table = PageTable::new(SecondStage::default(), config, &memory).expect("memory");
        table
            .map(&memory, Iova::new(0), HostPhys::new(1 << 40), 1 << 21, Perms::WRITE)
            .expect("free");
        let rules = UnmapRules {
            superpages: Partial::Split,
            ..UnmapRules::STRICT
        };
        let mut unmapped = table.unmap(&memory, range(cut, 0x1000), rules).expect("split");
        assert_eq!(unmapped.range(), range(0, 1 << 21));
        let remainder = unmapped.take_remainder().expect("one piece");
        assert!(remainder.ranges().eq([range(rest, 0x1f_f000)]));
        memory.fail_allocations_after(0);
        table.restore(&memory, remainder).expect("a table was set aside");
        assert_eq!(table.lookup(&memory, Iova::new(cut)), None);
        let kept = table.lookup(&memory, Iova::new(0x10_0123)).expect("restored");
        assert_eq!(
            (kept.phys, kept.perms),
            (HostPhys::new(1 << 40 | 0x10_0123), Perms::WRITE)
        );
        table.free(&memory);
        memory.assert_clean();
    }
}

#[test]
fn a_split_without_memory_changes_nothing() {
    let memory = SparseMemory::new(1 << 30);
    let config = Config::new(Levels::Three).leaf_sizes(LeafSizes::ALL);
    let table = PageTable::new(SecondStage::default(), config, &memory).expect("memory");
    table
        .map(&memory, Iova::new(0), HostPhys::new(1 << 40), 1 << 30, Perms::READ)
        .expect("free");
    memory.fail_allocation(1);
    let rules = UnmapRules {
        superpages: Partial::Split,
        ..UnmapRules::STRICT
    };
    assert!(table.unmap(&memory, range(0x1000, 0x1000), rules).is_err());
    assert!(table.lookup(&memory, Iova::new(0x1000)).is_some());
    assert_eq!(memory.live_frames().len(), 1);
    table.free(&memory);
    memory.assert_clean();
}
