//! Functions, buses and the bridges between them.

mod alias;
mod scan;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use iommu_types::{Bdf, DevFn, Segment, SourceId};

pub use self::alias::{Alias, AliasVia};
use crate::access::ConfigAccess;
use crate::function::Function;
use crate::pci::PortType;
use crate::problem::Problem;

/// A bus of one segment; prints as `ssss:bb`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusId {
    /// The segment group.
    pub segment: Segment,
    /// The bus number.
    pub bus: u8,
}

impl BusId {
    /// Bus `bus` of `segment`.
    #[must_use]
    pub const fn new(segment: Segment, bus: u8) -> Self {
        Self { segment, bus }
    }

    /// The bus a function is on.
    #[must_use]
    pub const fn of(bdf: Bdf) -> Self {
        Self::new(bdf.segment, bdf.bus())
    }
}

impl fmt::Display for BusId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:02x}", self.segment, self.bus)
    }
}

/// The bus numbers in a bridge's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BusNumbers {
    /// The bus the bridge is on.
    pub primary: u8,
    /// The bus right below it.
    pub secondary: u8,
    /// The highest bus below it.
    pub subordinate: u8,
}

impl BusNumbers {
    /// Whether requests for `bus` go below the bridge.
    #[must_use]
    pub const fn routes(self, bus: u8) -> bool {
        self.secondary <= bus && bus <= self.subordinate
    }
}

impl fmt::Display for BusNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x} -> {:02x}-{:02x}",
            self.primary, self.secondary, self.subordinate
        )
    }
}

/// Which ACS controls count: those found, or those that an operating system is going to set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcsControl {
    /// As they are in the registers: right for a running system.
    #[default]
    AsFound,
    /// As Linux sets them at boot with an IOMMU: every control that isolation needs and the port has.
    Enabled,
}

/// What configuration space does not tell, but the caller knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Functions whose requests carry the requester ID of another: (function, the other). Children of a VMD.
    /// Functions in domains above ffff need it: such a domain is behind a function of another one.
    pub real_dma: Vec<(Bdf, Bdf)>,
    /// Further requester IDs that functions use, on their own bus.
    pub aliases: Vec<(Bdf, DevFn)>,
    /// Virtual functions with their physical ones, where the SR-IOV capability cannot be read.
    pub virtual_functions: Vec<(Bdf, Bdf)>,
    /// Whether the machine has an AMD IOMMU (an IVRS table).
    pub amd_iommu: bool,
    /// Which ACS controls count.
    pub acs: AcsControl,
}

/// Which buses no bridge leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots<'a> {
    /// Exactly these.
    Given(&'a [BusId]),
    /// Those that no listed bridge claims.
    Inferred,
}

/// What a bus hangs from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The root complex.
    Root,
    /// This bridge, whose secondary bus it is.
    Bridge(Bdf),
    /// Nothing that is known.
    Unknown,
}

/// One bus.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bus {
    /// The bridge above.
    pub(crate) bridge: Option<usize>,
    pub(crate) is_root: bool,
    /// Functions on it, with the virtual functions of the physical ones.
    pub(crate) functions: Vec<usize>,
}

/// The PCI functions of a machine and how they hang together.
///
/// Functions are held in the order in which an operating system finds them: a bus before the buses below it,
/// virtual functions last.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    functions: Vec<Function>,
    index: BTreeMap<Bdf, usize>,
    buses: BTreeMap<BusId, Bus>,
    /// Bridges that cannot both be right about their bus numbers.
    contested: Vec<(usize, usize)>,
    problems: Vec<Problem>,
    amd_iommu: bool,
}

impl Topology {
    /// Finds all functions below the root buses, the way firmware and operating systems do.
    ///
    /// A function that answers on several root buses is found on each; a bus that two bridges claim is scanned
    /// once. Contradictions are in [`Self::problems`].
    #[must_use]
    pub fn scan<A: ConfigAccess>(access: &A, roots: &[BusId]) -> Self {
        Self::scan_with(access, roots, &Facts::default())
    }

    /// As [`Self::scan`], with facts that configuration space does not hold.
    #[must_use]
    pub fn scan_with<A: ConfigAccess>(access: &A, roots: &[BusId], facts: &Facts) -> Self {
        scan::Scanner::everything(access).run(roots, facts)
    }

    /// Reads exactly the functions listed, in any order, and virtual functions that their physical ones
    /// announce: for hosts and dumps, which know what is there.
    #[must_use]
    pub fn from_functions<A: ConfigAccess>(
        access: &A,
        functions: impl IntoIterator<Item = Bdf>,
        roots: Roots<'_>,
        facts: &Facts,
    ) -> Self {
        let scanner = scan::Scanner::listed(access, functions, facts);
        match roots {
            Roots::Given(roots) => scanner.run(roots, facts),
            Roots::Inferred => {
                let roots = scanner.unclaimed();
                scanner.run(&roots, facts)
            }
        }
    }

    /// All functions, in the order in which an operating system finds them.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// The function at `bdf`.
    #[must_use]
    pub fn get(&self, bdf: Bdf) -> Option<&Function> {
        self.functions.get(*self.index.get(&bdf)?)
    }

    /// What was contradictory, or could not be found out.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The bridge that the function at `bdf` is below; `None` on a root bus.
    #[must_use]
    pub fn parent(&self, bdf: Bdf) -> Option<&Function> {
        self.functions.get(self.get(bdf)?.parent?)
    }

    /// The bridges above the function at `bdf`, nearest first.
    pub fn bridges_above(&self, bdf: Bdf) -> impl Iterator<Item = &Function> {
        let first = self.index.get(&bdf).copied();
        self.above(first).skip(1).filter_map(|index| self.functions.get(index))
    }

