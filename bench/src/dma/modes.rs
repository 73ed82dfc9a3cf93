//! B10, the driver's side: rings of other lengths and other buffers, and the two ways to map without mapping.

use std::hint::black_box;

use iommu_dma::Invalidation;
use iommu_testkit::{HardwareView, SparseMemory};
use iommu_types::{HostPhys, Iova};

use super::steps::{Buffers, Plain, Pool, Reuse, Ring, Steps, Turning};
use super::{LinuxShaped, Ours, Outcome, RING, Space, api};
use crate::iova::linux::Range;
use crate::pair::{Comparison, compare};
use crate::peers::PAGE;
use crate::row::Row;

/// Rings: how many buffers are mapped, and their length. All of the reference, in the full form.
const RINGS: [(usize, u64); 9] = [
    (RING, 4096),
    (256, 4096),
    (4096, 4096),
    (RING, 1500),
    (RING, 65_536),
    (256, 1500),
    (256, 65_536),
    (4096, 1500),
    (4096, 65_536),
];
/// Rings of a smoke test.
const FEW: usize = 5;
/// Buffers besides those that are mapped: those the processor works on.
pub(super) const SPARE: usize = 128;

/// Where a device finds an address by the tables.
pub(super) fn found(space: &Space) -> impl Fn(Iova) -> Option<HostPhys> {
    |at| space.table.lookup(&space.memory, at).map(|found| found.phys)
}

pub(super) type Mapped<'a> = Turning<Plain<Ours, HardwareView<'a>>, fn(Iova)>;

/// Buffers of 4 KiB for a ring of so many.
pub(super) const fn usual(length: usize) -> Buffers {
    let count = length + SPARE;
    Buffers { len: PAGE, count }
}

/// One side that maps and unmaps each time.
pub(super) fn plain(
    invalidation: Invalidation,
    memory: &SparseMemory,
    length: usize,
    buffers: Buffers,
) -> Outcome<Mapped<'_>> {
    let steps = Plain::new(api(invalidation, memory.hardware())?);
    let turning: Mapped<'_> = Turning::new(steps, length, buffers, |_| ());
    turning.judge(found(turning.steps.api.backend().space()))?;
    Ok(turning)
}

/// All rings in all modes.
pub(super) fn rows(quick: bool) -> Outcome<Vec<Row>> {
    let memory = SparseMemory::new(1 << 20);
    let mut rows = Vec::new();
    for &(length, len) in RINGS.iter().take(if quick { FEW } else { RINGS.len() }) {
        let count = length + SPARE;
        let buffers = Buffers { len, count };
        let case = |mode: &str| format!("{mode}, {len} bytes, ring of {length}, driver side");
        let mut strict = plain(Invalidation::Strict, &memory, length, buffers)?;
        // The usual ring has these rows already.
        if (length, len) != (RING, PAGE) {
            let comparison = linux(quick, &mut strict, length, buffers)?;
            let row = Row::at_most("B10", case("strict"), &comparison, "Linux-shaped, <= 1024 cached", 70.0);
            rows.push(row);
            for (mode, entries) in [("deferred 256", 256), ("confirmed 64 at a time", 64)] {
                let mut deferred = plain(Invalidation::Deferred { entries }, &memory, length, buffers)?;
                let comparison = compare(quick, &mut |turns| deferred.run(turns), &mut |turns| strict.run(turns));
                deferred.judge(found(deferred.steps.api.backend().space()))?;
                rows.push(Row::at_most("B10", case(mode), &comparison, "strict", 25.0));
            }
        }
        let comparison = pool(quick, &memory, length, buffers, &mut strict)?;
        rows.push(Row::at_most("B10", case("pool"), &comparison, "strict", 6.0));
        let comparison = reuse(quick, &memory, length, buffers, &mut strict)?;
        rows.push(Row::reported("B10", case("optimistic reuse"), &comparison, "strict"));
        strict.judge(found(strict.steps.api.backend().space()))?;
    }
    Ok(rows)
}

/// The same ring of the Linux-shaped peer, which maps page by page.
fn linux(quick: bool, strict: &mut Mapped<'_>, length: usize, buffers: Buffers) -> Outcome<Comparison> {
    let mut peer = LinuxShaped::new();
    let mut ring: Ring<Range> = Ring::new(length, |index| peer.map_list(pages(buffers, index)));
    let comparison = compare(quick, &mut |turns| strict.run(turns), &mut |turns| {
        for _ in 0..turns {
            ring.turn(buffers.count, |oldest, index| {
                peer.unmap_list(oldest, pages(buffers, index).len() as u64);
                peer.map_list(pages(buffers, black_box(index)))
            });
        }
    });
    match ring.failed {
        0 => Ok(comparison),
        failed => Err(format!("{failed} operations of the peer failed").into()),
    }
}

/// The pages of a buffer.
pub(super) fn pages(buffers: Buffers, index: usize) -> impl ExactSizeIterator<Item = u64> {
    let buffer = buffers.get(index);
    let pages = u32::try_from(buffers.stride() / PAGE).unwrap_or(0);
    (0..pages).map(move |page| buffer.phys.raw() + u64::from(page) * PAGE)
}

fn pool(
    quick: bool,
    memory: &SparseMemory,
    length: usize,
    buffers: Buffers,
    strict: &mut Mapped<'_>,
) -> Outcome<Comparison> {
    let api = api(Invalidation::Strict, memory.hardware())?;
    let mut turning = Turning::new(Pool::new(api, buffers)?, length, buffers, |_| ());
    turning.judge(found(turning.steps.api.backend().space()))?;
    let comparison = compare(quick, &mut |turns| turning.run(turns), &mut |turns| strict.run(turns));
    turning.judge(found(turning.steps.api.backend().space()))?;
    turning.steps.close()?;
    Ok(comparison)
}

fn reuse(
    quick: bool,
    memory: &SparseMemory,
    length: usize,
    buffers: Buffers,
    strict: &mut Mapped<'_>,
) -> Outcome<Comparison> {
    let api = api(Invalidation::Strict, memory.hardware())?;
    let mut turning = Turning::new(Reuse::new(api, buffers)?, length, buffers, |_| ());
    let comparison = compare(quick, &mut |turns| turning.run(turns), &mut |turns| strict.run(turns));
    turning.judge(found(turning.steps.api.backend().space()))?;
    // Every buffer was mapped once, however often it went round.
    let maps = turning.steps.counters().maps;
    if maps > buffers.count as u64 {
        return Err(format!("{maps} were really mapped").into());
    }
    Ok(comparison)
}
