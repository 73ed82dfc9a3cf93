//! Take-over, reserved regions, enable.

use iommu_testkit::SparseMemory;
use iommu_types::{Access, AddrRange, HostPhys, Iova, NodeId, Perms};
use vtd_driver::{
    AttachError, DomainOptions, InterruptOptions, PassThrough, Requester, ReservedRegion, Stage, TableMode, Unit,
    UnitError, UnitOptions, UnitQuirks,
};
use vtd_model::{Profile, UnitConfig};
use vtd_spec::register::{GlobalCommand, GlobalStatus, offset};

use crate::machine::{Machine, range, source};

fn silicon() -> UnitConfig {
    UnitConfig::builder().profile(Profile::Silicon).build().expect("valid")
}

fn region(base: u64, len: u64, device: &str, relaxable: bool) -> ReservedRegion {
    ReservedRegion {
        range: AddrRange::from_base_len(HostPhys::new(base), len).expect("a range"),
        requesters: vec![Requester::new(source(device))],
        relaxable,
    }
}

#[test]
fn after_enable_every_device_is_blocked_and_the_fault_names_it() {
    let machine = Machine::new(silicon());
    let unit = machine.translating();
    let nic = source("02:00.1");
    assert!(machine.dma(nic, Iova::new(0x5000), Access::Write).is_err());
    let mut seen = Vec::new();
    let drained = unit.drain_faults(|report| seen.push(report)).expect("answers");
    assert_eq!((drained.records, drained.overflowed, drained.more), (1, false, false));
    assert_eq!(
        (seen[0].record.source(), seen[0].record.address()),
        (nic, Iova::new(0x5000))
    );
    assert_eq!(seen[0].domain, None);
}

#[test]
fn every_global_command_of_the_bring_up_changes_one_bit() {
    let machine = Machine::new(silicon());
    let _unit = machine.translating();
    let mut lasting = 0;
    for (_, value) in machine.take_writes().iter().filter(|(at, _)| *at == offset::GCMD) {
        let command = u32::try_from(*value).expect("32 bits");
        let one_shot = command & GlobalCommand::ONE_SHOT;
        let changed = (command & !GlobalCommand::ONE_SHOT) ^ lasting;
        assert_eq!(
            one_shot.count_ones() + changed.count_ones(),
            1,
            "command {command:#x} after {lasting:#x}"
        );
        lasting = command & !GlobalCommand::ONE_SHOT;
    }
    let status = GlobalStatus::new_with_raw_value(machine.register32(offset::GSTS));
    assert!(status.tes() && status.qies() && status.rtps());
}

#[test]
fn a_unit_left_enabled_is_taken_over_and_forgets_what_its_owner_mapped() {
    let machine = Machine::new(silicon());
    let nic = source("02:00.0");
    {
        let old = machine.translating();
        let domain = old.create_domain(DomainOptions::default()).expect("a domain");
        domain
            .map(Iova::new(0x1000), HostPhys::new(0x9000), 0x1000, Perms::READ_WRITE)
            .expect("mapped");
        old.attach(&Requester::new(nic), &domain).expect("attached");
        old.start_interrupt_remapping(InterruptOptions::default()).expect("on");
        assert_eq!(
            machine.dma(nic, Iova::new(0x1000), Access::Read),
            Ok(HostPhys::new(0x9000))
        );
        // A fault that nobody has read.
        assert!(machine.dma(nic, Iova::new(0x7000), Access::Read).is_err());
    }
    machine.take_writes();
    let unit = machine
        .found()
        .take_over()
        .map_err(|error| error.cause)
        .expect("taken over");
    let status = GlobalStatus::new_with_raw_value(machine.register32(offset::GSTS));
    assert!(!status.tes() && !status.ires() && status.qies());
    let commands: Vec<u64> = machine
        .take_writes()
        .iter()
        .filter(|(at, _)| *at == offset::GCMD)
        .map(|w| w.1)
        .collect();
    // Translation off, remapping off, queue off, then the new owner's queue and root.
    assert_eq!(commands, [0x0600_0000, 0x0400_0000, 0, 0x0400_0000, 0x4400_0000]);
    let unit = unit.enable().map_err(|error| error.cause).expect("enabled");
    assert!(machine.dma(nic, Iova::new(0x1000), Access::Read).is_err());
    let mut faults = Vec::new();
    unit.drain_faults(|report| faults.push(report.record.address()))
        .expect("answers");
    assert_eq!(faults, [Iova::new(0x1000)], "the old owner's fault was cleared");
}

