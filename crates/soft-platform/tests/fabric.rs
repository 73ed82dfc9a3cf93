//! The fabric without a driver: what passes before translation is on, what is blocked after, and what no unit
//! ever sees.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail this way, and its helpers too"
)]

use iommu_devices::{Bus, DmaError, DmaErrorKind};
use iommu_groups::pci::{acs, header};
use iommu_types::{Bdf, FrameRequest, HostPhys, Iova, Registers, SourceId, SystemMemory, TableMemory};
use soft_platform::{
    Machine, MachineDescription, PageRequest, Refusal, Route, Sender, Service, Shortcut, TWO_SOCKET, Uncovered, Zone,
};
use vtd_spec::fault::FaultReason;
use vtd_spec::register::{Capability, FaultRecord, GlobalCommand, RootTableAddress, offset};

fn machine() -> Machine {
    let description = MachineDescription::two_socket().expect("sound");
    Machine::build(&description, &description.to_dmar().expect("fits")).expect("builds")
}

fn bdf(text: &str) -> Bdf {
    text.parse().expect("bdf")
}

fn source(text: &str) -> SourceId {
    text.parse().expect("source")
}

/// Turns translation on with an empty root table: everything is blocked.
fn block_all(machine: &Machine) {
    for unit in machine.units().cloned().collect::<Vec<_>>() {
        let registers = machine.registers(unit.index).expect("unit");
        let frame = machine
            .allocate(FrameRequest::page(unit.node, HostPhys::MAX))
            .expect("memory");
        let root = RootTableAddress::DEFAULT.with_root_table(frame.base());
        registers.write64(offset::RTADDR, root.raw_value());
        registers.write32(offset::GCMD, GlobalCommand::DEFAULT.with_srtp(true).raw_value());
        registers.write32(offset::GCMD, GlobalCommand::DEFAULT.with_te(true).raw_value());
        drop(frame);
    }
}

/// The first fault record of a unit.
fn fault(machine: &Machine, unit: usize) -> FaultRecord {
    let registers = machine.registers(unit).expect("unit");
    let at = Capability::new_with_raw_value(registers.read64(offset::CAP)).fault_record_offset(0);
    FaultRecord::from_words([registers.read64(at), registers.read64(at + 8)])
}

fn enable_acs(machine: &Machine, port: &str) {
    let bdf = bdf(port);
    let at = machine
        .with_function(bdf, |function, _| function.config().acs_at())
        .expect("there")
        .expect("has ACS");
    machine.config_write(bdf, at + acs::CONTROL, &acs::REQUIRED.to_le_bytes());
}

#[test]
fn four_units_stand_where_the_table_says_and_serve_what_it_says() {
    let machine = machine();
    assert_eq!(machine.units().len(), 4);
    assert!(machine.refused_units().is_empty());
    let serves = |text: &str| machine.function(bdf(text)).expect("there").service.unit();
    assert_eq!(serves("03:00.0"), Some(0));
    assert_eq!(serves("00:14.0"), Some(0));
    assert_eq!(serves("06:00.1"), Some(1));
    assert_eq!(serves("00:1d.0"), Some(2));
    assert_eq!(serves("00:1e.0"), Some(3));
    assert_eq!(serves("0c:05.0"), Some(3));
    let nodes: Vec<_> = machine.units().map(|unit| unit.node.expect("RHSA").0).collect();
    assert_eq!(nodes, [0, 1, 1, 0]);
}

#[test]
fn dma_passes_untranslated_until_a_driver_turns_translation_on() {
    let machine = machine();
    let pages = machine
        .memory()
        .allocate_pages(PageRequest::contiguous(8192).zone(Zone::Above4G))
        .expect("memory");
    let at = pages.extents()[0].first();
    let bus = machine.bus(bdf("03:00.0")).expect("there");
    let data: Vec<u8> = (0..5000u32).map(|i| u8::try_from(i % 256).expect("small")).collect();
    bus.dma_write(Iova::new(at.raw() + 100), &data).expect("passes");
    let mut back = vec![0; 5000];
    machine.read(HostPhys::new(at.raw() + 100), &mut back).expect("memory");
    assert_eq!(back, data);

    block_all(&machine);
    let refused = bus.dma_write(Iova::new(at.raw()), &[0; 64]);
    assert_eq!(refused, Err(DmaError::new(Iova::new(at.raw()), DmaErrorKind::Blocked)));
    let record = fault(&machine, 0);
    assert_eq!(record.source(), source("03:00.0"));
    assert_eq!(record.address(), Iova::new(at.raw()));
    assert_eq!(record.reason(), FaultReason::ROOT_NOT_PRESENT);
    assert_eq!(machine.fabric_counters().stopped, 1);
}

