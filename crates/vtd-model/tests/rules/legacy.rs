//! Legacy-mode translation: every condition of VT-d §7.1.3 that it can meet, and what passes.

use iommu_testkit::raw::{self, translation_type};
use iommu_types::{Access, HostPhys, Iova, Perms, SourceId};
use vtd_model::{Fault, Request, RequestKind, Response};

use crate::rig::{DID, NIC, Rig, spec};

const RW: u64 = raw::SS_READ | raw::SS_WRITE;

fn nic(address: u64, len: u64, access: Access) -> Request {
    Request::new(SourceId::from_raw(NIC), Iova::new(address), len, access)
}

#[test]
fn with_translation_off_requests_pass_unchanged_and_ats_is_refused_silently() {
    let mut rig = Rig::new(spec());
    let pass = rig.read(NIC, 0x1234_5678).expect("passes");
    assert_eq!(pass.phys, HostPhys::new(0x1234_5678));
    assert!(!pass.page.contains(Iova::new(0xFEE0_0000)));
    let fault = rig
        .dma(&nic(0x1000, 8, Access::Read).with_kind(RequestKind::Translation))
        .expect_err("refused");
    assert_eq!(
        (fault.reason, fault.response),
        (Fault::SILENT, Response::UnsupportedRequest)
    );
    assert_eq!(rig.fault_status().raw_value(), 0);
}

#[test]
pub(crate) fn root_entry_conditions_block_with_their_codes() {
    let mut rig = Rig::legacy(spec());
    assert_eq!(rig.fault(NIC, 0x1000), (0x01, "LRT.2"));
    rig.tables.put_words(rig.root, &[0x2003, 0]);
    assert_eq!(rig.fault(NIC, 0x1000), (0x0A, "LRT.3"));
    rig.tables.put_words(rig.root, &[0x2001, 1]);
    assert_eq!(rig.fault(NIC, 0x1000), (0x0A, "LRT.3"));
    rig.tables.put_words(rig.root, &[0x2001 | 1 << 48, 0]);
    assert_eq!(rig.fault(NIC, 0x1000), (0x0A, "LRT.3"));
    rig.break_bus(rig.root, 16);
    assert_eq!(rig.fault(NIC, 0x1000), (0x08, "LRT.1"));
    // Another bus has its own entry.
    assert_eq!(rig.fault(0x0100, 0x1000), (0x01, "LRT.2"));
}

#[test]
pub(crate) fn context_entry_conditions_block_with_their_codes() {
    let mut rig = Rig::legacy(spec());
    let top = rig.tables.page();
    let at = rig.tables.legacy_context_at(rig.root, NIC);
    assert_eq!(rig.fault(NIC, 0x1000), (0x02, "LCT.2"));
    let good = raw::legacy_context_entry(translation_type::UNTRANSLATED, top, 2, DID);
    for (words, outcome) in [
        ([good[0] | 1 << 4, good[1]], (0x0B, "LCT.3")),
        ([good[0], good[1] | 1 << 7], (0x0B, "LCT.3")),
        ([good[0], good[1] | 1 << 24], (0x0B, "LCT.3")),
        ([good[0] | 1 << 48, good[1]], (0x0B, "LCT.3")),
        ([good[0] | 3 << 2, good[1]], (0x03, "LCT.4.2")),
        // No device-TLB on this unit.
        ([good[0] | 1 << 2, good[1]], (0x03, "LCT.4.2")),
        // 5-level tables are not supported, the others do not exist.
        ([good[0], good[1] & !7 | 3], (0x03, "LCT.4.1")),
        ([good[0], good[1] & !7], (0x03, "LCT.4.1")),
        ([good[0], good[1] & !7 | 7], (0x03, "LCT.4.1")),
    ] {
        rig.tables.put_words(at, &words);
        assert_eq!(rig.fault(NIC, 0x1000), outcome, "{words:x?}");
    }
    rig.break_bus(at, 8);
    assert_eq!(rig.fault(NIC, 0x1000), (0x09, "LCT.1"));
}

