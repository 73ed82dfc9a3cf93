use acpi_dmar::{OwnedDmar, OwnedDrhd, OwnedScope};
use iommu_groups::group;
use iommu_types::Segment;

use super::*;
use crate::item::overall;

const LISTING: &str = "\
00:01.0 0604: 1234:0001\n\tStatus: Cap+ 66MHz-\n\tBus: primary=00, secondary=01, subordinate=01, sec\n\tIOMMU group: 0\n\
\tCapabilities: [40] Express (v2) Root Port (Slot+), MSI 00\n\tKernel driver in use: pcieport\n\n\
01:00.0 0200: 1234:0010\n\tStatus: Cap+ 66MHz-\n\tIOMMU group: 0\n\tCapabilities: [40] Express (v2) Endpoint, MSI 00\n\
\t\t\tExtTag- FLReset+\n\tKernel driver in use: vfio-pci\n\n\
01:00.1 0403: 1234:0011\n\tStatus: Cap+ 66MHz-\n\tIOMMU group: 0\n\tCapabilities: [40] Express (v2) Endpoint, MSI 00\n\
\t\t\tExtTag- FLReset-\n\tKernel driver in use: snd\n\n\
DMAR: dmar0: reg_base_addr fed90000 ver 1:0 cap d2008c40660462 ecap f050da\n\
DMAR-IR: Enabled IRQ remapping in x2apic mode\n";

fn ask(change: impl FnOnce(&mut Machine), chosen: &[&str], plan: Plan) -> Vec<Item> {
    let mut machine = Machine::from_listing(LISTING.as_bytes());
    machine.dmar = Knowledge::Absent;
    machine.vital_disks = Knowledge::Known(vec!["sda".to_owned()]);
    machine.vital_interfaces = Knowledge::Known(vec!["eth0".to_owned()]);
    change(&mut machine);
    let topology = machine.topology();
    let groups = group(&topology, machine.linux_rules());
    let chosen: Vec<Bdf> = chosen.iter().map(|text| text.parse().expect("valid")).collect();
    check(&machine, &topology, &groups, &chosen, plan)
}

fn answer(items: &[Item], id: &str) -> Answer {
    items.iter().find(|item| item.id == id).expect("asked").answer
}

#[test]
fn a_sibling_on_a_host_driver_makes_the_group_not_viable() {
    let items = ask(|_| {}, &["01:00.0"], Plan::default());
    assert_eq!(answer(&items, "viable"), Answer::No);
    assert_eq!(overall(&items), Answer::No);
    assert!(items.iter().any(|item| item.detail.contains("0000:01:00.1 (snd)")));
    // Both together leave only the bridge, which stays.
    let items = ask(|_| {}, &["01:00.0", "01:00.1"], Plan::default());
    assert_eq!((answer(&items, "viable"), overall(&items)), (Answer::Yes, Answer::Yes));
}

#[test]
fn ways_to_reset_have_the_kernels_names() {
    let detail = |chosen: &[&str]| {
        let items = ask(|_| {}, chosen, Plan::default());
        let item = items.iter().find(|item| item.id == "reset").expect("asked");
        (item.answer, item.detail.clone())
    };
    assert_eq!(detail(&["01:00.0"]), (Answer::Yes, "0000:01:00.0 flr".to_owned()));
    let (answer, words) = detail(&["01:00.1"]);
    assert_eq!(answer, Answer::No);
    assert!(words.contains("hits 0000:01:00.0 too"), "{words}");
}

#[test]
fn the_width_is_that_of_the_unit_that_serves_the_function() {
    // The unit of graphics reaches 39 bits, the other 48.
    let table = OwnedDmar::new(48)
        .with(
            OwnedDrhd::new(Segment(0), HostPhys::new(0xfed9_0000))
                .scope(OwnedScope::endpoint("00:02.0".parse().expect("valid"))),
        )
        .with(OwnedDrhd::new(Segment(0), HostPhys::new(0xfed9_1000)).include_pci_all());
    let units = |machine: &mut Machine| {
        let log = "DMAR: dmar0: reg_base_addr fed90000 ver 1:0 cap 1c0000c40660462 ecap 7e3ff0505e\n\
            DMAR: dmar1: reg_base_addr fed91000 ver 1:0 cap 8d2078c106f0466 ecap f020de\n";
        machine.units = Machine::from_listing(log.as_bytes()).units;
        assert_eq!(machine.units.known().map(Vec::len), Some(2));
    };
    let big = Plan {
        memory: Some(1 << 40),
        lockable: None,
    };
    let bytes = table.build().expect("fits");
    let served = |machine: &mut Machine| {
        units(machine);
        machine.dmar = Knowledge::Known(bytes.clone());
    };
    assert_eq!(answer(&ask(served, &["01:00.0"], big), "width"), Answer::Yes);
    // Where the table is not known, the narrowest unit counts.
    assert_eq!(answer(&ask(units, &["01:00.0"], big), "width"), Answer::No);
    let none = ask(
        |machine| machine.units = Knowledge::Known(Vec::new()),
        &["01:00.0"],
        big,
    );
    assert!(
        none.iter().all(|item| item.id != "width"),
        "that there is no unit is said already"
    );
}

