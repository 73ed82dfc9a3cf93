//! What the driver tells the unit, word for word: the steps whose absence a given unit may forgive.

use iommu_testkit::contract;
use iommu_types::{Access, AddressSpace, HostPhys, Iova, PAGE_SIZE, Pasid, Perms, Piece, SystemMemory};
use vtd_driver::{
    DomainOptions, InterruptOptions, InterruptSource, InterruptTarget, PassThrough, Requester, TableMode, Unit,
    UnitOptions,
};
use vtd_model::{Profile, UnitConfig, UnitConfigBuilder};
use vtd_spec::register::{Capability, ExtendedCapability, offset};

use crate::machine::{Machine, range, source};

/// Global context-cache and IOTLB invalidation; the latter drains reads and writes.
const CONTEXT_GLOBAL: [u64; 2] = [0x11, 0];
const IOTLB_GLOBAL: [u64; 2] = [0xd2, 0];
const INTERRUPTS_GLOBAL: [u64; 2] = [0x04, 0];

const fn context_device(source: u64, domain: u64) -> [u64; 2] {
    [source << 32 | domain << 16 | 0x31, 0]
}

const fn iotlb_domain(domain: u64) -> [u64; 2] {
    [domain << 16 | 0xe2, 0]
}

const fn iotlb_pages(domain: u64, address: u64, mask: u64, hint: bool) -> [u64; 2] {
    [domain << 16 | 0xf2, address | (hint as u64) << 6 | mask]
}

fn machine(builder: UnitConfigBuilder) -> Machine {
    Machine::new(builder.profile(Profile::Silicon).build().expect("valid"))
}

#[test]
fn a_new_root_table_is_followed_by_context_then_translation_invalidation_unless_the_unit_does_it() {
    let plain = machine(UnitConfig::builder());
    let _unit = plain.translating();
    assert_eq!(plain.take_descriptors(), [CONTEXT_GLOBAL, IOTLB_GLOBAL]);

    let enhanced = machine(UnitConfig::builder().enhanced_root_pointer(true));
    let _unit = enhanced.translating();
    assert!(enhanced.take_descriptors().is_empty());
}

#[test]
fn detaching_flushes_the_context_of_each_id_under_the_old_domain_and_then_the_domain() {
    let machine = machine(UnitConfig::builder());
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let device = Requester::with_aliases(source("05:00.0"), [source("04:00.0")]);
    machine.take_descriptors();
    unit.attach(&device, &domain).expect("attached");
    assert!(
        machine.take_descriptors().is_empty(),
        "a unit without caching mode has nothing cached"
    );
    unit.detach(&device).expect("detached");
    let id = u64::from(domain.id().0);
    assert_eq!(
        machine.take_descriptors(),
        [context_device(0x400, id), context_device(0x500, id), iotlb_domain(id)]
    );
    // Before the identifier is used again, everything under it goes.
    domain.destroy().expect("destroyed");
    assert_eq!(machine.take_descriptors(), [[id << 16 | 0x21, 0], iotlb_domain(id)]);
}

#[test]
fn an_entry_that_is_taken_away_loses_its_presence_first_and_the_rest_after_the_flush() {
    let machine = machine(UnitConfig::builder());
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let device = Requester::new(source("05:00.0"));
    unit.attach(&device, &domain).expect("attached");
    // Root entry of bus 5, context entry 0.
    let root = machine.register64(offset::RTADDR) & !0xfff;
    let [root_entry] = machine.memory.read_words(HostPhys::new(root + 5 * 16)).expect("memory");
    let context = HostPhys::new(root_entry & !0xfff);
    let present: [u64; 2] = machine.memory.read_words(context).expect("memory");
    assert_eq!(present[0] & 1, 1);

    machine.watch.set(Some(context));
    unit.detach(&device).expect("detached");
    // Entry, then translations: two doorbells.
    assert_eq!(machine.take_watched(), [[present[0] & !1, present[1]]; 2]);
    assert_eq!(machine.memory.read_words(context), Ok([0, 0]));
}