#[test]
fn domain_bits_above_the_width_are_reserved() {
    let (mut rig, top) = Rig::with_domain(spec().domain_id_bits(8));
    rig.map(top, 0x1000, 0x5000);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
    rig.context(0x0020, translation_type::UNTRANSLATED, top, 2, 0x100);
    assert_eq!(rig.fault(0x0020, 0x1000), (0x0B, "LCT.3"));
}

#[test]
fn ignored_bits_of_a_context_entry_do_not_block() {
    let (mut rig, top) = Rig::with_domain(spec());
    rig.map(top, 0x1000, 0x5000);
    let at = rig.tables.legacy_context_at(rig.root, NIC);
    rig.tables.put(at + 8, rig.peek(at + 8) | 0x78);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
}

#[test]
fn each_page_size_maps_its_range() {
    let (mut rig, top) = Rig::with_domain(spec());
    for (level, iova, phys, size) in [
        (1, 0x1000, 0x77_7000, 0x1000),
        (2, 0x4020_0000, 0x0120_0000, 0x20_0000),
        (3, 0x80_4000_0000, 0x4000_0000, 0x4000_0000),
    ] {
        rig.tables.second_stage(top, 4, iova, phys, level, RW);
        let got = rig.write(NIC, iova + 0x123).expect("mapped");
        assert_eq!(got.phys.raw(), phys + 0x123);
        assert_eq!((got.page.first().raw(), got.page.last().raw()), (iova, iova + size - 1));
        assert_eq!(got.perms, Perms::READ_WRITE);
        // The last byte comes from the cache.
        assert_eq!(rig.host(NIC, iova + size - 1), phys + size - 1);
    }
}

#[test]
fn three_and_five_level_tables_are_walked() {
    let mut rig = Rig::legacy(spec().five_levels(true));
    for (aw, sid, iova) in [(1, 0x08, 0x7F_FFFF_F000), (3, 0x10, 0x1FF_FFFF_FFFF_F000)] {
        let top = rig.tables.page();
        rig.context(sid, translation_type::UNTRANSLATED, top, aw, sid);
        rig.tables.second_stage(top, raw::levels_of_aw(aw), iova, 0x9000, 1, RW);
        assert_eq!(rig.host(sid, iova + 8), 0x9008);
    }
    assert_eq!(rig.fault(0x08, 1 << 39), (0x04, "LGN.1.1"));
    assert_eq!(rig.fault(0x10, 1 << 57), (0x04, "LGN.1.1"));
}

#[test]
pub(crate) fn an_address_above_the_guest_width_is_blocked_even_if_the_tables_are_wider() {
    let builder = spec().host_address_width(40).guest_address_width(Some(42));
    let (mut rig, top) = Rig::with_domain(builder);
    rig.map(top, (1 << 42) - 0x1000, 0x9000);
    assert_eq!(rig.host(NIC, (1 << 42) - 1), 0x9FFF);
    assert_eq!(rig.fault(NIC, 1 << 42), (0x04, "LGN.1.1"));
}

#[test]
pub(crate) fn unmapped_pages_fault_by_what_was_asked() {
    let (mut rig, top) = Rig::with_domain(spec());
    assert_eq!(rig.fault(NIC, 0x1000), (0x06, "LGN.3"));
    assert_eq!(rig.write(NIC, 0x1000).expect_err("blocked").reason.0, 0x05);
    assert_eq!(
        rig.dma(&nic(0x1000, 8, Access::Atomic)).expect_err("blocked").reason.0,
        0x05
    );
    // The entry above exists, the leaf does not.
    rig.map(top, 0x2000, 0x5000);
    assert_eq!(rig.fault(NIC, 0x1000), (0x06, "LGN.3"));
}

