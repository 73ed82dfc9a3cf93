//! Whether a function or port keeps requests from reaching its neighbours.

use core::fmt;

use crate::access::Presence;
use crate::function::{AcsState, Function};
use crate::groups::Rules;
use crate::pci::{PortType, acs};
use crate::quirks::{self, AcsQuirk, AcsQuirkKind};
use crate::topology::Topology;

/// ACS controls by name; prints as the specification abbreviates them, as in `SV RR`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AcsBits(pub u16);

impl fmt::Display for AcsBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(u16, &str); 12] = [
            (acs::SOURCE_VALIDATION, "SV"),
            (acs::TRANSLATION_BLOCKING, "TB"),
            (acs::REQUEST_REDIRECT, "RR"),
            (acs::COMPLETION_REDIRECT, "CR"),
            (acs::UPSTREAM_FORWARDING, "UF"),
            (acs::EGRESS_CONTROL, "EC"),
            (acs::DIRECT_TRANSLATED, "DT"),
            (acs::DSP_TARGET_BLOCKING, "DSP_MT_RB"),
            (acs::DSP_TARGET_REDIRECT, "DSP_MT_RR"),
            (acs::USP_TARGET_BLOCKING, "USP_MT_RB"),
            (acs::USP_TARGET_REDIRECT, "USP_MT_RR"),
            (acs::UNCLAIMED_REDIRECT, "UNCLAIMED_RR"),
        ];
        let mut first = true;
        for (bit, name) in NAMES {
            if self.0 & bit != 0 {
                if !first {
                    f.write_str(" ")?;
                }
                first = false;
                f.write_str(name)?;
            }
        }
        if first { f.write_str("none") } else { Ok(()) }
    }
}

impl fmt::Debug for AcsBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AcsBits({self})")
    }
}

/// What a function lacks to be isolated from its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It is conventional PCI: whoever is on the bus can read along.
    Conventional,
    /// PCI Express knows no access control for functions of this kind.
    Kind(PortType),
    /// It has no ACS capability.
    NoCapability,
    /// These controls exist and are off.
    Off(AcsBits),
    /// Egress control is on: its vector decides which requests go straight to their target, also where request
    /// redirect is on.
    EgressControl,
    /// It is a known model that isolates differently, and that is off.
    Quirk(&'static AcsQuirk),
    /// Its configuration space could not be read far enough to tell.
    Unknown,
}

impl Lack {
    /// A stable name of the kind, for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Conventional => "conventional",
            Self::Kind(_) => "kind",
            Self::NoCapability => "no-capability",
            Self::Off(_) => "off",
            Self::EgressControl => "egress-control",
            Self::Quirk(_) => "quirk",
            Self::Unknown => "unknown",
        }
    }

    /// The controls that exist and are off, if that is what it lacks.
    #[must_use]
    pub const fn missing(&self) -> Option<AcsBits> {
        match self {
            Self::Off(bits) => Some(*bits),
            _ => None,
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conventional => f.write_str("it is conventional PCI, which cannot isolate"),
            Self::Kind(port) => write!(f, "it is a {}, which has no access control", port.describe()),
            Self::NoCapability => f.write_str("it has no ACS capability"),
            Self::Off(bits) => write!(f, "its ACS controls {bits} are off"),
            Self::EgressControl => f.write_str(
                "its ACS egress control is on, which lets requests go straight to the targets that its vector names",
            ),
            Self::Quirk(quirk) => {
                if quirk.kind == AcsQuirkKind::PchPort {
                    f.write_str(
                        "its chipset isolates only with source validation on (config 0xd8 bit 26), and that is off",
                    )
                } else {
                    write!(f, "this model does not isolate enough ({})", quirk.source)
                }
            }
            Self::Unknown => f.write_str("its configuration space could not be read, so isolation is not known"),
        }
    }
}

/// Why a function counts as isolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grounds {
    /// It is the only function of its device and no port: there is nobody to reach inside.
    SingleFunction,
    /// Its ACS controls are on, or not needed.
    Controls(AcsState),
    /// It is a known model.
    Quirk(&'static AcsQuirk),
}

impl fmt::Display for Grounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SingleFunction => f.write_str("it is the only function of its device"),
            Self::Controls(state) => {
                let on = AcsBits(state.control & acs::REQUIRED);
                write!(f, "its ACS controls that isolation needs are on ({on})")
            }
            Self::Quirk(quirk) => write!(f, "this model is known to isolate ({})", quirk.source),
        }
    }
}

/// Whether a function keeps requests from its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Requests go up to the IOMMU.
    Isolated(Grounds),
    /// They may not.
    Lacking(Lack),
}

impl Isolation {
    /// What is lacking, if something is.
    #[must_use]
    pub const fn lack(self) -> Option<Lack> {
        match self {
            Self::Isolated(_) => None,
            Self::Lacking(lack) => Some(lack),
        }
    }
}

