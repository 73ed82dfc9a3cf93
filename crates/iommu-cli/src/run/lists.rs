//! Data through the DMA API on a machine without units: scatter lists in and out, every byte compared.

use std::time::Instant;

use iommu_dma::{Aperture, ApertureUnit, Backend, Buffer, Device, Direct, Direction, DmaApi, DmaSegment};
use iommu_types::{Bdf, SystemMemory};
use soft_platform::{Machine, PageRequest, Pages, Placement, Zone};

use super::dma_api::pool;
use super::kind::{Bench, Through};
use super::traffic::Copied;

const PAGE: u64 = 4096;
/// Pages of a list: what fits every engine's buffer.
const PAGES: u64 = 64;

/// What the copying came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists {
    /// Bytes, DMAs, time and what went wrong.
    pub(crate) copied: Copied,
    /// Pages given to devices.
    pub(crate) pages: u64,
    /// Segments that they became.
    pub(crate) segments: u64,
    /// Bytes copied through bounce buffers.
    pub(crate) bounced: u64,
}

/// Lets every function with an engine copy from one list to another, in turn, until `bytes` are copied.
///
/// # Errors
/// What could not be set up.
pub(crate) fn copy(bench: &Bench, bytes: u64) -> Result<Lists, String> {
    let machine = &bench.machine;
    let pool = pool(machine)?;
    if let Some(window) = &bench.window {
        let backend = Aperture::new(&window.unit, machine.clone(), window.base, window.len, window.table);
        let backend = backend.map_err(|why| why.to_string())?;
        rounds(bench, &DmaApi::new(backend, machine.clone()).with_pool(pool), bytes)
    } else {
        rounds(bench, &DmaApi::new(Direct, machine.clone()).with_pool(pool), bytes)
    }
}

fn scattered(machine: &Machine, zone: Zone) -> Result<Pages, String> {
    let request = PageRequest {
        placement: Placement::Scattered { extent: PAGE },
        ..PageRequest::contiguous(PAGES * PAGE).zone(zone)
    };
    machine.memory().allocate_pages(request).map_err(|why| why.to_string())
}

fn buffers(pages: &Pages) -> Vec<Buffer> {
    (0..PAGES)
        .filter_map(|page| Some(Buffer::new(pages.at(page * PAGE)?, PAGE)))
        .collect()
}

fn rounds<B: Backend>(bench: &Bench, api: &DmaApi<B, Machine>, bytes: u64) -> Result<Lists, String>
where
    B::Error: 'static,
{
    let machine = &bench.machine;
    let functions: Vec<(Bdf, u8)> = machine
        .functions()
        .filter(|function| function.engine)
        .map(|function| (function.bdf, function.dma_bits))
        .collect();
    for (bdf, _) in &functions {
        machine.set_command(*bdf, iommu_groups::pci::header::COMMAND_BUS_MASTER, true);
    }
    // The source lies high if there is high memory: what narrow devices do not reach.
    let source = scattered(machine, Zone::Above4G).or_else(|_| scattered(machine, Zone::Below4G))?;
    let destination = scattered(machine, Zone::Below4G)?;
    let (from, to) = (buffers(&source), buffers(&destination));
    let (start, mut lists, mut core) = (Instant::now(), Lists::default(), api.new_core());
    let mut round = 0_u64;
    'all: while lists.copied.bytes < bytes && !functions.is_empty() {
        for (function, bits) in &functions {
            round += 1;
            let device = Device::with_address_bits(u32::from(*bits));
            fill(machine, &from, round)?;
            let mapped = [(&from, Direction::ToDevice), (&to, Direction::FromDevice)]
                .map(|(list, direction)| api.map_sg(&mut core, &device, list, direction));
            let [read, written] = mapped.map(|mapping| mapping.map_err(|why| why.to_string()));
            let (read, written) = (read?, written?);
            let moved = transfer(
                machine,
                bench.aperture(),
                *function,
                read.segments(),
                written.segments(),
            );
            lists.segments += (read.segments().len() + written.segments().len()) as u64;
            lists.pages += 2 * PAGES;
            lists.copied.dmas += (read.segments().len() + written.segments().len()) as u64;
            api.unmap(&mut core, read).map_err(|why| why.to_string())?;
            api.unmap(&mut core, written).map_err(|why| why.to_string())?;
            let problem = moved.err().or(compare(machine, &to, round)?);
            if let Some(problem) = problem {
                lists.copied.problem = Some(format!("{function} in round {round}: {problem}"));
                break 'all;
            }
            lists.copied.bytes += PAGES * PAGE;
        }
    }
    lists.copied.seconds = start.elapsed().as_secs_f64();
    lists.bounced = api.retire(core).map_err(|why| why.to_string())?.bounced_bytes;
    machine.memory().release_pages(source);
    machine.memory().release_pages(destination);
    Ok(lists)
}

/// The function reads one list into its buffer and writes the other one from it.
fn transfer(
    machine: &Machine,
    aperture: Option<&ApertureUnit>,
    function: Bdf,
    from: &[DmaSegment],
    to: &[DmaSegment],
) -> Result<(), String> {
    let run = machine.with_engine(function, |engine, bus| {
        let bus = Through { aperture, machine, bus };
        let mut at = 0;
        for segment in from {
            engine
                .fetch(&bus, segment.address, at, segment.len)
                .map_err(|why| why.to_string())?;
            at += segment.len;
        }
        at = 0;
        for segment in to {
            engine
                .store(&bus, segment.address, at, segment.len)
                .map_err(|why| why.to_string())?;
            at += segment.len;
        }
        Ok(())
    });
    run.map_err(|why| why.to_string())?
}

/// The byte at position `at` of a list in a round.
fn pattern(round: u64, at: u64) -> u8 {
    let [.., high] = (round << 32 ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    high
}

fn page(round: u64, number: u64) -> Vec<u8> {
    (number * PAGE..(number + 1) * PAGE)
        .map(|at| pattern(round, at))
        .collect()
}

fn fill(machine: &Machine, list: &[Buffer], round: u64) -> Result<(), String> {
    for (number, buffer) in (0..).zip(list) {
        machine
            .write(buffer.phys, &page(round, number))
            .map_err(|why| why.to_string())?;
    }
    Ok(())
}

/// What is not as it was written, if something is not.
fn compare(machine: &Machine, list: &[Buffer], round: u64) -> Result<Option<String>, String> {
    let mut found = vec![0; 4096];
    for (number, buffer) in (0..).zip(list) {
        machine.read(buffer.phys, &mut found).map_err(|why| why.to_string())?;
        if found != page(round, number) {
            return Ok(Some(format!(
                "page {number} of the list, at {}, has other data",
                buffer.phys
            )));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use soft_platform::MachineDescription;

    #[test]
    fn an_aperture_joins_lists_and_spares_copies() {
        let description = MachineDescription::two_socket().expect("sound");
        let bare = copy(&Bench::bare(&description).expect("a machine"), 16 << 20).expect("it runs");
        let joined = copy(&Bench::with_aperture(&description).expect("room"), 16 << 20).expect("it runs");
        for lists in [&bare, &joined] {
            assert_eq!(lists.copied.problem, None);
            assert!(lists.copied.bytes >= 16 << 20);
        }
        assert_eq!(joined.segments * PAGES, joined.pages, "each list is one segment");
        assert_eq!(joined.bounced, 0);
        assert!(bare.segments > joined.segments * 8, "{} segments", bare.segments);
        assert!(bare.bounced > 0, "the sample has functions with 32 address lines");
    }
}
