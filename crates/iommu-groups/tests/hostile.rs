//! Configuration space that lies, loops or ends early.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking, helpers included"
)]

mod support;

use std::collections::BTreeMap;
use std::time::Instant;

use iommu_groups::pci::PortType;
use iommu_groups::{
    BusId, ConfigAccess, Difference, Explanation, Facts, LinuxVersion, ListFault, Problem, Roots, Rules, Topology,
    differences, group,
};
use iommu_types::{Bdf, DevFn, Segment, SourceId};
use proptest::prelude::*;
use support::{
    ACS_CAP, ACS_ON, ENDPOINT, INTEGRATED, Machine, PCI_TO_PCIE, PCIE_TO_PCI, Space, bdf, conventional, downstream,
    endpoint, partition, root_port, upstream,
};

#[test]
fn a_capability_list_in_a_circle_ends_and_leaves_the_rest_unknown() {
    let mut space = conventional();
    space.put16(0x06, 0x10);
    space.put8(0x34, 0x50);
    space.put16(0x50, 0x6005);
    space.put16(0x60, 0x5009);
    let topology = Machine::new().with("00:03.0", space).scan();
    assert!(topology.get(bdf("00:03.0")).unwrap().port.is_unknown());
    assert!(matches!(
        topology.problems(),
        [Problem::CapabilityList {
            fault: ListFault::Loop,
            ..
        }]
    ));
}

#[test]
fn capability_pointers_into_the_header_are_refused() {
    let mut space = conventional();
    space.put16(0x06, 0x10);
    space.put8(0x34, 0x3c);
    let topology = Machine::new().with("00:03.0", space).scan();
    assert!(matches!(
        topology.problems(),
        [Problem::CapabilityList {
            at: 0x3c,
            fault: ListFault::Outside,
            ..
        }]
    ));
}

#[test]
fn an_extended_list_in_a_circle_hides_acs_and_isolates_nothing() {
    let mut port = root_port(1, 1);
    port.put32(0x100, 0x1400_0000 | 1 << 16 | 0x0b);
    port.put32(0x140, 0x1000_0000 | 1 << 16 | 0x0b);
    let machine = Machine::new().with("00:01.0", port).with("01:00.0", endpoint());
    let topology = machine.scan();
    assert!(topology.get(bdf("00:01.0")).unwrap().acs.is_unknown());
    let groups = group(&topology, Rules::Strict);
    assert_eq!(partition(&groups), "00:01.0 01:00.0");
    assert!(groups.all()[0].uncertain);
}

#[test]
fn contradictory_bus_numbers_are_reported_and_joined() {
    let isolating = |secondary, subordinate| root_port(secondary, subordinate).acs(ACS_CAP, ACS_ON);
    // Two bridges claim bus 1.
    let machine = Machine::new()
        .with("00:01.0", isolating(1, 1))
        .with("00:02.0", isolating(1, 2))
        .with("01:00.0", endpoint())
        .with("00:03.0", endpoint());
    let topology = machine.scan();
    assert!(topology.problems().contains(&Problem::BusClaimedTwice {
        bus: BusId::new(Segment(0), 1),
        first: Some(bdf("00:01.0")),
        second: bdf("00:02.0"),
    }));
    let groups = group(&topology, Rules::Strict);
    assert_eq!(partition(&groups), "00:01.0 00:02.0 01:00.0 | 00:03.0");
    assert!(groups.of(bdf("01:00.0")).unwrap().uncertain);

    // Ranges that overlap.
    let machine = Machine::new()
        .with("00:01.0", isolating(1, 3))
        .with("00:02.0", isolating(2, 4))
        .with("01:00.0", endpoint())
        .with("02:00.0", endpoint());
    let topology = machine.scan();
    assert!(matches!(topology.problems(), [Problem::BusesOverlap { .. }]));
    assert_eq!(group(&topology, Rules::Strict).all().len(), 1);
}