impl Topology {
    /// Whether `f` itself, as a function or as a port, sends everything up to the IOMMU. Steps as Linux takes
    /// them (`pci_acs_enabled`); [`Rules::Strict`] asks ports with enhanced ACS for more.
    #[must_use]
    pub fn isolation(&self, f: &Function, rules: Rules) -> Isolation {
        // 1. A quirk that applies decides.
        if let Some(decided) = self.isolation_by_quirk(f, rules) {
            return decided;
        }
        // 2. Conventional PCI, and kinds that ACS does not exist for.
        let port = match rules {
            Rules::Linux(version) => f.linux_port(version),
            Rules::Strict => f.port,
        };
        let port = match port {
            Presence::Present(port) => port,
            Presence::Absent => return Isolation::Lacking(Lack::Conventional),
            Presence::Unknown => return Isolation::Lacking(Lack::Unknown),
        };
        match port {
            PortType::PCI_TO_PCIE_BRIDGE | PortType::PCIE_TO_PCI_BRIDGE | PortType::EVENT_COLLECTOR => {
                Isolation::Lacking(Lack::Kind(port))
            }
            // 3. Ports need the capability.
            PortType::ROOT_PORT | PortType::DOWNSTREAM_PORT => {
                isolation_by_controls(f, required(f, port, rules), rules)
            }
            // 4. The others need it to isolate functions of one device from each other.
            PortType::ENDPOINT
            | PortType::LEGACY_ENDPOINT
            | PortType::UPSTREAM_PORT
            | PortType::INTEGRATED_ENDPOINT
                if f.multifunction =>
            {
                isolation_by_controls(f, acs::REQUIRED, rules)
            }
            PortType::ENDPOINT
            | PortType::LEGACY_ENDPOINT
            | PortType::UPSTREAM_PORT
            | PortType::INTEGRATED_ENDPOINT => Isolation::Isolated(Grounds::SingleFunction),
            // A kind that this revision does not name: Linux lets it pass, Strict does not.
            _ if rules == Rules::Strict => Isolation::Lacking(Lack::Kind(port)),
            _ => Isolation::Isolated(Grounds::SingleFunction),
        }
    }

    fn isolation_by_quirk(&self, f: &Function, rules: Rules) -> Option<Isolation> {
        quirks::acs_quirks(f).find_map(|quirk| {
            let known = match (rules, quirk.linux_since) {
                (Rules::Linux(version), Some(since)) => version.at_least(since),
                _ => true,
            };
            let in_place = quirk.kind != AcsQuirkKind::AmdSouthbridge
                || (f.multifunction && self.is_on_root_bus(f) && self.has_amd_iommu());
            if !(known && in_place) {
                return None;
            }
            // Linux turns chipset ports on at boot; Strict wants to see it.
            let is_on = quirk.kind != AcsQuirkKind::PchPort || rules != Rules::Strict || f.private_validation;
            let wanted = acs::REQUIRED & quirk.kind.applicable();
            Some(if is_on && quirk.kind.provides() & wanted == wanted {
                Isolation::Isolated(Grounds::Quirk(quirk))
            } else {
                Isolation::Lacking(Lack::Quirk(quirk))
            })
        })
    }
}

/// The controls that a port has to have on.
fn required(f: &Function, port: PortType, rules: Rules) -> u16 {
    let state = f.acs.present().filter(|state| state.capability & acs::ENHANCED != 0);
    let Some(state) = state.filter(|_| rules == Rules::Strict) else {
        return acs::REQUIRED;
    };
    // With enhanced ACS, requests to the memory of the ports themselves can be caught too, so they must be:
    // redirected or blocked.
    let caught = |redirect: u16, block: u16| if state.control & block == 0 { redirect } else { 0 };
    let downstream = caught(acs::DSP_TARGET_REDIRECT, acs::DSP_TARGET_BLOCKING);
    let upstream = caught(acs::USP_TARGET_REDIRECT, acs::USP_TARGET_BLOCKING);
    match port {
        PortType::DOWNSTREAM_PORT => acs::REQUIRED | downstream | upstream,
        PortType::ROOT_PORT => acs::REQUIRED | downstream,
        _ => acs::REQUIRED,
    }
}

fn isolation_by_controls(f: &Function, required: u16, rules: Rules) -> Isolation {
    match f.acs {
        Presence::Unknown => Isolation::Lacking(Lack::Unknown),
        Presence::Absent => Isolation::Lacking(Lack::NoCapability),
        Presence::Present(state) => {
            // A control that the capability lacks is hard-wired on, or there is nothing to control.
            // PCIe §7.7.11.2 (ACS Capability Register).
            let enhanced = if state.capability & acs::ENHANCED != 0 {
                acs::ENHANCED_CONTROL
            } else {
                0
            };
            let off = required & (state.capability & acs::BASIC | enhanced) & !state.control;
            // With both controls on, the egress control vector says which requests are redirected and which go
            // straight to their target. PCIe §6.12.3 (ACS Peer-to-Peer Control Interactions). Linux asks only
            // whether redirect is on.
            let egress = state.capability & state.control & acs::EGRESS_CONTROL != 0;
            if egress && rules == Rules::Strict && off & acs::REQUEST_REDIRECT == 0 {
                Isolation::Lacking(Lack::EgressControl)
            } else if off != 0 {
                Isolation::Lacking(Lack::Off(AcsBits(off)))
            } else {
                Isolation::Isolated(Grounds::Controls(state))
            }
        }
    }
}
