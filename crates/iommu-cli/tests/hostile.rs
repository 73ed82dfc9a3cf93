//! The binary on tables, machine files, kept matrices, snapshots and logs that nobody means well with: a documented exit code, a
//! message, no panic, in bounded time, and never a cell that shows a function in doubt reaching what is not its own.

#![expect(clippy::expect_used, reason = "a test reports by panicking, its helpers too")]

mod fixture;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Time for all cases of one kind; at least [`FEWEST`] are tried however slow the machine is.
const BUDGET: Duration = Duration::from_secs(3);
const FEWEST: u64 = 40;
/// Time for one command.
const PATIENCE: Duration = Duration::from_secs(60);
/// The machine that mistakes are made in.
const MACHINE: &str = include_str!("../../../machines/two-socket.toml");

/// Xorshift: the same cases in every run.
struct Dice(u64);

impl Dice {
    fn new(case: u64) -> Self {
        Self((case + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).expect("below a usize")
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{name}"))
}

fn path(file: &Path) -> &str {
    file.to_str().expect("a plain path")
}

/// Runs the binary, and holds it to what every command promises.
fn iommu(case: &str, arguments: &[&str]) -> Output {
    let start = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_iommu"))
        .args(arguments)
        .output()
        .expect("the binary starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| (0..=4).contains(&code)),
        "{case}: {code:?}: {said}"
    );
    assert!(
        !said.contains("panicked") && !said.contains("RUST_BACKTRACE"),
        "{case}: {said}"
    );
    assert!(start.elapsed() < PATIENCE, "{case}: {:?}", start.elapsed());
    if matches!(code, Some(2 | 3)) {
        assert!(said.len() > 20, "{case}: a failure says what is wrong: {said:?}");
    }
    output
}

/// A short rehearsal; its report is one JSON document however it ends.
fn rehearse(case: &str, more: &[&str]) -> (Option<i32>, Value) {
    let run = iommu(
        case,
        &[&["run", "--json", "--mem", "4M", "--bytes", "1M"], more].concat(),
    );
    let report: Value = serde_json::from_slice(&run.stdout).expect(case);
    let code = run.status.code();
    let errors = [&report["error"], &report["summary"]["failed_checks"][0]];
    if code != Some(0) && report["matrix"].as_array().is_none_or(Vec::is_empty) {
        assert!(
            errors.iter().any(|text| text.is_string()),
            "{case}: {code:?} without a reason"
        );
    }
    (code, report)
}

/// Cells in which somebody reached what the table does not clearly leave open or reserve for it.
fn wrongly_open(report: &Value) -> Vec<&Value> {
    const FOREIGN: [&str; 5] = ["other-guest", "host-memory", "rmrr", "msi-window", "peer-bar"];
    const GROUNDS: [&str; 3] = [
        "no unit of the table covers",
        "firmware reserves the region for it",
        "its unit does not remap interrupts",
    ];
    let cells = report["matrix"].as_array().map_or(&[][..], Vec::as_slice);
    let open = |cell: &&Value| {
        let because = cell["because"].as_str().unwrap_or_default();
        cell["seen"] != "blocked"
            && FOREIGN.iter().any(|target| cell["target"] == *target)
            && !GROUNDS.iter().any(|ground| because.contains(ground))
    };
    cells.iter().filter(open).collect()
}

/// Tries cases until the time is used up.
fn each_case(mut try_one: impl FnMut(u64)) {
    let start = Instant::now();
    let mut case = 0;
    while case < FEWEST || start.elapsed() < BUDGET {
        try_one(case);
        case += 1;
    }
}

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
fn mistakes_in_machine_files_name_file_and_line() {
    let file = scratch("machine.toml");
    // What is replaced by what; each has to be found by the reader.
    let mistakes = [
        ("host-address-width = 46", "host-address-width = 0"),
        ("host-address-width = 46", "host-address-width = 255"),
        ("host-address-width = 46", "host-address-width = -1"),
        ("base = 0x0", "base = 0xffff_ffff_ffff_f000"),
        ("size = \"2 GiB\"", "size = \"99999999 TiB\""),
        ("size = \"2 GiB\"", "size = 1"),
        ("buses = \"00-ff\"", "buses = \"ff-00\""),
        ("buses = \"01-04\"", "buses = \"00-04\""),
        ("buses = \"02-04\"", "buses = \"01-04\""),
        ("buses = \"0b-0c\"", "buses = \"04-0c\""),
        ("bdf = \"03:00.0\"", "bdf = \"00:14.0\""),
        ("bdf = \"03:00.0\"", "bdf = \"09:00.0\""),
        ("bdf = \"03:00.0\"", "parent = \"nobody\"\nslot = \"00.0\""),
        ("bdf = \"03:00.0\"", "parent = \"NVMe disk\"\nslot = \"00.0\""),
        ("bdf = \"03:00.0\"", "bdf = \"0001:03:00.0\""),
        ("kind = \"switch-upstream\"", "kind = \"magic\""),
        ("kind = \"switch-upstream\"", "kind = \"endpoint\""),
        (
            "window = { base = 0x8000_0000, size = \"1 GiB\" }",
            "window = { base = 0, size = \"1 GiB\" }",
        ),
        (
            "window = { base = 0x8000_0000, size = \"1 GiB\" }",
            "window = { base = 0xffff_f000, size = \"1 GiB\" }",
        ),
        ("base = 0xfed9_1000", "base = 0xfed9_0000"),
        ("base = 0xfed9_1000", "base = 0"),
        ("path = \"00:14.0\"", "path = \"00:99.9\""),
        ("path = \"00:14.0\"", "path = \"/\""),
        ("\n[[rmrr]]", "\n[[rmrr"),
        ("\n[[rmrr]]", "\n[[reserved]]"),
        ("name = \"two-socket\"", "name = 7"),
        ("dma-bits = 32", "dma-bits = 33"),
        ("name = \"GPU\"", "name = \"NVMe disk\""),
        ("ids = \"144d:a808\"", "ids = \"144d-a808\""),
    ];
    for (from, to) in mistakes {
        assert!(MACHINE.contains(from), "{from:?} is in the sample");
        std::fs::write(&file, MACHINE.replacen(from, to, 1)).expect("writable");
        let (code, report) = rehearse(to, &[path(&file)]);
        assert_eq!(code, Some(2), "{from:?} -> {to:?}");
        let said = report["error"].as_str().unwrap_or_default();
        let place = said.split_once("machine.toml:").map_or("", |(_, place)| place);
        assert!(
            place.starts_with(|c: char| c.is_ascii_digit()),
            "{from:?} -> {to:?}: {said}"
        );
    }
}

#[test]
fn noise_in_machine_files_and_kept_matrices_ends_with_a_message() {
    let (machine, kept) = (scratch("noise.toml"), scratch("noise.kept"));
    let sound = scratch("sound.kept");
    let (code, _) = rehearse("keep", &["--keep", path(&sound)]);
    assert_eq!(code, Some(0));
    let matrix = std::fs::read(&sound).expect("it was kept");
    let noisy = |text: &[u8], dice: &mut Dice| {
        let mut text = text.to_vec();
        match dice.below(4) {
            0 => text.truncate(dice.below(text.len())),
            1 => {
                let at = dice.below(text.len());
                text[at] = dice.pick(&[0, 0xff, b'"', b'\n', b'#', b'9', b']']);
            }
            2 => {
                let (at, len) = (dice.below(text.len()), dice.below(80));
                text.drain(at..(at + len).min(text.len()));
            }
            _ => {
                let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
                let (a, b) = (dice.below(lines.len()), dice.below(lines.len()));
                let mut lines = lines.clone();
                lines.swap(a, b);
                text = lines.concat();
            }
        }
        text
    };
    each_case(|case| {
        let mut dice = Dice::new(case);
        let name = format!("noise {case}");
        if case % 2 == 0 {
            std::fs::write(&machine, noisy(MACHINE.as_bytes(), &mut dice)).expect("writable");
            let (_, report) = rehearse(&name, &[path(&machine)]);
            let open = wrongly_open(&report);
            assert!(open.is_empty(), "{name}: {open:?}");
        } else {
            std::fs::write(&kept, noisy(&matrix, &mut dice)).expect("writable");
            let (code, _) = rehearse(&name, &["--expect", path(&kept)]);
            assert!(matches!(code, Some(0..=2)), "{name}: {code:?}");
        }
    });
}

#[test]
fn odd_wishes_say_what_to_ask_for() {
    let said = |case: &str, more: &[&str], expected: i32, words: &str| {
        let (code, report) = rehearse(case, more);
        let checks = report["summary"]["failed_checks"].to_string();
        let text = format!("{}{checks}", report["error"].as_str().unwrap_or_default());
        assert_eq!(code, Some(expected), "{case}: {text}");
        assert!(text.contains(words), "{case}: {text}");
    };
    said(
        "nobody",
        &["--assign", "09:00.0"],
        2,
        "those with a DMA engine: 0000:03:00.0",
    );
    said(
        "a bridge",
        &["--assign", "00:1c.0"],
        2,
        "name a device below it: 0000:0c:04.0 0000:0c:05.0",
    );
    said("no engine", &["--assign", "00:00.0"], 4, "has a DMA engine");
    let run = iommu("too much", &["run", "--json", "--mem", "1T"]);
    let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    assert_eq!(run.status.code(), Some(2));
    assert!(
        report["error"]
            .as_str()
            .is_some_and(|text| text.contains("ask for less")),
        "{report}"
    );
    said(
        "nowhere",
        &["--keep", "/nonexistent/folder/file"],
        3,
        "cannot be written",
    );
    said("endless", &["--dmar", "/dev/zero"], 3, "longer than 16 MiB");
    let mut lone = MACHINE.replace("include-pci-all = true", "");
    lone = lone.replace(
        "    { kind = \"hpet\"",
        "    { kind = \"endpoint\", path = \"00:1a.0\" },\n    { kind = \"hpet\"",
    );
    let file = scratch("lone.toml");
    std::fs::write(&file, lone).expect("writable");
    said(
        "unserved",
        &[path(&file), "--assign", "00:1e.0"],
        1,
        "leave it to the host",
    );
    let (code, _) = rehearse("twice", &["--assign", "06:00.0", "06:00.0", "06:00.1"]);
    assert_eq!(code, Some(0));
    let (code, _) = rehearse("with reserved memory", &["--assign", "00:1a.0"]);
    assert_eq!(code, Some(0));
}

#[test]
fn a_register_that_a_group_peer_wrote_is_not_taken_for_an_arrival() {
    // The card without access control first: its ports write each other's registers before others try the same.
    let cut = |mark: &str| MACHINE.find(mark).expect("in the sample");
    let (one, two, rest) = (
        cut("# Socket 0: a switch"),
        cut("# Socket 1: a network card"),
        cut("[[function]]\nname = \"accelerator\""),
    );
    let file = scratch("card-first.toml");
    let text = [
        &MACHINE[..one],
        &MACHINE[two..rest],
        &MACHINE[one..two],
        &MACHINE[rest..],
    ]
    .concat();
    std::fs::write(&file, text).expect("writable");
    let (code, report) = rehearse("card first", &[path(&file)]);
    assert_eq!(code, Some(0), "{:?}", wrongly_open(&report));
}

#[test]
fn more_functions_than_pages_is_said_and_ends() {
    let start = MACHINE.find(
        "# ---------------------------------------------------------------------------------------------- functions",
    );
    let start = start.or_else(|| MACHINE.find("[[function]]")).expect("functions");
    let mut text = MACHINE[..start].to_owned();
    for device in 1..30 {
        for function in 0..8 {
            text.push_str(&format!(
                "[[function]]\nname = \"f{device}.{function}\"\nbdf = \"00:{device:02x}.{function}\"\nkind = \
                 \"integrated-endpoint\"\nmultifunction = true\nids = \"1234:5678\"\nengine = true\n"
            ));
        }
    }
    let file = scratch("many.toml");
    std::fs::write(&file, text).expect("writable");
    let all: Vec<String> = (1..30).map(|device| format!("00:{device:02x}.0")).collect();
    let mut arguments = vec!["run", "--json", "--mem", "1M", "--bytes", "1M", path(&file), "--assign"];
    arguments.extend(all.iter().map(String::as_str));
    let run = iommu("many", &arguments);
    let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    assert_eq!(run.status.code(), Some(2), "{report}");
    assert!(
        report["error"]
            .as_str()
            .is_some_and(|text| text.contains("give at least")),
        "{report}"
    );
}

/// Something wrong with an archive, or with what it holds.
fn damage_archive(archive: &mut Vec<u8>, dice: &mut Dice) {
    match dice.below(6) {
        0 => archive.truncate(dice.below(archive.len())),
        1 => {
            for _ in 0..=dice.below(200) {
                let at = dice.below(archive.len());
                archive[at] ^= 1 << dice.below(8);
            }
        }
        // Texts and numbers that files hold.
        2 => {
            let (from, to) = dice.pick(&[
                ("0000:01:00.0", "0000:ff:1f.7"),
                ("iommu_groups/1", "iommu_groups/9"),
                ("drivers/nouveau", "drivers/$(a;b)c"),
                ("drivers/igb", "drivers/../"),
                ("pci0000:00", "pci\x1b[31m:00"),
                ("0x000000007a", "0xffffffffff"),
                ("fed90000", "zzzzzzzz"),
                ("DMAR: [DMA", "DMAR: DMA]"),
                ("nvme0n1p2", "../../../"),
                ("root=/dev/", "\u{9b}31mxxxx"),
            ]);
            let (from, to) = (from.as_bytes(), to.as_bytes());
            let mut at = 0;
            while let Some(found) = archive[at..].windows(from.len()).position(|bytes| bytes == from) {
                at += found;
                let len = to.len().min(from.len());
                archive[at..at + len].copy_from_slice(&to[..len]);
                at += from.len();
            }
        }
        // Configuration space: capability lists, bus numbers, header types.
        3 => {
            let spaces: Vec<usize> = archive
                .chunks_exact(512)
                .enumerate()
                .filter(|(_, block)| block.starts_with(&[0x34, 0x12]))
                .map(|(block, _)| block * 512)
                .collect();
            for _ in 0..=dice.below(4) {
                let at = spaces.get(dice.below(spaces.len())).copied().unwrap_or_default();
                let at = at + dice.pick(&[0x06, 0x0e, 0x19, 0x1a, 0x34, 0x41, 0x42, 0x102, 0x103]);
                if let Some(byte) = archive.get_mut(at) {
                    *byte = dice.pick(&[0, 1, 2, 0x40, 0x81, 0xff]);
                }
            }
        }
        4 => {
            let at = 512 * dice.below(archive.len() / 512);
            let block = archive[at..at + 512].to_vec();
            let to = 512 * dice.below(archive.len() / 512);
            archive.splice(to..to, block);
        }
        _ => {
            let at = 512 * dice.below(archive.len() / 512);
            archive.drain(at..(at + 512 * (1 + dice.below(8))).min(archive.len()));
        }
    }
}

/// A line of a script that is neither a comment nor one of the shapes that plans have.
fn strange_line(script: &str) -> Option<&str> {
    const SHAPES: [&str; 5] = [
        "echo ",
        "[ -d /sys/bus/pci/drivers/vfio-pci ] || modprobe ",
        "if [ -e /sys/",
        "set -e",
        "exit 1",
    ];
    let harmless = |c: char| c.is_ascii_alphanumeric() || " /:.-_+>|[];&\",".contains(c);
    script.lines().find(|line| {
        let known = SHAPES.iter().any(|shape| line.starts_with(shape)) && line.chars().all(harmless);
        !(line.starts_with('#') || known)
    })
}

#[test]
fn damaged_snapshots_give_a_message_or_a_part_and_no_strange_command() {
    let machine = fixture::Fixture::new("hostile");
    let file = scratch("snapshot.tar");
    let root = machine.root.clone();
    let taken = iommu("take", &["snapshot", "--root", path(&root), path(&file)]);
    assert_eq!(taken.status.code(), Some(0));
    let sound = std::fs::read(&file).expect("it was written");
    let commands: [&[&str]; 12] = [
        &[],
        &["groups"],
        &["groups", "--tree", "-s", "01:"],
        &["explain", "01:00.0"],
        &["explain", "eth0", "nvme0n1"],
        &["check", "01:00.0"],
        &["plan", "01:00.0", "--format", "sysfs", "--anyway"],
        &["plan", "04:00.0", "--format", "sysfs", "--undo", "--anyway"],
        &["plan", "01:00.0", "--json"],
        &["doctor"],
        &["faults", "-s", "04:00.1"],
        &["dmar", "lint"],
    ];
    let mut codes = [0; 5];
    each_case(|case| {
        let mut dice = Dice::new(case);
        let mut archive = sound.clone();
        for _ in 0..=dice.below(3) {
            if archive.len() > 1024 {
                damage_archive(&mut archive, &mut dice);
            }
        }
        std::fs::write(&file, &archive).expect("writable");
        let command = commands[usize::try_from(case).expect("small") % commands.len()];
        let name = format!("snapshot {case} {command:?}");
        let output = iommu(&name, &[command, &["--root", path(&file)]].concat());
        codes[usize::try_from(output.status.code().unwrap_or_default()).expect("0 to 4")] += 1;
        let text = String::from_utf8(output.stdout).expect("UTF-8 whatever the machine says");
        let terminal = |c: char| c.is_control() && c != '\n';
        assert!(!text.chars().any(terminal), "{name}: nothing that a terminal obeys");
        if command.contains(&"sysfs") {
            assert_eq!(strange_line(&text), None, "{name}: {text}");
        }
    });
    assert!(codes[0] > 0 && codes[1] > 0, "some are still of use: {codes:?}");
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
