//! What is wrong with a machine's configuration space.

use core::fmt;

use iommu_types::{Bdf, DevFn, Segment};

use crate::pci::PortType;
use crate::topology::{BusId, BusNumbers};

/// How a capability list ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListFault {
    /// More entries than there is room for: the list runs in a circle.
    Loop,
    /// A pointer leads to where no capability can stand.
    Outside,
    /// An entry could not be read.
    Unreadable,
    /// Nothing answered at an entry.
    NoAnswer,
}

/// A contradiction in configuration space, or something that could not be found out.
///
/// None stops a scan: what can be used is used, and the rules that group functions take the safe side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Problem {
    /// A capability list does not end properly; capabilities not found before count as unknown.
    CapabilityList {
        /// Whose list.
        function: Bdf,
        /// Offset of the entry, or of what should have been one.
        at: u16,
        /// What is wrong there.
        fault: ListFault,
    },
    /// The header layout and the PCI Express port type contradict each other.
    HeaderAgainstPort {
        /// Which function.
        function: Bdf,
    },
    /// A switch port stands where only the other side of a switch can stand, and is taken for that.
    PortAgainstParent {
        /// Which port.
        function: Bdf,
        /// What it is taken for.
        acts_as: PortType,
    },
    /// The primary bus number is not the bus that the bridge is on.
    PrimaryBus {
        /// Which bridge.
        bridge: Bdf,
        /// What its register says.
        register: u8,
    },
    /// The bridge has no bus numbers, so that nothing below it can be seen.
    NotConfigured {
        /// Which bridge.
        bridge: Bdf,
    },
    /// The secondary bus is not above the bus the bridge is on, or the subordinate not above the secondary.
    BusOrder {
        /// Which bridge.
        bridge: Bdf,
        /// Its numbers.
        buses: BusNumbers,
    },
    /// The buses below a bridge are not all within those of the bridge above it.
    OutsideParent {
        /// Which bridge.
        bridge: Bdf,
        /// Its numbers.
        buses: BusNumbers,
        /// The bridge above.
        parent: Bdf,
    },
    /// Two bridges claim the same secondary bus, or one claims a root bus (then `first` is `None`).
    BusClaimedTwice {
        /// The bus.
        bus: BusId,
        /// Who claimed it first and keeps it.
        first: Option<Bdf>,
        /// Who claimed it too.
        second: Bdf,
    },
    /// Two bridges on one bus both route some bus.
    BusesOverlap {
        /// The bridge found first.
        first: Bdf,
        /// The other.
        second: Bdf,
    },
    /// No bridge leads to the bus and it is not a root bus.
    NoWayUp {
        /// The bus.
        bus: BusId,
    },
    /// Virtual functions would lie at a requester ID that is taken, out of range, or the same for all.
    VirtualFunctions {
        /// The physical function.
        function: Bdf,
        /// Number of the first virtual function, from 0, that has no place.
        index: u16,
    },
    /// The function uses requester IDs that only its own registers tell, and nobody supplied them.
    AliasesNotKnown {
        /// Which function.
        function: Bdf,
    },
    /// A domain that only the operating system knows, whose functions send their requests through a function of
    /// another one (a VMD), and nobody said through which: they count as one group.
    RequesterNotKnown {
        /// The domain.
        segment: Segment,
    },
    /// A listed function does not answer: it sleeps, or the reader may not see it. It is kept, with everything
    /// about it unknown.
    NoAnswer {
        /// Which function.
        function: Bdf,
    },
    /// A supplied fact names a function that is not there.
    NoSuchFunction {
        /// The name.
        function: Bdf,
    },
    /// The next-function pointer of an ARI device does not go forward.
    FunctionList {
        /// Which function holds it.
        function: Bdf,
        /// Where it points.
        next: DevFn,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CapabilityList { function, at, fault } => {
                write!(f, "{function}: the capability list is broken at offset {at:#05x}: ")?;
                f.write_str(match fault {
                    ListFault::Loop => "it runs in a circle",
                    ListFault::Outside => "the pointer leads to where no capability can stand",
                    ListFault::Unreadable => "the entry could not be read; read with more rights or a longer dump",
                    ListFault::NoAnswer => "the function no longer answers",
                })?;
                f.write_str("; capabilities not seen before count as unknown")
            }
            Self::HeaderAgainstPort { function } => write!(
                f,
                "{function}: header layout and PCI Express port type contradict each other; it is taken for a \
                 conventional bridge or function"
            ),
            Self::PortAgainstParent { function, acts_as } => write!(
                f,
                "{function}: from where it stands it is a {}, though it says otherwise; it is taken for that",
                acts_as.describe()
            ),
            Self::PrimaryBus { bridge, register } => write!(
                f,
                "{bridge}: the primary bus register says {register:02x}, but the bridge is on bus {:02x}",
                bridge.bus()
            ),
            Self::NotConfigured { bridge } => {
                write!(
                    f,
                    "{bridge}: the bridge has no bus numbers; nothing below it can be seen"
                )
            }
            Self::BusOrder { bridge, buses } => write!(
                f,
                "{bridge}: bus numbers {buses} are in no possible order; the bridge is not followed"
            ),
            Self::OutsideParent { bridge, buses, parent } => write!(
                f,
                "{bridge}: bus numbers {buses} are not within those of the bridge above, {parent}; requests to \
                 some of them do not arrive"
            ),
            Self::BusClaimedTwice { bus, first, second } => match first {
                Some(first) => write!(
                    f,
                    "bus {bus} is claimed by {first} and by {second}; all three are treated as one group"
                ),
                None => write!(f, "root bus {bus} is also claimed by the bridge {second}"),
            },
            Self::BusesOverlap { first, second } => write!(
                f,
                "{first} and {second} both route some buses; everything below them is treated as one group"
            ),
            Self::NoWayUp { bus } => write!(
                f,
                "bus {bus}: no bridge leads to it and it is not a root bus; its functions are not isolated from \
                 each other for all that is known"
            ),
            Self::VirtualFunctions { function, index } => write!(
                f,
                "{function}: virtual function {index} and those after it have no requester ID of their own"
            ),
            Self::AliasesNotKnown { function } => write!(
                f,
                "{function}: it also uses requester IDs that only its registers tell; supply them as facts"
            ),
            Self::RequesterNotKnown { segment } => write!(
                f,
                "domain {segment}: its functions use the requester ID of a function outside it, and which is not known; \
                 they are treated as one group, to which that function belongs too"
            ),
            Self::NoAnswer { function } => write!(
                f,
                "{function}: it is listed but does not answer (asleep, or hidden from the reader); all that \
                 depends on it is unknown"
            ),
            Self::NoSuchFunction { function } => write!(f, "{function}: a supplied fact names it, but it is not there"),
            Self::FunctionList { function, next } => {
                write!(f, "{function}: the next-function pointer {next} does not go forward")
            }
        }
    }
}