#[test]
fn a_pasid_entry_loses_its_presence_before_the_flush_too() {
    let config = UnitConfig::builder()
        .scalable_mode(true)
        .scalable_second_stage(true)
        .pasid_bits(Some(8));
    let machine = machine(config).in_mode(TableMode::Scalable);
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let device = source("05:00.0");
    let pasid = Pasid::new(3).expect("20 bits");
    unit.attach(&Requester::new(device), &domain).expect("attached");
    unit.attach_pasid(device, pasid, &domain).expect("attached");
    // Root entry of bus 5, context entry 0, directory entry 0, PASID entry 3.
    let mut at = (machine.register64(offset::RTADDR) & !0xfff) + 5 * 16;
    for index in [0, 0, 3 * 64] {
        let [entry] = machine.memory.read_words(HostPhys::new(at)).expect("memory");
        at = (entry & !0xfff) + index;
    }
    let entry = HostPhys::new(at);
    let present: [u64; 2] = machine.memory.read_words(entry).expect("memory");
    assert_eq!(present[0] & 1, 1);
    machine.watch.set(Some(entry));
    unit.detach_pasid(device, pasid).expect("detached");
    // Entry, then translations: two doorbells.
    assert_eq!(machine.take_watched(), [[present[0] & !1, present[1]]; 2]);
    assert_eq!(machine.memory.read_words(entry), Ok([0, 0]));
}

#[test]
fn pass_through_names_the_widest_tables_of_the_unit() {
    let machine = machine(UnitConfig::builder().five_levels(true));
    let options = UnitOptions {
        pass_through: PassThrough::AllowedForTrustedDevices,
        ..machine.options()
    };
    let unit = Unit::found(&machine, &machine, options).expect("found");
    let unit = unit.take_over().map_err(|error| error.cause).expect("taken over");
    unit.attach_pass_through(&Requester::new(source("05:00.0")))
        .expect("attached");
    let root = machine.register64(offset::RTADDR) & !0xfff;
    let [root_entry] = machine.memory.read_words(HostPhys::new(root + 5 * 16)).expect("memory");
    let [low, high] = machine
        .memory
        .read_words(HostPhys::new(root_entry & !0xfff))
        .expect("memory");
    // TT 10, AW 011.
    assert_eq!((low & 0xf, high & 7), (0b1001, 3));
}

#[test]
fn caching_mode_flushes_new_entries_under_domain_zero_and_new_mappings_under_their_own() {
    let machine = machine(UnitConfig::builder().caching_mode(true));
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let id = u64::from(domain.id().0);
    machine.take_descriptors();
    unit.attach(&Requester::new(source("05:00.0")), &domain)
        .expect("attached");
    assert_eq!(
        machine.take_descriptors(),
        // The bus is new, then the function.
        [CONTEXT_GLOBAL, IOTLB_GLOBAL, context_device(0x500, 0), iotlb_domain(id)]
    );
    domain
        .map(Iova::new(0x3000), HostPhys::new(0x9000), 2 * PAGE_SIZE, Perms::READ)
        .expect("mapped");
    assert_eq!(
        machine.take_descriptors(),
        [iotlb_pages(id, 0x3000, 0, false), iotlb_pages(id, 0x4000, 0, false)]
    );
}

#[test]
fn a_list_of_pages_is_announced_to_a_caching_unit_once() {
    let machine = machine(UnitConfig::builder().caching_mode(true));
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let id = u64::from(domain.id().0);
    let nic = Requester::new(source("05:00.0"));
    unit.attach(&nic, &domain).expect("attached");
    let list: Vec<Piece> = (0..16)
        .map(|page| Piece {
            offset: page * PAGE_SIZE,
            phys: HostPhys::new(0x20_0000 - page * PAGE_SIZE),
            len: PAGE_SIZE,
        })
        .collect();
    let base = Iova::new(0x10_0000);
    assert!(
        machine.dma(nic.rid, base, Access::Read).is_err(),
        "and that it may remember"
    );
    machine.take_descriptors();
    domain.map_pieces(base, &list, Perms::READ).expect("mapped");
    assert_eq!(machine.take_descriptors(), [iotlb_pages(id, 0x10_0000, 4, false)]);
    for piece in &list {
        let iova = Iova::new(base.raw() + piece.offset);
        assert_eq!(machine.dma(nic.rid, iova, Access::Read), Ok(piece.phys));
    }
    let interrupts = [
        list[0],
        Piece {
            phys: HostPhys::new(0xfee0_0000),
            ..list[1]
        },
    ];
    let refused = domain.map_pieces(Iova::new(0x20_0000), &interrupts, Perms::READ);
    assert!(
        matches!(refused, Err((0, _))),
        "nothing is mapped of a list with a page that must not be"
    );
    assert!(machine.dma(nic.rid, Iova::new(0x20_0000), Access::Read).is_err());
}

