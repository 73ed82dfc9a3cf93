//! A ring of mapped buffers, and the ways to map: each time, never, or once.
//!
//! *Pool*: memory that is mapped once for the life of the device; a buffer is a piece of it, its address a sum. *Reuse*:
//! an unmap leaves the mapping, and the next map of the same buffer finds it; at most [`LEFT`] mappings are left, and
//! until one is really taken back the device reaches its memory. Neither is part of the library: both stand here in the
//! form a driver builds above it, and the reuse only to know what its weaker guarantee would bring.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use iommu_dma::{Backend, Buffer, Counters, Device, Direction, DmaApi, DmaCore, Mapping};
use iommu_types::{HostPhys, Iova, SystemMemory};

use super::Outcome;
use crate::peers::PAGE;

/// The most mappings that are left behind.
const LEFT: usize = 250;
/// Where the buffers are.
const MEMORY: u64 = 0x1_0000_0000;
/// Unmaps that are put off are confirmed after so long at the latest.
const TIMER: Duration = Duration::from_millis(10);

/// Buffers in memory, each on pages of its own.
#[derive(Clone, Copy)]
pub(super) struct Buffers {
    pub(super) len: u64,
    pub(super) count: usize,
}

impl Buffers {
    pub(super) const fn stride(self) -> u64 {
        self.len.next_multiple_of(PAGE)
    }

    #[inline]
    pub(super) fn get(self, index: usize) -> Buffer {
        Buffer::new(HostPhys::new(MEMORY + index as u64 * self.stride()), self.len)
    }

    /// All of them, as one.
    pub(super) fn all(self) -> Buffer {
        Buffer::new(HostPhys::new(MEMORY), self.count as u64 * self.stride())
    }
}

/// A ring of mapped buffers: the oldest leaves, the next one of all buffers comes.
pub(super) struct Ring<T> {
    pub(super) live: VecDeque<T>,
    next: usize,
    pub(super) failed: u64,
}

impl<T> Ring<T> {
    pub(super) fn new(length: usize, map: impl FnMut(usize) -> Option<T>) -> Self {
        let live: VecDeque<T> = (0..length).map_while(map).collect();
        Self {
            failed: u64::from(live.len() != length),
            live,
            next: length,
        }
    }

    #[inline]
    pub(super) fn turn(&mut self, buffers: usize, step: impl FnOnce(T, usize) -> Option<T>) {
        let index = self.next;
        self.next = if index + 1 == buffers { 0 } else { index + 1 };
        match self.live.pop_front().and_then(|oldest| step(oldest, index)) {
            Some(newest) => self.live.push_back(newest),
            None => self.failed += 1,
        }
    }

    /// What is live, with the number of its buffer.
    fn numbered(&self, buffers: usize) -> impl Iterator<Item = (&T, usize)> {
        let first = self.next + buffers - self.live.len();
        self.live.iter().zip((first..).map(move |index| index % buffers))
    }
}

/// A way to map.
pub(super) trait Steps {
    type Live;
    /// Maps the first buffers.
    fn start(&mut self, buffer: Buffer) -> Option<Self::Live>;
    /// Unmaps the oldest buffer and maps the next.
    fn replace(&mut self, oldest: Self::Live, buffer: Buffer) -> Option<Self::Live>;
    /// Where the device finds it.
    fn address(live: &Self::Live) -> Option<Iova>;
    /// Which buffer that is, if it is not the one that was asked for.
    fn placed(_live: &Self::Live) -> Option<HostPhys> {
        None
    }
    /// Called between batches.
    fn tick(&mut self) {}
    /// What was really mapped.
    fn counters(&self) -> Counters;
}

/// A ring that goes round, and a device that is told of each new address.
pub(super) struct Turning<S: Steps, D> {
    pub(super) steps: S,
    ring: Ring<S::Live>,
    buffers: Buffers,
    device: D,
}

impl<S: Steps, D: FnMut(Iova)> Turning<S, D> {
    pub(super) fn new(mut steps: S, length: usize, buffers: Buffers, mut device: D) -> Self {
        let ring = Ring::new(length, |index| {
            let live = steps.start(buffers.get(index))?;
            device(S::address(&live)?);
            Some(live)
        });
        Self {
            steps,
            ring,
            buffers,
            device,
        }
    }

