//! Kept matrices: `--keep FILE` writes one, `--expect FILE` compares with it.
//!
//! One line for each cell, `REQUESTER TARGET VERDICT`, as in `0000:02:00.0 host-memory blocked`; `#` begins a
//! comment. The file says what *was seen* when it was kept, so a run after a change of firmware, kernel or card
//! shows what moved.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iommu_types::Bdf;
use thiserror::Error;

use super::matrix::{Cell, Target, Verdict};

/// A kept matrix.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Expectation {
    cells: BTreeMap<(Bdf, Target), Verdict>,
}

/// A line that is not one of a kept matrix.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{line}: {problem}")]
pub(crate) struct Mistake {
    line: usize,
    problem: String,
}

/// A cell that is not as it was kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Who.
    pub(crate) requester: Bdf,
    /// Against what.
    pub(crate) target: Target,
    /// As kept; nothing if the cell is new.
    pub(crate) kept: Option<Verdict>,
    /// As seen now; nothing if the cell is gone.
    pub(crate) seen: Option<Verdict>,
}

impl Expectation {
    /// Reads a kept matrix.
    ///
    /// # Errors
    /// [`Mistake`] with the line and what was expected there.
    pub(crate) fn parse(text: &str) -> Result<Self, Mistake> {
        let mut cells = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let mistake = |problem: String| Mistake {
                line: index + 1,
                problem,
            };
            let content = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = content.split_whitespace().collect();
            let [requester, target, verdict] = words[..] else {
                if words.is_empty() {
                    continue;
                }
                return Err(mistake(format!(
                    "expected REQUESTER TARGET VERDICT, found {:?}",
                    content.trim()
                )));
            };
            let requester: Bdf = requester.parse().map_err(|e| mistake(format!("{requester:?}: {e}")))?;
            let target: Target = target
                .parse()
                .map_err(|()| mistake(format!("{target:?} is no target; expected {}", names(&Target::ALL))))?;
            let verdict: Verdict = verdict
                .parse()
                .map_err(|()| mistake(format!("{verdict:?} is no verdict; expected {}", names(&Verdict::ALL))))?;
            if cells.insert((requester, target), verdict).is_some() {
                return Err(mistake(format!("{requester} {target} stands here twice")));
            }
        }
        if cells.is_empty() {
            return Err(Mistake {
                line: 1,
                problem: "no cell: a kept matrix has one line for each".to_owned(),
            });
        }
        Ok(Self { cells })
    }

    /// What is not as it was kept, in the order of requesters and columns.
    pub(crate) fn differences(&self, seen: &[Cell]) -> Vec<Difference> {
        let seen: BTreeMap<(Bdf, Target), Verdict> = seen
            .iter()
            .map(|cell| ((cell.requester, cell.target), cell.seen))
            .collect();
        let mut keys: Vec<_> = self.cells.keys().chain(seen.keys()).copied().collect();
        keys.sort_unstable();
        keys.dedup();
        keys.into_iter()
            .map(|key| Difference {
                requester: key.0,
                target: key.1,
                kept: self.cells.get(&key).copied(),
                seen: seen.get(&key).copied(),
            })
            .filter(|difference| difference.kept != difference.seen)
            .collect()
    }
}

/// A matrix as a file to keep.
pub(crate) fn keep(cells: &[Cell], machine: &str) -> String {
    let mut text = format!("# Access matrix of {machine}. Compare with: iommu run … --expect FILE\n");
    for cell in cells {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {:<16} {}", cell.requester, cell.target.name(), cell.seen);
    }
    text
}

fn names<T: std::fmt::Display>(all: &[T]) -> String {
    all.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::matrix::Tally;

    fn cell(requester: &str, target: Target, seen: Verdict) -> Cell {
        Cell {
            requester: requester.parse().expect("valid"),
            target,
            predicted: seen,
            because: String::new(),
            seen,
            evidence: String::new(),
            logged: None,
            silent: false,
            tally: Tally::default(),
        }
    }

    #[test]
    fn a_kept_matrix_reads_back_as_itself() {
        let cells = [
            cell("0000:02:00.0", Target::HostMemory, Verdict::Blocked),
            cell("0000:02:00.0", Target::OwnMapping, Verdict::Allowed),
        ];
        let kept = Expectation::parse(&keep(&cells, "a machine")).expect("well formed");
        assert_eq!(kept.differences(&cells), []);
    }

    #[test]
    fn a_changed_a_new_and_a_missing_cell_are_all_shown() {
        let kept = Expectation::parse("02:00.0 rmrr blocked\n02:00.0 peer-bar blocked\n").expect("well formed");
        let now = [
            cell("02:00.0", Target::Rmrr, Verdict::Allowed),
            cell("02:00.1", Target::Rmrr, Verdict::Blocked),
        ];
        let differences = kept.differences(&now);
        assert_eq!(differences.len(), 3);
        assert_eq!(differences[0].seen, Some(Verdict::Allowed));
        assert_eq!(
            differences[1],
            Difference {
                requester: "02:00.0".parse().expect("valid"),
                target: Target::PeerBar,
                kept: Some(Verdict::Blocked),
                seen: None,
            }
        );
        assert_eq!(differences[2].kept, None);
    }

    #[test]
    fn a_mistake_names_its_line_and_what_was_expected() {
        let mistake = |text: &str| Expectation::parse(text).expect_err("malformed").to_string();
        assert!(mistake("# head\n02:00.0 rmrr\n").starts_with("2: expected REQUESTER"));
        assert!(mistake("02:00.0 rmr blocked").contains("own-mapping"));
        assert!(mistake("02:00.0 rmrr maybe").contains("allowed, blocked, unknown"));
        assert!(mistake("2:0 rmrr blocked").contains("bus:device.function"));
        assert!(mistake("02:00.0 rmrr blocked\n02:00.0 rmrr allowed").starts_with("2: "));
        assert!(mistake("# nothing\n").contains("no cell"));
    }
}
