//! B10 and B13: the DMA API over page tables, with the queue writes of an invalidation and without a device.
//!
//! The address space here is the driver's page table; an invalidation is two descriptors and a tail store, and
//! nobody is waited for. What is timed is therefore the driver's side alone.

mod bounce;
mod list;
mod modes;
mod slots;
mod steps;
mod unit;
mod whole;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hint::black_box;

use iommu_dma::{
    Backend, Buffer, Device, Direct, Direction, DmaApi, DmaCore, DmaSegment, Invalidation, Mapping, Translated,
};
use iommu_iova::{CachedAllocator, IovaSpace};
use iommu_pagetable::{Config, Levels, MapError, PageTable, SecondStage, UnmapError, UnmapRules};
use iommu_testkit::SparseMemory;
use iommu_types::sync::{AtomicU64, Ordering};
use iommu_types::{
    AddrRange, AddressSpace, HostPhys, Iova, OutOfFrames, Perms, Piece, SystemMemory, TableFrame, TableMemory,
    UnmapRefused,
};

use crate::iova::linux::{Linux, Processor, Range};
use crate::pagetable::Arena;
use crate::pair::compare;
use crate::peers::{PAGE, X86Tables};
use crate::row::{Row, measured};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Slots of the invalidation queue.
const QUEUE: u64 = 256;
/// Live mappings of the ring.
const RING: usize = 1024;

