//! The text. Field names are those of `iasl -d`, so that the two can be compared line by line.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};

use acpi_dmar::lint::Report;
use acpi_dmar::{
    Andd, Atsr, DeviceScope, Dmar, Drhd, PathEnd, Rhsa, Rmrr, Rule, Satc, ScopeFlags, ScopeType, Severity, Sidp,
    Structure, StructureType, TableFlags, Unknown,
};
use iommu_groups::Topology;
use iommu_host::{Buses, Machine};
use iommu_types::Segment;

use super::References;
use crate::host::{Names, count, short};
use crate::style;

/// What a flag of the table means, in a few words.
const TABLE_FLAGS: [(TableFlags, &str, &str); 3] = [
    (
        TableFlags::INTR_REMAP,
        "INTR_REMAP",
        "the platform supports interrupt remapping",
    ),
    (
        TableFlags::X2APIC_OPT_OUT,
        "X2APIC_OPT_OUT",
        "the firmware asks not to enable x2APIC",
    ),
    (
        TableFlags::DMA_CTRL_PLATFORM_OPT_IN,
        "DMA_CTRL_PLATFORM_OPT_IN",
        "the platform's own DMA stays inside RMRRs at hand-over",
    ),
];

/// The bytes in one line of a hex dump.
const DUMP_WIDTH: usize = 16;

/// The table, if there is one, and the findings. With a machine, scopes name its functions.
pub(super) fn render(table: Option<Dmar<'_>>, report: &Report, machine: Option<(&Machine, &Names)>) -> String {
    let mut page = Page {
        machine: machine.map(|(machine, names)| (machine, names, machine.topology())),
        ..Page::default()
    };
    // Writing to a string cannot fail.
    let _ = page.write(table, report);
    page.text
}

#[derive(Default)]
struct Page<'m> {
    text: String,
    /// Units so far: their index is what other output calls them by.
    units: usize,
    /// The machine, its names, and its buses.
    machine: Option<(&'m Machine, &'m Names, Topology)>,
}

