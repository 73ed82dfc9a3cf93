//! Fault records, overflow and the fault event (VT-d §7.2, §7.3, §11.4.7).

use iommu_testkit::raw::translation_type;
use iommu_types::{Access, Iova, SourceId};
use vtd_model::{EventMessage, EventSource, Request};
use vtd_spec::register::{FaultedRequest, offset};

use crate::rig::{DID, NIC, Rig, spec};

fn unmasked(rig: &mut Rig) {
    rig.write32(offset::FEDATA, 0x31);
    rig.write32(offset::FEADDR, 0xFEE0_1000);
    rig.write32(offset::FEUADDR, 0x100);
    rig.write32(offset::FECTL, 0);
}

const MESSAGE: EventMessage = EventMessage {
    source: EventSource::Fault,
    address: 0x100_FEE0_1000,
    data: 0x31,
};

#[test]
fn a_record_says_who_asked_what_where_and_why() {
    let mut rig = Rig::legacy(spec());
    let source = SourceId::from_raw(0xFF18);
    for (index, access, request) in [
        (0, Access::Read, FaultedRequest::Read),
        (1, Access::Write, FaultedRequest::Write),
        (2, Access::Atomic, FaultedRequest::Atomic),
    ] {
        let _ = rig.dma(&Request::new(source, Iova::new(0x7FFF_FFFF_F123), 8, access));
        let record = rig.record(index);
        assert!(record.f());
        assert_eq!((record.source(), record.request()), (source, request));
        assert_eq!(record.address(), Iova::new(0x7FFF_FFFF_F000));
        assert_eq!((record.reason().0, record.pasid()), (0x01, None));
    }
    // Bits above the widest address width are recorded as 0.
    let _ = rig.read(0xFF18, 0xFFFF_0000_0000_1000);
    assert_eq!(rig.record(3).address(), Iova::new(0x1000));
    // Every byte: SID, reason, T1, F, and nothing else.
    assert_eq!(rig.record(3).to_words(), [0x1000, 0xC000_0001_0000_FF18]);
}

#[test]
fn records_form_a_ring_and_the_first_pending_one_is_named() {
    let mut rig = Rig::legacy(spec().fault_records(3));
    for sid in 1..=3 {
        let _ = rig.read(sid, 0x1000);
    }
    assert_eq!(rig.fault_status().raw_value(), 2);
    rig.clear_record(0);
    assert_eq!((rig.fault_status().ppf(), rig.fault_status().fri()), (true, 1));
    let _ = rig.read(4, 0x1000);
    assert_eq!(rig.record(0).source().raw(), 4);
    assert_eq!(rig.fault_status().fri(), 1);
    // Out of order.
    rig.clear_record(2);
    assert_eq!(rig.fault_status().fri(), 1);
    rig.clear_record(1);
    assert_eq!(rig.fault_status().fri(), 0);
    rig.clear_record(0);
    assert_eq!(rig.fault_status().raw_value() & 0xFF, 0);
}

#[test]
fn a_full_log_overflows_and_records_nothing_until_overflow_is_cleared() {
    for count in [1u16, 2, 8, 256] {
        let mut rig = Rig::legacy(spec().fault_records(count));
        for sid in 0..=count {
            let _ = rig.read(sid, 0x1000);
        }
        let status = rig.fault_status();
        assert!(status.pfo() && status.ppf());
        assert_eq!(rig.unit.counters().faults_recorded, u64::from(count));
        assert_eq!(rig.unit.counters().faults_dropped, 1);
        rig.clear_record(0);
        let _ = rig.read(0xAAAA, 0x1000);
        assert!(!rig.record(0).f(), "nothing while PFO is set");
        rig.write32(offset::FSTS, 1);
        let _ = rig.read(0xAAAA, 0x1000);
        assert_eq!(rig.record(0).source().raw(), 0xAAAA);
    }
}

#[test]
fn the_first_fault_raises_one_event() {
    let mut rig = Rig::legacy(spec());
    unmasked(&mut rig);
    let _ = rig.read(1, 0x1000);
    assert_eq!(rig.unit.take_message(), Some(MESSAGE));
    assert_eq!(rig.unit.take_message(), None);
    let _ = rig.read(2, 0x1000);
    assert_eq!(rig.unit.take_message(), None, "a status bit was set already");
    rig.clear_record(0);
    rig.clear_record(1);
    let _ = rig.read(3, 0x1000);
    assert_eq!(rig.unit.take_message(), Some(MESSAGE));
    assert_eq!(rig.read32(offset::FECTL), 0);
}

