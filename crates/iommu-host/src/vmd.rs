//! What the functions of PCI domains above ffff are behind.
//!
//! Intel's Volume Management Device hides root ports, and what is below them, behind one integrated endpoint. Linux
//! gives what it finds there a domain of its own, from 10000 on. All requests from it carry the requester ID of the
//! endpoint, so that is what units, groups and reserved regions know.

use std::collections::{BTreeMap, BTreeSet};

use iommu_types::{Bdf, Segment};

use crate::log::{BootEvent, Log};
use crate::machine::PciFunction;

/// Models of the Volume Management Device. Linux `drivers/pci/controller/vmd.c` (`vmd_ids`).
const MODELS: [(u16, u16); 10] = [
    (0x8086, 0x201d),
    (0x8086, 0x28c0),
    (0x8086, 0x467f),
    (0x8086, 0x4c3d),
    (0x8086, 0x7d0b),
    (0x8086, 0x9a0b),
    (0x8086, 0xa77f),
    (0x8086, 0xad0b),
    (0x8086, 0xb06f),
    (0x8086, 0xb60b),
];

/// Fills in what functions of wide domains are behind, where the paths of sysfs have not said it: from the log, from
/// a shared group of the kernel, or because there is one domain and one device that can have made it. What stays
/// open is left open.
pub(crate) fn resolve(functions: &mut BTreeMap<Bdf, PciFunction>, log: Option<&Log>) {
    let open: BTreeSet<Segment> = functions
        .values()
        .filter(|f| f.real_dma.is_none() && f.bdf.segment.firmware().is_none())
        .map(|f| f.bdf.segment)
        .collect();
    if open.is_empty() {
        return;
    }
    let devices: Vec<Bdf> = functions
        .values()
        .filter(|f| f.bdf.segment.firmware().is_some() && f.identity.known().is_some_and(|id| MODELS.contains(id)))
        .map(|f| f.bdf)
        .collect();
    let said: BTreeMap<Segment, Bdf> = log
        .into_iter()
        .flat_map(Log::boot)
        .filter_map(|(_, event)| match event {
            BootEvent::DomainBehind { domain, function } => Some((*domain, *function)),
            _ => None,
        })
        .collect();
    let known: BTreeMap<Segment, Bdf> = functions
        .values()
        .filter_map(|f| Some((f.bdf.segment, f.real_dma?)))
        .collect();
    for domain in &open {
        let real = known
            .get(domain)
            .or_else(|| said.get(domain))
            .copied()
            .or_else(|| sharing(functions, &devices, *domain))
            .or(match (devices.as_slice(), open.len()) {
                ([one], 1) if known.is_empty() => Some(*one),
                _ => None,
            });
        let Some(real) = real else { continue };
        for f in functions.values_mut().filter(|f| f.bdf.segment == *domain) {
            f.real_dma = f.real_dma.or(Some(real));
        }
    }
}

/// The device that is in one group of the kernel with functions of the domain.
fn sharing(functions: &BTreeMap<Bdf, PciFunction>, devices: &[Bdf], domain: Segment) -> Option<Bdf> {
    let group = |bdf: &Bdf| functions.get(bdf).and_then(|f| f.group.known().copied());
    let groups: BTreeSet<u32> = functions
        .values()
        .filter(|f| f.bdf.segment == domain)
        .filter_map(|f| f.group.known().copied())
        .collect();
    devices
        .iter()
        .copied()
        .find(|bdf| group(bdf).is_some_and(|number| groups.contains(&number)))
}

#[cfg(test)]
mod tests {
    use iommu_groups::{Problem, group};

    use crate::Machine;

    /// What the disk is behind, by this listing.
    fn behind(text: &str) -> Option<String> {
        let machine = Machine::from_listing(text.as_bytes());
        let disk = machine
            .functions
            .get(&"10000:e1:00.0".parse().expect("valid"))
            .expect("kept");
        disk.real_dma.map(|real| real.to_string())
    }

    const ONE: &str = "0000:00:0e.0 RAID bus controller [0104]: Intel Corporation VMD [8086:467f]\n";
    const TWO: &str = "0000:80:0e.0 RAID bus controller [0104]: Intel Corporation VMD [8086:467f]\n";
    const DISK: &str = "10000:e0:06.0 0604: 8086:464d\n10000:e1:00.0 0108: 144d:a80a\n";

    #[test]
    fn the_only_device_that_can_have_made_the_only_domain_has_made_it() {
        assert_eq!(behind(&format!("{ONE}{DISK}")), Some("0000:00:0e.0".to_owned()));
        assert_eq!(behind(&format!("{ONE}{TWO}{DISK}")), None);
        assert_eq!(
            behind(&format!("{ONE}{DISK}10001:e0:06.0 0604: 8086:464d\n")),
            None,
            "one device makes one domain"
        );
        assert_eq!(behind(DISK), None);
    }

    #[test]
    fn the_log_and_shared_groups_say_which_of_several_it_is() {
        let log = "[    1.000000] vmd 0000:80:0e.0: PCI host bridge to bus 10000:e0\n";
        assert_eq!(
            behind(&format!("{ONE}{TWO}{DISK}\n{log}")),
            Some("0000:80:0e.0".to_owned())
        );
        let grouped = format!(
            "{ONE}\tStatus: Cap+\n\tIOMMU group: 5\n{TWO}\tStatus: Cap+\n\tIOMMU group: 6\n\
             10000:e1:00.0 0108: 144d:a80a\n\tStatus: Cap+\n\tIOMMU group: 6\n"
        );
        assert_eq!(behind(&grouped), Some("0000:80:0e.0".to_owned()));
    }

    #[test]
    fn what_is_behind_a_device_shares_its_group_and_the_rest_is_said_to_be_open() {
        let machine = Machine::from_listing(format!("{ONE}{DISK}").as_bytes());
        let topology = machine.topology();
        let groups = group(&topology, machine.linux_rules());
        let together = |a: &str, b: &str| groups.together(a.parse().expect("valid"), b.parse().expect("valid"));
        assert_eq!(together("10000:e1:00.0", "0000:00:0e.0"), Some(true));
        let open = |problem: &Problem| matches!(problem, Problem::RequesterNotKnown { .. });
        assert!(!topology.problems().iter().any(open));
        let topology = Machine::from_listing(DISK.as_bytes()).topology();
        assert!(topology.problems().iter().any(open));
    }
}
