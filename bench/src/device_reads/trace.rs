//! Flows that receive into descriptors of many pages, driven through the DMA API, the driver and the model.
//!
//! Everything is counted and nothing timed, so the figures are the same on every machine. A test includes this file
//! to hold the driver to its target.
//!
//! Counted twice: by the model, whose caches are sets of four ways and which keeps pointers to tables of all levels in one
//! cache, and by the caches that the reference describes, which follow the same requests and the same invalidations.

// Named, because a test includes this file from elsewhere.
#[path = "caches.rs"]
mod caches;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use iommu_dma::{Backend, Buffer, Device, Direction, DmaApi, DmaCore, Invalidation, Mapping, Translated};
use iommu_iova::{CachedAllocator, IovaSpace};
use iommu_testkit::SparseMemory;
use iommu_types::{
    Access, Clock, Coherence, FrameRequest, HostPhys, Iova, OutOfFrames, PAGE_SIZE, Registers, SourceId, SystemMemory,
    Table, TableFrame, TableMemory,
};
use vtd_driver::{DomainOptions, Requester, Unit, UnitOptions};
use vtd_model::{AccessWidth, CacheSizes, Counters, Request, UnitConfig};
use vtd_spec::descriptor::IotlbInvalidation;
use vtd_spec::encoding::IotlbGranularity;
use vtd_spec::register::{InvalidationQueueAddress, offset};

use caches::Caches;

/// Pages of a receive descriptor.
pub(crate) const PAGES: u64 = 64;
/// Pages of a flow that the device holds, by default.
const RING: usize = 256;
/// One page in so many is dropped, where pages are.
const DROPPED: u64 = 33;
/// Turns until a dropped page is sent again: as long as a descriptor takes.
const ROUND_TRIP: usize = 64;
/// The static pool: 256 MiB, of which 128 fit the IOTLB as 2 MiB pages.
const POOL: u64 = 1 << 28;
/// Where its memory is.
const POOL_AT: u64 = 8 << 30;
/// Memory below which buffers lie; table pages come from above.
const MEMORY: u64 = 1 << 36;

/// What the unit keeps: an IOTLB of 64 entries, and as many pointers to tables as the three paging-structure caches
/// of the reference have together (32, 32 and 64). Sets of four ways.
pub(crate) const CACHES: CacheSizes = CacheSizes {
    contexts: 16,
    pasids: 16,
    pages: 64,
    tables: 128,
    interrupts: 16,
};

/// How buffers are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// A descriptor is one list of pages: one block of addresses, one invalidation.
    Descriptor,
    /// Every page is mapped and unmapped by itself.
    Page,
    /// The same, each page as soon as the device is done with it, and each invalidation also drops the unit's pointers
    /// to tables: the hint that only leaves changed is never given. What Linux does.
    Unhinted,
    /// Buffers are pieces of a pool that is mapped once, in 2 MiB pages.
    Pool,
}

/// A run: who streams, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) flows: usize,
    /// Descriptors of each flow that are counted.
    pub(crate) descriptors: usize,
    /// Pages of each flow that the device holds, whole descriptors.
    pub(crate) ring: usize,
    /// Three pages in a hundred are dropped, and sent again a round trip later.
    pub(crate) drops: bool,
    pub(crate) policy: Policy,
}

impl Setup {
    /// The usual ring, nothing dropped.
    pub(crate) const fn new(flows: usize, descriptors: usize, policy: Policy) -> Self {
        Self {
            flows,
            descriptors,
            ring: RING,
            drops: false,
            policy,
        }
    }
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// Pages that the device streamed, acknowledgements included.
    pub(crate) pages: u64,
    /// Structures that the unit read from memory for them.
    pub(crate) reads: u64,
    /// As many as the caches of the reference would have needed.
    pub(crate) reference_reads: u64,
    /// Requests that its IOTLB did not answer.
    pub(crate) misses: u64,
    /// IOTLB invalidations.
    pub(crate) invalidations: u64,
    /// Requests of the device that were blocked, or went to another page than the one that was mapped.
    pub(crate) wrong: u64,
}

