use iommu_groups::group;

use super::*;

/// The worked example of Red Hat's guide: two root ports without ACS as functions of one device, a card below each.
const LISTING: &str = "\
00:1c.0 0604: 1234:0001\n\tStatus: Cap+ 66MHz-\n\tBus: primary=00, secondary=04, subordinate=04, sec\n\tIOMMU group: 9\n\
\tCapabilities: [40] Express (v2) Root Port (Slot+), MSI 00\n\tKernel driver in use: pcieport\n\n\
00:1c.4 0604: 1234:0002\n\tStatus: Cap+ 66MHz-\n\tBus: primary=00, secondary=05, subordinate=05, sec\n\tIOMMU group: 9\n\
\tCapabilities: [40] Express (v2) Root Port (Slot+), MSI 00\n\tKernel driver in use: pcieport\n\n\
04:00.0 0200: 1234:0010\n\tStatus: Cap+ 66MHz-\n\tIOMMU group: 9\n\tCapabilities: [40] Express (v2) Endpoint, MSI 00\n\
\t\t\tExtTag- FLReset+\n\tKernel driver in use: igb\n\n\
05:00.0 0107: 1234:0011\n\tStatus: Cap+ 66MHz-\n\tIOMMU group: 9\n\tCapabilities: [40] Express (v2) Endpoint, MSI 00\n\
\t\t\tExtTag- FLReset+\n\tKernel driver in use: mpt3sas\n\n\
06:00.0 0200: 1234:0012\n\tStatus: Cap+ 66MHz-\n\tIOMMU group: 10\n\tCapabilities: [40] Express (v2) Endpoint, MSI 00\n\
\t\t\tExtTag- FLReset+\n\n";

fn ask(change: impl FnOnce(&mut Machine), chosen: &[&str]) -> Result<Assignment, PlanError> {
    let mut machine = Machine::from_listing(LISTING.as_bytes());
    machine.dmar = Knowledge::Absent;
    machine.vital_disks = Knowledge::Known(vec!["sda".to_owned()]);
    machine.vital_interfaces = Knowledge::Known(vec!["eth0".to_owned()]);
    change(&mut machine);
    let topology = machine.topology();
    let groups = group(&topology, machine.linux_rules());
    let chosen: Vec<Bdf> = chosen.iter().map(|text| bdf(text)).collect();
    plan(&machine, &topology, &groups, &chosen, Plan::default())
}

fn bdf(text: &str) -> Bdf {
    text.parse().expect("valid")
}

fn set_driver(machine: &mut Machine, at: &str, driver: Knowledge<String>) {
    machine.functions.get_mut(&bdf(at)).expect("there").driver = driver;
}

fn commands(steps: &[Step]) -> Vec<&str> {
    steps.iter().map(|step| step.command.as_str()).collect()
}

fn answer(plan: &Assignment, id: &str) -> Answer {
    plan.items.iter().find(|item| item.id == id).expect("asked").answer
}

#[test]
fn the_whole_group_moves_and_its_ports_stay() {
    let plan = ask(|_| {}, &["04:00.0"]).expect("planned");
    assert_eq!(plan.groups.len(), 1);
    assert_eq!(plan.groups[0].number, Some(9));
    assert_eq!(plan.groups[0].bridges, [bdf("00:1c.0"), bdf("00:1c.4")]);
    let roles: Vec<(Bdf, Role)> = plan.functions.iter().map(|f| (f.bdf, f.role)).collect();
    assert_eq!(
        roles,
        [(bdf("04:00.0"), Role::Chosen), (bdf("05:00.0"), Role::Companion)]
    );
    assert_eq!(
        commands(&plan.driverctl.prepare),
        [
            "driverctl set-override 0000:04:00.0 vfio-pci",
            "driverctl set-override 0000:05:00.0 vfio-pci"
        ]
    );
    assert_eq!(
        commands(&plan.driverctl.undo),
        [
            "driverctl unset-override 0000:04:00.0",
            "driverctl unset-override 0000:05:00.0"
        ]
    );
    // libvirt moves the chosen one by itself.
    assert_eq!(commands(&plan.virsh.prepare), ["virsh nodedev-detach pci_0000_05_00_0"]);
    assert_eq!(commands(&plan.virsh.undo), ["virsh nodedev-reattach pci_0000_05_00_0"]);
    let companions = plan.items.iter().find(|item| item.id == "companions").expect("asked");
    assert_eq!(companions.answer, Answer::No);
    assert_eq!(companions.detail, "0000:05:00.0 (mpt3sas)");
    assert!(plan.items.iter().all(|item| item.id != check::VIABLE));
}

