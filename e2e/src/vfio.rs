//! A small user-space driver over `iommu-vfio`, the same for every backend.
//!
//! It drives a function with the register layout of QEMU's `edu` device: [`probe`] tries which addresses its DMA
//! reaches, [`churn`] goes through the life of a driver so that it can be ended at any step. [`disk`] drives a virtio
//! disk. On Linux all of them run in a guest, as the program `vfio-guest`.

pub mod churn;
pub mod disk;
pub mod engine;
#[path = "../../crates/iommu-vfio/examples/support/hal.rs"]
mod hal;
pub mod probe;

use iommu_types::{AddrRange, Bdf, Iova};
use iommu_vfio::{Backend, Container, Group, Type1, VfioError};

/// Bytes of addresses that a program asks for.
const ROOM: u64 = 64 << 20;

/// A container that holds the group of `function`, ready for mappings.
///
/// # Errors
/// [`VfioError`] of the first step that was refused.
pub fn container<B: Backend>(backend: &B, function: Bdf) -> Result<Container<Type1, B>, VfioError> {
    let mut container = Container::open(backend)?;
    let group = Group::open(backend, backend.group_of(function)?)?.viable()?;
    container.attach(group)?;
    Ok(container.set_iommu()?)
}

/// The first GiB from 1 on at which [`ROOM`] bytes can be mapped.
///
/// # Errors
/// [`VfioError`] if the backend does not tell.
pub fn base<B: Backend>(container: &Container<Type1, B>) -> Result<Iova, VfioError> {
    const GIB: u64 = 1 << 30;
    let ranges = container.info()?.ranges;
    let fits = |base: &Iova| {
        let wanted = AddrRange::from_base_len(*base, ROOM);
        wanted.is_some_and(|wanted| ranges.is_empty() || ranges.iter().any(|range| range.covers(wanted)))
    };
    Ok((1..512).map(|n| Iova::new(n * GIB)).find(fits).unwrap_or_default())
}
