//! B6 and B7: page tables, small operations and bulk.
//!
//! Ours run over an arena that looks tables up by number, as a kernel with a direct map does. Every trace runs once
//! against a plain map of pages before anything is timed.

mod bulk;
mod kernels;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hint::black_box;

use iommu_pagetable::{Config, LeafSizes, Levels, PageTable, SecondStage, UnmapRules};
use iommu_types::{
    AddrRange, Coherence, FrameRequest, HostPhys, Iova, OutOfFrames, Perms, Table, TableFrame, TableMemory,
};

use crate::pair::compare;
use crate::peers::{PAGE, X86Tables};
use crate::row::{Row, measured};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Calls in one turn of a batch of small operations.
const CALLS: u64 = 512;
const BASE: u64 = 0x40_0000_0000;
/// Host pages are asked for from here.
const PHYS: u64 = 0x1_0000_0000;

/// A table on a page of its own, as hardware has it: its lines and pages are whole.
#[repr(align(4096))]
pub(crate) struct Page(Table);

impl Page {
    /// So many of them, touched once.
    fn several(count: usize) -> Vec<Self> {
        (0..count)
            .map(|_| Self([const { iommu_types::sync::AtomicU64::new(0) }; 512]))
            .collect()
    }
}

/// Table pages in one block; the address of a page is its number.
pub(crate) struct Arena {
    tables: Vec<Page>,
    unused: RefCell<Vec<u64>>,
    fresh: Cell<u64>,
}

impl Arena {
    /// Room for `pages` tables, touched once.
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            // No table lies at address 0.
            tables: Page::several(pages + 1),
            unused: RefCell::new(Vec::with_capacity(pages)),
            fresh: Cell::new(1),
        }
    }

    /// Tables in use.
    pub(crate) fn in_use(&self) -> u64 {
        self.fresh.get() - 1 - self.unused.borrow().len() as u64
    }
}

impl TableMemory for Arena {
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        let number = if let Some(number) = self.unused.borrow_mut().pop() {
            number
        } else {
            let number = self.fresh.get();
            if usize::try_from(number).is_ok_and(|number| number >= self.tables.len()) || request.order != 0 {
                return Err(OutOfFrames(request));
            }
            self.fresh.set(number + 1);
            number
        };
        let at = HostPhys::new(number * PAGE);
        for entry in self.table(at).ok_or(OutOfFrames(request))? {
            entry.store(0, iommu_types::sync::Ordering::Relaxed);
        }
        Ok(TableFrame::from_allocator(at, 0))
    }

    fn free(&self, frame: TableFrame) {
        self.unused.borrow_mut().push(frame.base().raw() / PAGE);
    }

    #[inline]
    fn table(&self, at: HostPhys) -> Option<&Table> {
        if at.page_offset() != 0 {
            return None;
        }
        let page = self.tables.get(usize::try_from(at.raw() / PAGE).ok()?)?;
        Some(&page.0)
    }
}

impl Coherence for Arena {
    fn write_back(&self, _at: HostPhys, _len: u64) {}
}

/// Runs the comparisons; says why there are none if a table cannot be made.
pub(crate) fn rows(quick: bool) -> Vec<Row> {
    measured(quick, &[("B6", small_rows), ("B6", kernels::rows), ("B7", bulk::rows)])
}

/// Tables with the memory they lie in, and a count of what was refused.
struct Ours<M = Arena> {
    table: PageTable<SecondStage>,
    memory: M,
    failed: u64,
}

impl Ours {
    fn new(pages: usize, sizes: LeafSizes) -> Outcome<Self> {
        let config = Config::new(Levels::Four).leaf_sizes(sizes);
        Self::over(Arena::new(pages), config)
    }
}

impl<M: TableMemory + Coherence> Ours<M> {
    fn over(memory: M, config: Config) -> Outcome<Self> {
        let table = PageTable::new(SecondStage::default(), config, &memory).map_err(|error| error.to_string())?;
        Ok(Self {
            table,
            memory,
            failed: 0,
        })
    }

    #[inline]
    fn map(&mut self, iova: u64, phys: u64, len: u64) {
        let (iova, phys) = (Iova::new(iova), HostPhys::new(phys));
        let done = self.table.map(&self.memory, iova, phys, len, Perms::READ_WRITE);
        self.failed += u64::from(done.is_err());
    }

    #[inline]
    fn unmap(&mut self, iova: u64, len: u64) {
        let range = AddrRange::from_base_len(Iova::new(iova), len);
        let done = range.and_then(|range| self.table.unmap(&self.memory, range, UnmapRules::STRICT).ok());
        match done {
            // No hardware walks these tables: what was unlinked can go at once.
            Some(unmapped) => unmapped
                .into_frames()
                .into_iter()
                .for_each(|frame| self.memory.free(frame)),
            None => self.failed += 1,
        }
    }

