//! A machine with one unit: the model on one side, the driver's host traits on the other.
#![allow(dead_code, reason = "shared by test binaries that use different parts of it")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use iommu_testkit::SparseMemory;
use iommu_testkit::oracle::{OracleAccess, OracleOutcome, OracleRequest, OracleUnit, translate};
use iommu_types::{
    Access, AddrRange, Clock, Coherence, FrameRequest, HostPhys, Iova, OutOfFrames, PAGE_SIZE, Pasid, Registers,
    SourceId, SystemMemory, Table, TableFrame, TableMemory,
};
use vtd_driver::{Blocked, BringUpError, Domain, Found, TableMode, Timeouts, Translating, Unit, UnitOptions};
use vtd_model::{
    AccessWidth, DeviceInvalidation, Finding, Interrupt, InterruptRequest, PasidScope, Request, RequestKind, Rule,
    UnitConfig,
};
use vtd_spec::descriptor::{DeviceTlbInvalidation, WaitDescriptor};
use vtd_spec::register::{GlobalCommand, GlobalStatus, InvalidationQueueAddress, offset};

/// Bytes of memory: table frames come from the top, the pages that devices are given lie below `TABLES`.
const MEMORY: u64 = 1 << 36;

/// Nanoseconds that a turn of a polling loop takes.
const TURN_NS: u64 = 1_000;

/// What a translation in a device-TLB is for: requester, PASID and page.
type Held = (SourceId, Option<Pasid>, u64);

/// The unit, its memory, and what the test looks at.
pub(crate) struct Machine {
    pub(crate) memory: SparseMemory,
    unit: RefCell<vtd_model::Unit>,
    /// The mode that the driver is asked to use.
    mode: TableMode,
    now: Cell<u64>,
    /// Register writes since the last look: offset and value.
    writes: RefCell<Vec<(u32, u64)>>,
    /// Queue descriptors announced since the last look, waits left out.
    descriptors: RefCell<Vec<[u64; 2]>>,
    /// Device-TLB invalidations that devices were sent.
    device_messages: RefCell<Vec<DeviceInvalidation>>,
    /// A device that does not answer them.
    pub(crate) deaf: Cell<Option<SourceId>>,
    /// Nobody answers them.
    pub(crate) all_deaf: Cell<bool>,
    /// The next one goes unanswered.
    pub(crate) miss: Cell<bool>,
    /// Every doorbell brings one to a function that was pulled out.
    pub(crate) aborts: Cell<bool>,
    /// What functions keep in their device-TLBs: by requester, PASID and page.
    held: RefCell<BTreeMap<Held, HostPhys>>,
    /// A function that asks for this address again as soon as it was told to forget it.
    pub(crate) eager: Cell<Option<(SourceId, Iova)>>,
    /// An entry whose words are noted at each doorbell.
    pub(crate) watch: Cell<Option<HostPhys>>,
    watched: RefCell<Vec<[u64; 2]>>,
    /// Whether the unit takes steps while the driver waits.
    pub(crate) frozen: Cell<bool>,
    /// Whether every register reads all-ones.
    pub(crate) gone: Cell<bool>,
    /// The unit fetches descriptors ahead: its head is at the tail long before they are carried out.
    pub(crate) fetches_ahead: Cell<bool>,
    /// The unit carries out what is announced by one doorbell in the opposite order, all but the wait behind it.
    pub(crate) reorders: Cell<bool>,
    /// A device that reads this address all the time.
    pub(crate) busy: Cell<Option<(SourceId, Iova)>>,
    /// Stores stay in write buffers until the unit is told to flush them, or is given something to invalidate.
    write_buffers: bool,
    /// Register accesses left before something breaks, and what.
    pub(crate) breaks: Cell<Option<(u64, Break)>>,
}

/// How hardware fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Break {
    /// It stops: nothing is acknowledged any more.
    Stop,
    /// It vanishes: every register reads all-ones.
    Vanish,
    /// The next descriptor that is announced is spoilt on its way (IQE).
    Spoil,
    /// The wait behind the next descriptors is spoilt (IQE, with nobody left to tell).
    SpoilWait,
    /// The wait behind the next descriptors is carried out, and its status write is lost.
    LoseWait,
    /// A completion arrives that nobody waits for (ICE).
    Stray,
    /// Functions answer no device-TLB invalidation any more (ITE, each time).
    Deafen,
    /// One device-TLB invalidation goes unanswered (ITE, once).
    Miss,
    /// The first descriptor of every doorbell becomes one of another processor, for a function that was pulled out: the
    /// wait behind it is aborted (ITE), with nothing done.
    Abort,
    /// The same, once.
    AbortOnce,
}

