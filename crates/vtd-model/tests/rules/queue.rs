//! The invalidation queue (VT-d §6.5.2, §11.4.9).

use iommu_testkit::raw;
use vtd_model::{EventMessage, EventSource, Unit};
use vtd_spec::register::{QueueError, offset};

use crate::rig::{QUEUE, Rig, STATUS, spec};

fn queue() -> Rig {
    let mut rig = Rig::new(spec());
    rig.enable_queue();
    rig
}

/// Submits one descriptor that stops the queue, and tells why.
fn error_of(rig: &mut Rig, words: [u64; 2]) -> QueueError {
    rig.submit(&[words]);
    assert!(rig.fault_status().iqe(), "{words:x?}");
    rig.queue_error().error()
}

#[test]
fn a_wait_writes_its_status_and_the_head_follows() {
    let mut rig = queue();
    rig.tables.put(STATUS, u64::MAX);
    rig.submit(&[
        raw::descriptor::CONTEXT_GLOBAL,
        raw::descriptor::IOTLB_GLOBAL,
        raw::descriptor::INTERRUPT_GLOBAL,
        raw::descriptor::wait_status(STATUS, 7),
    ]);
    assert_eq!(rig.peek(STATUS), 0xFFFF_FFFF_0000_0007, "four bytes");
    assert_eq!(rig.read64(offset::IQH), 0x40);
    let counters = rig.unit.counters();
    assert_eq!((counters.descriptors, counters.waits), (4, 1));
    assert_eq!(
        (
            counters.invalidations.context,
            counters.invalidations.iotlb,
            counters.invalidations.interrupt
        ),
        (1, 1, 1)
    );
}

#[test]
fn the_ring_wraps() {
    let mut rig = queue();
    for turn in 0..300 {
        rig.submit(&[raw::descriptor::wait_status(STATUS, turn)]);
        assert_eq!(rig.peek(STATUS), u64::from(turn));
    }
    assert_eq!(rig.read64(offset::IQH), (300 % 256) * 16);
}

#[test]
fn nothing_is_fetched_while_the_queue_is_off_and_a_tail_set_before_is_served_at_once() {
    let mut rig = Rig::new(spec());
    rig.write64(offset::IQA, QUEUE);
    rig.submit(&[raw::descriptor::wait_status(STATUS, 9)]);
    assert_eq!(rig.peek(STATUS), 0);
    rig.command(|c| c.with_qie(true));
    assert_eq!(rig.peek(STATUS), 9);
    assert_eq!(rig.read64(offset::IQH), 0x10);
    rig.command(|c| c.with_qie(false));
    assert_eq!((rig.read64(offset::IQH), rig.read64(offset::IQT)), (0, 0x10));
}

#[test]
fn a_queue_address_takes_effect_when_the_queue_is_enabled() {
    let mut rig = queue();
    rig.write64(offset::IQA, 0x7000);
    rig.submit(&[raw::descriptor::wait_status(STATUS, 3)]);
    assert_eq!(rig.peek(STATUS), 3);
    assert_eq!(rig.read64(offset::IQA), 0x7000);
}

#[test]
fn unknown_types_stop_the_queue_at_the_descriptor() {
    // Types of other modes, of missing features, and none.
    for kind in [0u64, 3, 6, 7, 8, 9, 0xA, 0xF, 1 | 1 << 9, 5 | 4 << 9] {
        let mut rig = queue();
        assert_eq!(error_of(&mut rig, [kind, 0]), QueueError::INVALID_TYPE, "{kind:x}");
        assert_eq!(rig.read64(offset::IQH), 0);
    }
}

#[test]
fn reserved_bits_and_values_stop_the_queue() {
    let [context, _] = raw::descriptor::CONTEXT_GLOBAL;
    let [iotlb, _] = raw::descriptor::IOTLB_GLOBAL;
    let [page, address] = raw::descriptor::iotlb_pages(5, 0x1000, 0, false);
    let [entries, _] = raw::descriptor::interrupt_entries(0, 0);
    let [wait, at] = raw::descriptor::wait_status(STATUS, 1);
    for words in [
        [context | 1 << 6, 0],
        [context, 1],
        [context & !0x30, 0],
        [iotlb | 1 << 40, 0],
        [iotlb & !0x30, 0],
        [page, address | 1 << 11],
        // AM = 19 with MAMV = 18, and the largest.
        [page, address | 19],
        [page, address | 63],
        [entries | 1 << 20, 0],
        // IM = 16 with MHMV = 15.
        [entries | 16 << 27, 0],
        [wait | 1 << 8, at],
        [wait, at | 1],
        // Page-request drain without the capability.
        [wait | 1 << 7, at],
    ] {
        let mut rig = queue();
        assert_eq!(error_of(&mut rig, words), QueueError::RESERVED_FIELD, "{words:x?}");
    }
}

