//! Every rule there is has a table that breaks it and a sound one that does not, and what it says is complete. A rule
//! that is added without a case here fails the test.
#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

use acpi_dmar::lint::{KernelVersion, Machine, MemoryKind, MemoryRegion, PciFunction, lint_bytes};
use acpi_dmar::{
    OwnedAndd, OwnedAtsr, OwnedDmar, OwnedDrhd, OwnedRhsa, OwnedRmrr, OwnedScope, PathHop, RawStructure, Rule,
    ScopeType, StructureType, TableFlags,
};
use iommu_types::{AddrRange, Bdf, HostPhys, Segment, SourceId};

const SEGMENT: Segment = Segment(0);
/// Where the host address width stands.
const WIDTH: usize = 36;
/// Where the first structure stands, and its length field.
const FIRST: usize = 0x30;
const FIRST_LENGTH: usize = FIRST + 2;
/// Where the checksum stands.
const CHECKSUM: usize = 9;

fn at(text: &str) -> SourceId {
    text.parse().expect("a source ID")
}

fn range(first: u64, last: u64) -> AddrRange<HostPhys> {
    AddrRange::new(HostPhys::new(first), HostPhys::new(last)).expect("ordered")
}

fn unit(base: u64) -> OwnedDrhd {
    OwnedDrhd::new(SEGMENT, HostPhys::new(base))
}

fn graphics() -> OwnedDrhd {
    unit(0xfed9_0000).scope(OwnedScope::endpoint(at("00:02.0")))
}

fn rest() -> OwnedDrhd {
    unit(0xfed9_1000)
        .include_pci_all()
        .scope(OwnedScope::io_apic(2, at("f0:1f.0")))
        .scope(OwnedScope::hpet(0, at("f0:0f.0")))
}

fn rmrr(first: u64, last: u64) -> OwnedRmrr {
    OwnedRmrr {
        segment: SEGMENT,
        base: HostPhys::new(first),
        limit: HostPhys::new(last),
        scopes: vec![OwnedScope::endpoint(at("00:14.0"))],
    }
}

fn empty() -> OwnedDmar {
    OwnedDmar::new(39).flags(TableFlags::INTR_REMAP)
}

fn sound() -> OwnedDmar {
    empty().with(graphics()).with(rest())
}

fn bytes(table: &OwnedDmar) -> Vec<u8> {
    table.build().expect("fits")
}

/// The sound table with one byte changed and a right checksum.
fn changed(offset: usize, value: u8) -> Vec<u8> {
    let mut table = bytes(&sound());
    table[offset] = value;
    table[CHECKSUM] = 0;
    table[CHECKSUM] = table.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    table
}

fn raw(kind: u16, body: &[u8]) -> RawStructure {
    RawStructure {
        kind: StructureType(kind),
        body: body.to_vec(),
    }
}

/// A machine of which everything but the memory map is known, and to which the sound table fits.
fn whole(functions: &[PciFunction]) -> Machine<'_> {
    Machine {
        functions: Some(functions),
        io_apics: Some(&[2]),
        hpets: Some(&[0]),
        namespace: Some(&["\\_SB.PCI0.I2C0"]),
        cpu_address_bits: Some(39),
        kernel: Some(KernelVersion { major: 6, minor: 1 }),
        dead_units: Some(&[]),
        has_groups: Some(true),
        ..Machine::default()
    }
}

fn functions() -> Vec<PciFunction> {
    let function = |text: &str, buses, class, ats| PciFunction {
        at: text.parse::<Bdf>().expect("a function"),
        buses,
        class,
        ats,
    };
    vec![
        function("00:02.0", None, [0x03, 0, 0], None),
        function("00:14.0", None, [0x0c, 0x03, 0x30], None),
        function("00:1c.0", Some((1, 1)), [0x06, 0x04, 0], None),
        function("01:00.0", None, [0x02, 0, 0], Some(false)),
    ]
}

