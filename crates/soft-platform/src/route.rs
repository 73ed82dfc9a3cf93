//! Which way a request takes, before any unit sees it.

use std::fmt;

use iommu_devices::ConfigSpace;
use iommu_groups::pci::{acs, bridge};
use iommu_types::{AddrRange, Bdf, HostPhys, SourceId};

use crate::description::{BusRange, FunctionDescription, FunctionKind};

/// Intel's vendor ID: its integrated endpoints reach each other only through the unit (VT-d §4.5, and the group
/// rules of Linux), whatever their ACS capability says.
const INTEL: u16 = 0x8086;

/// The way of a request from a function to the root complex, or to a peer that it meets before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// It leaves the last port or bridge on the way and arrives at the remapping unit.
    Upstream {
        /// The requester ID that the unit sees.
        source: SourceId,
    },
    /// Another function answers before the request gets to a unit.
    Peer {
        /// The function that answers.
        function: Bdf,
        /// Which of its BARs.
        bar: u8,
        /// Offset into that BAR in bytes.
        offset: u64,
        /// Where the request turned.
        via: Shortcut,
    },
    /// A port or bridge stops it.
    Refused {
        /// The port or bridge.
        at: Bdf,
        /// Why.
        why: Refusal,
    },
}

/// Where a request can meet a peer without passing a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shortcut {
    /// Inside a device of several functions without ACS request redirect.
    Device,
    /// On the bus below this bridge, where all functions hear all requests.
    SharedBus(Bdf),
    /// Inside the switch with this upstream port, from a port without ACS request redirect.
    Switch(Bdf),
    /// This root port turns requests for its own link around, since ACS is off.
    RootPort(Bdf),
}

impl fmt::Display for Shortcut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("inside the multifunction device, which lacks ACS request redirect"),
            Self::SharedBus(bridge) => write!(f, "on the conventional bus below {bridge}, which all functions share"),
            Self::Switch(port) => write!(f, "inside the switch at {port}, whose port lacks ACS request redirect"),
            Self::RootPort(port) => write!(f, "at root port {port}, which lacks ACS request redirect"),
        }
    }
}

/// Why a port or bridge stops a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// ACS source validation: the requester ID is not one from below the port.
    SourceValidation,
    /// The address lies in the port's window, but nothing below answers.
    NobodyClaims,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SourceValidation => "ACS source validation: the requester ID is not from below this port",
            Self::NobodyClaims => "nothing below the port answers at this address",
        })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upstream { source } => write!(f, "to the remapping unit as {source}"),
            Self::Peer { function, bar, via, .. } => write!(f, "to BAR {bar} of {function}, {via}"),
            Self::Refused { at, why } => write!(f, "refused by {at}: {why}"),
        }
    }
}

/// What a function answers to and how its ACS controls stand: the part of its configuration that routing needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decode {
    bars: Vec<(u8, AddrRange<HostPhys>)>,
    window: Option<AddrRange<HostPhys>>,
    acs: u16,
}

impl Decode {
    pub(crate) fn of(config: &ConfigSpace) -> Self {
        Self {
            bars: config
                .bars()
                .filter_map(|(index, _)| Some((index, config.bar_range(index)?)))
                .collect(),
            window: window(config),
            acs: effective_acs(config),
        }
    }

    /// All addresses it answers to or forwards.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = AddrRange<HostPhys>> + '_ {
        self.bars.iter().map(|(_, range)| *range).chain(self.window)
    }

    fn in_window(&self, at: HostPhys) -> bool {
        self.window.is_some_and(|window| window.contains(at))
    }

    fn has(&self, controls: u16) -> bool {
        self.acs & controls == controls
    }
}

/// The addresses that a bridge forwards down: the non-prefetchable window, 1 MiB granular.
/// PCIe §7.5.1.3.8 (Memory Base and Memory Limit).
fn window(config: &ConfigSpace) -> Option<AddrRange<HostPhys>> {
    if !config.is_bridge() || !config.memory_space() {
        return None;
    }
    let edge = |offset| u64::from(config.read16(offset) & bridge::WINDOW_ADDRESS) << 16;
    let base = edge(bridge::MEMORY_WINDOW);
    let limit = edge(bridge::MEMORY_WINDOW + 2) | 0xf_ffff;
    AddrRange::new(HostPhys::new(base), HostPhys::new(limit)).filter(|_| base != 0)
}

