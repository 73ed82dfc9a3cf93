//! The binary as people use it.

#![expect(clippy::expect_used, reason = "a test reports by panicking, its helpers too")]

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn iommu(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_iommu"))
        .args(arguments)
        .output()
        .expect("the binary starts")
}

/// A short rehearsal: everything but the amount of data.
fn short_run(more: &[&str]) -> Output {
    iommu(&[&["run", "--mem", "4M", "--bytes", "8M"], more].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn path(file: &std::path::Path) -> &str {
    file.to_str().expect("a plain path")
}

/// The table of the sample machine, changed by `change`, in a file of its own.
fn table(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let file = scratch(name);
    let built = iommu(&["dmar", "build", "--output", path(&file)]);
    assert_eq!(built.status.code(), Some(0), "{}", text(&built.stderr));
    let mut bytes = std::fs::read(&file).expect("the table was written");
    change(&mut bytes);
    std::fs::write(&file, bytes).expect("writable");
    file
}

/// Makes the sum of all bytes 0 again.
fn fix_checksum(bytes: &mut [u8]) {
    bytes[9] = 0;
    bytes[9] = bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg();
}

fn cell<'a>(report: &'a Value, requester: &str, target: &str) -> &'a Value {
    report["matrix"]
        .as_array()
        .expect("a matrix")
        .iter()
        .find(|cell| cell["requester"] == requester && cell["target"] == target)
        .unwrap_or(&Value::Null)
}

#[test]
fn the_sample_machine_comes_out_as_predicted() {
    let run = short_run(&["--json"]);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    let summary = &report["summary"];
    assert_eq!(summary["ok"], true);
    assert!(summary["bytes_moved"].as_u64() >= Some(8 << 20));
    let forbidden = &summary["forbidden"];
    assert!(forbidden["tried"].as_u64() >= Some(40));
    assert_eq!(forbidden["tried"], forbidden["blocked"]);
    assert_eq!(forbidden["tried"], forbidden["logged"]);
    // Two functions of one device without ACS reach each other, and so do cards on one conventional bus.
    for (requester, peer) in [("0000:06:00.0", "allowed"), ("0000:0c:05.0", "allowed")] {
        assert_eq!(cell(&report, requester, "group-peer")["seen"], peer);
    }
    // A card behind the PCIe-to-PCI bridge is logged with the bridge's requester ID.
    assert_eq!(
        cell(&report, "0000:0c:04.0", "host-memory")["fault"]["source"],
        "0c:00.0"
    );
    // Firmware reserves memory for the USB controller, and for nobody else.
    assert_eq!(cell(&report, "0000:00:1a.0", "rmrr")["seen"], "allowed");
    assert_eq!(cell(&report, "0000:00:1e.0", "rmrr")["seen"], "blocked");
    // Without IOMMU the same accesses all arrive, and through an aperture too.
    let [none, aperture, vtd] = [0, 1, 2].map(|row| &report["comparison"][row]);
    for (row, name) in [(none, "none"), (aperture, "aperture"), (vtd, "VT-d")] {
        assert_eq!(row["iommu"], name);
        assert_eq!(row["scatter_pages"], 8);
    }
    for open in [none, aperture] {
        assert_eq!(open["forbidden_blocked"], 0);
        assert_eq!(open["forbidden_tried"], vtd["forbidden_tried"]);
        assert_eq!(open["faults_recorded"], 0);
        assert!(open["cells_blocked"].as_u64() < vtd["cells_blocked"].as_u64());
    }
    assert_eq!(vtd["forbidden_blocked"], vtd["forbidden_tried"]);
    assert!(vtd["faults_recorded"].as_u64() >= vtd["cells_blocked"].as_u64());
    // Only nothing at all has to copy, and to name each page.
    assert!(none["bytes_bounced"].as_u64() > Some(0));
    assert_eq!(none["scatter_segments"], 8);
    for translated in [aperture, vtd] {
        assert_eq!(translated["bytes_bounced"], 0);
        assert_eq!(translated["scatter_segments"], 1);
    }
}