    /// Every run of `account` (where it is mapped to, and its length) translates, and the page after it does not unless
    /// another begins there. Of long runs pages are looked at in every place of their tables, not all of them.
    fn agrees(&self, account: &BTreeMap<u64, (u64, u64)>) -> Outcome<()> {
        let find = |iova: u64| {
            let found = self.table.lookup(&self.memory, Iova::new(iova));
            found.map(|found| found.phys.raw())
        };
        for (&iova, &(phys, len)) in account {
            let pages = len / PAGE;
            let step = if pages > 1024 { 509 } else { 1 };
            for page in (0..pages).step_by(step).chain([pages - 1]) {
                let (at, wanted) = (iova + page * PAGE, phys + page * PAGE);
                let found = find(at);
                if found != Some(wanted) {
                    return Err(format!("{at:#x} translates to {found:x?}, not {wanted:#x}").into());
                }
            }
            let next = iova + len;
            if !account.contains_key(&next) && find(next).is_some() {
                return Err(format!("{next:#x} translates").into());
            }
        }
        Ok(())
    }

    fn done(&self) -> Outcome<()> {
        if self.failed > 0 {
            return Err(format!("{} operations failed", self.failed).into());
        }
        Ok(())
    }
}

/// One shape of small operation.
struct Shape {
    name: &'static str,
    len: u64,
    sizes: LeafSizes,
    /// Bytes from one call's range to the next.
    stride: u64,
    /// How many ranges.
    ranges: u64,
    /// Targets for a map and an unmap, in nanoseconds.
    targets: Option<[f64; 2]>,
}

/// Times of a map and of an unmap of all ranges, each measured apart from the other.
struct Halves {
    map: f64,
    unmap: f64,
}

/// Medians of the two halves.
fn halves(quick: bool, turns: &mut dyn FnMut(bool)) -> Halves {
    let rounds = if quick { 200 } else { 2000 };
    let (mut map, mut unmap) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (times, is_map) in [(&mut map, true), (&mut unmap, false)] {
            let start = std::time::Instant::now();
            turns(is_map);
            times.push(start.elapsed().as_secs_f64() * 1e9);
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    };
    Halves {
        map: median(&mut map),
        unmap: median(&mut unmap),
    }
}

/// B6: one call each, tables present and hot.
fn small_rows(quick: bool) -> Outcome<Vec<Row>> {
    let shapes = [
        Shape {
            name: "1 x 4K",
            len: PAGE,
            sizes: LeafSizes::SMALL,
            stride: PAGE,
            ranges: CALLS - 1,
            targets: Some([10.0, 10.0]),
        },
        Shape {
            name: "256 x 4K",
            len: 256 * PAGE,
            sizes: LeafSizes::SMALL,
            stride: 512 * PAGE,
            ranges: 64,
            targets: Some([110.0, 100.0]),
        },
        Shape {
            name: "1 x 2M",
            len: 512 * PAGE,
            sizes: LeafSizes::ALL,
            stride: 512 * PAGE,
            ranges: 256,
            targets: None,
        },
        Shape {
            name: "256 x 2M",
            len: 256 * 512 * PAGE,
            sizes: LeafSizes::ALL,
            stride: 512 * 512 * PAGE,
            ranges: 64,
            targets: None,
        },
        Shape {
            name: "1 x 1G",
            len: 512 * 512 * PAGE,
            sizes: LeafSizes::ALL,
            stride: 512 * 512 * PAGE,
            ranges: 256,
            targets: None,
        },
        Shape {
            name: "1000 x 4K, unaligned",
            len: 1000 * PAGE,
            sizes: LeafSizes::SMALL,
            stride: 2048 * PAGE,
            ranges: 64,
            targets: None,
        },
    ];
    let mut rows = Vec::new();
    for shape in &shapes {
        rows.extend(small_row(quick, shape)?);
    }
    Ok(rows)
}

impl Shape {
    /// Where the first range begins.
    const fn first(&self) -> u64 {
        BASE + if self.len == 1000 * PAGE { 300 * PAGE } else { 0 }
    }

    const fn iova(&self, range: u64) -> u64 {
        self.first() + range * self.stride
    }

    const fn phys(&self, range: u64) -> u64 {
        PHYS + range * self.len
    }

    /// Maps or unmaps all ranges, each in a call.
    fn turn<M: TableMemory + Coherence>(&self, ours: &mut Ours<M>, map: bool) {
        for range in 0..self.ranges {
            if map {
                ours.map(black_box(self.iova(range)), self.phys(range), self.len);
            } else {
                ours.unmap(black_box(self.iova(range)), self.len);
            }
        }
    }

