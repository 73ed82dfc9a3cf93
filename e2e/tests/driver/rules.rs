//! Rules that single scenarios show best: lost confirmations, faults, limits, memory maps over several units.

use iommu_types::sync::Ordering;
use iommu_types::{Access, AddressSpace, HostPhys, Iova, PAGE_SIZE, Perms, TableMemory};
use vtd_driver::{
    AttachError, DomainError, DomainOptions, FlushError, HardwareError, Ioas, JoinError, MapError, Reachable,
    Requester, Stage, TableMode,
};
use vtd_model::{Profile, UnitConfig, UnitConfigBuilder};

use crate::machine::{Machine, range, source};

fn silicon() -> UnitConfigBuilder {
    UnitConfig::builder().profile(Profile::Silicon)
}

fn machine(builder: UnitConfigBuilder) -> Machine {
    Machine::new(builder.build().expect("valid"))
}

/// The leaf entry's table and index for `iova`, found with plain shifts.
fn leaf(machine: &Machine, root: HostPhys, levels: u32, iova: Iova) -> (HostPhys, usize) {
    let mut table = root;
    for level in (1..=levels).rev() {
        let index = usize::try_from(iova.raw() >> (12 + 9 * (level - 1)) & 0x1ff).expect("nine bits");
        if level == 1 {
            return (table, index);
        }
        let entry = machine.memory.table(table).expect("a table")[index].load(Ordering::Acquire);
        table = HostPhys::new(entry & 0x000f_ffff_ffff_f000);
    }
    unreachable!("there is a lowest level")
}

#[test]
fn an_entry_changed_behind_the_drivers_back_is_seen_as_a_fault_of_that_device_and_domain() {
    let machine = machine(silicon());
    let unit = machine.translating();
    let nic = Requester::new(source("02:00.0"));
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    unit.attach(&nic, &domain).expect("attached");
    // More pages than are flushed one by one.
    let iova = Iova::new(0x40_3000);
    let others = [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|number| range(0x80_0000 + number * PAGE_SIZE, PAGE_SIZE));
    domain
        .map(iova, HostPhys::new(0x9000), PAGE_SIZE, Perms::READ_WRITE)
        .expect("mapped");
    for other in others {
        domain
            .map(other.first(), HostPhys::new(0xa000), PAGE_SIZE, Perms::READ)
            .expect("mapped");
    }
    assert_eq!(machine.dma(nic.rid, iova, Access::Write), Ok(HostPhys::new(0x9000)));

    let (table, index) = leaf(&machine, domain.root(), u32::from(domain.agaw().levels()), iova);
    machine.memory.table(table).expect("a table")[index].fetch_and(!2, Ordering::AcqRel);
    // The unit may have the old entry cached until something is flushed.
    let pending = others.map(|other| domain.unmap(other, ()).expect("mapped"));
    domain.flush_all(pending.into()).expect("flushed");

    assert_eq!(machine.dma(nic.rid, iova, Access::Read), Ok(HostPhys::new(0x9000)));
    let reason = machine
        .dma(nic.rid, iova, Access::Write)
        .expect_err("the right to write is gone");
    let mut seen = Vec::new();
    unit.drain_faults(|report| seen.push(report)).expect("answers");
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (
            seen[0].record.source(),
            seen[0].record.address(),
            seen[0].record.reason().0
        ),
        (nic.rid, iova, reason)
    );
    assert_eq!(seen[0].domain, Some(domain.id()));
}

