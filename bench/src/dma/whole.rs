//! B10, end to end: unmap the oldest of a ring, map the next, and have the device translate it once. In every mode, with
//! the unit in the driver's thread and on another processor, with caching mode off and on; what the stages take, and how
//! many invalidations and waits there are.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use iommu_dma::{Counters, Direct, DmaApi, Invalidation};
use iommu_iova::{CachedAllocator, IovaAllocator, IovaRequest, IovaSpace, Lease};
use iommu_pagetable::{Config, Levels, PageTable, SecondStage, UnmapRules};
use iommu_types::{AddrRange, Iova, Perms, SourceId, TableMemory};
use vtd_driver::{PendingFlush, Requester, Translating, Unit};

use super::modes::{SPARE, pages};
use super::steps::{Buffers, Plain, Pool, Reuse, Ring, Steps, Turning};
use super::unit::{Machine, Place, Space, api, space, with_unit_beside};
use super::{LinuxShaped, Outcome, RING};
use crate::floors::Strict as Floor;
use crate::iova::linux::Range;
use crate::pair::{Comparison, compare, medians, timed};
use crate::row::Row;

/// Live mappings, and the length of each.
const RINGS: [(usize, u64); 9] = [
    (RING, 4096),
    (256, 1500),
    (256, 4096),
    (256, 65_536),
    (RING, 1500),
    (RING, 65_536),
    (4096, 1500),
    (4096, 4096),
    (4096, 65_536),
];
/// What a strict pair may take with the unit in the same thread, and how much more with it elsewhere.
const STRICT: f64 = 70.0;
const BESIDE: f64 = 192.0;
/// Pairs that are counted: so many that every queue fills without a rest.
const COUNTED: u32 = 4096;
/// Operations that are timed as one: of maps alone, then of unmaps alone.
const RUN: u64 = 256;

/// How buffers are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Strict,
    Deferred(usize),
    Reuse,
    Pool,
    Identity,
}

const MODES: [Mode; 6] = [
    Mode::Strict,
    Mode::Deferred(256),
    Mode::Deferred(64),
    Mode::Reuse,
    Mode::Pool,
    Mode::Identity,
];

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Deferred(64) => "confirmed 64 at a time",
            Self::Deferred(_) => "deferred 256",
            Self::Reuse => "optimistic reuse",
            Self::Pool => "pool",
            Self::Identity => "identity",
        }
    }

    /// Requester of the device that is used this way.
    const fn source(self) -> SourceId {
        SourceId::from_raw(match self {
            Self::Strict => 0x0100,
            Self::Deferred(64) => 0x0108,
            Self::Deferred(_) => 0x0110,
            Self::Reuse => 0x0118,
            Self::Pool => 0x0120,
            Self::Identity => 0x0128,
        })
    }

    /// Invalidations for each pair, as many as waits. With caching mode each new mapping is one.
    fn invalidations(self, caching: bool) -> f64 {
        let (unmap, maps) = match self {
            Self::Strict => (1.0, true),
            Self::Deferred(entries) => (1.0 / f64::from(u32::try_from(entries).unwrap_or(1)), true),
            Self::Reuse | Self::Pool | Self::Identity => (0.0, false),
        };
        unmap + f64::from(u8::from(maps && caching))
    }
}

/// The ring, what is in it, and what caching mode does.
#[derive(Clone, Copy)]
struct Shape {
    length: usize,
    buffers: Buffers,
    caching: bool,
}

impl Shape {
    const fn new((length, len): (usize, u64), caching: bool) -> Self {
        let count = length + SPARE;
        let buffers = Buffers { len, count };
        Self {
            length,
            buffers,
            caching,
        }
    }

    fn case(self, what: &str) -> String {
        let caching = if self.caching { ", caching mode" } else { "" };
        format!("{what}, {} bytes, ring of {}{caching}", self.buffers.len, self.length)
    }
}

/// A ring in some mode.
trait Runs {
    fn run(&mut self, turns: u64);
    fn judge(&self) -> Outcome<()>;
    fn counters(&self) -> Counters;
}

