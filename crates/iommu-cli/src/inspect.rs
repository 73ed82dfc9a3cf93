//! `iommu inspect`: the units of a machine that was set up as `iommu run` sets it up, and what their tables say.
//!
//! The tables are read from the machine's memory and decoded here, and held against what was given to whom. A
//! difference between the two is a finding.

mod compare;
mod explain;
mod tables;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use iommu_types::{Bdf, DomainId, Iova};
use iommu_vfio::Platform;
use serde::Serialize;

use self::compare::{Given, show};
use self::explain::{Explained, describe};
use self::tables::{Context, Reader, Route, Run, Stage};
use crate::exit::{Failure, Verdict, print};
use crate::run::source::Wanted;
use crate::run::{SMALLEST_GUEST, SetUp, set_up};
use crate::{size, style};

/// Version of the JSON's shape.
const SCHEMA: &str = "portcullis-inspect-1";
/// Runs of one domain that are shown to people; `--json` has all.
const SHOWN: usize = 12;

/// What can be said on the command line.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A machine file; the embedded two-socket server if there is none
    machine: Option<PathBuf>,
    /// Take the machine from a firmware table: the functions that its scopes name
    #[arg(long, value_name = "FILE", conflicts_with = "machine")]
    dmar: Option<PathBuf>,
    /// Take the machine from a root folder or a snapshot: its functions, its table, what its units can do
    #[arg(long, value_name = "DIR|FILE", conflicts_with_all = ["machine", "dmar"])]
    root: Option<PathBuf>,
    /// Give these functions to the first guest, with all of their groups
    #[arg(long, value_name = "BDF", num_args = 1..)]
    assign: Vec<Bdf>,
    /// Memory of each guest
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "64M")]
    mem: u64,
    /// Assign groups although their unit does not remap interrupts
    #[arg(long)]
    unsafe_interrupts: bool,
    /// Follow one address of a function through the tables, entry by entry
    #[arg(long, num_args = 2, value_names = ["BDF", "IOVA"])]
    address: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    machine: String,
    units: Vec<UnitRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<Explained>,
    findings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct UnitRow {
    unit: usize,
    base: String,
    translating: bool,
    mode: String,
    root_table: String,
    interrupt_entries: Option<u32>,
    interrupt_entries_present: Option<u32>,
    contexts: Vec<ContextRow>,
    domains: Vec<DomainRow>,
}

#[derive(Debug, Serialize)]
struct ContextRow {
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pasid: Option<u32>,
    entry_at: String,
    domain: u16,
    says: String,
    functions: Vec<String>,
    owner: String,
}

#[derive(Debug, Serialize)]
struct DomainRow {
    domain: u16,
    table: String,
    stage: &'static str,
    levels: u8,
    requesters: Vec<String>,
    bytes: u64,
    pages_4k: u64,
    pages_2m: u64,
    pages_1g: u64,
    complete: bool,
    ranges: Vec<RangeRow>,
}

#[derive(Debug, Serialize)]
struct RangeRow {
    iova: String,
    host_address: String,
    bytes: u64,
    read: bool,
    write: bool,
    #[serde(skip)]
    text: String,
}

impl From<&Run> for RangeRow {
    fn from(run: &Run) -> Self {
        Self {
            iova: run.iova.to_string(),
            host_address: run.phys.to_string(),
            bytes: run.len,
            read: run.perms.read,
            write: run.perms.write,
            text: show(run),
        }
    }
}

