//! The interface over an address space that fails on demand, over nothing, and over an aperture.
#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

mod common;

use common::{Refused, Space, bytes, paint};
use iommu_dma::{
    Aperture, ApertureUnit, Backend, BouncePool, Buffer, Device, Direct, Direction, DmaApi, DmaError, DmaSegment,
    Invalidation, Kind, Mapping, Translated, TranslatedError, Trust, UnmapError,
};
use iommu_iova::{CachedAllocator, IovaSpace, ReferenceAllocator};
use iommu_testkit::SparseMemory;
use iommu_types::{AddressSpace, HostPhys, Iova, SystemMemory};
use proptest::prelude::*;

const POOL: u64 = 0x80_0000;

type OverSpace<'a> = Translated<&'a Space, ReferenceAllocator>;

fn over<'a>(space: &'a Space, memory: &'a SparseMemory, how: Invalidation) -> DmaApi<OverSpace<'a>, &'a SparseMemory> {
    let iovas = ReferenceAllocator::new(IovaSpace::new(space.aperture()).expect("large"));
    DmaApi::new(Translated::new(space, iovas, how), memory).with_pool(pool())
}

fn pool() -> BouncePool {
    BouncePool::new(HostPhys::new(POOL), 0x10_0000, 2).expect("whole pages")
}

fn memory() -> SparseMemory {
    SparseMemory::builder().ram(0, 1 << 30).ram(1 << 32, 1 << 30).build()
}

fn buffer(at: u64, len: u64) -> Buffer {
    Buffer::new(HostPhys::new(at), len)
}

fn segments<B: Backend>(mapping: &Mapping<B>) -> Vec<(u64, u64)> {
    mapping.segments().iter().map(|s| (s.address.raw(), s.len)).collect()
}

/// What a device does: reads or writes the bytes of segments, one after the other, where the translation leads.
fn each_byte(segments: &[DmaSegment], mut act: impl FnMut(Iova, u64)) {
    let all = segments
        .iter()
        .flat_map(|s| (0..s.len).map(move |n| s.address.checked_add(n).expect("in range")));
    for (n, at) in (0..).zip(all) {
        act(at, n);
    }
}

fn device_writes(space: &Space, memory: &SparseMemory, list: &[DmaSegment], value: impl Fn(u64) -> u8) {
    each_byte(list, |at, n| {
        let phys = space
            .translate(at, true)
            .unwrap_or_else(|| panic!("write to {at} blocked"));
        memory.write(phys, &[value(n)]).expect("memory");
    });
}

#[test]
fn two_pages_that_lie_apart_become_one_transfer() {
    let (space, memory) = (Space::default(), memory());
    let api = over(&space, &memory, Invalidation::Strict);
    let mut core = api.new_core();
    let device = Device::with_address_bits(32);
    let list = [buffer(0x1_2000_7000, 0x1000), buffer(0x3000, 0x1000)];
    let mapping = api
        .map_sg(&mut core, &device, &list, Direction::FromDevice)
        .expect("room");
    let whole = mapping.segment().expect("one segment");
    assert_eq!(whole.len, 0x2000);
    assert!(
        whole.address.raw() + 0x1fff <= 0xffff_ffff,
        "a high buffer for a narrow device, and no copy"
    );
    assert_eq!(mapping.bounced_bytes(), 0);

    device_writes(&space, &memory, mapping.segments(), |n| if n < 0x1000 { 1 } else { 2 });
    assert_eq!(
        space.translate(whole.address, false),
        None,
        "writing was granted, reading was not"
    );
    api.unmap(&mut core, mapping).expect("confirmed");
    assert_eq!(space.translate(whole.address, true), None);
    assert_eq!(bytes(&memory, 0x1_2000_7fff, 1), [1]);
    assert_eq!(bytes(&memory, 0x3000, 1), [2]);
    let counters = api.counters(&core);
    assert_eq!((counters.iovas, counters.segments, counters.buffers), (1, 1, 2));
    assert_eq!((counters.invalidations, space.flushes()), (1, 1));
}

