//! `iommu run`: rehearses a device assignment, from a firmware table to an access matrix.
//!
//! Everything happens in software: the machine's own table is read, its units come up under the real driver,
//! the functions are assigned through VFIO, move real data, and are then told to reach for what is not theirs.

pub(crate) mod expect;
pub(crate) mod matrix;

mod dma_api;
mod grid;
mod guests;
mod interrupts;
mod outcome;
mod probe;
mod render;
mod source;
mod survey;
mod traffic;
mod transcript;
mod unprotected;

use std::path::PathBuf;

use clap::Args;
use iommu_types::{Bdf, Iova};
use iommu_vfio::{Platform, PlatformOptions, VfioError};
use soft_platform::Machine;

use self::expect::Expectation;
use self::guests::{Guest, Plan};
use self::matrix::Tally;
use self::outcome::{ComparisonRow, DifferenceRow, GroupRow, Outcome};
use self::source::Source;
use self::transcript::Transcript;
use crate::exit::{Failure, Verdict, print, read_text};
use crate::size;

/// What can be said on the command line.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A machine file; the embedded two-socket server if there is none
    machine: Option<PathBuf>,
    /// Take the machine from a firmware table: the functions that its scopes name
    #[arg(long, value_name = "FILE", conflicts_with = "machine")]
    dmar: Option<PathBuf>,
    /// Give these functions to the first guest, with all of their groups
    #[arg(long, value_name = "BDF", num_args = 1..)]
    assign: Vec<Bdf>,
    /// Memory of each guest
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "64M")]
    mem: u64,
    /// How much data to move through translated DMA
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "1G")]
    bytes: u64,
    /// Compare the access matrix with a kept one
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// Keep the access matrix in a file, for --expect
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
    /// Assign groups although their unit does not remap interrupts: a guest can then raise any interrupt
    #[arg(long)]
    unsafe_interrupts: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The smallest guest: room for a source, a destination and the pages of the probes.
const SMALLEST_GUEST: u64 = 1 << 20;
/// Bytes that a function copies in one round at most.
const ROUND: u64 = 16 << 20;
/// Address lines of the narrow device of the DMA API's step.
const NARROW_BITS: u32 = 32;

/// Runs the rehearsal. With `--json` there is one document on standard output, however it ends.
pub(crate) fn run(options: &Options) -> Result<Verdict, Failure> {
    let mut outcome = Outcome::default();
    let result = rehearse(options, &mut outcome);
    if options.json {
        if let Err(failure) = &result {
            outcome.summary.ok = false;
            outcome.error = Some(failure.to_string());
        }
        let text = serde_json::to_string_pretty(&outcome).map_err(|why| Failure::Measure(why.to_string()))?;
        print(&format!("{text}\n"))?;
    }
    result
}

