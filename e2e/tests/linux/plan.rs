//! What `iommu plan` prints, carried out by the shell of a guest: the functions are then on vfio-pci, and back after.

use std::collections::BTreeMap;

use e2e::guest::machine::Machine;
use e2e::guest::record::Record;
use e2e::guest::{Guest, Script};
use iommu_types::Bdf;

use super::{folder, tools};

/// Groups of one and of many, below ports, bridges and none, with drivers of the host and without.
const SHAPES: [&str; 7] = [
    "root port with ACS",
    "multifunction endpoint with gaps below a weak port",
    "switch with weak ports and an empty one",
    "PCIe-to-PCI bridge with two functions",
    "integrated endpoints",
    "conventional functions on the root bus",
    "virtual functions",
];
/// Groups that have to change hands, or the machine is not the one that was meant.
const MINIMUM: usize = 8;

/// The driver of every function, as the script lists them.
fn drivers(record: &Record, name: &str) -> BTreeMap<Bdf, String> {
    record
        .text(name)
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(function, driver)| Some((function.parse().ok()?, driver.to_owned())))
        .collect()
}

/// Returns how many groups changed hands, and what is wrong.
fn judge(record: &Record) -> (usize, Vec<String>) {
    let mut wrong = Vec::new();
    let [before, planned, after] =
        ["before", "planned", "after"].map(|when| drivers(record, &format!("drivers.{when}")));
    let nodes: Vec<String> = record.text("nodes").lines().map(str::to_owned).collect();
    // Bridges keep their driver; what else is in a chosen group is on vfio-pci.
    let mut groups = 0;
    for (name, status) in &record.statuses {
        let failed = *status != 0;
        if failed {
            let [said, errors] = [name.clone(), format!("{name}.err")].map(|name| record.text(&name).into_owned());
            wrong.push(format!(
                "{name}: ended with {status}: {} {}",
                said.trim(),
                errors.trim()
            ));
        }
        let Some(function) = name
            .strip_prefix("execution ")
            .and_then(|name| name.parse::<Bdf>().ok())
        else {
            continue;
        };
        let Some(number) = record.groups.get(&function) else {
            wrong.push(format!("{function} is in no group"));
            continue;
        };
        groups += 1;
        let script = record.text(&format!("plan {function}")).into_owned();
        for (member, _) in record.groups.iter().filter(|(_, group)| *group == number) {
            let driver = planned.get(member).map_or("none", String::as_str);
            let is_bridge = matches!(before.get(member).map(String::as_str), Some("pcieport" | "shpchp"));
            if !failed && !is_bridge && driver != "vfio-pci" && script.contains(&member.to_string()) {
                wrong.push(format!(
                    "{member} is on {driver} after the plan for {function}:\n{script}"
                ));
            }
        }
        if planned.get(&function).is_none_or(|driver| driver != "vfio-pci") {
            wrong.push(format!("{function} is not on vfio-pci:\n{script}"));
        }
        // The kernel has a node for the group as soon as one of it is on a driver for user space.
        if !nodes.contains(&number.to_string()) {
            wrong.push(format!("/dev/vfio/{number} is not there, only {nodes:?}"));
        }
    }
    for (function, driver) in &before {
        let now = after.get(function);
        if now != Some(driver) {
            // What was asked for late is what was carried out.
            let [early, late] = ["back", "late"].map(|when| record.text(&format!("{when} {function}")).into_owned());
            let back = if late.is_empty() { early } else { late };
            wrong.push(format!(
                "{function} was on {driver} and is on {now:?} at the end\n{back}"
            ));
        }
    }
    (groups, wrong)
}

#[test]
fn the_shell_of_a_guest_carries_out_the_plan_and_its_undoing() {
    let Some(tools) = tools() else {
        return;
    };
    let guest = Guest::new(Machine::named(&SHAPES, 1), Script::Plan);
    let record = match tools.boot(&folder("plan"), &guest) {
        Ok(record) => record,
        Err(why) => panic!("{why}"),
    };
    let (groups, wrong) = judge(&record);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(groups >= MINIMUM, "only {groups} groups changed hands");
    let late = record
        .statuses
        .iter()
        .filter(|(name, _)| name.starts_with("late "))
        .count();
    assert_eq!(
        late,
        groups / 2,
        "every second way back is asked for after the plan was carried out"
    );
    println!("also: {groups} groups given away and taken back by iommu plan");
}
