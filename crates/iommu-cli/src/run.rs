//! `iommu run`: rehearses a device assignment, from a firmware table to an access matrix.
//!
//! Everything happens in software: the machine's own table is read, its units come up under the real driver,
//! the functions are assigned through VFIO, move real data, and are then told to reach for what is not theirs.
//! `--backend linux` is the exception: it drives one device of this machine that was handed over to vfio-pci.

pub(crate) mod expect;
pub(crate) mod matrix;

mod disk;
mod dma_api;
mod grid;
pub(crate) mod guests;
mod interrupts;
mod kind;
mod lesser;
mod lists;
mod outcome;
mod peers;
mod probe;
mod real;
mod render;
pub(crate) mod source;
mod steps;
mod survey;
mod traffic;
mod transcript;
mod unprotected;
mod without;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use iommu_types::Bdf;
use iommu_vfio::{Platform, PlatformOptions};

use self::expect::Expectation;
use self::guests::Guest;
use self::kind::{Bench, Kind};
use self::matrix::Cell;
use self::outcome::{DifferenceRow, GroupRow, Outcome};
use self::source::{Source, Wanted};
use self::transcript::Transcript;
use crate::exit::{Failure, Verdict, print, read_text};
use crate::{size, style};

/// The choice of `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BackendChoice {
    /// A machine in software; this one is not touched
    Software,
    /// A device of this machine that is bound to vfio-pci
    Linux,
}

/// What can be said on the command line.
#[derive(Debug, Args)]
#[command(after_help = crate::help::RUN)]
pub(crate) struct Options {
    /// A machine file; the embedded two-socket server if there is none
    machine: Option<PathBuf>,
    /// Take the machine from a firmware table: the functions that its scopes name
    #[arg(long, value_name = "FILE", conflicts_with = "machine")]
    dmar: Option<PathBuf>,
    /// Take the machine from a root folder or a snapshot: its functions, its table, what its units can do
    #[arg(long, value_name = "DIR|FILE", conflicts_with_all = ["machine", "dmar"])]
    root: Option<PathBuf>,
    /// What stands between devices and memory
    #[arg(long, value_name = "KIND", value_enum, default_value = "vtd")]
    iommu: Kind,
    /// Give these functions to the first guest, with all of their groups
    #[arg(long, value_name = "BDF", num_args = 1..)]
    assign: Vec<Bdf>,
    /// Memory of each guest
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "64M")]
    mem: u64,
    /// How much data to move through translated DMA
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "1G")]
    bytes: u64,
    /// Put a virtio disk over this file into the machine and drive it through VFIO; what is overwritten is put back
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// What to run on
    #[arg(
        long,
        value_name = "BACKEND",
        value_enum,
        default_value = "software",
        requires_if("linux", "device")
    )]
    backend: BackendChoice,
    /// With --backend linux: the virtio disk of this machine to drive, bound to vfio-pci; what is overwritten is put back
    #[arg(
        long,
        value_name = "BDF",
        requires = "backend",
        conflicts_with_all = [
            "machine", "dmar", "root", "iommu", "assign", "mem", "bytes", "disk", "expect", "keep", "unsafe_interrupts",
        ]
    )]
    device: Option<Bdf>,
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
pub(crate) const SMALLEST_GUEST: u64 = 1 << 20;

