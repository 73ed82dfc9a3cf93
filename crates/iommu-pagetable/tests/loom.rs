//! The engine itself under loom: every interleaving of two callers, or of a caller and a device that walks, with the memory
//! model's freedom.
//!
//! This is an ordinary test (`cargo test -p iommu-pagetable --test loom`): the engine takes its words as a parameter,
//! and here they are loom's. `LOOM_MAX_PREEMPTIONS` widens the search.
//!
//! Of the 512 entries of each table only the first few are loom's, the ones that these mappings use: the others would
//! only multiply steps in which nothing can happen. Pages are full of present-looking junk until they are zeroed, and
//! again once they are freed, so that whoever reaches a page too early or too late goes astray.
#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::atomic::AtomicU64 as Quiet;

use iommu_pagetable::{
    Config, Holes, LeafSizes, Levels, PageTable, Partial, SecondStage, Tables, UnmapRules, Unmapped, Word,
};
use iommu_types::{AddrRange, FrameRequest, HostPhys, Iova, OutOfFrames, PAGE_SIZE, PageSize, Perms, TableFrame};
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// Entries of each table that loom watches.
const WATCHED: usize = 3;
/// Where the first table page lies.
const BASE: u64 = 0x10_0000;
/// Looks like a link to where no table is.
const JUNK: u64 = 0xdead_b003;

/// An entry: one of loom's, or one that nobody contends for.
#[derive(Debug)]
enum Entry {
    Watched(AtomicU64),
    Quiet(Quiet),
}

macro_rules! each {
    ($entry:expr, $word:ident => $call:expr) => {
        match $entry {
            Entry::Watched($word) => $call,
            Entry::Quiet($word) => $call,
        }
    };
}

impl Word for Entry {
    fn new(value: u64) -> Self {
        Self::Watched(AtomicU64::new(value))
    }
    fn load(&self, order: Ordering) -> u64 {
        each!(self, word => word.load(order))
    }
    fn store(&self, value: u64, order: Ordering) {
        each!(self, word => word.store(value, order));
    }
    fn compare_exchange(&self, current: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        each!(self, word => word.compare_exchange(current, new, success, failure))
    }
    fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        each!(self, word => word.fetch_and(value, order))
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        each!(self, word => word.fetch_add(value, order))
    }
}

/// A few table pages, and what a walker that does not snoop would find in them.
struct Memory {
    pages: Vec<[Entry; 512]>,
    /// What was written back.
    seen: Vec<Vec<Quiet>>,
    unused: Mutex<Vec<u64>>,
}

impl Memory {
    fn new(pages: usize) -> Self {
        let entry = |index| match index < WATCHED {
            true => Entry::Watched(AtomicU64::new(JUNK)),
            false => Entry::Quiet(Quiet::new(JUNK)),
        };
        Self {
            pages: (0..pages).map(|_| std::array::from_fn(entry)).collect(),
            seen: (0..pages)
                .map(|_| (0..WATCHED).map(|_| Quiet::new(JUNK)).collect())
                .collect(),
            unused: Mutex::new((0..pages).rev().map(|page| BASE + page as u64 * PAGE_SIZE).collect()),
        }
    }

    fn number(&self, at: HostPhys) -> Option<usize> {
        let number = usize::try_from(at.raw().checked_sub(BASE)? / PAGE_SIZE).ok()?;
        (at.page_offset() == 0 && number < self.pages.len()).then_some(number)
    }

    fn in_use(&self) -> usize {
        self.pages.len() - self.unused.lock().expect("no panic inside").len()
    }

    /// What a walker that does not snoop finds for `iova` in a three-level tree.
    fn unsnooped(&self, root: HostPhys, iova: u64) -> u64 {
        let mut word = root.raw() | 3;
        for shift in [30, 21, 12] {
            let at = HostPhys::new(word & 0x000f_ffff_ffff_f000);
            let page = self
                .number(at)
                .unwrap_or_else(|| panic!("the walk went astray at {at}"));
            let index = usize::try_from((iova >> shift) & 0x1ff).expect("nine bits");
            word = self.seen[page][index].load(Ordering::SeqCst);
        }
        word
    }
}

