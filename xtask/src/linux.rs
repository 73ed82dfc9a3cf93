//! Linux in QEMU guests as a judge of groups and of the DMAR table's reading.
//!
//! The test is `e2e`'s; here kernel, busybox and QEMU are unpacked and the test is told where they are.

use std::path::{Path, PathBuf};

use crate::report::Outcome;
use crate::suite::Depth;
use crate::tools::{self, Selection, cargo, output};

/// The kernels, and how many machines each is booted on. The first one is the default's. Five machines hold every
/// named shape; what comes after them is grown at random, senseless placements included, and belongs to the nightly form.
const KERNELS: [(Selection, [u64; 3]); 3] = [
    (tools::LINUX_6_12, [5, 5, 100]),
    (tools::LINUX_6_1, [0, 5, 20]),
    (tools::LINUX_BACKPORTED, [0, 5, 20]),
];

/// Boots the machines of this depth.
pub(crate) fn check(depth: Depth) -> Outcome {
    let seed = match depth {
        // What decides whether a change lands must not depend on the hour.
        Depth::Default | Depth::Full => 1,
        // New machines each time; the test prints the seed.
        Depth::Nightly => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |since| since.as_secs()),
    };
    let (mut functions, mut lines) = (0, Vec::new());
    for (kernel, machines) in KERNELS {
        let machines = match depth {
            Depth::Default => machines[0],
            Depth::Full => machines[1],
            Depth::Nightly => machines[2],
        };
        if machines == 0 {
            continue;
        }
        match compare(kernel, machines, seed) {
            Outcome::Passed { count, detail } => {
                functions += count;
                lines.push(detail);
            }
            other => return other,
        }
    }
    Outcome::passed(functions, format!("{} (seed {seed})", lines.join("; ")))
}

/// Runs the test with one kernel.
fn compare(kernel: Selection, machines: u64, seed: u64) -> Outcome {
    let unpacked = tools::unpack(kernel).and_then(|root| Ok((root, tools::unpack(tools::QEMU_11)?)));
    let (root, qemu) = match unpacked {
        Ok(both) => both,
        Err(why) => return Outcome::Skipped(why),
    };
    let (Some(image), Some(busybox)) = (
        kernel_image(root.folder()),
        first_existing(root.folder(), &["usr/bin/busybox", "bin/busybox"]),
    ) else {
        return Outcome::Failed(format!("{} has no kernel image or no busybox", root.folder().display()));
    };
    let launcher = match qemu.launcher("usr/bin/qemu-system-x86_64") {
        Ok(path) => path,
        Err(why) => return Outcome::Failed(why),
    };
    let mut command = cargo(&["test", "--package", "e2e", "--test", "linux", "--", "--nocapture"]);
    command
        .env("PORTCULLIS_QEMU", launcher)
        .env("PORTCULLIS_KERNEL", image)
        .env("PORTCULLIS_BUSYBOX", busybox)
        .env("PORTCULLIS_GUESTS", machines.to_string())
        .env("PORTCULLIS_GUEST_SEED", seed.to_string());
    match output(&mut command) {
        Ok(text) => {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("compared: "))
                .unwrap_or_default();
            let count = line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
            Outcome::passed(count, line)
        }
        Err(why) => Outcome::Failed(format!("PORTCULLIS_GUEST_SEED={seed}: {why}")),
    }
}

/// The image of the kernel below `root`; newer packages keep it beside the modules.
fn kernel_image(root: &Path) -> Option<PathBuf> {
    let entries = |folder: &str| {
        let entries = std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    };
    entries("boot")
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .or_else(|| {
            entries("usr/lib/modules")
                .map(|version| version.join("vmlinuz"))
                .find(|path| path.exists())
        })
}

fn first_existing(root: &Path, paths: &[&str]) -> Option<PathBuf> {
    paths.iter().map(|path| root.join(path)).find(|path| path.exists())
}