#[test]
fn boundary_padding_leaves_holes_that_no_device_reaches() {
    type Case = (&'static [u64], &'static [(u64, u64)]);
    let (space, memory) = (Space::default(), memory());
    let api = over(&space, &memory, Invalidation::Strict);
    let mut core = api.new_core();
    let device = Device::with_address_bits(39).boundary_mask(0xffff);
    // Lengths, and what must come out of them, relative to the block.
    let cases: [Case; 2] = [
        (&[0x8000, 0x9000, 0x1000], &[(0, 0x8000), (0x1_0000, 0xa000)]),
        (&[0xf000, 0x1000, 0x2000], &[(0, 0x1_0000), (0x1_0000, 0x2000)]),
    ];
    for (lens, expected) in cases {
        let list: Vec<_> = (1..).zip(lens).map(|(n, &len)| buffer(n << 20, len)).collect();
        let mapping = api
            .map_sg(&mut core, &device, &list, Direction::ToDevice)
            .expect("room");
        let base = mapping.segments()[0].address.raw();
        assert_eq!(base % 0x2_0000, 0, "aligned to its size");
        let relative: Vec<_> = segments(&mapping).iter().map(|&(at, len)| (at - base, len)).collect();
        assert_eq!(relative, expected);
        let total: u64 = lens.iter().sum();
        assert_eq!(
            space.mapped_pages(),
            usize::try_from(total / 0x1000).expect("small"),
            "and not a page more"
        );
        api.unmap(&mut core, mapping).expect("confirmed");
        assert_eq!(space.reachable_pages(), 0);
    }
}

#[test]
fn without_an_iommu_a_narrow_device_is_served_by_copies() {
    let memory = memory();
    let api = DmaApi::new(Direct, &memory).with_pool(pool());
    assert_eq!(api.kind(), Kind::Direct);
    assert!(api.kind().to_string().contains("NO ISOLATION"));
    let mut core = api.new_core();
    let device = Device::with_address_bits(32).min_align_mask(0xfff);
    paint(&memory, 0x1_0000_0123, 0x3000, 7);
    let high = buffer(0x1_0000_0123, 0x3000);

    let mapping = api
        .map(&mut core, &device, high, Direction::Bidirectional)
        .expect("room");
    let copy = mapping.segment().expect("one run");
    assert!((POOL..POOL + 0x10_0000).contains(&copy.address.raw()));
    assert_eq!(copy.address.page_offset(), 0x123, "address bits the device relies on");
    assert_eq!(
        bytes(&memory, copy.address.raw(), 0x3000),
        bytes(&memory, 0x1_0000_0123, 0x3000)
    );

    memory
        .write(HostPhys::new(copy.address.raw() + 0x10), &[0xaa; 4])
        .expect("memory");
    assert_ne!(bytes(&memory, 0x1_0000_0133, 4), [0xaa; 4]);
    api.sync_for_cpu(&mut core, &mapping, 0x11, 2).expect("memory");
    assert_eq!(
        bytes(&memory, 0x1_0000_0134, 2),
        [0xaa; 2],
        "the part that was asked for"
    );
    assert_ne!(bytes(&memory, 0x1_0000_0136, 1), [0xaa], "and no other");
    memory.write(HostPhys::new(0x1_0000_0123), &[0x55]).expect("memory");
    api.sync_for_device(&mut core, &mapping, 0, 1).expect("memory");
    assert_eq!(bytes(&memory, copy.address.raw(), 1), [0x55]);
    api.unmap(&mut core, mapping).expect("nothing to confirm");
    assert_eq!(bytes(&memory, 0x1_0000_0133, 4), [0xaa; 4]);
    assert_eq!(api.pool().expect("given").used_slots(), 0);
    assert_eq!(api.counters(&core).bounced_bytes, 2 * 0x3000 + 2 + 1);

    let low = api
        .map(&mut core, &device, buffer(0x5010, 0x20), Direction::ToDevice)
        .expect("reached directly");
    assert_eq!(segments(&low), [(0x5010, 0x20)]);
    api.unmap(&mut core, low).expect("nothing to confirm");
    let long = api.map(&mut core, &device, buffer(1 << 32, 0x4_0001), Direction::ToDevice);
    assert!(matches!(long, Err(DmaError::BounceTooLarge { max: 0x4_0000, .. })));
    let plain = DmaApi::new(Direct, &memory);
    let refused = plain.map(&mut plain.new_core(), &device, high, Direction::ToDevice);
    assert!(matches!(refused, Err(DmaError::Unreachable { .. })));
}

