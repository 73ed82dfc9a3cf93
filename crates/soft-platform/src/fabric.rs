//! The fabric: carries out what functions ask for, by topology, alias and ACS.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{MutexGuard, RwLock, TryLockError};

use iommu_devices::{Bus, DmaError, DmaErrorKind, Function};
use iommu_types::{Access, Bdf, HostPhys, Iova, SourceId, SystemMemory};
use vtd_model::{InterruptRequest, Request};
use vtd_spec::message::{INTERRUPT_RANGE_FIRST, INTERRUPT_RANGE_LAST, is_interrupt_address};

use crate::interrupts::{Arrival, Sender};
use crate::machine::{Machine, PlatformBlock, Service, Uncovered};
use crate::route::{Decode, Route};

/// How often a function that is busy with another thread's access is tried again. Two functions that write to
/// each other at the same time would wait for ever otherwise.
const PEER_TRIES: u32 = 1 << 16;

/// Length of an interrupt message in bytes.
const MESSAGE_LEN: u64 = 4;

/// What the fabric has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FabricCounters {
    /// Requests that functions sent, as they sent them (of any length).
    pub requests: u64,
    /// Bytes that arrived in memory or came from it.
    pub memory_bytes: u64,
    /// Bytes between functions.
    pub peer_bytes: u64,
    /// Requests that found a peer before they got to a unit.
    pub shortcuts: u64,
    /// Requests that a port, a unit or the platform stopped, or that nobody answered.
    pub stopped: u64,
    /// Interrupts delivered for functions.
    pub interrupts: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Meters {
    requests: AtomicU64,
    memory_bytes: AtomicU64,
    peer_bytes: AtomicU64,
    shortcuts: AtomicU64,
    stopped: AtomicU64,
    interrupts: AtomicU64,
}

impl Meters {
    fn read(&self) -> FabricCounters {
        let get = |meter: &AtomicU64| meter.load(Ordering::Relaxed);
        FabricCounters {
            requests: get(&self.requests),
            memory_bytes: get(&self.memory_bytes),
            peer_bytes: get(&self.peer_bytes),
            shortcuts: get(&self.shortcuts),
            stopped: get(&self.stopped),
            interrupts: get(&self.interrupts),
        }
    }
}

fn add(meter: &AtomicU64, by: u64) {
    meter.fetch_add(by, Ordering::Relaxed);
}

/// What all functions answer to, and the addresses outside of which nothing does.
#[derive(Debug, Default)]
pub(crate) struct Decodes {
    each: Vec<Decode>,
    /// First and last address of all BARs and windows.
    span: Option<(HostPhys, HostPhys)>,
}

impl Decodes {
    pub(crate) fn new(each: Vec<Decode>) -> Self {
        let mut decodes = Self { each, span: None };
        decodes.measure();
        decodes
    }

    pub(crate) fn replace(&mut self, index: usize, decode: Decode) {
        if let Some(old) = self.each.get_mut(index) {
            *old = decode;
        }
        self.measure();
    }

    pub(crate) fn each(&self) -> &[Decode] {
        &self.each
    }

    fn measure(&mut self) {
        let ranges = || self.each.iter().flat_map(Decode::ranges);
        let first = ranges().map(|range| range.first()).min();
        let last = ranges().map(|range| range.last()).max();
        self.span = first.zip(last);
    }

    /// How many of `len` bytes from `at` surely have one route: up to the start of the span outside of it, up
    /// to the end of the page inside.
    fn stretch(&self, at: HostPhys, len: u64) -> u64 {
        let page_rest = 4096 - at.page_offset();
        match self.span {
            Some((first, _)) if at < first => len.min(first.raw() - at.raw()),
            Some((_, last)) if at <= last => len.min(page_rest),
            _ => len,
        }
    }
}

pub(crate) type SharedDecodes = RwLock<Decodes>;

