//! The main job on the sample machine, judged by its own report and by what the project promises.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::report::Outcome;
use crate::tools::output;

/// Bytes that a run on the sample machine moves through translated DMA at least.
const BYTES: u64 = 1 << 30;
/// Forbidden accesses that it tries at least.
const FORBIDDEN: u64 = 40;

/// `iommu run` with its defaults, by the program that `tool` builds.
pub(crate) fn check(tool: impl FnOnce() -> Result<PathBuf, String>) -> Outcome {
    let text = match tool().and_then(|tool| output(Command::new(tool).args(["run", "--json"]))) {
        Ok(text) => text,
        Err(why) => return Outcome::Failed(why),
    };
    let report: Value = match serde_json::from_str(&text) {
        Ok(report) => report,
        Err(why) => return Outcome::Failed(format!("iommu run --json printed no JSON: {why}")),
    };
    judge(&report)
}

fn judge(report: &Value) -> Outcome {
    let summary = &report["summary"];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let moved = number(&summary["bytes_moved"]);
    let forbidden = &summary["forbidden"];
    let (tried, blocked, logged) = (
        number(&forbidden["tried"]),
        number(&forbidden["blocked"]),
        number(&forbidden["logged"]),
    );
    let cells = report["matrix"].as_array().map_or(0, Vec::len);
    let detail = format!(
        "{} MiB moved in {:.2} s, {blocked} of {tried} forbidden accesses blocked, {logged} logged, {cells} matrix rows",
        moved >> 20,
        summary["seconds"].as_f64().unwrap_or(f64::NAN),
    );
    let holds = summary["ok"] == Value::Bool(true)
        && moved >= BYTES
        && tried >= FORBIDDEN
        && blocked == tried
        && logged == tried
        && cells > 0;
    if holds {
        Outcome::passed(cells, detail)
    } else {
        Outcome::Failed(detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(blocked: u64) -> Value {
        serde_json::json!({
            "summary": { "bytes_moved": BYTES, "seconds": 1.0, "ok": true,
                         "forbidden": { "tried": 48, "blocked": blocked, "logged": 48 } },
            "matrix": [ {} ],
        })
    }

    #[test]
    fn one_forbidden_access_that_passes_fails_the_run() {
        assert!(matches!(judge(&report(48)), Outcome::Passed { .. }));
        assert!(matches!(judge(&report(47)), Outcome::Failed(_)));
    }
}
