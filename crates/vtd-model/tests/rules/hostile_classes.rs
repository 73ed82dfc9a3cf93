//! The classes of hostile input that broke other emulated units, one test each, named after the class.
//!
//! | class | hostile input | tests |
//! |---|---|---|
//! | S-01 | interrupt index behind the table | `hostile_classes.rs` `s01_an_interrupt_index_behind_the_table_faults_without_a_look_behind_it` |
//! | S-02 | translation raced by invalidation and table edits | `vtd-vmm/tests/loom.rs` `after_the_wait_of_a_page_command_nobody_uses_the_page`, `after_the_wait_of_a_domain_command_nobody_uses_the_domain`, `after_the_wait_of_a_global_command_nobody_uses_anything`; `vtd-vmm/tests/stress.rs` `after_a_page_invalidation_nobody_writes_to_the_old_frame`, `after_a_domain_invalidation_nobody_writes_to_the_old_frame`, `after_a_global_invalidation_nobody_writes_to_the_old_frame` |
//! | S-03 | a page-selective flush over mixed page sizes | `hostile_classes.rs` `s03_a_page_flush_drops_every_entry_that_overlaps_it_whatever_its_size` |
//! | S-04 | a domain or global flush with listeners | `hostile_classes.rs` `s04_domain_and_global_flushes_reach_the_embedders_store_in_full`; `vtd-vmm/tests/registers.rs` `entries_are_kept_until_they_are_invalidated_and_the_listener_knows_before_the_wait_completes`, `a_wait_stays_open_until_the_device_has_dropped_its_entries` |
//! | S-05 | every offset, width, value; every descriptor | `hostile_classes.rs` `s05_no_offset_width_value_or_descriptor_ends_in_a_panic`; `hostile.rs` `every_offset_and_width_is_defined`, `any_program_ends` |
//! | S-06 | unsupported levels | `hostile_classes.rs` `s06_only_supported_levels_are_walked_and_the_highest_index_stays_in_its_table` |
//! | S-07 | address masks | `hostile_classes.rs` `s07_address_masks_above_the_limit_stop_the_queue_and_no_mask_shifts_too_far` |
//! | S-08 | high bits in fault records | `hostile_classes.rs` `s08_a_fault_record_with_all_high_bits_is_exact` |
//! | S-09 | keys that differ in high bits | `hostile_classes.rs` `s09_requesters_domains_and_pasids_that_differ_in_one_bit_never_share` |
//! | S-10 | first accesses of new requesters at once | `hostile_classes.rs` `s10_first_accesses_of_many_requesters_at_once_each_find_their_own_tables` |
//! | S-11 | reads all over the window | `hostile_classes.rs` `s11_only_registers_of_the_specification_hold_anything` |
//! | S-12 | bytes that leave the unit | `hostile_classes.rs` `s12_every_byte_that_leaves_the_unit_is_accounted_for` |
//! | S-13 | tails out of range, misaligned, moved | `hostile_classes.rs` `s13_a_moving_or_impossible_tail_never_makes_the_queue_run_on` |
//! | S-14 | page tables that point to themselves or upwards | `hostile_classes.rs` `s14_tables_that_point_to_themselves_or_upwards_end_after_their_levels` |
//! | S-15 | malformed entries | `hostile_tables.rs` `s15_no_malformed_entry_lets_a_request_through_untranslated`, `s15_no_malformed_scalable_entry_lets_a_request_through_untranslated`, `s15_no_malformed_interrupt_entry_delivers_what_the_device_wrote` |
//! | S-16 | sizes and both sides of their limits | `hostile_tables.rs` `s16_every_table_and_queue_size_ends_where_its_field_says` |
//! | S-17 | renumbered buses | `hostile_tables.rs` `s17_translation_follows_the_requester_id_after_buses_are_renumbered` |
//! | S-18 | truncated, oversized, repeated queue records | `hostile_tables.rs` `s18_a_rejected_record_changes_nothing_and_a_repeated_one_stays_rejected` |
//! | S-19 | ranges at the end of the number space | `hostile_tables.rs` `s19_ranges_up_to_the_end_of_the_number_space_equal_plain_arithmetic` |
//! | S-20 | cached results across mode changes | `hostile_tables.rs` `s20_no_cached_result_crosses_a_change_of_mode` |
//! | S-21 | a device asked to leave its buffer | `iommu-devices/src/dma_engine/tests.rs` `ranges_outside_the_buffer_are_refused_without_a_request` |
//! | S-22 | structures in the unit's own registers | `hostile_tables.rs` `s22_structures_in_the_units_own_registers_end_in_defined_errors` |
//! | S-23 | tail at and behind every queue size | `hostile_classes.rs` `s23_a_tail_at_or_behind_every_queue_size_stops_at_once` |
//! | S-24 | largest index of every kind | `hostile_tables.rs` `s24_the_largest_index_of_every_kind_has_a_defined_outcome` |
//!
//! `documents.rs` holds this table against the sources: each class has a test, and each test named here exists.
//!
//! What a guest can make the unit spend is in `hostile_bounds.rs`.