#[test]
fn bridges_that_point_back_are_not_followed() {
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 1))
        .with("01:00.0", Space::new(1, 1).bridge(0, 5))
        .with("01:01.0", Space::new(1, 1).bridge(1, 1))
        .with("00:02.0", root_port(5, 4))
        .with("00:03.0", root_port(0, 0));
    let mut machine = machine;
    // Only device 0 is looked for on a link; these are found because they are listed.
    let topology = machine.listed();
    let kinds: Vec<_> = topology.problems().iter().map(|problem| problem.to_string()).collect();
    assert_eq!(kinds.len(), 4, "{kinds:#?}");
    assert!(
        topology
            .problems()
            .contains(&Problem::NotConfigured { bridge: bdf("00:03.0") })
    );
    assert!(
        topology
            .problems()
            .contains(&Problem::NotConfigured { bridge: bdf("01:00.0") })
    );
    assert_eq!(
        topology
            .problems()
            .iter()
            .filter(|p| matches!(p, Problem::BusOrder { .. }))
            .count(),
        2
    );
    // A primary number that is wrong is reported, and the bridge still followed.
    let mut wrong = root_port(1, 1);
    wrong.put8(0x18, 7);
    machine.spaces.insert(bdf("00:01.0"), wrong);
    assert!(machine.listed().problems().contains(&Problem::PrimaryBus {
        bridge: bdf("00:01.0"),
        register: 7
    }));
}

#[test]
fn a_bus_that_nothing_leads_to_is_one_uncertain_group() {
    let machine = Machine::new()
        .with("00:01.0", endpoint())
        .with("07:00.0", endpoint())
        .with("07:01.0", endpoint());
    let roots = [BusId::new(Segment(0), 0)];
    let functions = machine.spaces.keys().copied();
    let topology = Topology::from_functions(&machine, functions, Roots::Given(&roots), &Facts::default());
    let groups = group(&topology, Rules::Strict);
    assert_eq!(partition(&groups), "00:01.0 | 07:00.0 07:01.0");
    assert!(groups.of(bdf("07:00.0")).unwrap().uncertain);
    assert!(matches!(topology.problems(), [Problem::NoWayUp { .. }]));
}

#[test]
fn virtual_functions_that_collide_end_the_list() {
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 1))
        .with("01:00.0", endpoint().sriov(100, 1, 0, 7));
    let topology = machine.scan();
    assert_eq!(topology.functions().len(), 3);
    assert!(matches!(
        topology.problems(),
        [Problem::VirtualFunctions { index: 1, .. }]
    ));
    let beyond = Machine::new()
        .with("00:01.0", root_port(255, 255))
        .with("ff:00.0", endpoint().sriov(u16::MAX, 0xf0, 0xff, 7));
    assert_eq!(beyond.scan().functions().len(), 3);
}

#[test]
fn a_port_type_against_its_header_isolates_nothing() {
    let machine = Machine::new()
        .with("00:01.0", Space::new(1, 1).bridge(1, 1).express(ENDPOINT))
        .with("01:00.0", endpoint());
    let topology = machine.scan();
    assert!(matches!(topology.problems(), [Problem::HeaderAgainstPort { .. }]));
    assert_eq!(group(&topology, Rules::Strict).all().len(), 1);
    assert_eq!(group(&topology, Rules::Linux(LinuxVersion::LATEST)).all().len(), 1);
}

