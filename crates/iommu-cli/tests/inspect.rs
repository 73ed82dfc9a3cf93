//! `iommu inspect` as people use it.

#![expect(clippy::expect_used, reason = "a test reports by panicking, its helpers too")]

use std::process::{Command, Output};

use serde_json::Value;

fn inspect(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_iommu"))
        .args(["inspect", "--mem", "4M"])
        .args(arguments)
        .output()
        .expect("the binary starts")
}

fn report(arguments: &[&str]) -> Value {
    let output = inspect(&[&["--json"], arguments].concat());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{error}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The context of a requester, on whichever unit it is.
fn context<'a>(report: &'a Value, source: &str) -> Option<(&'a Value, &'a Value)> {
    report["units"].as_array().expect("units").iter().find_map(|unit| {
        let contexts = unit["contexts"].as_array().expect("contexts");
        Some((unit, contexts.iter().find(|context| context["source"] == source)?))
    })
}

#[test]
fn the_tables_of_the_sample_say_what_was_set_up() {
    let report = report(&[]);
    assert_eq!(report["schema"], "portcullis-inspect-1");
    assert_eq!(report["findings"], Value::Array(Vec::new()));
    let (unit, disk) = context(&report, "03:00.0").expect("the disk is given away");
    assert_eq!(disk["owner"], "guest A");
    assert_eq!(unit["translating"], true);
    let domain = unit["domains"]
        .as_array()
        .expect("domains")
        .iter()
        .find(|domain| domain["domain"] == disk["domain"])
        .expect("its domain");
    // The guest's memory, and the page that the rehearsal maps for reading.
    assert_eq!(domain["bytes"], (4 << 20) + 4096);
    let read_only = domain["ranges"].as_array().expect("ranges").last().expect("some");
    assert_eq!(
        (&read_only["iova"], &read_only["write"]),
        (&Value::from("0xc8000000"), &Value::from(false))
    );
    // Who was given to nobody has no entry; who has reserved memory has that.
    assert!(context(&report, "00:1d.0").is_none());
    assert_eq!(
        context(&report, "00:1a.0").expect("there").1["owner"],
        "host, reserved memory only"
    );
}

#[test]
fn an_address_is_followed_through_every_table() {
    let report = report(&["--address", "03:00.0", "0x1234"]);
    let way = &report["address"];
    let steps: Vec<&str> = way["steps"]
        .as_array()
        .expect("steps")
        .iter()
        .filter_map(|step| step["what"].as_str())
        .collect();
    assert_eq!(
        steps,
        [
            "unit",
            "registers",
            "root entry of bus 03",
            "context entry of 03:00.0",
            "level 4 entry 0",
            "level 3 entry 0",
            "level 2 entry 0",
            "level 1 entry 1",
        ]
    );
    let at = way["host_address"].as_str().expect("it is mapped");
    assert!(at.ends_with("234"), "{at}");
    assert_eq!(way["unit_answers"][0], format!("read: {at}"));
    assert_eq!(way["unit_answers"][1], format!("write: {at}"));
}

#[test]
fn an_address_that_leads_nowhere_says_where_it_ends() {
    let unmapped = report(&["--address", "03:00.0", "0xc8001000"]);
    let way = &unmapped["address"];
    assert_eq!(way["host_address"], Value::Null);
    let last = way["steps"].as_array().expect("steps").last().expect("some");
    assert_eq!(last["what"], "level 1 entry 1");
    assert!(last["says"].as_str().expect("words").starts_with("not present"));
    assert!(way["unit_answers"][1].as_str().expect("words").contains("05h"));

    let read_only = report(&["--address", "03:00.0", "0xc8000000"]);
    assert_eq!(read_only["address"]["allowed"], Value::from(vec!["read"]));
    assert!(
        read_only["address"]["unit_answers"][1]
            .as_str()
            .expect("words")
            .contains("blocked")
    );

    let nobodys = report(&["--address", "00:1d.0", "0x1000"]);
    let last = nobodys["address"]["steps"]
        .as_array()
        .expect("steps")
        .last()
        .expect("some")
        .clone();
    assert!(
        last["says"].as_str().expect("words").starts_with("not present"),
        "{last}"
    );

    // Requests of a card behind a PCIe-to-PCI bridge carry the bridge's requester ID.
    let card = report(&["--address", "0c:04.0", "0x1000"]);
    assert_eq!(card["address"]["source"], "0c:00.0");
}

#[test]
fn people_get_the_same_in_words() {
    let output = inspect(&["--address", "03:00.0", "0"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for expected in [
        "translating, legacy mode, root table at",
        "03:00.0 (guest A): present, domain",
        "the tables say what was set up, no more and no less",
        "it leads to",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn mistakes_on_the_command_line_are_named() {
    for (arguments, expected) in [
        (&["--address", "03:00.0", "here"][..], "is no address"),
        (&["--address", "1f:1f.9", "0"], "--address"),
        (&["--address", "7f:00.0", "0"], "no such function"),
        (&["--assign", "7f:00.0"], "no such function"),
        (&["--mem", "3"], "--mem"),
    ] {
        let output = inspect(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
}