/// A function that was pulled out.
const GHOST: SourceId = SourceId::from_raw(0x6666);

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Machine")
    }
}

impl Machine {
    pub(crate) fn new(config: UnitConfig) -> Self {
        let memory = SparseMemory::builder().ram(0, MEMORY);
        let memory = if config.extended_capability().c() {
            memory
        } else {
            memory.non_coherent()
        };
        Self {
            memory: memory.build(),
            unit: RefCell::new(vtd_model::Unit::new(config)),
            mode: TableMode::Legacy,
            now: Cell::new(0),
            writes: RefCell::default(),
            descriptors: RefCell::default(),
            device_messages: RefCell::default(),
            deaf: Cell::new(None),
            all_deaf: Cell::new(false),
            miss: Cell::new(false),
            aborts: Cell::new(false),
            held: RefCell::default(),
            eager: Cell::new(None),
            watch: Cell::new(None),
            watched: RefCell::default(),
            frozen: Cell::new(false),
            gone: Cell::new(false),
            fetches_ahead: Cell::new(false),
            reorders: Cell::new(false),
            busy: Cell::new(None),
            write_buffers: false,
            breaks: Cell::new(None),
        }
    }

    /// As [`Self::new`], with other memory.
    pub(crate) fn with_memory(config: UnitConfig, memory: SparseMemory) -> Self {
        Self {
            memory,
            ..Self::new(config)
        }
    }

    /// The same unit and memory, driven in another mode from now on.
    pub(crate) fn now_in_mode(&mut self, mode: TableMode) {
        self.mode = mode;
    }

    /// As [`Self::new`], of a unit that reads past the processor's write buffers: hardware sees a store when they are
    /// flushed (`VT-d §6.8`).
    pub(crate) fn with_write_buffers(config: UnitConfig) -> Self {
        Self {
            memory: SparseMemory::builder().ram(0, MEMORY).non_coherent().build(),
            write_buffers: true,
            ..Self::new(config)
        }
    }

    pub(crate) fn in_mode(mut self, mode: TableMode) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn options(&self) -> UnitOptions {
        UnitOptions {
            host_address_width: self.unit.borrow().config().host_address_width(),
            timeouts: Timeouts {
                command_ns: 10_000 * TURN_NS,
                invalidation_ns: 10_000 * TURN_NS,
            },
            mode: self.mode,
            ..UnitOptions::default()
        }
    }

    pub(crate) fn found(&self) -> Unit<&Self, &Self, Found> {
        Unit::found(self, self, self.options()).expect("a unit answers")
    }

    pub(crate) fn blocked(&self) -> Unit<&Self, &Self, Blocked> {
        self.found()
            .take_over()
            .map_err(|error: BringUpError<_>| error.cause)
            .expect("taken over")
    }

    pub(crate) fn translating(&self) -> Unit<&Self, &Self, Translating> {
        self.blocked().enable().map_err(|error| error.cause).expect("enabled")
    }

    /// What the device gets: the host address, or the fault reason.
    pub(crate) fn dma(&self, source: SourceId, at: Iova, access: Access) -> Result<HostPhys, u8> {
        let request = Request::new(source, at, 8, access);
        let answer = self.unit.borrow_mut().dma(&self.memory.hardware(), &request);
        answer
            .map(|translation| translation.phys)
            .map_err(|fault| fault.reason.0)
    }

    /// As [`Self::dma`], of a request with a PASID.
    pub(crate) fn dma_with_pasid(&self, source: SourceId, pasid: Pasid, at: Iova) -> Result<HostPhys, u8> {
        let request = Request::read(source, at, 8).with_pasid(pasid);
        let answer = self.unit.borrow_mut().dma(&self.memory.hardware(), &request);
        answer
            .map(|translation| translation.phys)
            .map_err(|fault| fault.reason.0)
    }

