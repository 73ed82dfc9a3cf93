//! What is said: colours, figures, help, and of files that are not there.

use std::process::Command;

use crate::{iommu, path, scratch, short_run, table, text};

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