impl Page<'_> {
    fn write(&mut self, table: Option<Dmar<'_>>, report: &Report) -> fmt::Result {
        if let Some(table) = table {
            self.header(table)?;
            let references = References::new(table);
            for structure in table.structures() {
                writeln!(self.text)?;
                match structure {
                    Ok(structure) => self.structure(&references, structure)?,
                    Err(malformed) => writeln!(self.text, "Unreadable: {malformed}")?,
                }
            }
            self.trailing(table)?;
            writeln!(self.text)?;
        }
        self.findings(report)
    }

    fn field(&mut self, offset: usize, name: &str, value: impl Display) -> fmt::Result {
        writeln!(self.text, "  {offset:#06x} {name:>22} : {value}")
    }

    /// A line that explains the field above it.
    fn note(&mut self, note: impl Display) -> fmt::Result {
        writeln!(self.text, "  {:6} {:22}   {note}", "", "")
    }

    fn header(&mut self, table: Dmar<'_>) -> fmt::Result {
        let header = table.header();
        writeln!(self.text, "{}", style::title("DMA Remapping table (DMAR)"))?;
        self.field(0, "Signature", "\"DMAR\"")?;
        let missing = match table.missing_len() {
            Some(_) => format!(", of which only {} are here", table.bytes().len()),
            None => String::new(),
        };
        let length = header.length;
        self.field(
            4,
            "Table Length",
            format_args!("{length:08X} [{length} bytes{missing}]"),
        )?;
        self.field(8, "Revision", format_args!("{:02X}", header.revision))?;
        let sum = match (table.missing_len(), table.checksum_ok()) {
            (Some(_), _) => "cannot be checked",
            (None, true) => "correct",
            (None, false) => "WRONG",
        };
        let sum = if sum == "WRONG" {
            style::bad(sum)
        } else {
            style::plainly(sum)
        };
        self.field(9, "Checksum", format_args!("{:02X} [{sum}]", header.checksum))?;
        self.field(10, "Oem ID", quoted(&header.oem_id))?;
        self.field(16, "Oem Table ID", quoted(&header.oem_table_id))?;
        self.field(24, "Oem Revision", format_args!("{:08X}", header.oem_revision))?;
        self.field(28, "Asl Compiler ID", quoted(&header.creator_id))?;
        self.field(
            32,
            "Asl Compiler Revision",
            format_args!("{:08X}", header.creator_revision),
        )?;
        let bits = table.host_address_bits();
        self.field(
            36,
            "Host Address Width",
            format_args!("{:02X} [{bits} bits]", header.host_address_width),
        )?;
        self.field(37, "Flags", format_args!("{:02X}", header.flags.0))?;
        for (flag, name, meaning) in TABLE_FLAGS {
            if header.flags.contains(flag) {
                self.note(format_args!("{name}: {meaning}"))?;
            } else if flag == TableFlags::INTR_REMAP {
                self.note(format_args!("not {name}: interrupts cannot be remapped"))?;
            }
        }
        if header.flags.reserved() != 0 {
            self.note(format_args!("reserved bits {:#04x}", header.flags.reserved()))?;
        }
        Ok(())
    }

    fn structure(&mut self, references: &References<'_>, structure: Structure<'_>) -> fmt::Result {
        match structure {
            Structure::Drhd(unit) => self.drhd(references, unit),
            Structure::Rmrr(rmrr) => self.rmrr(rmrr),
            Structure::Atsr(atsr) => self.atsr(atsr),
            Structure::Rhsa(rhsa) => self.rhsa(references, rhsa),
            Structure::Andd(andd) => self.andd(andd),
            Structure::Satc(satc) => self.satc(satc),
            Structure::Sidp(sidp) => self.sidp(sidp),
            Structure::Unknown(unknown) => self.unknown(unknown),
            other => self.dump(other.offset(), other.bytes()),
        }?;
        match structure.scope_list() {
            Some((segment, _)) => self.scopes(references, structure, segment),
            None => Ok(()),
        }
    }

    /// What every structure starts with.
    fn start(&mut self, offset: usize, kind: StructureType, bytes: &[u8], title: impl Display) -> fmt::Result {
        writeln!(self.text, "{}", style::title(title.to_string()))?;
        self.field(
            offset,
            "Subtable Type",
            format_args!("{:04X} [{}]", kind.0, kind.title()),
        )?;
        self.field(
            offset + 2,
            "Length",
            format_args!("{:04X} [{} bytes]", bytes.len(), bytes.len()),
        )
    }

    fn segment(&mut self, offset: usize, segment: Segment) -> fmt::Result {
        self.field(offset + 6, "PCI Segment Number", format_args!("{:04X}", segment.0))
    }

    fn drhd(&mut self, references: &References<'_>, unit: Drhd<'_>) -> fmt::Result {
        let offset = unit.offset();
        let title = format!("Remapping unit {} (DRHD)", self.units);
        self.units += 1;
        self.start(offset, StructureType::DRHD, unit.bytes(), title)?;
        self.field(offset + 4, "Flags", format_args!("{:02X}", unit.flags()))?;
        if unit.include_pci_all() {
            self.note("INCLUDE_PCI_ALL: serves every PCI device of the segment that no other unit lists")?;
        } else if unit.scopes().next().is_none() {
            self.note("neither INCLUDE_PCI_ALL nor any device: Linux ignores the unit")?;
        } else {
            self.note("serves exactly the devices listed below")?;
        }
        let kib = unit.register_set_len() / 1024;
        self.field(
            offset + 5,
            "Size",
            format_args!("{:02X} [{kib} KiB of registers]", unit.size()),
        )?;
        self.segment(offset, unit.segment())?;
        self.field(
            offset + 8,
            "Register Base Address",
            format_args!("{:016X}", unit.register_base().raw()),
        )?;
        if !unit.has_usable_base() {
            let words = "NOT USABLE: no unit can be there, so its devices are not contained";
            self.note(style::bad(words))?;
        }
        match references.nodes.get(&unit.register_base()) {
            Some(node) => self.note(format_args!("on proximity domain {node}, says an RHSA")),
            None => Ok(()),
        }
    }

    fn rmrr(&mut self, rmrr: Rmrr<'_>) -> fmt::Result {
        let offset = rmrr.offset();
        self.start(
            offset,
            StructureType::RMRR,
            rmrr.bytes(),
            "Reserved memory region (RMRR)",
        )?;
        self.segment(offset, rmrr.segment())?;
        self.field(offset + 8, "Base Address", format_args!("{:016X}", rmrr.base().raw()))?;
        let size = match rmrr.region() {
            Some(region) => match region.len() {
                Some(bytes) => format!("last byte; {} KiB", bytes / 1024),
                None => "last byte; the whole address space".into(),
            },
            None => "NOT USABLE: not a region".into(),
        };
        self.field(
            offset + 16,
            "End Address (limit)",
            format_args!("{:016X} [{size}]", rmrr.limit().raw()),
        )
    }

    fn atsr(&mut self, atsr: Atsr<'_>) -> fmt::Result {
        let offset = atsr.offset();
        self.start(offset, StructureType::ATSR, atsr.bytes(), "Root ports with ATS (ATSR)")?;
        self.field(offset + 4, "Flags", format_args!("{:02X}", atsr.flags()))?;
        self.note(if atsr.all_ports() {
            "ALL_PORTS: every root port of the segment supports ATS"
        } else {
            "the root ports listed below support ATS"
        })?;
        self.segment(offset, atsr.segment())
    }

    fn rhsa(&mut self, references: &References<'_>, rhsa: Rhsa<'_>) -> fmt::Result {
        let offset = rhsa.offset();
        self.start(offset, StructureType::RHSA, rhsa.bytes(), "Node of a unit (RHSA)")?;
        self.field(
            offset + 8,
            "Base Address",
            format_args!("{:016X}", rhsa.register_base().raw()),
        )?;
        match references.units.get(&rhsa.register_base()) {
            Some(index) => self.note(format_args!("unit {index}"))?,
            None => self.note("no unit of this table")?,
        }
        self.field(
            offset + 16,
            "Proximity Domain",
            format_args!("{:08X}", rhsa.proximity_domain()),
        )
    }

    fn andd(&mut self, andd: Andd<'_>) -> fmt::Result {
        let offset = andd.offset();
        self.start(
            offset,
            StructureType::ANDD,
            andd.bytes(),
            "ACPI namespace device (ANDD)",
        )?;
        self.field(
            offset + 7,
            "Device Number",
            format_args!("{:02X}", andd.device_number()),
        )?;
        match andd.name() {
            Some(name) => self.field(offset + 8, "Device Name", quoted(name.as_bytes())),
            None => self.field(
                offset + 8,
                "Device Name",
                format_args!("{} [no name]", quoted(andd.name_bytes())),
            ),
        }
    }

    fn satc(&mut self, satc: Satc<'_>) -> fmt::Result {
        let offset = satc.offset();
        self.start(
            offset,
            StructureType::SATC,
            satc.bytes(),
            "Integrated endpoints with ATS (SATC)",
        )?;
        self.field(offset + 4, "Flags", format_args!("{:02X}", satc.flags()))?;
        self.note(if satc.atc_required() {
            "ATC_REQUIRED: the devices do not work without ATS"
        } else {
            "the devices work without ATS as well"
        })?;
        self.segment(offset, satc.segment())
    }

    fn sidp(&mut self, sidp: Sidp<'_>) -> fmt::Result {
        let offset = sidp.offset();
        self.start(
            offset,
            StructureType::SIDP,
            sidp.bytes(),
            "Properties of integrated devices (SIDP)",
        )?;
        self.segment(offset, sidp.segment())
    }

    fn unknown(&mut self, unknown: Unknown<'_>) -> fmt::Result {
        let offset = unknown.offset();
        self.start(
            offset,
            unknown.kind(),
            unknown.bytes(),
            "Unknown structure, kept and skipped",
        )?;
        self.dump(offset + 4, unknown.body())
    }

    fn scopes(&mut self, references: &References<'_>, structure: Structure<'_>, segment: Segment) -> fmt::Result {
        let Some((_, scopes)) = structure.scope_list() else {
            return Ok(());
        };
        for scope in scopes {
            match scope {
                Ok(scope) if scope.kind().name().is_some() => {
                    let entry = Entry {
                        names: &references.names,
                        segment,
                        scope,
                    };
                    self.field(scope.offset(), "Device Scope", entry)?;
                    self.function(segment, scope)?;
                    if structure.kind() == StructureType::SIDP {
                        self.scope_flags(scope.flags())?;
                    }
                }
                Ok(scope) => {
                    self.field(scope.offset(), "Device Scope", format_args!("[{}]", scope.kind()))?;
                    self.dump(scope.offset(), scope.bytes())?;
                }
                Err(malformed) => writeln!(self.text, "  Unreadable: {malformed}")?,
            }
        }
        Ok(())
    }

    /// What is there on the machine.
    fn function(&mut self, segment: Segment, scope: DeviceScope<'_>) -> fmt::Result {
        if !scope.kind().is_pci() {
            return Ok(());
        }
        let Some((machine, names, topology)) = &self.machine else {
            return Ok(());
        };
        let note = match scope.resolve(segment, &Buses(topology)) {
            PathEnd::At(bdf) if machine.functions.contains_key(&bdf) => {
                format!("{} {}", short(bdf), names.label(machine, bdf))
            }
            _ => return Ok(()),
        };
        self.note(note)
    }

    fn scope_flags(&mut self, flags: ScopeFlags) -> fmt::Result {
        let names: Vec<_> = flags.names().collect();
        let names = if names.is_empty() {
            "none".into()
        } else {
            names.join(", ")
        };
        self.note(format_args!("flags {:02X}: {names}", flags.0))
    }

    fn dump(&mut self, offset: usize, bytes: &[u8]) -> fmt::Result {
        for (line, at) in bytes.chunks(DUMP_WIDTH).zip((offset..).step_by(DUMP_WIDTH)) {
            write!(self.text, "  {at:#06x} {:>22} :", "")?;
            for byte in line {
                write!(self.text, " {byte:02X}")?;
            }
            writeln!(self.text)?;
        }
        Ok(())
    }

    fn trailing(&mut self, table: Dmar<'_>) -> fmt::Result {
        let trailing = table.trailing();
        if trailing.is_empty() {
            return Ok(());
        }
        writeln!(self.text, "\nAfter the last structure")?;
        self.dump(table.bytes().len() - trailing.len(), trailing)
    }

    fn findings(&mut self, report: &Report) -> fmt::Result {
        findings(&mut self.text, report)?;
        not_judged(&mut self.text, report)
    }
}

