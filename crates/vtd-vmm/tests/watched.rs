//! A unit with a sanitizer: uses of kept translations are judged, those without a walk included.
#![allow(clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{DEVICE, DOMAIN, Guest, RW, device};
use iommu_testkit::raw::{self, RawTables, descriptor, translation_type};
use iommu_types::{Access, HostPhys, Iova, SystemMemory};
use vtd_model::{InterruptRequest, Request, Rule, UnitConfig};
use vtd_vmm::GuestBus;

const IOVA: u64 = 0x7000_0000;
const A: u64 = 0x20_0000;
const B: u64 = 0x30_0000;

fn watched(sanitizer: bool) -> Guest {
    let config = UnitConfig::builder()
        .two_phase_waits(true)
        .sanitizer(sanitizer)
        .build()
        .expect("consistent");
    let mut guest = Guest::with(config, ());
    guest.map(IOVA, A, 1, RW);
    // Bringing it up left out the invalidations that are due: those findings are not of interest here.
    findings(&guest);
    guest
}

fn findings(guest: &Guest) -> Vec<Rule> {
    std::iter::from_fn(|| guest.unit.take_finding())
        .map(|finding| finding.rule)
        .collect()
}

fn place(guest: &Guest, access: Access) -> Option<u64> {
    guest.unit.section(device(), |dma| {
        let place = dma.translate(Iova::new(IOVA), 8, access);
        place.ok().map(|place| place.phys.raw())
    })
}

/// Has the page kept.
fn warm(guest: &Guest) {
    for _ in 0..3 {
        assert_eq!(place(guest, Access::Read), Some(A));
    }
    assert_eq!(findings(guest), []);
}

#[test]
fn software_that_invalidates_what_it_unmaps_gives_no_finding() {
    let mut guest = watched(true);
    warm(&guest);
    guest.map(IOVA, 0, 1, 0);
    guest.invalidate(descriptor::iotlb_pages(DOMAIN, IOVA, 0, true), 1);
    assert_eq!(place(&guest, Access::Read), None);
    guest.map(IOVA, B, 1, RW);
    for _ in 0..3 {
        assert_eq!(place(&guest, Access::Write), Some(B));
    }
    assert_eq!(findings(&guest), []);
}

#[test]
fn a_hit_after_unmap_is_an_open_window_and_after_reuse_a_violation() {
    let mut guest = watched(true);
    warm(&guest);
    guest.map(IOVA, 0, 1, 0);
    assert_eq!(place(&guest, Access::Read), Some(A), "still kept");
    let finding = guest.unit.take_finding().expect("seen");
    assert_eq!(finding.rule, Rule::OpenWindow);
    assert_eq!((finding.used, finding.fresh), (Some(HostPhys::new(A)), None));
    guest.map(IOVA, B, 1, RW);
    assert_eq!(place(&guest, Access::Read), Some(A));
    let finding = guest.unit.take_finding().expect("seen");
    assert_eq!(finding.rule, Rule::StaleTranslation);
    assert_eq!(finding.fresh, Some(HostPhys::new(B)));
    assert_eq!(findings(&guest), [], "one finding for each use");
}

#[test]
fn without_a_sanitizer_the_same_uses_are_not_looked_at() {
    let mut guest = watched(false);
    warm(&guest);
    guest.map(IOVA, B, 1, RW);
    assert_eq!(place(&guest, Access::Read), Some(A));
    assert_eq!((guest.unit.take_finding(), guest.unit.findings_lost()), (None, 0));
}

#[test]
fn a_kept_context_entry_that_was_replaced_is_seen_on_the_next_walk() {
    let guest = watched(true);
    warm(&guest);
    let memory = Arc::clone(guest.unit.memory());
    let bus = GuestBus(&*memory);
    let mut tables = RawTables::new(&bus, 0x40_0000);
    let top = tables.page();
    tables.second_stage(top, 4, IOVA + 0x1000, B, 1, RW);
    let entry = raw::legacy_context_entry(translation_type::UNTRANSLATED, top, 2, DOMAIN);
    tables.legacy_context(0x10_0000, DEVICE, entry);
    let request = Request::read(device().source, Iova::new(IOVA + 0x1000), 8);
    assert!(guest.unit.enter(device()).answer(&request).is_err(), "the old tables");
    assert_eq!(findings(&guest), [Rule::StaleFault]);
}

#[test]
fn an_interrupt_by_a_kept_entry_that_has_changed_is_seen() {
    let guest = watched(true);
    let put = |words: [u64; 2]| {
        for (word, at) in words.into_iter().zip([0x10_2000 + 5 * 16, 0x10_2000 + 5 * 16 + 8]) {
            guest.bus().write_u64(HostPhys::new(at), word).expect("memory");
        }
    };
    let send = || {
        let request = InterruptRequest {
            source: device().source,
            address: raw::remappable_address(5, false),
            data: 0,
        };
        guest.unit.interrupt(&request, |interrupt| interrupt.vector).ok()
    };
    put(raw::irte(0x41, 0x300, 0));
    assert_eq!((send(), send()), (Some(0x41), Some(0x41)));
    assert_eq!(findings(&guest), []);
    put(raw::irte(0x42, 0x300, 0));
    assert_eq!(send(), Some(0x41));
    assert_eq!(findings(&guest), [Rule::StaleInterrupt]);
    guest.invalidate(descriptor::INTERRUPT_GLOBAL, 1);
    assert_eq!(send(), Some(0x42));
    assert_eq!(findings(&guest), []);
}

#[test]
fn threads_that_use_pages_while_software_moves_them_lawfully_give_no_violation() {
    let mut guest = watched(true);
    let leaf = {
        let bus = guest.bus();
        RawTables::new(&bus, 0).entry_at(guest.top, 4, IOVA, 1, RW)
    };
    guest.map(IOVA + 0x1000, A, 1, RW);
    let (guest, stop) = (&guest, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = place(guest, Access::Read);
                }
            });
        }
        for turn in 1..300u32 {
            let write = |value: u64| guest.bus().write_u64(HostPhys::new(leaf), value).expect("memory");
            write(0);
            guest.invalidate(descriptor::iotlb_pages(DOMAIN, IOVA, 0, true), turn);
            while guest.status() != turn {
                std::thread::yield_now();
            }
            write(if turn % 2 == 0 { A } else { B } | RW);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let violations: Vec<_> = findings(guest)
        .into_iter()
        .filter(|rule| *rule != Rule::OpenWindow)
        .collect();
    assert_eq!(violations, []);
}
