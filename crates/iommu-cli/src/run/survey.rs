//! The first steps: the table, the units it names, the functions and who serves them.

use acpi_dmar::lint::{self, Machine as LintMachine};
use acpi_dmar::{Dmar, Severity};
use soft_platform::{Machine, Service};

use super::transcript::Transcript;
use crate::exit::Failure;

/// Findings that are shown in a run; `iommu dmar show` has them all.
const SHOWN_FINDINGS: usize = 6;

/// Step: read and check the table.
pub(crate) fn table(transcript: &mut Transcript, bytes: &[u8], origin: &str) -> Result<(), Failure> {
    transcript.step("Firmware: the DMAR table is read and checked")?;
    let table = Dmar::parse(bytes).map_err(|why| Failure::Input(format!("{origin}: {why}")))?;
    transcript.line(&format!(
        "{origin}: {} bytes, {} addresses bits, checksum {}",
        table.bytes().len(),
        table.host_address_bits(),
        if table.checksum_ok() { "good" } else { "BAD" },
    ))?;
    transcript.line(&format!(
        "{} DRHD, {} RMRR, {} ATSR, {} RHSA, {} ANDD, {} SATC, {} SIDP",
        table.units().count(),
        table.rmrrs().count(),
        table.atsrs().count(),
        table.rhsas().count(),
        table.andds().count(),
        table.satcs().count(),
        table.sidps().count(),
    ))?;
    let report = lint::lint_bytes(bytes, &LintMachine::default());
    let worth: Vec<_> = report.findings.iter().filter(|f| f.severity != Severity::Info).collect();
    for finding in worth.iter().take(SHOWN_FINDINGS) {
        transcript.line(&format!("{finding}"))?;
    }
    if worth.len() > SHOWN_FINDINGS {
        transcript.line(&format!("… and {} more: iommu dmar show", worth.len() - SHOWN_FINDINGS))?;
    }
    Ok(())
}

/// Step: the units.
pub(crate) fn units(transcript: &mut Transcript, machine: &Machine) -> Result<(), Failure> {
    transcript.step("Units: one in software for each DRHD structure")?;
    for unit in machine.units() {
        let node = unit.node.map_or("no RHSA".to_owned(), |node| format!("structures on node {node}"));
        let rest = if unit.include_pci_all { ", serves what no other unit names" } else { "" };
        transcript.line(&format!("unit {} at {}, segment {}, {node}{rest}", unit.index, unit.base, unit.segment))?;
    }
    for refused in machine.refused_units() {
        transcript.line(&format!("{refused}"))?;
    }
    Ok(())
}

/// Step: the functions and who serves each.
pub(crate) fn functions(transcript: &mut Transcript, machine: &Machine) -> Result<(), Failure> {
    transcript.step("Functions: the unit that serves each, explicit scopes first")?;
    let width = machine.functions().map(|f| f.name.chars().count()).max().unwrap_or(0);
    for function in machine.functions() {
        let served = match function.service {
            Service::Unit(index, why) => format!("unit {index}: {why}"),
            other => other.to_string(),
        };
        let synthetic = if function.synthetic { " (synthetic)" } else { "" };
        transcript.line(&format!("{} {:width$}{synthetic}  {served}", function.bdf, function.name))?;
    }
    Ok(())
}
