//! What a guest can make the unit spend: memory that it holds, and steps that one register write takes.

use iommu_testkit::Random;
use iommu_testkit::raw::{self, descriptor, translation_type};
use iommu_types::{Iova, Pasid, SourceId};
use vtd_model::{CacheSizes, DESCRIPTORS_PER_WRITE, Profile, Request, UnitConfigBuilder};
use vtd_spec::register::offset;

use crate::hostile_classes::{FS_ALL, RW, first_stage, full};
use crate::rig::{NIC, QUEUE, Rig, STATUS, spec};

/// What a guest may make a unit of the default configuration hold: 8 MiB.
const MEMORY_MAX: usize = 8 << 20;

/// As many requesters, domains, PASIDs, pages, faults, messages and findings as a guest can think of, and nobody takes
/// anything out.
fn besiege(builder: UnitConfigBuilder) -> Rig {
    let mut rig = Rig::new(builder);
    let features = *rig.unit.config().features();
    let scalable = features.extended.smts();
    rig.write64(offset::IQA, QUEUE | if scalable { 1 << 11 | 1 } else { 0 });
    rig.command(|c| c.with_qie(true));
    let directory = rig.tables.pages(2);
    let top = rig.tables.page();
    rig.tables.second_stage(top, 4, 0, 0, 3, RW);
    rig.tables.first_stage(directory + 0x1000, 4, 0, 0, 3, FS_ALL);
    for sid in (0..=0xFFFFu16).step_by(41) {
        if scalable {
            let entry = raw::scalable_context_entry(directory, 0, 0, 1 << 2 | 1 << 3);
            rig.tables.scalable_context(rig.root, sid, entry);
        } else {
            rig.context(sid, translation_type::UNTRANSLATED, top, 2, sid);
        }
    }
    for pasid in (0..0x2000).step_by(64) {
        let entry = if pasid % 128 == 0 {
            first_stage(directory + 0x1000)
        } else {
            raw::pasid_second_stage(top, 2, 2)
        };
        rig.tables.pasid(directory, pasid, entry);
    }
    let table = rig.tables.pages(256);
    for index in 0..0x1000 {
        rig.tables.irte(table, index, raw::irte(0x31, 0, 0));
    }
    rig.set_root(rig.root | if scalable { 1 << 10 } else { 0 });
    rig.command(|c| c.with_te(true));
    rig.write64(offset::IRTA, table | 0xF);
    rig.command(|c| c.with_sirtp(true));
    rig.command(|c| c.with_ire(true));
    rig.write32(offset::FECTL, 0);
    rig.write32(offset::IECTL, 0);
    let mut noise = Random(0x8);
    let mut answered = 0;
    for turn in 0..20_000u32 {
        let word = noise.next();
        let sid = u16::try_from((word >> 40) % 0xFFFF / 41 * 41).expect("16 bits");
        let sid = if turn % 16 == 0 { (word >> 48) as u16 } else { sid };
        let mut request = Request::write(SourceId::from_raw(sid), Iova::new(word & 0x7FFF_F000), 8);
        if scalable && turn % 4 != 0 {
            let pasid = u32::try_from(word >> 20 & 0x1FC0).expect("small");
            request = request.with_pasid(Pasid::new(pasid).expect("20 bits"));
        }
        answered += u32::from(rig.dma(&request).is_ok());
        let _ = rig.interrupt(sid, raw::remappable_address((word >> 16) as u16 & 0x1FFF, false), 0);
        // Writes that break rules: findings.
        if turn % 8 == 0 {
            rig.write32(offset::GCMD, 0);
            rig.write64(offset::CCMD, 1 << 63);
        }
    }
    assert!(answered > 1000, "{answered}: the caches are in use");
    // Device-TLB invalidations that nobody answers, waits with interrupt behind them.
    let (slot, count) = if scalable { (32, 256) } else { (16, 256) };
    for index in 0..count {
        let words = match index % 4 {
            0 => descriptor::WAIT_INTERRUPT,
            1 => descriptor::wait_status(STATUS, 1),
            _ if features.extended.dt() => descriptor::device_tlb_all(NIC),
            _ => descriptor::interrupt_entries(0, 0),
        };
        rig.tables.put_words(QUEUE + slot * index, &[words[0], words[1], 0, 0]);
    }
    rig.write64(offset::IQT, slot * (count - 1));
    rig.settle();
    rig
}

