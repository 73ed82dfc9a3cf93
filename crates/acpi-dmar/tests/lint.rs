//! Each rule fires on what it is about, at the right offset, and a sound table is quiet.
#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

use acpi_dmar::lint::{KernelVersion, Machine, MemoryKind, MemoryRegion, PciFunction, Report, lint_bytes};
use acpi_dmar::{
    OwnedAndd, OwnedAtsr, OwnedDmar, OwnedDrhd, OwnedRhsa, OwnedRmrr, OwnedSatc, OwnedScope, OwnedSidp, PathHop,
    RawStructure, Rule, ScopeFlags, ScopeType, Severity, StructureType, TableFlags,
};
use iommu_types::{AddrRange, Bdf, HostPhys, Segment, SourceId};

const SEGMENT: Segment = Segment(0);
/// Where the first structure stands.
const FIRST: usize = 0x30;

fn at(text: &str) -> SourceId {
    text.parse().expect("a source ID")
}

fn unit(base: u64) -> OwnedDrhd {
    OwnedDrhd::new(SEGMENT, HostPhys::new(base))
}

fn rest() -> OwnedDrhd {
    unit(0xfed9_1000).include_pci_all()
}

fn range(first: u64, last: u64) -> AddrRange<HostPhys> {
    AddrRange::new(HostPhys::new(first), HostPhys::new(last)).expect("ordered")
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

fn bytes(table: &OwnedDmar) -> Vec<u8> {
    table.build().expect("fits")
}

fn ids(report: &Report) -> Vec<(&'static str, usize)> {
    report.findings.iter().map(|f| (f.rule.id(), f.offset)).collect()
}

/// The findings by the table alone, as id and offset.
fn lint(table: &OwnedDmar) -> Vec<(&'static str, usize)> {
    ids(&lint_bytes(&bytes(table), &Machine::default()))
}

fn lint_on(table: &OwnedDmar, machine: &Machine<'_>) -> Vec<(&'static str, usize)> {
    ids(&lint_bytes(&bytes(table), machine))
}

#[test]
fn a_sound_table_has_no_findings_and_says_what_it_could_not_judge() {
    let table = empty()
        .with(unit(0xfed9_0000).scope(OwnedScope::endpoint(at("00:02.0"))))
        .with(
            rest()
                .scope(OwnedScope::io_apic(2, at("f0:1f.0")))
                .scope(OwnedScope::hpet(0, at("f0:0f.0")))
                .scope(OwnedScope::namespace(1, at("00:15.0"))),
        )
        .with(rmrr(0x7b80_0000, 0x7fff_ffff))
        .with(OwnedAtsr::new(SEGMENT).scope(OwnedScope::sub_hierarchy(at("00:1c.0"))))
        .with(OwnedRhsa {
            register_base: HostPhys::new(0xfed9_1000),
            proximity_domain: 0,
        })
        .with(OwnedAndd::new(1, "\\_SB.PCI0.I2C0"))
        .with(OwnedSatc::new(SEGMENT, false).scope(OwnedScope::endpoint(at("00:02.0"))))
        .with(OwnedSidp::new(SEGMENT).scope(OwnedScope::endpoint(at("00:02.0")).flags(ScopeFlags(0x1f))));
    let report = lint_bytes(&bytes(&table), &Machine::default());
    assert_eq!(ids(&report), []);
    assert_eq!(report.worst(), None);
    let open: Vec<_> = report.not_judged.iter().map(|missing| missing.rule.id()).collect();
    assert_eq!(
        open,
        [
            "L09", "L19", "L20", "L21", "L22", "L29", "L30", "L33", "L35", "L37", "L38", "L39"
        ]
    );
}

#[test]
fn header_rules() {
    let sound = empty().with(rest());
    let mut wrong = bytes(&sound);
    wrong[24] ^= 1;
    assert_eq!(ids(&lint_bytes(&wrong, &Machine::default())), [("L01", 9)]);
    let whole = bytes(&sound);
    let cut = lint_bytes(&whole[..whole.len() - 1], &Machine::default());
    assert_eq!(ids(&cut), [("L02", FIRST)]);
    assert_eq!(ids(&lint_bytes(b"DMAR", &Machine::default())), [("L41", 4)]);

    let mut narrow = sound.clone();
    narrow.host_address_width = 10;
    assert_eq!(lint(&narrow), [("L44", 36)]);
    narrow.host_address_width = 11;
    assert_eq!(lint(&narrow), []);

    let flags = |raw| sound.clone().flags(TableFlags(raw));
    assert_eq!(lint(&flags(0)), [("L23", 37)]);
    assert_eq!(lint(&flags(2)), [("L23", 37), ("L24", 37), ("L48", 37)]);
    assert_eq!(lint(&flags(3)), [("L24", 37)]);
    assert_eq!(lint(&flags(5)), [("L25", 37)]);
    assert_eq!(lint(&flags(0x81)), [("L47", 37)]);
    let without_groups = Machine {
        has_groups: Some(false),
        ..Machine::default()
    };
    let report = lint_bytes(&bytes(&flags(5)), &without_groups);
    assert_eq!(report.findings[0].severity, Severity::Warning);

    let mut padded = bytes(&sound);
    padded.push(0);
    assert_eq!(
        ids(&lint_bytes(&padded, &Machine::default())),
        [("L40", padded.len() - 1)]
    );

    let machine = Machine {
        cpu_address_bits: Some(46),
        ..Machine::default()
    };
    assert_eq!(lint_on(&sound, &machine), [("L38", 36)]);
}

#[test]
fn structure_rules() {
    assert_eq!(lint(&empty()), [("L07", FIRST)]);
    let raw = |kind, body: &[u8]| RawStructure {
        kind: StructureType(kind),
        body: body.to_vec(),
    };
    assert_eq!(lint(&empty().with(rest()).with(raw(9, &[]))), [("L05", 0x40)]);
    assert_eq!(
        lint(&empty().with(OwnedAtsr::all_ports(SEGMENT)).with(rest())),
        [("L06", 0x38)]
    );
    assert_eq!(lint(&empty().with(rest()).with(raw(3, &[0; 12]))), [("L42", 0x40)]);

    let mut zero = bytes(&empty().with(rest()));
    zero[0x32] = 0;
    let mut long = zero.clone();
    long[0x32] = 17;
    for (mut broken, rule) in [(zero, "L03"), (long, "L04")] {
        broken[9] = 0;
        broken[9] = broken.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
        // Not L07 and L15: the unit may be there, it is only unreadable.
        assert_eq!(ids(&lint_bytes(&broken, &Machine::default())), [(rule, FIRST)]);
    }
}

#[test]
fn unit_rules() {
    assert_eq!(lint(&empty().with(unit(0).include_pci_all())), [("L08", FIRST)]);
    assert_eq!(lint(&empty().with(unit(u64::MAX).include_pci_all())), [("L09", FIRST)]);
    assert_eq!(lint(&empty().with(unit(0x1800).include_pci_all())), [("L10", FIRST)]);
    assert_eq!(
        lint(&empty().with(unit(0x1000).size(1).include_pci_all())),
        [("L10", FIRST)]
    );
    let graphics = unit(0xfed9_1000).scope(OwnedScope::endpoint(at("00:02.0")));
    assert_eq!(lint(&empty().with(graphics.clone()).with(rest())), [("L11", 0x48)]);
    let mut graphics = graphics;
    graphics.register_base = HostPhys::new(0xfed9_0000);
    assert_eq!(lint(&empty().with(rest()).with(graphics.clone())), [("L13", FIRST)]);
    let second = unit(0xfed9_2000).include_pci_all();
    assert_eq!(lint(&empty().with(rest()).with(second)), [("L14", 0x40)]);
    assert_eq!(lint(&empty().with(graphics)), [("L15", FIRST)]);
    assert_eq!(lint(&empty().with(unit(0x1000)).with(rest())), [("L16", FIRST)]);
    let mut other = rest();
    other.segment = Segment(1);
    other.register_base = HostPhys::new(0x1000);
    assert_eq!(lint(&empty().with(rest()).with(other)), [], "one for each segment");

    let large = empty().with(unit(0x4000).size(2).include_pci_all());
    let linux = |major, minor| Machine {
        kernel: Some(KernelVersion { major, minor }),
        ..Machine::default()
    };
    assert_eq!(lint(&large), []);
    assert_eq!(lint_on(&large, &linux(6, 1)), [("L12", FIRST)]);
    assert_eq!(lint_on(&large, &linux(6, 3)), []);
    let dead = Machine {
        dead_units: Some(&[HostPhys::new(0xfed9_1000)]),
        ..Machine::default()
    };
    assert_eq!(lint_on(&empty().with(rest()), &dead), [("L09", FIRST)]);
}

#[test]
fn scope_rules() {
    let with = |scope: OwnedScope| empty().with(unit(0x1000).scope(scope)).with(rest());
    let mut table = bytes(&with(OwnedScope::endpoint(at("00:02.0"))));
    table[0x41] = 6;
    let report = lint_bytes(&table, &Machine::default());
    assert!(
        report
            .findings
            .iter()
            .any(|f| f.rule == Rule::ScopeLength && f.offset == 0x40)
    );

    let mut odd = OwnedScope::endpoint(at("00:02.0"));
    odd.kind = ScopeType(6);
    assert_eq!(lint(&with(odd)), [("L18", 0x40)]);
    let mut far = OwnedScope::endpoint(at("00:02.0"));
    far.path.push(PathHop { device: 0, function: 8 });
    assert_eq!(lint(&with(far)), [("L43", 0x40)]);
    let flagged = OwnedScope::endpoint(at("00:02.0")).flags(ScopeFlags(0x10));
    assert_eq!(lint(&with(flagged)), [("L47", 0x40)]);
    let listing = rest().scope(OwnedScope::endpoint(at("00:02.0")));
    assert_eq!(lint(&empty().with(listing)), [("L45", 0x40)]);
    let twice =
        with(OwnedScope::io_apic(2, at("f0:1f.0"))).with(unit(0x2000).scope(OwnedScope::io_apic(2, at("f0:1e.0"))));
    assert_eq!(lint(&twice), [("L13", 0x48), ("L46", 0x68)]);
    let atsr = OwnedAtsr::new(SEGMENT).scope(OwnedScope::endpoint(at("00:02.0")));
    assert_eq!(lint(&empty().with(rest()).with(atsr)), [("L49", 0x48)]);
    let mut ports = OwnedAtsr::all_ports(SEGMENT);
    ports.scopes.push(OwnedScope::sub_hierarchy(at("00:1c.0")));
    assert_eq!(lint(&empty().with(rest()).with(ports)), [("L50", 0x40)]);
}

#[test]
fn region_rules() {
    let with = |region: OwnedRmrr| empty().with(rest()).with(region);
    assert_eq!(lint(&with(rmrr(0, 0))), [("L26", 0x40)]);
    assert_eq!(lint(&with(rmrr(0x2000, 0x1fff))), [("L27", 0x40)]);
    assert_eq!(lint(&with(rmrr(0x2000, 0x2fff))), []);
    assert_eq!(lint(&with(rmrr(0x2001, 0x2fff))), [("L28", 0x40)]);
    assert_eq!(lint(&with(rmrr(0x2000, 0x3000))), [("L28", 0x40)]);
    assert_eq!(
        lint(
            &with(rmrr(0x2000, 0x5fff))
                .with(rmrr(0x3000, 0x3fff))
                .with(rmrr(0x5000, 0x6fff))
        ),
        [("L29", 0x60), ("L29", 0x80)]
    );
    assert_eq!(lint(&with(rmrr(0x7f_ffff_f000, 0x80_0000_0fff))), [("L31", 0x40)]);
    assert_eq!(lint(&with(rmrr(0x7f_ffff_f000, 0x7f_ffff_ffff))), []);
    assert_eq!(
        lint(&with(OwnedRmrr::new(SEGMENT, range(0x2000, 0x2fff)))),
        [("L32", 0x40)]
    );

    let map = |first, last, kind| MemoryRegion {
        range: range(first, last),
        kind,
    };
    let memory = [
        map(0, 0x1fff, MemoryKind::Usable),
        map(0x2000, 0x2fff, MemoryKind::Reserved),
        map(0x3000, 0x4fff, MemoryKind::Reserved),
    ];
    let machine = Machine {
        memory: Some(&memory),
        ..Machine::default()
    };
    assert_eq!(lint_on(&with(rmrr(0x2000, 0x4fff)), &machine), []);
    assert_eq!(lint_on(&with(rmrr(0x2000, 0x5fff)), &machine), [("L30", 0x40)]);
    let report = lint_bytes(&bytes(&with(rmrr(0x1000, 0x2fff))), &machine);
    assert_eq!(ids(&report), [("L29", 0x40), ("L30", 0x40)]);
    assert_eq!(report.findings[0].severity, Severity::Error);
}

#[test]
fn affinity_and_namespace_rules() {
    let table = empty().with(rest()).with(OwnedRhsa {
        register_base: HostPhys::new(0x5000),
        proximity_domain: 0,
    });
    assert_eq!(lint(&table), [("L34", 0x40)]);
    let listed = rest().scope(OwnedScope::namespace(1, at("00:15.0")));
    assert_eq!(lint(&empty().with(listed.clone())), [("L36", 0x40)]);
    assert_eq!(
        lint(&empty().with(rest()).with(OwnedAndd::new(1, "\\X"))),
        [("L36", 0x40)]
    );
    let named = empty().with(listed.clone()).with(OwnedAndd::new(1, "\\X"));
    assert_eq!(lint(&named), []);
    let mut nameless = OwnedAndd::new(1, "\\X");
    nameless.name.pop();
    assert_eq!(lint(&empty().with(listed).with(nameless)), [("L37", 0x48)]);
    let machine = Machine {
        namespace: Some(&["\\Y"]),
        ..Machine::default()
    };
    assert_eq!(lint_on(&named, &machine), [("L37", 0x48)]);
}

#[test]
fn rules_that_need_the_machine() {
    let function = |text: &str, buses, class, ats| PciFunction {
        at: text.parse::<Bdf>().expect("a function"),
        buses,
        class,
        ats,
    };
    let functions = [
        function("00:02.0", None, [0x03, 0, 0], None),
        function("00:14.0", None, [0x0c, 0x03, 0x30], None),
        function("00:1c.0", Some((1, 1)), [0x06, 0x04, 0], None),
        function("01:00.0", None, [0x02, 0, 0], Some(false)),
        function("00:0f.0", None, [0x06, 0x80, 0], None),
    ];
    let machine = Machine {
        functions: Some(&functions),
        io_apics: Some(&[2]),
        hpets: Some(&[0]),
        ..Machine::default()
    };
    let sources = || {
        rest()
            .scope(OwnedScope::io_apic(2, at("f0:1f.0")))
            .scope(OwnedScope::hpet(0, at("f0:0f.0")))
    };
    assert_eq!(lint_on(&empty().with(sources()), &machine), []);
    assert_eq!(lint_on(&empty().with(rest()), &machine), [("L21", 37), ("L22", 37)]);
    assert_eq!(
        lint_on(&empty().flags(TableFlags(0)).with(rest()), &machine),
        [("L23", 37)],
        "nothing has to be listed without INTR_REMAP"
    );

    let with = |scope: OwnedScope| empty().with(unit(0x1000).scope(scope)).with(sources());
    assert_eq!(
        lint_on(&with(OwnedScope::endpoint(at("00:03.0"))), &machine),
        [("L19", 0x40)]
    );
    assert_eq!(
        lint_on(&with(OwnedScope::endpoint(at("00:1c.0"))), &machine),
        [("L20", 0x40)]
    );
    assert_eq!(
        lint_on(&with(OwnedScope::sub_hierarchy(at("00:02.0"))), &machine),
        [("L20", 0x40)]
    );
    // A non-transparent bridge is an endpoint with a bridge's class.
    assert_eq!(lint_on(&with(OwnedScope::sub_hierarchy(at("00:0f.0"))), &machine), []);

    let device = iommu_types::DevFn::new(0, 0).expect("in range");
    let nic = OwnedRmrr::new(SEGMENT, range(0x2000, 0x2fff))
        .scope(OwnedScope::endpoint(at("00:02.0")))
        .scope(OwnedScope::endpoint(at("00:14.0")))
        .scope(OwnedScope::endpoint(at("00:1c.0")).hop(device));
    assert_eq!(lint_on(&empty().with(sources()).with(nic), &machine), [("L33", 0x78)]);
    let atsr = OwnedAtsr::new(SEGMENT).scope(OwnedScope::sub_hierarchy(at("00:1c.0")));
    assert_eq!(lint_on(&empty().with(sources()).with(atsr), &machine), [("L35", 0x58)]);
    let vmd = [function("0001:00:00.0", None, [1, 8, 2], None)];
    let machine = Machine {
        functions: Some(&vmd),
        ..Machine::default()
    };
    assert_eq!(lint_on(&empty().with(rest()), &machine), [("L39", FIRST)]);
}