    /// What the tables say, with no cache in between.
    pub(crate) fn oracle(&self, source: SourceId, at: Iova, access: Access) -> Result<HostPhys, u8> {
        let config = *self.unit.borrow().config();
        let unit = OracleUnit {
            rtaddr: self.register64(offset::RTADDR),
            cap: config.capability().raw_value(),
            ecap: config.extended_capability().raw_value(),
            ver: config.version().raw_value(),
            haw: config.host_address_width().into(),
        };
        let access = OracleAccess::from(access);
        let request = OracleRequest::new(source.raw(), at.raw(), access);
        match translate(&self.memory.hardware(), &unit, &request) {
            OracleOutcome::Pass { host, .. } => Ok(HostPhys::new(host)),
            OracleOutcome::Fault { reason, .. } => Err(reason),
            other => panic!("{source} at {at}: {other:?}"),
        }
    }

    pub(crate) fn interrupt(&self, source: SourceId, address: u64, data: u32) -> Result<Interrupt, u8> {
        let request = InterruptRequest { source, address, data };
        let answer = self.unit.borrow_mut().interrupt(&self.memory.hardware(), &request);
        answer.map_err(|fault| fault.reason.0)
    }

    pub(crate) fn register32(&self, at: u32) -> u32 {
        u32::try_from(self.unit.borrow_mut().read(at, AccessWidth::Dword)).expect("32 bits")
    }

    pub(crate) fn register64(&self, at: u32) -> u64 {
        self.unit.borrow_mut().read(at, AccessWidth::Qword)
    }

    /// Register writes since the last call.
    pub(crate) fn take_writes(&self) -> Vec<(u32, u64)> {
        self.writes.take()
    }

    /// Descriptors announced since the last call, waits left out.
    pub(crate) fn take_descriptors(&self) -> Vec<[u64; 2]> {
        self.descriptors.take()
    }

    /// Device-TLB invalidations that devices were sent since the last call.
    pub(crate) fn take_device_messages(&self) -> Vec<DeviceInvalidation> {
        self.device_messages.take()
    }

    /// A translation request: what the device may keep in its device-TLB.
    pub(crate) fn ask(&self, source: SourceId, at: Iova) -> Result<HostPhys, u8> {
        let request = Request::read(source, at, 8).with_kind(RequestKind::Translation);
        let answer = self.unit.borrow_mut().dma(&self.memory.hardware(), &request);
        answer
            .map(|translation| translation.phys)
            .map_err(|fault| fault.reason.0)
    }

    /// A read by a function with a device-TLB: by what it holds, and what it is given if it holds nothing.
    pub(crate) fn dma_with_ats(&self, source: SourceId, pasid: Option<Pasid>, at: Iova) -> Option<HostPhys> {
        let known = self.held.borrow().get(&(source, pasid, at.page().raw())).copied();
        let page = known.or_else(|| self.fill(&mut self.unit.borrow_mut(), source, pasid, at))?;
        self.dma_translated(source, page)
    }

    /// A read of a host address that the function says it was given.
    pub(crate) fn dma_translated(&self, source: SourceId, at: HostPhys) -> Option<HostPhys> {
        let request = Request::read(source, Iova::new(at.raw()), 8).with_kind(RequestKind::Translated);
        let answer = self.unit.borrow_mut().dma(&self.memory.hardware(), &request);
        answer.ok().map(|translation| translation.phys)
    }

    /// The function asks for a translation and keeps it.
    fn fill(&self, unit: &mut vtd_model::Unit, source: SourceId, pasid: Option<Pasid>, at: Iova) -> Option<HostPhys> {
        let request = Request::read(source, at.page(), 8).with_kind(RequestKind::Translation);
        let request = pasid.map_or(request, |pasid| request.with_pasid(pasid));
        let answer = unit.dma(&self.memory.hardware(), &request).ok()?;
        let phys = (!answer.perms.is_none()).then_some(answer.phys)?;
        self.held.borrow_mut().insert((source, pasid, at.page().raw()), phys);
        Some(phys)
    }

    /// Lets devices answer what they were sent; how many messages those were.
    fn devices_answer(&self) -> usize {
        let mut unit = self.unit.borrow_mut();
        let mut answered = 0;
        while let Some(message) = unit.take_device_invalidation() {
            answered += 1;
            let pulled = message.source == GHOST || self.all_deaf.get() || self.miss.take();
            if pulled || self.deaf.get() == Some(message.source) {
                unit.time_out_device_invalidation(message.source, message.tag);
                continue;
            }
            self.device_messages.borrow_mut().push(message);
            let span = 1u64
                .checked_shl(u32::from(message.order) + 12)
                .map_or(u64::MAX, |len| len - 1);
            let first = message.first.raw() & !span;
            self.held.borrow_mut().retain(|(source, pasid, page), _| {
                let meant = match (message.pasid, pasid) {
                    (None, None) | (Some(PasidScope::All), Some(_)) => true,
                    (Some(PasidScope::One(one)), Some(other)) => one == *other,
                    _ => false,
                };
                *source != message.source || !meant || *page < first || *page > first | span
            });
            if let Some((source, at)) = self.eager.get().filter(|(source, _)| *source == message.source) {
                self.fill(&mut unit, source, None, at);
            }
            unit.complete_device_invalidation(&self.memory.hardware(), message.source, message.tag);
        }
        answered
    }

