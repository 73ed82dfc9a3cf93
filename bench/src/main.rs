//! Our code against its peers.
//!
//! Every row runs both sides in this process, alternating batch by batch. Times on a shared machine wander by
//! half and more between runs; the ratios do not.

mod device_reads;
mod dma;
mod driver;
mod floors;
mod gates;
mod host;
mod instructions;
mod iova;
mod pagetable;
mod pair;
mod peers;
mod row;
mod translate;
mod vfio;
mod vmm;

use std::process::ExitCode;

use clap::Parser;

/// Makes the rows of some benchmarks.
type Rows = fn(bool) -> Vec<row::Row>;

/// Everything there is, in the order of the table, with the numbers it answers to.
const BENCHMARKS: [(&[&str], Rows); 10] = [
    (&["B8"], translate::rows),
    (&["B6"], driver::rows),
    (&["B8", "B9"], vmm::rows),
    (&["B1", "B2", "B3", "B4", "B5"], iova::rows),
    (&["B6", "B7"], pagetable::rows),
    (&["B10", "B12", "B13"], dma::rows),
    (&["B11"], device_reads::rows),
    (&["Ir"], |_| counted()),
    (&["B14"], vfio::rows),
    (&["H1", "H2", "H3"], host::rows),
];

#[derive(Debug, Parser)]
#[command(name = "bench", about = "Compare our code with its peers")]
struct Arguments {
    /// Write the rows to this file as a JSON array
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
    /// Fewer pairs: shows that the benchmarks run, measures nothing
    #[arg(long)]
    quick: bool,
    /// Only these benchmarks (B1 to B14, H1 to H3; Ir for instruction counts), and what is measured together with them
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    only: Vec<String>,
    /// Fail if a row that gates is missed; times mean something on a quiet machine only
    #[arg(long)]
    gate: bool,
    /// Run one kernel and nothing else, for a counter of instructions
    #[arg(long, hide = true, requires = "turns")]
    kernel: Option<String>,
    /// Turns of the kernel
    #[arg(long, hide = true)]
    turns: Option<u64>,
}

/// Instruction counts; says why there are none where they cannot be had.
fn counted() -> Vec<row::Row> {
    instructions::rows().unwrap_or_else(|why| {
        eprintln!("instructions were not counted: {why}");
        Vec::new()
    })
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let (Some(kernel), Some(turns)) = (&arguments.kernel, arguments.turns) {
        return match instructions::run(kernel, turns) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        };
    }
    let wanted = |ids: &[&str]| {
        let named = |id: &&str| arguments.only.iter().any(|only| only.eq_ignore_ascii_case(id));
        arguments.only.is_empty() || ids.iter().any(named)
    };
    let chosen = BENCHMARKS.iter().filter(|(ids, _)| wanted(ids));
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    peers::pin(0);
    let rows: Vec<row::Row> = chosen.flat_map(|(_, rows)| rows(arguments.quick)).collect();
    row::print(&rows, processors);
    if let Some(file) = &arguments.json
        && let Err(why) = std::fs::write(
            file,
            serde_json::to_vec_pretty(&row::to_json(&rows)).unwrap_or_default(),
        )
    {
        eprintln!("the rows cannot be written: {why}");
        return ExitCode::FAILURE;
    }
    let missed = rows.iter().any(|row| gates::is_gate(row) && row.met == Some(false));
    if arguments.gate && missed {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
