//! Sections: what they give access to, and when invalidations complete.
#![allow(clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::{DEVICE, DOMAIN, Guest, Memory, RW, device};
use iommu_testkit::raw::{self, descriptor};
use iommu_types::{Access, HostPhys, Iova, Pasid, SourceId, SystemMemory};
use vm_memory::bitmap::Bitmap;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions};
use vtd_model::{AccessWidth, UnitConfig};
use vtd_spec::register::offset;
use vtd_vmm::{GuestBus, VmmUnit};

const IOVA: u64 = 0x7000_0000;
const A: u64 = 0x20_0000;
const B: u64 = 0x30_0000;

fn slices(dma: &impl GuestMemory, at: u64, count: usize, access: Permissions) -> Vec<Result<usize, String>> {
    match dma.get_slices(GuestAddress(at), count, access) {
        Ok(slices) => slices
            .map(|slice| slice.map(|slice| slice.len()).map_err(|why| why.to_string()))
            .collect(),
        Err(why) => vec![Err(why.to_string())],
    }
}

#[test]
fn data_goes_where_the_tables_say() {
    let mut guest = Guest::new();
    guest.map(IOVA, A, 1, RW);
    guest.map(IOVA + 0x1000, B, 1, RW);
    guest
        .unit
        .section(device(), |dma| {
            dma.write_slice(b"portcullis", GuestAddress(IOVA + 0xFFA))
        })
        .expect("mapped");
    let mut parts = [0; 10];
    guest
        .bus()
        .read(HostPhys::new(A + 0xFFA), &mut parts[..6])
        .expect("memory");
    guest.bus().read(HostPhys::new(B), &mut parts[6..]).expect("memory");
    assert_eq!(&parts, b"portcullis");
    assert_eq!(guest.unit.counters().blocked, 0);
}

#[test]
fn a_large_page_is_one_slice() {
    let mut guest = Guest::new();
    guest.map(0x4000_0000, 0x20_0000, 2, RW | raw::PAGE_SIZE_BIT);
    for _ in 0..3 {
        // The first fill of a page size only announces it; then hits.
        let parts = guest
            .unit
            .section(device(), |dma| slices(dma, 0x4000_1000, 0x10_0000, Permissions::Read));
        assert_eq!(parts, [Ok(0x10_0000)]);
    }
}

#[test]
fn a_missing_right_is_a_fault_and_is_recorded_once_for_each_access() {
    let mut guest = Guest::new();
    guest.map(IOVA, A, 1, raw::SS_READ);
    let section = guest.unit.enter(device());
    assert!(section.read_obj::<u64>(GuestAddress(IOVA)).is_ok());
    let fault = section
        .translate(Iova::new(IOVA), 8, Access::Write)
        .expect_err("read only");
    assert_eq!(fault.reason, vtd_spec::FaultReason(0x05));
    assert!(section.write_obj(1u64, GuestAddress(IOVA)).is_err());
    assert_eq!(guest.unit.counters().faults_recorded, 2);
    // Both rights together are what an atomic needs.
    assert!(!section.check_range(GuestAddress(IOVA), 8, Permissions::ReadWrite));
    assert!(!section.check_range(GuestAddress(IOVA), 8, Permissions::No));
    assert_eq!(guest.unit.counters().faults_recorded, 2);
}

#[test]
fn a_check_looks_without_recording_a_fault() {
    let mut guest = Guest::new();
    guest.map(IOVA, A, 1, RW);
    let section = guest.unit.enter(device());
    assert!(section.check_range(GuestAddress(IOVA), 0x1000, Permissions::Write));
    assert!(!section.check_range(GuestAddress(IOVA), 0x1001, Permissions::Write));
    assert!(!section.check_range(GuestAddress(IOVA), usize::MAX, Permissions::Write));
    assert_eq!(guest.unit.counters().blocked, 0);
}

