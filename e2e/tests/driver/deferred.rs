//! Unmapping that is put off: how often hardware is asked, and that it is asked about everything.

use std::cell::Cell;

use iommu_dma::{Buffer, Device, Direction, DmaApi, Invalidation, Translated};
use iommu_iova::{IovaSpace, ReferenceAllocator};
use iommu_types::{Access, AddressSpace, HostPhys, Iova, PAGE_SIZE, Perms};
use vtd_driver::{DomainOptions, Ioas, PendingFlush, Requester, SpaceError, Stage, TableMode};
use vtd_model::{Profile, UnitConfig, UnitConfigBuilder};
use vtd_spec::register::offset;

use crate::machine::{Machine, TestDomain, range, source};

fn silicon() -> UnitConfigBuilder {
    UnitConfig::builder().profile(Profile::Silicon)
}

fn machine() -> Machine {
    Machine::new(silicon().build().expect("valid"))
}

/// Doorbells and descriptors since the last look.
fn asked(machine: &Machine) -> (usize, usize) {
    let doorbells = machine
        .take_writes()
        .iter()
        .filter(|(at, _)| *at == offset::IQT)
        .count();
    (doorbells, machine.take_descriptors().len())
}

const fn page(number: u64) -> u64 {
    0x10_0000 + number * 2 * PAGE_SIZE
}

/// Maps and unmaps `count` pages that do not touch each other.
fn unmapped<'m>(domain: &TestDomain<'m>, count: u64) -> Vec<PendingFlush<u64>> {
    let one = |number| {
        let at = range(page(number), PAGE_SIZE);
        domain
            .map(at.first(), HostPhys::new(0x100_0000), PAGE_SIZE, Perms::READ)
            .expect("mapped");
        domain.unmap(at, number).expect("mapped")
    };
    (0..count).map(one).collect()
}

#[test]
fn a_flush_queue_of_any_length_takes_one_wait() {
    let machine = machine();
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let nic = Requester::new(source("02:00.0"));
    unit.attach(&nic, &domain).expect("attached");
    // A few pages are named; of more, the whole domain is.
    for (count, descriptors) in [(1, 1), (3, 3), (8, 8), (9, 1), (256, 1)] {
        let tokens = unmapped(&domain, count);
        asked(&machine);
        let mut leases = Vec::new();
        AddressSpace::flush_all(
            &domain,
            tokens.into_iter(),
            |lease| leases.push(lease),
            |_| panic!("kept"),
        )
        .expect("confirmed");
        assert_eq!(asked(&machine), (1, descriptors), "{count} unmaps");
        assert_eq!(leases, (0..count).collect::<Vec<u64>>());
        assert!((0..count).all(|number| machine.dma(nic.rid, Iova::new(page(number)), Access::Read).is_err()));
    }
    AddressSpace::flush_all(&domain, std::iter::empty::<PendingFlush<()>>(), |()| (), |_| ()).expect("nothing to do");
    assert_eq!(asked(&machine), (0, 0));
}

#[test]
fn tokens_of_another_domain_and_of_a_stuck_unit_are_kept_each_for_itself() {
    let machine = machine();
    let unit = machine.translating();
    let [domain, other] = [(); 2].map(|()| unit.create_domain(DomainOptions::default()).expect("a domain"));
    let mut tokens = unmapped(&domain, 2);
    tokens.extend(unmapped(&other, 1));
    let (mut leases, mut kept) = (Vec::new(), Vec::new());
    let done = AddressSpace::flush_all(
        &domain,
        tokens.into_iter(),
        |lease| leases.push(lease),
        |token| kept.push(token),
    );
    assert!(matches!(done, Err(SpaceError::Flush(_))));
    assert_eq!((leases, kept.len()), (vec![0, 1], 1));
    other.flush_all(kept).expect("flushed where it belongs");

    let tokens = unmapped(&domain, 12);
    machine.frozen.set(true);
    let mut kept = 0;
    let done = AddressSpace::flush_all(&domain, tokens.into_iter(), |_| panic!("confirmed"), |_| kept += 1);
    assert!(done.is_err());
    assert_eq!(kept, 12);
}

