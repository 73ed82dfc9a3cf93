//! Real machines: the groups their kernels reported.
//!
//! The files are in the folder that `PORTCULLIS_SAMPLES` names; without it these tests say that they were
//! skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking, helpers included"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use iommu_groups::{Explanation, Facts, LinuxVersion, Roots, Rules, Topology, group};
use iommu_types::Bdf;
use support::{DOWNSTREAM, ENDPOINT, INTEGRATED, Machine, ROOT_PORT, Space, UPSTREAM, bdf};

fn sample(name: &str) -> Option<String> {
    let Some(folder) = std::env::var_os("PORTCULLIS_SAMPLES") else {
        eprintln!("skipped: PORTCULLIS_SAMPLES does not name a folder with samples");
        return None;
    };
    let path = PathBuf::from(folder).join("groups").join(name);
    Some(fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// One line of the expected answer.
struct Expected {
    bdf: Bdf,
    group: u32,
    kind: String,
    acs_capability: Option<u16>,
    acs_control: Option<u16>,
    buses: Option<(u8, u8)>,
}

/// `SrcValid+ TransBlk- …` as bits.
fn acs_bits(text: &str) -> Option<u16> {
    const NAMES: [&str; 7] = [
        "SrcValid",
        "TransBlk",
        "ReqRedir",
        "CmpltRedir",
        "UpstreamFwd",
        "EgressCtrl",
        "DirectTrans",
    ];
    (text != "-").then(|| {
        text.split_whitespace().fold(0, |bits, word| {
            let position = NAMES.iter().position(|name| word.strip_suffix('+') == Some(name));
            position.map_or(bits, |position| bits | 1 << position)
        })
    })
}

fn expected(tsv: &str) -> Vec<Expected> {
    let number = |text: &str| u8::from_str_radix(text, 16).ok();
    tsv.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let fields: Vec<_> = line.split('\t').collect();
            Expected {
                bdf: bdf(fields[0]),
                group: fields[1].parse().unwrap(),
                kind: fields[2].to_owned(),
                acs_capability: acs_bits(fields[3]),
                acs_control: acs_bits(fields[4]),
                buses: number(fields[5]).zip(number(fields[6])),
            }
        })
        .collect()
}

/// Hex lines of `lspci -xxxx`, by function. Whatever else stands in the text is passed over.
fn hex_dumps(text: &str) -> Machine {
    let mut machine = Machine::new();
    let mut at = None;
    for line in text.lines() {
        if let Some(name) = line.split(' ').next().and_then(|name| name.parse::<Bdf>().ok()) {
            at = Some(name);
        }
        let Some((offset, bytes)) = line.split_once(": ") else {
            continue;
        };
        let offset = usize::from_str_radix(offset, 16).ok();
        let bytes: Option<Vec<u8>> = bytes.split(' ').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        if let (Some(name), Some(offset), Some(bytes)) = (at, offset, bytes)
            && bytes.len() == 16
        {
            let space = machine.spaces.entry(name).or_insert_with(|| {
                let mut space = Space::new(0, 0);
                space.bytes.clear();
                space
            });
            assert_eq!(space.bytes.len(), offset, "{name}: lines follow each other");
            space.bytes.extend(bytes);
        }
    }
    for space in machine.spaces.values_mut() {
        space.readable = space.bytes.len();
    }
    machine
}

/// Spaces made from what `lspci -vvv` says in words, for machines without a hex dump.
fn from_words(text: &str, expected: &[Expected]) -> Machine {
    let identity: BTreeMap<Bdf, (u16, u16)> = text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(' ')?;
            let name = name.parse().ok()?;
            let ids = rest
                .split('[')
                .filter_map(|part| part.split(']').next())
                .find_map(|part| {
                    let (vendor, device) = part.split_once(':')?;
                    Some((
                        u16::from_str_radix(vendor, 16).ok()?,
                        u16::from_str_radix(device, 16).ok()?,
                    ))
                });
            let vendor = if rest.contains("Intel Corporation") {
                0x8086
            } else {
                0x1234
            };
            Some((name, ids.unwrap_or((vendor, 0x0001))))
        })
        .collect();
    let mut machine = Machine::new();
    for e in expected {
        let (vendor, device) = identity.get(&e.bdf).copied().unwrap_or((0x1234, 1));
        let mut space = Space::new(vendor, device);
        if let Some((secondary, subordinate)) = e.buses {
            space = space.bridge(secondary, subordinate);
        }
        let same_slot =
            |other: &&Expected| other.bdf.bus() == e.bdf.bus() && other.bdf.devfn().device() == e.bdf.devfn().device();
        if expected.iter().filter(same_slot).count() > 1 {
            space = space.multifunction();
        }
        let kind = match e.kind.as_str() {
            "-" => None,
            "Endpoint" => Some(ENDPOINT),
            "Legacy Endpoint" => Some(1),
            "Root Port" => Some(ROOT_PORT),
            "Upstream Port" => Some(UPSTREAM),
            "Downstream Port" => Some(DOWNSTREAM),
            "Root Complex Integrated Endpoint" => Some(INTEGRATED),
            other => panic!("{}: unknown kind {other}", e.bdf),
        };
        if let Some(kind) = kind {
            space = space.express(kind);
        }
        if let (Some(capability), Some(control)) = (e.acs_capability, e.acs_control) {
            space = space.acs(capability, control);
            // Where the registers are dwords, lspci reads the wrong control register: the kernel has turned on
            // what there is.
            if (0xa110..=0xa11f).contains(&device) {
                space.put32(0x108, u32::from(capability & 0x1d));
            }
        }
        machine = machine.with(&e.bdf.to_string(), space);
    }
    machine
}