#[test]
fn empty_and_wrapping_ranges_have_defined_ends() {
    let guest = Guest::new();
    let section = guest.unit.enter(device());
    assert!(section.check_range(GuestAddress(IOVA), 0, Permissions::Write));
    assert!(section.check_range(GuestAddress(u64::MAX), 0, Permissions::Write));
    assert_eq!(slices(&section, IOVA, 0, Permissions::Read), []);
    assert!(!section.check_range(GuestAddress(u64::MAX), 2, Permissions::Read));
    assert!(!section.check_range(GuestAddress(u64::MAX - 0xFFF), usize::MAX, Permissions::Read));
    let wrapping = slices(&section, u64::MAX, 2, Permissions::Read);
    assert!(matches!(&wrapping[..], [Err(_)]), "{wrapping:?}");
    assert_eq!(
        guest.unit.counters().blocked,
        0,
        "a range that does not exist is no access"
    );
    // The last byte of the space is a range, just not a mapped one.
    let last = slices(&section, u64::MAX, 1, Permissions::Read);
    assert!(matches!(&last[..], [Err(_)]), "{last:?}");
    assert_eq!(guest.unit.counters().blocked, 1);
}

#[test]
fn the_last_byte_of_the_space_ends_an_iteration_with_translation_off() {
    let guest = Guest::new();
    guest.command(0);
    let section = guest.unit.enter(device());
    let parts = slices(&section, u64::MAX - 1, 2, Permissions::Read);
    assert!(matches!(&parts[..], [Err(_)]), "{parts:?}");
}

#[test]
fn slices_end_after_an_error() {
    let mut guest = Guest::new();
    guest.map(IOVA, A, 1, RW);
    guest.map(IOVA + 0x2000, B, 1, RW);
    let section = guest.unit.enter(device());
    let parts = slices(&section, IOVA, 0x3000, Permissions::Read);
    assert!(matches!(&parts[..], [Ok(0x1000), Err(_)]), "{parts:?}");
    let mut read = [1; 0x3000];
    let before = section
        .get_slices(GuestAddress(IOVA), 0x3000, Permissions::Read)
        .expect("fits")
        .stop_on_error();
    assert_eq!(before.expect("the first page is mapped").count(), 1);
    assert_eq!(section.read(&mut read, GuestAddress(IOVA)).expect("partly"), 0x1000);
}

#[test]
fn memory_that_is_not_there_is_no_slice() {
    let mut guest = Guest::new();
    guest.map(IOVA, 0x10_0000_0000, 1, RW);
    let section = guest.unit.enter(device());
    assert!(section.read_obj::<u64>(GuestAddress(IOVA)).is_err());
    assert!(!section.check_range(GuestAddress(IOVA), 1, Permissions::Read));
}

#[test]
fn dirty_bits_are_those_of_guest_memory() {
    let mut guest = Guest::new();
    guest.map(IOVA, A, 1, RW);
    guest
        .unit
        .section(device(), |dma| dma.write_obj(5u8, GuestAddress(IOVA + 8)))
        .expect("mapped");
    let dirty = |memory: &Memory, at: u64| {
        let region = memory.find_region(GuestAddress(at)).expect("memory");
        region.bitmap().dirty_at(usize::try_from(at).expect("small"))
    };
    assert!(dirty(guest.unit.memory(), A));
    assert!(!dirty(guest.unit.memory(), B));
}

#[test]
fn the_interrupt_range_is_never_memory() {
    let mut guest = Guest::new();
    // A large page over the interrupt range and the megabyte behind it.
    guest.map(0xFEE0_0000, 0x20_0000, 2, RW | raw::PAGE_SIZE_BIT);
    let section = guest.unit.enter(device());
    for _ in 0..4 {
        let behind = section
            .translate(Iova::new(0xFEF0_0000), 8, Access::Read)
            .expect("mapped");
        assert_eq!(behind.phys, HostPhys::new(0x30_0000));
        assert!(section.translate(Iova::new(0xFEE0_1000), 8, Access::Read).is_err());
        assert!(section.translate(Iova::new(0xFEEF_FFF8), 64, Access::Write).is_err());
    }
}

