//! Tries the conformance list on Linux's VFIO: `conformance BDF`, with the device bound to vfio-pci. The last line tells
//! how many cases passed; the status is 0 if all did.
#![cfg_attr(not(target_os = "linux"), allow(unused, reason = "there is no VFIO elsewhere"))]

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    use iommu_vfio::Linux;
    use iommu_vfio::conformance::{Outcome, run};

    let Some(function) = std::env::args().nth(1).and_then(|name| name.parse().ok()) else {
        eprintln!("usage: conformance BDF, for example 0000:03:00.0");
        return ExitCode::from(2);
    };
    let results = run(&Linux::new(), function);
    let passed = results
        .iter()
        .filter(|result| result.outcome == Outcome::Passed)
        .count();
    let skipped = results
        .iter()
        .filter(|result| matches!(result.outcome, Outcome::Skipped(_)))
        .count();
    for result in &results {
        println!("{result}");
    }
    println!(
        "{passed} passed, {skipped} skipped, {} failed",
        results.len() - passed - skipped
    );
    ExitCode::from(u8::from(passed + skipped != results.len()))
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    ExitCode::from(2)
}
