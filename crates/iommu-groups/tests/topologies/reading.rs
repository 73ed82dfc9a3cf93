//! What is read, what cannot be read, and what is made of it.

use iommu_groups::{BusId, Facts, Origin, Problem, Roots, Rules, Topology, group};
use iommu_types::Segment;

use crate::support::{ACS_CAP, ACS_ON, Machine, Space, bdf, conventional, endpoint, partition, root_port};
use crate::switches::switch;

#[test]
fn what_cannot_be_read_counts_as_not_isolated_and_says_so() {
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 1).acs(ACS_CAP, ACS_ON).readable(256))
        .with("01:00.0", endpoint());
    let groups = machine.strict();
    assert_eq!(partition(&groups), "00:01.0 01:00.0");
    assert!(groups.all()[0].uncertain);
    assert!(machine.scan().get(bdf("00:01.0")).unwrap().acs.is_unknown());

    // As an unprivileged user sees it: 64 bytes of each function.
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 1).acs(ACS_CAP, ACS_ON).readable(64))
        .with("01:00.0", endpoint().readable(64));
    let groups = machine.linux();
    assert_eq!(partition(&groups), "00:01.0 01:00.0");
    assert!(groups.all()[0].uncertain);
}

#[test]
fn linux_turns_on_the_controls_there_are() {
    let machine = switch(0, 0);
    let facts = Facts {
        acs: iommu_groups::AcsControl::Enabled,
        ..Facts::default()
    };
    let topology = Topology::scan_with(&machine, &machine.roots, &facts);
    assert_eq!(group(&topology, Rules::Strict).all().len(), 6);
}

#[test]
fn scanning_and_listing_find_the_same_machine() {
    let machine = switch(0, ACS_ON)
        .with("00:1e.0", Space::new(1, 1).bridge(5, 5))
        .with("05:0c.0", conventional());
    let names = |topology: &Topology| topology.functions().iter().map(|f| f.bdf).collect::<Vec<_>>();
    assert_eq!(names(&machine.scan()), names(&machine.listed()));
    let shuffled: Vec<_> = machine.spaces.keys().rev().copied().collect();
    let listed = Topology::from_functions(&machine, shuffled, Roots::Given(&machine.roots), &Facts::default());
    assert_eq!(names(&machine.scan()), names(&listed));
}

#[test]
fn listed_functions_that_sleep_are_kept_as_unknown() {
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 1).acs(ACS_CAP, ACS_ON))
        .with("00:02.0", endpoint());
    let listed = ["00:01.0", "00:02.0", "01:00.0"].map(bdf);
    let topology = Topology::from_functions(&machine, listed, Roots::Inferred, &Facts::default());
    let asleep = topology.get(bdf("01:00.0")).unwrap();
    assert!(asleep.port.is_unknown() && asleep.acs.is_unknown());
    assert_eq!(topology.parent(asleep.bdf).unwrap().bdf, bdf("00:01.0"));
    assert!(matches!(topology.problems(), [Problem::NoAnswer { .. }]));
}

#[test]
fn firmware_tables_can_be_matched_with_buses_and_functions() {
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 2).ari_forwarding())
        .with("01:00.0", endpoint().ari(9).sriov(1, 0x100, 1, 7))
        .with("01:01.1", endpoint().ari(0));
    let topology = machine.scan();
    let bus = |bus| BusId::new(Segment(0), bus);
    assert_eq!(topology.origin(bus(0)), Origin::Root);
    assert_eq!(topology.origin(bus(1)), Origin::Bridge(bdf("00:01.0")));
    assert_eq!(
        topology.origin(bus(2)),
        Origin::Unknown,
        "only virtual functions have this number"
    );
    for name in ["02:00.0", "01:01.1", "01:00.0"] {
        assert_eq!(topology.listed_as(bdf(name)), bdf("01:00.0"), "{name}");
    }
    assert_eq!(topology.listed_as(bdf("00:01.0")), bdf("00:01.0"));
}
