use std::io::Write;

use acpi_dmar::{
    OwnedAndd, OwnedAtsr, OwnedDmar, OwnedDrhd, OwnedRhsa, OwnedRmrr, OwnedSatc, OwnedScope, OwnedSidp, RawStructure,
    ScopeFlags, StructureType, TableFlags,
};
use iommu_types::{AddrRange, DevFn, HostPhys, Segment, SourceId};

use super::{Shown, Table};
use crate::style::plain;

fn table_of(bytes: &[u8]) -> Table {
    Table {
        bytes: bytes.to_vec(),
        machine: None,
    }
}

fn show(bytes: &[u8]) -> Shown {
    let shown = super::show(&table_of(bytes), None);
    Shown {
        text: plain(&shown.text),
        ..shown
    }
}

fn show_json(bytes: &[u8]) -> serde_json::Value {
    super::show_json(&table_of(bytes))
}

const SEGMENT: Segment = Segment(0);

fn at(text: &str) -> SourceId {
    text.parse().expect("a source ID")
}

fn unit(base: u64) -> OwnedDrhd {
    OwnedDrhd::new(SEGMENT, HostPhys::new(base))
}

fn region(first: u64, last: u64) -> OwnedRmrr {
    let range = AddrRange::new(HostPhys::new(first), HostPhys::new(last)).expect("ordered");
    OwnedRmrr::new(SEGMENT, range).scope(OwnedScope::endpoint(at("00:14.0")))
}

fn bytes(table: &OwnedDmar) -> Vec<u8> {
    table.build().expect("fits")
}

/// One of each type, and one that nobody knows.
fn every_type() -> OwnedDmar {
    let hop = DevFn::new(0, 1).expect("in range");
    OwnedDmar::new(46)
        .flags(TableFlags::INTR_REMAP.union(TableFlags::X2APIC_OPT_OUT))
        .with(unit(0xd37f_c000).scope(OwnedScope::sub_hierarchy(at("00:14.0")).hop(hop)))
        .with(
            unit(0xe0ff_0000)
                .include_pci_all()
                .size(4)
                .scope(OwnedScope::io_apic(8, at("f0:1f.0")))
                .scope(OwnedScope::hpet(1, at("00:1f.0")))
                .scope(OwnedScope::namespace(2, at("00:15.0"))),
        )
        .with(region(0x7c00_0000, 0x7cff_ffff))
        .with(OwnedAtsr::new(SEGMENT).scope(OwnedScope::sub_hierarchy(at("00:14.0"))))
        .with(OwnedRhsa {
            register_base: HostPhys::new(0xd37f_c000),
            proximity_domain: 1,
        })
        .with(OwnedAndd::new(2, "\\_SB.PCI0.I2C0"))
        .with(OwnedSatc::new(SEGMENT, true).scope(OwnedScope::endpoint(at("00:02.0"))))
        .with(OwnedSidp::new(SEGMENT).scope(OwnedScope::endpoint(at("00:02.0")).flags(ScopeFlags(0x1c))))
        .with(RawStructure {
            kind: StructureType(0x77),
            body: vec![0xde, 0xad, 0xbe, 0xef],
        })
}

#[test]
fn every_type_is_decoded_and_unknown_bytes_are_shown() {
    let shown = show(&bytes(&every_type()));
    for expected in [
        "2D [46 bits]",
        "INTR_REMAP: the platform supports interrupt remapping",
        "X2APIC_OPT_OUT: the firmware asks not to enable x2APIC",
        "Remapping unit 0 (DRHD)",
        "00000000D37FC000",
        "on proximity domain 1, says an RHSA",
        "[sub-hierarchy] 0000:00:14.0 path 14.0 00.1",
        "INCLUDE_PCI_ALL: serves every PCI device",
        "04 [64 KiB of registers]",
        "[I/O APIC id 8] 0000:f0:1f.0 path 1f.0",
        "[HPET 1] 0000:00:1f.0 path 1f.0",
        "[ACPI device 2 \\_SB.PCI0.I2C0] 0000:00:15.0 path 15.0",
        "000000007CFFFFFF [last byte; 16384 KiB]",
        "Root ports with ATS (ATSR)",
        "Proximity Domain : 00000001",
        "Device Name : \"\\_SB.PCI0.I2C0\"",
        "ATC_REQUIRED: the devices do not work without ATS",
        "flags 1C: REQ_WO_PASID_PGSNP_NOTALLOWED, ATC_HARDENED, ATC_REQUIRED",
        "Unknown structure, kept and skipped",
        "DE AD BE EF",
        "L05 info",
        "L24 info",
    ] {
        assert!(shown.text.contains(expected), "no {expected:?} in\n{}", shown.text);
    }
    assert!(shown.clean, "only informations are expected in\n{}", shown.text);
}

#[test]
fn a_truncated_table_is_shown_as_far_as_it_goes_and_contains_nothing() {
    let whole = bytes(&every_type());
    let shown = show(&whole[..whole.len() - 3]);
    assert!(shown.text.contains("Remapping unit 0 (DRHD)"));
    assert!(shown.text.contains("L02 error at offset"), "{}", shown.text);
    assert!(shown.text.contains("no device counts as contained"));
    assert!(!shown.clean);
}