#[test]
fn a_machine_without_units_is_rehearsed_on_its_own() {
    for (kind, name, blocked) in [("none", "none", 0), ("aperture", "aperture", 9)] {
        let run = short_run(&["--json", "--iommu", kind]);
        assert_eq!(run.status.code(), Some(0), "{}{}", text(&run.stdout), text(&run.stderr));
        let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
        assert_eq!(report["iommu"], name);
        assert_eq!(report["summary"]["ok"], true);
        assert!(report["summary"]["bytes_moved"].as_u64() >= Some(8 << 20));
        let cells = report["matrix"].as_array().expect("a matrix");
        let stopped: Vec<&Value> = cells.iter().filter(|cell| cell["seen"] == "blocked").collect();
        let requesters = cells.iter().filter(|cell| cell["target"] == "own-mapping").count();
        assert_eq!(requesters, 9);
        assert_eq!(stopped.len(), blocked);
        assert!(stopped.iter().all(|cell| cell["target"] == "unmapped-again"));
        assert_eq!(cell(&report, "0000:03:00.0", "host-memory")["seen"], "allowed");
        // The table covers every function, and is not asked.
        let shown = text(&short_run(&["--iommu", kind]).stdout);
        let unused = format!("with --iommu {kind} the units of the table are not used");
        assert!(shown.contains(&unused), "{shown}");
        assert!(!shown.contains("covers it"), "{shown}");
        assert!(shown.contains("\n    0000:00:14.0 root port A\n"), "{shown}");
    }
}

