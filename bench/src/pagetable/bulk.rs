//! B7: many gigabytes at once, tables made and freed; then by two threads on disjoint halves.
//!
//! 4 KiB leaves come twice: as one run of host memory, and with a host page computed for each page, as memory that has
//! been in use for long is. The latter is given as lists of one leaf table each, and making the lists is timed too.

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use iommu_pagetable::{Config, LeafSizes, Levels, PageTable, SecondStage, UnmapRules};
use iommu_types::sync::{AtomicU64, Ordering};
use iommu_types::{
    AddrRange, Coherence, FrameRequest, HostPhys, Iova, OutOfFrames, PageSize, Perms, Piece, Table, TableFrame,
    TableMemory,
};

use super::{BASE, Ours, Outcome, PHYS};
use crate::pair::{Random, median, summary};
use crate::peers::PAGE;
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
        rows.push(two_threads(quick, gib)?);
    }
    Ok(rows)
}

fn bulk(quick: bool, gib: u64, shape: &Leaves) -> Outcome<Vec<Row>> {
    let len = gib << 30;
    let leaves = len / shape.size.bytes();
    let tables = gib * shape.tables.0 + shape.tables.1;
    let mut ours = Ours::new(usize::try_from(tables)? + 16, shape.sizes)?;
    // Aligned for every size.
    let (at, phys) = (BASE, PHYS & !(PageSize::Size1G.bytes() - 1));
    // Once before the clock starts: the memory of the arena is touched, and the result judged.
    ours.map(at, phys, len);
    ours.done()?;
    if ours.memory.in_use() != tables {
        return Err(format!("{} tables, not {tables}", ours.memory.in_use()).into());
    }
    for page in (0..len / PAGE).step_by(509) {
        let (iova, phys) = (at + page * PAGE, phys + page * PAGE);
        let found = ours.table.lookup(&ours.memory, Iova::new(iova));
        if found.is_none_or(|found| found.phys.raw() != phys || found.size != shape.size) {
            return Err(format!("{iova:#x} does not translate to {phys:#x}").into());
        }
    }
    ours.unmap(at, len);
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
    let row = |what: &str, times: &mut Vec<f64>| {
        let case = format!("{what} {gib} GiB as {}, a leaf, {tables} tables", shape.name);
        Row::alone("B7", case, median(times) / each, shape.target)
    };
    Ok(vec![row("map", &mut map), row("unmap", &mut unmap)])
}

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
    if ours.memory.in_use() != tables {
        return Err(format!("{} tables, not {tables}", ours.memory.in_use()).into());
    }
    for page in (0..pages).step_by(509) {
        let iova = Iova::new(BASE + page * PAGE);
        let found = ours.table.lookup(&ours.memory, iova).map(|found| found.phys.raw());
        if found != Some(mixed(page, pages)) {
            return Err(format!("{iova} does not translate to its page").into());
        }
    }
    ours.unmap(BASE, pages * PAGE);
    let peer: Vec<Table> = (0..tables).map(|_| [const { AtomicU64::new(0) }; 512]).collect();
    let single_pass = || {
        let (upper, leaves) = peer.split_at(usize::try_from(gib + 2).unwrap_or(0));
        for ((table, entries), first) in leaves.iter().zip(upper.iter().flatten()).zip((0..pages).step_by(512)) {
            for (entry, page) in table.iter().zip(first..) {
                entry.store(mixed(page, pages) | 3, Ordering::Relaxed);
            }
            entries.store(first | 3, Ordering::Release);
        }
    };
    single_pass();
    let each = f64::from(u32::try_from(pages)?);
    let (mut maps, mut unmaps, mut passes) = (Vec::new(), Vec::new(), Vec::new());
    let timed = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64() * 1e9 / each
    };
    for _ in 0..if quick { 3 } else { 15 } {
        maps.push(timed(&mut || map(&mut ours)));
        passes.push(timed(&mut || single_pass()));
        unmaps.push(timed(&mut || ours.unmap(BASE, pages * PAGE)));
    }
    ours.done()?;
    black_box(&peer);
    let comparison = summary(&mut maps, &mut passes, &mut Random::new(0x5eed));
    let case = |what: &str| format!("{what} {gib} GiB as scattered 4K, a page, {tables} tables");
    Ok(vec![
        Row::alone("B7", case("map"), comparison.ours_ns, Some(2.0)),
        Row::within("B7", case("map"), &comparison, "single pass, tables there", 2.0),
        Row::alone("B7", case("unmap"), median(&mut unmaps), Some(2.0)),
    ])
}

/// Table pages of all threads.
struct Pages(Vec<Table>);

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
        self.all.0.get(usize::try_from(at.raw() / PAGE).ok()?)
    }
}

impl Coherence for Own<'_> {
    fn write_back(&self, _at: HostPhys, _len: u64) {}
}

/// The time of the slowest of `threads` threads for mapping and unmapping its share.
fn shared_out(
    table: &PageTable<SecondStage>,
    pages: &Pages,
    gib: u64,
    threads: u64,
    rounds: usize,
) -> Outcome<Vec<f64>> {
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
                    for _ in 0..=rounds {
                        barrier.wait();
                        let start = Instant::now();
                        let to = HostPhys::new(PHYS + thread * share);
                        table.map(&memory, Iova::new(at), to, share, Perms::READ_WRITE).ok()?;
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

fn two_threads(quick: bool, gib: u64) -> Outcome<Row> {
    let count = usize::try_from(gib * 513 + 64)?;
    let pages = Pages(
        (0..count)
            .map(|_| [const { AtomicU64::new(0) }; 512])
            .collect::<Vec<Table>>(),
    );
    let main = Own::new(&pages, 1, 8);
    let config = Config::new(Levels::Four);
    let table = PageTable::new(SecondStage::default(), config, &main).map_err(|error| error.to_string())?;
    // A page beside keeps the upper tables.
    let beside = Iova::new(BASE + (gib << 30));
    table.map(&main, beside, HostPhys::new(PHYS), PAGE, Perms::READ)?;
    let rounds = if quick { 3 } else { 9 };
    let mut one = shared_out(&table, &pages, gib, 1, rounds)?;
    let mut two = shared_out(&table, &pages, gib, 2, rounds)?;
    let case = format!("{gib} GiB as 4K, mapped and unmapped by 2 threads");
    Ok(Row::speed_up("B7", case, median(&mut one) / median(&mut two), 1.8))
}
