//! Linux as judge of our groups, of our reading of the DMAR table, and of the host tool.
//!
//! Generated machines are booted. The kernel's own `/sys/kernel/iommu_groups` is compared with what `iommu-groups`
//! makes of the same configuration spaces, and its boot messages with what `acpi-dmar` makes of the same table. The
//! static `iommu` binary runs inside each guest; its answers are compared with the kernel's, and with what the same
//! binary answers outside about a snapshot that it took inside. One guest carries out what `iommu plan` prints.
//!
//! `PORTCULLIS_QEMU`, `_KERNEL`, `_BUSYBOX`, `_MODULES` and `_IOMMU` name the programs; without them the tests say
//! that they compared nothing (`cargo xtask test` then counts that as skipped). `PORTCULLIS_GUEST_ROUNDS` says how
//! often every named shape is built, each time with other details, `PORTCULLIS_GUEST_TREES` how many machines grow
//! at random, and `PORTCULLIS_GUEST_SEED` what all of them are made from. `PORTCULLIS_GUEST_PART=1` takes the first machines
//! and some of the states only: what is booted where time is short.

#![expect(clippy::expect_used, reason = "a test reports by panicking, its helpers too")]

mod groups;
mod plan;
mod states;
mod tool;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use e2e::guest::machine::Machine;
use e2e::guest::record::Record;
use e2e::guest::{Guest, GuestError, Script, Tools};

use self::groups::Seen;

/// Machines that hold all arrangements between them; the first one has the last arrangement alone, which is large
/// and takes longest.
const MACHINES_OF_SHAPES: usize = 6;
/// How many of them are booted where time is short.
const PART: usize = 3;
/// Guests at one time.
const WORKERS: usize = 2;
/// Functions in a machine that grew at random.
const GROWN: usize = 60;
/// Trees that once came out differently here and in Linux, by the seed that they grew from.
const ONCE_DIFFERENT: [u64; 3] = [1005, 1011, 1015];
/// Seeds of the first round of named shapes, from a multiple of 1000 on: their machines are built in software too, and their
/// functions send to each other.
const FIRST_ROUND: u64 = 10;
/// Differences that are written out for one machine.
const SHOWN: usize = 6;

/// A number from the environment.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(otherwise)
}

/// Where a guest's files go.
fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// The programs, or a line that says that there are none.
fn tools() -> Option<Tools> {
    let tools = Tools::from_environment();
    if tools.is_none() {
        println!("compared: nothing, PORTCULLIS_QEMU, _KERNEL, _BUSYBOX, _MODULES and _IOMMU name no programs");
    }
    tools
}

/// Whether only a part of everything is booted.
fn only_a_part() -> bool {
    number("PORTCULLIS_GUEST_PART", 0) != 0
}

/// The machines of a run, each with the seed it was made from, and how many arrangements they hold.
fn machines(seed: u64, rounds: u64, trees: u64) -> (Vec<(u64, Machine)>, usize) {
    let first = seed.wrapping_mul(1000);
    let (mut machines, mut arrangements) = (Vec::new(), 0);
    let of_shapes = if only_a_part() { PART } else { MACHINES_OF_SHAPES };
    for round in 0..rounds {
        for index in 0..of_shapes {
            let last = Machine::SHAPES - 1;
            let is_here = |shape: &usize| match index {
                0 => *shape == last,
                _ => *shape != last && shape % (MACHINES_OF_SHAPES - 1) == index - 1,
            };
            let shapes: Vec<usize> = (0..Machine::SHAPES).filter(is_here).collect();
            let seed = first
                .wrapping_add(round * 10)
                .wrapping_add(u64::try_from(index).expect("few machines"));
            arrangements += shapes.len();
            machines.push((seed, Machine::of_shapes(&shapes, seed)));
        }
    }
    let random = (0..trees).map(|tree| first.wrapping_add(500 + tree));
    let once_different = ONCE_DIFFERENT.into_iter().filter(|_| !only_a_part());
    for seed in once_different.chain(random) {
        machines.push((seed, Machine::grown(GROWN, seed)));
    }
    let machines = machines
        .into_iter()
        .map(|(seed, machine)| {
            // Every other machine has a table of ours instead of QEMU's.
            let ours = seed % 2 == 1;
            let machine = if ours {
                machine.with_table(seed).expect("the table can be built")
            } else {
                machine
            };
            (seed, machine)
        })
        .collect();
    (machines, arrangements)
}

#[test]
fn groups_table_and_answers_of_the_tool_are_those_of_linux() {
    let Some(tools) = tools() else {
        return;
    };
    let seed = number("PORTCULLIS_GUEST_SEED", 1);
    let rounds = number("PORTCULLIS_GUEST_ROUNDS", 1);
    let trees = number("PORTCULLIS_GUEST_TREES", 0);
    let (machines, arrangements) = machines(seed, rounds, trees);

    let next = AtomicUsize::new(0);
    let seen = Mutex::new(Seen::default());
    let answers = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let work = |worker: usize| {
        let folder = folder(&format!("guest-{worker}"));
        while let Some((seed, machine)) = machines.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let record = tools.boot(&folder, &Guest::new(machine.clone(), Script::Record));
            let took = start.elapsed().as_secs_f64();
            let send = *seed % 1000 < FIRST_ROUND;
            let wrong = judge(record, machine, &tools, &folder, &seen, &answers, send);
            println!("seed {seed}: {} ({took:.1} s)", machine.name);
            if !wrong.is_empty() {
                let shown = &wrong[..wrong.len().min(SHOWN)];
                failures.lock().expect("no worker panics").push(format!(
                    "seed {seed}, {} differences:\n  {}\n  QEMU was given: {}\n  ACS: {:?}",
                    wrong.len(),
                    shown.join("\n  "),
                    machine.arguments.join(" "),
                    machine.acs.iter().map(ToString::to_string).collect::<Vec<_>>(),
                ));
            }
        }
    };
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            scope.spawn(move || work(worker));
        }
    });

    let failures = failures.into_inner().expect("no worker panics");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    let seen = seen.into_inner().expect("no worker panics");
    assert!(
        seen.shared > machines.len(),
        "too few groups with more than one member to compare anything"
    );
    println!(
        "compared: {} functions in {} groups over {} machines ({arrangements} shapes, {trees} trees at random), {} of them shared, \
         {} functions without group, {} virtual; {} boot messages about {} tables; {} answers of iommu; Linux {}",
        seen.functions,
        seen.groups,
        machines.len(),
        seen.shared,
        seen.outside,
        seen.virtual_functions,
        seen.messages,
        seen.tables.len(),
        answers.into_inner(),
        seen.releases.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    );
}

fn judge(
    record: Result<Record, GuestError>,
    machine: &Machine,
    tools: &Tools,
    folder: &std::path::Path,
    seen: &Mutex<Seen>,
    answers: &AtomicUsize,
    send: bool,
) -> Vec<String> {
    let record = match record {
        Ok(record) => record,
        Err(why) => return vec![why.to_string()],
    };
    let mut wrong = groups::differences(&record, machine, &mut seen.lock().expect("no worker panics"));
    let (count, more) = tool::differences(&record, tools, folder, send);
    answers.fetch_add(count, Ordering::Relaxed);
    wrong.extend(more);
    wrong
}
