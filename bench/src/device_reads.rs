//! B11: how often the unit reads memory for each page that devices stream. Counted, not timed.

mod trace;

use crate::row::Row;
use trace::{Outcome, Policy, run};

/// Flows of the traces.
const FLOWS: [usize; 4] = [5, 10, 20, 40];
/// Descriptors of each flow that are counted.
const DESCRIPTORS: usize = 16;
/// Reads for each page that are aimed at.
const TARGET: f64 = 1.06;

/// Counts every trace under both policies; says why there are none if the machine cannot be made.
pub(crate) fn rows() -> Vec<Row> {
    let counted = FLOWS.iter().map(|&flows| row(flows));
    let counted = counted.map(|row| row.map_err(|why| eprintln!("B11 was not counted: {why}")));
    counted.filter_map(Result::ok).flatten().collect()
}

fn row(flows: usize) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    let ours = run(flows, DESCRIPTORS, Policy::Descriptor)?;
    let mut rows = Vec::new();
    for (policy, name) in [
        (Policy::Page, "page by page"),
        (Policy::Unhinted, "page by page, no hint (Linux)"),
    ] {
        let peer: Outcome = run(flows, DESCRIPTORS, policy)?;
        if ours.wrong + peer.wrong > 0 {
            return Err(format!("{} requests went wrong", ours.wrong + peer.wrong).into());
        }
        let case = format!(
            "reads per 4 KiB, {flows} flows, invalidations {} to {}",
            ours.invalidations, peer.invalidations
        );
        let figures = [ours.reads_per_page(), peer.reads_per_page()];
        rows.push(Row::counted("B11", case, figures, name, TARGET));
    }
    Ok(rows)
}
