//! A unit that threads share, with the driver on it: in the driver's own thread, on another processor as a VMM's side core
//! is, or replaced by one that confirms everything at once, to know what the driver alone costs.
//!
//! On the other processor the unit polls memory: for the doorbell, and for addresses that a device is to translate. What
//! the driver reads while it waits is memory, too.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use iommu_dma::{DmaApi, Invalidation, Translated};
use iommu_iova::{CachedAllocator, IovaSpace};
use iommu_types::sync::{AtomicBool, AtomicU64, Ordering};
use iommu_types::{
    Access, Clock, Coherence, FrameRequest, HostPhys, Iova, OutOfFrames, Registers, SourceId, Table, TableFrame,
    TableMemory,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vtd_driver::{Domain, DomainOptions, PassThrough, Requester, Translating, Unit, UnitOptions};
use vtd_model::{AccessWidth, CacheSizes, UnitConfig};
use vtd_spec::descriptor::WaitDescriptor;
use vtd_spec::register::{InvalidationQueueAddress, offset};
use vtd_vmm::{GuestBus, VmmUnit};

use super::Outcome;
use crate::peers::{GuestTables, PAGE, pin};

/// Memory for tables and the queue; buffers need none, nobody reads them.
const MEMORY: u64 = 128 << 20;
/// Addresses that wait for their translation on the other processor.
const POSTED: u64 = 128;
/// Turns of a waiting thread before it lets others on its processor.
const SPINS: u64 = 4096;
/// What one turn of a waiting driver counts as.
const TURN_NS: u64 = 100;
/// What the unit keeps: more than any ring has pages that are used.
const CACHED: usize = 65_536;

pub(super) type Model = VmmUnit<Arc<GuestMemoryMmap>>;

/// Where the unit works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the thread that asks.
    Here,
    /// On another processor.
    Beside,
    /// Nowhere: waits are confirmed without any work.
    Nowhere,
}

/// What the two processors tell each other, each word on a line of its own.
#[derive(Default)]
pub(super) struct Desk {
    tail: Line,
    fault_status: Line,
    posted: Line,
    translated: Line,
    wrong: Line,
    slots: Vec<AtomicU64>,
    closed: AtomicBool,
}

#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU64);

impl Line {
    #[inline]
    fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
    #[inline]
    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }
}

/// The unit, its registers and its memory as the driver sees them.
pub(super) struct Machine {
    pub(super) model: Model,
    pub(super) desk: Desk,
    place: Cell<Place>,
    memory: Arc<GuestMemoryMmap>,
    tables: GuestTables,
    queue: Cell<u64>,
    fresh: Cell<u64>,
    unused: RefCell<Vec<u64>>,
    now: Cell<u64>,
}

pub(super) type Space<'a> = Domain<&'a Machine, &'a Machine>;
pub(super) type Backend<'a> = Translated<Space<'a>, CachedAllocator>;
pub(super) type Bus<'a> = GuestBus<'a, GuestMemoryMmap>;

