//! B11: how often the unit reads memory for each page that devices stream. Counted, not timed.

mod trace;

use crate::row::Row;
use trace::{CACHES, Outcome, Policy, Setup, run, run_setup};

/// Flows of the traces.
const FLOWS: [usize; 4] = [5, 10, 20, 40];
/// Pages of each flow that the device holds, besides the usual 256.
const RINGS: [usize; 3] = [512, 1024, 2048];
/// Descriptors of each flow that are counted.
const DESCRIPTORS: usize = 16;
/// Reads for each page that are aimed at.
const TARGET: f64 = 1.06;
/// How many times fewer than the policy of Linux.
const FEWER: f64 = 4.0;
/// The same for a pool in 2 MiB pages.
const POOLED: f64 = 0.01;
/// What was published for such a policy, from 5 to 40 flows, and how far from it the trace may be.
const PUBLISHED: [f64; 2] = [1.76, 4.36];
const NEAR: f64 = 0.25;

type Rows = Result<Vec<Row>, Box<dyn std::error::Error>>;

/// Counts every trace under all policies; says why there are none if the machine cannot be made.
pub(crate) fn rows(quick: bool) -> Vec<Row> {
    let mut counted: Vec<Rows> = FLOWS.iter().map(|&flows| row(flows)).collect();
    let usual = |flows| Setup::new(flows, DESCRIPTORS, Policy::Descriptor);
    let few = |flows: &&usize| !quick || [5, 40].contains(*flows);
    counted.extend(FLOWS.iter().filter(few).map(|&flows| reference(usual(flows))));
    counted.extend([5, 40].map(|flows| {
        reference(Setup {
            drops: true,
            ..usual(flows)
        })
    }));
    counted.extend([(5, 256), (40, 256), (40, 512)].map(|(flows, ring)| pool(flows, ring)));
    if !quick {
        counted.extend(RINGS.map(|ring| reference(Setup { ring, ..usual(40) })));
        counted.push(reference(Setup {
            ring: 2048,
            drops: true,
            ..usual(40)
        }));
    }
    let counted = counted.into_iter();
    let counted = counted.map(|row| row.map_err(|why| eprintln!("B11 was not counted: {why}")));
    counted.filter_map(Result::ok).flatten().collect()
}

/// Fails if a request was blocked or went astray.
fn right(outcomes: &[Outcome]) -> Result<(), String> {
    match outcomes.iter().map(|outcome| outcome.wrong).sum::<u64>() {
        0 => Ok(()),
        wrong => Err(format!("{wrong} requests went wrong")),
    }
}

fn row(flows: usize) -> Rows {
    let ours = run(flows, DESCRIPTORS, Policy::Descriptor)?;
    let mut rows = Vec::new();
    for (policy, name) in [
        (Policy::Page, "page by page"),
        (Policy::Unhinted, "page by page, no hint (Linux)"),
    ] {
        let peer: Outcome = run(flows, DESCRIPTORS, policy)?;
        right(&[ours, peer])?;
        let case = format!(
            "reads per 4 KiB, {flows} flows, invalidations {} to {}",
            ours.invalidations, peer.invalidations
        );
        let figures = [ours.reads_per_page(), peer.reads_per_page()];
        rows.push(Row::counted("B11", case, figures, name, TARGET));
    }
    if flows == FLOWS[0] {
        let case = format!(
            "(the model: {} pages, {} pointers, sets of 4)",
            CACHES.pages, CACHES.tables
        );
        rows.push(Row::figure("B11", case, ours.misses_per_mib(), "/MiB"));
    }
    Ok(rows)
}

/// The same traces with the caches of the reference: reads, misses, and what a device could stream.
fn reference(setup: Setup) -> Rows {
    let ours = run_setup(setup)?;
    let linux = run_setup(Setup {
        policy: Policy::Unhinted,
        ..setup
    })?;
    right(&[ours, linux])?;
    let Setup { flows, ring, .. } = setup;
    let drops = if setup.drops { ", 3 % dropped" } else { "" };
    let case = |what: &str| format!("{what}, {flows} flows, ring {ring}{drops}, LRU of 64 + 32/32/64");
    let name = "page by page, no hint (Linux)";
    let reads = [ours, linux].map(|outcome| outcome.reference_reads_per_page());
    let mut counted = Row::counted("B11", case("reads per 4 KiB"), reads, name, TARGET);
    // No more than four can be saved, and that only where nothing but the one read is left.
    if flows == 40 && ring == 256 {
        counted.target = format!("{} and >= {FEWER}x", counted.target);
        counted.met = counted.met.map(|met| met && reads[1] >= FEWER * reads[0]);
    }
    let compared = |what: &str, unit: &'static str, [ours, linux]: [f64; 2]| Row {
        peer: linux,
        peer_name: name,
        ratio: linux / ours,
        ..Row::figure("B11", case(what), ours, unit)
    };
    let mut rows = vec![
        counted,
        compared(
            "IOTLB misses",
            "/MiB",
            [ours, linux].map(|outcome| outcome.misses_per_mib()),
        ),
        Row {
            ratio: ours.gigabits() / linux.gigabits(),
            ..compared("predicted", "Gb/s", [ours, linux].map(|outcome| outcome.gigabits()))
        },
    ];
    // Only the published trace: nothing dropped, the usual ring.
    if !setup.drops && ring == 256 {
        let [low, high] = [PUBLISHED[0] * (1.0 - NEAR), PUBLISHED[1] * (1.0 + NEAR)];
        rows.push(Row {
            target: format!("{low:.2} to {high:.2}: a quarter around what was published"),
            met: Some((low..=high).contains(&reads[1])),
            ..Row::figure("B11", case("the Linux-like policy itself"), reads[1], "")
        });
    }
    Ok(rows)
}

/// A pool that is mapped once, in 2 MiB pages.
fn pool(flows: usize, ring: usize) -> Rows {
    let setup = Setup {
        ring,
        ..Setup::new(flows, DESCRIPTORS, Policy::Pool)
    };
    let (ours, pages) = (
        run_setup(setup)?,
        run_setup(Setup {
            policy: Policy::Descriptor,
            ..setup
        })?,
    );
    right(&[ours, pages])?;
    let case = format!("reads per 4 KiB, {flows} flows, ring {ring}, 2 MiB pool, LRU of 64 + 32/32/64");
    let reads = [ours, pages].map(|outcome| outcome.reference_reads_per_page());
    let name = "4 KiB pages, a list each";
    Ok(vec![
        Row::counted("B11", case.clone(), reads, name, POOLED),
        Row {
            ratio: ours.gigabits() / pages.gigabits(),
            peer: pages.gigabits(),
            peer_name: name,
            ..Row::figure("B11", format!("predicted, {case}"), ours.gigabits(), "Gb/s")
        },
    ])
}