    /// Broken rules that the unit's sanitizer has seen since the last call. What devices do before a flush is theirs to
    /// do, and left out.
    pub(crate) fn take_findings(&self) -> Vec<Finding> {
        let mut unit = self.unit.borrow_mut();
        std::iter::from_fn(|| unit.take_finding())
            .filter(|finding| finding.rule != Rule::OpenWindow)
            .collect()
    }

    /// Counts a register access down, and lets happen what is due.
    fn tick(&self) {
        let Some((left, what)) = self.breaks.get() else { return };
        if left > 0 {
            self.breaks.set(Some((left - 1, what)));
            return;
        }
        match what {
            Break::Stop => self.frozen.set(true),
            Break::Vanish => self.gone.set(true),
            // These happen to what is announced next.
            Break::Spoil | Break::SpoilWait | Break::LoseWait | Break::Abort | Break::AbortOnce => return,
            Break::Deafen => self.all_deaf.set(true),
            Break::Miss => self.miss.set(true),
            Break::Stray => {
                let mut unit = self.unit.borrow_mut();
                unit.complete_device_invalidation(&self.memory.hardware(), SourceId::from_raw(0x7777), 31);
            }
        }
        self.breaks.set(None);
    }

    /// Spoils what is announced, if it is time.
    fn spoil(&self, tail: u64) {
        const NO_SUCH_TYPE: u64 = 0xf;
        let old = self.register64(offset::IQT);
        let queue = InvalidationQueueAddress::new_with_raw_value(self.register64(offset::IQA));
        let (base, size) = (queue.base().raw(), queue.dw().bytes());
        let first = HostPhys::new(base + old);
        let wait = HostPhys::new(base + (tail + PAGE_SIZE - size) % PAGE_SIZE);
        let put = |at: HostPhys, words: [u64; 4]| {
            for (word, value) in (0..size / 8).zip(words) {
                let at = HostPhys::new(at.raw() + word * 8);
                self.memory.write_u64(at, value).expect("the ring is memory");
            }
        };
        let ghost = DeviceTlbInvalidation::DEFAULT
            .with_source(GHOST)
            .with_range(Iova::ZERO, 0);
        let running = GlobalStatus::new_with_raw_value(self.register32(offset::GSTS)).qies();
        let due = match self.breaks.get() {
            _ if !running || old == tail => return,
            Some((0, what)) => what,
            _ if self.aborts.get() => Break::AbortOnce,
            _ => return,
        };
        match due {
            Break::Spoil => put(first, [NO_SUCH_TYPE, 0, 0, 0]),
            Break::SpoilWait => put(wait, [NO_SUCH_TYPE, 0, 0, 0]),
            Break::LoseWait => {
                let words = self.memory.read_words(wait).expect("the ring is memory");
                put(wait, WaitDescriptor::from_words(words).with_sw(false).to_words_256());
            }
            // A wait that is announced alone has nothing in front of it.
            Break::Abort | Break::AbortOnce if first == wait => return,
            Break::Abort | Break::AbortOnce => put(first, ghost.to_words_256()),
            _ => return,
        }
        self.aborts.set(self.aborts.get() || due == Break::Abort);
        self.breaks.set(None);
    }

    /// Everything works again.
    pub(crate) fn mend(&self) {
        self.breaks.set(None);
        for broken in [&self.frozen, &self.gone, &self.all_deaf, &self.miss, &self.aborts] {
            broken.set(false);
        }
    }

