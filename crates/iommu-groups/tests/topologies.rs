//! Known topologies and the groups they have.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking, helpers included"
)]

mod support;

use iommu_groups::{
    AcsBits, AliasVia, Barrier, BusId, Difference, Explanation, Facts, Grounds, Lack, LinuxVersion, Origin, Problem,
    Reason, Roots, Rules, Topology, differences, group,
};
use iommu_types::{DevFn, Segment, SourceId};
use support::{
    ACS_CAP, ACS_ENHANCED, ACS_ON, ENDPOINT, INTEGRATED, Machine, PCI_TO_PCIE, PCIE_TO_PCI, Space, UPSTREAM, bdf,
    conventional, downstream, endpoint, partition, root_port, upstream,
};

/// A root port, a switch with two downstream ports, an endpoint below each.
fn switch(first: u16, second: u16) -> Machine {
    Machine::new()
        .with("00:00.0", root_port(1, 4).acs(ACS_CAP, ACS_ON))
        .with("01:00.0", upstream(2, 4))
        .with("02:00.0", downstream(3, 3).acs(ACS_CAP, first))
        .with("02:03.0", downstream(4, 4).acs(ACS_CAP, second))
        .with("03:00.0", endpoint())
        .with("04:00.0", endpoint())
}

#[test]
fn a_switch_with_all_controls_on_isolates_everything() {
    let machine = switch(ACS_ON, ACS_ON);
    let singletons = "00:00.0 | 01:00.0 | 02:00.0 | 02:03.0 | 03:00.0 | 04:00.0";
    assert_eq!(partition(&machine.linux()), singletons);
    assert_eq!(partition(&machine.strict()), singletons);
}

#[test]
fn permissive_downstream_ports_join_their_siblings_by_strict_rules_only() {
    let hole = "00:00.0 | 01:00.0 | 02:00.0 03:00.0 | 02:03.0 04:00.0";
    let joined = "00:00.0 | 01:00.0 | 02:00.0 02:03.0 03:00.0 04:00.0";
    let both_off = switch(0, 0);
    assert_eq!(partition(&both_off.linux()), hole);
    assert_eq!(partition(&both_off.strict()), joined);
    for one_off in [switch(0, ACS_ON), switch(ACS_ON, 0)] {
        assert_eq!(partition(&one_off.strict()), joined);
    }
    assert_eq!(
        partition(&switch(0, ACS_ON).linux()),
        "00:00.0 | 01:00.0 | 02:00.0 03:00.0 | 02:03.0 | 04:00.0"
    );
}

#[test]
fn a_permissive_switch_port_is_explained_hop_by_hop() {
    let machine = switch(0x19, ACS_ON);
    let topology = machine.scan();
    let strict = group(&topology, Rules::Strict);
    let Some(Explanation::Together(chain)) = strict.explain(&topology, bdf("03:00.0"), bdf("04:00.0")) else {
        panic!("they are together");
    };
    let stations: Vec<_> = chain.iter().map(|hop| (hop.from, hop.to)).collect();
    let [a, p, q, b] = ["03:00.0", "02:00.0", "02:03.0", "04:00.0"].map(bdf);
    assert_eq!(stations, [(a, p), (p, q), (b, q)]);
    assert_eq!(
        chain[1].reason,
        Reason::SwitchPeers {
            port: p,
            lack: Lack::Off(AcsBits(0x04))
        }
    );
    assert_eq!(
        chain[1].to_string(),
        "0000:02:00.0 and 0000:02:03.0: they are ports of one switch, and 0000:02:00.0 lets requests go straight \
         to the other ports: its ACS controls RR are off"
    );
}

#[test]
fn the_hole_between_linux_and_strict_is_a_finding() {
    let machine = switch(0, ACS_ON);
    let topology = machine.scan();
    let linux = group(&topology, Rules::Linux(LinuxVersion::LATEST));
    let strict = group(&topology, Rules::Strict);
    let found = differences(&linux, &strict);
    let holes: Vec<_> = found
        .iter()
        .map(|difference| match difference {
            Difference::Hole { a, b, chain } => (*a, *b, chain.len()),
            Difference::Wider { .. } => panic!("Linux joins nothing needlessly here: {difference}"),
        })
        .collect();
    assert_eq!(
        holes,
        [(bdf("02:00.0"), bdf("02:03.0"), 1), (bdf("02:00.0"), bdf("04:00.0"), 2)]
    );
}

#[test]
fn functions_of_one_device_share_a_group_as_soon_as_one_lacks_acs() {
    let machine = Machine::new()
        .with("00:1f.0", conventional().multifunction())
        .with("00:1f.2", conventional())
        .with(
            "00:1f.6",
            Space::new(0x1234, 1).express(INTEGRATED).acs(ACS_CAP, ACS_ON),
        );
    assert_eq!(partition(&machine.linux()), "00:1f.0 00:1f.2 | 00:1f.6");
    assert_eq!(partition(&machine.strict()), "00:1f.0 00:1f.2 00:1f.6");
}

