//! Finding functions.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use iommu_types::{Bdf, DevFn, SourceId};

use super::{AcsControl, Bus, BusId, Facts, Topology};
use crate::access::{ConfigAccess, Presence, Reader};
use crate::function::{Function, Layout, Misplaced, SriovState};
use crate::groups::LinuxVersion;
use crate::pci::{PortType, acs, bridge, header};
use crate::problem::Problem;

/// Devices on a bus that is not a point-to-point link.
const DEVICES: u8 = 32;
/// Functions of a device.
const FUNCTIONS: u8 = 8;

pub(super) struct Scanner<'a, A> {
    access: &'a A,
    /// What there is, by bus; `None` to find out.
    listed: Option<BTreeMap<BusId, Vec<DevFn>>>,
    /// Listed functions that are not read where they stand.
    left_out: BTreeSet<Bdf>,
    out: Topology,
}

impl<'a, A: ConfigAccess> Scanner<'a, A> {
    /// Looks at every device number.
    pub(super) fn everything(access: &'a A) -> Self {
        Self {
            access,
            listed: None,
            left_out: BTreeSet::new(),
            out: Topology::default(),
        }
    }

    /// Looks at these functions only. Known virtual functions are left to their physical ones: some readers show an
    /// identity for them that their registers do not have.
    pub(super) fn listed(access: &'a A, functions: impl IntoIterator<Item = Bdf>, facts: &Facts) -> Self {
        let mut listed: BTreeMap<BusId, Vec<DevFn>> = BTreeMap::new();
        for bdf in functions {
            listed.entry(BusId::of(bdf)).or_default().push(bdf.devfn());
        }
        for devfns in listed.values_mut() {
            devfns.sort_unstable();
            devfns.dedup();
        }
        let named: BTreeSet<Bdf> = facts.virtual_functions.iter().map(|(bdf, _)| *bdf).collect();
        let left_out = facts
            .virtual_functions
            .iter()
            // A virtual function has none of its own, and what is not there cannot vouch for others.
            .filter(|(_, physical)| {
                let on_bus = listed.get(&BusId::of(*physical));
                !named.contains(physical)
                    && on_bus.is_some_and(|devfns| devfns.binary_search(&physical.devfn()).is_ok())
            })
            .map(|(bdf, _)| *bdf)
            .collect();
        Self {
            access,
            listed: Some(listed),
            left_out,
            out: Topology::default(),
        }
    }

    /// The listed buses that no listed bridge claims and that hold more than virtual functions.
    pub(super) fn unclaimed(&self) -> Vec<BusId> {
        let listed = self.listed.iter().flatten();
        let mut claimed = BTreeSet::new();
        let mut inhabited = BTreeSet::new();
        for (bus, devfns) in listed {
            for devfn in devfns {
                let function = Bdf::new(bus.segment, SourceId::new(bus.bus, *devfn));
                if self.left_out.contains(&function) {
                    continue;
                }
                let reader = Reader {
                    access: self.access,
                    function,
                };
                if reader.read32(header::VENDOR_ID).is_some_and(|id| id != u32::MAX) {
                    inhabited.insert(*bus);
                }
                let layout = reader.read8(header::HEADER_TYPE).unwrap_or(0) & header::HEADER_LAYOUT;
                if matches!(layout, header::LAYOUT_BRIDGE | header::LAYOUT_CARDBUS)
                    && let Some(secondary) = reader.read8(bridge::SECONDARY)
                    && secondary > bus.bus
                {
                    claimed.insert(BusId::new(bus.segment, secondary));
                }
            }
        }
        inhabited.difference(&claimed).copied().collect()
    }

    pub(super) fn run(mut self, roots: &[BusId], facts: &Facts) -> Topology {
        self.out.amd_iommu = facts.amd_iommu;
        for root in roots {
            self.out.buses.entry(*root).or_default().is_root = true;
        }
        let mut visited = BTreeSet::new();
        for root in roots {
            if visited.insert(*root) {
                self.descend(*root, &mut visited);
            }
        }
        // Buses that a list has functions on, but nothing leads to.
        let lost: Vec<BusId> = self
            .listed
            .iter()
            .flat_map(BTreeMap::keys)
            .filter(|bus| !visited.contains(bus))
            .copied()
            .collect();
        for bus in lost {
            if visited.insert(bus) {
                let before = self.out.functions.len();
                self.descend(bus, &mut visited);
                // A bus with virtual functions only needs no bridge.
                if self.out.functions.len() > before {
                    self.out.problems.push(Problem::NoWayUp { bus });
                }
            }
        }
        self.virtual_functions(facts);
        self.keep_silent();
        self.apply(facts);
        self.out
    }

