//! Whether a request of one function for the registers of another gets there before any unit sees it: by where the
//! two stand, and by the access control (ACS) on the way.

use iommu_groups::pci::PortType;
use iommu_groups::{BusId, Function, Lack, Presence, Rules, Topology};
use iommu_types::Bdf;

/// Where a request for a peer's registers goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Up to the root complex: the unit decides.
    Up,
    /// Straight to the peer.
    Straight {
        /// Who lets it through.
        at: Bdf,
        /// What that one lacks; nothing on a conventional bus, which is shared, and on a switch's internal bus for what is no
        /// port.
        lack: Option<Lack>,
    },
    /// That cannot be said.
    Unknown,
}

/// A function and the bridges above it, lowest first.
fn chain(topology: &Topology, bdf: Bdf) -> Vec<&Function> {
    topology
        .get(bdf)
        .into_iter()
        .chain(topology.bridges_above(bdf))
        .collect()
}

/// The way of a request of `from` for the registers of `to`. The first place where both are below the same bus decides.
pub(crate) fn way(topology: &Topology, from: Bdf, to: Bdf) -> Way {
    let (own, others) = (chain(topology, from), chain(topology, to));
    for (level, here) in own.iter().enumerate() {
        let bus = BusId::of(here.bdf);
        let Some(there) = others.iter().find(|other| BusId::of(other.bdf) == bus) else {
            continue;
        };
        if there.bdf == here.bdf {
            // One is the bridge above the other.
            return Way::Unknown;
        }
        let above = own.get(level + 1);
        let straight = |lack| Way::Straight { at: here.bdf, lack };
        let lack = topology.isolation(here, Rules::Strict).lack();
        return match above.map(|bridge| bridge.port) {
            // A conventional bus is shared by everybody on it.
            Some(Presence::Absent | Presence::Present(PortType::PCIE_TO_PCI_BRIDGE)) => straight(None),
            Some(Presence::Unknown) => Way::Unknown,
            // The internal bus of a switch: the port decides. What stands there and is no port reaches all ports: there
            // is nothing between them.
            Some(Presence::Present(PortType::UPSTREAM_PORT)) => match here.port {
                Presence::Present(PortType::DOWNSTREAM_PORT) => decided(lack, straight),
                _ => straight(None),
            },
            // Functions of one device anywhere.
            _ if here.bdf.source.devfn().device() == there.bdf.source.devfn().device() => decided(lack, straight),
            // Different devices of a root bus: the root complex passes requests to the unit.
            None => Way::Up,
            Some(_) => Way::Unknown,
        };
    }
    // Below different host bridges.
    Way::Up
}

fn decided(lack: Option<Lack>, straight: impl Fn(Option<Lack>) -> Way) -> Way {
    match lack {
        None => Way::Up,
        // A vector decides, or nobody could read it.
        Some(Lack::EgressControl | Lack::Unknown | Lack::Quirk(_)) => Way::Unknown,
        Some(lack) => straight(Some(lack)),
    }
}
