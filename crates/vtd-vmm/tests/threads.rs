//! Many threads at once: first accesses, counting, saving.
#![allow(clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use common::{DOMAIN, Guest, Memory, RW, config, device};
use iommu_testkit::raw::{self, RawTables, descriptor, translation_type};
use iommu_types::{Access, Iova, SourceId};
use vm_memory::{Bytes, GuestAddress};
use vtd_model::AccessWidth;
use vtd_spec::register::offset;
use vtd_vmm::{GuestBus, VmmUnit};

const IOVA: u64 = 0x7000_0000;
const REQUESTERS: u16 = 64;
const THREADS: u16 = 4;

/// Where the page of a requester lies.
fn frame(source: u16) -> u64 {
    0x100_0000 + u64::from(source) * 0x1000
}

/// [`REQUESTERS`] functions of bus 1, each in a domain of its own with tables of its own.
fn many() -> Guest {
    let guest = Guest::new();
    let memory = Arc::clone(guest.unit.memory());
    let bus = GuestBus(&*memory);
    let mut tables = RawTables::new(&bus, 0x40_0000);
    for source in 0..REQUESTERS {
        let top = tables.page();
        tables.second_stage(top, 4, IOVA, frame(source), 1, RW);
        let entry = raw::legacy_context_entry(translation_type::UNTRANSLATED, top, 2, 100 + source);
        tables.legacy_context(0x10_0000, 0x100 + source, entry);
    }
    guest
}

#[test]
fn s10_first_accesses_of_new_requesters_at_once_find_their_own_tables_and_keep_one_entry_each() {
    let guest = &many();
    let place = |source: u16| {
        guest.unit.section(SourceId::from_raw(0x100 + source), |dma| {
            dma.translate(Iova::new(IOVA), 8, Access::Read)
                .expect("mapped")
                .phys
                .raw()
        })
    };
    for round in 0..20 {
        let barrier = &Barrier::new(THREADS.into());
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    barrier.wait();
                    // Every requester is new to several threads at the same time.
                    for turn in 0..REQUESTERS {
                        let source = (turn + thread % 2) % REQUESTERS;
                        assert_eq!(place(source), frame(source));
                    }
                });
            }
        });
        // Somebody may have lost the race for a line; the next access fills it. Then none is lost.
        (0..REQUESTERS).for_each(|source| assert_eq!(place(source), frame(source)));
        let walks = guest.unit.counters().requests;
        (0..REQUESTERS).for_each(|source| assert_eq!(place(source), frame(source)));
        assert_eq!(
            guest.unit.counters().requests,
            walks,
            "round {round}: found without a walk"
        );
        guest.invalidate(descriptor::CONTEXT_GLOBAL, round + 1);
    }
}

#[test]
fn walks_of_all_threads_are_counted() {
    let guest = &many();
    let open: Vec<_> = (0..40).map(|_| guest.unit.enter(device())).collect();
    // Some count in a slot of their own, some in the shared one.
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for turn in 0..REQUESTERS / THREADS {
                    let source = SourceId::from_raw(0x100 + thread * REQUESTERS / THREADS + turn);
                    let section = guest.unit.enter(source);
                    section.translate(Iova::new(IOVA), 8, Access::Read).expect("mapped");
                    assert!(section.translate(Iova::new(IOVA + 0x1000), 8, Access::Read).is_err());
                }
            });
        }
    });
    drop(open);
    let counters = guest.unit.counters();
    let requesters = u64::from(REQUESTERS);
    assert_eq!(counters.requests, 2 * requesters);
    assert_eq!(
        counters.walks.reads.root, requesters,
        "the second walk knows the context entry"
    );
    assert_eq!(
        (counters.walks.context.hits, counters.walks.context.misses),
        (requesters, requesters)
    );
    assert_eq!(counters.walks.reads.second_stage, 8 * requesters);
    assert_eq!(counters.walks.iotlb.misses, 2 * requesters);
    assert_eq!(counters.blocked, requesters);
}

#[test]
fn a_miss_with_a_known_context_entry_reads_only_the_tables() {
    let mut guest = Guest::new();
    for page in 0..8 {
        guest.map(IOVA + page * 0x1000, 0x20_0000 + page * 0x2000, 1, RW);
    }
    let section = guest.unit.enter(device());
    let place = |page: u64| {
        let place = section.translate(Iova::new(IOVA + page * 0x1000), 8, Access::Write);
        place.expect("mapped").phys.raw()
    };
    for page in 0..8 {
        assert_eq!(place(page), 0x20_0000 + page * 0x2000);
    }
    let counters = guest.unit.counters();
    assert_eq!((counters.walks.reads.root, counters.walks.reads.context), (1, 1));
    assert_eq!(counters.requests, 8);
    (0..8).for_each(|page| assert_eq!(place(page), 0x20_0000 + page * 0x2000));
    // The first page of a size is only announced.
    assert_eq!(guest.unit.counters().requests, 9, "the others are found");
}

#[test]
fn a_miss_with_a_known_context_entry_obeys_protected_memory() {
    let config = vtd_model::UnitConfig::builder()
        .two_phase_waits(true)
        .protected_memory(true)
        .build()
        .expect("consistent");
    let mut guest = Guest::with(config, ());
    guest.map(IOVA, 0x20_0000, 1, RW);
    guest.map(IOVA + 0x1000, 0x40_0000, 1, RW);
    let read = |at: u64| {
        guest
            .unit
            .section(device(), |dma| dma.read_obj::<u64>(GuestAddress(at)))
    };
    assert!(read(IOVA).is_ok());
    guest.unit.write(offset::PLMBASE, AccessWidth::Dword, 0x40_0000);
    guest.unit.write(offset::PLMLIMIT, AccessWidth::Dword, 0x5F_FFFF);
    guest.unit.write(offset::PMEN, AccessWidth::Dword, 1 << 31);
    for _ in 0..3 {
        assert!(read(IOVA).is_ok());
        assert!(read(IOVA + 0x1000).is_err(), "protected");
    }
    guest.unit.write(offset::PMEN, AccessWidth::Dword, 0);
    assert!(read(IOVA + 0x1000).is_ok());
}

#[test]
fn a_unit_saved_while_threads_use_it_goes_on_where_it_is_restored() {
    let mut guest = Guest::new();
    guest.map(IOVA, 0x20_0000, 1, RW);
    let (guest, stop) = (&guest, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    guest
                        .unit
                        .section(device(), |dma| dma.write_obj(1u64, GuestAddress(IOVA)))
                        .expect("mapped");
                }
            });
        }
        for turn in 1..200 {
            // The wait may be open or complete; so may the command through the register.
            guest.invalidate(descriptor::iotlb_domain(DOMAIN), turn);
            guest.unit.write(offset::PMEN, AccessWidth::Dword, 0);
            let saved = guest.unit.save();
            let restored: VmmUnit<Arc<Memory>> =
                VmmUnit::restore(config(), &saved, Arc::clone(guest.unit.memory()), ()).expect("just saved");
            assert_eq!(guest.status(), turn, "completed where it was restored");
            assert_eq!(
                restored.read(offset::IQH, AccessWidth::Qword),
                restored.read(offset::IQT, AccessWidth::Qword)
            );
            restored
                .section(device(), |dma| dma.read_obj::<u64>(GuestAddress(IOVA)))
                .expect("mapped");
            while guest.unit.read(offset::IQH, AccessWidth::Qword) != guest.unit.read(offset::IQT, AccessWidth::Qword) {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(guest.unit.counters().blocked, 0);
}