#[test]
fn overflow_alone_raises_no_event() {
    let mut rig = Rig::legacy(spec().fault_records(1));
    unmasked(&mut rig);
    let _ = rig.read(1, 0x1000);
    let _ = rig.unit.take_message();
    let _ = rig.read(2, 0x1000);
    assert!(rig.fault_status().pfo());
    assert_eq!(rig.unit.take_message(), None);
    // And while only overflow is left, a new fault is dropped without an event.
    rig.clear_record(0);
    let _ = rig.read(3, 0x1000);
    assert_eq!(rig.unit.take_message(), None);
}

#[test]
fn a_masked_event_waits_and_leaves_when_the_mask_is_cleared() {
    let mut rig = Rig::legacy(spec());
    unmasked(&mut rig);
    rig.write32(offset::FECTL, 1 << 31);
    let _ = rig.read(1, 0x1000);
    assert_eq!(rig.unit.take_message(), None);
    assert_eq!(rig.read32(offset::FECTL), 0xC000_0000);
    // The message is what the registers hold when it leaves.
    rig.write32(offset::FEDATA, 0x32);
    rig.write32(offset::FECTL, 0);
    assert_eq!(rig.unit.take_message(), Some(EventMessage { data: 0x32, ..MESSAGE }));
    assert_eq!(rig.read32(offset::FECTL), 0);
}

#[test]
fn a_pending_event_is_forgotten_when_the_last_cause_is_cleared() {
    let mut rig = Rig::legacy(spec());
    let _ = rig.read(1, 0x1000);
    let _ = rig.read(2, 0x1000);
    assert_eq!(rig.read32(offset::FECTL), 0xC000_0000);
    rig.clear_record(0);
    assert_eq!(rig.read32(offset::FECTL), 0xC000_0000);
    rig.clear_record(1);
    assert_eq!(rig.read32(offset::FECTL), 0x8000_0000);
    rig.write32(offset::FECTL, 0);
    assert_eq!(rig.unit.take_message(), None);
}

#[test]
fn only_f_of_a_record_can_be_written_and_only_by_one() {
    let mut rig = Rig::legacy(spec());
    let _ = rig.read(1, 0x1000);
    let before = rig.record(0);
    let at = rig.unit.config().capability().fault_record_offset(0);
    rig.write64(at, u64::MAX);
    rig.write64(at + 8, u64::MAX >> 1);
    assert_eq!(rig.record(0), before);
    rig.write64(at + 8, 1 << 63);
    assert_eq!(rig.record(0), before.with_f(false));
}

#[test]
fn the_index_restarts_when_nothing_is_remapped() {
    let mut rig = Rig::legacy(spec());
    let _ = rig.read(1, 0x1000);
    rig.clear_record(0);
    rig.command(|c| c.with_te(false));
    rig.command(|c| c.with_te(true));
    let _ = rig.read(2, 0x1000);
    assert_eq!(rig.record(0).source().raw(), 2);
    // Not while interrupts are still remapped.
    rig.clear_record(0);
    rig.command(|c| c.with_sirtp(true));
    rig.command(|c| c.with_ire(true));
    rig.command(|c| c.with_te(false));
    rig.command(|c| c.with_te(true));
    let _ = rig.read(3, 0x1000);
    assert_eq!(rig.record(1).source().raw(), 3);
}

#[test]
fn compression_folds_faults_of_one_source() {
    let mut rig = Rig::legacy(spec().compress_faults(true));
    rig.context(NIC, translation_type::UNTRANSLATED, 0x9_0000, 2, DID);
    for address in [0x1000, 0x2000, 0x3000] {
        let _ = rig.read(NIC, address);
    }
    let _ = rig.read(0x20, 0x1000);
    assert_eq!(rig.record(0).source().raw(), NIC);
    assert_eq!(rig.record(1).source().raw(), 0x20);
    assert_eq!(rig.unit.counters().faults_dropped, 2);
}
