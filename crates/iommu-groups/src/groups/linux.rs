//! Groups as Linux makes them: function by function, in the order of discovery, looking for a group to join.
//!
//! The steps are those of `pci_device_group` in `drivers/iommu/iommu.c`. The known holes are kept on purpose:
//! only the way up is looked at, so a permissive port beside it is missed; peers of a downstream port are not
//! examined; a PCIe-to-PCI bridge joins the functions below it although its requester ID is not theirs.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use iommu_types::{Bdf, Segment};

use super::{Draft, LinuxVersion, Rules};
use crate::acs::Lack;
use crate::function::{DevFnSet, Function};
use crate::reason::Reason;
use crate::topology::{AliasVia, BusId, Topology};

pub(super) fn group(topology: &Topology, version: LinuxVersion) -> Draft {
    Linux::new(topology, version).run()
}

/// A member of an existing group to join, and why.
type Found = (usize, Reason);

struct Linux<'t> {
    topology: &'t Topology,
    /// What each function lacks by itself.
    lack: Vec<Option<Lack>>,
    /// The first on the way up that lacks something, the function itself included.
    path: Vec<Option<(usize, Lack)>>,
    /// Functions by the bus their requester ID names.
    on_bus: BTreeMap<BusId, Vec<usize>>,
    /// The first of the functions that send their requests through another that is not in the topology, by that
    /// one; or by segment where it is not known.
    behind: BTreeMap<Behind, usize>,
    /// The group of each function that has one already.
    group: Vec<Option<usize>>,
}

/// What requests go through that this topology does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Behind {
    /// This function, which is not listed.
    Absent(Bdf),
    /// One that is not known, for this whole domain.
    Unknown(Segment),
}

impl<'t> Linux<'t> {
    fn new(topology: &'t Topology, version: LinuxVersion) -> Self {
        let rules = Rules::Linux(version);
        let lack: Vec<_> = topology
            .functions()
            .iter()
            .map(|f| topology.isolation(f, rules).lack())
            .collect();
        // Bridges come before what is below them, so each path extends a known one.
        let mut path: Vec<Option<(usize, Lack)>> = Vec::with_capacity(lack.len());
        for (index, (f, lack)) in topology.functions().iter().zip(&lack).enumerate() {
            let above = f.parent.and_then(|parent| path.get(parent).copied().flatten());
            path.push(lack.map(|lack| (index, lack)).or(above));
        }
        let mut on_bus: BTreeMap<BusId, Vec<usize>> = BTreeMap::new();
        for (index, f) in topology.functions().iter().enumerate() {
            on_bus.entry(BusId::of(f.bdf)).or_default().push(index);
        }
        let mut behind = BTreeMap::new();
        for (index, f) in topology.functions().iter().enumerate() {
            if let Some(key) = hidden_requester(topology, f) {
                behind.entry(key).or_insert(index);
            }
        }
        Self {
            topology,
            behind,
            group: vec![None; lack.len()],
            lack,
            path,
            on_bus,
        }
    }

    fn run(mut self) -> Draft {
        let mut hops = Vec::new();
        let mut next = 0;
        for index in 0..self.group.len() {
            let joined = self.search(index).and_then(|(member, reason)| {
                hops.push((index, member, reason));
                self.has_group(member)
            });
            let number = joined.unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            if let Some(group) = self.group.get_mut(index) {
                *group = Some(number);
            }
        }
        Draft {
            of: self.group.into_iter().flatten().collect(),
            hops,
        }
    }

    fn has_group(&self, index: usize) -> Option<usize> {
        self.group.get(index).copied().flatten()
    }

    fn search(&self, start: usize) -> Option<Found> {
        // 1. The alias walk: the first on the way that has a group decides.
        let steps = self.topology.alias_steps(start);
        for step in &steps {
            if self.has_group(step.at).is_some() {
                let reason = Reason::SharedAlias {
                    source: step.alias.source,
                    first: step.alias.via,
                    second: AliasVia::Own,
                };
                return Some((step.at, self.alias_reason(step.at, reason)));
            }
        }
        if let Some(found) = self.hidden_group(start) {
            return Some(found);
        }
        let mut at = steps.last().map_or(start, |step| step.at);
        // 2. Up to where requests are safe from peers.
        while let Some(bridge) = self.topology.function(at).and_then(|f| f.parent) {
            let Some((port, lack)) = self.path.get(bridge).copied().flatten() else {
                break;
            };
            at = bridge;
            if self.has_group(bridge).is_some() {
                let port = self.topology.function(port)?.bdf;
                return Some((bridge, Reason::Upstream { port, lack }));
            }
        }
        // 3. Functions that use our requester ID, or whose requester ID we use.
        let mut seen = DevFnSet::default();
        if let Some(found) = self.alias_group(at, &mut seen) {
            return Some(found);
        }
        // 4. Functions of the same device that are not isolated, and those that alias them.
        self.slot_group(at, &mut seen)
    }

