//! A row of the result table.

use serde::Serialize;

use crate::pair::Comparison;

/// One measured comparison with its target.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// The benchmark it belongs to (B1 …).
    pub(crate) id: &'static str,
    /// What exactly was done.
    pub(crate) case: String,
    /// Our figure.
    pub(crate) ours: f64,
    /// The unit of both figures.
    pub(crate) unit: &'static str,
    /// The peer's figure.
    pub(crate) peer: f64,
    /// Who the peer is.
    pub(crate) peer_name: &'static str,
    /// Median of the paired ratios peer / ours: above 1, ours is better.
    pub(crate) ratio: f64,
    /// What is aimed at, in words.
    pub(crate) target: String,
    /// Whether it was reached; nothing where the row is only reported.
    pub(crate) met: Option<bool>,
}

impl Row {
    /// A row whose target is a ratio; it is met when the lower end of the ratio's interval reaches it.
    pub(crate) fn at_least(
        id: &'static str,
        case: String,
        comparison: &Comparison,
        peer_name: &'static str,
        ratio: f64,
    ) -> Self {
        let target = format!(">= {ratio}x (low end of the interval {:.2}x)", comparison.ratio_low);
        Self {
            target,
            met: Some(comparison.ratio_low >= ratio),
            ..Self::reported(id, case, comparison, peer_name)
        }
    }

    /// A row without a target.
    pub(crate) fn reported(id: &'static str, case: String, comparison: &Comparison, peer_name: &'static str) -> Self {
        Self {
            id,
            case,
            ours: comparison.ours_ns,
            unit: "ns",
            peer: comparison.peer_ns,
            peer_name,
            ratio: comparison.ratio,
            target: "reported".to_owned(),
            met: None,
        }
    }
}

/// Prints the rows as a table.
pub(crate) fn print(rows: &[Row]) {
    println!(
        "{:<4} {:<46} {:>10} {:>10} {:<34} {:>8}  {:<4} target",
        "id", "case", "ours", "peer", "peer's name", "ratio", "met"
    );
    for row in rows {
        let met = match row.met {
            Some(true) => "yes",
            Some(false) => "no",
            None => "–",
        };
        println!(
            "{:<4} {:<46} {:>7.1} {} {:>7.1} {} {:<34} {:>7.2}x  {:<4} {}",
            row.id, row.case, row.ours, row.unit, row.peer, row.unit, row.peer_name, row.ratio, met, row.target
        );
    }
}
