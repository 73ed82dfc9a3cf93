//! The host: units in service, groups, what is blocked before anything is assigned.

use iommu_types::{HostPhys, Iova, Perms, SystemMemory};
use iommu_vfio::{FaultedAccess, RegionOutcome};
use soft_platform::MachineOptions;

use crate::{
    ACCELERATOR, GPU, MIB, NIC0, NIC1, NVME, SD, SERIAL, SOUND, USB, bdf, container, guest, platform, platform_with,
    store, the_fault,
};

#[test]
fn every_unit_comes_up_with_its_tables_where_its_rhsa_says() {
    let platform = platform();
    let report = platform.report();
    assert_eq!(report.units.len(), 4);
    for step in &report.units {
        assert_eq!(step.outcome, Ok(()), "{step}");
        assert_eq!(step.interrupts, Ok(()), "{step}");
        assert_eq!(step.structures, step.node, "{step}");
    }
    assert_eq!(report.regions.len(), 1);
    assert_eq!(report.regions[0].outcome, RegionOutcome::Mapped);
    assert_eq!(report.regions[0].functions, [bdf(USB)]);
    assert!(report.regions[0].relaxable);
    assert!(report.acs.iter().all(|step| step.lacks == 0));
}

#[test]
fn groups_are_those_that_the_topology_implies() {
    let platform = platform();
    let members = |text: &str| platform.group_of(bdf(text)).expect("there").members;
    assert_eq!(members(NVME), [bdf(NVME)]);
    assert_eq!(members(GPU), [bdf(GPU)]);
    assert_eq!(members(NIC0), [bdf(NIC0), bdf(NIC1)]);
    assert!(members(SOUND).contains(&bdf(SERIAL)));
    assert_eq!(members(ACCELERATOR), [bdf(ACCELERATOR)]);
    let nic = platform.group_of(bdf(NIC0)).expect("there");
    assert!(!nic.reasons.is_empty());
    for hop in nic.reasons {
        assert!(!hop.to_string().is_empty());
    }
}

#[test]
fn what_nobody_was_given_is_blocked_and_logged() {
    let platform = platform();
    for function in [NVME, GPU, NIC0, NIC1, ACCELERATOR, SD, SOUND, SERIAL] {
        platform.machine().set_command(bdf(function), 4, true);
        assert!(
            !store(&platform, function, Iova::new(0x10_0000), &[1; 64]),
            "{function}"
        );
        let fault = the_fault(&platform);
        assert!(fault.functions.contains(&bdf(function)), "{fault}");
        assert!(
            matches!(fault.access, FaultedAccess::Memory(_, page) if page == Iova::new(0x10_0000)),
            "{fault}"
        );
        assert_eq!(fault.owner, None);
    }
}

#[test]
fn a_reserved_region_is_reached_by_its_device_and_by_no_other() {
    let platform = platform();
    let region = platform.report().regions[0].range.expect("range");
    let at = Iova::new(region.first().raw() + 0x100);
    for function in [USB, SD, NVME] {
        platform.machine().set_command(bdf(function), 4, true);
    }
    assert!(store(&platform, USB, at, b"keyboard"));
    let mut seen = [0; 8];
    platform
        .machine()
        .read(HostPhys::new(at.raw()), &mut seen)
        .expect("memory");
    assert_eq!(&seen, b"keyboard");
    assert!(!store(&platform, USB, Iova::new(region.last().raw() + 1), &[1]));
    for other in [SD, NVME] {
        assert!(!store(&platform, other, at, &[1]), "{other}");
    }
    assert_eq!(platform.drain_faults().faults.len(), 3);
    // Relaxable: it ends when a user gets the device, and comes back afterwards.
    let user = platform.user("guest");
    let owned = container(&platform, user, USB);
    assert!(!store(&platform, USB, at, &[1]));
    drop(owned);
    assert!(store(&platform, USB, at, &[1]));
}

#[test]
fn units_that_take_their_time_and_keep_what_they_may_serve_as_well() {
    let platform = platform_with(MachineOptions {
        profile: soft_platform::Profile::Silicon,
        ..MachineOptions::default()
    });
    let user = platform.user("guest");
    for function in [NVME, NIC0, SERIAL] {
        let owned = container(&platform, user, function);
        let guest = guest(&platform, user, MIB);
        owned.map_guest(&guest, Perms::READ_WRITE).expect("maps");
        let device = owned.open_device(bdf(function)).expect("opens");
        device.set_bus_master(true);
        assert!(store(&platform, function, Iova::new(0x8_0000), &[3; 4096]));
        assert_eq!(owned.dma_unmap_all().expect("confirmed"), MIB);
        assert!(
            !store(&platform, function, Iova::new(0x8_0000), &[4; 4096]),
            "{function}"
        );
        owned
            .dma_map(Iova::new(0x8_0000), guest.memory(), 0, 0x1000, Perms::READ_WRITE)
            .expect("maps");
        assert!(
            store(&platform, function, Iova::new(0x8_0000), &[5; 4096]),
            "{function}"
        );
        let mut seen = [0; 1];
        guest.memory().read(0, &mut seen).expect("inside");
        assert_eq!(seen, [5]);
    }
}
