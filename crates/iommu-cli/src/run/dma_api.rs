//! The DMA API over a unit, an aperture and nothing: separate pages as one transfer, and a narrow device.

use iommu_dma::{
    Aperture, ApertureUnit, Backend, BouncePool, Buffer, Counters, Device, Direct, Direction, DmaApi, Invalidation,
    Translated,
};
use iommu_iova::{IovaSpace, ReferenceAllocator};
use iommu_types::{AddressSpace, Bdf, HostPhys, Iova, SystemMemory};
use iommu_vfio::Platform;
use soft_platform::{Machine, PageRequest, Pages, Placement, Zone};

use super::kind::{Bench, Through};

const PAGE: u64 = 4096;
/// Address lines of the narrow device.
pub(super) const NARROW_BITS: u32 = 32;
/// Pool of bounce buffers below 4 GiB, for devices with 32 address lines.
const POOL: u64 = 1 << 20;
/// Transfers of each kind.
const ROUNDS: u64 = 16;
/// Pages of a scatter list, none next to another.
pub(crate) const LIST: u64 = 8;

/// What the same work came to under one kind of IOMMU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Work {
    /// Lines for people.
    pub(crate) lines: Vec<String>,
    /// DMAs that the function issued.
    pub(crate) dmas: u64,
    /// Bytes copied through bounce buffers.
    pub(crate) bounced: u64,
    /// Whether the machine has memory above 4 GiB, so that a narrow device has something to miss.
    pub(crate) high: bool,
    /// Segments that a scatter list of [`LIST`] pages became.
    pub(crate) segments: u64,
    /// Waits for the hardware to forget.
    pub(crate) invalidations: u64,
    /// What did not come out as it should.
    pub(crate) failed: Vec<String>,
}

/// The work through the unit that serves `function`, which stays with the host.
pub(crate) fn with_unit(platform: &Platform, function: Bdf, bits: u32) -> Result<Work, String> {
    let space = platform.host_space(function).map_err(|why| why.to_string())?;
    let iovas = ReferenceAllocator::new(IovaSpace::new(space.aperture()).map_err(|why| why.to_string())?);
    let api = DmaApi::new(
        Translated::new(space, iovas, Invalidation::Strict),
        platform.machine().clone(),
    );
    let device = Narrow { function, bits };
    let mut work = run(platform.machine(), None, &api, device, 1)?;
    nothing_bounced(&mut work, "a unit");
    Ok(work)
}

/// Where something translates, no device is too narrow.
fn nothing_bounced(work: &mut Work, who: &str) {
    if work.bounced != 0 {
        let bytes = work.bounced;
        work.failed
            .push(format!("{bytes} bytes were bounced although {who} translates"));
    }
}

/// A function and how many address lines it drives in this work.
#[derive(Clone, Copy, Debug)]
struct Narrow {
    function: Bdf,
    bits: u32,
}

/// The same work on a machine without units.
pub(crate) fn without_unit(bench: &Bench, function: Bdf, bits: u32) -> Result<Work, String> {
    let machine = &bench.machine;
    let pool = pool(machine)?;
    let device = Narrow { function, bits };
    if let Some(window) = &bench.window {
        let backend = Aperture::new(&window.unit, machine.clone(), window.base, window.len, window.table);
        let backend = backend.map_err(|why| why.to_string())?;
        let api = DmaApi::new(backend, machine.clone()).with_pool(pool);
        let mut work = run(machine, Some(&window.unit), &api, device, 1)?;
        nothing_bounced(&mut work, "an aperture");
        return Ok(work);
    }
    let api = DmaApi::new(Direct, machine.clone()).with_pool(pool);
    let mut work = run(machine, None, &api, device, LIST)?;
    let expected = if bits < 64 && work.high { 2 * ROUNDS * PAGE } else { 0 };
    if work.bounced != expected {
        work.failed
            .push(format!("{} bytes were bounced, expected {expected}", work.bounced));
    }
    Ok(work)
}

/// Memory to copy through, where devices with 32 address lines reach it.
pub(crate) fn pool(machine: &Machine) -> Result<BouncePool, String> {
    let request = PageRequest::contiguous(POOL).zone(Zone::Below4G);
    let pages = machine
        .memory()
        .allocate_pages(request)
        .map_err(|why| why.to_string())?;
    let base = pages.at(0).ok_or("the pool lies nowhere")?;
    BouncePool::new(base, POOL, 1).map_err(|why| why.to_string())
}

