//! Rules about device scope entries.

use alloc::collections::BTreeMap;
use alloc::format;

use iommu_types::{HostPhys, Segment};

use super::{FunctionList, Linter};
use crate::rule::{Needs, Rule};
use crate::scope::{DeviceScope, PathEnd, ScopeType};
use crate::structure::{Drhd, Structure, StructureType};
use crate::topology::{BusTopology, Seen};

/// Base class of bridges: a non-transparent bridge has it without being a PCI bridge.
const CLASS_BRIDGE: u8 = 0x06;

/// What tells two entries apart: a PCI function by bus and path, other devices by their id.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Name<'a> {
    Function(Segment, u8, &'a [u8]),
    Device(ScopeType, u8),
}

impl Linter<'_> {
    pub(super) fn check_scopes(&mut self) {
        let functions = self.machine.functions.map(FunctionList::new);
        for structure in self.structures() {
            let Some((segment, scopes)) = structure.scope_list() else {
                continue;
            };
            for scope in scopes {
                match scope {
                    Ok(scope) => {
                        self.check_entry(structure, scope);
                        self.check_presence(segment, scope, functions.as_ref());
                    }
                    Err(malformed) => self.malformed(malformed),
                }
            }
        }
        self.check_named_once();
    }

    fn check_entry(&mut self, structure: Structure<'_>, scope: DeviceScope<'_>) {
        let (kind, offset) = (scope.kind(), scope.offset());
        if kind.name().is_none() {
            let message = format!("a device scope of type {}", kind.0);
            self.found(Rule::UnknownScope, offset, message);
        } else if !allowed_in(structure.kind(), kind) {
            let message = format!("{:?} cannot hold a device scope of the type {kind}", structure.kind());
            self.found(Rule::ScopeNotAllowedHere, offset, message);
        }
        if let Some(hop) = scope.path().find(|hop| hop.devfn().is_none()) {
            let message = format!("a path element is device {}, function {}", hop.device, hop.function);
            self.found(Rule::PathElement, offset, message);
        }
        if let Structure::Drhd(unit) = structure
            && unit.include_pci_all()
            && kind.is_pci()
        {
            let message = format!("the INCLUDE_PCI_ALL unit lists {scope}");
            self.found(Rule::IncludeAllListsPci, offset, message);
        }
        let reserved = if structure.kind() == StructureType::SIDP {
            scope.flags().reserved()
        } else {
            scope.flags().0
        };
        if reserved != 0 || scope.reserved() != 0 {
            let message = format!("device scope: reserved bytes {reserved:#04x} {:#04x}", scope.reserved());
            self.found(Rule::ReservedBits, offset, message);
        }
    }

    fn check_presence(&mut self, segment: Segment, scope: DeviceScope<'_>, functions: Option<&FunctionList<'_>>) {
        if !scope.kind().is_pci() {
            return;
        }
        let Some(functions) = functions else {
            self.not_judged(Rule::ScopeAbsent, Needs::Pci);
            self.not_judged(Rule::ScopeTypeMismatch, Needs::Pci);
            return;
        };
        let offset = scope.offset();
        let at = match scope.resolve(segment, functions) {
            PathEnd::At(at) => at,
            PathEnd::Nowhere => {
                let message = format!("{scope} leads through a bridge that is not there");
                self.found(Rule::ScopeAbsent, offset, message);
                return;
            }
            // Out-of-range elements have their own rule; contradicting bus numbers are not the table's fault.
            PathEnd::Unknown => return,
        };
        let is_bridge_class = functions.get(at).is_some_and(|f| f.class[0] == CLASS_BRIDGE);
        match (scope.kind(), functions.function(at)) {
            (_, Seen::Absent) => {
                let message = format!("{at} does not exist");
                self.found(Rule::ScopeAbsent, offset, message);
            }
            (ScopeType::ENDPOINT, Seen::Bridge { .. }) => {
                let message = format!("{at} is listed as an endpoint, but is a bridge");
                self.found(Rule::ScopeTypeMismatch, offset, message);
            }
            (ScopeType::SUB_HIERARCHY, Seen::Endpoint) if !is_bridge_class => {
                let message = format!("{at} is listed as a bridge, but is none");
                self.found(Rule::ScopeTypeMismatch, offset, message);
            }
            _ => {}
        }
    }

    /// The units of a segment cover disjoint sets of devices (VT-d §8.3).
    fn check_named_once(&mut self) {
        let mut names: BTreeMap<Name<'_>, (HostPhys, usize)> = BTreeMap::new();
        for (_, unit) in self.units() {
            for scope in unit.scopes().filter_map(Result::ok) {
                let Some(name) = name_of(unit, scope) else { continue };
                let (base, first) = *names.entry(name).or_insert((unit.register_base(), scope.offset()));
                if base != unit.register_base() {
                    let message = format!("{scope} is also named by another unit, at {first:#x}");
                    self.found(Rule::NamedTwice, scope.offset(), message);
                }
            }
        }
    }
}

fn name_of<'a>(unit: Drhd<'a>, scope: DeviceScope<'a>) -> Option<Name<'a>> {
    match scope.kind() {
        ScopeType::ENDPOINT | ScopeType::SUB_HIERARCHY => {
            let path = crate::bytes::tail(scope.bytes(), DeviceScope::FIXED);
            Some(Name::Function(unit.segment(), scope.start_bus(), path))
        }
        kind if kind.name().is_some() => Some(Name::Device(kind, scope.enumeration_id())),
        _ => None,
    }
}

/// Which entries a structure may hold (VT-d §8.3 to §8.9).
const fn allowed_in(structure: StructureType, kind: ScopeType) -> bool {
    match structure {
        StructureType::RMRR => matches!(
            kind,
            ScopeType::ENDPOINT | ScopeType::SUB_HIERARCHY | ScopeType::NAMESPACE
        ),
        StructureType::ATSR => matches!(kind, ScopeType::SUB_HIERARCHY),
        StructureType::SATC => matches!(kind, ScopeType::ENDPOINT),
        StructureType::SIDP => matches!(kind, ScopeType::ENDPOINT | ScopeType::NAMESPACE),
        _ => true,
    }
}
