//! The host tool `iommu`: shows which device can reach which memory, and why.
//!
//! Exit codes, for every command: 0 yes, all as it should be; 1 findings, or a result that differs from what was
//! predicted or expected; 2 a mistake on the command line or in a file that was given; 3 something could not be
//! read or measured; 4 nothing here that this version can work with.

mod dmar;
mod exit;
mod host;
mod machine;
mod progress;
mod run;
mod size;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::{Failure, Verdict};

#[derive(Debug, Parser)]
#[command(
    name = "iommu",
    version,
    about = "Shows which device can reach which memory, and why",
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Rehearse a device assignment on a machine in software, from its DMAR table to an access matrix
    Run(run::Options),
    /// Read or build a DMAR table
    Dmar {
        #[command(subcommand)]
        command: DmarCommand,
    },
    #[command(flatten)]
    Host(host::HostCommand),
}

#[derive(Debug, Subcommand)]
enum DmarCommand {
    /// Decode a table and say what is wrong with it
    Show {
        /// The table, as in /sys/firmware/acpi/tables/DMAR
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Build the table of a machine file
    Build {
        /// The machine file; the embedded two-socket server if there is none
        machine: Option<PathBuf>,
        /// Where to write the table
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(options) => run::run(&options),
        Command::Dmar {
            command: DmarCommand::Show { file, json },
        } => show_table(&file, json),
        Command::Dmar {
            command: DmarCommand::Build { machine, output },
        } => build_table(machine.as_deref(), &output),
        Command::Host(command) => host::run(&command),
    };
    match result {
        Ok(verdict) => verdict.into(),
        Err(failure) => {
            eprintln!("iommu: {failure}");
            failure.code()
        }
    }
}

fn show_table(file: &std::path::Path, json: bool) -> Result<Verdict, Failure> {
    let bytes = exit::read(file)?;
    let shown = dmar::show(&bytes);
    if json {
        exit::print(&format!("{:#}\n", dmar::show_json(&bytes)))?;
    } else {
        exit::print(&shown.text)?;
    }
    Ok(if shown.clean { Verdict::Yes } else { Verdict::Findings })
}

fn build_table(machine: Option<&std::path::Path>, output: &std::path::Path) -> Result<Verdict, Failure> {
    let description = machine::describe(machine)?;
    let table = description
        .to_dmar()
        .map_err(|why| Failure::Input(format!("{}: {why}", description.name)))?;
    std::fs::write(output, &table).map_err(|why| Failure::Measure(format!("{}: {why}", output.display())))?;
    Ok(Verdict::Yes)
}
