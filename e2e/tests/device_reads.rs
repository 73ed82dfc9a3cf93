//! B11 as a test: what the unit reads from memory for each page that devices stream, through the DMA API and the
//! driver. Counts are the same on every machine, so this gates.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests report by panicking, also in their helpers"
)]

#[path = "../../bench/src/device_reads/trace.rs"]
mod trace;

use trace::{CACHES, PAGES, Policy, run};

#[test]
fn forty_flows_cost_little_more_than_one_read_for_each_page() {
    assert_eq!(
        (CACHES.pages, CACHES.tables, PAGES),
        (64, 128, 64),
        "the geometry of the target"
    );
    for flows in [5, 40] {
        let outcome = run(flows, 4, Policy::Descriptor).expect("the machine works");
        assert_eq!(outcome.wrong, 0, "{outcome:?}");
        assert!(outcome.reads_per_page() <= 1.06, "{flows} flows: {outcome:?}");
    }
}

#[test]
fn a_descriptor_costs_one_invalidation_and_every_page_its_compulsory_read() {
    let outcome = run(8, 4, Policy::Descriptor).expect("the machine works");
    // Strict: nothing is translated twice. One invalidation for a descriptor, one for its acknowledgement.
    assert!(outcome.reads >= outcome.pages, "{outcome:?}");
    assert_eq!(outcome.invalidations, 2 * 8 * 4, "{outcome:?}");
}

#[test]
fn page_by_page_every_page_is_an_invalidation_of_its_own() {
    let outcome = run(8, 2, Policy::Page).expect("the machine works");
    assert_eq!(
        (outcome.wrong, outcome.invalidations),
        (0, (PAGES + 1) * 8 * 2),
        "{outcome:?}"
    );
}

#[test]
fn dropping_table_pointers_with_every_page_costs_several_times_as_much() {
    let [ours, linux] = [Policy::Descriptor, Policy::Unhinted].map(|policy| run(40, 4, policy).expect("works"));
    assert_eq!((ours.wrong, linux.wrong), (0, 0), "{ours:?} {linux:?}");
    let factor = linux.reads_per_page() / ours.reads_per_page();
    // The published counts of such a policy are 1.76 to 4.36.
    assert!(
        (1.76 * 0.75..4.36 * 1.25).contains(&linux.reads_per_page()),
        "{linux:?}"
    );
    assert!(factor >= 3.9, "{factor}: {ours:?} {linux:?}");
}
