//! Requester IDs besides the own one: bridges to conventional PCI, quirks of devices, domains behind a function.

use iommu_groups::{AliasVia, BusId, Facts, LinuxVersion, Problem, Reason, Rules, Topology, group};
use iommu_types::{DevFn, Segment, SourceId};

use crate::support::{
    ACS_CAP, ACS_ON, ENDPOINT, INTEGRATED, Machine, PCI_TO_PCIE, PCIE_TO_PCI, Space, bdf, conventional, endpoint,
    partition, root_port,
};

#[test]
fn a_pcie_to_pci_bridge_without_memory_is_apart_from_its_cards_by_strict_rules() {
    let machine = |bridge: Space| {
        Machine::new()
            .with("00:02.0", root_port(1, 2).acs(ACS_CAP, ACS_ON))
            .with("01:00.0", bridge)
            .with("02:00.0", conventional())
            .with("02:01.0", conventional())
    };
    let bridge = || Space::new(0x10b5, 0x8111).bridge(2, 2).express(PCIE_TO_PCI);
    let bare = machine(bridge());
    assert_eq!(partition(&bare.linux()), "00:02.0 | 01:00.0 02:00.0 02:01.0");
    assert_eq!(partition(&bare.strict()), "00:02.0 | 01:00.0 | 02:00.0 02:01.0");
    let with_memory = machine(bridge().memory_bar());
    assert_eq!(partition(&with_memory.strict()), "00:02.0 | 01:00.0 02:00.0 02:01.0");
}

#[test]
fn conventional_bridge_chains_are_one_group() {
    let machine = Machine::new()
        .with("00:1e.0", Space::new(0x1b36, 1).bridge(1, 3))
        .with("01:01.0", Space::new(0x1b36, 1).bridge(2, 2))
        .with("01:02.0", conventional())
        .with("02:01.0", conventional())
        .with("00:03.0", conventional());
    let expected = "00:03.0 | 00:1e.0 01:01.0 01:02.0 02:01.0";
    assert_eq!(partition(&machine.linux()), expected);
    assert_eq!(partition(&machine.strict()), expected);
}

#[test]
fn requester_ids_follow_the_bridges() {
    let machine = Machine::new()
        .with("00:02.0", root_port(1, 4).acs(ACS_CAP, ACS_ON))
        .with("01:00.0", Space::new(0x1b36, 0xe).bridge(2, 4).express(PCIE_TO_PCI))
        .with("02:01.0", Space::new(0x1b36, 1).bridge(3, 3))
        .with("03:07.0", conventional())
        .with("02:02.0", Space::new(0x104c, 0x8231).bridge(4, 4).express(PCI_TO_PCIE))
        .with("04:00.0", endpoint());
    let topology = machine.scan();
    let ids = |name: &str| -> Vec<String> {
        topology
            .aliases(bdf(name))
            .iter()
            .map(|alias| alias.source.to_string())
            .collect()
    };
    assert_eq!(ids("03:07.0"), ["03:07.0", "02:01.0", "02:00.0"]);
    assert_eq!(ids("04:00.0"), ["04:00.0", "02:02.0", "02:00.0"]);
    assert_eq!(ids("02:01.0"), ["02:01.0", "02:00.0"]);
    assert_eq!(ids("01:00.0"), ["01:00.0"], "the bridge's own requests keep its name");
    assert_eq!(ids("05:00.0"), Vec::<String>::new(), "not there");
    let via: Vec<_> = topology.aliases(bdf("03:07.0")).iter().map(|alias| alias.via).collect();
    assert_eq!(
        via,
        [
            AliasVia::Own,
            AliasVia::Conventional(bdf("02:01.0")),
            AliasVia::PcieToPci(bdf("01:00.0"))
        ]
    );
}

#[test]
fn a_bridge_that_hides_its_kind_gives_its_secondary_bus_number() {
    let behind = |parent: Space| {
        Machine::new()
            .with("00:1c.0", parent)
            .with("01:00.0", Space::new(0x1b21, 0x1080).bridge(2, 2))
            .with("02:03.0", conventional())
            .scan()
            .aliases(bdf("02:03.0"))
    };
    let below_port = behind(root_port(1, 2));
    assert_eq!(below_port[1].source, SourceId::from_raw(0x0200));
    assert_eq!(below_port[1].via, AliasVia::HiddenExpress(bdf("01:00.0")));
    // Below a conventional bridge the same model is what it looks like.
    let below_bridge = behind(Space::new(1, 1).bridge(1, 2));
    assert_eq!(below_bridge[1].via, AliasVia::Conventional(bdf("01:00.0")));
}