    /// Reads a bus, then the buses below its bridges in their order, each with everything below it.
    fn descend(&mut self, start: BusId, visited: &mut BTreeSet<BusId>) {
        let mut bridges = self.read_bus(start);
        bridges.reverse();
        while let Some(bridge) = bridges.pop() {
            let Some(bus) = self.follow(bridge) else {
                continue;
            };
            if visited.insert(bus) {
                let below = self.read_bus(bus);
                bridges.extend(below.into_iter().rev());
            }
        }
    }

    /// Reads the functions of a bus; returns the bridges among them.
    fn read_bus(&mut self, bus: BusId) -> Vec<usize> {
        let first = self.out.functions.len();
        let parent = self.out.buses.entry(bus).or_default().bridge;
        let listed = self
            .listed
            .as_ref()
            .map(|listed| listed.get(&bus).cloned().unwrap_or_default());
        match listed {
            Some(devfns) => {
                for devfn in devfns {
                    if !self
                        .left_out
                        .contains(&Bdf::new(bus.segment, SourceId::new(bus.bus, devfn)))
                    {
                        self.add(bus, devfn, parent);
                    }
                }
            }
            None => self.probe_bus(bus, parent),
        }
        let found = first..self.out.functions.len();
        let is_bridge = |index: &usize| self.out.functions.get(*index).is_some_and(Function::is_bridge);
        found.filter(is_bridge).collect()
    }

    fn probe_bus(&mut self, bus: BusId, parent: Option<usize>) {
        let above = parent.and_then(|index| self.out.functions.get(index));
        // A link has one device, number 0. PCIe §7.3.1 (Device Number). Below a misplaced port it is not certain that
        // there is a link: Linux looks everywhere too.
        let link = above.is_some_and(|f| {
            matches!(
                f.linux_port(LinuxVersion::LATEST),
                Presence::Present(PortType::ROOT_PORT | PortType::DOWNSTREAM_PORT)
            )
        });
        let ari_above = above.is_some_and(|f| f.ari_forwarding);
        for device in 0..if link { 1 } else { DEVICES } {
            let Some((multifunction, ari)) = DevFn::new(device, 0).and_then(|devfn| self.add(bus, devfn, parent))
            else {
                continue;
            };
            match ari.present() {
                Some(next) if ari_above => self.probe_ari(bus, parent, next),
                _ if multifunction => {
                    for devfn in (1..FUNCTIONS).filter_map(|function| DevFn::new(device, function)) {
                        self.add(bus, devfn, parent);
                    }
                }
                _ => {}
            }
        }
    }

    /// Follows the list of an ARI device. Numbers must rise, which bounds it. PCIe §6.13 (ARI).
    fn probe_ari(&mut self, bus: BusId, parent: Option<usize>, first: u8) {
        let mut last = 0;
        let mut next = first;
        while next > last {
            let Some((_, ari)) = self.add(bus, DevFn::from_raw(next), parent) else {
                return;
            };
            last = next;
            next = ari.present().unwrap_or(0);
        }
        if next != 0 {
            let function = Bdf::new(bus.segment, SourceId::new(bus.bus, DevFn::from_raw(last)));
            let next = DevFn::from_raw(next);
            self.out.problems.push(Problem::FunctionList { function, next });
        }
    }

    /// Reads one function; tells whether it is one of several, and where ARI continues.
    fn add(&mut self, bus: BusId, devfn: DevFn, parent: Option<usize>) -> Option<(bool, Presence<u8>)> {
        let bdf = Bdf::new(bus.segment, SourceId::new(bus.bus, devfn));
        let mut function = Function::read(self.access, bdf, &mut self.out.problems)?;
        function.parent = parent;
        self.correct_port(&mut function);
        let answer = (function.multifunction, function.ari);
        self.insert(function, bus);
        Some(answer)
    }

