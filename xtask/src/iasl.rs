//! `iasl -d`, an ACPI disassembler that nobody here wrote, on the same bytes that we read and build.
//!
//! Each line of its listing is `[offset, length] field : value`. Both our built table and the real ones are
//! compared field by field with what `iommu dmar show --json` says; the version in Debian 12 does not decode
//! SATC, SIDP and the size field of DRHD, so these are left out.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::report::Outcome;
use crate::samples;
use crate::target;
use crate::tools::{self, Unpacked, output};

/// Runs the comparison on the sample machine's table and on the real tables.
pub(crate) fn check() -> Outcome {
    let iasl = match tools::unpack(tools::IASL) {
        Ok(unpacked) => unpacked,
        Err(why) => return Outcome::Skipped(why),
    };
    let (tool, folder) = match target::tool().and_then(|tool| Ok((tool, target::folder()?.join("iasl")))) {
        Ok(both) => both,
        Err(why) => return Outcome::Failed(why),
    };
    if let Err(why) = fs::create_dir_all(&folder) {
        return Outcome::Failed(format!("{}: {why}", folder.display()));
    }
    let built = folder.join("sample.bin");
    if let Err(why) = output(Command::new(&tool).args(["dmar", "build", "--output"]).arg(&built)) {
        return Outcome::Failed(why);
    }
    let mut tables = vec![built];
    tables.extend(samples::folder().iter().flat_map(|f| samples::tables(f)));

    let (mut compared, mut problems) = (0, Vec::new());
    for table in &tables {
        match compare(&iasl, &tool, table, &folder) {
            Ok(fields) => compared += fields,
            Err(why) => problems.push(format!("{}: {why}", table.display())),
        }
    }
    if problems.is_empty() {
        Outcome::passed(
            tables.len(),
            format!("{compared} fields of {} tables agree", tables.len()),
        )
    } else {
        Outcome::Failed(problems.join("; "))
    }
}

/// Compares one table; returns the number of fields compared.
fn compare(iasl: &Unpacked, tool: &Path, table: &Path, folder: &Path) -> Result<usize, String> {
    let copy = folder.join("table.bin");
    fs::copy(table, &copy).map_err(|e| e.to_string())?;
    output(
        iasl.command("usr/bin/iasl")
            .current_dir(folder)
            .args(["-d", "table.bin"]),
    )?;
    let listing = fs::read_to_string(folder.join("table.dsl")).map_err(|e| e.to_string())?;
    let ours = Command::new(tool)
        .args(["dmar", "show", "--json"])
        .arg(&copy)
        .output()
        .map_err(|e| e.to_string())?;
    let ours: Value = serde_json::from_slice(&ours.stdout).map_err(|e| format!("dmar show --json: {e}"))?;
    let theirs = structures(&listing);
    let empty = Vec::new();
    let mine = ours["table"]["structures"].as_array().unwrap_or(&empty);
    // A type that this iasl does not know ends its listing; as far as it goes, it must agree.
    let unknown_to_iasl = |structure: &Value| structure["type"].as_u64().is_some_and(|kind| kind > LAST_KNOWN_TYPE);
    if mine.len() != theirs.len() && !mine.iter().any(unknown_to_iasl) {
        return Err(format!("we see {} structures, iasl {}", mine.len(), theirs.len()));
    }
    let mut fields = 0;
    for (index, (ours, theirs)) in mine.iter().zip(&theirs).enumerate() {
        if unknown_to_iasl(ours) {
            break;
        }
        fields += agree(ours, &theirs.fields).map_err(|why| format!("structure {index}: {why}"))?;
        let scopes = ours["scopes"].as_array().unwrap_or(&empty);
        if scopes.len() != theirs.scopes.len() {
            let (a, b) = (scopes.len(), theirs.scopes.len());
            return Err(format!("structure {index}: we see {a} scopes, iasl {b}"));
        }
        for (number, (ours, theirs)) in scopes.iter().zip(&theirs.scopes).enumerate() {
            let place = |why| format!("structure {index}, scope {number}: {why}");
            fields += agree(ours, &theirs.fields).map_err(place)?;
            let path: Vec<&str> = ours["path"]
                .as_array()
                .unwrap_or(&empty)
                .iter()
                .filter_map(Value::as_str)
                .collect();
            if path != theirs.path {
                return Err(place(format!("we read the path {path:?}, iasl {:?}", theirs.path)));
            }
            fields += 1;
        }
    }
    Ok(fields)
}

/// The last structure type that the iasl of Debian 12 decodes.
const LAST_KNOWN_TYPE: u64 = 4;