    /// Turns the order of the descriptors between the old tail and the wait before `tail`.
    fn reorder(&self, tail: u64) {
        let queue = InvalidationQueueAddress::new_with_raw_value(self.register64(offset::IQA));
        let size = queue.dw().bytes();
        let mut places = Vec::new();
        let mut at = self.register64(offset::IQT);
        while at != tail {
            places.push(HostPhys::new(queue.base().raw() + at));
            at = (at + size) % PAGE_SIZE;
        }
        places.pop();
        let read = |at: &HostPhys| -> [u64; 2] { self.memory.read_words(*at).expect("the ring") };
        let turned: Vec<[u64; 2]> = places.iter().rev().map(read).collect();
        for (at, words) in places.iter().zip(turned) {
            for (offset, word) in [0, 8].into_iter().zip(words) {
                let at = HostPhys::new(at.raw() + offset);
                self.memory.write_u64(at, word).expect("the ring");
            }
        }
    }

    /// Makes every store visible to the unit.
    fn flush_write_buffers(&self) {
        if self.write_buffers {
            for at in self.memory.unseen_by_hardware() {
                self.memory.write_back(at, 8);
            }
        }
    }

    /// What the watched entry held at each doorbell since the last call.
    pub(crate) fn take_watched(&self) -> Vec<[u64; 2]> {
        self.watched.take()
    }

    /// Notes what lies between the old tail and `tail`.
    fn note_descriptors(&self, tail: u64) {
        const WAIT: u64 = 5;
        let queue = InvalidationQueueAddress::new_with_raw_value(self.register64(offset::IQA));
        let base = queue.base().raw();
        let mut at = self.register64(offset::IQT);
        while at != tail {
            let words = self
                .memory
                .read_words(HostPhys::new(base + at))
                .expect("the ring is memory");
            if words[0] & 0xf != WAIT {
                self.descriptors.borrow_mut().push(words);
            }
            at = (at + queue.dw().bytes()) % PAGE_SIZE;
        }
    }

    /// Lets the unit and the devices finish what they were told.
    pub(crate) fn settle(&self) {
        loop {
            let working = self.unit.borrow_mut().step(&self.memory.hardware());
            if self.devices_answer() == 0 && !working {
                return;
            }
        }
    }

    fn write(&self, at: u32, width: AccessWidth, value: u64) {
        self.tick();
        if self.gone.get() {
            return;
        }
        self.writes.borrow_mut().push((at, value));
        if at == offset::IQA {
            // The queue is always snooped (VT-d §11.4.3, ECAP_REG.C).
            let base = HostPhys::new(value & !(PAGE_SIZE - 1));
            self.memory
                .snoop(AddrRange::from_base_len(base, PAGE_SIZE).expect("a page"));
        }
        if at == offset::IQT {
            if let Some(watch) = self.watch.get() {
                let words = self.memory.read_words(watch).expect("an entry");
                self.watched.borrow_mut().push(words);
            }
            self.note_descriptors(value);
            self.spoil(value);
            if self.reorders.get() {
                self.reorder(value);
            }
            self.flush_write_buffers();
        }
        if at == offset::GCMD && value & u64::from(GlobalCommand::DEFAULT.with_wbf(true).raw_value()) != 0 {
            self.flush_write_buffers();
        }
        self.unit.borrow_mut().write(&self.memory.hardware(), at, width, value);
    }
}

impl Registers for &Machine {
    fn read32(&self, at: u32) -> u32 {
        self.tick();
        if self.gone.get() { u32::MAX } else { self.register32(at) }
    }
    fn read64(&self, at: u32) -> u64 {
        self.tick();
        match at {
            _ if self.gone.get() => u64::MAX,
            offset::IQH if self.fetches_ahead.get() => self.register64(offset::IQT),
            _ => self.register64(at),
        }
    }
    fn write32(&self, at: u32, value: u32) {
        self.write(at, AccessWidth::Dword, value.into());
    }
    fn write64(&self, at: u32, value: u64) {
        self.write(at, AccessWidth::Qword, value);
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
        self.now.set(self.now.get() + TURN_NS);
        if !self.frozen.get() {
            self.unit.borrow_mut().step(&self.memory.hardware());
            if let Some((source, at)) = self.busy.get() {
                let _ = self.dma(source, at, Access::Read);
            }
            self.devices_answer();
        }
    }
}

pub(crate) type TestDomain<'m> = Domain<&'m Machine, &'m Machine>;

pub(crate) fn source(text: &str) -> SourceId {
    text.parse().expect("a source")
}

pub(crate) fn range(base: u64, len: u64) -> AddrRange<Iova> {
    AddrRange::from_base_len(Iova::new(base), len).expect("a range")
}