#[test]
fn a_table_page_that_went_away_is_not_walked_any_more() {
    let scalable = || silicon().scalable_mode(true).first_stage(true);
    for (machine, stage) in [
        (machine(silicon()), Stage::Second),
        (machine(scalable()).in_mode(TableMode::Scalable), Stage::First),
    ] {
        let unit = machine.translating();
        let nic = Requester::new(source("02:00.0"));
        let options = DomainOptions {
            superpages: false,
            stage,
            ..DomainOptions::default()
        };
        let domain = unit.create_domain(options).expect("a domain");
        unit.attach(&nic, &domain).expect("attached");
        let at = Iova::new(0x20_0000);
        domain
            .map(at, HostPhys::new(0x100_0000), 0x20_0000, Perms::READ)
            .expect("mapped");
        assert!(machine.dma(nic.rid, at, Access::Read).is_ok());
        let pending = domain.unmap(range(at.raw(), 0x20_0000), ()).expect("mapped");
        assert!(pending.holds_tables());
        domain.flush(pending).expect("flushed");
        // Somebody else gets the page that the table was; the range gets another.
        let elsewhere = Iova::new(0x4000_0000);
        domain
            .map(elsewhere, HostPhys::new(0x200_0000), PAGE_SIZE, Perms::READ)
            .expect("mapped");
        domain
            .map(at, HostPhys::new(0x300_0000), 0x20_0000, Perms::READ)
            .expect("mapped");
        assert_eq!(
            machine.dma(nic.rid, at, Access::Read),
            Ok(HostPhys::new(0x300_0000)),
            "{stage:?}"
        );
    }
}

#[test]
fn a_lost_confirmation_keeps_lease_and_tables_and_poisons_the_unit() {
    let machine = machine(silicon());
    let unit = machine.translating();
    let nic = Requester::new(source("02:00.0"));
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    unit.attach(&nic, &domain).expect("attached");
    // All that a level-1 table translates, in small pages: unmapping frees the table.
    domain
        .map(Iova::new(0x20_0000), HostPhys::new(0x1000), 0x20_0000, Perms::READ)
        .expect("mapped");
    let pending = domain.unmap(range(0x20_0000, 0x20_0000), "lease").expect("mapped");
    assert!(pending.holds_tables());
    let frames = machine.memory.live_frames();

    machine.frozen.set(true);
    let (error, pending) = domain.flush(pending).expect_err("nothing is confirmed");
    let FlushError::Unconfirmed(unconfirmed) = error else {
        panic!("{error}")
    };
    assert!(matches!(unconfirmed.cause, HardwareError::InvalidationTimeout { .. }));
    assert_eq!(
        unconfirmed.reachable,
        Reachable::Range {
            domain: domain.id(),
            range: range(0x20_0000, 0x20_0000)
        }
    );
    assert!(unit.health().invalidation_lost);

    // A late confirmation does not heal anything: the token stays, new devices are refused.
    machine.frozen.set(false);
    machine.settle();
    let (error, pending) = domain.flush(pending).expect_err("the unit is poisoned");
    assert!(matches!(error, FlushError::Unconfirmed(u) if matches!(u.cause, HardwareError::Poisoned(_))));
    let other = Requester::new(source("03:00.0"));
    assert!(matches!(
        unit.attach(&other, &domain),
        Err(AttachError::Hardware(HardwareError::Poisoned(_)))
    ));
    assert!(machine.dma(other.rid, Iova::new(0x20_0000), Access::Read).is_err());
    drop(pending);
    assert_eq!(
        machine.memory.live_frames(),
        frames,
        "a dropped token leaks its tables, it does not free them"
    );
    // Faults can still be read.
    unit.drain_faults(|_| {}).expect("answers");
}

#[test]
fn a_detach_that_is_not_confirmed_keeps_the_ids_taken() {
    let machine = machine(silicon());
    let unit = machine.translating();
    let nic = Requester::new(source("02:00.0"));
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    unit.attach(&nic, &domain).expect("attached");
    machine.frozen.set(true);
    assert!(matches!(
        unit.detach(&nic),
        Err(vtd_driver::DetachError::Unconfirmed(_))
    ));
    machine.frozen.set(false);
    assert!(domain.destroy().is_err(), "the domain is still in use");
}

#[test]
fn the_destructor_of_a_lease_does_not_run_when_its_token_is_dropped() {
    #[derive(Debug)]
    struct Lease<'a>(&'a std::cell::Cell<bool>);
    impl Drop for Lease<'_> {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    let machine = machine(silicon());
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let given_back = std::cell::Cell::new(false);
    for flush in [false, true] {
        domain
            .map(Iova::new(0x1000), HostPhys::new(0x9000), PAGE_SIZE, Perms::READ)
            .expect("mapped");
        let pending = domain
            .unmap(range(0x1000, PAGE_SIZE), Lease(&given_back))
            .expect("mapped");
        if flush {
            drop(domain.flush(pending).expect("flushed"));
        } else {
            drop(pending);
        }
        assert_eq!(given_back.get(), flush);
    }
}

