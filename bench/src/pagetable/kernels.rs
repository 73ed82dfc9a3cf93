//! B6: how far small operations are from the least that does the same, and what walkers that do not snoop cost.

use std::cell::Cell;
use std::hint::black_box;

use iommu_pagetable::{Config, LeafSizes, Levels, PageTable, SecondStage, UnmapRules};
use iommu_types::sync::Ordering;
use iommu_types::{
    AddrRange, Coherence, FrameRequest, HostPhys, Iova, OutOfFrames, Perms, Table, TableFrame, TableMemory,
};

use super::{Arena, BASE, Ours, Outcome, PHYS, Shape, half_rows, halves, prepare};
use crate::pair::{compare, compare_timed, timed};
use crate::peers::{PAGE, X86Tables, flush_lines};
use crate::row::Row;

/// Leaf tables that are worked on in turn.
const TABLES: u64 = 64;
/// Entries of one operation.
const RUN: u64 = 256;
/// The same, as a number of entries.
const ENTRIES: usize = 256;
/// What a page table may cost more than its kernel.
const LIMIT: f64 = 1.3;

/// Entries of [`RUN`] pages, looked at and then written.
fn map_kernel(table: &Table, phys: u64) -> bool {
    let entries = &table[..ENTRIES];
    let union = entries
        .iter()
        .fold(0, |union, entry| union | entry.load(Ordering::Relaxed));
    let mut word = phys | 3;
    for entry in entries {
        entry.store(word, Ordering::Release);
        word += PAGE;
    }
    union & 3 == 0
}

/// The same entries, looked at and then cleared.
fn unmap_kernel(table: &Table) -> bool {
    let entries = &table[..ENTRIES];
    let common = entries
        .iter()
        .fold(u64::MAX, |common, entry| common & entry.load(Ordering::Relaxed));
    for entry in entries {
        entry.store(0, Ordering::Release);
    }
    common & 3 != 0
}

/// B6 against kernels, and with kept positions.
pub(super) fn rows(quick: bool) -> Outcome<Vec<Row>> {
    let mut rows = runs(quick)?;
    rows.extend(loops(quick)?);
    rows.push(kept_position(quick)?);
    rows.extend(non_coherent(quick)?);
    Ok(rows)
}

/// Runs of 256 pages against the kernels; each half timed apart from the other.
fn runs(quick: bool) -> Outcome<Vec<Row>> {
    let mut ours = Ours::new(1024, LeafSizes::SMALL)?;
    let iova = |turn: u64| BASE + (turn % TABLES) * 512 * PAGE;
    // The last page of each table keeps it.
    for turn in 0..TABLES {
        ours.map(iova(turn) + 511 * PAGE, PHYS, PAGE);
    }
    let arena = Arena::new(128);
    let frames: Result<Vec<_>, _> = (0..TABLES)
        .map(|_| arena.allocate(FrameRequest::page(None, HostPhys::MAX)))
        .collect();
    let frames: Vec<HostPhys> = frames?.iter().map(TableFrame::base).collect();
    let wrong = Cell::new(0_u64);
    let kernel = |turn: u64, map: bool| {
        let at = frames[usize::try_from(turn % TABLES).unwrap_or(0)];
        let done = arena.table(black_box(at)).is_some_and(|table| match map {
            true => map_kernel(table, PHYS),
            false => unmap_kernel(table),
        });
        wrong.set(wrong.get() + u64::from(!done));
    };
    let mut rows = Vec::new();
    for timed_map in [true, false] {
        let comparison = compare_timed(
            quick,
            &mut |turns| {
                half(turns, timed_map, |turn, map| match map {
                    true => ours.map(iova(turn), PHYS, RUN * PAGE),
                    false => ours.unmap(iova(turn), RUN * PAGE),
                })
            },
            &mut |turns| half(turns, timed_map, &kernel),
        );
        let (what, name) = match timed_map {
            true => ("map", "check pass + store pass"),
            false => ("unmap", "check pass + clear pass"),
        };
        rows.push(Row::within(
            "B6",
            format!("{what}, 256 x 4K, limit"),
            &comparison,
            name,
            LIMIT,
        ));
    }
    ours.done()?;
    if wrong.get() > 0 {
        return Err("a kernel found entries that it did not expect".into());
    }
    Ok(rows)
}

