//! The first steps: the table, the units it names, the functions and who serves them.

use acpi_dmar::lint::{self, Machine as LintMachine};
use acpi_dmar::{Dmar, Severity};
use iommu_vfio::{GroupInfo, Platform};
use soft_platform::Machine;
use vtd_model::Counters;

use super::dma_api::LIST;
use super::guests::{self, Guest};
use super::kind::Kind;
use super::outcome::{ComparisonRow, DifferenceRow, Outcome};
use super::transcript::Transcript;
use crate::exit::Failure;
use crate::{size, style};

/// Findings that are shown in a run; `iommu dmar show` has them all.
const SHOWN_FINDINGS: usize = 6;
/// Cells that are not as they were kept and that the last line names; all have a line of their own.
const SHOWN_CHANGES: usize = 4;

/// Step: read and check the table.
pub(crate) fn table(transcript: &mut Transcript, bytes: &[u8], origin: &str) -> Result<(), Failure> {
    transcript.step("Firmware: the DMAR table is read and checked")?;
    let table = Dmar::parse(bytes).map_err(|why| Failure::Input(format!("{origin}: {why}")))?;
    transcript.line(&format!(
        "{origin}: {} bytes, {} address bits, checksum {}",
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
    let worth: Vec<_> = report
        .findings
        .iter()
        .filter(|f| f.severity != Severity::Info)
        .collect();
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
        let node = unit
            .node
            .map_or("no RHSA".to_owned(), |node| format!("structures on node {node}"));
        let rest = if unit.include_pci_all {
            ", serves what no other unit names"
        } else {
            ""
        };
        transcript.line(&format!(
            "unit {} at {}, segment {}, {node}{rest}",
            unit.index, unit.base, unit.segment
        ))?;
    }
    for refused in machine.refused_units() {
        transcript.line(&format!("{refused}"))?;
    }
    Ok(())
}

/// Step: the functions and who serves each.
pub(crate) fn functions(
    transcript: &mut Transcript,
    machine: &Machine,
    kind: Kind,
    notes: &[String],
) -> Result<(), Failure> {
    let units_used = kind == Kind::Vtd;
    if units_used {
        transcript.step("Functions: the unit that serves each, explicit scopes first")?;
    } else {
        let kind = kind.name();
        transcript.step(&format!(
            "Functions: none is served, with --iommu {kind} the units of the table are not used"
        ))?;
    }
    let width = machine.functions().map(|f| f.name.chars().count()).max().unwrap_or(0);
    for function in machine.functions() {
        let served = if units_used {
            function.service.to_string()
        } else {
            String::new()
        };
        let unsaid = function.synthetic && !function.name.starts_with("synthetic");
        let synthetic = if unsaid { " (synthetic)" } else { "" };
        let line = format!("{} {:width$}{synthetic}  {served}", function.bdf, function.name);
        transcript.line(line.trim_end())?;
    }
    for note in notes {
        transcript.line(&format!("assumed: {note}"))?;
    }
    Ok(())
}

/// Step: the groups with their reasons.
pub(crate) fn groups(transcript: &mut Transcript, platform: &Platform) -> Result<Vec<GroupInfo>, Failure> {
    transcript.step("Groups: functions that nothing keeps apart")?;
    let groups = platform.groups();
    for group in &groups {
        let members: Vec<String> = group.members.iter().map(|bdf| bdf.source.to_string()).collect();
        transcript.line(&format!("group {:<3} {}", group.id, members.join(" ")))?;
        for reason in &group.reasons {
            transcript.line(&format!("          {reason}"))?;
        }
    }
    Ok(groups)
}

/// Step: what the driver did to every unit.
pub(crate) fn bring_up(transcript: &mut Transcript, platform: &Platform) -> Result<(), Failure> {
    transcript.step("Driver: every unit taken over, everything blocked that nobody was given")?;
    let report = platform.report();
    for unit in &report.units {
        transcript.line(&unit.to_string())?;
    }
    for region in &report.regions {
        transcript.line(&region.to_string())?;
    }
    Ok(())
}

/// A guest, as it was set up.
pub(crate) fn guest(transcript: &Transcript, platform: &Platform, guest: &Guest) -> Result<(), Failure> {
    let numbers: Vec<String> = guest.groups.iter().map(|group| group.id.to_string()).collect();
    let functions: Vec<String> = guest
        .groups
        .iter()
        .flat_map(|group| guests::endpoints(platform, group))
        .map(|bdf| bdf.source.to_string())
        .collect();
    transcript.line(&format!(
        "{}: groups {}, devices {}",
        guest.name,
        numbers.join(" "),
        functions.join(" ")
    ))?;
    let memory = guest.memory.memory();
    let first = guest
        .translate(0)
        .map_or_else(|| "nowhere".to_owned(), |at| at.to_string());
    transcript.line(&format!(
        "         {} of memory in {} runs; guest address 0x0 is host address {first}",
        size::show(memory.len()),
        memory.extents().len()
    ))
}

/// What a unit has done, in one line.
pub(crate) fn counters(counters: &Counters) -> String {
    let (walks, reads) = (&counters.walks, &counters.walks.reads);
    format!(
        "{} requests, IOTLB {} hits and {} misses, {} table reads, {} blocked",
        counters.requests,
        walks.iotlb.hits,
        walks.iotlb.misses,
        reads.root + reads.context + reads.second_stage,
        counters.blocked
    )
}

/// The closing table: kinds of IOMMU side by side.
pub(crate) fn comparison(transcript: &mut Transcript, rows: &[ComparisonRow]) -> Result<(), Failure> {
    transcript.step("The same work side by side: without IOMMU, through a classic aperture, through VT-d")?;
    let line = |what: &str, value: &dyn Fn(&ComparisonRow) -> String| {
        let values: Vec<String> = rows.iter().map(|row| format!("{:>14}", value(row))).collect();
        transcript.line(format!("{what:<44}{}", values.concat()).trim_end())
    };
    line("", &|row| row.iommu.to_owned())?;
    line("cells of the matrix reached", &|row| row.cells_allowed.to_string())?;
    line("cells of the matrix blocked", &|row| row.cells_blocked.to_string())?;
    line("forbidden accesses blocked", &|row| match row.forbidden_tried {
        0 => "–".to_owned(),
        tried => format!("{} of {tried}", row.forbidden_blocked),
    })?;
    line("blocked accesses recorded", &|row| row.faults_recorded.to_string())?;
    // Without a list of its own nothing was shown with the DMA API: no function was left for it.
    let worked = |row: &ComparisonRow, value: u64| match row.scatter_pages {
        0 => "–".to_owned(),
        _ => value.to_string(),
    };
    let list = format!("segments of a list of {LIST} pages");
    line(&list, &|row| worked(row, row.scatter_segments))?;
    line("bytes bounced for a 32-bit function", &|row| {
        worked(row, row.bytes_bounced)
    })?;
    line("waits for the hardware to forget", &|row| {
        worked(row, row.invalidations)
    })?;
    line("DMAs issued", &|row| row.dmas.to_string())
}

/// What is not as it was kept.
pub(crate) fn differences(transcript: &Transcript, differences: &[DifferenceRow]) -> Result<(), Failure> {
    if differences.is_empty() {
        return Ok(());
    }
    transcript.line("")?;
    for difference in differences {
        transcript.line(&format!(
            "{} {} {}: kept {}, now {}",
            style::bad("CHANGED"),
            difference.requester,
            difference.target,
            difference.kept.unwrap_or("not there"),
            difference.seen.unwrap_or("not there")
        ))?;
    }
    Ok(())
}

/// The last lines.
pub(crate) fn verdict(transcript: &Transcript, outcome: &Outcome) -> Result<(), Failure> {
    let summary = &outcome.summary;
    let forbidden = summary.forbidden;
    let result = match (summary.as_predicted, outcome.iommu == Kind::Vtd.name()) {
        (true, true) => style::good("as groups and mappings predict"),
        (true, false) => style::doubt("as predicted: nothing is protected"),
        (false, _) => style::bad("NOT as predicted"),
    };
    transcript.block(&format!(
        "{}: {} moved in {:.2} s; {} of {} forbidden accesses blocked, {} logged.\n",
        result,
        size::show(summary.bytes_moved),
        summary.seconds,
        forbidden.blocked,
        forbidden.tried,
        forbidden.logged
    ))?;
    match outcome.differences.as_deref() {
        None => Ok(()),
        Some([]) => transcript.bare(&format!("{}\n", style::good("as the kept matrix has it"))),
        Some(changed) => transcript.bare(&format!(
            "{}: {}.\n",
            style::bad("NOT as the kept matrix has it"),
            changes(changed)
        )),
    }
}

/// How many cells are not as they were kept, and the first of them.
fn changes(changed: &[DifferenceRow]) -> String {
    let cells: Vec<String> = changed
        .iter()
        .take(SHOWN_CHANGES)
        .map(|change| format!("{} {}", change.requester, change.target))
        .collect();
    let more = match changed.len().saturating_sub(SHOWN_CHANGES) {
        0 => String::new(),
        more => format!(" and {more} more, marked CHANGED above"),
    };
    let differ = match changed.len() {
        1 => "1 cell differs".to_owned(),
        many => format!("{many} cells differ"),
    };
    format!("{differ}: {}{more}", cells.join(", "))
}