/// ACS controls that hold. A control that the capability register does not offer is taken for hard-wired on,
/// except egress control; without the capability nothing holds.
fn effective_acs(config: &ConfigSpace) -> u16 {
    config.acs_at().map_or(0, |at| {
        let offered = config.read16(at + acs::CAPABILITIES) | acs::EGRESS_CONTROL;
        config.read16(at + acs::CONTROL) | !offered
    })
}

/// The fixed shape of the buses.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    roots: Vec<usize>,
}

#[derive(Debug)]
struct Node {
    bdf: Bdf,
    kind: FunctionKind,
    parent: Option<usize>,
    children: Vec<usize>,
    /// Other functions of the same device.
    mates: Vec<usize>,
    buses: Option<BusRange>,
    vendor: u16,
}

/// Who answers at an address.
enum Claim {
    Nobody,
    /// A window leads there, but nothing behind it answers.
    Hole(usize),
    Hit(usize, u8, u64),
}

impl Tree {
    pub(crate) fn new(functions: &[FunctionDescription]) -> Self {
        let mut nodes: Vec<Node> = functions
            .iter()
            .map(|function| Node {
                bdf: function.bdf,
                kind: function.kind,
                parent: function.parent,
                children: Vec::new(),
                mates: Vec::new(),
                buses: function.buses,
                vendor: function.vendor,
            })
            .collect();
        let mut roots = Vec::new();
        for (index, function) in functions.iter().enumerate() {
            match function.parent.and_then(|parent| nodes.get_mut(parent)) {
                Some(parent) => parent.children.push(index),
                None => roots.push(index),
            }
            let same_device = |other: &&(usize, &FunctionDescription)| {
                let other = other.1.bdf;
                other != function.bdf
                    && other.segment == function.bdf.segment
                    && other.bus() == function.bdf.bus()
                    && other.devfn().device() == function.bdf.devfn().device()
            };
            let mates = functions
                .iter()
                .enumerate()
                .filter(|pair| same_device(&pair))
                .map(|pair| pair.0);
            if let Some(node) = nodes.get_mut(index) {
                node.mates = mates.collect();
            }
        }
        Self { nodes, roots }
    }

    pub(crate) fn index_of(&self, bdf: Bdf) -> Option<usize> {
        self.nodes.iter().position(|node| node.bdf == bdf)
    }

    /// The function and BAR that answer at `at` when the root complex asks.
    pub(crate) fn decode(&self, decodes: &[Decode], at: HostPhys) -> Option<(usize, u8, u64)> {
        match self.claim(decodes, &self.roots, None, at) {
            Claim::Hit(index, bar, offset) => Some((index, bar, offset)),
            Claim::Nobody | Claim::Hole(_) => None,
        }
    }

    /// Who of `candidates` except `asking`, or of what is below them, answers at `at`. Parents stand before children, so the
    /// recursion is as deep as the tree, which is at most 256 buses.
    fn claim(&self, decodes: &[Decode], candidates: &[usize], asking: Option<usize>, at: HostPhys) -> Claim {
        for &index in candidates {
            if Some(index) == asking {
                continue;
            }
            let (Some(node), Some(decode)) = (self.nodes.get(index), decodes.get(index)) else {
                continue;
            };
            if let Some((bar, range)) = decode.bars.iter().find(|(_, range)| range.contains(at)) {
                let offset = at.offset_from(range.first()).unwrap_or(0);
                return Claim::Hit(index, *bar, offset);
            }
            if decode.in_window(at) {
                return match self.claim(decodes, &node.children, None, at) {
                    Claim::Nobody => Claim::Hole(index),
                    claim => claim,
                };
            }
        }
        Claim::Nobody
    }

