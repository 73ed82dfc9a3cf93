use super::*;
use crate::item::overall;

const BOOT: &str = "[ 0.000000] Linux version 6.1.0 (x)\n[ 0.000000] Command line: ro intel_iommu=on\n";
const NIC: &str = "00:01.0 0200: 8086:1533\n\tStatus: Cap-\n";

fn diagnose(text: &str) -> Diagnosis {
    examine(&Machine::from_listing(text.as_bytes()))
}

fn item<'a>(diagnosis: &'a Diagnosis, id: &str) -> &'a Item {
    diagnosis.items.iter().find(|item| item.id == id).expect("asked")
}

#[test]
fn a_working_machine_is_judged_by_its_groups_and_its_log() {
    let text = format!(
        "{NIC}\tIOMMU group: 1\n\n{BOOT}[ 0.000000] ACPI: DMAR 0x000000006FFFD000 000070 (v01)\n[ 0.000000] DMAR-IR: Enabled IRQ remapping in x2apic mode\n"
    );
    let diagnosis = diagnose(&text);
    assert_eq!(diagnosis.state, State::Working);
    assert_eq!(item(&diagnosis, "interrupt-remapping").answer, Answer::Yes);
    assert_eq!(item(&diagnosis, "table").answer, Answer::Yes);
    assert_eq!(overall(&diagnosis.items), Answer::Yes);
}

#[test]
fn the_command_line_alone_proves_nothing() {
    // It asks for the IOMMU, and nothing else is known.
    let diagnosis = diagnose(&format!("{NIC}\nBOOT_IMAGE=/vmlinuz intel_iommu=on\n"));
    assert_eq!(diagnosis.state, State::Unknown);
    assert_eq!(overall(&diagnosis.items), Answer::Unknown);
    assert!(
        diagnosis
            .items
            .iter()
            .filter(|item| item.answer == Answer::Unknown)
            .all(|item| item.advice.is_some())
    );
}

fn bare(change: impl FnOnce(&mut Machine)) -> Diagnosis {
    let mut machine = Machine::from_listing(NIC.as_bytes());
    machine.groups = Knowledge::Known(std::collections::BTreeMap::new());
    machine.units = Knowledge::Known(Vec::new());
    change(&mut machine);
    examine(&machine)
}

#[test]
fn firmware_kernel_and_unknown_are_told_apart() {
    let off = bare(|machine| machine.dmar = Knowledge::Absent);
    assert_eq!(
        (off.state, item(&off, "translation").answer),
        (State::FirmwareOff, Answer::No)
    );
    let kernel = bare(|machine| {
        machine.dmar = Knowledge::Known(vec![0; 48]);
        machine.boot_parameters = Knowledge::Known("ro intel_iommu=off".to_owned());
    });
    assert_eq!(kernel.state, State::KernelOff);
    assert!(
        item(&kernel, "translation")
            .advice
            .as_ref()
            .is_some_and(|advice| advice.contains("intel_iommu=off"))
    );
    let hidden = bare(|_| {});
    assert_eq!(hidden.state, State::Unknown);
    // That there are no groups is known, whoever is to blame.
    assert_eq!(item(&hidden, "translation").answer, Answer::No);
}

#[test]
fn a_unit_without_an_address_width_is_named_whether_it_stops_everything_or_not() {
    let line = "[ 0.100000] DMAR: dmar1: No supported address widths. Not attempting DMA translation.\n";
    let working = diagnose(&format!("{NIC}\tIOMMU group: 1\n\n{BOOT}{line}"));
    let units = item(&working, "units");
    assert_eq!((working.state, units.answer), (State::Working, Answer::No));
    assert!(
        units.detail.contains("dmar1 offers no address width"),
        "{}",
        units.detail
    );
    let stopped = bare(|machine| {
        machine.dmar = Knowledge::Known(vec![0; 48]);
        machine.log = Knowledge::Known(crate::log::read(format!("{BOOT}{line}").as_bytes()));
    });
    let translation = item(&stopped, "translation");
    assert_eq!((stopped.state, translation.answer), (State::KernelOff, Answer::No));
    assert!(
        translation.detail.starts_with("line 3 of the log"),
        "{}",
        translation.detail
    );
    assert!(
        translation
            .advice
            .as_ref()
            .is_some_and(|advice| advice.contains("aw-bits"))
    );
}

#[test]
fn lines_of_devices_and_of_graphics_are_quoted() {
    let failed = "[ 0.100000] pcieport 0000:00:1c.0: Adding to IOMMU failed: -19\n";
    let stopped = bare(|machine| {
        machine.dmar = Knowledge::Known(vec![0; 48]);
        machine.log = Knowledge::Known(crate::log::read(failed.as_bytes()));
    });
    let detail = &item(&stopped, "translation").detail;
    assert!(
        detail.contains("0000:00:1c.0") && detail.contains("error 19"),
        "{detail}"
    );
    let graphics = "[ 0.100000] pci 0000:00:02.0: DMAR: Disabling IOMMU for graphics on this chipset\n";
    let working = diagnose(&format!("{NIC}\tIOMMU group: 1\n\n{BOOT}{graphics}"));
    assert!(item(&working, "units").detail.contains("graphics"));
}

#[test]
fn a_virtual_machine_is_sent_to_its_hypervisor_and_told_once() {
    let guest = bare(|machine| {
        machine.dmar = Knowledge::Absent;
        machine.platform.is_guest = Knowledge::Known(true);
    });
    let advice = |diagnosis: &Diagnosis, id| item(diagnosis, id).advice.clone();
    assert!(advice(&guest, "table").is_some_and(|advice| advice.contains("intel-iommu")));
    assert_eq!(advice(&guest, "translation"), None, "said already");
    let metal = bare(|machine| machine.dmar = Knowledge::Absent);
    assert!(advice(&metal, "table").is_some_and(|advice| advice.contains("VT-d")));
}

#[test]
fn groups_without_translation_are_named() {
    let text = format!("{NIC}\tIOMMU group: 1\n\n00:02.0 0200: 8086:1533\n\tStatus: Cap-\n\tIOMMU group: 2\n\n{BOOT}");
    let kinds = |of: [&str; 2]| {
        let mut machine = Machine::from_listing(text.as_bytes());
        let Knowledge::Known(groups) = &mut machine.groups else {
            panic!("listed")
        };
        for (group, kind) in groups.values_mut().zip(of) {
            group.kind = Knowledge::Known(kind.to_owned());
        }
        let found = item(&examine(&machine), "identity").clone();
        (found.answer, found.detail)
    };
    assert_eq!(kinds(["DMA", "DMA-FQ"]), (Answer::Yes, "all 2 groups".to_owned()));
    assert_eq!(
        kinds(["DMA", "identity"]),
        (Answer::No, "not of 1 of 2 groups: 2".to_owned())
    );
}

#[test]
fn taints_are_found_and_stand_in_the_way() {
    let text = format!(
        "{NIC}\tIOMMU group: 1\n\n{}",
        BOOT.replace("ro", "pcie_acs_override=downstream")
    );
    let diagnosis = diagnose(&text);
    assert_eq!(item(&diagnosis, "acs-override").answer, Answer::No);
    assert_eq!(overall(&diagnosis.items), Answer::No);
}