#[test]
fn an_untrusted_device_sees_its_buffer_and_zeroes() {
    let (space, memory) = (Space::default(), memory());
    let api = over(&space, &memory, Invalidation::Deferred { entries: 8 });
    let mut core = api.new_core();
    let device = Device::with_address_bits(39).trust(Trust::Untrusted);
    paint(&memory, 0, 0x10_0000, 1);
    // A page's inside; head and tail; head only; tail only; whole pages.
    let cases = [
        (0x5100, 0x200, 0x200),
        (0x5f00, 0x1_0200, 0x200),
        (0x5800, 0x1800, 0x800),
        (0x5000, 0x1010, 0x10),
        (0x5000, 0x2000, 0),
    ];
    for (at, len, bounced) in cases {
        paint(&memory, POOL, 0x4000, 99);
        let before = bytes(&memory, at - 0x1000, usize::try_from(len).expect("small") + 0x2000);
        let mapping = api
            .map(&mut core, &device, buffer(at, len), Direction::Bidirectional)
            .expect("room");
        assert_eq!(mapping.bounced_bytes(), bounced, "{len:#x} bytes at {at:#x}");
        let whole = mapping.segment().expect("one segment");
        let (first, end) = (
            whole.address.page().raw(),
            (whole.address.raw() + len).next_multiple_of(0x1000),
        );
        for iova in first..end {
            let phys = space.translate(Iova::new(iova), false).expect("mapped").raw();
            let inside = (whole.address.raw()..whole.address.raw() + len).contains(&iova);
            let seen = bytes(&memory, phys, 1)[0];
            let offset = usize::try_from(iova.wrapping_sub(whole.address.raw()).wrapping_add(0x1000)).unwrap_or(0);
            assert_eq!(seen, if inside { before[offset] } else { 0 }, "at {iova:#x}");
        }
        device_writes(&space, &memory, mapping.segments(), |n| {
            u8::try_from(n % 13).expect("small")
        });
        api.unmap(&mut core, mapping).expect("confirmed");
        assert_eq!(space.reachable_pages(), 0, "strict, whatever the policy");
        let after = bytes(&memory, at - 0x1000, before.len());
        for (n, (&new, &old)) in (0..).zip(after.iter().zip(&before)) {
            let inside = (0x1000..0x1000 + len).contains(&n);
            assert_eq!(
                new,
                if inside {
                    u8::try_from((n - 0x1000) % 13).expect("small")
                } else {
                    old
                }
            );
        }
        memory.write(HostPhys::new(at - 0x1000), &before).expect("memory");
    }
    assert_eq!(api.pool().expect("given").used_slots(), 0);
}

