//! The access matrix as text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iommu_types::Bdf;

use super::matrix::{Cell, Target, Verdict};
use super::transcript::wrap;
use crate::style::{self, Styled};

/// A requester's row heading.
#[derive(Clone, Debug)]
pub(crate) struct Requester {
    /// Which function.
    pub(crate) bdf: Bdf,
    /// What it is called.
    pub(crate) name: String,
    /// Who has it: a guest or the host.
    pub(crate) owner: String,
}

/// Fault records that are shown: some, from all over the matrix.
const EXAMPLES: usize = 5;
const EXAMPLE_STEP: usize = 11;
/// Longest heading of a row: what 120 columns leave. Longer names are cut; the list of functions has them whole.
const LABEL: usize = 36;
/// Width of a column.
const COLUMN: usize = 9;
/// Column at which the reason of a cell begins, behind its target and verdict.
const REASON: usize = 2 + 15 + 1 + 8 + 1;

/// The table and, below it, the reasons of its cells.
pub(crate) fn matrix(requesters: &[Requester], cells: &[Cell]) -> String {
    let by_place: BTreeMap<(Bdf, Target), &Cell> =
        cells.iter().map(|cell| ((cell.requester, cell.target), cell)).collect();
    let label = |r: &Requester| {
        let (bdf, owner) = (r.bdf.to_string(), &r.owner);
        let room = LABEL.saturating_sub(bdf.len() + owner.chars().count() + 4);
        let name = if r.name.chars().count() > room {
            let kept: String = r.name.chars().take(room.saturating_sub(1)).collect();
            format!("{kept}…")
        } else {
            r.name.clone()
        };
        format!("{bdf} {name} ({owner})")
    };
    let width = requesters
        .iter()
        .map(|r| label(r).chars().count())
        .max()
        .unwrap_or(0)
        .max(9)
        + 2;
    let mut text = String::new();
    for line in 0..2 {
        let _ = write!(text, "  {:width$}", if line == 0 { "requester" } else { "" });
        for target in Target::ALL {
            let _ = write!(text, "{:COLUMN$}", target.heading()[line]);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    for requester in requesters {
        let _ = write!(text, "  {:width$}", label(requester));
        for target in Target::ALL {
            let word = by_place
                .get(&(requester.bdf, target))
                .map_or_else(|| style::plainly("–".to_owned()), |cell| word(cell));
            // The room after a word has no colour: at the end of a line it is left out.
            let room = COLUMN.saturating_sub(word.width());
            let _ = write!(text, "{word}{:room$}", "");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text.push('\n');
    text.push_str(&reasons(cells));
    text
}

/// What was seen, with a colour: as it should be, open as predicted, or not as predicted.
fn word(cell: &Cell) -> Styled<String> {
    let seen = cell.seen.name();
    if !cell.holds() {
        return style::bad(format!("{seen}!"));
    }
    shade(cell.target, cell.seen, seen.to_owned())
}

/// Green is what should be: a function reaches its own and nothing else. What else is open stands out.
fn shade<T>(target: Target, verdict: Verdict, text: T) -> Styled<T> {
    match (verdict, target) {
        (Verdict::Blocked, _) | (Verdict::Allowed, Target::OwnMapping) => style::good(text),
        (Verdict::Allowed | Verdict::Unknown, _) => style::doubt(text),
    }
}

/// Why the cells are as they are: one line for each column and reason, with the requesters it holds for.
fn reasons(cells: &[Cell]) -> String {
    let mut lines: BTreeMap<(Target, &'static str, &str), (Verdict, Vec<&Cell>)> = BTreeMap::new();
    for cell in cells {
        // Where either is possible, what was seen is what there is to say.
        let verdict = if cell.predicted == Verdict::Unknown {
            cell.seen
        } else {
            cell.predicted
        };
        lines
            .entry((cell.target, verdict.name(), &cell.because))
            .or_insert_with(|| (verdict, Vec::new()))
            .1
            .push(cell);
    }
    let mut text = String::new();
    for ((target, name, because), (verdict, cells)) in lines {
        let who: Vec<String> = cells.iter().map(|cell| cell.requester.source.to_string()).collect();
        let head = format!("  {:<15} {:<8} ", target.name(), shade(target, verdict, name));
        let _ = writeln!(text, "{}", wrap(&format!("{head}{because}"), REASON));
        let _ = writeln!(text, "{}", wrap(&format!("{:REASON$}{}", "", who.join(" ")), REASON));
    }
    let records = cells.iter().filter_map(|cell| Some((cell, cell.logged.as_ref()?)));
    if records.clone().next().is_some() {
        text.push_str("\n  What the units logged and the driver read back, for example:\n");
    }
    for (cell, logged) in records.step_by(EXAMPLE_STEP).take(EXAMPLES) {
        let line = format!(
            "    {} tried {}: source {}, {}: {}",
            cell.requester, cell.target, logged.source, logged.address, logged.reason
        );
        let _ = writeln!(text, "{}", wrap(&line, 8));
    }
    for cell in cells.iter().filter(|cell| !cell.holds()) {
        let log = if cell.seen == Verdict::Blocked && cell.logged.is_none() {
            "; the unit logged nothing"
        } else {
            ""
        };
        let line = format!(
            "  {} {} {}: predicted {}, seen {}: {}{log}",
            style::bad("MISMATCH"),
            cell.requester,
            cell.target,
            cell.predicted,
            cell.seen,
            cell.evidence
        );
        let _ = writeln!(text, "{}", wrap(&line, 6));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::matrix::{Logged, Tally};

    fn cell(target: Target, predicted: Verdict, seen: Verdict) -> Cell {
        let logged = (seen == Verdict::Blocked).then(|| Logged {
            source: "03:00.0".to_owned(),
            address: "0x1000".to_owned(),
            reason: "5h".to_owned(),
        });
        Cell {
            requester: "03:00.0".parse().expect("valid"),
            target,
            predicted,
            because: "no mapping".to_owned(),
            seen,
            evidence: "memory unchanged".to_owned(),
            logged,
            silent: false,
            tally: Tally {
                tried: 1,
                stopped: 1,
                recorded: 1,
            },
        }
    }

    #[test]
    fn a_cell_that_is_not_as_predicted_stands_out() {
        let who = [Requester {
            bdf: "03:00.0".parse().expect("valid"),
            name: "disk".to_owned(),
            owner: "guest A".to_owned(),
        }];
        let cells = [
            cell(Target::HostMemory, Verdict::Blocked, Verdict::Blocked),
            cell(Target::Rmrr, Verdict::Blocked, Verdict::Allowed),
        ];
        let coloured = matrix(&who, &cells);
        assert!(coloured.contains(&style::bad("allowed!").to_string()), "{coloured:?}");
        assert!(coloured.contains(&style::good("blocked").to_string()), "{coloured:?}");
        let text = style::plain(&coloured);
        assert!(text.contains("0000:03:00.0 disk (guest A)"));
        assert!(text.contains("allowed!"));
        assert!(text.contains("MISMATCH 0000:03:00.0 rmrr: predicted blocked, seen allowed"));
        assert!(!text.contains("blocked!"));
    }
}
