//! A row of the result table.

use serde::Serialize;

use crate::gates;
use crate::pair::{self, Comparison};

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
    /// What all but one batch in a thousand stay within, in the unit of our figure; nothing where it is no median of
    /// batches.
    pub(crate) p999: Option<f64>,
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
            p999: None,
        }
    }

    /// A row whose target is the time of a kernel that does the least: at most `factor` times as much.
    pub(crate) fn within(
        id: &'static str,
        case: String,
        comparison: &Comparison,
        kernel: &'static str,
        factor: f64,
    ) -> Self {
        Self {
            target: format!("<= {factor}x the kernel's time"),
            met: Some(comparison.ratio * factor >= 1.0),
            ..Self::reported(id, case, comparison, kernel)
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
            p999: None,
        }
    }

    /// A figure in another unit than time, without a peer: only reported.
    pub(crate) fn figure(id: &'static str, case: String, ours: f64, unit: &'static str) -> Self {
        Self {
            unit,
            ..Self::alone(id, case, ours, None)
        }
    }

    /// What a part of an operation takes, of the whole.
    pub(crate) fn share(id: &'static str, case: String, ns: f64, whole: f64) -> Self {
        Self {
            peer: whole,
            peer_name: "the whole pair",
            // A stage that is lost in the noise comes out near zero, on either side of it.
            ratio: whole / ns.max(0.1),
            ..Self::alone(id, case, ns, None)
        }
    }

    /// A figure that has to lie within a factor of a known one, above or below: a peer that stands in for something
    /// else must first cost what that costs.
    pub(crate) fn stands_in(id: &'static str, case: String, ns: f64, [low, high]: [f64; 2]) -> Self {
        Self {
            peer: f64::midpoint(low, high),
            peer_name: "the original, as it was measured",
            ratio: f64::midpoint(low, high) / ns,
            target: format!("within half of {low} to {high} ns"),
            met: Some(ns >= low * 0.5 && ns <= high * 1.5),
            ..Self::alone(id, case, ns, None)
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
            p999: None,
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
            p999: Some(comparison.ours_p999),
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

/// A row as it is written to a file: with what it means.
#[derive(Serialize)]
pub(crate) struct Written<'a> {
    #[serde(flatten)]
    row: &'a Row,
    /// Whether it must be met.
    gate: bool,
    /// What keeps it from its target, if it is missed.
    limited_by: Option<&'static str>,
}

/// The rows with their gates and limits.
pub(crate) fn to_json(rows: &[Row]) -> Vec<Written<'_>> {
    let written = |row| Written {
        row,
        gate: gates::is_gate(row),
        limited_by: gates::limit(row),
    };
    rows.iter().map(written).collect()
}

/// What the program was built for and on: figures of other builds are other figures.
fn conditions(processors: usize) -> String {
    let features = [
        ("avx2", cfg!(target_feature = "avx2")),
        ("avx512f", cfg!(target_feature = "avx512f")),
        ("bmi2", cfg!(target_feature = "bmi2")),
    ];
    let on: Vec<&str> = features.iter().filter(|(_, on)| *on).map(|&(name, _)| name).collect();
    let features = if on.is_empty() {
        "baseline".to_owned()
    } else {
        on.join(" ")
    };
    format!(
        "{} for {}, {features} target features, {processors} processors; {}",
        if cfg!(debug_assertions) {
            "NOT OPTIMISED"
        } else {
            "optimised"
        },
        std::env::consts::ARCH,
        pair::clock()
    )
}

/// Prints the rows as a table, then what gates and what was missed, with the reason.
pub(crate) fn print(rows: &[Row], processors: usize) {
    println!(
        "{:<4} {:<66} {:>10} {:>9} {:>12} {:<34} {:>10}  {:<4} {:<4} target",
        "id", "case", "ours", "p99.9", "peer", "peer's name", "ratio", "met", "gate"
    );
    for row in rows {
        let met = match row.met {
            Some(true) => "yes",
            Some(false) => "no",
            None => "–",
        };
        println!(
            "{:<4} {:<66} {:>8} {:<4} {:>7} {:>10} {:<4} {:<34} {:>9.2}x  {:<4} {:<4} {}",
            row.id,
            row.case,
            figure(row.ours, row.unit),
            row.unit,
            row.p999.map_or_else(|| "–".to_owned(), |p999| figure(p999, row.unit)),
            figure(row.peer, row.unit),
            row.unit,
            row.peer_name,
            row.ratio,
            met,
            if gates::is_gate(row) { "gate" } else { "" },
            row.target
        );
    }
    let gated: Vec<&Row> = rows.iter().filter(|row| gates::is_gate(row)).collect();
    let met = gated.iter().filter(|row| row.met == Some(true)).count();
    println!("\n{}", conditions(processors));
    println!("{met} of {} gates met", gated.len());
    for row in rows {
        if let Some(limit) = gates::limit(row) {
            let what = if gates::is_gate(row) { "MISSED GATE" } else { "missed" };
            println!("{what}: {} {} ({}): {limit}", row.id, row.case, row.target);
        }
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