#[test]
fn devices_on_the_root_bus_do_not_share_a_group_with_each_other() {
    let machine = Machine::new()
        .with("00:1e.0", conventional().multifunction())
        .with("00:1e.1", conventional())
        .with("00:1f.0", conventional().multifunction())
        .with("00:1f.1", conventional());
    let expected = "00:1e.0 00:1e.1 | 00:1f.0 00:1f.1";
    assert_eq!(partition(&machine.linux()), expected);
    assert_eq!(partition(&machine.strict()), expected);
}

#[test]
fn a_root_port_without_acs_shares_a_group_with_everything_below_it() {
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 1))
        .with("01:00.0", endpoint().multifunction())
        .with("01:00.1", endpoint());
    let expected = "00:01.0 01:00.0 01:00.1";
    assert_eq!(partition(&machine.linux()), expected);
    assert_eq!(partition(&machine.strict()), expected);
    let topology = machine.scan();
    let linux = group(&topology, Rules::Linux(LinuxVersion::LATEST));
    let Some(Explanation::Together(chain)) = linux.explain(&topology, bdf("01:00.1"), bdf("00:01.0")) else {
        panic!("they are together");
    };
    assert_eq!(
        chain[0].reason,
        Reason::Upstream {
            port: bdf("00:01.0"),
            lack: Lack::NoCapability
        }
    );
}

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
fn what_keeps_functions_apart_is_named() {
    let machine = switch(ACS_ON, ACS_ON);
    let topology = machine.scan();
    let strict = group(&topology, Rules::Strict);
    let Some(Explanation::Apart(barriers)) = strict.explain(&topology, bdf("03:00.0"), bdf("04:00.0")) else {
        panic!("they are apart");
    };
    let at: Vec<_> = barriers
        .iter()
        .map(|barrier| match barrier {
            Barrier::Isolates { at, grounds } => (at.to_string(), matches!(grounds, Grounds::Controls(_))),
            Barrier::RootComplex => panic!("they meet at the upstream port"),
        })
        .collect();
    let expected = [
        ("0000:03:00.0", false),
        ("0000:02:00.0", true),
        ("0000:04:00.0", false),
        ("0000:02:03.0", true),
    ];
    assert_eq!(at, expected.map(|(name, controls)| (name.to_owned(), controls)));
}

#[test]
fn enhanced_acs_must_also_catch_requests_to_the_ports_themselves() {
    let cap = ACS_CAP | ACS_ENHANCED;
    let machine = |control| {
        Machine::new()
            .with("00:00.0", root_port(1, 4).acs(ACS_CAP, ACS_ON))
            .with("01:00.0", upstream(2, 4))
            .with("02:00.0", downstream(3, 3).acs(cap, control))
            .with("02:03.0", downstream(4, 4).acs(cap, ACS_ON | 0xa00))
            .with("03:00.0", endpoint())
            .with("04:00.0", endpoint())
    };
    let all_on = machine(ACS_ON | 0x200 | 0x800);
    assert_eq!(all_on.strict().all().len(), 6);
    // DSP_MT_RR off: the ports join. USP_MT_RR off: the upstream port too.
    assert_eq!(
        partition(&machine(ACS_ON | 0x800).strict()),
        "00:00.0 | 01:00.0 | 02:00.0 02:03.0 03:00.0 04:00.0"
    );
    assert_eq!(
        partition(&machine(ACS_ON | 0x200).strict()),
        "00:00.0 | 01:00.0 02:00.0 02:03.0 03:00.0 04:00.0"
    );
    assert_eq!(
        machine(ACS_ON).linux().all().len(),
        6,
        "Linux asks for the old controls only"
    );
}

#[test]
fn blocked_requests_to_the_ports_isolate_as_redirected_ones_do() {
    let cap = ACS_CAP | ACS_ENHANCED;
    let machine = Machine::new()
        .with("00:00.0", root_port(1, 3).acs(cap, ACS_ON | 0x100))
        .with("01:00.0", upstream(2, 3))
        .with("02:00.0", downstream(3, 3).acs(cap, ACS_ON | 0x100 | 0x400))
        .with("03:00.0", endpoint());
    assert_eq!(machine.strict().all().len(), 4);
}

