//! Entries of page tables broken behind Linux's back.

use std::collections::BTreeSet;

use iommu_serve::Remapper;
use iommu_types::HostPhys;
use vtd_model::cache::CacheSizes;
use vtd_model::{AccessWidth, UnitConfig, UnitConfigBuilder};
use vtd_spec::register::offset;

use crate::rig::{Programs, Rig, Talk, unit};
use crate::{explain, programs};

/// Bits 51:12 of an entry that leads to another table or a page, as the naive reader takes them.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The bit that is set to break an entry. It lies above the host address width: reserved in every entry.
const BROKEN: u64 = 1 << 51;
/// Most entries that are changed.
const ENTRIES_MAX: usize = 1 << 16;

/// The entries that map pages for 00:07.0 in legacy mode, read with plain shifts.
fn leaves(remapper: &Remapper) -> Vec<(HostPhys, u64)> {
    let word = |at: u64| remapper.peek(HostPhys::new(at)).unwrap_or(0);
    let root = remapper.read(offset::RTADDR, AccessWidth::Qword) & ADDRESS;
    let context = (word(root) & ADDRESS) + (7 << 3) * 16;
    let levels = (word(context + 8) & 7) + 2;
    let mut tables = BTreeSet::from([word(context) & ADDRESS]);
    let slots = |tables: BTreeSet<u64>| {
        let all = tables
            .into_iter()
            .flat_map(|table| (0..512).map(move |index| table + index * 8));
        all.map(|at| (at, word(at))).filter(|(_, entry)| entry & 3 != 0)
    };
    for _ in 1..levels {
        tables = slots(tables).map(|(_, entry)| entry & ADDRESS).collect();
    }
    slots(tables)
        .map(|(at, entry)| (HostPhys::new(at), entry))
        .take(ENTRIES_MAX)
        .collect()
}

/// Breaks every entry that maps a page for the disk while the guest reads from it. No request is under way then: what is
/// mapped are the rings, which Linux never unmaps.
fn broken(programs: &Programs, unit: UnitConfigBuilder) -> (Rig, Vec<(HostPhys, u64)>, Talk) {
    let mut rig = Rig::new(programs, unit);
    let mut changed = Vec::new();
    let talk = rig.run("corrupt", "iommu.strict=1", |rig, line| {
        if line == "ready" {
            assert_eq!(rig.said.rules(), Vec::<&str>::new());
            assert_eq!(*rig.said.faults.lock().unwrap(), Vec::<String>::new());
            changed = leaves(rig.remapper());
            for (at, entry) in &changed {
                assert!(rig.remapper().poke(*at, entry | BROKEN));
            }
        }
        true
    });
    assert!(
        !changed.is_empty() && talk.says("read") && talk.says("end"),
        "{}",
        talk.console
    );
    (rig, changed, talk)
}

/// The sanitizer named an entry that was broken, with what it held before and what it holds now.
fn is_named(rig: &Rig, changed: &[(HostPhys, u64)], talk: &Talk) {
    let findings = rig.said.broken.lock().unwrap();
    let named: Vec<_> = findings.iter().filter_map(|rule| rule.entry).collect();
    let right = named.iter().any(|entry| {
        let was = changed.iter().find(|(at, _)| *at == entry.at);
        was.is_some_and(|(_, was)| entry.before == Some(*was) && entry.now == was | BROKEN)
    });
    assert!(right, "{changed:?}: {named:?}\n{}", talk.console);
    for rule in findings.iter() {
        assert_eq!(rule.finding.rule.name(), "stale-translation");
        assert!(rule.text.contains("00:07.0") && !rule.trace.is_empty(), "{rule:?}");
    }
}

#[test]
fn a_broken_entry_that_is_still_cached_is_named_with_what_it_was_and_is() {
    let Some(programs) = programs(true) else { return };
    let (rig, changed, talk) = broken(&programs, unit());
    is_named(&rig, &changed, &talk);
    println!(
        "also: {} entries broken behind Linux: {} uses of what was cached are named",
        changed.len(),
        rig.said.rules().len()
    );
}

#[test]
fn a_broken_entry_that_is_read_again_blocks_the_device_and_linux_prints_the_fault() {
    let Some(programs) = programs(true) else { return };
    // One large request makes a unit with so few places forget the rings.
    let sizes = CacheSizes {
        contexts: 4,
        pasids: 0,
        pages: 8,
        tables: 0,
        interrupts: 0,
    };
    let forgetful = UnitConfig::builder().sanitizer(true).cache_sizes(Some(sizes));
    let (rig, changed, talk) = broken(&programs, forgetful);
    is_named(&rig, &changed, &talk);
    let faults = rig.said.faults.lock().unwrap();
    assert!(
        !faults.is_empty() && faults.iter().all(|fault| fault.contains("00:07.0")),
        "{faults:?}\n{}",
        talk.console
    );
    let log: String = talk.all("log ").iter().map(|line| format!("{line}\n")).collect();
    assert!(log.contains("00:07.0]"), "{log}");
    let explained = explain(&programs, &log);
    assert!(
        explained.contains("00:07.0") && explained.contains("reserved"),
        "{explained}"
    );
    println!(
        "also: {} entries broken behind Linux: {} requests blocked, printed by Linux and explained",
        changed.len(),
        faults.len()
    );
}
