//! B10: rings of other lengths and other buffers, and the two ways to map without mapping.
//!
//! *Pool*: memory that is mapped once for the life of the device; a buffer is a piece of it, its address a sum. *Reuse*:
//! an unmap leaves the mapping, and the next map of the same buffer finds it; at most [`LEFT`] mappings are left, and
//! until one is really taken back the device reaches its memory. Neither is part of the library: both stand here in the
//! form a driver builds above it, and the reuse only to know what its weaker guarantee would bring.

use std::collections::VecDeque;
use std::hint::black_box;

use iommu_dma::{Buffer, Device, Direction, DmaApi, DmaCore, Invalidation, Mapping};
use iommu_testkit::{HardwareView, SparseMemory};
use iommu_types::{HostPhys, Iova};

use super::{LinuxShaped, Ours, Outcome, RING, api};
use crate::iova::linux::Range;
use crate::pair::{Comparison, compare};
use crate::peers::PAGE;
use crate::row::Row;

type Api<'a> = DmaApi<Ours, HardwareView<'a>>;
type Core = DmaCore<<Ours as iommu_dma::Backend>::Core>;

/// Rings: how many buffers are mapped, and their length.
const RINGS: [(usize, u64); 5] = [(RING, 4096), (256, 4096), (4096, 4096), (RING, 1500), (RING, 65_536)];
/// Buffers besides those that are mapped: those the processor works on.
const SPARE: usize = 128;
/// The most mappings that are left behind.
const LEFT: usize = 250;
/// Where the buffers are.
const MEMORY: u64 = 0x1_0000_0000;

/// Buffers in memory, each on pages of its own.
#[derive(Clone, Copy)]
struct Buffers {
    len: u64,
    count: usize,
}

impl Buffers {
    const fn stride(self) -> u64 {
        self.len.next_multiple_of(PAGE)
    }

    #[inline]
    fn get(self, index: usize) -> Buffer {
        Buffer::new(HostPhys::new(MEMORY + index as u64 * self.stride()), self.len)
    }
}

/// A ring of mapped buffers: the oldest leaves, the next one of all buffers comes.
struct Ring<T> {
    live: VecDeque<T>,
    next: usize,
    failed: u64,
}

impl<T> Ring<T> {
    fn new(length: usize, map: impl FnMut(usize) -> Option<T>) -> Self {
        let live: VecDeque<T> = (0..length).map_while(map).collect();
        Self {
            failed: u64::from(live.len() != length),
            live,
            next: length,
        }
    }

    #[inline]
    fn turn(&mut self, buffers: usize, step: impl FnOnce(T, usize) -> Option<T>) {
        let index = self.next;
        self.next = if index + 1 == buffers { 0 } else { index + 1 };
        match self.live.pop_front().and_then(|oldest| step(oldest, index)) {
            Some(newest) => self.live.push_back(newest),
            None => self.failed += 1,
        }
    }
}

/// The device finds the buffer at this address.
fn judge(api: &Api<'_>, at: Iova, buffer: Buffer) -> Outcome<()> {
    let space = api.backend().space();
    for offset in (0..buffer.len).step_by(4096) {
        let at = at.checked_add(offset).ok_or("no such address")?;
        let found = space.table.lookup(&space.memory, at).map(|found| found.phys);
        if found != buffer.phys.checked_add(offset) {
            return Err(format!("{at} is not the buffer at {}", buffer.phys).into());
        }
    }
    Ok(())
}

/// Memory mapped once, and its pieces that are not in use.
struct Pool {
    base: Iova,
    len: u64,
    unused: Vec<HostPhys>,
}

impl Pool {
    /// A piece of the pool, and where the device finds it.
    #[inline]
    fn map(&mut self, len: u64) -> Option<(HostPhys, Iova)> {
        let phys = self.unused.pop()?;
        let offset = phys.raw().checked_sub(MEMORY)?;
        if offset.checked_add(len)? > self.len {
            return None;
        }
        Some((phys, self.base.checked_add(offset)?))
    }

    #[inline]
    fn unmap(&mut self, phys: HostPhys) {
        self.unused.push(phys);
    }
}

/// What a page of memory knows of the mapping that begins with it.
struct Entry {
    mapping: Mapping<Ours>,
    in_use: bool,
    /// When it was left.
    left: u64,
}

/// Mappings by their first page, and those left in the order they were left in.
struct Reuse {
    by_page: Vec<Option<Entry>>,
    left: VecDeque<(usize, u64)>,
    clock: u64,
    direction: Direction,
}

