//! B7: many gigabytes at once, tables made and freed; then by two threads on disjoint halves.
//!
//! 4 KiB leaves come twice: as one run of host memory, and with a host page computed for each page, as memory that has
//! been in use for long is. The latter is given as lists of one leaf table each, and making the lists is timed too.

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use iommu_pagetable::{Config, LeafSizes, Levels, PageTable, SecondStage, UnmapRules};
use iommu_types::sync::Ordering;
use iommu_types::{
    AddrRange, Coherence, FrameRequest, HostPhys, Iova, OutOfFrames, PageSize, Perms, Piece, Table, TableFrame,
    TableMemory,
};

use super::{BASE, Ours, Outcome, PHYS, Page};
use crate::pair::{Random, median, summary};
use crate::peers::{PAGE, pin};
use crate::row::Row;

/// How a range is mapped.
struct Leaves {
    name: &'static str,
    size: PageSize,
    sizes: LeafSizes,
    /// Tables for each gigabyte, and besides.
    tables: (u64, u64),
    target: Option<f64>,
}

/// B7.
pub(super) fn rows(quick: bool) -> Outcome<Vec<Row>> {
    // The tables of 64 GiB of 4 KiB pages are 128 MiB, too many for a smoke test.
    let sizes: &[u64] = if quick { &[2] } else { &[16, 64] };
    let shapes = [
        Leaves {
            name: "4K",
            size: PageSize::Size4K,
            sizes: LeafSizes::SMALL,
            tables: (512 + 1, 2),
            target: Some(2.0),
        },
        Leaves {
            name: "2M",
            size: PageSize::Size2M,
            sizes: LeafSizes {
                size_2m: true,
                size_1g: false,
            },
            tables: (1, 2),
            target: None,
        },
        Leaves {
            name: "1G",
            size: PageSize::Size1G,
            sizes: LeafSizes::ALL,
            tables: (0, 2),
            target: None,
        },
    ];
    let mut rows = Vec::new();
    for shape in &shapes {
        for &gib in sizes {
            rows.extend(bulk(quick, gib, shape)?);
        }
        if quick && shape.size != PageSize::Size4K {
            rows.extend(bulk(quick, 64, shape)?);
        }
    }
    for &gib in sizes {
        rows.extend(scattered(quick, gib)?);
        for shape in &shapes {
            rows.push(two_threads(quick, gib, shape, false)?);
            if shape.size == PageSize::Size4K {
                rows.push(two_threads(quick, gib, shape, true)?);
            }
        }
    }
    Ok(rows)
}

/// How much memory is mapped in a second.
fn rate(case: &str, bytes: u64, ns: f64) -> Row {
    Row::figure(
        "B7",
        format!("{case}, memory a second"),
        gigabytes(bytes) / ns * 1e9,
        "GB/s",
    )
}

fn gigabytes(bytes: u64) -> f64 {
    // Whole pages: exact as a number of them.
    f64::from(u32::try_from(bytes / PAGE).unwrap_or(u32::MAX)) * 4096.0 / 1e9
}

/// Tables at the peak, and after everything is unmapped: the root, and the table below it, of whose range the mapping is
/// only a part.
fn table_rows(case: &str, [peak, exact, after]: [u64; 3]) -> [Row; 2] {
    let bytes = |tables: u64| f64::from(u32::try_from(tables * PAGE / 1024).unwrap_or(u32::MAX)) * 1024.0;
    let row = |what: &str, tables: u64, most: u64| {
        let case = format!("table bytes {what}, {case}");
        Row::counted("B7", case, [tables, most].map(bytes), "the exact minimum", bytes(most))
    };
    [row("at the peak", peak, exact), row("after unmap", after, 2)]
}