#[test]
fn a_page_command_drops_that_page_only() {
    let mut guest = Guest::new();
    for page in 0..2 {
        guest.map(IOVA + page * 0x1000, A + page * 0x1000, 1, RW);
    }
    let place = |guest: &Guest, page: u64| {
        guest.unit.section(device(), |dma| {
            dma.translate(Iova::new(IOVA + page * 0x1000), 8, Access::Read)
                .expect("mapped")
                .phys
                .raw()
        })
    };
    for _ in 0..2 {
        assert_eq!((place(&guest, 0), place(&guest, 1)), (A, A + 0x1000));
    }
    guest.map(IOVA, B, 1, RW);
    guest.map(IOVA + 0x1000, B, 1, RW);
    assert_eq!((place(&guest, 0), place(&guest, 1)), (A, A + 0x1000), "cached");
    guest.invalidate(descriptor::iotlb_pages(DOMAIN, IOVA, 0, true), 1);
    assert_eq!(guest.status(), 1);
    assert_eq!((place(&guest, 0), place(&guest, 1)), (B, A + 0x1000));
    guest.invalidate(descriptor::iotlb_pages(DOMAIN + 1, IOVA + 0x1000, 0, true), 2);
    assert_eq!(place(&guest, 1), A + 0x1000, "another domain's page");
    guest.invalidate(descriptor::iotlb_pages(DOMAIN, IOVA, 1, true), 3);
    assert_eq!(place(&guest, 1), B);
}

#[test]
fn every_wider_command_drops_too() {
    let commands = [
        descriptor::iotlb_domain(DOMAIN),
        descriptor::IOTLB_GLOBAL,
        descriptor::iotlb_pages(DOMAIN, IOVA & !0xFF_FFFF, 12, false),
    ];
    for command in commands {
        let mut guest = Guest::new();
        guest.map(IOVA, A, 1, RW);
        let read = |guest: &Guest| {
            guest.unit.section(device(), |dma| {
                dma.translate(Iova::new(IOVA), 8, Access::Read).map(|at| at.phys.raw())
            })
        };
        for _ in 0..3 {
            assert_eq!(read(&guest), Ok(A));
        }
        guest.map(IOVA, B, 1, RW);
        assert_eq!(read(&guest), Ok(A), "cached");
        guest.invalidate(command, 9);
        assert_eq!((read(&guest), guest.status()), (Ok(B), 9));
    }
}

#[test]
fn a_context_command_moves_the_requester_to_its_new_tables() {
    let mut guest = Guest::new();
    guest.map(IOVA, A, 1, RW);
    for _ in 0..3 {
        guest
            .unit
            .section(device(), |dma| dma.read_obj::<u64>(GuestAddress(IOVA)))
            .expect("mapped");
    }
    // The context entry goes; its place follows from the root table that the first pages of the tables are.
    let memory = Arc::clone(guest.unit.memory());
    let bus = GuestBus(&*memory);
    let mut tables = raw::RawTables::new(&bus, 0x3F_0000);
    tables.legacy_context(0x10_0000, DEVICE, [0, 0]);
    assert!(
        guest
            .unit
            .section(device(), |dma| dma.read_obj::<u64>(GuestAddress(IOVA)))
            .is_ok(),
        "cached"
    );
    guest.submit(&[descriptor::context_device(DOMAIN, DEVICE, 0)]);
    assert!(
        guest
            .unit
            .section(device(), |dma| dma.read_obj::<u64>(GuestAddress(IOVA)))
            .is_err()
    );
}

#[test]
fn requesters_do_not_share_answers() {
    let mut guest = Guest::new();
    guest.map(IOVA, A, 1, RW);
    for _ in 0..3 {
        guest
            .unit
            .section(device(), |dma| dma.read_obj::<u64>(GuestAddress(IOVA)))
            .expect("mapped");
    }
    let stranger = SourceId::from_raw(DEVICE + 1);
    assert!(
        guest
            .unit
            .section(stranger, |dma| dma.read_obj::<u64>(GuestAddress(IOVA)))
            .is_err()
    );
    let with_pasid = device().with_pasid(Pasid::new(1).expect("small"));
    assert!(
        guest
            .unit
            .section(with_pasid, |dma| dma.read_obj::<u64>(GuestAddress(IOVA)))
            .is_err()
    );
}

