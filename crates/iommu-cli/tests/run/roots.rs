//! Machines read from a root folder.

use std::path::PathBuf;

use serde_json::Value;

use crate::{cell, iommu, path, scratch, short_run, text};

/// The sample machine as a root folder: configuration space of every function, and the table.
pub(crate) fn root_folder(name: &str, with_table: bool) -> PathBuf {
    use soft_platform::{Machine, MachineDescription};
    let description = MachineDescription::two_socket().expect("sound");
    let dmar = description.to_dmar().expect("a table");
    let machine = Machine::build(&description, &dmar).expect("a machine");
    let root = scratch(name);
    let _ = std::fs::remove_dir_all(&root);
    for function in machine.functions() {
        let folder = root.join("sys/bus/pci/devices").join(function.bdf.to_string());
        std::fs::create_dir_all(&folder).expect("writable");
        let mut config = vec![0; if function.kind.is_conventional() { 256 } else { 4096 }];
        machine.config_read(function.bdf, 0, &mut config);
        std::fs::write(folder.join("config"), config).expect("writable");
    }
    let tables = root.join("sys/firmware/acpi/tables");
    std::fs::create_dir_all(&tables).expect("writable");
    if with_table {
        std::fs::write(tables.join("DMAR"), dmar).expect("writable");
    }
    root
}

/// What the kernel shows of a unit: these CAP and ECAP registers.
pub(crate) fn unit_folder(root: &std::path::Path, cap: u64, ecap: u64) {
    let unit = root.join("sys/class/iommu/dmar0/intel-iommu");
    std::fs::create_dir_all(&unit).expect("writable");
    for (name, value) in [
        ("address", "fed90000".to_owned()),
        ("version", "1:0".to_owned()),
        ("cap", format!("{cap:x}")),
        ("ecap", format!("{ecap:x}")),
    ] {
        std::fs::write(unit.join(name), format!("{value}\n")).expect("writable");
    }
}

#[test]
fn a_machine_read_from_a_root_folder_gives_the_groups_and_the_matrix_of_the_machine() {
    let root = root_folder("root", true);
    let outputs = [short_run(&["--json", "--root", path(&root)]), short_run(&["--json"])];
    let [read, original] = outputs.map(|run| {
        assert_eq!(run.status.code(), Some(0), "{}{}", text(&run.stdout), text(&run.stderr));
        serde_json::from_slice::<Value>(&run.stdout).expect("JSON")
    });
    let groups = |report: &Value| {
        let groups = report["groups"].as_array().expect("groups").iter();
        let mut functions: Vec<String> = groups.map(|group| group["functions"].to_string()).collect();
        functions.sort();
        functions
    };
    assert_eq!(groups(&read), groups(&original));
    let requesters = |report: &Value| report["matrix"].as_array().expect("a matrix").len();
    assert!(requesters(&read) >= requesters(&original));
    // Who is blocked from what depends on groups, units and reserved memory only.
    for (requester, target) in [
        ("0000:00:1a.0", "rmrr"),
        ("0000:00:1d.0", "rmrr"),
        ("0000:0c:04.0", "host-memory"),
        ("0000:06:00.0", "group-peer"),
        ("0000:0c:05.0", "group-peer"),
        ("0000:03:00.0", "msi-window"),
    ] {
        let [seen, expected] = [&read, &original].map(|report| cell(report, requester, target)["seen"].clone());
        assert!(!expected.is_null(), "{requester} {target}");
        assert_eq!(seen, expected, "{requester} {target}");
    }
    let shown = text(&short_run(&["--root", path(&root)]).stdout);
    assert!(
        shown.contains("assumed: memory: a snapshot does not say where it is"),
        "{shown}"
    );
    assert!(shown.contains("what they can do is not known"), "{shown}");
}

#[test]
fn units_are_modelled_as_the_machine_reports_them() {
    let root = root_folder("root-with-units", true);
    // A server's unit, and the same without 1 GiB pages and without device-TLBs (VT-d §11.4.2, §11.4.3).
    for (cap, ecap) in [
        (0x08d2_078c_106f_0466, 0x00f0_20df),
        (0x00d2_0784_106f_0466, 0x00f0_20da),
    ] {
        unit_folder(&root, cap, ecap);
        let run = short_run(&["--root", path(&root)]);
        let shown = text(&run.stdout);
        assert_eq!(run.status.code(), Some(0), "{shown}{}", text(&run.stderr));
        let expected = format!("units: as dmar0 reports itself (CAP {cap:#x}, ECAP {ecap:#x})");
        assert!(shown.contains(&expected), "{shown}");
    }
    // A unit that translates fewer bits than this machine's addresses have cannot be; that is said, and an ordinary
    // one takes its place.
    unit_folder(&root, 0x00c0_0000_20e6_0262, 0x00f0_101a);
    let run = short_run(&["--root", path(&root)]);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    assert!(
        text(&run.stdout).contains("which cannot be modelled"),
        "{}",
        text(&run.stdout)
    );
}

#[test]
fn what_is_not_known_of_a_machine_is_said() {
    let root = root_folder("root-without-table", false);
    let run = short_run(&["--root", path(&root)]);
    assert_eq!(run.status.code(), Some(4), "{}", text(&run.stdout));
    let said = text(&run.stderr);
    assert!(
        said.contains("no DMAR table") && said.contains("iommu doctor"),
        "{said}"
    );
    assert_eq!(iommu(&["inspect", "--root", path(&root)]).status.code(), Some(4));
    // The same answer as of the command about tables.
    let shown = iommu(&["dmar", "show", "--root", path(&root)]);
    assert_eq!(shown.status.code(), Some(4));
    let run = short_run(&["--root", path(&scratch("nowhere"))]);
    assert_eq!(run.status.code(), Some(2));
    assert!(text(&run.stderr).contains("nowhere"), "{}", text(&run.stderr));
}