/// Compares partitions, not numbers.
fn assert_groups(machine: &Machine, expected: &[Expected]) {
    let topology = Topology::from_functions(
        machine,
        machine.spaces.keys().copied(),
        Roots::Inferred,
        &Facts::default(),
    );
    assert_eq!(topology.functions().len(), expected.len(), "{:?}", topology.problems());
    let linux = group(&topology, Rules::Linux(LinuxVersion::LATEST));
    for a in expected {
        for b in expected {
            let together = linux.together(a.bdf, b.bdf).unwrap();
            assert_eq!(
                together,
                a.group == b.group,
                "{} and {}: {:?}",
                a.bdf,
                b.bdf,
                linux.explain(&topology, a.bdf, b.bdf)
            );
        }
    }
    // Every pair of a group has a chain of reasons that leads from one to the other.
    for rules in [Rules::Linux(LinuxVersion::LATEST), Rules::Strict] {
        let groups = group(&topology, rules);
        for members in groups.all().iter().map(|group| &group.members) {
            for pair in members.windows(2) {
                let chain = groups.explain(&topology, pair[0], pair[1]);
                assert!(matches!(chain, Some(Explanation::Together(hops)) if !hops.is_empty()));
            }
        }
    }
}

#[test]
fn an_alder_lake_laptop_has_the_groups_of_its_kernel() {
    let (Some(text), Some(tsv)) = (
        sample("31-lspci-alderlake-groups-acs.txt"),
        sample("31-lspci-alderlake-groups-acs.tsv"),
    ) else {
        return;
    };
    let machine = hex_dumps(&text);
    let expected = expected(&tsv);
    assert_eq!(machine.spaces.len(), 29);
    assert_groups(&machine, &expected);
    // The registers say the same as lspci's words. One function was asleep when the dump was made.
    let topology = Topology::scan(&machine, &machine.roots);
    assert_eq!(topology.functions().len(), 28);
    for e in expected.iter().filter(|e| e.bdf != bdf("2f:00.0")) {
        let f = topology.get(e.bdf).unwrap();
        assert_eq!(
            f.acs.present().map(|acs| acs.capability & 0x7f),
            e.acs_capability,
            "{}",
            e.bdf
        );
        assert_eq!(
            f.acs.present().map(|acs| acs.control & 0x7f),
            e.acs_control,
            "{}",
            e.bdf
        );
        assert_eq!(
            f.buses.map(|buses| (buses.secondary, buses.subordinate)),
            e.buses,
            "{}",
            e.bdf
        );
        if e.kind == "-" {
            assert_eq!(f.port.present(), None, "{}", e.bdf);
        } else {
            let words = f.describe().to_lowercase();
            assert!(
                words.ends_with(&e.kind.to_lowercase()),
                "{}: {words} is not {}",
                e.bdf,
                e.kind
            );
        }
    }
}

#[test]
fn a_comet_lake_laptop_has_the_groups_of_its_kernel() {
    let (Some(text), Some(tsv)) = (
        sample("33-lspci-cometlake-u-groups.txt"),
        sample("33-lspci-cometlake-u-groups.tsv"),
    ) else {
        return;
    };
    let expected = expected(&tsv);
    assert_groups(&from_words(&text, &expected), &expected);
}

#[test]
fn a_workstation_with_two_switches_has_the_groups_of_its_kernel() {
    let (Some(text), Some(tsv)) = (
        sample("20-report-pex8748-lspci-dmesg.txt"),
        sample("20-report-pex8748-lspci-dmesg.tsv"),
    ) else {
        return;
    };
    let expected = expected(&tsv);
    assert_groups(&from_words(&text, &expected), &expected);
}
