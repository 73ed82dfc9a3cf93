use super::*;
use crate::SparseMemory;

#[test]
fn legacy_entries_match_the_published_examples() {
    assert_eq!(legacy_root_entry(0x123_4000), [0x123_4001, 0]);
    assert_eq!(
        legacy_context_entry(translation_type::UNTRANSLATED, 0xabc000, 2, 5),
        [0x00ab_c001, 0x502]
    );
}

#[test]
fn a_second_stage_leaf_lies_where_the_address_bits_say() {
    let memory = SparseMemory::new(1 << 24);
    let mut tables = RawTables::new(&memory, 0x10_0000);
    let root = tables.page();
    let leaf = tables.second_stage(root, 4, 0x0000_8080_6050_4000, 0x55_5000, 1, SS_READ);
    assert_eq!(leaf, 0x10_3000 + 8 * 0x104);
    assert_eq!(tables.get(leaf), 0x55_5001);
    assert_eq!(tables.get(root + 8 * 0x101), 0x10_1003);
    assert_eq!(tables.get(0x10_1000 + 8), 0x10_2003);
    assert_eq!(tables.get(0x10_2000 + 8 * 0x102), 0x10_3003);
    let large = tables.second_stage(root, 4, 0x4000_0000, 0x80_0000, 2, SS_READ | SS_WRITE);
    assert_eq!(tables.get(large), 0x80_0083);
}

#[test]
fn context_entries_of_one_bus_share_a_table() {
    let memory = SparseMemory::new(1 << 24);
    let mut tables = RawTables::new(&memory, 0x10_0000);
    let root = tables.page();
    let one = tables.legacy_context(root, 0x0210, legacy_context_entry(2, 0, 2, 1));
    let two = tables.legacy_context(root, 0x02ff, legacy_context_entry(2, 0, 2, 1));
    assert_eq!((one, two), (0x10_1100, 0x10_1ff0));
    assert_eq!(tables.get(root + 0x20), 0x10_1001);
}
