//! What a device's DMA reaches, and what the kernel logs of the rest.

use std::collections::BTreeSet;

use e2e::guest::record::Record;
use e2e::vfio::probe::{self, Probe};
use serde_json::Value;

use super::ENGINE;

/// Probes that the software backend cannot make: it has no process whose memory could be aimed at.
const LINUX_ALONE: usize = 2;

/// The probe that may differ, exception 4 of `iommu_vfio::conformance::EXCEPTIONS`: Linux lets devices read what they may
/// write. Its entries have both rights, on QEMU's unit and on ours, with CAP.ZLR (VT-d §11.4.2) and without.
const READS_WRITE_ONLY: &str = "from a write-only mapping";

/// The address of a probe, whether it writes, and whether data moved, by name.
type Line<'t> = (&'t str, bool, bool, u64);

/// Reads a line of the guest: `probe right blocked 0x40002000 write into a read-only mapping`.
fn line(text: &str) -> Option<(Line<'_>, bool)> {
    let mut words = text.splitn(6, ' ');
    let (Some("probe"), Some(judged), Some(moved), Some(iova), Some(access), Some(name)) = (
        words.next(),
        words.next(),
        words.next(),
        words.next(),
        words.next(),
        words.next(),
    ) else {
        return None;
    };
    let iova = u64::from_str_radix(iova.strip_prefix("0x")?, 16).ok()?;
    Some(((name, access == "write", moved == "moved", iova), judged == "right"))
}

/// Compares, and returns how many probes there were.
pub(crate) fn judge(record: &Record, wrong: &mut Vec<String>) -> usize {
    let text = record.text("probe").into_owned();
    let mut there: Vec<_> = text.lines().filter_map(line).collect();
    // The exception holds in full, or it is not the one.
    let differs = |((name, _, moved, _), _): &(Line<'_>, bool)| *name == READS_WRITE_ONLY && *moved;
    if there.iter().filter(|probe| differs(probe)).count() != 1 {
        wrong.push(format!("Linux does not let devices read where it should:\n{text}"));
    }
    there.retain(|probe| !differs(probe));
    if record.statuses.get("probe") != Some(&0) {
        wrong.push(format!("the probes did not end: {}", record.text("probe.err")));
    }
    let (backend, function) = super::software::engine();
    let here: Vec<Probe> = probe::run(&backend, function, |_, _| None, |_| ()).expect("the engine works in software");
    let alone = if there.iter().any(|((name, ..), _)| *name == READS_WRITE_ONLY) {
        LINUX_ALONE
    } else {
        LINUX_ALONE - 1
    };
    for probe in &here {
        if probe.moved != probe.expected {
            wrong.push(format!("software: {probe}"));
        }
        let same = |((name, writes, moved, _), right): &&(Line<'_>, bool)| {
            *name == probe.name && *writes == probe.writes && *moved == probe.moved && *right
        };
        if there.iter().filter(same).count() != 1 && probe.name != READS_WRITE_ONLY {
            wrong.push(format!("software: {probe}; Linux:\n{text}"));
        }
    }
    for (_, right) in &there {
        if !right {
            wrong.push(format!("a probe went wrong on Linux:\n{text}"));
        }
    }
    if there.len() != here.len() + alone {
        wrong.push(format!("{} probes on Linux, {} in software", there.len(), here.len()));
    }
    faults(record, &there, wrong);
    there.len()
}

/// `iommu faults` explains every blocked probe, and there is no fault besides.
fn faults(record: &Record, probes: &[(Line<'_>, bool)], wrong: &mut Vec<String>) {
    let faults: Value = serde_json::from_str(&record.text("faults")).unwrap_or_default();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let group = record
        .groups
        .iter()
        .find(|(function, _)| function.to_string() == ENGINE);
    let mut seen = BTreeSet::new();
    for kind in list(&faults["kinds"]) {
        let whose = (kind["device"].as_str(), kind["driver"].as_str(), kind["group"].as_u64());
        if whose
            != (
                Some(ENGINE),
                Some("vfio-pci"),
                group.map(|(_, number)| u64::from(*number)),
            )
        {
            wrong.push(format!("`iommu faults` blames {whose:?}: {kind}"));
        }
        if kind["likely"].as_str().is_none_or(str::is_empty) || kind["next"].as_str().is_none_or(str::is_empty) {
            wrong.push(format!(
                "`iommu faults` does not say what is likely and what to do: {kind}"
            ));
        }
        for place in list(&kind["places"]) {
            let address = place["at"]
                .as_str()
                .and_then(|at| u64::from_str_radix(at.trim_start_matches("0x"), 16).ok());
            let writes = kind["request"].as_str() == Some("write");
            seen.extend(address.map(|address| (address, writes)));
        }
    }
    let blocked: BTreeSet<(u64, bool)> = probes
        .iter()
        .filter(|((_, _, moved, _), _)| !moved)
        .map(|((_, writes, _, iova), _)| (*iova, *writes))
        .collect();
    if seen != blocked || blocked.is_empty() {
        wrong.push(format!(
            "blocked were {blocked:x?}, `iommu faults` tells of {seen:x?}\n{}\n{}",
            record.text("faults.text"),
            record.messages.join("\n")
        ));
    }
}
