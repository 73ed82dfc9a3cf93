//! `iommu dmar show`: a DMAR table decoded, and what is wrong with it.

mod json;
mod text;

use std::collections::BTreeMap;

use acpi_dmar::lint::{self, Machine, Report};
use acpi_dmar::{Dmar, Severity};
use iommu_types::HostPhys;

pub(crate) use json::show_json;

/// A table as people read it.
#[derive(Debug)]
pub(crate) struct Shown {
    /// The text, ending in a newline.
    pub(crate) text: String,
    /// Whether no rule found more than an information.
    pub(crate) clean: bool,
}

/// Decodes the table that `bytes` starts with, as far as it can be read, and judges it by the table alone.
pub(crate) fn show(bytes: &[u8]) -> Shown {
    let report = judge(bytes);
    let table = Dmar::inspect(bytes).ok();
    Shown {
        text: text::render(table, &report),
        clean: is_clean(&report),
    }
}

fn judge(bytes: &[u8]) -> Report {
    lint::lint_bytes(bytes, &Machine::default())
}

fn is_clean(report: &Report) -> bool {
    report.worst().is_none_or(|worst| worst == Severity::Info)
}

/// What structures say about each other, collected once: a hostile table may hold a million of each.
struct References<'a> {
    /// Index of the first unit with a register base.
    units: BTreeMap<HostPhys, usize>,
    /// Proximity domain by register base.
    nodes: BTreeMap<HostPhys, u32>,
    /// Names of the namespace devices by number.
    names: BTreeMap<u8, &'a str>,
}

impl<'a> References<'a> {
    fn new(table: Dmar<'a>) -> Self {
        let mut units = BTreeMap::new();
        for (index, unit) in table.units().enumerate() {
            units.entry(unit.register_base()).or_insert(index);
        }
        let mut nodes = BTreeMap::new();
        for rhsa in table.rhsas() {
            nodes.entry(rhsa.register_base()).or_insert(rhsa.proximity_domain());
        }
        let mut names = BTreeMap::new();
        for andd in table.andds() {
            if let Some(name) = andd.name() {
                names.entry(andd.device_number()).or_insert(name);
            }
        }
        Self { units, nodes, names }
    }
}

/// Text of the firmware: without the NULs that pad it, and nothing in it that a terminal would obey.
fn printable(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text = bytes.get(..end).unwrap_or(bytes);
    text.iter().fold(String::new(), |mut plain, byte| {
        if matches!(byte, b' '..=b'~') {
            plain.push(char::from(*byte));
        } else {
            plain.push_str(&format!("\\x{byte:02x}"));
        }
        plain
    })
}

#[cfg(test)]
mod tests;