use std::cell::RefCell;
use std::rc::Rc;

use iommu_testkit::Random;
use iommu_testkit::raw::{self, descriptor, translation_type};
use iommu_types::{DomainId, Iova, Pasid, SourceId};
use vtd_model::cache::{Invalidation, IotlbInvalidation, PageBlock, Stamp};
use vtd_model::{
    AccessWidth, CacheSizes, Caches, Profile, Request, TranslationCache, Unit, UnitConfigBuilder, translate,
};
use vtd_spec::access;
use vtd_spec::register::{FaultRecord, QueueError, offset};

use crate::rig::{DID, MEMORY, NIC, QUEUE, Rig, STATUS, spec};

pub(crate) const RW: u64 = raw::SS_READ | raw::SS_WRITE;
pub(crate) const FS_ALL: u64 = raw::FS_PRESENT | raw::FS_WRITE | raw::FS_USER;

pub(crate) fn full() -> UnitConfigBuilder {
    spec().full_scalable_mode().device_tlb(true)
}

/// The NIC in scalable mode with a directory of `2^(pdts + 7)` entries; the rig and the directory.
pub(crate) fn with_pasids(builder: UnitConfigBuilder, pdts: u64) -> (Rig, u64) {
    let mut rig = Rig::scalable(builder);
    let directory = rig.tables.pages(32);
    let entry = raw::scalable_context_entry(directory, pdts, 0, 1 << 2 | 1 << 3);
    rig.tables.scalable_context(rig.root, NIC, entry);
    (rig, directory)
}

/// A PASID entry of 4-level first-stage tables whose walks snoop, as flags in tables need.
pub(crate) fn first_stage(top: u64) -> [u64; 8] {
    let mut words = raw::pasid_first_stage(top, 4, DID);
    words[1] |= 1 << 23;
    words
}

pub(crate) fn asks(pasid: u32, address: u64) -> Request {
    Request::read(SourceId::from_raw(NIC), Iova::new(address), 8).with_pasid(Pasid::new(pasid).expect("20 bits"))
}

/// Starts the queue anew with `words` at its beginning.
fn restart_queue(rig: &mut Rig, words: &[u64], tail: u64) {
    rig.command(|c| c.with_qie(false));
    rig.write32(offset::FSTS, 0x71);
    rig.write64(offset::IQT, 0);
    rig.tables.put_words(QUEUE, words);
    rig.command(|c| c.with_qie(true));
    rig.write64(offset::IQT, tail);
    rig.settle();
}

#[test]
fn s01_an_interrupt_index_behind_the_table_faults_without_a_look_behind_it() {
    for s in 0..16u64 {
        let mut rig = Rig::new(spec());
        rig.enable_queue();
        let table = rig.tables.pages(256);
        rig.write64(offset::IRTA, table | s);
        rig.command(|c| c.with_sirtp(true));
        rig.command(|c| c.with_ire(true));
        let len = 2u64 << s;
        rig.tables.irte(table, 0, raw::irte(0x31, 0, 0));
        // A read behind the table would come back as 23h.
        rig.break_bus(table + 16 * len, MEMORY - table - 16 * len);
        let outside = [(len, 0), (len - 1, 1), (len - 1, 0xFFFF), (0xFFFF, 1), (0xFFFF, 0xFFFF)];
        for (handle, sub) in outside {
            let Ok(handle) = u16::try_from(handle) else { continue };
            let address = raw::remappable_address(handle, true);
            let fault = rig.interrupt(NIC, address, sub).expect_err("blocked");
            assert_eq!(fault.reason.0, 0x21, "{handle:x} + {sub:x} of {len:x}");
        }
        assert_eq!(rig.unit.counters().walks.reads.interrupt, 0);
    }
}

