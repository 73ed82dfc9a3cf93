//! `iommu dmar lint`: what is wrong with a table, with all that is known of the machine that it is of.

use acpi_dmar::{Dmar, Rule, Severity};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Table, TableSource, json as as_json, judge, no_table, text};
use crate::exit::{Failure, Verdict};
use crate::host::{Answer, count, notes};
use crate::style;

/// Grows when a key changes its meaning.
const SCHEMA: u32 = 1;

/// From which severity on a finding counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOn {
    /// What breaks the specification in a way that costs devices, units or safety
    Error,
    /// What works less well, or is likely not meant, too
    Warning,
    /// Everything
    Info,
}

impl FailOn {
    const fn severity(self) -> Severity {
        match self {
            Self::Error => Severity::Error,
            Self::Warning => Severity::Warning,
            Self::Info => Severity::Info,
        }
    }
}

/// What `iommu dmar lint` is told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    table: TableSource,
    /// From which severity on a finding counts for the exit code
    #[arg(long, value_enum, value_name = "SEVERITY", default_value = "warning")]
    fail_on: FailOn,
    /// Do not judge by this rule; may be repeated
    #[arg(long, value_name = "RULE", value_parser = rule)]
    ignore: Vec<Rule>,
    /// Say what a rule is about instead, or `all` of them
    #[arg(long, value_name = "RULE", conflicts_with_all = ["file", "root", "ignore"])]
    explain: Option<String>,
}

/// A rule by its id, in either case.
fn rule(text: &str) -> Result<Rule, String> {
    Rule::from_id(&text.to_ascii_uppercase())
        .ok_or_else(|| "no such rule; `iommu dmar lint --explain all` lists them".to_owned())
}

/// Runs it.
pub(super) fn run(options: &Options) -> Result<Verdict, Failure> {
    let json = options.table.json();
    if let Some(id) = &options.explain {
        return explain(id)?.print(json);
    }
    let table = match options.table.find()? {
        Some(table) => table,
        None => return no_table(SCHEMA).print(json),
    };
    answer(&table, options.fail_on, &options.ignore).print(json)
}

/// Judges a table.
pub(super) fn answer(table: &Table, fail_on: FailOn, ignore: &[Rule]) -> Answer {
    let mut report = judge(table);
    let found = report.findings.len();
    report.findings.retain(|finding| !ignore.contains(&finding.rule));
    report.not_judged.retain(|missing| !ignore.contains(&missing.rule));
    let ignored = found - report.findings.len();
    let fails = report
        .findings
        .iter()
        .filter(|finding| finding.severity >= fail_on.severity())
        .count();
    let mut out = format!("{}\n", contents(&table.bytes));
    // Writing to a string cannot fail.
    let _ = text::findings(&mut out, &report);
    if ignored > 0 {
        out.push_str(&format!("{} left out by --ignore\n", count(ignored, "finding")));
    }
    let _ = text::not_judged(&mut out, &report);
    if let Some(machine) = &table.machine {
        out.push_str(&notes(machine));
    }
    out.push_str(&match (fails, table.machine.is_some()) {
        (0, true) => format!("{}\n", style::good("no finding that counts")),
        (0, false) => format!(
            "{}; with {} the machine's functions are judged too\n",
            style::good("no finding that counts"),
            style::command("--root")
        ),
        (some, _) => format!("{}\n", style::bad(format!("{} to see to", count(some, "finding")))),
    });
    Answer {
        text: out,
        json: json!({
            "schema": SCHEMA,
            "clean": fails == 0,
            "fail_on": fail_on.severity().to_string(),
            "counting": fails,
            "ignored": ignored,
            "findings": as_json::findings(&report),
            "not_judged": as_json::not_judged(&report),
        }),
        verdict: Ok(if fails == 0 { Verdict::Yes } else { Verdict::Findings }),
    }
}

/// How much there is in a table.
fn contents(bytes: &[u8]) -> String {
    match Dmar::inspect(bytes) {
        Err(_) => format!("{}, no DMAR table", count(bytes.len(), "byte")),
        Ok(table) => format!(
            "DMAR table of {}: {}, {}",
            count(table.bytes().len(), "byte"),
            count(table.units().count(), "unit"),
            count(table.rmrrs().count(), "reserved region"),
        ),
    }
}

fn explain(id: &str) -> Result<Answer, Failure> {
    let chosen: Vec<Rule> = if id == "all" {
        Rule::ALL.to_vec()
    } else {
        vec![rule(id).map_err(|why| Failure::Input(format!("{id}: {why}")))?]
    };
    let text = chosen
        .iter()
        .map(|rule| {
            format!(
                "{} {}: {} (needs {})\n      {}\n",
                style::title(rule.id()),
                rule.severity(),
                rule.title(),
                rule.needs(),
                rule.advice()
            )
        })
        .collect();
    let rules: Vec<_> = chosen
        .iter()
        .map(|rule| {
            json!({
                "rule": rule.id(),
                "severity": rule.severity().to_string(),
                "title": rule.title(),
                "needs": rule.needs().to_string(),
                "advice": rule.advice(),
            })
        })
        .collect();
    Ok(Answer {
        text,
        json: json!({"schema": SCHEMA, "rules": rules}),
        verdict: Ok(Verdict::Yes),
    })
}
