//! The classes of hostile input that concern tables, ranges and modes; the list is in `hostile_classes.rs`.

use std::cell::{Cell, RefCell};

use iommu_testkit::raw::{self, descriptor, translation_type};
use iommu_testkit::{Random, SparseMemory};
use iommu_types::{BusError, HostPhys, Iova, SourceId, SystemMemory};
use vtd_model::cache::PageBlock;
use vtd_model::{AccessWidth, EventSource, InterruptRequest, Profile, Request, Unit};
use vtd_spec::register::{QueueError, offset};

use crate::hostile_classes::{FS_ALL, RW, asks, first_stage, full, with_pasids};
use crate::rig::{DID, NIC, QUEUE, Rig, STATUS, spec};

/// What tests map; far from every address that a pass-through would give.
const IOVA: u64 = 0x1000;
const HOST: u64 = 0x5000_0000;

/// A unit that remaps interrupts through a table of `2^(s + 1)` entries.
fn remapping(s: u64) -> (Rig, u64) {
    let mut rig = Rig::new(spec());
    rig.enable_queue();
    let table = rig.tables.pages(256);
    rig.write64(offset::IRTA, table | s);
    rig.command(|c| c.with_sirtp(true));
    rig.command(|c| c.with_ire(true));
    (rig, table)
}

/// Every word with each of its bits turned over, and words of noise with the present bit set.
fn malformed<const N: usize>(good: [u64; N], seed: u64) -> impl Iterator<Item = [u64; N]> {
    let flips = (0..64 * N).map(move |bit| {
        let mut words = good;
        words[bit / 64] ^= 1 << (bit % 64);
        words
    });
    let mut noise = Random(seed);
    let random = core::iter::repeat_with(move || {
        let mut words = [0; N].map(|_: u64| noise.next());
        words[0] |= 1;
        words
    });
    flips.chain(random.take(500))
}

#[test]
fn s15_no_malformed_entry_lets_a_request_through_untranslated() {
    // Without pass-through no entry means identity, so an answer is the mapping or a fault.
    let mut rig = Rig::legacy(spec().pass_through(false));
    let top = rig.tables.page();
    let context = rig.context(NIC, translation_type::UNTRANSLATED, top, 2, DID);
    rig.map(top, IOVA, HOST);
    let leaf = rig.tables.entry_at(top, 4, IOVA, 1, RW);
    let root_entry: [u64; 2] = [rig.peek(rig.root), rig.peek(rig.root + 8)];
    let context_entry = [rig.peek(context), rig.peek(context + 8)];
    let mut blocked = 0;
    for (at, good) in [(rig.root, root_entry), (context, context_entry)] {
        for words in malformed(good, 0x15) {
            rig.tables.put_words(at, &words);
            rig.invalidate(&[descriptor::CONTEXT_GLOBAL, descriptor::IOTLB_GLOBAL]);
            match rig.read(NIC, IOVA) {
                Ok(answer) => assert_eq!(answer.phys.raw(), HOST, "{words:x?}"),
                Err(fault) => {
                    assert!((1..=0x0E).contains(&fault.reason.0), "{words:x?}");
                    blocked += 1;
                }
            }
        }
        rig.tables.put_words(at, &good);
    }
    assert!(blocked > 1000, "{blocked}");
    for bit in 0..64 {
        rig.tables.flip(leaf, bit);
        rig.invalidate(&[descriptor::IOTLB_GLOBAL]);
        assert_ne!(rig.read(NIC, IOVA).map(|answer| answer.phys.raw()), Ok(IOVA), "{bit}");
        rig.tables.flip(leaf, bit);
    }
}

