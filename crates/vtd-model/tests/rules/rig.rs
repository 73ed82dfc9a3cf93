//! A unit, its memory and a driver's hands.

use std::cell::RefCell;
use std::collections::BTreeSet;

use iommu_testkit::SparseMemory;
use iommu_testkit::raw::{self, RawTables, translation_type};
use iommu_types::{HostPhys, Iova, SourceId, SystemMemory};
use vtd_model::{
    AccessWidth, Fault, Interrupt, InterruptRequest, Request, Translation, Unit, UnitConfig, UnitConfigBuilder,
};
use vtd_spec::register::{
    FaultRecord, FaultStatus, GSTS_PERSISTENT, GlobalCommand, GlobalStatus, InvalidationQueueErrorRecord, offset,
};

/// Memory of every rig.
pub(crate) const MEMORY: u64 = 1 << 32;
/// First page of tables.
const TABLES: u64 = 0x10_0000;
/// Where the invalidation queue lies.
pub(crate) const QUEUE: u64 = 0x4_0000;
/// Where wait descriptors write their status.
pub(crate) const STATUS: u64 = 0x8_0000;
/// The function that most tests look at.
pub(crate) const NIC: u16 = 0x0018;
/// Its domain.
pub(crate) const DID: u16 = 5;

/// A unit with memory and tables.
pub(crate) struct Rig {
    pub(crate) memory: &'static SparseMemory,
    pub(crate) unit: Unit,
    pub(crate) tables: RawTables<'static, SparseMemory>,
    pub(crate) root: u64,
    tail: u64,
    wide: bool,
}

impl Rig {
    /// A unit after reset.
    pub(crate) fn new(builder: UnitConfigBuilder) -> Self {
        let memory: &'static SparseMemory = Box::leak(Box::new(SparseMemory::new(MEMORY)));
        let mut tables = RawTables::new(memory, TABLES);
        let root = tables.page();
        Self {
            memory,
            unit: Unit::new(builder.build().expect("a consistent configuration")),
            tables,
            root,
            tail: 0,
            wide: false,
        }
    }

    /// A unit with translation on, an empty legacy root table and the queue enabled.
    pub(crate) fn legacy(builder: UnitConfigBuilder) -> Self {
        let mut rig = Self::new(builder);
        rig.enable_queue();
        rig.set_root(rig.root);
        rig.command(|c| c.with_te(true));
        rig
    }

    /// A unit with translation on in scalable mode, an empty root table and a queue of 256-bit descriptors.
    pub(crate) fn scalable(builder: UnitConfigBuilder) -> Self {
        let mut rig = Self::new(builder);
        rig.wide();
        rig.command(|c| c.with_qie(true));
        rig.set_root(rig.root | 1 << 10);
        rig.command(|c| c.with_te(true));
        rig
    }

    /// Descriptors have 256 bits from the next time that the queue is enabled.
    pub(crate) fn wide(&mut self) {
        self.wide = true;
        self.write64(offset::IQA, QUEUE | 1 << 11 | 1);
    }

    /// As [`Self::legacy`], with 4-level tables for the NIC; answers the top table.
    pub(crate) fn with_domain(builder: UnitConfigBuilder) -> (Self, u64) {
        let mut rig = Self::legacy(builder);
        let top = rig.tables.page();
        rig.context(NIC, translation_type::UNTRANSLATED, top, 2, DID);
        (rig, top)
    }

    pub(crate) fn context(&mut self, sid: u16, tt: u64, top: u64, aw: u64, did: u16) -> u64 {
        self.tables
            .legacy_context(self.root, sid, raw::legacy_context_entry(tt, top, aw, did))
    }

    /// Maps a 4 KiB page with full rights in 4-level tables.
    pub(crate) fn map(&mut self, top: u64, iova: u64, phys: u64) -> u64 {
        self.tables
            .second_stage(top, 4, iova, phys, 1, raw::SS_READ | raw::SS_WRITE)
    }

    pub(crate) fn enable_queue(&mut self) {
        self.write64(offset::IQA, QUEUE);
        self.command(|c| c.with_qie(true));
    }

    pub(crate) fn set_root(&mut self, rtaddr: u64) {
        self.write64(offset::RTADDR, rtaddr);
        self.command(|c| c.with_srtp(true));
    }

    /// One GCMD write on top of the lasting state, and the steps that an asynchronous unit needs.
    pub(crate) fn command(&mut self, change: impl Fn(GlobalCommand) -> GlobalCommand) {
        let lasting = self.read32(offset::GSTS) & GSTS_PERSISTENT;
        let command = change(GlobalCommand::new_with_raw_value(lasting));
        self.write32(offset::GCMD, command.raw_value());
        self.settle();
    }

