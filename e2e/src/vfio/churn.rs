//! The life of a driver, step by step, so that its process can be ended at each of them.

use iommu_types::{Bdf, Iova, PAGE_SIZE, Perms};
use iommu_vfio::{Backend, Container, EventFd, Group, InterruptKind};

use super::engine::{Engine, EngineError};

/// Bytes of the program's memory.
const MEMORY: u64 = 1 << 20;
/// Mappings of one page each, besides a large one.
const MAPPINGS: u64 = 6;

/// Goes through the steps. `step` is told the name of each before it is taken; what comes after the last one is told
/// as the end.
///
/// # Errors
/// [`EngineError`] of the first step that was refused.
pub fn run<B: Backend>(backend: &B, function: Bdf, mut step: impl FnMut(&str)) -> Result<(), EngineError> {
    step("open a container");
    let mut container = Container::open(backend)?;
    step("open the group");
    let group = Group::open(backend, backend.group_of(function)?)?;
    step("check the group");
    let group = group.viable().map_err(iommu_vfio::VfioError::from)?;
    step("put the group in");
    container.attach(group).map_err(iommu_vfio::VfioError::from)?;
    step("choose an IOMMU");
    let container = container.set_iommu().map_err(iommu_vfio::VfioError::from)?;
    step("allocate");
    let base = super::base(&container)?;
    let memory = container.allocate(MEMORY)?;
    let at = |page: u64| Iova::new(base.raw() + page * PAGE_SIZE);
    for page in 0..MAPPINGS {
        step("map a page");
        container.dma_map(at(page), &memory, page * PAGE_SIZE, PAGE_SIZE, Perms::READ_WRITE)?;
    }
    step("map a megabyte");
    container.dma_map(at(1024), &memory, 0, MEMORY, Perms::READ)?;
    step("open the device");
    let engine = Engine::open(&container, function)?;
    step("enable an interrupt");
    let event = EventFd::new(0).ok();
    let kind = InterruptKind::Msi;
    if let Some(event) = event.as_ref().filter(|_| engine.device().interrupts(kind) > 0) {
        engine.device().enable_interrupts(kind, &[event])?;
    }
    step("start a transfer from memory");
    engine.start_load(at(1024), PAGE_SIZE)?;
    step("wait for it");
    engine.finish()?;
    step("start a transfer to memory");
    engine.start_store(at(1), PAGE_SIZE)?;
    step("unmap what it writes to");
    container.dma_unmap(at(1), PAGE_SIZE)?;
    step("map it again");
    container.dma_map(at(1), &memory, PAGE_SIZE, PAGE_SIZE, Perms::READ_WRITE)?;
    step("wait for the transfer");
    engine.finish()?;
    step("close the device");
    drop(engine);
    step("unmap the first half");
    container.dma_unmap(at(0), 3 * PAGE_SIZE)?;
    step("unmap the rest");
    container.dma_unmap_all()?;
    step("close the container");
    container.close()?;
    step("give the memory back");
    iommu_vfio::DmaMemory::give_back(memory).map_err(|(why, _)| why)?;
    step("end");
    Ok(())
}