/// Why the space refused.
#[derive(Debug)]
enum Refused {
    Map(MapError),
    Unmap(UnmapError),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Map(error) => error.fmt(f),
            Self::Unmap(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Refused {}

/// Page tables, and the queue that a unit would read.
struct Space {
    table: PageTable<SecondStage>,
    memory: Arena,
    queue: Vec<[AtomicU64; 2]>,
    tail: Cell<u64>,
    doorbell: AtomicU64,
    waits: Cell<u64>,
}

/// An unmap before its flush.
struct Pending<L> {
    range: AddrRange<Iova>,
    frames: Vec<TableFrame>,
    lease: L,
}

impl Space {
    fn new() -> Result<Self, OutOfFrames> {
        let memory = Arena::new(4096);
        let table = PageTable::new(SecondStage::default(), Config::new(Levels::Four), &memory)?;
        Ok(Self {
            table,
            memory,
            queue: (0..QUEUE).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect(),
            tail: Cell::new(0),
            doorbell: AtomicU64::new(0),
            waits: Cell::new(0),
        })
    }

    fn submit(&self, words: [u64; 2]) {
        let tail = self.tail.get();
        if let Some(slot) = usize::try_from(tail % QUEUE).ok().and_then(|at| self.queue.get(at)) {
            slot[0].store(words[0], Ordering::Relaxed);
            slot[1].store(words[1], Ordering::Relaxed);
        }
        self.tail.set(tail + 1);
    }

    fn invalidate(&self, range: AddrRange<Iova>) {
        self.submit([2, range.first().raw()]);
        self.submit([5, range.last().raw()]);
        self.doorbell.store(self.tail.get(), Ordering::Release);
        self.waits.set(self.waits.get() + 1);
    }
}

impl AddressSpace for Space {
    type Error = Refused;
    type Pending<L> = Pending<L>;

    fn aperture(&self) -> AddrRange<Iova> {
        self.table.aperture()
    }

    #[inline]
    fn map(&self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Result<(), Refused> {
        self.table
            .map(&self.memory, iova, phys, len, perms)
            .map_err(Refused::Map)
    }

    fn map_pieces(&self, base: Iova, pieces: &[Piece], perms: Perms) -> Result<(), (usize, Refused)> {
        self.table
            .map_pieces(&self.memory, base, pieces, perms)
            .map_err(|(done, error)| (done, Refused::Map(error)))
    }

    #[inline]
    fn unmap<L>(&self, range: AddrRange<Iova>, lease: L) -> Result<Pending<L>, UnmapRefused<Refused, L>> {
        match self.table.unmap(&self.memory, range, UnmapRules::STRICT) {
            Ok(unmapped) => Ok(Pending {
                // Nothing is cut: it is what was asked for.
                range,
                frames: unmapped.into_frames(),
                lease,
            }),
            Err(error) => Err(UnmapRefused {
                error: Refused::Unmap(error),
                lease,
            }),
        }
    }

    #[inline]
    fn flush<L>(&self, pending: Pending<L>) -> Result<L, (Refused, Pending<L>)> {
        self.invalidate(pending.range);
        for frame in pending.frames {
            self.memory.free(frame);
        }
        Ok(pending.lease)
    }

    fn flush_all<L>(
        &self,
        pending: impl Iterator<Item = Pending<L>>,
        mut confirmed: impl FnMut(L),
        _kept: impl FnMut(Pending<L>),
    ) -> Result<(), Refused> {
        self.invalidate(self.aperture());
        for pending in pending {
            for frame in pending.frames {
                self.memory.free(frame);
            }
            confirmed(pending.lease);
        }
        Ok(())
    }
}

type Ours = Translated<Space, CachedAllocator>;

fn api<M: SystemMemory>(invalidation: Invalidation, memory: M) -> Outcome<DmaApi<Ours, M>> {
    let space = Space::new().map_err(|error| error.to_string())?;
    let iovas = CachedAllocator::new(IovaSpace::new(space.aperture())?);
    Ok(DmaApi::new(Translated::new(space, iovas, invalidation), memory))
}

/// Turns of the usual ring on the driver's side, to have their instructions counted.
pub(crate) fn turns(turns: u64, invalidation: Invalidation) -> Outcome<()> {
    let memory = SparseMemory::new(1 << 20);
    let mut ring = modes::plain(invalidation, &memory, 256, modes::usual(256))?;
    ring.run(turns);
    ring.judge(modes::found(ring.steps.api.backend().space()))
}

/// The same with the unit in the thread, and a translation each.
pub(crate) fn unit_turns(turns: u64) -> Outcome<()> {
    whole::turns(turns)
}

/// Turns of a list of 256 pages.
pub(crate) fn list_turns(turns: u64) -> Outcome<()> {
    list::turns(turns)
}

/// Runs the comparisons; says why there are none if something gives out.
pub(crate) fn rows(quick: bool) -> Vec<Row> {
    measured(
        quick,
        &[
            ("B10", ring_rows),
            ("B10", linux_rows),
            ("B10", modes::rows),
            ("B10", whole::rows),
            ("B12", bounce::rows),
            ("B13", list::rows),
        ],
    )
}

/// Every byte of every buffer is where the mapping's segments say, and no segment has more.
fn judge<B: Backend>(space: &Space, mapping: &Mapping<B>, buffers: &[Buffer]) -> Outcome<()> {
    let mut segments = mapping.segments().iter().copied();
    let mut segment = None;
    for buffer in buffers {
        let (mut phys, mut left) = (buffer.phys, buffer.len);
        while left > 0 {
            let mut at: DmaSegment = match segment.take().or_else(|| segments.next()) {
                Some(at) => at,
                None => return Err("the segments end before the buffers do".into()),
            };
            let part = left.min(at.len).min(PAGE - phys.page_offset());
            let found = space.table.lookup(&space.memory, at.address.page());
            let same_page = found.is_some_and(|found| found.phys.page() == phys.page());
            if !same_page || at.address.page_offset() != phys.page_offset() {
                return Err(format!("{phys} is not at {}, where its mapping says", at.address).into());
            }
            at.address = at.address.checked_add(part).unwrap_or(at.address);
            at.len -= part;
            segment = Some(at).filter(|at| at.len > 0);
            phys = phys.checked_add(part).unwrap_or(phys);
            left -= part;
        }
    }
    match segment.or_else(|| segments.next()) {
        None => Ok(()),
        Some(more) => Err(format!("{} belongs to no buffer", more.address).into()),
    }
}

/// B10: unmap the oldest of a ring, map the next.
fn ring_rows(quick: bool) -> Outcome<Vec<Row>> {
    let memory = SparseMemory::new(1 << 20);
    let device = Device::with_address_bits(64);
    let buffer = Buffer::new(HostPhys::new(0x1_0000_0000), PAGE);
    let strict = api(Invalidation::Strict, memory.hardware())?;
    let deferred = api(Invalidation::Deferred { entries: 256 }, memory.hardware())?;
    let ring = |api: &DmaApi<Ours, _>, core: &mut DmaCore<_>| -> Outcome<Vec<Option<Mapping<Ours>>>> {
        let mut live = Vec::new();
        for _ in 0..RING {
            let mapping = api.map(core, &device, buffer, Direction::FromDevice)?;
            judge(api.backend().space(), &mapping, &[buffer])?;
            live.push(Some(mapping));
        }
        Ok(live)
    };
    let (mut strict_core, mut deferred_core) = (strict.new_core(), deferred.new_core());
    let mut strict_live = ring(&strict, &mut strict_core)?;
    let mut deferred_live = ring(&deferred, &mut deferred_core)?;
    let failed = RefCell::new(0_u64);
    let turn = |api: &DmaApi<Ours, _>, core: &mut DmaCore<_>, live: &mut [Option<Mapping<Ours>>], turns: u64| {
        for _ in 0..turns {
            for slot in live.iter_mut() {
                let unmapped = slot.take().is_some_and(|mapping| api.unmap(core, mapping).is_ok());
                *slot = api.map(core, &device, black_box(buffer), Direction::FromDevice).ok();
                *failed.borrow_mut() += u64::from(!unmapped || slot.is_none());
            }
        }
    };
    let comparison = compare(
        quick,
        &mut |turns| turn(&deferred, &mut deferred_core, &mut deferred_live, turns),
        &mut |turns| turn(&strict, &mut strict_core, &mut strict_live, turns),
    );
    if *failed.borrow() > 0 {
        return Err(format!("{} operations failed", failed.borrow()).into());
    }
    let each = |ns: f64| ns / f64::from(u32::try_from(RING).unwrap_or(u32::MAX));
    Ok(vec![
        Row::alone(
            "B10",
            "unmap + map, 4 KiB, strict, driver side".into(),
            each(comparison.peer_ns),
            Some(70.0),
        ),
        Row::alone(
            "B10",
            "unmap + map, 4 KiB, deferred 256".into(),
            each(comparison.ours_ns),
            Some(25.0),
        ),
    ])
}

/// What Linux puts together, in small: its allocator, tables that are walked anew for each page, and a unit whose
/// translation cache is one table that each invalidation scans, as QEMU's model does.
struct LinuxShaped {
    iovas: Linux,
    processor: Processor,
    tables: X86Tables,
    cache: HashMap<u64, u64>,
}

impl LinuxShaped {
    fn new() -> Self {
        Self {
            iovas: Linux::new(true),
            processor: Linux::processor(),
            tables: X86Tables::new(),
            cache: HashMap::new(),
        }
    }

    /// The peer's tables are a processor's: they translate 47 bits.
    const fn address((first, _): Range) -> u64 {
        (first & ((1 << 35) - 1)) * PAGE
    }

    fn map(&mut self, host: u64) -> Option<Range> {
        let range = self.iovas.allocate(&self.processor, 1)?;
        self.tables.map(Self::address(range), host);
        // The device uses it, so the unit has it cached.
        self.cache.insert(range.0, host);
        Some(range)
    }

    fn unmap(&mut self, range: Range) {
        self.tables.unmap(Self::address(range));
        self.cache.retain(|&page, _| page != range.0);
        self.iovas.free(&self.processor, range);
    }

    /// The device uses the first page of a range once more.
    fn look_up(&self, range: Range) -> Option<u64> {
        self.cache.get(&range.0).copied()
    }

    /// A list as one range of addresses: each page is walked for. A full cache is dropped whole.
    fn map_list(&mut self, hosts: impl ExactSizeIterator<Item = u64>) -> Option<Range> {
        let range = self.iovas.allocate(&self.processor, hosts.len() as u64)?;
        for (page, host) in (range.0..).zip(hosts) {
            self.tables.map(Self::address((page, 1)), host);
            if self.cache.len() >= RING {
                self.cache.clear();
            }
            self.cache.insert(page, host);
        }
        Some(range)
    }

    /// Takes a list of `pages` pages back, with one invalidation for all.
    fn unmap_list(&mut self, range: Range, pages: u64) {
        let gone = range.0..range.0 + pages;
        for page in gone.clone() {
            self.tables.unmap(Self::address((page, 1)));
        }
        self.cache.retain(|page, _| !gone.contains(page));
        self.iovas.free(&self.processor, range);
    }
}

/// B10: strict, against the Linux-shaped peer; then unmaps that are confirmed 64 at a time, and no IOMMU at all.
fn linux_rows(quick: bool) -> Outcome<Vec<Row>> {
    let memory = SparseMemory::new(1 << 20);
    let device = Device::with_address_bits(64);
    let buffer = Buffer::new(HostPhys::new(0x1_0000_0000), PAGE);
    let mut peer = LinuxShaped::new();
    let mut peer_live: Vec<Option<Range>> = (0..RING).map(|_| peer.map(0x1_0000_0000)).collect();
    let mut rows = Vec::new();
    for (name, invalidation) in [
        ("strict, driver side", Invalidation::Strict),
        ("confirmed 64 at a time", Invalidation::Deferred { entries: 64 }),
    ] {
        let api = api(invalidation, memory.hardware())?;
        let mut core = api.new_core();
        let mut live = Vec::new();
        for _ in 0..RING {
            live.push(Some(api.map(&mut core, &device, buffer, Direction::FromDevice)?));
        }
        let (mut our_turn, mut peer_turn) = (0_usize, 0_usize);
        let mut failed = 0_u64;
        let comparison = compare(
            quick,
            &mut |turns| {
                for _ in 0..turns {
                    let slot = &mut live[our_turn];
                    let unmapped = slot.take().is_some_and(|mapping| api.unmap(&mut core, mapping).is_ok());
                    *slot = api
                        .map(&mut core, &device, black_box(buffer), Direction::FromDevice)
                        .ok();
                    failed += u64::from(!unmapped || slot.is_none());
                    our_turn = (our_turn + 1) % RING;
                }
            },
            &mut |turns| {
                for _ in 0..turns {
                    let slot = &mut peer_live[peer_turn];
                    if let Some(range) = slot.take() {
                        peer.unmap(range);
                    }
                    *slot = peer.map(black_box(0x1_0000_0000));
                    peer_turn = (peer_turn + 1) % RING;
                }
            },
        );
        if failed > 0 {
            return Err(format!("{failed} operations failed").into());
        }
        let case = format!("unmap + map, 4 KiB, {name}");
        let ns = if invalidation == Invalidation::Strict {
            70.0
        } else {
            25.0
        };
        let row = Row::at_most("B10", case, &comparison, "Linux-shaped, 1024 cached", ns);
        rows.push(row.and_at_least(&comparison, 10.0));
    }
    rows.push(direct_row(quick)?);
    Ok(rows)
}

/// The interface with nothing behind it: what it costs by itself.
fn direct_row(quick: bool) -> Outcome<Row> {
    let memory = SparseMemory::new(1 << 20);
    let api = DmaApi::new(Direct, memory.hardware());
    let device = Device::with_address_bits(64);
    let mut core = api.new_core();
    let mut failed = 0_u64;
    let comparison = compare(
        quick,
        &mut |turns| {
            for _ in 0..turns {
                let buffer = black_box(Buffer::new(HostPhys::new(0x8000), PAGE));
                let mapping = api.map(&mut core, &device, buffer, Direction::FromDevice);
                failed += u64::from(!mapping.is_ok_and(|mapping| api.unmap(&mut core, mapping).is_ok()));
            }
        },
        &mut |turns| {
            for turn in 0..turns {
                black_box(turn);
            }
        },
    );
    if failed > 0 {
        return Err(format!("{failed} operations failed").into());
    }
    let case = "map + unmap, 4 KiB, no IOMMU".to_owned();
    Ok(Row::alone("B10", case, comparison.ours_ns, None))
}