fn bulk(quick: bool, gib: u64, shape: &Leaves) -> Outcome<Vec<Row>> {
    let len = gib << 30;
    let leaves = len / shape.size.bytes();
    let tables = gib * shape.tables.0 + shape.tables.1;
    let mut ours = Ours::new(usize::try_from(tables)? + 16, shape.sizes)?;
    // Aligned for every size.
    let (at, phys) = (BASE, ALIGNED);
    // Once before the clock starts: the memory of the arena is touched, and the result judged.
    ours.map(at, phys, len);
    ours.done()?;
    let peak = ours.memory.in_use();
    for page in (0..len / PAGE).step_by(509) {
        let (iova, phys) = (at + page * PAGE, phys + page * PAGE);
        let found = ours.table.lookup(&ours.memory, Iova::new(iova));
        if found.is_none_or(|found| found.phys.raw() != phys || found.size != shape.size) {
            return Err(format!("{iova:#x} does not translate to {phys:#x}").into());
        }
    }
    ours.unmap(at, len);
    let after = ours.memory.in_use();
    let rounds = if quick { 3 } else { 15 };
    let (mut map, mut unmap) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        ours.map(at, phys, len);
        map.push(start.elapsed().as_secs_f64() * 1e9);
        let start = Instant::now();
        ours.unmap(at, len);
        unmap.push(start.elapsed().as_secs_f64() * 1e9);
    }
    ours.done()?;
    let each = f64::from(u32::try_from(leaves)?);
    let mut rows = Vec::new();
    for (what, mut times) in [("map", map), ("unmap", unmap)] {
        let case = format!("{what} {gib} GiB as {}", shape.name);
        let ns = median(&mut times);
        rows.push(Row::alone("B7", format!("{case}, a leaf"), ns / each, shape.target));
        rows.push(rate(&case, len, ns));
    }
    let case = format!("{gib} GiB as {}", shape.name);
    rows.extend(table_rows(&case, [peak, tables, after]));
    if shape.size == PageSize::Size4K {
        rows.push(run_limit(quick, gib, &mut ours)?);
    }
    Ok(rows)
}

/// A run of host memory against a single pass that fills and links tables which are there already.
fn run_limit(quick: bool, gib: u64, ours: &mut Ours) -> Outcome<Row> {
    let pages = (gib << 30) / PAGE;
    let peer = SinglePass::new(gib);
    peer.run(pages, |page| PHYS + page * PAGE);
    let each = f64::from(u32::try_from(pages)?);
    let (mut maps, mut passes) = (Vec::new(), Vec::new());
    for _ in 0..if quick { 3 } else { 15 } {
        maps.push(nanoseconds(|| ours.map(BASE, PHYS, pages * PAGE)) / each);
        passes.push(nanoseconds(|| peer.run(pages, |page| PHYS + page * PAGE)) / each);
        ours.unmap(BASE, pages * PAGE);
    }
    ours.done()?;
    let comparison = summary(&mut maps, &mut passes, &mut Random::new(0x5eed));
    let case = format!("map {gib} GiB as 4K, a leaf");
    Ok(Row::within("B7", case, &comparison, "single pass, tables there", 2.0))
}

fn nanoseconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e9
}

/// The prototype: tables that are there already are filled and linked, nothing is zeroed or checked.
struct SinglePass {
    tables: Vec<Page>,
    upper: usize,
}

impl SinglePass {
    fn new(gib: u64) -> Self {
        let upper = usize::try_from(gib + 2).unwrap_or(0);
        let leaves = usize::try_from(gib * 512).unwrap_or(0);
        Self {
            tables: Page::several(upper + leaves),
            upper,
        }
    }

    #[inline]
    fn run(&self, pages: u64, host: impl Fn(u64) -> u64) {
        let (upper, leaves) = self.tables.split_at(self.upper);
        let links = upper.iter().flat_map(|table| &table.0);
        for ((table, link), first) in leaves.iter().zip(links).zip((0..pages).step_by(512)) {
            for (entry, page) in table.0.iter().zip(first..) {
                entry.store(host(page) | 3, Ordering::Relaxed);
            }
            link.store(first | 3, Ordering::Release);
        }
        black_box(&self.tables);
    }
}

/// Host memory aligned for every size.
const ALIGNED: u64 = PHYS & !(PageSize::Size1G.bytes() - 1);
/// Pages of one leaf table.
const LEAVES: u64 = 512;

/// The host page behind page `page` of `pages`, a power of two: each exactly once, no two neighbours in order.
const fn mixed(page: u64, pages: u64) -> u64 {
    PHYS + (page.wrapping_mul(0x9e37_79b1) & (pages - 1)) * PAGE
}