    #[inline]
    pub(super) fn run(&mut self, turns: u64) {
        self.steps.tick();
        let (steps, buffers, device) = (&mut self.steps, self.buffers, &mut self.device);
        for _ in 0..turns {
            self.ring.turn(buffers.count, |oldest, index| {
                let live = steps.replace(oldest, black_box(buffers.get(index)))?;
                device(S::address(&live)?);
                Some(live)
            });
        }
    }

    /// Nothing failed, and all that is live is where `find` says that the device finds it.
    pub(super) fn judge(&self, find: impl Fn(Iova) -> Option<HostPhys>) -> Outcome<()> {
        if self.ring.failed > 0 {
            return Err(format!("{} operations failed", self.ring.failed).into());
        }
        for (live, index) in self.ring.numbered(self.buffers.count) {
            let wanted = self.buffers.get(index);
            let phys = S::placed(live).unwrap_or(wanted.phys);
            let first = S::address(live).ok_or("more than one segment")?;
            for offset in (0..wanted.len).step_by(4096) {
                let at = first.checked_add(offset).ok_or("no such address")?;
                if find(at) != phys.checked_add(offset) {
                    return Err(format!("{at} is not the buffer at {phys}").into());
                }
            }
        }
        Ok(())
    }
}

/// Maps and unmaps each time.
pub(super) struct Plain<B: Backend, M> {
    pub(super) api: DmaApi<B, M>,
    pub(super) core: DmaCore<B::Core>,
    device: Device,
    flushed: Instant,
}

impl<B: Backend<Error: 'static>, M: SystemMemory> Plain<B, M> {
    pub(super) fn new(api: DmaApi<B, M>) -> Self {
        Self {
            core: api.new_core(),
            api,
            device: Device::with_address_bits(64),
            flushed: Instant::now(),
        }
    }
}

impl<B: Backend<Error: 'static>, M: SystemMemory> Steps for Plain<B, M> {
    type Live = Mapping<B>;

    #[inline]
    fn start(&mut self, buffer: Buffer) -> Option<Mapping<B>> {
        self.api
            .map(&mut self.core, &self.device, buffer, Direction::FromDevice)
            .ok()
    }
    #[inline]
    fn replace(&mut self, oldest: Mapping<B>, buffer: Buffer) -> Option<Mapping<B>> {
        self.api.unmap(&mut self.core, oldest).ok()?;
        self.start(buffer)
    }
    #[inline]
    fn address(live: &Mapping<B>) -> Option<Iova> {
        Some(live.segment()?.address)
    }
    fn tick(&mut self) {
        if self.flushed.elapsed() >= TIMER {
            // What is not confirmed stays queued, and shows as an unmap that failed.
            let _stays = self.api.flush(&mut self.core);
            self.flushed = Instant::now();
        }
    }
    fn counters(&self) -> Counters {
        self.api.counters(&self.core)
    }
}

/// Memory mapped once, and its pieces that are not in use.
pub(super) struct Pool<B: Backend, M> {
    pub(super) api: DmaApi<B, M>,
    core: DmaCore<B::Core>,
    mapping: Mapping<B>,
    base: Iova,
    len: u64,
    unused: Vec<HostPhys>,
}

impl<B: Backend<Error: 'static>, M: SystemMemory> Pool<B, M> {
    pub(super) fn new(api: DmaApi<B, M>, buffers: Buffers) -> Outcome<Self> {
        let (mut core, device) = (api.new_core(), Device::with_address_bits(64));
        let all = buffers.all();
        let mapping = api
            .map_coherent(&mut core, &device, &[all])
            .map_err(|error| error.to_string())?;
        Ok(Self {
            base: mapping.segment().ok_or("more than one segment")?.address,
            api,
            core,
            mapping,
            len: all.len,
            unused: (0..buffers.count).map(|index| buffers.get(index).phys).collect(),
        })
    }

    /// Takes the memory from the device.
    pub(super) fn close(mut self) -> Outcome<()> {
        let done = self.api.unmap(&mut self.core, self.mapping);
        Ok(done.map_err(|error| format!("{error:?}"))?)
    }
}

