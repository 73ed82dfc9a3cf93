//! Switches: what their ports let through, and which of their groups follow.

use iommu_groups::{AcsBits, Difference, Explanation, Lack, LinuxVersion, Reason, Rules, differences, group};

use crate::support::{
    ACS_CAP, ACS_ENHANCED, ACS_ON, ENDPOINT, Machine, Space, UPSTREAM, bdf, downstream, endpoint, partition, root_port,
    upstream,
};

/// A root port, a switch with two downstream ports, an endpoint below each.
pub(crate) fn switch(first: u16, second: u16) -> Machine {
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
fn a_foreign_upstream_port_alone_changes_nothing() {
    let machine = Machine::new()
        .with("00:01.0", root_port(1, 2).acs(ACS_CAP, ACS_ON))
        .with("01:00.0", Space::new(1, 1).bridge(2, 2).express(UPSTREAM));
    assert_eq!(partition(&machine.strict()), "00:01.0 | 01:00.0");
}
