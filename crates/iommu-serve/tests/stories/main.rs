//! Stories of drivers' mistakes, told as traces: the sanitizer names each, and is silent where the mistake is mended.

#![expect(clippy::unwrap_used, reason = "a test reports by panicking, its helpers too")]

use iommu_serve::trace::{Story, replay};

/// The names of the rules that a story breaks; it has to replay as it stands.
fn broken(text: &str) -> Vec<String> {
    let story = Story::parse(text).unwrap();
    let outcome = replay(&story, true).unwrap();
    assert_eq!(outcome.differences, []);
    outcome.broken.into_iter().map(|(_, rule, _)| rule).collect()
}

#[test]
fn a_superpage_that_replaces_a_table_without_a_flush_is_named() {
    assert_eq!(
        broken(include_str!("superpage-without-flush.trace")),
        ["stale-translation"]
    );
}

#[test]
fn the_same_with_the_flush_breaks_nothing() {
    assert_eq!(broken(include_str!("superpage-with-flush.trace")), Vec::<String>::new());
}
