//! What a check came to, and the table at the end.

use std::time::{Duration, Instant};

/// The result of one check.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It ran and held.
    Passed {
        /// How many single things were judged; compared with the check's minimum.
        count: usize,
        /// One line for people.
        detail: String,
    },
    /// It ran and did not hold.
    Failed(String),
    /// It could not run here.
    Skipped(String),
}

impl Outcome {
    /// A pass over `count` things.
    pub(crate) fn passed(count: usize, detail: impl Into<String>) -> Self {
        Self::Passed {
            count,
            detail: detail.into(),
        }
    }
}

struct Row {
    name: &'static str,
    outcome: Outcome,
    took: Duration,
}

/// Collects outcomes and prints them.
pub(crate) struct Report {
    rows: Vec<Row>,
    /// A skipped check fails the run.
    strict: bool,
    /// Only checks whose name contains this.
    only: Option<String>,
}

impl Report {
    /// An empty report; with `strict` a skipped check counts as failed, with `only` the others are left out.
    pub(crate) fn new(strict: bool, only: Option<String>) -> Self {
        Self {
            rows: Vec::new(),
            strict,
            only,
        }
    }

    /// Runs one check. `minimum` is the number of judged things below which a pass is not believed: a check
    /// that found nothing to judge has not judged anything.
    pub(crate) fn check(&mut self, name: &'static str, minimum: usize, run: impl FnOnce() -> Outcome) {
        if self.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            return;
        }
        println!("── {name}");
        let start = Instant::now();
        let outcome = match run() {
            Outcome::Passed { count, detail } if count < minimum => {
                Outcome::Failed(format!("judged {count} things, expected at least {minimum} ({detail})"))
            }
            other => other,
        };
        let took = start.elapsed();
        match &outcome {
            Outcome::Passed { detail, .. } => println!("   ok: {detail} ({:.1} s)", took.as_secs_f64()),
            Outcome::Failed(why) => println!("   FAILED: {why}"),
            Outcome::Skipped(why) => println!("   skipped: {why}"),
        }
        self.rows.push(Row { name, outcome, took });
    }

    /// Prints the table and tells whether everything held.
    pub(crate) fn finish(self) -> Result<(), String> {
        println!("\n{:<28} {:<8} {:>7}  what", "check", "result", "time");
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for row in &self.rows {
            let (result, detail) = match &row.outcome {
                Outcome::Passed { detail, .. } => {
                    passed += 1;
                    ("ran", detail)
                }
                Outcome::Failed(why) => {
                    failed += 1;
                    ("FAILED", why)
                }
                Outcome::Skipped(why) => {
                    skipped += 1;
                    ("skipped", why)
                }
            };
            let first = detail.lines().next().unwrap_or_default();
            println!(
                "{:<28} {:<8} {:>6.1}s  {first}",
                row.name,
                result,
                row.took.as_secs_f64()
            );
        }
        println!("\n{passed} passed, {failed} failed, {skipped} skipped");
        if failed > 0 {
            Err("the test command failed".to_owned())
        } else if self.strict && skipped > 0 {
            Err("a judge was skipped, which a full run does not allow".to_owned())
        } else {
            Ok(())
        }
    }
}