#[test]
fn a_unit_that_vanishes_is_reported_as_gone() {
    let machine = machine(silicon());
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    domain
        .map(Iova::new(0x1000), HostPhys::new(0x9000), PAGE_SIZE, Perms::READ)
        .expect("mapped");
    let pending = domain.unmap(range(0x1000, PAGE_SIZE), ()).expect("mapped");
    machine.gone.set(true);
    let (error, _pending) = domain.flush(pending).expect_err("nobody answers");
    assert!(
        matches!(error, FlushError::Unconfirmed(u) if matches!(u.cause, HardwareError::Gone { .. })),
        "{error}"
    );
    assert!(unit.health().gone);
    assert!(unit.drain_faults(|_| {}).is_err());
}

#[test]
fn every_allocation_may_fail_and_the_next_attempt_succeeds() {
    // A domain, a mapping of two levels of tables, an attach with two buses: fail the n-th allocation of all that.
    for nth in 0.. {
        let machine = machine(silicon());
        let unit = machine.translating();
        let nic = Requester::with_aliases(source("02:00.0"), [source("03:00.0")]);
        let mut failures = 0;
        machine.memory.fail_allocation(nth);
        let mut persist = |done: bool| {
            failures += u32::from(!done);
            assert!(failures <= 1);
            done
        };
        let domain = loop {
            match unit.create_domain(DomainOptions::default()) {
                Ok(domain) => break domain,
                Err(error) => assert!(!persist(false), "{error}"),
            }
        };
        let map = || domain.map(Iova::new(0x1000), HostPhys::new(0x9000), PAGE_SIZE, Perms::READ);
        while !persist(map().is_ok()) {}
        while !persist(unit.attach(&nic, &domain).is_ok()) {
            assert!(
                machine.dma(nic.rid, Iova::new(0x1000), Access::Read).is_err(),
                "half attached"
            );
        }
        for id in [nic.rid, nic.aliases[0]] {
            assert_eq!(
                machine.dma(id, Iova::new(0x1000), Access::Read),
                Ok(HostPhys::new(0x9000))
            );
        }
        assert_eq!(machine.memory.violations(), []);
        if failures == 0 {
            assert!(nth >= 5, "nothing was tried");
            return;
        }
    }
}

#[test]
fn identifiers_run_out_as_an_error_and_come_back_with_their_domain() {
    let machine = machine(silicon().domain_id_bits(4));
    let unit = machine.translating();
    let mut domains: Vec<_> = (0..15)
        .map(|_| unit.create_domain(DomainOptions::default()).expect("free"))
        .collect();
    let error = unit.create_domain(DomainOptions::default()).expect_err("none is left");
    assert_eq!(error, DomainError::OutOfIds { usable: 15 });
    let nic = Requester::new(source("02:00.0"));
    unit.attach(&nic, &domains[7]).expect("attached");
    let refused = domains.remove(7).destroy().expect_err("attached");
    unit.detach(&nic).expect("detached");
    let id = refused.domain.id();
    refused.domain.destroy().expect("destroyed");
    assert_eq!(
        unit.create_domain(DomainOptions::default()).expect("free again").id(),
        id
    );
}

#[test]
fn an_overflowing_fault_log_is_read_from_its_first_record_and_goes_on() {
    let machine = machine(silicon().fault_records(3));
    let unit = machine.translating();
    let fault = |page: u64| {
        machine
            .dma(source("02:00.0"), Iova::new(page * PAGE_SIZE), Access::Read)
            .expect_err("blocked")
    };
    let drain = || {
        let mut pages = Vec::new();
        let drained = unit
            .drain_faults(|report| pages.push(report.record.address().raw() / PAGE_SIZE))
            .expect("answers");
        (pages, drained.overflowed)
    };
    fault(1);
    fault(2);
    assert_eq!(drain(), (vec![1, 2], false));
    // The ring goes on at its third register and wraps; the fifth finds none free.
    for page in 3..8 {
        fault(page);
    }
    assert_eq!(drain(), (vec![3, 4, 5], true));
    fault(9);
    assert_eq!(drain(), (vec![9], false));
}