#[test]
fn cards_behind_the_conventional_bridge_share_its_requester_id() {
    let machine = machine();
    block_all(&machine);
    for card in ["0c:04.0", "0c:05.0"] {
        let bus = machine.bus(bdf(card)).expect("there");
        assert!(bus.dma_read(Iova::new(0x10_0000), &mut [0; 4]).is_err());
        let record = fault(&machine, 3);
        assert_eq!(record.source(), source("0c:00.0"), "{card}");
    }
    let route = machine.route(bdf("0c:04.0"), Iova::new(0x10_0000));
    assert_eq!(
        route,
        Some(Route::Upstream {
            source: source("0c:00.0")
        })
    );
}

#[test]
fn peers_without_acs_reach_each_other_past_the_unit() {
    let machine = machine();
    block_all(&machine);
    for (from, to, via) in [
        ("06:00.0", "06:00.1", Shortcut::Device),
        ("0c:04.0", "0c:05.0", Shortcut::SharedBus(bdf("0b:00.0"))),
        ("03:00.0", "04:00.0", Shortcut::Switch(bdf("01:00.0"))),
    ] {
        let bar = machine.bar_range(bdf(to), 0).expect("answers");
        // The engine's buffer lies here; the registers before it have side effects.
        let at = Iova::new(bar.first().raw() + iommu_devices::registers::BUFFER + 16);
        let route = machine.route(bdf(from), at).expect("there");
        assert!(
            matches!(route, Route::Peer { function, via: seen, .. } if function == bdf(to) && seen == via),
            "{from}: {route}"
        );
        let bus = machine.bus(bdf(from)).expect("there");
        bus.dma_write(at, b"across").expect("never sees the unit");
        let mut back = [0; 6];
        machine.mmio_read(HostPhys::new(at.raw()), &mut back).expect("answers");
        assert_eq!(&back, b"across");
        bus.dma_read(at, &mut back).expect("never sees the unit");
    }
    assert_eq!(machine.fabric_counters().shortcuts, 6);
    assert_eq!(machine.fabric_counters().stopped, 0);
}

/// The two-socket machine with `edit` done to its text.
fn edited(from: &str, to: &str) -> Machine {
    assert!(TWO_SOCKET.contains(from), "{from}");
    let description = MachineDescription::parse("edited", &TWO_SOCKET.replacen(from, to, 1)).expect("sound");
    Machine::build(&description, &description.to_dmar().expect("fits")).expect("builds")
}

fn route(machine: &Machine, from: &str, to: &str) -> Route {
    let at = machine.bar_range(bdf(to), 0).expect("answers").first();
    machine.route(bdf(from), Iova::new(at.raw())).expect("there")
}

#[test]
fn root_ports_of_one_device_pass_requests_to_each_other_unless_acs_redirects() {
    let machine = machine();
    let route = |from, to| route(&machine, from, to);
    let across =
        |route, to: &str| matches!(route, Route::Peer { function, via: Shortcut::Device, .. } if function == bdf(to));
    assert!(across(route("03:00.0", "06:00.0"), "06:00.0"));
    assert!(across(route("06:00.1", "03:00.0"), "03:00.0"));
    // Another device on the root bus is behind the unit.
    assert!(matches!(route("03:00.0", "0c:04.0"), Route::Upstream { .. }));
    enable_acs(&machine, "00:14.0");
    assert!(matches!(route("03:00.0", "06:00.0"), Route::Upstream { .. }));
    assert!(
        across(route("06:00.1", "03:00.0"), "03:00.0"),
        "the other port still passes them"
    );
}

#[test]
fn registers_of_a_port_are_reached_from_below_unless_acs_redirects() {
    let port = "name = \"PCI bridge\"";
    let machine = edited(port, &format!("{port}\nregisters = true"));
    assert!(
        matches!(route(&machine, "0c:04.0", "0b:00.0"), Route::Peer { function, .. } if function == bdf("0b:00.0"))
    );
    let port = "name = \"root port C\"";
    let machine = edited(port, &format!("{port}\nregisters = true"));
    let own = Shortcut::Port(bdf("00:1c.0"));
    assert!(matches!(route(&machine, "0c:04.0", "00:1c.0"), Route::Peer { via, .. } if via == own));
    enable_acs(&machine, "00:1c.0");
    assert!(matches!(route(&machine, "0c:04.0", "00:1c.0"), Route::Upstream { .. }));
}

