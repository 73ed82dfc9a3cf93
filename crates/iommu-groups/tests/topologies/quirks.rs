//! Models that isolate otherwise than their registers say.

use iommu_groups::{Facts, LinuxVersion, Rules, Topology, group};

use crate::support::{ACS_CAP, ACS_ON, ENDPOINT, INTEGRATED, Machine, Space, bdf, endpoint, partition, root_port};

#[test]
fn intel_integrated_endpoints_are_isolated_since_5_8() {
    let integrated = || Space::new(0x8086, 0x1234).express(INTEGRATED);
    let machine = Machine::new()
        .with("00:14.0", integrated().multifunction())
        .with("00:14.3", integrated());
    let topology = machine.scan();
    assert_eq!(
        partition(&group(&topology, Rules::Linux(LinuxVersion::new(5, 7)))),
        "00:14.0 00:14.3"
    );
    assert_eq!(
        partition(&group(&topology, Rules::Linux(LinuxVersion::new(5, 8)))),
        "00:14.0 | 00:14.3"
    );
    assert_eq!(partition(&group(&topology, Rules::Strict)), "00:14.0 | 00:14.3");
}

#[test]
fn wangxun_cards_are_known_to_the_releases_that_learnt_of_them() {
    let card = |device| {
        Machine::new()
            .with("00:01.0", root_port(1, 1).acs(ACS_CAP, ACS_ON))
            .with("01:00.0", Space::new(0x8088, device).express(ENDPOINT).multifunction())
            .with("01:00.1", Space::new(0x8088, device).express(ENDPOINT))
    };
    let groups = |device, minor| {
        let rules = Rules::Linux(LinuxVersion::new(6, minor));
        group(&card(device).scan(), rules).all().len()
    };
    assert_eq!([groups(0x1001, 2), groups(0x1001, 3)], [2, 3]);
    assert_eq!([groups(0x5010, 12), groups(0x5010, 13)], [2, 3]);
    assert_eq!(card(0x5010).strict().all().len(), 3);
}

#[test]
fn sunrise_point_root_ports_keep_their_controls_in_dwords() {
    let port = |control: u32| {
        let mut space = Space::new(0x8086, 0xa110).bridge(1, 1).express(4).acs(0x0f, 0);
        space.put32(0x108, control);
        space
    };
    for (control, expected) in [(0x0d, "00:1c.0 | 01:00.0"), (0, "00:1c.0 01:00.0")] {
        let machine = Machine::new()
            .with("00:1c.0", port(control))
            .with("01:00.0", endpoint());
        assert_eq!(partition(&machine.linux()), expected);
        assert_eq!(partition(&machine.strict()), expected);
    }
}

#[test]
fn older_chipset_ports_isolate_for_linux_always_and_strictly_once_validation_is_on() {
    let port = |validation: u32| {
        let mut space = Space::new(0x8086, 0x8c10).bridge(1, 1).express(4);
        space.put32(0xd8, validation);
        space
    };
    let machine = |validation| {
        Machine::new()
            .with("00:1c.0", port(validation))
            .with("01:00.0", endpoint())
    };
    assert_eq!(partition(&machine(0).linux()), "00:1c.0 | 01:00.0");
    assert_eq!(partition(&machine(0).strict()), "00:1c.0 01:00.0");
    assert_eq!(partition(&machine(1 << 26).strict()), "00:1c.0 | 01:00.0");
}

#[test]
fn amd_southbridge_functions_are_apart_only_with_an_amd_iommu() {
    let machine = Machine::new()
        .with("00:14.0", Space::new(0x1022, 0x780f).multifunction())
        .with("00:14.2", Space::new(0x1022, 0x7809));
    assert_eq!(partition(&machine.linux()), "00:14.0 00:14.2");
    let facts = Facts {
        amd_iommu: true,
        ..Facts::default()
    };
    let topology = Topology::scan_with(&machine, &machine.roots, &facts);
    assert_eq!(
        partition(&group(&topology, Rules::Linux(LinuxVersion::LATEST))),
        "00:14.0 | 00:14.2"
    );
}

#[test]
fn ats_that_is_known_to_be_broken_is_marked() {
    let (mut space, at) = Space::new(0x1002, 0x7312).express(ENDPOINT).extended(0x000f, 8);
    space.put16(at + 4, 0x20);
    space.put16(at + 6, 0x8000);
    let topology = Machine::new().with("00:03.0", space).scan();
    let ats = topology.get(bdf("00:03.0")).unwrap().ats.present().unwrap();
    assert_eq!((ats.enabled, ats.queue_depth, ats.broken), (true, 32, true));
}
