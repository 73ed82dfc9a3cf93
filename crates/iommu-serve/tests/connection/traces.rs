//! Traces of real runs replay without a difference, and mistakes in them are found.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use iommu_serve::trace::{Story, TraceFile, replay, show};
use vtd_model::UnitConfig;

use crate::Rig;
use crate::client::poke;
use crate::unit::{Guest, enable, guest, store};

/// Runs a guest that maps, uses and changes a page, and gives the trace of it.
fn record(sanitizer: bool) -> String {
    let rig = Rig::with(UnitConfig::builder().sanitizer(sanitizer));
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("iommu-trace-{}-{number}", std::process::id()));
    let remapper = rig.server().machine().remapper().clone();
    let trace = TraceFile::create(&file, remapper.config()).unwrap();
    assert!(remapper.set_trace(Some(trace)).is_none());
    let Guest {
        mut unit,
        mut engine,
        memory,
    } = guest(&rig);
    enable(&mut unit);
    store(&mut engine, 0x10_0000, 4);
    store(&mut engine, 0x20_0000, 4);
    engine.read32(0, 0);
    poke(&memory, 0x6000 + 0x100 * 8, &0x21_0003u64.to_le_bytes());
    store(&mut engine, 0x10_0000, 4);
    engine.read32(0, 0);
    unit.read32(0, 0x34);
    // The file is whole at any time, as if the server had been killed here.
    let killed = fs::read_to_string(&file).unwrap();
    remapper.set_trace(None).unwrap().finish().unwrap();
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(killed, text);
    fs::remove_file(&file).unwrap();
    text
}

#[test]
fn a_recorded_run_replays_without_a_difference() {
    let text = record(false);
    let story = Story::parse(&text).unwrap();
    let outcome = replay(&story, false).unwrap();
    assert_eq!(outcome.differences, []);
    assert!(outcome.operations > 10, "{text}");
    let shown = show(&story);
    assert!(shown.contains("write GCMD"), "{shown}");
    assert!(
        shown.contains("00:07.0 write of 0x4 bytes at 0x100000 reaches 0x200000"),
        "{shown}"
    );
    assert!(shown.contains("is blocked"), "{shown}");
}

#[test]
fn a_trace_with_the_sanitizer_names_the_same_rule_again() {
    let text = record(true);
    assert!(text.contains("broken stale-translation"), "{text}");
    let outcome = replay(&Story::parse(&text).unwrap(), true).unwrap();
    assert_eq!(outcome.differences, []);
    let names: Vec<_> = outcome.broken.iter().map(|(_, rule, _)| rule.as_str()).collect();
    assert_eq!(names, ["stale-translation"]);
}

#[test]
fn a_trace_of_another_unit_differs() {
    let text = record(false);
    let changed = text.replace("reaches", "").replace("ok 0x200000", "ok 0x300000");
    assert_ne!(changed, text);
    let outcome = replay(&Story::parse(&changed).unwrap(), false).unwrap();
    assert!(
        outcome.differences.iter().any(|found| found.what.contains("0x300000")),
        "{outcome:?}"
    );
    let missing: String = text
        .lines()
        .filter(|line| !line.starts_with("word 0x6800"))
        .map(|line| format!("{line}\n"))
        .collect();
    let outcome = replay(&Story::parse(&missing).unwrap(), false).unwrap();
    assert!(
        outcome
            .differences
            .iter()
            .any(|found| found.what.contains("does not have")),
        "{outcome:?}"
    );
}
