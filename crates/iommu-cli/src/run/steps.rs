//! The steps of a rehearsal that work with the assigned functions, and the one that uses a device of this machine.

use std::path::Path;

use iommu_types::{Bdf, Iova};
use iommu_vfio::{Platform, VfioError};

use super::guests::{self, Guest, Plan};
use super::kind::{Bench, Kind};
use super::matrix::Tally;
use super::outcome::{ComparisonRow, Outcome};
use super::source::Source;
use super::transcript::Transcript;
use super::{Options, disk, dma_api, fail, interrupts, survey, traffic};
use crate::exit::{Failure, Verdict};
use crate::size;

/// Bytes that a function copies in one round at most.
const ROUND: u64 = 16 << 20;

/// Step: containers, groups and devices of the guests, and their memory. The inner error says why a guest cannot
/// have what it should.
pub(super) fn assign(
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
                    VfioError::UnsafeInterrupts(_) => " with --unsafe-interrupts",
                    _ => "",
                };
                return Ok(Err(format!("{name} cannot have what it should: {why}{accept}")));
            }
        }
    }
    Ok(Ok(guests))
}

/// Step: data through translated addresses.
pub(super) fn move_data(
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
pub(super) fn raise_interrupts(
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

/// Step: a driver of another crate with a disk behind the unit.
pub(super) fn use_disk(
    transcript: &mut Transcript,
    platform: &Platform,
    plan: &Plan,
    source: &Source,
    file: &Path,
    options: &Options,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    transcript.step("Disk: a user-space driver reads and writes a virtio disk through VFIO and the unit")?;
    let Some(function) = disk::place(platform, &plan.first) else {
        let why = "no group of guest A is a single endpoint in whose place a disk could stand; name one with --assign";
        return fail(transcript, outcome, format!("--disk: {why}"));
    };
    let row = disk::rehearse(source, function, file, options.unsafe_interrupts)?;
    for line in row.lines() {
        transcript.line(&line)?;
    }
    for problem in &row.failed {
        fail(transcript, outcome, format!("{function}: {problem}"))?;
    }
    outcome.disk = Some(row);
    Ok(())
}

/// The whole run with `--backend linux`: the driver of the step above, on a device of this machine.
pub(super) fn use_device(function: Bdf, options: &Options, outcome: &mut Outcome) -> Result<Verdict, Failure> {
    let mut transcript = Transcript::new(options.json);
    outcome.backend = "linux";
    outcome.iommu = "host";
    "this machine".clone_into(&mut outcome.machine);
    transcript.block(&format!(
        "On this machine's {function}, through /dev/vfio: sectors are overwritten, compared and put back.\n\n"
    ))?;
    transcript.step("Disk: a user-space driver reads and writes a virtio disk through VFIO and the machine's IOMMU")?;
    let row = match disk::linux::drive(function) {
        Ok(row) => row,
        Err(disk::linux::Stop::Unsupported(why)) => {
            transcript.line(&why)?;
            outcome.error = Some(why);
            return Ok(Verdict::Unsupported);
        }
        Err(disk::linux::Stop::Failed(failure)) => return Err(failure),
    };
    for line in row.lines() {
        transcript.line(&line)?;
    }
    for problem in &row.failed {
        fail(&transcript, outcome, format!("{function}: {problem}"))?;
    }
    outcome.summary.as_predicted = row.failed.is_empty();
    outcome.summary.ok = outcome.summary.as_predicted;
    outcome.disk = Some(row);
    Ok(if outcome.summary.ok {
        Verdict::Yes
    } else {
        Verdict::Findings
    })
}

/// Step: the DMA API of the host, with the unit and without one. The row of the unit, and one for each bench.
pub(super) fn use_dma_api(
    transcript: &mut Transcript,
    platform: &Platform,
    guests: &[Guest],
    benches: &[Bench],
    outcome: &mut Outcome,
) -> Result<(ComparisonRow, Vec<ComparisonRow>), Failure> {
    transcript.step("DMA API: pages apart as one transfer; a 32-bit function and a page above 4 GiB")?;
    let mut vtd = ComparisonRow::new(Kind::Vtd);
    let mut rows: Vec<ComparisonRow> = benches.iter().map(|bench| ComparisonRow::new(bench.kind())).collect();
    let Some(function) = host_function(platform, guests) else {
        transcript.line("every function is assigned or unserved: the host has none to show this with")?;
        return Ok((vtd, rows));
    };
    let without = benches
        .iter()
        .map(|bench| dma_api::without_unit(bench, function, dma_api::NARROW_BITS));
    let works = without.chain([dma_api::with_unit(platform, function, dma_api::NARROW_BITS)]);
    for (row, work) in rows.iter_mut().chain([&mut vtd]).zip(works) {
        let work = work.map_err(Failure::Measure)?;
        for line in &work.lines {
            transcript.line(&format!("{:<8} {line}", row.iommu))?;
        }
        row.take_work(&work);
        for problem in work.failed {
            fail(transcript, outcome, format!("{}: {problem}", row.iommu))?;
        }
    }
    Ok((vtd, rows))
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
