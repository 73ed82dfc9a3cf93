//! What `iommu` answered inside a guest, against the kernel it ran on, and against its answers outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::guest::Tools;
use e2e::guest::messages;
use e2e::guest::record::Record;
use iommu_types::Bdf;
use serde_json::Value;

/// The answers that are asked for again outside, from the snapshot: name in the record, arguments.
const OUTSIDE: [(&str, &[&str]); 4] = [
    ("groups", &["groups", "--json"]),
    ("computed", &["groups", "--json", "--model", "linux"]),
    ("doctor", &["doctor", "--json"]),
    ("caps", &["caps", "--json"]),
];

/// Compares the answers of one guest; returns how many there were, and what differs, in words.
pub(crate) fn differences(record: &Record, tools: &Tools, folder: &Path, send: bool) -> (usize, Vec<String>) {
    let mut wrong = Vec::new();
    for (name, bytes) in record.files.iter().filter(|(name, _)| name.ends_with(".err")) {
        wrong.push(format!("{name} inside: {}", String::from_utf8_lossy(bytes).trim_end()));
    }
    wrong.extend(groups(record));
    wrong.extend(diagnosis(record));
    wrong.extend(units(record));
    wrong.extend(table(record));
    wrong.extend(outside(record, tools, folder));
    if send {
        wrong.extend(traffic(tools, &folder.join("snapshot")));
    }
    (record.statuses.len(), wrong)
}

/// An answer as JSON.
pub(crate) fn answer(record: &Record, name: &str) -> Result<Value, String> {
    serde_json::from_str(&record.text(name)).map_err(|why| format!("{name} inside is no JSON: {why}"))
}

fn array<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// The sets of functions by group number.
fn partition(answer: &Value) -> BTreeMap<u64, BTreeSet<Bdf>> {
    let functions = |group: &Value| {
        array(group, "functions")
            .iter()
            .filter_map(|function| function["address"].as_str()?.parse().ok())
            .collect()
    };
    array(answer, "groups")
        .iter()
        .filter_map(|group| Some((group["number"].as_u64()?, functions(group))))
        .collect()
}

/// Group by group: those that it reads with their numbers, and those that it computes.
fn groups(record: &Record) -> Vec<String> {
    let (read, computed) = match (answer(record, "groups"), answer(record, "computed")) {
        (Ok(read), Ok(computed)) => (read, computed),
        (read, computed) => return [read, computed].into_iter().filter_map(Result::err).collect(),
    };
    let mut wrong = Vec::new();
    let mut kernel: BTreeMap<u64, BTreeSet<Bdf>> = BTreeMap::new();
    for (function, number) in &record.groups {
        kernel.entry(u64::from(*number)).or_default().insert(*function);
    }
    if read["source"] != "kernel" || partition(&read) != kernel {
        wrong.push(format!(
            "`iommu groups` does not show the kernel's groups but {:?}'s",
            read["source"]
        ));
    }
    if read["kernel_disagrees"] != false {
        wrong.push("`iommu groups` says that the kernel's groups are not those of its rules".to_owned());
    }
    let kernel: BTreeSet<BTreeSet<Bdf>> = kernel.into_values().collect();
    let ours: BTreeSet<BTreeSet<Bdf>> = partition(&computed)
        .into_values()
        .map(|group| group.into_iter().filter(|f| record.groups.contains_key(f)).collect())
        .filter(|group: &BTreeSet<Bdf>| !group.is_empty())
        .collect();
    for group in kernel.difference(&ours) {
        let names: Vec<String> = group.iter().map(ToString::to_string).collect();
        wrong.push(format!("`iommu groups --model linux` has no group {}", names.join(" ")));
    }
    for group in ours.difference(&kernel) {
        let names: Vec<String> = group.iter().map(ToString::to_string).collect();
        wrong.push(format!(
            "only `iommu groups --model linux` has the group {}",
            names.join(" ")
        ));
    }
    wrong
}

/// The answer to one question of `iommu doctor`.
pub(crate) fn item<'v>(doctor: &'v Value, id: &str) -> Option<&'v str> {
    array(doctor, "items")
        .iter()
        .find(|item| item["id"] == id)
        .and_then(|item| item["answer"].as_str())
}

/// What the kernel says about remapping interrupts, if it does.
pub(crate) fn remaps_interrupts(record: &Record) -> bool {
    record
        .messages
        .iter()
        .any(|message| message.starts_with("DMAR-IR: Enabled IRQ remapping in "))
}

