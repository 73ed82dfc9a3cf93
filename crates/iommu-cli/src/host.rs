//! The commands about a real machine: what is grouped with what and why, faults, units, readiness.
//!
//! None of them changes anything. `--root` names another machine: a folder, a snapshot, or `lspci` text.

mod caps;
mod doctor;
mod explain;
mod faults;
mod groups;
mod names;
mod select;
mod snapshot;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use iommu_host::{Machine, OpenError};
use serde_json::Value;

use crate::exit::{self, Failure, Verdict};

/// Which machine, and in which form.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// Another machine: a root folder, a snapshot, or the text of `lspci -nnvvv` or `lspci -nnxxxx`
    #[arg(long, value_name = "DIR|FILE")]
    root: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Show what is grouped with what
    Groups(groups::Options),
    /// Say why a function is grouped as it is, or why two are together or apart
    Explain(explain::Options),
    /// Decode the DMA and interrupt faults of a kernel log, and say who is behind them
    Faults(faults::Options),
    /// Decode what the remapping units can do
    Caps(caps::Options),
    /// Say whether the IOMMU works, and if not, whether firmware or kernel is the cause
    Doctor(doctor::Options),
    /// Say whether functions can be given to a guest, and what stands in the way
    Check(doctor::CheckOptions),
    /// Write one file that holds what these commands read of this machine
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
        HostCommand::Snapshot(options) => (snapshot::run(options)?, options.json),
    };
    if json {
        exit::print(&format!("{:#}\n", answer.json))?;
    } else {
        exit::print(&answer.text)?;
    }
    answer.verdict
}

impl Source {
    /// The machine.
    pub(crate) fn open(&self) -> Result<Machine, Failure> {
        let opened = match &self.root {
            Some(path) => Machine::open(path),
            None => Machine::live(),
        };
        opened.map_err(|why| match why {
            OpenError::NoMachine { .. } if self.root.is_some() => Failure::Input(why.to_string()),
            why => Failure::Measure(why.to_string()),
        })
    }
}

/// What the machine was read from, and what of it was left out, for the end of a text.
pub(crate) fn notes(machine: &Machine) -> String {
    let mut text = String::new();
    for note in &machine.notes {
        text.push_str(&format!("note: {}\n", names::printable(note)));
    }
    if let Some(first) = machine.wide_domains.first() {
        text.push_str(&format!(
            "note: {} functions are in PCI domains above ffff, below a VMD, and are not judged ({})\n",
            machine.wide_domains.len(),
            names::printable(first)
        ));
    }
    text
}

#[cfg(test)]
mod tests;
