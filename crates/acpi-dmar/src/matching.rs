//! Whether a scope entry, or a structure with scopes, speaks about a PCI function.

use iommu_types::{Bdf, Segment, SourceId};

use crate::scope::{DeviceScope, PathEnd, ScopeFlags, ScopeType, Scopes};
use crate::structure::{Atsr, Rmrr, Satc, Sidp};
use crate::topology::{BusTopology, Seen, Upstream};

/// Buses of a segment: the most steps that a walk towards the root can take.
const MAX_BUSES: usize = 256;

/// How a PCI scope entry relates to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeMatch {
    /// It names the function itself.
    Named {
        /// The path starts on a bus that is not a root bus: taken for the function's own bus, as Linux does.
        broken_path: bool,
    },
    /// It names a bridge above the function.
    Below {
        /// The bridge.
        bridge: Bdf,
        /// How many buses are below the bridge: the fewer, the closer to the function.
        buses: u16,
    },
    /// It does not speak about the function.
    No,
    /// It may: the path or the bridge's buses are unknown or contradict each other.
    Unknown,
}

impl DeviceScope<'_> {
    /// How the entry, in a structure of `segment`, relates to the PCI function `function`.
    ///
    /// Entries of other kinds than endpoint and sub-hierarchy answer [`ScopeMatch::No`].
    #[must_use]
    pub fn matches<T: BusTopology + ?Sized>(self, segment: Segment, function: Bdf, topology: &T) -> ScopeMatch {
        match_scope(self, segment, function, topology)
    }
}

/// How the PCI entry `scope` of a structure of `segment` relates to `function`.
pub(crate) fn match_scope<T: BusTopology + ?Sized>(
    scope: DeviceScope<'_>,
    segment: Segment,
    function: Bdf,
    topology: &T,
) -> ScopeMatch {
    if segment != function.segment || !scope.kind().is_pci() {
        return ScopeMatch::No;
    }
    let is_sub_hierarchy = scope.kind() == ScopeType::SUB_HIERARCHY;
    let named = match scope.resolve(segment, topology) {
        PathEnd::At(named) => named,
        PathEnd::Nowhere => return ScopeMatch::No,
        PathEnd::Unknown => {
            // An endpoint with another device or function number is another function, wherever it is.
            let last = scope.path().last().and_then(|hop| hop.devfn());
            let other = !is_sub_hierarchy && last.is_some_and(|last| last != function.devfn());
            return if other { ScopeMatch::No } else { ScopeMatch::Unknown };
        }
    };
    if named == function {
        let on_root = !matches!(topology.parent_bridge(segment, scope.start_bus()), Upstream::Bridge(_));
        return ScopeMatch::Named { broken_path: !on_root };
    }
    if is_sub_hierarchy {
        below(named, function, topology)
    } else {
        ScopeMatch::No
    }
}

/// Whether `function` is below `bridge`, by the bridge's bus numbers and by the way up from the function,
/// which have to agree.
fn below<T: BusTopology + ?Sized>(bridge: Bdf, function: Bdf, topology: &T) -> ScopeMatch {
    if function.bus() == bridge.bus() {
        return ScopeMatch::No;
    }
    let upward = is_above(bridge, function.bus(), topology);
    match topology.function(bridge) {
        Seen::Bridge { secondary, subordinate } if secondary > bridge.bus() && subordinate >= secondary => {
            let inside = (secondary..=subordinate).contains(&function.bus());
            match (inside, upward) {
                (true, Some(true) | None) => ScopeMatch::Below {
                    bridge,
                    buses: u16::from(subordinate - secondary) + 1,
                },
                (false, Some(false) | None) => ScopeMatch::No,
                _ => ScopeMatch::Unknown,
            }
        }
        // Nothing can be below a bridge without buses, below an endpoint or below nothing, unless the way up
        // says that it is.
        Seen::Bridge { secondary: 0, .. } | Seen::Endpoint | Seen::Absent if upward != Some(true) => ScopeMatch::No,
        // The way up alone can clear a function, but not name the nearest bridge.
        Seen::Unknown if upward == Some(false) => ScopeMatch::No,
        _ => ScopeMatch::Unknown,
    }
}

/// Whether `bridge` is on the way from `bus` up to the root; `None` when the way is not known to its end.
fn is_above<T: BusTopology + ?Sized>(bridge: Bdf, mut bus: u8, topology: &T) -> Option<bool> {
    for _ in 0..MAX_BUSES {
        match topology.parent_bridge(bridge.segment, bus) {
            Upstream::Root => return Some(false),
            Upstream::Unknown => return None,
            Upstream::Bridge(parent) if parent == bridge.source => return Some(true),
            Upstream::Bridge(parent) => bus = parent.bus(),
        }
    }
    None
}