#[test]
fn a_switch_port_on_the_wrong_side_is_taken_for_the_other_side() {
    // A downstream port right below a root port, as Linux corrects it: nobody stands beside it.
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 2).acs(ACS_CAP, ACS_ON))
        .with("01:00.0", downstream(2, 2))
        .with("02:00.0", endpoint());
    let topology = machine.scan();
    assert_eq!(
        topology.problems(),
        [Problem::PortAgainstParent {
            function: bdf("01:00.0"),
            acts_as: PortType::UPSTREAM_PORT,
        }]
    );
    let linux = Rules::Linux(LinuxVersion::LATEST);
    assert_eq!(partition(&group(&topology, linux)), "00:01.0 | 01:00.0 | 02:00.0");
    // Inside a switch an upstream port stands for a downstream port, here one without access control.
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 3).acs(ACS_CAP, ACS_ON))
        .with("01:00.0", upstream(2, 3))
        .with("02:00.0", upstream(3, 3))
        .with("03:00.0", endpoint());
    let topology = machine.scan();
    assert!(matches!(
        topology.problems(),
        [Problem::PortAgainstParent {
            acts_as: PortType::DOWNSTREAM_PORT,
            ..
        }]
    ));
    assert_eq!(
        partition(&group(&topology, Rules::Strict)),
        "00:01.0 | 01:00.0 | 02:00.0 03:00.0"
    );
    // Linux takes it for an endpoint of one function, which passes.
    assert_eq!(
        partition(&group(&topology, linux)),
        "00:01.0 | 01:00.0 | 02:00.0 | 03:00.0"
    );
}

#[test]
fn below_a_misplaced_port_linux_notices_nothing_and_looks_at_every_device_number() {
    // An upstream port inside a switch, and below it two downstream ports as if it led into a switch.
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 5).acs(ACS_CAP, ACS_ON))
        .with("01:00.0", upstream(2, 5))
        .with("02:00.0", upstream(3, 5))
        .with("03:00.0", downstream(4, 4).acs(ACS_CAP, ACS_ON))
        .with("03:01.0", downstream(5, 5))
        .with("04:00.0", endpoint())
        .with("05:00.0", endpoint());
    let topology = machine.scan();
    assert_eq!(topology.functions().len(), 7);
    assert_eq!(
        topology.problems(),
        [Problem::PortAgainstParent {
            function: bdf("02:00.0"),
            acts_as: PortType::DOWNSTREAM_PORT,
        }]
    );
    let rules = |minor| Rules::Linux(LinuxVersion::new(5, minor));
    let groups = |rules| partition(&group(&topology, rules));
    // Downstream ports stay what they say, and the one without access control holds on to what is below it.
    assert_eq!(
        groups(rules(10)),
        "00:01.0 | 01:00.0 | 02:00.0 | 03:00.0 | 03:01.0 05:00.0 | 04:00.0"
    );
    assert_eq!(
        groups(rules(3)),
        groups(rules(10)),
        "the port says upstream port, which passes alone as well"
    );
    assert_eq!(
        groups(Rules::Strict),
        "00:01.0 | 01:00.0 | 02:00.0 03:00.0 03:01.0 04:00.0 05:00.0"
    );
}

/// Answers every read with the next bytes of a string, over and over.
struct Noise(Vec<u8>);

impl ConfigAccess for Noise {
    fn read32(&self, function: Bdf, offset: u16) -> Option<u32> {
        let start = usize::from(function.source.raw()).wrapping_mul(31) + usize::from(offset);
        let byte = |i: usize| self.0.get((start + i) % self.0.len().max(1)).copied().unwrap_or(0xff);
        (byte(0) != 0xee).then(|| u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)]))
    }
}

/// A machine of random shape: what hangs below what, with which controls.
fn machine() -> impl Strategy<Value = Machine> {
    let choice = (0u8..8, prop::option::of(0u16..0x20), prop::bool::ANY, prop::bool::ANY);
    prop::collection::vec((any::<prop::sample::Index>(), choice), 1..24).prop_map(|pieces| {
        // Bridges first in breadth, numbered in depth order afterwards.
        let mut parent: Vec<Option<usize>> = Vec::new();
        let mut kinds = Vec::new();
        for (index, choice) in pieces {
            let bridges: Vec<usize> = (0..kinds.len()).filter(|i| is_bridge(kinds[*i])).collect();
            let under = if bridges.is_empty() {
                None
            } else {
                Some(bridges[index.index(bridges.len())])
            };
            parent.push(if choice.3 { under } else { None });
            kinds.push(choice);
        }
        let mut machine = Machine::new();
        let mut next_bus = 1;
        place(&mut machine, None, 0, &parent, &kinds, &mut next_bus);
        machine
    })
}

