//! Several submitters on one queue, in every order: the loom model checker schedules them around each lock and each
//! register access, and hardware takes its steps in between.
//!
//! `LOOM_MAX_PREEMPTIONS` widens the search.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::vec::Vec;

use iommu_testkit::SparseMemory;
use iommu_types::{Clock, DomainId, FrameRequest, OutOfFrames, SystemMemory, Table, TableFrame};
use loom::sync::{Arc, Mutex as Lock};
use loom::thread;
use vtd_spec::descriptor::ContextCacheInvalidation;

use super::*;

/// Refused by the unit.
const REFUSED: DomainId = DomainId(0xbad);
/// Times out once; the waits in flight are aborted with it.
const SLOW: DomainId = DomainId(0xdead);

struct Checked(Lock<State>);

impl Guarded<State> for Checked {
    fn new(value: State) -> Self {
        Self(Lock::new(value))
    }
    fn with<A>(&self, work: impl FnOnce(&mut State) -> A) -> A {
        work(&mut self.0.lock().expect("not poisoned"))
    }
}

/// A unit that carries one descriptor out at a time, and writes a status one step after it fetched the wait.
#[derive(Default)]
struct Hardware {
    head: u64,
    tail: u64,
    status: FaultStatus,
    done: Vec<DomainId>,
    /// A status that is on its way.
    posted: Option<WaitDescriptor>,
    /// Device-TLB invalidations that timed out.
    timeouts: u32,
}

struct Board {
    memory: SparseMemory,
    base: HostPhys,
    unit: Lock<Hardware>,
    now: AtomicU64,
}

impl Board {
    fn with<A>(&self, work: impl FnOnce(&mut Hardware) -> A) -> A {
        work(&mut self.unit.lock().expect("not poisoned"))
    }

    fn step(&self, unit: &mut Hardware) {
        if let Some(wait) = unit.posted.take() {
            self.memory
                .write_u32(wait.status_address(), wait.status_data())
                .expect("memory");
            return;
        }
        if unit.head == unit.tail || unit.status.iqe() || unit.status.ite() {
            return;
        }
        let words = self
            .memory
            .read_words(HostPhys::new(self.base.raw() + unit.head))
            .expect("the ring");
        let wait = WaitDescriptor::from_words(words);
        if wait.kind() == WaitDescriptor::DEFAULT.kind() {
            unit.posted = wait.sw().then_some(wait);
        } else {
            match ContextCacheInvalidation::from_words(words).domain() {
                REFUSED => {
                    unit.status = unit.status.with_iqe(true);
                    return;
                }
                SLOW if unit.timeouts == 0 => {
                    unit.timeouts += 1;
                    unit.status = unit.status.with_ite(true);
                    // The wait behind it was fetched and is aborted.
                    unit.head = (unit.head + 16) % PAGE_SIZE;
                }
                domain => unit.done.push(domain),
            }
        }
        unit.head = (unit.head + 16) % PAGE_SIZE;
    }
}

impl Registers for Board {
    fn read32(&self, _: u32) -> u32 {
        self.with(|unit| unit.status.raw_value())
    }
    fn read64(&self, at: u32) -> u64 {
        match at {
            offset::IQH => self.with(|unit| unit.head),
            _ => InvalidationQueueErrorRecord::DEFAULT.raw_value(),
        }
    }
    fn write32(&self, _: u32, value: u32) {
        self.with(|unit| unit.status = FaultStatus::new_with_raw_value(unit.status.raw_value() & !value));
    }
    fn write64(&self, _: u32, value: u64) {
        self.with(|unit| unit.tail = value);
    }
    fn window_len(&self) -> u32 {
        0x1000
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

impl Clock for Board {
    fn now_ns(&self) -> u64 {
        self.now.fetch_add(1, Ordering::Relaxed)
    }
    fn relax(&self) {
        self.with(|unit| self.step(unit));
        thread::yield_now();
    }
}

/// Never reached: what has to end does so by the unit's answers.
const LIMIT: u64 = 1 << 20;

/// Has the unit forget `domain`; as the driver does, again when a time-out took the wait along.
fn forget(queue: &Queue<Checked>, board: &Board, domain: DomainId) -> Result<(), QueueError> {
    let words = ContextCacheInvalidation::DEFAULT.with_domain(domain).to_words_256();
    loop {
        let ticket = queue.submit(board, board, &[words], LIMIT)?;
        match queue.wait(board, board, &ticket, LIMIT) {
            Err(QueueError::Aborted { .. }) => {}
            other => return other,
        }
    }
}

/// Runs two submitters in every order, and hands their answers to `judge`.
fn every_order(domains: [DomainId; 2], judge: impl Fn([Result<(), QueueError>; 2], &Hardware) + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(move || {
        let memory = SparseMemory::new(1 << 20);
        let page = FrameRequest::page(None, HostPhys::MAX);
        let queue = Queue::<Checked>::new(&memory, page, false).expect("memory");
        let base = queue.address_register().base();
        let board = Board {
            memory,
            base,
            unit: Lock::new(Hardware::default()),
            now: AtomicU64::new(0),
        };
        let both = Arc::new((queue, board));
        let [mine, theirs] = domains;
        let other = {
            let both = both.clone();
            thread::spawn(move || {
                let done = forget(&both.0, &both.1, theirs);
                // Confirmed means carried out, not only fetched.
                assert!(done.is_err() || both.1.with(|unit| unit.done.contains(&theirs)));
                done
            })
        };
        let done = forget(&both.0, &both.1, mine);
        assert!(done.is_err() || both.1.with(|unit| unit.done.contains(&mine)));
        let other = other.join().expect("no panic");
        both.1.with(|unit| judge([done, other], unit));
        both.0.state.with(|state| {
            let busy = |slot: &&Slot| matches!(slot, Slot::Waiting(_) | Slot::Retired { .. });
            assert_eq!(state.slots.iter().filter(busy).count(), 0, "no slot is lost");
        });
    });
}

#[test]
fn each_submitter_is_told_when_its_own_batch_is_done() {
    every_order([DomainId(1), DomainId(2)], |answers, unit| {
        assert_eq!(answers, [Ok(()), Ok(())]);
        assert_eq!(unit.done.len(), 2);
    });
}

#[test]
fn a_refused_descriptor_is_charged_to_its_own_submitter() {
    every_order([DomainId(1), REFUSED], |[good, bad], unit| {
        assert_eq!(good, Ok(()));
        assert!(matches!(bad, Err(QueueError::Refused { .. })), "{bad:?}");
        assert!(!unit.status.iqe());
    });
}

#[test]
fn a_timeout_takes_waits_along_and_loses_none() {
    every_order([DomainId(1), SLOW], |answers, unit| {
        assert_eq!(answers, [Ok(()), Ok(())]);
        assert_eq!(unit.timeouts, 1);
    });
}
