//! Benchmarks: a separate crate with the peers, built optimised and run as one process.

use crate::tools::cargo;

/// Builds and runs the benchmark program.
pub(crate) fn run(json: Option<&str>, quick: bool) -> Result<(), String> {
    let mut command = cargo(&["run", "--quiet", "--profile", "bench", "--package", "bench", "--"]);
    if let Some(file) = json {
        let file = std::path::absolute(file).map_err(|e| format!("{file}: {e}"))?;
        command.arg("--json").arg(file);
    }
    if quick {
        command.arg("--quick");
    }
    let status = command.status().map_err(|e| format!("cannot start cargo: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the benchmarks ended with {status}"))
    }
}