    /// Lets an asynchronous unit finish.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.unit.step(self.memory) {
                return;
            }
        }
        panic!("the unit never comes to rest");
    }

    pub(crate) fn read32(&mut self, at: u32) -> u32 {
        u32::try_from(self.unit.read(at, AccessWidth::Dword)).expect("32 bits")
    }

    pub(crate) fn read64(&mut self, at: u32) -> u64 {
        self.unit.read(at, AccessWidth::Qword)
    }

    pub(crate) fn write32(&mut self, at: u32, value: u32) {
        self.unit.write(self.memory, at, AccessWidth::Dword, value.into());
    }

    pub(crate) fn write64(&mut self, at: u32, value: u64) {
        self.unit.write(self.memory, at, AccessWidth::Qword, value);
    }

    pub(crate) fn status(&mut self) -> GlobalStatus {
        GlobalStatus::new_with_raw_value(self.read32(offset::GSTS))
    }

    pub(crate) fn fault_status(&mut self) -> FaultStatus {
        FaultStatus::new_with_raw_value(self.read32(offset::FSTS))
    }

    pub(crate) fn queue_error(&mut self) -> InvalidationQueueErrorRecord {
        InvalidationQueueErrorRecord::new_with_raw_value(self.read64(offset::IQERCD))
    }

    pub(crate) fn record(&mut self, index: u8) -> FaultRecord {
        let at = self.unit.config().capability().fault_record_offset(index);
        FaultRecord::from_words([self.read64(at), self.read64(at + 8)])
    }

    /// Frees a fault record as drivers do: a write of F only.
    pub(crate) fn clear_record(&mut self, index: u8) {
        let at = self.unit.config().capability().fault_record_offset(index);
        self.write32(at + 12, 1 << 31);
    }

    /// Puts descriptors into the ring of 256 without telling the unit.
    pub(crate) fn enqueue(&mut self, descriptors: &[[u64; 2]]) {
        for words in descriptors {
            self.tables.put_words(QUEUE + self.tail, words);
            if self.wide {
                self.tables.put_words(QUEUE + self.tail + 16, &[0, 0]);
            }
            let (step, len) = if self.wide { (32, 8192) } else { (16, 4096) };
            self.tail = (self.tail + step) % len;
        }
    }

    /// Submits descriptors and lets the unit finish them.
    pub(crate) fn submit(&mut self, descriptors: &[[u64; 2]]) {
        self.enqueue(descriptors);
        self.write64(offset::IQT, self.tail);
        self.settle();
    }

    /// Submits descriptors, and fails unless a wait behind them completes.
    pub(crate) fn invalidate(&mut self, descriptors: &[[u64; 2]]) {
        self.tables.put(STATUS, 0);
        self.submit(descriptors);
        self.submit(&[raw::descriptor::wait_status(STATUS, 0xd0e)]);
        assert_eq!(self.tables.get(STATUS), 0xd0e, "the wait completes");
    }

    pub(crate) fn read(&mut self, sid: u16, iova: u64) -> Result<Translation, Fault> {
        self.dma(&Request::read(SourceId::from_raw(sid), Iova::new(iova), 8))
    }

    pub(crate) fn write(&mut self, sid: u16, iova: u64) -> Result<Translation, Fault> {
        self.dma(&Request::write(SourceId::from_raw(sid), Iova::new(iova), 8))
    }

    pub(crate) fn dma(&mut self, request: &Request) -> Result<Translation, Fault> {
        noted(self.unit.dma(self.memory, request))
    }

    /// A request for which other memory stands behind the unit than the rig's own.
    pub(crate) fn dma_on(&mut self, memory: &impl SystemMemory, request: &Request) -> Result<Translation, Fault> {
        noted(self.unit.dma(memory, request))
    }

    /// The host address of a read, which has to succeed.
    pub(crate) fn host(&mut self, sid: u16, iova: u64) -> u64 {
        self.read(sid, iova).expect("mapped").phys.raw()
    }

    /// The reason and condition of a read, which has to fail.
    pub(crate) fn fault(&mut self, sid: u16, iova: u64) -> (u8, &'static str) {
        let fault = self.read(sid, iova).expect_err("blocked");
        (fault.reason.0, fault.condition.map_or("", |condition| condition.name()))
    }

    pub(crate) fn interrupt(&mut self, sid: u16, address: u64, data: u32) -> Result<Interrupt, Fault> {
        let request = InterruptRequest {
            source: SourceId::from_raw(sid),
            address,
            data,
        };
        noted(self.unit.interrupt(self.memory, &request))
    }

    /// Makes an address range fail.
    pub(crate) fn break_bus(&self, at: u64, len: u64) {
        let range = iommu_types::AddrRange::from_base_len(HostPhys::new(at), len).expect("a range");
        self.memory.break_bus(range);
    }

    pub(crate) fn peek(&self, at: u64) -> u64 {
        self.memory.read_u64(HostPhys::new(at)).expect("memory")
    }
}

thread_local! {
    /// Fault codes and conditions of the requests that rigs of this thread made.
    static REACHED: RefCell<BTreeSet<(u8, &'static str)>> = const { RefCell::new(BTreeSet::new()) };
}

/// The result as it is; its fault, if it is one, counts as reached.
fn noted<T>(result: Result<T, Fault>) -> Result<T, Fault> {
    if let Err(fault) = &result {
        let name = fault.condition.map_or("", |condition| condition.name());
        REACHED.with_borrow_mut(|reached| reached.insert((fault.reason.0, name)));
    }
    result
}

/// Fault codes and conditions that a test reaches through rigs, on the thread that it runs on.
pub(crate) fn reached_by(test: fn()) -> BTreeSet<(u8, &'static str)> {
    REACHED.take();
    test();
    REACHED.take()
}

/// A 4-level legacy unit as most tests want it.
pub(crate) fn spec() -> UnitConfigBuilder {
    UnitConfig::builder()
}
