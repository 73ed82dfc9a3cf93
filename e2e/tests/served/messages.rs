//! What the unit costs: messages, which are counted and judged, and time, which is only told.
//!
//! One guest has two equal disks, one behind the unit and one beside it, and reads them in turns of a few milliseconds, so
//! that whatever else the machine does meets both; what is told is the middle of the pairs. The server's part of the time is
//! what its threads spend on a processor; the rest is the guest, whose driver maps and unmaps each buffer, and QEMU. With an
//! identity domain the unit answers each request still, but the driver has nothing to map, and one answer covers a whole
//! buffer: what is slower then are messages and locks, and what lazy mode loses besides is mapping and answers page by page.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::Duration;

use vtd_model::UnitConfig;

use crate::programs;
use crate::rig::{Rig, Way};

/// Buffers of a read of one block, each mapped and unmapped by itself: the header, the data, the status.
const MAPPINGS: f64 = 3.0;
/// Messages of an invalidation that is waited for: the write of the queue's tail, and, unless the unit is done by then, the
/// read of the fault status and its answer. The read comes behind the write, so that the unit is done when it is answered.
const MOST_OF_INVALIDATION: f64 = 3.0;
/// Bytes of the small and the large reads.
const SIZES: [u64; 2] = [4096, 256 << 10];

/// What functions have cost so far.
#[derive(Clone, Copy, Debug)]
struct Spent {
    messages: u64,
    /// Time of the server's threads on a processor.
    busy: Duration,
}

impl Spent {
    /// By the functions of these names.
    fn by(rig: &Rig, names: &[&str]) -> Self {
        let slots = rig.server().machine().slots().iter();
        let slots = slots.filter(|slot| names.contains(&slot.name()));
        Self {
            messages: slots
                .map(|slot| slot.traffic().received() + slot.traffic().sent())
                .sum(),
            busy: busy(names),
        }
    }
}

/// Time that our threads of these names were on a processor.
fn busy(names: &[&str]) -> Duration {
    let mut sum = 0;
    // Threads come and go; those that are gone are of tests that have ended.
    for thread in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        if names.contains(&read("comm").trim()) {
            let spent = read("schedstat")
                .split_whitespace()
                .next()
                .and_then(|word| word.parse().ok());
            sum += spent.unwrap_or(0);
        }
    }
    Duration::from_nanos(sum)
}

/// Functions behind the unit, with the unit, and the one beside it.
const WAYS: [&[&str]; 2] = [&["unit", "disk0"], &["disk1"]];

/// What Linux's driver does with each buffer of the disk behind the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    /// Nothing: addresses pass the unit unchanged. What this costs is the unit's own.
    Identity,
    /// Maps and unmaps it, and drops many translations at once later.
    Lazy,
    /// Maps and unmaps it, and waits until the translation is dropped.
    Strict,
}

impl Mode {
    /// By the kernel's name of such a domain.
    fn of(domain: &str) -> Self {
        match domain {
            "identity" => Self::Identity,
            "DMA-FQ" => Self::Lazy,
            "DMA" => Self::Strict,
            other => panic!("what is a domain of type {other}?"),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identity => "without mappings",
            Self::Lazy => "lazy",
            Self::Strict => "strict",
        })
    }
}

/// A burst of reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Burst {
    mode: Mode,
    random: bool,
    bytes: u64,
}

/// What it came to, behind the unit and beside it.
#[derive(Clone, Debug, Default)]
struct Cost {
    /// Messages of a read.
    messages: [f64; 2],
    /// Microseconds of a read on the server's processor.
    server: [f64; 2],
    /// Invalidations of a read that were waited for.
    waits: f64,
    /// Microseconds of a read, slice by slice.
    times: [Vec<f64>; 2],
}

/// The middle of some figures, and their range.
#[derive(Debug)]
struct Spread(Vec<f64>);

impl Spread {
    fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        assert!(!figures.is_empty(), "nothing was measured");
        Self(figures)
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    /// The tenth part of the figures is below: where they are times, nothing else was in the way of those.
    fn tenth(&self) -> f64 {
        self.0[self.0.len() / 10]
    }
}

impl fmt::Display for Spread {
    /// With the quarters at both ends left out: what else the machine did is in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = (self.0.len() / 4, self.0.len() * 3 / 4);
        write!(f, "{:.2} ({:.2} to {:.2})", self.median(), self.0[low], self.0[high])
    }
}

/// All bursts of one guest.
#[derive(Debug, Default)]
struct Costs(BTreeMap<Burst, Cost>);