/// One page at a time, with the position kept between operations.
fn kept_position(quick: bool) -> Outcome<Row> {
    let memory = Arena::new(64);
    let table = PageTable::new(SecondStage::default(), Config::new(Levels::Four), &memory)
        .map_err(|error| error.to_string())?;
    let mut plain = Ours::new(64, LeafSizes::SMALL)?;
    table.map(
        &memory,
        Iova::new(BASE + 511 * PAGE),
        HostPhys::new(PHYS),
        PAGE,
        Perms::READ,
    )?;
    plain.map(BASE + 511 * PAGE, PHYS, PAGE);
    let mut walker = table.walker(&memory);
    let mut failed = 0_u64;
    let comparison = compare(
        quick,
        &mut |turns| {
            for turn in 0..turns {
                let at = black_box(BASE + (turn % 511) * PAGE);
                let mapped = walker.map(Iova::new(at), HostPhys::new(PHYS), PAGE, Perms::READ_WRITE);
                let range = AddrRange::from_base_len(Iova::new(at), PAGE);
                let gone = range.and_then(|range| walker.unmap(range, UnmapRules::STRICT).ok());
                failed += u64::from(mapped.is_err() || gone.is_none_or(|gone| gone.pages() != 1));
            }
        },
        &mut |turns| {
            for turn in 0..turns {
                let at = black_box(BASE + (turn % 511) * PAGE);
                plain.map(at, PHYS, PAGE);
                plain.unmap(at, PAGE);
            }
        },
    );
    plain.done()?;
    if failed > 0 {
        return Err(format!("{failed} operations failed").into());
    }
    let case = "map + unmap, 1 x 4K, position kept".to_owned();
    Ok(Row::reported("B6", case, &comparison, "from the root each time"))
}

/// Tables whose walker does not snoop: lines are flushed to memory.
struct Flushing {
    arena: Arena,
    lines: Cell<u64>,
}

impl TableMemory for Flushing {
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        self.arena.allocate(request)
    }
    fn free(&self, frame: TableFrame) {
        self.arena.free(frame);
    }
    #[inline]
    fn table(&self, at: HostPhys) -> Option<&Table> {
        self.arena.table(at)
    }
}

impl Coherence for Flushing {
    #[inline]
    fn write_back(&self, at: HostPhys, len: u64) {
        let words = |bytes: u64| usize::try_from(bytes / 8).unwrap_or(0);
        let first = words(at.page_offset());
        if let Some(entries) = self
            .table(at.page())
            .and_then(|table| table.get(first..first + words(len)))
        {
            self.lines.set(self.lines.get() + flush_lines(entries));
        }
    }
}

/// A shape where walkers do not snoop: what a call costs then, and how many lines it flushes.
pub(super) fn not_snooped(quick: bool, shape: &Shape) -> Outcome<Vec<Row>> {
    let memory = Flushing {
        arena: Arena::new(1024),
        lines: Cell::new(0),
    };
    let config = Config::new(Levels::Four).leaf_sizes(shape.sizes).non_coherent();
    let mut ours = Ours::over(memory, config)?;
    prepare(&mut ours, shape)?;
    let lines = |ours: &mut Ours<Flushing>, map: bool| {
        let before = ours.memory.lines.get();
        match map {
            true => ours.map(shape.iova(0), shape.phys(0), shape.len),
            false => ours.unmap(shape.iova(0), shape.len),
        }
        ours.memory.lines.get() - before
    };
    let counted = [lines(&mut ours, true), lines(&mut ours, false)];
    // Flushes take long: a tenth of the rounds shows it.
    let timed = halves(true, &mut |map| shape.turn(&mut ours, map));
    ours.done()?;
    let mut rows = half_rows(shape, &timed, ", not snooped", None);
    let number = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    for (half, counted) in ["map", "unmap"].into_iter().zip(counted) {
        let case = format!("lines flushed by {half}, {}", shape.name);
        rows.push(match shape.leaves() {
            // Eight entries a line, where nothing but one table is written.
            256 if shape.sizes == LeafSizes::SMALL => {
                Row::counted("B6", case, [counted, 256].map(number), "one an entry", 32.0)
            }
            1 if shape.sizes == LeafSizes::SMALL => {
                Row::counted("B6", case, [counted, 1].map(number), "one an entry", 1.0)
            }
            _ => Row::figure("B6", case, number(counted), ""),
        });
    }
    if shape.leaves() == 256 && shape.sizes == LeafSizes::SMALL {
        // Not from the beginning of a line.
        let (iova, phys) = (shape.iova(0) + 3 * PAGE, shape.phys(0));
        let before = ours.memory.lines.get();
        ours.map(iova, phys, shape.len);
        let counted = ours.memory.lines.get() - before;
        ours.unmap(iova, shape.len);
        ours.done()?;
        let case = "lines flushed by map, 256 x 4K across lines".to_owned();
        rows.push(Row::counted(
            "B6",
            case,
            [counted, 256].map(number),
            "one an entry",
            33.0,
        ));
    }
    if quick {
        rows.retain(|row| !row.case.ends_with("a page"));
    }
    Ok(rows)
}