#[test]
fn s03_a_page_flush_drops_every_entry_that_overlaps_it_whatever_its_size() {
    // A 4 KiB, a 2 MiB and a 1 GiB page within 2 GiB, and one page of each size further up.
    let pages = [
        (0x1000, 1),
        (0x20_0000, 2),
        (0x4000_0000, 3),
        (0x8000_1000, 1),
        (0x8020_0000, 2),
        (0xC000_0000, 3),
    ];
    let bytes = |level: u32| 1u64 << (12 + 9 * (level - 1));
    for am in 0..=18u64 {
        for address in [
            0u64,
            0x1000,
            0x20_0000,
            0x3F_F000,
            0x4000_0000,
            0x7FFF_F000,
            0x8020_1000,
            0xFFFF_F000,
        ] {
            let (mut rig, top) = Rig::with_domain(spec());
            for (page, level) in pages {
                rig.tables.second_stage(top, 4, page, page + 0x1_0000_0000, level, RW);
                rig.host(NIC, page);
            }
            for (page, level) in pages {
                rig.tables.second_stage(top, 4, page, page + 0x2_0000_0000, level, RW);
            }
            rig.invalidate(&[descriptor::iotlb_pages(DID, address, am, false)]);
            let first = address >> (12 + am) << (12 + am);
            let last = first + (1 << (12 + am)) - 1;
            for (page, level) in pages {
                let overlaps = page <= last && first < page + bytes(level);
                let fresh = rig.host(NIC, page) == page + 0x2_0000_0000;
                assert_eq!(fresh, overlaps, "{page:x} by {address:x} and mask {am}");
            }
        }
    }
}

/// A cache of the embedder's that keeps nothing but what it was told to drop.
#[derive(Default)]
struct Told(Rc<RefCell<Vec<Invalidation>>>);

impl TranslationCache for Told {
    fn stamp(&mut self) -> Stamp {
        Stamp(0)
    }
    fn invalidate(&mut self, what: &Invalidation) {
        self.0.borrow_mut().push(*what);
    }
}

#[test]
fn s04_domain_and_global_flushes_reach_the_embedders_store_in_full() {
    let rig = Rig::new(spec());
    let told = Rc::<RefCell<Vec<_>>>::default();
    let mut unit = Unit::with_cache(*rig.unit.config(), Told(Rc::clone(&told)));
    let mut write = |at, value| unit.write(rig.memory, at, AccessWidth::Qword, value);
    // Through registers, with the queue off.
    write(0xF8, 1 << 63 | 1 << 60);
    write(0xF8, 1 << 63 | 2 << 60 | u64::from(DID) << 32);
    // Through the queue.
    rig.tables.put_words(QUEUE, &descriptor::IOTLB_GLOBAL);
    rig.tables.put_words(QUEUE + 16, &descriptor::iotlb_domain(DID));
    write(offset::IQA, QUEUE);
    write(offset::GCMD, 1 << 26);
    write(offset::IQT, 0x20);
    let both = [IotlbInvalidation::Global, IotlbInvalidation::Domain(DomainId(DID))].map(Invalidation::Iotlb);
    assert_eq!(*told.borrow(), [both, both].concat());
}

#[test]
fn s05_no_offset_width_value_or_descriptor_ends_in_a_panic() {
    for profile in [Profile::Spec, Profile::Silicon] {
        let mut rig = Rig::scalable(full().profile(profile).protected_memory(true).caching_mode(true));
        let mut noise = Random(0x5EED);
        for at in (0..rig.unit.window_len() + 16).step_by(4) {
            for value in [0, u64::MAX, 1 << 63, 0x8000_0000, noise.next(), noise.next()] {
                for width in [AccessWidth::Dword, AccessWidth::Qword] {
                    rig.unit.write(rig.memory, at, width, value);
                    let _ = rig.unit.read(at, width);
                }
            }
            let _ = rig.read(NIC, noise.next());
            let _ = rig.interrupt(NIC, 0xFEE0_0010 | noise.next() & 0xF_FFEC, 0);
            rig.settle();
        }
    }
    for wide in [false, true] {
        let mut rig = if wide {
            Rig::scalable(full())
        } else {
            Rig::legacy(spec().device_tlb(true))
        };
        let mut noise = Random(0xDE5C);
        for turn in 0..4000u64 {
            let kind = turn & 7 | (turn >> 3 & 1) << 9;
            let [low, high] = [noise.next(), noise.next()];
            // Noise, and words with ever fewer reserved bits, so that it goes deeper than the first check.
            let words = match turn % 3 {
                0 => [low, high, 0, 0],
                1 => [low & 0xFFFF_FFFF_0000_01F0 | kind, high & !0xFFF | turn & 63, 0, 0],
                _ if high >> 63 == 0 => [low & 0x30 | kind, 0, 0, 0],
                _ => [low & 0xFFFF_0030 | kind, high & 0xFFFF_F000 | turn & 20, 0, 0],
            };
            restart_queue(&mut rig, &words, if wide { 0x20 } else { 0x10 });
            while let Some(message) = rig.unit.take_device_invalidation() {
                rig.unit
                    .complete_device_invalidation(rig.memory, message.source, message.tag);
            }
            let done = rig.read64(offset::IQH) != 0;
            assert_ne!(done, rig.fault_status().iqe(), "{words:x?}: done, or refused");
        }
        let done = rig.unit.counters().descriptors;
        assert!(done > 50, "{done}: most are refused, not all");
    }
}

