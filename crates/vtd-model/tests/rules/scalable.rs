//! Scalable mode: every condition of VT-d §7.1.3 that it can meet, what passes, and what its invalidations drop.

mod caches;
pub(crate) mod nested;
pub(crate) mod queue;
pub(crate) mod stages;
pub(crate) mod structures;

use iommu_testkit::raw;
use iommu_types::{Iova, Pasid, SourceId};
use vtd_model::{Request, UnitConfigBuilder};

use crate::rig::{DID, NIC, Rig, spec};

const DTE: u64 = 1 << 2;
const PASIDE: u64 = 1 << 3;
const PWSNP: u64 = 1 << 23;
const SSADE: u64 = 1 << 9;
const RW: u64 = raw::SS_READ | raw::SS_WRITE;
const FS_ALL: u64 = raw::FS_PRESENT | raw::FS_WRITE | raw::FS_USER;
/// PASID of requests without one in these tests.
const RID: u32 = 0;

fn full() -> UnitConfigBuilder {
    spec().full_scalable_mode().device_tlb(true)
}

/// The NIC with PASIDs allowed and a directory.
struct Bench {
    rig: Rig,
    directory: u64,
    context: u64,
}

impl Bench {
    fn new(builder: UnitConfigBuilder) -> Self {
        Self::with_enables(builder, DTE | PASIDE)
    }

    fn with_enables(builder: UnitConfigBuilder, enables: u64) -> Self {
        let mut rig = Rig::scalable(builder);
        let directory = rig.tables.page();
        let entry = raw::scalable_context_entry(directory, 0, RID.into(), enables);
        let context = rig.tables.scalable_context(rig.root, NIC, entry);
        Self {
            rig,
            directory,
            context,
        }
    }

    fn pasid(&mut self, pasid: u32, words: [u64; 8]) -> u64 {
        self.rig.tables.pasid(self.directory, pasid, words)
    }

    /// Second-stage tables for `pasid`; answers the top table.
    fn second(&mut self, pasid: u32, flags: u64) -> u64 {
        let top = self.rig.tables.page();
        let mut words = raw::pasid_second_stage(top, 2, DID);
        words[0] |= flags;
        words[1] |= PWSNP;
        self.pasid(pasid, words);
        top
    }

    /// 4-level first-stage tables for `pasid`.
    fn first(&mut self, pasid: u32) -> u64 {
        let top = self.rig.tables.page();
        let mut words = raw::pasid_first_stage(top, 4, DID);
        words[1] |= PWSNP;
        self.pasid(pasid, words);
        top
    }

    fn ask(&mut self, request: &Request) -> Result<u64, (u8, &'static str)> {
        match self.rig.dma(request) {
            Ok(answer) => Ok(answer.phys.raw()),
            Err(fault) => Err((fault.reason.0, fault.condition.map_or("", |condition| condition.name()))),
        }
    }
}

fn read(pasid: u32, address: u64) -> Request {
    Request::read(SourceId::from_raw(NIC), Iova::new(address), 8).with_pasid(Pasid::new(pasid).expect("20 bits"))
}

fn write(pasid: u32, address: u64) -> Request {
    Request::write(SourceId::from_raw(NIC), Iova::new(address), 8).with_pasid(Pasid::new(pasid).expect("20 bits"))
}

fn plain(address: u64) -> Request {
    Request::read(SourceId::from_raw(NIC), Iova::new(address), 8)
}
