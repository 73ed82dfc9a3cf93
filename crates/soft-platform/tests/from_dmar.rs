//! Machines made for tables: good ones, broken ones, hostile ones.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail this way, and its helpers too"
)]

use acpi_dmar::{OwnedDmar, OwnedDrhd, OwnedRmrr, OwnedScope};
use iommu_devices::{Bus, DmaErrorKind};
use iommu_types::{AddrRange, Bdf, DevFn, HostPhys, Iova, Segment, SourceId};
use soft_platform::{Assumption, FunctionKind, Machine, MachineOptions, Service, UnitRefusal};

const SEGMENT: Segment = Segment(0);

fn bdf(text: &str) -> Bdf {
    text.parse().expect("bdf")
}

fn at(text: &str) -> SourceId {
    text.parse().expect("source")
}

fn base(raw: u64) -> HostPhys {
    HostPhys::new(raw)
}

fn build(table: &OwnedDmar) -> (Machine, Vec<Assumption>) {
    let bytes = table.build().expect("fits");
    Machine::from_dmar(&bytes, MachineOptions::default()).expect("a table")
}

#[test]
fn functions_come_from_scopes_and_an_include_all_unit_gets_a_synthetic_one() {
    let table = OwnedDmar::new(39)
        .with(OwnedDrhd::new(SEGMENT, base(0xfed9_0000)).scope(OwnedScope::endpoint(at("00:02.0"))))
        .with(
            OwnedDrhd::new(SEGMENT, base(0xfed9_1000))
                .include_pci_all()
                .scope(OwnedScope::io_apic(2, at("f0:1f.0"))),
        )
        .with(
            OwnedRmrr::new(
                SEGMENT,
                AddrRange::from_base_len(base(0x9d00_0000), 0x280_0000).expect("range"),
            )
            .scope(OwnedScope::endpoint(at("00:02.0")))
            .scope(OwnedScope::endpoint(at("00:1c.0")).hop(DevFn::new(0, 2).expect("devfn"))),
        );
    let (machine, notes) = build(&table);
    assert_eq!(machine.units().len(), 2);
    let graphics = machine.function(bdf("00:02.0")).expect("named");
    assert_eq!(graphics.kind, FunctionKind::IntegratedEndpoint);
    assert_eq!(graphics.service.unit(), Some(0));
    let behind = machine
        .function(bdf("01:00.2"))
        .expect("behind the port, on the first bus number");
    assert_eq!(behind.parent, Some(bdf("00:1c.0")));
    assert_eq!(behind.service.unit(), Some(1));
    let synthetic: Vec<_> = machine.functions().filter(|f| f.synthetic).collect();
    assert_eq!(synthetic.len(), 1);
    assert_eq!(synthetic[0].service.unit(), Some(1));
    assert!(
        notes.iter().any(|note| matches!(note, Assumption::Synthetic(_, 1))),
        "{notes:?}"
    );
    // The reserved region is memory, although it lies above the low 2 GiB.
    assert!(machine.memory().node_of(base(0x9d00_0000)).is_some());
    for function in machine.functions().filter(|f| f.engine) {
        let bar = machine.bar_range(function.bdf, 0).expect("answers");
        assert!(machine.memory().node_of(bar.first()).is_none(), "{bar} is memory");
    }
}

