//! What a driver reads from a disk and writes to it, seen from the disk's image.
//!
//! `iommu run --backend linux` was there before the driver: what it did not put back, the driver or the image shows.

use e2e::guest::record::Record;
use e2e::vfio::disk::{self, Author, CAPACITY, GIVEN, WRITTEN, content};
use serde_json::Value;

/// The image before: the owner's part, and zeros.
pub(crate) fn image() -> Vec<u8> {
    let mut image = content(Author::Owner, 0, GIVEN);
    image.resize(image.len() / GIVEN * CAPACITY, 0);
    image
}

/// The image after.
fn expected() -> Vec<u8> {
    let mut expected = image();
    let written = content(Author::Driver, GIVEN, WRITTEN);
    let at = expected.len() / CAPACITY * GIVEN;
    expected[at..at + written.len()].copy_from_slice(&written);
    expected
}

/// `iommu run --backend linux` used all of the disk, and was stopped where it should be.
fn rehearsal(record: &Record, wrong: &mut Vec<String>) {
    let text = record.text("rehearsal").into_owned();
    let report: Value = serde_json::from_str(&text).unwrap_or_default();
    let disk = &report["disk"];
    let whole = disk["bytes"].as_u64().filter(|bytes| *bytes > 0);
    let holds = [
        record.statuses.get("rehearsal") == Some(&0),
        whole.is_some() && disk["verified"].as_u64() == whole,
        disk["interrupts"].as_u64() > Some(0),
        disk["withheld"] == 2 && disk["withheld_blocked"] == 2,
        // Linux prints few faults when there were many just before.
        disk["withheld_recorded"].as_u64() > Some(0),
    ];
    if holds.contains(&false) {
        let said = record.text("rehearsal.err");
        wrong.push(format!(
            "`iommu run --backend linux`: {holds:?}, ended {:?}: {text} {said}",
            record.statuses.get("rehearsal")
        ));
    }
}

/// Returns how many interrupts arrived.
pub(crate) fn judge(record: &Record, image: &[u8], wrong: &mut Vec<String>) -> u64 {
    rehearsal(record, wrong);
    let text = record.text("disk").into_owned();
    let interrupts = text
        .trim()
        .strip_prefix("interrupts ")
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    if record.statuses.get("disk") != Some(&0) || interrupts == 0 {
        wrong.push(format!("the disk's driver: {text} {}", record.text("disk.err")));
    }
    let here = super::folder().join("disk-in-software");
    std::fs::write(&here, self::image()).expect("the image can be written");
    let (backend, function) = super::software::disk(&here);
    if let Err(why) = disk::run(&backend, function) {
        wrong.push(format!("the disk's driver in software: {why}"));
    }
    if std::fs::read(&here).expect("the image can be read") != expected() {
        wrong.push("the disk in software does not hold what the driver wrote, and only that".to_owned());
    }
    if image != expected() {
        wrong.push("the disk does not hold what the driver wrote, and only that".to_owned());
    }
    interrupts
}