/// The bytes of a request: where they go to or come from.
enum Data<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

impl Data<'_> {
    fn len(&self) -> u64 {
        let len = match self {
            Self::Read(into) => into.len(),
            Self::Write(from) => from.len(),
        };
        u64::try_from(len).unwrap_or(u64::MAX)
    }

    const fn access(&self) -> Access {
        match self {
            Self::Read(_) => Access::Read,
            Self::Write(_) => Access::Write,
        }
    }

    /// The part of `len` bytes from byte `done`.
    fn part(&mut self, done: u64, len: u64) -> Data<'_> {
        let start = usize::try_from(done).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
        match self {
            Self::Read(into) => Data::Read(into.get_mut(start..end).unwrap_or_default()),
            Self::Write(from) => Data::Write(from.get(start..end).unwrap_or_default()),
        }
    }
}

/// The bus as one function sees it: what it sends carries its requester ID.
#[derive(Clone, Debug)]
pub struct FunctionBus {
    machine: Machine,
    index: usize,
    bdf: Bdf,
    source: SourceId,
}

impl FunctionBus {
    /// The function.
    #[must_use]
    pub const fn function(&self) -> Bdf {
        self.bdf
    }

    /// The same place on the bus, but requests carry `source`: a function that lies about who it is.
    #[must_use]
    pub const fn forging(mut self, source: SourceId) -> Self {
        self.source = source;
        self
    }

    fn run(&self, iova: Iova, mut data: Data<'_>) -> Result<(), DmaError> {
        let shared = &self.machine.shared;
        add(&shared.meters.requests, 1);
        let result = self.stretches(iova, &mut data);
        if result.is_err() {
            add(&shared.meters.stopped, 1);
        }
        result
    }

    /// Splits a request where its route may change.
    fn stretches(&self, iova: Iova, data: &mut Data<'_>) -> Result<(), DmaError> {
        let len = data.len();
        let mut done = 0;
        while done < len {
            let at = iova
                .checked_add(done)
                .ok_or(DmaError::new(iova, DmaErrorKind::OutOfRange))?;
            let (stretch, route) = self.machine.look(self.index, self.source, at, len - done);
            let mut part = data.part(done, stretch);
            match route {
                Route::Upstream { source } => self.upstream(source, at, &mut part)?,
                Route::Peer {
                    function, bar, offset, ..
                } => {
                    add(&self.machine.shared.meters.shortcuts, 1);
                    self.peer(function, bar, offset, at, part)?;
                }
                Route::Refused { .. } => return Err(DmaError::new(at, DmaErrorKind::Refused)),
            }
            done += stretch;
        }
        Ok(())
    }

    /// A request that arrived at the root complex.
    fn upstream(&self, source: SourceId, iova: Iova, data: &mut Data<'_>) -> Result<(), DmaError> {
        let Some(service) = self.machine.service_of(self.index) else {
            return Err(DmaError::new(iova, DmaErrorKind::Refused));
        };
        match service {
            Service::Unit(unit, _) => self.translated(unit, source, iova, data),
            Service::Uncovered if self.machine.shared.uncovered == Uncovered::Passes => {
                self.untranslated(source, iova, data)
            }
            Service::Uncovered | Service::Blocked(_) => {
                self.machine.log_block(PlatformBlock {
                    function: self.bdf,
                    source,
                    address: iova,
                    access: data.access(),
                    service,
                });
                Err(DmaError::new(iova, DmaErrorKind::Blocked))
            }
        }
    }