/// Compares the fields of one object; returns how many.
fn agree(ours: &Value, theirs: &[(&'static str, u64)]) -> Result<usize, String> {
    for (key, expected) in theirs {
        let Some(value) = ours.get(key).and_then(number) else {
            return Err(format!("we do not say {key}, iasl says {expected:#x}"));
        };
        if value != *expected {
            return Err(format!("{key} is {value:#x} for us, {expected:#x} for iasl"));
        }
    }
    Ok(theirs.len())
}

/// A number in our JSON: plain, or a string in hexadecimal.
fn number(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => u64::from_str_radix(text.strip_prefix("0x")?, 16).ok(),
        Value::Bool(set) => Some(u64::from(*set)),
        other => other.as_u64(),
    }
}

/// Fields of iasl's listing and the keys under which ours stand.
const FIELDS: [(&str, &str); 8] = [
    ("Subtable Type", "type"),
    ("Length", "length"),
    ("PCI Segment Number", "segment"),
    ("Register Base Address", "register_base"),
    ("Base Address", BASE),
    ("End Address (limit)", "limit"),
    ("Proximity Domain", "proximity_domain"),
    ("Device Number", "device_number"),
];
/// The key of a base address, which RMRR and RHSA spell alike in the listing.
const BASE: &str = "base";
/// RHSA: the base address is that of a unit's registers.
const RHSA: u64 = 3;

/// The same for device scopes.
const SCOPE_FIELDS: [(&str, &str); 3] = [
    ("Device Scope Type", "type"),
    ("Enumeration ID", "enumeration_id"),
    ("PCI Bus Number", "start_bus"),
];

/// A structure of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
struct Listed {
    /// Our key and iasl's value.
    fields: Vec<(&'static str, u64)>,
    scopes: Vec<ListedScope>,
}

/// A device scope of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
struct ListedScope {
    fields: Vec<(&'static str, u64)>,
    /// Hops as `device.function`.
    path: Vec<String>,
}

/// The structures of a listing.
fn structures(listing: &str) -> Vec<Listed> {
    let mut found: Vec<Listed> = Vec::new();
    for line in listing.lines() {
        let Some((label, value)) = line.split_once(']').and_then(|(_, rest)| rest.split_once(':')) else {
            continue;
        };
        let (label, value) = (label.trim(), value.trim());
        match label {
            "Subtable Type" => found.push(Listed::default()),
            "Device Scope Type" => found
                .iter_mut()
                .last()
                .into_iter()
                .for_each(|s| s.scopes.push(ListedScope::default())),
            _ => {}
        }
        let Some(structure) = found.last_mut() else { continue };
        match structure.scopes.last_mut() {
            Some(scope) if label == "PCI Path" => scope.path.extend(hop(value)),
            Some(scope) => scope.fields.extend(field(&SCOPE_FIELDS, label, value)),
            None => structure.fields.extend(field(&FIELDS, label, value)),
        }
    }
    for structure in &mut found {
        if structure.fields.contains(&("type", RHSA)) {
            for (key, _) in structure.fields.iter_mut().filter(|(key, _)| *key == BASE) {
                *key = "register_base";
            }
        }
    }
    found
}

/// A line that is one of `fields`, as our key and iasl's value.
fn field(fields: &[(&str, &'static str)], label: &str, value: &str) -> Option<(&'static str, u64)> {
    let (_, key) = fields.iter().find(|(name, _)| *name == label)?;
    let digits: String = value.chars().take_while(char::is_ascii_hexdigit).collect();
    Some((key, u64::from_str_radix(&digits, 16).ok()?))
}

/// `1D,00` as `1d.0`.
fn hop(value: &str) -> Option<String> {
    let (device, function) = value.split_once(',')?;
    let number = |text: &str| u8::from_str_radix(text.trim(), 16).ok();
    Some(format!("{:02x}.{:x}", number(device)?, number(function)?))
}

#[cfg(test)]
mod tests {
    use super::structures;

    #[test]
    fn a_listing_is_read_structure_by_structure_with_its_scopes() {
        let listing = "\
[000h 0000   4]                    Signature : \"DMAR\"
[030h 0048   2]                Subtable Type : 0000 [Hardware Unit Definition]
[032h 0050   2]                       Length : 0018
[036h 0054   2]           PCI Segment Number : 0001
[038h 0056   8]        Register Base Address : 00000000FED90000
[040h 0064   1]            Device Scope Type : 01 [PCI Endpoint Device]
[041h 0065   1]                 Entry Length : 0A
[044h 0068   1]               Enumeration ID : 00
[045h 0069   1]               PCI Bus Number : 20
[046h 0070   2]                     PCI Path : 1C,00
[048h 0072   2]                     PCI Path : 02,01
[04Ah 0074   2]                Subtable Type : 0003 [Remapping Hardware Static Affinity]
[052h 0082   8]                 Base Address : 00000000FED90000";
        let found = structures(listing);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0].fields,
            [
                ("type", 0),
                ("length", 0x18),
                ("segment", 1),
                ("register_base", 0xfed9_0000)
            ]
        );
        assert_eq!(found[0].scopes.len(), 1);
        assert_eq!(
            found[0].scopes[0].fields,
            [("type", 1), ("enumeration_id", 0), ("start_bus", 0x20)]
        );
        assert_eq!(found[0].scopes[0].path, ["1c.0", "02.1"]);
        assert_eq!(found[1].fields, [("type", 3), ("register_base", 0xfed9_0000)]);
    }
}