#[test]
fn s15_no_malformed_scalable_entry_lets_a_request_through_untranslated() {
    let (mut rig, directory) = with_pasids(full().pass_through(false), 0);
    let top = rig.tables.page();
    let good = raw::pasid_second_stage(top, 2, DID);
    let at = rig.tables.pasid(directory, 1, good);
    rig.map(top, IOVA, HOST);
    let context = rig.tables.scalable_context(
        rig.root,
        NIC,
        raw::scalable_context_entry(directory, 0, 0, 1 << 2 | 1 << 3),
    );
    let context_entry: [u64; 4] = [0, 8, 16, 24].map(|word| rig.peek(context + word));
    let mut blocked = 0;
    let mut judge = |rig: &mut Rig, words: &[u64]| {
        rig.invalidate(&[
            descriptor::CONTEXT_GLOBAL,
            descriptor::PASID_GLOBAL,
            descriptor::IOTLB_GLOBAL,
        ]);
        match rig.dma(&asks(1, IOVA)) {
            Ok(answer) => assert_eq!(answer.phys.raw(), HOST, "{words:x?}"),
            Err(fault) => {
                assert!(fault.reason.0 >= 0x30, "{words:x?}");
                blocked += 1;
            }
        }
    };
    for words in malformed(good, 0x51) {
        rig.tables.put_words(at, &words);
        judge(&mut rig, &words);
    }
    rig.tables.put_words(at, &good);
    for words in malformed(context_entry, 0x52) {
        rig.tables.put_words(context, &words);
        judge(&mut rig, &words);
    }
    assert!(blocked > 1000, "{blocked}");
}

#[test]
fn s15_no_malformed_interrupt_entry_delivers_what_the_device_wrote() {
    let (mut rig, table) = remapping(7);
    let (mut blocked, address) = (0, raw::remappable_address(3, false));
    for words in malformed(raw::irte(0x31, 0x700, raw::exact_source(NIC)), 0x53) {
        rig.tables.irte(table, 3, words);
        rig.invalidate(&[descriptor::INTERRUPT_GLOBAL]);
        match rig.interrupt(NIC, address, 0) {
            Ok(got) => assert!(matches!(got, vtd_model::Interrupt::Remapped(_)), "{words:x?}"),
            Err(fault) => {
                assert!((0x22..=0x26).contains(&fault.reason.0), "{words:x?}");
                blocked += 1;
            }
        }
    }
    assert!(blocked > 400, "{blocked}");
}

#[test]
fn s16_every_table_and_queue_size_ends_where_its_field_says() {
    for s in 0..16u64 {
        let (mut rig, table) = remapping(s);
        let last = u16::try_from((2u32 << s) - 1).expect("16 bits");
        rig.tables.irte(table, last.into(), raw::irte(0x42, 0, 0));
        let ask = |rig: &mut Rig, index| rig.interrupt(NIC, raw::remappable_address(index, false), 0);
        assert_eq!(ask(&mut rig, last).expect("the last entry").vector(), 0x42, "{s}");
        if let Some(next) = last.checked_add(1) {
            rig.tables.irte(table, next.into(), raw::irte(0x43, 0, 0));
            assert_eq!(ask(&mut rig, next).expect_err("behind").reason.0, 0x21, "{s}");
        }
    }
    for (qs, wide) in (0..8u64).flat_map(|qs| [(qs, false), (qs, true)]) {
        let mut rig = if wide {
            Rig::scalable(full())
        } else {
            Rig::legacy(spec())
        };
        let (slot, bytes) = if wide {
            (0x20, 0x1000 << qs)
        } else {
            (0x10, 0x1000u64 << qs)
        };
        let base = rig.tables.pages(bytes >> 12);
        for at in (base..base + bytes).step_by(usize::try_from(slot).expect("small")) {
            rig.tables.put(at, descriptor::WAIT_FENCE[0]);
        }
        // Around the end: the last slot is used, then the first again. (The largest takes more than one write.)
        let translating = rig.read32(offset::GSTS) & 1 << 31;
        rig.write32(offset::GCMD, translating);
        rig.write64(offset::IQT, bytes - slot);
        rig.write64(offset::IQA, base | u64::from(wide) << 11 | qs);
        rig.write32(offset::GCMD, translating | 1 << 26);
        while rig.unit.step(rig.memory) {}
        assert_eq!(rig.read64(offset::IQH), bytes - slot, "{qs} {wide}");
        rig.write64(offset::IQT, slot);
        rig.settle();
        assert_eq!(
            (rig.read64(offset::IQH), rig.fault_status().iqe()),
            (slot, false),
            "{qs} {wide}"
        );
        assert_eq!(rig.unit.counters().descriptors, bytes / slot + 1, "{qs} {wide}");
    }
}

