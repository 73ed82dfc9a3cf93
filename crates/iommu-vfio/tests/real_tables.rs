//! Machines made for real firmware tables: every unit comes up, nobody is open, every device that a unit serves
//! can be assigned and sees its own memory only.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail this way, and its helpers too"
)]

use acpi_dmar::{OwnedDmar, OwnedDrhd, OwnedRmrr, OwnedScope};
use iommu_types::{AddrRange, DevFn, HostPhys, Iova, Perms, Segment};
use iommu_vfio::{Container, Driver, Platform, PlatformOptions, RegionOutcome};
use soft_platform::{Machine, MachineOptions, PageRequest, Service, Zone};

/// Assigns each function with an engine in turn; tells how many there were.
fn rehearse(name: &str, dmar: &[u8]) -> usize {
    let (machine, _) = Machine::from_dmar(dmar, MachineOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let options = PlatformOptions {
        // Some firmware does not allow interrupt remapping; that is not what is tried here.
        unsafe_interrupts: true,
        ..PlatformOptions::default()
    };
    let platform = Platform::bring_up(machine, options).unwrap_or_else(|e| panic!("{name}: {e}"));
    for step in &platform.report().units {
        assert_eq!(step.outcome, Ok(()), "{name}: {step}");
    }
    let user = platform.user("guest");
    let memory = platform
        .allocate(user, PageRequest::contiguous(0x2000).zone(Zone::Below4G))
        .expect("memory");
    let host = platform
        .machine()
        .memory()
        .allocate_pages(PageRequest::contiguous(0x1000).zone(Zone::Below4G))
        .expect("memory");
    let functions: Vec<_> = platform
        .machine()
        .functions()
        .filter(|info| info.engine)
        .cloned()
        .collect();
    for info in &functions {
        let at = info.bdf;
        let group = platform
            .group_of(at)
            .unwrap_or_else(|| panic!("{name}: {at} has no group"));
        for member in &group.members {
            platform.bind(*member, Driver::Vfio).expect("free");
        }
        let opened = platform.open_group(group.id).expect("closed");
        let store = |to: Iova| {
            platform
                .machine()
                .with_engine(at, |engine, bus| engine.store(bus, to, 0, 64).is_ok())
                .expect("engine")
        };
        platform.machine().set_command(at, 4, true);
        match (info.service, opened.viable()) {
            (Service::Unit(..), Ok(group)) => {
                let mut container = Container::new(&platform, user);
                container.attach(group).expect("free");
                let container = container.set_iommu().unwrap_or_else(|e| panic!("{name}: {at}: {e}"));
                let valid = container.iova_ranges();
                let iova = Iova::new(valid.last().expect("some").first().raw().max(0x10_0000));
                container
                    .dma_map(iova, &memory, 0, 0x2000, Perms::READ_WRITE)
                    .unwrap_or_else(|e| panic!("{name}: {at}: {e}"));
                let device = container.open_device(at).expect("opens");
                device.set_bus_master(true);
                assert!(store(iova), "{name}: {at} reaches its memory");
                assert!(
                    !store(Iova::new(host.extents()[0].first().raw())),
                    "{name}: {at} reaches the host's"
                );
                let faults = platform.drain_faults().faults;
                assert!(
                    faults.iter().any(|fault| fault.functions.contains(&at)),
                    "{name}: {at}: {faults:?}"
                );
            }
            (Service::Unit(..), Err(refused)) => {
                // Somebody else of the group is not contained.
                assert!(group.members.len() > 1, "{name}: {at}: {refused}");
            }
            (Service::Uncovered | Service::Blocked(_), viable) => {
                assert!(viable.is_err(), "{name}: {at} is contained by nobody");
            }
        }
    }
    functions.len()
}

#[test]
fn a_client_with_graphics_and_the_rest() {
    let segment = Segment(0);
    let source = |text: &str| text.parse().expect("source");
    let region = |base, len| AddrRange::from_base_len(HostPhys::new(base), len).expect("range");
    let table = OwnedDmar::new(39)
        .with(OwnedDrhd::new(segment, HostPhys::new(0xfed9_0000)).scope(OwnedScope::endpoint(source("00:02.0"))))
        .with(OwnedDrhd::new(segment, HostPhys::new(0xfed9_1000)).include_pci_all())
        .with(OwnedRmrr::new(segment, region(0x9d00_0000, 0x80_0000)).scope(OwnedScope::endpoint(source("00:02.0"))))
        .with(
            OwnedRmrr::new(segment, region(0x7c00_0000, 0x1000))
                .scope(OwnedScope::endpoint(source("00:1c.0")).hop(DevFn::new(0, 0).expect("devfn"))),
        );
    let bytes = table.build().expect("fits");
    assert_eq!(
        rehearse("client", &bytes),
        3,
        "graphics, a device behind a port, a synthetic one"
    );
}

#[test]
fn an_impossible_reserved_region_is_refused_and_the_rest_comes_up() {
    let segment = Segment(0);
    let nic = "00:19.0".parse().expect("source");
    let mut table = OwnedDmar::new(39).with(OwnedDrhd::new(segment, HostPhys::new(0xfed9_0000)).include_pci_all());
    for (base, limit) in [
        (0u64, 0u64),
        (0x2000, 0x1fff),
        (0, u64::MAX),
        (0xfee0_0000, 0xfee0_ffff),
    ] {
        let range = AddrRange::new(HostPhys::new(0), HostPhys::new(0xfff)).expect("range");
        let mut rmrr = OwnedRmrr::new(segment, range).scope(OwnedScope::endpoint(nic));
        rmrr.base = HostPhys::new(base);
        rmrr.limit = HostPhys::new(limit);
        table = table.with(rmrr);
    }
    let bytes = table.build().expect("fits");
    let (machine, _) = Machine::from_dmar(&bytes, MachineOptions::default()).expect("a table");
    let platform = Platform::bring_up(machine, PlatformOptions::default()).expect("has a table");
    assert_eq!(platform.report().units[0].outcome, Ok(()));
    let refused = platform
        .report()
        .regions
        .iter()
        .filter(|step| matches!(step.outcome, RegionOutcome::Refused(_)))
        .count();
    assert!(refused >= 3, "{:#?}", platform.report().regions);
}

/// Real tables, where the folder is given.
#[test]
fn every_real_table_is_rehearsed() {
    let Some(folder) = std::env::var_os("PORTCULLIS_SAMPLES") else {
        return;
    };
    let mut seen = 0;
    for entry in std::fs::read_dir(std::path::Path::new(&folder).join("dmar")).expect("folder") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            let bytes = std::fs::read(&path).expect("readable");
            rehearse(&path.display().to_string(), &bytes);
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen} tables");
}