fn rehearse(options: &Options, outcome: &mut Outcome) -> Result<Verdict, Failure> {
    if options.mem < SMALLEST_GUEST || !options.mem.is_multiple_of(4096) {
        let smallest = size::show(SMALLEST_GUEST);
        return Err(Failure::Input(format!(
            "--mem: expected whole pages, {smallest} or more"
        )));
    }
    let kept = match &options.expect {
        None => None,
        Some(file) => Some(
            Expectation::parse(&read_text(file)?).map_err(|why| Failure::Input(format!("{}:{why}", file.display())))?,
        ),
    };
    let source = Source::load(options.machine.as_deref(), options.dmar.as_deref())?;
    let mut transcript = Transcript::new(options.json);
    transcript.block(&format!(
        "Rehearsal on {}: all in software, the host is not touched.\n\n",
        source.origin
    ))?;
    outcome.machine.clone_from(&source.origin);

    survey::table(&mut transcript, &source.dmar, &source.table_origin)?;
    let machine = source.machine()?;
    guests::check_wishes(&machine, &options.assign).map_err(Failure::Input)?;
    survey::units(&mut transcript, &machine)?;
    survey::functions(&mut transcript, &machine, &source.notes)?;
    let platform_options = PlatformOptions {
        unsafe_interrupts: options.unsafe_interrupts,
        ..PlatformOptions::default()
    };
    let platform = Platform::bring_up(machine.clone(), platform_options)
        .map_err(|why| Failure::Input(format!("{}: {why}", source.origin)))?;
    outcome.groups = survey::groups(&mut transcript, &platform)?
        .into_iter()
        .map(GroupRow::from)
        .collect();
    survey::bring_up(&mut transcript, &platform)?;
    for step in &platform.report().units {
        if let Err(why) = &step.outcome {
            let problem = format!(
                "unit {} is not in service, its functions reach everything: {why}",
                step.unit
            );
            fail(&transcript, outcome, problem)?;
        }
    }

    let plan = guests::plan(&platform, &options.assign).map_err(|why| Failure::Input(why.to_string()))?;
    let nothing = match plan.first.as_slice() {
        [] => Some(guests::why_nobody(&platform)),
        groups if !guests::has_engine(&platform, groups) => Some(format!(
            "nothing that was asked for has a DMA engine; in a machine file, `engine = true` gives {} one",
            options
                .assign
                .first()
                .map_or_else(|| "the function".to_owned(), ToString::to_string)
        )),
        _ => None,
    };
    if let Some(why) = nothing {
        transcript.line("")?;
        transcript.line(&format!("nothing to rehearse: {why}"))?;
        outcome.error = Some(format!("nothing to rehearse: {why}"));
        return Ok(Verdict::Unsupported);
    }
    let guests = match assign(&mut transcript, &platform, &plan, options.mem)? {
        Ok(guests) => guests,
        Err(why) => {
            transcript.line(&why)?;
            outcome.summary.failed_checks.push(why);
            // What was asked for and cannot be is a finding; what was only tried is nothing to rehearse.
            let asked = !options.assign.is_empty();
            return Ok(if asked { Verdict::Findings } else { Verdict::Unsupported });
        }
    };
    move_data(&mut transcript, &platform, &guests, options, outcome)?;
    let forged = raise_interrupts(&mut transcript, &platform, &guests, outcome)?;
    let bare = Machine::without_iommu(&source.description)
        .map_err(|why| Failure::Measure(format!("{} without IOMMU: {why}", source.origin)))?;
    let (mut vtd, mut none) = use_dma_api(&mut transcript, &platform, &guests, &bare, outcome)?;

    transcript.step("Access matrix: who reaches what, tried with real accesses")?;
    let grid = grid::build(&platform, &guests, options.mem).map_err(Failure::Measure)?;
    transcript.block(&render::matrix(&grid.requesters, &grid.cells))?;
    outcome.take_matrix(&grid.cells);
    outcome.summary.forbidden.add(forged);
    // The same accesses with and without: what needs a mapping to be forbidden is left out.
    let again = unprotected::try_again(&bare, &grid.repeatable).map_err(Failure::Measure)?;
    let accesses = unprotected::accesses(&grid.repeatable);
    for (row, tried, blocked) in [
        (&mut none, u64::from(again.tried), u64::from(again.stopped)),
        (&mut vtd, accesses, accesses - grid.repeatable_and_reached()),
    ] {
        row.dmas += tried;
        row.forbidden_tried = tried;
        row.forbidden_blocked = blocked;
    }
    survey::comparison(&mut transcript, &none, &vtd)?;
    outcome.comparison = vec![none, vtd];

    if let Some(kept) = kept {
        let differences: Vec<DifferenceRow> = kept
            .differences(&grid.cells)
            .into_iter()
            .map(DifferenceRow::from)
            .collect();
        survey::differences(&transcript, &differences)?;
        outcome.differences = Some(differences);
    }
    let cells_hold = grid.cells.iter().all(matrix::Cell::holds);
    let as_kept = outcome.differences.as_ref().is_none_or(Vec::is_empty);
    outcome.summary.ok = cells_hold && as_kept && outcome.summary.failed_checks.is_empty();
    survey::verdict(&transcript, outcome)?;
    if let Some(file) = &options.keep {
        std::fs::write(file, expect::keep(&grid.cells, &source.origin))
            .map_err(|why| Failure::Measure(format!("--keep {}: cannot be written: {why}", file.display())))?;
    }
    Ok(if outcome.summary.ok {
        Verdict::Yes
    } else {
        Verdict::Findings
    })
}

/// Step: containers, groups and devices of the guests, and their memory. The inner error says why a guest cannot
/// have what it should.
fn assign(
    transcript: &mut Transcript,
    platform: &Platform,
    plan: &Plan,
    mem: u64,
) -> Result<Result<Vec<Guest>, String>, Failure> {
    transcript.step("Assignment: container, group, device; guest addresses to host addresses")?;
    let mut guests = Vec::new();
    for (name, groups) in [("guest A", &plan.first), ("guest B", &plan.second)] {
        if groups.is_empty() {
            continue;
        }
        match guests::create(platform, name, groups, mem) {
            Ok(guest) => {
                survey::guest(transcript, platform, &guest)?;
                guests.push(guest);
            }
            Err(why @ VfioError::OutOfMemory(_)) => {
                let mem = size::show(mem);
                return Err(Failure::Input(format!("--mem: {name} cannot have {mem}: {why}")));
            }
            Err(why) => {
                let accept = match why {
                    VfioError::UnsafeInterrupts(_) => " (--unsafe-interrupts)",
                    _ => "",
                };
                return Ok(Err(format!("{name} cannot have what it should: {why}{accept}")));
            }
        }
    }
    Ok(Ok(guests))
}

