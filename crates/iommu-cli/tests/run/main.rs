//! The binary as people use it.

#![expect(clippy::expect_used, reason = "a test reports by panicking, its helpers too")]

mod backends;
mod matrix;
mod roots;
mod tables;
mod words;

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn iommu(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_iommu"))
        .args(arguments)
        .output()
        .expect("the binary starts")
}

/// A short rehearsal: everything but the amount of data.
fn short_run(more: &[&str]) -> Output {
    iommu(&[&["run", "--mem", "4M", "--bytes", "8M"], more].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn path(file: &std::path::Path) -> &str {
    file.to_str().expect("a plain path")
}

/// The table of the sample machine, changed by `change`, in a file of its own.
fn table(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let file = scratch(name);
    let built = iommu(&["dmar", "build", "--output", path(&file)]);
    assert_eq!(built.status.code(), Some(0), "{}", text(&built.stderr));
    let mut bytes = std::fs::read(&file).expect("the table was written");
    change(&mut bytes);
    std::fs::write(&file, bytes).expect("writable");
    file
}

/// Makes the sum of all bytes 0 again.
fn fix_checksum(bytes: &mut [u8]) {
    bytes[9] = 0;
    bytes[9] = bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg();
}

fn cell<'a>(report: &'a Value, requester: &str, target: &str) -> &'a Value {
    report["matrix"]
        .as_array()
        .expect("a matrix")
        .iter()
        .find(|cell| cell["requester"] == requester && cell["target"] == target)
        .unwrap_or(&Value::Null)
}
