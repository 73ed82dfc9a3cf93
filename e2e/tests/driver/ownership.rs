//! Host memory that one guest owns is refused to another, inside the driver.

use std::sync::Arc;

use iommu_types::{Access, AddrRange, HostPhys, Iova, PAGE_SIZE, Perms};
use vtd_driver::{DomainOptions, Ioas, MapError, OwnerId, OwnershipError, PageOwners, Requester};
use vtd_model::{Profile, UnitConfig};

use crate::machine::{Machine, range, source};

const ONE: OwnerId = OwnerId(1);
const TWO: OwnerId = OwnerId(2);

fn machine() -> Machine {
    let config = UnitConfig::builder().profile(Profile::Silicon);
    Machine::new(config.build().expect("valid"))
}

fn memory(base: u64, len: u64) -> AddrRange<HostPhys> {
    AddrRange::from_base_len(HostPhys::new(base), len).expect("a range")
}

type Guest<'m> = Ioas<&'m Machine, &'m Machine>;

fn guest<'m>(owner: OwnerId, owners: &Arc<PageOwners>) -> Guest<'m> {
    Ioas::owned_by(DomainOptions::default(), owner, owners.clone())
}

fn map(guest: &Guest<'_>, at: u64, phys: u64, len: u64) -> Result<(), MapError> {
    guest.map(Iova::new(at), HostPhys::new(phys), len, Perms::READ_WRITE)
}

#[test]
fn a_page_of_one_guest_is_refused_to_another_and_to_devices_of_nobody() {
    let machine = machine();
    let unit = machine.translating();
    let owners = Arc::new(PageOwners::new());
    owners.grant(ONE, memory(0x10_0000, 0x4000)).expect("free");
    owners.grant(TWO, memory(0x20_0000, 0x4000)).expect("free");
    let (first, second) = (guest(ONE, &owners), guest(TWO, &owners));
    let [nic, disk] = ["02:00.0", "03:00.0"].map(|text| Requester::new(source(text)));
    first.attach(&unit, &nic).expect("joined");
    second.attach(&unit, &disk).expect("joined");
    map(&first, 0x1000, 0x10_0000, 0x4000).expect("its own");

    // Reaches into the other guest's memory with its last page.
    let refused = map(&second, 0x1000, 0x10_3000, 0x2000).expect_err("not its own");
    let foreign = MapError::ForeignPages {
        range: memory(0x10_3000, 0x1000),
        owner: Some(ONE),
        by: TWO,
    };
    assert_eq!(refused, foreign);
    assert_eq!(
        refused.to_string(),
        "0x103000..=0x103fff of host memory is not owner 2's but owner 1's; it is not mapped for its devices"
    );
    // Runs over the end of its own into the host's.
    let refused = map(&second, 0x1000, 0x20_3000, 0x2000).expect_err("not its own");
    let foreign = MapError::ForeignPages {
        range: memory(0x20_4000, 0x1000),
        owner: None,
        by: TWO,
    };
    assert_eq!(refused, foreign);
    assert!(refused.to_string().contains("the host"), "{refused}");
    for at in [0x1000, 0x2000] {
        assert!(machine.dma(disk.rid, Iova::new(at), Access::Write).is_err());
    }
    map(&second, 0x1000, 0x20_0000, 0x4000).expect("its own");
    assert_eq!(
        machine.dma(disk.rid, Iova::new(0x1000), Access::Write),
        Ok(HostPhys::new(0x20_0000))
    );
}