impl Machine {
    pub(super) fn new(caching_mode: bool) -> Outcome<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(MEMORY)?)])?;
        let memory = Arc::new(memory);
        let sizes = CacheSizes {
            contexts: 64,
            pasids: 64,
            pages: CACHED,
            tables: 0,
            interrupts: 64,
        };
        let config = UnitConfig::builder()
            .two_phase_waits(true)
            .caching_mode(caching_mode)
            .cache_sizes(Some(sizes))
            .build()?;
        Ok(Self {
            model: VmmUnit::new(config, Arc::clone(&memory), ())?,
            desk: Desk {
                slots: (0..POSTED).map(|_| AtomicU64::new(0)).collect(),
                ..Desk::default()
            },
            place: Cell::new(Place::Here),
            tables: GuestTables::new(&memory, usize::try_from(MEMORY)?).ok_or("no memory")?,
            memory,
            queue: Cell::new(0),
            fresh: Cell::new(1),
            unused: RefCell::default(),
            now: Cell::new(0),
        })
    }

    /// The driver on the unit, with translation on.
    pub(super) fn driver(&self) -> Outcome<Unit<&Self, &Self, Translating>> {
        let options = UnitOptions {
            host_address_width: 48,
            pass_through: PassThrough::AllowedForTrustedDevices,
            ..UnitOptions::default()
        };
        let unit = Unit::found(self, self, options)?;
        let unit = unit.take_over().map_err(|error| error.cause.to_string())?;
        Ok(unit.enable().map_err(|error| error.cause.to_string())?)
    }

    /// Memory as the API copies it.
    pub(super) fn bus(&self) -> Bus<'_> {
        GuestBus(&self.memory)
    }

    /// From now on the unit works elsewhere.
    pub(super) fn move_to(&self, place: Place) {
        self.place.set(place);
    }

    /// Translates as a device: one section, one access.
    #[inline]
    pub(super) fn translate(&self, source: SourceId, at: Iova) -> Option<HostPhys> {
        translate(&self.model, source, at)
    }

    /// Has the device translate `at`, wherever the unit works.
    #[inline]
    pub(super) fn access(&self, source: SourceId, at: Iova) {
        if self.place.get() != Place::Beside {
            let wrong = u64::from(self.translate(source, at).is_none());
            if wrong > 0 {
                self.desk.wrong.set(self.desk.wrong.get() + wrong);
            }
            return;
        }
        let desk = &self.desk;
        let number = desk.posted.0.load(Ordering::Relaxed);
        let mut turns = 0;
        while number - desk.translated.get() >= POSTED {
            wait(&mut turns);
        }
        if let Some(slot) = usize::try_from(number % POSTED).ok().and_then(|at| desk.slots.get(at)) {
            slot.store(u64::from(source.raw()) << 48 | at.raw(), Ordering::Relaxed);
        }
        desk.posted.set(number + 1);
    }

    /// Waits until the device has nothing left to translate; tells how many accesses were blocked so far.
    pub(super) fn settle(&self) -> u64 {
        let desk = &self.desk;
        let mut turns = 0;
        while self.place.get() == Place::Beside && desk.translated.get() != desk.posted.get() {
            wait(&mut turns);
        }
        desk.wrong.get()
    }

    /// Confirms the youngest wait, without looking at what is before it.
    fn confirm(&self, tail: u64) {
        let base = InvalidationQueueAddress::new_with_raw_value(self.queue.get()).base();
        let at = base.raw() + (tail + PAGE - 16) % PAGE;
        let word = |at: u64| {
            let index = usize::try_from(at % PAGE / 8).ok()?;
            self.table(HostPhys::new(at).page())?.get(index)
        };
        let (Some(low), Some(high)) = (word(at), word(at + 8)) else {
            return;
        };
        let wait = WaitDescriptor::from_words([low.load(Ordering::Relaxed), high.load(Ordering::Relaxed)]);
        if let Some(status) = word(wait.status_address().raw()) {
            status.store(wait.status_data().into(), Ordering::Release);
        }
    }
}

#[inline]
fn translate(model: &Model, source: SourceId, at: Iova) -> Option<HostPhys> {
    let section = model.enter(source);
    section.translate(at, 64, Access::Write).ok().map(|place| place.phys)
}

fn wait(turns: &mut u64) {
    *turns += 1;
    if (*turns).is_multiple_of(SPINS) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// The other processor: does what the desk asks for, until it is closed.
fn beside(model: &Model, desk: &Desk, mut tail: u64) {
    pin(1);
    let (mut done, mut turns) = (desk.translated.get(), 0);
    while !desk.closed.load(Ordering::Acquire) {
        let rung = desk.tail.get();
        if rung != tail {
            model.write(offset::IQT, AccessWidth::Qword, rung);
            desk.fault_status.set(model.read(offset::FSTS, AccessWidth::Dword));
            (tail, turns) = (rung, 0);
        } else if done != desk.posted.get() {
            let slot = usize::try_from(done % POSTED).ok().and_then(|at| desk.slots.get(at));
            let word = slot.map_or(0, |slot| slot.load(Ordering::Relaxed));
            let source = SourceId::from_raw(u16::try_from(word >> 48).unwrap_or(0));
            if translate(model, source, Iova::new(word & ((1 << 48) - 1))).is_none() {
                desk.wrong.set(desk.wrong.get() + 1);
            }
            done += 1;
            desk.translated.set(done);
            turns = 0;
        } else {
            wait(&mut turns);
        }
    }
}

/// Has the unit of `machine` work beside while `work` runs.
pub(super) fn with_unit_beside<R>(machine: &Machine, work: impl FnOnce() -> R) -> R {
    let (model, desk) = (&machine.model, &machine.desk);
    // As far as the unit has read its queue.
    let tail = model.read(offset::IQT, AccessWidth::Qword);
    desk.tail.set(tail);
    desk.closed.store(false, Ordering::Release);
    std::thread::scope(|scope| {
        scope.spawn(move || beside(model, desk, tail));
        machine.move_to(Place::Beside);
        let done = work();
        machine.settle();
        machine.move_to(Place::Here);
        desk.closed.store(true, Ordering::Release);
        done
    })
}

/// The DMA interface of one device, in a space of its own.
pub(super) fn api<'a>(
    driver: &Unit<&'a Machine, &'a Machine, Translating>,
    machine: &'a Machine,
    source: SourceId,
    invalidation: Invalidation,
) -> Outcome<DmaApi<Backend<'a>, Bus<'a>>> {
    let domain = space(driver, source)?;
    let iovas = CachedAllocator::new(IovaSpace::new(domain.aperture())?);
    Ok(DmaApi::new(Translated::new(domain, iovas, invalidation), machine.bus()))
}

