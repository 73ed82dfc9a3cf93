//! What scope resolution has to know about the buses of the machine.

use iommu_types::{Bdf, Segment, SourceId};

/// What stands at a bus, device and function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Absent,
    /// A function without buses below it.
    Endpoint,
    /// A bridge (header type 1) and its bus numbers; secondary 0 means that none are assigned.
    Bridge {
        /// The bus directly below.
        secondary: u8,
        /// The highest bus below.
        subordinate: u8,
    },
    /// It could not be read. Answers that depend on it are *unknown*.
    Unknown,
}

/// What a bus hangs from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// A host bridge: the bus is a root bus.
    Root,
    /// This bridge, whose secondary bus it is.
    Bridge(SourceId),
    /// It could not be read.
    Unknown,
}

/// The caller's view of the PCI buses, read when a question is asked.
///
/// Answers may be wrong or contradict each other: resolution is bounded in any case, and answers *unknown*
/// where bus numbers contradict.
pub trait BusTopology {
    /// What stands at `at`.
    fn function(&self, at: Bdf) -> Seen;

    /// What `bus` hangs from.
    fn parent_bridge(&self, segment: Segment, bus: u8) -> Upstream;

    /// The function whose entry in the table also speaks for `function`: the physical function of an SR-IOV
    /// virtual function, function 0 of an ARI device (VT-d §8.3.2, §8.3.3). `None` when it stands for itself.
    fn listed_as(&self, function: Bdf) -> Option<Bdf> {
        let _ = function;
        None
    }
}

impl<T: BusTopology + ?Sized> BusTopology for &T {
    fn function(&self, at: Bdf) -> Seen {
        (**self).function(at)
    }

    fn parent_bridge(&self, segment: Segment, bus: u8) -> Upstream {
        (**self).parent_bridge(segment, bus)
    }

    fn listed_as(&self, function: Bdf) -> Option<Bdf> {
        (**self).listed_as(function)
    }
}

/// No view of the buses: everything is unknown. Paths of one hop still resolve.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTopology;

impl BusTopology for NoTopology {
    fn function(&self, _: Bdf) -> Seen {
        Seen::Unknown
    }

    fn parent_bridge(&self, _: Segment, _: u8) -> Upstream {
        Upstream::Unknown
    }
}
