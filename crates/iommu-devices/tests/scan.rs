//! What a configuration space was built with is what the topology reader finds in it.

#![allow(
    clippy::expect_used,
    reason = "a test that cannot go on says so by panicking, helpers included"
)]

use std::collections::BTreeMap;

use iommu_devices::{
    Acs, Ats, Bar, ConfigBuilder, ConfigSpace, DmaEngine, DmaEngineOptions, Function, SoftReset, Sriov,
};
use iommu_groups::pci::{PortType, header};
use iommu_groups::{BusId, ConfigAccess, LinuxVersion, Presence, Rules, Topology, group};
use iommu_types::{Bdf, Segment};

/// Functions by their place.
#[derive(Default)]
struct Machine(BTreeMap<Bdf, ConfigSpace>);

impl Machine {
    fn with(mut self, at: &str, space: ConfigBuilder) -> Self {
        let space = space.build().expect("a possible function");
        self.0.insert(at.parse().expect("bus:device.function"), space);
        self
    }

    fn scan(&self) -> Topology {
        Topology::scan(self, &[BusId::new(Segment(0), 0)])
    }
}

impl ConfigAccess for Machine {
    fn read32(&self, function: Bdf, offset: u16) -> Option<u32> {
        Some(self.0.get(&function).map_or(u32::MAX, |space| space.read32(offset)))
    }
}

fn bdf(text: &str) -> Bdf {
    text.parse().expect("bus:device.function")
}

#[test]
fn every_capability_is_found_with_its_values() {
    let nic = ConfigSpace::function(0x8086, 0x1521)
        .class(0x02_00_00)
        .subsystem(0x1028, 0x1f60)
        .bar(0, Bar::memory64(1 << 20).at(0xfe00_0000))
        .express(PortType::ENDPOINT)
        .flr()
        .power_management(SoftReset::Keeps)
        .msi(5)
        .acs(Acs::ISOLATING)
        .ats(Ats {
            queue_depth: 32,
            page_aligned: true,
        })
        .pri(128)
        .pasid(20)
        .ari(3)
        .serial_number(7)
        .sriov(Sriov {
            total: 4,
            enabled: 2,
            first_offset: 16,
            stride: 1,
            device: 0x1520,
            bar_size: 0x4000,
        });
    let port = ConfigSpace::bridge(0x8086, 0x3420)
        .express(PortType::ROOT_PORT)
        .buses(0, 1, 1)
        .acs(Acs::OFF);
    let topology = Machine::default().with("00:01.0", port).with("01:00.0", nic).scan();
    assert!(topology.problems().is_empty(), "{:?}", topology.problems());
    assert_eq!(
        topology.functions().len(),
        4,
        "port, function and two virtual functions"
    );

    let f = topology.get(bdf("01:00.0")).expect("found");
    assert_eq!((f.vendor, f.device, f.class), (0x8086, 0x1521, 0x02_00_00));
    assert_eq!(f.subsystem, Some((0x1028, 0x1f60)));
    assert!(f.has_memory && !f.multifunction);
    let acs = f.acs.present().expect("ACS");
    assert_eq!((acs.capability, acs.control), (0x1f, 0x1d));
    let ats = f.ats.present().expect("ATS");
    assert_eq!((ats.enabled, ats.queue_depth), (false, 32));
    assert_eq!(f.pasid.present().expect("PASID").width, 20);
    assert!(!f.pri.present().expect("PRI").enabled);
    assert_eq!(f.ari, Presence::Present(3));
    assert_eq!(f.sriov.present().expect("SR-IOV").count, 2);
    assert_eq!(f.resets.flr, Presence::Present(()));
    assert_eq!(
        (f.resets.power, f.resets.advanced),
        (Presence::Absent, Presence::Absent)
    );

    let port = topology.get(bdf("00:01.0")).expect("found");
    assert_eq!(port.acs.present().expect("ACS").control, 0);
    assert_eq!(port.ats, Presence::Absent);
}

#[test]
fn groups_follow_what_software_writes_to_the_port() {
    let options = DmaEngineOptions::default();
    let port = ConfigSpace::bridge(0x1b36, 0xc)
        .express(PortType::ROOT_PORT)
        .buses(0, 1, 1)
        .acs(Acs::OFF);
    let mut machine = Machine::default()
        .with("00:01.0", port)
        .with("01:00.0", DmaEngine::describe(options));
    let count = |machine: &Machine| {
        let topology = machine.scan();
        let linux = group(&topology, Rules::Linux(LinuxVersion::LATEST)).all().len();
        (linux, group(&topology, Rules::Strict).all().len())
    };
    assert_eq!(count(&machine), (1, 1));
    let port = machine.0.get_mut(&bdf("00:01.0")).expect("the port");
    let at = port.acs_at().expect("ACS");
    let effects = port.write16(at + 6, 0x1d);
    assert!(effects.routing);
    assert_eq!(count(&machine), (2, 2));
}

#[test]
fn an_engine_resets_through_its_own_configuration_space() {
    let options = DmaEngineOptions::default();
    let config = DmaEngine::describe(options).bus_master().build().expect("possible");
    let mut engine = DmaEngine::new(config, options).expect("possible");
    let function: &mut dyn Function = &mut engine;
    assert!(function.config().bus_master());
    let at = function.config().express_at().expect("PCI Express");
    let effects = function.config_write(at + 8, &0x8000u16.to_le_bytes());
    assert!(effects.reset.is_some() && effects.routing);
    assert_eq!(function.config().read16(header::COMMAND), 0);
}
