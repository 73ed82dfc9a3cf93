//! Which unit serves a device.
#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

use acpi_dmar::lint::{FunctionList, PciFunction};
use acpi_dmar::{
    Applies, BusTopology, Dmar, Doubt, NoTopology, OwnedAndd, OwnedAtsr, OwnedDmar, OwnedDrhd, OwnedRmrr, OwnedSatc,
    OwnedScope, OwnedSidp, Owner, RawStructure, Rule, ScopeFlags, ScopeType, Seen, StructureType, Upstream, Why,
};
use iommu_types::{AddrRange, Bdf, DevFn, HostPhys, Segment, SourceId};

const SEGMENT: Segment = Segment(0);

fn at(text: &str) -> SourceId {
    text.parse().expect("a source ID")
}

fn bdf(text: &str) -> Bdf {
    text.parse().expect("a function")
}

fn devfn(device: u8, function: u8) -> DevFn {
    DevFn::new(device, function).expect("in range")
}

fn unit(base: u64) -> OwnedDrhd {
    OwnedDrhd::new(SEGMENT, HostPhys::new(base))
}

fn build(units: impl IntoIterator<Item = OwnedDrhd>) -> Vec<u8> {
    let table = units.into_iter().fold(OwnedDmar::new(46), OwnedDmar::with);
    table.build().expect("fits")
}

fn function(text: &str, buses: Option<(u8, u8)>) -> PciFunction {
    PciFunction {
        at: bdf(text),
        buses,
        class: [2, 0, 0],
        ats: None,
    }
}

/// 00:01.0 leads to buses 1 to 3: a switch 01:00.0 (2 to 3) with the port 02:00.0 (3) and the NIC 03:00.0.
/// 00:1c.0 leads to bus 4 with 04:00.1. 00:02.0 is integrated.
fn machine() -> Vec<PciFunction> {
    vec![
        function("00:02.0", None),
        function("00:01.0", Some((1, 3))),
        function("01:00.0", Some((2, 3))),
        function("02:00.0", Some((3, 3))),
        function("03:00.0", None),
        function("00:1c.0", Some((4, 4))),
        function("04:00.1", None),
    ]
}

fn owner(bytes: &[u8], of: &str) -> Owner {
    let functions = machine();
    let table = Dmar::parse(bytes).expect("a header");
    table.owner(bdf(of), &FunctionList::new(&functions))
}

#[test]
fn an_explicit_scope_wins_wherever_the_catch_all_stands() {
    let graphics = || unit(0x1000).scope(OwnedScope::endpoint(at("00:02.0")));
    let rest = || unit(0x2000).include_pci_all();
    for (table, graphics, rest) in [(build([graphics(), rest()]), 0, 1), (build([rest(), graphics()]), 1, 0)] {
        assert_eq!(owner(&table, "00:02.0").unit(), Some(graphics));
        assert_eq!(owner(&table, "03:00.0").unit(), Some(rest));
        assert_eq!(
            owner(&table, "00:1f.0").unit(),
            Some(rest),
            "also what is not there yet"
        );
    }
}

#[test]
fn without_catch_all_the_rest_is_not_covered() {
    let table = build([unit(0x1000).scope(OwnedScope::endpoint(at("00:02.0")))]);
    assert_eq!(owner(&table, "00:02.1"), Owner::NotCovered);
    assert_eq!(owner(&table, "03:00.0"), Owner::NotCovered);
}

#[test]
fn a_catch_all_ends_at_its_segment() {
    let table = build([unit(0x1000).include_pci_all()]);
    assert_eq!(owner(&table, "0001:00:02.0"), Owner::NotCovered);
}

#[test]
fn a_sub_hierarchy_covers_the_bridge_and_all_below_and_nothing_beside() {
    let table = build([
        unit(0x1000).scope(OwnedScope::sub_hierarchy(at("00:01.0"))),
        unit(0x2000).include_pci_all(),
    ]);
    for below in ["00:01.0", "01:00.0", "02:00.0", "03:00.0", "03:1f.7"] {
        assert_eq!(owner(&table, below).unit(), Some(0), "{below}");
    }
    for beside in ["00:01.1", "00:1c.0", "04:00.1"] {
        assert_eq!(owner(&table, beside).unit(), Some(1), "{beside}");
    }
    assert_eq!(
        owner(&table, "03:00.0"),
        Owner::Unit(
            0,
            Why::Below {
                scope: 0x40,
                bridge: bdf("00:01.0")
            }
        )
    );
}