impl Reuse {
    fn page(buffer: Buffer) -> Option<usize> {
        usize::try_from(buffer.phys.raw().checked_sub(MEMORY)? / PAGE).ok()
    }

    #[inline]
    fn map(&mut self, api: &Api<'_>, core: &mut Core, device: &Device, buffer: Buffer) -> Option<Iova> {
        let place = self.by_page.get_mut(Self::page(buffer)?)?;
        if let Some(entry) = place {
            if entry.in_use || entry.mapping.byte_len() != buffer.len {
                return None;
            }
            entry.in_use = true;
            return Some(entry.mapping.segment()?.address);
        }
        let mapping = api.map(core, device, buffer, self.direction).ok()?;
        let at = mapping.segment()?.address;
        *place = Some(Entry {
            mapping,
            in_use: true,
            left: 0,
        });
        Some(at)
    }

    #[inline]
    fn unmap(&mut self, api: &Api<'_>, core: &mut Core, buffer: Buffer) -> Option<()> {
        let page = Self::page(buffer)?;
        let entry = self.by_page.get_mut(page)?.as_mut()?;
        self.clock += 1;
        (entry.in_use, entry.left) = (false, self.clock);
        self.left.push_back((page, self.clock));
        if self.left.len() <= LEFT {
            return Some(());
        }
        let (page, when) = self.left.pop_front()?;
        let place = self.by_page.get_mut(page)?;
        if let Some(entry) = place.take_if(|entry| !entry.in_use && entry.left == when) {
            api.unmap(core, entry.mapping).ok()?;
        }
        Some(())
    }
}

/// One side that maps and unmaps each time.
struct Plain<'a> {
    api: Api<'a>,
    core: Core,
    ring: Ring<Mapping<Ours>>,
    buffers: Buffers,
    device: Device,
}

impl<'a> Plain<'a> {
    fn new(invalidation: Invalidation, memory: &'a SparseMemory, length: usize, buffers: Buffers) -> Outcome<Self> {
        let api = api(invalidation, memory.hardware())?;
        let mut core = api.new_core();
        let device = Device::with_address_bits(64);
        let ring = Ring::new(length, |index| {
            api.map(&mut core, &device, buffers.get(index), Direction::FromDevice)
                .ok()
        });
        for (index, mapping) in ring.live.iter().enumerate() {
            let segment = mapping.segment().ok_or("more than one segment")?;
            judge(&api, segment.address, buffers.get(index))?;
        }
        Ok(Self {
            api,
            core,
            ring,
            buffers,
            device,
        })
    }

    fn run(&mut self, turns: u64) {
        let (api, core, buffers) = (&self.api, &mut self.core, self.buffers);
        for _ in 0..turns {
            self.ring.turn(buffers.count, |oldest, index| {
                api.unmap(core, oldest).ok()?;
                let buffer = black_box(buffers.get(index));
                api.map(core, &self.device, buffer, Direction::FromDevice).ok()
            });
        }
    }

    fn done(&self) -> Outcome<()> {
        match self.ring.failed {
            0 => Ok(()),
            failed => Err(format!("{failed} operations failed").into()),
        }
    }
}

/// All rings in all modes.
pub(super) fn rows(quick: bool) -> Outcome<Vec<Row>> {
    let memory = SparseMemory::new(1 << 20);
    let mut rows = Vec::new();
    for (length, len) in RINGS {
        let count = length + SPARE;
        let buffers = Buffers { len, count };
        let case = |mode: &str| format!("{mode}, {len} bytes, ring of {length}");
        let mut strict = Plain::new(Invalidation::Strict, &memory, length, buffers)?;
        // The usual ring has these rows already.
        if (length, len) != (RING, PAGE) {
            let comparison = linux(quick, &mut strict, length)?;
            let row = Row::at_most("B10", case("strict"), &comparison, "Linux-shaped, <= 1024 cached", 70.0);
            rows.push(row);
            for (mode, entries) in [("deferred 256", 256), ("confirmed 64 at a time", 64)] {
                let mut deferred = Plain::new(Invalidation::Deferred { entries }, &memory, length, buffers)?;
                let comparison = compare(quick, &mut |turns| deferred.run(turns), &mut |turns| strict.run(turns));
                deferred.done()?;
                rows.push(Row::at_most("B10", case(mode), &comparison, "strict", 25.0));
            }
        }
        let comparison = pool(quick, &memory, length, &mut strict)?;
        rows.push(Row::at_most("B10", case("pool"), &comparison, "strict", 6.0));
        let comparison = reuse(quick, &memory, length, &mut strict)?;
        rows.push(Row::reported("B10", case("optimistic reuse"), &comparison, "strict"));
        strict.done()?;
    }
    Ok(rows)
}

