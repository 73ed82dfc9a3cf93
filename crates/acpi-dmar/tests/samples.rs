//! Real tables, judged by `iasl -d` and by an index made from them with another parser.
//!
//! The tables are not in the repository: `PORTCULLIS_SAMPLES` names the folder that has them under `dmar/`.
#![allow(clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use acpi_dmar::lint::{Machine, lint};
use acpi_dmar::{DeviceScope, Dmar, OwnedDmar, OwnedStructure, Rule, Structure, StructureType};

/// The folder of tables, or a line that says that the test was skipped.
fn samples(test: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("PORTCULLIS_SAMPLES") else {
        // Not with `eprintln`, whose output the test harness hides when the test passes.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: PORTCULLIS_SAMPLES is not set");
        return None;
    };
    let folder = Path::new(&root).join("dmar");
    assert!(
        folder.is_dir(),
        "PORTCULLIS_SAMPLES has no folder dmar: {}",
        folder.display()
    );
    Some(folder)
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("readable")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

fn name(path: &Path) -> String {
    path.file_stem().expect("a name").to_string_lossy().into_owned()
}

/// Ids of the rules that the table alone breaks, without the opt-in flag, which is nobody's fault.
fn findings(table: Dmar<'_>) -> Vec<&'static str> {
    let report = lint(table, &Machine::default());
    let rules = report.findings.iter().map(|finding| finding.rule);
    rules
        .filter(|rule| *rule != Rule::PlatformOptIn)
        .map(Rule::id)
        .collect()
}

#[test]
fn every_real_table_decodes_and_comes_out_of_the_builder_unchanged() {
    let Some(folder) = samples("every_real_table_decodes_and_comes_out_of_the_builder_unchanged") else {
        return;
    };
    let tables = files(&folder, "bin");
    for path in &tables {
        let bytes = fs::read(path).expect("readable");
        let table = Dmar::parse(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(table.checksum_ok(), "{}", path.display());
        assert_eq!(table.bytes_after(), 0, "{}", path.display());
        let owned = OwnedDmar::from_table(table).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let all_typed = !owned.structures.iter().any(|s| matches!(s, OwnedStructure::Raw(_)));
        assert!(all_typed, "{}", path.display());
        assert_eq!(owned.build().expect("fits"), bytes, "{}", path.display());
    }
    println!("{} tables decoded and built again", tables.len());
    assert!(tables.len() >= 60, "only {} tables", tables.len());
}

#[test]
fn the_index_of_the_tables_agrees() {
    let Some(folder) = samples("the_index_of_the_tables_agrees") else {
        return;
    };
    let index = fs::read_to_string(folder.join("INDEX.tsv")).expect("readable");
    let mut lines = index.lines().filter(|line| !line.starts_with('#'));
    let head: Vec<_> = lines.next().expect("a head line").split('\t').collect();
    let mut rows = 0;
    let mut fired: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for line in lines {
        let row: BTreeMap<_, _> = head.iter().copied().zip(line.split('\t')).collect();
        let id = row["hwid"];
        let bytes = fs::read(folder.join(id).with_extension("bin")).expect("readable");
        let table = Dmar::parse(&bytes).expect("a header");
        let header = table.header();
        assert_eq!(row["rev"], header.revision.to_string(), "{id}");
        assert_eq!(row["haw"], table.host_address_bits().to_string(), "{id}");
        assert_eq!(row["flags"], format!("{:#x}", header.flags.0), "{id}");
        assert_eq!(row["len"], bytes.len().to_string(), "{id}");
        for kind in (0..7).map(StructureType) {
            let count = table.structures().flatten().filter(|s| s.kind() == kind).count();
            assert_eq!(row[kind.name().expect("known")], count.to_string(), "{id} {kind:?}");
        }
        let oem = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches(['\0', ' ']).to_owned();
        let both = format!("{}/{}", oem(&header.oem_id), oem(&header.oem_table_id));
        assert_eq!(row["oem"], both, "{id}");
        for rule in findings(table) {
            fired.entry(rule).or_default().push(id.to_owned());
        }
        rows += 1;
    }
    assert_eq!(rows, 60);
    assert_eq!(fired.remove("L08"), Some(vec!["188EB681251A".to_owned()]));
    assert_eq!(fired.remove("L23").map(|tables| tables.len()), Some(3));
    assert_eq!(fired.remove("L24").map(|tables| tables.len()), Some(5));
    assert_eq!(fired, BTreeMap::new(), "no other rule");
}

#[test]
fn the_known_defects_of_single_tables_are_found_and_no_others() {
    let Some(folder) = samples("the_known_defects_of_single_tables_are_found_and_no_others") else {
        return;
    };
    for (start, expected) in [
        ("02-", &["L15", "L34", "L34"][..]),
        ("04-", &[]),
        ("06-", &[]),
        ("07-", &["L24"]),
        ("10-", &["L24"]),
        ("13-", &["L23", "L08"]),
    ] {
        let path = files(&folder, "bin")
            .into_iter()
            .find(|path| name(path).starts_with(start));
        let path = path.unwrap_or_else(|| panic!("no table {start}*"));
        let bytes = fs::read(path).expect("readable");
        assert_eq!(findings(Dmar::parse(&bytes).expect("a header")), expected, "{start}");
    }
}

/// Field values by offset and by iasl's name.
type Fields = BTreeMap<(usize, String), String>;

/// What iasl printed: `[038h 0056   8]        Register Base Address : 00000000D37FC000`.
fn iasl_fields(listing: &str) -> Fields {
    let mut fields = Fields::new();
    for line in listing.lines().take_while(|line| !line.starts_with("Raw Table Data")) {
        let Some((place, rest)) = line.strip_prefix('[').and_then(|line| line.split_once(']')) else {
            continue;
        };
        let offset = place.split_once('h').expect("an offset").0;
        let offset = usize::from_str_radix(offset, 16).expect("hexadecimal");
        let (name, value) = rest.split_once(" : ").expect("a value");
        let value = match value.strip_prefix('"') {
            Some(text) => text.split_once('"').expect("a closing quote").0.to_owned(),
            None => value.split('[').next().expect("a part").trim().to_owned(),
        };
        // Reserved fields have no accessor of their own; the builder's test holds their bytes.
        if name.trim() != "Reserved" {
            fields.insert((offset, name.trim().to_owned()), value);
        }
    }
    fields
}

/// The same fields by the reader.
fn own_fields(table: Dmar<'_>) -> Fields {
    let mut fields = Fields::new();
    let mut put = |offset: usize, name: &str, value: String| {
        fields.insert((offset, name.to_owned()), value);
    };
    // iasl ends a text at its first NUL and prints a blank for what is not printable.
    let text = |bytes: &[u8]| -> String {
        let shown = bytes.iter().take_while(|byte| **byte != 0);
        shown
            .map(|byte| {
                if (b' '..=b'~').contains(byte) {
                    char::from(*byte)
                } else {
                    ' '
                }
            })
            .collect()
    };
    let header = table.header();
    put(0, "Signature", "DMAR".into());
    put(4, "Table Length", format!("{:08X}", header.length));
    put(8, "Revision", format!("{:02X}", header.revision));
    put(9, "Checksum", format!("{:02X}", header.checksum));
    put(10, "Oem ID", text(&header.oem_id));
    put(16, "Oem Table ID", text(&header.oem_table_id));
    put(24, "Oem Revision", format!("{:08X}", header.oem_revision));
    put(28, "Asl Compiler ID", text(&header.creator_id));
    put(32, "Asl Compiler Revision", format!("{:08X}", header.creator_revision));
    put(36, "Host Address Width", format!("{:02X}", header.host_address_width));
    put(37, "Flags", format!("{:02X}", header.flags.0));
    for structure in table.structures() {
        let structure = structure.expect("well formed");
        let at = structure.offset();
        put(at, "Subtable Type", format!("{:04X}", structure.kind().0));
        put(at + 2, "Length", format!("{:04X}", structure.bytes().len()));
        match structure {
            Structure::Drhd(s) => {
                put(at + 4, "Flags", format!("{:02X}", s.flags()));
                put(
                    at + 8,
                    "Register Base Address",
                    format!("{:016X}", s.register_base().raw()),
                );
            }
            Structure::Rmrr(s) => {
                put(at + 8, "Base Address", format!("{:016X}", s.base().raw()));
                put(at + 16, "End Address (limit)", format!("{:016X}", s.limit().raw()));
            }
            Structure::Atsr(s) => put(at + 4, "Flags", format!("{:02X}", s.flags())),
            Structure::Rhsa(s) => {
                put(at + 8, "Base Address", format!("{:016X}", s.register_base().raw()));
                put(at + 16, "Proximity Domain", format!("{:08X}", s.proximity_domain()));
            }
            other => panic!("{:?} is not in the listings", other.kind()),
        }
        let Some((segment, scopes)) = structure.scope_list() else {
            continue;
        };
        put(at + 6, "PCI Segment Number", format!("{:04X}", segment.0));
        for scope in scopes {
            let scope: DeviceScope<'_> = scope.expect("whole");
            let at = scope.offset();
            put(at, "Device Scope Type", format!("{:02X}", scope.kind().0));
            put(at + 1, "Entry Length", format!("{:02X}", scope.bytes().len()));
            put(at + 4, "Enumeration ID", format!("{:02X}", scope.enumeration_id()));
            put(at + 5, "PCI Bus Number", format!("{:02X}", scope.start_bus()));
            for (hop, at) in scope.path().zip((at + 6..).step_by(2)) {
                put(at, "PCI Path", format!("{:02X},{:02X}", hop.device, hop.function));
            }
        }
    }
    fields
}

#[test]
fn every_field_is_what_iasl_says() {
    let Some(folder) = samples("every_field_is_what_iasl_says") else {
        return;
    };
    let mut compared = 0;
    for listing in files(&folder, "dsl") {
        let iasl = iasl_fields(&fs::read_to_string(&listing).expect("readable"));
        let bytes = fs::read(listing.with_extension("bin")).expect("readable");
        let own = own_fields(Dmar::parse(&bytes).expect("a header"));
        compared += iasl.len();
        for (field, value) in &iasl {
            assert_eq!(own.get(field), Some(value), "{field:?} in {}", listing.display());
        }
        assert_eq!(own.len(), iasl.len(), "{}", listing.display());
    }
    println!("{compared} fields compared with iasl's");
    assert!(compared > 1000, "only {compared} fields");
}