    /// The group of those behind the same function, where the function itself cannot have one. In Linux it always
    /// has: this is for machines of which only a part is known.
    fn hidden_group(&self, index: usize) -> Option<Found> {
        let key = hidden_requester(self.topology, self.topology.function(index)?)?;
        let first = *self.behind.get(&key)?;
        self.has_group(first)?;
        let reason = match key {
            Behind::Absent(real) => Reason::SharedAlias {
                source: real.source,
                first: AliasVia::RealDma(real),
                second: AliasVia::RealDma(real),
            },
            Behind::Unknown(segment) => Reason::UnknownRequester { segment },
        };
        Some((first, reason))
    }

    /// A bridge that Linux joins although the requester ID is not its own gets an honest reason.
    fn alias_reason(&self, at: usize, reason: Reason) -> Reason {
        match (reason, self.topology.function(at)) {
            (
                Reason::SharedAlias {
                    first: AliasVia::PcieToPci(_) | AliasVia::HiddenExpress(_),
                    ..
                },
                Some(bridge),
            ) => Reason::SharedBus { bridge: bridge.bdf },
            _ => reason,
        }
    }

    fn neighbours(&self, f: &Function) -> impl Iterator<Item = (usize, &Function)> {
        let bus = self.on_bus.get(&BusId::of(f.bdf));
        bus.into_iter()
            .flatten()
            .filter_map(|index| Some((*index, self.topology.function(*index)?)))
    }

    /// `get_pci_alias_group`. The set holds every device and function number looked at, which bounds the
    /// recursion at 256.
    fn alias_group(&self, index: usize, seen: &mut DevFnSet) -> Option<Found> {
        let f = self.topology.function(index)?;
        if seen.contains(f.bdf.devfn()) {
            return None;
        }
        seen.insert(f.bdf.devfn());
        for (other, g) in self.neighbours(f) {
            let Some(reason) = alias_between(f, g).filter(|_| other != index) else {
                continue;
            };
            if !seen.contains(g.bdf.devfn()) && self.has_group(other).is_some() {
                return Some((other, reason));
            }
            let found = self.alias_group(other, seen).or_else(|| self.slot_group(other, seen));
            if let Some((member, _)) = found {
                return Some((member, Reason::SlotOfAlias { alias: g.bdf }));
            }
        }
        None
    }

    /// `get_pci_function_alias_group`.
    fn slot_group(&self, index: usize, seen: &mut DevFnSet) -> Option<Found> {
        let f = self.topology.function(index)?;
        let lack = self.lack.get(index).copied().flatten();
        let (true, Some(lack)) = (f.multifunction, lack) else {
            return None;
        };
        for (other, g) in self.neighbours(f) {
            let same_slot = g.bdf.devfn().device() == f.bdf.devfn().device() && other != index;
            let other_lacks = self.lack.get(other).copied().flatten().is_some();
            if !same_slot || !other_lacks {
                continue;
            }
            if !seen.contains(g.bdf.devfn()) && self.has_group(other).is_some() {
                return Some((other, Reason::Slot { function: f.bdf, lack }));
            }
            if let Some((member, _)) = self.alias_group(other, seen) {
                return Some((member, Reason::SlotOfAlias { alias: g.bdf }));
            }
        }
        None
    }
}

/// What a function's requests go through, if that is not in the topology.
fn hidden_requester(topology: &Topology, f: &Function) -> Option<Behind> {
    match f.real_dma {
        Some(real) => topology.get(real).is_none().then_some(Behind::Absent(real)),
        None => f.has_unknown_requester().then_some(Behind::Unknown(f.bdf.segment)),
    }
}

/// `pci_devs_are_dma_aliases`: whether one of two functions on a bus uses the other's requester ID.
fn alias_between(f: &Function, g: &Function) -> Option<Reason> {
    let uses = |user: &Function, other: &Function| {
        user.alias_mask
            .as_ref()
            .is_some_and(|mask| mask.contains(other.bdf.devfn()))
    };
    if uses(f, g) {
        Some(Reason::SharedAlias {
            source: g.bdf.source,
            first: AliasVia::Device,
            second: AliasVia::Own,
        })
    } else if uses(g, f) {
        Some(Reason::SharedAlias {
            source: f.bdf.source,
            first: AliasVia::Own,
            second: AliasVia::Device,
        })
    } else if f.real_dma == Some(g.bdf) {
        Some(Reason::SharedAlias {
            source: g.bdf.source,
            first: AliasVia::RealDma(g.bdf),
            second: AliasVia::Own,
        })
    } else if g.real_dma == Some(f.bdf) {
        Some(Reason::SharedAlias {
            source: f.bdf.source,
            first: AliasVia::Own,
            second: AliasVia::RealDma(f.bdf),
        })
    } else {
        None
    }
}
