//! Every way in which Linux uses a unit.

use vtd_model::{UnitConfig, UnitConfigBuilder};

use crate::rig::{Rig, unit, watched};
use crate::{check_disk, programs};

/// A unit in scalable mode with both stages.
fn scalable() -> UnitConfigBuilder {
    watched(UnitConfig::builder().full_scalable_mode())
}

/// Boots with these words and checks the file system that was made.
fn works(unit: UnitConfigBuilder, words: &str) {
    let Some(programs) = programs(true) else { return };
    let mut rig = Rig::new(&programs, unit);
    let talk = rig.run("disk", words, |_, _| true);
    for step in ["made", "mounted", "same", "end"] {
        assert!(talk.says(step), "{words}: {step}\n{}", talk.console);
    }
    assert_eq!(talk.trouble(), Vec::<&str>::new(), "{words}\n{}", talk.console);
    assert_eq!(rig.said.rules(), Vec::<&str>::new(), "{words}: {:?}", rig.said.broken);
    assert_eq!(*rig.said.faults.lock().unwrap(), Vec::<String>::new(), "{words}");
    rig.finish();
    check_disk(&programs, &rig);
    println!("also: {words}: no message of trouble, no broken rule, the file system is whole");
}

/// Boots with device-TLBs and checks that they were used, and the file system.
fn works_with_device_tlbs(unit: UnitConfigBuilder, words: &str) {
    let Some(programs) = programs(true) else { return };
    let mut rig = Rig::new(&programs, unit.device_tlb(true));
    let trace = rig.trace();
    let talk = rig.run("disk", words, |_, _| true);
    assert!(talk.says("same"), "{words}\n{}", talk.console);
    assert_eq!(talk.trouble(), Vec::<&str>::new(), "{words}\n{}", talk.console);
    assert_eq!(rig.said.rules(), Vec::<&str>::new(), "{words}: {:?}", rig.said.broken);
    rig.end_trace();
    // Linux enabled ATS: the disk asked for translations, and used them.
    let text = std::fs::read_to_string(&trace).unwrap();
    let count = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    let (asked, hits) = (count("ask 00:07.0"), count("hit 00:07.0"));
    assert!(asked > 0 && hits > 0, "{words}: {asked} {hits}");
    rig.finish();
    check_disk(&programs, &rig);
    println!(
        "also: device-TLBs, {words}: {asked} translation requests, {hits} translated ones, the file system is whole"
    );
}

#[test]
fn legacy_mode_with_device_tlbs() {
    works_with_device_tlbs(unit(), "iommu.strict=1");
}

#[test]
fn scalable_mode_with_device_tlbs() {
    works_with_device_tlbs(scalable(), "intel_iommu=sm_on iommu.strict=1");
}

#[test]
fn legacy_mode_with_lazy_invalidation() {
    works(unit(), "iommu.strict=0");
}

#[test]
fn legacy_mode_with_five_levels() {
    works(unit().five_levels(true), "iommu.strict=1");
}

#[test]
fn legacy_mode_with_strict_invalidation() {
    works(unit(), "iommu.strict=1");
}

#[test]
fn legacy_mode_with_pass_through() {
    works(unit(), "iommu=pt");
}

#[test]
fn legacy_mode_with_caching_mode() {
    works(unit().caching_mode(true), "iommu.strict=0");
}

#[test]
fn legacy_mode_with_three_levels() {
    works(unit().four_levels(false), "iommu.strict=1");
}

#[test]
fn scalable_mode_with_strict_invalidation() {
    works(scalable(), "intel_iommu=sm_on iommu.strict=1");
}

#[test]
fn scalable_mode_with_lazy_invalidation() {
    works(scalable(), "intel_iommu=sm_on iommu.strict=0");
}

#[test]
fn scalable_mode_with_pass_through() {
    works(scalable(), "intel_iommu=sm_on iommu=pt");
}

#[test]
fn scalable_mode_with_caching_mode_and_five_levels() {
    let unit = scalable()
        .caching_mode(true)
        .five_levels(true)
        .first_stage_five_levels(true);
    works(unit, "intel_iommu=sm_on iommu.strict=1");
}