#[test]
fn data_without_a_usable_header_gets_offset_rule_and_advice() {
    for wrong in [
        &b""[..],
        b"DMAR",
        b"APIC and so on, for more than forty-eight bytes in a row",
    ] {
        let shown = show(wrong);
        assert!(shown.text.contains("L41 error at offset"), "{}", shown.text);
        assert!(shown.text.contains("/sys/firmware/acpi/tables/DMAR"));
        assert!(!shown.clean);
    }
}

#[test]
fn a_bad_checksum_is_named_with_the_right_value() {
    let mut table = bytes(&every_type());
    let right = table[9];
    table[9] = right.wrapping_add(1);
    let shown = show(&table);
    assert!(shown.text.contains("L01 error at offset 0x9"), "{}", shown.text);
    let words: Vec<&str> = shown.text.split_whitespace().collect();
    let words = words.join(" ");
    assert!(words.contains(&format!("{right:#04x} would fit")), "{words}");
    assert!(shown.text.contains("[WRONG]"));
    assert!(!shown.clean);
}

#[test]
fn units_and_regions_that_cannot_be_are_named() {
    let table = OwnedDmar::new(39)
        .flags(TableFlags::INTR_REMAP)
        .with(unit(0).include_pci_all())
        .with(region(0, 0));
    let shown = show(&bytes(&table));
    assert!(shown.text.contains("L08 error at offset 0x30"), "{}", shown.text);
    assert!(shown.text.contains("L26 error at offset 0x40"), "{}", shown.text);
    assert!(!shown.clean);
}

#[test]
fn a_table_without_units_is_named() {
    let shown = show(&bytes(&OwnedDmar::new(39).flags(TableFlags::INTR_REMAP)));
    assert!(shown.text.contains("L07 error at offset 0x30"), "{}", shown.text);
}

#[test]
fn a_structure_of_length_zero_ends_the_text_instead_of_the_program() {
    let mut table = bytes(&every_type());
    table[0x32] = 0;
    table[0x33] = 0;
    let shown = show(&table);
    assert!(shown.text.contains("Unreadable: L03 at offset 0x30"), "{}", shown.text);
    assert!(shown.text.contains("no device counts as contained"));
}

#[test]
fn control_characters_of_the_firmware_do_not_reach_the_terminal() {
    let mut table = every_type();
    table.oem_id = *b"\x1b[31mX";
    assert!(!show(&bytes(&table)).text.contains('\x1b'));
}

#[test]
fn json_says_what_the_text_says() {
    let value = show_json(&bytes(&every_type()));
    assert_eq!(value["schema"], 1);
    assert_eq!(value["clean"], true);
    assert_eq!(value["table"]["host_address_bits"], 46);
    let structures = value["table"]["structures"].as_array().expect("a list");
    assert_eq!(structures.len(), 9);
    assert_eq!(structures[0]["register_base"], "0xd37fc000");
    assert_eq!(structures[0]["scopes"][0]["path"][1], "00.1");
    assert_eq!(structures[1]["scopes"][2]["device_name"], "\\_SB.PCI0.I2C0");
    assert_eq!(structures[7]["scopes"][0]["flags"]["raw"], 0x1c);
    assert_eq!(structures[8]["bytes"], "77000800deadbeef");
    assert_eq!(value["findings"][0]["rule"], "L24");
}

#[test]
fn json_of_nothing_has_no_table_but_a_finding() {
    let value = show_json(b"nothing");
    assert!(value["table"].is_null());
    assert_eq!(value["findings"][0]["rule"], "L41");
    assert_eq!(value["clean"], false);
}

/// Real tables are not in the repository: `PORTCULLIS_SAMPLES` names the folder that has them under `dmar/`.
#[test]
fn every_real_table_is_shown_whole() {
    let Some(root) = std::env::var_os("PORTCULLIS_SAMPLES") else {
        // Not with `eprintln`, whose output the test harness hides when the test passes.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED every_real_table_is_shown_whole: PORTCULLIS_SAMPLES is not set"
        );
        return;
    };
    let folder = std::path::Path::new(&root).join("dmar");
    let mut tables = 0;
    for entry in std::fs::read_dir(&folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.extension().is_none_or(|extension| extension != "bin") {
            continue;
        }
        let table = std::fs::read(&path).expect("readable");
        let shown = show(&table);
        assert!(!shown.text.contains("Unreadable"), "{}", path.display());
        let units = shown.text.matches("Remapping unit ").count();
        let value = show_json(&table);
        let structures = value["table"]["structures"].as_array().expect("a list");
        let drhds = structures.iter().filter(|structure| structure["type"] == 0).count();
        assert_eq!(units, drhds, "{}", path.display());
        assert_eq!(value["table"]["complete"], true, "{}", path.display());
        assert_eq!(value["clean"], shown.clean, "{}", path.display());
        tables += 1;
    }
    assert!(tables >= 60, "only {tables} tables");
}
