//! The PCI topology as the DMAR reader asks for it.

use acpi_dmar::{BusTopology, Seen, Upstream};
use iommu_groups::{BusId, Origin, Topology};
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
        match self.0.origin(BusId::new(segment, bus)) {
            Origin::Root => Upstream::Root,
            Origin::Bridge(bridge) => Upstream::Bridge(bridge.source),
            Origin::Unknown => Upstream::Unknown,
        }
    }

    fn listed_as(&self, function: Bdf) -> Option<Bdf> {
        Some(self.0.listed_as(function)).filter(|listed| *listed != function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    #[test]
    fn buses_hang_from_what_leads_to_them() {
        let text = "00:1c.0 0604: 8086:a110\n\tStatus: Cap+\n\tBus: primary=00, secondary=03, subordinate=04, sec\n\
            \tCapabilities: [40] Express (v2) Root Port\n\
            03:00.0 0200: 8086:1533\n\tStatus: Cap+\n\tCapabilities: [40] Express (v2) Endpoint\n";
        let topology = Machine::from_listing(text.as_bytes()).topology();
        let above = |bus| Buses(&topology).parent_bridge(Segment(0), bus);
        assert_eq!(above(0), Upstream::Root);
        let port: Bdf = "00:1c.0".parse().expect("valid");
        assert_eq!(above(3), Upstream::Bridge(port.source));
        assert_eq!(above(9), Upstream::Unknown);
        assert_eq!(Buses(&topology).parent_bridge(Segment(1), 3), Upstream::Unknown);
        assert_eq!(Buses(&topology).listed_as(port), None, "it stands for itself");
    }
}
