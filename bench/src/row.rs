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

    /// A row whose target is a time; it is met when the median of the subject stays within it.
    pub(crate) fn at_most(
        id: &'static str,
        case: String,
        comparison: &Comparison,
        peer_name: &'static str,
        ns: f64,
    ) -> Self {
        Self {
            target: format!("<= {ns} ns"),
            met: Some(comparison.ours_ns <= ns),
            ..Self::reported(id, case, comparison, peer_name)
        }
    }

    /// Adds a ratio to the target: both must be reached.
    #[must_use]
    pub(crate) fn and_at_least(mut self, comparison: &Comparison, ratio: f64) -> Self {
        self.target = format!(
            "{} and >= {ratio}x (low end of the interval {:.2}x)",
            self.target, comparison.ratio_low
        );
        self.met = self.met.map(|met| met && comparison.ratio_low >= ratio);
        self
    }

    /// A time without a peer: the target, if there is one, is absolute.
    pub(crate) fn alone(id: &'static str, case: String, ns: f64, target: Option<f64>) -> Self {
        Self {
            id,
            case,
            ours: ns,
            unit: "ns",
            peer: target.unwrap_or(ns),
            peer_name: if target.is_some() { "the target" } else { "none" },
            ratio: target.unwrap_or(ns) / ns,
            target: target.map_or_else(|| "reported".to_owned(), |target| format!("<= {target} ns")),
            met: target.map(|target| ns <= target),
        }
    }

    /// How many times as much two threads do as one.
    pub(crate) fn speed_up(id: &'static str, case: String, factor: f64, least: f64) -> Self {
        Self {
            id,
            case,
            ours: factor,
            unit: "",
            peer: 1.0,
            peer_name: "one thread",
            ratio: factor,
            target: format!(">= {least}x"),
            met: Some(factor >= least),
        }
    }

    /// Counts instead of times, ours and the peer's: the same on every machine.
    pub(crate) fn counted(
        id: &'static str,
        case: String,
        [ours, peer]: [f64; 2],
        peer_name: &'static str,
        most: f64,
    ) -> Self {
        Self {
            id,
            case,
            ours,
            unit: "",
            peer,
            peer_name,
            ratio: peer / ours,
            target: format!("<= {most}"),
            met: Some(ours <= most),
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

/// Makes the rows of one benchmark.
pub(crate) type Measure = fn(bool) -> Result<Vec<Row>, Box<dyn std::error::Error>>;

/// Makes the rows of several benchmarks; says why there are none of one that cannot be run.
pub(crate) fn measured(quick: bool, benchmarks: &[(&str, Measure)]) -> Vec<Row> {
    let rows = benchmarks.iter().map(|(name, measure)| {
        measure(quick).unwrap_or_else(|why| {
            eprintln!("{name} was not measured: {why}");
            Vec::new()
        })
    });
    rows.flatten().collect()
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
            "{:<4} {:<46} {:>8} {:<2} {:>8} {:<2} {:<34} {:>7.2}x  {:<4} {}",
            row.id,
            row.case,
            figure(row.ours, row.unit),
            row.unit,
            figure(row.peer, row.unit),
            row.unit,
            row.peer_name,
            row.ratio,
            met,
            row.target
        );
    }
}

/// Times to a tenth, counts to a thousandth.
fn figure(value: f64, unit: &str) -> String {
    if unit.is_empty() {
        format!("{value:.3}")
    } else {
        format!("{value:.1}")
    }
}
