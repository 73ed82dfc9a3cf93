//! Groups, found functions and the DMAR table: what we make of them against what the kernel does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use acpi_dmar::{Dmar, OwnedDmar, Owner};
use e2e::guest::machine::Machine;
use e2e::guest::messages;
use e2e::guest::record::{Buses, Record};
use iommu_groups::pci::PortType;
use iommu_groups::{Explanation, Facts, Groups, Problem, Roots, Rules, Topology, group};
use iommu_types::Bdf;

/// What was compared.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) functions: usize,
    pub(crate) groups: usize,
    pub(crate) shared: usize,
    pub(crate) outside: usize,
    pub(crate) virtual_functions: usize,
    pub(crate) messages: usize,
    pub(crate) tables: BTreeSet<Vec<u8>>,
    pub(crate) releases: BTreeSet<String>,
}

/// Compares one record; returns what differs, in words.
pub(crate) fn differences(record: &Record, machine: &Machine, seen: &mut Seen) -> Vec<String> {
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