/// A ring on a machine.
struct On<'a, S: Steps, D> {
    machine: &'a Machine,
    source: SourceId,
    turning: Turning<S, D>,
}

impl<S: Steps, D: FnMut(Iova)> Runs for On<'_, S, D> {
    fn run(&mut self, turns: u64) {
        self.turning.run(turns);
        self.machine.settle();
    }
    fn judge(&self) -> Outcome<()> {
        if self.machine.settle() > 0 {
            return Err("the device was blocked".into());
        }
        self.turning.judge(|at| self.machine.translate(self.source, at))
    }
    fn counters(&self) -> Counters {
        self.turning.steps.counters()
    }
}

type Driver<'a> = Unit<&'a Machine, &'a Machine, Translating>;

/// The ring of a mode, with a device that translates each new address.
fn ring<'a>(driver: &Driver<'a>, machine: &'a Machine, mode: Mode, shape: Shape) -> Outcome<Box<dyn Runs + 'a>> {
    let (source, Shape { length, buffers, .. }) = (mode.source(), shape);
    let device = move |at| machine.access(source, at);
    let translated = |invalidation| api(driver, machine, source, invalidation);
    macro_rules! on {
        ($steps:expr) => {
            Box::new(On {
                machine,
                source,
                turning: Turning::new($steps, length, buffers, device),
            })
        };
    }
    let mut runs: Box<dyn Runs + 'a> = match mode {
        Mode::Strict => on!(Plain::new(translated(Invalidation::Strict)?)),
        Mode::Deferred(entries) => on!(Plain::new(translated(Invalidation::Deferred { entries })?)),
        Mode::Reuse => on!(Reuse::new(translated(Invalidation::Strict)?, buffers)?),
        Mode::Pool => on!(Pool::new(translated(Invalidation::Strict)?, buffers)?),
        Mode::Identity => {
            driver.attach_pass_through(&Requester::new(source))?;
            on!(Plain::new(DmaApi::new(Direct, machine.bus())))
        }
    };
    // Twice round: everything that is made once is made.
    runs.run(2 * buffers.count as u64);
    runs.judge()?;
    Ok(runs)
}

/// Turns of a strict ring, with the unit in the thread.
pub(super) fn turns(turns: u64) -> Outcome<()> {
    let machine = Machine::new(false)?;
    let driver = machine.driver()?;
    let mut ring = ring(&driver, &machine, Mode::Strict, Shape::new((256, 4096), false))?;
    ring.run(turns);
    ring.judge()
}

/// Everything.
pub(super) fn rows(quick: bool) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for (number, &size) in RINGS.iter().take(if quick { 1 } else { RINGS.len() }).enumerate() {
        for caching in [false, true] {
            let shape = Shape::new(size, caching);
            rows.extend(modes(quick, shape)?);
            if number == 0 {
                rows.extend(counts(shape)?);
            }
        }
        let shape = Shape::new(size, false);
        rows.extend(stages(quick, shape, 1)?);
        if number == 0 {
            rows.extend(stages(quick, Shape::new(size, true), 1)?);
            rows.extend(stages(quick, shape, 256)?);
            rows.push(limit(quick, shape)?);
        }
    }
    Ok(rows)
}