#[test]
fn a_wait_completes_when_the_last_open_section_closes() {
    let mut guest = Guest::new();
    guest.map(IOVA, A, 1, RW);
    let (first, second) = (guest.unit.enter(device()), guest.unit.enter(device()));
    guest.invalidate(descriptor::iotlb_domain(DOMAIN), 1);
    assert_eq!(guest.status(), 0);
    // Opened after the command: not waited for.
    let third = guest.unit.enter(device());
    drop(second);
    assert_eq!(guest.status(), 0);
    drop(first);
    assert_eq!(guest.status(), 1);
    // A second wait meanwhile waits for what is open then, and for the first.
    guest.invalidate(descriptor::iotlb_domain(DOMAIN), 2);
    guest.invalidate(descriptor::iotlb_domain(DOMAIN), 3);
    assert_eq!(guest.status(), 1);
    drop(third);
    assert_eq!(guest.status(), 3);
}

#[test]
fn a_wait_behind_any_single_command_waits_for_open_sections() {
    for command in [
        descriptor::CONTEXT_GLOBAL,
        descriptor::context_domain(DOMAIN),
        descriptor::context_device(DOMAIN, DEVICE, 0),
        descriptor::iotlb_pages(DOMAIN, IOVA, 0, true),
        descriptor::INTERRUPT_GLOBAL,
    ] {
        let guest = Guest::new();
        let section = guest.unit.enter(device());
        guest.invalidate(command, 1);
        assert_eq!(guest.status(), 0, "{command:x?}");
        drop(section);
        assert_eq!(guest.status(), 1, "{command:x?}");
    }
}

#[test]
fn neighbouring_pages_are_one_slice_and_a_hole_ends_it() {
    let mut guest = Guest::new();
    for (page, phys) in [A, A + 0x1000, A + 0x2000, B, B + 0x1000].into_iter().enumerate() {
        guest.map(IOVA + page as u64 * 0x1000, phys, 1, RW);
    }
    let section = guest.unit.enter(device());
    let parts = |at: u64, count: usize| slices(&section, at, count, Permissions::Write);
    let cold = parts(IOVA, 0x5000);
    assert_eq!(cold.iter().flatten().sum::<usize>(), 0x5000, "{cold:?}");
    assert_eq!(parts(IOVA, 0x5000).len(), 2, "once all are kept");
    assert_eq!(parts(IOVA, 0x5000), [Ok(0x3000), Ok(0x2000)]);
    assert_eq!(parts(IOVA + 0x800, 0x2000), [Ok(0x2000)]);
    assert_eq!(parts(IOVA + 0x800, 0x2801), [Ok(0x2800), Ok(1)]);
    // No fault is recorded for looking ahead.
    assert_eq!(guest.unit.counters().blocked, 0);
    let beyond = parts(IOVA + 0x4000, 0x2000);
    assert!(matches!(&beyond[..], [Ok(0x1000), Err(_)]), "{beyond:?}");
    assert_eq!(guest.unit.counters().blocked, 1);
}

#[test]
fn a_neighbour_without_the_right_is_not_taken_along() {
    let mut guest = Guest::new();
    guest.map(IOVA, A, 1, RW);
    guest.map(IOVA + 0x1000, A + 0x1000, 1, raw::SS_READ);
    let section = guest.unit.enter(device());
    for _ in 0..3 {
        let _ = slices(&section, IOVA, 0x2000, Permissions::Read);
    }
    assert_eq!(slices(&section, IOVA, 0x2000, Permissions::Read), [Ok(0x2000)]);
    let writes = slices(&section, IOVA, 0x2000, Permissions::Write);
    assert!(matches!(&writes[..], [Ok(0x1000), Err(_)]), "{writes:?}");
}