#[test]
fn the_nearest_bridge_wins_over_one_further_up() {
    let far = unit(0x1000).scope(OwnedScope::sub_hierarchy(at("00:01.0")));
    let near = unit(0x2000).scope(
        OwnedScope::sub_hierarchy(at("00:01.0"))
            .hop(devfn(0, 0))
            .hop(devfn(0, 0)),
    );
    for (table, far, near) in [(build([far.clone(), near.clone()]), 0, 1), (build([near, far]), 1, 0)] {
        assert_eq!(owner(&table, "03:00.0").unit(), Some(near));
        assert_eq!(owner(&table, "01:00.0").unit(), Some(far));
    }
}

#[test]
fn a_path_of_several_hops_follows_the_secondary_buses() {
    let scope = OwnedScope::endpoint(at("00:1c.0")).hop(devfn(0, 1));
    let table = build([unit(0x1000).scope(scope), unit(0x2000).include_pci_all()]);
    assert_eq!(
        owner(&table, "04:00.1"),
        Owner::Unit(
            0,
            Why::Named {
                scope: 0x40,
                broken_path: false
            }
        )
    );
    assert_eq!(
        owner(&table, "00:00.1").unit(),
        Some(1),
        "not the last hop on the start bus"
    );
}

#[test]
fn a_path_through_a_bridge_that_is_not_there_names_nothing() {
    let scope = OwnedScope::endpoint(at("00:0f.0")).hop(devfn(0, 1));
    let table = build([unit(0x1000).scope(scope), unit(0x2000).include_pci_all()]);
    assert_eq!(owner(&table, "04:00.1").unit(), Some(1));
}

#[test]
fn a_broken_path_from_the_functions_own_bus_is_accepted_and_said() {
    let table = build([
        unit(0x1000).scope(OwnedScope::endpoint(at("04:00.1"))),
        unit(0x2000).include_pci_all(),
    ]);
    assert_eq!(
        owner(&table, "04:00.1"),
        Owner::Unit(
            0,
            Why::Named {
                scope: 0x40,
                broken_path: true
            }
        )
    );
}

#[test]
fn without_topology_only_what_is_certain_is_answered() {
    let deep = OwnedScope::endpoint(at("00:1c.0")).hop(devfn(0, 1));
    let table = build([
        unit(0x1000)
            .scope(OwnedScope::endpoint(at("00:02.0")))
            .scope(OwnedScope::sub_hierarchy(at("00:01.0")))
            .scope(deep),
        unit(0x2000).include_pci_all(),
    ]);
    let table = Dmar::parse(&table).expect("a header");
    assert_eq!(table.owner(bdf("00:02.0"), &NoTopology).unit(), Some(0));
    assert_eq!(table.owner(bdf("00:01.0"), &NoTopology).unit(), Some(0));
    // On bus 0 and not 00.1: neither below 00:01.0 nor the end of the deep path.
    assert_eq!(table.owner(bdf("00:03.0"), &NoTopology).unit(), Some(1));
    assert_eq!(
        table.owner(bdf("05:00.0"), &NoTopology),
        Owner::Unknown(Doubt::Path { scope: 0x48 })
    );
    assert_eq!(
        table.owner(bdf("00:00.1"), &NoTopology),
        Owner::Unknown(Doubt::Path { scope: 0x50 })
    );
}

#[test]
fn a_walk_that_ended_early_makes_every_owner_unknown() {
    let mut bytes = build([
        unit(0x1000).scope(OwnedScope::endpoint(at("00:02.0"))),
        unit(0x2000).include_pci_all(),
    ]);
    bytes[0x4a] = 0; // length of the second unit
    for of in ["00:02.0", "03:00.0"] {
        let Owner::Unknown(Doubt::Unreadable(malformed)) = owner(&bytes, of) else {
            panic!("{of} must be unknown");
        };
        assert_eq!((malformed.offset, malformed.rule), (0x48, Rule::StructureTooShort));
    }
    let table = Dmar::parse(&bytes).expect("a header");
    assert!(matches!(table.io_apic(0, &NoTopology).owner, Owner::Unknown(_)));
    assert!(matches!(
        table.namespace_path("\\X", &NoTopology).owner,
        Owner::Unknown(_)
    ));
}