#[test]
fn a_reserved_region_is_reachable_from_enable_on_and_nothing_else_is() {
    let machine = Machine::new(silicon());
    let mut unit = machine.blocked();
    unit.reserve(&region(0x7_8800, 0x1_2345, "00:14.0", false))
        .expect("reserved");
    let _unit = unit.enable().map_err(|error| error.cause).expect("enabled");
    let usb = source("00:14.0");
    // Both ends rounded outwards to pages, the limit included.
    for at in [0x7_8000, 0x7_8800, 0x8_abf8] {
        assert_eq!(machine.dma(usb, Iova::new(at), Access::Write), Ok(HostPhys::new(at)));
    }
    assert!(machine.dma(usb, Iova::new(0x7_7ff8), Access::Write).is_err());
    assert!(machine.dma(usb, Iova::new(0x8_b000), Access::Write).is_err());
    assert!(
        machine
            .dma(source("00:14.1"), Iova::new(0x7_8800), Access::Write)
            .is_err()
    );
}

#[test]
fn a_reserved_region_follows_its_device_into_a_domain_and_back_unless_it_is_relaxable() {
    let machine = Machine::new(silicon());
    let mut unit = machine.blocked();
    unit.reserve(&region(0x7_0000, 0x2000, "00:14.0", false))
        .expect("reserved");
    unit.reserve(&region(0x9_0000, 0x1000, "00:14.0", true))
        .expect("reserved");
    // Overlaps the first by a page: tolerated.
    unit.reserve(&region(0x7_1000, 0x2000, "00:14.0", false))
        .expect("reserved");
    let unit = unit.enable().map_err(|error| error.cause).expect("enabled");
    let usb = Requester::new(source("00:14.0"));
    let reach = |at| machine.dma(usb.rid, Iova::new(at), Access::Write).is_ok();
    assert!(reach(0x7_0000) && reach(0x7_2000) && reach(0x9_0000));

    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    unit.attach(&usb, &domain).expect("attached");
    assert!(reach(0x7_0000) && reach(0x7_2fff - 7) && !reach(0x9_0000));
    assert!(
        domain
            .map(Iova::new(0x7_1000), HostPhys::new(0x5000), 0x1000, Perms::READ)
            .is_err()
    );

    unit.detach(&usb).expect("detached");
    assert!(reach(0x7_0000) && reach(0x7_2000) && reach(0x9_0000));
    // The domain does not keep a window to the region.
    domain
        .map(Iova::new(0x7_1000), HostPhys::new(0x5000), 0x1000, Perms::READ)
        .expect("free again");

    // Attaching is refused where the domain maps something else, and the device stays where it was.
    assert!(matches!(unit.attach(&usb, &domain), Err(AttachError::Reserved { .. })));
    assert!(reach(0x7_0000) && reach(0x9_0000));
}

#[test]
fn a_window_of_all_ones_is_no_unit() {
    let machine = Machine::new(silicon());
    machine.gone.set(true);
    assert!(matches!(
        Unit::found(&machine, &machine, machine.options()),
        Err(UnitError::Absent)
    ));
}

#[test]
fn a_unit_that_acknowledges_nothing_comes_back_from_take_over_with_the_command() {
    let machine = Machine::new(silicon());
    machine.frozen.set(true);
    let error = machine.found().take_over().expect_err("nothing is acknowledged");
    assert!(error.cause.to_string().contains("QIE"), "{}", error.cause);
    // Once it answers again the same unit can be taken over.
    machine.frozen.set(false);
    machine.settle();
    let unit = error.unit.take_over().map_err(|error| error.cause).expect("taken over");
    assert!(unit.health().is_good());
}

#[test]
fn a_unit_without_a_queue_is_driven_by_registers() {
    let config = UnitConfig::builder()
        .profile(Profile::Silicon)
        .queued_invalidation(false)
        .interrupt_remapping(false)
        .extended_interrupts(false)
        .build()
        .expect("valid");
    let machine = Machine::new(config);
    let unit = machine.translating();
    let nic = Requester::new(source("02:00.0"));
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    unit.attach(&nic, &domain).expect("attached");
    domain
        .map(Iova::new(0x1000), HostPhys::new(0x9000), 0x1000, Perms::READ_WRITE)
        .expect("mapped");
    assert_eq!(
        machine.dma(nic.rid, Iova::new(0x1000), Access::Read),
        Ok(HostPhys::new(0x9000))
    );
    let pending = domain.unmap(range(0x1000, 0x1000), ()).expect("unmapped");
    domain.flush(pending).expect("flushed");
    assert!(machine.dma(nic.rid, Iova::new(0x1000), Access::Read).is_err());
}

#[test]
fn pass_through_needs_the_policy_and_reaches_all_memory() {
    let machine = Machine::new(silicon());
    let trusted = Requester::new(source("03:00.0"));
    let unit = machine.translating();
    assert_eq!(unit.attach_pass_through(&trusted), Err(AttachError::PassThroughRefused));

    let machine = Machine::new(silicon());
    let options = UnitOptions {
        pass_through: PassThrough::AllowedForTrustedDevices,
        ..machine.options()
    };
    let unit = Unit::found(&machine, &machine, options).expect("found");
    let unit = unit.take_over().map_err(|error| error.cause).expect("taken over");
    let unit = unit.enable().map_err(|error| error.cause).expect("enabled");
    unit.attach_pass_through(&trusted).expect("attached");
    assert_eq!(
        machine.dma(trusted.rid, Iova::new(0x12_3458), Access::Write),
        Ok(HostPhys::new(0x12_3458))
    );
    unit.detach(&trusted).expect("detached");
    assert!(machine.dma(trusted.rid, Iova::new(0x12_3458), Access::Write).is_err());
}