/// Runs the rehearsal. With `--json` there is one document on standard output, however it ends.
pub(crate) fn run(options: &Options) -> Result<Verdict, Failure> {
    let mut outcome = Outcome::default();
    let result = match (options.backend, options.device) {
        (BackendChoice::Software, None) => rehearse(options, &mut outcome),
        (BackendChoice::Linux, Some(function)) => steps::use_device(function, options, &mut outcome),
        (BackendChoice::Software, Some(function)) => Err(Failure::Input(format!(
            "--device {function}: a device of this machine is used with --backend linux only; a rehearsal in software has \
             --disk FILE"
        ))),
        (BackendChoice::Linux, None) => Err(Failure::Input(
            "--backend linux: name the device with --device".to_owned(),
        )),
    };
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
    let needs_isolation = [
        ("--assign", !options.assign.is_empty()),
        ("--disk", options.disk.is_some()),
    ];
    if let Some((option, _)) = needs_isolation.into_iter().find(|(_, given)| *given)
        && options.iommu != Kind::Vtd
    {
        return Err(Failure::Input(format!(
            "{option}: nothing can be assigned without isolation; it goes with --iommu vtd"
        )));
    }
    // A mistake in them is said before anything is done.
    expectation(options)?;
    if let Some(file) = &options.disk {
        disk::open(file)?;
    }
    let source = Source::load(&Wanted {
        file: options.machine.as_deref(),
        dmar: options.dmar.as_deref(),
        root: options.root.as_deref(),
    })?;
    let mut transcript = Transcript::new(options.json);
    transcript.block(&format!(
        "Rehearsal on {}: all in software, the host is not touched.\n\n",
        source.origin
    ))?;
    outcome.machine.clone_from(&source.origin);

    survey::table(&mut transcript, &source.dmar, &source.table_origin)?;
    if options.iommu != Kind::Vtd {
        let bare = Bench::bare(&source.description).map_err(Failure::Measure)?;
        survey::functions(&mut transcript, &bare.machine, options.iommu, &source.notes)?;
        return without::rehearse(options, &source, &mut transcript, outcome);
    }
    let machine = source.machine()?;
    guests::check_wishes(&machine, &options.assign).map_err(Failure::Input)?;
    survey::units(&mut transcript, &machine)?;
    survey::functions(&mut transcript, &machine, Kind::Vtd, &source.notes)?;
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
    let guests = match steps::assign(&mut transcript, &platform, &plan, options.mem)? {
        Ok(guests) => guests,
        Err(why) => {
            transcript.line(&why)?;
            outcome.summary.failed_checks.push(why);
            // What was asked for and cannot be is a finding; what was only tried is nothing to rehearse.
            let asked = !options.assign.is_empty();
            return Ok(if asked { Verdict::Findings } else { Verdict::Unsupported });
        }
    };
    steps::move_data(&mut transcript, &platform, &guests, options, outcome)?;
    let forged = steps::raise_interrupts(&mut transcript, &platform, &guests, outcome)?;
    if let Some(file) = &options.disk {
        steps::use_disk(&mut transcript, &platform, &plan, &source, file, options, outcome)?;
    }
    let benches = benches(&transcript, &source)?;
    let (mut vtd, mut rows) = steps::use_dma_api(&mut transcript, &platform, &guests, &benches, outcome)?;

    transcript.step("Access matrix: who reaches what, tried with real accesses")?;
    let grid = grid::build(&platform, &guests, options.mem).map_err(Failure::Measure)?;
    transcript.block(&render::matrix(&grid.requesters, &grid.cells))?;
    outcome.take_matrix(&grid.cells);
    outcome.summary.forbidden.add(forged);
    // The same accesses with and without: what needs a mapping to be forbidden is left out.
    let accesses = unprotected::accesses(&grid.repeatable);
    vtd.take_forbidden(accesses, accesses - grid.repeatable_and_reached());
    vtd.take_cells(&grid.cells);
    for (row, bench) in rows.iter_mut().zip(&benches) {
        let again = unprotected::try_again(bench, &grid.repeatable).map_err(Failure::Measure)?;
        row.take_forbidden(again.tried.into(), again.stopped.into());
        let lesser = lesser::build(bench, &source.dmar, options.mem).map_err(Failure::Measure)?;
        row.take_cells(&lesser.cells);
    }
    rows.push(vtd);
    survey::comparison(&mut transcript, &rows)?;
    outcome.comparison = rows;
    conclude(options, &source, &grid.cells, &transcript, outcome)
}

/// A machine whose units are in service and whose groups were given away, as a rehearsal has it.
#[derive(Debug)]
pub(crate) struct SetUp {
    /// What the machine is called.
    pub(crate) origin: String,
    /// What was assumed about it.
    pub(crate) notes: Vec<String>,
    /// The machine under the driver.
    pub(crate) platform: Platform,
    /// Who has what; nobody, if nothing can be given away.
    pub(crate) guests: Vec<Guest>,
}