/// The same ring of the Linux-shaped peer, which maps page by page.
fn linux(quick: bool, strict: &mut Plain<'_>, length: usize) -> Outcome<Comparison> {
    let (mut peer, buffers) = (LinuxShaped::new(), strict.buffers);
    let pages = |index: usize| {
        let buffer = buffers.get(index);
        let pages = u32::try_from(buffers.stride() / PAGE).unwrap_or(0);
        (0..pages).map(move |page| buffer.phys.raw() + u64::from(page) * PAGE)
    };
    let mut ring: Ring<Range> = Ring::new(length, |index| peer.map_list(pages(index)));
    let comparison = compare(quick, &mut |turns| strict.run(turns), &mut |turns| {
        for _ in 0..turns {
            ring.turn(buffers.count, |oldest, index| {
                peer.unmap_list(oldest, pages(index).len() as u64);
                peer.map_list(pages(black_box(index)))
            });
        }
    });
    match ring.failed {
        0 => Ok(comparison),
        failed => Err(format!("{failed} operations of the peer failed").into()),
    }
}

fn pool(quick: bool, memory: &SparseMemory, length: usize, strict: &mut Plain<'_>) -> Outcome<Comparison> {
    let buffers = strict.buffers;
    let api = api(Invalidation::Strict, memory.hardware())?;
    let (mut core, device) = (api.new_core(), Device::with_address_bits(64));
    let all = Buffer::new(HostPhys::new(MEMORY), buffers.count as u64 * buffers.stride());
    let mapping = api.map_coherent(&mut core, &device, &[all])?;
    let mut pool = Pool {
        base: mapping.segment().ok_or("more than one segment")?.address,
        len: all.len,
        unused: (0..buffers.count).map(|index| buffers.get(index).phys).collect(),
    };
    let mut ring = Ring::new(length, |_| pool.map(buffers.len));
    for &(phys, at) in &ring.live {
        judge(&api, at, Buffer::new(phys, buffers.len))?;
    }
    let comparison = compare(
        quick,
        &mut |turns| {
            for _ in 0..turns {
                ring.turn(buffers.count, |(oldest, _), _| {
                    pool.unmap(oldest);
                    pool.map(black_box(buffers.len))
                });
            }
        },
        &mut |turns| strict.run(turns),
    );
    for &(phys, at) in &ring.live {
        judge(&api, at, Buffer::new(phys, buffers.len))?;
    }
    api.unmap(&mut core, mapping).map_err(|error| format!("{error:?}"))?;
    match ring.failed {
        0 => Ok(comparison),
        failed => Err(format!("{failed} operations failed").into()),
    }
}

fn reuse(quick: bool, memory: &SparseMemory, length: usize, strict: &mut Plain<'_>) -> Outcome<Comparison> {
    let buffers = strict.buffers;
    let api = api(Invalidation::Strict, memory.hardware())?;
    let (mut core, device) = (api.new_core(), Device::with_address_bits(64));
    let pages = usize::try_from(buffers.stride() / PAGE)? * buffers.count;
    let mut reuse = Reuse {
        by_page: (0..pages).map(|_| None).collect(),
        left: VecDeque::with_capacity(LEFT + 1),
        clock: 0,
        direction: Direction::FromDevice,
    };
    let mut ring = Ring::new(length, |index| {
        let buffer = buffers.get(index);
        Some((buffer, reuse.map(&api, &mut core, &device, buffer)?))
    });
    let comparison = compare(
        quick,
        &mut |turns| {
            for _ in 0..turns {
                ring.turn(buffers.count, |(oldest, _), index| {
                    reuse.unmap(&api, &mut core, oldest)?;
                    let buffer = black_box(buffers.get(index));
                    Some((buffer, reuse.map(&api, &mut core, &device, buffer)?))
                });
            }
        },
        &mut |turns| strict.run(turns),
    );
    for &(buffer, at) in &ring.live {
        judge(&api, at, buffer)?;
    }
    // Every buffer was mapped once, however often it went round.
    let maps = api.counters(&core).maps;
    if ring.failed > 0 || maps > buffers.count as u64 {
        return Err(format!("{} operations failed, {maps} were really mapped", ring.failed).into());
    }
    Ok(comparison)
}