#[test]
fn a_truncated_table_makes_every_owner_unknown() {
    let bytes = build([
        unit(0x1000).scope(OwnedScope::endpoint(at("00:02.0"))),
        unit(0x2000).include_pci_all(),
    ]);
    // The cut falls between the units, so that all that is there is well formed.
    let table = Dmar::inspect(&bytes[..0x48]).expect("a header");
    assert!(matches!(table.owner(bdf("00:02.0"), &NoTopology), Owner::Unknown(_)));
}

#[test]
fn an_unreadable_scope_list_casts_doubt_on_all_but_what_is_named() {
    let mut bytes = build([
        unit(0x1000)
            .scope(OwnedScope::endpoint(at("00:02.0")))
            .scope(OwnedScope::endpoint(at("00:03.0"))),
        unit(0x2000).include_pci_all(),
    ]);
    bytes[0x49] = 7; // length of the second entry
    assert_eq!(owner(&bytes, "00:02.0").unit(), Some(0));
    for of in ["00:03.0", "04:00.1"] {
        assert!(
            matches!(owner(&bytes, of), Owner::Unknown(Doubt::Unreadable(_))),
            "{of}"
        );
    }
}

#[test]
fn an_unknown_scope_type_casts_doubt_except_in_the_catch_all() {
    let strange = || OwnedScope {
        kind: ScopeType(9),
        ..OwnedScope::endpoint(at("00:05.0"))
    };
    let explicit = build([
        unit(0x1000).scope(OwnedScope::endpoint(at("00:02.0"))).scope(strange()),
        unit(0x2000).include_pci_all(),
    ]);
    assert_eq!(owner(&explicit, "00:02.0").unit(), Some(0));
    assert_eq!(
        owner(&explicit, "04:00.1"),
        Owner::Unknown(Doubt::UnknownScope { scope: 0x48 })
    );
    let catch_all = build([unit(0x2000).include_pci_all().scope(strange())]);
    assert_eq!(owner(&catch_all, "04:00.1").unit(), Some(0));
}

#[test]
fn two_units_that_name_one_function_are_a_conflict() {
    let twice = |second| {
        build([
            unit(0x1000).scope(OwnedScope::endpoint(at("00:02.0"))),
            unit(second).scope(OwnedScope::endpoint(at("00:02.0"))),
        ])
    };
    assert_eq!(
        owner(&twice(0x2000), "00:02.0"),
        Owner::Unknown(Doubt::Conflict {
            first: 0x40,
            second: 0x58
        })
    );
    assert_eq!(
        owner(&twice(0x1000), "00:02.0").unit(),
        Some(0),
        "one unit listed twice"
    );
    let catch_alls = build([unit(0x1000).include_pci_all(), unit(0x2000).include_pci_all()]);
    assert!(matches!(
        owner(&catch_alls, "00:02.0"),
        Owner::Unknown(Doubt::Conflict { .. })
    ));
}

#[test]
fn a_unit_without_usable_base_contains_nothing() {
    for base in [0, u64::MAX] {
        let table = build([
            unit(0x1000).scope(OwnedScope::endpoint(at("00:02.0"))),
            unit(base).include_pci_all(),
        ]);
        assert_eq!(owner(&table, "00:02.0").unit(), Some(0));
        assert_eq!(
            owner(&table, "04:00.1"),
            Owner::Unknown(Doubt::UnusableUnit { index: 1, unit: 0x48 })
        );
    }
}

#[test]
fn unknown_structures_between_units_change_nothing() {
    let table = OwnedDmar::new(39)
        .with(RawStructure {
            kind: StructureType(0x99),
            body: vec![1, 2, 3],
        })
        .with(unit(0x1000).include_pci_all())
        .build()
        .expect("fits");
    assert_eq!(owner(&table, "00:02.0").unit(), Some(0));
}

