//! `iommu run --iommu aperture|none`: the rehearsal of a machine whose units are not there.

use iommu_dma::Unprotected;
use soft_platform::Machine;

use super::kind::{Bench, Kind, extent};
use super::outcome::{ComparisonRow, Outcome};
use super::source::Source;
use super::transcript::Transcript;
use super::{Options, dma_api, fail, lesser, lists, render};
use crate::exit::{Failure, Verdict};
use crate::size;

/// The function with the fewest address lines that has an engine.
fn narrowest(machine: &Machine) -> Option<iommu_types::Bdf> {
    let engines = machine.functions().filter(|function| function.engine);
    engines
        .min_by_key(|function| function.dma_bits)
        .map(|function| function.bdf)
}

/// Runs it, after the table and the functions were shown.
pub(super) fn rehearse(
    options: &Options,
    source: &Source,
    transcript: &mut Transcript,
    outcome: &mut Outcome,
) -> Result<Verdict, Failure> {
    let measure = |why: String| Failure::Measure(format!("{}: {why}", source.origin));
    let bench = match options.iommu {
        Kind::Aperture => match Bench::with_aperture(&source.description) {
            Ok(bench) => bench,
            Err(why) => {
                transcript.line("")?;
                transcript.line(&why)?;
                outcome.error = Some(why);
                return Ok(Verdict::Unsupported);
            }
        },
        _ => Bench::bare(&source.description).map_err(measure)?,
    };
    outcome.iommu = bench.kind().name();
    transcript.step("Protection: what stands between devices and memory")?;
    match bench.window.as_ref().and_then(extent) {
        Some(window) => {
            transcript.line(&format!(
                "aperture: the window {window} is translated, by one table for all devices"
            ))?;
            transcript.line("NO ISOLATION: outside of the window every device reaches all memory")?;
        }
        None => transcript.line(Unprotected::FACT)?,
    }
    transcript.line("nothing can be given to a guest: VFIO refuses a group that no unit contains (--iommu vtd)")?;
    let Some(function) = narrowest(&bench.machine) else {
        let why = "nothing to rehearse: no function has a DMA engine; in a machine file, `engine = true` gives it one";
        transcript.line(why)?;
        outcome.error = Some(why.to_owned());
        return Ok(Verdict::Unsupported);
    };

    transcript.step("DMA API: pages apart as one transfer; a 32-bit function and a page above 4 GiB")?;
    let mut row = ComparisonRow::new(bench.kind());
    let work = dma_api::without_unit(&bench, function, dma_api::NARROW_BITS).map_err(measure)?;
    for line in &work.lines {
        transcript.line(line)?;
    }
    row.take_work(&work);
    for problem in work.failed {
        fail(transcript, outcome, problem)?;
    }

    transcript.step("Data: DMA engines copy from scatter list to scatter list, every byte compared")?;
    let moved = lists::copy(&bench, options.bytes).map_err(measure)?;
    transcript.line(&format!(
        "{} copied in {:.2} s; {} pages given as {} segments, {} copied through bounce buffers",
        size::show(moved.copied.bytes),
        moved.copied.seconds,
        moved.pages,
        moved.segments,
        size::show(moved.bounced)
    ))?;
    outcome.summary.bytes_moved = moved.copied.bytes;
    outcome.summary.seconds = moved.copied.seconds;
    if let Some(problem) = moved.copied.problem {
        fail(transcript, outcome, problem)?;
    }

    transcript.step("Access matrix: who reaches what, tried with real accesses")?;
    let seen = lesser::build(&bench, &source.dmar, options.mem).map_err(measure)?;
    transcript.block(&render::matrix(&seen.requesters, &seen.cells))?;
    outcome.take_matrix(&seen.cells);
    row.take_cells(&seen.cells);
    outcome.comparison = vec![row];
    super::conclude(options, source, &seen.cells, transcript, outcome)
}
