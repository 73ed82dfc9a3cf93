//! The rehearsal on a machine without remapping units: who reaches what through an aperture, or through nothing.
//!
//! The same functions, targets and accesses as with units, where they have a meaning. There are no groups and nobody
//! can be given a function: what a function can do does not depend on whose it is.

use acpi_dmar::Dmar;
use iommu_dma::{Aperture, Backend, Buffer, Device, Direct, Direction, DmaApi, DmaCore, Mapping};
use iommu_types::{HostPhys, Iova};
use soft_platform::{FunctionInfo, Machine, PageRequest, Pages, Placement, Zone};

use super::dma_api::pool;
use super::grid::{COMPATIBILITY_MESSAGE, FOREIGN_VECTOR, SCRATCH, after, cell, host_page, reachable};
use super::kind::{Bench, Kind};
use super::matrix::{Cell, Target, Verdict};
use super::probe::{Place, Probed, Prober};
use super::render::Requester;

const PAGE: u64 = 4096;

/// A matrix of a machine without units.
#[derive(Debug, Default)]
pub(crate) struct Lesser {
    /// The rows.
    pub(crate) requesters: Vec<Requester>,
    /// The cells.
    pub(crate) cells: Vec<Cell>,
}

/// Memory that belongs to others.
struct Others {
    targets: Vec<(Target, HostPhys)>,
}

/// Tries everything on a machine. `dmar` names memory that firmware reserves; `mem` is the size of a guest.
///
/// # Errors
/// What could not be set up or looked at.
pub(crate) fn build(bench: &Bench, dmar: &[u8], mem: u64) -> Result<Lesser, String> {
    let machine = &bench.machine;
    let others = Others::new(machine, dmar, mem)?;
    if let Some(window) = &bench.window {
        let backend = Aperture::new(&window.unit, machine.clone(), window.base, window.len, window.table);
        let backend = backend.map_err(|why| why.to_string())?;
        rows(
            bench,
            &DmaApi::new(backend, machine.clone()).with_pool(pool(machine)?),
            &others,
        )
    } else {
        rows(
            bench,
            &DmaApi::new(Direct, machine.clone()).with_pool(pool(machine)?),
            &others,
        )
    }
}

impl Others {
    fn new(machine: &Machine, dmar: &[u8], mem: u64) -> Result<Self, String> {
        let mut targets = vec![
            (Target::OtherGuest, host_page(machine, mem)?),
            (Target::HostMemory, host_page(machine, mem)?),
        ];
        let table = Dmar::parse(dmar).map_err(|why| why.to_string())?;
        let reserved = table
            .rmrrs()
            .filter_map(|rmrr| rmrr.region())
            .map(|region| region.to_pages().first())
            .find(|at| machine.memory().node_of(*at).is_some());
        targets.extend(reserved.map(|at| (Target::Rmrr, at)));
        Ok(Self { targets })
    }
}

/// A row for each function with a DMA engine.
fn rows<B: Backend>(bench: &Bench, api: &DmaApi<B, Machine>, others: &Others) -> Result<Lesser, String>
where
    B::Error: 'static,
{
    let machine = &bench.machine;
    let prober = Prober::without_unit(bench);
    let mut lesser = Lesser::default();
    let mut core = api.new_core();
    let functions: Vec<FunctionInfo> = machine.functions().filter(|f| f.engine).cloned().collect();
    for function in &functions {
        machine.set_command(function.bdf, iommu_groups::pci::header::COMMAND_BUS_MASTER, true);
        lesser.requesters.push(Requester {
            bdf: function.bdf,
            name: function.name.clone(),
            owner: "host".to_owned(),
        });
        let mut own = Own {
            bench,
            api,
            core: &mut core,
            function,
            prober: &prober,
        };
        let row = own.cells().and_then(|mut cells| {
            cells.extend(foreign(bench, function, others, &prober)?);
            Ok(cells)
        });
        lesser
            .cells
            .extend(row.map_err(|why| format!("{}: {why}", function.bdf))?);
    }
    api.retire(core).map_err(|why| why.to_string())?;
    Ok(lesser)
}

/// Two pages of a function's own, which do not lie next to each other.
fn apart(machine: &Machine) -> Result<(Pages, Vec<Buffer>), String> {
    let request = PageRequest {
        placement: Placement::Scattered { extent: PAGE },
        ..PageRequest::contiguous(2 * PAGE).zone(Zone::Below4G)
    };
    let pages = machine
        .memory()
        .allocate_pages(request)
        .map_err(|why| why.to_string())?;
    let buffers = [0, PAGE]
        .into_iter()
        .filter_map(|offset| Some(Buffer::new(pages.at(offset)?, PAGE)))
        .collect();
    Ok((pages, buffers))
}

/// What a function does with memory that is mapped for it.
struct Own<'a, B: Backend> {
    bench: &'a Bench,
    api: &'a DmaApi<B, Machine>,
    core: &'a mut DmaCore<B::Core>,
    function: &'a FunctionInfo,
    prober: &'a Prober<'a>,
}