#[test]
fn ports_without_redirect_reach_the_memory_of_the_upstream_port() {
    let machine = |upstream, control| {
        Machine::new()
            .with("00:00.0", root_port(1, 3).acs(ACS_CAP, ACS_ON))
            .with("01:00.0", upstream)
            .with("02:00.0", downstream(3, 3).acs(ACS_CAP, control))
            .with("03:00.0", endpoint())
    };
    let with_memory = || upstream(2, 3).memory_bar();
    assert_eq!(
        partition(&machine(with_memory(), 0).strict()),
        "00:00.0 | 01:00.0 02:00.0 03:00.0"
    );
    assert_eq!(
        partition(&machine(upstream(2, 3), 0).strict()),
        "00:00.0 | 01:00.0 | 02:00.0 03:00.0"
    );
    // Egress control lets them through beside any other control that is off.
    let egress = Machine::new()
        .with("00:00.0", root_port(1, 3).acs(ACS_CAP, ACS_ON))
        .with("01:00.0", with_memory())
        .with("02:00.0", downstream(3, 3).acs(ACS_CAP | 0x20, ACS_ON & !0x10 | 0x20))
        .with("03:00.0", endpoint());
    assert_eq!(partition(&egress.strict()), "00:00.0 | 01:00.0 02:00.0 03:00.0");
    // Other controls say nothing about where requests go.
    assert_eq!(
        partition(&machine(with_memory(), ACS_ON & !0x08).strict()),
        "00:00.0 | 01:00.0 | 02:00.0 03:00.0"
    );
}

#[test]
fn egress_control_undoes_redirect_by_strict_rules() {
    let cap = ACS_CAP | 0x20;
    let machine = |control| {
        Machine::new()
            .with("00:00.0", root_port(1, 4).acs(ACS_CAP, ACS_ON))
            .with("01:00.0", upstream(2, 4))
            .with("02:00.0", downstream(3, 3).acs(cap, control))
            .with("02:03.0", downstream(4, 4).acs(cap, ACS_ON))
            .with("03:00.0", endpoint())
            .with("04:00.0", endpoint())
    };
    assert_eq!(machine(ACS_ON).strict().all().len(), 6);
    let egress = machine(ACS_ON | 0x20);
    assert_eq!(
        partition(&egress.strict()),
        "00:00.0 | 01:00.0 | 02:00.0 02:03.0 03:00.0 04:00.0"
    );
    assert_eq!(egress.linux().all().len(), 6, "Linux asks for redirect only");
}

#[test]
fn a_function_of_another_kind_on_a_switch_joins_all_of_it() {
    let machine = Machine {
        ..switch(ACS_ON, ACS_ON).with("02:05.0", endpoint())
    };
    assert_eq!(
        partition(&machine.strict()),
        "00:00.0 | 01:00.0 02:00.0 02:03.0 02:05.0 03:00.0 04:00.0"
    );
}

#[test]
fn a_device_beside_the_upstream_port_reaches_into_the_switch() {
    let mut machine = switch(ACS_ON, ACS_ON);
    machine = machine
        .with("01:00.0", upstream(2, 4).multifunction())
        .with("01:00.1", Space::new(0x10b5, 0x87d0).express(ENDPOINT));
    assert_eq!(machine.strict().all().len(), 2);
    assert_eq!(partition(&machine.linux()), partition(&machine.strict()));
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
fn virtual_functions_take_the_way_of_their_physical_function() {
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 2).acs(ACS_CAP, ACS_ON).ari_forwarding())
        .with(
            "01:00.0",
            endpoint().multifunction().sriov(3, 0x80, 0x40, 0x1520).ari(0),
        );
    let topology = machine.scan();
    let names: Vec<_> = topology.functions().iter().map(|f| f.bdf.to_string()).collect();
    assert_eq!(
        names,
        [
            "0000:00:01.0",
            "0000:01:00.0",
            "0000:01:10.0",
            "0000:01:18.0",
            "0000:02:00.0"
        ]
    );
    let vf = topology.get(bdf("02:00.0")).unwrap();
    assert_eq!(vf.physical_function, Some(bdf("01:00.0")));
    assert_eq!((vf.vendor, vf.device), (0x1af4, 0x1520));
    assert_eq!(topology.parent(vf.bdf).unwrap().bdf, bdf("00:01.0"));
    assert_eq!(group(&topology, Rules::Strict).all().len(), 5);
    assert_eq!(group(&topology, Rules::Linux(LinuxVersion::LATEST)).all().len(), 5);
    assert!(topology.problems().is_empty(), "{:?}", topology.problems());

    let open = machine.with("00:01.0", root_port(1, 2).ari_forwarding());
    assert_eq!(open.strict().all().len(), 1);
    assert_eq!(open.linux().all().len(), 1);
}

