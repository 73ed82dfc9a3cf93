//! `edu` driven through the DMA interface: the same code with a unit and without one.

use alloc::sync::Arc;

use iommu_dma::{Counters, Direction, Invalidation, Trust};
use iommu_types::{Iova, PAGE_SIZE};
use vtd_driver::DomainOptions;

use crate::dma::{self, Policy};
use crate::edu::{Edu, TRANSFER};
use crate::hardware::far;
use crate::memory::{BUFFERS, Pages};
use crate::rig::{Checked, Rig, ensure, text};
use crate::translation::Check;

/// In the order in which they run.
pub(crate) const CHECKS: &[Check] = &[(
    "a device with 28 address lines uses low and high buffers without copies",
    translated,
)];

/// `edu` as QEMU makes it: 28 address lines.
pub(crate) const NARROW: Policy = Policy {
    invalidation: Invalidation::Strict,
    trust: Trust::Trusted,
    address_bits: 28,
};

/// The device reads a page and writes the one behind it, each lent to it meanwhile.
pub(crate) fn copied_by<const N: usize>(edu: &Edu, pages: &Pages<N>, from: usize, seed: u64) -> Checked {
    let to = from + 1;
    pages.fill(from, seed);
    pages.fill(to, 0);
    let there = pages.holds(from, seed, PAGE_SIZE) && pages.holds(to, 0, PAGE_SIZE);
    ensure(there, "there is no memory at the buffers' addresses")?;
    let lent = |page, direction, run: &dyn Fn(Iova) -> bool| {
        let address = dma::share(pages.at(page), TRANSFER, direction);
        let ended = run(Iova::new(address));
        dma::unshare(address);
        ensure(ended, "the device's DMA did not end")
    };
    lent(from, Direction::ToDevice, &|at| edu.read_memory(at, TRANSFER))?;
    lent(to, Direction::FromDevice, &|at| edu.write_memory(at, TRANSFER))?;
    ensure(
        pages.holds(to, seed, TRANSFER),
        "what the device read is not what it wrote",
    )
}

/// A page of far memory: a buffer's, 256 MiB above it.
pub(crate) fn far_twin(buffer: usize) -> Result<usize, &'static str> {
    let page = BUFFERS.at(buffer).raw() / PAGE_SIZE;
    usize::try_from(page).map_err(|_| "no such page")
}

/// Takes the adapter away when every buffer came back; what it counted.
pub(crate) fn settled() -> Result<Counters, alloc::string::String> {
    let (left, counters) = dma::remove()?;
    ensure(left == 0, "buffers are still lent")?;
    Ok(counters)
}

/// The unit gives every buffer an address that the device has lines for.
fn translated(rig: &Rig<'_>) -> Checked {
    let options = DomainOptions {
        stage: rig.expected.stage,
        ..DomainOptions::default()
    };
    let domain = Arc::new(rig.unit.create_domain(options).map_err(text)?);
    rig.unit.detach(&rig.requester()).map_err(text)?;
    rig.unit.attach(&rig.requester(), &domain).map_err(text)?;
    dma::install(&domain, NARROW)?;
    let done = copied_by(rig.edu, &BUFFERS, 10, 0x71)
        .and_then(|()| copied_by(rig.edu, far(), far_twin(12)?, 0x72))
        .and_then(|()| rig.no_fault());
    let counters = settled();
    rig.unit.detach(&rig.requester()).map_err(text)?;
    if let Some(domain) = Arc::into_inner(domain) {
        domain.destroy().map_err(text)?;
    }
    rig.unit.attach(&rig.requester(), rig.domain).map_err(text)?;
    done?;
    let counters = counters?;
    ensure(counters.iovas == 4, "not every buffer got an address of its own")?;
    ensure(counters.bounced_bytes == 0, "buffers were copied behind a unit")
}
