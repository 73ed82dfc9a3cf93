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
use crate::tools::{self, Unpacked, output, workspace};

/// Runs the comparison on the sample machine's table and on the real tables.
pub(crate) fn check() -> Outcome {
    let iasl = match tools::unpack(tools::IASL) {
        Ok(unpacked) => unpacked,
        Err(why) => return Outcome::Skipped(why),
    };
    let folder = workspace().join("target/iasl");
    if let Err(why) = fs::create_dir_all(&folder) {
        return Outcome::Failed(format!("{}: {why}", folder.display()));
    }
    let tool = workspace().join("target/release/iommu");
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
    let mine = ours["structures"].as_array().unwrap_or(&empty);
    if mine.len() != theirs.len() {
        return Err(format!("we see {} structures, iasl {}", mine.len(), theirs.len()));
    }
    let mut fields = 0;
    for (index, (ours, theirs)) in mine.iter().zip(&theirs).enumerate() {
        for (key, expected) in theirs {
            let Some(value) = ours.get(key).and_then(number) else {
                return Err(format!(
                    "structure {index}: we do not say {key}, iasl says {expected:#x}"
                ));
            };
            if value != *expected {
                return Err(format!(
                    "structure {index}: {key} is {value:#x} for us, {expected:#x} for iasl"
                ));
            }
            fields += 1;
        }
    }
    Ok(fields)
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
const FIELDS: [(&str, &str); 7] = [
    ("Subtable Type", "type"),
    ("Length", "length"),
    ("PCI Segment Number", "segment"),
    ("Register Base Address", "base"),
    ("Base Address", "base"),
    ("End Address (limit)", "limit"),
    ("Proximity Domain", "proximity_domain"),
];

/// The structures of a listing, each as (our key, value) pairs.
fn structures(listing: &str) -> Vec<Vec<(&'static str, u64)>> {
    let mut found: Vec<Vec<(&'static str, u64)>> = Vec::new();
    let mut in_scope = false;
    for line in listing.lines() {
        let Some((label, value)) = line.split_once(']').and_then(|(_, rest)| rest.split_once(':')) else {
            continue;
        };
        let label = label.trim();
        match label {
            "Subtable Type" => {
                found.push(Vec::new());
                in_scope = false;
            }
            "Device Scope Type" => in_scope = true,
            _ => {}
        }
        let Some(current) = found.last_mut().filter(|_| !in_scope) else {
            continue;
        };
        let Some((_, key)) = FIELDS.iter().find(|(name, _)| *name == label) else {
            continue;
        };
        let digits: String = value.trim().chars().take_while(char::is_ascii_hexdigit).collect();
        if let Ok(value) = u64::from_str_radix(&digits, 16) {
            current.push((key, value));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::structures;

    #[test]
    fn a_listing_is_read_structure_by_structure_without_its_scopes() {
        let listing = "\
[000h 0000   4]                    Signature : \"DMAR\"
[030h 0048   2]                Subtable Type : 0000 [Hardware Unit Definition]
[032h 0050   2]                       Length : 0018
[036h 0054   2]           PCI Segment Number : 0001
[038h 0056   8]        Register Base Address : 00000000FED90000
[040h 0064   1]            Device Scope Type : 01 [PCI Endpoint Device]
[041h 0065   1]                 Entry Length : 08
[048h 0072   2]                Subtable Type : 0001 [Reserved Memory Region]
[050h 0080   8]                 Base Address : 0000000000000000";
        let found = structures(listing);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0],
            [("type", 0), ("length", 0x18), ("segment", 1), ("base", 0xfed9_0000)]
        );
        assert_eq!(found[1], [("type", 1), ("base", 0)]);
    }
}