#[test]
fn only_bridges_and_ports_are_given_registers_by_name() {
    let function = "name = \"sound card\"";
    let text = TWO_SOCKET.replacen(function, &format!("{function}\nregisters = true"), 1);
    let error = MachineDescription::parse("edited", &text).expect_err("has them anyway");
    assert!(error.problem.contains("remove it"), "{error}");
}

#[test]
fn a_device_that_is_known_to_isolate_does_so_without_acs() {
    let machine = machine();
    assert!(matches!(route(&machine, "06:00.0", "06:00.1"), Route::Peer { .. }));
    let mut description = MachineDescription::two_socket().expect("sound");
    for function in &mut description.functions {
        if function.bdf.bus() == 6 {
            (function.vendor, function.device) = (0x8086, 0x1521);
        }
    }
    let machine = Machine::build(&description, &description.to_dmar().expect("fits")).expect("builds");
    enable_acs(&machine, "00:14.1");
    assert!(matches!(route(&machine, "06:00.0", "06:00.1"), Route::Upstream { .. }));
}

#[test]
fn acs_sends_peer_requests_to_the_unit() {
    let machine = machine();
    block_all(&machine);
    for port in ["02:00.0", "02:01.0", "00:14.0"] {
        enable_acs(&machine, port);
    }
    let target = machine.bar_range(bdf("04:00.0"), 0).expect("answers").first();
    let bus = machine.bus(bdf("03:00.0")).expect("there");
    let refused = bus.dma_write(Iova::new(target.raw()), &[0; 4]);
    assert_eq!(refused.map_err(|e| e.kind), Err(DmaErrorKind::Blocked));
    assert_eq!(fault(&machine, 0).address(), Iova::new(target.raw()).page());
    // Nor is a peer below the other root port of the device, now that the port redirects.
    let far = machine.bar_range(bdf("06:00.0"), 0).expect("answers").first();
    let route = machine.route(bdf("03:00.0"), Iova::new(far.raw()));
    assert_eq!(
        route,
        Some(Route::Upstream {
            source: source("03:00.0")
        })
    );
}

#[test]
fn a_forged_requester_id_stops_at_a_port_that_validates_sources() {
    let machine = machine();
    let forger = machine.bus(bdf("03:00.0")).expect("there").forging(source("06:00.0"));
    assert_eq!(
        forger.dma_read(Iova::new(0x1000), &mut [0; 4]),
        Ok(()),
        "ACS is off after boot"
    );
    enable_acs(&machine, "02:00.0");
    let refused = forger.dma_read(Iova::new(0x1000), &mut [0; 4]);
    assert_eq!(refused.map_err(|e| e.kind), Err(DmaErrorKind::Refused));
    assert_eq!(
        Refusal::SourceValidation.to_string().split(':').next(),
        Some("ACS source validation")
    );
}

#[test]
fn messages_arrive_as_interrupts_and_faults_of_units_too() {
    let machine = machine();
    let bus = machine.bus(bdf("00:1d.0")).expect("there");
    bus.dma_write(Iova::new(0xfee0_3000), &0x45u32.to_le_bytes())
        .expect("compatibility format");
    let arrivals = machine.take_interrupts();
    assert_eq!(arrivals.len(), 1);
    assert_eq!(arrivals[0].vector, 0x45);
    assert_eq!(arrivals[0].destination, 3);
    assert_eq!(arrivals[0].sender, Sender::Function(source("00:1d.0")));
    assert_eq!(arrivals[0].entry, None);

    block_all(&machine);
    let registers = machine.registers(2).expect("unit");
    registers.write32(offset::FEDATA, 0x61);
    registers.write32(offset::FEADDR, 0xfee0_0000);
    registers.write32(offset::FECTL, 0);
    assert!(bus.dma_write(Iova::new(0x2000), &[1]).is_err());
    let arrivals = machine.take_interrupts();
    assert_eq!(arrivals.len(), 1, "{arrivals:?}");
    assert_eq!((arrivals[0].sender, arrivals[0].vector), (Sender::Unit(2), 0x61));
    // Not one DWORD: no interrupt, and blocked once translation is on (VT-d §3.15).
    assert!(bus.dma_write(Iova::new(0xfee0_3000), &[0; 8]).is_err());
}

