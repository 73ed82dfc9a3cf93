//! Guests and servers that end at any moment.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use iommu_serve::trace::{Story, replay};

use crate::programs;
use crate::rig::{DISK, Programs, Rig, unit};

/// Acknowledged blocks after which the guest's machine is taken away.
const ENOUGH: [u64; 3] = [3, 40, 111];

/// The trace of a server that is a process of its own.
const TRACE: &str = "own.trace";

/// Every block that the guest said is on the disk is on the disk.
pub(crate) fn are_there(numbers: &BTreeSet<u64>, block: impl Fn(u64) -> Vec<u8>) {
    for number in numbers {
        let bytes = block(*number);
        assert!(
            bytes.starts_with(format!("block {number:010}").as_bytes()),
            "block {number}"
        );
    }
}

#[test]
fn a_qemu_that_is_killed_loses_no_acknowledged_write() {
    let Some(programs) = programs(true) else { return };
    for enough in ENOUGH {
        let mut rig = Rig::new(&programs, unit());
        let mut acknowledged = BTreeSet::new();
        let talk = rig.run("write", "", |_, line| {
            if let Some(number) = line.strip_prefix("wrote ") {
                acknowledged.insert(number.parse().unwrap());
            }
            // Listening no more kills QEMU.
            u64::try_from(acknowledged.len()).unwrap() < enough
        });
        assert!(u64::try_from(acknowledged.len()).unwrap() >= enough, "{}", talk.console);
        are_there(&acknowledged, |number| rig.block(number));
        // The server has noticed, and serves the next client.
        let again = rig.run("disk", "", |_, _| true);
        assert!(again.says("same"), "{}", again.console);
        rig.finish();
        let notices = rig.said.notices.lock().unwrap().clone();
        for slot in ["unit: ", "disk0: ", "engine: "] {
            assert!(notices.iter().any(|said| said.starts_with(slot)), "{notices:?}");
        }
    }
    println!("also: QEMU killed after {ENOUGH:?} acknowledged writes: none is lost");
}

/// `iommu serve --boot` as a process, its guest writing.
fn serve(programs: &Programs, rig: &Rig) -> (std::process::Child, PathBuf) {
    let disk = rig.folder().join("own.img");
    File::create(&disk).unwrap().set_len(DISK).unwrap();
    let sockets = std::env::temp_dir().join(format!("served-own-{}", std::process::id()));
    let child = Command::new(&programs.tools.iommu)
        .arg("serve")
        .arg("--sockets")
        .arg(&sockets)
        .arg("--disk")
        .arg(&disk)
        .arg("--engine")
        .arg("--sanitize")
        .arg("--trace")
        .arg(rig.folder().join(TRACE))
        .arg("--boot")
        .arg(&programs.tools.kernel)
        .arg("--initrd")
        .arg(rig.folder().join("initramfs"))
        .args(["--append", "quiet served=write"])
        .arg("--qemu")
        .arg(&programs.tools.qemu)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    (child, disk)
}

/// Ends the processes that have `word` on their command line.
fn end_all(word: &str) {
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(word) {
            // The shell has a kill of its own everywhere.
            let kill = format!("kill -9 {}", process.file_name().display());
            let _ = Command::new("sh").args(["-c", &kill]).status();
        }
    }
}

#[test]
fn a_server_that_is_killed_loses_no_acknowledged_write_and_its_qemu_says_so() {
    let Some(programs) = programs(true) else { return };
    let mut rig = Rig::new(&programs, unit());
    rig.finish();
    let (mut child, disk) = serve(&programs, &rig);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = BTreeSet::new();
    while acknowledged.len() < 20 {
        let line = lines.next().expect("the guest writes on").unwrap();
        if let Some(number) = line.trim_end().strip_prefix("@ wrote ") {
            acknowledged.insert(number.parse().unwrap());
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let image = File::open(&disk).unwrap();
    are_there(&acknowledged, |number| {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; 4096];
        image.read_exact_at(&mut bytes, number * 4096).unwrap();
        bytes
    });
    // QEMU lost all its devices: it says so, and ends when its console is closed at the latest.
    let mut said = String::new();
    let mut errors = child.stderr.take().unwrap();
    let mut part = [0; 4096];
    while !said.contains("failed to read header") && !said.contains("server closed") {
        let len = errors.read(&mut part).unwrap();
        assert!(len > 0, "QEMU said nothing of it: {said}");
        said.push_str(&String::from_utf8_lossy(&part[..len]));
    }
    // The process that was killed cannot end its child; the test does.
    end_all(&rig.folder().join("initramfs").display().to_string());
    // Its trace ends where it did, and can be done again as far as it goes.
    let trace = fs::read_to_string(rig.folder().join(TRACE)).unwrap();
    let outcome = replay(&Story::parse(&trace).unwrap(), true).unwrap();
    assert_eq!((outcome.differences, outcome.broken), (vec![], vec![]));
    assert!(outcome.operations > 100, "{}", outcome.operations);
    println!(
        "also: the server killed after {} acknowledged writes: none is lost, and {} operations of its trace replay",
        acknowledged.len(),
        outcome.operations
    );
}