#[test]
fn a_unit_left_in_the_other_mode_is_taken_over_and_forgets_its_tables() {
    let nic = source("02:00.0");
    for mode in [TableMode::Legacy, TableMode::Scalable] {
        let other = match mode {
            TableMode::Legacy => TableMode::Scalable,
            TableMode::Scalable => TableMode::Legacy,
        };
        let config = UnitConfig::builder()
            .profile(Profile::Silicon)
            .full_scalable_mode()
            .sanitizer(true);
        let mut machine = Machine::new(config.build().expect("valid")).in_mode(other);
        {
            let old = machine.translating();
            let domain = old.create_domain(DomainOptions::default()).expect("a domain");
            domain
                .map(Iova::new(0x1000), HostPhys::new(0x9000), 0x1000, Perms::READ_WRITE)
                .expect("mapped");
            old.attach(&Requester::new(nic), &domain).expect("attached");
            assert!(machine.dma(nic, Iova::new(0x1000), Access::Read).is_ok());
        }
        machine.now_in_mode(mode);
        // A unit that must not be switched off cannot change its mode either.
        let quirks = UnitQuirks {
            keep_translation_on: true,
            ..UnitQuirks::default()
        };
        let options = UnitOptions {
            quirks,
            ..machine.options()
        };
        let unit = Unit::found(&machine, &machine, options).expect("found");
        let locked = unit.take_over().map(drop).map_err(|error| error.cause);
        assert_eq!(locked, Err(UnitError::ModeLocked(other)));
        assert!(
            machine.dma(nic, Iova::new(0x1000), Access::Read).is_ok(),
            "nothing was touched"
        );

        let unit = machine.translating();
        assert!(machine.dma(nic, Iova::new(0x1000), Access::Read).is_err());
        let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
        domain
            .map(Iova::new(0x1000), HostPhys::new(0xa000), 0x1000, Perms::READ_WRITE)
            .expect("mapped");
        unit.attach(&Requester::new(nic), &domain).expect("attached");
        assert_eq!(
            machine.dma(nic, Iova::new(0x1000), Access::Read),
            Ok(HostPhys::new(0xa000))
        );
        assert_eq!(machine.take_findings(), []);
    }
}

#[test]
fn everything_that_the_unit_walks_lies_on_its_node_and_within_its_reach() {
    const GIB: u64 = 1 << 30;
    // Node 1 is in the middle; above it, and above what 36 bits reach, is more memory.
    let memory = SparseMemory::builder()
        .ram_on_node(0, GIB, NodeId(0))
        .ram_on_node(GIB, GIB, NodeId(1))
        .ram_on_node(2 * GIB, GIB, NodeId(0))
        .ram_on_node(1 << 36, GIB, NodeId(1))
        .build();
    let config = UnitConfig::builder()
        .profile(Profile::Silicon)
        .host_address_width(36)
        .full_scalable_mode()
        .build()
        .expect("valid");
    let machine = Machine::with_memory(config, memory).in_mode(TableMode::Scalable);
    let options = UnitOptions {
        node: Some(NodeId(1)),
        ..machine.options()
    };
    let unit = Unit::found(&machine, &machine, options).expect("found");
    let unit = unit.take_over().map_err(|error| error.cause).expect("taken over");
    let unit = unit.enable().map_err(|error| error.cause).expect("enabled");
    unit.start_interrupt_remapping(InterruptOptions::default()).expect("on");
    let nic = Requester::new(source("02:00.0"));
    for stage in [Stage::Second, Stage::First] {
        let domain = unit
            .create_domain(DomainOptions {
                stage,
                ..DomainOptions::default()
            })
            .expect("a domain");
        domain
            .map(Iova::new(0x1000), HostPhys::new(0x9000), 0x1000, Perms::READ_WRITE)
            .expect("mapped");
        unit.attach(&nic, &domain).expect("attached");
        assert!(machine.dma(nic.rid, Iova::new(0x1000), Access::Read).is_ok());
        unit.detach(&nic).expect("detached");
    }
    // Queue, root, contexts, PASID tables, interrupt table, both formats of page tables.
    let frames = machine.memory.live_frames();
    assert!(frames.len() >= 12, "{frames:?}");
    let node = AddrRange::from_base_len(HostPhys::new(GIB), GIB).expect("a range");
    assert!(frames.iter().all(|(at, _)| node.contains(*at)), "{frames:?}");
}