#[test]
fn permissions_of_all_levels_count_together() {
    let (mut rig, top) = Rig::with_domain(spec());
    rig.tables.second_stage(top, 4, 0x1000, 0x5000, 1, raw::SS_READ);
    rig.tables.second_stage(top, 4, 0x2000, 0x6000, 1, raw::SS_WRITE);
    assert_eq!(rig.write(NIC, 0x1000).expect_err("read-only").reason.0, 0x05);
    assert_eq!(rig.fault(NIC, 0x2000), (0x06, "LGN.3"));
    assert_eq!(
        rig.dma(&nic(0x1000, 4, Access::Atomic))
            .expect_err("read-only")
            .reason
            .0,
        0x05
    );
    assert_eq!(
        rig.dma(&nic(0x2000, 4, Access::Atomic))
            .expect_err("write-only")
            .reason
            .0,
        0x06
    );
    assert!(rig.write(NIC, 0x2000).is_ok());
    assert!(rig.read(NIC, 0x1000).is_ok());
    // A read-only table above a writable page.
    let page = rig.map(top, 0x4000_0000, 0x7000);
    let above = rig.tables.entry_at(top, 4, 0x4000_0000, 2, RW);
    rig.tables.put(above, rig.peek(above) & !raw::SS_WRITE);
    assert_eq!(rig.write(NIC, 0x4000_0000).expect_err("read-only").reason.0, 0x05);
    assert_eq!(rig.peek(page) & RW, RW);
}

#[test]
fn a_cached_read_only_page_still_refuses_a_write() {
    let (mut rig, top) = Rig::with_domain(spec());
    rig.tables.second_stage(top, 4, 0x1000, 0x5000, 1, raw::SS_READ);
    rig.read(NIC, 0x1000).expect("readable");
    assert_eq!(rig.write(NIC, 0x1000).expect_err("read-only").reason.0, 0x05);
    assert_eq!(rig.unit.counters().walks.iotlb.hits, 1);
}

#[test]
fn zero_length_reads_of_write_only_pages_follow_the_capability() {
    for (zlr, passes) in [(true, true), (false, false)] {
        let (mut rig, top) = Rig::with_domain(spec().zero_length_reads(zlr));
        rig.tables.second_stage(top, 4, 0x2000, 0x6000, 1, raw::SS_WRITE);
        assert_eq!(rig.dma(&nic(0x2000, 0, Access::Read)).is_ok(), passes);
        assert_eq!(
            rig.dma(&nic(0x3000, 0, Access::Read)).expect_err("unmapped").reason.0,
            0x06
        );
    }
}

#[test]
pub(crate) fn reserved_bits_of_present_paging_entries_block() {
    let (mut rig, top) = Rig::with_domain(spec().snoop_control(false).pages_1g(false));
    for (iova, level, extra) in [
        (0x1000, 1, 1u64 << 51),
        (0x2000, 1, 1 << 48),
        (0x3000, 1, 1 << 11),
        (0x4000, 1, 1 << 62),
        (0x4020_0000, 2, 1 << 12),
        (0x80_0000_0000, 3, 0),
    ] {
        rig.tables.second_stage(top, 4, iova, extra, level, RW);
        assert_eq!(rig.fault(NIC, iova), (0x0C, "LSS.2"), "{iova:x}");
    }
    // Non-leaf entries too.
    rig.map(top, 0x100_0000_0000, 0x5000);
    let above = rig.tables.entry_at(top, 4, 0x100_0000_0000, 4, RW);
    rig.tables.put(above, rig.peek(above) | 1 << 7);
    assert_eq!(rig.fault(NIC, 0x100_0000_0000), (0x0C, "LSS.2"));
    // In an entry that is not present they mean nothing.
    rig.tables.second_stage(top, 4, 0x5000, 1 << 51, 1, 0);
    assert_eq!(rig.fault(NIC, 0x5000), (0x06, "LGN.3"));
}

#[test]
pub(crate) fn unreadable_tables_fault_by_level() {
    let (mut rig, top) = Rig::with_domain(spec());
    rig.map(top, 0x1000, 0x5000);
    let leaf = rig.tables.entry_at(top, 4, 0x1000, 1, RW);
    rig.break_bus(leaf, 8);
    assert_eq!(rig.fault(NIC, 0x1000), (0x07, "LSS.1"));
    rig.break_bus(top, 8);
    assert_eq!(rig.fault(NIC, 0x1000), (0x03, "LCT.4.3"));
    // A table beyond memory, within the host width.
    let above = rig.tables.entry_at(top, 4, 0x80_0000_0000, 4, RW);
    rig.tables.put(above, 1 << 40 | RW);
    assert_eq!(rig.fault(NIC, 0x80_0000_0000), (0x07, "LSS.1"));
}

