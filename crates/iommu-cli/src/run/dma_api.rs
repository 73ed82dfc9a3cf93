//! The DMA API with and without a unit behind it: separate pages as one transfer, and a narrow device.

use iommu_dma::{Backend, BouncePool, Buffer, Counters, Device, Direct, Direction, DmaApi, Invalidation, Translated};
use iommu_iova::{IovaSpace, ReferenceAllocator};
use iommu_types::{AddressSpace, Bdf, HostPhys, Iova, SystemMemory};
use iommu_vfio::Platform;
use soft_platform::{Machine, PageRequest, Pages, Placement, Zone};

const PAGE: u64 = 4096;
/// Pool of bounce buffers below 4 GiB, for devices with 32 address lines.
const POOL: u64 = 1 << 20;
/// Transfers of each kind.
const ROUNDS: u64 = 16;

/// What the same work came to under one kind of IOMMU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Work {
    /// Lines for people.
    pub(crate) lines: Vec<String>,
    /// DMAs that the function issued.
    pub(crate) dmas: u64,
    /// Bytes copied through bounce buffers.
    pub(crate) bounced: u64,
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
    let mut work = run(platform.machine(), &api, function, bits, 1)?;
    if work.bounced != 0 {
        work.failed.push(format!(
            "{} bytes were bounced although a unit translates",
            work.bounced
        ));
    }
    Ok(work)
}

/// The same work on a machine without units.
pub(crate) fn without(machine: &Machine, function: Bdf, bits: u32) -> Result<Work, String> {
    let request = PageRequest::contiguous(POOL).zone(Zone::Below4G);
    let pages = machine
        .memory()
        .allocate_pages(request)
        .map_err(|why| why.to_string())?;
    let base = pages.at(0).ok_or("the pool lies nowhere")?;
    let pool = BouncePool::new(base, POOL, 1).map_err(|why| why.to_string())?;
    let api = DmaApi::new(Direct, machine.clone()).with_pool(pool);
    let mut work = run(machine, &api, function, bits, 2)?;
    let expected = if bits < 64 { 2 * ROUNDS * PAGE } else { 0 };
    if work.bounced != expected {
        work.failed
            .push(format!("{} bytes were bounced, expected {expected}", work.bounced));
    }
    Ok(work)
}

/// Two pages that lie apart, and a page above 4 GiB, in and out again.
fn run<B: Backend>(
    machine: &Machine,
    api: &DmaApi<B, Machine>,
    function: Bdf,
    bits: u32,
    expected_segments: usize,
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
        ..PageRequest::contiguous(2 * PAGE).zone(zone)
    };
    let low = machine
        .memory()
        .allocate_pages(apart(Zone::Below4G))
        .map_err(|why| why.to_string())?;
    let high = machine
        .memory()
        .allocate_pages(PageRequest::contiguous(PAGE).zone(Zone::Above4G))
        .ok();

    for round in 0..ROUNDS {
        let buffers = buffers(&low);
        let mapping = api
            .map_sg(&mut core, &device, &buffers, Direction::FromDevice)
            .map_err(|why| why.to_string())?;
        let segments: Vec<(Iova, u64)> = mapping.segments().iter().map(|s| (s.address, s.len)).collect();
        if round == 0 {
            let list = |parts: &[(u64, u64)]| {
                parts
                    .iter()
                    .map(|(at, len)| format!("{at:#x}+{len:#x}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            let from: Vec<_> = buffers.iter().map(|b| (b.phys.raw(), b.len)).collect();
            let to: Vec<_> = segments.iter().map(|(at, len)| (at.raw(), *len)).collect();
            work.lines
                .push(format!("{function}: buffers {} become {}", list(&from), list(&to)));
            if segments.len() != expected_segments {
                work.failed
                    .push(format!("two pages became {} segments", segments.len()));
            }
        }
        work.dmas += device_writes(machine, function, &segments, round)?;
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
            work.dmas += device_writes(machine, function, &segments, ROUNDS + round)?;
            api.unmap(&mut core, mapping).map_err(|why| why.to_string())?;
            check(machine, &buffers, ROUNDS + round, &mut work);
        }
    }
    let counters: Counters = api.retire(core).map_err(|why| why.to_string())?;
    work.bounced = counters.bounced_bytes;
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
fn device_writes(machine: &Machine, function: Bdf, segments: &[(Iova, u64)], round: u64) -> Result<u64, String> {
    machine
        .with_engine(function, |engine, bus| {
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
                engine.store(bus, *address, 0, *len).map_err(|why| why.to_string())?;
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
