//! The table in `RULES.md` of the crate `vtd-driver`.

use std::collections::BTreeMap;

use iommu_types::omission::{Rule, Step};

use crate::CASES;

const RULES: &str = include_str!("../../../crates/vtd-driver/RULES.md");

/// The cells of the rows under `heading`, without the marks around code.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let part = RULES
        .split("\n## ")
        .find(|part| part.starts_with(heading))
        .expect(heading);
    let rows = part.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    })
    .collect()
}

#[test]
fn the_table_lists_each_step_with_its_rule_its_test_and_what_notices() {
    let listed: Vec<[String; 4]> = rows("Steps")
        .into_iter()
        .map(|cells| {
            let [rule, step, test, how, ..] = &cells[..] else {
                panic!("a row of {} cells: {cells:?}", cells.len())
            };
            [rule, step, test, how].map(String::clone)
        })
        .collect();
    let known: Vec<[String; 4]> = CASES
        .iter()
        .map(|(step, how, test)| {
            [
                step.rule().to_string(),
                step.name().to_owned(),
                (*test).to_owned(),
                how.name().to_owned(),
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
