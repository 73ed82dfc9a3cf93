//! Why two functions are in one group, as data and in words.

use core::fmt;

use iommu_types::{Bdf, Segment, SourceId};

use crate::acs::Lack;
use crate::topology::{AliasVia, BusId};

/// Why two functions are together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Their requests can carry the same requester ID, so that the IOMMU cannot tell them apart.
    SharedAlias {
        /// The requester ID.
        source: SourceId,
        /// Why the first one's requests carry it.
        first: AliasVia,
        /// Why the second one's requests carry it.
        second: AliasVia,
    },
    /// On the way up from the first, a port or bridge does not isolate: peer requests can get through there.
    Upstream {
        /// The port or bridge.
        port: Bdf,
        /// What it lacks.
        lack: Lack,
    },
    /// The second is a port that does not isolate what is below it, which is the first.
    Port {
        /// What the port lacks.
        lack: Lack,
    },
    /// Both are on the bus below this bridge, or deeper, where everybody can read along.
    SharedBus {
        /// The bridge.
        bridge: Bdf,
    },
    /// Both are ports of one switch, and one of them lets requests from below it go to the other.
    SwitchPeers {
        /// The port that does.
        port: Bdf,
        /// What it lacks.
        lack: Lack,
    },
    /// On the internal bus of a switch stands something that is not a plain downstream port.
    SwitchMember {
        /// What stands there.
        function: Bdf,
    },
    /// A downstream port lets requests reach the memory of the switch's upstream port.
    SwitchUpstream {
        /// The downstream port.
        port: Bdf,
    },
    /// Both are functions of one device, and one of them can reach its siblings inside the device.
    Slot {
        /// The function that can.
        function: Bdf,
        /// What it lacks.
        lack: Lack,
    },
    /// The second is a function of the device of `alias`, which shares a requester ID with the first.
    SlotOfAlias {
        /// The function in between.
        alias: Bdf,
    },
    /// The first is below the second, a bridge whose lower side can be reached by others of the group.
    Below,
    /// The bus numbers of the two bridges contradict each other.
    Contested,
    /// Both are in a domain whose requests carry the requester ID of one function outside it (a VMD), and which
    /// is not known.
    UnknownRequester {
        /// The domain.
        segment: Segment,
    },
    /// No bridge is known to lead to their bus.
    NoWayUp {
        /// The bus.
        bus: BusId,
    },
}

impl Reason {
    /// Whether the answer rests on something that could not be read, so that the group may really be smaller.
    #[must_use]
    pub const fn is_uncertain(&self) -> bool {
        match self {
            Self::Upstream { lack, .. }
            | Self::Port { lack }
            | Self::SwitchPeers { lack, .. }
            | Self::Slot { lack, .. } => matches!(lack, Lack::Unknown),
            Self::SharedAlias { first, second, .. } => {
                matches!(first, AliasVia::UnknownBridge(_)) || matches!(second, AliasVia::UnknownBridge(_))
            }
            Self::Contested | Self::NoWayUp { .. } | Self::UnknownRequester { .. } => true,
            Self::SharedBus { .. }
            | Self::SwitchMember { .. }
            | Self::SwitchUpstream { .. }
            | Self::SlotOfAlias { .. }
            | Self::Below => false,
        }
    }
}

impl Reason {
    /// A stable name of the kind, for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::SharedAlias { .. } => "shared-alias",
            Self::Upstream { .. } => "upstream",
            Self::Port { .. } => "port",
            Self::SharedBus { .. } => "shared-bus",
            Self::SwitchPeers { .. } => "switch-peers",
            Self::SwitchMember { .. } => "switch-member",
            Self::SwitchUpstream { .. } => "switch-upstream",
            Self::Slot { .. } => "slot",
            Self::SlotOfAlias { .. } => "slot-of-alias",
            Self::Below => "below",
            Self::Contested => "contested",
            Self::UnknownRequester { .. } => "unknown-requester",
            Self::NoWayUp { .. } => "no-way-up",
        }
    }

    /// What the port or function lacks, if that is the reason.
    #[must_use]
    pub const fn lack(&self) -> Option<Lack> {
        match self {
            Self::Upstream { lack, .. }
            | Self::Port { lack }
            | Self::SwitchPeers { lack, .. }
            | Self::Slot { lack, .. } => Some(*lack),
            Self::SharedAlias { .. }
            | Self::SharedBus { .. }
            | Self::SwitchMember { .. }
            | Self::SwitchUpstream { .. }
            | Self::SlotOfAlias { .. }
            | Self::Below
            | Self::Contested
            | Self::UnknownRequester { .. }
            | Self::NoWayUp { .. } => None,
        }
    }
}