impl Tables for Memory {
    type Word = Entry;

    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        let at = self.unused.lock().expect("no panic inside").pop();
        let at = HostPhys::new(at.ok_or(OutOfFrames(request))?);
        for entry in self.entries(at).expect("a page") {
            entry.store(0, Ordering::Relaxed);
        }
        Ok(TableFrame::from_allocator(at, 0))
    }

    fn free(&self, frame: TableFrame) {
        let page = self.number(frame.base()).expect("a page");
        for (index, entry) in self.pages[page].iter().enumerate() {
            entry.store(JUNK, Ordering::Relaxed);
            if let Some(seen) = self.seen[page].get(index) {
                seen.store(JUNK, Ordering::SeqCst);
            }
        }
        self.unused.lock().expect("no panic inside").push(frame.base().raw());
    }

    fn entries(&self, at: HostPhys) -> Option<&[Entry; 512]> {
        Some(&self.pages[self.number(at)?])
    }

    fn write_back(&self, at: HostPhys, len: u64) {
        let page = self.number(at.page()).expect("a page");
        let first = usize::try_from(at.page_offset() / 8).expect("small");
        let count = usize::try_from(len / 8).expect("small");
        for index in first..(first + count).min(WATCHED) {
            // The cache holds the newest value, which only an exchange is sure to find; nothing comes in between.
            let newest = self.pages[page][index].fetch_add(0, Ordering::Relaxed);
            self.seen[page][index].store(newest, Ordering::SeqCst);
        }
    }
}

type Tree = PageTable<SecondStage, Entry>;

struct Setup {
    memory: Memory,
    table: Tree,
}

impl Setup {
    fn new(pages: usize, config: Config) -> Self {
        let memory = Memory::new(pages);
        let table = PageTable::new(SecondStage::default(), config, &memory).expect("memory");
        Self { memory, table }
    }

    fn map(&self, iova: u64, len: u64) {
        let done = self.table.map(
            &self.memory,
            Iova::new(iova),
            HostPhys::new(phys(iova)),
            len,
            Perms::READ_WRITE,
        );
        done.expect("an own range");
    }

    fn unmap(&self, iova: u64, len: u64, rules: UnmapRules) -> Unmapped {
        self.table
            .unmap(&self.memory, range(iova, len), rules)
            .expect("an own range")
    }

    /// What the flush is followed by.
    fn confirm(&self, unmapped: Unmapped) {
        unmapped
            .into_frames()
            .into_iter()
            .for_each(|frame| self.memory.free(frame));
    }

    fn leads(&self, iova: u64) -> bool {
        let found = self.table.lookup(&self.memory, Iova::new(iova));
        found
            .inspect(|found| assert_eq!(found.phys.raw(), phys(iova)))
            .is_some()
    }
}

fn phys(iova: u64) -> u64 {
    iova + (1 << 40)
}

fn range(first: u64, len: u64) -> AddrRange<Iova> {
    AddrRange::from_base_len(Iova::new(first), len).expect("a range")
}

/// Two context switches that nobody asked for are enough for the known mistakes of such protocols; the test stays short.
fn check(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(body);
}

/// A device, which walks the tables while they change.
struct Device<'s> {
    setup: &'s Setup,
}

impl Device<'_> {
    /// What the walk finds: each word is read once, and the next one is where it says. Words that nobody wrote for it
    /// lead to where no table is, or to another page than the mapping's.
    fn finds(&self, iova: u64) -> bool {
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        let memory = &self.setup.memory;
        let mut at = self.setup.table.root().raw();
        for shift in [30, 21, 12] {
            let page = memory.number(HostPhys::new(at & ADDRESS));
            let page = page.unwrap_or_else(|| panic!("the walk went astray at {at:#x}"));
            let index = usize::try_from((iova >> shift) & 0x1ff).expect("nine bits");
            let word = memory.pages[page][index].load(Ordering::Acquire);
            if word & 3 == 0 {
                return false;
            }
            let leaf = shift == 12 || word & 1 << 7 != 0;
            if leaf {
                let inside = iova & ((1 << shift) - 1);
                assert_eq!((word & ADDRESS & !((1 << shift) - 1)) + inside, phys(iova));
                return true;
            }
            at = word;
        }
        unreachable!("the last entry is a leaf")
    }

    /// A walk that the unit waits for when it confirms an invalidation.
    fn finds_before(&self, drain: &Mutex<()>, iova: u64) -> bool {
        let _in_flight = drain.lock().expect("no panic inside");
        self.finds(iova)
    }
}