    /// Leaves of one call.
    const fn leaves(&self) -> u64 {
        let leaf = match (self.sizes.size_1g, self.len) {
            (false, _) => PAGE,
            (true, 0x4000_0000) => self.len,
            (true, _) => 512 * PAGE,
        };
        self.len / leaf
    }
}

/// Maps what stays, then everything else once, and judges it; then everything else is unmapped.
fn prepare<M: TableMemory + Coherence>(ours: &mut Ours<M>, shape: &Shape) -> Outcome<()> {
    let (iova, phys) = (|range| shape.iova(range), |range| shape.phys(range));
    // What stays: the last page of each span, or a leaf above all ranges. It keeps the tables.
    let kept: Vec<(u64, u64)> = if shape.sizes == LeafSizes::ALL {
        vec![(BASE + (shape.ranges + 8) * shape.stride, shape.stride)]
    } else {
        let tables = (shape.ranges * shape.stride).div_ceil(512 * PAGE);
        (1..=tables)
            .map(|table| (BASE + (table * 512 - 1) * PAGE, PAGE))
            .collect()
    };
    // Where the last page of a span belongs to a range, the tables are made and freed in every turn.
    let kept = if shape.len == 1000 * PAGE { Vec::new() } else { kept };
    let mut account = BTreeMap::new();
    let runs = (0..shape.ranges).map(|range| (iova(range), phys(range), shape.len));
    let runs = runs.chain(kept.into_iter().map(|(at, len)| (at, PHYS, len)));
    for (at, phys, len) in runs {
        ours.map(at, phys, len);
        account.insert(at, (phys, len));
    }
    ours.agrees(&account)?;
    shape.turn(ours, false);
    ours.done()
}

/// Times of both halves, for a call and for each leaf of it.
fn half_rows(shape: &Shape, timed: &Halves, what: &str, targets: Option<[f64; 2]>) -> Vec<Row> {
    let number = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let mut rows = Vec::new();
    for (index, (half, total)) in [("map", timed.map), ("unmap", timed.unmap)].into_iter().enumerate() {
        let ns = total / number(shape.ranges);
        let case = format!("{half}, {}{what}", shape.name);
        let target = targets.and_then(|targets| targets.get(index).copied());
        rows.push(Row::alone("B6", case.clone(), ns, target));
        if shape.leaves() > 1 {
            rows.push(Row::alone(
                "B6",
                format!("{case}, a page"),
                ns / number(shape.leaves()),
                None,
            ));
        }
    }
    rows
}

fn small_row(quick: bool, shape: &Shape) -> Outcome<Vec<Row>> {
    let mut ours = Ours::new(1024, shape.sizes)?;
    prepare(&mut ours, shape)?;
    let before = ours.memory.in_use();
    let timed = halves(quick, &mut |map| shape.turn(&mut ours, map));
    ours.done()?;
    let bytes = |tables: u64| f64::from(u32::try_from(tables * PAGE).unwrap_or(u32::MAX));
    let tables = [ours.memory.in_use(), before].map(bytes);
    let mut rows = Vec::new();
    // The peer maps pages of 4 KiB, one a call.
    if shape.sizes == LeafSizes::SMALL {
        rows.push(against_crate(quick, shape, &mut ours, shape.first()));
    }
    ours.done()?;
    rows.extend(half_rows(shape, &timed, "", shape.targets));
    let case = format!("table bytes after unmap, {}", shape.name);
    rows.push(Row::counted("B6", case, tables, "what stays mapped", bytes(before)));
    rows.extend(kernels::not_snooped(quick, shape)?);
    Ok(rows)
}
/// A map and an unmap of each range in turn, against the peer's loop over the pages.
fn against_crate(quick: bool, shape: &Shape, ours: &mut Ours, first: u64) -> Row {
    let pages = shape.len / PAGE;
    let iova = |turn: u64| first + turn % shape.ranges * shape.stride;
    let mut peer = X86Tables::new();
    let comparison = compare(
        quick,
        &mut |turns| {
            for turn in 0..turns {
                let at = black_box(iova(turn));
                ours.map(at, PHYS, shape.len);
                ours.unmap(at, shape.len);
            }
        },
        &mut |turns| {
            for turn in 0..turns {
                let at = black_box(iova(turn));
                for page in 0..pages {
                    peer.map_unmap(at + page * PAGE, PHYS + page * PAGE);
                }
            }
        },
    );
    let pair = format!("map + unmap, {}", shape.name);
    match shape.targets {
        Some(_) => {
            let ratio = if pages == 1 { 1.5 } else { 10.0 };
            Row::at_least("B6", pair, &comparison, "x86_64 crate", ratio)
        }
        None => Row::reported("B6", pair, &comparison, "x86_64 crate"),
    }
}