/// Sets a machine up as a rehearsal does, without a word.
pub(crate) fn set_up(wanted: &Wanted<'_>, assign: &[Bdf], mem: u64, unsafe_interrupts: bool) -> Result<SetUp, Failure> {
    let source = Source::load(wanted)?;
    let machine = source.machine()?;
    guests::check_wishes(&machine, assign).map_err(Failure::Input)?;
    let options = PlatformOptions {
        unsafe_interrupts,
        ..PlatformOptions::default()
    };
    let platform =
        Platform::bring_up(machine, options).map_err(|why| Failure::Input(format!("{}: {why}", source.origin)))?;
    let plan = guests::plan(&platform, assign).map_err(|why| Failure::Input(why.to_string()))?;
    let mut given = Vec::new();
    let mut notes = source.notes;
    for (name, groups) in [("guest A", &plan.first), ("guest B", &plan.second)] {
        if groups.is_empty() {
            continue;
        }
        match guests::create(&platform, name, groups, mem) {
            Ok(guest) => given.push(guest),
            Err(why) if assign.is_empty() => notes.push(format!("{name} cannot have what it should: {why}")),
            Err(why) => return Err(Failure::Input(format!("{name} cannot have what it should: {why}"))),
        }
    }
    Ok(SetUp {
        origin: source.origin,
        notes,
        platform,
        guests: given,
    })
}

/// The kept matrix, if one was given.
fn expectation(options: &Options) -> Result<Option<Expectation>, Failure> {
    let Some(file) = &options.expect else {
        return Ok(None);
    };
    let kept = Expectation::parse(&read_text(file)?);
    let kept = kept.map_err(|why| Failure::Input(format!("{}:{why}", file.display())))?;
    Ok(Some(kept))
}

/// The machine without units: bare, and with an aperture if there is room for a window.
fn benches(transcript: &Transcript, source: &Source) -> Result<Vec<Bench>, Failure> {
    let bare = Bench::bare(&source.description)
        .map_err(|why| Failure::Measure(format!("{} without IOMMU: {why}", source.origin)))?;
    let mut benches = vec![bare];
    match Bench::with_aperture(&source.description) {
        Ok(bench) => benches.push(bench),
        Err(why) => transcript.line(&why)?,
    }
    Ok(benches)
}

/// The last step: what is not as it was kept, and what the run comes to.
fn conclude(
    options: &Options,
    source: &Source,
    cells: &[Cell],
    transcript: &Transcript,
    outcome: &mut Outcome,
) -> Result<Verdict, Failure> {
    if let Some(kept) = expectation(options)? {
        let differences: Vec<DifferenceRow> = kept.differences(cells).into_iter().map(DifferenceRow::from).collect();
        survey::differences(transcript, &differences)?;
        outcome.differences = Some(differences);
    }
    let cells_hold = cells.iter().all(Cell::holds);
    let as_kept = outcome.differences.as_ref().is_none_or(Vec::is_empty);
    outcome.summary.as_predicted = cells_hold && outcome.summary.failed_checks.is_empty();
    outcome.summary.ok = outcome.summary.as_predicted && as_kept;
    survey::verdict(transcript, outcome)?;
    if let Some(file) = &options.keep {
        std::fs::write(file, expect::keep(cells, &source.origin))
            .map_err(|why| Failure::Measure(format!("--keep {}: cannot be written: {why}", file.display())))?;
    }
    Ok(if outcome.summary.ok {
        Verdict::Yes
    } else {
        Verdict::Findings
    })
}

/// Notes a check that did not come out as predicted.
fn fail(transcript: &Transcript, outcome: &mut Outcome, problem: String) -> Result<(), Failure> {
    transcript.line(&format!("{} {problem}", style::bad("MISMATCH")))?;
    outcome.summary.failed_checks.push(problem);
    Ok(())
}
