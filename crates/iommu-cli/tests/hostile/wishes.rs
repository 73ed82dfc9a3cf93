//! Requests that cannot be met, and devices that write where they should not.

use serde_json::Value;

use crate::{MACHINE, iommu, path, rehearse, scratch, wrongly_open};

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
    said("endless", &["--dmar", "/dev/zero"], 2, "longer than 16 MiB");
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