/// Tables that are walked anew for each page, with a look and a store each: what a loop over single pages does.
struct Naive {
    memory: Arena,
    root: HostPhys,
}

impl Naive {
    fn new() -> Outcome<Self> {
        let memory = Arena::new(256);
        let root = memory.allocate(FrameRequest::page(None, HostPhys::MAX))?.base();
        Ok(Self { memory, root })
    }

    #[inline]
    fn entry(&self, page: u64, make: bool) -> Option<&iommu_types::sync::AtomicU64> {
        let mut table = self.root;
        for level in [27, 18, 9] {
            let index = usize::try_from(page >> level & 511).ok()?;
            let entry = self.memory.table(table)?.get(index)?;
            let mut word = entry.load(Ordering::Acquire);
            if word & 3 == 0 {
                if !make {
                    return None;
                }
                let frame = self.memory.allocate(FrameRequest::page(None, HostPhys::MAX)).ok()?;
                word = frame.base().raw() | 3;
                entry.store(word, Ordering::Release);
            }
            table = HostPhys::new(word & !(PAGE - 1));
        }
        self.memory.table(table)?.get(usize::try_from(page & 511).ok()?)
    }

    fn map(&self, iova: u64, phys: u64, pages: u64) -> bool {
        (0..pages).all(|page| {
            let Some(entry) = self.entry(black_box(iova / PAGE + page), true) else {
                return false;
            };
            let free = entry.load(Ordering::Relaxed) & 3 == 0;
            entry.store((phys + page * PAGE) | 3, Ordering::Release);
            free
        })
    }

    fn unmap(&self, iova: u64, pages: u64) -> bool {
        (0..pages).all(|page| {
            let Some(entry) = self.entry(black_box(iova / PAGE + page), false) else {
                return false;
            };
            let mapped = entry.load(Ordering::Relaxed) & 3 != 0;
            entry.store(0, Ordering::Release);
            mapped
        })
    }
}

/// One half of mapping and unmapping runs of 256 pages in turn, each timed apart from the other.
fn half(turns: u64, timed_map: bool, mut work: impl FnMut(u64, bool)) -> std::time::Duration {
    let mut took = std::time::Duration::ZERO;
    for round in 0..turns.div_ceil(TABLES) {
        let turns = round * TABLES..(round + 1) * TABLES;
        let map = timed(|| turns.clone().for_each(|turn| work(turn, true)));
        let unmap = timed(|| turns.for_each(|turn| work(turn, false)));
        took += if timed_map { map } else { unmap };
    }
    // Whole rounds were run: the time of as many turns as were asked for.
    let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    std::time::Duration::from_nanos(nanoseconds.saturating_mul(turns) / turns.next_multiple_of(TABLES).max(1))
}