#[test]
fn deferred_unmaps_keep_their_addresses_until_one_flush_for_all() {
    let (space, memory) = (Space::default(), memory());
    let api = over(&space, &memory, Invalidation::Deferred { entries: 4 });
    let mut core = api.new_core();
    let device = Device::with_address_bits(39);
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..4u64 {
        let mapping = api
            .map(
                &mut core,
                &device,
                buffer(0x1000 * (n + 1), 0x1000),
                Direction::ToDevice,
            )
            .expect("room");
        let at = mapping.segment().expect("one").address;
        assert!(seen.insert(at), "{at} came back before the flush");
        api.unmap(&mut core, mapping).expect("queued");
        assert!(space.translate(at, false).is_some(), "the window that deferring opens");
    }
    assert_eq!(space.flushes(), 0);
    let fifth = api
        .map(&mut core, &device, buffer(0x9000, 0x1000), Direction::ToDevice)
        .expect("room");
    api.unmap(&mut core, fifth).expect("queued");
    assert_eq!(
        (space.flushes(), space.reachable_pages()),
        (1, 1),
        "a full queue is flushed as one"
    );
    api.flush(&mut core).expect("confirmed");
    assert_eq!((space.flushes(), space.reachable_pages()), (2, 0));
    assert_eq!(api.backend().iovas().live_pages(), 0);
    let counters = api.retire(core).expect("empty");
    assert_eq!((counters.maps, counters.unmaps, counters.invalidations), (5, 5, 2));
}

#[test]
fn an_unconfirmed_unmap_keeps_address_and_copy_until_a_retry_succeeds() {
    let (space, memory) = (Space::default(), memory());
    let api = over(&space, &memory, Invalidation::Strict);
    let mut core = api.new_core();
    let device = Device::with_address_bits(39).trust(Trust::Untrusted);
    let mapping = api
        .map(&mut core, &device, buffer(0x5100, 0x20), Direction::FromDevice)
        .expect("room");
    device_writes(&space, &memory, mapping.segments(), |_| 0x77);
    space.hang(true);
    let Err(UnmapError::Unconfirmed(stuck)) = api.unmap(&mut core, mapping) else {
        panic!("confirmed by nobody")
    };
    assert!(matches!(stuck.error(), TranslatedError::Space(Refused::Timeout)));
    assert_eq!(
        (
            api.backend().iovas().live_pages(),
            api.pool().expect("given").used_slots()
        ),
        (1, 2)
    );
    let Err(UnmapError::Unconfirmed(stuck)) = api.retry(&mut core, stuck) else {
        panic!("confirmed by nobody")
    };
    space.hang(false);
    api.retry(&mut core, stuck).expect("confirmed");
    assert_eq!(
        (
            api.backend().iovas().live_pages(),
            api.pool().expect("given").used_slots()
        ),
        (0, 0)
    );
    assert_eq!(bytes(&memory, 0x5100, 0x20), [0x77; 0x20]);
}

#[test]
fn a_deferred_queue_survives_hardware_that_hangs() {
    let (space, memory) = (Space::default(), memory());
    let api = over(&space, &memory, Invalidation::Deferred { entries: 2 });
    let mut core = api.new_core();
    let device = Device::with_address_bits(39);
    let map = |core: &mut _| {
        api.map(core, &device, buffer(0x1000, 0x1000), Direction::ToDevice)
            .expect("room")
    };
    let three = [map(&mut core), map(&mut core), map(&mut core)];
    space.hang(true);
    let mut stuck = Vec::new();
    for mapping in three {
        if let Err(UnmapError::Unconfirmed(one)) = api.unmap(&mut core, mapping) {
            stuck.push(one);
        }
    }
    assert_eq!(stuck.len(), 1, "the queue is bounded: what does not fit is told");
    assert!(api.flush(&mut core).is_err());
    assert_eq!(api.backend().iovas().live_pages(), 3, "no address is free");
    space.hang(false);
    api.retry(&mut core, stuck.pop().expect("one")).expect("confirmed");
    api.flush(&mut core).expect("confirmed");
    assert_eq!(api.backend().iovas().live_pages(), 0);
}

#[test]
fn a_list_that_fails_half_way_leaves_nothing_mapped() {
    let (space, memory) = (Space::default(), memory());
    let api = over(&space, &memory, Invalidation::Strict);
    let mut core = api.new_core();
    let list = [buffer(0x1010, 0x10), buffer(0x3000, 0x1000), buffer(0x5000, 0x10)];
    for trust in [Trust::Trusted, Trust::Untrusted] {
        let device = Device::with_address_bits(39).trust(trust);
        for n in 0..3 {
            space.fail_map_after(n);
            let failed = api.map_sg(&mut core, &device, &list, Direction::ToDevice);
            assert!(matches!(
                failed,
                Err(DmaError::Backend(TranslatedError::Space(Refused::OnPurpose)))
            ));
            assert_eq!((space.reachable_pages(), api.backend().iovas().live_pages()), (0, 0));
            assert_eq!(api.pool().expect("given").used_slots(), 0);
        }
    }
}

