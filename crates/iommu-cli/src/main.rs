//! The host tool `iommu`: shows which device can reach which memory, and why.
//!
//! Exit codes, for every command: 0 yes, all as it should be; 1 findings, or a result that differs from what was
//! predicted or expected; 2 a mistake on the command line or in a file that was given; 3 something could not be
//! read or measured; 4 nothing here that this version can work with.

mod dmar;
mod exit;
mod help;
mod host;
mod inspect;
mod machine;
mod progress;
mod run;
mod size;
mod style;

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
)]
struct Arguments {
    /// When to use colours
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
