//! Which pages devices have written.

use iommu_types::{Access, AddrRange, GuestPhys, HostPhys, Iova, PAGE_SIZE, Perms};
use vtd_driver::{
    DirtyBits, DirtyError, DirtyReadError, Domain, DomainError, DomainOptions, GuestTable, MapError, Requester, Stage,
    TableMode, Unit, UnitOptions, UnitQuirks,
};
use vtd_model::{Profile, UnitConfig, UnitConfigBuilder};

use crate::machine::{Machine, range, source};

fn scalable() -> UnitConfigBuilder {
    UnitConfig::builder()
        .profile(Profile::Silicon)
        .full_scalable_mode()
        .sanitizer(true)
}

fn machine(builder: UnitConfigBuilder) -> Machine {
    Machine::new(builder.build().expect("valid")).in_mode(TableMode::Scalable)
}

const TRACKED: DomainOptions = DomainOptions {
    width: 48,
    superpages: true,
    stage: Stage::Second,
    track_writes: true,
};

fn written(domain: &Domain<&Machine, &Machine>, all: AddrRange<Iova>, bits: DirtyBits) -> Vec<(u64, u64)> {
    let mut pages = Vec::new();
    domain
        .read_dirty(all, bits, |page| pages.push((page.first().raw(), page.page_count())))
        .expect("read");
    pages
}

#[test]
fn a_page_is_written_once_for_each_time_its_bit_was_taken() {
    let machine = machine(scalable());
    let unit = machine.translating();
    let domain = unit.create_domain(TRACKED).expect("a domain");
    let nic = Requester::new(source("02:00.0"));
    unit.attach(&nic, &domain).expect("attached");
    let all = range(0, 0x60_0000);
    for (at, phys, len) in [(0x1000, 0x10_0000, 0x4000), (0x40_0000, 0x80_0000, 0x20_0000)] {
        domain
            .map(Iova::new(at), HostPhys::new(phys), len, Perms::READ_WRITE)
            .expect("mapped");
    }
    let access = |at, access| assert!(machine.dma(nic.rid, Iova::new(at), access).is_ok());
    assert_eq!(written(&domain, all, DirtyBits::Keep), []);
    access(0x1000, Access::Read);
    access(0x3000, Access::Write);
    access(0x41_2000, Access::Write);
    let both = [(0x3000, 1), (0x40_0000, 512)];
    assert_eq!(written(&domain, all, DirtyBits::Keep), both);
    assert_eq!(written(&domain, all, DirtyBits::Clear), both);
    assert_eq!(written(&domain, all, DirtyBits::Clear), []);
    // What the unit has cached as written must not go unnoticed the next time.
    access(0x3000, Access::Write);
    access(0x1000, Access::Write);
    assert_eq!(written(&domain, all, DirtyBits::Clear), [(0x1000, 1), (0x3000, 1)]);
    assert_eq!(machine.take_findings(), []);
}

#[test]
fn bits_that_are_not_confirmed_to_be_noted_again_are_an_error() {
    let machine = machine(scalable());
    let unit = machine.translating();
    let domain = unit.create_domain(TRACKED).expect("a domain");
    let nic = Requester::new(source("02:00.0"));
    unit.attach(&nic, &domain).expect("attached");
    domain
        .map(Iova::new(0x1000), HostPhys::new(0x9000), PAGE_SIZE, Perms::READ_WRITE)
        .expect("mapped");
    assert!(machine.dma(nic.rid, Iova::new(0x1000), Access::Write).is_ok());
    machine.frozen.set(true);
    let mut seen = 0;
    let read = domain.read_dirty(range(0x1000, PAGE_SIZE), DirtyBits::Clear, |_| seen += 1);
    assert!(matches!(read, Err(DirtyReadError::Unconfirmed(_))));
    assert_eq!(seen, 1, "it was reported all the same");
}

#[test]
fn writes_are_tracked_only_where_the_unit_notes_them() {
    let plain = machine(scalable().second_stage_dirty(false));
    let unit = plain.translating();
    assert_eq!(unit.create_domain(TRACKED).err(), Some(DomainError::NoDirtyTracking));
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let read = domain.read_dirty(range(0, PAGE_SIZE), DirtyBits::Keep, |_| {});
    assert_eq!(read, Err(DirtyReadError::Table(DirtyError::NotTracked)));

    let machine = machine(scalable());
    let first = DomainOptions {
        stage: Stage::First,
        ..TRACKED
    };
    let unit = machine.translating();
    assert_eq!(unit.create_domain(first).err(), Some(DomainError::NoDirtyTracking));
}

#[test]
fn a_unit_with_the_erratum_has_no_read_only_mappings_under_guests() {
    let machine = machine(scalable());
    let options = UnitOptions {
        quirks: UnitQuirks {
            no_read_only_parents: true,
            ..UnitQuirks::default()
        },
        ..machine.options()
    };
    let unit = Unit::found(&machine, &machine, options).expect("found");
    let unit = unit.take_over().map_err(|error| error.cause).expect("taken over");
    let [parent, other] = [(); 2].map(|()| unit.create_domain(DomainOptions::default()).expect("a domain"));
    let map = |domain: &Domain<_, _>, perms| domain.map(Iova::new(0x1000), HostPhys::new(0x9000), PAGE_SIZE, perms);
    let guest = GuestTable {
        root: GuestPhys::new(0x1000),
        five_levels: false,
    };
    let nested = unit.create_nested(&parent, guest).expect("a domain");
    assert_eq!(
        map(&parent, Perms::READ),
        Err(MapError::ReadOnlyParent { at: Iova::new(0x1000) })
    );
    map(&parent, Perms::READ_WRITE).expect("can be written");
    map(&other, Perms::READ).expect("no parent");
    assert!(matches!(
        unit.create_nested(&other, guest),
        Err(DomainError::NotNestable)
    ));
    nested.destroy().expect("destroyed");
}