#[test]
fn a_guest_makes_a_unit_hold_no_more_memory_than_configured() {
    let large = CacheSizes {
        contexts: 3000,
        pasids: 3000,
        pages: 20_000,
        tables: 1000,
        interrupts: 5000,
    };
    let small = CacheSizes {
        contexts: 1,
        pasids: 2,
        pages: 3,
        tables: 5,
        interrupts: 7,
    };
    let builders = [
        spec(),
        full(),
        spec().sanitizer(true).fault_records(256),
        full().sanitizer(true).caching_mode(true).profile(Profile::Silicon),
        spec().cache_sizes(Some(large)),
        full().cache_sizes(Some(small)).domain_id_bits(4),
    ];
    for (index, builder) in builders.into_iter().enumerate() {
        let new = Rig::new(builder);
        let (bound, at_first) = (new.unit.config().memory_bound(), new.unit.memory_held());
        let rig = besiege(builder);
        let held = rig.unit.memory_held();
        assert!(held <= bound, "{index}: {held} of {bound}");
        if rig.unit.config().sanitizer() {
            assert!(rig.unit.findings_lost() > 0, "{index}: more findings than places");
        } else {
            assert_eq!(held, at_first, "{index}: everything is taken when the unit is made");
        }
        if index < 4 {
            assert!(bound <= MEMORY_MAX, "{index}: {bound}");
        }
        // The bound is no empty promise: most of it is in use.
        assert!(held > bound / 3, "{index}: {held} of {bound}");
        // What is saved is registers and messages, not caches.
        assert!(rig.unit.save().len() <= 0x1_0000);
    }
}

#[test]
fn the_default_unit_is_bounded_by_less_than_two_mebibytes() {
    let bound = spec().build().expect("consistent").memory_bound();
    assert!((1 << 20..2 << 20).contains(&bound), "{bound}");
    let sanitized = spec().sanitizer(true).build().expect("consistent").memory_bound();
    assert!(sanitized > bound && sanitized < bound + (1 << 18));
}

#[test]
fn a_write_of_the_tail_with_a_full_ring_of_32768_takes_a_bounded_number_of_steps() {
    let full_ring = |descriptor: [u64; 2], builder: UnitConfigBuilder| {
        let mut rig = Rig::new(builder);
        let base = rig.tables.pages(128);
        for slot in 0..32_768 {
            rig.tables.put_words(base + slot * 16, &descriptor);
        }
        rig.write64(offset::IQA, base | 7);
        rig.command(|c| c.with_qie(true));
        rig
    };
    let tail = 32_767 * 16;
    for words in [
        descriptor::WAIT_INTERRUPT,
        descriptor::wait_status(STATUS, 1),
        descriptor::CONTEXT_GLOBAL,
    ] {
        let sizes = CacheSizes {
            contexts: 8,
            pasids: 8,
            pages: 8,
            tables: 8,
            interrupts: 8,
        };
        let mut rig = full_ring(words, spec().cache_sizes(Some(sizes)));
        // Every write that lets the queue go on has the bound to itself: tail, error status, the same tail again.
        let mut before = 0;
        for (at, value) in [(offset::IQT, tail), (offset::FSTS & !7, 0), (offset::IQT, tail)] {
            rig.write64(at, value);
            let after = rig.unit.counters().descriptors;
            assert_eq!(after - before, u64::from(DESCRIPTORS_PER_WRITE));
            before = after;
        }
        // Other writes move nothing.
        rig.write64(offset::IQA, 0);
        rig.write32(offset::IECTL, 0);
        assert_eq!(rig.unit.counters().descriptors, before);
        // What is left costs a step each, and ends.
        let steps = (0..).take_while(|_: &u64| rig.unit.step(rig.memory)).count();
        assert_eq!(steps, 32_767 - 3 * 4096);
        assert_eq!(rig.read64(offset::IQH), tail);
    }
    // Asynchronous units do none of it in the write.
    let mut rig = full_ring(descriptor::WAIT_FENCE, spec().profile(Profile::Silicon));
    rig.write64(offset::IQT, tail);
    assert_eq!(rig.unit.counters().descriptors, 0);
}