/// `iommu doctor` against the kernel's own groups and messages.
fn diagnosis(record: &Record) -> Vec<String> {
    let doctor = match answer(record, "doctor") {
        Ok(doctor) => doctor,
        Err(why) => return vec![why],
    };
    let mut wrong = Vec::new();
    if doctor["state"] != "Working" {
        wrong.push(format!("there are groups, and `iommu doctor` says {}", doctor["state"]));
    }
    let word = |yes: bool| Some(if yes { "yes" } else { "no" });
    for (id, yes) in [
        ("table", record.table.is_some()),
        ("translation", !record.groups.is_empty()),
        ("interrupt-remapping", remaps_interrupts(record)),
        // What no unit serves has no group.
        ("coverage", record.groups.len() == record.spaces.len()),
    ] {
        if item(&doctor, id) != word(yes) {
            wrong.push(format!(
                "`iommu doctor`: {id} is {:?}, by Linux {yes}",
                item(&doctor, id)
            ));
        }
    }
    let status = record.statuses.get("doctor").copied();
    let expected = match doctor["overall"].as_str() {
        Some("yes") => 0,
        Some("no") => 1,
        _ => 3,
    };
    if status != Some(expected) {
        wrong.push(format!(
            "`iommu doctor` says {} and ends with {status:?}",
            doctor["overall"]
        ));
    }
    wrong
}

/// `iommu caps` against the line that the kernel prints for each unit:
/// `DMAR: dmar0: reg_base_addr fed90000 ver 1:0 cap d2008c222f0686 ecap f00f5a`.
fn units(record: &Record) -> Vec<String> {
    let caps = match answer(record, "caps") {
        Ok(caps) => caps,
        Err(why) => return vec![why],
    };
    let said: Vec<String> = record
        .messages
        .iter()
        .filter_map(|message| message.strip_prefix("DMAR: "))
        .filter(|message| message.contains(": reg_base_addr "))
        .map(str::to_owned)
        .collect();
    let text = record.text("caps.text").into_owned();
    let version = |name: &str| -> Option<String> {
        let line = text.lines().find(|line| line.starts_with(&format!("{name} at ")))?;
        let (_, version) = line.split_once(", version ")?;
        Some(version.trim().replace('.', ":"))
    };
    let digits = |value: &Value| value.as_str().map(|text| text.trim_start_matches("0x").to_owned());
    let ours: Vec<String> = array(&caps, "units")
        .iter()
        .filter_map(|unit| {
            let name = unit["name"].as_str()?;
            Some(format!(
                "{name}: reg_base_addr {} ver {} cap {} ecap {}",
                digits(&unit["address"])?,
                version(name)?,
                digits(&unit["cap"])?,
                digits(&unit["ecap"])?
            ))
        })
        .collect();
    if said.is_empty() || said != ours {
        return vec![format!("Linux says {said:?}, and `iommu caps` {ours:?}")];
    }
    Vec::new()
}

/// `iommu dmar show --json` against the kernel's boot messages.
fn table(record: &Record) -> Vec<String> {
    let shown = match answer(record, "dmar") {
        Ok(shown) => shown,
        Err(why) => return vec![why],
    };
    let said = messages::about_the_table(&record.messages);
    let ours = boot_messages(&shown["table"]).unwrap_or_default();
    if said != ours {
        return vec![format!(
            "Linux printed\n    {}\n  and after `iommu dmar show` it would\n    {}",
            said.join("\n    "),
            ours.join("\n    ")
        )];
    }
    Vec::new()
}

/// What the kernel should print about a table that `iommu dmar show` shows; `None` if a field is missing.
fn boot_messages(table: &Value) -> Option<Vec<String>> {
    let number = |value: &Value, key: &str| value[key].as_u64();
    let address = |value: &Value, key: &str| {
        let digits = value[key].as_str()?.strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok()
    };
    let flag = |value: &Value, key: &str| Some(u8::from(value[key].as_bool()?));
    let header = format!(
        "ACPI: DMAR {:06X} (v{:02} {} {} {:08X} {} {:08X})",
        number(table, "length")?,
        number(table, "revision")?,
        table["oem_id"].as_str()?,
        table["oem_table_id"].as_str()?,
        number(table, "oem_revision")?,
        table["creator_id"].as_str()?,
        number(table, "creator_revision")?,
    );
    let mut lines = vec![
        header.split_whitespace().collect::<Vec<_>>().join(" "),
        format!("DMAR: Host address width {}", number(table, "host_address_bits")?),
    ];
    let mut sources = Vec::new();
    for structure in array(table, "structures") {
        lines.push(match structure["name"].as_str()? {
            "DRHD" => {
                let base = address(structure, "register_base")?;
                let index = number(structure, "unit")?;
                for scope in array(structure, "scopes") {
                    let id = number(scope, "enumeration_id")?;
                    match scope["name"].as_str() {
                        Some("io_apic") => sources.push(format!(
                            "DMAR-IR: IOAPIC id {id} under DRHD base {base:#x} IOMMU {index}"
                        )),
                        Some("hpet") => sources.push(format!("DMAR-IR: HPET id {id} under DRHD base {base:#x}")),
                        _ => {}
                    }
                }
                format!(
                    "DMAR: DRHD base: {base:#016x} flags: {:#x}",
                    number(structure, "flags")?
                )
            }
            "RMRR" => format!(
                "DMAR: RMRR base: {:#016x} end: {:#016x}",
                address(structure, "base")?,
                address(structure, "limit")?
            ),
            "ATSR" => format!("DMAR: ATSR flags: {:#x}", flag(structure, "all_ports")?),
            "RHSA" => format!(
                "DMAR: RHSA base: {:#016x} proximity domain: {:#x}",
                address(structure, "register_base")?,
                number(structure, "proximity_domain")?
            ),
            "ANDD" => format!(
                "DMAR: ANDD device: {:x} name: {}",
                number(structure, "device_number")?,
                structure["device_name"].as_str()?
            ),
            "SATC" => format!("DMAR: SATC flags: {:#x}", flag(structure, "atc_required")?),
            // Linux says nothing about the others.
            _ => continue,
        });
    }
    lines.extend(sources);
    Some(lines)
}