/// A table that breaks the rule on a [`whole`] machine; `None` if it takes another machine.
fn broken_table(rule: Rule) -> Option<Vec<u8>> {
    let with_scope = |scope: OwnedScope| bytes(&empty().with(unit(0x1000).scope(scope)).with(rest()));
    let with_region = |region: OwnedRmrr| bytes(&sound().with(region));
    Some(match rule {
        Rule::Checksum => {
            let mut table = bytes(&sound());
            table[CHECKSUM] ^= 1;
            table
        }
        Rule::TableTruncated => {
            let mut table = bytes(&sound());
            table.pop();
            table
        }
        Rule::StructureTooShort => changed(FIRST_LENGTH, 3),
        Rule::StructureOverrun => changed(FIRST_LENGTH, 250),
        Rule::UnknownStructure => bytes(&sound().with(raw(9, &[]))),
        Rule::TypeOrder => bytes(&empty().with(OwnedAtsr::all_ports(SEGMENT)).with(rest())),
        Rule::NoUnit => bytes(&empty()),
        Rule::UnitAtZero => bytes(&empty().with(unit(0)).with(rest())),
        Rule::UnitAllOnes => bytes(&empty().with(unit(u64::MAX)).with(rest())),
        Rule::UnitUnaligned => bytes(&empty().with(unit(0x1800)).with(rest())),
        Rule::UnitDuplicate => bytes(&empty().with(unit(0xfed9_1000)).with(rest())),
        Rule::UnitSizeIgnored => bytes(&empty().with(unit(0x4000).size(2)).with(rest())),
        Rule::IncludeAllNotLast => bytes(&empty().with(rest()).with(graphics())),
        Rule::IncludeAllTwice => bytes(&sound().with(unit(0xfed9_2000).include_pci_all())),
        Rule::NoIncludeAll => bytes(&empty().with(graphics())),
        Rule::UnitWithoutScope => bytes(&empty().with(unit(0x1000)).with(rest())),
        // The scope's length field: 8 is one hop, 7 is none and a half.
        Rule::ScopeLength => changed(FIRST + 16 + 1, 7),
        Rule::UnknownScope => {
            let mut odd = OwnedScope::endpoint(at("00:02.0"));
            odd.kind = ScopeType(6);
            with_scope(odd)
        }
        Rule::ScopeAbsent => with_scope(OwnedScope::endpoint(at("00:03.0"))),
        Rule::ScopeTypeMismatch => with_scope(OwnedScope::endpoint(at("00:1c.0"))),
        Rule::IoApicUncovered | Rule::HpetUncovered => bytes(&empty().with(unit(0xfed9_1000).include_pci_all())),
        Rule::NoInterruptRemapping => bytes(&sound().flags(TableFlags(0))),
        Rule::X2ApicOptOut => bytes(&sound().flags(TableFlags(3))),
        Rule::PlatformOptIn => bytes(&sound().flags(TableFlags(5))),
        Rule::RegionZero => with_region(rmrr(0, 0)),
        Rule::RegionInverted => with_region(rmrr(0x2000, 0x1fff)),
        Rule::RegionUnaligned => with_region(rmrr(0x2001, 0x2fff)),
        Rule::RegionOverlap => bytes(&sound().with(rmrr(0x2000, 0x4fff)).with(rmrr(0x3000, 0x3fff))),
        Rule::RegionNotReserved => with_region(rmrr(0x9000, 0x9fff)),
        Rule::RegionBeyondWidth => with_region(rmrr(0x7f_ffff_f000, 0x80_0000_0fff)),
        Rule::RegionWithoutScope => with_region(OwnedRmrr::new(SEGMENT, range(0x2000, 0x2fff))),
        Rule::RegionLocksDevice => {
            let mut region = rmrr(0x2000, 0x2fff);
            let hop = iommu_types::DevFn::new(0, 0).expect("in range");
            region.scopes = vec![OwnedScope::endpoint(at("00:1c.0")).hop(hop)];
            with_region(region)
        }
        Rule::AffinityWithoutUnit => bytes(&sound().with(OwnedRhsa {
            register_base: HostPhys::new(0x5000),
            proximity_domain: 0,
        })),
        Rule::NoAtsBelow => {
            bytes(&sound().with(OwnedAtsr::new(SEGMENT).scope(OwnedScope::sub_hierarchy(at("00:1c.0")))))
        }
        Rule::NamespaceUnmatched => bytes(&sound().with(OwnedAndd::new(1, "\\_SB.PCI0.I2C0"))),
        Rule::NamespaceName => bytes(&sound().with(OwnedAndd::new(1, "\\Y"))),
        Rule::TrailingBytes => {
            let mut table = bytes(&sound());
            table.push(0);
            table
        }
        Rule::NotATable => b"SSDT".repeat(20),
        Rule::StructureBelowType => bytes(&sound().with(raw(3, &[0; 12]))),
        Rule::PathElement => {
            let mut far = OwnedScope::endpoint(at("00:02.0"));
            far.path.push(PathHop { device: 0, function: 8 });
            with_scope(far)
        }
        Rule::WidthTooSmall => changed(WIDTH, 5),
        Rule::IncludeAllListsPci => bytes(&empty().with(rest().scope(OwnedScope::endpoint(at("00:02.0"))))),
        Rule::NamedTwice => bytes(
            &empty()
                .with(unit(0x1000).scope(OwnedScope::io_apic(2, at("f0:1e.0"))))
                .with(rest()),
        ),
        Rule::ReservedBits => bytes(&sound().flags(TableFlags(0x81))),
        Rule::OptOutWithoutRemapping => bytes(&sound().flags(TableFlags(2))),
        Rule::ScopeNotAllowedHere => {
            bytes(&sound().with(OwnedAtsr::new(SEGMENT).scope(OwnedScope::endpoint(at("00:02.0")))))
        }
        Rule::AllPortsWithScope => {
            let mut ports = OwnedAtsr::all_ports(SEGMENT);
            ports.scopes.push(OwnedScope::sub_hierarchy(at("00:1c.0")));
            bytes(&sound().with(ports))
        }
        // These need another machine.
        Rule::NarrowerThanCpu | Rule::SegmentUncovered => return None,
        rule => panic!("{rule} has no table here that breaks it"),
    })
}