    /// Asks the unit page by page.
    fn translated(&self, unit: usize, source: SourceId, iova: Iova, data: &mut Data<'_>) -> Result<(), DmaError> {
        let shared = &self.machine.shared;
        let Some(slot) = shared.units.get(unit) else {
            return Err(DmaError::new(iova, DmaErrorKind::Refused));
        };
        if let Some((address, message)) = message(iova, data) {
            let request = InterruptRequest {
                source,
                address,
                data: message,
            };
            let mut model = slot.lock();
            let answer = model.interrupt(&shared.memory, &request);
            self.machine.deliver_events(unit, &mut model);
            drop(model);
            let interrupt = answer.map_err(|_| DmaError::new(iova, DmaErrorKind::Blocked))?;
            self.deliver(Arrival::remapped(Sender::Function(source), &interrupt));
            return Ok(());
        }
        let len = data.len();
        let mut done = 0;
        while done < len {
            let at = iova
                .checked_add(done)
                .ok_or(DmaError::new(iova, DmaErrorKind::OutOfRange))?;
            let rest = outside_interrupt_range(at, len - done);
            // The lock is held while the bytes move: an invalidation that completes, completes after them.
            let mut model = slot.lock();
            let answer = model.dma(&shared.memory, &Request::new(source, at, rest, data.access()));
            self.machine.deliver_events(unit, &mut model);
            let translation = answer.map_err(|_| DmaError::new(at, DmaErrorKind::Blocked))?;
            let in_page = translation
                .page
                .last()
                .offset_from(at)
                .map_or(1, |last| last.saturating_add(1));
            let step = rest.min(in_page);
            let mut part = data.part(done, step);
            let moved = self.memory(translation.phys, &mut part);
            drop(model);
            // Functions are reached without the lock, since they may send requests of their own. Registers of
            // functions are not memory that an owner takes back after an invalidation.
            let moved = match moved {
                0 => self.window(translation.phys, at, &mut part)?,
                moved => moved,
            };
            done += moved;
        }
        Ok(())
    }

    /// What the root complex does with a request that no unit looks at.
    fn untranslated(&self, source: SourceId, iova: Iova, data: &mut Data<'_>) -> Result<(), DmaError> {
        if let Some((address, message)) = message(iova, data) {
            self.deliver(Arrival::unmodified(Sender::Function(source), address, message));
            return Ok(());
        }
        let len = data.len();
        let mut done = 0;
        while done < len {
            let at = iova
                .checked_add(done)
                .ok_or(DmaError::new(iova, DmaErrorKind::OutOfRange))?;
            let phys = HostPhys::new(at.raw());
            let mut part = data.part(done, len - done);
            done += match self.memory(phys, &mut part) {
                0 => self.window(phys, at, &mut part)?,
                moved => moved,
            };
        }
        Ok(())
    }

    fn deliver(&self, arrival: Arrival) {
        add(&self.machine.shared.meters.interrupts, 1);
        self.machine.shared.interrupts.push(arrival);
    }

    /// Moves bytes from or to memory at `phys`, as far as memory reaches; 0 if there is none.
    fn memory(&self, phys: HostPhys, data: &mut Data<'_>) -> u64 {
        let memory = &self.machine.shared.memory;
        let len = memory.reach(phys, data.len());
        if len == 0 {
            return 0;
        }
        let moved = match data.part(0, len) {
            Data::Read(into) => memory.read(phys, into),
            Data::Write(from) => memory.write(phys, from),
        };
        if moved.is_err() {
            return 0;
        }
        add(&self.machine.shared.meters.memory_bytes, len);
        len
    }

    /// Moves bytes from or to the function that answers at `phys`, up to the end of the page.
    fn window(&self, phys: HostPhys, at: Iova, data: &mut Data<'_>) -> Result<u64, DmaError> {
        let (function, bar, offset) = self
            .machine
            .decode(phys)
            .ok_or(DmaError::new(at, DmaErrorKind::Unclaimed))?;
        let len = data.len().min(4096 - phys.page_offset());
        self.peer(function, bar, offset, at, data.part(0, len))?;
        Ok(len)
    }