#[test]
fn s17_translation_follows_the_requester_id_after_buses_are_renumbered() {
    for profile in [Profile::Spec, Profile::Silicon] {
        let mut rig = Rig::legacy(spec().profile(profile));
        let (mine, others) = (rig.tables.page(), rig.tables.page());
        rig.map(mine, IOVA, HOST);
        rig.map(others, IOVA, HOST + 0x1000);
        // A function at bus 2 issues requests; then its bus becomes 3 and another function comes to bus 2.
        rig.context(0x0208, translation_type::UNTRANSLATED, mine, 2, 7);
        assert_eq!(rig.host(0x0208, IOVA), HOST);
        assert_eq!(rig.fault(0x0308, IOVA).0, 0x01, "nobody is there yet");
        rig.context(0x0308, translation_type::UNTRANSLATED, mine, 2, 7);
        let at = rig.tables.legacy_context_at(rig.root, 0x0208);
        rig.tables.put_words(at, &[0, 0]);
        rig.invalidate(&[descriptor::context_device(7, 0x0208, 0), descriptor::iotlb_domain(7)]);
        assert_eq!(rig.host(0x0308, IOVA), HOST);
        assert_eq!(rig.fault(0x0208, IOVA).0, 0x02);
        rig.context(0x0208, translation_type::UNTRANSLATED, others, 2, 8);
        assert_eq!([0x0208, 0x0308].map(|sid| rig.host(sid, IOVA)), [HOST + 0x1000, HOST]);
    }
}

#[test]
fn s18_a_rejected_record_changes_nothing_and_a_repeated_one_stays_rejected() {
    let (mut rig, top) = Rig::with_domain(spec());
    rig.map(top, 0x1000, 0x5000);
    rig.host(NIC, 0x1000);
    rig.map(top, 0x1000, 0x6000);
    // A good command with one bit too many, an oversized one, and repeated attempts.
    rig.submit(&[[descriptor::IOTLB_GLOBAL[0] | 1 << 48, 0]]);
    let saved = rig.unit.save();
    for _ in 0..3 {
        rig.write64(offset::IQT, 0x10);
        rig.settle();
        assert_eq!(rig.read64(offset::IQH), 0);
    }
    assert_eq!(rig.unit.save(), saved);
    assert_eq!(rig.unit.counters().invalidations.iotlb, 0);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000, "nothing was dropped");
    // Truncated: memory ends within the queue, and within a 256-bit descriptor.
    for (wide, end) in [(false, 0x10), (true, 0x10), (true, 0x18)] {
        let mut rig = if wide {
            Rig::scalable(full())
        } else {
            Rig::legacy(spec())
        };
        let slot = if wide { 0x20 } else { 0x10 };
        rig.tables.put_words(QUEUE, &[descriptor::IOTLB_GLOBAL[0], 0, 0, 0]);
        rig.tables
            .put_words(QUEUE + slot, &[descriptor::IOTLB_GLOBAL[0], 0, 0, 0]);
        rig.break_bus(QUEUE + slot + end - if wide { 0 } else { 8 }, 0x1000);
        rig.write64(offset::IQT, 2 * slot);
        assert_eq!(rig.queue_error().error(), QueueError::FETCH_FAILED);
        assert_eq!(rig.read64(offset::IQH), slot);
        assert_eq!(rig.unit.counters().invalidations.iotlb, 1);
    }
}