/// Sets the machine up and shows it.
pub(crate) fn run(options: &Options) -> Result<Verdict, Failure> {
    if options.mem < SMALLEST_GUEST || !options.mem.is_multiple_of(4096) {
        let smallest = size::show(SMALLEST_GUEST);
        return Err(Failure::Input(format!(
            "--mem: expected whole pages, {smallest} or more"
        )));
    }
    let wanted = match options.address.as_slice() {
        [function, address] => Some((parse_function(function)?, parse_address(address)?)),
        _ => None,
    };
    let set_up = set_up(
        &Wanted {
            file: options.machine.as_deref(),
            dmar: options.dmar.as_deref(),
            root: options.root.as_deref(),
        },
        &options.assign,
        options.mem,
        options.unsafe_interrupts,
    )?;
    let mut report = look(&set_up)?;
    if let Some((function, iova)) = wanted {
        let explained = explain::explain(&set_up.platform, function, iova)
            .map_err(|why| Failure::Input(format!("--address: {why}")))?;
        report.findings.extend(explained.findings.iter().cloned());
        report.address = Some(explained);
    }
    if options.json {
        let text = serde_json::to_string_pretty(&report).map_err(|why| Failure::Measure(why.to_string()))?;
        print(&format!("{text}\n"))?;
    } else {
        print(&text(&report, &set_up))?;
    }
    Ok(if report.findings.is_empty() {
        Verdict::Yes
    } else {
        Verdict::Findings
    })
}

fn parse_function(text: &str) -> Result<Bdf, Failure> {
    text.parse()
        .map_err(|why| Failure::Input(format!("--address: {text:?}: {why}")))
}

fn parse_address(text: &str) -> Result<Iova, Failure> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(&digits.replace('_', ""), 16),
        None => text.parse(),
    };
    number.map(Iova::new).map_err(|_| {
        Failure::Input(format!(
            "--address: {text:?} is no address: expected one such as 0x10000"
        ))
    })
}

/// Reads every unit's tables.
fn look(set_up: &SetUp) -> Result<Report, Failure> {
    let SetUp {
        platform,
        guests,
        origin,
        ..
    } = set_up;
    let given = Given::new(platform, guests);
    let mut report = Report {
        schema: SCHEMA,
        machine: origin.clone(),
        units: Vec::new(),
        address: None,
        findings: Vec::new(),
    };
    for info in platform.machine().units() {
        if let Some(row) = unit(platform, &given, info.index, &mut report.findings)? {
            report.units.push(row);
        }
    }
    Ok(report)
}

fn unit(
    platform: &Platform,
    given: &Given<'_>,
    index: usize,
    findings: &mut Vec<String>,
) -> Result<Option<UnitRow>, Failure> {
    let machine = platform.machine();
    let (Some(reader), Some(info)) = (Reader::new(machine, index), machine.units().nth(index)) else {
        return Ok(None);
    };
    let header = reader.header;
    let mut row = UnitRow {
        unit: index,
        base: info.base.to_string(),
        translating: header.translating,
        mode: format!("{:?}", header.root.ttm()).to_lowercase(),
        root_table: header.root.root_table().to_string(),
        interrupt_entries: None,
        interrupt_entries_present: None,
        contexts: Vec::new(),
        domains: Vec::new(),
    };
    if !header.translating {
        findings.push(format!(
            "unit {index} does not translate: its functions reach everything"
        ));
        return Ok(Some(row));
    }
    let bad = |why: tables::NotMemory| Failure::Measure(format!("unit {index}: {why}"));
    let contexts = reader.contexts().map_err(bad)?;
    if let Some(table) = reader.interrupts().map_err(bad)? {
        row.interrupt_entries = Some(table.entries);
        row.interrupt_entries_present = Some(table.present);
    }
    let mut domains: BTreeMap<(DomainId, Route), Vec<&Context>> = BTreeMap::new();
    for context in &contexts {
        let functions = given.functions(index, context.source);
        let owners: Vec<String> = functions
            .iter()
            .map(|function| given.owner(*function).to_string())
            .collect();
        row.contexts.push(ContextRow {
            source: context.source.to_string(),
            pasid: context.pasid.map(iommu_types::Pasid::raw),
            entry_at: context.at.to_string(),
            domain: context.domain.0,
            says: describe(context),
            functions: functions.iter().map(ToString::to_string).collect(),
            owner: owners.first().cloned().unwrap_or_else(|| "nobody".to_owned()),
        });
        domains
            .entry((context.domain, context.route))
            .or_default()
            .push(context);
    }
    findings.extend(given.entries(index, &contexts));
    findings.extend(given.shared(index, &contexts));
    for ((domain, route), users) in domains {
        let Route::Table { stage, root, levels } = route else {
            continue;
        };
        let mapped = reader.mapped(stage, root, levels).map_err(bad)?;
        let name = format!("unit {index}, domain {}", domain.0);
        let functions: Vec<Bdf> = users
            .iter()
            .flat_map(|context| given.functions(index, context.source))
            .collect();
        findings.extend(given.mappings(&name, &functions, &mapped));
        let [pages_4k, pages_2m, pages_1g] = mapped.leaves;
        row.domains.push(DomainRow {
            domain: domain.0,
            table: root.to_string(),
            stage: match stage {
                Stage::Second => "second",
                Stage::First => "first",
            },
            levels,
            requesters: users.iter().map(|context| context.source.to_string()).collect(),
            bytes: mapped.bytes(),
            pages_4k,
            pages_2m,
            pages_1g,
            complete: !mapped.cut,
            ranges: mapped.runs.iter().map(RangeRow::from).collect(),
        });
    }
    Ok(Some(row))
}

