//! Guest memory that is plugged in and out while the unit runs.
#![allow(clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{DEVICE, DOMAIN, RW, device};
use iommu_testkit::raw::{self, RawTables, translation_type};
use iommu_types::SystemMemory;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryAtomic, GuestMemoryMmap, Permissions};
use vtd_model::AccessWidth;
use vtd_spec::register::offset;
use vtd_vmm::{GuestBus, VmmUnit};

type Space = GuestMemoryAtomic<GuestMemoryMmap>;

const LOW: (GuestAddress, usize) = (GuestAddress(0), 8 << 20);
const PLUGGED: (GuestAddress, usize) = (GuestAddress(0x1_0000_0000), 2 << 20);
const IOVA: u64 = 0x7000_0000;

/// A unit whose device maps the first page of the memory that is not there yet.
fn machine() -> (VmmUnit<Space>, Space, GuestMemoryMmap) {
    let low = GuestMemoryMmap::from_ranges(&[LOW]).expect("memory");
    {
        let bus = GuestBus(&low);
        let mut tables = RawTables::new(&bus, 0x10_0000);
        let (root, top) = (tables.page(), tables.page());
        assert_eq!(root, 0x10_0000);
        tables.second_stage(top, 4, IOVA, PLUGGED.0.0, 1, RW);
        tables.second_stage(top, 4, IOVA + 0x1000, 0x5000, 1, RW);
        let entry = raw::legacy_context_entry(translation_type::UNTRANSLATED, top, 2, DOMAIN);
        tables.legacy_context(root, DEVICE, entry);
        bus.write_u64(iommu_types::HostPhys::new(0), 0).expect("memory");
    }
    let space = Space::new(low.clone());
    let unit = VmmUnit::new(common::config(), space.clone(), ()).expect("goes with threads");
    unit.write(offset::RTADDR, AccessWidth::Qword, 0x10_0000);
    for command in [1u64 << 30, 1 << 31] {
        unit.write(offset::GCMD, AccessWidth::Dword, command);
    }
    (unit, space, low)
}

fn plug(space: &Space, map: GuestMemoryMmap) {
    space.lock().expect("not poisoned").replace(map);
}

fn with_plugged(low: &GuestMemoryMmap) -> GuestMemoryMmap {
    let more = GuestMemoryMmap::<()>::from_ranges(&[PLUGGED]).expect("memory");
    let (_, region) = more.remove_region(PLUGGED.0, PLUGGED.1 as u64).expect("it is there");
    low.insert_region(region).expect("no overlap")
}

#[test]
fn memory_that_is_plugged_in_is_reached_by_the_next_section() {
    let (unit, space, low) = machine();
    let write = || unit.section(device(), |dma| dma.write_obj(7u64, GuestAddress(IOVA)));
    assert!(write().is_err(), "translated, but nothing is there");
    let open = unit.enter(device());
    assert!(open.write_obj(1u64, GuestAddress(IOVA + 0x1000)).is_ok());
    plug(&space, with_plugged(&low));
    assert!(
        open.write_obj(7u64, GuestAddress(IOVA)).is_err(),
        "one map for a section"
    );
    drop(open);
    write().expect("there now");
    assert_eq!(space.memory().read_obj::<u64>(PLUGGED.0).expect("memory"), 7);
    assert_eq!(unit.counters().blocked, 0);
}

#[test]
fn tables_in_memory_that_was_plugged_in_are_walked() {
    let (unit, space, low) = machine();
    plug(&space, with_plugged(&low));
    {
        let memory = space.memory();
        let bus = GuestBus(&*memory);
        let mut tables = RawTables::new(&bus, PLUGGED.0.0 + 0x1000);
        let top = tables.page();
        tables.second_stage(top, 4, IOVA, 0x6000, 1, RW);
        let entry = raw::legacy_context_entry(translation_type::UNTRANSLATED, top, 2, DOMAIN);
        tables.legacy_context(0x10_0000, DEVICE, entry);
    }
    unit.section(device(), |dma| dma.write_obj(9u64, GuestAddress(IOVA)))
        .expect("mapped");
    assert_eq!(space.memory().read_obj::<u64>(GuestAddress(0x6000)).expect("memory"), 9);
}

#[test]
fn memory_that_is_plugged_out_lives_until_the_last_section_that_uses_it() {
    let (unit, space, low) = machine();
    let more = with_plugged(&low);
    let (rest, region) = more.remove_region(PLUGGED.0, PLUGGED.1 as u64).expect("it is there");
    plug(&space, more);
    let section = unit.enter(device());
    let slice = section
        .get_slices(GuestAddress(IOVA), 8, Permissions::Write)
        .expect("fits")
        .next()
        .expect("one")
        .expect("mapped");
    plug(&space, rest);
    // The section's slice is good to the end.
    slice.copy_from(&[5u8; 8]);
    assert!(section.read_obj::<u64>(GuestAddress(IOVA)).is_ok());
    assert!(std::sync::Arc::strong_count(&region) > 1, "the section holds it");
    drop(section);
    assert_eq!(std::sync::Arc::strong_count(&region), 1, "nobody holds it any more");
    let after = unit.section(device(), |dma| dma.read_obj::<u64>(GuestAddress(IOVA)));
    assert!(after.is_err());
}

#[test]
fn threads_use_the_unit_while_memory_comes_and_goes() {
    let (unit, space, low) = machine();
    let (unit, stop) = (&unit, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut reached = 0;
                while !stop.load(Ordering::Relaxed) {
                    unit.section(device(), |dma| {
                        reached += u32::from(dma.write_obj(3u64, GuestAddress(IOVA)).is_ok());
                        dma.write_obj(4u64, GuestAddress(IOVA + 0x1000)).expect("always there");
                    });
                }
                reached
            });
        }
        for _ in 0..200 {
            plug(&space, with_plugged(&low));
            std::thread::yield_now();
            plug(&space, low.clone());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(
        unit.counters().blocked,
        0,
        "an address without memory is no fault of the tables"
    );
}