#[test]
fn a_domain_keeps_the_address_space_contract() {
    for caching in [false, true] {
        let machine = machine(UnitConfig::builder().caching_mode(caching));
        let unit = machine.translating();
        let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
        let nic = Requester::new(source("05:00.0"));
        unit.attach(&nic, &domain).expect("attached");
        contract::address_space(&domain, Iova::new(0x10_0000), HostPhys::new(0x20_0000), |at, access| {
            machine.dma(nic.rid, at, access).ok()
        });
    }
}

#[test]
fn the_hint_is_given_only_when_no_table_went_away() {
    let machine = machine(UnitConfig::builder());
    let unit = machine.translating();
    let options = DomainOptions {
        superpages: false,
        ..DomainOptions::default()
    };
    let domain = unit.create_domain(options).expect("a domain");
    let id = u64::from(domain.id().0);
    for (base, len, mask, hint) in [
        (0x3000, 0x1000, 0, true),
        (0x8000, 0x8000, 3, true),
        (0x40_0000, 0x20_0000, 9, false),
    ] {
        domain
            .map(Iova::new(base), HostPhys::new(0x100_0000), len, Perms::READ)
            .expect("mapped");
        machine.take_descriptors();
        let pending = domain.unmap(range(base, len), ()).expect("mapped");
        assert!(
            machine.take_descriptors().is_empty(),
            "nothing is said before the flush"
        );
        domain.flush(pending).expect("flushed");
        assert_eq!(machine.take_descriptors(), [iotlb_pages(id, base, mask, hint)]);
    }
}

#[test]
fn units_that_need_it_get_their_write_buffers_flushed_after_each_new_entry() {
    const FLUSH: u64 = 1 << 27;
    let machine = machine(UnitConfig::builder().write_buffer_flush(true));
    let unit = machine.translating();
    let flushes = || {
        machine
            .take_writes()
            .iter()
            .filter(|(at, value)| *at == offset::GCMD && value & FLUSH != 0)
            .count()
    };
    flushes();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    domain
        .map(Iova::new(0x3000), HostPhys::new(0x9000), PAGE_SIZE, Perms::READ)
        .expect("mapped");
    assert_eq!(flushes(), 1);
    // A new root entry, a new context entry.
    unit.attach(&Requester::new(source("05:00.0")), &domain)
        .expect("attached");
    assert_eq!(flushes(), 2);
    // Unmapping is an invalidation, which flushes by itself.
    let pending = domain.unmap(range(0x3000, PAGE_SIZE), ()).expect("mapped");
    domain.flush(pending).expect("flushed");
    assert_eq!(flushes(), 0);
}

#[test]
fn interrupt_entries_are_flushed_before_remapping_is_on_and_after_each_change() {
    let machine = machine(UnitConfig::builder());
    let unit = machine.translating();
    machine.take_descriptors();
    machine.take_writes();
    unit.start_interrupt_remapping(InterruptOptions::default()).expect("on");
    assert_eq!(machine.take_descriptors(), [INTERRUPTS_GLOBAL]);
    let steps: Vec<u32> = machine.take_writes().iter().map(|(at, _)| *at).collect();
    // Table, pointer, invalidation, enable.
    assert_eq!(steps, [offset::IRTA, offset::GCMD, offset::IQT, offset::GCMD]);

    let block = unit
        .allocate_interrupts(3, InterruptSource::Requester(source("02:00.0")))
        .expect("entries");
    unit.set_interrupt(&block, 1, Some(InterruptTarget::fixed(0x41, 1)))
        .expect("set");
    let first = u64::from(block.first());
    assert_eq!(machine.take_descriptors(), [[(first + 1) << 32 | 0x14, 0]]);
    unit.release_interrupts(block).expect("released");
    // Three entries lie in an aligned block of four: mask 2.
    assert_eq!(machine.take_descriptors(), [[first << 32 | 2 << 27 | 0x14, 0]]);
}

#[test]
fn no_register_invalidation_is_used_while_the_queue_is_enabled() {
    let machine = machine(UnitConfig::builder().caching_mode(true));
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    unit.attach(&Requester::new(source("05:00.0")), &domain)
        .expect("attached");
    domain
        .map(Iova::new(0x3000), HostPhys::new(0x9000), PAGE_SIZE, Perms::READ)
        .expect("mapped");
    let iotlb = ExtendedCapability::new_with_raw_value(machine.register64(offset::ECAP)).iotlb_offset();
    let used = machine.take_writes();
    assert!(
        used.iter()
            .all(|(at, _)| *at != offset::CCMD && *at != iotlb && *at != iotlb - 8)
    );
    assert!(Capability::new_with_raw_value(machine.register64(offset::CAP)).cm());
}