#[test]
fn sysfs_commands_come_in_an_order_that_works_and_undo_restores_the_driver() {
    let plan = ask(|_| {}, &["04:00.0", "05:00.0"]).expect("planned");
    assert_eq!(
        commands(&plan.sysfs.prepare),
        [
            "modprobe vfio-pci",
            "echo vfio-pci > /sys/bus/pci/devices/0000:04:00.0/driver_override",
            "echo 0000:04:00.0 > /sys/bus/pci/devices/0000:04:00.0/driver/unbind",
            "echo 0000:04:00.0 > /sys/bus/pci/drivers_probe",
            "echo vfio-pci > /sys/bus/pci/devices/0000:05:00.0/driver_override",
            "echo 0000:05:00.0 > /sys/bus/pci/devices/0000:05:00.0/driver/unbind",
            "echo 0000:05:00.0 > /sys/bus/pci/drivers_probe",
        ]
    );
    assert_eq!(
        commands(&plan.sysfs.undo)[..3],
        [
            "echo 0000:04:00.0 > /sys/bus/pci/devices/0000:04:00.0/driver/unbind",
            "echo > /sys/bus/pci/devices/0000:04:00.0/driver_override",
            "echo 0000:04:00.0 > /sys/bus/pci/drivers/igb/bind",
        ]
    );
    assert_eq!(answer(&plan, "companions"), Answer::Yes);
    assert!(plan.virsh.prepare.is_empty());
}

#[test]
fn who_has_a_function_decides_what_it_needs() {
    let loaded = |machine: &mut Machine| {
        machine.module_parameters = Knowledge::Known([("vfio_pci.disable_idle_d3".to_owned(), "N".to_owned())].into());
    };
    // Without a driver there is nothing to take it from, and nothing to give it back to.
    let plan = ask(loaded, &["06:00.0"]).expect("planned");
    assert_eq!(plan.functions[0].holder, Holder::Nobody);
    assert_eq!(
        commands(&plan.sysfs.prepare),
        [
            "echo vfio-pci > /sys/bus/pci/devices/0000:06:00.0/driver_override",
            "echo 0000:06:00.0 > /sys/bus/pci/drivers_probe",
        ]
    );
    assert_eq!(plan.sysfs.undo.len(), 2);
    // Where it is not known whether there is one, the command finds out.
    let unknown = Knowledge::Unknown(Obstacle::NotShown("x"));
    let plan = ask(|machine| set_driver(machine, "06:00.0", unknown), &["06:00.0"]).expect("planned");
    assert!(commands(&plan.sysfs.prepare).contains(
        &"if [ -e /sys/bus/pci/devices/0000:06:00.0/driver ]; then echo 0000:06:00.0 > \
              /sys/bus/pci/devices/0000:06:00.0/driver/unbind; fi"
    ));
    // What is there already needs nothing.
    let plan = ask(
        |machine| {
            set_driver(machine, "04:00.0", Knowledge::Known("mlx5_vfio_pci".to_owned()));
            set_driver(machine, "05:00.0", Knowledge::Known("pci-stub".to_owned()));
        },
        &["04:00.0"],
    )
    .expect("planned");
    assert_eq!(plan.to_bind().count(), 0);
    assert!(plan.sysfs.prepare.is_empty() && plan.driverctl.prepare.is_empty() && plan.virsh.prepare.is_empty());
    // The stub does not hand a function to a guest.
    let stub = Knowledge::Known("pci-stub".to_owned());
    let plan = ask(|machine| set_driver(machine, "04:00.0", stub), &["04:00.0"]).expect("planned");
    assert_eq!(plan.to_bind().count(), 2);
}

#[test]
fn after_the_steps_the_plan_still_knows_the_way_back() {
    let done = |machine: &mut Machine| {
        set_driver(machine, "04:00.0", Knowledge::Known("vfio-pci".to_owned()));
        set_driver(machine, "05:00.0", Knowledge::Known("vfio-pci".to_owned()));
    };
    let plan = ask(done, &["04:00.0"]).expect("planned");
    assert!(plan.sysfs.prepare.is_empty() && plan.functions.iter().all(Move::has_left));
    assert_eq!(
        commands(&plan.sysfs.undo),
        [
            "echo 0000:04:00.0 > /sys/bus/pci/devices/0000:04:00.0/driver/unbind",
            "echo > /sys/bus/pci/devices/0000:04:00.0/driver_override",
            "echo 0000:04:00.0 > /sys/bus/pci/drivers_probe",
            "echo 0000:05:00.0 > /sys/bus/pci/devices/0000:05:00.0/driver/unbind",
            "echo > /sys/bus/pci/devices/0000:05:00.0/driver_override",
            "echo 0000:05:00.0 > /sys/bus/pci/drivers_probe",
        ]
    );
    assert_eq!(plan.driverctl.undo.len(), 2);
    // The guest may have ended without libvirt giving anything back.
    assert_eq!(
        commands(&plan.virsh.undo),
        [
            "virsh nodedev-reattach pci_0000_04_00_0",
            "virsh nodedev-reattach pci_0000_05_00_0"
        ]
    );
    // What the stub has, no plan took.
    let stub = Knowledge::Known("pci-stub".to_owned());
    let plan = ask(|machine| set_driver(machine, "05:00.0", stub), &["04:00.0"]).expect("planned");
    assert!(plan.sysfs.undo.iter().all(|step| step.function == Some(bdf("04:00.0"))));
}