#[test]
fn addresses_that_are_interrupts_cannot_be_mapped_on_either_side() {
    let machine = machine(silicon());
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    for (iova, phys) in [(0xfedf_f000, 0x1000), (0xfeef_f000, 0x1000), (0x1000, 0xfee0_0000)] {
        let result = domain.map(Iova::new(iova), HostPhys::new(phys), 2 * PAGE_SIZE, Perms::READ_WRITE);
        assert!(
            matches!(result, Err(MapError::InterruptWindow { .. })),
            "{iova:#x}: {result:?}"
        );
    }
    domain
        .map(Iova::new(0xfef0_0000), HostPhys::new(0x1000), PAGE_SIZE, Perms::READ)
        .expect("just behind");
}

#[test]
fn a_memory_map_is_repeated_on_the_unit_of_each_device_that_joins() {
    let (wide, narrow) = (
        machine(silicon()),
        machine(silicon().four_levels(false).caching_mode(true)),
    );
    let (first, second) = (wide.translating(), narrow.translating());
    let (nic, disk) = (Requester::new(source("02:00.0")), Requester::new(source("81:00.0")));
    let guest = Ioas::new(DomainOptions::default());
    guest
        .map(Iova::new(0x10_0000), HostPhys::new(0x9000), 0x3000, Perms::READ_WRITE)
        .expect("mapped");
    guest.attach(&first, &nic).expect("joined");
    guest
        .map(Iova::new(0x20_0000), HostPhys::new(0x5000), 0x1000, Perms::READ)
        .expect("mapped");
    guest.attach(&second, &disk).expect("joined");

    let everywhere = |iova: u64| {
        let iova = Iova::new(iova);
        [
            wide.dma(nic.rid, iova, Access::Read).ok(),
            narrow.dma(disk.rid, iova, Access::Read).ok(),
        ]
    };
    assert_eq!(everywhere(0x10_2000), [Some(HostPhys::new(0xb000)); 2]);
    assert_eq!(everywhere(0x20_0000), [Some(HostPhys::new(0x5000)); 2]);
    assert_eq!(everywhere(0x30_0000), [None; 2]);

    // The narrow unit cannot have this; the wide one must not keep it.
    let high = Iova::new(1 << 40);
    assert!(!AddressSpace::aperture(&guest).contains(high));
    assert!(guest.map(high, HostPhys::new(0x9000), 0x1000, Perms::READ).is_err());
    assert_eq!(everywhere(1 << 40), [None; 2]);

    // Parts of a mapping, and holes, are refused before anything changes.
    assert!(guest.unmap(range(0x10_0000, 0x1000), ()).is_err());
    assert!(guest.unmap(range(0x10_0000, 0x4000), ()).is_err());
    let pending = guest.unmap(range(0x10_0000, 0x3000), "lease").expect("mapped");
    assert_eq!(guest.flush(pending).expect("flushed"), "lease");
    assert_eq!(everywhere(0x10_2000), [None; 2]);

    // One unit that does not confirm keeps the token; the other was flushed all the same.
    assert_eq!(everywhere(0x20_0000), [Some(HostPhys::new(0x5000)); 2]);
    let pending = guest.unmap(range(0x20_0000, 0x1000), ()).expect("mapped");
    wide.frozen.set(true);
    let (_, pending) = guest.flush(pending).expect_err("half confirmed");
    assert_eq!(everywhere(0x20_0000)[1], None);
    wide.frozen.set(false);
    assert!(guest.flush(pending).is_err(), "the first unit is poisoned");
}

#[test]
fn a_device_whose_unit_cannot_hold_the_map_does_not_join() {
    let (wide, narrow) = (machine(silicon()), machine(silicon().four_levels(false)));
    let (first, second) = (wide.translating(), narrow.translating());
    let guest = Ioas::new(DomainOptions::default());
    guest
        .attach(&first, &Requester::new(source("02:00.0")))
        .expect("joined");
    guest
        .map(Iova::new(1 << 40), HostPhys::new(0x9000), 0x1000, Perms::READ)
        .expect("mapped");
    let before = narrow.memory.live_frames();
    let result = guest.attach(&second, &Requester::new(source("81:00.0")));
    assert!(matches!(result, Err(JoinError::Replay { .. })), "{result:?}");
    assert_eq!(narrow.memory.live_frames(), before);
}