#[test]
fn path_elements_out_of_range_cast_doubt() {
    let mut bytes = build([
        unit(0x1000).scope(OwnedScope::endpoint(at("00:02.0"))),
        unit(0x2000).include_pci_all(),
    ]);
    bytes[0x46] = 32; // device number
    assert_eq!(owner(&bytes, "00:02.0"), Owner::Unknown(Doubt::Path { scope: 0x40 }));
}

/// Bus numbers as a hostile or half-initialised machine may have them.
struct Contradiction {
    at: Seen,
    up: Upstream,
}

impl BusTopology for Contradiction {
    fn function(&self, _: Bdf) -> Seen {
        self.at
    }
    fn parent_bridge(&self, _: Segment, _: u8) -> Upstream {
        self.up
    }
}

#[test]
fn contradicting_bus_numbers_are_unknown_and_loops_end() {
    let bytes = build([
        unit(0x1000).scope(OwnedScope::sub_hierarchy(at("00:01.0"))),
        unit(0x2000).include_pci_all(),
    ]);
    let table = Dmar::parse(&bytes).expect("a header");
    let bridge = |secondary, subordinate| Seen::Bridge { secondary, subordinate };
    for (at, up) in [
        // Bus 3 is inside the range, but hangs from the root.
        (bridge(1, 5), Upstream::Root),
        // Bus 3 hangs from the bridge, but is outside its range.
        (bridge(4, 5), Upstream::Bridge(SourceId::new(0, devfn(1, 0)))),
        // The range is upside down.
        (bridge(5, 4), Upstream::Unknown),
        // Not a bridge, yet bus 3 hangs from it.
        (Seen::Endpoint, Upstream::Bridge(SourceId::new(0, devfn(1, 0)))),
    ] {
        let topology = Contradiction { at, up };
        assert_eq!(
            table.owner(bdf("03:00.0"), &topology),
            Owner::Unknown(Doubt::Path { scope: 0x40 }),
            "{at:?} {up:?}"
        );
    }
    // Bus 7 hangs from a bridge on bus 7: the way up never ends, and is not followed for ever.
    let endless = Contradiction {
        at: bridge(4, 5),
        up: Upstream::Bridge(SourceId::new(7, devfn(0, 0))),
    };
    assert_eq!(table.owner(bdf("07:01.0"), &endless).unit(), Some(1));
}

#[test]
fn a_path_is_not_followed_to_a_bus_above_its_bridge() {
    let scope = OwnedScope::endpoint(at("05:01.0")).hop(devfn(0, 1));
    let bytes = build([unit(0x1000).scope(scope), unit(0x2000).include_pci_all()]);
    let table = Dmar::parse(&bytes).expect("a header");
    for secondary in [4, 5] {
        let topology = Contradiction {
            at: Seen::Bridge {
                secondary,
                subordinate: 9,
            },
            up: Upstream::Root,
        };
        let function = Bdf::new(SEGMENT, SourceId::new(secondary, devfn(0, 1)));
        assert_eq!(
            table.owner(function, &topology),
            Owner::Unknown(Doubt::Path { scope: 0x40 })
        );
    }
}

#[test]
fn a_virtual_function_is_served_like_its_physical_function() {
    struct WithVf(Vec<PciFunction>);
    impl BusTopology for WithVf {
        fn function(&self, at: Bdf) -> Seen {
            FunctionList::new(&self.0).function(at)
        }
        fn parent_bridge(&self, segment: Segment, bus: u8) -> Upstream {
            FunctionList::new(&self.0).parent_bridge(segment, bus)
        }
        fn listed_as(&self, function: Bdf) -> Option<Bdf> {
            (function == bdf("04:10.0")).then(|| bdf("04:00.1"))
        }
    }
    let scope = OwnedScope::endpoint(at("00:1c.0")).hop(devfn(0, 1));
    let bytes = build([unit(0x1000).scope(scope), unit(0x2000).include_pci_all()]);
    let table = Dmar::parse(&bytes).expect("a header");
    assert_eq!(table.owner(bdf("04:10.0"), &WithVf(machine())).unit(), Some(0));
    assert_eq!(table.owner(bdf("04:11.0"), &WithVf(machine())).unit(), Some(1));
}