#[test]
fn a_driver_name_that_a_shell_would_obey_is_in_no_command() {
    for name in ["$(reboot)", "x;reboot", "../../x", "a b", "`x`", "%gb"] {
        let driver = Knowledge::Known(name.to_owned());
        let plan = ask(|machine| set_driver(machine, "06:00.0", driver), &["06:00.0"]).expect("planned");
        for step in plan.sysfs.prepare.iter().chain(&plan.sysfs.undo) {
            assert!(!step.command.contains(name), "{}", step.command);
        }
        assert_eq!(
            plan.sysfs.undo.last().map(|step| step.command.as_str()),
            Some("echo 0000:06:00.0 > /sys/bus/pci/drivers_probe")
        );
    }
}

#[test]
fn libvirt_and_qemu_name_the_function_in_full() {
    let plan = ask(|_| {}, &["06:00.0"]).expect("planned");
    let f = plan.chosen().next().expect("one");
    assert_eq!(
        f.hostdev(true),
        "<hostdev mode='subsystem' type='pci' managed='yes'>\n  <driver name='vfio'/>\n  <source>\n    \
         <address domain='0x0000' bus='0x06' slot='0x00' function='0x0'/>\n  </source>\n</hostdev>\n"
    );
    assert!(f.hostdev(false).contains("managed='no'"));
    assert_eq!(f.qemu_option(), "-device vfio-pci,host=0000:06:00.0");
    assert_eq!(libvirt_name(bdf("00:1f.3")), "pci_0000_00_1f_3");
}

#[test]
fn bridges_strangers_and_nothing_are_refused() {
    assert_eq!(ask(|_| {}, &[]), Err(PlanError::Nothing));
    assert_eq!(ask(|_| {}, &["00:1c.0"]), Err(PlanError::Bridge(bdf("00:1c.0"))));
    assert_eq!(
        ask(|_| {}, &["0a:00.0"]),
        Err(PlanError::NoSuchFunction(bdf("0a:00.0")))
    );
}

#[test]
fn what_the_host_needs_is_no_in_spite_of_the_steps() {
    let plan = ask(
        |machine| {
            let f = machine.functions.get_mut(&bdf("05:00.0")).expect("there");
            f.disks.push("sda".to_owned());
        },
        &["04:00.0"],
    )
    .expect("planned");
    assert_eq!((answer(&plan, "vital-disk"), plan.answer()), (Answer::No, Answer::No));
    assert!(plan.warnings().any(|item| item.id == "vital-disk"));
}

#[test]
fn a_computed_group_that_rests_on_the_unknown_says_so() {
    let plan = ask(
        |machine| {
            machine.groups = Knowledge::Unknown(Obstacle::NotShown("x"));
            for f in machine.functions.values_mut() {
                f.group = Knowledge::Unknown(Obstacle::NotShown("x"));
                // All that somebody without rights sees.
                let header = f.config.prefix().iter().copied().take(64).collect::<Vec<u8>>();
                f.config = crate::ConfigSpace::from_bytes(&header);
            }
        },
        &["04:00.0"],
    )
    .expect("planned");
    assert_eq!(plan.groups[0].number, None);
    assert!(!plan.groups[0].certain);
    assert_eq!(answer(&plan, "extent"), Answer::Unknown);
}

#[test]
fn virtual_functions_of_a_moved_physical_one_are_warned_about() {
    let plan = ask(
        |machine| {
            let mut f = machine.functions.get(&bdf("06:00.0")).expect("there").clone();
            f.bdf = bdf("06:10.0");
            f.physical_function = Some(bdf("06:00.0"));
            f.group = Knowledge::Known(11);
            machine.functions.insert(f.bdf, f);
        },
        &["06:00.0"],
    )
    .expect("planned");
    assert_eq!(answer(&plan, "virtual-functions"), Answer::No);
}
