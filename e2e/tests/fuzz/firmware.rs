//! Firmware's table, and configuration space.

use acpi_dmar::lint::{self, Machine};
use acpi_dmar::{Dmar, NoTopology};
use iommu_groups::{BusId, ConfigAccess, LinuxVersion, Rules, Topology, group};
use iommu_types::{AddrRange, Bdf, HostPhys, Segment, SourceId};

use crate::fuzz;

/// A table to start from: two units, a reserved region, an affinity.
pub(crate) fn table() -> Vec<u8> {
    use acpi_dmar::{OwnedDmar, OwnedDrhd, OwnedRmrr, OwnedScope};
    let source = |text: &str| text.parse::<SourceId>().expect("valid");
    let region = AddrRange::from_base_len(HostPhys::new(0x7b80_0000), 0x1_0000).expect("no wrap");
    OwnedDmar::new(46)
        .with(OwnedDrhd::new(Segment(0), HostPhys::new(0xfed9_0000)).scope(OwnedScope::endpoint(source("00:02.0"))))
        .with(OwnedDrhd::new(Segment(0), HostPhys::new(0xfed9_1000)).include_pci_all())
        .with(OwnedRmrr::new(Segment(0), region).scope(OwnedScope::endpoint(source("00:14.0"))))
        .build()
        .expect("a small table")
}

#[test]
fn table_reader() {
    let plain = table();
    fuzz("table reader", |random| {
        let mut bytes = plain.clone();
        for _ in 0..random.below(8) {
            let at = random.index(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.byte(),
                1 => bytes[at] ^= 1 << random.below(8),
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, random.byte()),
            }
        }
        if random.below(16) == 0 {
            bytes = (0..random.below(300)).map(|_| random.byte()).collect();
        }
        let _ = lint::lint_bytes(&bytes, &Machine::default());
        if let Ok(table) = Dmar::inspect(&bytes) {
            // The walk ends within the bytes: every structure is at least four of them long.
            assert!(table.structures().count() <= bytes.len() / 4 + 1);
            let function = Bdf::new(Segment(0), SourceId::from_raw(0x00a0));
            let _ = table.owner(function, &NoTopology);
        }
    });
}

/// Configuration space of a few functions, full of anything.
#[derive(Debug)]
struct Noise(Vec<(Bdf, Vec<u8>)>);

impl ConfigAccess for Noise {
    fn read32(&self, bdf: Bdf, offset: u16) -> Option<u32> {
        let Some((_, space)) = self.0.iter().find(|(known, _)| *known == bdf) else {
            return Some(u32::MAX);
        };
        let at = usize::from(offset & !3);
        space
            .get(at..at + 4)
            .and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)))
    }
}

#[test]
fn configuration_space_walker() {
    fuzz("configuration space walker", |random| {
        let functions = (0..1 + random.below(6))
            .map(|_| {
                let source = SourceId::from_raw(u16::try_from(random.below(0x400)).expect("small"));
                let mut space: Vec<u8> = (0..256 + random.below(2) * 512).map(|_| random.byte()).collect();
                // Something that is there, with a header type and a capability list.
                space[0..2].copy_from_slice(&[0x86, 0x80]);
                space[0x0e] = random.byte() & 0x83;
                space[0x06] |= 0x10;
                space[0x34] = random.byte() & 0xfc;
                (Bdf::new(Segment(0), source), space)
            })
            .collect();
        let topology = Topology::scan(
            &Noise(functions),
            &[BusId {
                segment: Segment(0),
                bus: 0,
            }],
        );
        for rules in [Rules::Strict, Rules::Linux(LinuxVersion::new(6, 12))] {
            let groups = group(&topology, rules);
            let members: usize = groups.all().iter().map(|group| group.members.len()).sum();
            assert_eq!(members, topology.functions().len(), "every function is in one group");
        }
    });
}
