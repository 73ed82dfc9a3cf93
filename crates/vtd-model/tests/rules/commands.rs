//! Global commands and register-based invalidation (VT-d §11.4.4, §11.4.6).

use iommu_testkit::raw::translation_type;
use vtd_model::AccessWidth;
use vtd_spec::encoding::{ContextGranularity, IotlbGranularity};
use vtd_spec::register::{ContextCommand, GlobalCommand, InvalidateAddress, IotlbInvalidate, offset};

use crate::rig::{DID, NIC, Rig, spec};

#[test]
fn each_command_shows_in_the_status_when_it_is_done() {
    let mut rig = Rig::new(spec());
    rig.set_root(rig.root);
    assert_eq!(rig.read32(offset::GSTS), 0x4000_0000);
    rig.command(|c| c.with_te(true));
    assert_eq!(rig.read32(offset::GSTS), 0xC000_0000);
    rig.enable_queue();
    rig.command(|c| c.with_sirtp(true));
    rig.command(|c| c.with_ire(true));
    rig.command(|c| c.with_cfi(true));
    assert_eq!(rig.read32(offset::GSTS), 0xC780_0000);
    rig.command(|c| c.with_te(false));
    rig.command(|c| c.with_ire(false));
    rig.command(|c| c.with_qie(false));
    rig.command(|c| c.with_cfi(false));
    // The pointers stay in use.
    assert_eq!(rig.read32(offset::GSTS), 0x4100_0000);
    assert_eq!(rig.unit.counters().misuses, 0);
    assert_eq!(rig.read32(offset::GCMD), 0);
}

#[test]
fn two_commands_in_one_write_are_ignored() {
    let mut rig = Rig::new(spec());
    let both = GlobalCommand::DEFAULT.with_srtp(true).with_te(true);
    rig.write32(offset::GCMD, both.raw_value());
    assert_eq!(rig.read32(offset::GSTS), 0);
    assert_eq!(rig.unit.counters().misuses, 1);
}

#[test]
fn translation_without_a_root_pointer_is_refused() {
    let mut rig = Rig::new(spec());
    rig.command(|c| c.with_te(true));
    assert!(!rig.status().tes());
    rig.command(|c| c.with_ire(true));
    assert!(!rig.status().ires());
    assert_eq!(rig.unit.counters().misuses, 2);
}

#[test]
fn a_root_address_takes_effect_when_it_is_set_not_when_it_is_written() {
    let (mut rig, top) = Rig::with_domain(spec());
    rig.map(top, 0x1000, 0x5000);
    rig.write64(offset::RTADDR, 0x7000);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
    assert_eq!(rig.read64(offset::RTADDR), 0x7000);
}

#[test]
fn write_buffer_flush_completes_and_exists_only_with_the_capability() {
    for rwbf in [true, false] {
        let mut rig = Rig::new(spec().write_buffer_flush(rwbf));
        rig.command(|c| c.with_wbf(true));
        assert!(!rig.status().wbfs());
        assert_eq!(rig.unit.counters().misuses, 0);
    }
}

#[test]
fn commands_of_missing_features_do_nothing() {
    let mut rig = Rig::new(
        spec()
            .interrupt_remapping(false)
            .extended_interrupts(false)
            .queued_invalidation(false),
    );
    for change in [
        |c: GlobalCommand| c.with_ire(true),
        |c: GlobalCommand| c.with_sirtp(true),
        |c: GlobalCommand| c.with_cfi(true),
        |c: GlobalCommand| c.with_qie(true),
        |c: GlobalCommand| c.with_sfl(true),
    ] {
        rig.command(change);
        assert_eq!(rig.read32(offset::GSTS), 0);
    }
}