/// All modes, with the unit in both places.
fn modes(quick: bool, shape: Shape) -> Outcome<Vec<Row>> {
    let machine = Machine::new(shape.caching)?;
    let driver = machine.driver()?;
    let mut rings: Vec<(Mode, Box<dyn Runs + '_>)> = Vec::new();
    for mode in MODES {
        rings.push((mode, ring(&driver, &machine, mode, shape)?));
    }
    let measured = |rings: &mut [(Mode, Box<dyn Runs + '_>)], place: Place| -> Outcome<Vec<Row>> {
        let name = if place == Place::Here {
            "unit here"
        } else {
            "unit on another core"
        };
        let case = |mode: Mode| shape.case(&format!("{} + translation, {name}", mode.name()));
        let Some(((_, strict), others)) = rings.split_first_mut() else {
            return Ok(Vec::new());
        };
        let against = linux(quick, &mut **strict, shape)?;
        let peer = "Linux-shaped, <= 1024 cached";
        let row = match (place, shape.caching) {
            (Place::Here, false) => {
                let row = Row::at_most("B10", case(Mode::Strict), &against, peer, STRICT);
                // Fewer than 1,024 cached pages are scanned sooner.
                if shape.length >= RING {
                    row.and_at_least(&against, 10.0)
                } else {
                    row
                }
            }
            (_, false) => Row::at_most("B10", case(Mode::Strict), &against, peer, STRICT + BESIDE),
            (_, true) => Row::reported("B10", case(Mode::Strict), &against, peer),
        };
        let mut rows = vec![row];
        for (mode, other) in others {
            let comparison = compare(quick, &mut |turns| other.run(turns), &mut |turns| strict.run(turns));
            rows.push(Row::reported("B10", case(*mode), &comparison, "strict"));
        }
        Ok(rows)
    };
    let mut rows = measured(&mut rings, Place::Here)?;
    rows.extend(with_unit_beside(&machine, || measured(&mut rings, Place::Beside))?);
    for (_, ring) in &rings {
        ring.judge()?;
    }
    Ok(rows)
}

/// The same ring of the Linux-shaped peer: its device looks each page up once.
fn linux(quick: bool, strict: &mut dyn Runs, shape: Shape) -> Outcome<Comparison> {
    let (mut peer, buffers) = (LinuxShaped::new(), shape.buffers);
    let mut ring: Ring<Range> = Ring::new(shape.length, |index| peer.map_list(pages(buffers, index)));
    let comparison = compare(quick, &mut |turns| strict.run(turns), &mut |turns| {
        for _ in 0..turns {
            ring.turn(buffers.count, |oldest, index| {
                peer.unmap_list(oldest, pages(buffers, index).len() as u64);
                let range = peer.map_list(pages(buffers, black_box(index)))?;
                black_box(peer.look_up(range));
                Some(range)
            });
        }
    });
    match ring.failed {
        0 => Ok(comparison),
        failed => Err(format!("{failed} operations of the peer failed").into()),
    }
}

/// Invalidations and waits of each mode, as the unit counts them.
fn counts(shape: Shape) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    let mut strict = [0.0; 2];
    for mode in MODES {
        let machine = Machine::new(shape.caching)?;
        let driver = machine.driver()?;
        let mut ring = ring(&driver, &machine, mode, shape)?;
        // Full rounds of every queue, after which all of them are as they were.
        ring.run(COUNTED.into());
        let (before, told) = (machine.model.counters(), ring.counters());
        ring.run(COUNTED.into());
        let (after, tells) = (machine.model.counters(), ring.counters());
        ring.judge()?;
        let each = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / f64::from(COUNTED);
        let counted = [
            each(after.invalidations.iotlb - before.invalidations.iotlb),
            each(after.waits - before.waits),
        ];
        if mode == Mode::Strict {
            strict = counted;
        }
        let told = each(tells.invalidations - told.invalidations);
        let most = mode.invalidations(shape.caching);
        for ((what, count), strict) in ["invalidations", "waits"].into_iter().zip(counted).zip(strict) {
            let case = shape.case(&format!("{what} a pair, {} (the API counts {told:.4})", mode.name()));
            rows.push(Row::counted("B10", case, [count, strict], "strict", most));
        }
    }
    Ok(rows)
}

/// How far a strict pair is from the least that does the same.
fn limit(quick: bool, shape: Shape) -> Outcome<Row> {
    let machine = Machine::new(shape.caching)?;
    let driver = machine.driver()?;
    let mut strict = ring(&driver, &machine, Mode::Strict, shape)?;
    let mut floor = Floor::new(shape.length)?;
    let mut wrong = 0_u64;
    let comparison = compare(quick, &mut |turns| strict.run(turns), &mut |turns| {
        for _ in 0..turns {
            wrong += u64::from(!floor.turn());
        }
    });
    strict.judge()?;
    if wrong > 0 {
        return Err(format!("{wrong} turns of the floor found no entry").into());
    }
    let case = shape.case("strict + translation, unit here, limit");
    Ok(Row::within("B10", case, &comparison, "the least that does it", 3.5))
}

/// Addresses of a ring and as many more as may wait for their flush, one after the other.
struct Places {
    stride: u64,
    count: u64,
}

impl Places {
    const BASE: u64 = 0x1000_0000;

    fn new(shape: Shape, waiting: usize) -> Self {
        Self {
            stride: shape.buffers.stride(),
            count: (shape.length + waiting) as u64,
        }
    }

    #[inline]
    fn range(&self, number: u64) -> Option<AddrRange<Iova>> {
        AddrRange::from_base_len(Iova::new(Self::BASE + number % self.count * self.stride), self.stride)
    }
}

/// Maps and unmaps in a space, without an allocator or the API: unmaps are confirmed `entries` at a time.
struct InSpace<'a> {
    space: Space<'a>,
    places: Places,
    shape: Shape,
    next: u64,
    entries: usize,
    waiting: Vec<PendingFlush<()>>,
    failed: u64,
}