impl<B: Backend<Error: 'static>, M: SystemMemory> Steps for Pool<B, M> {
    type Live = (HostPhys, Iova);

    #[inline]
    fn start(&mut self, buffer: Buffer) -> Option<(HostPhys, Iova)> {
        let phys = self.unused.pop()?;
        let offset = phys.raw().checked_sub(MEMORY)?;
        if offset.checked_add(buffer.len)? > self.len {
            return None;
        }
        Some((phys, self.base.checked_add(offset)?))
    }
    #[inline]
    fn replace(&mut self, (phys, _): (HostPhys, Iova), buffer: Buffer) -> Option<(HostPhys, Iova)> {
        self.unused.push(phys);
        self.start(buffer)
    }
    #[inline]
    fn address(&(_, at): &(HostPhys, Iova)) -> Option<Iova> {
        Some(at)
    }
    fn placed(&(phys, _): &(HostPhys, Iova)) -> Option<HostPhys> {
        Some(phys)
    }
    fn counters(&self) -> Counters {
        self.api.counters(&self.core)
    }
}

/// What a page of memory knows of the mapping that begins with it.
struct Entry<B: Backend> {
    mapping: Mapping<B>,
    in_use: bool,
    /// When it was left.
    left: u64,
}

/// Mappings by their first page, and those left in the order they were left in.
pub(super) struct Reuse<B: Backend, M> {
    pub(super) api: DmaApi<B, M>,
    core: DmaCore<B::Core>,
    device: Device,
    by_page: Vec<Option<Entry<B>>>,
    left: VecDeque<(usize, u64)>,
    clock: u64,
}

impl<B: Backend<Error: 'static>, M: SystemMemory> Reuse<B, M> {
    pub(super) fn new(api: DmaApi<B, M>, buffers: Buffers) -> Outcome<Self> {
        let pages = usize::try_from(buffers.stride() / PAGE)? * buffers.count;
        Ok(Self {
            core: api.new_core(),
            api,
            device: Device::with_address_bits(64),
            by_page: (0..pages).map(|_| None).collect(),
            left: VecDeque::with_capacity(LEFT + 1),
            clock: 0,
        })
    }

    fn page(buffer: Buffer) -> Option<usize> {
        usize::try_from(buffer.phys.raw().checked_sub(MEMORY)? / PAGE).ok()
    }

    /// Really maps a buffer.
    #[cold]
    fn enter(&mut self, buffer: Buffer) -> Option<Iova> {
        let mapped = self
            .api
            .map(&mut self.core, &self.device, buffer, Direction::FromDevice);
        let mapping = mapped.ok()?;
        let at = mapping.segment()?.address;
        *self.by_page.get_mut(Self::page(buffer)?)? = Some(Entry {
            mapping,
            in_use: true,
            left: 0,
        });
        Some(at)
    }

    #[inline]
    fn leave(&mut self, buffer: Buffer) -> Option<()> {
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
            self.api.unmap(&mut self.core, entry.mapping).ok()?;
        }
        Some(())
    }
}

impl<B: Backend<Error: 'static>, M: SystemMemory> Steps for Reuse<B, M> {
    type Live = (Buffer, Iova);

    #[inline]
    fn start(&mut self, buffer: Buffer) -> Option<(Buffer, Iova)> {
        let place = self.by_page.get_mut(Self::page(buffer)?)?;
        if let Some(entry) = place {
            if entry.in_use || entry.mapping.byte_len() != buffer.len {
                return None;
            }
            entry.in_use = true;
            return Some((buffer, entry.mapping.segment()?.address));
        }
        Some((buffer, self.enter(buffer)?))
    }
    #[inline]
    fn replace(&mut self, (oldest, _): (Buffer, Iova), buffer: Buffer) -> Option<(Buffer, Iova)> {
        self.leave(oldest)?;
        self.start(buffer)
    }
    #[inline]
    fn address(&(_, at): &(Buffer, Iova)) -> Option<Iova> {
        Some(at)
    }
    fn counters(&self) -> Counters {
        self.api.counters(&self.core)
    }
}
