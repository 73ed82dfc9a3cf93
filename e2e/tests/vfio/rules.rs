//! The conformance list on both backends.

use std::collections::BTreeMap;

use e2e::guest::record::Record;
use iommu_vfio::conformance;

/// Fewer cases than this are not the list.
const MINIMUM: usize = 60;

/// What came of each case: `ok`, `skipped`, `FAILED`, and why.
fn outcomes<'t>(lines: impl Iterator<Item = &'t str>) -> BTreeMap<String, String> {
    lines
        .filter_map(|line| {
            let (word, rest) = line.split_once(' ')?;
            let rest = rest.trim_start();
            // The name of a case has a colon of its own after its first word.
            Some(match word {
                "ok" => (rest.to_owned(), "ok".to_owned()),
                _ => (rest.to_owned(), word.to_owned()),
            })
        })
        .collect()
}

/// Compares, and returns how many cases were alike.
pub(crate) fn judge(record: &Record, wrong: &mut Vec<String>) -> usize {
    let (backend, function) = super::software::engine();
    let software = conformance::run(&backend, function);
    let lines: Vec<String> = software.iter().map(ToString::to_string).collect();
    let here = outcomes(lines.iter().map(String::as_str));
    let text = record.text("conformance").into_owned();
    let there = outcomes(text.lines());
    if record.statuses.get("conformance") != Some(&0) {
        wrong.push(format!("the list did not end: {}", record.text("conformance.err")));
    }
    let mut alike = 0;
    for (name, outcome) in &here {
        match there.get(name) {
            Some(other) if other == outcome && outcome == "ok" => alike += 1,
            other => wrong.push(format!("software: {outcome} {name}; Linux: {other:?}")),
        }
    }
    for (name, outcome) in there.iter().filter(|(name, _)| !here.contains_key(*name)) {
        wrong.push(format!("Linux alone: {outcome} {name}"));
    }
    if alike < MINIMUM {
        wrong.push(format!("only {alike} cases were compared"));
    }
    alike
}
