//! Virtual functions of SR-IOV.

use iommu_groups::{BusId, Facts, LinuxVersion, Roots, Rules, Topology, group};
use iommu_types::Segment;

use crate::support::{ACS_CAP, ACS_ON, Machine, bdf, endpoint, root_port};

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