#[test]
fn unusable_units_are_refused_and_their_functions_blocked() {
    let table = OwnedDmar::new(46)
        .with(OwnedDrhd::new(SEGMENT, base(0xfed9_0000)).scope(OwnedScope::endpoint(at("00:02.0"))))
        .with(OwnedDrhd::new(SEGMENT, base(0xfed9_0000)).scope(OwnedScope::endpoint(at("00:03.0"))))
        .with(OwnedDrhd::new(SEGMENT, base(u64::MAX)).scope(OwnedScope::endpoint(at("00:04.0"))))
        .with(OwnedDrhd::new(SEGMENT, base(0x10_0000)).scope(OwnedScope::endpoint(at("00:05.0"))))
        .with(OwnedDrhd::new(SEGMENT, base(0xfed9_2800)).scope(OwnedScope::endpoint(at("00:06.0"))))
        .with(OwnedDrhd::new(SEGMENT, base(0)).include_pci_all());
    let (machine, _) = build(&table);
    assert_eq!(machine.units().len(), 1);
    let why: Vec<_> = machine.refused_units().iter().map(|unit| unit.why).collect();
    assert_eq!(
        why,
        [
            UnitRefusal::Duplicate(0),
            UnitRefusal::NoBase,
            UnitRefusal::InMemory,
            UnitRefusal::Unaligned,
            UnitRefusal::NoBase
        ]
    );
    assert_eq!(machine.function(bdf("00:03.0")).expect("named").service.unit(), Some(0));
    let mut blocked = 0;
    for function in machine.functions() {
        if let Service::Blocked(_) = function.service {
            blocked += 1;
            let bus = machine.bus(function.bdf).expect("there");
            let kind = bus.dma_read(Iova::new(0x1000), &mut [0; 4]).map_err(|e| e.kind);
            assert_eq!(kind, Err(DmaErrorKind::Blocked), "{}", function.bdf);
        }
    }
    assert_eq!(blocked, 4, "three named functions and the synthetic one");
    assert_eq!(machine.take_platform_blocks().len(), 4);
}

#[test]
fn after_an_unreadable_structure_no_function_is_open() {
    let mut bytes = OwnedDmar::new(46)
        .with(OwnedDrhd::new(SEGMENT, base(0xfed9_0000)).scope(OwnedScope::endpoint(at("00:02.0"))))
        .with(OwnedDrhd::new(SEGMENT, base(0xfed9_1000)).include_pci_all())
        .build()
        .expect("fits");
    // The length of the second unit becomes zero.
    bytes[48 + 24 + 2] = 0;
    let (machine, _) = Machine::from_dmar(&bytes, MachineOptions::default()).expect("still a table");
    let function = machine.function(bdf("00:02.0")).expect("named");
    assert!(matches!(function.service, Service::Blocked(_)), "{}", function.service);
}

#[test]
fn hostile_tables_stay_small() {
    let everything = AddrRange::new(base(0), base(u64::MAX)).expect("range");
    let mut drhd = OwnedDrhd::new(SEGMENT, base(0xfed9_0000));
    for bus in 0..=255u8 {
        for device in 0..8 {
            let first = SourceId::new(bus, DevFn::new(device, 0).expect("devfn"));
            drhd = drhd.scope(OwnedScope::sub_hierarchy(first).hop(DevFn::new(0, 0).expect("devfn")));
        }
    }
    let mut deep = OwnedScope::sub_hierarchy(at("00:1f.0"));
    for _ in 0..100 {
        deep = deep.hop(DevFn::new(0, 0).expect("devfn"));
    }
    let table = OwnedDmar::new(64)
        .with(OwnedDrhd::new(SEGMENT, base(0xfed9_1000)).scope(deep))
        .with(drhd)
        .with(OwnedRmrr::new(SEGMENT, everything).scope(OwnedScope::endpoint(at("00:02.0"))));
    let (machine, notes) = build(&table);
    assert!(machine.functions().len() < 2048);
    assert!(notes.iter().any(|note| matches!(note, Assumption::TooManyFunctions)));
    assert!(notes.iter().any(|note| matches!(note, Assumption::NoMemory(_))));
}

/// Real tables, where the folder is given.
#[test]
fn every_real_table_makes_a_machine() {
    let Some(folder) = std::env::var_os("PORTCULLIS_SAMPLES") else {
        return;
    };
    let mut seen = 0;
    for entry in std::fs::read_dir(std::path::Path::new(&folder).join("dmar")).expect("folder") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            let bytes = std::fs::read(&path).expect("readable");
            let (machine, _) = Machine::from_dmar(&bytes, MachineOptions::default())
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(machine.functions().len() > 0, "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen} tables");
}
