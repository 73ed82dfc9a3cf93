//! A user who may have only so much memory pinned.

use e2e::guest::record::Record;
use e2e::vfio::churn;

/// What the user in the guest may have pinned: `ulimit -l` of `guest/vfio.sh`.
const LIMIT: u64 = 512 << 10;
/// How a program ends that says what went wrong.
const FAILED: i32 = 1;

/// What is said of a limit, from the rule on: addresses differ.
fn rule(text: &str) -> Option<&str> {
    let at = text.find("cannot be pinned")?;
    text.get(at..).map(str::trim)
}

/// The same driver meets the limit at the same step, and is told the same, on both backends.
pub(crate) fn judge(record: &Record, wrong: &mut Vec<String>) {
    let (backend, function) = super::software::engine_with_limit(LIMIT);
    let mut steps = Vec::new();
    let here = churn::run(&backend, function, |name| steps.push(format!("{} {name}", steps.len())));
    let here = here.err().map(|why| why.to_string()).unwrap_or_default();
    let text = record.text("pinned").into_owned();
    let there: Vec<&str> = text.lines().collect();
    let said = record.text("pinned.err").into_owned();
    if rule(&here).is_none() || rule(&here) != rule(&said) {
        wrong.push(format!(
            "a limit of {LIMIT:#x} bytes: software: {here:?}; Linux: {said:?}"
        ));
    }
    if steps != there || record.statuses.get("pinned") != Some(&FAILED) {
        wrong.push(format!(
            "a limit of {LIMIT:#x} bytes: steps in software {steps:?}; on Linux {there:?}"
        ));
    }
}
