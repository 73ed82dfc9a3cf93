//! `iommu serve` before a client is there: what it says, and what it refuses.

#![expect(clippy::expect_used, reason = "a test reports by panicking, its helpers too")]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A server that is ended with the test.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder for sockets, whose paths have to be short.
fn sockets(test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("iommu-{test}-{}", std::process::id()))
}

/// What a server says until it waits for clients.
fn said(test: &str, more: &[&str]) -> String {
    let folder = sockets(test);
    let child = Command::new(env!("CARGO_BIN_EXE_iommu"))
        .args(["serve", "--engine", "--qemu", "/nonexistent/qemu", "--sockets"])
        .arg(&folder)
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut served = Served(child.expect("the binary starts"));
    let stderr = served.0.stderr.take().expect("a pipe");
    let mut text = String::new();
    for line in BufReader::new(stderr).lines() {
        text.push_str(&line.expect("UTF-8"));
        text.push('\n');
        if text.contains("Ctrl-C") {
            break;
        }
    }
    drop(served);
    let _ = std::fs::remove_dir_all(folder);
    text
}

#[test]
fn a_server_says_what_waits_and_how_to_end_it() {
    let text = said("waits", &[]);
    let folder = sockets("waits");
    let last = text.lines().last().expect("a line");
    assert!(last.starts_with("iommu: waiting for a VMM on "), "{text}");
    assert!(last.ends_with("; Ctrl-C ends it"), "{text}");
    assert_eq!(
        last.matches(&folder.display().to_string()).count(),
        2,
        "the unit and the engine: {text}"
    );
    assert!(!text.contains("intremap"), "{text}");
}

#[test]
fn who_starts_qemu_by_hand_is_told_what_has_to_fit() {
    let guessed = said("guess", &["--print-qemu"]);
    for part in [
        "where firmware places the unit is not known",
        "the unit is at 0xfeb10000, which is a GUESS",
        "`info pci`",
        "--unit-base",
        "kernel's command line: intel_iommu=on intremap=off\n",
    ] {
        assert!(guessed.contains(part), "{part}: {guessed}");
    }
    let given = said("given", &["--print-qemu", "--unit-base", "0xfebf0000"]);
    assert!(
        given.contains("the unit is at 0xfebf0000, as --unit-base says"),
        "{given}"
    );
    assert!(!given.contains("GUESS") && !given.contains("not known"), "{given}");
}

#[test]
fn files_that_are_not_there_are_refused_at_once() {
    let folder = sockets("refused");
    for (option, more) in [
        ("--boot", &["--boot", "/nonexistent/kernel"][..]),
        ("--initrd", &["--boot", "/dev/null", "--initrd", "/nonexistent/initrd"]),
        ("--disk", &["--disk", "/nonexistent/disk"]),
        ("--boot", &["--boot", "/"]),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_iommu"))
            .args(["serve", "--qemu", "/nonexistent/qemu", "--sockets"])
            .arg(&folder)
            .args(more)
            .output()
            .expect("the binary starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {text}");
        let name = more.last().expect("a name");
        assert!(text.contains(&format!("{option} {name}: th")), "{more:?}: {text}");
        assert!(text.contains("name"), "what to do: {text}");
        assert!(!folder.exists(), "{more:?}: nothing is made before");
    }
}

#[test]
fn the_help_tells_the_default_of_the_units_address() {
    let output = Command::new(env!("CARGO_BIN_EXE_iommu"))
        .args(["serve", "-h"])
        .output()
        .expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        words.contains("[default: what a short start of --qemu shows, or 0xfeb10000"),
        "{text}"
    );
}