/// A unit without queue, the NIC's page cached, the tables changed behind its back.
fn stale() -> Rig {
    let mut rig = Rig::new(spec());
    rig.set_root(rig.root);
    rig.command(|c| c.with_te(true));
    let top = rig.tables.page();
    rig.context(NIC, translation_type::UNTRANSLATED, top, 2, DID);
    rig.map(top, 0x1000, 0x5000);
    rig.host(NIC, 0x1000);
    rig.map(top, 0x1000, 0x6000);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
    rig
}

#[test]
fn the_iotlb_register_invalidates_and_reports_what_it_did() {
    let at = spec()
        .build()
        .expect("ok")
        .extended_capability()
        .invalidate_address_offset();
    for (granularity, domain, page, dropped) in [
        (IotlbGranularity::Global, 0, 0, true),
        (IotlbGranularity::Domain, DID, 0, true),
        (IotlbGranularity::Domain, 7, 0, false),
        (IotlbGranularity::Page, DID, 0x1000, true),
        (IotlbGranularity::Page, DID, 0x2000, false),
    ] {
        let mut rig = stale();
        rig.write64(at, page);
        let go = IotlbInvalidate::DEFAULT
            .with_ivt(true)
            .with_iirg(granularity)
            .with_did(domain);
        rig.write64(at + 8, go.raw_value());
        let done = IotlbInvalidate::new_with_raw_value(rig.read64(at + 8));
        assert!(!done.ivt());
        assert_eq!(done.iaig(), granularity);
        assert_eq!(rig.host(NIC, 0x1000) == 0x6000, dropped, "{granularity:?} {domain}");
    }
}

#[test]
fn wrong_iotlb_commands_report_no_granularity() {
    let at = spec()
        .build()
        .expect("ok")
        .extended_capability()
        .invalidate_address_offset();
    let mut rig = stale();
    rig.write64(at + 8, IotlbInvalidate::DEFAULT.with_ivt(true).raw_value());
    assert_eq!(rig.read64(at + 8), 0);
    let too_wide = InvalidateAddress::new_with_raw_value(19);
    rig.write64(at, too_wide.raw_value());
    assert_eq!(rig.read64(at), 0, "write only");
    let go = IotlbInvalidate::DEFAULT
        .with_ivt(true)
        .with_iirg(IotlbGranularity::Page)
        .with_did(DID);
    rig.write64(at + 8, go.raw_value());
    let done = IotlbInvalidate::new_with_raw_value(rig.read64(at + 8));
    assert_eq!((done.ivt(), done.iaig()), (false, IotlbGranularity::None));
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
}

#[test]
fn a_page_command_without_page_selective_invalidation_acts_on_the_domain() {
    let mut rig = Rig::new(spec().page_selective(None));
    let at = rig.unit.config().extended_capability().iotlb_offset();
    let go = IotlbInvalidate::DEFAULT
        .with_ivt(true)
        .with_iirg(IotlbGranularity::Page);
    rig.write64(at, go.raw_value());
    assert_eq!(
        IotlbInvalidate::new_with_raw_value(rig.read64(at)).iaig(),
        IotlbGranularity::Domain
    );
}

#[test]
fn the_context_register_invalidates_and_starts_with_its_upper_half() {
    let mut rig = stale();
    let other = rig.tables.page();
    rig.map(other, 0x1000, 0x9000);
    rig.context(NIC, translation_type::UNTRANSLATED, other, 2, 9);
    let go = ContextCommand::DEFAULT
        .with_icc(true)
        .with_cirg(ContextGranularity::Device)
        .with_did(DID)
        .with_sid(NIC);
    let (low, high) = (go.raw_value() as u32, (go.raw_value() >> 32) as u32);
    rig.write32(offset::CCMD, low);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
    rig.write32(offset::CCMD + 4, high);
    assert_eq!(rig.host(NIC, 0x1000), 0x9000);
    let done = ContextCommand::new_with_raw_value(rig.read64(offset::CCMD));
    assert_eq!(
        (done.icc(), done.caig(), done.did(), done.sid()),
        (false, ContextGranularity::Device, DID, 0)
    );
}

