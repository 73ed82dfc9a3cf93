//! The lock-free protocols under loom: every interleaving of a few threads, with the memory model's freedom.
//!
//! This is an ordinary test (`cargo test -p vtd-vmm --test loom`): the protocols take their atomics as a parameter, and
//! here they are given loom's. `LOOM_MAX_PREEMPTIONS` widens the search.
#![allow(clippy::expect_used, reason = "helpers of tests")]

use iommu_types::{Iova, PageSize, Perms, sync};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;
use vtd_vmm::protocol::{Iotlb, Line, Page, PageSet, Readers, View, Word};

#[derive(Debug)]
struct Checked(AtomicU64);

impl sync::Word for Checked {
    fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }
    fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order);
    }
    fn compare_exchange(&self, current: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        self.0.compare_exchange(current, new, success, failure)
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_add(value, order)
    }
    fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_and(value, order)
    }
}

impl Word for Checked {
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.0.swap(value, order)
    }
    fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_sub(value, order)
    }
    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_or(value, order)
    }
    fn fence(order: Ordering) {
        fence(order);
    }
}

/// Two context switches that nobody asked for are enough for the known mistakes of such protocols; the test stays short.
fn check(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(body);
}

const IOVA: u64 = 0x1000;
const OLD: u64 = 0xA000;
const NEW: u64 = 0xB000;
const DOMAIN: usize = 0;

#[derive(Clone, Copy)]
enum Command {
    Page,
    Domain,
    Global,
}

/// A unit in small: what [`vtd_vmm::VmmUnit`] does with the protocols, without registers.
struct Unit {
    iotlb: Iotlb<Checked>,
    readers: Readers<Checked>,
    /// The page table: one entry.
    table: AtomicU64,
    /// The data in the old frame: written by devices with [`Ordering::Relaxed`], as memory is.
    frame: AtomicU64,
    /// Set when the wait completes, by whoever completes it.
    status: AtomicU64,
}

impl Unit {
    fn new(slots: usize) -> Self {
        let iotlb = Iotlb::new(1, 1);
        iotlb.announce(Some(PageSize::Size4K), None);
        Self {
            iotlb,
            readers: Readers::new(slots),
            table: AtomicU64::new(OLD),
            frame: AtomicU64::new(0),
            status: AtomicU64::new(0),
        }
    }

    /// One access of a device. The space number is what the store would give: one for each state of the generations.
    fn access(&self, hint: usize) -> u64 {
        let ticket = self.readers.enter(hint);
        let sample = self.iotlb.sample();
        let generation = self.iotlb.generation(DOMAIN);
        let space = 1 + sample.epoch * 8 + generation;
        let view = View {
            space,
            domain: DOMAIN,
            generation,
            epoch: sample.epoch,
        };
        let phys = match self.iotlb.lookup(&view, IOVA, Perms::WRITE) {
            Some(hit) => hit.phys.raw(),
            None => {
                let phys = self.table.load(Ordering::Acquire);
                let page = Page {
                    base: IOVA,
                    size: PageSize::Size4K,
                    phys,
                    perms: Perms::READ_WRITE,
                };
                let _ = self.iotlb.fill(&sample, &view, &page);
                phys
            }
        };
        if phys == OLD {
            // The copy. After the wait the frame belongs to someone else.
            self.frame.fetch_add(1, Ordering::Relaxed);
        }
        if self.readers.leave(ticket) {
            self.complete();
        }
        phys
    }

    fn complete(&self) {
        assert_eq!(self.status.swap(1, Ordering::AcqRel), 0, "one completion for each wait");
    }

    fn invalidate(&self, command: Command) {
        self.table.store(NEW, Ordering::Release);
        match command {
            Command::Page => {
                let page = PageSet::page_around(Iova::new(IOVA), PageSize::Size4K);
                self.iotlb.drop_pages(DOMAIN, page);
            }
            Command::Domain => self.iotlb.drop_domain(DOMAIN),
            Command::Global => self.iotlb.drop_all(),
        }
        if self.readers.begin_drain() {
            self.complete();
        }
    }

    /// What the guest does when it sees the status: the frame is its own.
    fn check_if_complete(&self) {
        if self.status.load(Ordering::Acquire) == 1 {
            let before = self.frame.load(Ordering::Relaxed);
            assert_eq!(self.access(0), NEW, "an access after the wait");
            assert_eq!(self.frame.load(Ordering::Relaxed), before, "a copy after the wait");
        }
    }
}

fn nobody_is_late(slots: usize, command: Command) {
    check(move || {
        let unit = Arc::new(Unit::new(slots));
        let device = {
            let unit = Arc::clone(&unit);
            thread::spawn(move || {
                let first = unit.access(0);
                let second = unit.access(0);
                assert!(first == OLD || second == NEW, "a translation came back");
            })
        };
        unit.invalidate(command);
        unit.check_if_complete();
        device.join().expect("no panic");
        assert_eq!(unit.status.load(Ordering::Acquire), 1, "the wait completed");
        unit.check_if_complete();
    });
}

#[test]
fn after_the_wait_of_a_page_command_nobody_uses_the_page() {
    nobody_is_late(1, Command::Page);
}

#[test]
fn after_the_wait_of_a_domain_command_nobody_uses_the_domain() {
    nobody_is_late(1, Command::Domain);
}

#[test]
fn after_the_wait_of_a_global_command_nobody_uses_anything() {
    nobody_is_late(1, Command::Global);
}

#[test]
fn readers_without_a_slot_of_their_own_are_waited_for() {
    nobody_is_late(0, Command::Domain);
}

#[test]
fn two_drains_in_turn_wait_for_two_readers() {
    check(|| {
        let readers = Arc::new(Readers::<Checked>::new(1));
        let inside = Arc::new(AtomicU64::new(0));
        let completed = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (readers, inside, completed) = (Arc::clone(&readers), Arc::clone(&inside), Arc::clone(&completed));
                thread::spawn(move || {
                    let ticket = readers.enter(0);
                    inside.fetch_add(1, Ordering::Relaxed);
                    inside.fetch_sub(1, Ordering::Relaxed);
                    if readers.leave(ticket) {
                        completed.fetch_add(1, Ordering::AcqRel);
                    }
                })
            })
            .collect();
        let mut drains = 0;
        for _ in 0..2 {
            if completed.load(Ordering::Acquire) == drains {
                drains += 1;
                if readers.begin_drain() {
                    completed.fetch_add(1, Ordering::AcqRel);
                }
            }
        }
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert_eq!(completed.load(Ordering::Acquire), drains, "each drain completes once");
    });
}

#[test]
fn a_line_is_read_whole_or_not_at_all() {
    check(|| {
        let line = Arc::new(Line::<Checked>::default());
        let writers: Vec<_> = (1..3u64)
            .map(|value| {
                let line = Arc::clone(&line);
                thread::spawn(move || {
                    if let Some(guard) = line.try_lock() {
                        guard.set(0, value);
                        guard.set(6, value);
                    }
                })
            })
            .collect();
        if let Some([first, .., last]) = line.snapshot() {
            assert_eq!(first, last);
        }
        for writer in writers {
            writer.join().expect("no panic");
        }
        assert!(line.snapshot().is_some(), "no writer is left");
    });
}