impl<'a> InSpace<'a> {
    fn new(space: Space<'a>, shape: Shape, entries: usize) -> Outcome<Self> {
        let mut side = Self {
            space,
            places: Places::new(shape, entries),
            shape,
            next: 0,
            entries,
            waiting: Vec::new(),
            failed: 0,
        };
        for _ in 0..shape.length {
            side.map().ok_or("a buffer cannot be mapped")?;
        }
        Ok(side)
    }

    #[inline]
    fn map(&mut self) -> Option<()> {
        let at = self.places.range(self.next)?.first();
        let index = usize::try_from(self.next).ok()? % self.shape.buffers.count;
        let phys = black_box(self.shape.buffers.get(index).phys);
        self.next += 1;
        self.space.map(at, phys, self.places.stride, Perms::WRITE).ok()
    }

    #[inline]
    fn turn(&mut self) -> Option<()> {
        let oldest = self.places.range(self.next - self.shape.length as u64)?;
        let pending = self.space.unmap(oldest, ()).ok()?;
        if self.entries == 1 {
            self.space.flush(pending).ok()?;
        } else {
            self.waiting.push(pending);
            if self.waiting.len() == self.entries {
                let full = std::mem::replace(&mut self.waiting, Vec::with_capacity(self.entries));
                self.space.flush_all(full).ok()?;
            }
        }
        self.map()
    }

    fn run(&mut self, turns: u64) {
        for _ in 0..turns {
            self.failed += u64::from(self.turn().is_none());
        }
    }
}

/// The tables alone: `RUN` unmaps and as many maps, of which one half is timed.
fn tables(machine: &Machine, shape: Shape) -> Outcome<impl FnMut(u64, bool) -> Duration + '_> {
    let table = PageTable::new(SecondStage::default(), Config::new(Levels::Four), machine);
    let table = table.map_err(|error| error.to_string())?;
    let places = Places::new(shape, 1);
    let (stride, rules) = (shape.buffers.stride(), UnmapRules::STRICT);
    let map = move |table: &PageTable<SecondStage>, number: u64| -> Option<()> {
        let at = places.range(number)?.first();
        let index = usize::try_from(number).ok()? % shape.buffers.count;
        let phys = black_box(shape.buffers.get(index).phys);
        table.map(&machine, at, phys, stride, Perms::WRITE).ok()
    };
    for number in 0..shape.length as u64 {
        map(&table, number).ok_or("a buffer cannot be mapped")?;
    }
    let places = Places::new(shape, 1);
    let mut next = shape.length as u64;
    Ok(move |turns: u64, timed_map: bool| {
        let mut took = Duration::ZERO;
        for _ in 0..turns.div_ceil(RUN) {
            let first = next - shape.length as u64;
            let unmap = timed(|| {
                for number in first..first + RUN {
                    let gone = places
                        .range(number)
                        .and_then(|range| table.unmap(&machine, range, rules).ok());
                    // No hardware walks these tables: what was unlinked can go at once.
                    for frame in gone.into_iter().flat_map(|gone| gone.into_frames()) {
                        machine.free(frame);
                    }
                }
            });
            let mapped = timed(|| {
                for number in next..next + RUN {
                    black_box(map(&table, number));
                }
            });
            next += RUN;
            took += if timed_map { mapped } else { unmap };
        }
        took
    })
}