#[test]
fn functions_above_seven_are_found_through_ari_and_are_one_device() {
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 1).acs(ACS_CAP, ACS_ON).ari_forwarding())
        .with("01:00.0", endpoint().ari(9))
        .with("01:01.1", endpoint().ari(0));
    let topology = machine.scan();
    assert_eq!(topology.functions().len(), 3);
    assert_eq!(partition(&group(&topology, Rules::Strict)), "00:01.0 | 01:00.0 01:01.1");
}

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
fn reset_methods_are_told() {
    let mut pm = conventional();
    pm.put16(0x06, 0x10);
    pm.put8(0x34, 0x50);
    pm.put8(0x50, 0x01);
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 1))
        .with("01:00.0", endpoint().flr())
        .with("00:02.0", pm);
    let topology = machine.scan();
    let flr = topology.get(bdf("01:00.0")).unwrap().resets;
    assert!(flr.flr.is_present());
    assert!(topology.bus_reset_is_private(bdf("01:00.0")));
    let power = topology.get(bdf("00:02.0")).unwrap().resets;
    assert!(power.power.is_present() && !power.flr.is_present());
    assert!(
        !topology.bus_reset_is_private(bdf("00:02.0")),
        "a root bus cannot be reset"
    );
}

#[test]
fn a_foreign_upstream_port_alone_changes_nothing() {
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 2).acs(ACS_CAP, ACS_ON))
        .with("01:00.0", Space::new(1, 1).bridge(2, 2).express(UPSTREAM));
    assert_eq!(partition(&machine.strict()), "00:01.0 | 01:00.0");
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
fn virtual_functions_can_be_named_where_their_capability_cannot_be_read() {
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 1).acs(ACS_CAP, ACS_ON))
        .with("01:00.0", endpoint().readable(256));
    let facts = Facts {
        virtual_functions: vec![(bdf("01:10.0"), bdf("01:00.0"))],
        ..Facts::default()
    };
    let topology = Topology::scan_with(&machine, &machine.roots, &facts);
    let vf = topology.get(bdf("01:10.0")).unwrap();
    assert_eq!(vf.physical_function, Some(bdf("01:00.0")));
    assert_eq!(topology.parent(vf.bdf).unwrap().bdf, bdf("00:01.0"));
}

#[test]
fn virtual_functions_with_an_identity_of_their_own_are_virtual_nevertheless() {
    // Attributes of sysfs show a vendor where the register has none. Bus 2 has nothing else, and no bridge.
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 1).acs(ACS_CAP, ACS_ON))
        .with("01:00.0", endpoint())
        .with("02:10.0", endpoint());
    let listed = || machine.spaces.keys().copied();
    let with = |virtual_functions: &[(&str, &str)]| {
        let facts = Facts {
            virtual_functions: virtual_functions.iter().map(|(a, b)| (bdf(a), bdf(b))).collect(),
            ..Facts::default()
        };
        Topology::from_functions(&machine, listed(), Roots::Inferred, &facts)
    };
    let topology = with(&[("02:10.0", "01:00.0")]);
    assert_eq!(topology.problems(), []);
    let vf = topology.get(bdf("02:10.0")).unwrap();
    assert_eq!(vf.physical_function, Some(bdf("01:00.0")));
    assert_eq!(topology.parent(vf.bdf).unwrap().bdf, bdf("00:01.0"));
    assert!(!topology.is_root_bus(BusId::new(Segment(0), 2)));
    // Claims that make no sense lose nothing.
    for nonsense in [
        &[("02:10.0", "0a:00.0")][..],
        &[("02:10.0", "02:10.0")],
        &[("02:10.0", "01:00.0"), ("01:00.0", "02:10.0")],
    ] {
        let topology = with(nonsense);
        let found: Vec<_> = topology.functions().iter().map(|f| f.bdf).collect();
        assert_eq!(found.len(), 3, "{nonsense:?}: {found:?}");
    }
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
fn a_bus_reset_hits_everything_on_the_bus_and_below() {
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 3))
        .with("01:00.0", upstream(2, 3).multifunction())
        .with("01:00.1", endpoint())
        .with("02:00.0", downstream(3, 3))
        .with("03:00.0", endpoint())
        .with("00:02.0", endpoint());
    let topology = machine.scan();
    let hits = |at: &str| topology.bus_reset_hits(bdf(at));
    assert_eq!(
        hits("01:00.1"),
        Some(["01:00.0", "02:00.0", "03:00.0"].map(bdf).to_vec())
    );
    assert_eq!(hits("03:00.0"), Some(Vec::new()));
    assert_eq!(hits("00:02.0"), None, "nothing resets a root bus");
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

#[test]
fn ats_that_is_known_to_be_broken_is_marked() {
    let (mut space, at) = Space::new(0x1002, 0x7312).express(ENDPOINT).extended(0x000f, 8);
    space.put16(at + 4, 0x20);
    space.put16(at + 6, 0x8000);
    let topology = Machine::new().with("00:03.0", space).scan();
    let ats = topology.get(bdf("00:03.0")).unwrap().ats.present().unwrap();
    assert_eq!((ats.enabled, ats.queue_depth, ats.broken), (true, 32, true));
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