#[test]
fn s19_ranges_up_to_the_end_of_the_number_space_equal_plain_arithmetic() {
    let mut noise = Random(0x19);
    let ends = [0, 0x1000, 1 << 47, (1 << 48) - 0x1000, 1 << 63, !0xFFF, u64::MAX];
    for order in 0..64u8 {
        for turn in 0..200 {
            let address = ends
                .get(turn)
                .copied()
                .unwrap_or_else(|| noise.next() | !0 << (turn % 64));
            let block = PageBlock::new(address, order, false);
            let size = 1u128 << (12 + u32::from(order)).min(64);
            let first = u128::from(address) / size * size;
            assert_eq!(
                (u128::from(block.first), u128::from(block.last)),
                (first, first + size - 1)
            );
            for shift in [12u8, 21, 30] {
                let base = noise.next() | !0 << (turn % 64);
                let base = base >> shift << shift;
                let end = u128::from(base) + (1 << shift);
                let overlaps = u128::from(base) < first + size && first < end;
                assert_eq!(block.overlaps(base, shift), overlaps, "{block:x?} {base:x} {shift}");
            }
        }
    }
    // The last page of the space in the last domain; a request that would pass the end of the number space.
    let mut rig = Rig::legacy(spec());
    let top = rig.tables.page();
    rig.context(0xFFFF, translation_type::UNTRANSLATED, top, 2, 0xFFFF);
    let last = (1 << 48) - 0x1000;
    rig.map(top, last, 0x5000);
    rig.host(0xFFFF, last);
    rig.map(top, last, 0x6000);
    rig.invalidate(&[descriptor::iotlb_pages(0xFFFF, last, 18, false)]);
    assert_eq!(rig.host(0xFFFF, last), 0x6000);
    for (address, len) in [(u64::MAX, 8), (u64::MAX, u64::MAX), (1, u64::MAX), ((1 << 48) - 1, 2)] {
        let request = Request::write(SourceId::from_raw(0xFFFF), Iova::new(address), len);
        if let Ok(answer) = rig.dma(&request) {
            assert!(answer.page.contains(Iova::new(address)) && answer.page.last().raw() < 1 << 48);
        }
    }
}

#[test]
fn s20_no_cached_result_crosses_a_change_of_mode() {
    // What a request sees: off (identity), legacy, scalable, abort.
    for profile in [Profile::Spec, Profile::Silicon] {
        let builder = full().enhanced_root_pointer(true).profile(profile);
        let (mut rig, directory) = with_pasids(builder, 0);
        let (first, second, legacy) = (rig.tables.page(), rig.tables.page(), rig.tables.page());
        // The same domain, the same address, the same requester in both modes.
        rig.tables.pasid(directory, 0, raw::pasid_second_stage(first, 2, DID));
        rig.map(first, IOVA, HOST);
        rig.context_in(legacy, second);
        rig.map(second, IOVA, HOST + 0x1000);
        let modes = [
            (rig.root | 1 << 10, Ok(HOST)),
            (legacy, Ok(HOST + 0x1000)),
            (3 << 10, Err(0x33)),
        ];
        for from in 0..3 {
            for to in 0..3 {
                for off in [false, true] {
                    for (root, outcome) in [modes[from], modes[to]] {
                        if off {
                            rig.command(|c| c.with_te(false));
                            assert_eq!(rig.host(NIC, IOVA), IOVA, "off");
                        }
                        rig.set_root(root);
                        rig.command(|c| c.with_te(true));
                        for _ in 0..2 {
                            let got = rig.read(NIC, IOVA).map(|answer| answer.phys.raw());
                            assert_eq!(got.map_err(|fault| fault.reason.0), outcome, "{from} to {to}");
                        }
                    }
                }
            }
        }
    }
}

impl Rig {
    /// The NIC in the legacy root table `root`.
    fn context_in(&mut self, root: u64, top: u64) {
        let entry = raw::legacy_context_entry(translation_type::UNTRANSLATED, top, 2, DID);
        self.tables.legacy_context(root, NIC, entry);
    }
}