#[test]
fn a_memory_map_asks_each_unit_once() {
    let (first, second) = (machine(), machine());
    let units = [first.translating(), second.translating()];
    let guest = Ioas::new(DomainOptions::default());
    let nic = Requester::new(source("02:00.0"));
    for unit in &units {
        guest.attach(unit, &nic).expect("joined");
    }
    let unmapped = |count| -> Vec<_> {
        let one = |number| {
            let at = range(page(number), PAGE_SIZE);
            guest
                .map(at.first(), HostPhys::new(0x100_0000), PAGE_SIZE, Perms::READ)
                .expect("mapped");
            assert!(first.dma(nic.rid, at.first(), Access::Read).is_ok());
            guest.unmap(at, number).expect("mapped")
        };
        (0..count).map(one).collect()
    };
    let tokens = unmapped(20);
    for machine in [&first, &second] {
        asked(machine);
    }
    let leases = guest.flush_all(tokens).expect("confirmed");
    assert_eq!(leases, (0..20).collect::<Vec<u64>>());
    assert_eq!([&first, &second].map(asked), [(1, 1); 2]);

    // One that is stuck keeps all tokens; the other is not asked about them again.
    let tokens = Cell::new(unmapped(20));
    first.frozen.set(true);
    asked(&second);
    for doorbells in [1, 0] {
        let partly = guest.flush_all(tokens.take()).expect_err("one unit is stuck");
        assert_eq!((partly.confirmed.len(), partly.kept.len()), (0, 20));
        assert_eq!(asked(&second), (doorbells, doorbells));
        tokens.set(partly.kept);
    }
}

#[test]
fn the_dma_api_flushes_its_queue_by_one_invalidation() {
    const ENTRIES: usize = 64;
    for (stage, mode) in [(Stage::Second, TableMode::Legacy), (Stage::First, TableMode::Scalable)] {
        let scalable = mode == TableMode::Scalable;
        let config = silicon().scalable_mode(scalable).first_stage(scalable);
        let machine = Machine::new(config.build().expect("valid")).in_mode(mode);
        let unit = machine.translating();
        let options = DomainOptions {
            stage,
            ..DomainOptions::default()
        };
        let domain = unit.create_domain(options).expect("a domain");
        let nic = Requester::new(source("02:00.0"));
        unit.attach(&nic, &domain).expect("attached");
        let iovas = ReferenceAllocator::new(IovaSpace::new(domain.aperture()).expect("a space"));
        let backend = Translated::new(domain, iovas, Invalidation::Deferred { entries: ENTRIES });
        let api = DmaApi::new(backend, machine.memory.hardware());
        let mut core = api.new_core();
        let device = Device::with_address_bits(47);
        let mut seen = Vec::new();
        asked(&machine);
        for number in 0..4 * ENTRIES {
            let phys = HostPhys::new(0x100_0000 + u64::try_from(number).expect("small") * PAGE_SIZE);
            let buffer = Buffer::new(phys, PAGE_SIZE);
            let mapping = api
                .map(&mut core, &device, buffer, Direction::FromDevice)
                .expect("mapped");
            let at = mapping.segment().expect("one").address;
            assert_eq!(machine.dma(nic.rid, at, Access::Write), Ok(phys));
            seen.push(at);
            api.unmap(&mut core, mapping).expect("unmapped");
        }
        api.flush(&mut core).expect("confirmed");
        assert_eq!(
            asked(&machine),
            (4, 4),
            "{stage:?}: one invalidation for each full queue"
        );
        assert!(seen.iter().all(|at| machine.dma(nic.rid, *at, Access::Write).is_err()));
    }
}
