//! The binary on tables, machine files, kept matrices, snapshots and logs that nobody means well with: a documented exit code, a
//! message, no panic, in bounded time, and never a cell that shows a function in doubt reaching what is not its own.

#![expect(clippy::expect_used, reason = "a test reports by panicking, its helpers too")]

mod archives;
#[path = "../fixture/mod.rs"]
mod fixture;
mod machine_files;
mod tables;
mod wishes;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Time for all cases of one kind; at least [`FEWEST`] are tried however slow the machine is.
const BUDGET: Duration = Duration::from_secs(3);
const FEWEST: u64 = 40;
/// Time for one command.
const PATIENCE: Duration = Duration::from_secs(60);
/// The machine that mistakes are made in.
const MACHINE: &str = include_str!("../../../../machines/two-socket.toml");

/// Xorshift: the same cases in every run.
struct Dice(u64);

impl Dice {
    fn new(case: u64) -> Self {
        Self((case + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).expect("below a usize")
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{name}"))
}

fn path(file: &Path) -> &str {
    file.to_str().expect("a plain path")
}

/// Runs the binary, and holds it to what every command promises.
fn iommu(case: &str, arguments: &[&str]) -> Output {
    let start = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_iommu"))
        .args(arguments)
        .output()
        .expect("the binary starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| (0..=4).contains(&code)),
        "{case}: {code:?}: {said}"
    );
    assert!(
        !said.contains("panicked") && !said.contains("RUST_BACKTRACE"),
        "{case}: {said}"
    );
    assert!(start.elapsed() < PATIENCE, "{case}: {:?}", start.elapsed());
    if matches!(code, Some(2 | 3)) {
        assert!(said.len() > 20, "{case}: a failure says what is wrong: {said:?}");
    }
    output
}

/// A short rehearsal; its report is one JSON document however it ends.
fn rehearse(case: &str, more: &[&str]) -> (Option<i32>, Value) {
    let run = iommu(
        case,
        &[&["run", "--json", "--mem", "4M", "--bytes", "1M"], more].concat(),
    );
    let report: Value = serde_json::from_slice(&run.stdout).expect(case);
    let code = run.status.code();
    let errors = [&report["error"], &report["summary"]["failed_checks"][0]];
    if code != Some(0) && report["matrix"].as_array().is_none_or(Vec::is_empty) {
        assert!(
            errors.iter().any(|text| text.is_string()),
            "{case}: {code:?} without a reason"
        );
    }
    (code, report)
}

/// Cells in which somebody reached what the table does not clearly leave open or reserve for it.
fn wrongly_open(report: &Value) -> Vec<&Value> {
    const FOREIGN: [&str; 5] = ["other-guest", "host-memory", "rmrr", "msi-window", "peer-bar"];
    const GROUNDS: [&str; 3] = [
        "no unit of the table covers",
        "firmware reserves the region for it",
        "its unit does not remap interrupts",
    ];
    let cells = report["matrix"].as_array().map_or(&[][..], Vec::as_slice);
    let open = |cell: &&Value| {
        let because = cell["because"].as_str().unwrap_or_default();
        cell["seen"] != "blocked"
            && FOREIGN.iter().any(|target| cell["target"] == *target)
            && !GROUNDS.iter().any(|ground| because.contains(ground))
    };
    cells.iter().filter(open).collect()
}

/// Tries cases until the time is used up.
fn each_case(mut try_one: impl FnMut(u64)) {
    let start = Instant::now();
    let mut case = 0;
    while case < FEWEST || start.elapsed() < BUDGET {
        try_one(case);
        case += 1;
    }
}