#[test]
fn s06_only_supported_levels_are_walked_and_the_highest_index_stays_in_its_table() {
    for (five, supported) in [(false, [1u64, 2].as_slice()), (true, &[1, 2, 3])] {
        let mut rig = Rig::legacy(spec().five_levels(five));
        for aw in 0..8 {
            let top = rig.tables.page();
            rig.context(NIC, translation_type::UNTRANSLATED, top, aw, DID);
            rig.invalidate(&[descriptor::CONTEXT_GLOBAL]);
            let before = rig.unit.counters().walks.reads.second_stage;
            let got = rig.fault(NIC, 0x1000);
            let walked = rig.unit.counters().walks.reads.second_stage - before;
            if supported.contains(&aw) {
                assert_eq!((got.0, walked), (0x06, 1), "{aw}");
                // The last page of the width: index 511 at each level.
                let levels = raw::levels_of_aw(aw);
                let page = (1u64 << (12 + 9 * levels)) - 0x1000;
                rig.tables.second_stage(top, levels, page, 0x5000, 1, RW);
                assert_eq!(rig.host(NIC, page), 0x5000);
                assert!(matches!(rig.fault(NIC, page + 0x1000).0, 0x04));
            } else {
                assert_eq!((got, walked), ((0x03, "LCT.4.1"), 0), "{aw}");
            }
        }
    }
    let (mut rig, directory) = with_pasids(full(), 0);
    for (aw, fspm) in (0..8).map(|aw| (aw, 0)).chain((0..4).map(|fspm| (2, fspm))) {
        let top = rig.tables.page();
        let second = raw::pasid_second_stage(top, aw, DID);
        let mut first = raw::pasid_first_stage(top, 4, DID);
        first[2] |= fspm << 2;
        for (words, good) in [(second, [1, 2].contains(&aw)), (first, fspm == 0)] {
            rig.tables.pasid(directory, 1, words);
            rig.invalidate(&[descriptor::PASID_GLOBAL]);
            let reason = rig.dma(&asks(1, 0x1000)).expect_err("nothing is mapped").reason.0;
            assert_eq!(reason == 0x5B, !good, "{reason:x} of {words:x?}");
        }
    }
}

