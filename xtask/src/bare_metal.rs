//! QEMU's own VT-d as a judge of the driver: a kernel without operating system embeds it and drives real DMA.
//!
//! The kernel is the package in `bare-metal/`, which is not a member of the workspace; it is built for the host's
//! target and linked as a freestanding program.

mod disk;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::report::Outcome;
use crate::target;
use crate::tools::{self, Selection, output, workspace};

/// How long one run may take; it takes two seconds.
const LIMIT: Duration = Duration::from_secs(60);
/// The status with which QEMU ends when the kernel reports success to `isa-debug-exit`.
const SUCCESS: i32 = 0x10 << 1 | 1;
/// The same for failure; what failed is in the output.
const FAILURE: i32 = 0x11 << 1 | 1;

/// One way to run the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// For people.
    name: &'static str,
    /// Properties of `intel-iommu`, besides those of all runs; `None` is a machine without it.
    unit: Option<&'static str>,
    /// The kernel's command line.
    command_line: &'static str,
}

/// A run with a name, properties and a command line.
const fn run(name: &'static str, unit: &'static str, command_line: &'static str) -> Run {
    Run {
        name,
        unit: Some(unit),
        command_line,
    }
}

/// No unit: the kernel has to say so, and devices reach everything.
const NO_UNIT: Run = Run {
    name: "no unit",
    unit: None,
    command_line: "no-unit",
};

/// What begins a line with which the kernel says that nothing protects the machine.
const WARNING: &str = "WARNING ";

/// QEMU 7.2 has second-stage tables only, and drops blocked interrupts without a fault record.
pub(crate) const RUNS_7: &[Run] = &[
    run("legacy", "aw-bits=48", "silent-interrupts"),
    run("caching mode", "aw-bits=48,caching-mode=on", "silent-interrupts"),
    run("39 bits", "aw-bits=39", "silent-interrupts"),
    run(
        "scalable",
        "aw-bits=48,x-scalable-mode=on",
        "scalable silent-interrupts",
    ),
    NO_UNIT,
];

/// QEMU 11.1 has first-stage tables too.
pub(crate) const RUNS_11: &[Run] = &[
    run("legacy", "aw-bits=48", ""),
    run("caching mode", "aw-bits=48,caching-mode=on", ""),
    run("39 bits", "aw-bits=39", ""),
    run("scalable", "aw-bits=48,scalable-mode=on", "scalable"),
    run("first stage", "aw-bits=48,scalable-mode=on,fsts=on", "first-stage"),
    NO_UNIT,
];

/// Builds the kernel and runs it in every way on one QEMU.
pub(crate) fn check(selection: Selection, runs: &[Run]) -> Outcome {
    let qemu = match tools::unpack(selection) {
        Ok(unpacked) => unpacked,
        Err(why) => return Outcome::Skipped(why),
    };
    let made = qemu
        .launcher("usr/bin/qemu-system-x86_64")
        .and_then(|launcher| Ok((launcher, build()?)));
    let (launcher, kernel) = match made {
        Ok(both) => both,
        Err(why) => return Outcome::Failed(why),
    };
    let (mut count, mut lines) = (0, Vec::new());
    for run in runs {
        match one(&launcher, &kernel, *run) {
            Ok(passed) => {
                count += passed;
                lines.push(format!("{} {passed}", run.name));
            }
            Err(why) => return Outcome::Failed(format!("{}: {why}", run.name)),
        }
    }
    Outcome::passed(count, format!("{count} checks ({})", lines.join(", ")))
}

/// Clippy and rustfmt on the kernel, which those of the workspace do not see.
pub(crate) fn lints() -> Outcome {
    let run = |arguments: &[&str]| cargo(arguments).and_then(|mut command| output(&mut command));
    let format = run(&["fmt", "--check"]);
    let clippy = run(&["clippy", "--quiet", "--release", "--", "-D", "warnings"]);
    match format.and(clippy) {
        Ok(_) => Outcome::passed(1, "rustfmt and clippy have nothing to say"),
        Err(why) => Outcome::Failed(why),
    }
}

/// A folder of the kernel's own below the target folder.
fn folder() -> Result<PathBuf, String> {
    Ok(target::folder()?.join("bare-metal"))
}

/// A `cargo` command for the kernel. Its flags are in the configuration beside it.
fn cargo(arguments: &[&str]) -> Result<Command, String> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(workspace().join("bare-metal"))
        .env("CARGO_TARGET_DIR", folder()?)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args(arguments);
    Ok(command)
}

/// Builds the kernel; where it is.
pub(crate) fn build() -> Result<PathBuf, String> {
    target::build(&mut cargo(&["build", "--quiet", "--release"])?)
}