/// A space that a device is attached to.
pub(super) fn space<'a>(driver: &Unit<&'a Machine, &'a Machine, Translating>, source: SourceId) -> Outcome<Space<'a>> {
    let domain = driver.create_domain(DomainOptions::default())?;
    driver.attach(&Requester::new(source), &domain)?;
    Ok(domain)
}

impl Registers for &Machine {
    fn read32(&self, at: u32) -> u32 {
        let value = match (at, self.place.get()) {
            (offset::FSTS, Place::Beside) => self.desk.fault_status.get(),
            _ => self.model.read(at, AccessWidth::Dword),
        };
        u32::try_from(value).unwrap_or(u32::MAX)
    }
    fn read64(&self, at: u32) -> u64 {
        // Nobody carries anything out, so everything is.
        let at = match (at, self.place.get()) {
            (offset::IQH, Place::Nowhere) => return self.desk.tail.get(),
            _ => at,
        };
        self.model.read(at, AccessWidth::Qword)
    }
    fn write32(&self, at: u32, value: u32) {
        self.model.write(at, AccessWidth::Dword, value.into());
    }
    #[inline]
    fn write64(&self, at: u32, value: u64) {
        match (at, self.place.get()) {
            (offset::IQT, Place::Beside) => self.desk.tail.set(value),
            (offset::IQT, Place::Nowhere) => {
                self.confirm(value);
                self.desk.tail.set(value);
            }
            _ => {
                if at == offset::IQA {
                    self.queue.set(value);
                }
                self.model.write(at, AccessWidth::Qword, value);
            }
        }
    }
    fn window_len(&self) -> u32 {
        self.model.window_len()
    }
}

impl TableMemory for Machine {
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        let unused = self.unused.borrow_mut().pop();
        let number = match unused {
            Some(number) => number,
            None if self.fresh.get() < MEMORY / PAGE => self.fresh.replace(self.fresh.get() + 1),
            None => return Err(OutOfFrames(request)),
        };
        let at = HostPhys::new(number * PAGE);
        let table = self.table(at).filter(|_| request.order == 0);
        for entry in table.ok_or(OutOfFrames(request))? {
            entry.store(0, Ordering::Relaxed);
        }
        Ok(TableFrame::from_allocator(at, 0))
    }
    fn free(&self, frame: TableFrame) {
        self.unused.borrow_mut().push(frame.base().raw() / PAGE);
    }
    #[inline]
    fn table(&self, at: HostPhys) -> Option<&Table> {
        self.tables.get(at)
    }
}

impl Coherence for Machine {
    fn write_back(&self, _at: HostPhys, _len: u64) {}
}

/// Time goes on while one waits, and only then: a clock would cost more than what is timed.
impl Clock for Machine {
    #[inline]
    fn now_ns(&self) -> u64 {
        self.now.get()
    }
    fn relax(&self) {
        let mut turns = self.now.get() / TURN_NS;
        wait(&mut turns);
        self.now.set(turns * TURN_NS);
    }
}
