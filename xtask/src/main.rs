//! Development tasks of Portcullis, started as `cargo xtask <task>`.
//!
//! `test` is the one to know: it runs every check and judge that this machine can run, and ends with a table of
//! what ran, what was skipped and why. Nothing outside cargo's target folder and
//! `target/tools` is written, and no root is needed.

mod bare_metal;
mod bench;
mod iasl;
mod layers;
mod linux;
mod no_std;
mod qemu;
mod rehearsal;
mod report;
mod samples;
mod serve;
mod suite;
mod target;
mod tools;
mod vfio;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Development tasks of Portcullis")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run the checks, tests and judges; the default takes under ten minutes on two cores
    Test {
        /// Everything; a judge that has to be skipped is a failure
        #[arg(long)]
        full: bool,
        /// As --full, with the long forms of property tests
        #[arg(long)]
        nightly: bool,
        /// Only the checks whose name contains this
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
    },
    /// Compare our code with its peers, pair by pair in one process
    Bench {
        /// Write the rows to this file as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<String>,
        /// Fewer pairs: a smoke test of the benchmarks, not a measurement
        #[arg(long)]
        quick: bool,
    },
    /// Check that dependencies point down through the layers
    Layers,
    /// Check that the layers below std build without it
    NoStd,
    /// Boot Linux on generated machines and compare groups and DMAR reading
    Linux,
    /// Boot Linux on our unit, served over vfio-user, in all its modes
    Serve {
        /// Each kernel that there is, not only one
        #[arg(long)]
        nightly: bool,
        /// Only the kernels whose name contains this, as in `linux-6.1`
        #[arg(long, value_name = "NAME", requires = "nightly")]
        kernel: Option<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Test { full, nightly, only } => suite::run(suite::Depth::from_flags(full, nightly), only),
        Task::Bench { json, quick } => bench::run(json.as_deref(), quick),
        Task::Layers => single("layers", layers::check()),
        Task::NoStd => single("no_std", no_std::check()),
        Task::Linux => single("groups against Linux", linux::check(suite::Depth::Default)),
        Task::Serve { nightly, kernel } => {
            let depth = suite::Depth::from_flags(true, nightly);
            single("Linux on our unit", serve::check(depth, kernel.as_deref()))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one check outside the suite.
fn single(name: &str, outcome: report::Outcome) -> Result<(), String> {
    match outcome {
        report::Outcome::Passed { detail, .. } => {
            println!("{name}: {detail}");
            Ok(())
        }
        report::Outcome::Failed(why) => Err(format!("{name}: {why}")),
        report::Outcome::Skipped(why) => Err(format!("{name}: skipped: {why}")),
    }
}