/// Runs the kernel on a new disk; how many checks passed, those of the disk's contents included.
fn one(launcher: &Path, kernel: &Path, run: Run) -> Result<usize, String> {
    let image = folder()?.join(format!("disk-{}.img", std::process::id()));
    std::fs::write(&image, disk::given()).map_err(|e| format!("cannot write {}: {e}", image.display()))?;
    let passed = start(launcher, kernel, &image, run).and_then(|text| judge(&text, run.unit.is_some()));
    let left = std::fs::read(&image).map_err(|e| format!("cannot read {}: {e}", image.display()));
    let _ = std::fs::remove_file(&image);
    let (passed, left) = (passed?, left?);
    disk::compare(&left)?;
    Ok(passed + 1)
}

/// Runs the kernel; what it printed, if it ended by itself.
fn start(launcher: &Path, kernel: &Path, image: &Path, run: Run) -> Result<String, String> {
    // Behind a unit the devices have all address lines. Without one, `edu` has its 28, and some memory is beyond them.
    let (unit, edu, disk) = match run.unit {
        Some(unit) => (
            vec!["-device".to_owned(), format!("intel-iommu,intremap=on,eim=off,{unit}")],
            ",dma_mask=0xffffffffffffffff",
            ",iommu_platform=on",
        ),
        None => (Vec::new(), "", ""),
    };
    let mut command = Command::new(launcher);
    // 256 ns an instruction: the device's 100 ms timers then take no real time.
    command
        .args([
            "-M",
            "q35",
            "-m",
            "512",
            "-accel",
            "tcg",
            "-icount",
            "shift=8,sleep=off",
        ])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .args(unit)
        .args(["-device", &format!("edu{edu}")])
        .args(["-device", "pcie-root-port,id=below,chassis=1"])
        .args(["-device", &format!("edu,bus=below{edu}")])
        .arg("-drive")
        .arg(format!("if=none,id=disk,format=raw,file={}", image.display()))
        .args(["-device", &format!("virtio-blk-pci,drive=disk,disable-legacy=on{disk}")])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .args(["-append", run.command_line, "-kernel"])
        .arg(kernel);
    // QEMU reports the faults that the checks provoke on its standard error.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot start QEMU: {e}"))?;
    // The output, a few kilobytes, fits the pipe: it can be read when QEMU has ended.
    let begun = Instant::now();
    let ended = loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => break Some(status),
            None if begun.elapsed() > LIMIT => break None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    if ended.is_none() {
        let _ = child.kill();
    }
    let collected = child.wait_with_output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&collected.stdout).into_owned();
    match ended.map(|status| status.code()) {
        None => Err(format!("no end after {} s:\n{text}", LIMIT.as_secs())),
        Some(Some(SUCCESS | FAILURE)) => Ok(text),
        Some(_) => Err(format!("QEMU ended with {}:\n{text}", collected.status)),
    }
}

/// How many checks passed, if none failed, the kernel came to its end, and it said once what is not protected.
fn judge(text: &str, protected: bool) -> Result<usize, String> {
    let lines = || text.lines().map(str::trim_end);
    let warnings: Vec<&str> = lines().filter(|line| line.starts_with(WARNING)).collect();
    let loud = match warnings.as_slice() {
        [] => protected,
        [one] => !protected && one.contains("NO ISOLATION"),
        _ => false,
    };
    if !loud {
        return Err(format!(
            "one warning was due without a unit, and none with one: {warnings:?}"
        ));
    }
    let failed: Vec<&str> = lines().filter(|line| line.starts_with("FAIL ")).collect();
    if !failed.is_empty() {
        return Err(failed.join("\n"));
    }
    let passed = lines().filter(|line| line.starts_with("PASS ")).count();
    if lines().any(|line| line == format!("END {passed} 0")) {
        Ok(passed)
    } else {
        Err(format!("the kernel did not come to its end:\n{text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn a_run_counts_only_with_its_end_and_without_failures() {
        assert_eq!(judge("hello\r\nPASS one\r\nPASS two\r\nEND 2 0\r\n", true), Ok(2));
        assert!(judge("PASS one\nPASS two\n", true).is_err(), "no end");
        assert!(judge("PASS one\nEND 2 0\n", true).is_err(), "a line is missing");
        assert_eq!(
            judge("PASS one\nFAIL two: why\nEND 1 1\n", true),
            Err("FAIL two: why".to_owned())
        );
    }

    #[test]
    fn a_machine_without_a_unit_has_to_say_so_once() {
        let said = "WARNING NO IOMMU, NO ISOLATION: all memory\r\n";
        let end = "PASS one\r\nEND 1 0\r\n";
        assert_eq!(judge(&format!("{said}{end}"), false), Ok(1));
        for text in [
            end.to_owned(),
            format!("{said}{said}{end}"),
            format!("WARNING\r\n{end}"),
        ] {
            assert!(judge(&text, false).is_err(), "{text}");
        }
        assert!(judge(&format!("{said}{end}"), true).is_err(), "there is a unit");
    }
}
