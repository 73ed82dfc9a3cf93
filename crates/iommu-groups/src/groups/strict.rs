//! Groups by what PCI Express lets functions reach: the finest partition in which no function can reach the
//! memory of another group, or be mistaken for one of its functions.
//!
//! Access control is a matter of egress: good controls on one's own way up do not stop another from reaching
//! in. So every place where requests can turn round is looked at, not just the ways up, and the answer does not
//! depend on any order.
//!
//! Where the specification leaves freedom: a control that a capability lacks counts as hard-wired on (PCIe
//! §7.7.11.2, ACS Capability Register); without enhanced ACS, request redirect covers the memory of the ports too
//! (what it covers there is left to the implementation); egress control counts as a vector that lets everything
//! through; the root complex passes requests between different devices on a root bus to the IOMMU. A requester ID
//! that a function makes up is not followed to whom it belongs: a port that lets it through counts as one that
//! does not isolate, no more.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use iommu_types::{Segment, SourceId};

use super::{Draft, Rules};
use crate::access::Presence;
use crate::acs::Lack;
use crate::function::Function;
use crate::pci::{PortType, acs};
use crate::reason::Reason;
use crate::topology::{AliasVia, Bus, BusId, Topology};

pub(super) fn group(topology: &Topology) -> Draft {
    let mut strict = Strict::new(topology);
    strict.aliases();
    for (id, bus) in topology.buses() {
        strict.bus(*id, bus);
    }
    strict.contested();
    strict.unknown_requesters();
    strict.finish()
}

struct Strict<'t> {
    topology: &'t Topology,
    lack: Vec<Option<Lack>>,
    sets: Sets,
    hops: Vec<(usize, usize, Reason)>,
    /// Bridges whose lower side has been joined with them already.
    below_joined: Vec<bool>,
}

impl<'t> Strict<'t> {
    fn new(topology: &'t Topology) -> Self {
        let functions = topology.functions();
        Self {
            topology,
            lack: functions
                .iter()
                .map(|f| topology.isolation(f, Rules::Strict).lack())
                .collect(),
            sets: Sets::new(functions.len()),
            hops: Vec::new(),
            below_joined: vec![false; functions.len()],
        }
    }

    fn finish(mut self) -> Draft {
        Draft {
            of: (0..self.below_joined.len())
                .map(|index| self.sets.find(index))
                .collect(),
            hops: self.hops,
        }
    }

    fn join(&mut self, a: usize, b: usize, reason: Reason) {
        if a != b {
            self.sets.union(a, b);
            self.hops.push((a, b, reason));
        }
    }

    fn lack_of(&self, index: usize) -> Option<Lack> {
        self.lack.get(index).copied().flatten()
    }

    /// Joins everything below a bridge with it; `first` is the reason for what is right below. Each bridge's
    /// lower side is joined once, which bounds the work by the number of functions.
    fn join_below(&mut self, bridge: usize, first: Reason) {
        let mut pending = vec![(bridge, first)];
        while let Some((bridge, reason)) = pending.pop() {
            let Some(done) = self.below_joined.get_mut(bridge) else {
                continue;
            };
            if core::mem::replace(done, true) {
                continue;
            }
            let bus = self.topology.function(bridge).and_then(|f| self.topology.secondary(f));
            for index in bus.into_iter().flat_map(|bus| &bus.functions) {
                self.join(*index, bridge, reason);
                if self.topology.function(*index).is_some_and(Function::is_bridge) {
                    pending.push((*index, Reason::Below));
                }
            }
        }
    }

    /// Functions whose requests can carry the same requester ID.
    fn aliases(&mut self) {
        let mut users: BTreeMap<(Segment, SourceId), (usize, AliasVia)> = BTreeMap::new();
        for (index, f) in self.topology.functions().iter().enumerate() {
            for step in self.topology.alias_steps(index) {
                let alias = step.alias;
                // The requester ID of a VMD is one of the VMD's segment, not of its children's.
                let segment = f.real_dma.map_or(f.bdf.segment, |real| real.segment);
                let (user, via) = *users.entry((segment, alias.source)).or_insert((index, alias.via));
                // One reason for each function is enough, and keeps a bus full of devices that each use all
                // 256 requester IDs from costing 65,536 of them.
                if self.sets.find(user) != self.sets.find(index) {
                    let reason = Reason::SharedAlias {
                        source: alias.source,
                        first: via,
                        second: alias.via,
                    };
                    self.join(user, index, reason);
                }
            }
        }
    }

    fn bus(&mut self, id: BusId, bus: &Bus) {
        let Some(bridge) = bus.bridge else {
            if bus.is_root {
                self.slots(bus, false);
            } else {
                self.star(&bus.functions, |_| Reason::NoWayUp { bus: id });
            }
            return;
        };
        let Some(f) = self.topology.function(bridge) else {
            return;
        };
        match f.port {
            Presence::Present(PortType::UPSTREAM_PORT) => self.switch(bridge, bus),
            // A point-to-point link. What a downstream port lets through is counted on the switch's bus.
            Presence::Present(PortType::DOWNSTREAM_PORT) => self.slots(bus, true),
            Presence::Present(PortType::ROOT_PORT) => {
                if let Some(lack) = self.lack_of(bridge) {
                    self.join_below(bridge, Reason::Port { lack });
                }
                self.slots(bus, true);
            }
            Presence::Present(PortType::PCIE_TO_PCI_BRIDGE) => self.conventional_bus(bridge, f, bus),
            Presence::Absent if self.topology.hides_express(f) => self.conventional_bus(bridge, f, bus),
            Presence::Present(PortType::PCI_TO_PCIE_BRIDGE) | Presence::Absent => {
                self.join_below(bridge, Reason::SharedBus { bridge: f.bdf });
            }
            Presence::Present(_) | Presence::Unknown => {
                self.join_below(bridge, Reason::Port { lack: Lack::Unknown });
            }
        }
    }

