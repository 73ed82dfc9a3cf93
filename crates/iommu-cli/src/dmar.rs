//! `iommu dmar show|lint|build`: a DMAR table decoded, judged, or built.

mod json;
mod lint;
mod text;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use acpi_dmar::lint::{self as rules, Machine as Facts, Report};
use acpi_dmar::{Dmar, OwnedDmar, Severity};
use clap::{Args, Subcommand};
use iommu_host::{Knowledge, Machine};
use iommu_types::HostPhys;
use serde_json::json;

use crate::exit::{self, Failure, Verdict};
use crate::host::{Answer, Names, Source};
use crate::{help, machine};

pub(crate) use json::show_json;

/// Grows when a key of the JSON of `iommu dmar build` changes its meaning.
const BUILD_SCHEMA: u32 = 1;
/// What every DMAR table starts with.
const SIGNATURE: &[u8] = b"DMAR";

/// What can be done with a table.
#[derive(Debug, Subcommand)]
#[command(after_help = help::DMAR)]
pub(crate) enum DmarCommand {
    /// Decode a table, and list what is wrong with it
    #[command(after_help = help::DMAR_SHOW)]
    Show(TableSource),
    /// Judge a table: what is wrong, what it costs, what to do
    #[command(after_help = help::DMAR_LINT)]
    Lint(lint::Options),
    /// Build the table of a machine file, or build a real one again
    #[command(after_help = help::DMAR_BUILD)]
    Build(BuildOptions),
}

/// Where a table comes from.
#[derive(Debug, Args)]
pub(crate) struct TableSource {
    /// A table, as in /sys/firmware/acpi/tables/DMAR, or the text of acpidump; without it, the machine's own
    #[arg(conflicts_with = "root")]
    file: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
}

/// What `iommu dmar build` is told.
#[derive(Debug, Args)]
pub(crate) struct BuildOptions {
    /// The machine file; the embedded two-socket server if there is none
    #[arg(conflicts_with = "root")]
    machine: Option<PathBuf>,
    /// Where to write the table
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Take the table of a real machine: a root folder, a snapshot, or text with acpidump in it
    #[arg(long, value_name = "DIR|FILE")]
    root: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A table, and the machine that it is of, if that is known too.
#[derive(Debug)]
pub(crate) struct Table {
    bytes: Vec<u8>,
    machine: Option<Machine>,
}

/// Runs a command.
pub(crate) fn run(command: &DmarCommand) -> Result<Verdict, Failure> {
    match command {
        DmarCommand::Show(source) => show_table(source),
        DmarCommand::Lint(options) => lint::run(options),
        DmarCommand::Build(options) => build(options),
    }
}

impl TableSource {
    /// Whether JSON is asked for.
    pub(crate) const fn json(&self) -> bool {
        self.source.json
    }

    /// The table; `None` if the machine is known to have none.
    fn find(&self) -> Result<Option<Table>, Failure> {
        if let Some(file) = &self.file {
            let bytes = exit::read(file)?;
            if bytes.starts_with(SIGNATURE) {
                return Ok(Some(Table { bytes, machine: None }));
            }
            // The text of acpidump, or a snapshot that was taken for a table. What is neither is judged as a table.
            let table = Machine::from_bytes(&bytes)
                .ok()
                .and_then(|machine| machine.dmar.known().cloned());
            return Ok(Some(Table {
                bytes: table.unwrap_or(bytes),
                machine: None,
            }));
        }
        let machine = self.source.open()?;
        match &machine.dmar {
            Knowledge::Known(bytes) => Ok(Some(Table {
                bytes: bytes.clone(),
                machine: Some(machine),
            })),
            Knowledge::Absent => Ok(None),
            Knowledge::Unknown(why) => Err(Failure::Measure(format!("DMAR table: {why}; {}", why.remedy()))),
        }
    }
}

/// What to say about a machine without a table.
fn no_table(schema: u32) -> Answer {
    Answer {
        text: "The machine has no DMAR table: VT-d is off in its firmware setup, or it has none (`iommu doctor`).\n"
            .to_owned(),
        json: json!({"schema": schema, "table": null}),
        verdict: Ok(Verdict::Unsupported),
    }
}

fn show_table(source: &TableSource) -> Result<Verdict, Failure> {
    let table = match source.find()? {
        Some(table) => table,
        None => return no_table(json::SCHEMA).print(source.json()),
    };
    let names = table.machine.as_ref().map(|_| source.source.names()).transpose()?;
    let shown = show(&table, names.as_ref());
    Answer {
        text: shown.text,
        json: show_json(&table),
        verdict: Ok(if shown.clean { Verdict::Yes } else { Verdict::Findings }),
    }
    .print(source.json())
}

fn build(options: &BuildOptions) -> Result<Verdict, Failure> {
    let (name, table) = match &options.root {
        None => described(options.machine.as_deref())?,
        Some(root) => match again(root)? {
            Some(table) => (root.display().to_string(), table),
            None => return no_table(BUILD_SCHEMA).print(options.json),
        },
    };
    let file = &options.output;
    std::fs::write(file, &table).map_err(|why| Failure::Measure(format!("{}: {why}", file.display())))?;
    let name = crate::host::printable(&name);
    Answer {
        text: format!("{}: {} bytes, the table of {name}\n", file.display(), table.len()),
        json: json!({
            "schema": BUILD_SCHEMA,
            "file": file.display().to_string(),
            "bytes": table.len(),
            "machine": name,
        }),
        verdict: Ok(Verdict::Yes),
    }
    .print(options.json)
}

fn described(file: Option<&Path>) -> Result<(String, Vec<u8>), Failure> {
    let description = machine::describe(file)?;
    let table = description
        .to_dmar()
        .map_err(|why| Failure::Input(format!("{}: {why}", description.name)))?;
    Ok((description.name, table))
}

/// The table of a real machine, decoded and built again; `None` if it has none.
fn again(root: &Path) -> Result<Option<Vec<u8>>, Failure> {
    let source = Source {
        root: Some(root.to_owned()),
        ..Source::default()
    };
    let machine = source.open()?;
    let bytes = match &machine.dmar {
        Knowledge::Known(bytes) => bytes,
        Knowledge::Absent => return Ok(None),
        Knowledge::Unknown(why) => {
            return Err(Failure::Measure(format!("DMAR table: {why}; {}", why.remedy())));
        }
    };
    let failed = |why: &dyn std::fmt::Display| Failure::Input(format!("{}: its DMAR table: {why}", root.display()));
    let table = Dmar::parse(bytes).map_err(|why| failed(&why))?;
    let owned = OwnedDmar::from_table(table).map_err(|why| failed(&why))?;
    owned.build().map(Some).map_err(|why| failed(&why))
}

/// A table as people read it.
#[derive(Debug)]
pub(crate) struct Shown {
    /// The text, ending in a newline.
    pub(crate) text: String,
    /// Whether no rule found more than an information.
    pub(crate) clean: bool,
}

/// Decodes a table as far as it can be read, and judges it with what is known of the machine. `names` name the
/// functions that it speaks about.
pub(crate) fn show(table: &Table, names: Option<&Names>) -> Shown {
    let report = judge(table);
    let decoded = Dmar::inspect(&table.bytes).ok();
    Shown {
        text: text::render(decoded, &report, table.machine.as_ref().zip(names)),
        clean: is_clean(&report),
    }
}

/// Judges a table with all that is known of its machine.
fn judge(table: &Table) -> Report {
    match &table.machine {
        None => rules::lint_bytes(&table.bytes, &Facts::default()),
        Some(machine) => iommu_host::lint::judge(&table.bytes, machine, &machine.topology()),
    }
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