    /// The claim of functions beside `here` as a route; `None` if nobody claims.
    fn turn(
        &self,
        decodes: &[Decode],
        candidates: &[usize],
        here: usize,
        at: HostPhys,
        via: Shortcut,
    ) -> Option<Route> {
        match self.claim(decodes, candidates, Some(here), at) {
            Claim::Nobody => None,
            Claim::Hole(index) => Some(Route::Refused {
                at: self.nodes.get(index)?.bdf,
                why: Refusal::NobodyClaims,
            }),
            Claim::Hit(index, bar, offset) => Some(Route::Peer {
                function: self.nodes.get(index)?.bdf,
                bar,
                offset,
                via,
            }),
        }
    }

    /// The way of an untranslated request of function `from` for address `at`, sent with requester ID `source`.
    ///
    /// The order is that of the way itself: the device, then each bus upward (driver rules for ACS: PCIe §6.12).
    pub(crate) fn route(&self, decodes: &[Decode], from: usize, source: SourceId, at: HostPhys) -> Route {
        let upstream = |source| Route::Upstream { source };
        let Some(node) = self.nodes.get(from) else {
            return upstream(source);
        };
        let acs = |index: usize, controls| decodes.get(index).is_some_and(|decode| decode.has(controls));

        // Inside the device: a function without request redirect may find its siblings.
        let integrated = node.kind == FunctionKind::IntegratedEndpoint && node.vendor == INTEL;
        let port = node.kind.is_bridge();
        if !integrated
            && !port
            && !acs(from, acs::REQUEST_REDIRECT)
            && let Some(route) = self.turn(decodes, &node.mates, from, at, Shortcut::Device)
        {
            return route;
        }

        let mut source = source;
        let mut here = from;
        // Upward, bus by bus: a parent's index is smaller than its child's, so this ends.
        while let Some((above, parent)) = self
            .nodes
            .get(here)
            .and_then(|node| node.parent)
            .and_then(|above| Some((above, self.nodes.get(above)?)))
        {
            let own_window = decodes.get(above).is_some_and(|decode| decode.in_window(at));
            let dead_end = Route::Refused {
                at: parent.bdf,
                why: Refusal::NobodyClaims,
            };
            match parent.kind {
                FunctionKind::PcieToPciBridge | FunctionKind::PciBridge => {
                    let via = Shortcut::SharedBus(parent.bdf);
                    if let Some(route) = self.turn(decodes, &parent.children, here, at, via) {
                        return route;
                    }
                    if own_window {
                        return dead_end;
                    }
                    source = alias(parent).unwrap_or(source);
                }
                FunctionKind::SwitchUpstream => {
                    // On the internal bus, coming from a downstream port or from a function inside the switch.
                    let via = Shortcut::Switch(parent.bdf);
                    if !acs(here, acs::REQUEST_REDIRECT) {
                        if let Some(route) = self.turn(decodes, &parent.children, here, at, via) {
                            return route;
                        }
                        if own_window {
                            return dead_end;
                        }
                    }
                }
                FunctionKind::SwitchDownstream | FunctionKind::RootPort => {
                    if acs(above, acs::SOURCE_VALIDATION)
                        && !parent.buses.is_some_and(|buses| buses.contains(source.bus()))
                    {
                        return Route::Refused {
                            at: parent.bdf,
                            why: Refusal::SourceValidation,
                        };
                    }
                    let forwards = acs(above, acs::REQUEST_REDIRECT | acs::UPSTREAM_FORWARDING);
                    if own_window && !forwards {
                        // A downstream port never sends back where a request came from; a root port may.
                        if parent.kind == FunctionKind::SwitchDownstream {
                            return dead_end;
                        }
                        let via = Shortcut::RootPort(parent.bdf);
                        return self.turn(decodes, &parent.children, from, at, via).unwrap_or(dead_end);
                    }
                }
                FunctionKind::Endpoint | FunctionKind::IntegratedEndpoint | FunctionKind::Conventional => {}
            }
            here = above;
        }
        upstream(source)
    }
}

/// The requester ID that a bridge puts on requests from the conventional bus below it: (secondary bus, 00.0)
/// from a PCIe-to-PCI bridge (PCIe-to-PCI bridge §2.3), its own from a conventional one.
fn alias(bridge: &Node) -> Option<SourceId> {
    match bridge.kind {
        FunctionKind::PcieToPciBridge => Some(SourceId::new(bridge.buses?.first, Default::default())),
        FunctionKind::PciBridge => Some(bridge.bdf.source),
        _ => None,
    }
}