impl Costs {
    fn measure(rig: &mut Rig) -> Self {
        let mut costs = BTreeMap::<Burst, Cost>::new();
        let mut burst = Burst {
            mode: Mode::Strict,
            random: false,
            bytes: 0,
        };
        let (mut count, mut slices) = (0, 0);
        let mut before = None;
        let talk = rig.run("speed", "iommu.strict=1", |rig, line| {
            let now = || (WAYS.map(|names| Spent::by(rig, names)), rig.remapper().counters().waits);
            let words: Vec<&str> = line.split_whitespace().collect();
            let cost = costs.entry(burst).or_default();
            match *words {
                ["domain", kind] => burst.mode = Mode::of(kind),
                ["burst", order, bytes, each, turns] => {
                    (burst.random, burst.bytes) = (order == "random", bytes.parse().unwrap());
                    (count, slices) = (each.parse::<u32>().unwrap(), turns.parse::<u32>().unwrap());
                }
                ["begins"] => before = Some(now()),
                ["ends"] => {
                    let ((from, waits), (to, waits_now)) = (before.take().unwrap(), now());
                    let reads = f64::from(count * slices);
                    let per_read = |from: u64, to: u64| f64::from(u32::try_from(to - from).unwrap()) / reads;
                    for (way, (from, to)) in from.iter().zip(to).enumerate() {
                        cost.messages[way] = per_read(from.messages, to.messages);
                        cost.server[way] = (to.busy - from.busy).as_secs_f64() * 1e6 / reads;
                    }
                    cost.waits = per_read(waits, waits_now);
                }
                ["times", disk, ref times @ ..] => {
                    let way = usize::from(disk.ends_with("beside"));
                    let times = times.iter().map(|time| time.parse::<f64>().unwrap() / f64::from(count));
                    cost.times[way] = times.collect();
                }
                _ => {}
            }
            true
        });
        assert!(talk.says("end") && !talk.says("failed"), "{}", talk.console);
        costs.retain(|burst, _| burst.bytes != 0);
        assert_eq!(costs.len(), 3 * 2 * SIZES.len(), "{}", talk.console);
        Self(costs)
    }

    fn tell(&self) {
        for (burst, cost) in &self.0 {
            let [behind, beside] = cost.times.clone();
            let pairs = behind.iter().zip(&beside).map(|(behind, beside)| beside / behind);
            let pairs = Spread::of(pairs);
            let (behind, beside) = (Spread::of(behind), Spread::of(beside));
            let (fastest, fastest_beside) = (behind.tenth(), beside.tenth());
            println!(
                "also: {}, {} reads of {} KiB: throughput behind the unit over beside it {pairs} in pairs, {:.2} undisturbed; \
                 microseconds a read {behind}, beside {beside}, undisturbed {fastest:.0} and {fastest_beside:.0}; \
                 the server's part {:.1} and {:.1}",
                burst.mode,
                if burst.random { "random" } else { "sequential" },
                burst.bytes >> 10,
                fastest_beside / fastest,
                cost.server[0],
                cost.server[1],
            );
        }
    }
}

#[test]
fn a_request_costs_its_invalidations_and_lazy_invalidation_shares_them() {
    let Some(programs) = programs(true) else { return };
    let mut rig = Rig::with(&programs, UnitConfig::builder(), Way::Both, None);
    let costs = Costs::measure(&mut rig);
    let small = |mode| {
        let bytes = SIZES[0];
        let random = true;
        &costs.0[&Burst { mode, random, bytes }]
    };
    let (identity, lazy, strict) = (small(Mode::Identity), small(Mode::Lazy), small(Mode::Strict));
    println!(
        "also: messages for each block request: {:.2} without the unit, {:.2} without mappings, {:.2} lazy, {:.2} strict, of \
         which {:.2} invalidations",
        lazy.messages[1], identity.messages[0], lazy.messages[0], strict.messages[0], strict.waits
    );
    costs.tell();
    // Beside the unit a request is one message, the notification; interrupts need none.
    for cost in [identity, lazy, strict] {
        assert!((cost.messages[1] - 1.0).abs() < 0.05, "{cost:?}");
    }
    // Without mappings there is nothing to invalidate.
    assert!((identity.messages[0] - 1.0).abs() < 0.05, "{identity:?}");
    // A strict unmap is an invalidation that is waited for.
    assert!((strict.waits - MAPPINGS).abs() < 0.05, "{strict:?}");
    let (least, most) = (1.0 + strict.waits, 1.0 + MOST_OF_INVALIDATION * strict.waits);
    assert!((least - 0.05..=most + 0.05).contains(&strict.messages[0]), "{strict:?}");
    // Lazy invalidation does the same for many requests at once.
    assert!(lazy.messages[0] < strict.messages[0] / 2.0, "{lazy:?} {strict:?}");
}
