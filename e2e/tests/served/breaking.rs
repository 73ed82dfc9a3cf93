//! Tables broken behind Linux's back.

use std::collections::BTreeSet;

use iommu_serve::Remapper;
use iommu_types::HostPhys;
use vtd_model::AccessWidth;
use vtd_spec::register::offset;

use crate::programs;
use crate::rig::{Rig, unit};

/// Bits 63:12 of an entry that leads to another table or a page, as the naive reader takes them.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Most entries that are changed.
const LEAVES_MAX: usize = 1 << 16;

/// The entries that map 4 KiB pages for 00:07.0 in legacy mode, read with plain shifts.
fn leaves(remapper: &Remapper) -> Vec<(HostPhys, u64)> {
    let word = |at: u64| remapper.peek(HostPhys::new(at)).unwrap_or(0);
    let root = remapper.read(offset::RTADDR, AccessWidth::Qword) & ADDRESS;
    let context = (word(root) & ADDRESS) + (7 << 3) * 16;
    let levels = (word(context + 8) & 7) + 2;
    let mut tables = BTreeSet::from([word(context) & ADDRESS]);
    for _ in 1..levels {
        let entries = tables
            .iter()
            .flat_map(|table| (0..512).map(move |index| table + index * 8));
        tables = entries
            .map(word)
            .filter(|entry| entry & 3 != 0)
            .map(|entry| entry & ADDRESS)
            .collect();
    }
    let entries = tables
        .iter()
        .flat_map(|table| (0..512).map(move |index| table + index * 8));
    entries
        .map(|at| (HostPhys::new(at), word(at)))
        .filter(|(_, entry)| entry & 3 != 0)
        .take(LEAVES_MAX)
        .collect()
}

#[test]
fn entries_that_change_behind_the_driver_are_named_and_fault_once_they_are_read() {
    let Some(programs) = programs(true) else { return };
    let mut rig = Rig::new(&programs, unit());
    let mut changed = 0;
    let talk = rig.run("corrupt", "iommu.strict=1", |rig, line| {
        if line == "ready" {
            assert_eq!(rig.said.rules(), Vec::<&str>::new());
            // Bit 51 lies above the host address width: reserved in every entry.
            for (at, entry) in leaves(rig.remapper()) {
                assert!(rig.remapper().poke(at, entry | 1 << 51));
                changed += 1;
            }
        }
        true
    });
    assert!(changed > 0, "{}", talk.console);
    let rules = rig.said.rules();
    assert!(rules.contains(&"stale-translation"), "{rules:?}\n{}", talk.console);
    let broken = rig.said.broken.lock().unwrap();
    let entry = broken.iter().find_map(|rule| rule.entry).expect("an entry is named");
    assert_eq!(entry.now >> 51 & 1, 1);
    if let Some(before) = entry.before {
        assert_eq!(before, entry.now & !(1 << 51));
    }
    println!("also: {changed} entries changed behind Linux: {} findings", rules.len());
}
