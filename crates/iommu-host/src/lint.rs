//! Judging a DMAR table with everything that is known of the machine it is of.

use acpi_dmar::lint::{self, KernelVersion, Machine as Facts, PciFunction, Report};
use iommu_groups::{Presence, Topology};
use iommu_types::HostPhys;

use crate::machine::{Machine, Origin};

/// Judges a table by every rule for which `machine` has the input: its functions, memory map, MADT, HPET, kernel,
/// processor, namespace, and whether its units answer. What is not known leaves rules unjudged, never passed.
///
/// `bytes` are the machine's own table mostly, or one that is to replace it. `topology` is that of the machine.
#[must_use]
pub fn judge(bytes: &[u8], machine: &Machine, topology: &Topology) -> Report {
    // A listing may leave out functions, and absence in it proves nothing.
    let functions = (machine.origin != Origin::Listing && !machine.functions.is_empty()).then(|| functions(topology));
    let dead: Option<Vec<HostPhys>> = machine.units.known().map(|units| {
        let dead = units.iter().filter(|unit| {
            let cap = unit.cap.known().map(|cap| cap.raw_value());
            let ecap = unit.ecap.known().map(|ecap| ecap.raw_value());
            cap == Some(u64::MAX) && ecap == Some(u64::MAX)
        });
        dead.filter_map(|unit| unit.address.known().copied()).collect()
    });
    let kernel = machine.release().map(|version| KernelVersion {
        major: version.major,
        minor: version.minor,
    });
    let platform = &machine.platform;
    let namespace: Option<Vec<&str>> = platform
        .namespace
        .known()
        .map(|paths| paths.iter().map(String::as_str).collect());
    let facts = Facts {
        functions: functions.as_deref(),
        memory: platform.memory.known().map(Vec::as_slice),
        cpu_address_bits: platform.address_bits.known().map(|bits| u16::from(*bits)),
        kernel,
        io_apics: platform.io_apics.known().map(Vec::as_slice),
        hpets: platform.hpets.known().map(Vec::as_slice),
        dead_units: dead.as_deref(),
        namespace: namespace.as_deref(),
        has_groups: machine.has_groups(),
    };
    lint::lint_bytes(bytes, &facts)
}

/// The functions that a table speaks of: those behind a VMD are no part of it, their VMD is.
fn functions(topology: &Topology) -> Vec<PciFunction> {
    let in_firmware = |f: &&iommu_groups::Function| f.real_dma.is_none() && f.bdf.segment.firmware().is_some();
    let functions = topology.functions().iter().filter(in_firmware).map(|f| {
        let [interface, sub, base, _] = f.class.to_le_bytes();
        PciFunction {
            at: f.bdf,
            buses: f
                .buses
                .filter(|_| f.is_bridge())
                .map(|buses| (buses.secondary, buses.subordinate)),
            class: [base, sub, interface],
            ats: match f.ats {
                Presence::Present(_) => Some(true),
                Presence::Absent => Some(false),
                Presence::Unknown => None,
            },
        }
    });
    functions.collect()
}

#[cfg(test)]
mod tests {
    use acpi_dmar::lint::{MemoryKind, MemoryRegion};
    use acpi_dmar::{OwnedDmar, OwnedDrhd, OwnedRmrr, OwnedScope, Rule, TableFlags};
    use iommu_types::{AddrRange, Segment};

    use super::*;
    use crate::knowledge::Knowledge;

    fn source(text: &str) -> iommu_types::SourceId {
        text.parse().expect("valid")
    }

    fn table() -> Vec<u8> {
        let region = AddrRange::from_base_len(HostPhys::new(0x7b80_0000), 0x1000).expect("no wrap");
        OwnedDmar::new(39)
            .flags(TableFlags::INTR_REMAP)
            .with(
                OwnedDrhd::new(Segment(0), HostPhys::new(0xfed9_1000))
                    .include_pci_all()
                    .scope(OwnedScope::io_apic(2, source("f0:1f.0")))
                    .scope(OwnedScope::hpet(0, source("f0:0f.0"))),
            )
            .with(OwnedRmrr::new(Segment(0), region).scope(OwnedScope::endpoint(source("00:14.0"))))
            .build()
            .expect("fits")
    }

    fn machine(change: impl FnOnce(&mut Machine)) -> Report {
        let listing = "00:14.0 0c03: 8086:a36d\n\tStatus: Cap-\n00:02.0 0300: 8086:3e9b\n\tStatus: Cap-\n\
            0000:00:0e.0 0104: 8086:467f\n\tStatus: Cap-\n10000:e1:00.0 0108: 144d:a80a\n\tStatus: Cap-\n";
        let mut machine = Machine::from_listing(listing.as_bytes());
        machine.origin = Origin::Snapshot;
        machine.platform.io_apics = Knowledge::Known(vec![2]);
        machine.platform.hpets = Knowledge::Known(vec![0]);
        machine.platform.address_bits = Knowledge::Known(39);
        machine.platform.memory = Knowledge::Known(vec![MemoryRegion {
            range: AddrRange::from_base_len(HostPhys::new(0x7b80_0000), 0x1000).expect("no wrap"),
            kind: MemoryKind::Reserved,
        }]);
        change(&mut machine);
        let topology = machine.topology();
        judge(&table(), &machine, &topology)
    }

    #[test]
    fn a_sound_table_of_a_known_machine_has_no_finding() {
        let report = machine(|_| {});
        assert_eq!(report.findings, []);
        for rule in [Rule::IoApicUncovered, Rule::HpetUncovered, Rule::RegionNotReserved] {
            assert!(report.not_judged.iter().all(|missing| missing.rule != rule), "{rule}");
        }
    }

    #[test]
    fn each_fact_about_the_machine_reaches_its_rule() {
        type Change = fn(&mut Machine);
        let cases: [(Rule, Change); 5] = [
            (Rule::IoApicUncovered, |m| {
                m.platform.io_apics = Knowledge::Known(vec![2, 8]);
            }),
            (Rule::HpetUncovered, |m| m.platform.hpets = Knowledge::Known(vec![0, 1])),
            (Rule::RegionNotReserved, |m| {
                m.platform.memory = Knowledge::Known(Vec::new());
            }),
            (Rule::NarrowerThanCpu, |m| {
                m.platform.address_bits = Knowledge::Known(46);
            }),
            (Rule::ScopeAbsent, |m| {
                m.functions.remove(&"00:14.0".parse().expect("valid"));
            }),
        ];
        for (rule, change) in cases {
            assert!(machine(change).has(rule), "{rule}");
        }
    }

    #[test]
    fn what_is_not_known_of_the_machine_leaves_its_rule_unjudged() {
        let report = machine(|m| {
            m.platform = crate::Platform::unknown(&crate::Obstacle::NotShown("x"));
            m.origin = Origin::Listing;
        });
        assert_eq!(report.findings, []);
        for rule in [
            Rule::IoApicUncovered,
            Rule::HpetUncovered,
            Rule::RegionNotReserved,
            Rule::NarrowerThanCpu,
            Rule::ScopeAbsent,
        ] {
            assert!(report.not_judged.iter().any(|missing| missing.rule == rule), "{rule}");
        }
    }
}