impl Outcome {
    /// Reads for each page of 4 KiB.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub(crate) fn reads_per_page(&self) -> f64 {
        self.reads as f64 / self.pages as f64
    }

    /// The same with the caches of the reference.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub(crate) fn reference_reads_per_page(&self) -> f64 {
        self.reference_reads as f64 / self.pages as f64
    }

    /// IOTLB misses for each MiB that is streamed.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub(crate) fn misses_per_mib(&self) -> f64 {
        self.misses as f64 * 256.0 / self.pages as f64
    }

    /// What a device of 65 ns a page and 197 ns a read could stream, in Gb/s.
    pub(crate) fn gigabits(&self) -> f64 {
        32_768.0 / (65.0 + 197.0 * self.reference_reads_per_page())
    }
}

/// One unit of the model, as the driver's hardware and host.
struct Machine {
    memory: SparseMemory,
    unit: RefCell<vtd_model::Unit>,
    now: Cell<u64>,
    unhinted: bool,
    caches: RefCell<Caches>,
    /// Where the queue ended when it was last looked at.
    tail: Cell<u64>,
}

impl Machine {
    /// Looks at all invalidations up to `tail` before the unit sees them: tells the caches of the reference, and clears
    /// the hint where there is to be none.
    fn look_at_queue(&self, tail: u64) {
        let queue =
            InvalidationQueueAddress::new_with_raw_value(self.unit.borrow_mut().read(offset::IQA, AccessWidth::Qword));
        let (memory, step) = (self.memory.hardware(), queue.dw().bytes());
        let mut at = self.tail.replace(tail);
        // At most one turn for each slot of the queue.
        while at != tail {
            let place = queue.base().checked_add(at).unwrap_or(queue.base());
            if let Ok([low, high]) = memory.read_words::<2>(place) {
                let mut seen = IotlbInvalidation::from_words([low, high]);
                if seen.kind() == IotlbInvalidation::DEFAULT.kind() {
                    if self.unhinted && seen.ih() {
                        seen = seen.with_ih(false);
                        let [_, unhinted] = seen.to_words();
                        let _ = memory.write_u64(place.checked_add(8).unwrap_or(place), unhinted);
                    }
                    let (first, last) = if seen.g() == IotlbGranularity::Page {
                        let first = seen.address().raw() >> 12;
                        (first, first + (1 << u64::from(seen.am().value())) - 1)
                    } else {
                        (0, u64::MAX >> 12)
                    };
                    self.caches.borrow_mut().invalidate(first, last, seen.ih());
                }
            }
            at = (at + step) % queue.byte_len();
        }
    }
}

impl Registers for &Machine {
    fn read32(&self, at: u32) -> u32 {
        u32::try_from(self.unit.borrow_mut().read(at, AccessWidth::Dword)).unwrap_or(u32::MAX)
    }
    fn read64(&self, at: u32) -> u64 {
        self.unit.borrow_mut().read(at, AccessWidth::Qword)
    }
    fn write32(&self, at: u32, value: u32) {
        let mut unit = self.unit.borrow_mut();
        unit.write(&self.memory.hardware(), at, AccessWidth::Dword, value.into());
    }
    fn write64(&self, at: u32, value: u64) {
        if at == offset::IQT {
            self.look_at_queue(value);
        }
        let mut unit = self.unit.borrow_mut();
        unit.write(&self.memory.hardware(), at, AccessWidth::Qword, value);
    }
    fn window_len(&self) -> u32 {
        self.unit.borrow().window_len()
    }
}

impl TableMemory for Machine {
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        self.memory.allocate(request)
    }
    fn free(&self, frame: TableFrame) {
        self.memory.free(frame);
    }
    fn table(&self, at: HostPhys) -> Option<&Table> {
        self.memory.table(at)
    }
}

impl Coherence for Machine {
    fn write_back(&self, at: HostPhys, len: u64) {
        self.memory.write_back(at, len);
    }
}

impl Clock for Machine {
    fn now_ns(&self) -> u64 {
        self.now.get()
    }
    fn relax(&self) {
        self.now.set(self.now.get() + 1000);
        self.unit.borrow_mut().step(&self.memory.hardware());
    }
}