#[test]
fn a_mapping_that_may_be_reachable_after_all_keeps_its_addresses_and_copies() {
    for (list, pages, slots) in [
        // One run, which takes the short way; a list whose middle fails; parts of pages, which are copied.
        (&[buffer(0x3000, 0x1000)][..], 1, 0),
        (&[buffer(0x3000, 0x1000), buffer(0x8000, 0x2000)][..], 3, 0),
        (&[buffer(0x3010, 0x10), buffer(0x8000, 0x1000)][..], 2, 2),
    ] {
        let trust = if slots == 0 { Trust::Trusted } else { Trust::Untrusted };
        let device = Device::with_address_bits(39).trust(trust);
        for n in 0..u64::try_from(list.len()).expect("small") {
            let (space, memory) = (Space::default(), memory());
            let api = over(&space, &memory, Invalidation::Strict);
            let mut core = api.new_core();
            space.lose_maps();
            space.fail_map_after(n);
            let failed = match list {
                [one] => api.map(&mut core, &device, *one, Direction::ToDevice),
                list => api.map_sg(&mut core, &device, list, Direction::ToDevice),
            };
            let error = failed.expect_err("one piece fails");
            assert!(
                matches!(error, DmaError::Unconfirmed(TranslatedError::Space(Refused::Timeout))),
                "{error}"
            );
            assert!(error.to_string().contains("may reach"), "{error}");
            assert!(space.reachable_pages() > 0);
            assert_eq!(space.mapped_pages(), 0, "what was mapped went again");
            let used = api.pool().expect("given").used_slots();
            assert_eq!((api.backend().iovas().live_pages(), used), (pages, slots));
        }
    }
}

#[test]
fn coherent_memory_is_one_aligned_block_of_whole_pages() {
    let (space, memory) = (Space::default(), memory());
    let api = over(&space, &memory, Invalidation::Strict);
    let mut core = api.new_core();
    let device = Device::with_address_bits(32).max_segment(0x1000);
    let pages = [buffer(0x9000, 0x1000), buffer(0x3000, 0x2000)];
    let ring = api.map_coherent(&mut core, &device, &pages).expect("room");
    let whole = ring.segment().expect("one block, whatever the limit on segments");
    assert_eq!((whole.len, whole.address.raw() % 0x4000), (0x3000, 0));
    api.unmap(&mut core, ring).expect("confirmed");
    let part = api.map_coherent(&mut core, &device, &[buffer(0x9000, 0x800)]);
    assert!(matches!(part, Err(DmaError::NotPages { .. })));

    let direct = DmaApi::new(Direct, &memory);
    let mut core = direct.new_core();
    assert!(matches!(
        direct.map_coherent(&mut core, &device, &pages),
        Err(DmaError::Unreachable { .. })
    ));
    let run = [buffer(0x9000, 0x1000), buffer(0xa000, 0x1000)];
    let ring = direct.map_coherent(&mut core, &device, &run).expect("one run");
    assert_eq!(segments(&ring), [(0x9000, 0x2000)]);
    direct.unmap(&mut core, ring).expect("nothing to confirm");
}

#[test]
fn empty_and_wrapping_buffers_are_refused_by_place() {
    let memory = memory();
    let api = DmaApi::new(Direct, &memory);
    let mut core = api.new_core();
    let device = Device::with_address_bits(64);
    let map = |core: &mut _, list: &[Buffer]| api.map_sg(core, &device, list, Direction::ToDevice).map(drop);
    assert!(matches!(map(&mut core, &[]), Err(DmaError::Empty { index: 0 })));
    assert!(matches!(
        map(&mut core, &[buffer(1, 1), buffer(1, 0)]),
        Err(DmaError::Empty { index: 1 })
    ));
    assert!(matches!(
        map(&mut core, &[buffer(u64::MAX, 2)]),
        Err(DmaError::Wraps { .. })
    ));
    assert!(matches!(
        map(&mut core, &[buffer(0x1000, u64::MAX)]),
        Err(DmaError::Wraps { .. })
    ));
}