impl Hop {
    /// The port, bridge or function that the reason speaks about, where it is one.
    #[must_use]
    pub const fn at(&self) -> Option<Bdf> {
        match self.reason {
            Reason::Upstream { port, .. } | Reason::SwitchPeers { port, .. } | Reason::SwitchUpstream { port } => {
                Some(port)
            }
            Reason::Port { .. } | Reason::Below => Some(self.to),
            Reason::SharedBus { bridge } => Some(bridge),
            Reason::SwitchMember { function } | Reason::Slot { function, .. } => Some(function),
            Reason::SlotOfAlias { alias } => Some(alias),
            Reason::SharedAlias { .. }
            | Reason::Contested
            | Reason::UnknownRequester { .. }
            | Reason::NoWayUp { .. } => None,
        }
    }
}

/// One step of a reason chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The first function.
    pub from: Bdf,
    /// The second function.
    pub to: Bdf,
    /// Why they are together.
    pub reason: Reason,
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, reason } = self;
        write!(f, "{from} and {to}: ")?;
        match reason {
            Reason::SharedAlias { source, first, second } => {
                write!(
                    f,
                    "the IOMMU cannot tell them apart, both use requester ID {source} ({from}: {first}; {to}: {second})"
                )
            }
            Reason::Upstream { port, lack } => write!(
                f,
                "on the way up from {from}, {port} lets requests reach others before the IOMMU sees them: {lack}"
            ),
            Reason::Port { lack } => {
                write!(f, "{to} does not isolate what is below it: {lack}")
            }
            Reason::SharedBus { bridge } => {
                write!(
                    f,
                    "both are below the bridge {bridge} on conventional PCI, where everybody can read along"
                )
            }
            Reason::SwitchPeers { port, lack } => write!(
                f,
                "they are ports of one switch, and {port} lets requests go straight to the other ports: {lack}"
            ),
            Reason::SwitchMember { function } => write!(
                f,
                "they are on the internal bus of one switch, where {function} is no plain downstream port and can \
                 reach all others"
            ),
            Reason::SwitchUpstream { port } => {
                write!(
                    f,
                    "{port} lets requests from below it reach the memory of the upstream port"
                )
            }
            Reason::Slot { function, lack } => write!(
                f,
                "they are functions of one device, and {function} can reach the others inside it: {lack}"
            ),
            Reason::SlotOfAlias { alias } => write!(
                f,
                "{to} is not isolated from {alias}, a function of the same device that shares a requester ID with {from}"
            ),
            Reason::Below => write!(
                f,
                "{from} is below {to}, and requests of the others in the group can go there"
            ),
            Reason::Contested => f.write_str("their bus numbers contradict each other, so it is not known who answers"),
            Reason::UnknownRequester { segment } => write!(
                f,
                "all requests from domain {segment} carry the requester ID of one function outside it, and which is not known"
            ),
            Reason::NoWayUp { bus } => write!(f, "no bridge is known to lead to their bus {bus}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_the_kind_the_place_and_what_is_lacking() {
        let bdf = |text: &str| text.parse::<Bdf>().expect("valid");
        let (from, to, port) = (bdf("01:00.0"), bdf("00:01.0"), bdf("00:02.0"));
        let lack = Lack::NoCapability;
        let told = |reason: Reason| {
            let hop = Hop { from, to, reason };
            (reason.code(), hop.at(), reason.lack().map(|lack| lack.code()))
        };
        assert_eq!(
            told(Reason::Upstream { port, lack }),
            ("upstream", Some(port), Some("no-capability"))
        );
        assert_eq!(told(Reason::Port { lack }), ("port", Some(to), Some("no-capability")));
        assert_eq!(told(Reason::Below), ("below", Some(to), None));
        assert_eq!(
            told(Reason::SharedBus { bridge: port }),
            ("shared-bus", Some(port), None)
        );
        assert_eq!(
            told(Reason::SlotOfAlias { alias: port }),
            ("slot-of-alias", Some(port), None)
        );
        assert_eq!(told(Reason::Contested), ("contested", None, None));
    }
}