/// The findings with their advice.
pub(super) fn findings(text: &mut String, report: &Report) -> fmt::Result {
    let number = |severity| report.findings.iter().filter(|f| f.severity == severity).count();
    writeln!(
        text,
        "Findings: {}, {}, {} for information",
        count(number(Severity::Error), "error"),
        count(number(Severity::Warning), "warning"),
        number(Severity::Info)
    )?;
    for finding in &report.findings {
        let line = finding.to_string();
        let (head, what) = line.split_once(": ").unwrap_or((&line, ""));
        let head = match finding.severity {
            Severity::Error => style::bad(head),
            Severity::Warning => style::doubt(head),
            Severity::Info => style::plainly(head),
        };
        let start = line.len() - what.len() + 2;
        writeln!(text, "  {head}: {}", style::paragraph(what, start, 6))?;
        writeln!(text, "      {}", style::paragraph(finding.advice(), 6, 6))?;
    }
    let unreadable = |rule| {
        matches!(
            rule,
            Rule::TableTruncated | Rule::StructureTooShort | Rule::StructureOverrun | Rule::StructureBelowType
        )
    };
    if report.findings.iter().any(|finding| unreadable(finding.rule)) {
        writeln!(
            text,
            "The table could not be read to its end: which unit serves a device is unknown, and no device counts as contained."
        )?;
    }
    Ok(())
}

