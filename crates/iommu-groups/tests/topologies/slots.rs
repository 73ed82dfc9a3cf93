//! Functions of one device, ports, and devices on the root bus.

use iommu_groups::{Barrier, Explanation, Grounds, Lack, LinuxVersion, Reason, Rules, group};

use crate::support::{
    ACS_CAP, ACS_ON, INTEGRATED, Machine, Space, bdf, conventional, downstream, endpoint, partition, root_port,
    upstream,
};
use crate::switches::switch;

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