/// The snapshot that was taken inside, read outside by the same program, gives the same answers.
fn outside(record: &Record, tools: &Tools, folder: &Path) -> Vec<String> {
    let Some(bytes) = record.files.get("snapshot").filter(|bytes| !bytes.is_empty()) else {
        return vec!["there is no snapshot".to_owned()];
    };
    let snapshot = folder.join("snapshot");
    if let Err(why) = fs::write(&snapshot, bytes) {
        return vec![format!("{}: {why}", snapshot.display())];
    }
    let mut wrong = Vec::new();
    for (name, arguments) in OUTSIDE {
        let output = match Command::new(&tools.iommu)
            .args(arguments)
            .arg("--root")
            .arg(&snapshot)
            .output()
        {
            Ok(output) => output,
            Err(why) => return vec![format!("{}: {why}", tools.iommu.display())],
        };
        let inside = answer(record, name).map(comparable);
        let outside = serde_json::from_slice(&output.stdout)
            .map(comparable)
            .map_err(|why| format!("{name} outside is no JSON: {why}"));
        if inside.is_err() || inside != outside {
            wrong.push(format!(
                "`iommu {}` inside and from the snapshot outside differ: {}",
                arguments.join(" "),
                first_difference(&inside.unwrap_or_default(), &outside.unwrap_or_default(), "")
            ));
        }
        if output.status.code() != record.statuses.get(name).copied() {
            wrong.push(format!(
                "`iommu {}` ends with {:?} inside and {:?} outside",
                arguments.join(" "),
                record.statuses.get(name),
                output.status.code()
            ));
        }
    }
    wrong
}

/// Traffic through the fabric in software connects what the strict rules join: the machine of the snapshot is built in
/// software, its functions send to each other, and what was predicted of peers and of all else holds. Functions of one device
/// are left out: virtual ones are built as ordinary ones there.
fn traffic(tools: &Tools, snapshot: &Path) -> Option<String> {
    let output = Command::new(&tools.iommu)
        .args(["run", "--json", "--mem", "2M", "--root"])
        .arg(snapshot)
        .output()
        .map_err(|why| why.to_string());
    let answer: Value = match &output {
        Ok(output) => serde_json::from_slice(&output.stdout).unwrap_or_default(),
        Err(why) => return Some(format!("{}: {why}", tools.iommu.display())),
    };
    let cells = answer["matrix"].as_array().cloned().unwrap_or_default();
    let differs = |cell: &&Value| {
        let within = cell["target"] == "group-peer" && within_device(cell);
        cell["predicted"] != "unknown" && cell["predicted"] != cell["seen"] && !within
    };
    let different: Vec<&Value> = cells.iter().filter(differs).collect();
    (cells.is_empty() || !different.is_empty())
        .then(|| format!("`iommu run --root` on the snapshot is not as predicted: {different:?}"))
}

/// Whether the peer that a cell is about is a function of the requester's own device, as the cell's reason names it.
fn within_device(cell: &Value) -> bool {
    let requester = cell["requester"].as_str().unwrap_or_default();
    let device = requester.get(5..10).unwrap_or("no device");
    cell["because"].as_str().is_some_and(|why| why.contains(device))
}

/// Without the names of models, which the guest has no list of.
fn comparable(mut answer: Value) -> Value {
    match &mut answer {
        Value::Object(fields) => {
            fields.remove("label");
            for value in fields.values_mut() {
                *value = comparable(value.take());
            }
        }
        Value::Array(values) => {
            for value in values {
                *value = comparable(value.take());
            }
        }
        _ => {}
    }
    answer
}

/// The first place where two answers differ.
fn first_difference(a: &Value, b: &Value, path: &str) -> String {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            keys.into_iter()
                .find(|key| a.get(*key) != b.get(*key))
                .map_or_else(String::new, |key| {
                    let [a, b] = [a, b].map(|fields| fields.get(key).unwrap_or(&Value::Null));
                    first_difference(a, b, &format!("{path}/{key}"))
                })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find(|(_, (a, b))| a != b)
            .map_or_else(String::new, |(index, (a, b))| {
                first_difference(a, b, &format!("{path}/{index}"))
            }),
        _ => format!("{path}: {a} and {b}"),
    }
}
