//! Linux as judge of our groups and of our reading of the DMAR table.
//!
//! Generated machines are booted; the kernel's own `/sys/kernel/iommu_groups` is compared with what `iommu-groups`
//! makes of the same configuration spaces, and its boot messages with what `acpi-dmar` makes of the same table.
//!
//! `PORTCULLIS_QEMU`, `PORTCULLIS_KERNEL` and `PORTCULLIS_BUSYBOX` name the programs; without them the test says
//! that it compared nothing (`cargo xtask test` then counts it as skipped). `PORTCULLIS_GUESTS` is the number of
//! machines and `PORTCULLIS_GUEST_SEED` what they are made from.

#![expect(clippy::expect_used, reason = "a test reports by panicking, its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use acpi_dmar::{Dmar, OwnedDmar, Owner};
use e2e::guest::machine::Machine;
use e2e::guest::messages;
use e2e::guest::record::{Buses, Record};
use e2e::guest::{GuestError, Tools};
use iommu_groups::pci::PortType;
use iommu_groups::{Explanation, Facts, Groups, Problem, Roots, Rules, Topology, group};
use iommu_types::Bdf;

/// Machines that hold all arrangements between them; the first one has the last arrangement alone, which is large
/// and takes longest.
const MACHINES_OF_SHAPES: usize = 4;
/// Machines in a short run, those of arrangements included.
const MACHINES: usize = 6;
/// Guests at one time.
const WORKERS: usize = 2;
/// Functions in a machine that grew at random.
const GROWN: usize = 60;
/// Differences that are written out for one machine.
const SHOWN: usize = 6;

/// What was compared.
#[derive(Debug, Default)]
struct Seen {
    functions: usize,
    groups: usize,
    shared: usize,
    outside: usize,
    virtual_functions: usize,
    messages: usize,
    tables: BTreeSet<Vec<u8>>,
    releases: BTreeSet<String>,
}

/// The machines of a run, each with the seed it was made from.
fn machines(count: usize, seed: u64) -> Vec<(u64, Machine)> {
    (0..count)
        .map(|index| {
            let seed = seed
                .wrapping_mul(1000)
                .wrapping_add(u64::try_from(index).expect("few machines"));
            let machine = if index < MACHINES_OF_SHAPES {
                let last = Machine::SHAPES - 1;
                let is_here = |shape: &usize| match index {
                    0 => *shape == last,
                    _ => *shape != last && shape % (MACHINES_OF_SHAPES - 1) == index - 1,
                };
                let shapes: Vec<usize> = (0..Machine::SHAPES).filter(is_here).collect();
                Machine::of_shapes(&shapes, seed)
            } else {
                Machine::grown(GROWN, seed)
            };
            // Every other machine has a table of ours instead of QEMU's.
            let machine = if index % 2 == 1 {
                machine.with_table(seed).expect("the table can be built")
            } else {
                machine
            };
            (seed, machine)
        })
        .collect()
}

/// Compares one record; returns what differs, in words.
fn differences(record: &Record, machine: &Machine, seen: &mut Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some(version) = record.version() else {
        return vec![format!("{:?} is no release of Linux", record.release)];
    };
    let topology = record.topology();
    // 0. Nothing is at odds with itself, but for ports that stand on the wrong side. Linux has no name yet for the
    // function when it says so.
    let mut corrected = Vec::new();
    for problem in topology.problems() {
        match problem {
            Problem::PortAgainstParent { acts_as, .. } => corrected.push(match *acts_as {
                PortType::UPSTREAM_PORT => "claims to be downstream port but is acting as upstream port",
                _ => "claims to be upstream port but is acting as downstream port",
            }),
            other => wrong.push(format!("a machine of QEMU is said to be at odds with itself: {other}")),
        }
    }
    corrected.sort_unstable();
    let claim = |message: &'_ String| Some(message[message.find("claims to be")?..].to_owned());
    let mut said: Vec<String> = record.messages.iter().filter_map(claim).collect();
    said.sort_unstable();
    if !said
        .iter()
        .map(|line| line.trim_end_matches(", correcting type"))
        .eq(corrected.iter().copied())
    {
        wrong.push(format!("Linux says {said:?}, and we would {corrected:?}"));
    }

    // 1. All ways of finding functions find what Linux found.
    let inferred = Topology::from_functions(
        record,
        record.spaces.keys().copied(),
        Roots::Inferred,
        &Facts::default(),
    );
    let scanned = Topology::scan(record, &record.roots);
    for (how, topology) in [("listed", &topology), ("inferred", &inferred), ("scanned", &scanned)] {
        let ours: BTreeSet<Bdf> = topology.functions().iter().map(|f| f.bdf).collect();
        let theirs: BTreeSet<Bdf> = record.spaces.keys().copied().collect();
        for function in ours.symmetric_difference(&theirs) {
            let who = if ours.contains(function) {
                "only we"
            } else {
                "only Linux"
            };
            wrong.push(format!("{how}: {who} found {function}"));
        }
        // 2. The groups are the same.
        let groups = group(topology, Rules::Linux(version));
        wrong.extend(
            group_differences(record, topology, &groups)
                .into_iter()
                .map(|what| format!("{how}: {what}")),
        );
    }
    seen.functions += record.groups.len();
    let partition = record.partition();
    seen.groups += partition.len();
    seen.shared += partition.iter().filter(|members| members.len() > 1).count();
    seen.virtual_functions += topology
        .functions()
        .iter()
        .filter(|f| f.physical_function.is_some())
        .count();
    seen.outside += record.spaces.len() - record.groups.len();
    seen.releases.insert(record.release.clone());

    // 3. The table reads as the kernel reads it.
    match &record.table {
        None => wrong.push("the kernel shows no DMAR table".to_owned()),
        Some(bytes) => {
            wrong.extend(table_differences(record, machine, bytes, &topology, seen));
            seen.tables.insert(bytes.clone());
        }
    }
    wrong
}