#[test]
fn memory_changes_hands_when_no_device_reaches_it_any_more() {
    let machine = machine();
    let unit = machine.translating();
    let owners = Arc::new(PageOwners::new());
    let pages = memory(0x10_0000, 0x4000);
    owners.grant(ONE, pages).expect("free");
    let first = guest(ONE, &owners);
    let nic = Requester::new(source("02:00.0"));
    first.attach(&unit, &nic).expect("joined");
    for (at, phys) in [(0x1000, 0x10_0000), (0x8000, 0x10_2000)] {
        map(&first, at, phys, 0x2000).expect("its own");
    }
    let in_use = |base| {
        Err(OwnershipError::InUse {
            range: memory(base, 0x2000),
            owner: ONE,
        })
    };
    assert_eq!(owners.revoke(ONE, pages), in_use(0x10_0000));

    let pending = first.unmap(range(0x1000, 0x2000), ()).expect("mapped");
    assert_eq!(owners.revoke(ONE, pages), in_use(0x10_0000), "unmapped is not flushed");
    // As long as the unit does not confirm, the memory stays where it is.
    machine.frozen.set(true);
    let (_, pending) = first.flush(pending).expect_err("nothing is confirmed");
    assert_eq!(owners.revoke(ONE, memory(0x10_0000, 0x2000)), in_use(0x10_0000));
    drop(pending);
    assert_eq!(
        owners.revoke(ONE, memory(0x10_0000, 0x2000)),
        in_use(0x10_0000),
        "a dropped token keeps it"
    );
}

#[test]
fn a_flushed_unmap_and_a_destroyed_map_let_the_memory_go() {
    let machine = machine();
    let unit = machine.translating();
    let owners = Arc::new(PageOwners::new());
    let pages = memory(0x10_0000, 0x4000);
    owners.grant(ONE, pages).expect("free");
    let (first, second) = (guest(ONE, &owners), guest(TWO, &owners));
    let nic = Requester::new(source("02:00.0"));
    first.attach(&unit, &nic).expect("joined");
    map(&first, 0x1000, 0x10_0000, 0x2000).expect("its own");
    // The same pages twice, and pages that stay mapped to the end.
    map(&first, 0x8000, 0x10_0000, 0x2000).expect("its own");
    map(&first, 0x1_0000, 0x10_3000, PAGE_SIZE).expect("its own");
    let tokens: Vec<_> = [0x1000, 0x8000]
        .map(|at| first.unmap(range(at, 0x2000), at).expect("mapped"))
        .into();
    assert_eq!(first.flush_all(tokens).expect("confirmed"), [0x1000, 0x8000]);
    owners
        .revoke(ONE, memory(0x10_0000, 0x3000))
        .expect("no device reaches it");
    owners.grant(TWO, memory(0x10_0000, 0x3000)).expect("the host's");
    map(&second, 0x1000, 0x10_0000, 0x3000).expect("its own now");
    assert!(matches!(
        map(&first, 0x1000, 0x10_0000, 0x1000),
        Err(MapError::ForeignPages { owner: Some(TWO), .. })
    ));

    assert!(owners.revoke(ONE, memory(0x10_3000, PAGE_SIZE)).is_err());
    first.detach(&unit, &nic).expect("left");
    first.destroy().expect("unused");
    owners
        .revoke(ONE, memory(0x10_3000, PAGE_SIZE))
        .expect("nothing leads there");
}

#[test]
fn a_refused_mapping_claims_nothing() {
    let machine = machine();
    let unit = machine.translating();
    let owners = Arc::new(PageOwners::new());
    let pages = memory(0x10_0000, 0x4000);
    owners.grant(ONE, pages).expect("free");
    let first = guest(ONE, &owners);
    first.attach(&unit, &Requester::new(source("02:00.0"))).expect("joined");
    map(&first, 0x1000, 0x10_0000, 0x1000).expect("its own");
    // Over what is mapped, over the end of the tables, without memory for a table.
    assert!(map(&first, 0x1000, 0x10_1000, 0x1000).is_err());
    assert!(map(&first, 1 << 60, 0x10_1000, 0x1000).is_err());
    machine.memory.fail_allocation(0);
    assert!(map(&first, 1 << 40, 0x10_1000, 0x1000).is_err());
    owners.revoke(ONE, memory(0x10_1000, 0x3000)).expect("not mapped");
}