#[test]
fn s07_address_masks_above_the_limit_stop_the_queue_and_no_mask_shifts_too_far() {
    for am in 0..64u64 {
        let (mut rig, top) = Rig::with_domain(spec());
        rig.map(top, 0x1000, 0x5000);
        rig.host(NIC, 0x1000);
        rig.map(top, 0x1000, 0x6000);
        rig.submit(&[descriptor::iotlb_pages(DID, 0x1000, am, false)]);
        assert_eq!(rig.fault_status().iqe(), am > 18, "{am}");
        // What is refused drops nothing.
        assert_eq!(rig.host(NIC, 0x1000), if am > 18 { 0x5000 } else { 0x6000 });
        // The register: no granularity is reported.
        rig.command(|c| c.with_qie(false));
        rig.write64(0xF0, 0x1000 | am);
        rig.write64(0xF8, 1 << 63 | 3 << 60 | u64::from(DID) << 32);
        assert_eq!(rig.read64(0xF8) >> 57 & 3, if am > 18 { 0 } else { 3 }, "{am}");
        // PASID-based: every mask is valid, and acts on its range.
        let (mut rig, directory) = with_pasids(full(), 0);
        let top = rig.tables.page();
        rig.tables.pasid(directory, 1, first_stage(top));
        let far = 1 << 40;
        for (page, host) in [(0x1000, 0x5000), (far, 0x7000)] {
            rig.tables.first_stage(top, 4, page, host, 1, FS_ALL | raw::FS_ACCESSED);
            assert_eq!(rig.dma(&asks(1, page)).expect("mapped").phys.raw(), host);
            rig.tables
                .first_stage(top, 4, page, host + 0x1000, 1, FS_ALL | raw::FS_ACCESSED);
        }
        rig.invalidate(&[descriptor::pasid_iotlb_pages(DID, 1, 0x1000, am)]);
        assert_eq!(rig.dma(&asks(1, 0x1000)).expect("mapped").phys.raw(), 0x6000);
        let reached = 12 + am > 40;
        assert_eq!(
            rig.dma(&asks(1, far)).expect("mapped").phys.raw() == 0x8000,
            reached,
            "{am}"
        );
    }
    assert_eq!(PageBlock::new(u64::MAX, 255, false), PageBlock::new(0, 52, false));
}

#[test]
fn s08_a_fault_record_with_all_high_bits_is_exact() {
    let (mut rig, _) = with_pasids(full(), 7);
    let entry = raw::scalable_context_entry(0x8000, 7, 0, 1 << 3);
    rig.tables.scalable_context(rig.root, 0xFFFF, entry);
    let pasid = Pasid::new(0xF_FFFF).expect("20 bits");
    let request = Request::read(SourceId::from_raw(0xFFFF), Iova::new(0xFFFF_8000_0000_1000), 8);
    rig.tables.put(0x8000 + 8 * (0xF_FFFF >> 6), 0);
    let fault = rig.dma(&request.with_pasid(pasid)).expect_err("no PASID table");
    assert_eq!(fault.reason.0, 0x51);
    // F, T1, PV, FR, PP, SID.
    let high = 1 << 63 | 1 << 62 | 0xF_FFFF << 40 | 0x51 << 32 | 1 << 31 | 0xFFFF;
    assert_eq!(rig.record(0).to_words(), [0x8000_0000_1000, high]);
    // Decoding and encoding are inverse, bit by bit, in whatever order a host stores bytes.
    for bit in 0..128 {
        let words = [(1u128 << bit) as u64, ((1u128 << bit) >> 64) as u64];
        assert_eq!(FaultRecord::from_words(words).to_words(), words, "{bit}");
    }
}

#[test]
fn s09_requesters_domains_and_pasids_that_differ_in_one_bit_never_share() {
    // One table for each requester; caches large enough that all of them stay.
    let sizes = CacheSizes {
        contexts: 64,
        pasids: 64,
        pages: 64,
        tables: 64,
        interrupts: 1,
    };
    for profile in [Profile::Spec, Profile::Silicon] {
        let builder = spec().profile(profile).cache_sizes(Some(sizes));
        let mut rig = Rig::legacy(builder);
        let others: Vec<u16> = (0..16).map(|bit| NIC ^ 1 << bit).chain([NIC]).collect();
        for (index, sid) in (1u64..).zip(&others) {
            let top = rig.tables.page();
            // The domain differs from the NIC's in the same bit as the requester.
            rig.context(*sid, translation_type::UNTRANSLATED, top, 2, sid ^ NIC ^ DID);
            rig.map(top, 0x1000, index << 20);
        }
        for _ in 0..2 {
            for (index, sid) in (1u64..).zip(&others) {
                assert_eq!(rig.host(*sid, 0x1000), index << 20, "{sid:x}");
            }
        }
        let (mut rig, directory) = with_pasids(full().profile(profile).cache_sizes(Some(sizes)), 7);
        let pasids: Vec<u32> = (0..20).map(|bit| 5 ^ 1 << bit).chain([5]).collect();
        for (index, pasid) in (1u64..).zip(&pasids) {
            let top = rig.tables.page();
            rig.tables.pasid(directory, *pasid, first_stage(top));
            rig.tables
                .first_stage(top, 4, 0x1000, index << 20, 1, FS_ALL | raw::FS_ACCESSED);
        }
        for _ in 0..2 {
            for (index, pasid) in (1u64..).zip(&pasids) {
                assert_eq!(rig.dma(&asks(*pasid, 0x1000)).expect("mapped").phys.raw(), index << 20);
            }
        }
    }
}