/// The report for people. Writing to a String cannot fail.
fn text(report: &Report, set_up: &SetUp) -> String {
    let mut text = format!(
        "{}: units and their tables, read from the machine's memory\n",
        report.machine
    );
    for note in &set_up.notes {
        let _ = writeln!(text, "assumed: {note}");
    }
    for unit in &report.units {
        let _ = writeln!(
            text,
            "\nunit {} at {}: {}, {} mode, root table at {}",
            unit.unit,
            unit.base,
            if unit.translating {
                "translating"
            } else {
                "NOT TRANSLATING"
            },
            unit.mode,
            unit.root_table
        );
        match (unit.interrupt_entries_present, unit.interrupt_entries) {
            (Some(present), Some(entries)) => {
                let _ = writeln!(text, "  interrupts remapped, {present} of {entries} entries present");
            }
            _ => text.push_str("  interrupts not remapped\n"),
        }
        if unit.contexts.is_empty() {
            text.push_str("  nobody has an entry: every function behind it is blocked\n");
        }
        for context in &unit.contexts {
            let _ = writeln!(
                text,
                "  {}{} ({}): {}",
                context.source,
                context
                    .pasid
                    .map_or_else(String::new, |pasid| format!(" PASID {pasid}")),
                context.owner,
                context.says
            );
        }
        for domain in &unit.domains {
            let _ = writeln!(
                text,
                "  domain {} ({}): {} mapped by {} pages of 4 KiB, {} of 2 MiB, {} of 1 GiB, in {} ranges",
                domain.domain,
                domain.requesters.join(" "),
                size::show(domain.bytes),
                domain.pages_4k,
                domain.pages_2m,
                domain.pages_1g,
                domain.ranges.len()
            );
            for range in domain.ranges.iter().take(SHOWN) {
                let _ = writeln!(text, "    {}", range.text);
            }
            if domain.ranges.len() > SHOWN {
                let _ = writeln!(text, "    … and {} more: --json", domain.ranges.len() - SHOWN);
            }
        }
    }
    if let Some(explained) = &report.address {
        explained_text(&mut text, explained);
    }
    text.push('\n');
    if report.findings.is_empty() {
        let _ = writeln!(
            text,
            "{}",
            style::good("the tables say what was set up, no more and no less")
        );
    }
    for finding in &report.findings {
        let _ = writeln!(text, "{} {finding}", style::bad("FINDING"));
    }
    text
}