/// Step: data through translated addresses.
fn move_data(
    transcript: &mut Transcript,
    platform: &Platform,
    guests: &[Guest],
    options: &Options,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    transcript.step("Data: DMA engines copy through their guests' addresses, every byte compared")?;
    let machine = platform.machine();
    let mut work = Vec::new();
    for guest in guests {
        let engines: Vec<Bdf> = guest
            .functions()
            .filter(|bdf| machine.function(*bdf).is_some_and(|f| f.engine))
            .collect();
        // Below 3 GiB guest addresses are offsets in the guest's memory; each function has its own part.
        let parts = 2 * engines.len().max(1) as u64;
        let share = (guest.memory.memory().len().min(3 << 30) / parts) & !4095;
        if share == 0 {
            let (name, needed) = (&guest.name, size::show(parts * 4096));
            return Err(Failure::Input(format!(
                "--mem: {name} has {} functions that copy between pages of their own: give at least {needed}",
                engines.len()
            )));
        }
        for (number, function) in engines.into_iter().enumerate() {
            let base = 2 * share * number as u64;
            work.push(traffic::Copy {
                function,
                source: Iova::new(base),
                destination: Iova::new(base + share),
                len: share.min(ROUND),
                memory: guest.memory.memory(),
            });
        }
    }
    let copied = traffic::copy(machine, &work, options.bytes);
    let rate = if copied.seconds > 0.0 {
        (copied.bytes >> 20) as f64 / copied.seconds
    } else {
        0.0
    };
    transcript.line(&format!(
        "{} functions copied {} in {:.2} s ({rate:.0} MiB/s, comparing included), {} DMAs",
        work.len(),
        size::show(copied.bytes),
        copied.seconds,
        copied.dmas
    ))?;
    for unit in machine.units() {
        if let Some(counters) = machine
            .unit_counters(unit.index)
            .filter(|counters| counters.requests > 0)
        {
            transcript.line(&format!("unit {}: {}", unit.index, survey::counters(&counters)))?;
        }
    }
    if work.is_empty() {
        transcript.line("nothing was moved: no guest has a function with a DMA engine")?;
    }
    outcome.summary.bytes_moved = copied.bytes;
    outcome.summary.seconds = copied.seconds;
    if let Some(problem) = copied.problem {
        fail(transcript, outcome, problem)?;
    }
    Ok(())
}

/// Step: an interrupt that arrives and one that is forged.
fn raise_interrupts(
    transcript: &mut Transcript,
    platform: &Platform,
    guests: &[Guest],
    outcome: &mut Outcome,
) -> Result<Tally, Failure> {
    transcript.step("Interrupts: one through its remapping entry, the same one forged")?;
    let Some(guest) = guests.first() else {
        return Ok(Tally::default());
    };
    let seen = interrupts::show(platform, guest).map_err(Failure::Measure)?;
    for line in &seen.lines {
        transcript.line(line)?;
    }
    for problem in seen.failed {
        fail(transcript, outcome, problem)?;
    }
    Ok(seen.forged)
}

/// Step: the DMA API of the host, with the unit and without one.
fn use_dma_api(
    transcript: &mut Transcript,
    platform: &Platform,
    guests: &[Guest],
    bare: &Machine,
    outcome: &mut Outcome,
) -> Result<(ComparisonRow, ComparisonRow), Failure> {
    transcript.step("DMA API: two pages apart as one transfer; a 32-bit function and a page above 4 GiB")?;
    let mut vtd = ComparisonRow::new("VT-d");
    let mut none = ComparisonRow::new("none");
    let Some(function) = host_function(platform, guests) else {
        transcript.line("every function is assigned or unserved: the host has none to show this with")?;
        return Ok((vtd, none));
    };
    for (label, work, row) in [
        ("no IOMMU", dma_api::without(bare, function, NARROW_BITS), &mut none),
        ("VT-d", dma_api::with_unit(platform, function, NARROW_BITS), &mut vtd),
    ] {
        let work = work.map_err(Failure::Measure)?;
        for line in &work.lines {
            transcript.line(&format!("{label:<8} {line}"))?;
        }
        row.dmas += work.dmas;
        row.bytes_bounced = work.bounced;
        for problem in work.failed {
            fail(transcript, outcome, format!("{label}: {problem}"))?;
        }
    }
    Ok((vtd, none))
}

/// A function that stayed with the host and is served by a unit; one with 32 address lines first.
fn host_function(platform: &Platform, guests: &[Guest]) -> Option<Bdf> {
    let machine = platform.machine();
    let assigned = |bdf: Bdf| {
        guests
            .iter()
            .flat_map(|guest| &guest.groups)
            .any(|group| group.members.contains(&bdf))
    };
    let reserved = |bdf: Bdf| {
        platform
            .report()
            .regions
            .iter()
            .any(|region| region.functions.contains(&bdf))
    };
    let mut free: Vec<_> = machine
        .functions()
        .filter(|f| f.engine && !assigned(f.bdf) && !reserved(f.bdf) && platform.unit_of(f.bdf).is_ok())
        .collect();
    free.sort_by_key(|function| function.dma_bits);
    free.first().map(|function| function.bdf)
}

/// Notes a check that did not come out as predicted.
fn fail(transcript: &Transcript, outcome: &mut Outcome, problem: String) -> Result<(), Failure> {
    transcript.line(&format!("MISMATCH {problem}"))?;
    outcome.summary.failed_checks.push(problem);
    Ok(())
}