type Choice = (u8, Option<u16>, bool, bool);

fn is_bridge(kind: Choice) -> bool {
    kind.0 < 5
}

fn place(
    machine: &mut Machine,
    under: Option<usize>,
    bus: u8,
    parent: &[Option<usize>],
    kinds: &[Choice],
    next_bus: &mut u8,
) {
    let children: Vec<usize> = (0..kinds.len()).filter(|i| parent[*i] == under).collect();
    for (slot, child) in children.into_iter().enumerate() {
        let (kind, acs, packed, _) = kinds[child];
        // Two functions a slot, or one each.
        let slot = u8::try_from(slot).unwrap();
        let devfn = if packed { slot } else { slot << 3 };
        let at = Bdf::new(Segment(0), SourceId::new(bus, DevFn::from_raw(devfn)));
        let (mut secondary, mut subordinate) = (0, 0);
        if is_bridge(kinds[child]) {
            secondary = *next_bus;
            *next_bus += 1;
            place(machine, Some(child), secondary, parent, kinds, next_bus);
            subordinate = *next_bus - 1;
        }
        let mut space = match kind {
            0 => root_port(secondary, subordinate),
            1 => upstream(secondary, subordinate),
            2 => downstream(secondary, subordinate),
            3 => Space::new(1, 1).bridge(secondary, subordinate).express(PCIE_TO_PCI),
            4 => Space::new(1, 1).bridge(secondary, subordinate),
            5 => endpoint(),
            6 => Space::new(0x1b4b, 0x9125).express(INTEGRATED),
            _ => conventional(),
        };
        if let (Some(control), true) = (acs, space.bytes.len() == 4096) {
            space = space.acs(ACS_CAP, control);
        }
        if packed && slot == 0 {
            space = space.multifunction();
        }
        if !machine.spaces.contains_key(&at) {
            *machine = core::mem::take(machine).with(&at.to_string(), space);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn noise_neither_panics_nor_runs_away(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let noise = Noise(bytes);
        let functions = (0..64u16).map(|id| Bdf::new(Segment(0), SourceId::from_raw(id * 97)));
        let topology = Topology::from_functions(&noise, functions, Roots::Inferred, &Facts::default());
        for rules in [Rules::Strict, Rules::Linux(LinuxVersion::LATEST)] {
            let groups = group(&topology, rules);
            let members: usize = groups.all().iter().map(|group| group.members.len()).sum();
            prop_assert_eq!(members, topology.functions().len());
        }
        for problem in topology.problems() {
            let _ = problem.to_string();
        }
    }

    #[test]
    fn strict_groups_do_not_depend_on_the_order_of_roots_or_lists(machine in machine()) {
        let scanned = group(&machine.listed(), Rules::Strict);
        let reversed: Vec<_> = machine.spaces.keys().rev().copied().collect();
        let listed = Topology::from_functions(&machine, reversed, Roots::Inferred, &Facts::default());
        prop_assert_eq!(partition(&scanned), partition(&group(&listed, Rules::Strict)));
    }

    /// Each requester ID belongs to functions of one group only, in both groupings.
    #[test]
    fn requester_ids_belong_to_one_group(machine in machine()) {
        let topology = machine.listed();
        let strict = group(&topology, Rules::Strict);
        let mut owner: BTreeMap<SourceId, usize> = BTreeMap::new();
        for f in topology.functions() {
            let number = strict.of(f.bdf).unwrap().number;
            for alias in topology.aliases(f.bdf) {
                prop_assert_eq!(*owner.entry(alias.source).or_insert(number), number, "{}", alias.source);
            }
        }
    }

    /// Every two members of a group are connected by reasons, and the differences between the two groupings are
    /// differences.
    #[test]
    fn every_pair_of_a_group_is_explained(machine in machine()) {
        let topology = machine.listed();
        let linux = group(&topology, Rules::Linux(LinuxVersion::LATEST));
        let strict = group(&topology, Rules::Strict);
        for groups in [&linux, &strict] {
            for members in groups.all().iter().map(|group| &group.members) {
                for b in members.iter().skip(1) {
                    let Some(Explanation::Together(hops)) = groups.explain(&topology, members[0], *b) else {
                        panic!("{} and {b} are together", members[0]);
                    };
                    prop_assert!(!hops.is_empty());
                    let mut at = members[0];
                    for hop in &hops {
                        prop_assert!(hop.from == at || hop.to == at);
                        at = if hop.from == at { hop.to } else { hop.from };
                    }
                    prop_assert_eq!(at, *b);
                }
            }
        }
        for difference in differences(&linux, &strict) {
            let (a, b, hole) = match &difference {
                Difference::Hole { a, b, .. } => (*a, *b, true),
                Difference::Wider { a, b, .. } => (*a, *b, false),
            };
            prop_assert_eq!(strict.together(a, b), Some(hole));
            prop_assert_eq!(linux.together(a, b), Some(!hole));
        }
    }

    /// Turning a control off never separates functions.
    #[test]
    fn less_control_never_means_smaller_groups(machine in machine(), victim in any::<prop::sample::Index>()) {
        let before = group(&machine.listed(), Rules::Strict);
        let mut weaker = machine.clone();
        let index = victim.index(weaker.spaces.len());
        let space = weaker.spaces.values_mut().nth(index).unwrap();
        if space.bytes.len() == 4096 && space.bytes[0x100] == 0x0d {
            space.put16(0x106, 0);
        }
        let after = group(&weaker.listed(), Rules::Strict);
        for group in before.all() {
            for pair in group.members.windows(2) {
                prop_assert_eq!(after.together(pair[0], pair[1]), Some(true));
            }
        }
    }
}

/// Ten thousand functions: 20 segments with 100 ports each, four functions below each.
fn large() -> Machine {
    let mut machine = Machine::new();
    machine.roots.clear();
    for segment in 0..20u32 {
        machine.roots.push(BusId::new(Segment(segment), 0));
        for port in 0..100u8 {
            let acs = if port % 3 == 0 { 0 } else { ACS_ON };
            let name = format!("{segment:04x}:00:{:02x}.{:x}", port / 8, port % 8);
            machine = machine.with(&name, root_port(port + 1, port + 1).multifunction().acs(ACS_CAP, acs));
            for function in 0..4 {
                let name = format!("{segment:04x}:{:02x}:00.{function}", port + 1);
                machine = machine.with(&name, endpoint().multifunction());
            }
        }
    }
    machine
}

#[test]
fn ten_thousand_functions_are_grouped() {
    let machine = large();
    let start = Instant::now();
    let topology = machine.scan();
    let scanned = start.elapsed();
    let strict = group(&topology, Rules::Strict);
    let linux = group(&topology, Rules::Linux(LinuxVersion::LATEST));
    let took = start.elapsed();
    eprintln!("scan {scanned:?}, with both groupings {took:?}");
    assert_eq!(topology.functions().len(), 10_000);
    assert!(strict.all().len() < linux.all().len());
}

#[test]
fn pci_to_pcie_bridges_join_everything_below() {
    let machine = Machine::new()
        .with("00:1e.0", Space::new(1, 1).bridge(1, 3))
        .with("01:00.0", Space::new(1, 2).bridge(2, 3).express(PCI_TO_PCIE))
        .with("02:00.0", endpoint());
    assert_eq!(machine.strict().all().len(), 1);
    assert_eq!(machine.linux().all().len(), 1);
}