#[test]
fn an_aperture_joins_pages_for_everybody_and_protects_nobody() {
    let memory = memory();
    let unit = ApertureUnit::new();
    let (base, len) = (0x8000_0000, 32 << 20);
    let aperture = Aperture::new(&unit, &memory, Iova::new(base), len, HostPhys::new(0x10_0000)).expect("a window");
    let api = DmaApi::new(aperture, &memory).with_pool(pool());
    assert_eq!(api.kind(), Kind::Aperture);
    assert!(!api.kind().isolates());
    let mut core = api.new_core();
    let device = Device::with_address_bits(32);

    let near = api
        .map(&mut core, &device, buffer(0x5010, 0x20), Direction::ToDevice)
        .expect("reached directly");
    assert_eq!(segments(&near), [(0x5010, 0x20)]);
    api.unmap(&mut core, near).expect("nothing to confirm");

    let list = [buffer(0x1_0000_7000, 0x1000), buffer(0x3000, 0x1000)];
    let mapping = api
        .map_sg(&mut core, &device, &list, Direction::ToDevice)
        .expect("room");
    let whole = mapping.segment().expect("one segment");
    assert_eq!((whole.len, mapping.bounced_bytes()), (0x2000, 0));
    let runs = iommu_dma::aperture_runs(&unit, &memory, whole.address, 0x2000).expect("translated");
    assert_eq!(
        runs, list,
        "any device's access goes there: the hardware does not ask who"
    );
    let elsewhere = unit.translate(&memory, Iova::new(0x1234)).expect("outside the window");
    assert_eq!(elsewhere, HostPhys::new(0x1234), "all other memory is open");
    api.unmap(&mut core, mapping).expect("confirmed");
    assert!(
        unit.translate(&memory, whole.address).is_err(),
        "what was cached is forgotten"
    );
    assert_eq!(api.counters(&core).invalidations, 1);

    // The window is full: a copy still works.
    let filler: Vec<_> = (0..2).map(|n| buffer((1 << 32) + (n << 25), 0xff_f000 + n)).collect();
    let held = api
        .map_sg(&mut core, &device, &filler, Direction::ToDevice)
        .expect("room");
    let narrow = api
        .map(&mut core, &device, buffer(0x1_2000_0000, 0x3000), Direction::ToDevice)
        .expect("a copy");
    assert_eq!(narrow.bounced_bytes(), 0x3000);
    api.unmap(&mut core, narrow).expect("nothing to confirm");
    api.unmap(&mut core, held).expect("confirmed");
}

#[test]
fn aperture_entries_match_their_layout_and_bad_windows_are_refused() {
    let memory = memory();
    let unit = ApertureUnit::new();
    let make = |base, len, table| Aperture::new(&unit, &memory, Iova::new(base), len, HostPhys::new(table)).map(|_| ());
    assert!(make(0x8000_0000, 31 << 20, 0).is_err());
    assert!(make(0x8000_0000, 2 << 30, 0).is_err());
    assert!(make(0x8100_0000, 32 << 20, 0).is_err());
    assert!(make(0xffff_ffff_8000_0000, 32 << 20, 0).is_err());
    assert!(make(0x8000_0000, 32 << 20, 0x800).is_err());
    let aperture = Aperture::new(
        &unit,
        &memory,
        Iova::new(0x8000_0000),
        32 << 20,
        HostPhys::new(0x10_0000),
    );
    let api = DmaApi::new(aperture.expect("a window"), &memory);
    let mut core = api.new_core();
    let device = Device::with_address_bits(32);
    let mapping = api
        .map(&mut core, &device, buffer(0x1_2345_6000, 0x1000), Direction::ToDevice)
        .expect("room");
    let page = (mapping.segments()[0].address.raw() - 0x8000_0000) >> 12;
    assert_eq!(bytes(&memory, 0x10_0000 + 4 * page, 4), 0x2345_6011u32.to_le_bytes());
    api.unmap(&mut core, mapping).expect("confirmed");
    assert_eq!(bytes(&memory, 0x10_0000 + 4 * page, 4), [0; 4]);
    let beyond = api.map(&mut core, &device, buffer(1 << 40, 0x1000), Direction::ToDevice);
    assert!(matches!(beyond, Err(DmaError::Unreachable { .. })), "{beyond:?}");
}

