//! Which way a request takes, before any unit sees it.

use std::fmt;

use iommu_devices::ConfigSpace;
use iommu_groups::pci::{PortType, acs, bridge, express, header};
use iommu_groups::{AcsQuirk, AcsQuirkKind, BridgeQuirk, BridgeQuirkKind};
use iommu_types::{AddrRange, Bdf, HostPhys, SourceId};

use crate::description::{BusRange, FunctionDescription, FunctionKind};

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
    /// Inside a device of several functions without ACS request redirect; the ports among them pass on what
    /// comes from below.
    Device,
    /// On the bus below this bridge, where all functions hear all requests.
    SharedBus(Bdf),
    /// Inside the switch with this upstream port, from a port without ACS request redirect.
    Switch(Bdf),
    /// This root port turns requests for its own link around, since ACS is off.
    RootPort(Bdf),
    /// Requests from below this port reach its registers.
    Port(Bdf),
}

impl fmt::Display for Shortcut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("inside the multifunction device, which lacks ACS request redirect"),
            Self::SharedBus(bridge) => write!(f, "on the conventional bus below {bridge}, which all functions share"),
            Self::Switch(port) => write!(f, "inside the switch at {port}, whose port lacks ACS request redirect"),
            Self::RootPort(port) => write!(f, "at root port {port}, which lacks ACS request redirect"),
            Self::Port(port) => write!(f, "at {port}, which does not redirect requests to its own registers"),
        }
    }
}

/// Why a port or bridge stops a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// ACS source validation: the requester ID is not one from below the port.
    SourceValidation,
    /// ACS memory target access: requests to the memory of this port are blocked.
    TargetBlocked,
    /// The address lies in the port's window, but nothing below answers.
    NobodyClaims,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SourceValidation => "ACS source validation: the requester ID is not from below this port",
            Self::TargetBlocked => "ACS memory target access: requests from below to the memory of ports are blocked",
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
    access: AccessControl,
}

/// The ACS controls of a function that hold, whatever they rest on.
#[derive(Clone, Copy, Debug, Default)]
struct AccessControl {
    controls: u16,
    /// Whether the controls of enhanced ACS are among them.
    enhanced: bool,
}

/// What happens to a request from below a port to the memory of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Reached,
    Redirected,
    Blocked,
}

impl AccessControl {
    /// What the registers say, unless the device is known to behave otherwise.
    fn of(config: &ConfigSpace) -> Self {
        let identity = (config.read16(header::VENDOR_ID), config.read16(header::VENDOR_ID + 2));
        // The machine has VT-d units, so what holds with an AMD IOMMU only does not.
        let known = AcsQuirk::known(identity.0, identity.1, port_type(config))
            .find(|quirk| quirk.kind != AcsQuirkKind::AmdSouthbridge);
        match known.map(|quirk| quirk.kind) {
            // Off until software sets registers of the chipset, which are not modelled.
            Some(AcsQuirkKind::PchPort) => Self::default(),
            Some(kind) => Self {
                controls: kind.provides(),
                enhanced: false,
            },
            None => Self::of_registers(config),
        }
    }

    /// A control that the capability register does not offer is taken for hard-wired on, except egress control;
    /// without the capability nothing holds. PCIe §7.7.11.2 (ACS Capability Register).
    fn of_registers(config: &ConfigSpace) -> Self {
        config.acs_at().map_or(Self::default(), |at| {
            let capability = config.read16(at + acs::CAPABILITIES);
            let control = config.read16(at + acs::CONTROL);
            Self {
                controls: control & !acs::EGRESS_CONTROL
                    | !capability & acs::BASIC & !acs::EGRESS_CONTROL
                    | control & capability & acs::EGRESS_CONTROL,
                enhanced: capability & acs::ENHANCED != 0,
            }
        })
    }

    const fn has(self, controls: u16) -> bool {
        self.controls & controls == controls
    }

    /// Whether requests for peers are redirected upstream. With egress control on, its vector may let any of
    /// them go straight to the peer (PCIe §6.12.3, ACS Peer-to-Peer Control Interactions); vectors are taken as
    /// they come out of reset, which lets them all.
    const fn redirects(self) -> bool {
        self.has(acs::REQUEST_REDIRECT) && self.controls & acs::EGRESS_CONTROL == 0
    }

    /// Requests from below to the memory of ports. Enhanced ACS has controls for it (PCIe §7.7.11.3, ACS Control
    /// Register); without, it is left to the implementation, and request redirect is taken to cover it.
    const fn target(self, redirect: u16, block: u16) -> Target {
        if !self.enhanced {
            if self.redirects() {
                Target::Redirected
            } else {
                Target::Reached
            }
        } else if self.controls & redirect != 0 {
            Target::Redirected
        } else if self.controls & block != 0 {
            Target::Blocked
        } else {
            Target::Reached
        }
    }

    /// Requests to the memory of root ports and downstream ports.
    const fn downstream_target(self) -> Target {
        self.target(acs::DSP_TARGET_REDIRECT, acs::DSP_TARGET_BLOCKING)
    }

