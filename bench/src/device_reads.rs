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
    counted.filter_map(Result::ok).collect()
}

fn row(flows: usize) -> Result<Row, Box<dyn std::error::Error>> {
    let [ours, pages] = [Policy::Descriptor, Policy::Page].map(|policy| run(flows, DESCRIPTORS, policy));
    let (ours, pages): (Outcome, Outcome) = (ours?, pages?);
    if ours.wrong + pages.wrong > 0 {
        return Err(format!("{} requests went wrong", ours.wrong + pages.wrong).into());
    }
    let case = format!(
        "reads per 4 KiB, {flows} flows, invalidations {} to {}",
        ours.invalidations, pages.invalidations
    );
    Ok(Row::counted(
        "B11",
        case,
        [ours.reads_per_page(), pages.reads_per_page()],
        "page by page",
        TARGET,
    ))
}
