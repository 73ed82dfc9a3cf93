//! The program that runs in a Linux guest on `/dev/vfio`: the conformance list, DMA probes, a disk's driver, and a
//! driver that ends at any step. It needs no library and prints what it found, a line each.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Command, ExitCode};
use std::time::Duration;

use e2e::vfio::{churn, disk, probe};
use iommu_types::{Bdf, Iova, PAGE_SIZE};
use iommu_vfio::{DmaMemory, Linux, conformance};

const USAGE: &str = "vfio-guest conformance|probe|disk FUNCTION, or vfio-guest churn FUNCTION STEP, which kills itself before that step";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let function = words.get(1).and_then(|text| text.parse::<Bdf>().ok());
    let result = match (words.as_slice(), function) {
        (["conformance", _], Some(function)) => conformance(function),
        (["probe", _], Some(function)) => probe(function),
        (["disk", _], Some(function)) => disk(function),
        (["churn", _, step], Some(function)) => match step.parse() {
            Ok(step) => churn(function, step),
            Err(_) => Err(USAGE.to_owned()),
        },
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("vfio-guest: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the list; what came of the cases is for the reader to judge.
fn conformance(function: Bdf) -> Result<(), String> {
    let mut out = std::io::stdout();
    for result in conformance::run(&Linux::new(), function) {
        writeln!(out, "{result}").map_err(|why| why.to_string())?;
    }
    Ok(())
}

fn probe(function: Bdf) -> Result<(), String> {
    // Linux prints ten things about faults in five seconds, and counts three for each.
    const BURST: Duration = Duration::from_millis(1_800);
    let told = |probe: &probe::Probe| {
        println!("{probe}");
        if !probe.moved {
            std::thread::sleep(BURST);
        }
    };
    probe::run(&Linux::new(), function, physical, told)
        .map(drop)
        .map_err(|why| why.to_string())
}

fn disk(function: Bdf) -> Result<(), String> {
    let interrupts = disk::run(&Linux::new(), function).map_err(|why| why.to_string())?;
    println!("interrupts {interrupts}");
    Ok(())
}

/// Goes through a driver's life, and is killed before the step of this number (from 0); with a number past the last
/// one it ends by itself.
fn churn(function: Bdf, last: u32) -> Result<(), String> {
    let mut number = 0;
    churn::run(&Linux::new(), function, |name| {
        println!("{number} {name}");
        if number == last {
            die();
        }
        number += 1;
    })
    .map_err(|why| why.to_string())
}

/// Ends this process as the kernel does when memory runs out: with a signal that it cannot answer.
fn die() -> ! {
    let ended = Command::new("kill")
        .args(["-9", &std::process::id().to_string()])
        .status();
    eprintln!("vfio-guest: kill: {ended:?}");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// The physical address of a page of memory, as the kernel tells root.
fn physical(memory: &impl DmaMemory, page: u64) -> Option<Iova> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let address = u64::try_from(memory.pointer()?.addr().get()).ok()? + page * PAGE_SIZE;
    let mut map = File::open("/proc/self/pagemap").ok()?;
    map.seek(SeekFrom::Start(address / PAGE_SIZE * 8)).ok()?;
    let mut entry = [0; 8];
    map.read_exact(&mut entry).ok()?;
    let entry = u64::from_le_bytes(entry);
    (entry & PRESENT != 0 && entry & FRAME != 0).then_some(Iova::new((entry & FRAME) * PAGE_SIZE))
}
