//! Proof that the lower layers do without the standard library.
//!
//! `no-std-check` is a static library with its own panic handler that uses every crate of layers 0 to 3. If any
//! of them pulled in `std`, there would be two panic handlers and the build would fail.

use crate::report::Outcome;
use crate::target;
use crate::tools::{output, workspace};

/// Crates that the check covers, for its message.
const COVERED: [&str; 9] = [
    "iommu-types",
    "acpi-dmar",
    "vtd-spec",
    "iommu-iova",
    "iommu-pagetable",
    "iommu-groups",
    "iommu-dma",
    "vtd-driver",
    "vtd-model",
];

/// Builds the freestanding library.
pub(crate) fn check() -> Outcome {
    let folder = workspace().join("no-std-check");
    let target = match target::folder() {
        Ok(folder) => folder.join("no-std-check"),
        Err(why) => return Outcome::Failed(why),
    };
    let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", target)
        .args(["build", "--quiet", "--release"]);
    match output(&mut command) {
        Ok(_) => Outcome::passed(COVERED.len(), format!("{} crates build without std", COVERED.len())),
        Err(why) => Outcome::Failed(why),
    }
}