    /// A port that stands where only the other side of a switch can stand is that other side, whatever it says:
    /// what goes on from a link is an upstream port, and inside a switch stand downstream ports. PCIe §7.5.3.2
    /// (Device/Port Type).
    ///
    /// Linux notices the same, but then takes the port for an endpoint ([`Function::linux_port`]), so that it notices
    /// nothing at the ports right below. These get no [`Problem`] of their own: what is wrong has been said above.
    fn correct_port(&mut self, function: &mut Function) {
        let Some(claims) = function.port.present() else { return };
        let parent = function.parent.and_then(|parent| self.out.functions.get(parent));
        let acts_as = |above: Option<PortType>| match (claims, above?) {
            (
                PortType::DOWNSTREAM_PORT,
                PortType::ROOT_PORT | PortType::DOWNSTREAM_PORT | PortType::PCI_TO_PCIE_BRIDGE,
            ) => Some(PortType::UPSTREAM_PORT),
            (PortType::UPSTREAM_PORT, PortType::UPSTREAM_PORT) => Some(PortType::DOWNSTREAM_PORT),
            _ => None,
        };
        let Some(port) = acts_as(parent.and_then(|f| f.port.present())) else {
            return;
        };
        let for_linux = parent.and_then(|f| f.linux_port(LinuxVersion::LATEST).present());
        let noticed = acts_as(for_linux).is_some();
        function.port = Presence::Present(port);
        function.misplaced = Some(Misplaced { claims, noticed });
        if noticed {
            self.out.problems.push(Problem::PortAgainstParent {
                function: function.bdf,
                acts_as: port,
            });
        }
    }

    fn insert(&mut self, function: Function, bus: BusId) {
        let index = self.out.functions.len();
        self.out.index.insert(function.bdf, index);
        self.out.buses.entry(bus).or_default().functions.push(index);
        self.out.functions.push(function);
    }

    /// Checks a bridge's numbers and claims its secondary bus; `None` where there is nothing to follow.
    fn follow(&mut self, index: usize) -> Option<BusId> {
        let f = self.out.functions.get(index)?;
        let bridge = f.bdf;
        let Some(buses) = f.buses.filter(|buses| buses.secondary != 0) else {
            self.out.problems.push(Problem::NotConfigured { bridge });
            return None;
        };
        if buses.primary != bridge.bus() {
            let register = buses.primary;
            self.out.problems.push(Problem::PrimaryBus { bridge, register });
        }
        if buses.secondary <= bridge.bus() || buses.subordinate < buses.secondary {
            self.out.problems.push(Problem::BusOrder { bridge, buses });
            return None;
        }
        let parent = self.out.functions.get(index).and_then(|f| f.parent);
        if let Some(above) = parent.and_then(|parent| self.out.functions.get(parent))
            && let Some(range) = above.buses
            && !(range.routes(buses.secondary) && range.routes(buses.subordinate))
        {
            let parent = above.bdf;
            self.out.problems.push(Problem::OutsideParent { bridge, buses, parent });
        }
        self.check_siblings(index);

        let bus = BusId::new(bridge.segment, buses.secondary);
        let entry = self.out.buses.entry(bus).or_default();
        match entry.bridge {
            None if !entry.is_root && entry.functions.is_empty() => entry.bridge = Some(index),
            first => {
                self.out.problems.push(Problem::BusClaimedTwice {
                    bus,
                    first: first.and_then(|first| self.out.functions.get(first)).map(|f| f.bdf),
                    second: bridge,
                });
                if let Some(first) = first {
                    self.out.contested.push((first, index));
                }
                return None;
            }
        }
        Some(bus)
    }

    /// Two bridges on one bus must not route the same buses: an answer could go to either.
    fn check_siblings(&mut self, index: usize) {
        let Some(f) = self.out.functions.get(index) else { return };
        let (Some(own), Some(bus)) = (f.buses, self.out.buses.get(&BusId::of(f.bdf))) else {
            return;
        };
        let overlapping: Vec<usize> = bus
            .functions
            .iter()
            .copied()
            .take_while(|other| *other < index)
            .filter(|other| {
                let other = self.out.functions.get(*other).and_then(|f| f.buses);
                other.is_some_and(|other| {
                    // The same secondary bus is reported as claimed twice.
                    other.secondary != 0
                        && other.secondary != own.secondary
                        && other.secondary <= own.subordinate
                        && own.secondary <= other.subordinate
                })
            })
            .collect();
        for other in overlapping {
            if let (Some(first), Some(second)) = (self.out.functions.get(other), self.out.functions.get(index)) {
                let (first, second) = (first.bdf, second.bdf);
                self.out.problems.push(Problem::BusesOverlap { first, second });
                self.out.contested.push((other, index));
            }
        }
    }

