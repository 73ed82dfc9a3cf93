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

#[test]
fn scalable_entries_match_the_published_examples() {
    assert_eq!(pasid_second_stage(0xabc000, 2, 5)[..2], [0x00ab_c089, 5]);
    let first = pasid_first_stage(0xdef000, 4, 6);
    assert_eq!(first[..3], [0x41, 6, 0x00de_f000]);
    assert_eq!(scalable_context_entry(0x11_1000, 0, 0, 0)[0], 0x11_1001);
}

#[test]
fn interrupt_formats_match_the_published_examples() {
    assert_eq!(
        irte(0x31, 0x700, exact_source(0x18)),
        [0x0000_0700_0031_0001, 0x0004_0018]
    );
    assert_eq!(remappable_address(0x1234, false), 0xfee2_4690);
    assert_eq!(remappable_address(0x8005, true), 0xfee0_00bc);
    // PDA 31:6 in bits 63:38, PDA 63:32 in bits 127:96.
    assert_eq!(
        irte_posted(0x41, 0x12_3456_7fc0, true, 0),
        [0x3456_7fc0_0041_c001, 0x12_0000_0000]
    );
}

#[test]
fn descriptors_match_the_published_examples() {
    use super::descriptor as d;
    assert_eq!(d::context_device(5, 0x18, 0), [0x0000_0018_0005_0031, 0]);
    assert_eq!(d::iotlb_pages(5, 0x20_0000, 9, false), [0x0005_00f2, 0x20_0009]);
    assert_eq!(d::interrupt_entries(0x40, 3), [0x0000_0040_1800_0014, 0]);
    assert_eq!(d::wait_status(0x5000, 2), [0x0000_0002_0000_0025, 0x5000]);
    assert_eq!(d::pasid_iotlb_pages(5, 0x123, 0, 0)[0], 0x0000_0123_0005_0036);
    assert_eq!(d::pasid_cache(5, 0x123)[0], 0x0000_0123_0005_0017);
    assert_eq!(d::CONTEXT_GLOBAL, [0x11, 0]);
    assert_eq!(d::IOTLB_GLOBAL, [0xd2, 0]);
    assert_eq!(d::iotlb_domain(5), [0x5_00e2, 0]);
    assert_eq!(d::device_tlb_all(0x18), [0x0000_0018_0000_0003, 0x7fff_ffff_ffff_f001]);
    assert_eq!(
        d::pasid_device_tlb_all(0x18, 1),
        [0x0000_0001_0018_0008, 0x7fff_ffff_ffff_f800]
    );
    assert_eq!(d::wide(d::WAIT_FENCE), [0x45, 0, 0, 0]);
}
