//! Real firmware tables: `run` and `dmar show` on each of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::report::Outcome;
use crate::target;

/// The environment variable that names the folder with real tables.
pub(crate) const VARIABLE: &str = "PORTCULLIS_SAMPLES";

/// The folder with real tables, if there is one.
pub(crate) fn folder() -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os(VARIABLE)?);
    folder.join("dmar").is_dir().then_some(folder)
}

/// The tables in the folder.
pub(crate) fn tables(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("dmar")).into_iter().flatten().flatten();
    let mut tables: Vec<PathBuf> = entries
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|x| x == "bin"))
        .collect();
    tables.sort();
    tables
}

/// Runs the tool on every table. A table may be bad, but the tool must say so and end with a documented code.
pub(crate) fn check() -> Outcome {
    let Some(folder) = folder() else {
        return Outcome::Skipped(format!("{VARIABLE} names no folder with real tables"));
    };
    let tool = match target::tool() {
        Ok(tool) => tool,
        Err(why) => return Outcome::Failed(why),
    };
    let tables = tables(&folder);
    let mut rehearsed = 0;
    let mut problems = Vec::new();
    for table in &tables {
        let name = table.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match exit_code(Command::new(&tool).args(["dmar", "show"]).arg(table)) {
            Ok(0 | 1) => {}
            other => problems.push(format!("dmar show {name}: {other:?}")),
        }
        match exit_code(
            Command::new(&tool)
                .args(["run", "--mem", "4M", "--bytes", "4M", "--dmar"])
                .arg(table),
        ) {
            Ok(0) => rehearsed += 1,
            // Exit code 4: nothing in this table can be rehearsed, and the tool said why.
            Ok(4) => {}
            other => problems.push(format!("run --dmar {name}: {other:?}")),
        }
    }
    // Most tables have something to rehearse: a tool that finds nothing anywhere is broken, however politely.
    if rehearsed * 10 < tables.len() * 9 {
        problems.push(format!("only {rehearsed} of {} tables were rehearsed", tables.len()));
    }
    if problems.is_empty() {
        Outcome::passed(
            tables.len(),
            format!("{} real tables shown, {rehearsed} rehearsed", tables.len()),
        )
    } else {
        Outcome::Failed(problems.join("; "))
    }
}

/// The exit code, or what there was instead of one.
fn exit_code(command: &mut Command) -> Result<i32, String> {
    let result = command.output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&result.stderr);
    if text.contains("panicked at") {
        return Err(text.lines().take(3).collect::<Vec<_>>().join(" "));
    }
    match result.status.code() {
        Some(code @ (0 | 1 | 4)) => Ok(code),
        Some(code) => Err(format!("exit {code}: {}", text.lines().last().unwrap_or_default())),
        None => Err("ended by a signal".to_owned()),
    }
}
