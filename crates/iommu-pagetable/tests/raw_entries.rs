//! Entries against numbers typed in from the specification's figures, never built through the types under test.
#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use iommu_pagetable::{Config, FirstStage, Format, LeafSizes, Levels, MapError, PageTable, SecondStage};
use iommu_testkit::SparseMemory;
use iommu_types::{HostPhys, Iova, Perms, SystemMemory};

/// Table pages lie below this address, superpages of these tests above it.
const LAST_TABLE: u64 = (1 << 30) - 1;

/// The words on the way to `iova`, root first, as found in memory with plain shifts.
fn path<F: Format>(table: &PageTable<F>, memory: &SparseMemory, levels: u32, iova: u64) -> Vec<u64> {
    let (mut at, mut words) = (table.root().raw(), Vec::new());
    for level in (0..levels).rev() {
        if at > LAST_TABLE {
            break;
        }
        let index = (iova >> (12 + 9 * level)) & 0x1ff;
        let word = memory.read_u64(HostPhys::new(at + 8 * index)).expect("table memory");
        words.push(word);
        at = word & 0x000f_ffff_ffff_f000;
    }
    words
}

fn attributes(words: &[u64]) -> Vec<u64> {
    words.iter().map(|word| word & !0x000f_ffff_ffff_f000).collect()
}

#[test]
fn second_stage_words_match_the_figure() {
    let memory = SparseMemory::new(1 << 30);
    let config = Config::new(Levels::Four).leaf_sizes(LeafSizes::ALL);
    let table = PageTable::new(SecondStage::default(), config, &memory).expect("memory");
    let map = |iova, phys, len, perms| table.map(&memory, Iova::new(iova), HostPhys::new(phys), len, perms);

    map(0x7f_1234_5000, 0xab_cdef_0000, 0x1000, Perms::READ_WRITE).expect("free");
    let words = path(&table, &memory, 4, 0x7f_1234_5000);
    assert_eq!(attributes(&words), [3, 3, 3, 3]);
    assert_eq!(words[3], 0xab_cdef_0003);

    map(0x7f_1234_6000, 0x5000, 0x1000, Perms::READ).expect("free");
    assert_eq!(path(&table, &memory, 4, 0x7f_1234_6000)[3], 0x5001);
    map(0x7f_1234_7000, 0x5000, 0x1000, Perms::WRITE).expect("free");
    assert_eq!(path(&table, &memory, 4, 0x7f_1234_7000)[3], 0x5002);

    map(0x40_0000_0000, 0x1_0020_0000, 0x20_0000, Perms::READ_WRITE).expect("free");
    assert_eq!(path(&table, &memory, 4, 0x40_0000_0000)[2], 0x1_0020_0083);
    map(0x50_0000_0000, 0xc0_0000_0000, 0x4000_0000, Perms::READ).expect("free");
    assert_eq!(path(&table, &memory, 4, 0x50_0000_0000)[1], 0xc0_0000_0081);
    table.free(&memory);
    memory.assert_clean();
}

#[test]
fn snoop_control_is_bit_11_of_leaves_only() {
    let memory = SparseMemory::new(1 << 30);
    let table = PageTable::new(
        SecondStage::default().force_snoop(),
        Config::new(Levels::Three),
        &memory,
    )
    .expect("memory");
    table
        .map(&memory, Iova::new(0x1000), HostPhys::new(0x9000), 0x1000, Perms::WRITE)
        .expect("free");
    let words = path(&table, &memory, 3, 0x1000);
    assert_eq!((attributes(&words[..2]), words[2]), (vec![3, 3], 0x9802));
}

#[test]
fn first_stage_words_match_the_processor_format() {
    let memory = SparseMemory::new(1 << 30);
    let config = Config::new(Levels::Five).leaf_sizes(LeafSizes::ALL);
    let table = PageTable::new(FirstStage::default(), config, &memory).expect("memory");
    let map = |iova, phys, len, perms| table.map(&memory, Iova::new(iova), HostPhys::new(phys), len, perms);

    // P, U/S and R/W; A everywhere, D on leaves, so that hardware need not set them.
    map(0x00ab_cdef_0123_4000, 0x7000, 0x1000, Perms::READ_WRITE).expect("free");
    let words = path(&table, &memory, 5, 0x00ab_cdef_0123_4000);
    assert_eq!((attributes(&words[..4]), words[4]), (vec![0x27; 4], 0x7067));
    map(0x00ab_cdef_0123_5000, 0x8000, 0x1000, Perms::READ).expect("free");
    assert_eq!(path(&table, &memory, 5, 0x00ab_cdef_0123_5000)[4], 0x8065);
    map(0x20_0000, 0x40_0000, 0x20_0000, Perms::WRITE).expect("free");
    assert_eq!(
        path(&table, &memory, 5, 0x20_0000)[3],
        0x40_00e7,
        "writing alone cannot be expressed"
    );
    let upper_half = map(1 << 56, 0x7000, 0x1000, Perms::READ);
    assert!(
        matches!(upper_half, Err(MapError::OutsideAperture { .. })),
        "{upper_half:?}"
    );

    let tracking = PageTable::new(FirstStage::default().track_dirty(), config, &memory).expect("memory");
    tracking
        .map(&memory, Iova::new(0), HostPhys::new(0x8000), 0x1000, Perms::READ_WRITE)
        .expect("free");
    assert_eq!(path(&tracking, &memory, 5, 0)[4], 0x8007);
}