#[test]
fn page_selective_without_the_capability_stops_the_queue() {
    let mut rig = Rig::new(spec().page_selective(None));
    rig.enable_queue();
    assert_eq!(
        error_of(&mut rig, raw::descriptor::iotlb_pages(5, 0x1000, 0, false)),
        QueueError::RESERVED_FIELD
    );
}

#[test]
fn a_tail_outside_the_queue_stops_it_without_a_fetch() {
    for tail in [0x1000u64, 0x1010, 0x7_FFF0] {
        let mut rig = queue();
        rig.write64(offset::IQT, tail);
        assert_eq!(rig.queue_error().error(), QueueError::TAIL_OUT_OF_RANGE);
        assert_eq!((rig.read64(offset::IQH), rig.read64(offset::IQT)), (0, tail));
        assert_eq!(rig.unit.counters().descriptors, 0);
    }
}

#[test]
fn wide_descriptors_without_scalable_mode_stop_the_queue() {
    let mut rig = Rig::new(spec());
    rig.write64(offset::IQA, QUEUE | 1 << 11 | 1);
    rig.command(|c| c.with_qie(true));
    rig.write64(offset::IQT, 0x20);
    assert_eq!(rig.queue_error().error(), QueueError::INVALID_WIDTH);
    // A misaligned tail is found first.
    let mut rig = Rig::new(spec());
    rig.write64(offset::IQA, QUEUE | 1 << 11 | 1);
    rig.command(|c| c.with_qie(true));
    rig.write64(offset::IQT, 0x10);
    assert_eq!(rig.queue_error().error(), QueueError::TAIL_MISALIGNED);
}

#[test]
fn the_reserved_table_mode_stops_the_queue() {
    let mut rig = queue();
    rig.set_root(rig.root | 2 << 10);
    assert_eq!(
        error_of(&mut rig, raw::descriptor::CONTEXT_GLOBAL),
        QueueError::INVALID_TABLE_MODE
    );
}

#[test]
fn an_unreadable_queue_stops_it() {
    let mut rig = queue();
    rig.break_bus(QUEUE, 16);
    rig.write64(offset::IQT, 0x10);
    assert_eq!(rig.queue_error().error(), QueueError::FETCH_FAILED);
}

#[test]
fn a_stopped_queue_goes_on_from_the_repaired_descriptor_when_the_error_is_cleared() {
    let mut rig = queue();
    rig.submit(&[
        raw::descriptor::wait_status(STATUS, 1),
        [0xF, 0],
        raw::descriptor::wait_status(STATUS, 2),
    ]);
    assert_eq!((rig.peek(STATUS), rig.read64(offset::IQH)), (1, 0x10));
    // A new tail fetches nothing.
    rig.submit(&[raw::descriptor::wait_status(STATUS, 3)]);
    assert_eq!(rig.read64(offset::IQH), 0x10);
    rig.tables.put_words(QUEUE + 0x10, &raw::descriptor::CONTEXT_GLOBAL);
    rig.write32(offset::FSTS, 0x10);
    assert_eq!(rig.fault_status().raw_value(), 0);
    assert_eq!((rig.peek(STATUS), rig.read64(offset::IQH)), (3, 0x40));
}

#[test]
fn a_queue_error_raises_the_fault_event_once() {
    let mut rig = queue();
    rig.write32(offset::FEDATA, 0x41);
    rig.write32(offset::FECTL, 0);
    rig.submit(&[[0xF, 0]]);
    let message = EventMessage {
        source: EventSource::Fault,
        address: 0,
        data: 0x41,
    };
    assert_eq!(rig.unit.take_message(), Some(message));
    // Not repaired: the error comes back, and so does the event.
    rig.write32(offset::FSTS, 0x10);
    assert!(rig.fault_status().iqe());
    assert_eq!(rig.unit.take_message(), Some(message));
    assert_eq!(rig.unit.take_message(), None);
}

#[test]
fn wait_with_interrupt_sets_its_status_and_sends_one_message() {
    let mut rig = queue();
    rig.write32(offset::IEDATA, 0x51);
    rig.write32(offset::IEADDR, 0xFEE0_2000);
    rig.write32(offset::IECTL, 0);
    let both = [
        raw::descriptor::WAIT_INTERRUPT[0] | raw::descriptor::wait_status(STATUS, 6)[0],
        raw::descriptor::wait_status(STATUS, 6)[1],
    ];
    rig.submit(&[both, raw::descriptor::WAIT_INTERRUPT]);
    assert_eq!((rig.peek(STATUS), rig.read32(offset::ICS)), (6, 1));
    let message = EventMessage {
        source: EventSource::InvalidationCompletion,
        address: 0xFEE0_2000,
        data: 0x51,
    };
    assert_eq!(rig.unit.take_message(), Some(message));
    assert_eq!(rig.unit.take_message(), None, "IWC was set already");
    rig.write32(offset::ICS, 1);
    assert_eq!(rig.read32(offset::ICS), 0);
    rig.submit(&[raw::descriptor::WAIT_INTERRUPT]);
    assert_eq!(rig.unit.take_message(), Some(message));
}

