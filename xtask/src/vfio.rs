//! Linux's VFIO in a QEMU guest as a judge of `iommu-vfio`.
//!
//! The test is `e2e`'s; here the program for the guest is built, and the test is told where all of it is.

use crate::linux::Programs;
use crate::report::Outcome;
use crate::tools::{self, output};

/// Boots the guest and compares.
pub(crate) fn check() -> Outcome {
    let programs = match Programs::unpack(tools::LINUX_6_12) {
        Ok(programs) => programs,
        Err(outcome) => return outcome,
    };
    let guest = match tools::static_program("e2e", "vfio-guest") {
        Ok(program) => program,
        Err(why) => return Outcome::Failed(why),
    };
    let mut command = tools::built_test("vfio");
    programs.tell(&mut command);
    match output(command.env("PORTCULLIS_VFIO_GUEST", guest)) {
        Ok(text) => {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("compared: "))
                .unwrap_or_default();
            let count = line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
            Outcome::passed(count, line)
        }
        Err(why) => Outcome::Failed(why),
    }
}
