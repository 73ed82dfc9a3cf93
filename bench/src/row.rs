//! A row of the result table.

use serde::Serialize;

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
