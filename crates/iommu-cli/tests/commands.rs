//! What all commands promise: exit codes, JSON with a schema version, colours only where somebody sees them.

#![expect(clippy::expect_used, reason = "a test reports by panicking, its helpers too")]

mod fixture;

use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use fixture::{Fixture, bare, iommu};
use serde_json::Value;

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ended")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

/// Runs a command on a machine that `change` made different, and compares the exit code.
fn ends_with(test: &str, command: &[&str], expected: i32, change: impl FnOnce(&Fixture)) {
    let machine = Fixture::new(test);
    change(&machine);
    let output = machine.run(command, &[]);
    assert_eq!(
        code(&output),
        expected,
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if matches!(expected, 2 | 3) {
        assert!(!output.stderr.is_empty(), "{command:?} says why");
    }
}

fn as_it_is(_: &Fixture) {}

const CONFIG: &str = "sys/devices/pci0000:00/0000:00:1c.0/config";
const LOG: &str = "var/log/dmesg";
const TABLE: &str = "sys/firmware/acpi/tables/DMAR";
const REGISTER: &str = "sys/devices/virtual/iommu/dmar0/intel-iommu/cap";
const QUIET: &str = "[    0.000000] Linux version 6.1.0 (builder@example) #1\n[    0.030000] DMAR-IR: Enabled IRQ remapping in x2apic mode\n";

#[test]
fn groups_end_with_0_when_the_kernel_keeps_its_rules_and_1_when_not() {
    ends_with("groups-0", &["groups"], 0, as_it_is);
    ends_with("groups-1", &["groups"], 1, |machine| {
        machine.remove("sys/devices/pci0000:00/0000:00:1c.0/0000:03:00.0/iommu_group");
        machine.remove("sys/kernel/iommu_groups/6");
        let at = machine.at("sys/devices/pci0000:00/0000:00:1c.0/0000:03:00.0/iommu_group");
        std::os::unix::fs::symlink("../../../../kernel/iommu_groups/4", at).expect("writable");
    });
    ends_with("groups-2", &["groups", "-s", "0a:00.0"], 2, as_it_is);
}

#[test]
fn explain_ends_with_1_when_the_kernel_has_two_together_against_its_rules() {
    ends_with("explain-0", &["explain", "eth0", "nvme0n1"], 0, as_it_is);
    ends_with("explain-1", &["explain", "eth0", "nvme0n1"], 1, |machine| {
        machine.remove("sys/devices/pci0000:00/0000:00:1c.0/0000:03:00.0/iommu_group");
        let at = machine.at("sys/devices/pci0000:00/0000:00:1c.0/0000:03:00.0/iommu_group");
        std::os::unix::fs::symlink("../../../../kernel/iommu_groups/4", at).expect("writable");
    });
    ends_with("explain-2", &["explain", "00:"], 2, as_it_is);
    ends_with("explain-same", &["explain", "eth0", "03:00.0"], 2, as_it_is);
}

#[test]
fn doctor_tells_working_broken_and_unknown_apart() {
    ends_with("doctor-0", &["doctor"], 0, |machine| machine.put(LOG, QUIET));
    ends_with("doctor-1", &["doctor"], 1, |machine| {
        machine.put("proc/cmdline", "ro pcie_acs_override=downstream\n");
    });
    ends_with("doctor-2", &["doctor", "--root", "/nonexistent/x", "more"], 2, as_it_is);
    ends_with("doctor-3", &["doctor"], 3, |machine| machine.remove(LOG));
}

#[test]
fn check_and_plan_end_alike() {
    for command in ["check", "plan"] {
        let test = |number: u8| format!("{command}-{number}");
        ends_with(&test(0), &[command, "01:00.0", "01:00.1"], 0, as_it_is);
        ends_with(&test(1), &[command, "nvme0n1"], 1, as_it_is);
        ends_with(&test(2), &[command, "0a:00.0"], 2, as_it_is);
        ends_with(&test(3), &[command, "01:00.0", "01:00.1"], 3, |machine| {
            machine.remove(LOG)
        });
    }
    ends_with("plan-bridge", &["plan", "00:01.0"], 2, as_it_is);
    ends_with(
        "plan-anyway",
        &["plan", "nvme0n1", "--anyway", "--format", "sysfs"],
        0,
        as_it_is,
    );
}

#[test]
fn faults_end_with_1_where_there_are_some() {
    ends_with("faults-0", &["faults"], 0, |machine| machine.put(LOG, QUIET));
    ends_with("faults-other", &["faults", "-s", "03:00.0"], 0, as_it_is);
    ends_with("faults-1", &["faults"], 1, as_it_is);
    ends_with("faults-2", &["faults", "-d", "rubbish"], 2, as_it_is);
    ends_with("faults-3", &["faults"], 3, |machine| machine.remove(LOG));
    // What `dmesg` writes where it may not read the log is no clean bill.
    ends_with("faults-empty", &["faults", "/dev/null"], 3, as_it_is);
}

#[test]
fn caps_end_with_3_without_registers_and_4_without_units() {
    ends_with("caps-0", &["caps"], 0, as_it_is);
    ends_with("caps-3", &["caps"], 3, |machine| machine.put(REGISTER, "no number\n"));
    ends_with("caps-4", &["caps"], 4, |machine| machine.remove("sys/class/iommu"));
}

#[test]
fn tables_end_with_1_for_findings_and_4_where_there_is_none() {
    for command in ["show", "lint"] {
        let test = |number: u8| format!("dmar-{command}-{number}");
        ends_with(&test(0), &["dmar", command], 0, |machine| {
            let mut table = fixture::table();
            table.structures.pop();
            machine.put(TABLE, table.build().expect("fits"));
        });
        ends_with(&test(1), &["dmar", command], 1, as_it_is);
        ends_with(&test(3), &["dmar", command], 3, |machine| {
            machine.remove("sys/firmware")
        });
        ends_with(&test(4), &["dmar", command], 4, |machine| machine.remove(TABLE));
    }
    ends_with("dmar-fail-on", &["dmar", "lint", "--fail-on", "error"], 0, as_it_is);
    ends_with("dmar-ignore", &["dmar", "lint", "--ignore", "l33"], 0, as_it_is);
    ends_with("dmar-rule", &["dmar", "lint", "--ignore", "L999"], 2, as_it_is);
    let fixture = Fixture::new("dmar-build");
    let file = fixture.at("built.bin");
    let file = file.to_str().expect("a plain path");
    let root = fixture.root.to_str().expect("a plain path");
    let built = iommu(&["dmar", "build", "--root", root, "--output", file]);
    assert_eq!(code(&built), 0);
    assert_eq!(
        std::fs::read(file).expect("written"),
        std::fs::read(fixture.at(TABLE)).expect("there"),
        "byte for byte"
    );
    assert_eq!(code(&iommu(&["dmar", "build", "--output", "/nonexistent/x"])), 3);
    assert_eq!(
        code(&iommu(&["dmar", "build", "/nonexistent/x.toml", "--output", "x"])),
        2
    );
    assert_eq!(
        code(&iommu(&["dmar", "build", "--root", "/dev/null", "--output", file])),
        2
    );
    fixture.remove(TABLE);
    assert_eq!(code(&iommu(&["dmar", "build", "--root", root, "--output", file])), 4);
}

#[test]
fn a_snapshot_says_the_same_as_the_machine_and_is_private() {
    let machine = Fixture::new("snapshot");
    let file = machine.at("machine.tar");
    let name = file.to_str().expect("a plain path");
    let root = machine.root.to_str().expect("a plain path");
    let taken = iommu(&["snapshot", "--root", root, "--json", name]);
    assert_eq!(code(&taken), 0, "{}", String::from_utf8_lossy(&taken.stderr));
    assert_eq!(json(&taken)["schema"], 1);
    let mode = std::fs::metadata(&file).expect("written").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for command in [
        &["groups"][..],
        &["explain", "01:00.0"],
        &["check", "nvme0n1"],
        &["plan", "01:00.0"],
        &["doctor"],
        &["caps"],
        &["faults"],
        &["dmar", "lint"],
    ] {
        let command = [command, &["--json"]].concat();
        let live = iommu(&[&command[..], &["--root", root]].concat());
        let kept = iommu(&[&command[..], &["--root", name]].concat());
        assert_eq!(code(&live), code(&kept), "{command:?}");
        assert_eq!(json(&live), json(&kept), "{command:?}");
    }
    assert_eq!(json(&taken)["cut"], 0, "root sees all of configuration space");
    machine.put(CONFIG, &std::fs::read(machine.at(CONFIG)).expect("there")[..64]);
    let cut = iommu(&[
        "snapshot",
        "--root",
        root,
        machine.at("cut.tar").to_str().expect("plain"),
    ]);
    let text = String::from_utf8_lossy(&cut.stdout).into_owned();
    assert!(text.contains("of 1 function is cut to its first 64 bytes"), "{text}");
    // One that was taken in full is scrubbed later.
    let scrubbed = machine.at("scrubbed.tar");
    let other = scrubbed.to_str().expect("a plain path");
    let again = iommu(&["snapshot", "--root", name, "--scrub", other]);
    assert_eq!(code(&again), 0, "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(
        json(&iommu(&["groups", "--json", "--root", name])),
        json(&iommu(&["groups", "--json", "--root", other]))
    );
    assert_eq!(code(&iommu(&["snapshot", "--root", "/nonexistent", name])), 2);
    assert_eq!(code(&iommu(&["snapshot", "--root", "/dev/null", name])), 2);
    assert_eq!(code(&iommu(&["snapshot", "--root", root, "/nonexistent/x"])), 3);
}

#[test]
fn every_command_prints_json_with_a_schema_version() {
    let machine = Fixture::new("json");
    let out = machine.at("built.bin");
    let out = out.to_str().expect("a plain path");
    for command in [
        &[][..],
        &["groups"],
        &["groups", "--tree"],
        &["explain", "01:00.0"],
        &["explain", "01:00.0", "nvme0n1"],
        &["check", "01:00.0"],
        &["plan", "01:00.0"],
        &["plan", "nvme0n1"],
        &["doctor"],
        &["caps"],
        &["faults"],
        &["dmar", "show"],
        &["dmar", "lint"],
    ] {
        let output = machine.run(command, &["--json"]);
        assert_eq!(json(&output)["schema"], 1, "{command:?}");
        assert!(
            !output.stdout.contains(&0x1b),
            "{command:?}: no colour in what programs read"
        );
    }
    for command in [
        &["dmar", "build", "--output", out, "--json"][..],
        &["dmar", "lint", "--explain", "L21", "--json"],
    ] {
        assert_eq!(json(&iommu(command))["schema"], 1, "{command:?}");
    }
}

#[test]
fn colours_respect_the_command_line_and_the_environment() {
    let machine = Fixture::new("colour");
    let root = machine.root.to_str().expect("a plain path");
    let coloured = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = bare(&[arguments, &["--root", root]].concat());
        command.envs(environment.iter().copied());
        command.output().expect("the binary starts").stdout.contains(&0x1b)
    };
    for command in [
        &[][..],
        &["groups"],
        &["explain", "01:00.0"],
        &["check", "01:00.0"],
        &["plan", "01:00.0"],
        &["doctor"],
        &["caps"],
        &["faults"],
        &["dmar", "show"],
        &["dmar", "lint"],
    ] {
        assert!(!coloured(command, &[]), "{command:?} into a pipe");
        let always = [command, &["--color", "always"]].concat();
        assert!(coloured(&always, &[]), "{always:?}");
    }
    assert!(coloured(&["groups"], &[("CLICOLOR_FORCE", "1")]));
    assert!(!coloured(&["groups"], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
    assert!(!coloured(&["groups", "--color=never"], &[("CLICOLOR_FORCE", "1")]));
    assert!(coloured(&["--color=always", "groups"], &[("NO_COLOR", "1")]));
    let script = ["plan", "01:00.0", "--format", "sysfs", "--color", "always"];
    assert!(!coloured(&script, &[]), "a script is for a shell");
}

#[test]
fn completions_and_pages_exist_for_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = iommu(&["completions", shell]);
        let script = String::from_utf8(output.stdout).expect("UTF-8");
        for command in ["groups", "explain", "check", "plan", "doctor", "dmar", "run"] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    assert_eq!(code(&iommu(&["completions", "tcsh"])), 2);
    let page = iommu(&["man", "dmar", "lint"]);
    let text = String::from_utf8(page.stdout).expect("UTF-8");
    assert!(
        text.contains(".TH iommu-dmar-lint 1") && text.contains("fail"),
        "{text}"
    );
    assert_eq!(code(&iommu(&["man", "nonsense"])), 2);
    let dir = Fixture::new("pages").root;
    assert_eq!(code(&iommu(&["man", "--dir", dir.to_str().expect("a plain path")])), 0);
    for name in [
        "iommu.1",
        "iommu-groups.1",
        "iommu-plan.1",
        "iommu-dmar-build.1",
        "iommu-run.1",
    ] {
        assert!(dir.join(name).is_file(), "{name}");
    }
    assert_eq!(code(&iommu(&["man", "--dir", "/nonexistent"])), 3);
}

#[test]
fn bare_calls_end_as_the_machine_is() {
    ends_with("bare-0", &[], 0, |machine| machine.put(LOG, QUIET));
    ends_with("bare-1", &[], 1, |machine| {
        machine.put("proc/cmdline", "ro pcie_acs_override=downstream\n");
    });
    assert_eq!(code(&iommu(&["--root", "/nonexistent"])), 2);
    assert_eq!(code(&iommu(&["--root", "/dev/null"])), 2);
    // Options of the bare call do not silently stand for those of a command.
    let misplaced = iommu(&["--json", "groups"]);
    assert_eq!(code(&misplaced), 2);
    assert!(String::from_utf8_lossy(&misplaced.stderr).contains("iommu groups --json"));
}

#[test]
fn help_of_every_command_names_its_exit_codes() {
    for command in [
        &["groups"][..],
        &["explain"],
        &["check"],
        &["plan"],
        &["doctor"],
        &["caps"],
        &["faults"],
        &["snapshot"],
        &["dmar"],
        &["dmar", "show"],
        &["dmar", "lint"],
        &["dmar", "build"],
        &["completions"],
        &["man"],
        &[],
    ] {
        let output = iommu(&[command, &["--help"]].concat());
        assert_eq!(code(&output), 0);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(text.contains("xit codes"), "{command:?}: {text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 110),
            "{command:?}: {text}"
        );
    }
}

#[test]
fn a_plan_that_is_carried_out_can_still_be_undone() {
    let machine = Fixture::new("undo");
    for card in ["0000:01:00.0", "0000:01:00.1"] {
        let at = format!("sys/devices/pci0000:00/0000:00:01.0/{card}/driver");
        machine.remove(&at);
        std::os::unix::fs::symlink("../drivers/vfio-pci", machine.at(&at)).expect("writable");
    }
    let forth = machine.said(&["plan", "01:00.0", "--format", "sysfs"], &[]);
    assert!(forth.contains("# nothing is left to do"), "{forth}");
    let back = machine.said(&["plan", "01:00.0", "--format", "sysfs", "--undo"], &[]);
    let commands: Vec<&str> = back.lines().filter(|line| line.starts_with("echo")).collect();
    assert_eq!(
        commands[..3],
        [
            "echo 0000:01:00.0 > /sys/bus/pci/devices/0000:01:00.0/driver/unbind",
            "echo > /sys/bus/pci/devices/0000:01:00.0/driver_override",
            "echo 0000:01:00.0 > /sys/bus/pci/drivers_probe",
        ],
        "{back}"
    );
    assert_eq!(commands.len(), 6, "{back}");
    assert!(
        back.contains("the kernel picks the one that claims the model"),
        "{back}"
    );
    // What may not be taken may be given back.
    ends_with(
        "undo-refused",
        &["plan", "nvme0n1", "--undo", "--format", "sysfs"],
        0,
        as_it_is,
    );
    let refused = json(&machine.run(&["plan", "nvme0n1", "--undo"], &["--json"]));
    let count = |route: &str| refused["sysfs"][route].as_array().expect("a list").len();
    assert_eq!((count("prepare"), count("undo") > 0), (0, true));
}

/// The script of `plan` is run by a shell; what a machine calls its drivers must not become a command of it.
#[test]
fn names_of_drivers_never_become_commands() {
    let machine = Fixture::new("evil-driver");
    let at = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/driver";
    for name in ["x; touch owned #", "$(touch owned)", "a b", "x\ny", ".."] {
        machine.remove(at);
        std::os::unix::fs::symlink(format!("../drivers/{name}"), machine.at(at)).expect("writable");
        let output = machine.run(&["plan", "01:00.0", "--anyway", "--undo", "--format", "sysfs"], &[]);
        let script = String::from_utf8_lossy(&output.stdout);
        let commands = script.lines().filter(|line| !line.starts_with('#'));
        for line in commands {
            assert!(!line.contains("touch") && !line.contains("a b"), "{name:?}: {line}");
        }
    }
}

#[test]
fn programs_get_the_way_up_in_parts() {
    let machine = Fixture::new("path");
    let path = |command: &[&str]| json(&machine.run(command, &["--json"]))["path"].clone();
    let way = path(&["explain", "01:00.0"]);
    assert_eq!(way[1]["address"], "0000:00:01.0");
    assert_eq!(
        (&way[1]["isolates"], &way[1]["lacks"]),
        (&Value::from(false), &Value::from("no-capability"))
    );
    let way = path(&["explain", "eth0"]);
    assert_eq!(
        (&way[1]["isolates"], &way[1]["acs_control"]),
        (&Value::from(true), &Value::from("SV RR CR UF"))
    );
    // What nobody could read is neither yes nor no, also where the group does not hang on it.
    let device = "sys/devices/pci0000:00/0000:00:1c.0/0000:03:00.0/config";
    let bytes = std::fs::read(machine.at(device)).expect("there");
    machine.put(device, &bytes[..64]);
    assert_eq!(path(&["explain", "eth0"])[0]["isolates"], Value::Null);
    let text = machine.said(&["explain", "eth0"], &[]);
    assert!(
        text.contains("changes nothing about the group; root can read it"),
        "{text}"
    );
}

#[test]
fn a_machine_that_hides_parts_is_unknown_and_never_absent() {
    let machine = Fixture::new("hidden");
    // As an unprivileged reader sees it: 64 bytes of configuration space.
    let bytes = std::fs::read(machine.at(CONFIG)).expect("there");
    machine.put(CONFIG, &bytes[..64]);
    let output = machine.run(&["explain", "03:00.0"], &["--json"]);
    assert_eq!(json(&output)["uncertain"], true);
    let text = machine.said(&["groups"], &[]);
    assert!(text.contains("(isolation not known)"), "{text}");
}