/// Where the unit's registers are on the bus of S-22.
const WINDOW: u64 = 0xFED9_0000;

/// A bus on which the unit's own registers are: an access while the unit works does not reach them.
struct Looped<'a> {
    memory: &'a SparseMemory,
    unit: &'a RefCell<Unit>,
    turned_away: Cell<u32>,
}

impl Looped<'_> {
    fn reach(&self, at: HostPhys) -> Result<(), BusError> {
        if at.raw() & !0xFFF != WINDOW {
            return Ok(());
        }
        assert!(
            self.unit.try_borrow_mut().is_err(),
            "the unit works, so nobody else may enter"
        );
        self.turned_away.set(self.turned_away.get() + 1);
        Err(BusError { at })
    }
}

impl SystemMemory for Looped<'_> {
    fn read_u64(&self, at: HostPhys) -> Result<u64, BusError> {
        self.reach(at)?;
        self.memory.read_u64(at)
    }
    fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BusError> {
        self.reach(at)?;
        self.memory.write_u64(at, value)
    }
    fn write_u32(&self, at: HostPhys, value: u32) -> Result<(), BusError> {
        self.reach(at)?;
        self.memory.write_u32(at, value)
    }
    fn compare_exchange_u64(&self, at: HostPhys, current: u64, new: u64) -> Result<u64, BusError> {
        self.reach(at)?;
        self.memory.compare_exchange_u64(at, current, new)
    }
    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError> {
        self.reach(at)?;
        self.memory.read(at, into)
    }
    fn write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError> {
        self.reach(at)?;
        self.memory.write(at, from)
    }
}

#[test]
fn s22_structures_in_the_units_own_registers_end_in_defined_errors() {
    let mut rig = Rig::new(spec());
    let (root, top) = (rig.root, WINDOW);
    rig.context(NIC, translation_type::UNTRANSLATED, top, 2, DID);
    rig.tables
        .put_words(QUEUE, &descriptor::wait_status(WINDOW + 0x88, 0x20));
    rig.tables.put_words(QUEUE + 16, &descriptor::wait_status(STATUS, 1));
    let unit = RefCell::new(rig.unit);
    let bus = Looped {
        memory: rig.memory,
        unit: &unit,
        turned_away: Cell::new(0),
    };
    let write = |at, value| unit.borrow_mut().write(&bus, at, AccessWidth::Qword, value);
    let read = |at| unit.borrow_mut().read(at, AccessWidth::Qword);
    let turned = || bus.turned_away.replace(0);
    let (te, srtp, qie, ire, sirtp) = (1u64 << 31, 1 << 30, 1 << 26, 1 << 25, 1 << 24);
    let dma = || {
        let request = Request::read(SourceId::from_raw(NIC), Iova::new(IOVA), 8);
        unit.borrow_mut().dma(&bus, &request).expect_err("blocked").reason.0
    };
    // The fault event's message goes to the registers as well: it comes out once, nothing is written.
    write(offset::FEDATA & !7, 0);
    write(offset::FEADDR, WINDOW + 0x18);
    // A status write that would move the queue's own tail: lost, and the next wait completes.
    write(offset::IQA, QUEUE);
    write(offset::GCMD, qie);
    write(offset::IQT, 0x20);
    assert_eq!((turned(), read(offset::IQH), read(offset::IQT)), (1, 0x20, 0x20));
    assert_eq!(rig.memory.read_u64(HostPhys::new(STATUS)), Ok(1));
    // Page tables, then the root table.
    write(offset::RTADDR, root);
    write(offset::GCMD, qie | srtp);
    write(offset::GCMD, qie | te);
    assert_eq!((dma(), turned()), (0x03, 1));
    write(offset::RTADDR, WINDOW);
    write(offset::GCMD, qie | te | srtp);
    write(offset::GCMD, te);
    write(0xF8, 1 << 63 | 1 << 60);
    write(offset::CCMD, 1 << 63 | 1 << 61);
    assert_eq!((dma(), turned()), (0x08, 1));
    // Interrupt entries.
    write(offset::IRTA, WINDOW | 7);
    write(offset::GCMD, te | sirtp);
    write(offset::GCMD, te | ire);
    let request = InterruptRequest {
        source: SourceId::from_raw(NIC),
        address: raw::remappable_address(1, false),
        data: 0,
    };
    let fault = unit.borrow_mut().interrupt(&bus, &request).expect_err("blocked");
    assert_eq!((fault.reason.0, turned()), (0x23, 1));
    // The queue itself.
    write(offset::IQT, 0);
    write(offset::IQA, WINDOW);
    write(offset::GCMD, te | ire | qie);
    write(offset::IQT, 0x10);
    assert_eq!(
        (read(offset::IQERCD) & 0xF, turned()),
        (QueueError::FETCH_FAILED.0.into(), 1)
    );
    write(offset::FECTL, 0);
    let message = unit.borrow_mut().take_message().expect("an event");
    assert_eq!(
        (message.source, message.address & 0xFFFF_FFFF),
        (EventSource::Fault, WINDOW + 0x18)
    );
    assert!(unit.borrow_mut().take_message().is_none());
    assert_eq!(turned(), 0);
}