#[test]
fn device_quirks_add_requester_ids_on_their_own_bus() {
    let machine = Machine::new()
        .with("00:1c.0", root_port(1, 1).acs(ACS_CAP, ACS_ON))
        .with("01:00.0", Space::new(0x1b4b, 0x9125).express(ENDPOINT));
    let ids: Vec<_> = machine
        .scan()
        .aliases(bdf("01:00.0"))
        .iter()
        .map(|a| a.source.raw())
        .collect();
    assert_eq!(ids, [0x0100, 0x0101], "the ghost function of the Marvell 88SE9125");

    let ricoh = Machine::new()
        .with("00:1e.0", conventional().multifunction())
        .with("00:1e.4", Space::new(0x1180, 0xe832));
    let ids: Vec<_> = ricoh
        .scan()
        .aliases(bdf("00:1e.4"))
        .iter()
        .map(|a| a.source.raw())
        .collect();
    assert_eq!(ids, [0x00f4, 0x00f0]);

    let adaptec = Space::new(0x9005, 0x0285);
    for (space, expected) in [
        (adaptec.clone().subsystem(0x9005, 0x02bb), vec![0x0018, 0x0008]),
        (adaptec.subsystem(0x9005, 0x0001), vec![0x0018]),
    ] {
        let machine = Machine::new().with("00:03.0", space);
        let ids: Vec<_> = machine
            .scan()
            .aliases(bdf("00:03.0"))
            .iter()
            .map(|a| a.source.raw())
            .collect();
        assert_eq!(ids, expected);
    }
}

#[test]
fn functions_that_share_a_requester_id_share_a_group() {
    // The Ricoh function uses function 0's requester ID; both have ACS, so nothing else joins them.
    let isolated = |vendor, device| Space::new(vendor, device).express(ENDPOINT).acs(ACS_CAP, ACS_ON);
    let machine = Machine::new()
        .with("00:1c.0", root_port(1, 1).acs(ACS_CAP, ACS_ON))
        .with("01:00.0", isolated(0x1180, 1).multifunction())
        .with("01:00.1", isolated(0x1180, 0xe832))
        .with("01:00.2", isolated(0x1180, 2));
    let expected = "00:1c.0 | 01:00.0 01:00.1 | 01:00.2";
    assert_eq!(partition(&machine.linux()), expected);
    assert_eq!(partition(&machine.strict()), expected);
    let topology = machine.scan();
    let strict = group(&topology, Rules::Strict);
    assert!(matches!(
        strict.reasons(strict.of(bdf("01:00.0")).unwrap()),
        [hop] if matches!(hop.reason, Reason::SharedAlias { source, .. } if source.raw() == 0x0100)
    ));
}

#[test]
fn children_of_a_vmd_share_its_requester_id_and_group() {
    let mut machine = Machine::new()
        .with("00:0e.0", Space::new(0x8086, 0x467f).express(INTEGRATED))
        .with("0001:00:06.0", root_port(1, 1).acs(ACS_CAP, ACS_ON))
        .with("0001:01:00.0", endpoint());
    machine.roots.push(BusId::of(bdf("0001:00:06.0")));
    let facts = Facts {
        real_dma: ["0001:00:06.0", "0001:01:00.0"]
            .map(|child| (bdf(child), bdf("00:0e.0")))
            .into(),
        ..Facts::default()
    };
    let topology = Topology::scan_with(&machine, &machine.roots, &facts);
    assert_eq!(topology.aliases(bdf("0001:01:00.0"))[0].source.raw(), 0x0070);
    for rules in [Rules::Linux(LinuxVersion::LATEST), Rules::Strict] {
        assert_eq!(group(&topology, rules).all().len(), 1, "{rules:?}");
    }
}

#[test]
fn a_domain_above_ffff_is_one_group_until_it_is_known_what_it_is_behind() {
    let mut machine = Machine::new()
        .with("00:0e.0", Space::new(0x8086, 0x467f).express(INTEGRATED))
        .with("00:06.0", endpoint())
        .with("10000:00:06.0", root_port(1, 1).acs(ACS_CAP, ACS_ON))
        .with("10000:01:00.0", endpoint());
    machine.roots.push(BusId::of(bdf("10000:00:06.0")));
    let behind = |real: &str| Facts {
        real_dma: ["10000:00:06.0", "10000:01:00.0"]
            .map(|child| (bdf(child), bdf(real)))
            .into(),
        ..Facts::default()
    };
    for rules in [Rules::Linux(LinuxVersion::LATEST), Rules::Strict] {
        // Nothing said.
        let topology = machine.scan();
        assert_eq!(
            topology.problems(),
            [Problem::RequesterNotKnown {
                segment: Segment(0x1_0000)
            }]
        );
        assert_eq!(topology.requester(bdf("10000:01:00.0")), None);
        let groups = group(&topology, rules);
        assert_eq!(
            partition(&groups),
            "00:06.0 | 00:0e.0 | 10000:00:06.0 10000:01:00.0",
            "{rules:?}"
        );
        assert!(groups.of(bdf("10000:01:00.0")).unwrap().uncertain);
        assert!(!groups.of(bdf("00:06.0")).unwrap().uncertain);
        // The VMD said, and in the list or not. A number of segment 0 is no number of the domain.
        let topology = Topology::scan_with(&machine, &machine.roots, &behind("00:0e.0"));
        assert_eq!(topology.problems(), []);
        assert_eq!(topology.requester(bdf("10000:01:00.0")), Some(bdf("00:0e.0")));
        assert_eq!(topology.requester(bdf("00:06.0")), Some(bdf("00:06.0")));
        assert_eq!(
            partition(&group(&topology, rules)),
            "00:06.0 | 00:0e.0 10000:00:06.0 10000:01:00.0",
            "{rules:?}"
        );
        let topology = Topology::scan_with(&machine, &machine.roots, &behind("00:0d.0"));
        assert_eq!(
            partition(&group(&topology, rules)),
            "00:06.0 | 00:0e.0 | 10000:00:06.0 10000:01:00.0",
            "{rules:?}"
        );
    }
}

