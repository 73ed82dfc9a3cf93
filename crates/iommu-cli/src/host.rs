//! The commands about a real machine: what is grouped with what and why, faults, units, readiness.
//!
//! None of them changes anything. `--root` names another machine: a folder, a snapshot, or `lspci` text.

mod caps;
mod doctor;
mod explain;
mod faults;
mod groups;
mod names;
mod overview;
mod plan;
mod select;
mod snapshot;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
pub(crate) use iommu_host::count;
use iommu_host::{Machine, OpenError};
use serde_json::Value;

use crate::exit::{self, Failure, Verdict};
use crate::{help, style};

pub(crate) use names::{Names, printable, short};

/// Which machine, and in which form.
#[derive(Debug, Default, Args)]
pub(crate) struct Source {
    /// Another machine: a root folder, a snapshot, or the text of `lspci -nnvvv` or `lspci -nnxxxx`
    #[arg(long, value_name = "DIR|FILE")]
    pub(crate) root: Option<PathBuf>,
    /// Names of vendors, devices and classes, instead of the system's pci.ids
    #[arg(long, short = 'i', value_name = "FILE")]
    pub(crate) pci_ids: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Say whether the IOMMU works, and if not, whether firmware or kernel is the cause
    #[command(after_help = help::DOCTOR)]
    Doctor(doctor::Options),
    /// Show what is grouped with what
    #[command(after_help = help::GROUPS)]
    Groups(groups::Options),
    /// Say why a function is grouped as it is, or why two are together or apart
    #[command(after_help = help::EXPLAIN)]
    Explain(explain::Options),
    /// Say whether functions can be given to a guest, and what stands in the way
    #[command(after_help = help::CHECK)]
    Check(doctor::CheckOptions),
    /// Print the commands that give functions to a guest, and those that take them back
    #[command(after_help = help::PLAN)]
    Plan(plan::Options),
    /// Decode the DMA and interrupt faults of a kernel log, and say who is behind them
    #[command(after_help = help::FAULTS)]
    Faults(faults::Options),
    /// Decode what the remapping units can do
    #[command(after_help = help::CAPS)]
    Caps(caps::Options),
    /// Write one file that holds what these commands read of this machine
    #[command(after_help = help::SNAPSHOT)]
    Snapshot(snapshot::Options),
}

/// What a command has to say.
#[derive(Debug)]
pub(crate) struct Answer {
    /// For people, ending in a newline.
    pub(crate) text: String,
    /// For programs.
    pub(crate) json: Value,
    /// Whether it is as it should be; an error says what could not be measured, after the answer is printed.
    pub(crate) verdict: Result<Verdict, Failure>,
}

/// Runs a command.
pub(crate) fn run(command: &HostCommand) -> Result<Verdict, Failure> {
    let (answer, json) = match command {
        HostCommand::Groups(options) => (groups::run(options)?, options.source.json),
        HostCommand::Explain(options) => (explain::run(options)?, options.source.json),
        HostCommand::Faults(options) => (faults::run(options)?, options.source.json),
        HostCommand::Caps(options) => (caps::run(options)?, options.source.json),
        HostCommand::Doctor(options) => (doctor::run(options)?, options.source.json),
        HostCommand::Check(options) => (doctor::run_check(options)?, options.source.json),
        HostCommand::Plan(options) => (plan::run(options)?, options.source.json),
        HostCommand::Snapshot(options) => (snapshot::run(options)?, options.json),
    };
    answer.print(json)
}

/// What the machine has, and what to try next: `iommu` without a command.
pub(crate) fn overview(source: &Source) -> Result<Verdict, Failure> {
    overview::run(source)?.print(source.json)
}

impl Answer {
    /// Prints it in one form or the other.
    pub(crate) fn print(self, json: bool) -> Result<Verdict, Failure> {
        if json {
            exit::print(&format!("{:#}\n", self.json))?;
        } else {
            exit::print(&self.text)?;
        }
        self.verdict
    }
}

impl Source {
    /// The machine.
    pub(crate) fn open(&self) -> Result<Machine, Failure> {
        match &self.root {
            Some(path) => open(path),
            None => Machine::live().map_err(|why| match why {
                OpenError::NoMachine { .. } => Failure::Measure(NO_FUNCTION.to_owned()),
                why => Failure::Measure(why.to_string()),
            }),
        }
    }

    /// The same machine again, at the end of a command to try next.
    pub(crate) fn again(&self) -> String {
        self.root
            .as_ref()
            .map_or_else(String::new, |root| format!(" --root {}", quoted(root)))
    }

    /// What functions are called.
    pub(crate) fn names(&self) -> Result<Names, Failure> {
        match &self.pci_ids {
            None => Ok(Names::of_system()),
            Some(file) => Names::of_file(file),
        }
    }

    /// These options stand behind the command where there is one.
    pub(crate) fn only_without_command(&self) -> Result<(), Failure> {
        let option = if self.root.is_some() {
            "--root"
        } else if self.json {
            "--json"
        } else if self.pci_ids.is_some() {
            "--pci-ids"
        } else {
            return Ok(());
        };
        Err(Failure::Input(format!(
            "{option} goes behind the command, as in `iommu groups {option}`"
        )))
    }
}

/// The machine that `--root` names.
pub(crate) fn open(path: &Path) -> Result<Machine, Failure> {
    Machine::open(path).map_err(|why| match why {
        OpenError::Read { why, .. } => exit::unread(&path.display(), &why),
        // A file or folder that is there and is no machine.
        why => Failure::Input(why.to_string()),
    })
}

/// Why there is nothing to say about this machine.
const NO_FUNCTION: &str = "no PCI function can be seen here (/sys/bus/pci/devices): in a container or a guest without PCI, look at \
                           another machine with --root, or try `iommu run`, which needs none";

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = printable(&path.display().to_string());
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// A command to try next, and what for.
pub(crate) fn next(lead: &str, command: &str, why: &str) -> String {
    let why = if why.is_empty() {
        String::new()
    } else {
        format!("  ({why})")
    };
    format!("{lead:5} {}{why}\n", style::command(command))
}

/// What the machine was read from, and what of it was left out, for the end of a text.
pub(crate) fn notes(machine: &Machine) -> String {
    let mut text = String::new();
    if !machine.notes.is_empty() || !machine.wide_domains.is_empty() {
        text.push('\n');
    }
    for note in &machine.notes {
        text.push_str(&format!("{} {}\n", style::faint("note:"), printable(note)));
    }
    if let Some(first) = machine.wide_domains.first() {
        text.push_str(&format!(
            "{} {} with a name that is no PCI address, not judged ({})\n",
            style::faint("note:"),
            count(machine.wide_domains.len(), "function"),
            printable(first)
        ));
    }
    text
}

#[cfg(test)]
mod tests;
