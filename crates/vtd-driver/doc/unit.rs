// The unit and the host that the example of the crate's front page runs on: hardware that does at once what it is told,
// and memory of the test kit. A host of one's own implements the same four traits over a register window, a frame
// allocator, cache lines and a timer; `bare-metal/src` has one.

use std::cell::Cell;

use iommu_testkit::SparseMemory;
use iommu_types::{
    Clock, Coherence, FrameRequest, HostPhys, OutOfFrames, Registers, SystemMemory, Table, TableFrame, TableMemory,
};
use vtd_spec::descriptor::WaitDescriptor;
use vtd_spec::register::{GlobalCommand, InvalidationQueueAddress, offset};

/// The host's memory and clock.
pub struct Host(pub SparseMemory);

impl TableMemory for Host {
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        self.0.allocate(request)
    }
    fn free(&self, frame: TableFrame) {
        self.0.free(frame);
    }
    fn table(&self, at: HostPhys) -> Option<&Table> {
        self.0.table(at)
    }
}

impl Coherence for Host {
    fn write_back(&self, _at: HostPhys, _len: u64) {}
}

impl Clock for Host {
    fn now_ns(&self) -> u64 {
        0
    }
    fn relax(&self) {}
}

/// A register window with a unit behind it.
pub struct Window<'a> {
    memory: &'a SparseMemory,
    status: Cell<u32>,
    queue: Cell<u64>,
    tail: Cell<u64>,
}

impl<'a> Window<'a> {
    pub fn new(memory: &'a SparseMemory) -> Self {
        Self {
            memory,
            status: Cell::new(0),
            queue: Cell::new(0),
            tail: Cell::new(0),
        }
    }

    /// Carries out the descriptors up to `tail`: there is no cache, so only waits have an effect.
    fn run(&self, tail: u64) {
        let base = InvalidationQueueAddress::new_with_raw_value(self.queue.get()).base();
        for at in (self.tail.replace(tail)..tail).step_by(16) {
            let words = self
                .memory
                .read_words(HostPhys::new(base.raw() + at))
                .expect("the queue is memory");
            let wait = WaitDescriptor::from_words(words);
            if wait.kind() == WaitDescriptor::DEFAULT.kind() {
                self.memory
                    .write_u32(wait.status_address(), wait.status_data())
                    .expect("the status is memory");
            }
        }
    }
}

impl Registers for Window<'_> {
    fn read32(&self, at: u32) -> u32 {
        match at {
            offset::VER => 0x10,
            offset::GSTS => self.status.get(),
            _ => 0,
        }
    }
    fn read64(&self, at: u32) -> u64 {
        match at {
            // Of a server: 4 levels, 48 bits, queued invalidation.
            offset::CAP => 0x08d2_078c_106f_0466,
            offset::ECAP => 0x00f0_20df,
            offset::IQH | offset::IQT => self.tail.get(),
            _ => 0,
        }
    }
    fn write32(&self, at: u32, value: u32) {
        if at == offset::GCMD {
            self.status.set(value | self.status.get() & GlobalCommand::ONE_SHOT);
        }
    }
    fn write64(&self, at: u32, value: u64) {
        match at {
            offset::IQA => self.queue.set(value),
            offset::IQT => self.run(value),
            _ => {}
        }
    }
    fn window_len(&self) -> u32 {
        0x1000
    }
}
