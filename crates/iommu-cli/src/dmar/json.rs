//! The JSON. Keys are only added between versions, never renamed; numbers are numbers, addresses hexadecimal text.

use acpi_dmar::lint::Report;
use acpi_dmar::{DeviceScope, Dmar, Malformed, ScopeType, Structure, StructureType};
use serde_json::{Map, Value, json};

use super::{References, Table};

/// Grows when a key changes its meaning.
pub(super) const SCHEMA: u32 = 1;

/// A table as far as it can be read, and the findings.
pub(crate) fn show_json(table: &Table) -> Value {
    let report = super::judge(table);
    let mut value = json!({
        "schema": SCHEMA,
        "clean": super::is_clean(&report),
        "table": Value::Null,
        "findings": findings(&report),
        "not_judged": not_judged(&report),
    });
    if let (Ok(table), Some(object)) = (Dmar::inspect(&table.bytes), value.as_object_mut()) {
        object.insert("table".into(), table_json(table));
    }
    value
}

/// The rules whose input is missing.
pub(super) fn not_judged(report: &Report) -> Vec<Value> {
    let one = |missing: &acpi_dmar::lint::NotJudged| {
        json!({
            "rule": missing.rule.id(),
            "title": missing.rule.title(),
            "needs": missing.needs.to_string(),
        })
    };
    report.not_judged.iter().map(one).collect()
}

pub(super) fn findings(report: &Report) -> Vec<Value> {
    let one = |finding: &acpi_dmar::lint::Finding| {
        json!({
            "rule": finding.rule.id(),
            "severity": finding.severity.to_string(),
            "offset": finding.offset,
            "message": finding.message,
            "advice": finding.advice(),
        })
    };
    report.findings.iter().map(one).collect()
}

fn table_json(table: Dmar<'_>) -> Value {
    let header = table.header();
    let mut units = 0_usize;
    let references = References::new(table);
    let structures: Vec<_> = table
        .structures()
        .map(|structure| match structure {
            Ok(structure) => structure_json(&references, structure, &mut units),
            Err(malformed) => malformed_json(malformed),
        })
        .collect();
    json!({
        "length": header.length,
        "revision": header.revision,
        "checksum": header.checksum,
        "checksum_ok": table.missing_len().is_none().then(|| table.checksum_ok()),
        "oem_id": super::printable(&header.oem_id),
        "oem_table_id": super::printable(&header.oem_table_id),
        "oem_revision": header.oem_revision,
        "creator_id": super::printable(&header.creator_id),
        "creator_revision": header.creator_revision,
        "host_address_bits": table.host_address_bits(),
        "flags": { "raw": header.flags.0, "names": header.flags.names().collect::<Vec<_>>() },
        "complete": table.first_malformed().is_none(),
        "structures": structures,
    })
}

fn structure_json(references: &References<'_>, structure: Structure<'_>, units: &mut usize) -> Value {
    let kind = structure.kind();
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| {
        object.insert(key.into(), value);
    };
    put("offset", json!(structure.offset()));
    put("type", json!(kind.0));
    put("name", json!(kind.name()));
    put("length", json!(structure.bytes().len()));
    match structure {
        Structure::Drhd(unit) => {
            put("unit", json!(*units));
            *units += 1;
            put("include_pci_all", json!(unit.include_pci_all()));
            put("flags", json!(unit.flags()));
            put("register_set_bytes", json!(unit.register_set_len()));
            put("register_base", hex(unit.register_base().raw()));
            put("usable", json!(unit.has_usable_base()));
            put("proximity_domain", json!(references.nodes.get(&unit.register_base())));
        }
        Structure::Rmrr(rmrr) => {
            put("base", hex(rmrr.base().raw()));
            put("limit", hex(rmrr.limit().raw()));
            put("usable", json!(rmrr.region().is_some()));
        }
        Structure::Atsr(atsr) => put("all_ports", json!(atsr.all_ports())),
        Structure::Rhsa(rhsa) => {
            let unit = references.units.get(&rhsa.register_base());
            put("register_base", hex(rhsa.register_base().raw()));
            put("unit", json!(unit));
            put("proximity_domain", json!(rhsa.proximity_domain()));
        }
        Structure::Andd(andd) => {
            put("device_number", json!(andd.device_number()));
            put("device_name", json!(andd.name()));
        }
        Structure::Satc(satc) => put("atc_required", json!(satc.atc_required())),
        Structure::Sidp(_) => {}
        _ => put("bytes", json!(dump(structure.bytes()))),
    }
    if let Some((segment, scopes)) = structure.scope_list() {
        put("segment", json!(segment.0));
        let scopes: Vec<_> = scopes
            .map(|scope| match scope {
                Ok(scope) => scope_json(references, kind, scope),
                Err(malformed) => malformed_json(malformed),
            })
            .collect();
        put("scopes", json!(scopes));
    }
    Value::Object(object)
}

fn scope_json(references: &References<'_>, within: StructureType, scope: DeviceScope<'_>) -> Value {
    let kind = scope.kind();
    let name = match kind {
        ScopeType::ENDPOINT => Some("endpoint"),
        ScopeType::SUB_HIERARCHY => Some("sub_hierarchy"),
        ScopeType::IO_APIC => Some("io_apic"),
        ScopeType::HPET => Some("hpet"),
        ScopeType::NAMESPACE => Some("namespace"),
        _ => None,
    };
    let path: Vec<_> = scope.path().map(|hop| hop.to_string()).collect();
    let mut value = json!({
        "offset": scope.offset(),
        "type": kind.0,
        "name": name,
        "enumeration_id": scope.enumeration_id(),
        "start_bus": scope.start_bus(),
        "path": path,
    });
    let Some(object) = value.as_object_mut() else {
        return value;
    };
    if within == StructureType::SIDP {
        let names: Vec<_> = scope.flags().names().collect();
        object.insert("flags".into(), json!({ "raw": scope.flags().0, "names": names }));
    }
    if kind == ScopeType::NAMESPACE {
        let device = references.names.get(&scope.enumeration_id());
        object.insert("device_name".into(), json!(device));
    }
    if name.is_none() {
        object.insert("bytes".into(), json!(dump(scope.bytes())));
    }
    value
}

fn malformed_json(malformed: Malformed) -> Value {
    json!({
        "offset": malformed.offset,
        "unreadable": malformed.rule.id(),
        "message": malformed.to_string(),
    })
}

fn hex(address: u64) -> Value {
    json!(format!("{address:#x}"))
}

fn dump(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