/// The sample machine as a root folder: configuration space of every function, and the table.
fn root_folder(name: &str, with_table: bool) -> PathBuf {
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
fn unit_folder(root: &std::path::Path, cap: u64, ecap: u64) {
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

#[test]
fn the_group_peer_is_predicted_by_places_and_access_control() {
    let run = short_run(&["--json"]);
    let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    let function = cell(&report, "0000:06:00.0", "group-peer");
    assert_eq!(function["predicted"], "allowed");
    assert!(
        function["because"]
            .as_str()
            .expect("words")
            .contains("06:00.0: it has no ACS capability"),
        "{function}"
    );
    let card = cell(&report, "0000:0c:04.0", "group-peer");
    assert_eq!(card["predicted"], "allowed");
    assert!(
        card["because"].as_str().expect("words").contains("conventional bus"),
        "{card}"
    );
}

#[test]
fn a_disk_is_written_and_read_through_vfio_and_left_as_it_was() {
    let file = scratch("disk.img");
    let before: Vec<u8> = (0..3 << 20)
        .map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    std::fs::write(&file, &before).expect("writable");
    let run = short_run(&["--json", "--disk", path(&file)]);
    assert_eq!(run.status.code(), Some(0), "{}{}", text(&run.stdout), text(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    let disk = &report["disk"];
    assert_eq!(disk["function"], "0000:03:00.0");
    assert_eq!(
        (&disk["bytes"], &disk["verified"]),
        (&Value::from(3 << 20), &Value::from(3 << 20))
    );
    assert!(disk["interrupts"].as_u64() > Some(0));
    assert_eq!(
        (&disk["withheld"], &disk["withheld_blocked"]),
        (&Value::from(2), &Value::from(2))
    );
    assert_eq!(std::fs::read(&file).expect("there"), before);

    let run = short_run(&["--disk", path(&scratch("no-disk"))]);
    assert_eq!(run.status.code(), Some(2));
    let said = text(&run.stderr);
    assert!(
        said.contains("no-disk: there is no such file") && said.contains("truncate"),
        "{said}"
    );
    assert!(
        run.stdout.is_empty(),
        "it is said before anything is done: {}",
        text(&run.stdout)
    );
    let short = scratch("short.img");
    std::fs::write(&short, [0; 511]).expect("writable");
    let run = short_run(&["--disk", path(&short)]);
    assert_eq!((run.status.code(), run.stdout.len()), (Some(2), 0));
    assert!(text(&run.stderr).contains("512 bytes"), "{}", text(&run.stderr));
    let run = short_run(&["--disk", path(&file), "--iommu", "none"]);
    assert_eq!(run.status.code(), Some(2));
}

#[test]
fn without_isolation_nothing_can_be_assigned() {
    let run = short_run(&["--iommu", "aperture", "--assign", "03:00.0"]);
    assert_eq!(run.status.code(), Some(2));
    assert!(text(&run.stderr).contains("--iommu vtd"), "{}", text(&run.stderr));
}

#[test]
fn a_group_is_assigned_as_a_whole() {
    let run = short_run(&["--json", "--assign", "06:00.1"]);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    for function in ["0000:06:00.0", "0000:06:00.1"] {
        assert_eq!(
            cell(&report, function, "own-mapping")["because"],
            "mapped for reading and writing for guest A"
        );
    }
    assert_eq!(cell(&report, "0000:03:00.0", "other-guest")["seen"], "blocked");
}

#[test]
fn a_kept_matrix_is_a_gate() {
    let kept = scratch("kept");
    assert_eq!(short_run(&["--keep", path(&kept)]).status.code(), Some(0));
    assert_eq!(short_run(&["--expect", path(&kept)]).status.code(), Some(0));

    let matrix = std::fs::read_to_string(&kept).expect("it was kept");
    let changed = matrix.replacen("host-memory      blocked", "host-memory      allowed", 1);
    assert_ne!(matrix, changed);
    std::fs::write(&kept, changed).expect("writable");
    let run = short_run(&["--expect", path(&kept)]);
    assert_eq!(run.status.code(), Some(1));
    let shown = text(&run.stdout);
    assert!(shown.contains("host-memory: kept allowed, now blocked"), "{shown}");
    // The rehearsal itself is as predicted: the two answers stand apart.
    assert!(shown.contains("\nas groups and mappings predict: "), "{shown}");
    let cell = matrix.lines().find(|line| line.contains("host-memory")).expect("there");
    let requester = cell.split(' ').next().expect("a word");
    let last = format!("\nNOT as the kept matrix has it: 1 cell differs: {requester} host-memory.\n");
    assert!(shown.ends_with(&last), "{shown}");
    let report: Value = serde_json::from_slice(&short_run(&["--json", "--expect", path(&kept)]).stdout).expect("JSON");
    assert_eq!(
        (&report["summary"]["ok"], &report["summary"]["as_predicted"]),
        (&Value::from(false), &Value::from(true))
    );
    assert_eq!(report["differences"][0]["requester"], requester);

    // Of many cells the last line names some.
    std::fs::write(&kept, matrix.lines().take(8).collect::<Vec<_>>().join("\n")).expect("writable");
    let shown = text(&short_run(&["--expect", path(&kept)]).stdout);
    let last = shown.rsplit("NOT as the kept matrix has it: ").next().expect("words");
    let words: Vec<&str> = last.split_whitespace().collect();
    let changed = shown.lines().filter(|line| line.starts_with("    CHANGED ")).count();
    assert_eq!(words[0], changed.to_string(), "{shown}");
    let named = words.iter().filter(|word| word.starts_with("0000:")).count();
    assert!(named < changed, "{shown}");
    assert!(
        words
            .join(" ")
            .ends_with(&format!(" and {} more, marked CHANGED above.", changed - named)),
        "{shown}"
    );

    std::fs::write(&kept, "0000:03:00.0 host-memory perhaps\n").expect("writable");
    let run = short_run(&["--expect", path(&kept)]);
    assert_eq!(run.status.code(), Some(2));
    assert!(
        text(&run.stderr).contains("kept:1: \"perhaps\" is no verdict"),
        "{}",
        text(&run.stderr)
    );
}

#[test]
fn a_mistake_in_a_machine_file_is_named_with_its_line() {
    let file = scratch("machine.toml");
    std::fs::write(&file, "name = \"x\"\nhost-address-width = \"wide\"\n").expect("writable");
    let run = iommu(&["run", path(&file)]);
    assert_eq!(run.status.code(), Some(2));
    assert!(text(&run.stderr).contains("machine.toml:2:"), "{}", text(&run.stderr));
}

#[test]
fn the_table_of_the_sample_alone_gives_the_same_units() {
    let file = table("sample.bin", |_| ());
    let run = short_run(&["--json", "--dmar", path(&file)]);
    assert_eq!(run.status.code(), Some(0), "{}{}", text(&run.stdout), text(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    assert_eq!(report["summary"]["ok"], true);
    assert_eq!(cell(&report, "0000:00:1d.0", "host-memory")["seen"], "blocked");
}

#[test]
fn a_truncated_table_is_refused_with_its_offset() {
    let file = table("truncated.bin", |bytes| bytes.truncate(100));
    let run = short_run(&["--dmar", path(&file)]);
    assert_eq!(run.status.code(), Some(2));
    assert!(text(&run.stderr).contains("100"), "{}", text(&run.stderr));
    let shown = iommu(&["dmar", "show", path(&file)]);
    assert_eq!(shown.status.code(), Some(1));
    assert!(text(&shown.stdout).contains("L02"), "{}", text(&shown.stdout));
}

#[test]
fn a_bad_checksum_is_said_and_the_table_is_used() {
    let file = table("checksum.bin", |bytes| bytes[9] ^= 0x55);
    let run = short_run(&["--dmar", path(&file)]);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    assert!(text(&run.stdout).contains("checksum BAD"), "{}", text(&run.stdout));
}

#[test]
fn functions_of_a_unit_at_address_zero_are_blocked_not_open() {
    // The first structure is the unit of root port A; its base is the quadword at offset 56.
    let file = table("base-zero.bin", |bytes| {
        bytes[56..64].fill(0);
        fix_checksum(bytes);
    });
    let run = short_run(&["--json", "--dmar", path(&file)]);
    let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let behind: Vec<&Value> = report["matrix"]
        .as_array()
        .expect("a matrix")
        .iter()
        .filter(|c| c["predicted"] == "allowed")
        .collect();
    assert!(!behind.is_empty(), "the other units still serve their functions");
    let shown = text(&short_run(&["--dmar", path(&file)]).stdout);
    assert!(shown.contains("DRHD at offset 0x30 (base 0x0) is not used"), "{shown}");
    assert!(shown.contains("no unit, blocked"), "{shown}");
}

#[test]
fn a_zero_length_structure_ends_the_walk_and_leaves_nothing_open() {
    // The second structure (offset 0x48) gets length 0: what follows is unknown, so every owner is.
    let file = table("zero-length.bin", |bytes| {
        bytes[0x4a..0x4c].fill(0);
        fix_checksum(bytes);
    });
    let run = short_run(&["--dmar", path(&file)]);
    let shown = text(&run.stdout);
    assert_eq!(run.status.code(), Some(4), "{shown}{}", text(&run.stderr));
    assert!(shown.contains("L03 error at offset 0x48"), "{shown}");
    // The only function that is left has a unit that names it, but a later one might name it too.
    assert!(shown.contains("0000:00:14.0 root-port  no unit, blocked"), "{shown}");
}

#[test]
fn without_interrupt_remapping_nothing_is_assigned_unless_it_is_asked_for() {
    // Flag 0 (INTR_REMAP) of the header's flags.
    let file = table("no-remapping.bin", |bytes| {
        bytes[37] &= !1;
        fix_checksum(bytes);
    });
    let run = short_run(&["--dmar", path(&file)]);
    assert_eq!(run.status.code(), Some(4), "{}", text(&run.stderr));
    let shown = text(&run.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(shown.contains("does not remap interrupts"), "{shown}");
    assert!(shown.contains("allow it with --unsafe-interrupts"), "{shown}");
    assert!(!shown.contains("unsafe_interrupts"), "{shown}");
    let run = short_run(&["--dmar", path(&file), "--unsafe-interrupts"]);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stdout));
}

#[test]
fn a_table_without_units_has_nothing_to_rehearse() {
    let file = table("no-units.bin", |bytes| {
        bytes.truncate(48);
        bytes[4..8].copy_from_slice(&48_u32.to_le_bytes());
        fix_checksum(bytes);
    });
    let run = short_run(&["--dmar", path(&file)]);
    assert_eq!(run.status.code(), Some(4), "{}", text(&run.stderr));
    assert!(
        text(&run.stdout).contains("nothing to rehearse"),
        "{}",
        text(&run.stdout)
    );
}

#[test]
fn a_reserved_region_from_zero_to_zero_is_refused_and_said() {
    // The RMRR of the sample: base and limit are the two quadwords after its header.
    let file = table("rmrr-zero.bin", |bytes| {
        let at = (48..bytes.len())
            .find(|at| bytes[*at..].starts_with(&[0, 0, 0x80, 0x7b, 0, 0, 0, 0]))
            .expect("the region's base is in the table");
        bytes[at..at + 16].fill(0);
        fix_checksum(bytes);
    });
    let run = short_run(&["--dmar", path(&file)]);
    assert_eq!(run.status.code(), Some(0), "{}{}", text(&run.stdout), text(&run.stderr));
    let shown = iommu(&["dmar", "show", path(&file)]);
    assert_eq!(shown.status.code(), Some(1), "{}", text(&shown.stdout));
}

#[test]
fn not_a_table_at_all_is_a_clear_message() {
    let file = scratch("noise.bin");
    std::fs::write(&file, [0x5a; 300]).expect("writable");
    let run = short_run(&["--dmar", path(&file)]);
    assert_eq!(run.status.code(), Some(2));
    assert!(text(&run.stderr).contains("noise.bin"), "{}", text(&run.stderr));
    assert_eq!(
        iommu(&["dmar", "show", path(&scratch("missing"))]).status.code(),
        Some(2)
    );
}

#[test]
fn a_file_that_is_not_there_is_a_mistake_for_every_command() {
    let missing = scratch("nowhere-at-all");
    let name = path(&missing);
    for command in [
        &["run", name][..],
        &["run", "--dmar", name],
        &["run", "--root", name],
        &["run", "--disk", name],
        &["run", "--expect", name],
        &["inspect", name],
        &["trace", name],
        &["faults", name],
        &["groups", "--root", name],
        &["groups", "--pci-ids", name],
        &["snapshot", "--root", name, "/dev/null"],
        &["dmar", "show", name],
        &["dmar", "build", name, "--output", "/dev/null"],
        &["dmar", "build", "--root", name, "--output", "/dev/null"],
        &["--root", name],
    ] {
        let output = iommu(command);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
        assert!(
            said.contains(&format!("{name}: there is no such file")),
            "{command:?}: {said}"
        );
        assert!(output.stdout.is_empty(), "{command:?}: {}", text(&output.stdout));
    }
    // A part of the path that is a file, and a folder where a file is expected.
    let below = format!("{}/x", env!("CARGO_MANIFEST_DIR").to_owned() + "/Cargo.toml");
    for (file, why) in [(below.as_str(), "no folder"), (env!("CARGO_MANIFEST_DIR"), "a folder")] {
        let output = iommu(&["trace", file]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(why), "{}", text(&output.stderr));
    }
}

#[test]
fn what_is_no_trace_is_said_to_be_none() {
    let file = scratch("no.trace");
    for bytes in [&b"\xff\xfe\x00"[..], b"", b"# a table\nunit\n", b"[general]\nx = 1\n"] {
        std::fs::write(&file, bytes).expect("writable");
        let output = iommu(&["trace", path(&file)]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{bytes:?}: {said}");
        assert!(said.contains("no.trace: this is not a trace: "), "{bytes:?}: {said}");
        assert!(said.contains("iommu serve --trace"), "{bytes:?}: {said}");
    }
    std::fs::write(&file, "portcullis-trace 1\nunit colour=1\n").expect("writable");
    let said = text(&iommu(&["trace", path(&file)]).stderr);
    assert!(said.contains("no.trace: line 2: "), "{said}");
}

#[test]
fn verdicts_have_colours_where_they_are_asked_for() {
    let coloured = text(&short_run(&["--color", "always"]).stdout);
    for part in [
        "\u{1b}[32mblocked\u{1b}[0m",
        "\u{1b}[32mallowed\u{1b}[0m",
        // The functions that reach each other past the unit.
        "\u{1b}[33mallowed\u{1b}[0m",
        "\u{1b}[32mas groups and mappings predict\u{1b}[0m: ",
    ] {
        assert!(coloured.contains(part), "{part:?}: {coloured:?}");
    }
    let inspected = text(&iommu(&["inspect", "--mem", "4M", "--color", "always"]).stdout);
    assert!(
        inspected.contains("\u{1b}[32mthe tables say what was set up"),
        "{inspected:?}"
    );
    let plain = text(&short_run(&[]).stdout);
    assert!(!plain.contains('\u{1b}'), "{plain:?}");
    // The columns stay where they are.
    let row = |text: &str| {
        text.lines()
            .find(|line| line.contains("NVMe disk (guest A)"))
            .map(str::to_owned)
    };
    let stripped = anstream::adapter::strip_str(&coloured).to_string();
    assert_eq!(row(&stripped), row(&plain));
    assert!(row(&plain).is_some_and(|row| row.ends_with("blocked  –")), "{plain}");
}

#[test]
fn what_was_not_worked_with_has_no_figures() {
    // Every function of this machine is assigned, so that the host has none to show the DMA API with.
    let file = table("all-assigned.bin", |_| ());
    let run = short_run(&["--dmar", path(&file)]);
    let shown = text(&run.stdout);
    let figures = |what: &str| {
        let line = shown.lines().find_map(|line| line.trim_start().strip_prefix(what));
        line.map(|rest| rest.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    for what in ["segments of a list of 8 pages", "bytes bounced for a 32-bit function"] {
        assert_eq!(
            figures(what).as_deref(),
            Some(&["–", "–", "–"].map(str::to_owned)[..]),
            "{shown}"
        );
    }
}

/// A function that no machine of tests has: nothing is touched, however they are run.
const NOWHERE: &str = "fffe:ff:1f.7";

#[test]
fn a_device_of_the_machine_is_used_when_it_is_asked_for_and_only_then() {
    let image = scratch("never.img");
    for (arguments, named) in [
        (&["--backend", "linux"][..], "--device"),
        (&["--device", NOWHERE], "--backend"),
        (&["--backend", "software", "--device", NOWHERE], "--backend linux"),
        (&["--backend", "linux", "--device", "disk"], "--device"),
        (&["--backend", "linux", "--device", NOWHERE, "machine.toml"], "--device"),
        (&["--backend", "linux", "--device", NOWHERE, "--bytes", "1M"], "--bytes"),
        (
            &["--backend", "linux", "--device", NOWHERE, "--iommu", "vtd"],
            "--iommu",
        ),
        (
            &["--backend", "linux", "--device", NOWHERE, "--assign", "03:00.0"],
            "--assign",
        ),
        (
            &["--backend", "linux", "--device", NOWHERE, "--disk", path(&image)],
            "--disk",
        ),
        (&["--backend", "vfio", "--device", NOWHERE], "linux"),
    ] {
        let run = iommu(&[&["run"], arguments].concat());
        let said = text(&run.stderr);
        assert_eq!(run.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(named), "{arguments:?}: {said}");
        assert!(run.stdout.is_empty(), "{arguments:?}: {}", text(&run.stdout));
    }
}

#[test]
fn the_backend_in_software_is_what_there_is_without_one() {
    let run = short_run(&["--json", "--backend", "software"]);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    assert_eq!(
        (&report["backend"], &report["iommu"]),
        (&Value::from("software"), &Value::from("VT-d"))
    );
    assert!(report.get("disk").is_none());
}

#[test]
fn without_vfio_or_the_device_it_is_said_what_to_do() {
    let run = iommu(&["run", "--json", "--backend", "linux", "--device", NOWHERE]);
    let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    let why = report["error"].as_str().expect("a reason");
    // Where the kernel has VFIO, it is the function that is missing.
    let (code, advice) = if std::path::Path::new("/dev/vfio/vfio").exists() {
        (2, "iommu groups".to_owned())
    } else {
        (4, format!("iommu plan {NOWHERE}"))
    };
    assert_eq!(run.status.code(), Some(code), "{why}");
    assert!(why.contains(NOWHERE) && why.contains(&advice), "{why}");
    assert_eq!(
        (&report["backend"], &report["summary"]["ok"]),
        (&Value::from("linux"), &Value::from(false))
    );

    let run = iommu(&["run", "--backend", "linux", "--device", NOWHERE]);
    assert_eq!(run.status.code(), Some(code));
    let shown = text(&run.stdout) + &text(&run.stderr);
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    assert!(words(&shown).contains(&words(&advice)), "{shown}");
}

#[test]
fn the_help_warns_of_what_a_real_device_risks() {
    let help = text(&iommu(&["run", "--help"]).stdout);
    for part in ["--backend linux", "overwritten, compared and put back", "Exit codes:"] {
        assert!(help.contains(part), "{part}: {help}");
    }
}

#[test]
fn paragraphs_of_the_help_fill_their_lines_on_narrow_terminals() {
    for width in [60_usize, 80, 100] {
        let help = Command::new(env!("CARGO_BIN_EXE_iommu"))
            .args(["run", "--help"])
            .env("COLUMNS", width.to_string())
            .output()
            .expect("the binary starts");
        let help = text(&help.stdout);
        let paragraph = help.split("\n\n").find(|part| part.starts_with("--backend linux uses"));
        let lines: Vec<&str> = paragraph.expect("the warning").lines().collect();
        for pair in lines.windows(2) {
            let next = pair[1].split(' ').next().expect("a word").len();
            assert!(pair[0].len() <= width, "{help}");
            assert!(
                pair[0].len() + 1 + next > width,
                "broken too early at {width} columns: {help}"
            );
        }
    }
}