fn a_buffer() -> impl Strategy<Value = (u64, u64)> {
    let offset = prop_oneof![3 => Just(0u64), 1 => 0u64..0x1000];
    let len = prop_oneof![2 => Just(0x1000u64), 1 => Just(0x3000u64), 2 => 1u64..0x2800];
    (offset, len)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_arrives_within_the_limits(
        buffers in prop::collection::vec(a_buffer(), 1..12),
        untrusted in any::<bool>(),
        narrow in any::<bool>(),
        max in prop_oneof![Just(u64::MAX), Just(0x1000u64), Just(0x2345u64)],
        boundary in prop_oneof![Just(u64::MAX), Just(0xfffu64), Just(0x3fffu64)],
    ) {
        let memory = memory();
        let list: Vec<_> = (1..).zip(&buffers).map(|(n, &(offset, len))| buffer(n * 0x1_0000 + offset + (1 << 32), len)).collect();
        let total: u64 = list.iter().map(|b| b.len).sum();
        let device = Device::with_address_bits(if narrow { 32 } else { 39 })
            .max_segment(max)
            .boundary_mask(boundary)
            .trust(if untrusted { Trust::Untrusted } else { Trust::Trusted });
        let check = |list: &[DmaSegment]| {
            for s in list {
                let last = s.address.raw() + s.len - 1;
                assert!(s.len <= max && last <= device.mask().raw(), "{s:?}");
                assert!(boundary == u64::MAX || s.address.raw() & !boundary == last & !boundary, "{s:?}");
            }
            assert_eq!(list.iter().map(|s| s.len).sum::<u64>(), total);
        };
        let value = |n: u64| u8::try_from(n % 241).expect("small");
        let arrived = |memory: &SparseMemory| {
            let mut n = 0;
            for b in &list {
                for got in bytes(memory, b.phys.raw(), usize::try_from(b.len).expect("small")) {
                    assert_eq!(got, value(n), "byte {n}");
                    n += 1;
                }
            }
        };

        let space = Space::default();
        let iovas = CachedAllocator::new(IovaSpace::new((&space).aperture()).expect("large"));
        let api = DmaApi::new(Translated::new(&space, iovas, Invalidation::Strict), &memory).with_pool(pool());
        let mut core = api.new_core();
        let mapping = api.map_sg(&mut core, &device, &list, Direction::FromDevice).expect("room");
        check(mapping.segments());
        device_writes(&space, &memory, mapping.segments(), value);
        api.unmap(&mut core, mapping).expect("confirmed");
        arrived(&memory);
        prop_assert_eq!(space.reachable_pages(), 0);

        for b in &list {
            paint(&memory, b.phys.raw(), b.len, 3);
        }
        let direct = DmaApi::new(Direct, &memory).with_pool(pool());
        let mut core = direct.new_core();
        let mapping = direct.map_sg(&mut core, &device, &list, Direction::FromDevice).expect("room");
        check(mapping.segments());
        each_byte(mapping.segments(), |at, n| memory.write(HostPhys::new(at.raw()), &[value(n)]).expect("memory"));
        direct.unmap(&mut core, mapping).expect("nothing to confirm");
        arrived(&memory);
    }
}
