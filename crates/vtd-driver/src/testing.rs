//! A unit for tests of this crate: it acknowledges everything at once and caches nothing, in whatever mode its
//! capabilities allow. What its tables say is for the oracle.

use core::cell::{Cell, RefCell};

use alloc::vec::Vec;

use iommu_testkit::SparseMemory;
use iommu_testkit::oracle::{OracleAccess, OracleOutcome, OracleRequest, OracleUnit, translate};
use iommu_types::{
    Access, Clock, Coherence, FrameRequest, HostPhys, Iova, OutOfFrames, PAGE_SIZE, Registers, SourceId, SystemMemory,
    Table, TableFrame, TableMemory,
};
use vtd_spec::descriptor::WaitDescriptor;
use vtd_spec::register::{Capability, ExtendedCapability, GlobalCommand, InvalidationQueueAddress, Version, offset};

use crate::options::{TableMode, UnitOptions};

/// Host address width of the platform.
const WIDTH: u8 = 46;

pub(crate) struct Obedient {
    pub(crate) memory: SparseMemory,
    version: Version,
    cap: Capability,
    ecap: ExtendedCapability,
    status: Cell<u32>,
    root: Cell<u64>,
    queue: Cell<InvalidationQueueAddress>,
    tail: Cell<u64>,
    /// First two words of every descriptor but the waits.
    descriptors: RefCell<Vec<[u64; 2]>>,
}

impl Obedient {
    pub(crate) fn new(version: Version, cap: Capability, ecap: ExtendedCapability) -> Self {
        Self {
            memory: SparseMemory::new(1 << 36),
            version,
            cap,
            ecap,
            status: Cell::new(0),
            root: Cell::new(0),
            queue: Cell::new(InvalidationQueueAddress::DEFAULT),
            tail: Cell::new(0),
            descriptors: RefCell::default(),
        }
    }

    pub(crate) fn options(mode: TableMode) -> UnitOptions {
        UnitOptions {
            host_address_width: WIDTH,
            mode,
            ..UnitOptions::default()
        }
    }

    pub(crate) fn take_descriptors(&self) -> Vec<[u64; 2]> {
        self.descriptors.take()
    }

    /// Where the root table is.
    pub(crate) fn root_table(&self) -> u64 {
        self.root.get() & !(PAGE_SIZE - 1)
    }

    /// What the tables say about an untranslated request.
    pub(crate) fn walk(&self, source: SourceId, at: Iova, access: Access) -> Result<HostPhys, u8> {
        let unit = OracleUnit {
            rtaddr: self.root.get(),
            cap: self.cap.raw_value(),
            ecap: self.ecap.raw_value(),
            ver: self.version.raw_value(),
            haw: WIDTH.into(),
        };
        let request = OracleRequest::new(source.raw(), at.raw(), OracleAccess::from(access));
        match translate(&self.memory, &unit, &request) {
            OracleOutcome::Pass { host, .. } => Ok(HostPhys::new(host)),
            OracleOutcome::Fault { reason, .. } => Err(reason),
            other => panic!("{source} at {at}: {other:?}"),
        }
    }

    fn run_queue(&self, tail: u64) {
        let size = self.queue.get().dw().bytes();
        let mut at = self.tail.get();
        while at != tail {
            let from = HostPhys::new(self.queue.get().base().raw() + at);
            let words = self.memory.read_words(from).expect("the ring is memory");
            let wait = WaitDescriptor::from_words(words);
            if wait.kind() == WaitDescriptor::DEFAULT.kind() {
                self.memory
                    .write_u32(wait.status_address(), wait.status_data())
                    .expect("memory");
            } else {
                self.descriptors.borrow_mut().push(words);
            }
            at = (at + size) % PAGE_SIZE;
        }
        self.tail.set(tail);
    }
}

impl Registers for &Obedient {
    fn read32(&self, at: u32) -> u32 {
        match at {
            offset::VER => self.version.raw_value(),
            offset::GSTS => self.status.get(),
            _ => 0,
        }
    }
    fn read64(&self, at: u32) -> u64 {
        match at {
            offset::CAP => self.cap.raw_value(),
            offset::ECAP => self.ecap.raw_value(),
            offset::IQH | offset::IQT => self.tail.get(),
            _ => 0,
        }
    }
    fn write32(&self, at: u32, value: u32) {
        if at == offset::GCMD {
            let command = GlobalCommand::new_with_raw_value(value);
            self.status
                .set(command.with_wbf(false).raw_value() | self.status.get() & GlobalCommand::ONE_SHOT);
        }
    }
    fn write64(&self, at: u32, value: u64) {
        match at {
            offset::RTADDR => self.root.set(value),
            offset::IQA => self.queue.set(InvalidationQueueAddress::new_with_raw_value(value)),
            offset::IQT => self.run_queue(value),
            _ => {}
        }
    }
    fn window_len(&self) -> u32 {
        0x1000
    }
}

impl TableMemory for Obedient {
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

impl Coherence for Obedient {
    fn write_back(&self, _: HostPhys, _: u64) {}
}

impl Clock for Obedient {
    fn now_ns(&self) -> u64 {
        0
    }
    fn relax(&self) {}
}