    /// The functions right below the bridge at `bdf`.
    pub fn below(&self, bdf: Bdf) -> impl Iterator<Item = &Function> {
        let bus = self.get(bdf).and_then(|bridge| self.secondary(bridge));
        bus.into_iter()
            .flat_map(|bus| bus.functions.iter())
            .filter_map(|index| self.functions.get(*index))
    }

    /// Whether no bridge leads to `bus`, for good reason.
    #[must_use]
    pub fn is_root_bus(&self, bus: BusId) -> bool {
        self.buses.get(&bus).is_some_and(|bus| bus.is_root)
    }

    /// What `bus` hangs from.
    #[must_use]
    pub fn origin(&self, bus: BusId) -> Origin {
        match self.buses.get(&bus) {
            Some(bus) if bus.is_root => Origin::Root,
            Some(bus) => bus
                .bridge
                .and_then(|bridge| self.functions.get(bridge))
                .map_or(Origin::Unknown, |bridge| Origin::Bridge(bridge.bdf)),
            None => Origin::Unknown,
        }
    }

    /// The function that firmware tables name when they mean the one at `bdf`: the physical function of a virtual
    /// one, function 0 of a device with alternative routing IDs (VT-d §8.3, DRHD), otherwise itself.
    #[must_use]
    pub fn listed_as(&self, bdf: Bdf) -> Bdf {
        let Some(f) = self.get(bdf) else { return bdf };
        let own = f.physical_function.unwrap_or(bdf);
        let first = Bdf::new(own.segment, SourceId::new(own.bus(), DevFn::default()));
        let is_ari = self.get(first).is_some_and(|first| first.ari.is_present())
            && self.parent(own).is_some_and(|port| port.ari_forwarding);
        if is_ari { first } else { own }
    }

    /// The function whose requester ID requests of the one at `bdf` carry, and whose unit translates them: itself,
    /// the VMD it is behind, or `None` if it is behind a function that is not known.
    #[must_use]
    pub fn requester(&self, bdf: Bdf) -> Option<Bdf> {
        match self.get(bdf).and_then(|f| f.real_dma) {
            Some(real) => Some(real),
            None => bdf.segment.firmware().map(|_| bdf),
        }
    }

    /// Whether resetting the bus above the function at `bdf` resets it and nothing else.
    #[must_use]
    pub fn bus_reset_is_private(&self, bdf: Bdf) -> bool {
        let alone = |f: &Function| {
            let bus = f.parent.and_then(|bridge| self.functions.get(bridge));
            bus.and_then(|bridge| self.secondary(bridge))
                .is_some_and(|bus| bus.functions.len() == 1)
        };
        self.get(bdf).is_some_and(|f| !f.is_bridge() && alone(f))
    }

    /// The other functions that a reset of the bus above the function at `bdf` hits, ascending: all on its bus, and
    /// everything below those. `None` where no bridge above is known that could reset it.
    #[must_use]
    pub fn bus_reset_hits(&self, bdf: Bdf) -> Option<Vec<Bdf>> {
        let bridge = self.parent(bdf)?;
        let mut hit = Vec::new();
        let mut buses = alloc::vec![self.secondary(bridge)?];
        // Each bus has one bridge that leads to it, so that each is visited once.
        while let Some(bus) = buses.pop() {
            for f in bus.functions.iter().filter_map(|index| self.functions.get(*index)) {
                hit.push(f.bdf);
                buses.extend(Some(f).filter(|f| f.is_bridge()).and_then(|f| self.secondary(f)));
            }
        }
        hit.retain(|other| *other != bdf);
        hit.sort_unstable();
        Some(hit)
    }

    /// `start` and the bridges above it. Parents are found before children, so indices only fall.
    pub(crate) fn above(&self, start: Option<usize>) -> impl Iterator<Item = usize> {
        core::iter::successors(start, |index| {
            let parent = self.functions.get(*index)?.parent?;
            (parent < *index).then_some(parent)
        })
    }

    pub(crate) fn function(&self, index: usize) -> Option<&Function> {
        self.functions.get(index)
    }

    pub(crate) fn index_of(&self, bdf: Bdf) -> Option<usize> {
        self.index.get(&bdf).copied()
    }

    pub(crate) fn buses(&self) -> impl Iterator<Item = (&BusId, &Bus)> {
        self.buses.iter()
    }

    /// The bus that a function is on; for a virtual function, that of its physical one.
    pub(crate) fn bus_of(&self, f: &Function) -> Option<&Bus> {
        self.buses.get(&BusId::of(f.physical_function.unwrap_or(f.bdf)))
    }

    /// The bus right below a bridge, if the bridge is the one that leads to it.
    pub(crate) fn secondary(&self, bridge: &Function) -> Option<&Bus> {
        let id = BusId::new(bridge.bdf.segment, bridge.buses?.secondary);
        let bus = self.buses.get(&id)?;
        (bus.bridge.is_some() && bus.bridge == self.index_of(bridge.bdf)).then_some(bus)
    }

    pub(crate) fn contested(&self) -> &[(usize, usize)] {
        &self.contested
    }

    pub(crate) const fn has_amd_iommu(&self) -> bool {
        self.amd_iommu
    }

    pub(crate) fn parent_of(&self, f: &Function) -> Option<&Function> {
        self.functions.get(f.parent?)
    }

    pub(crate) fn port_above(&self, f: &Function) -> Option<PortType> {
        self.parent_of(f)?.port.present()
    }

    pub(crate) fn is_on_root_bus(&self, f: &Function) -> bool {
        self.bus_of(f).is_some_and(|bus| bus.is_root)
    }
}
