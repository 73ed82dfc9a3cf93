//! The DMAR table that the firmware of a described machine would publish.

use acpi_dmar::{BuildError, OwnedAtsr, OwnedDmar, OwnedDrhd, OwnedRhsa, OwnedRmrr, OwnedSatc, OwnedScope, TableFlags};
use iommu_types::SourceId;

use super::{MachineDescription, ScopeDescription, ScopeKind, ScopePath};

impl MachineDescription {
    /// The bytes of the DMAR table: DRHD structures in the order of the units, then RMRR, ATSR, RHSA and SATC,
    /// which is the ascending order of types that VT-d §8.2 asks for.
    ///
    /// # Errors
    /// [`BuildError`] if a scope list is longer than a structure can be.
    pub fn to_dmar(&self) -> Result<Vec<u8>, BuildError> {
        let flags = [
            (self.interrupt_remapping, TableFlags::INTR_REMAP),
            (self.x2apic_opt_out, TableFlags::X2APIC_OPT_OUT),
            (self.dma_opt_in, TableFlags::DMA_CTRL_PLATFORM_OPT_IN),
        ]
        .into_iter()
        .filter(|(set, _)| *set)
        .fold(TableFlags::default(), |flags, (_, flag)| flags.union(flag));
        let mut table = OwnedDmar::new(self.host_address_width).flags(flags);
        for unit in &self.units {
            let drhd = OwnedDrhd::new(unit.segment, unit.base);
            let drhd = if unit.include_pci_all {
                drhd.include_pci_all()
            } else {
                drhd
            };
            table = table.with(entries(&unit.scopes).fold(drhd, OwnedDrhd::scope));
        }
        for rmrr in &self.rmrrs {
            let structure = OwnedRmrr::new(rmrr.segment, rmrr.range);
            table = table.with(entries(&rmrr.scopes).fold(structure, OwnedRmrr::scope));
        }
        for atsr in &self.atsrs {
            let structure = if atsr.all_ports {
                OwnedAtsr::all_ports(atsr.segment)
            } else {
                OwnedAtsr::new(atsr.segment)
            };
            table = table.with(entries(&atsr.scopes).fold(structure, OwnedAtsr::scope));
        }
        for unit in &self.units {
            if let Some(node) = unit.node {
                table = table.with(OwnedRhsa {
                    register_base: unit.base,
                    proximity_domain: node.0,
                });
            }
        }
        for satc in &self.satcs {
            let structure = OwnedSatc::new(satc.segment, satc.atc_required);
            table = table.with(entries(&satc.scopes).fold(structure, OwnedSatc::scope));
        }
        table.build()
    }
}

fn entries(scopes: &[ScopeDescription]) -> impl Iterator<Item = OwnedScope> {
    scopes.iter().map(entry)
}

fn entry(scope: &ScopeDescription) -> OwnedScope {
    let ScopePath { start_bus, hops } = &scope.path;
    let (first, rest) = hops
        .split_first()
        .map_or((Default::default(), hops.as_slice()), |(a, b)| (*a, b));
    let first = SourceId::new(*start_bus, first);
    let entry = match scope.kind {
        ScopeKind::Endpoint => OwnedScope::endpoint(first),
        ScopeKind::SubHierarchy => OwnedScope::sub_hierarchy(first),
        ScopeKind::IoApic(id) => OwnedScope::io_apic(id, first),
        ScopeKind::Hpet(number) => OwnedScope::hpet(number, first),
    };
    rest.iter().fold(entry, |entry, hop| entry.hop(*hop))
}
