//! `iommu` without a command: what the machine has, and the next command to try.

use std::collections::BTreeSet;

use iommu_groups::{Function, Topology, group, pci};
use iommu_host::doctor::{self, State};
use iommu_host::{Item, Knowledge, Machine, Origin};
use iommu_types::Bdf;
use serde_json::{Value, json};

use super::doctor::state_text;
use super::groups::{function_json, knowledge_json, uncertain};
use super::names::{Names, printable, prose, short};
use super::{Answer, NO_FUNCTION, Source, count, notes};
use crate::exit::{Failure, Verdict};
use crate::style;

/// Grows when a key changes its meaning.
const SCHEMA: u32 = 1;
/// Devices that are shown.
const SHOWN_DEVICES: usize = 6;

/// Columns of a command beside which what it is for still fits.
const WIDEST_COMMAND: usize = 40;

/// Classes that people give to guests, in the order of how often they do: base class, and the subclass where one counts.
const ASSIGNED: [(u8, Option<u8>); 6] = [
    (0x03, None),
    (0x02, None),
    (0x12, None),
    (0x01, Some(0x08)),
    (0x01, None),
    (0x0c, Some(0x03)),
];

/// Endpoints of the kinds that people give to guests, and that the host does not need itself; the likeliest first.
pub(crate) fn worth_assigning(machine: &Machine, topology: &Topology) -> Vec<Bdf> {
    let vital = |bdf: &Bdf| {
        let of = |list: &Knowledge<Vec<String>>, name: &String| list.known().is_some_and(|list| list.contains(name));
        machine.functions.get(bdf).is_some_and(|f| {
            f.disks.iter().any(|disk| of(&machine.vital_disks, disk))
                || f.interfaces.iter().any(|name| of(&machine.vital_interfaces, name))
                || f.boot_display.known() == Some(&true)
        })
    };
    let mut found: Vec<(usize, Bdf)> = topology
        .functions()
        .iter()
        .filter(|f| !f.is_bridge() && !vital(&f.bdf))
        .filter_map(|f| {
            let [_, _, sub, base] = machine
                .functions
                .get(&f.bdf)?
                .config
                .read32(pci::header::REVISION)?
                .to_le_bytes();
            let is = |(of, below): &(u8, Option<u8>)| *of == base && below.is_none_or(|below| below == sub);
            Some((ASSIGNED.iter().position(is)?, f.bdf))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, bdf)| bdf).collect()
}

/// Looks at the machine.
pub(crate) fn run(source: &Source) -> Result<Answer, Failure> {
    match source.open() {
        Ok(machine) => Ok(answer(&machine, &source.names()?, source)),
        Err(Failure::Measure(why)) if why == NO_FUNCTION => Ok(nothing()),
        Err(failure) => Err(failure),
    }
}

/// There is nothing to see here, but something to do.
fn nothing() -> Answer {
    let next = [
        (
            "iommu run",
            "rehearse an assignment on a sample server, all in software",
        ),
        ("iommu --root snapshot.tar", "look at another machine"),
        ("iommu --help", "all commands"),
    ];
    Answer {
        text: format!(
            "No PCI function can be seen here: this is a container, or a guest without PCI.\n{}",
            next_text(&next.map(|(command, why)| (command.to_owned(), why)))
        ),
        json: json!({
            "schema": SCHEMA,
            "functions": 0,
            "next": next.iter().map(|(command, _)| command).collect::<Vec<_>>(),
        }),
        verdict: Err(Failure::Measure(NO_FUNCTION.to_owned())),
    }
}

/// What is known of the machine in a few lines.
pub(crate) fn answer(machine: &Machine, names: &Names, source: &Source) -> Answer {
    let topology = machine.topology();
    let linux = group(&topology, machine.linux_rules());
    let diagnosis = doctor::examine(machine);
    let bad: Vec<&Item> = diagnosis
        .items
        .iter()
        .filter(|item| item.hard && item.answer == iommu_host::Answer::No)
        .collect();
    let devices = worth_assigning(machine, &topology);
    let groups = groups_text(machine, &linux, &topology);
    let next = next(
        diagnosis.state,
        machine.dmar.known().is_some(),
        &devices,
        &source.again(),
    );
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        text.push_str(&format!("{:10}{value}\n", style::title(label)));
    };
    line("machine", &machine_text(machine));
    line("IOMMU", &state_text(diagnosis.state));
    for item in &bad {
        line(
            "",
            &format!("{} {} {}", style::bad("no:"), item.question, prose(&item.detail)),
        );
    }
    line("units", &units_text(machine));
    line("groups", &groups);
    for (at, bdf) in devices.iter().take(SHOWN_DEVICES).enumerate() {
        let label = if at == 0 { "devices" } else { "" };
        line(label, &device_text(machine, names, &topology, &linux, *bdf));
    }
    if devices.len() > SHOWN_DEVICES {
        let more = devices.len() - SHOWN_DEVICES;
        line(
            "",
            &format!("and {more} more of the kinds that guests are given (`iommu groups`)"),
        );
    }
    text.push_str(&notes(machine));
    text.push_str(&next_text(&next));
    Answer {
        text,
        json: json!({
            "schema": SCHEMA,
            "functions": machine.functions.len(),
            "kernel": knowledge_json(&machine.kernel, |release| json!(release)),
            "state": format!("{:?}", diagnosis.state),
            "description": diagnosis.state.describe(),
            "findings": bad.iter().map(|item| item.id).collect::<Vec<_>>(),
            "units": knowledge_json(&machine.units, |units| json!(units.iter().map(|unit| &unit.name).collect::<Vec<_>>())),
            "groups": knowledge_json(&machine.groups, |groups| json!(groups.len())),
            "computed_groups": linux.all().len(),
            "uncertain": uncertain(&linux),
            "devices": devices.iter().map(|bdf| function_json(machine, names, *bdf)).collect::<Vec<Value>>(),
            "next": next.iter().map(|(command, _)| command).collect::<Vec<_>>(),
            "notes": machine.notes,
        }),
        verdict: Ok(match diagnosis.state {
            _ if !bad.is_empty() => Verdict::Findings,
            State::InitFailed | State::KernelOff | State::FirmwareOff => Verdict::Findings,
            State::Working | State::Unknown => Verdict::Yes,
        }),
    }
}