#[test]
fn requester_ids_that_only_a_device_knows_are_asked_for_and_taken_as_facts() {
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 1).acs(ACS_CAP, ACS_ON))
        .with(
            "01:00.0",
            Space::new(0x11f8, 0x8531).express(ENDPOINT).class(0x06_80_00),
        );
    let topology = machine.scan();
    let asked = Problem::AliasesNotKnown {
        function: bdf("01:00.0"),
    };
    assert!(topology.problems().contains(&asked));
    assert!(group(&topology, Rules::Strict).of(bdf("01:00.0")).unwrap().uncertain);

    let facts = Facts {
        aliases: vec![(bdf("01:00.0"), DevFn::from_raw(0x09))],
        ..Facts::default()
    };
    let topology = Topology::scan_with(&machine, &machine.roots, &facts);
    assert!(topology.problems().is_empty());
    let ids: Vec<_> = topology
        .aliases(bdf("01:00.0"))
        .iter()
        .map(|a| a.source.raw())
        .collect();
    assert_eq!(ids, [0x0100, 0x0109]);
    // Another class of the same model is the plain switch.
    let plain = machine.with("01:00.0", Space::new(0x11f8, 0x8531).express(ENDPOINT));
    assert!(plain.scan().problems().is_empty());
}

#[test]
fn pci_x_bridges_put_their_own_requester_id_beside_that_of_the_function() {
    let pci_x = |mut space: Space| {
        space.put16(0x06, 0x10);
        space.put8(0x34, 0x60);
        space.put8(0x60, 0x07);
        space
    };
    let machine = Machine::new()
        .with("00:1e.0", pci_x(Space::new(0x8086, 0x0340).bridge(5, 5)))
        .with("05:01.0", pci_x(conventional()))
        .with("05:02.0", conventional());
    let topology = machine.scan();
    let get = |at: &str| topology.get(bdf(at)).unwrap();
    assert_eq!(get("00:1e.0").describe(), "PCI-X bridge");
    assert_eq!(get("05:01.0").describe(), "PCI-X function");
    assert_eq!(get("05:02.0").describe(), "conventional PCI function");
    let ids = |at: &str| {
        topology
            .aliases(bdf(at))
            .iter()
            .map(|a| a.source.raw())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids("05:01.0"), [0x0508, 0x00f0], "its own, and that of the bridge");
    for rules in [Rules::Linux(LinuxVersion::LATEST), Rules::Strict] {
        assert_eq!(partition(&group(&topology, rules)), "00:1e.0 05:01.0 05:02.0");
    }
    // A PCIe-to-PCI-X bridge is a PCIe-to-PCI bridge: the secondary bus number stands for whoever is below.
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 2).acs(ACS_CAP, ACS_ON))
        .with("01:00.0", Space::new(0x8086, 0x0329).bridge(2, 2).express(PCIE_TO_PCI))
        .with("02:03.0", pci_x(conventional()));
    let ids: Vec<_> = machine
        .scan()
        .aliases(bdf("02:03.0"))
        .iter()
        .map(|a| a.source.raw())
        .collect();
    assert_eq!(ids, [0x0218, 0x0200]);
}

#[test]
fn thunderx2_bridges_end_the_walk_of_requester_ids() {
    let machine = Machine::new()
        .with("00:01.0", Space::new(0x14e4, 0x9084).bridge(1, 2))
        .with("01:00.0", Space::new(1, 1).bridge(2, 2))
        .with("02:00.0", conventional());
    let ids: Vec<_> = machine
        .scan()
        .aliases(bdf("02:00.0"))
        .iter()
        .map(|a| a.source.raw())
        .collect();
    assert_eq!(ids, [0x0200, 0x0100], "the bridge at 00:01.0 adds nothing");
}