#[test]
fn a_function_that_writes_to_itself_or_to_nothing_is_refused() {
    let machine = machine();
    let own = machine.bar_range(bdf("00:1d.0"), 0).expect("answers").first();
    let bus = machine.bus(bdf("00:1d.0")).expect("there");
    let kind = |result: Result<(), DmaError>| result.map_err(|e| e.kind);
    assert_eq!(
        kind(bus.dma_write(Iova::new(own.raw()), &[0; 4])),
        Err(DmaErrorKind::Refused)
    );
    assert_eq!(
        kind(bus.dma_write(Iova::new(0xfed9_0000), &[0; 4])),
        Err(DmaErrorKind::Unclaimed)
    );
    assert_eq!(
        kind(bus.dma_read(Iova::new(1 << 45), &mut [0; 4])),
        Err(DmaErrorKind::Unclaimed)
    );
    assert_eq!(
        kind(bus.dma_read(Iova::new(u64::MAX), &mut [0; 1])),
        Err(DmaErrorKind::Unclaimed)
    );
}

#[test]
fn bars_follow_the_command_register_and_reset() {
    let machine = machine();
    let nic = bdf("06:00.0");
    let bar = machine.bar_range(nic, 0).expect("answers").first();
    machine.set_command(nic, header::COMMAND_MEMORY, false);
    assert_eq!(machine.bar_range(nic, 0), None);
    assert!(machine.mmio_read(bar, &mut [0; 4]).is_err());
    machine.set_command(nic, header::COMMAND_MEMORY, true);
    let mut id = [0; 4];
    machine.mmio_read(bar, &mut id).expect("answers");
    assert_eq!(u32::from_le_bytes(id), iommu_devices::registers::ID_VALUE);
    // A reset of the bus above takes addresses and bus mastering away.
    machine.config_write(bdf("00:14.1"), 0x3e, &0x40u16.to_le_bytes());
    assert_eq!(machine.bar_range(nic, 0), None);
    assert_eq!(machine.config_read32(bdf("07:00.0"), 0), 0xffff_ffff);
}

#[test]
fn functions_that_no_unit_covers_pass_or_are_blocked_as_the_platform_chooses() {
    let text = TWO_SOCKET.replacen("include-pci-all = true\n", "", 1);
    let description = MachineDescription::parse("m.toml", &text).expect("sound");
    let dmar = description.to_dmar().expect("fits");
    let options = |uncovered| soft_platform::MachineOptions {
        uncovered,
        ..Default::default()
    };
    let open = Machine::build_with(&description, &dmar, options(Uncovered::Passes)).expect("builds");
    let shut = Machine::build_with(&description, &dmar, options(Uncovered::Blocked)).expect("builds");
    let sd = bdf("00:1e.0");
    assert_eq!(open.function(sd).expect("there").service, Service::Uncovered);
    assert_eq!(open.bus(sd).expect("there").dma_read(Iova::new(0), &mut [0; 4]), Ok(()));
    assert!(
        shut.bus(sd)
            .expect("there")
            .dma_read(Iova::new(0), &mut [0; 4])
            .is_err()
    );
    let blocks = shut.take_platform_blocks();
    assert_eq!(blocks.len(), 1);
    assert_eq!(blocks[0].function, sd);
}

#[test]
fn two_functions_that_write_to_each_other_do_not_hang() {
    let machine = machine();
    let (a, b) = (bdf("06:00.0"), bdf("06:00.1"));
    let buffer = |at: Bdf| {
        let bar = machine.bar_range(at, 0).expect("answers");
        Iova::new(bar.first().raw() + iommu_devices::registers::BUFFER)
    };
    let (to_a, to_b) = (buffer(a), buffer(b));
    std::thread::scope(|scope| {
        for (from, to) in [(a, to_b), (b, to_a)] {
            let machine = machine.clone();
            scope.spawn(move || {
                machine.set_command(from, header::COMMAND_BUS_MASTER, true);
                for _ in 0..50 {
                    // Refused while the other is busy with a request of its own: both answers are sound.
                    let _ = machine.with_engine(from, |engine, bus| engine.store(bus, to, 0, 4096));
                }
            });
        }
    });
}
