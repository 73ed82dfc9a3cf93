//! Several threads on one unit: they share the queue, the tables of a domain, and the structures.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use iommu_testkit::SparseMemory;
use iommu_types::{
    Clock, Coherence, FrameRequest, HostPhys, Iova, OutOfFrames, PAGE_SIZE, Perms, Registers, SourceId, Table,
    TableFrame, TableMemory,
};
use vtd_driver::{DomainOptions, Requester, Timeouts, Unit, UnitOptions};
use vtd_model::{AccessWidth, Profile, Request, UnitConfig};

use crate::machine::{range, source};

const ROUNDS: u64 = 150;

/// As `Machine`, for threads.
struct Board {
    memory: SparseMemory,
    unit: Mutex<vtd_model::Unit>,
    turns: AtomicU64,
}

impl Board {
    fn read(&self, at: u32, width: AccessWidth) -> u64 {
        self.unit.lock().expect("not poisoned").read(at, width)
    }

    fn write(&self, at: u32, width: AccessWidth, value: u64) {
        let mut unit = self.unit.lock().expect("not poisoned");
        unit.write(&self.memory.hardware(), at, width, value);
    }

    fn reach(&self, source: SourceId, at: Iova) -> Option<HostPhys> {
        let mut unit = self.unit.lock().expect("not poisoned");
        let answer = unit.dma(&self.memory.hardware(), &Request::read(source, at, 8));
        answer.ok().map(|translation| translation.phys)
    }
}

impl Registers for &Board {
    fn read32(&self, at: u32) -> u32 {
        u32::try_from(self.read(at, AccessWidth::Dword)).expect("32 bits")
    }
    fn read64(&self, at: u32) -> u64 {
        self.read(at, AccessWidth::Qword)
    }
    fn write32(&self, at: u32, value: u32) {
        self.write(at, AccessWidth::Dword, value.into());
    }
    fn write64(&self, at: u32, value: u64) {
        self.write(at, AccessWidth::Qword, value);
    }
    fn window_len(&self) -> u32 {
        self.unit.lock().expect("not poisoned").window_len()
    }
}

impl TableMemory for Board {
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

impl Coherence for Board {
    fn write_back(&self, at: HostPhys, len: u64) {
        self.memory.write_back(at, len);
    }
}

impl Clock for Board {
    fn now_ns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
    fn relax(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.unit.lock().expect("not poisoned").step(&self.memory.hardware());
        thread::yield_now();
    }
}

#[test]
fn threads_share_a_queue_a_domain_and_the_structures() {
    let config = UnitConfig::builder().profile(Profile::Silicon).caching_mode(true);
    let board = Board {
        memory: SparseMemory::new(1 << 36),
        unit: Mutex::new(vtd_model::Unit::new(config.build().expect("valid"))),
        turns: AtomicU64::new(0),
    };
    let limit = 1 << 40;
    let options = UnitOptions {
        timeouts: Timeouts {
            command_ns: limit,
            invalidation_ns: limit,
        },
        ..UnitOptions::default()
    };
    let unit = Unit::found(&board, &board, options).expect("found");
    let unit = unit.take_over().map_err(|error| error.cause).expect("taken over");
    let unit = unit.enable().map_err(|error| error.cause).expect("enabled");
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let nic = Requester::new(source("02:00.0"));
    unit.attach(&nic, &domain).expect("attached");

    thread::scope(|scope| {
        // Neighbouring ranges: the threads meet in every table above the lowest.
        for worker in 0..3u64 {
            let (board, domain, nic) = (&board, &domain, &nic);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let base = 0x20_0000 * (worker + 1) + round % 7 * PAGE_SIZE;
                    let phys = HostPhys::new(0x4000_0000 * (worker + 1) + round * PAGE_SIZE);
                    domain
                        .map(Iova::new(base), phys, PAGE_SIZE, Perms::READ)
                        .expect("mapped");
                    assert_eq!(board.reach(nic.rid, Iova::new(base)), Some(phys));
                    let pending = domain.unmap(range(base, PAGE_SIZE), round).expect("unmapped");
                    assert_eq!(domain.flush(pending).expect("flushed"), round);
                    assert_eq!(board.reach(nic.rid, Iova::new(base)), None);
                }
            });
        }
        let unit = unit.clone();
        scope.spawn(move || {
            for _ in 0..ROUNDS / 5 {
                let own = unit.create_domain(DomainOptions::default()).expect("a domain");
                let other = Requester::new(source("03:00.0"));
                unit.attach(&other, &own).expect("attached");
                unit.detach(&other).expect("detached");
                own.destroy().expect("destroyed");
            }
        });
    });
    assert!(unit.health().is_good());
    unit.detach(&nic).expect("detached");
    domain.destroy().expect("destroyed");
    assert_eq!(board.memory.violations(), []);
}
