//! What is wrong with a table, what it costs, and what to do about it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::rule::{Needs, Rule, Severity};
use crate::structure::{Drhd, Malformed, Structure};
use crate::table::Dmar;

mod header;
mod machine;
mod others;
mod regions;
mod scopes;
mod units;

pub use machine::{FunctionList, KernelVersion, Machine, MemoryKind, MemoryRegion, PciFunction};

/// One thing that a rule found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// How bad it is; mostly the rule's own severity.
    pub severity: Severity,
    /// Offset of the field or structure in the table, in bytes.
    pub offset: usize,
    /// What was found, with its values.
    pub message: String,
}

impl Finding {
    /// One sentence that says what to do.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        self.rule.advice()
    }
}

/// Prints as `L08 error at offset 0x60: ...`, without the advice.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rule,
            severity,
            offset,
            message,
        } = self;
        write!(f, "{rule} {severity} at offset {offset:#x}: {message}")
    }
}

/// A rule that could not be judged: neither broken nor kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJudged {
    /// The rule.
    pub rule: Rule,
    /// What would have to be known.
    pub needs: Needs,
}

/// What the rules say about a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The findings, by offset.
    pub findings: Vec<Finding>,
    /// The rules whose input is missing, by id.
    pub not_judged: Vec<NotJudged>,
}

impl Report {
    /// The worst severity found, or `None` without findings.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Whether `rule` found something.
    #[must_use]
    pub fn has(&self, rule: Rule) -> bool {
        self.findings.iter().any(|finding| finding.rule == rule)
    }
}

/// Judges the table that `bytes` starts with by every rule for which `machine` has the input.
///
/// A truncated table is judged as far as it goes. Without a usable header the header is the only finding.
#[must_use]
pub fn lint_bytes(bytes: &[u8], machine: &Machine<'_>) -> Report {
    match Dmar::inspect(bytes) {
        Ok(table) => lint(table, machine),
        Err(error) => Report {
            findings: alloc::vec![Finding {
                rule: error.rule(),
                severity: error.rule().severity(),
                offset: error.offset(),
                message: alloc::format!("{error}"),
            }],
            // Nothing else can be judged, and nothing that the caller could add would change it.
            not_judged: Vec::new(),
        },
    }
}

/// Judges a table by every rule for which `machine` has the input.
#[must_use]
pub fn lint(table: Dmar<'_>, machine: &Machine<'_>) -> Report {
    let mut linter = Linter {
        table,
        machine,
        complete: table.first_malformed().is_none(),
        report: Report::default(),
    };
    linter.check_header();
    linter.check_structures();
    linter.check_units();
    linter.check_regions();
    linter.check_scopes();
    linter.check_affinity();
    linter.check_ats();
    linter.check_namespace();
    let mut report = linter.report;
    report.findings.sort_by_key(|finding| (finding.offset, finding.rule));
    report.not_judged.sort_by_key(|missing| missing.rule);
    report.not_judged.dedup();
    report
}

/// The rules at work.
struct Linter<'a> {
    table: Dmar<'a>,
    machine: &'a Machine<'a>,
    /// Whether the whole table was readable: else "there is no such structure" is not known.
    complete: bool,
    report: Report,
}

impl<'a> Linter<'a> {
    fn found(&mut self, rule: Rule, offset: usize, message: String) {
        self.found_as(rule, rule.severity(), offset, message);
    }

    fn found_as(&mut self, rule: Rule, severity: Severity, offset: usize, message: String) {
        self.report.findings.push(Finding {
            rule,
            severity,
            offset,
            message,
        });
    }

    fn malformed(&mut self, malformed: Malformed) {
        // The finding's own line names rule and offset, so only the part after them is kept.
        let text = alloc::format!("{malformed}");
        let message = text.split_once(": ").map_or(text.as_str(), |(_, what)| what);
        self.found(malformed.rule, malformed.offset, message.into());
    }

    fn not_judged(&mut self, rule: Rule, needs: Needs) {
        self.report.not_judged.push(NotJudged { rule, needs });
    }

    /// The input of `rule`, or a note that it is missing.
    fn need<T>(&mut self, input: Option<T>, rule: Rule, needs: Needs) -> Option<T> {
        if input.is_none() {
            self.not_judged(rule, needs);
        }
        input
    }

    fn structures(&self) -> impl Iterator<Item = Structure<'a>> + use<'a> {
        self.table.structures().filter_map(Result::ok)
    }

    fn units(&self) -> impl Iterator<Item = (usize, Drhd<'a>)> + use<'a> {
        self.table.units().enumerate()
    }
}