#[test]
fn superpages_take_the_place_of_pruned_tables_and_old_tables_are_not_walked() {
    let machine = machine(silicon());
    let unit = machine.translating();
    let nic = Requester::new(source("02:00.0"));
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    unit.attach(&nic, &domain).expect("attached");
    let whole = range(0x20_0000, 0x20_0000);
    // Two small mappings make a table, and their removal leaves it empty.
    for at in [0x20_0000, 0x3f_f000] {
        domain
            .map(Iova::new(at), HostPhys::new(0x9000), PAGE_SIZE, Perms::READ)
            .expect("mapped");
        assert!(machine.dma(nic.rid, Iova::new(at), Access::Read).is_ok());
    }
    for at in [0x20_0000, 0x3f_f000] {
        let pending = domain.unmap(range(at, PAGE_SIZE), ()).expect("mapped");
        domain.flush(pending).expect("flushed");
    }
    let pending = domain.prune(whole, ()).expect("nothing is mapped");
    assert!(pending.holds_tables());
    domain.flush(pending).expect("flushed");
    domain
        .map(whole.first(), HostPhys::new(0x4000_0000), 0x20_0000, Perms::READ)
        .expect("mapped");
    for at in [0x20_0000, 0x3f_f000] {
        let expected = HostPhys::new(0x4000_0000 + at - 0x20_0000);
        assert_eq!(machine.dma(nic.rid, Iova::new(at), Access::Read), Ok(expected));
    }
    assert_eq!(machine.memory.violations(), []);
}

#[test]
fn a_silenced_device_is_blocked_without_a_record_through_attach_and_detach() {
    let machine = machine(silicon());
    let unit = machine.translating();
    let noisy = Requester::new(source("02:00.0"));
    let records = || unit.drain_faults(|_| {}).expect("answers").records;
    let fault = || assert!(machine.dma(noisy.rid, Iova::new(0x7000), Access::Read).is_err());
    unit.silence(&noisy, true).expect("silenced");
    fault();
    assert_eq!(records(), 0);
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    unit.attach(&noisy, &domain).expect("attached");
    fault();
    unit.detach(&noisy).expect("detached");
    fault();
    assert_eq!(records(), 0);
    unit.silence(&noisy, false).expect("heard again");
    fault();
    assert_eq!(records(), 1);
}

#[test]
fn a_unit_that_must_keep_translating_is_blocked_from_take_over_on() {
    let machine = machine(silicon());
    let nic = source("02:00.0");
    {
        let old = machine.translating();
        let domain = old.create_domain(DomainOptions::default()).expect("a domain");
        domain
            .map(Iova::new(0x1000), HostPhys::new(0x9000), PAGE_SIZE, Perms::READ)
            .expect("mapped");
        old.attach(&Requester::new(nic), &domain).expect("attached");
        assert!(machine.dma(nic, Iova::new(0x1000), Access::Read).is_ok());
    }
    let quirks = vtd_driver::UnitQuirks {
        keep_translation_on: true,
        ..vtd_driver::UnitQuirks::default()
    };
    let options = vtd_driver::UnitOptions {
        quirks,
        ..machine.options()
    };
    machine.take_writes();
    let unit = vtd_driver::Unit::found(&machine, &machine, options).expect("found");
    let unit = unit.take_over().map_err(|error| error.cause).expect("taken over");
    assert!(machine.dma(nic, Iova::new(0x1000), Access::Read).is_err());
    unit.enable().map_err(|error| error.cause).expect("enabled");
    let commands = machine
        .take_writes()
        .into_iter()
        .filter(|(at, _)| *at == vtd_spec::register::offset::GCMD);
    assert!(
        commands.map(|(_, value)| value).all(|value| value & 1 << 31 != 0),
        "TE was never cleared"
    );
}
