//! The access matrix of a machine: every function with a DMA engine against every kind of target.

use iommu_types::{Bdf, HostPhys, Iova, SourceId};
use iommu_vfio::{Platform, RegionOutcome, RegionStep};
use soft_platform::{FunctionInfo, Machine, PageRequest, Service, Zone};
use vtd_driver::{EventMessage, InterruptBlock, InterruptSource, InterruptTarget};

use super::guests::{Guest, past_guest, victim};
use super::matrix::{Cell, Target, Verdict};
use super::peers::{self, Way};
use super::probe::{Place, Probed, Prober};
use super::render::Requester;

/// The vector of the message that nobody may forge.
pub(crate) const FOREIGN_VECTOR: u8 = 0xe7;
/// An interrupt message that needs no remapping entry: to APIC 0, fixed, edge-triggered.
pub(crate) const COMPATIBILITY_MESSAGE: u64 = 0xfee0_0000;
/// Why a function that no unit covers reaches everything.
const UNCOVERED: &str = "no unit of the table covers the function";
/// Offset of a scratch register in BAR 0 of functions with an engine (`edu`'s liveness check).
pub(crate) const SCRATCH: u64 = 4;
/// Bytes of a probing access.
const PROBE_LEN: u64 = 8;

/// A matrix and who is in it.
#[derive(Debug, Default)]
pub(crate) struct Grid {
    /// The rows.
    pub(crate) requesters: Vec<Requester>,
    /// The cells.
    pub(crate) cells: Vec<Cell>,
    /// What of it can be tried on a machine without IOMMU too, address for address.
    pub(crate) repeatable: Vec<Attempt>,
}

/// A forbidden access that means the same with and without IOMMU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    /// Who tries.
    pub(crate) requester: Bdf,
    /// Against what.
    pub(crate) on: On,
}

/// What an [`Attempt`] is on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum On {
    /// Memory: written and read.
    Memory(HostPhys),
    /// A register of a peer: written.
    Register(HostPhys),
    /// The processors: interrupted with a vector that is not the requester's.
    Interrupt,
}

/// What everybody is tried against.
struct Scene<'a> {
    machine: &'a Machine,
    platform: &'a Platform,
    guests: &'a [Guest],
    /// A page of the host, outside of all guest address ranges.
    host_page: HostPhys,
    /// A page of a guest without devices, where there is no second one.
    idle: Option<HostPhys>,
    /// A message of an interrupt entry on each unit that belongs to none of the functions.
    foreign: Vec<Option<EventMessage>>,
}

/// Tries everything.
///
/// # Errors
/// What could not be set up or looked at: a failure of the rehearsal, not of the machine.
pub(crate) fn build(platform: &Platform, guests: &[Guest], mem: u64) -> Result<Grid, String> {
    let machine = platform.machine();
    let host_page = host_page(machine, mem)?;
    let idle = match guests {
        [] | [_] => Some(victim(platform, platform.user("guest B"), mem).map_err(|why| why.to_string())?),
        _ => None,
    };
    let mut blocks = Vec::new();
    let foreign = foreign_messages(platform, &mut blocks)?;
    let scene = Scene {
        machine,
        platform,
        guests,
        host_page,
        idle,
        foreign,
    };
    let mut grid = Grid::default();
    let prober = Prober::new(platform);
    let functions: Vec<FunctionInfo> = machine
        .functions()
        .filter(|function| function.engine)
        .cloned()
        .collect();
    for function in &functions {
        machine.set_command(function.bdf, iommu_groups::pci::header::COMMAND_BUS_MASTER, true);
        let guest = scene.guest_of(function.bdf);
        grid.requesters.push(Requester {
            bdf: function.bdf,
            name: function.name.clone(),
            owner: guest.map_or("host".to_owned(), |guest| guest.name.clone()),
        });
        scene
            .row(function, guest, &prober, &mut grid)
            .map_err(|why| format!("{}: {why}", function.bdf))?;
    }
    for (index, block) in blocks {
        if let Some(unit) = platform.unit(index) {
            // What cannot be given back stays taken: the machine ends with the run.
            let _ = unit.release_interrupts(block);
        }
    }
    Ok(grid)
}

/// A page of the host whose address is in no guest's range of memory addresses.
pub(crate) fn host_page(machine: &Machine, mem: u64) -> Result<HostPhys, String> {
    let page = |zone| PageRequest::contiguous(4096).zone(zone).at_or_above(past_guest(mem));
    let pages = machine
        .memory()
        .allocate_pages(page(Zone::Below4G))
        .or_else(|_| machine.memory().allocate_pages(page(Zone::Above4G)))
        .map_err(|why| why.to_string())?;
    pages.at(0).ok_or_else(|| "the host's page lies nowhere".to_owned())
}