/// Runs of 256 pages against peers that take them page by page.
fn loops(quick: bool) -> Outcome<Vec<Row>> {
    let mut ours = Ours::new(1024, LeafSizes::SMALL)?;
    let iova = |turn: u64| BASE + (turn % TABLES) * 512 * PAGE;
    for turn in 0..TABLES {
        ours.map(iova(turn) + 511 * PAGE, PHYS, PAGE);
    }
    let (naive, mut foreign) = (Naive::new()?, X86Tables::new());
    let mut wrong = 0_u64;
    let mut rows = Vec::new();
    for timed_map in [true, false] {
        let what = if timed_map { "map" } else { "unmap" };
        let case = || format!("{what}, 256 x 4K, against a loop");
        let against_naive = compare_timed(
            quick,
            &mut |turns| {
                half(turns, timed_map, |turn, map| match map {
                    true => ours.map(iova(turn), PHYS, RUN * PAGE),
                    false => ours.unmap(iova(turn), RUN * PAGE),
                })
            },
            &mut |turns| {
                half(turns, timed_map, |turn, map| {
                    let done = match map {
                        true => naive.map(iova(turn), PHYS, RUN),
                        false => naive.unmap(iova(turn), RUN),
                    };
                    wrong += u64::from(!done);
                })
            },
        );
        let against_crate = compare_timed(
            quick,
            &mut |turns| {
                half(turns, timed_map, |turn, map| match map {
                    true => ours.map(iova(turn), PHYS, RUN * PAGE),
                    false => ours.unmap(iova(turn), RUN * PAGE),
                })
            },
            &mut |turns| {
                half(turns, timed_map, |turn, map| {
                    for page in 0..RUN {
                        match map {
                            true => foreign.map(black_box(iova(turn) + page * PAGE), PHYS + page * PAGE),
                            false => foreign.unmap(black_box(iova(turn) + page * PAGE)),
                        }
                    }
                })
            },
        );
        let (naive_name, crate_name) = ("own walk for each page", "x86_64 crate");
        rows.extend(match timed_map {
            true => [
                Row::at_least("B6", case(), &against_naive, naive_name, 5.0),
                Row::at_least("B6", case(), &against_crate, crate_name, 10.0),
            ],
            false => [
                Row::reported("B6", case(), &against_naive, naive_name),
                Row::reported("B6", case(), &against_crate, crate_name),
            ],
        });
    }
    ours.done()?;
    if wrong > 0 {
        return Err(format!("the naive tables were wrong {wrong} times").into());
    }
    Ok(rows)
}

fn non_coherent(quick: bool) -> Outcome<Vec<Row>> {
    let memory = Flushing {
        arena: Arena::new(1024),
        lines: Cell::new(0),
    };
    let config = Config::new(Levels::Four).non_coherent();
    let table = PageTable::new(SecondStage::default(), config, &memory).map_err(|error| error.to_string())?;
    let iova = |turn: u64| Iova::new(BASE + (turn % TABLES) * 512 * PAGE);
    for turn in 0..TABLES {
        let kept = iova(turn).checked_add(511 * PAGE).ok_or("no such address")?;
        table.map(&memory, kept, HostPhys::new(PHYS), PAGE, Perms::READ)?;
    }
    let frame = memory.allocate(FrameRequest::page(None, HostPhys::MAX))?.base();
    let failed = Cell::new(0_u64);
    let mut rows = Vec::new();
    for (name, pages) in [("1 x 4K", 1), ("256 x 4K", RUN)] {
        let before = memory.lines.get();
        let pair = |turn: u64| {
            let at = black_box(iova(turn));
            let mapped = table.map(&memory, at, HostPhys::new(PHYS), pages * PAGE, Perms::READ_WRITE);
            let range = AddrRange::from_base_len(at, pages * PAGE);
            let gone = range.and_then(|range| table.unmap(&memory, range, UnmapRules::STRICT).ok());
            failed.set(failed.get() + u64::from(mapped.is_err() || gone.is_none()));
        };
        pair(0);
        let lines = memory.lines.get() - before;
        let kernel = |turn: u64| {
            let entries = memory.table(black_box(frame));
            let entries = entries.and_then(|table| table.get(..usize::try_from(pages).ok()?));
            let (Some(table), Some(entries)) = (memory.table(frame), entries) else {
                return;
            };
            if pages == RUN {
                let done = map_kernel(table, PHYS + turn * PAGE);
                memory.lines.set(memory.lines.get() + flush_lines(entries));
                failed.set(failed.get() + u64::from(!(done && unmap_kernel(table))));
            } else {
                entries[0].store(PHYS | 3, Ordering::Release);
                memory.lines.set(memory.lines.get() + flush_lines(entries));
                entries[0].store(0, Ordering::Release);
            }
            memory.lines.set(memory.lines.get() + flush_lines(entries));
        };
        let comparison = compare(quick, &mut |turns| (0..turns).for_each(pair), &mut |turns| {
            (0..turns).for_each(kernel)
        });
        let case = format!("map + unmap, {name}, not snooped, {lines} lines");
        rows.push(Row::within(
            "B6",
            case,
            &comparison,
            "stores + line flushes + fences",
            LIMIT,
        ));
    }
    if failed.get() > 0 {
        return Err(format!("{} operations failed", failed.get()).into());
    }
    Ok(rows)
}
