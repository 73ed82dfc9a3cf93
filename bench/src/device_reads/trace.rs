//! Flows that receive into descriptors of many pages, driven through the DMA API, the driver and the model.
//!
//! Everything is counted and nothing timed, so the figures are the same on every machine. A test includes this file
//! to hold the driver to its target.

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
use vtd_spec::register::{InvalidationQueueAddress, offset};

/// Pages of a receive descriptor.
pub(crate) const PAGES: u64 = 64;
/// Descriptors of a flow that the device holds.
const RING: usize = 4;
/// Descriptors of a flow that are consumed before counting starts.
const WARM_UP: usize = RING;
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
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// Pages that the device streamed, acknowledgements included.
    pub(crate) pages: u64,
    /// Structures that the unit read from memory for them.
    pub(crate) reads: u64,
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
}

/// One unit of the model, as the driver's hardware and host.
struct Machine {
    memory: SparseMemory,
    unit: RefCell<vtd_model::Unit>,
    now: Cell<u64>,
    unhinted: bool,
    /// Where the queue ended when it was last looked at.
    tail: Cell<u64>,
}

impl Machine {
    /// Clears the hint in all invalidations up to `tail` before the unit sees them.
    fn take_hints_away(&self, tail: u64) {
        let queue =
            InvalidationQueueAddress::new_with_raw_value(self.unit.borrow_mut().read(offset::IQA, AccessWidth::Qword));
        let (memory, step) = (self.memory.hardware(), queue.dw().bytes());
        let mut at = self.tail.replace(tail);
        // At most one turn for each slot of the queue.
        while at != tail {
            let place = queue.base().checked_add(at).unwrap_or(queue.base());
            if let Ok([low, high]) = memory.read_words::<2>(place) {
                let seen = IotlbInvalidation::from_words([low, high]);
                if seen.kind() == IotlbInvalidation::DEFAULT.kind() && seen.ih() {
                    let [_, unhinted] = seen.with_ih(false).to_words();
                    let _ = memory.write_u64(place.checked_add(8).unwrap_or(place), unhinted);
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
        if at == offset::IQT && self.unhinted {
            self.take_hints_away(value);
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
}

/// A driver of a network card with some flows.
struct Nic<'a, B: Backend, M> {
    api: &'a DmaApi<B, M>,
    core: DmaCore<B::Core>,
    machine: &'a Machine,
    policy: Policy,
    device: Device,
    next_page: u64,
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
        let host: Vec<HostPhys> = (0..pages).map(|_| self.page()).collect();
        let buffers: Vec<Buffer> = host.iter().map(|&at| Buffer::new(at, PAGE_SIZE)).collect();
        let lists: Vec<&[Buffer]> = match self.policy {
            Policy::Descriptor => vec![&buffers],
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
            host,
            mappings,
            addresses,
        })
    }

    /// The device uses one page of a descriptor: its first and its last line.
    fn stream(&mut self, descriptor: &Descriptor<B>, page: usize, access: Access) {
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
            let right = answer.is_ok_and(|found| Some(found.phys) == host.checked_add(offset));
            self.outcome.wrong += u64::from(!right);
        }
        self.outcome.pages += 1;
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

/// Streams `descriptors` descriptors of every flow, one page of each flow in turn, and counts what the unit read.
///
/// Each descriptor is followed by an acknowledgement of one page, which the device reads. Flows are staggered, so that
/// descriptors are completed and posted while others are in use. Unmaps are strict.
pub(crate) fn run(flows: usize, descriptors: usize, policy: Policy) -> Result<Outcome, Box<dyn std::error::Error>> {
    let machine = Machine {
        memory: SparseMemory::new(MEMORY),
        unit: RefCell::new(vtd_model::Unit::new(
            UnitConfig::builder().cache_sizes(Some(CACHES)).build()?,
        )),
        now: Cell::new(0),
        unhinted: policy == Policy::Unhinted,
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
    let mut nic = Nic {
        core: api.new_core(),
        api: &api,
        machine: &machine,
        policy,
        device: Device::with_address_bits(64),
        next_page: 0,
        outcome: Outcome {
            pages: 0,
            reads: 0,
            invalidations: 0,
            wrong: 0,
        },
    };
    let mut rings = Vec::new();
    for _ in 0..flows {
        let ring: Result<VecDeque<_>, _> = (0..RING).map(|_| nic.post(PAGES, Direction::FromDevice)).collect();
        rings.push(ring?);
    }
    let per_descriptor = usize::try_from(PAGES)?;
    let mut before = nic.counters();
    for turn in 0..(WARM_UP + descriptors) * per_descriptor {
        if turn == WARM_UP * per_descriptor {
            before = nic.counters();
            nic.outcome.pages = 0;
        }
        for (flow, ring) in rings.iter_mut().enumerate() {
            let page = (turn + flow * per_descriptor / flows) % per_descriptor;
            let first = ring.front_mut().ok_or("a flow without descriptors")?;
            nic.stream(first, page, Access::Write);
            if policy == Policy::Unhinted {
                nic.complete_page(first, page)?;
            }
            if page + 1 == per_descriptor {
                let acknowledgement = nic.post(1, Direction::ToDevice)?;
                nic.stream(&acknowledgement, 0, Access::Read);
                nic.complete(acknowledgement)?;
                let done = ring.pop_front().ok_or("a flow without descriptors")?;
                nic.complete(done)?;
                ring.push_back(nic.post(PAGES, Direction::FromDevice)?);
            }
        }
    }
    let after = nic.counters();
    Ok(Outcome {
        reads: after.walks.reads.total() - before.walks.reads.total(),
        invalidations: after.invalidations.iotlb - before.invalidations.iotlb,
        ..nic.outcome
    })
}