/// Runs a caller, and a device at the same time. The device is the other thread: it has seen none of the junk that was
/// there before, so every word that it reads too early can be junk.
fn with_device(setup: &Arc<Setup>, device: impl FnOnce(&Device<'_>) + Send + 'static, caller: impl FnOnce(&Setup)) {
    both(setup, |setup| device(&Device { setup }), caller);
}

/// Runs two callers at the same time.
fn both(setup: &Arc<Setup>, other: impl FnOnce(&Setup) + Send + 'static, this: impl FnOnce(&Setup)) {
    let theirs = Arc::clone(setup);
    let other = thread::spawn(move || other(&theirs));
    this(setup);
    other.join().expect("no panic");
}

const SMALL: Config = Config::new(Levels::Three);
const LARGE: Config = SMALL.leaf_sizes(LeafSizes::ALL);
const SIZE_2M: u64 = PageSize::Size2M.bytes();

#[test]
fn neighbours_install_the_same_missing_tables_once() {
    check(|| {
        let setup = Arc::new(Setup::new(5, SMALL));
        let map = |iova| {
            move |setup: &Setup| {
                setup.map(iova, PAGE_SIZE);
                assert!(setup.leads(iova), "usable on return");
            }
        };
        both(&setup, map(PAGE_SIZE), map(0));
        assert!(setup.leads(0) && setup.leads(PAGE_SIZE));
        assert_eq!(setup.memory.in_use(), 3, "one table a level; the loser's came back");
    });
}

#[test]
fn a_loser_moves_all_that_it_built() {
    // Three pages across two leaf tables against one page of the first: the subtrees meet at two levels.
    check(|| {
        let setup = Arc::new(Setup::new(7, SMALL));
        both(
            &setup,
            |setup| setup.map(0, PAGE_SIZE),
            |setup| setup.map(PAGE_SIZE, SIZE_2M),
        );
        for iova in [0, PAGE_SIZE, 2 * PAGE_SIZE, SIZE_2M - PAGE_SIZE, SIZE_2M] {
            assert!(setup.leads(iova), "{iova:#x}");
        }
        assert!(!setup.leads(SIZE_2M + PAGE_SIZE));
        assert_eq!(setup.memory.in_use(), 4);
    });
}

#[test]
fn a_link_that_hardware_cannot_see_yet_carries_nobody() {
    check(|| {
        let setup = Arc::new(Setup::new(5, SMALL.non_coherent()));
        let map = |iova| {
            move |setup: &Setup| {
                setup.map(iova, PAGE_SIZE);
                let seen = setup.memory.unsnooped(setup.table.root(), iova);
                assert_eq!(seen, phys(iova) | 3, "hardware finds it on return");
            }
        };
        both(&setup, map(PAGE_SIZE), map(0));
    });
}

#[test]
fn a_superpage_is_split_while_a_neighbour_maps() {
    check(|| {
        let setup = Arc::new(Setup::new(5, LARGE));
        setup.map(0, SIZE_2M);
        let rules = UnmapRules {
            superpages: Partial::Split,
            holes: Holes::Refuse,
        };
        both(
            &setup,
            |setup| setup.map(SIZE_2M, PAGE_SIZE),
            move |setup| {
                let mut unmapped = setup.unmap(0, PAGE_SIZE, rules);
                let remainder = unmapped.take_remainder().expect("cut");
                setup.confirm(unmapped);
                setup.table.restore(&setup.memory, remainder).expect("set aside");
                assert!(setup.leads(PAGE_SIZE), "restored");
            },
        );
        assert!(!setup.leads(0) && setup.leads(PAGE_SIZE) && setup.leads(SIZE_2M));
        assert_eq!(setup.memory.in_use(), 4, "a leaf table each");
    });
}

#[test]
fn a_table_is_freed_while_a_neighbour_maps_and_takes_its_page() {
    check(|| {
        // Three pages: the neighbour's leaf table can only be the one that comes free.
        let setup = Arc::new(Setup::new(4, SMALL));
        setup.map(0, SIZE_2M);
        both(
            &setup,
            |setup| setup.map(SIZE_2M, PAGE_SIZE),
            |setup| {
                let unmapped = setup.unmap(0, SIZE_2M, UnmapRules::STRICT);
                assert_eq!(unmapped.frames().len(), 1);
                setup.confirm(unmapped);
            },
        );
        assert!(!setup.leads(0) && setup.leads(SIZE_2M));
        assert_eq!(setup.memory.in_use(), 3);
    });
}

#[test]
fn a_position_in_a_table_that_went_is_forgotten() {
    check(|| {
        let setup = Arc::new(Setup::new(4, SMALL));
        let handed_back = Arc::new(AtomicBool::new(false));
        let mut walker = setup.table.walker(&setup.memory);
        let to = HostPhys::new(phys(0));
        walker
            .map(Iova::ZERO, to, PAGE_SIZE, Perms::READ_WRITE)
            .expect("missing tables");
        let kept = walker.unmap(range(0, PAGE_SIZE), UnmapRules::STRICT);
        assert!(kept.expect("mapped").frames().is_empty());

        // The addresses change hands; their new owner takes the table out, and hands them back.
        let (theirs, done) = (Arc::clone(&setup), Arc::clone(&handed_back));
        let other = thread::spawn(move || {
            let pruned = theirs.table.prune(&theirs.memory, range(0, SIZE_2M)).expect("own");
            theirs.confirm(pruned);
            // The page becomes the leaf table of somebody else.
            theirs.map(SIZE_2M + PAGE_SIZE, PAGE_SIZE);
            done.store(true, Ordering::Release);
        });
        if handed_back.load(Ordering::Acquire) {
            walker
                .map(Iova::ZERO, to, PAGE_SIZE, Perms::READ_WRITE)
                .expect("own page");
            assert!(setup.leads(0), "in a table of the tree");
        }
        other.join().expect("no panic");
        assert!(!setup.leads(SIZE_2M), "and not in somebody else's");
    });
}

#[test]
fn a_device_finds_nothing_or_the_whole_way() {
    check(|| {
        let setup = Arc::new(Setup::new(4, SMALL));
        with_device(
            &setup,
            |device| {
                if device.finds(0) {
                    assert!(device.finds(0), "it stays");
                }
                assert!(!device.finds(PAGE_SIZE));
            },
            |setup| setup.map(0, PAGE_SIZE),
        );
        assert!(Device { setup: &setup }.finds(0));
    });
}

#[test]
fn a_device_finds_nothing_unwritten_in_tables_that_were_built_apart() {
    // A leaf table that is linked in when it is full, below a table that others see.
    check(|| {
        let setup = Arc::new(Setup::new(5, SMALL));
        setup.map(SIZE_2M, PAGE_SIZE);
        with_device(
            &setup,
            |device| {
                for iova in [PAGE_SIZE, 0, SIZE_2M] {
                    device.finds(iova);
                }
            },
            |setup| setup.map(0, SIZE_2M),
        );
        let device = Device { setup: &setup };
        assert!(device.finds(0) && device.finds(SIZE_2M) && !device.finds(SIZE_2M + PAGE_SIZE));
    });
}

#[test]
fn a_device_keeps_its_way_while_two_callers_install_tables() {
    check(|| {
        let setup = Arc::new(Setup::new(6, SMALL));
        let theirs = Arc::clone(&setup);
        let other = thread::spawn(move || theirs.map(PAGE_SIZE, PAGE_SIZE));
        with_device(
            &setup,
            |device| {
                let first = device.finds(0);
                assert!(device.finds(0) || !first, "a mapping that was seen stays");
            },
            |setup| setup.map(0, PAGE_SIZE),
        );
        other.join().expect("no panic");
        let device = Device { setup: &setup };
        assert!(device.finds(0) && device.finds(PAGE_SIZE));
    });
}

#[test]
fn a_device_walks_no_table_that_was_freed_after_the_drain() {
    check(|| {
        let setup = Arc::new(Setup::new(4, SMALL));
        setup.map(0, SIZE_2M);
        let drain = Arc::new(Mutex::new(()));
        let theirs = Arc::clone(&drain);
        with_device(
            &setup,
            move |device| {
                let first = device.finds_before(&theirs, 0);
                assert!(
                    first || !device.finds_before(&theirs, PAGE_SIZE),
                    "what is gone stays gone"
                );
            },
            |setup| {
                let unmapped = setup.unmap(0, SIZE_2M, UnmapRules::STRICT);
                // The invalidation is confirmed when the walks under way have ended.
                drop(drain.lock().expect("no panic inside"));
                assert_eq!(unmapped.frames().len(), 1);
                setup.confirm(unmapped);
            },
        );
        assert!(!Device { setup: &setup }.finds(0));
    });
}

#[test]
fn a_device_sees_a_superpage_where_a_table_was() {
    check(|| {
        let setup = Arc::new(Setup::new(4, LARGE));
        setup.map(0, PAGE_SIZE);
        setup.confirm(setup.unmap(0, PAGE_SIZE, UnmapRules::STRICT));
        let drain = Arc::new(Mutex::new(()));
        let theirs = Arc::clone(&drain);
        with_device(
            &setup,
            move |device| {
                device.finds_before(&theirs, PAGE_SIZE);
            },
            |setup| {
                let pruned = setup.table.prune(&setup.memory, range(0, SIZE_2M));
                let pruned = pruned.expect("an own range");
                drop(drain.lock().expect("no panic inside"));
                setup.confirm(pruned);
                setup.map(0, SIZE_2M);
            },
        );
        let device = Device { setup: &setup };
        assert!(device.finds(0) && device.finds(2 * PAGE_SIZE));
        assert_eq!(setup.memory.in_use(), 2, "no leaf table is left");
    });
}
