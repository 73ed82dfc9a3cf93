//! Firmware tables as they are, and with mistakes.

use serde_json::Value;

use crate::{cell, fix_checksum, iommu, path, scratch, short_run, table, text};

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
