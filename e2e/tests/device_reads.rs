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

use trace::{CACHES, PAGES, Policy, Setup, run, run_setup};

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

#[test]
fn the_reference_caches_need_as_few_reads_also_when_packets_are_dropped() {
    for drops in [false, true] {
        let setup = Setup {
            drops,
            ..Setup::new(40, 4, Policy::Descriptor)
        };
        let ours = run_setup(setup).expect("the machine works");
        let linux = run_setup(Setup {
            policy: Policy::Unhinted,
            ..setup
        })
        .expect("the machine works");
        assert_eq!((ours.wrong, linux.wrong), (0, 0), "{ours:?} {linux:?}");
        let [few, many] = [ours, linux].map(|outcome| outcome.reference_reads_per_page());
        assert!((1.0..=1.06).contains(&few) && many >= 3.9 * few, "{ours:?} {linux:?}");
        // One miss a page is 256 a MiB, and the model of throughput makes at least 119 Gb/s of it.
        assert!(ours.misses_per_mib() <= 257.0, "{ours:?}");
        assert!(ours.gigabits() >= 119.0, "{ours:?}");
    }
}

#[test]
fn a_pool_in_large_pages_is_read_for_only_while_it_is_new() {
    let setup = Setup {
        ring: 512,
        ..Setup::new(40, 4, Policy::Pool)
    };
    let outcome = run_setup(setup).expect("the machine works");
    assert_eq!((outcome.wrong, outcome.invalidations), (0, 0), "{outcome:?}");
    assert!(outcome.reference_reads_per_page() <= 0.01, "{outcome:?}");
}