#[test]
fn s10_first_accesses_of_many_requesters_at_once_each_find_their_own_tables() {
    let mut rig = Rig::legacy(spec());
    for sid in 0..64u16 {
        let top = rig.tables.page();
        rig.context(sid, translation_type::UNTRANSLATED, top, 2, sid + 1);
        rig.map(top, 0x1000, u64::from(sid + 1) << 20);
    }
    let (config, latched, memory) = (*rig.unit.config(), *rig.unit.latched(), rig.memory);
    std::thread::scope(|scope| {
        for thread in 0..4u16 {
            scope.spawn(move || {
                let mut cache = Caches::new(config.caches(), 65_536);
                for turn in 0..128u16 {
                    let sid = (turn * 7 + thread * 16) % 64;
                    let request = Request::read(SourceId::from_raw(sid), Iova::new(0x1000), 8);
                    let got = translate(&latched, &config, memory, &mut cache, &request).result;
                    assert_eq!(got.expect("mapped").phys.raw(), u64::from(sid + 1) << 20);
                }
            });
        }
    });
}

#[test]
fn s11_only_registers_of_the_specification_hold_anything() {
    for builder in [spec(), full().protected_memory(true), spec().fault_records(256)] {
        let mut rig = Rig::new(builder);
        let (features, window) = (*rig.unit.config().features(), rig.unit.window_len());
        let (cap, ecap) = (features.capability, features.extended);
        let mut known: Vec<u32> = access::REGISTERS
            .iter()
            .filter(|register| register.presence.is_met(&features))
            .flat_map(|register| [register.offset, register.offset + 4])
            .collect();
        let pair = ecap.invalidate_address_offset();
        known.extend((pair..pair + 16).step_by(4));
        let records = cap.fault_record_offset(0);
        known.extend((records..records + 16 * u32::from(cap.fault_record_count())).step_by(4));
        for at in (0..window).step_by(4).filter(|at| !known.contains(at)) {
            rig.write32(at, u32::MAX);
            rig.unit.write(rig.memory, at & !7, AccessWidth::Qword, u64::MAX);
            assert_eq!(rig.read32(at), 0, "{at:x}");
        }
        for at in window..window + 16 {
            assert_eq!(rig.unit.read(at, AccessWidth::Dword), u64::from(u32::MAX));
            assert_eq!(rig.unit.read(at, AccessWidth::Qword), u64::MAX);
        }
    }
}

#[test]
fn s12_every_byte_that_leaves_the_unit_is_accounted_for() {
    let mut rig = Rig::legacy(spec());
    rig.write32(offset::IEDATA, 0xFFFF_0031);
    rig.write32(offset::IEADDR, 0xFEE0_1003);
    rig.write32(offset::IECTL, 0);
    // The whole log, all bytes: eight different requesters without tables.
    for index in 0..8u16 {
        let _ = rig.write(0x0108 + index, 0x1_0000_0FFF + (u64::from(index) << 12));
    }
    for index in 0..8u8 {
        let [low, high] = rig.record(index).to_words();
        assert_eq!(low, 0x1_0000_0000 + (u64::from(index) << 12));
        assert_eq!(high, 1 << 63 | 1 << 32 | (0x108 + u64::from(index)));
    }
    // A wait writes its four bytes; a message has 16 bits of data and an aligned address.
    rig.tables.put_words(STATUS - 8, &[u64::MAX; 3]);
    let [low, high] = descriptor::wait_status(STATUS, 0xA1B2_C3D4);
    rig.submit(&[[low | descriptor::WAIT_INTERRUPT[0], high]]);
    assert_eq!(
        [rig.peek(STATUS - 8), rig.peek(STATUS), rig.peek(STATUS + 8)],
        [u64::MAX, 0xFFFF_FFFF_A1B2_C3D4, u64::MAX]
    );
    let message = rig.unit.take_message().expect("sent");
    assert_eq!((message.address, message.data), (0xFEE0_1000, 0x31));
    assert_eq!(rig.unit.take_message(), None);
    // A new unit's saved state holds no trace of another's life.
    let config = *rig.unit.config();
    assert_eq!(Unit::new(config).save(), Unit::new(config).save());
}