#[test]
fn more_sections_than_slots_are_waited_for_as_well() {
    let guest = Guest::new();
    let mut open: Vec<_> = (0..100).map(|_| guest.unit.enter(device())).collect();
    guest.invalidate(descriptor::iotlb_domain(DOMAIN), 1);
    let late: Vec<_> = (0..100).map(|_| guest.unit.enter(device())).collect();
    while let Some(section) = open.pop() {
        assert_eq!(guest.status(), 0, "{} still open", open.len() + 1);
        drop(section);
    }
    assert_eq!(guest.status(), 1);
    guest.invalidate(descriptor::iotlb_domain(DOMAIN), 2);
    assert_eq!(guest.status(), 1);
    drop(late);
    assert_eq!(guest.status(), 2);
    guest.invalidate(descriptor::iotlb_domain(DOMAIN), 3);
    assert_eq!(guest.status(), 3);
}

#[test]
fn a_command_through_registers_shows_as_under_way_until_it_is_drained() {
    let guest = Guest::new();
    let status = || guest.unit.read(offset::GSTS, AccessWidth::Dword);
    let before = status();
    let section = guest.unit.enter(device());
    guest.command(1 << 26 | 1 << 25);
    assert_eq!(status(), before, "TES still set");
    assert_eq!(
        guest.unit.read(offset::GCMD, AccessWidth::Qword) >> 32,
        before,
        "the 64-bit read shows the same"
    );
    drop(section);
    assert_eq!(status(), before & !(1 << 31));
}

#[test]
fn register_invalidation_keeps_its_flag_until_it_is_drained() {
    let mut guest = Guest::new();
    guest.map(IOVA, A, 1, RW);
    guest.command(1 << 31 | 1 << 25);
    let iotlb =
        vtd_spec::register::ExtendedCapability::new_with_raw_value(guest.unit.read(offset::ECAP, AccessWidth::Qword))
            .iotlb_offset();
    let section = guest.unit.enter(device());
    guest.unit.write(iotlb, AccessWidth::Qword, 1 << 63 | 1 << 60);
    guest.unit.write(offset::CCMD, AccessWidth::Qword, 1 << 63 | 1 << 61);
    assert_eq!(guest.unit.read(iotlb, AccessWidth::Qword) >> 63, 1);
    assert_eq!(guest.unit.read(iotlb + 4, AccessWidth::Dword) >> 31, 1);
    assert_eq!(guest.unit.read(offset::CCMD, AccessWidth::Qword) >> 63, 1);
    drop(section);
    assert_eq!(guest.unit.read(iotlb, AccessWidth::Qword) >> 63, 0);
    assert_eq!(
        guest.unit.read(iotlb, AccessWidth::Qword) >> 57 & 3,
        1,
        "granularity done: global"
    );
    assert_eq!(guest.unit.read(offset::CCMD, AccessWidth::Qword) >> 63, 0);
}

#[test]
fn protected_memory_shows_its_status_when_it_is_drained() {
    let config = UnitConfig::builder()
        .two_phase_waits(true)
        .protected_memory(true)
        .build()
        .expect("consistent");
    let guest = Guest::with(config, ());
    guest.unit.write(offset::PLMBASE, AccessWidth::Dword, 0x20_0000);
    guest.unit.write(offset::PLMLIMIT, AccessWidth::Dword, 0x3F_FFFF);
    let section = guest.unit.enter(device());
    guest.unit.write(offset::PMEN, AccessWidth::Dword, 1 << 31);
    assert_eq!(guest.unit.read(offset::PMEN, AccessWidth::Dword), 1 << 31);
    drop(section);
    assert_eq!(guest.unit.read(offset::PMEN, AccessWidth::Dword), 1 << 31 | 1);
}

const SECOND_TOP: u64 = 0x60_0000;
const QUEUE: u64 = 0x61_0000;
const DIRECTORY: u64 = 0x62_0000;

