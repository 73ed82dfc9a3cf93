//! The requester IDs that a function's requests can carry.

use alloc::vec::Vec;
use core::fmt;

use iommu_types::{Bdf, DevFn, SourceId};

use super::Topology;
use crate::access::Presence;
use crate::function::{Function, Layout};
use crate::pci::PortType;
use crate::quirks::{self, BridgeQuirkKind};

/// Why a request carries a requester ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AliasVia {
    /// It is the function's own.
    Own,
    /// All its requests are issued by another function (children of a VMD).
    RealDma(Bdf),
    /// The device uses it besides its own: a quirk, or a fact that was supplied.
    Device,
    /// A PCIe-to-PCI bridge takes over requests with its secondary bus number and device 0, function 0.
    PcieToPci(Bdf),
    /// The same, by a bridge that hides its PCI Express capability.
    HiddenExpress(Bdf),
    /// A conventional bridge issues requests as its own.
    Conventional(Bdf),
    /// A PCI-to-PCIe bridge issues requests as its own.
    PciToPcie(Bdf),
    /// A bridge of unknown kind may do what a conventional one does.
    UnknownBridge(Bdf),
}

impl fmt::Display for AliasVia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("its own"),
            Self::RealDma(real) => write!(f, "its requests are issued by {real}"),
            Self::Device => f.write_str("the device also uses it (known defect)"),
            Self::PcieToPci(bridge) => write!(f, "given to it by the PCIe-to-PCI bridge {bridge}"),
            Self::HiddenExpress(bridge) => {
                write!(f, "given to it by {bridge}, a PCIe-to-PCI bridge that hides its kind")
            }
            Self::Conventional(bridge) => {
                write!(f, "the conventional PCI bridge {bridge} issues its requests as its own")
            }
            Self::PciToPcie(bridge) => write!(f, "the PCI-to-PCIe bridge {bridge} issues its requests as its own"),
            Self::UnknownBridge(bridge) => {
                write!(
                    f,
                    "{bridge}, a bridge of unknown kind, may issue its requests as its own"
                )
            }
        }
    }
}

/// A requester ID of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Alias {
    /// The requester ID.
    pub source: SourceId,
    /// Why requests carry it.
    pub via: AliasVia,
}

/// An alias with the function or bridge that puts it on the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AliasStep {
    pub(crate) alias: Alias,
    pub(crate) at: usize,
}

impl Topology {
    /// All requester IDs that requests of the function at `bdf` can carry where they reach the IOMMU, its own
    /// first. Empty if there is no such function.
    ///
    /// Every one of them needs the same context entry, and its own invalidation.
    #[must_use]
    pub fn aliases(&self, bdf: Bdf) -> Vec<Alias> {
        let mut aliases: Vec<Alias> = Vec::new();
        for step in self
            .index_of(bdf)
            .map(|index| self.alias_steps(index))
            .unwrap_or_default()
        {
            if aliases.iter().all(|known| known.source != step.alias.source) {
                aliases.push(step.alias);
            }
        }
        aliases
    }

    /// The walk from the function upwards, step by step.
    pub(crate) fn alias_steps(&self, start: usize) -> Vec<AliasStep> {
        let mut steps = Vec::new();
        let Some(asked) = self.function(start) else {
            return steps;
        };
        // 1. The function that really issues the requests.
        let real = asked.real_dma.and_then(|real| self.index_of(real));
        let (index, via) = match real {
            Some(index) => (index, asked.real_dma.map_or(AliasVia::Own, AliasVia::RealDma)),
            None => (start, AliasVia::Own),
        };
        let Some(f) = self.function(index) else { return steps };
        let mut emit = |source, via, at| {
            steps.push(AliasStep {
                alias: Alias { source, via },
                at,
            });
        };
        match (real, asked.real_dma) {
            // The function that issues the requests is not in this machine's list; its requester ID is.
            (None, Some(real)) => emit(real.source, AliasVia::RealDma(real), start),
            _ => emit(f.bdf.source, via, index),
        }
        // 2. What else the device uses on its own bus.
        for devfn in f.alias_mask.iter().flat_map(|mask| mask.iter()) {
            emit(SourceId::new(f.bdf.bus(), devfn), AliasVia::Device, index);
        }
        // 3. What bridges do on the way up.
        for at in self.above(Some(index)).skip(1) {
            let Some(bridge) = self.function(at) else { break };
            match self.bridge_alias(bridge) {
                BridgeAlias::Stop => break,
                BridgeAlias::Keeps => {}
                BridgeAlias::Gives(source, via) => emit(source, via, at),
            }
        }
        steps
    }

    fn bridge_alias(&self, bridge: &Function) -> BridgeAlias {
        let quirk = quirks::bridge_quirks(bridge).map(|quirk| quirk.kind);
        if quirk == Some(BridgeQuirkKind::TranslationRoot) {
            return BridgeAlias::Stop;
        }
        let own = bridge.bdf.source;
        let taken_over = SourceId::new(bridge.buses.map_or(0, |buses| buses.secondary), DevFn::default());
        match bridge.port {
            Presence::Present(PortType::ROOT_PORT | PortType::UPSTREAM_PORT | PortType::DOWNSTREAM_PORT) => {
                BridgeAlias::Keeps
            }
            Presence::Present(PortType::PCIE_TO_PCI_BRIDGE) => {
                BridgeAlias::Gives(taken_over, AliasVia::PcieToPci(bridge.bdf))
            }
            Presence::Present(PortType::PCI_TO_PCIE_BRIDGE) => BridgeAlias::Gives(own, AliasVia::PciToPcie(bridge.bdf)),
            Presence::Absent if self.hides_express(bridge) => {
                BridgeAlias::Gives(taken_over, AliasVia::HiddenExpress(bridge.bdf))
            }
            Presence::Absent => BridgeAlias::Gives(own, AliasVia::Conventional(bridge.bdf)),
            Presence::Present(_) | Presence::Unknown => BridgeAlias::Gives(own, AliasVia::UnknownBridge(bridge.bdf)),
        }
    }

    /// Whether a bridge that looks conventional is a PCIe-to-PCI bridge: one of the known models, right below
    /// something that speaks PCI Express.
    pub(crate) fn hides_express(&self, bridge: &Function) -> bool {
        let known = quirks::bridge_quirks(bridge).is_some_and(|quirk| quirk.kind == BridgeQuirkKind::HiddenExpress);
        let below_express = self
            .port_above(bridge)
            .is_some_and(|port| port != PortType::PCIE_TO_PCI_BRIDGE);
        known && bridge.layout == Layout::Bridge && bridge.port == Presence::Absent && below_express
    }
}

/// What a bridge does to the requester ID of a request from below.
enum BridgeAlias {
    /// Nothing.
    Keeps,
    /// The request may carry this one instead.
    Gives(SourceId, AliasVia),
    /// Translation takes place here.
    Stop,
}