/// The bridge on the root bus above `bus`; `None` on a root bus itself, or an error when it is not known.
fn root_port<T: BusTopology + ?Sized>(segment: Segment, mut bus: u8, topology: &T) -> Result<Option<SourceId>, ()> {
    let mut port = None;
    for _ in 0..MAX_BUSES {
        match topology.parent_bridge(segment, bus) {
            Upstream::Root => return Ok(port),
            Upstream::Unknown => return Err(()),
            Upstream::Bridge(parent) => {
                port = Some(parent);
                bus = parent.bus();
            }
        }
    }
    Err(())
}

/// Whether a structure speaks about a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// It does; the offset is that of the scope entry, or of the structure when a flag covers all.
    Yes {
        /// Offset in the table, in bytes.
        at: usize,
    },
    /// It does not.
    No,
    /// It may: something at this offset cannot be read or followed. Take the safe side.
    Unknown {
        /// Offset in the table, in bytes.
        at: usize,
    },
}

impl Applies {
    /// Whether it does for sure.
    #[must_use]
    pub const fn is_yes(self) -> bool {
        matches!(self, Self::Yes { .. })
    }

    /// Whether it does, or may.
    #[must_use]
    pub const fn may(self) -> bool {
        !matches!(self, Self::No)
    }
}

/// Whether one of `scopes` speaks about `function`, and the flags of that entry.
fn match_list<T: BusTopology + ?Sized>(
    scopes: Scopes<'_>,
    segment: Segment,
    function: Bdf,
    topology: &T,
) -> (Applies, ScopeFlags) {
    let none = ScopeFlags::default();
    if segment != function.segment {
        return (Applies::No, none);
    }
    let mut doubt = Applies::No;
    for scope in scopes {
        let at = match scope {
            Ok(scope) if scope.kind().is_pci() => match match_scope(scope, segment, function, topology) {
                ScopeMatch::Named { .. } | ScopeMatch::Below { .. } => {
                    return (Applies::Yes { at: scope.offset() }, scope.flags());
                }
                ScopeMatch::No => continue,
                ScopeMatch::Unknown => scope.offset(),
            },
            Ok(scope) if scope.kind().name().is_some() => continue,
            Ok(scope) => scope.offset(),
            Err(malformed) => malformed.offset,
        };
        if doubt == Applies::No {
            doubt = Applies::Unknown { at };
        }
    }
    (doubt, none)
}

impl Rmrr<'_> {
    /// Whether `function` uses the region, and so needs it identity-mapped.
    #[must_use]
    pub fn applies_to<T: BusTopology + ?Sized>(self, function: Bdf, topology: &T) -> Applies {
        match_list(self.scopes(), self.segment(), function, topology).0
    }
}

impl Atsr<'_> {
    /// Whether `function` is below a root port that supports ATS. Integrated endpoints never are; ask
    /// [`Satc::applies_to`] about them.
    #[must_use]
    pub fn applies_to<T: BusTopology + ?Sized>(self, function: Bdf, topology: &T) -> Applies {
        if self.segment() != function.segment {
            return Applies::No;
        }
        let unknown = Applies::Unknown { at: self.offset() };
        match root_port(function.segment, function.bus(), topology) {
            Ok(None) => Applies::No,
            Ok(Some(_)) if self.all_ports() => Applies::Yes { at: self.offset() },
            Err(()) if self.all_ports() => unknown,
            Ok(Some(_)) | Err(()) => match_list(self.scopes(), self.segment(), function, topology).0,
        }
    }
}

impl Satc<'_> {
    /// Whether `function`, or the physical function that it belongs to, is listed.
    #[must_use]
    pub fn applies_to<T: BusTopology + ?Sized>(self, function: Bdf, topology: &T) -> Applies {
        let function = topology.listed_as(function).unwrap_or(function);
        match_list(self.scopes(), self.segment(), function, topology).0
    }
}

impl Sidp<'_> {
    /// Whether `function`, or the physical function that it belongs to, is listed, and its properties.
    #[must_use]
    pub fn applies_to<T: BusTopology + ?Sized>(self, function: Bdf, topology: &T) -> (Applies, ScopeFlags) {
        let function = topology.listed_as(function).unwrap_or(function);
        match_list(self.scopes(), self.segment(), function, topology)
    }
}