/// Pages that lie apart, and a page above 4 GiB, in and out again.
fn run<B: Backend>(
    machine: &Machine,
    aperture: Option<&ApertureUnit>,
    api: &DmaApi<B, Machine>,
    Narrow { function, bits }: Narrow,
    expected_segments: u64,
) -> Result<Work, String>
where
    B::Error: 'static,
{
    machine.set_command(function, iommu_groups::pci::header::COMMAND_BUS_MASTER, true);
    let mut core = api.new_core();
    let device = Device::with_address_bits(bits);
    let mut work = Work::default();
    let apart = |zone| PageRequest {
        placement: Placement::Scattered { extent: PAGE },
        ..PageRequest::contiguous(LIST * PAGE).zone(zone)
    };
    let low = machine
        .memory()
        .allocate_pages(apart(Zone::Below4G))
        .map_err(|why| why.to_string())?;
    let high = machine
        .memory()
        .allocate_pages(PageRequest::contiguous(PAGE).zone(Zone::Above4G))
        .ok();
    work.high = high.is_some();

    for round in 0..ROUNDS {
        let buffers = buffers(&low);
        let mapping = api
            .map_sg(&mut core, &device, &buffers, Direction::FromDevice)
            .map_err(|why| why.to_string())?;
        let segments: Vec<(Iova, u64)> = mapping.segments().iter().map(|s| (s.address, s.len)).collect();
        if round == 0 {
            let first = buffers.first().map_or(0, |buffer| buffer.phys.raw());
            let to = segments.first().map_or(0, |(at, _)| at.raw());
            work.segments = segments.len() as u64;
            work.lines.push(format!(
                "{function}: {LIST} pages that lie apart, the first at {first:#x}, become {} at {to:#x}",
                match segments.len() {
                    1 => "one segment".to_owned(),
                    many => format!("{many} segments, the first"),
                }
            ));
            if work.segments != expected_segments {
                work.failed.push(format!(
                    "{LIST} pages became {} segments, expected {expected_segments}",
                    segments.len()
                ));
            }
        }
        work.dmas += device_writes(machine, aperture, function, &segments, round)?;
        api.unmap(&mut core, mapping).map_err(|why| why.to_string())?;
        check(machine, &buffers, round, &mut work);
    }

    if let Some(high) = &high {
        for round in 0..ROUNDS {
            let buffers = buffers(high);
            let mapping = api
                .map_sg(&mut core, &device, &buffers, Direction::FromDevice)
                .map_err(|why| why.to_string())?;
            let segments: Vec<(Iova, u64)> = mapping.segments().iter().map(|s| (s.address, s.len)).collect();
            if round == 0 {
                let how = if mapping.bounced_bytes() > 0 {
                    "through a bounce buffer at"
                } else {
                    "directly, as"
                };
                let at = segments.first().map_or(0, |(at, _)| at.raw());
                let from = buffers.first().map_or(0, |b| b.phys.raw());
                work.lines.push(format!(
                    "{function}: drives {bits} bits; a buffer at {from:#x} is reached {how} {at:#x}"
                ));
            }
            work.dmas += device_writes(machine, aperture, function, &segments, ROUNDS + round)?;
            api.unmap(&mut core, mapping).map_err(|why| why.to_string())?;
            check(machine, &buffers, ROUNDS + round, &mut work);
        }
    }
    let counters: Counters = api.retire(core).map_err(|why| why.to_string())?;
    work.bounced = counters.bounced_bytes;
    work.invalidations = counters.invalidations;
    machine.memory().release_pages(low);
    if let Some(high) = high {
        machine.memory().release_pages(high);
    }
    Ok(work)
}

/// A buffer for each page.
fn buffers(pages: &Pages) -> Vec<Buffer> {
    (0..pages.bytes() / PAGE)
        .filter_map(|page| Some(Buffer::new(pages.at(page * PAGE)?, PAGE)))
        .collect()
}

/// The function writes a pattern through all segments, one DMA each.
fn device_writes(
    machine: &Machine,
    aperture: Option<&ApertureUnit>,
    function: Bdf,
    segments: &[(Iova, u64)],
    round: u64,
) -> Result<u64, String> {
    machine
        .with_engine(function, |engine, bus| {
            let bus = Through { aperture, machine, bus };
            let mut at = 0_u64;
            for (address, len) in segments {
                let size = usize::try_from(*len).map_err(|why| why.to_string())?;
                let part = engine
                    .buffer_mut()
                    .get_mut(..size)
                    .ok_or("a segment is longer than the engine's buffer")?;
                for (offset, byte) in part.iter_mut().enumerate() {
                    *byte = pattern(round, at + offset as u64);
                }
                engine.store(&bus, *address, 0, *len).map_err(|why| why.to_string())?;
                at += len;
            }
            Ok(segments.len() as u64)
        })
        .map_err(|why| why.to_string())?
}

/// The byte at position `at` in round `round`.
fn pattern(round: u64, at: u64) -> u8 {
    (round.wrapping_mul(31) ^ at ^ (at >> 8)).to_le_bytes()[0]
}

/// Looks at every byte of the buffers.
fn check(machine: &Machine, buffers: &[Buffer], round: u64, work: &mut Work) {
    let mut at = 0;
    for buffer in buffers {
        let mut found = [0; 4096];
        let read = machine.read(HostPhys::new(buffer.phys.raw()), &mut found);
        let right = found.iter().zip(at..).all(|(byte, at)| *byte == pattern(round, at));
        if read.is_err() || !right {
            work.failed
                .push(format!("wrong data in the buffer at {} in round {round}", buffer.phys));
        }
        at += buffer.len;
    }
}