    /// Requests to the memory of the upstream port.
    const fn upstream_target(self) -> Target {
        self.target(acs::USP_TARGET_REDIRECT, acs::USP_TARGET_BLOCKING)
    }
}

impl Decode {
    pub(crate) fn of(config: &ConfigSpace) -> Self {
        Self {
            bars: config
                .bars()
                .filter_map(|(index, _)| Some((index, config.bar_range(index)?)))
                .collect(),
            window: window(config),
            access: AccessControl::of(config),
        }
    }

    /// All addresses it answers to or forwards.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = AddrRange<HostPhys>> + '_ {
        self.bars.iter().map(|(_, range)| *range).chain(self.window)
    }

    fn in_window(&self, at: HostPhys) -> bool {
        self.window.is_some_and(|window| window.contains(at))
    }

    /// The BAR that answers at `at`, and the offset into it.
    fn hit(&self, at: HostPhys) -> Option<(u8, u64)> {
        let (bar, range) = self.bars.iter().find(|(_, range)| range.contains(at))?;
        Some((*bar, at.offset_from(range.first()).unwrap_or(0)))
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

/// The kind of PCI Express function; `None` for conventional PCI.
fn port_type(config: &ConfigSpace) -> Option<PortType> {
    let word = config.read16(config.express_at()? + express::CAPABILITIES);
    u8::try_from(word >> express::TYPE_SHIFT & express::TYPE_MASK)
        .ok()
        .map(PortType)
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
    /// Looks like a conventional bridge right below PCI Express, but is known to be a PCIe-to-PCI bridge.
    hides_express: bool,
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
                hides_express: hides_express(functions, function),
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
            if let Some((bar, offset)) = decode.hit(at) {
                return Claim::Hit(index, bar, offset);
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

    /// The claim of `candidates` except `asking`, or of what is below them, as a route; `None` if nobody claims.
    fn turn(
        &self,
        decodes: &[Decode],
        candidates: &[usize],
        asking: Option<usize>,
        at: HostPhys,
        via: Shortcut,
    ) -> Option<Route> {
        match self.claim(decodes, candidates, asking, at) {
            Claim::Nobody => None,
            Claim::Hole(index) => Some(Route::Refused {
                at: self.nodes.get(index)?.bdf,
                why: Refusal::NobodyClaims,
            }),
            Claim::Hit(index, bar, offset) => self.answer(index, (bar, offset), via),
        }
    }

    fn answer(&self, index: usize, (bar, offset): (u8, u64), via: Shortcut) -> Option<Route> {
        Some(Route::Peer {
            function: self.nodes.get(index)?.bdf,
            bar,
            offset,
            via,
        })
    }

    /// The registers of function `index`, a port that a request from below has come to, as its target.
    fn registers(
        &self,
        decodes: &[Decode],
        index: usize,
        at: HostPhys,
        target: Target,
        via: Shortcut,
    ) -> Option<Route> {
        let hit = decodes.get(index)?.hit(at)?;
        match target {
            Target::Reached => self.answer(index, hit, via),
            Target::Redirected => None,
            Target::Blocked => Some(Route::Refused {
                at: self.nodes.get(index)?.bdf,
                why: Refusal::TargetBlocked,
            }),
        }
    }

    /// Whether requests that pass function `index` upward are redirected past its peers. PCIe knows no access
    /// control for bridges to conventional PCI.
    fn redirects(&self, decodes: &[Decode], index: usize) -> bool {
        let bridge = |node: &Node| {
            matches!(
                node.kind,
                FunctionKind::PcieToPciBridge | FunctionKind::PciBridge | FunctionKind::Conventional
            )
        };
        !self.nodes.get(index).is_some_and(bridge) && decodes.get(index).is_some_and(|decode| decode.access.redirects())
    }

    /// The way of an untranslated request of function `from` for address `at`, sent with requester ID `source`.
    ///
    /// The order is that of the way itself: the device, then each bus upward (driver rules for ACS: PCIe §6.12).
    pub(crate) fn route(&self, decodes: &[Decode], from: usize, source: SourceId, at: HostPhys) -> Route {
        let mut source = source;
        let mut here = from;
        // Upward, bus by bus: a parent's index is smaller than its child's, so this ends.
        while let Some(node) = self.nodes.get(here) {
            // Inside the device, also for what comes from below its ports (PCIe §6.12.1.2, and for root ports
            // §6.12.1.1). Downstream ports of a switch meet on its internal bus.
            if node.kind != FunctionKind::SwitchDownstream
                && !self.redirects(decodes, here)
                && let Some(route) = self.turn(decodes, &node.mates, Some(here), at, Shortcut::Device)
            {
                return route;
            }
            let Some(above) = node.parent else { break };
            match self.through(decodes, from, here, above, &mut source, at) {
                Some(route) => return route,
                None => here = above,
            }
        }
        Route::Upstream { source }
    }

    /// What becomes of a request that comes from `here` to the port or bridge `above`; `None` if it goes on
    /// upward.
    fn through(
        &self,
        decodes: &[Decode],
        from: usize,
        here: usize,
        above: usize,
        source: &mut SourceId,
        at: HostPhys,
    ) -> Option<Route> {
        let (parent, decode) = (self.nodes.get(above)?, decodes.get(above)?);
        let (access, own_window) = (decode.access, decode.in_window(at));
        let dead_end = Route::Refused {
            at: parent.bdf,
            why: Refusal::NobodyClaims,
        };
        match parent.kind {
            FunctionKind::PcieToPciBridge | FunctionKind::PciBridge => {
                let via = Shortcut::SharedBus(parent.bdf);
                let answer = self
                    .turn(decodes, &parent.children, Some(here), at, via)
                    .or_else(|| self.registers(decodes, above, at, Target::Reached, via));
                if answer.is_some() || own_window {
                    return answer.or(Some(dead_end));
                }
                *source = alias(parent).unwrap_or(*source);
                None
            }
            FunctionKind::SwitchUpstream => self.internal_bus(decodes, here, above, at),
            FunctionKind::SwitchDownstream | FunctionKind::RootPort => {
                let below = |buses: BusRange| buses.contains(source.bus());
                if access.has(acs::SOURCE_VALIDATION) && !parent.buses.is_some_and(below) {
                    return Some(Route::Refused {
                        at: parent.bdf,
                        why: Refusal::SourceValidation,
                    });
                }
                let target = access.downstream_target();
                let via = Shortcut::Port(parent.bdf);
                if let Some(route) = self.registers(decodes, above, at, target, via) {
                    return Some(route);
                }
                let forwards = access.redirects() && access.has(acs::UPSTREAM_FORWARDING);
                match parent.kind {
                    _ if !own_window || forwards => None,
                    // A downstream port never sends back where a request came from; a root port may.
                    FunctionKind::SwitchDownstream => Some(dead_end),
                    _ => {
                        let via = Shortcut::RootPort(parent.bdf);
                        // What sent it does not answer itself, but what is below it may.
                        let asking = self.nodes.get(from).filter(|node| !node.kind.is_bridge()).map(|_| from);
                        self.turn(decodes, &parent.children, asking, at, via).or(Some(dead_end))
                    }
                }
            }
            FunctionKind::Endpoint | FunctionKind::IntegratedEndpoint | FunctionKind::Conventional => None,
        }
    }

    /// On the internal bus of the switch with upstream port `upstream`, coming from below a downstream port or
    /// from the port itself.
    fn internal_bus(&self, decodes: &[Decode], here: usize, upstream: usize, at: HostPhys) -> Option<Route> {
        let (node, parent) = (self.nodes.get(here)?, self.nodes.get(upstream)?);
        let via = Shortcut::Switch(parent.bdf);
        // PCIe §1.3.3 (Switch) wants nothing but downstream ports there, so access control does not say what
        // becomes of requests of other functions.
        let access = match node.kind {
            FunctionKind::SwitchDownstream => decodes.get(here)?.access,
            _ => AccessControl::default(),
        };
        if !access.redirects() {
            if let Some(route) = self.turn(decodes, &parent.children, Some(here), at, via) {
                return Some(route);
            }
            if decodes.get(upstream)?.in_window(at) {
                return Some(Route::Refused {
                    at: parent.bdf,
                    why: Refusal::NobodyClaims,
                });
            }
        } else if let Some(port) = parent.children.iter().copied().find(|index| {
            let port = |node: &Node| node.kind == FunctionKind::SwitchDownstream;
            self.nodes.get(*index).is_some_and(port)
                && decodes.get(*index).is_some_and(|decode| decode.hit(at).is_some())
        }) {
            return self.registers(decodes, port, at, access.downstream_target(), via);
        }
        self.registers(decodes, upstream, at, access.upstream_target(), via)
    }
}

/// Whether a conventional bridge is one of those that do not say that they are PCIe-to-PCI bridges.
fn hides_express(functions: &[FunctionDescription], function: &FunctionDescription) -> bool {
    let above = function.parent.and_then(|parent| functions.get(parent));
    let below_express = above.is_some_and(|above| {
        matches!(
            above.kind,
            FunctionKind::RootPort | FunctionKind::SwitchDownstream | FunctionKind::SwitchUpstream
        )
    });
    let known = BridgeQuirk::known(function.vendor, function.device);
    function.kind == FunctionKind::PciBridge
        && below_express
        && known.is_some_and(|quirk| quirk.kind == BridgeQuirkKind::HiddenExpress)
}

/// The requester ID that a bridge puts on requests from the conventional bus below it: (secondary bus, 00.0)
/// from a PCIe-to-PCI bridge (PCIe-to-PCI bridge §2.3), its own from a conventional one.
fn alias(bridge: &Node) -> Option<SourceId> {
    match bridge.kind {
        FunctionKind::PciBridge if !bridge.hides_express => Some(bridge.bdf.source),
        FunctionKind::PcieToPciBridge | FunctionKind::PciBridge => {
            Some(SourceId::new(bridge.buses?.first, Default::default()))
        }
        _ => None,
    }
}