fn machine_text(machine: &Machine) -> String {
    let kernel = machine.kernel.known().map_or_else(
        || "kernel not known".to_owned(),
        |release| format!("Linux {}", printable(release)),
    );
    let from = match &machine.origin {
        Origin::Root(path) if path.as_os_str() == "/" => "this machine".to_owned(),
        Origin::Root(path) => format!("below {}", printable(&path.display().to_string())),
        Origin::Snapshot => "a snapshot".to_owned(),
        Origin::Listing => "a listing".to_owned(),
    };
    format!("{from}, {kernel}, {}", count(machine.functions.len(), "PCI function"))
}

fn units_text(machine: &Machine) -> String {
    match &machine.units {
        Knowledge::Known(units) if !units.is_empty() => {
            let names: Vec<String> = units.iter().map(|unit| printable(&unit.name)).collect();
            format!("{} in use: {}", names.len(), names.join(" "))
        }
        _ if !machine.other_iommus.is_empty() => {
            format!("not Intel's: {}", printable(&machine.other_iommus.join(" ")))
        }
        Knowledge::Known(_) | Knowledge::Absent => "none in use".to_owned(),
        Knowledge::Unknown(why) => format!("not known: {}", printable(&why.to_string())),
    }
}

fn groups_text(machine: &Machine, linux: &iommu_groups::Groups, topology: &Topology) -> String {
    let shared = |members: &[Bdf]| {
        let endpoints = |bdf: &&Bdf| topology.get(**bdf).is_some_and(|f: &Function| !f.is_bridge());
        members.iter().filter(endpoints).count() > 1
    };
    let (total, several, whose) = match machine.groups.known().filter(|groups| !groups.is_empty()) {
        Some(groups) => (
            groups.len(),
            groups.values().filter(|group| shared(&group.functions)).count(),
            "",
        ),
        None => (
            linux.all().len(),
            linux.all().iter().filter(|group| shared(&group.members)).count(),
            " if the kernel made them",
        ),
    };
    let unsure = if uncertain(linux) {
        "; isolation is not known everywhere: extended configuration space is for root"
    } else {
        ""
    };
    format!("{total}{whose}; in {several} of them devices have to go together{unsure}")
}

fn device_text(
    machine: &Machine,
    names: &Names,
    topology: &Topology,
    linux: &iommu_groups::Groups,
    bdf: Bdf,
) -> String {
    let number = machine.functions.get(&bdf).and_then(|f| f.group.known());
    let kernel = number.and_then(|number| machine.groups.known()?.get(number));
    let members = match kernel {
        Some(group) => group.functions.clone(),
        None => linux.of(bdf).map(|group| group.members.clone()).unwrap_or_default(),
    };
    let others: BTreeSet<Bdf> = members
        .into_iter()
        .filter(|other| *other != bdf && topology.get(*other).is_some_and(|f| !f.is_bridge()))
        .collect();
    let group = match others.len() {
        0 => style::good("alone in its group".to_owned()),
        many => style::doubt(format!("with {}", count(many, "other"))),
    };
    format!("{} {}  {group}", short(bdf), names.label(machine, bdf))
}

fn next(state: State, has_table: bool, devices: &[Bdf], root: &str) -> Vec<(String, &'static str)> {
    let mut next = Vec::new();
    let mut put = |command: String, why| next.push((format!("iommu {command}{root}"), why));
    match state {
        State::Working => {}
        State::InitFailed => put("dmar lint".to_owned(), "what is wrong with the firmware's table"),
        State::KernelOff | State::FirmwareOff | State::Unknown => put("doctor".to_owned(), "why, and what to do"),
    }
    put("groups".to_owned(), "what has to be assigned together, and why");
    if let Some(bdf) = devices.first() {
        put(
            format!("check {}", short(*bdf)),
            "whether it can be given to a guest, and what stands in the way",
        );
    }
    // With a table this machine can be rehearsed, else the embedded one.
    let rehearsed = match (has_table, root) {
        (false, _) => "",
        (true, "") => " --root /",
        (true, root) => root,
    };
    next.push((
        format!("iommu run{rehearsed}"),
        "rehearse an assignment in software, without touching the machine",
    ));
    next
}

fn next_text(next: &[(String, &str)]) -> String {
    let width = next.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    let mut out = format!("\n{}\n", style::title("next"));
    for (command, why) in next {
        if width <= WIDEST_COMMAND {
            out.push_str(&format!("  {:width$}  {why}\n", style::command(command)));
        } else {
            out.push_str(&format!("  {}\n      {why}\n", style::command(command)));
        }
    }
    out
}