/// On each unit in service, an interrupt entry that is made for a requester that does not exist.
fn foreign_messages(
    platform: &Platform,
    blocks: &mut Vec<(usize, InterruptBlock)>,
) -> Result<Vec<Option<EventMessage>>, String> {
    let nobody = InterruptSource::Requester(SourceId::from_raw(0xfff8));
    let mut messages = Vec::new();
    for info in platform.machine().units() {
        let remaps = platform
            .report()
            .units
            .iter()
            .any(|step| step.unit == info.index && step.interrupts.is_ok());
        let Some(unit) = platform.unit(info.index).filter(|_| remaps) else {
            messages.push(None);
            continue;
        };
        let block = unit.allocate_interrupts(1, nobody).map_err(|why| why.to_string())?;
        unit.set_interrupt(&block, 0, Some(InterruptTarget::fixed(FOREIGN_VECTOR, 0)))
            .map_err(|why| why.to_string())?;
        messages.push(block.message(0));
        blocks.push((info.index, block));
    }
    Ok(messages)
}

/// A prediction and what it rests on.
pub(crate) type Prediction = (Verdict, String);

impl Scene<'_> {
    fn guest_of(&self, function: Bdf) -> Option<&Guest> {
        self.guests
            .iter()
            .find(|guest| guest.functions().any(|own| own == function))
    }

    /// All cells of one requester.
    fn row(
        &self,
        function: &FunctionInfo,
        guest: Option<&Guest>,
        prober: &Prober<'_>,
        grid: &mut Grid,
    ) -> Result<(), String> {
        let requester = function.bdf;
        if let Some(guest) = guest {
            self.own_memory(requester, guest, prober, &mut grid.cells)?;
        }
        for target in [Target::OtherGuest, Target::HostMemory, Target::Rmrr] {
            let Some(at) = self.victim(target, function, guest) else {
                continue;
            };
            let mut probed = Probed::default();
            let address = Iova::new(at.raw());
            prober.write(requester, address, Place::Memory(at), &mut probed)?;
            prober.read(requester, address, at, &mut probed)?;
            let prediction = self.predict(target, function, guest, at);
            grid.push(cell(requester, target, prediction, probed), On::Memory(at));
        }
        let mut probed = Probed::default();
        let entry = function
            .service
            .unit()
            .and_then(|unit| self.foreign.get(unit).copied().flatten());
        // Where no entry can be named, a message says itself which vector it is for.
        let (address, data) = entry.map_or((COMPATIBILITY_MESSAGE, u32::from(FOREIGN_VECTOR)), |message| {
            (message.address, message.data)
        });
        prober.message(requester, address, data, FOREIGN_VECTOR, &mut probed)?;
        let prediction = self.predict_message(function, entry.is_some());
        grid.push(cell(requester, Target::MsiWindow, prediction, probed), On::Interrupt);
        self.peers(function, guest, prober, grid)
    }

    /// The cells that only the holder of a mapping has.
    fn own_memory(
        &self,
        requester: Bdf,
        guest: &Guest,
        prober: &Prober<'_>,
        cells: &mut Vec<Cell>,
    ) -> Result<(), String> {
        let name = &guest.name;
        let mut probed = Probed::default();
        let own = guest.translate(0).ok_or("the guest has no memory")?;
        prober.write(requester, Iova::ZERO, Place::Memory(own), &mut probed)?;
        prober.read(requester, Iova::ZERO, own, &mut probed)?;
        let why = format!("mapped for reading and writing for {name}");
        cells.push(cell(requester, Target::OwnMapping, (Verdict::Allowed, why), probed));

        let (iova, at) = guest.read_only().ok_or("the guest has no page for probing")?;
        let mut read = Probed::default();
        prober.read(requester, iova, at, &mut read)?;
        let mut probed = Probed::default();
        prober.write(requester, iova, Place::Memory(at), &mut probed)?;
        let why = "the page is mapped for reading only (reading it succeeded)".to_owned();
        let written = cell(requester, Target::ReadOnly, (Verdict::Blocked, why), probed);
        cells.push(after(read, "reading the page", written));

        let (iova, at) = guest.passing().ok_or("the guest has no page for probing")?;
        guest.map_passing().map_err(|why| why.to_string())?;
        let mut before = Probed::default();
        prober.write(requester, iova, Place::Memory(at), &mut before)?;
        guest.unmap_passing().map_err(|why| why.to_string())?;
        let mut probed = Probed::default();
        prober.write(requester, iova, Place::Memory(at), &mut probed)?;
        prober.read(requester, iova, at, &mut probed)?;
        let why = "unmapped and invalidated (before that, writing it succeeded)".to_owned();
        let unmapped = cell(requester, Target::UnmappedAgain, (Verdict::Blocked, why), probed);
        cells.push(after(before, "writing the page while it was mapped", unmapped));
        Ok(())
    }

    /// Registers of functions of other groups, and of its own.
    fn peers(
        &self,
        function: &FunctionInfo,
        guest: Option<&Guest>,
        prober: &Prober<'_>,
        grid: &mut Grid,
    ) -> Result<(), String> {
        let own = self.platform.group_of(function.bdf);
        let together = |other: Bdf| own.as_ref().is_some_and(|group| group.members.contains(&other));
        for (target, inside) in [(Target::PeerBar, false), (Target::GroupPeer, true)] {
            let peer = self
                .machine
                .functions()
                .filter(|other| other.bdf != function.bdf && other.engine && together(other.bdf) == inside)
                .find_map(|other| Some((other, self.register(other.bdf, function)?)));
            let Some((peer, at)) = peer else { continue };
            let mut probed = Probed::default();
            prober.write(function.bdf, Iova::new(at.raw()), Place::Register(at), &mut probed)?;
            let prediction = if inside {
                self.predict_group_peer(function, peer.bdf, guest, at)
            } else {
                self.predict(target, function, guest, at)
            };
            grid.push(cell(function.bdf, target, prediction, probed), On::Register(at));
        }
        Ok(())
    }

    /// What is to become of a write to the registers of a function of the same group: what the places of the two and
    /// the access control between them say.
    fn predict_group_peer(
        &self,
        function: &FunctionInfo,
        peer: Bdf,
        guest: Option<&Guest>,
        at: HostPhys,
    ) -> Prediction {
        let name = peer.source;
        match peers::way(self.platform.topology(), function.bdf, peer) {
            Way::Straight { at, lack: Some(lack) } => (
                Verdict::Allowed,
                format!("goes straight to {name}, past the unit, at {}: {lack}", at.source),
            ),
            Way::Straight { lack: None, .. } => (
                Verdict::Allowed,
                format!("on one conventional bus with {name}: everybody there reads along"),
            ),
            Way::Up => {
                let (verdict, why) = self.predict(Target::GroupPeer, function, guest, at);
                (verdict, format!("goes up to the unit, not straight to {name}: {why}"))
            }
            Way::Unknown => (
                Verdict::Unknown,
                format!("in one group with {name}; whether requests go straight to it cannot be said"),
            ),
        }
    }

    /// The scratch register of `peer`, if `function` can put its address on the bus.
    fn register(&self, peer: Bdf, function: &FunctionInfo) -> Option<HostPhys> {
        let at = self.machine.bar_range(peer, 0)?.first().checked_add(SCRATCH)?;
        reachable(function, at).then_some(at)
    }

    /// The memory that stands for a target, if `function` can put its address on the bus.
    fn victim(&self, target: Target, function: &FunctionInfo, guest: Option<&Guest>) -> Option<HostPhys> {
        let at = match target {
            Target::OtherGuest => self.page_of_another(guest)?,
            Target::HostMemory => self.host_page,
            Target::Rmrr => self.reserved_page(function, guest)?,
            _ => return None,
        };
        reachable(function, at).then_some(at)
    }

    /// A page of a guest other than `guest`.
    fn page_of_another(&self, guest: Option<&Guest>) -> Option<HostPhys> {
        let mut others = self
            .guests
            .iter()
            .filter(|other| guest.is_none_or(|own| own.name != other.name));
        others.next().map(|other| other.victim).or(self.idle)
    }

    /// A page of a reserved region: one that is for `function` if there is any. It is no address that the guest
    /// has mapped, since an access there would end in the guest's own memory.
    fn reserved_page(&self, function: &FunctionInfo, guest: Option<&Guest>) -> Option<HostPhys> {
        let mut steps: Vec<&RegionStep> = self.platform.report().regions.iter().collect();
        steps.sort_by_key(|step| !self.is_for(step, function));
        let ends = |step: &RegionStep| {
            let pages = step.range?.to_pages();
            Some([pages.first(), pages.last().page()])
        };
        steps.into_iter().filter_map(ends).flatten().find(|at| {
            // Some firmware reserves memory that this machine does not have.
            self.machine.memory().node_of(*at).is_some() && guest.is_none_or(|guest| !guest.maps(Iova::new(at.raw())))
        })
    }

    /// Whether a reserved region is for a function that the unit cannot tell from `function`.
    fn is_for(&self, step: &RegionStep, function: &FunctionInfo) -> bool {
        let ids = |bdf: Bdf| {
            let requester = self.platform.requester(bdf);
            [&[requester.rid], requester.aliases.as_slice()].concat()
        };
        let own = ids(function.bdf);
        step.functions.iter().any(|listed| {
            let unit = self.machine.function(*listed).and_then(|info| info.service.unit());
            unit == function.service.unit() && ids(*listed).iter().any(|id| own.contains(id))
        })
    }

    /// What is to become of an interrupt message that is not the function's own.
    fn predict_message(&self, function: &FunctionInfo, remapped: bool) -> Prediction {
        let (verdict, why) = match function.service {
            Service::Uncovered => (Verdict::Allowed, UNCOVERED.to_owned()),
            Service::Blocked(doubt) => (Verdict::Blocked, format!("stopped by the platform: {doubt}")),
            Service::Unit(..) if remapped => (
                Verdict::Blocked,
                "the interrupt entry is made for another requester (source validation)".to_owned(),
            ),
            Service::Unit(..) => match self.platform.unit_of(function.bdf) {
                Ok(_) => (
                    Verdict::Allowed,
                    "its unit does not remap interrupts: every message passes".to_owned(),
                ),
                Err(why) => (Verdict::Unknown, why.to_string()),
            },
        };
        (verdict, why)
    }

    /// What groups and mappings say about an access to host address `at`, used as an IOVA.
    fn predict(&self, target: Target, function: &FunctionInfo, guest: Option<&Guest>, at: HostPhys) -> Prediction {
        match function.service {
            Service::Uncovered => return (Verdict::Allowed, UNCOVERED.to_owned()),
            Service::Blocked(doubt) => return (Verdict::Blocked, format!("stopped by the platform: {doubt}")),
            Service::Unit(..) => {}
        }
        if let Err(why) = self.platform.unit_of(function.bdf) {
            return (Verdict::Unknown, why.to_string());
        }
        let listed = (target == Target::Rmrr)
            .then(|| self.platform.report().regions.iter())
            .into_iter()
            .flatten()
            .find(|step| step.range.is_some_and(|range| range.contains(at)) && self.is_for(step, function));
        match (guest, listed) {
            (_, Some(step)) if step.outcome != RegionOutcome::Mapped => (
                Verdict::Blocked,
                "firmware reserves the region for it (RMRR), but that was refused".to_owned(),
            ),
            (Some(_), Some(step)) if !step.relaxable => (
                Verdict::Allowed,
                "firmware reserves the region for it (RMRR), whoever has it".to_owned(),
            ),
            (Some(guest), _) if guest.maps(Iova::new(at.raw())) => {
                (Verdict::Allowed, format!("mapped for {}", guest.name))
            }
            (Some(_), _) => (Verdict::Blocked, "no mapping in its guest's address space".to_owned()),
            (None, Some(_)) => (
                Verdict::Allowed,
                "firmware reserves the region for it (RMRR), identity-mapped".to_owned(),
            ),
            (None, None) => (
                Verdict::Blocked,
                "given to nobody: the driver blocks it by default".to_owned(),
            ),
        }
    }
}

