//! Properties: the builder is the inverse of the reader, and no bytes make the reader panic or run for ever.
#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

use acpi_dmar::lint::{FunctionList, Machine, MemoryKind, MemoryRegion, PciFunction, lint_bytes};
use acpi_dmar::{
    Dmar, NoTopology, OwnedAndd, OwnedAtsr, OwnedDmar, OwnedDrhd, OwnedRhsa, OwnedRmrr, OwnedSatc, OwnedScope,
    OwnedSidp, OwnedStructure, PathHop, RawStructure, ScopeFlags, ScopeType, StructureType, TableFlags,
};
use iommu_types::{AddrRange, Bdf, HostPhys, Segment, SourceId};
use proptest::collection::vec;
use proptest::prelude::*;

fn scope() -> impl Strategy<Value = OwnedScope> {
    let hop = any::<(u8, u8)>().prop_map(|(device, function)| PathHop { device, function });
    (any::<[u8; 4]>(), vec(hop, 1..5)).prop_map(|([kind, flags, enumeration_id, start_bus], path)| OwnedScope {
        kind: ScopeType(kind % 8),
        flags: ScopeFlags(flags),
        enumeration_id,
        start_bus,
        path,
    })
}

fn structure() -> impl Strategy<Value = OwnedStructure> {
    let scopes = || vec(scope(), 0..4);
    let segment = || (0..3_u16).prop_map(Segment::from);
    let address = || any::<u64>().prop_map(HostPhys::new);
    prop_oneof![
        (any::<u8>(), any::<u8>(), segment(), address(), scopes()).prop_map(
            |(flags, size, segment, register_base, scopes)| {
                OwnedDrhd {
                    flags,
                    size,
                    segment,
                    register_base,
                    scopes,
                }
                .into()
            }
        ),
        (segment(), address(), address(), scopes()).prop_map(|(segment, base, limit, scopes)| {
            OwnedRmrr {
                segment,
                base,
                limit,
                scopes,
            }
            .into()
        }),
        (any::<u8>(), segment(), scopes())
            .prop_map(|(flags, segment, scopes)| OwnedAtsr { flags, segment, scopes }.into()),
        (address(), any::<u32>()).prop_map(|(register_base, proximity_domain)| {
            OwnedRhsa {
                register_base,
                proximity_domain,
            }
            .into()
        }),
        (any::<u8>(), vec(any::<u8>(), 0..20))
            .prop_map(|(device_number, name)| OwnedAndd { device_number, name }.into()),
        (any::<u8>(), segment(), scopes())
            .prop_map(|(flags, segment, scopes)| OwnedSatc { flags, segment, scopes }.into()),
        (segment(), scopes()).prop_map(|(segment, scopes)| OwnedSidp { segment, scopes }.into()),
        (7..=u16::MAX, vec(any::<u8>(), 0..20)).prop_map(|(kind, body)| {
            RawStructure {
                kind: StructureType(kind),
                body,
            }
            .into()
        }),
    ]
}

fn table() -> impl Strategy<Value = OwnedDmar> {
    let header = (any::<[u8; 3]>(), any::<[u8; 6]>(), any::<[u8; 8]>(), any::<[u8; 10]>());
    let numbers = (any::<u32>(), any::<[u8; 4]>(), any::<u32>());
    (header, numbers, vec(structure(), 0..12)).prop_map(
        |(
            ([revision, width, flags], oem_id, oem_table_id, reserved),
            (oem_revision, creator_id, creator),
            structures,
        )| {
            OwnedDmar {
                revision,
                oem_id,
                oem_table_id,
                oem_revision,
                creator_id,
                creator_revision: creator,
                host_address_width: width,
                flags: TableFlags(flags),
                reserved,
                structures,
            }
        },
    )
}