/// Where our partition is not the kernel's. Functions that the kernel has outside of all groups count for neither.
fn group_differences(record: &Record, topology: &Topology, groups: &Groups) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut ours: BTreeMap<usize, Vec<Bdf>> = BTreeMap::new();
    for function in record.groups.keys() {
        if let Some(group) = groups.of(*function) {
            ours.entry(group.number).or_default().push(*function);
        }
    }
    let ours: BTreeSet<Vec<Bdf>> = ours.into_values().collect();
    let theirs: BTreeSet<Vec<Bdf>> = record.partition().into_iter().collect();
    for members in theirs.difference(&ours) {
        let mut text = format!("Linux has the group {}", names(members));
        let first = members.first().copied().expect("a group has members");
        for member in &members[1..] {
            if groups.together(first, *member) == Some(false) {
                explain(&mut text, groups, topology, first, *member);
            }
        }
        let also: Vec<Bdf> = groups.of(first).map(|group| group.members.clone()).unwrap_or_default();
        for member in also.into_iter().filter(|member| !members.contains(member)) {
            explain(&mut text, groups, topology, first, member);
        }
        wrong.push(text);
    }
    wrong
}

/// Adds why we think that two functions are together or apart.
fn explain(text: &mut String, groups: &Groups, topology: &Topology, a: Bdf, b: Bdf) {
    let _ = match groups.explain(topology, a, b) {
        Some(Explanation::Together(hops)) => {
            let hops: Vec<String> = hops.iter().map(ToString::to_string).collect();
            write!(text, "\n    we say {a} and {b} are together: {}", hops.join("; "))
        }
        Some(Explanation::Apart(barriers)) => {
            let barriers: Vec<String> = barriers.iter().map(ToString::to_string).collect();
            write!(text, "\n    we say {a} and {b} are apart: {}", barriers.join("; "))
        }
        None => write!(text, "\n    we do not know {a} or {b}"),
    };
}

fn names(members: &[Bdf]) -> String {
    members.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Where our reading of the table is not the kernel's.
fn table_differences(
    record: &Record,
    machine: &Machine,
    bytes: &[u8],
    topology: &Topology,
    seen: &mut Seen,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let table = match Dmar::parse(bytes) {
        Ok(table) => table,
        Err(why) => return vec![format!("the table cannot be read: {why}")],
    };
    if machine.table.as_deref().is_some_and(|ours| ours != bytes) {
        wrong.push("Linux did not take the table that it was given".to_owned());
    }
    if !table.checksum_ok() {
        wrong.push("the table's checksum is said to be wrong".to_owned());
    }
    let again = OwnedDmar::from_table(table).map(|owned| owned.build());
    match again {
        Ok(Ok(again)) if again == bytes => {}
        other => wrong.push(format!("the table comes out different: {other:?}")),
    }
    let said = messages::about_the_table(&record.messages);
    let expected = messages::expected(table);
    seen.messages += said.len();
    if said != expected {
        wrong.push(format!(
            "Linux printed\n    {}\n  and we would\n    {}",
            said.join("\n    "),
            expected.join("\n    ")
        ));
    }
    // What a unit serves has a group, the rest has none.
    for function in record.spaces.keys() {
        let owner = table.owner(*function, &Buses(topology));
        let in_group = record.groups.contains_key(function);
        if !matches!(
            (owner, in_group),
            (Owner::Unit(0, _), true) | (Owner::NotCovered, false)
        ) {
            let group = if in_group { "has a group" } else { "has none" };
            wrong.push(format!("{function}: {group} by Linux, and by us {owner:?}"));
        }
    }
    wrong
}

#[test]
fn groups_and_table_are_those_of_linux() {
    let Some(tools) = Tools::from_environment() else {
        println!("compared: nothing, PORTCULLIS_QEMU, _KERNEL and _BUSYBOX name no programs");
        return;
    };
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("PORTCULLIS_GUEST_SEED").unwrap_or(1);
    let count = number("PORTCULLIS_GUESTS").map_or(MACHINES, |n| usize::try_from(n).expect("few machines"));
    let machines = machines(count, seed);

    let next = AtomicUsize::new(0);
    let seen = Mutex::new(Seen::default());
    let failures = Mutex::new(Vec::new());
    let work = |worker: usize| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("guest-{worker}"));
        while let Some((seed, machine)) = machines.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let record = tools.boot(&folder, machine);
            let took = start.elapsed().as_secs_f64();
            let wrong = judge(record, machine, &seen);
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
        seen.shared > count,
        "too few groups with more than one member to compare anything"
    );
    println!(
        "compared: {} functions in {} groups over {count} machines ({} shapes), {} of them shared, {} functions \
         without group, {} virtual; {} boot messages about {} tables; Linux {}",
        seen.functions,
        seen.groups,
        Machine::SHAPES,
        seen.shared,
        seen.outside,
        seen.virtual_functions,
        seen.messages,
        seen.tables.len(),
        seen.releases.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    );
}

fn judge(record: Result<Record, GuestError>, machine: &Machine, seen: &Mutex<Seen>) -> Vec<String> {
    match record {
        Ok(record) => differences(&record, machine, &mut seen.lock().expect("no worker panics")),
        Err(why) => vec![why.to_string()],
    }
}
