//! Real threads: once a wait completes, nobody uses an old translation, ever.
#![allow(clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{DOMAIN, Guest, device};
use iommu_testkit::raw::{RawTables, descriptor};
use iommu_types::{Access, Iova, SystemMemory};
use vm_memory::{Bytes, GuestAddress};

const IOVA: u64 = 0x7000_0000;
/// Frames that the page moves through.
const FRAMES: u64 = 64;
const FRAME: u64 = 0x100_0000;
const READERS: usize = 3;
const TIME: Duration = Duration::from_millis(800);

/// One thread moves a page from frame to frame, with an invalidation and a wait each time; the others write through the
/// unit. After a wait, the frame left behind belongs to the mover: it marks it and finds the mark again later.
fn churn(command: impl Fn(u64) -> [u64; 2] + Sync, turns_at_least: u64) {
    let mut guest = Guest::new();
    guest.map(IOVA, FRAME, 1, common::RW);
    let leaf = {
        let bus = guest.bus();
        RawTables::new(&bus, 0).entry_at(guest.top, 4, IOVA, 1, common::RW)
    };
    let guest = &guest;
    let (stop, written) = (&AtomicBool::new(false), &AtomicU64::new(0));
    let turns = std::thread::scope(|scope| {
        for reader in 0..READERS {
            scope.spawn(move || {
                let mut turn = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    turn += 1;
                    guest.unit.section(device(), |dma| {
                        if turn.is_multiple_of(7) {
                            // Held across a delay, as a copy would.
                            let place = dma.translate(Iova::new(IOVA), 8, Access::Write).expect("always mapped");
                            std::thread::yield_now();
                            guest.bus().write_u64(place.phys, 0xD0D0).expect("memory");
                        } else {
                            let at = GuestAddress(IOVA + 8 * reader as u64);
                            dma.write_obj(0xD0D0u64, at).expect("always mapped");
                        }
                    });
                }
                written.fetch_add(turn, Ordering::Relaxed);
            });
        }
        // Also when an assertion fails: the scope waits for the readers.
        let _end = Ends(stop);
        let start = Instant::now();
        let mut turn = 0u32;
        while start.elapsed() < TIME {
            let (old, new) = (
                FRAME + u64::from(turn) % FRAMES * 0x1000,
                FRAME + u64::from(turn + 1) % FRAMES * 0x1000,
            );
            turn += 1;
            // The frame that comes into use is given up by the mover: check that nobody wrote to it meanwhile.
            if u64::from(turn) >= FRAMES {
                check_mark(guest, new);
            }
            guest
                .bus()
                .write_u64(iommu_types::HostPhys::new(leaf), new | common::RW)
                .expect("memory");
            guest.invalidate(command(IOVA), turn);
            while guest.status() != turn {
                assert!(start.elapsed() < TIME * 20, "the wait never completes");
                std::thread::yield_now();
            }
            mark(guest, old);
            check_mark(guest, old);
        }
        u64::from(turn)
    });
    assert!(turns >= turns_at_least, "only {turns} turns");
    assert!(written.load(Ordering::Relaxed) > turns, "writers ran");
    assert_eq!(guest.unit.counters().blocked, 0);
    assert_eq!(guest.unit.counters().waits, turns);
}

/// Stops the readers when dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const MARK: u64 = 0x5AFE_5AFE_5AFE_5AFE;

fn mark(guest: &Guest, frame: u64) {
    for word in 0..READERS as u64 + 1 {
        guest
            .bus()
            .write_u64(iommu_types::HostPhys::new(frame + word * 8), MARK)
            .expect("memory");
    }
}

fn check_mark(guest: &Guest, frame: u64) {
    for word in 0..READERS as u64 + 1 {
        let now = guest
            .bus()
            .read_u64(iommu_types::HostPhys::new(frame + word * 8))
            .expect("memory");
        assert_eq!(
            now, MARK,
            "frame {frame:#x} was written after the wait that gave it back"
        );
    }
}

#[test]
fn after_a_page_invalidation_nobody_writes_to_the_old_frame() {
    churn(|iova| descriptor::iotlb_pages(DOMAIN, iova, 0, true), 100);
}

#[test]
fn after_a_domain_invalidation_nobody_writes_to_the_old_frame() {
    churn(|_| descriptor::iotlb_domain(DOMAIN), 100);
}

#[test]
fn after_a_global_invalidation_nobody_writes_to_the_old_frame() {
    churn(|_| descriptor::IOTLB_GLOBAL, 100);
}

#[test]
fn after_a_context_invalidation_alone_nobody_writes_to_the_old_frame() {
    // It drops what is kept of the requester's pages too; the wait behind it has to drain all the same.
    churn(|_| descriptor::context_device(DOMAIN, common::DEVICE, 0), 100);
}

#[test]
fn after_a_global_context_invalidation_alone_nobody_writes_to_the_old_frame() {
    churn(|_| descriptor::CONTEXT_GLOBAL, 100);
}