/// A unit in scalable mode whose [`DEVICE`] goes through nested tables: IOVA to guest page A, guest memory to itself in
/// large pages. Also the address of the first-stage leaf.
fn nested() -> (VmmUnit<Arc<Memory>>, u64) {
    let config = UnitConfig::builder()
        .two_phase_waits(true)
        .scalable_mode(true)
        .first_stage(true)
        .scalable_second_stage(true)
        .nested(true)
        .scalable_walk_coherency(true)
        .build()
        .expect("consistent");
    let memory = Memory::from_ranges(&[(GuestAddress(0), common::MEMORY)]).expect("memory");
    let (root, leaf) = {
        let bus = GuestBus(&memory);
        let mut tables = raw::RawTables::new(&bus, 0x40_0000);
        let (root, first) = (tables.page(), tables.page());
        for base in (0..common::MEMORY as u64).step_by(0x20_0000) {
            tables.second_stage(SECOND_TOP, 4, base, base, 2, RW | raw::PAGE_SIZE_BIT);
        }
        let flags = raw::FS_PRESENT | raw::FS_WRITE | raw::FS_USER;
        let leaf = tables.first_stage(first, 4, IOVA, A, 1, flags);
        let mut entry = raw::pasid_nested(first, 4, SECOND_TOP, 2, DOMAIN);
        // PWSNP, bit 87: first-stage flags are kept only by walks that snoop.
        entry[1] |= 1 << 23;
        tables.pasid(DIRECTORY, 0, entry);
        tables.scalable_context(root, DEVICE, raw::scalable_context_entry(DIRECTORY, 0, 0, 0));
        (root, leaf)
    };
    let unit = VmmUnit::new(config, Arc::new(memory), ()).expect("goes with threads");
    // 256-bit descriptors, scalable tables.
    unit.write(offset::IQA, AccessWidth::Qword, QUEUE | 1 << 11);
    unit.write(offset::RTADDR, AccessWidth::Qword, root | 1 << 10);
    for command in [1 << 26, 1 << 26 | 1 << 30, 1 << 26 | 1 << 31] {
        unit.write(offset::GCMD, AccessWidth::Dword, command);
    }
    (unit, leaf)
}

#[test]
fn the_first_write_through_a_page_that_was_read_sets_its_dirty_flag() {
    let (unit, leaf) = nested();
    let flags = |unit: &VmmUnit<Arc<Memory>>| {
        GuestBus(&**unit.memory())
            .read_u64(HostPhys::new(leaf))
            .expect("memory")
    };
    for _ in 0..3 {
        unit.section(device(), |dma| dma.read_obj::<u64>(GuestAddress(IOVA)))
            .expect("mapped");
    }
    assert_eq!(flags(&unit) & (raw::FS_ACCESSED | raw::FS_DIRTY), raw::FS_ACCESSED);
    unit.section(device(), |dma| dma.write_obj(1u64, GuestAddress(IOVA)))
        .expect("mapped");
    assert_eq!(
        flags(&unit) & (raw::FS_ACCESSED | raw::FS_DIRTY),
        raw::FS_ACCESSED | raw::FS_DIRTY
    );
    // Nor does the software's clearing it count before it is invalidated.
    for _ in 0..3 {
        unit.section(device(), |dma| dma.write_obj(1u64, GuestAddress(IOVA)))
            .expect("mapped");
    }
    assert_eq!(unit.counters().blocked, 0);
}

#[test]
fn a_page_command_for_the_second_stage_drops_nested_pages_at_other_addresses() {
    let (unit, _) = nested();
    let bus = GuestBus(&**unit.memory());
    let place = || {
        let place = unit.section(device(), |dma| dma.translate(Iova::new(IOVA), 8, Access::Read));
        place.expect("mapped").phys.raw()
    };
    for _ in 0..4 {
        assert_eq!(place(), A);
    }
    // The guest page moves within host memory; the command names it, not the IOVA.
    let mut tables = raw::RawTables::new(&bus, 0x50_0000);
    tables.second_stage(SECOND_TOP, 4, A, 0x80_0000, 2, RW | raw::PAGE_SIZE_BIT);
    assert_eq!(place(), A, "cached");
    let wide = descriptor::wide(descriptor::iotlb_pages(DOMAIN, A, 0, true));
    for (word, at) in wide.into_iter().zip((QUEUE..).step_by(8)) {
        bus.write_u64(HostPhys::new(at), word).expect("memory");
    }
    unit.write(offset::IQT, AccessWidth::Qword, 1 << 5);
    assert_eq!(unit.read(offset::IQH, AccessWidth::Qword), 1 << 5);
    assert_eq!(place(), 0x80_0000);
}
