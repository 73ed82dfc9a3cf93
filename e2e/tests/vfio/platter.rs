//! What a driver reads from a disk and writes to it, seen from the disk's image.

use e2e::guest::record::Record;
use e2e::vfio::disk::{self, Author, CAPACITY, GIVEN, WRITTEN, content};

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

/// Returns how many interrupts arrived.
pub(crate) fn judge(record: &Record, image: &[u8], wrong: &mut Vec<String>) -> u64 {
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
