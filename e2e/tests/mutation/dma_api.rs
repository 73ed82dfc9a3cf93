//! Devices that are not trusted: the DMA API and the quirks.

use iommu_dma::{BouncePool, Buffer, Device, Direction, DmaApi, Invalidation, Translated, Trust};
use iommu_iova::{IovaSpace, ReferenceAllocator};
use iommu_types::{HostPhys, PAGE_SIZE};
use vtd_driver::{DomainOptions, FunctionId, Requester, quirks_of};

use crate::machine::{Break, Machine};
use crate::rig::{How, Miss, Must, TestDomain, Verdict, blocked, board, ensure, miss, reaches, silicon, source, up};

type Api<'m> = DmaApi<Translated<TestDomain<'m>, ReferenceAllocator>, iommu_testkit::HardwareView<'m>>;

/// Copies go through here.
const POOL: HostPhys = HostPhys::new(0x80_0000);

const fn nic() -> Device {
    Device::with_address_bits(48).trust(Trust::Untrusted)
}

fn api(machine: &Machine) -> Result<Api<'_>, Miss> {
    let unit = up(machine)?;
    let domain = unit.create_domain(DomainOptions::default()).must()?;
    unit.attach(&Requester::new(source("02:00.0")), &domain).must()?;
    let iovas = ReferenceAllocator::new(IovaSpace::new(domain.aperture()).must()?);
    let backend = Translated::new(domain, iovas, Invalidation::Deferred { entries: 64 });
    let pool = BouncePool::new(POOL, 0x10_0000, 1).must()?;
    Ok(DmaApi::new(backend, machine.memory.hardware()).with_pool(pool))
}

pub(crate) fn an_untrusted_device_loses_access_at_once() -> Verdict {
    let machine = board(silicon());
    let api = api(&machine)?;
    let mut core = api.new_core();
    let buffer = Buffer::new(HostPhys::new(0x9000), PAGE_SIZE);
    let mapping = api.map(&mut core, &nic(), buffer, Direction::ToDevice).must()?;
    let at = mapping.segment().ok_or("one segment").must()?.address.raw();
    reaches(&machine, source("02:00.0"), at, 0x9000)?;
    api.unmap(&mut core, mapping).must()?;
    blocked(&machine, source("02:00.0"), at)
}

pub(crate) fn an_untrusted_device_sees_its_bytes_only() -> Verdict {
    let machine = board(silicon());
    let api = api(&machine)?;
    let mut core = api.new_core();
    // The rest of the page is somebody else's.
    let buffer = Buffer::new(HostPhys::new(0x9100), 0x100);
    let mapping = api.map(&mut core, &nic(), buffer, Direction::ToDevice).must()?;
    let at = mapping.segment().ok_or("one segment").must()?.address;
    match machine.dma(source("02:00.0"), at.page(), iommu_types::Access::Read) {
        Ok(reached) if reached.page() == HostPhys::new(0x9000) => {
            miss(How::Reached, format_args!("{reached} shares a page with the buffer"))
        }
        Ok(_) => Ok(()),
        Err(reason) => miss(How::Blocked, format_args!("fault {reason:#x}")),
    }
}

pub(crate) fn a_copy_that_a_device_may_reach_is_not_used_again() -> Verdict {
    let machine = board(silicon().caching_mode(true));
    let api = api(&machine)?;
    let mut core = api.new_core();
    let mut next = |at: u64| {
        let buffer = Buffer::new(HostPhys::new(at), 0x100);
        api.map(&mut core, &nic(), buffer, Direction::ToDevice)
    };
    // The device reads where the next mapping will be, and so sees it before the unit has confirmed it.
    let first = next(0x9100).must()?;
    let here = first.segment().ok_or("one segment").must()?.address.page();
    let below = here.checked_sub(PAGE_SIZE).ok_or("an address").must()?;
    let nic_source = source("02:00.0");
    machine.busy.set(Some((nic_source, below)));
    machine.breaks.set(Some((0, Break::LoseWait)));
    ensure(next(0x9500).is_err(), How::Refused, "mapped without confirmation")?;
    machine.busy.set(None);
    let copy = machine.dma(nic_source, below, iommu_types::Access::Read);
    let copy = copy
        .map_err(|reason| format!("the device saw nothing: {reason:#x}"))
        .must()?;
    // One page of slots for what is mapped, one for what the device may reach.
    let used = api.pool().ok_or("a pool").must()?.used_slots();
    if used >= 2 * PAGE_SIZE / iommu_dma::SLOT {
        return Ok(());
    }
    miss(How::Reached, format_args!("{copy} is free for the next copy"))
}

pub(crate) fn a_device_cannot_claim_a_quirk() -> Verdict {
    // A card that says it is the graphics of a chipset whose graphics is not translated.
    let claim = FunctionId {
        vendor: 0x8086,
        device: 0x2e20,
        base_class: 3,
    };
    ensure(
        quirks_of(claim, true).next().is_some(),
        How::Words,
        "the chipset has a quirk",
    )?;
    match quirks_of(claim, false).next() {
        None => Ok(()),
        Some(quirk) => miss(How::Allowed, quirk.reason),
    }
}
