//! The table in `RULES.md` of the crate `vtd-driver`.

use std::collections::BTreeMap;

use iommu_types::omission::{Rule, Step};

use crate::CASES;

const STEPS: &str = include_str!("../../../crates/iommu-types/src/omission.rs");
const RULES: &str = include_str!("../../../crates/vtd-driver/RULES.md");

/// The cells of the rows under `heading`, without the marks around a cell that is all code.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let all = cells(heading).into_iter();
    let bare = |cell: String| cell.trim_matches('`').to_owned();
    all.map(|row| row.into_iter().map(bare).collect()).collect()
}

/// The cells of the rows under `heading`.
pub(crate) fn cells(heading: &str) -> Vec<Vec<String>> {
    let part = RULES
        .split("\n## ")
        .find(|part| part.starts_with(heading))
        .expect(heading);
    let rows = part.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        // The last cell may be empty.
        let row = row.trim();
        let row = row.strip_prefix('|').unwrap_or(row);
        let row = row.strip_suffix('|').unwrap_or(row);
        row.split('|').map(|cell| cell.trim().to_owned()).collect()
    })
    .collect()
}

/// What the code says about a step.
fn described(step: Step) -> String {
    let end = format!("{} \"{}\",", step.rule().0, step.name());
    let lines: Vec<&str> = STEPS.lines().map(str::trim).collect();
    let at = lines
        .iter()
        .position(|line| line.ends_with(&end))
        .expect("every step is there");
    let text = lines[..at].iter().rev().map_while(|line| line.strip_prefix("/// "));
    let mut text: Vec<&str> = text.collect();
    text.reverse();
    text.join(" ")
}

#[test]
fn the_table_lists_each_step_with_its_rule_its_test_what_notices_and_what_it_is() {
    let listed: Vec<[String; 6]> = rows("Steps")
        .into_iter()
        .map(|cells| <[String; 6]>::try_from(cells).expect("six cells"))
        .collect();
    let known: Vec<[String; 6]> = CASES
        .iter()
        .map(|(step, how, test, scenario)| {
            [
                step.rule().to_string(),
                step.name().to_owned(),
                (*test).to_owned(),
                how.name().to_owned(),
                scenario.replace(' ', ""),
                described(*step),
            ]
        })
        .collect();
    for (listed, known) in listed.iter().zip(&known) {
        assert_eq!(listed, known);
    }
    assert_eq!(listed.len(), known.len());
}

#[test]
fn every_rule_has_steps_or_a_place_elsewhere() {
    let mut counted: BTreeMap<Rule, usize> = (1..=Rule::LAST.0).map(|number| (Rule(number), 0)).collect();
    for step in Step::ALL {
        *counted.entry(step.rule()).or_default() += 1;
    }
    let without: Vec<String> = counted
        .into_iter()
        .filter(|(_, steps)| *steps == 0)
        .map(|(rule, _)| rule.to_string())
        .collect();
    let elsewhere: Vec<String> = rows("Elsewhere").into_iter().map(|cells| cells[0].clone()).collect();
    assert_eq!(elsewhere, without);
    let kept: Vec<String> = rows("Rules").into_iter().map(|cells| cells[0].clone()).collect();
    let all: Vec<String> = (1..=Rule::LAST.0).map(|number| Rule(number).to_string()).collect();
    assert_eq!(kept, all, "every rule is in the first table");
}