    /// Moves bytes from or to a BAR of another function.
    fn peer(&self, function: Bdf, bar: u8, offset: u64, at: Iova, data: Data<'_>) -> Result<(), DmaError> {
        let refused = DmaError::new(at, DmaErrorKind::Refused);
        if function == self.bdf {
            // A function does not answer its own requests.
            return Err(refused);
        }
        let bus = self.machine.bus(function).ok_or(refused)?;
        let mut target = self.machine.try_function(bus.index).ok_or(refused)?;
        add(&self.machine.shared.meters.peer_bytes, data.len());
        match data {
            Data::Read(into) => target.bar_read(bar, offset, into),
            Data::Write(from) => target.bar_write(bar, offset, from, &bus),
        }
        Ok(())
    }
}

/// How many of `len` bytes from `at` come before the interrupt range starts, or inside it before it ends.
fn outside_interrupt_range(at: Iova, len: u64) -> u64 {
    let border = if at.raw() < INTERRUPT_RANGE_FIRST {
        INTERRUPT_RANGE_FIRST
    } else if at.raw() <= INTERRUPT_RANGE_LAST {
        INTERRUPT_RANGE_LAST + 1
    } else {
        return len;
    };
    len.min(border - at.raw())
}

/// The interrupt message that a request is: an aligned write of one DWORD into the interrupt range
/// (VT-d §3.15, Handling Requests to Interrupt Address Range).
fn message(iova: Iova, data: &Data<'_>) -> Option<(u64, u32)> {
    let Data::Write(from) = data else { return None };
    let bytes = <[u8; 4]>::try_from(*from).ok()?;
    let aligned = iova.raw().is_multiple_of(MESSAGE_LEN);
    (aligned && is_interrupt_address(iova.raw())).then(|| (iova.raw(), u32::from_le_bytes(bytes)))
}

impl Bus for FunctionBus {
    fn dma_read(&self, iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        self.run(iova, Data::Read(into))
    }

    fn dma_write(&self, iova: Iova, from: &[u8]) -> Result<(), DmaError> {
        self.run(iova, Data::Write(from))
    }
}

impl Machine {
    /// The bus as function `bdf` sees it.
    #[must_use]
    pub fn bus(&self, bdf: Bdf) -> Option<FunctionBus> {
        Some(FunctionBus {
            machine: self.clone(),
            index: self.shared.tree.index_of(bdf)?,
            bdf,
            source: bdf.source,
        })
    }

    /// The way that an untranslated request of `bdf` for `address` takes: to a unit, or to a peer before it.
    #[must_use]
    pub fn route(&self, bdf: Bdf, address: Iova) -> Option<Route> {
        let index = self.shared.tree.index_of(bdf)?;
        Some(self.look(index, bdf.source, address, 1).1)
    }

    /// What the fabric has done so far.
    #[must_use]
    pub fn fabric_counters(&self) -> FabricCounters {
        self.shared.meters.read()
    }

    /// The route from `at` on, and for how many of `len` bytes it holds.
    fn look(&self, index: usize, source: SourceId, at: Iova, len: u64) -> (u64, Route) {
        let address = HostPhys::new(at.raw());
        let decodes = self.decodes();
        let stretch = decodes.stretch(address, len);
        let route = self.shared.tree.route(decodes.each(), index, source, address);
        (stretch, route)
    }

    /// The function, BAR and offset that answer at `at` when the root complex asks.
    pub(crate) fn decode(&self, at: HostPhys) -> Option<(Bdf, u8, u64)> {
        let (index, bar, offset) = self.shared.tree.decode(self.decodes().each(), at)?;
        Some((self.shared.functions.get(index)?.info.bdf, bar, offset))
    }

    /// Function `index`, for a request of a peer: given up if it stays busy.
    fn try_function(&self, index: usize) -> Option<MutexGuard<'_, Box<dyn Function>>> {
        let slot = self.shared.functions.get(index)?;
        for _ in 0..PEER_TRIES {
            match slot.function.try_lock() {
                Ok(guard) => return Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
        None
    }
}
