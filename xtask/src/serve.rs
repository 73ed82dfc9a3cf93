//! Linux's own driver on our unit, served over vfio-user to a stock QEMU.

use crate::bare_metal;
use crate::linux::Programs;
use crate::report::Outcome;
use crate::suite::Depth;
use crate::tools::{self, Selection, output};

/// The kernels, and whether each is booted by default, in full, and nightly.
const KERNELS: [(Selection, [bool; 3]); 3] = [
    (tools::LINUX_6_12, [true, true, true]),
    (tools::LINUX_6_1, [false, false, true]),
    (tools::LINUX_BACKPORTED, [false, false, true]),
];

/// Boots guests whose unit, disk and DMA engine come from our server: all kernels of this depth, or those whose name contains
/// `only`.
pub(crate) fn check(depth: Depth, only: Option<&str>) -> Outcome {
    let (mut count, mut lines) = (0, Vec::new());
    for (kernel, [by_default, full, nightly]) in KERNELS {
        let wanted = match depth {
            Depth::Default => by_default,
            Depth::Full => full,
            Depth::Nightly => nightly,
        };
        if !wanted || only.is_some_and(|only| !kernel.name().contains(only)) {
            continue;
        }
        match drive(kernel, depth) {
            Outcome::Passed { count: more, detail } => {
                count += more;
                lines.push(detail);
            }
            Outcome::Failed(why) => return Outcome::Failed(format!("{}: {why}", kernel.name())),
            skipped @ Outcome::Skipped(_) => return skipped,
        }
    }
    if lines.is_empty() {
        return Outcome::Failed("no kernel has such a name".to_owned());
    }
    Outcome::passed(count, lines.join("; "))
}

fn drive(kernel: Selection, depth: Depth) -> Outcome {
    let programs = match Programs::unpack(kernel) {
        Ok(programs) => programs,
        Err(outcome) => return outcome,
    };
    let e2fs = match tools::unpack(tools::E2FS) {
        Ok(root) => root,
        Err(why) => return Outcome::Skipped(why),
    };
    let driver = match tools::static_program("e2e", "vfio-guest") {
        Ok(program) => program,
        Err(why) => return Outcome::Failed(why),
    };
    let hostile = match bare_metal::build() {
        Ok(kernel) => kernel,
        Err(why) => return Outcome::Failed(why),
    };
    // Figures are those of a product; the default form measures nothing and has no other release build of the tests.
    let mut command = if depth == Depth::Default {
        tools::built_test("served")
    } else {
        tools::release_test("served")
    };
    programs.tell(&mut command);
    let share = if depth == Depth::Default { "one" } else { "full" };
    let attack = if depth == Depth::Default { "30" } else { "120" };
    command
        .env("PORTCULLIS_HOSTILE", hostile)
        .env("PORTCULLIS_HOSTILE_SECONDS", attack)
        .env("PORTCULLIS_E2FS", e2fs.folder())
        .env("PORTCULLIS_VFIO_GUEST", driver)
        .env("PORTCULLIS_SERVED", share);
    match output(&mut command) {
        Ok(text) => {
            // A test that fails may leave its line behind a name that the harness printed.
            let lines: Vec<&str> = text
                .lines()
                .filter_map(|line| line.split_once("also: ").map(|(_, said)| said))
                .collect();
            Outcome::passed(lines.len(), lines.join("; "))
        }
        Err(why) => Outcome::Failed(why),
    }
}