/// The time of `turns` operations, where whole runs took `took`.
fn share_of(turns: u64, took: Duration) -> Duration {
    let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(nanoseconds.saturating_mul(turns) / turns.next_multiple_of(RUN).max(1))
}

/// What each stage of a pair takes, found by leaving it out.
fn stages(quick: bool, shape: Shape, entries: usize) -> Outcome<Vec<Row>> {
    let source = Mode::Strict.source();
    let invalidation = match entries {
        1 => Invalidation::Strict,
        entries => Invalidation::Deferred { entries },
    };
    let [mute, real] = [Machine::new(shape.caching)?, Machine::new(shape.caching)?];
    let (mute_driver, driver) = (mute.driver()?, real.driver()?);
    let mut unheard = InSpace::new(space(&mute_driver, source)?, shape, entries)?;
    mute.move_to(Place::Nowhere);
    let mut heard = InSpace::new(space(&driver, SourceId::from_raw(0x0200))?, shape, entries)?;
    let plain = |source| Ok::<_, Box<dyn std::error::Error>>(Plain::new(api(&driver, &real, source, invalidation)?));
    let blind = SourceId::from_raw(0x0300);
    let mut untranslated = Turning::new(plain(blind)?, shape.length, shape.buffers, |_| ());
    let mut whole = Turning::new(plain(source)?, shape.length, shape.buffers, |at| {
        real.access(source, at)
    });
    whole.judge(|at| real.translate(source, at))?;

    let iovas = CachedAllocator::new(IovaSpace::new(heard.space.aperture())?);
    let mut core = iovas.new_core();
    let request = IovaRequest::bytes(shape.buffers.stride()).below(heard.space.aperture().last());
    let mut leases: VecDeque<Lease> = VecDeque::new();
    for _ in 0..shape.length {
        leases.push_back(iovas.allocate(&mut core, request)?);
    }
    let mut refused = 0_u64;
    let table = std::cell::RefCell::new(tables(&mute, shape)?);
    let all = medians(
        quick,
        &mut [
            &mut |turns| {
                timed(|| {
                    for _ in 0..turns {
                        if let Some(lease) = leases.pop_front() {
                            iovas.free(&mut core, lease);
                        }
                        match iovas.allocate(&mut core, black_box(request)) {
                            Ok(lease) => leases.push_back(lease),
                            Err(_) => refused += 1,
                        }
                    }
                })
            },
            &mut |turns| share_of(turns, table.borrow_mut()(turns, true)),
            &mut |turns| share_of(turns, table.borrow_mut()(turns, false)),
            &mut |turns| timed(|| unheard.run(turns)),
            &mut |turns| timed(|| heard.run(turns)),
            &mut |turns| timed(|| untranslated.run(turns)),
            &mut |turns| timed(|| whole.run(turns)),
        ],
    );
    whole.judge(|at| real.translate(source, at))?;
    untranslated.judge(|at| real.translate(blind, at))?;
    if refused + unheard.failed + heard.failed + real.settle() > 0 {
        return Err("operations failed".into());
    }
    let &[alloc, map, unmap, unheard, heard, untranslated, whole] = all.as_slice() else {
        return Err("a side was not timed".into());
    };
    let stages = [
        ("alloc", alloc),
        ("table map", map),
        ("table unmap", unmap),
        ("queue", unheard - map - unmap),
        ("engine", heard - unheard),
        ("API", untranslated - heard - alloc),
        ("translate", whole - untranslated),
    ];
    let mode = if entries == 1 { "strict" } else { "deferred 256" };
    Ok(stages
        .into_iter()
        .map(|(stage, ns)| {
            let case = shape.case(&format!("stage {stage}, {mode}"));
            Row::share("B10", case, ns, whole)
        })
        .collect())
}
