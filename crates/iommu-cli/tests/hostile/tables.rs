//! Firmware tables that are broken, and logs of noise.

use serde_json::Value;

use crate::{Dice, each_case, iommu, path, rehearse, scratch, wrongly_open};

/// Sets length and checksum as they should be.
fn fix(table: &mut [u8]) {
    if table.len() < 48 {
        return;
    }
    let len = u32::try_from(table.len()).expect("small").to_le_bytes();
    table[4..8].copy_from_slice(&len);
    table[9] = 0;
    table[9] = table
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg();
}

/// Something wrong with a sound table.
fn damage(table: &mut Vec<u8>, dice: &mut Dice) {
    // Offsets of structures of the sound table, in front to back order.
    let mut starts = vec![48];
    while let Some(len) = table.get(starts[starts.len() - 1] + 2).filter(|len| **len > 0) {
        starts.push(starts[starts.len() - 1] + usize::from(*len));
    }
    starts.retain(|at| at + 16 <= table.len());
    let at = dice.pick(&starts);
    match dice.below(9) {
        0 => {
            for _ in 0..=dice.below(5) {
                let at = 36 + dice.below(table.len() - 36);
                table[at] ^= 1 << dice.below(8);
            }
        }
        1 => table.truncate(dice.below(table.len())),
        2 => table[at + 2] = dice.pick(&[0, 1, 4, 15, 17, 255]),
        3 => table[36] = dice.pick(&[0, 11, 30, 31, 52, 63, 255]),
        4 => {
            let copy = table[at..].to_vec();
            for _ in 0..dice.pick(&[1, 30]) {
                table.extend(&copy);
            }
        }
        5 => table[at + 6] = dice.pick(&[1, 2, 255]),
        6 => {
            let base = dice.pick(&[
                0,
                1,
                0x1000,
                0xfee0_0000,
                0x8000_0000,
                1 << 46,
                u64::MAX,
                u64::MAX - 0xfff,
            ]);
            table[at + 8..at + 16].copy_from_slice(&base.to_le_bytes());
        }
        // The reserved region: from a low address, to a high one, or both.
        7 => {
            if let Some(at) = starts.into_iter().find(|at| table[*at] == 1 && at + 24 <= table.len()) {
                let base = dice.pick(&[0_u64, 0x10_0000, 0x7b80_0000, 0xfedf_f000, 1 << 32]);
                let limit = dice.pick(&[base + 0xfff, 0x7bff_ffff, 0xfeef_ffff, (2 << 32) - 1, u64::MAX]);
                table[at + 8..at + 16].copy_from_slice(&base.to_le_bytes());
                table[at + 16..at + 24].copy_from_slice(&limit.to_le_bytes());
            }
        }
        _ => {
            let at = at.min(table.len());
            let noise: Vec<u8> = (0..=dice.below(20)).map(|_| dice.below(256).to_le_bytes()[0]).collect();
            table.splice(at..at, noise);
        }
    }
}

#[test]
fn damaged_tables_are_used_as_far_as_they_can_be_trusted() {
    let file = scratch("table.bin");
    let built = iommu("build", &["dmar", "build", "--output", path(&file)]);
    assert_eq!(built.status.code(), Some(0));
    let sound = std::fs::read(&file).expect("it was written");
    let mut codes = [0; 5];
    each_case(|case| {
        let mut dice = Dice::new(case);
        let mut table = sound.clone();
        damage(&mut table, &mut dice);
        if dice.below(4) > 0 {
            fix(&mut table);
        }
        std::fs::write(&file, &table).expect("writable");
        let name = format!("table {case}");
        let unsafe_interrupts: &[&str] = if dice.below(2) == 0 {
            &["--unsafe-interrupts"]
        } else {
            &[]
        };
        let (code, report) = rehearse(&name, &[&["--dmar", path(&file)], unsafe_interrupts].concat());
        let open = wrongly_open(&report);
        // A region that firmware lays over the registers of functions opens them; that is a finding, not silence.
        assert!(
            open.iter().all(|cell| cell["target"] == "peer-bar" && code == Some(1)),
            "{name}: {open:?}"
        );
        codes[usize::try_from(code.unwrap_or_default()).expect("0 to 4")] += 1;
        let shown = iommu(&name, &["dmar", "show", path(&file)]);
        assert!(!shown.stdout.is_empty() || !shown.stderr.is_empty(), "{name}");
        if case % 4 == 0 {
            let shown = iommu(&name, &["dmar", "show", "--json", path(&file)]);
            let _: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
        }
    });
    assert!(
        codes[0] > 0 && codes[2] > 0 && codes[4] > 0,
        "every kind of end is among the cases: {codes:?}"
    );
}

#[test]
fn tables_that_lint_cannot_read_are_findings_and_noise_is_bounded() {
    let file = scratch("lint.bin");
    let built = iommu("build", &["dmar", "build", "--output", path(&file)]);
    assert_eq!(built.status.code(), Some(0));
    let sound = std::fs::read(&file).expect("it was written");
    each_case(|case| {
        let mut dice = Dice::new(case);
        let mut table = sound.clone();
        damage(&mut table, &mut dice);
        if dice.below(2) > 0 {
            fix(&mut table);
        }
        std::fs::write(&file, &table).expect("writable");
        let name = format!("lint {case}");
        let lint = iommu(&name, &["dmar", "lint", "--json", path(&file)]);
        let report: Value = serde_json::from_slice(&lint.stdout).expect("JSON");
        let findings = report["findings"].as_array().map_or(0, Vec::len);
        assert_eq!(lint.status.code() == Some(0), report["clean"] == true, "{name}");
        assert!(findings > 0 || lint.status.code() == Some(0), "{name}");
        // Building it again either gives the same bytes, with the right checksum, or says what is wrong with them.
        if case % 5 == 0 {
            let again = scratch("again.bin");
            let listing = scratch("listing.txt");
            std::fs::write(&listing, acpidump(&table)).expect("writable");
            let built = iommu(
                &name,
                &["dmar", "build", "--root", path(&listing), "--output", path(&again)],
            );
            if built.status.code() == Some(0) {
                let mut built = std::fs::read(&again).expect("written");
                table.truncate(u32::from_le_bytes([table[4], table[5], table[6], table[7]]) as usize);
                (built[9], table[9]) = (0, 0);
                assert_eq!(built, table, "{name}");
            }
        }
    });
    // Ten thousand lines of nothing.
    let log = scratch("noise.log");
    std::fs::write(
        &log,
        "DMAR: [DMA Write] Request device [\n\u{1b}[2J DRHD: handling\n".repeat(5_000),
    )
    .expect("writable");
    let noisy = iommu("noise", &["faults", path(&log)]);
    assert!(noisy.stdout.len() < 10_000, "{}", noisy.stdout.len());
    for wrong in ["--ignore=L0", "--fail-on=never", "--explain=\u{1b}[2J"] {
        let output = iommu(wrong, &["dmar", "lint", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
}

/// A listing with one function, and a table in the form of acpidump.
fn acpidump(table: &[u8]) -> String {
    let mut text = "00:02.0 0300: 1234:0001\n\tStatus: Cap-\n\nDMAR @ 0x0000000000000000\n".to_owned();
    for (line, bytes) in table.chunks(16).enumerate() {
        text.push_str(&format!("    {:04X}:", line * 16));
        for byte in bytes {
            text.push_str(&format!(" {byte:02X}"));
        }
        text.push('\n');
    }
    text
}