#[test]
fn register_commands_do_nothing_with_the_queue_enabled_or_from_version_6_on() {
    let go = ContextCommand::DEFAULT
        .with_icc(true)
        .with_cirg(ContextGranularity::Global)
        .raw_value();
    for rig in [&mut Rig::legacy(spec()), &mut Rig::new(spec().version((6, 0)))] {
        rig.write64(offset::CCMD, go);
        let done = ContextCommand::new_with_raw_value(rig.read64(offset::CCMD));
        assert_eq!((done.icc(), done.caig()), (false, ContextGranularity::None));
        assert_eq!(rig.unit.counters().invalidations.context, 0);
    }
}

#[test]
fn a_64_bit_write_over_two_registers_acts_as_two_writes() {
    let mut rig = Rig::new(spec());
    // FECTL and FEDATA.
    rig.unit
        .write(rig.memory, offset::FECTL, AccessWidth::Qword, 0x0000_0031_8000_0000);
    assert_eq!(
        (rig.read32(offset::FECTL), rig.read32(offset::FEDATA)),
        (0x8000_0000, 0x31)
    );
    assert_eq!(rig.unit.read(offset::FECTL, AccessWidth::Qword), 0x0000_0031_8000_0000);
}

#[test]
fn protected_memory_blocks_dma_whether_or_not_it_is_translated() {
    let mut rig = Rig::new(spec().protected_memory(true));
    // The granule shows where all-ones were written.
    rig.write32(offset::PLMBASE, u32::MAX);
    assert_eq!(rig.read32(offset::PLMBASE), 0xFFE0_0000);
    rig.write32(offset::PLMBASE, 0x0040_0000);
    rig.write32(offset::PLMLIMIT, 0x0060_0000);
    rig.write64(offset::PHMBASE, 0x1_0000_0000);
    rig.write64(offset::PHMLIMIT, 0x1_0000_0000);
    assert!(rig.read(NIC, 0x0040_0000).is_ok());
    rig.write32(offset::PMEN, 1 << 31);
    assert_eq!(rig.read32(offset::PMEN), 1 << 31 | 1);
    for (address, passes) in [
        (0x003F_F000, true),
        (0x0040_0000, false),
        (0x007F_F000, false),
        (0x0080_0000, true),
        (0x1_0000_0000, false),
        (0x1_001F_F000, false),
        (0x1_0020_0000, true),
    ] {
        let got = rig.write(NIC, address);
        assert_eq!(got.is_ok(), passes, "{address:x}");
        // No answer reaches into a region.
        assert!(got.is_err() || got.expect("passes").page.len() == Some(0x1000));
    }
    // Translated too, and without a fault record.
    rig.set_root(rig.root);
    rig.command(|c| c.with_te(true));
    let top = rig.tables.page();
    rig.context(NIC, translation_type::UNTRANSLATED, top, 2, DID);
    rig.map(top, 0x1000, 0x0041_0000);
    rig.tables.second_stage(top, 4, 0x4000_0000, 0, 3, 3);
    assert_eq!(
        rig.read(NIC, 0x1000).expect_err("blocked").reason,
        vtd_model::Fault::SILENT
    );
    assert!(rig.read(NIC, 0x4000_0000).is_ok());
    assert!(
        rig.read(NIC, 0x4050_0000).is_err(),
        "the same cached page, protected part"
    );
    assert_eq!(rig.fault_status().raw_value(), 0);
    rig.write32(offset::PMEN, 0);
    assert_eq!(rig.read32(offset::PMEN), 0);
    assert!(rig.read(NIC, 0x1000).is_ok());
    // A limit below the base switches the region off.
    rig.write32(offset::PLMLIMIT, 0);
    rig.write32(offset::PMEN, 1 << 31);
    assert!(rig.read(NIC, 0x1000).is_ok());
}