#[test]
fn a_masked_completion_event_is_pending_until_its_status_is_cleared() {
    let mut rig = queue();
    rig.submit(&[raw::descriptor::WAIT_INTERRUPT]);
    assert_eq!((rig.read32(offset::ICS), rig.read32(offset::IECTL)), (1, 0xC000_0000));
    rig.write32(offset::ICS, 1);
    assert_eq!(rig.read32(offset::IECTL), 0x8000_0000);
}

#[test]
fn a_fence_and_an_empty_wait_complete() {
    let mut rig = queue();
    rig.submit(&[
        raw::descriptor::WAIT_FENCE,
        [5, 0],
        raw::descriptor::wait_status(STATUS, 1),
    ]);
    assert_eq!(rig.peek(STATUS), 1);
}

#[test]
fn a_status_address_that_is_not_memory_does_not_stop_the_queue() {
    let mut rig = queue();
    rig.submit(&[
        raw::descriptor::wait_status(1 << 45, 1),
        raw::descriptor::wait_status(STATUS, 2),
    ]);
    assert_eq!(rig.peek(STATUS), 2);
    assert_eq!(rig.unit.counters().misuses, 1);
    // Without SW address and data are ignored.
    rig.submit(&[[5 | 0xFFFF_FFFF << 32, !3], raw::descriptor::wait_status(STATUS, 3)]);
    assert_eq!(rig.peek(STATUS), 3);
}

#[test]
fn the_largest_queue_is_served_and_one_write_costs_a_bounded_number_of_descriptors() {
    let mut rig = Rig::new(spec());
    let base = rig.tables.pages(128);
    for slot in 0..32_768 {
        rig.tables.put_words(base + slot * 16, &raw::descriptor::IOTLB_GLOBAL);
    }
    rig.write64(offset::IQA, base | 7);
    rig.command(|c| c.with_qie(true));
    rig.write64(offset::IQT, 32_767 * 16);
    assert_eq!(rig.unit.counters().descriptors, 4096);
    let mut steps = 0;
    while rig.unit.step(rig.memory) {
        steps += 1;
    }
    assert_eq!(steps, 32_767 - 4096);
    assert_eq!(rig.read64(offset::IQH), 32_767 * 16);
}

#[test]
fn a_two_phase_wait_completes_only_when_the_drain_is_reported() {
    let mut rig = Rig::new(spec().two_phase_waits(true));
    rig.enable_queue();
    // Nothing to drain: completes at once.
    rig.submit(&[raw::descriptor::wait_status(STATUS, 1)]);
    assert_eq!((rig.peek(STATUS), rig.unit.take_drain()), (1, None));
    rig.submit(&[
        raw::descriptor::IOTLB_GLOBAL,
        raw::descriptor::wait_status(STATUS, 2),
        raw::descriptor::wait_status(STATUS, 3),
    ]);
    assert_eq!(rig.peek(STATUS), 1);
    let token = rig.unit.take_drain().expect("asked for");
    assert_eq!(rig.unit.take_drain(), None, "told once");
    rig.unit.drained(rig.memory, vtd_model::DrainToken(token.0 + 1));
    assert_eq!(rig.peek(STATUS), 1, "another token");
    rig.unit.drained(rig.memory, token);
    assert_eq!((rig.peek(STATUS), rig.unit.take_drain()), (3, None));
    rig.unit.drained(rig.memory, token);
    // Each invalidation needs its own.
    rig.submit(&[raw::descriptor::IOTLB_GLOBAL, raw::descriptor::wait_status(STATUS, 4)]);
    assert_eq!(rig.peek(STATUS), 3);
    assert_ne!(rig.unit.take_drain(), Some(token));
}

#[test]
fn switching_the_queue_off_forgets_a_pending_drain() {
    let mut rig = Rig::new(spec().two_phase_waits(true));
    rig.enable_queue();
    rig.submit(&[raw::descriptor::IOTLB_GLOBAL, raw::descriptor::wait_status(STATUS, 2)]);
    let token = rig.unit.take_drain().expect("asked for");
    rig.command(|c| c.with_qie(false));
    rig.unit.drained(rig.memory, token);
    assert_eq!(rig.peek(STATUS), 0);
}

#[test]
fn a_unit_can_be_cloned_mid_queue_and_both_go_on() {
    let mut rig = queue();
    rig.submit(&[[0xF, 0], raw::descriptor::wait_status(STATUS, 2)]);
    let mut copy: Unit = rig.unit.clone();
    rig.tables.put_words(QUEUE, &raw::descriptor::CONTEXT_GLOBAL);
    copy.write(rig.memory, offset::FSTS, vtd_model::AccessWidth::Dword, 0x10);
    assert_eq!(rig.peek(STATUS), 2);
    assert!(rig.fault_status().iqe());
}