/// 4 KiB pages with a host page each, against a single pass that fills and links tables which are there already.
fn scattered(quick: bool, gib: u64) -> Outcome<Vec<Row>> {
    let pages = (gib << 30) / PAGE;
    let tables = gib * (512 + 1) + 2;
    let mut ours = Ours::new(usize::try_from(tables)? + 16, LeafSizes::SMALL)?;
    let mut pieces = vec![
        Piece {
            offset: 0,
            phys: HostPhys::ZERO,
            len: PAGE
        };
        usize::try_from(LEAVES)?
    ];
    let mut map = |ours: &mut Ours| {
        for first in (0..pages).step_by(512) {
            for (piece, page) in pieces.iter_mut().zip(0..) {
                *piece = Piece {
                    offset: page * PAGE,
                    phys: HostPhys::new(mixed(first + page, pages)),
                    len: PAGE,
                };
            }
            let base = Iova::new(BASE + first * PAGE);
            let done = ours
                .table
                .map_pieces(&ours.memory, base, black_box(&pieces), Perms::READ_WRITE);
            ours.failed += u64::from(done.is_err());
        }
    };
    map(&mut ours);
    ours.done()?;
    let peak = ours.memory.in_use();
    for page in (0..pages).step_by(509) {
        let iova = Iova::new(BASE + page * PAGE);
        let found = ours.table.lookup(&ours.memory, iova).map(|found| found.phys.raw());
        if found != Some(mixed(page, pages)) {
            return Err(format!("{iova} does not translate to its page").into());
        }
    }
    ours.unmap(BASE, pages * PAGE);
    let after = ours.memory.in_use();
    let peer = SinglePass::new(gib);
    let single_pass = || peer.run(pages, |page| mixed(page, pages));
    single_pass();
    let each = f64::from(u32::try_from(pages)?);
    let (mut maps, mut unmaps, mut passes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..if quick { 3 } else { 15 } {
        maps.push(nanoseconds(|| map(&mut ours)) / each);
        passes.push(nanoseconds(single_pass) / each);
        unmaps.push(nanoseconds(|| ours.unmap(BASE, pages * PAGE)) / each);
    }
    ours.done()?;
    let comparison = summary(&mut maps, &mut passes, &mut Random::new(0x5eed));
    let case = |what: &str| format!("{what} {gib} GiB as scattered 4K");
    let page = |what: &str| format!("{}, a page", case(what));
    let unmap_ns = median(&mut unmaps);
    let mut rows = vec![
        Row::alone("B7", page("map"), comparison.ours_ns, Some(2.0)),
        Row::within("B7", page("map"), &comparison, "single pass, tables there", 2.0),
        rate(&case("map"), pages * PAGE, comparison.ours_ns * each),
        Row::alone("B7", page("unmap"), unmap_ns, Some(2.0)),
        rate(&case("unmap"), pages * PAGE, unmap_ns * each),
    ];
    rows.extend(table_rows(&format!("{gib} GiB as scattered 4K"), [peak, tables, after]));
    Ok(rows)
}

/// Table pages of all threads.
struct Pages(Vec<Page>);

/// The part of the pages that one thread hands out.
struct Own<'a> {
    all: &'a Pages,
    unused: RefCell<Vec<u64>>,
    fresh: Cell<u64>,
    end: u64,
}

impl<'a> Own<'a> {
    fn new(all: &'a Pages, first: u64, end: u64) -> Self {
        Self {
            all,
            unused: RefCell::new(Vec::new()),
            fresh: Cell::new(first),
            end,
        }
    }
}

impl TableMemory for Own<'_> {
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        let number = self.unused.borrow_mut().pop();
        let number = match number {
            Some(number) => number,
            None if self.fresh.get() < self.end => self.fresh.replace(self.fresh.get() + 1),
            None => return Err(OutOfFrames(request)),
        };
        let at = HostPhys::new(number * PAGE);
        for entry in self.table(at).ok_or(OutOfFrames(request))? {
            entry.store(0, Ordering::Relaxed);
        }
        Ok(TableFrame::from_allocator(at, 0))
    }
    fn free(&self, frame: TableFrame) {
        self.unused.borrow_mut().push(frame.base().raw() / PAGE);
    }
    #[inline]
    fn table(&self, at: HostPhys) -> Option<&Table> {
        let page = self.all.0.get(usize::try_from(at.raw() / PAGE).ok()?)?;
        Some(&page.0)
    }
}

