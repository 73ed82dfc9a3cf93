//! Our code against its peers.
//!
//! Every row runs both sides in this process, alternating batch by batch. Times on a shared machine wander by
//! half and more between runs; the ratios do not.

mod device_reads;
mod dma;
mod driver;
mod iova;
mod pagetable;
mod pair;
mod peers;
mod row;
mod translate;
mod vmm;

use std::process::ExitCode;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "bench", about = "Compare our code with its peers")]
struct Arguments {
    /// Write the rows to this file as a JSON array
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
    /// Fewer pairs: shows that the benchmarks run, measures nothing
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut rows = translate::rows(arguments.quick);
    rows.extend(driver::rows(arguments.quick));
    rows.extend(vmm::rows(arguments.quick));
    rows.extend(iova::rows(arguments.quick));
    rows.extend(pagetable::rows(arguments.quick));
    rows.extend(dma::rows(arguments.quick));
    rows.extend(device_reads::rows());
    row::print(&rows);
    match arguments
        .json
        .map(|file| std::fs::write(&file, serde_json::to_vec_pretty(&rows).unwrap_or_default()))
    {
        Some(Err(why)) => {
            eprintln!("the rows cannot be written: {why}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}