impl Grid {
    /// How many of the repeatable accesses reached their target here.
    pub(crate) fn repeatable_and_reached(&self) -> u64 {
        const REPEATABLE: [Target; 6] = [
            Target::OtherGuest,
            Target::HostMemory,
            Target::Rmrr,
            Target::MsiWindow,
            Target::PeerBar,
            Target::GroupPeer,
        ];
        self.cells
            .iter()
            .filter(|cell| cell.predicted == Verdict::Blocked && REPEATABLE.contains(&cell.target))
            .map(|cell| u64::from(cell.tally.tried - cell.tally.stopped))
            .sum()
    }

    /// Takes a cell in, and remembers it for the machine without IOMMU if it is forbidden.
    fn push(&mut self, cell: Cell, on: On) {
        if cell.predicted == Verdict::Blocked {
            self.repeatable.push(Attempt {
                requester: cell.requester,
                on,
            });
        }
        self.cells.push(cell);
    }
}

/// Whether a function's address lines reach `at` and the bytes after it.
pub(crate) fn reachable(function: &FunctionInfo, at: HostPhys) -> bool {
    function.dma_bits >= 64 || at.raw() + PROBE_LEN <= 1 << function.dma_bits
}

/// The cell of an access that says something only if `premise`, an access that is allowed, arrived.
pub(crate) fn after(premise: Probed, what: &str, cell: Cell) -> Cell {
    if premise.reached == premise.tally.tried {
        return cell;
    }
    Cell {
        seen: Verdict::Unknown,
        evidence: format!("{what} failed before: {}", premise.evidence),
        ..cell
    }
}

/// The cell of accesses that were made.
pub(crate) fn cell(requester: Bdf, target: Target, (predicted, because): Prediction, probed: Probed) -> Cell {
    let seen = if probed.reached == probed.tally.tried {
        Verdict::Allowed
    } else if probed.reached == 0 {
        Verdict::Blocked
    } else {
        Verdict::Unknown
    };
    Cell {
        requester,
        target,
        predicted,
        because,
        seen,
        evidence: probed.evidence,
        logged: probed.logged,
        silent: false,
        tally: probed.tally,
    }
}
