//! Linux's own driver on our unit.
//!
//! A stock QEMU runs a stock kernel; the unit, a disk and a DMA engine behind it are served from this process over
//! vfio-user. Nobody here wrote the driver that programs the unit. The sanitizer watches it, the disk is checked from
//! outside with the file system's own tools, and things are broken on purpose to see them noticed.
//!
//! `PORTCULLIS_QEMU`, `_KERNEL`, `_BUSYBOX`, `_MODULES`, `_IOMMU`, `_E2FS` and `_VFIO_GUEST` name the programs; without them the tests say
//! that they compared nothing. `PORTCULLIS_HOSTILE` names the kernel of `bare-metal/`. `PORTCULLIS_SERVED=full` asks for all of them, otherwise one guest is booted.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking, its helpers too"
)]

mod assigned;
mod breaking;
mod ending;
mod hostile;
mod messages;
mod modes;
mod rig;
mod sockets;
mod tool;

use std::io::Write;
use std::process::Stdio;

use rig::{Programs, Rig, contents, unit};

/// Whether everything is asked for.
fn is_full() -> bool {
    std::env::var("PORTCULLIS_SERVED").as_deref() == Ok("full")
}

/// The programs, if this test is to run: `full` ones only when everything is asked for.
fn programs(full: bool) -> Option<Programs> {
    if full && !is_full() {
        return None;
    }
    let found = Programs::find();
    if found.is_none() {
        println!("compared: nothing, since no programs are named");
    }
    found
}

#[test]
fn linux_makes_a_file_system_on_a_served_disk_and_prints_the_fault_of_a_stray_dma() {
    let Some(programs) = programs(false) else { return };
    let mut rig = Rig::new(&programs, unit());
    let talk = rig.run("all", "", |_, _| true);
    assert!(talk.says("end"), "{}", talk.console);
    // Each served function is in a group of its own, and nothing else is behind the unit.
    let groups: Vec<_> = talk.all("group ");
    assert_eq!(groups, ["0 0000:00:07.0", "1 0000:00:08.0"], "{}", talk.console);
    for step in ["made", "mounted", "same"] {
        assert!(talk.says(step), "{step}\n{}", talk.console);
    }
    assert_eq!(rig.said.rules(), Vec::<&str>::new(), "{:?}", rig.said.broken);

    // The stray DMA: blocked, told to Linux by the unit's interrupt, printed by Linux, explained by our tool.
    let faults = rig.said.faults.lock().unwrap().clone();
    assert!(
        !faults.is_empty() && faults.iter().all(|fault| fault.contains("00:08.0")),
        "{faults:?}"
    );
    let counts: Vec<u64> = talk
        .all("interrupts ")
        .iter()
        .map(|line| line.split_whitespace().nth(1).unwrap().parse().unwrap())
        .collect();
    assert!(
        counts.len() == 2 && counts[1] > counts[0],
        "{counts:?}\n{}",
        talk.console
    );
    let log: String = talk.all("log ").iter().map(|line| format!("{line}\n")).collect();
    // Newer kernels print the domain too.
    assert!(log.contains("00:08.0]") && log.contains("0x12345000"), "{log}");
    let explained = explain(&programs, &log);
    assert!(
        explained.contains("00:08.0") && explained.contains("12345000"),
        "{explained}"
    );

    rig.finish();
    check_disk(&programs, &rig);
    println!(
        "also: Linux {} on our unit: an ext4 file system made and checked, a stray DMA blocked, printed and explained",
        talk.all("kernel ").concat()
    );
}

/// What `iommu faults` says of a log.
fn explain(programs: &Programs, log: &str) -> String {
    let mut child = std::process::Command::new(&programs.tools.iommu)
        .args(["faults", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(log.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "there are faults");
    String::from_utf8(output.stdout).unwrap()
}

/// The disk, from outside: no error in the file system, and the file's bytes in it.
fn check_disk(programs: &Programs, rig: &Rig) {
    let check = programs
        .e2fs("e2fsck")
        .args(["-f", "-n"])
        .arg(rig.disk())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success(), "{said}");
    let copy = rig.folder().join("contents");
    let dump = programs
        .e2fs("debugfs")
        .arg("-R")
        .arg(format!("dump /contents {}", copy.display()))
        .arg(rig.disk())
        .output()
        .unwrap();
    assert!(dump.status.success(), "{dump:?}");
    assert!(std::fs::read(&copy).unwrap() == contents(), "the file differs");
}