#[test]
fn every_rule_is_broken_by_a_table_and_kept_by_a_sound_one() {
    let functions = functions();
    let reserved = [MemoryRegion {
        range: range(0x2000, 0x6fff),
        kind: MemoryKind::Reserved,
    }];
    let usual = Machine {
        memory: Some(&reserved),
        ..whole(&functions)
    };
    let quiet = lint_bytes(&bytes(&sound()), &usual);
    assert_eq!((quiet.findings.len(), quiet.not_judged.len()), (0, 0), "{quiet:?}");
    let behind = [PciFunction {
        at: "0001:00:00.0".parse().expect("a function"),
        buses: None,
        class: [1, 8, 2],
        ats: None,
    }];
    for rule in Rule::ALL.iter().copied() {
        let (table, machine) = match broken_table(rule) {
            Some(table) => (table, usual),
            None if rule == Rule::NarrowerThanCpu => (
                bytes(&sound()),
                Machine {
                    cpu_address_bits: Some(46),
                    ..usual
                },
            ),
            None => (
                bytes(&sound()),
                Machine {
                    functions: Some(&behind),
                    ..usual
                },
            ),
        };
        let report = lint_bytes(&table, &machine);
        let found = report.findings.iter().find(|finding| finding.rule == rule);
        let Some(finding) = found else {
            panic!("{rule} is not found: {report:?}");
        };
        assert!(finding.offset <= table.len(), "{finding}");
        assert!(finding.severity >= rule.severity(), "{finding}");
        assert!(!finding.message.is_empty() && !finding.advice().is_empty(), "{finding}");
        let text = finding.to_string();
        let head = format!("{} {} at offset {:#x}: ", rule.id(), finding.severity, finding.offset);
        assert!(text.starts_with(&head), "{text}");
    }
}