/// One descriptor: its pages in host memory, the mappings that cover them, and where the device finds each page.
struct Descriptor<B: Backend> {
    host: Vec<HostPhys>,
    mappings: Vec<Option<Mapping<B>>>,
    addresses: Vec<Iova>,
    /// Pages that the device has not used.
    left: usize,
}

/// A driver of a network card with some flows.
struct Nic<'a, B: Backend, M> {
    api: &'a DmaApi<B, M>,
    core: DmaCore<B::Core>,
    machine: &'a Machine,
    policy: Policy,
    device: Device,
    next_page: u64,
    /// Where the device finds the pool, and its pieces that are not in use, by their place in it.
    pool: Iova,
    unused: Vec<u64>,
    outcome: Outcome,
}

type Done = Result<(), Box<dyn std::error::Error>>;

impl<B: Backend, M: SystemMemory> Nic<'_, B, M>
where
    B::Error: 'static,
{
    /// A page that lies apart from the one before, above the window in which writes are interrupts.
    fn page(&mut self) -> HostPhys {
        self.next_page += 1;
        HostPhys::new(((self.next_page * 7919) % (1 << 20) + (1 << 20)) * PAGE_SIZE)
    }

    fn post(&mut self, pages: u64, direction: Direction) -> Result<Descriptor<B>, Box<dyn std::error::Error>> {
        if self.policy == Policy::Pool {
            return self.piece(pages);
        }
        let host: Vec<HostPhys> = (0..pages).map(|_| self.page()).collect();
        let buffers: Vec<Buffer> = host.iter().map(|&at| Buffer::new(at, PAGE_SIZE)).collect();
        let lists: Vec<&[Buffer]> = match self.policy {
            Policy::Descriptor | Policy::Pool => vec![&buffers],
            Policy::Page | Policy::Unhinted => buffers.chunks(1).collect(),
        };
        let (mut mappings, mut addresses) = (Vec::new(), Vec::new());
        for list in lists {
            let mapping = self
                .api
                .map_sg(&mut self.core, &self.device, list, direction)
                .map_err(|error| error.to_string())?;
            for segment in mapping.segments() {
                let pages =
                    (0..segment.len / PAGE_SIZE).filter_map(|page| segment.address.checked_add(page * PAGE_SIZE));
                addresses.extend(pages);
            }
            mappings.push(Some(mapping));
        }
        Ok(Descriptor {
            left: host.len(),
            host,
            mappings,
            addresses,
        })
    }

    /// A piece of the pool, as long as a descriptor whatever is asked for.
    fn piece(&mut self, pages: u64) -> Result<Descriptor<B>, Box<dyn std::error::Error>> {
        let place = self.unused.pop().ok_or("the pool is used up")?;
        let pages = || (0..pages).map(|page| place + page * PAGE_SIZE);
        let host: Vec<HostPhys> = pages().map(|at| HostPhys::new(POOL_AT + at)).collect();
        Ok(Descriptor {
            left: host.len(),
            addresses: pages().filter_map(|at| self.pool.checked_add(at)).collect(),
            host,
            mappings: Vec::new(),
        })
    }

    /// The device uses one page of a descriptor: its first and its last line.
    fn stream(&mut self, descriptor: &mut Descriptor<B>, page: usize, access: Access) {
        let (Some(&at), Some(&host)) = (descriptor.addresses.get(page), descriptor.host.get(page)) else {
            self.outcome.wrong += 1;
            return;
        };
        for offset in [0, PAGE_SIZE - 64] {
            let at = at.checked_add(offset).unwrap_or(at);
            let request = Request::new(SOURCE, at, 64, access);
            let answer = self
                .machine
                .unit
                .borrow_mut()
                .dma(&self.machine.memory.hardware(), &request);
            if let Ok(found) = &answer {
                let large = found.page.len().is_some_and(|len| len > PAGE_SIZE);
                self.machine
                    .caches
                    .borrow_mut()
                    .access(found.page.first().raw() >> 12, large);
            }
            let right = answer.is_ok_and(|found| Some(found.phys) == host.checked_add(offset));
            self.outcome.wrong += u64::from(!right);
        }
        descriptor.left = descriptor.left.saturating_sub(1);
        self.outcome.pages += 1;
    }

    /// The device uses one page of a received descriptor.
    fn receive(&mut self, descriptor: &mut Descriptor<B>, page: usize) -> Done {
        self.stream(descriptor, page, Access::Write);
        if self.policy == Policy::Unhinted {
            self.complete_page(descriptor, page)?;
        }
        Ok(())
    }

    /// Gives one page of a descriptor back before the others, where each has a mapping of its own.
    fn complete_page(&mut self, descriptor: &mut Descriptor<B>, page: usize) -> Done {
        if let Some(mapping) = descriptor.mappings.get_mut(page).and_then(Option::take) {
            let done = self.api.unmap(&mut self.core, mapping);
            done.map_err(|error| format!("{error:?}"))?;
        }
        Ok(())
    }

    fn complete(&mut self, descriptor: Descriptor<B>) -> Done {
        if self.policy == Policy::Pool
            && let Some(first) = descriptor.host.first()
        {
            self.unused.push(first.raw() - POOL_AT);
        }
        for mapping in descriptor.mappings.into_iter().flatten() {
            let done = self.api.unmap(&mut self.core, mapping);
            done.map_err(|error| format!("{error:?}"))?;
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.machine.unit.borrow().counters()
    }
}

/// The requests of all flows carry the name of one card.
const SOURCE: SourceId = SourceId::from_raw(0x0100);

/// A flow: its descriptors, where it is in them, and what was dropped.
struct Flow<B: Backend> {
    ring: VecDeque<Descriptor<B>>,
    /// Descriptors that were completed before the first of the ring.
    done: usize,
    /// Descriptor, counted from the beginning, and page that come next.
    next: (usize, usize),
    /// Pages that come again: descriptor, page, and in which turn.
    dropped: VecDeque<(usize, usize, usize)>,
}

impl<B: Backend> Flow<B> {
    /// The page that the device uses in this turn, if it has one: one that was dropped a round trip ago, or the next.
    fn page(&mut self, turn: usize, drop: bool) -> Option<(usize, usize)> {
        if let Some(&(descriptor, page, due)) = self.dropped.front()
            && due <= turn
        {
            self.dropped.pop_front();
            return Some((descriptor, page));
        }
        let (descriptor, page) = self.next;
        if descriptor >= self.done + self.ring.len() {
            // Every descriptor waits for a page that was dropped.
            return None;
        }
        let last = page + 1 == usize::try_from(PAGES).unwrap_or(usize::MAX);
        self.next = if last {
            (descriptor + 1, 0)
        } else {
            (descriptor, page + 1)
        };
        if drop {
            self.dropped.push_back((descriptor, page, turn + ROUND_TRIP));
            return None;
        }
        Some((descriptor, page))
    }
}

/// A run with the usual ring, as [`run_setup`].
pub(crate) fn run(flows: usize, descriptors: usize, policy: Policy) -> Result<Outcome, Box<dyn std::error::Error>> {
    run_setup(Setup::new(flows, descriptors, policy))
}

/// Streams some descriptors of every flow, one page of each flow in turn, and counts what the unit read.
///
/// Each descriptor is followed by an acknowledgement of one page, which the device reads. Flows are staggered, so that
/// descriptors are completed and posted while others are in use. Unmaps are strict.
pub(crate) fn run_setup(setup: Setup) -> Result<Outcome, Box<dyn std::error::Error>> {
    let Setup {
        flows,
        descriptors,
        ring,
        drops,
        policy,
    } = setup;
    let machine = Machine {
        memory: SparseMemory::new(MEMORY),
        unit: RefCell::new(vtd_model::Unit::new(
            UnitConfig::builder().cache_sizes(Some(CACHES)).build()?,
        )),
        now: Cell::new(0),
        unhinted: policy == Policy::Unhinted,
        caches: RefCell::new(Caches::new()),
        tail: Cell::new(0),
    };
    let options = UnitOptions {
        host_address_width: machine.unit.borrow().config().host_address_width(),
        ..UnitOptions::default()
    };
    let unit = Unit::found(&machine, &machine, options)?;
    let unit = unit
        .take_over()
        .map_err(|error| error.cause.to_string())?
        .enable()
        .map_err(|error| error.cause.to_string())?;
    let domain = unit.create_domain(DomainOptions::default())?;
    unit.attach(&Requester::new(SOURCE), &domain)?;
    let iovas = CachedAllocator::new(IovaSpace::new(domain.aperture())?);
    let api = DmaApi::new(
        Translated::new(domain, iovas, Invalidation::Strict),
        machine.memory.hardware(),
    );
    let mut core = api.new_core();
    let device = Device::with_address_bits(64);
    let mut pool = None;
    if policy == Policy::Pool {
        let all = Buffer::new(HostPhys::new(POOL_AT), POOL);
        let mapping = api.map_coherent(&mut core, &device, &[all]);
        pool = Some(mapping.map_err(|error| error.to_string())?);
    }
    let base = pool
        .as_ref()
        .and_then(Mapping::segment)
        .map_or(Iova::ZERO, |all| all.address);
    let mut nic = Nic {
        core,
        api: &api,
        machine: &machine,
        policy,
        device,
        next_page: 0,
        pool: base,
        unused: (0..POOL / (PAGES * PAGE_SIZE))
            .map(|piece| piece * PAGES * PAGE_SIZE)
            .collect(),
        outcome: Outcome {
            pages: 0,
            reads: 0,
            reference_reads: 0,
            misses: 0,
            invalidations: 0,
            wrong: 0,
        },
    };
    let per_descriptor = usize::try_from(PAGES)?;
    let held = ring / per_descriptor;
    let mut all = Vec::new();
    for _ in 0..flows {
        let ring: Result<VecDeque<_>, _> = (0..held).map(|_| nic.post(PAGES, Direction::FromDevice)).collect();
        all.push(Flow {
            ring: ring?,
            done: 0,
            next: (0, 0),
            dropped: VecDeque::new(),
        });
    }
    let mut draws = 0x5eed_u64;
    let mut before = (nic.counters(), 0, 0);
    // The ring goes round once before counting starts.
    for turn in 0..(held + descriptors) * per_descriptor {
        if turn == held * per_descriptor {
            let caches = machine.caches.borrow();
            before = (nic.counters(), caches.reads, caches.misses);
            nic.outcome.pages = 0;
        }
        for (number, flow) in all.iter_mut().enumerate() {
            if turn == 0 {
                // Flows are at different places of their descriptors.
                let skipped = number * per_descriptor / flows;
                for page in 0..skipped {
                    let first = flow.ring.front_mut().ok_or("a flow without descriptors")?;
                    nic.receive(first, page)?;
                }
                flow.next = (0, skipped);
            }
            draws = draws
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            let drop = drops && (draws >> 33).is_multiple_of(DROPPED);
            let Some((descriptor, page)) = flow.page(turn, drop) else {
                continue;
            };
            let at = descriptor
                .checked_sub(flow.done)
                .ok_or("a page of a descriptor that is done")?;
            let descriptor = flow.ring.get_mut(at).ok_or("a page of no descriptor")?;
            nic.receive(descriptor, page)?;
            // Completed in order, each with an acknowledgement.
            while flow.ring.front().is_some_and(|first| first.left == 0) {
                let mut acknowledgement = nic.post(1, Direction::ToDevice)?;
                nic.stream(&mut acknowledgement, 0, Access::Read);
                nic.complete(acknowledgement)?;
                let done = flow.ring.pop_front().ok_or("a flow without descriptors")?;
                nic.complete(done)?;
                flow.done += 1;
                flow.ring.push_back(nic.post(PAGES, Direction::FromDevice)?);
            }
        }
    }
    let after = nic.counters();
    let outcome = {
        let caches = machine.caches.borrow();
        Outcome {
            reads: after.walks.reads.total() - before.0.walks.reads.total(),
            reference_reads: caches.reads - before.1,
            misses: caches.misses - before.2,
            invalidations: after.invalidations.iotlb - before.0.invalidations.iotlb,
            ..nic.outcome
        }
    };
    if let Some(pool) = pool {
        let done = api.unmap(&mut nic.core, pool);
        done.map_err(|error| format!("{error:?}"))?;
    }
    Ok(outcome)
}