fn explained_text(text: &mut String, explained: &Explained) {
    let _ = writeln!(
        text,
        "\naddress {} of {}, step by step",
        explained.iova, explained.function
    );
    for step in &explained.steps {
        match &step.at {
            Some(at) => {
                let words = step.words.join(" ");
                let _ = writeln!(text, "  {:<30} at {at}: {words}", step.what);
                let _ = writeln!(text, "  {:<30}   {}", "", step.says);
            }
            None => {
                let _ = writeln!(text, "  {:<30} {}", step.what, step.says);
            }
        }
    }
    let end = match &explained.host_address {
        Some(at) => format!("host address {at}, {}", explained.allowed.join(" and ")),
        None => "nowhere: the access is blocked".to_owned(),
    };
    let _ = writeln!(text, "  {:<30} {end}", "it leads to");
    for answer in &explained.unit_answers {
        let _ = writeln!(text, "  {:<30} {answer}", "the unit itself answers a");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iommu_types::{HostPhys, SystemMemory};

    /// The sample machine with two guests.
    fn sample() -> SetUp {
        set_up(&Wanted::default(), &[], 4 << 20, false).expect("the sample comes up")
    }

    fn findings(set_up: &SetUp) -> Vec<String> {
        look(set_up).expect("the tables can be read").findings
    }

    /// Where the entry stands that a way ends with, of an address of the disk.
    fn last_entry(set_up: &SetUp, iova: u64) -> HostPhys {
        let disk = "03:00.0".parse().expect("valid");
        let way = explain::explain(&set_up.platform, disk, Iova::new(iova)).expect("there is a way");
        let at = way.steps.last().and_then(|step| step.at.clone()).expect("an entry");
        let at = at.strip_prefix("0x").expect("hexadecimal");
        HostPhys::new(u64::from_str_radix(at, 16).expect("hexadecimal"))
    }

    #[test]
    fn what_the_driver_set_up_is_what_the_tables_say() {
        assert_eq!(findings(&sample()), Vec::<String>::new());
    }

    #[test]
    fn a_changed_page_table_entry_is_a_finding() {
        let set_up = sample();
        let machine = set_up.platform.machine();
        let at = last_entry(&set_up, 0x3000);
        let entry = machine.read_u64(at).expect("memory");
        // The frame of another page, the right to write taken away, and nothing at all.
        for wrong in [entry ^ 1 << 21, entry & !2, 0] {
            machine.write_u64(at, wrong).expect("memory");
            let found = findings(&set_up);
            assert!(
                found.iter().any(|finding| finding.contains("does not map")),
                "{wrong:#x}: {found:?}"
            );
        }
        machine.write_u64(at, entry).expect("memory");
        assert_eq!(findings(&set_up), Vec::<String>::new());
    }

    #[test]
    fn a_page_that_nobody_asked_for_is_a_finding() {
        let set_up = sample();
        // The entry after the page that is mapped for reading only.
        let at = last_entry(&set_up, 0xc800_1000);
        set_up.platform.machine().write_u64(at, 0x5003).expect("memory");
        let found = findings(&set_up);
        let expected = "maps 0xc8001000..=0xc8001fff to 0x5000..=0x5fff (read and write), which nobody asked for";
        assert!(found.iter().any(|finding| finding.ends_with(expected)), "{found:?}");
    }

    #[test]
    fn an_entry_of_nobody_and_a_shared_table_are_findings() {
        let set_up = sample();
        let machine = set_up.platform.machine();
        let report = look(&set_up).expect("readable");
        let unit = report.units.first().expect("a unit");
        let entry_at = |source: &str| {
            let row = unit
                .contexts
                .iter()
                .find(|row| row.source == source)
                .expect("it has an entry");
            HostPhys::new(u64::from_str_radix(row.entry_at.trim_start_matches("0x"), 16).expect("hexadecimal"))
        };
        // The GPU of guest B gets the entry of guest A's disk; a function that is not there gets one too.
        let (disk, gpu) = (entry_at("03:00.0"), entry_at("04:00.0"));
        let words: [u64; 2] = machine.read_words(disk).expect("memory");
        let beside = gpu.checked_add(0x10).expect("in range");
        for at in [gpu, beside] {
            machine.write_u64(at, words[0]).expect("memory");
            let second = at.checked_add(8).expect("in range");
            machine.write_u64(second, words[1]).expect("memory");
        }
        let found = findings(&set_up);
        for expected in ["share the table", "has an entry for 04:00.1, which no function has"] {
            assert!(
                found.iter().any(|finding| finding.contains(expected)),
                "{expected}: {found:?}"
            );
        }
    }

    #[test]
    fn addresses_are_hexadecimal_or_decimal() {
        let parse = |text| parse_address(text).map(Iova::raw).map_err(|why| why.to_string());
        assert_eq!(parse("0xc800_1000"), Ok(0xc800_1000));
        assert_eq!(parse("4096"), Ok(4096));
        assert!(parse("here").is_err());
    }
}
