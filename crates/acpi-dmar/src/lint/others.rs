//! Rules about affinity, ATS and namespace devices.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;

use super::{FunctionList, Linter};
use crate::rule::{Needs, Rule};
use crate::scope::{PathEnd, ScopeType};
use crate::topology::{BusTopology, Seen};

impl Linter<'_> {
    pub(super) fn check_affinity(&mut self) {
        if !self.complete {
            return; // the unit may be in the part that cannot be read
        }
        let bases: BTreeSet<_> = self.units().map(|(_, unit)| unit.register_base()).collect();
        for rhsa in self.table.rhsas() {
            if !bases.contains(&rhsa.register_base()) {
                let message = format!("no unit has the base {}", rhsa.register_base());
                self.found(Rule::AffinityWithoutUnit, rhsa.offset(), message);
            }
        }
    }

    pub(super) fn check_ats(&mut self) {
        let functions = self
            .machine
            .functions
            .map(|functions| (functions, FunctionList::new(functions)));
        for atsr in self.table.atsrs() {
            if atsr.all_ports() {
                if atsr.scopes().next().is_some() {
                    let message = "ALL_PORTS is set, and ports are listed as well";
                    self.found(Rule::AllPortsWithScope, atsr.offset(), message.into());
                }
                continue;
            }
            let Some((functions, list)) = self.need(functions.as_ref(), Rule::NoAtsBelow, Needs::Pci) else {
                continue;
            };
            for scope in atsr.scopes().filter_map(Result::ok) {
                let PathEnd::At(port) = scope.resolve(atsr.segment(), list) else {
                    continue;
                };
                let Seen::Bridge { secondary, subordinate } = list.function(port) else {
                    continue;
                };
                let mut below = functions
                    .iter()
                    .filter(|f| f.at.segment == port.segment && (secondary..=subordinate).contains(&f.at.bus()));
                if below.clone().any(|f| f.ats == Some(true)) {
                    continue;
                }
                if below.any(|f| f.ats.is_none()) {
                    self.not_judged(Rule::NoAtsBelow, Needs::Pci);
                } else {
                    let message = format!("no function below {port} has the ATS capability");
                    self.found(Rule::NoAtsBelow, scope.offset(), message);
                }
            }
        }
    }

    pub(super) fn check_namespace(&mut self) {
        // Where each device number is declared, and where some unit lists it.
        let declared: BTreeMap<u8, usize> = self
            .table
            .andds()
            .map(|andd| (andd.device_number(), andd.offset()))
            .collect();
        let listed: BTreeMap<u8, usize> = self
            .units()
            .flat_map(|(_, unit)| unit.scopes().filter_map(Result::ok))
            .filter(|scope| scope.kind() == ScopeType::NAMESPACE)
            .map(|scope| (scope.enumeration_id(), scope.offset()))
            .collect();
        if self.complete {
            for (number, offset) in declared.iter().filter(|(number, _)| !listed.contains_key(number)) {
                let message = format!("no unit lists the ACPI device {number}");
                self.found(Rule::NamespaceUnmatched, *offset, message);
            }
            for (number, offset) in listed.iter().filter(|(number, _)| !declared.contains_key(number)) {
                let message = format!("no ANDD declares the ACPI device {number}");
                self.found(Rule::NamespaceUnmatched, *offset, message);
            }
        }
        for andd in self.table.andds() {
            let number = andd.device_number();
            let Some(name) = andd.name() else {
                let message = format!("the name of the ACPI device {number} is not ASCII that ends with NUL");
                self.found(Rule::NamespaceName, andd.offset(), message);
                continue;
            };
            if let Some(namespace) = self.need(self.machine.namespace, Rule::NamespaceName, Needs::Namespace)
                && !namespace.contains(&name)
            {
                let message = format!("{name} is not in the ACPI namespace");
                self.found(Rule::NamespaceName, andd.offset(), message);
            }
        }
    }
}