#[test]
fn a_table_that_points_to_itself_ends_after_its_levels() {
    let (mut rig, top) = Rig::with_domain(spec());
    rig.tables.put(top, top | RW);
    let got = rig.read(NIC, 0).expect("the fourth level is a leaf");
    assert_eq!(got.phys.raw(), top);
    assert_eq!(rig.unit.counters().walks.reads.second_stage, 4);
}

#[test]
pub(crate) fn a_mapping_into_the_interrupt_range_is_blocked() {
    let (mut rig, top) = Rig::with_domain(spec());
    rig.map(top, 0x1000, 0xFEE0_0000);
    assert_eq!(rig.write(NIC, 0x1000).expect_err("blocked").reason.0, 0x0E);
    assert_eq!(rig.fault(NIC, 0x1000), (0x0E, "LGN.4"));
}

#[test]
pub(crate) fn only_aligned_double_word_writes_may_enter_the_interrupt_range() {
    let (mut rig, _) = Rig::with_domain(spec());
    for (address, len, access) in [
        (0xFEE0_0000, 8, Access::Write),
        (0xFEE0_0002, 4, Access::Write),
        (0xFEEF_FFFC, 4, Access::Read),
        (0xFEE0_0000, 4, Access::Atomic),
        (0xFEE0_0000, 2, Access::Write),
    ] {
        assert_eq!(rig.dma(&nic(address, len, access)).expect_err("blocked").reason.0, 0x29);
    }
    // Not a memory request at all: it belongs to the interrupt side.
    let fault = rig.dma(&nic(0xFEE0_0000, 4, Access::Write)).expect_err("not memory");
    assert_eq!(fault.reason, Fault::SILENT);
    assert!(rig.dma(&nic(0xFEE0_0000, 0, Access::Read)).is_ok());
}

#[test]
pub(crate) fn pass_through_checks_the_host_width_only() {
    let mut rig = Rig::legacy(spec().host_address_width(40));
    rig.context(NIC, translation_type::PASS_THROUGH, 0, 2, DID);
    assert_eq!(rig.host(NIC, 0xFF_FFFF_FFFF), 0xFF_FFFF_FFFF);
    assert_eq!(rig.fault(NIC, 1 << 40), (0x04, "LGN.1.3"));
    let page = rig.read(NIC, 0x1000).expect("passes").page;
    assert!(page.last().raw() < 0xFEE0_0000);
    // A width that the unit does not have is wrong here too.
    rig.context(0x0020, translation_type::PASS_THROUGH, 0, 3, DID);
    assert_eq!(rig.fault(0x0020, 0x1000), (0x03, "LCT.4.1"));
    let mut without = Rig::legacy(spec().pass_through(false));
    without.context(NIC, translation_type::PASS_THROUGH, 0, 2, DID);
    assert_eq!(without.fault(NIC, 0x1000), (0x03, "LCT.4.2"));
}

#[test]
pub(crate) fn requests_with_pasid_are_blocked_in_legacy_mode() {
    let (mut rig, top) = Rig::with_domain(spec());
    rig.map(top, 0x1000, 0x5000);
    let pasid = iommu_types::Pasid::new(1).expect("20 bits");
    let fault = rig
        .dma(&nic(0x1000, 8, Access::Read).with_pasid(pasid))
        .expect_err("blocked");
    assert_eq!(fault.reason.0, 0x31);
}

#[test]
pub(crate) fn reserved_table_modes_block_every_request() {
    for ttm in [1u64, 2, 3] {
        let (mut rig, top) = Rig::with_domain(spec().enhanced_root_pointer(true));
        rig.map(top, 0x1000, 0x5000);
        rig.set_root(rig.root | ttm << 10);
        assert_eq!(rig.fault(NIC, 0x1000).0, 0x30);
        let status = rig.fault_status();
        assert!(status.ppf());
    }
}

