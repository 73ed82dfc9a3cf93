//! The host tool `iommu`: shows which device can reach which memory, and why.
//!
//! # Purpose
//!
//! Somebody who gives devices to guests asks: what is it grouped with, why, can I assign it, what stands in the way,
//! what do I do next. Each question is a command, each answer names the next one:
//!
//! | command | answers |
//! |---|---|
//! | `iommu` | what this machine has, and what to try next |
//! | `doctor` | whether the IOMMU works; firmware off, kernel off, start failed, or working |
//! | `groups`, `explain` | what is grouped with what, and why; why two functions are together or apart |
//! | `check`, `plan` | whether functions can be given to a guest; the commands that do it and undo it |
//! | `faults`, `caps` | which device is behind a fault and what to do; what the units can do |
//! | `dmar show`, `lint`, `build` | the firmware's table decoded, judged, built |
//! | `snapshot` | one file with all of that, for somebody else |
//! | `run` | an assignment rehearsed in software, up to an access matrix |
//! | `inspect` | what that leaves in the units' tables, and where one address leads |
//! | `serve`, `trace` | a unit and devices behind it for a VMM, over vfio-user; what such a unit went through |
//! | `completions`, `man` | for the shell, and for reading |
//!
//! # Place in the stack
//!
//! Layer 7. It owns command lines, text, JSON and exit codes, and no judgement: machines come from `iommu-host`, groups
//! from `iommu-groups`, tables from `acpi-dmar`, rehearsals from `iommu-vfio` on `soft-platform`, servers from
//! `iommu-serve`.
//!
//! # Example
//!
//! ```text
//! $ iommu run
//! $ iommu run --dmar DMAR.bin --assign 03:00.0 --keep matrix
//! $ iommu groups --root server.tar -s 3b:00.0
//! $ iommu plan 3b:00.0 --format sysfs > assign.sh
//! ```
//!
//! # Exit codes
//!
//! For every command: 0 yes, all as it should be; 1 findings, or a result that differs from what was predicted or
//! expected; 2 a mistake on the command line or in a file that was given; 3 something could not be read or measured;
//! 4 nothing here that this version can work with.
//!
//! # Invariants
//!
//! * No command changes the machine, except `run --backend linux`, which has to be asked for and puts back what it
//!   overwrites. `plan` prints commands; nobody but the reader runs them.
//! * What could not be read is unknown, never absent, in text and in JSON.
//! * JSON has a schema version; keys are only added within one.
//! * Text of firmware, devices and files never reaches a terminal as it is: control characters are replaced.
//! * Nothing is said by colour alone, and there is none where nobody sees it ([`style`]).
//!
//! # What it does not do
//!
//! It decodes no tables or registers of AMD's and Arm's IOMMUs; `groups`, `explain` and `check` work there.

mod dmar;
mod exit;
mod help;
mod host;
mod inspect;
mod machine;
mod progress;
mod run;
mod serve;
mod size;
mod style;
mod trace;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::exit::{Failure, Verdict};
use crate::style::When;

#[derive(Debug, Parser)]
#[command(
    name = "iommu",
    version,
    about = "Shows which device can reach which memory, and why",
    long_about = help::ABOUT,
    after_help = help::START,
    subcommand_value_name = "COMMAND",
    max_term_width = 110
)]
struct Arguments {
    /// When to use colours; auto respects NO_COLOR and CLICOLOR_FORCE
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", global = true)]
    color: When,
    #[command(flatten)]
    source: host::Source,
    #[command(subcommand)]
    command: Option<Command>,
}

// In the order in which people need them.
#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Host(host::HostCommand),
    /// Show, judge or build a DMAR table, the firmware's description of its remapping units
    Dmar {
        #[command(subcommand)]
        command: dmar::DmarCommand,
    },
    /// Rehearse a device assignment on a machine in software, from its DMAR table to an access matrix
    Run(run::Options),
    /// Show the units, domains and mappings of a rehearsal, read from the machine's own tables
    Inspect(inspect::Options),
    /// Serve a remapping unit and devices behind it to a VMM, over vfio-user
    Serve(Box<serve::Options>),
    /// Show what a served unit went through, or do it again
    Trace(trace::Options),
    /// Print a completion script for a shell
    Completions(help::Completions),
    /// Print the manual page of a command, or write all of them
    Man(help::Manual),
}

fn main() -> ExitCode {
    let when = When::of_command_line(std::env::args_os());
    when.apply();
    let matches = Arguments::command().color(when.for_clap()).get_matches();
    let result = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => dispatch(arguments),
        Err(why) => why.exit(),
    };
    match result {
        Ok(verdict) => verdict.into(),
        Err(failure) => {
            exit::complain(&failure);
            failure.code()
        }
    }
}

fn dispatch(arguments: Arguments) -> Result<Verdict, Failure> {
    let Some(command) = arguments.command else {
        return host::overview(&arguments.source);
    };
    arguments.source.only_without_command()?;
    match command {
        Command::Host(command) => host::run(&command),
        Command::Dmar { command } => dmar::run(&command),
        Command::Run(options) => run::run(&options),
        Command::Inspect(options) => inspect::run(&options),
        Command::Serve(options) => serve::run(&options),
        Command::Trace(options) => trace::run(&options),
        Command::Completions(options) => help::completions(&options),
        Command::Man(options) => help::manual(&options),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