impl Coherence for Own<'_> {
    fn write_back(&self, _at: HostPhys, _len: u64) {}
}

/// What threads do together: map and unmap so much, as a run or page by page.
#[derive(Clone, Copy)]
struct Job {
    gib: u64,
    scattered: bool,
    rounds: usize,
}

/// Maps `len` bytes with a host page each, from page `first` of all.
fn map_mixed(table: &PageTable<SecondStage>, memory: &Own<'_>, at: u64, len: u64, all: u64) -> Option<()> {
    let mut pieces = Vec::with_capacity(512);
    for first in (0..len / PAGE).step_by(512) {
        pieces.clear();
        pieces.extend((0..LEAVES).map(|page| Piece {
            offset: page * PAGE,
            phys: HostPhys::new(mixed((at - BASE) / PAGE + first + page, all / PAGE)),
            len: PAGE,
        }));
        let base = Iova::new(at + first * PAGE);
        table
            .map_pieces(memory, base, black_box(&pieces), Perms::READ_WRITE)
            .ok()?;
    }
    Some(())
}

/// The time of the slowest of `threads` threads for mapping and unmapping its share.
fn shared_out(table: &PageTable<SecondStage>, pages: &Pages, threads: u64, job: Job) -> Outcome<Vec<f64>> {
    let Job { gib, scattered, rounds } = job;
    let barrier = Barrier::new(usize::try_from(threads)?);
    let share = (gib << 30) / threads;
    let tables = (pages.0.len() as u64 - 8) / threads;
    let times: Vec<Option<Vec<Duration>>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let memory = Own::new(pages, 8 + thread * tables, 8 + (thread + 1) * tables);
                    let at = BASE + thread * share;
                    let range = AddrRange::from_base_len(Iova::new(at), share)?;
                    let mut times = Vec::new();
                    pin(usize::try_from(thread).ok()?);
                    for _ in 0..=rounds {
                        barrier.wait();
                        let start = Instant::now();
                        if scattered {
                            map_mixed(table, &memory, at, share, gib << 30)?;
                        } else {
                            let to = HostPhys::new(ALIGNED + thread * share);
                            table.map(&memory, Iova::new(at), to, share, Perms::READ_WRITE).ok()?;
                        }
                        let gone = table.unmap(&memory, range, UnmapRules::STRICT).ok()?;
                        gone.into_frames().into_iter().for_each(|frame| memory.free(frame));
                        times.push(start.elapsed());
                    }
                    Some(times)
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().ok().flatten()).collect()
    });
    let mut slowest = vec![Duration::ZERO; rounds];
    for times in times {
        // The first round touches memory.
        for (slowest, took) in slowest
            .iter_mut()
            .zip(times.ok_or("a thread failed")?.into_iter().skip(1))
        {
            *slowest = (*slowest).max(took);
        }
    }
    Ok(slowest.iter().map(Duration::as_secs_f64).collect())
}

fn two_threads(quick: bool, gib: u64, shape: &Leaves, scattered: bool) -> Outcome<Row> {
    let count = usize::try_from(gib * shape.tables.0 + 64)?;
    let pages = Pages(Page::several(count));
    let main = Own::new(&pages, 1, 8);
    let config = Config::new(Levels::Four).leaf_sizes(shape.sizes);
    let table = PageTable::new(SecondStage::default(), config, &main).map_err(|error| error.to_string())?;
    // A page beside keeps the upper tables.
    let beside = Iova::new(BASE + (gib << 30));
    table.map(&main, beside, HostPhys::new(PHYS), PAGE, Perms::READ)?;
    let rounds = if quick { 3 } else { 9 };
    let job = Job { gib, scattered, rounds };
    let mut one = shared_out(&table, &pages, 1, job)?;
    let mut two = shared_out(&table, &pages, 2, job)?;
    let kind = if scattered { "scattered " } else { "" };
    let case = format!("{gib} GiB as {kind}{}, mapped and unmapped by 2 threads", shape.name);
    let factor = median(&mut one) / median(&mut two);
    Ok(match shape.size {
        // A few entries each: what is timed is how threads start.
        PageSize::Size1G => Row::figure("B7", case, factor, ""),
        _ => Row::speed_up("B7", case, factor, 1.8),
    })
}