#[test]
fn interrupt_sources_are_found_by_their_id_and_never_by_the_catch_all() {
    let bytes = OwnedDmar::new(39)
        .with(unit(0x1000).scope(OwnedScope::io_apic(8, at("f0:1f.0"))))
        .with(
            unit(0x2000)
                .include_pci_all()
                .scope(OwnedScope::hpet(0, at("f0:0f.0")))
                .scope(OwnedScope::namespace(3, at("00:15.1"))),
        )
        .with(OwnedAndd::new(3, "\\_SB.PCI0.I2C1"))
        .build()
        .expect("fits");
    let table = Dmar::parse(&bytes).expect("a header");
    let io_apic = table.io_apic(8, &NoTopology);
    assert_eq!((io_apic.owner.unit(), io_apic.source), (Some(0), Some(at("f0:1f.0"))));
    assert_eq!(table.io_apic(9, &NoTopology).owner, Owner::NotCovered);
    let hpet = table.hpet(0, &NoTopology);
    assert_eq!((hpet.owner.unit(), hpet.source), (Some(1), Some(at("f0:0f.0"))));
    let named = table.namespace_path("\\_SB.PCI0.I2C1", &NoTopology);
    assert_eq!((named.owner.unit(), named.source), (Some(1), Some(at("00:15.1"))));
    assert_eq!(table.namespace_path("\\_SB.X", &NoTopology).owner, Owner::NotCovered);
}

#[test]
fn regions_and_ats_apply_to_whom_they_name() {
    let range = AddrRange::new(HostPhys::new(0x8000_0000), HostPhys::new(0x8000_0fff)).expect("ordered");
    let bytes = OwnedDmar::new(46)
        .with(OwnedRmrr::new(SEGMENT, range).scope(OwnedScope::endpoint(at("00:1c.0")).hop(devfn(0, 1))))
        .with(OwnedAtsr::new(SEGMENT).scope(OwnedScope::sub_hierarchy(at("00:01.0"))))
        .with(OwnedAtsr::all_ports(SEGMENT))
        .with(OwnedSatc::new(SEGMENT, true).scope(OwnedScope::endpoint(at("00:02.0"))))
        .with(OwnedSidp::new(SEGMENT).scope(OwnedScope::endpoint(at("00:02.0")).flags(ScopeFlags::ATC_REQUIRED)))
        .build()
        .expect("fits");
    let table = Dmar::parse(&bytes).expect("a header");
    let functions = machine();
    let topology = FunctionList::new(&functions);

    let rmrr = table.rmrrs().next().expect("one");
    assert_eq!(rmrr.applies_to(bdf("04:00.1"), &topology), Applies::Yes { at: 0x48 });
    assert_eq!(rmrr.applies_to(bdf("04:00.0"), &topology), Applies::No);
    assert_eq!(rmrr.applies_to(bdf("0001:04:00.1"), &topology), Applies::No);
    assert_eq!(
        rmrr.applies_to(bdf("04:00.1"), &NoTopology),
        Applies::Unknown { at: 0x48 }
    );

    let [ports, all] = [0, 1].map(|n| table.atsrs().nth(n).expect("two"));
    assert!(ports.applies_to(bdf("03:00.0"), &topology).is_yes());
    assert_eq!(ports.applies_to(bdf("04:00.1"), &topology), Applies::No);
    assert!(all.applies_to(bdf("04:00.1"), &topology).is_yes());
    assert_eq!(all.applies_to(bdf("00:02.0"), &topology), Applies::No, "integrated");
    assert!(!all.applies_to(bdf("04:00.1"), &NoTopology).is_yes());

    assert!(
        table
            .satcs()
            .next()
            .expect("one")
            .applies_to(bdf("00:02.0"), &NoTopology)
            .is_yes()
    );
    let (applies, flags) = table
        .sidps()
        .next()
        .expect("one")
        .applies_to(bdf("00:02.0"), &NoTopology);
    assert!(applies.is_yes() && flags.contains(ScopeFlags::ATC_REQUIRED));
}