#[test]
fn s13_a_moving_or_impossible_tail_never_makes_the_queue_run_on() {
    // Moved while the queue is being processed: forwards, backwards over the head, outside.
    let mut rig = Rig::legacy(spec().profile(Profile::Silicon));
    for slot in 0..256 {
        rig.tables.put_words(QUEUE + slot * 16, &descriptor::IOTLB_GLOBAL);
    }
    rig.write64(offset::IQT, 0x80);
    for _ in 0..4 {
        assert!(rig.unit.step(rig.memory));
    }
    let before = rig.unit.counters().descriptors;
    rig.write64(offset::IQT, 0x20);
    rig.settle();
    assert_eq!(rig.read64(offset::IQH), 0x20, "once around the ring");
    assert_eq!(rig.unit.counters().descriptors - before, 256 - 2);
    rig.write64(offset::IQT, 0x1000);
    assert!(rig.unit.step(rig.memory));
    assert!(!rig.unit.step(rig.memory));
    assert_eq!(rig.queue_error().error(), QueueError::TAIL_OUT_OF_RANGE);
    // Misaligned for descriptors of 256 bits.
    let mut rig = Rig::scalable(full());
    rig.write64(offset::IQT, 0x30);
    assert_eq!(rig.queue_error().error(), QueueError::TAIL_MISALIGNED);
    assert_eq!(rig.unit.counters().descriptors, 0);
    // Clearing the error without removing its cause stops again, at the same place.
    for _ in 0..3 {
        rig.write32(offset::FSTS, 1 << 4);
        assert!(rig.fault_status().iqe() && !rig.unit.step(rig.memory));
    }
    assert_eq!((rig.read64(offset::IQH), rig.unit.counters().descriptors), (0, 0));
}

#[test]
fn s14_tables_that_point_to_themselves_or_upwards_end_after_their_levels() {
    for (aw, levels) in [(1u64, 3u32), (2, 4), (3, 5)] {
        for level in 2..=levels {
            for target in level..=levels {
                let mut rig = Rig::legacy(spec().five_levels(true));
                let top = rig.tables.page();
                rig.context(NIC, translation_type::UNTRANSLATED, top, aw, DID);
                // The entry of `level` points to the table of level `target`, its own or a higher one.
                let at = rig.tables.entry_at(top, levels, 0, level, RW);
                let goal = if target == levels {
                    top
                } else {
                    rig.tables.entry_at(top, levels, 0, target, RW) & !0xFFF
                };
                rig.tables.put(at, goal | RW);
                let _ = rig.read(NIC, 0x1000);
                let reads = rig.unit.counters().walks.reads.second_stage;
                assert!(reads <= levels.into(), "{reads} reads with {levels} levels");
                let (mut rig, directory) = with_pasids(full().first_stage_five_levels(true).five_levels(true), 0);
                let top = rig.tables.page();
                if levels == 3 {
                    continue;
                }
                rig.tables.pasid(directory, 1, raw::pasid_first_stage(top, levels, DID));
                let at = rig.tables.entry_at(top, levels, 0, level, FS_ALL);
                rig.tables.put(at, (at & !0xFFF) | FS_ALL);
                let _ = rig.dma(&asks(1, 0));
                let reads = rig.unit.counters().walks.reads.first_stage;
                assert!(
                    (1..=u64::from(levels)).contains(&reads),
                    "{reads} reads with {levels} levels"
                );
            }
        }
    }
}

#[test]
fn s23_a_tail_at_or_behind_every_queue_size_stops_at_once() {
    for qs in 0..8u64 {
        let size = 4096 << qs;
        for tail in [size, size + 0x10, 0x7_FFF0] {
            let mut rig = Rig::new(spec());
            rig.write64(offset::IQA, QUEUE | qs);
            rig.command(|c| c.with_qie(true));
            rig.write64(offset::IQT, tail);
            // IQT has bits 18:4; what the largest queue ends at reads as 0. The descriptors are zeroes: no type.
            let expected = match tail & 0x7_FFF0 {
                0 => QueueError(0),
                tail if tail >= size => QueueError::TAIL_OUT_OF_RANGE,
                _ => QueueError::INVALID_TYPE,
            };
            assert_eq!(rig.queue_error().error(), expected, "{tail:x} of {size:x}");
            assert!(!rig.unit.step(rig.memory));
            assert_eq!((rig.read64(offset::IQH), rig.unit.counters().descriptors), (0, 0));
        }
    }
}
