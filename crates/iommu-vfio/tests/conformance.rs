//! The conformance list on the software backend; the same list runs on Linux inside a guest.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use iommu_types::Bdf;
use iommu_vfio::conformance::{self, Outcome};
use iommu_vfio::{Driver, Platform, PlatformOptions, Software};
use soft_platform::{Machine, MachineDescription};

#[test]
fn the_software_backend_keeps_every_rule_of_the_list() {
    let description = MachineDescription::two_socket().unwrap();
    let machine = Machine::build(&description, &description.to_dmar().unwrap()).unwrap();
    let platform = Platform::bring_up(machine, PlatformOptions::default()).unwrap();
    let disk: Bdf = "03:00.0".parse().unwrap();
    platform.bind(disk, Driver::Vfio).unwrap();
    let backend = Software::new(&platform, platform.user("conformance"));
    let results = conformance::run(&backend, disk);
    assert!(results.len() >= 60, "{}", results.len());
    let bad: Vec<String> = results
        .iter()
        .filter(|result| result.outcome != Outcome::Passed)
        .map(ToString::to_string)
        .collect();
    assert!(
        bad.is_empty(),
        "{} of {}:\n{}",
        bad.len(),
        results.len(),
        bad.join("\n")
    );
    println!("{} cases", results.len());
}
