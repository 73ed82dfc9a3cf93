//! The same machine without IOMMU: what the same accesses do there.

use iommu_types::{HostPhys, Iova};
use soft_platform::{Machine, MachineDescription, PageRequest, Zone};

use super::grid::host_page;
use super::probe::{Place, Probed, Prober};

/// What became of the accesses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unprotected {
    /// Accesses tried.
    pub(crate) tried: u64,
    /// Those that did not reach their target.
    pub(crate) blocked: u64,
}

/// Every function with an engine reaches for memory of a guest and of the host.
pub(crate) fn try_everything(description: &MachineDescription, mem: u64) -> Result<(Machine, Unprotected), String> {
    let machine = Machine::without_iommu(description).map_err(|why| why.to_string())?;
    let host = host_page(&machine, mem)?;
    let guest = machine
        .memory()
        .allocate_pages(PageRequest::contiguous(4096).zone(Zone::Below4G))
        .map_err(|why| why.to_string())?;
    let victims: Vec<HostPhys> = [Some(host), guest.at(0)].into_iter().flatten().collect();
    let engines: Vec<_> = machine
        .functions()
        .filter(|function| function.engine)
        .map(|f| (f.bdf, f.dma_bits))
        .collect();
    let mut probed = Probed::default();
    let mut prober = Prober::new(&machine, None);
    for (function, bits) in engines {
        machine.set_command(function, iommu_groups::pci::header::COMMAND_BUS_MASTER, true);
        for at in victims.iter().copied().filter(|at| bits >= 64 || at.raw() >> bits == 0) {
            prober.write(function, Iova::new(at.raw()), Place::Memory(at), &mut probed)?;
            prober.read(function, Iova::new(at.raw()), at, &mut probed)?;
        }
    }
    let unprotected = Unprotected {
        tried: u64::from(probed.tally.tried),
        blocked: u64::from(probed.tally.stopped),
    };
    Ok((machine, unprotected))
}
