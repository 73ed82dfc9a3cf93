//! Dirty bits, set by a stand-in for hardware in raw numbers.
#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use iommu_pagetable::{Config, DirtyBits, DirtyError, FirstStage, Format, LeafSizes, Levels, PageTable, SecondStage};
use iommu_testkit::SparseMemory;
use iommu_types::{AddrRange, HostPhys, Iova, Perms, SystemMemory};

fn range(first: u64, len: u64) -> AddrRange<Iova> {
    AddrRange::from_base_len(Iova::new(first), len).expect("a range")
}

/// Sets a bit of the leaf for `iova` in a four-level tree, as a walker does on a write. Tells whether it was clear.
fn write(memory: &SparseMemory, root: HostPhys, iova: u64, dirty: u64) -> bool {
    let mut at = root.raw();
    for (level, shift) in [(4, 39), (3, 30), (2, 21), (1, 12)] {
        let entry = HostPhys::new(at + 8 * ((iova >> shift) & 0x1ff));
        let word = memory.read_u64(entry).expect("memory");
        if level == 1 || (level < 4 && word & 0x80 != 0) {
            let before = memory.compare_exchange_u64(entry, word, word | dirty).expect("memory");
            return if before == word {
                word & dirty == 0
            } else {
                write(memory, root, iova, dirty)
            };
        }
        at = word & 0x000f_ffff_ffff_f000;
    }
    unreachable!("level 1 is a leaf");
}

fn collect<F: Format>(
    table: &PageTable<F>,
    memory: &SparseMemory,
    within: AddrRange<Iova>,
    bits: DirtyBits,
) -> Vec<AddrRange<Iova>> {
    let mut found = Vec::new();
    let cleared = table
        .read_dirty(memory, within, bits, |page| found.push(page))
        .expect("tracked");
    let cover = found
        .first()
        .zip(found.last())
        .and_then(|(a, b)| AddrRange::new(a.first(), b.last()));
    assert_eq!(cleared.range(), cover.filter(|_| bits == DirtyBits::Clear));
    assert_eq!(cleared.pages(), found.iter().map(|page| page.page_count()).sum::<u64>());
    found
}

fn battery<F: Format>(format: F, dirty: u64) {
    let memory = SparseMemory::new(1 << 30);
    let config = Config::new(Levels::Four).leaf_sizes(LeafSizes::ALL);
    let table = PageTable::new(format, config, &memory).expect("memory");
    let map = |iova, len| {
        table
            .map(
                &memory,
                Iova::new(iova),
                HostPhys::new(1 << 40 | iova),
                len,
                Perms::READ_WRITE,
            )
            .expect("free");
    };
    map(0x1000, 0x3000);
    map(0x20_0000, 0x20_0000);
    map(0x4000_0000, 0x4000_0000);
    let all = range(0, 1 << 40);
    assert_eq!(
        collect(&table, &memory, all, DirtyBits::Clear),
        [],
        "new mappings are clean"
    );
    for iova in [0x2fff, 0x25_0000, 0x5555_0000] {
        assert!(write(&memory, table.root(), iova, dirty));
    }
    let written = [
        range(0x2000, 0x1000),
        range(0x20_0000, 0x20_0000),
        range(0x4000_0000, 0x4000_0000),
    ];
    assert_eq!(collect(&table, &memory, all, DirtyBits::Keep), written);
    assert_eq!(collect(&table, &memory, range(0x3000, 0x1000), DirtyBits::Clear), []);
    assert_eq!(
        collect(&table, &memory, range(0x30_0000, 0x1000), DirtyBits::Clear),
        [written[1]],
        "whole, if cut"
    );
    assert_eq!(
        collect(&table, &memory, all, DirtyBits::Clear),
        [written[0], written[2]]
    );
    assert_eq!(collect(&table, &memory, all, DirtyBits::Clear), []);
    let kept = table.lookup(&memory, Iova::new(0x2fff)).expect("only the bit went");
    assert_eq!(
        (kept.phys, kept.perms),
        (HostPhys::new(1 << 40 | 0x2fff), Perms::READ_WRITE)
    );
    table.free(&memory);
    memory.assert_clean();
}

#[test]
fn second_stage_dirty_is_bit_9() {
    battery(SecondStage::default().track_dirty(), 1 << 9);
}

#[test]
fn first_stage_dirty_is_bit_6() {
    battery(FirstStage::default().track_dirty(), 1 << 6);
}

#[test]
fn a_table_that_tracks_nothing_says_so() {
    let memory = SparseMemory::new(1 << 30);
    let table = PageTable::new(SecondStage::default(), Config::new(Levels::Four), &memory).expect("memory");
    let asked = table.read_dirty(&memory, range(0, 0x1000), DirtyBits::Keep, |_| ());
    assert_eq!(asked, Err(DirtyError::NotTracked));
    let tracking = PageTable::new(
        SecondStage::default().track_dirty(),
        Config::new(Levels::Three),
        &memory,
    );
    let beyond = tracking
        .expect("memory")
        .read_dirty(&memory, range(1 << 39, 0x1000), DirtyBits::Keep, |_| ());
    assert!(matches!(beyond, Err(DirtyError::OutsideAperture { .. })));
}

#[test]
fn no_write_is_lost_between_hardware_and_a_reader() {
    let memory = SparseMemory::new(1 << 30);
    let table =
        PageTable::new(SecondStage::default().track_dirty(), Config::new(Levels::Four), &memory).expect("memory");
    table
        .map(&memory, Iova::new(0), HostPhys::new(1 << 40), 0x8000, Perms::READ_WRITE)
        .expect("free");
    let (mut reported, root) = (0, table.root());
    let set = std::thread::scope(|scope| {
        let hardware = scope.spawn(|| {
            (0..20_000u64)
                .filter(|n| write(&memory, root, (n * 5 % 8) << 12, 1 << 9))
                .count()
        });
        while !hardware.is_finished() {
            reported += collect(&table, &memory, range(0, 0x8000), DirtyBits::Clear).len();
        }
        hardware.join().expect("no panic")
    });
    reported += collect(&table, &memory, range(0, 0x8000), DirtyBits::Clear).len();
    assert_eq!(
        reported, set,
        "each time a bit went from clear to set, it was reported once"
    );
    table.free(&memory);
}