impl<B: Backend> Own<'_, B>
where
    B::Error: 'static,
{
    fn map(&mut self, buffers: &[Buffer], direction: Direction) -> Result<(Mapping<B>, Iova, HostPhys), String> {
        let device = Device::with_address_bits(self.function.dma_bits.into());
        let mapping = self.api.map_sg(self.core, &device, buffers, direction);
        let mapping = mapping.map_err(|why| why.to_string())?;
        let address = mapping.segments().first().ok_or("a mapping without segments")?.address;
        let at = buffers.first().ok_or("a mapping of nothing")?.phys;
        Ok((mapping, address, at))
    }

    fn unmap(&mut self, mapping: Mapping<B>) -> Result<(), String> {
        self.api.unmap(self.core, mapping).map_err(|why| why.to_string())
    }

    fn cells(&mut self) -> Result<Vec<Cell>, String> {
        let requester = self.function.bdf;
        let (pages, buffers) = apart(&self.bench.machine)?;
        let mut cells = Vec::new();
        let through = match self.bench.kind() {
            Kind::Aperture => "mapped in the window",
            _ => "the address is that of the memory",
        };

        let (mapping, address, at) = self.map(&buffers, Direction::Bidirectional)?;
        let mut probed = Probed::default();
        self.prober.write(requester, address, Place::Memory(at), &mut probed)?;
        self.prober.read(requester, address, at, &mut probed)?;
        let prediction = (Verdict::Allowed, through.to_owned());
        cells.push(cell(requester, Target::OwnMapping, prediction, probed));
        self.unmap(mapping)?;

        let (mapping, address, at) = self.map(&buffers, Direction::ToDevice)?;
        let mut probed = Probed::default();
        self.prober.write(requester, address, Place::Memory(at), &mut probed)?;
        let prediction = (Verdict::Allowed, "nothing here knows of rights".to_owned());
        cells.push(cell(requester, Target::ReadOnly, prediction, probed));
        self.unmap(mapping)?;

        let (mapping, address, at) = self.map(&buffers, Direction::Bidirectional)?;
        let mut before = Probed::default();
        self.prober.write(requester, address, Place::Memory(at), &mut before)?;
        self.unmap(mapping)?;
        let mut probed = Probed::default();
        self.prober.write(requester, address, Place::Memory(at), &mut probed)?;
        self.prober.read(requester, address, at, &mut probed)?;
        let prediction = match self.bench.kind() {
            Kind::Aperture => (
                Verdict::Blocked,
                "its entry in the window is gone; the hardware drops the access, and keeps no record".to_owned(),
            ),
            _ => (
                Verdict::Allowed,
                "memory keeps its address when the driver is done with it".to_owned(),
            ),
        };
        let unmapped = Cell {
            silent: true,
            ..cell(requester, Target::UnmappedAgain, prediction, probed)
        };
        cells.push(after(before, "writing the page while it was mapped", unmapped));
        self.bench.machine.memory().release_pages(pages);
        Ok(cells)
    }
}

/// What a function does with memory, registers and interrupts of others.
fn foreign(bench: &Bench, function: &FunctionInfo, others: &Others, prober: &Prober<'_>) -> Result<Vec<Cell>, String> {
    let requester = function.bdf;
    let mut cells = Vec::new();
    let open = match bench.kind() {
        Kind::Aperture => "outside of the window every address passes untouched, whoever uses it",
        _ => "no IOMMU: every address passes",
    };
    for (target, at) in others
        .targets
        .iter()
        .copied()
        .filter(|(_, at)| reachable(function, *at))
    {
        let mut probed = Probed::default();
        prober.write(requester, Iova::new(at.raw()), Place::Memory(at), &mut probed)?;
        prober.read(requester, Iova::new(at.raw()), at, &mut probed)?;
        cells.push(cell(requester, target, (Verdict::Allowed, open.to_owned()), probed));
    }
    let mut probed = Probed::default();
    let data = u32::from(FOREIGN_VECTOR);
    prober.message(requester, COMPATIBILITY_MESSAGE, data, FOREIGN_VECTOR, &mut probed)?;
    let prediction = (
        Verdict::Allowed,
        "interrupts are not remapped: every message passes".to_owned(),
    );
    cells.push(cell(requester, Target::MsiWindow, prediction, probed));
    let machine = &bench.machine;
    let peer = machine
        .functions()
        .filter(|other| other.bdf != requester && other.engine)
        .filter_map(|other| machine.bar_range(other.bdf, 0)?.first().checked_add(SCRATCH))
        .find(|at| reachable(function, *at));
    if let Some(at) = peer {
        let mut probed = Probed::default();
        prober.write(requester, Iova::new(at.raw()), Place::Register(at), &mut probed)?;
        let prediction = (
            Verdict::Unknown,
            "ports on the way may refuse it; nothing else does".to_owned(),
        );
        cells.push(cell(requester, Target::PeerBar, prediction, probed));
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;
    use soft_platform::MachineDescription;

    fn matrix(bench: Bench, description: &MachineDescription) -> Lesser {
        let dmar = description.to_dmar().expect("a table");
        build(&bench, &dmar, 4 << 20).expect("it can be tried")
    }

    #[test]
    fn without_an_iommu_every_forbidden_access_arrives() {
        let description = MachineDescription::two_socket().expect("sound");
        let lesser = matrix(Bench::bare(&description).expect("a machine"), &description);
        assert!(lesser.cells.len() >= 7 * 8, "{}", lesser.cells.len());
        for cell in &lesser.cells {
            assert_eq!(cell.seen, Verdict::Allowed, "{} {}", cell.requester, cell.target);
        }
    }

    #[test]
    fn an_aperture_ends_what_was_unmapped_and_protects_nothing_else() {
        let description = MachineDescription::two_socket().expect("sound");
        let lesser = matrix(Bench::with_aperture(&description).expect("room"), &description);
        for cell in &lesser.cells {
            let expected = if cell.target == Target::UnmappedAgain {
                Verdict::Blocked
            } else {
                Verdict::Allowed
            };
            assert_eq!(cell.seen, expected, "{} {}", cell.requester, cell.target);
            assert!(cell.holds(), "{} {}", cell.requester, cell.target);
        }
        assert_eq!(
            lesser.requesters.len() * 7,
            lesser.cells.iter().filter(|c| c.target != Target::PeerBar).count()
        );
    }
}