#[test]
fn vital_devices_of_the_whole_group_are_refused() {
    let both = ["01:00.0", "01:00.1"];
    let items = ask(
        |machine| {
            for f in machine.functions.values_mut().filter(|f| f.bdf.devfn().function() == 1) {
                f.disks.push("sda".to_owned());
                f.interfaces.push("eth1".to_owned());
            }
        },
        &both,
        Plan::default(),
    );
    assert_eq!(
        (answer(&items, "vital-disk"), answer(&items, "vital-network")),
        (Answer::No, Answer::Yes)
    );
    let items = ask(
        |machine| machine.vital_disks = Knowledge::Unknown(crate::Obstacle::NotIncluded("x".into())),
        &both,
        Plan::default(),
    );
    assert_eq!(overall(&items), Answer::Unknown);
}

#[test]
fn bridges_widths_and_limits_are_judged() {
    let items = ask(|_| {}, &["00:01.0"], Plan::default());
    assert_eq!(answer(&items, "endpoints"), Answer::No);
    let plan = Plan {
        memory: Some(1 << 40),
        lockable: Some(8 << 20),
    };
    let items = ask(|_| {}, &["01:00.0", "01:00.1"], plan);
    assert_eq!(
        (answer(&items, "width"), answer(&items, "memlock")),
        (Answer::No, Answer::No)
    );
    // Function 1 says that it has no function level reset, and a bus reset hits both.
    assert_eq!(answer(&items, "reset"), Answer::No);
}

#[test]
fn the_only_display_is_not_given_away_without_a_word() {
    let display = |machine: &mut Machine| {
        for f in machine
            .functions
            .values_mut()
            .filter(|f| f.bdf.devfn().function() == 0 && f.bdf.bus() == 1)
        {
            f.config.put(pci::header::REVISION, &[0, 0, 0, 3]);
        }
    };
    let both = ["01:00.0", "01:00.1"];
    let items = ask(display, &both, Plan::default());
    assert_eq!(
        (answer(&items, "vital-display"), overall(&items)),
        (Answer::No, Answer::No)
    );
    // A host without a console has none to lose.
    let items = ask(
        |machine| {
            display(machine);
            for f in machine.functions.values_mut() {
                f.boot_display = Knowledge::Known(false);
            }
        },
        &both,
        Plan::default(),
    );
    assert_eq!(
        (answer(&items, "vital-display"), overall(&items)),
        (Answer::No, Answer::Yes)
    );
    // With another one beside it the host keeps that.
    let items = ask(
        |machine| {
            display(machine);
            let mut other = machine.functions.values().nth(1).expect("there").clone();
            other.bdf = "00:02.0".parse().expect("valid");
            other.group = Knowledge::Known(7);
            machine.functions.insert(other.bdf, other);
        },
        &both,
        Plan::default(),
    );
    assert_eq!(answer(&items, "vital-display"), Answer::Yes);
}

#[test]
fn an_override_of_isolation_taints_the_answer() {
    let items = ask(
        |machine| machine.boot_parameters = Knowledge::Known("ro pcie_acs_override=downstream".to_owned()),
        &["01:00.0", "01:00.1"],
        Plan::default(),
    );
    assert_eq!(
        (answer(&items, "acs-override"), overall(&items)),
        (Answer::No, Answer::No)
    );
}

#[test]
fn what_a_bus_reset_would_hit_is_named() {
    let items = ask(|_| {}, &["01:00.1"], Plan::default());
    let reset = items.iter().find(|item| item.id == "reset").expect("asked");
    assert_eq!(reset.answer, Answer::No);
    assert!(
        reset.detail.contains("a reset of its bus hits 0000:01:00.0 too"),
        "{}",
        reset.detail
    );
}
