//! What the unit costs in messages: counted, not timed.

use crate::programs;
use crate::rig::{Programs, Rig, Way};
use vtd_model::UnitConfig;

/// Reads of one block each that the guest does in the counted part.
const REQUESTS: u64 = 2000;

/// What one run came to.
#[derive(Debug)]
struct Cost {
    messages: f64,
    sequential: f64,
    random: f64,
}

fn measure(programs: &Programs, way: Way, words: &str) -> Cost {
    let mut rig = Rig::with(programs, UnitConfig::builder(), way, None);
    let (mut before, mut after) = (0, 0);
    let talk = rig.run("speed", words, |rig, line| {
        match line {
            "random begins" => before = rig.messages(),
            "random ends" => after = rig.messages(),
            _ => {}
        }
        true
    });
    let seconds = |what: &str| {
        let line = talk.all(what).concat();
        let times: Vec<f64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        times[1] - times[0]
    };
    assert!(after > before, "{}", talk.console);
    #[expect(clippy::cast_precision_loss, reason = "a few thousand messages")]
    Cost {
        messages: (after - before) as f64 / REQUESTS as f64,
        sequential: 32.0 / seconds("sequential "),
        random: REQUESTS as f64 / seconds("times "),
    }
}

#[test]
fn a_request_costs_its_invalidations_and_lazy_invalidation_shares_them() {
    let Some(programs) = programs(true) else { return };
    let around = measure(&programs, Way::Around, "");
    let lazy = measure(&programs, Way::Through, "iommu.strict=0");
    let strict = measure(&programs, Way::Through, "iommu.strict=1");
    println!(
        "also: messages for each block request: {:.2} without the unit, {:.2} lazy, {:.2} strict",
        around.messages, lazy.messages, strict.messages
    );
    println!(
        "also: sequential reads: {:.1} MiB/s without the unit, lazy {:.2}x, strict {:.2}x; random reads of 4 KiB: {:.0}/s \
         without, lazy {:.2}x, strict {:.2}x",
        around.sequential,
        lazy.sequential / around.sequential,
        strict.sequential / around.sequential,
        around.random,
        lazy.random / around.random,
        strict.random / around.random
    );
    // What a strict unmap costs: a write of the tail, and Linux's look at the fault status, which is a question and an answer.
    // A request has up to three mappings: the list of its parts, its status, its data.
    assert!(
        strict.messages <= around.messages + 3.0 * 3.0 + 1.0,
        "{strict:?} {around:?}"
    );
    // Lazy invalidation does the same for many requests at once.
    assert!(lazy.messages < strict.messages / 2.0, "{lazy:?} {strict:?}");
}
