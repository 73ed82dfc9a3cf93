//! The PCI topology as the DMAR reader asks for it.

use acpi_dmar::{BusTopology, Seen, Upstream};
use iommu_groups::{BusId, Topology};
use iommu_types::{Bdf, Segment};

/// A topology, for questions about scopes.
#[derive(Clone, Copy, Debug)]
pub struct Buses<'a>(pub &'a Topology);

impl BusTopology for Buses<'_> {
    fn function(&self, at: Bdf) -> Seen {
        match self.0.get(at) {
            None => Seen::Absent,
            Some(f) if f.is_bridge() => f.buses.map_or(Seen::Unknown, |buses| Seen::Bridge {
                secondary: buses.secondary,
                subordinate: buses.subordinate,
            }),
            Some(_) => Seen::Endpoint,
        }
    }

    fn parent_bridge(&self, segment: Segment, bus: u8) -> Upstream {
        if self.0.is_root_bus(BusId::new(segment, bus)) {
            return Upstream::Root;
        }
        let leads = |f: &&iommu_groups::Function| {
            f.bdf.segment == segment && f.is_bridge() && f.buses.is_some_and(|buses| buses.secondary == bus)
        };
        self.0
            .functions()
            .iter()
            .find(leads)
            .map_or(Upstream::Unknown, |bridge| Upstream::Bridge(bridge.bdf.source))
    }

    fn listed_as(&self, function: Bdf) -> Option<Bdf> {
        self.0.get(function)?.physical_function
    }
}