    /// Joins the first of `functions` with each of the others.
    fn star(&mut self, functions: &[usize], reason: impl Fn(usize) -> Reason) {
        if let Some((first, others)) = functions.split_first() {
            for other in others {
                self.join(*first, *other, reason(*other));
            }
        }
    }

    /// The bus below a PCIe-to-PCI bridge: everybody there reads along. The bridge itself has a requester ID of
    /// its own above, and shares the fate of those below only if it has memory they can reach.
    fn conventional_bus(&mut self, bridge: usize, f: &Function, bus: &Bus) {
        let reason = Reason::SharedBus { bridge: f.bdf };
        if f.has_memory {
            self.join_below(bridge, reason);
            return;
        }
        self.star(&bus.functions, |_| reason);
        for index in &bus.functions {
            if self.topology.function(*index).is_some_and(Function::is_bridge) {
                self.join_below(*index, Reason::Below);
            }
        }
    }

    /// The internal bus of a switch, below its upstream port.
    fn switch(&mut self, upstream: usize, bus: &Bus) {
        let port = |index: usize| self.topology.function(index);
        let is_port = |f: &Function| f.port == Presence::Present(PortType::DOWNSTREAM_PORT) && f.alias_mask.is_none();
        let foreign = bus
            .functions
            .iter()
            .copied()
            .find(|index| port(*index).is_some_and(|f| !is_port(f)));
        if let Some(function) = foreign.and_then(port) {
            self.join_below(upstream, Reason::SwitchMember { function: function.bdf });
            return;
        }
        let permissive = bus
            .functions
            .iter()
            .copied()
            .find_map(|index| Some((index, port(index)?.bdf, self.lack_of(index)?)));
        let Some((first, bdf, lack)) = permissive else {
            return;
        };
        // Whether requests from below some port can reach the memory of the upstream port: enhanced ACS has a
        // control for that, otherwise it is a peer like any other.
        let has_memory = port(upstream).is_some_and(|f| f.has_memory);
        let reaches_upstream = bus.functions.iter().copied().find(|index| {
            let state = port(*index).and_then(|f| f.acs.present());
            match state.filter(|state| state.capability & acs::ENHANCED != 0) {
                Some(state) => state.control & (acs::USP_TARGET_REDIRECT | acs::USP_TARGET_BLOCKING) == 0,
                None => has_memory && self.lack_of(*index).is_some_and(|lack| !redirects(lack)),
            }
        });
        for index in &bus.functions {
            self.join(first, *index, Reason::SwitchPeers { port: bdf, lack });
            self.join_below(*index, Reason::Below);
        }
        if let Some(index) = reaches_upstream
            && let Some(f) = self.topology.function(index)
        {
            self.join(index, upstream, Reason::SwitchUpstream { port: f.bdf });
        }
    }

    /// Devices with several functions: one that lacks isolation can reach the others, and what is below those
    /// that are bridges. On a link there is one device, however its functions are numbered.
    fn slots(&mut self, bus: &Bus, is_link: bool) {
        let mut slots: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
        for index in &bus.functions {
            let Some(f) = self.topology.function(*index).filter(|f| !f.is_virtual()) else {
                continue;
            };
            let device = if is_link { 0 } else { f.bdf.devfn().device() };
            slots.entry(device).or_default().push(*index);
        }
        for functions in slots.into_values().filter(|functions| functions.len() > 1) {
            let permissive = functions.iter().copied().find_map(|index| {
                let f = self.topology.function(index)?;
                Some((index, f.bdf, self.lack_of(index)?))
            });
            let Some((first, function, lack)) = permissive else {
                continue;
            };
            for index in functions {
                self.join(first, index, Reason::Slot { function, lack });
                if self.topology.function(index).is_some_and(Function::is_bridge) {
                    self.join_below(index, Reason::Below);
                }
            }
        }
    }

    /// Functions of a domain that is behind a function nobody knows share its requester ID.
    fn unknown_requesters(&mut self) {
        let mut first: BTreeMap<Segment, usize> = BTreeMap::new();
        for (index, f) in self.topology.functions().iter().enumerate() {
            if f.has_unknown_requester() {
                let segment = f.bdf.segment;
                let leader = *first.entry(segment).or_insert(index);
                self.join(leader, index, Reason::UnknownRequester { segment });
            }
        }
    }

    fn contested(&mut self) {
        for (a, b) in self.topology.contested() {
            self.join(*a, *b, Reason::Contested);
            self.join_below(*a, Reason::Below);
            self.join_below(*b, Reason::Below);
        }
    }
}

/// Whether requests for peers are redirected all the same.
fn redirects(lack: Lack) -> bool {
    matches!(lack, Lack::Off(off) if off.0 & acs::REQUEST_REDIRECT == 0)
}

/// Disjoint sets with path halving; the smaller index leads, so that the outcome depends on no order.
struct Sets(Vec<usize>);

impl Sets {
    fn new(len: usize) -> Self {
        Self((0..len).collect())
    }

    fn leader(&self, of: usize) -> usize {
        self.0.get(of).copied().unwrap_or(of)
    }

    /// Leaders only get smaller along the way, so it ends.
    fn find(&mut self, mut of: usize) -> usize {
        loop {
            let above = self.leader(of);
            if above >= of {
                return of;
            }
            let next = self.leader(above);
            if let Some(slot) = self.0.get_mut(of) {
                *slot = next;
            }
            of = next;
        }
    }

    fn union(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        let (leader, other) = if a < b { (a, b) } else { (b, a) };
        if let Some(slot) = self.0.get_mut(other) {
            *slot = leader;
        }
    }
}