#[test]
fn s24_the_largest_index_of_every_kind_has_a_defined_outcome() {
    // Bus and function.
    let mut rig = Rig::legacy(spec().fault_records(256));
    let top = rig.tables.page();
    assert_eq!(rig.fault(0xFFFF, IOVA).0, 0x01);
    rig.context(0xFFFF, translation_type::UNTRANSLATED, top, 2, 0xFFFF);
    rig.map(top, IOVA, HOST);
    assert_eq!(rig.host(0xFFFF, IOVA), HOST);
    // The last of 256 fault records, and what is behind it.
    for _ in 1..256 {
        let _ = rig.read(NIC, IOVA);
    }
    assert!(rig.record(255).f());
    rig.clear_record(255);
    assert!(!rig.record(255).f());
    let behind = rig.unit.config().capability().fault_record_offset(255) + 16;
    assert_eq!(rig.unit.read(behind, AccessWidth::Qword), u64::MAX);
    // Interrupt entry.
    let (mut rig, table) = remapping(15);
    rig.tables.irte(table, 0xFFFF, raw::irte(0x44, 0, 0));
    let last = raw::remappable_address(0xFFFF, true);
    assert_eq!(rig.interrupt(NIC, last, 0).expect("the last entry").vector(), 0x44);
    assert_eq!(rig.interrupt(NIC, last, 0xFFFF).expect_err("behind").reason.0, 0x21);
    // PASID, in the largest directory and behind a smaller one.
    for (pdts, outcome) in [(7, Ok(HOST)), (6, Err(0x46))] {
        let (mut rig, directory) = with_pasids(full(), pdts);
        let directory_len = 8u64 << (7 + pdts);
        let top = rig.tables.page();
        if pdts == 7 {
            // 16384 entries: more than the directory's pages so far.
            let at = rig.tables.page();
            rig.tables
                .put(directory + directory_len - 8, raw::pasid_directory_entry(at));
            rig.tables.pasid(directory, 0xF_FFFF, first_stage(top));
        }
        rig.tables.first_stage(top, 4, IOVA, HOST, 1, FS_ALL);
        let got = rig.dma(&asks(0xF_FFFF, IOVA)).map(|answer| answer.phys.raw());
        assert_eq!(got.map_err(|fault| fault.reason.0), outcome, "{pdts}");
        // Device-TLB tags.
        for tag in [0, 31, 32, 255] {
            let source = SourceId::from_raw(0xFFFF);
            rig.unit.time_out_device_invalidation(source, tag);
            rig.unit.complete_device_invalidation(rig.memory, source, tag);
        }
        assert!(rig.fault_status().ice() && !rig.fault_status().ite());
    }
}
