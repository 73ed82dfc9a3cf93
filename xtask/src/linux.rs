//! Linux in QEMU guests as a judge of groups, of the DMAR table's reading and of the host tool.
//!
//! The tests are `e2e`'s; here kernel, busybox and QEMU are unpacked, the tool is built so that it runs in a guest
//! without libraries, and the tests are told where all of it is.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::report::Outcome;
use crate::suite::Depth;
use crate::tools::{self, Selection, output};

/// What one kernel is booted on.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// How often every named shape is built, with other details each time.
    rounds: u64,
    /// Machines grown at random, senseless placements included.
    trees: u64,
}

impl Share {
    const NONE: Self = Self::of(0, 0);

    const fn of(rounds: u64, trees: u64) -> Self {
        Self { rounds, trees }
    }
}

/// The kernels, and what each is booted on by default, in full, and nightly.
const KERNELS: [(Selection, [Share; 3]); 3] = [
    (tools::LINUX_6_12, [Share::of(1, 0), Share::of(2, 0), Share::of(2, 100)]),
    (tools::LINUX_6_1, [Share::NONE, Share::of(1, 0), Share::of(1, 20)]),
    (
        tools::LINUX_BACKPORTED,
        [Share::NONE, Share::of(1, 0), Share::of(1, 20)],
    ),
];

/// The modules that guests load; older kernels have virtio's bus as one too.
const MODULES: [&str; 5] = [
    "vfio-pci",
    "vfio_iommu_type1",
    "pci-pf-stub",
    "virtio_pci",
    "virtio_blk",
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
    for (kernel, [by_default, full, nightly]) in KERNELS {
        let share = match depth {
            Depth::Default => by_default,
            Depth::Full => full,
            Depth::Nightly => nightly,
        };
        if share.rounds == 0 {
            continue;
        }
        match compare(kernel, share, seed, depth) {
            Outcome::Passed { count, detail } => {
                functions += count;
                lines.push(detail);
            }
            other => return other,
        }
    }
    Outcome::passed(functions, format!("{} (seed {seed})", lines.join("; ")))
}

/// Runs the tests with one kernel.
fn compare(kernel: Selection, share: Share, seed: u64, depth: Depth) -> Outcome {
    let guest = match Programs::unpack(kernel) {
        Ok(programs) => programs,
        Err(outcome) => return outcome,
    };
    let mut command = tools::built_test("linux");
    guest.tell(&mut command);
    if depth == Depth::Default {
        command.env("PORTCULLIS_GUEST_PART", "1");
    }
    command
        .env("PORTCULLIS_GUEST_ROUNDS", share.rounds.to_string())
        .env("PORTCULLIS_GUEST_TREES", share.trees.to_string())
        .env("PORTCULLIS_GUEST_SEED", seed.to_string());
    match output(&mut command) {
        Ok(text) => {
            let lines = |start: &'static str| text.lines().filter_map(move |line| line.strip_prefix(start));
            let compared = lines("compared: ").next().unwrap_or_default();
            let count = compared
                .split_whitespace()
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0);
            let all: Vec<&str> = std::iter::once(compared).chain(lines("also: ")).collect();
            // The tests of the tool tell what they did; none of them may be lost.
            if all.len() <= ALSO {
                return Outcome::Failed(format!("not all tests told what they compared: {}", all.join("; ")));
            }
            Outcome::passed(count, all.join("; "))
        }
        Err(why) => Outcome::Failed(format!("PORTCULLIS_GUEST_SEED={seed}: {why}")),
    }
}

/// Tests besides the comparison of generated machines.
const ALSO: usize = 2;

/// What guests need, unpacked and built.
#[derive(Debug)]
pub(crate) struct Programs {
    qemu: PathBuf,
    kernel: PathBuf,
    busybox: PathBuf,
    modules: PathBuf,
    iommu: PathBuf,
}

impl Programs {
    /// Unpacks a kernel and QEMU and builds the tool. What cannot be fetched is a reason to skip, all else a failure.
    pub(crate) fn unpack(kernel: Selection) -> Result<Self, Outcome> {
        let root = tools::unpack(kernel).map_err(Outcome::Skipped)?;
        let qemu = tools::unpack(tools::QEMU_11).map_err(Outcome::Skipped)?;
        let (Some(image), Some(busybox)) = (
            kernel_image(root.folder()),
            first_existing(root.folder(), &["usr/bin/busybox", "bin/busybox"]),
        ) else {
            let folder = root.folder().display();
            return Err(Outcome::Failed(format!("{folder} has no kernel image or no busybox")));
        };
        Ok(Self {
            qemu: qemu.launcher("usr/bin/qemu-system-x86_64").map_err(Outcome::Failed)?,
            kernel: image,
            modules: tools::modules(kernel, &root, &busybox, &MODULES).map_err(Outcome::Failed)?,
            busybox,
            iommu: tools::static_program("iommu-cli", "iommu").map_err(Outcome::Failed)?,
        })
    }

    /// Tells a test where they are.
    pub(crate) fn tell(&self, command: &mut Command) {
        command
            .env("PORTCULLIS_QEMU", &self.qemu)
            .env("PORTCULLIS_KERNEL", &self.kernel)
            .env("PORTCULLIS_BUSYBOX", &self.busybox)
            .env("PORTCULLIS_MODULES", &self.modules)
            .env("PORTCULLIS_IOMMU", &self.iommu);
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
