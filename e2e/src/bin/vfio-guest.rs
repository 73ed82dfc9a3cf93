//! The program that runs in a Linux guest on `/dev/vfio`: the conformance list, DMA probes, a disk's driver, and a
//! driver that ends at any step. Reads of block devices in turn, timed. It needs no library and prints what
//! it found, a line each.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use e2e::vfio::{churn, disk, probe};
use iommu_types::{Bdf, Iova, PAGE_SIZE};
use iommu_vfio::{DmaMemory, Linux, conformance};

const USAGE: &str = "vfio-guest conformance|probe|disk FUNCTION, or vfio-guest churn FUNCTION STEP, which kills itself before that step, \
                     or vfio-guest blocks sequential|random BYTES COUNT SLICES FILE...";

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
        (
            [
                "blocks",
                order @ ("sequential" | "random"),
                bytes,
                count,
                slices,
                files @ ..,
            ],
            _,
        ) => match (bytes.parse(), count.parse(), slices.parse()) {
            (Ok(bytes), Ok(count), Ok(slices)) => {
                let random = *order == "random";
                blocks(
                    files,
                    Reads {
                        random,
                        bytes,
                        count,
                        slices,
                    },
                )
            }
            _ => Err(USAGE.to_owned()),
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

/// Reads of block devices past the page cache.
#[derive(Clone, Copy)]
struct Reads {
    /// Each place looks random, and is the same each time; otherwise they follow each other.
    random: bool,
    bytes: usize,
    /// How many are timed together.
    count: u64,
    slices: u32,
}

/// Reads from each of `paths` in short turns, so that whatever else the machine does meets all of them, and prints how long
/// each turn took in microseconds. Says when it begins and ends.
fn blocks(paths: &[&str], reads: Reads) -> Result<(), String> {
    /// What is one piece of memory to a device, where the kernel has such pages to give.
    const HUGE: usize = 2 << 20;
    let mut room = vec![1; 2 * HUGE];
    let skip = room.as_ptr().align_offset(HUGE);
    let buffer = room
        .get_mut(skip..skip + reads.bytes)
        .ok_or("no buffer of that length")?;
    let mut disks = Vec::new();
    for path in paths {
        disks.push(Disk::open(path, buffer).map_err(|why| format!("{path}: {why}"))?);
    }
    println!("@ begins");
    for slice in 0..reads.slices {
        // Who is first changes.
        let turns: Vec<&mut Disk> = match slice % 2 {
            0 => disks.iter_mut().collect(),
            _ => disks.iter_mut().rev().collect(),
        };
        for disk in turns {
            let begun = Instant::now();
            disk.read(reads, buffer).map_err(|why| why.to_string())?;
            disk.times.push(begun.elapsed().as_micros());
        }
    }
    println!("@ ends");
    for (path, disk) in paths.iter().zip(&disks) {
        let times: Vec<String> = disk.times.iter().map(u128::to_string).collect();
        println!("@ times {path} {}", times.join(" "));
    }
    Ok(())
}

/// A block device that is read.
struct Disk {
    file: File,
    len: u64,
    /// Reads so far, and the state of the generator.
    done: u64,
    state: u64,
    times: Vec<u128>,
}

impl Disk {
    fn open(path: &str, buffer: &mut [u8]) -> std::io::Result<Self> {
        /// Of Linux, on x86.
        const O_DIRECT: i32 = 0o40000;
        let mut file = OpenOptions::new().read(true).custom_flags(O_DIRECT).open(path)?;
        let len = file.seek(SeekFrom::End(0))?;
        // One that is not measured, so that the path is as warm as it gets.
        file.read_exact_at(buffer, 0)?;
        Ok(Self {
            file,
            len,
            done: 0,
            state: 1,
            times: Vec::new(),
        })
    }

    fn read(&mut self, reads: Reads, buffer: &mut [u8]) -> std::io::Result<()> {
        let step = u64::try_from(reads.bytes).map_err(std::io::Error::other)?;
        let places = self.len.checked_div(step).filter(|places| *places > 0);
        let places = places.ok_or_else(|| std::io::Error::other("the disk is shorter than a read"))?;
        for _ in 0..reads.count {
            // Knuth's generator; its high bits are the good ones.
            self.state = self
                .state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let place = if reads.random { self.state >> 33 } else { self.done };
            self.done += 1;
            self.file.read_exact_at(buffer, place % places * step)?;
        }
        Ok(())
    }
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