#[test]
fn fault_processing_disable_blocks_without_a_record() {
    let (mut rig, top) = Rig::with_domain(spec());
    let at = rig.tables.legacy_context_at(rig.root, NIC);
    rig.tables.put(at, rig.peek(at) | 2);
    let fault = rig.read(NIC, 0x1000).expect_err("blocked");
    assert!(!fault.recorded);
    assert_eq!(rig.fault_status().raw_value(), 0);
    assert_eq!(rig.unit.counters().faults_suppressed, 1);
    // Also when the entry is not present.
    let other = rig.tables.legacy_context_at(rig.root, 0x20);
    rig.tables.put(other, 2);
    assert!(!rig.read(0x20, 0x1000).expect_err("blocked").recorded);
    // And from the cache.
    rig.map(top, 0x2000, 0x5000);
    rig.host(NIC, 0x2000);
    assert!(!rig.read(NIC, 0x1000).expect_err("blocked").recorded);
    // Faults that are not qualified are recorded all the same.
    rig.break_bus(at, 8);
    assert!(rig.read(0x18 + 0x100, 0x1000).expect_err("blocked").recorded);
}

#[test]
fn with_a_device_tlb_translation_requests_get_permissions_instead_of_faults() {
    let mut rig = Rig::legacy(spec().device_tlb(true));
    let top = rig.tables.page();
    rig.context(NIC, translation_type::DEVICE_TLB, top, 2, DID);
    rig.tables
        .second_stage(top, 4, 0x1000, 0x5000, 1, raw::SS_READ | 1 << 11);
    let ask = |address| nic(address, 8, Access::Read).with_kind(RequestKind::Translation);
    let got = rig.dma(&ask(0x1000)).expect("completes");
    assert_eq!(
        (got.phys.raw(), got.perms, got.no_snoop_forbidden),
        (0x5000, Perms::READ, true)
    );
    for unmapped in [0x2000, 1 << 50] {
        let got = rig.dma(&ask(unmapped)).expect("completes");
        assert_eq!((got.perms, got.untranslated_only), (Perms::NONE, false));
    }
    let got = rig.dma(&ask(0xFEE0_0000)).expect("completes");
    assert_eq!((got.perms, got.untranslated_only), (Perms::WRITE, true));
    assert_eq!(rig.fault_status().raw_value(), 0);
    // Non-recoverable: reserved bits are a completer abort, and recorded.
    rig.tables.second_stage(top, 4, 0x3000, 1 << 51, 1, RW);
    let fault = rig.dma(&ask(0x3000)).expect_err("blocked");
    assert_eq!((fault.reason.0, fault.response), (0x0C, Response::CompleterAbort));
    assert_eq!(rig.record(0).at(), vtd_spec::encoding::AddressType::TranslationRequest);
}

#[test]
pub(crate) fn translated_requests_pass_only_where_the_context_allows_them() {
    let mut rig = Rig::legacy(spec().device_tlb(true).host_address_width(40));
    let top = rig.tables.page();
    rig.context(NIC, translation_type::DEVICE_TLB, top, 2, DID);
    rig.context(0x20, translation_type::UNTRANSLATED, top, 2, DID);
    rig.context(0x28, translation_type::PASS_THROUGH, top, 2, DID);
    let translated = |sid, address| {
        Request::write(SourceId::from_raw(sid), Iova::new(address), 8).with_kind(RequestKind::Translated)
    };
    assert_eq!(rig.dma(&translated(NIC, 0x7000)).expect("passes").phys.raw(), 0x7000);
    for sid in [0x20, 0x28] {
        let fault = rig.dma(&translated(sid, 0x7000)).expect_err("blocked");
        assert_eq!((fault.reason.0, fault.response), (0x0D, Response::UnsupportedRequest));
    }
    assert_eq!(rig.dma(&translated(NIC, 1 << 40)).expect_err("too high").reason.0, 0x04);
    assert_eq!(
        rig.dma(&translated(NIC, 0xFEE0_0000)).expect_err("interrupts").reason.0,
        0x0E
    );
}

#[test]
fn snooping_is_forced_by_the_leaf_only() {
    let (mut rig, top) = Rig::with_domain(spec());
    rig.map(top, 0x1000, 0x5000);
    rig.tables.second_stage(top, 4, 0x2000, 0x6000, 1, RW | 1 << 11);
    assert!(rig.read(NIC, 0x1000).expect("mapped").snooped);
    assert!(
        !rig.dma(&nic(0x1000, 8, Access::Read).with_no_snoop())
            .expect("mapped")
            .snooped
    );
    assert!(
        rig.dma(&nic(0x2000, 8, Access::Read).with_no_snoop())
            .expect("mapped")
            .snooped
    );
}