/// The rules whose input is missing, by what they need.
pub(super) fn not_judged(text: &mut String, report: &Report) -> fmt::Result {
    if report.not_judged.is_empty() {
        return Ok(());
    }
    writeln!(text, "Not judged, because it takes more than is known here:")?;
    for missing in &report.not_judged {
        writeln!(
            text,
            "  {} {} (needs {})",
            missing.rule,
            missing.rule.title(),
            missing.needs
        )?;
    }
    Ok(())
}

/// A scope entry, as `[endpoint] 0000:00:1c.0 path 1c.0 00.0`.
struct Entry<'a> {
    names: &'a BTreeMap<u8, &'a str>,
    segment: Segment,
    scope: DeviceScope<'a>,
}

impl Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scope = self.scope;
        let id = scope.enumeration_id();
        match scope.kind() {
            ScopeType::IO_APIC => write!(f, "[I/O APIC id {id}]")?,
            ScopeType::HPET => write!(f, "[HPET {id}]")?,
            ScopeType::NAMESPACE => {
                write!(f, "[ACPI device {id}")?;
                if let Some(name) = self.names.get(&id) {
                    write!(f, " {}", super::printable(name.as_bytes()))?;
                }
                f.write_str("]")?;
            }
            kind => write!(f, "[{kind}]")?,
        }
        write!(f, " {}:{:02x}", self.segment, scope.start_bus())?;
        if let Some(first) = scope.path().next() {
            write!(f, ":{first}")?;
        }
        f.write_str(" path")?;
        scope.path().try_for_each(|hop| write!(f, " {hop}"))
    }
}

/// Text of the firmware in quotes.
fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", super::printable(bytes))
}