    /// Adds the virtual functions that exist. PCIe §9.2.1.2 (VF Discovery).
    fn virtual_functions(&mut self, facts: &Facts) {
        for index in 0..self.out.functions.len() {
            let Some(physical) = self.out.functions.get(index) else {
                continue;
            };
            let Some(sriov) = physical.sriov.present().filter(|sriov| sriov.enabled) else {
                continue;
            };
            let physical = physical.clone();
            for number in 0..sriov.count.min(sriov.total) {
                // A requester ID holds one function: a collision ends the list, which bounds the loop by the
                // number of requester IDs of the segment.
                let id = u32::from(physical.bdf.source.raw())
                    + u32::from(sriov.first_offset)
                    + u32::from(sriov.stride) * u32::from(number);
                let bdf = u16::try_from(id)
                    .ok()
                    .map(|id| Bdf::new(physical.bdf.segment, SourceId::from_raw(id)))
                    .filter(|bdf| !self.out.index.contains_key(bdf));
                let Some(bdf) = bdf else {
                    self.out.problems.push(Problem::VirtualFunctions {
                        function: physical.bdf,
                        index: number,
                    });
                    break;
                };
                self.insert_virtual(bdf, &physical, sriov);
            }
        }
        for (bdf, physical) in &facts.virtual_functions {
            match self.out.get(*physical).cloned() {
                _ if self.out.index.contains_key(bdf) => {}
                Some(physical) => {
                    let unknown = SriovState {
                        enabled: true,
                        total: 0,
                        count: 0,
                        first_offset: 0,
                        stride: 0,
                        device: u16::MAX,
                    };
                    self.insert_virtual(*bdf, &physical, physical.sriov.present().unwrap_or(unknown));
                }
                None => self.out.problems.push(Problem::NoSuchFunction { function: *physical }),
            }
        }
    }

    fn insert_virtual(&mut self, bdf: Bdf, physical: &Function, sriov: SriovState) {
        let function = Function::read_virtual(self.access, bdf, physical, sriov, &mut self.out.problems);
        self.insert(function, BusId::of(physical.bdf));
    }

    fn apply(&mut self, facts: &Facts) {
        for (bdf, real) in &facts.real_dma {
            match self
                .out
                .index
                .get(bdf)
                .and_then(|index| self.out.functions.get_mut(*index))
            {
                Some(f) => f.real_dma = Some(*real),
                None => self.out.problems.push(Problem::NoSuchFunction { function: *bdf }),
            }
        }
        for (bdf, devfn) in &facts.aliases {
            match self
                .out
                .index
                .get(bdf)
                .and_then(|index| self.out.functions.get_mut(*index))
            {
                Some(f) => {
                    f.alias_mask.get_or_insert_default().insert(*devfn);
                    let known = Problem::AliasesNotKnown { function: *bdf };
                    self.out.problems.retain(|problem| *problem != known);
                }
                None => self.out.problems.push(Problem::NoSuchFunction { function: *bdf }),
            }
        }
        let without: BTreeSet<_> = self
            .out
            .functions
            .iter()
            .filter(|f| f.has_unknown_requester())
            .map(|f| f.bdf.segment)
            .collect();
        let problems = without
            .into_iter()
            .map(|segment| Problem::RequesterNotKnown { segment });
        self.out.problems.extend(problems);
        if facts.acs == AcsControl::Enabled {
            for f in self.out.functions.iter_mut().filter(|f| f.layout != Layout::CardBus) {
                if let Presence::Present(state) = &mut f.acs {
                    state.control |= state.capability & acs::REQUIRED;
                }
            }
        }
    }

    /// Listed functions that did not answer and are no virtual functions either: asleep, or hidden from the
    /// reader. They exist, so they are kept, with everything about them unknown.
    fn keep_silent(&mut self) {
        let listed = self.listed.take().unwrap_or_default();
        for (bus, devfns) in listed {
            for devfn in devfns {
                let bdf = Bdf::new(bus.segment, SourceId::new(bus.bus, devfn));
                if self.out.index.contains_key(&bdf) {
                    continue;
                }
                self.out.problems.push(Problem::NoAnswer { function: bdf });
                let entry = self.out.buses.entry(bus).or_default();
                let no_way_up = Problem::NoWayUp { bus };
                if entry.bridge.is_none() && !entry.is_root && !self.out.problems.contains(&no_way_up) {
                    self.out.problems.push(no_way_up);
                }
                let parent = entry.bridge;
                self.insert(Function::silent(bdf, parent), bus);
            }
        }
        // A bus entry without functions below no bridge is left over from a lost bus.
        self.out
            .buses
            .retain(|_, bus: &mut Bus| bus.is_root || bus.bridge.is_some() || !bus.functions.is_empty());
    }
}
