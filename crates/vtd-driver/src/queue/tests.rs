//! The queue against a unit of a few lines that misbehaves on demand.

use core::cell::{Cell, RefCell};

use alloc::vec::Vec;

use iommu_testkit::SparseMemory;
use iommu_types::{Coherence, DomainId, OutOfFrames, SystemMemory, Table, TableFrame};
use vtd_spec::descriptor::ContextCacheInvalidation;

use super::*;

/// A descriptor of this domain is refused.
const REFUSED: DomainId = DomainId(0xbad);
/// A descriptor of this domain times out, and the wait behind it is aborted with it.
const TIMES_OUT: DomainId = DomainId(0xdead);

const LIMIT: u64 = 2_000;

struct Fake {
    memory: SparseMemory,
    base: Cell<HostPhys>,
    stride: Cell<u64>,
    head: Cell<u64>,
    tail: Cell<u64>,
    status: Cell<FaultStatus>,
    record: Cell<InvalidationQueueErrorRecord>,
    /// Domains of the descriptors that were carried out.
    done: RefCell<Vec<DomainId>>,
    /// Status writes that are held back.
    late: RefCell<Vec<WaitDescriptor>>,
    hold_back: Cell<bool>,
    frozen: Cell<bool>,
    doorbells: Cell<u32>,
    now: Cell<u64>,
}

impl Fake {
    fn new() -> Self {
        Self {
            memory: SparseMemory::new(1 << 30),
            base: Cell::new(HostPhys::ZERO),
            stride: Cell::new(16),
            head: Cell::new(0),
            tail: Cell::new(0),
            status: Cell::new(FaultStatus::DEFAULT),
            record: Cell::new(InvalidationQueueErrorRecord::DEFAULT),
            done: RefCell::default(),
            late: RefCell::default(),
            hold_back: Cell::new(false),
            frozen: Cell::new(false),
            doorbells: Cell::new(0),
            now: Cell::new(0),
        }
    }

    fn queue(&self, wide: bool) -> Queue {
        let queue = Queue::new(&self.memory, page(), wide).expect("memory");
        let address = queue.address_register();
        self.base.set(address.base());
        self.stride.set(address.dw().bytes());
        queue
    }

    fn fetch(&self, at: u64) -> [u64; 2] {
        let at = HostPhys::new(self.base.get().raw() + at);
        self.memory.read_words(at).expect("the ring is memory")
    }

    fn advance(&self) {
        self.head.set((self.head.get() + self.stride.get()) % PAGE_SIZE);
    }

    fn write_status(&self, wait: WaitDescriptor) {
        self.memory
            .write_u32(wait.status_address(), wait.status_data())
            .expect("memory");
    }

    fn step(&self) {
        let status = self.status.get();
        if self.frozen.get() || self.head.get() == self.tail.get() || status.iqe() || status.ite() {
            return;
        }
        let words = self.fetch(self.head.get());
        let wait = WaitDescriptor::from_words(words);
        if wait.kind() == WaitDescriptor::DEFAULT.kind() {
            match (wait.sw(), self.hold_back.get()) {
                (true, true) => self.late.borrow_mut().push(wait),
                (true, false) => self.write_status(wait),
                (false, _) => {}
            }
            self.advance();
            return;
        }
        let domain = ContextCacheInvalidation::from_words(words).domain();
        match domain {
            REFUSED => {
                self.status.set(status.with_iqe(true));
                self.record.set(
                    self.record
                        .get()
                        .with_error(vtd_spec::register::QueueError::INVALID_TYPE),
                );
            }
            TIMES_OUT => {
                self.status.set(status.with_ite(true));
                self.record
                    .set(self.record.get().with_timeout_source(SourceId::from_raw(0x200)));
                // Its wait was fetched too, and is aborted.
                self.advance();
                self.advance();
            }
            _ => {
                self.done.borrow_mut().push(domain);
                self.advance();
            }
        }
    }
}

impl Registers for Fake {
    fn read32(&self, at: u32) -> u32 {
        assert_eq!(at, offset::FSTS);
        self.status.get().raw_value()
    }
    fn read64(&self, at: u32) -> u64 {
        match at {
            offset::IQH => self.head.get(),
            offset::IQERCD => self.record.get().raw_value(),
            _ => panic!("register {at:#x}"),
        }
    }
    fn write32(&self, at: u32, value: u32) {
        assert_eq!(at, offset::FSTS);
        let cleared = FaultStatus::new_with_raw_value(self.status.get().raw_value() & !value);
        self.status.set(cleared);
    }
    fn write64(&self, at: u32, value: u64) {
        assert_eq!(at, offset::IQT);
        self.doorbells.set(self.doorbells.get() + 1);
        self.tail.set(value);
    }
    fn window_len(&self) -> u32 {
        0x1000
    }
}

