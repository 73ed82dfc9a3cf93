//! Software that changes tables between the moment an entry is read and the moment its flags are set (VT-d §3.6.2).

use std::cell::Cell;

use iommu_testkit::SparseMemory;
use iommu_testkit::raw;
use iommu_types::{BusError, HostPhys, Iova, Pasid, SourceId, SystemMemory};
use vtd_model::{Request, RequestKind, Response, UnitConfigBuilder};

use crate::rig::{DID, NIC, Rig, spec};

/// What happens just before a compare-exchange.
#[derive(Clone, Copy)]
enum Meddling {
    /// The entry is rewritten, once.
    Once(u64, u64),
    /// An ignored bit of the entry changes every time.
    Always,
    /// The entry cannot be written.
    Refused,
}

struct Meddled<'a> {
    memory: &'a SparseMemory,
    meddling: Cell<Option<Meddling>>,
    exchanges: Cell<u32>,
}

impl SystemMemory for Meddled<'_> {
    fn read_u64(&self, at: HostPhys) -> Result<u64, BusError> {
        self.memory.read_u64(at)
    }
    fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BusError> {
        self.memory.write_u64(at, value)
    }
    fn write_u32(&self, at: HostPhys, value: u32) -> Result<(), BusError> {
        self.memory.write_u32(at, value)
    }
    fn compare_exchange_u64(&self, at: HostPhys, current: u64, new: u64) -> Result<u64, BusError> {
        self.exchanges.set(self.exchanges.get() + 1);
        match self.meddling.get() {
            Some(Meddling::Once(where_, value)) => {
                self.meddling.set(None);
                self.memory.write_u64(HostPhys::new(where_), value)?;
            }
            Some(Meddling::Always) => {
                let word = self.memory.read_u64(at)?;
                self.memory.write_u64(at, word ^ 1 << 52)?;
            }
            Some(Meddling::Refused) => return Err(BusError { at }),
            None => {}
        }
        self.memory.compare_exchange_u64(at, current, new)
    }
    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError> {
        self.memory.read(at, into)
    }
    fn write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError> {
        self.memory.write(at, from)
    }
}

const FS_ALL: u64 = raw::FS_PRESENT | raw::FS_WRITE | raw::FS_USER;

/// PASID 1 first-stage, PASID 2 second-stage with flags; both map 1000h to 5000h. The leaf entries.
fn tables() -> (Rig, u64, u64) {
    tables_with(spec().full_scalable_mode(), 1 << 3)
}

fn tables_with(builder: UnitConfigBuilder, enables: u64) -> (Rig, u64, u64) {
    let mut rig = Rig::scalable(builder);
    let directory = rig.tables.page();
    rig.tables
        .scalable_context(rig.root, NIC, raw::scalable_context_entry(directory, 0, 0, enables));
    let (first, second) = (rig.tables.page(), rig.tables.page());
    let mut words = raw::pasid_first_stage(first, 4, DID);
    words[1] |= 1 << 23;
    rig.tables.pasid(directory, 1, words);
    let mut words = raw::pasid_second_stage(second, 2, DID);
    words[0] |= 1 << 9;
    words[1] |= 1 << 23;
    rig.tables.pasid(directory, 2, words);
    let first = rig.tables.first_stage(first, 4, 0x1000, 0x5000, 1, FS_ALL);
    let second = rig.map(second, 0x1000, 0x5000);
    (rig, first, second)
}

fn write(pasid: u32) -> Request {
    let pasid = Pasid::new(pasid).expect("20 bits");
    Request::write(SourceId::from_raw(NIC), Iova::new(0x1000), 8).with_pasid(pasid)
}

fn meddled(rig: &Rig, meddling: Meddling) -> Meddled<'static> {
    Meddled {
        memory: rig.memory,
        meddling: Cell::new(Some(meddling)),
        exchanges: Cell::new(0),
    }
}

#[test]
fn an_entry_that_changes_under_the_walk_is_walked_again() {
    let (mut rig, leaf, _) = tables();
    // The page moves while its flags are about to be set.
    let memory = meddled(&rig, Meddling::Once(leaf, 0x9000 | FS_ALL));
    let answer = rig.dma_on(&memory, &write(1)).expect("mapped");
    assert_eq!(answer.phys.raw(), 0x9000, "the new page, not a mixture");
    assert_eq!(rig.peek(leaf), 0x9000 | FS_ALL | raw::FS_ACCESSED | raw::FS_DIRTY);
}

#[test]
fn a_page_that_disappears_under_the_walk_faults_without_a_dirty_flag() {
    let (mut rig, _, leaf) = tables();
    let memory = meddled(&rig, Meddling::Once(leaf, 0));
    let fault = rig.dma_on(&memory, &write(2)).expect_err("gone");
    assert_eq!(fault.reason.0, 0x79);
    assert_eq!(rig.peek(leaf), 0);
}

#[test]
fn tables_that_never_stop_changing_end_in_a_fault_after_a_bounded_number_of_walks() {
    for (pasid, reason) in [(1, 0x91), (2, 0x7D)] {
        let (mut rig, ..) = tables();
        let memory = meddled(&rig, Meddling::Always);
        assert_eq!(
            rig.dma_on(&memory, &write(pasid)).expect_err("blocked").reason.0,
            reason
        );
        assert!(memory.exchanges.get() <= 16);
    }
}

#[test]
pub(crate) fn flags_that_cannot_be_written_block_with_their_codes() {
    for (pasid, reason) in [(1, 0x91), (2, 0x7D)] {
        let (mut rig, ..) = tables();
        let memory = meddled(&rig, Meddling::Refused);
        assert_eq!(
            rig.dma_on(&memory, &write(pasid)).expect_err("blocked").reason.0,
            reason
        );
        // Nothing was cached.
        rig.dma(&write(pasid)).expect("memory is well again");
    }
}

#[test]
fn a_translation_request_whose_flags_cannot_be_set_is_answered_and_recorded() {
    let (mut rig, ..) = tables_with(spec().full_scalable_mode().device_tlb(true), 1 << 2 | 1 << 3);
    let memory = meddled(&rig, Meddling::Refused);
    let pasid = |raw| Pasid::new(raw).expect("20 bits");
    let ask = |raw| {
        Request::read(SourceId::from_raw(NIC), Iova::new(0x1000), 8)
            .with_pasid(pasid(raw))
            .with_kind(RequestKind::Translation)
    };
    let first = rig.dma_on(&memory, &ask(1)).expect_err("recorded");
    assert_eq!(
        (first.reason.0, first.response, first.recorded),
        (0x91, Response::SuccessWithoutAccess, true)
    );
    let second = rig.dma_on(&memory, &ask(2)).expect_err("aborted");
    assert_eq!((second.reason.0, second.response), (0x7D, Response::CompleterAbort));
    assert!(rig.record(0).f() && rig.record(1).f());
}

#[test]
fn looking_sets_no_flag() {
    let (rig, leaf, _) = tables();
    let outcome = vtd_model::inspect(rig.unit.latched(), rig.unit.config(), rig.memory, &write(1));
    assert_eq!(outcome.result.expect("mapped").phys.raw(), 0x5000);
    assert_eq!(rig.peek(leaf), 0x5000 | FS_ALL);
}
