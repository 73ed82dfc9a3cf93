//! QEMU's own VT-d as a judge of the model: the same register writes, tables and DMAs on both.
//!
//! The test is `e2e`'s; here QEMU is unpacked and the test is told where it is.

use crate::report::Outcome;
use crate::tools::{self, Selection, output};

/// DMAs that are few.
const FEW: u32 = 10_000;

/// Runs the differential test against one QEMU.
pub(crate) fn check(selection: Selection, dmas: u32) -> Outcome {
    let qemu = match tools::unpack(selection) {
        Ok(unpacked) => unpacked,
        Err(why) => return Outcome::Skipped(why),
    };
    let launcher = match qemu.launcher("usr/bin/qemu-system-x86_64") {
        Ok(path) => path,
        Err(why) => return Outcome::Failed(why),
    };
    // Few programs take less time than an optimised build.
    let mut command = if dmas <= FEW {
        tools::built_test("qemu")
    } else {
        tools::release_test("qemu")
    };
    command
        .env("PORTCULLIS_QEMU", launcher)
        .env("PORTCULLIS_QEMU_DMAS", dmas.to_string());
    match output(&mut command) {
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