/// Reads everything that can be read, so that a panic anywhere shows. Returns the number of steps.
fn read_all(bytes: &[u8]) -> usize {
    let functions: Vec<_> = (0..6_u8)
        .map(|n| PciFunction {
            at: Bdf::new(
                Segment(u32::from(n % 2)),
                SourceId::from_raw(u16::from(n) << 8 | u16::from(n) << 3),
            ),
            buses: (n % 3 == 0).then_some((n + 1, 5)),
            class: [n, 3, 0],
            ats: Some(n == 4),
        })
        .collect();
    let reserved = AddrRange::new(HostPhys::new(0x1000), HostPhys::new(u64::MAX / 2)).expect("ordered");
    let memory = [MemoryRegion {
        range: reserved,
        kind: MemoryKind::Reserved,
    }];
    let machine = Machine {
        functions: Some(&functions),
        memory: Some(&memory),
        cpu_address_bits: Some(46),
        io_apics: Some(&[1, 2]),
        hpets: Some(&[0]),
        dead_units: Some(&[]),
        namespace: Some(&["\\_SB"]),
        ..Machine::default()
    };
    let mut steps = lint_bytes(bytes, &machine).findings.len();
    let Ok(table) = Dmar::inspect(bytes) else {
        return steps;
    };
    let topology = FunctionList::new(&functions);
    for structure in table.structures() {
        steps += 1;
        if let Ok(structure) = structure
            && let Some((segment, scopes)) = structure.scope_list()
        {
            for scope in scopes.flatten() {
                steps += 1;
                let _ = scope.resolve(segment, &topology);
                let _ = scope.to_string();
            }
        }
    }
    for raw in (0..=u16::MAX).step_by(4099) {
        let function = Bdf::new(Segment::from(raw % 3), SourceId::from_raw(raw));
        let _ = table.owner(function, &topology);
        let _ = table.owner(function, &NoTopology);
        let _ = table
            .rmrrs()
            .filter(|rmrr| rmrr.applies_to(function, &topology).may())
            .count();
        let _ = table
            .atsrs()
            .filter(|atsr| atsr.applies_to(function, &topology).may())
            .count();
    }
    let _ = (table.io_apic(1, &topology), table.namespace_path("\\_SB", &topology));
    let _ = (table.trailing(), OwnedDmar::from_table(table));
    steps
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn built_tables_read_back_equal_and_build_the_same_bytes(owned in table()) {
        let bytes = owned.build().expect("fits");
        let table = Dmar::parse(&bytes).expect("a header");
        prop_assert!(table.checksum_ok());
        prop_assert_eq!(table.first_malformed(), None);
        let again = OwnedDmar::from_table(table).expect("well formed");
        prop_assert_eq!(&again, &owned);
        prop_assert_eq!(again.build().expect("fits"), bytes);
    }

    #[test]
    fn mutated_and_truncated_tables_end_without_panic(
        owned in table(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        keep in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = owned.build().expect("fits");
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(keep.index(bytes.len() + 1));
        }
        // Every structure takes 4 bytes at least, every scope entry 8, and no rule finds more than a few things
        // in one of them.
        prop_assert!(read_all(&bytes) <= 4 * bytes.len() + 64);
    }

    #[test]
    fn arbitrary_bytes_behind_a_header_end_without_panic(body in vec(any::<u8>(), 0..400), length in 48..500_u32) {
        let mut bytes = b"DMAR".to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.resize(48, 0);
        bytes.extend(body);
        prop_assert!(read_all(&bytes) <= 4 * bytes.len() + 64);
    }

    #[test]
    fn small_lengths_behind_a_header_end_without_panic(body in vec(0..12_u8, 0..400)) {
        let mut bytes = b"DMAR".to_vec();
        bytes.extend(u32::try_from(48 + body.len()).expect("short").to_le_bytes());
        bytes.resize(48, 0);
        bytes.extend(body);
        prop_assert!(read_all(&bytes) <= 4 * bytes.len() + 64);
    }

    #[test]
    fn arbitrary_bytes_end_without_panic(bytes in vec(any::<u8>(), 0..200)) {
        read_all(&bytes);
    }

    /// The safety rule: whatever a change does to a table, a walk that stopped early answers no owner.
    #[test]
    fn no_function_has_an_owner_while_part_of_the_table_is_unread(owned in table(), keep in any::<prop::sample::Index>()) {
        let mut bytes = owned.build().expect("fits");
        let whole = bytes.len();
        bytes.truncate(48 + keep.index(whole - 47));
        if bytes.len() < whole {
            let table = Dmar::inspect(&bytes).expect("a header");
            let function = Bdf::default();
            let owner = table.owner(function, &NoTopology);
            prop_assert!(matches!(owner, acpi_dmar::Owner::Unknown(_)), "{}", owner);
        }
    }
}
