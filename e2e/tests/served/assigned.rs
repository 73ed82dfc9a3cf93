//! Our user-space driver, on Linux's VFIO, on our unit.

use e2e::vfio::disk::{Author, CAPACITY, GIVEN, WRITTEN, content};

use iommu_serve::trace::{Story, replay};

use crate::programs;
use crate::rig::{Rig, Way, unit};

/// The image before: the owner's part, and zeros.
fn image() -> Vec<u8> {
    let mut image = content(Author::Owner, 0, GIVEN);
    image.resize(image.len() / GIVEN * CAPACITY, 0);
    image
}

/// The probe that Linux decides otherwise: what a driver maps for writing alone, it lets devices read too.
const WRITE_ONLY: &str = "from a write-only mapping";

/// Whether the entry that Linux wrote for the page of a probe has both rights: then it was not the unit that let it through.
fn linux_allowed_reading(trace: &str, probe: &str) -> bool {
    let address = probe.split(' ').nth(2).unwrap();
    let before = trace.split(&format!("dma 00:08.0 read {address} ")).next().unwrap();
    let entry = before.lines().rfind(|line| line.starts_with("word ")).unwrap();
    let value = entry.rsplit("0x").next().unwrap();
    u64::from_str_radix(value, 16).unwrap() & 3 == 3
}

#[test]
fn a_served_disk_and_engine_are_driven_from_user_space_through_linux_vfio() {
    let Some(programs) = programs(true) else { return };
    let mut rig = Rig::with(&programs, unit(), Way::Through, Some(image()));
    let trace = rig.trace();
    let talk = rig.run("vfio", "iommu.strict=1", |_, _| true);
    assert!(talk.says("disk ended 0"), "{}", talk.console);
    assert!(talk.says("probe ended 0"), "{}", talk.console);
    // Every transfer moved where it is allowed and was blocked where it is not.
    let probes = talk.all("probe ");
    let right = probes.iter().filter(|line| line.starts_with("right")).count();
    let wrong: Vec<_> = probes.iter().filter(|line| line.starts_with("WRONG")).collect();
    assert!(right >= 8, "{probes:?}");
    assert_eq!(rig.said.rules(), Vec::<&str>::new(), "{:?}", rig.said.broken);
    assert!(!rig.said.faults.lock().unwrap().is_empty());

    rig.end_trace();
    // The whole run does again what it did, with no VM.
    let text = std::fs::read_to_string(&trace).unwrap();
    let outcome = replay(&Story::parse(&text).unwrap(), true).unwrap();
    assert_eq!(outcome.differences, []);
    assert!(outcome.operations > 500, "{}", outcome.operations);
    for probe in wrong {
        assert!(
            probe.ends_with(WRITE_ONLY) && linux_allowed_reading(&text, probe),
            "{probe}"
        );
    }

    rig.finish();
    let mut expected = image();
    let written = content(Author::Driver, GIVEN, WRITTEN);
    let at = expected.len() / CAPACITY * GIVEN;
    expected[at..at + written.len()].copy_from_slice(&written);
    assert!(
        std::fs::read(rig.disk()).unwrap() == expected,
        "the disk does not hold what the driver wrote, and only that"
    );
    println!(
        "also: our driver on Linux's VFIO on our unit: a disk of {CAPACITY} sectors read and written, {right} probes right"
    );
}