impl TableMemory for Fake {
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

impl Coherence for Fake {
    fn write_back(&self, _: HostPhys, _: u64) {}
}

impl Clock for Fake {
    fn now_ns(&self) -> u64 {
        self.now.get()
    }
    fn relax(&self) {
        self.now.set(self.now.get() + 1);
        self.step();
    }
}

fn page() -> FrameRequest {
    FrameRequest::page(None, HostPhys::new(u64::MAX))
}

fn batch(domains: &[DomainId]) -> Vec<Words> {
    let one = |domain: &DomainId| ContextCacheInvalidation::DEFAULT.with_domain(*domain).to_words_256();
    domains.iter().map(one).collect()
}

fn submit(fake: &Fake, queue: &Queue, domains: &[DomainId]) -> Ticket {
    queue.submit(fake, fake, &batch(domains), LIMIT).expect("room")
}

fn wait(fake: &Fake, queue: &Queue, ticket: &Ticket) -> Result<(), QueueError> {
    queue.wait(fake, fake, ticket, LIMIT)
}

#[test]
fn a_batch_takes_one_doorbell_and_the_ring_wraps_in_both_widths() {
    for wide in [false, true] {
        let fake = Fake::new();
        let queue = fake.queue(wide);
        for round in 0..300 {
            let ticket = submit(&fake, &queue, &[DomainId(round), DomainId(7), DomainId(8)]);
            wait(&fake, &queue, &ticket).expect("confirmed");
        }
        assert_eq!(fake.doorbells.get(), 300);
        assert_eq!(fake.done.borrow().len(), 900);
    }
}

#[test]
fn a_head_that_has_reached_the_tail_confirms_nothing() {
    let fake = Fake::new();
    let queue = fake.queue(false);
    fake.hold_back.set(true);
    let ticket = submit(&fake, &queue, &[DomainId(1)]);
    assert!(matches!(
        wait(&fake, &queue, &ticket),
        Err(QueueError::Lost { waited_ns: LIMIT })
    ));
    assert_eq!(fake.head.get(), fake.tail.get());
}

#[test]
fn a_late_status_write_does_not_confirm_another_wait() {
    let fake = Fake::new();
    let queue = fake.queue(false);
    fake.hold_back.set(true);
    let given_up = submit(&fake, &queue, &[DomainId(1)]);
    assert!(wait(&fake, &queue, &given_up).is_err());
    // Every slot is in use at some time from now on, and the old wait's write comes in the middle.
    for round in 0..2 * SLOTS {
        let ticket = submit(&fake, &queue, &[DomainId(2)]);
        if round == 3 {
            let late: Vec<WaitDescriptor> = fake.late.take();
            late.into_iter().for_each(|wait| fake.write_status(wait));
            assert_ne!(
                queue.status(&fake, ticket.slot),
                Some(ticket.sequence),
                "confirmed by another's write"
            );
        }
        fake.hold_back.set(false);
        wait(&fake, &queue, &ticket).expect("confirmed");
        fake.hold_back.set(true);
    }
}

#[test]
fn a_refused_descriptor_fails_its_batch_only_and_the_rest_is_carried_out() {
    let fake = Fake::new();
    let queue = fake.queue(false);
    let good = submit(&fake, &queue, &[DomainId(1)]);
    let bad = submit(&fake, &queue, &[DomainId(2), REFUSED, DomainId(3)]);
    let after = submit(&fake, &queue, &[DomainId(4)]);
    let words = batch(&[REFUSED])[0];
    let refused = QueueError::Refused {
        info: 3,
        words: [words[0], words[1]],
    };
    assert_eq!(wait(&fake, &queue, &after), Ok(()));
    assert_eq!(wait(&fake, &queue, &bad), Err(refused));
    assert_eq!(wait(&fake, &queue, &good), Ok(()));
    assert_eq!(*fake.done.borrow(), [1, 2, 3, 4].map(DomainId));
    assert!(!fake.status.get().iqe());
}

#[test]
fn a_device_timeout_aborts_every_wait_in_flight_and_each_can_be_repeated() {
    let fake = Fake::new();
    let queue = fake.queue(false);
    let tickets = [[TIMES_OUT], [DomainId(1)], [DomainId(2)]].map(|domains| submit(&fake, &queue, &domains));
    let device = Some(SourceId::from_raw(0x200));
    for ticket in &tickets {
        assert_eq!(wait(&fake, &queue, ticket), Err(QueueError::Aborted { device }));
    }
    let again = submit(&fake, &queue, &[DomainId(1)]);
    assert_eq!(wait(&fake, &queue, &again), Ok(()));
}

#[test]
fn slots_of_aborted_waits_come_back_when_a_younger_wait_was_confirmed() {
    let fake = Fake::new();
    let queue = fake.queue(false);
    for _ in 0..2 * SLOTS {
        let aborted = submit(&fake, &queue, &[TIMES_OUT]);
        assert!(matches!(wait(&fake, &queue, &aborted), Err(QueueError::Aborted { .. })));
        let good = submit(&fake, &queue, &[DomainId(1)]);
        assert_eq!(wait(&fake, &queue, &good), Ok(()));
    }
    assert!(is_younger(3, u32::MAX) && !is_younger(u32::MAX, 3) && !is_younger(7, 7));
}

#[test]
fn a_full_ring_ends_as_an_error_and_goes_on_when_the_unit_does() {
    let fake = Fake::new();
    let queue = fake.queue(true);
    fake.frozen.set(true);
    let full = batch(&[DomainId(1); MAX_BATCH]);
    let mut tickets = Vec::new();
    let error = loop {
        match queue.submit(&fake, &fake, &full, LIMIT) {
            Ok(ticket) => tickets.push(ticket),
            Err(error) => break error,
        }
    };
    assert_eq!(error, QueueError::Lost { waited_ns: LIMIT });
    // 128 descriptors of which one stays free.
    assert_eq!(tickets.len(), 3);
    fake.frozen.set(false);
    for ticket in &tickets {
        assert_eq!(wait(&fake, &queue, ticket), Ok(()));
    }
}
