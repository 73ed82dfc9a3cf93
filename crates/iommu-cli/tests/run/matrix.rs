//! The access matrix: what is predicted, kept and compared.

use serde_json::Value;

use crate::{cell, iommu, path, scratch, short_run, text};

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
