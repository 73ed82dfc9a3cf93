//! The queue in scalable mode, abort-DMA mode, device-TLBs (VT-d §6.5.2, §4.3).

use iommu_testkit::raw::descriptor;
use iommu_types::{Iova, Pasid, SourceId};
use vtd_model::{DeviceInvalidation, PasidScope, Response};
use vtd_spec::register::{QueueError, offset};

use super::{Bench, full, read};
use crate::rig::{NIC, QUEUE, Rig, STATUS};

#[test]
fn narrow_queues_and_wrong_types_stop_in_scalable_mode() {
    let mut rig = Rig::new(full());
    rig.enable_queue();
    rig.set_root(rig.root | 1 << 10);
    rig.write64(offset::IQT, 0x10);
    assert_eq!(rig.queue_error().error(), QueueError::INVALID_WIDTH);
    // In legacy mode a wide queue is served, but not the types of scalable mode.
    for (words, error) in [
        (descriptor::IOTLB_GLOBAL, None),
        (descriptor::PASID_GLOBAL, Some(QueueError::INVALID_TYPE)),
    ] {
        let mut rig = Rig::scalable(full().enhanced_root_pointer(true));
        rig.set_root(rig.root);
        rig.submit(&[words]);
        assert_eq!(rig.fault_status().iqe().then(|| rig.queue_error().error()), error);
    }
    for words in [
        // Granularities that do not exist, reserved bits.
        [6, 0],
        [6 | 1 << 4, 0],
        [7 | 2 << 4, 0],
        [7 | 3 << 4 | 1 << 6, 0],
        [6 | 2 << 4 | 1 << 52, 0],
    ] {
        let mut rig = Rig::scalable(full());
        rig.submit(&[words]);
        assert_eq!(rig.queue_error().error(), QueueError::RESERVED_FIELD, "{words:x?}");
    }
    // The upper half of a 256-bit descriptor is reserved.
    let mut rig = Rig::scalable(full());
    rig.tables.put_words(QUEUE, &[descriptor::IOTLB_GLOBAL[0], 0, 1, 0]);
    rig.write64(offset::IQT, 0x20);
    assert_eq!(rig.queue_error().error(), QueueError::RESERVED_FIELD);
    // Page group responses and host permission tables are not supported.
    for kind in [9, 0xA] {
        let mut rig = Rig::scalable(full());
        rig.submit(&[[kind, 0]]);
        assert_eq!(rig.queue_error().error(), QueueError::INVALID_TYPE);
    }
}

#[test]
pub(crate) fn abort_dma_mode_blocks_every_request() {
    let mut rig = Rig::scalable(full().enhanced_root_pointer(true));
    rig.set_root(3 << 10);
    assert_eq!(rig.fault(NIC, 0x1000), (0x33, "RTA.4"));
    let fault = rig.dma(&read(1, 0x1000)).expect_err("blocked");
    assert_eq!((fault.reason.0, fault.response), (0x33, Response::UnsupportedRequest));
    rig.invalidate(&[descriptor::IOTLB_GLOBAL]);
}

#[test]
fn device_tlb_invalidations_hold_up_the_wait_until_the_device_answers() {
    let mut bench = Bench::new(full());
    let rig = &mut bench.rig;
    let source = SourceId::from_raw(NIC);
    rig.submit(&[
        descriptor::device_tlb_all(NIC),
        descriptor::pasid_device_tlb_all(NIC, 7),
        descriptor::wait_status(STATUS, 1),
    ]);
    assert_eq!(rig.peek(STATUS), 0);
    let first = rig.unit.take_device_invalidation().expect("a message");
    let everything = DeviceInvalidation {
        tag: first.tag,
        source,
        pasid: None,
        first: Iova::ZERO,
        order: 52,
    };
    assert_eq!(first, everything);
    let second = rig.unit.take_device_invalidation().expect("a message");
    assert_eq!(second.pasid, Pasid::new(7).map(PasidScope::One));
    assert_eq!(rig.unit.take_device_invalidation(), None);
    rig.unit.complete_device_invalidation(rig.memory, source, second.tag);
    assert_eq!(rig.peek(STATUS), 0);
    rig.unit.complete_device_invalidation(rig.memory, source, first.tag);
    assert_eq!(rig.peek(STATUS), 1);
    assert_eq!(rig.fault_status().raw_value(), 0);
}

#[test]
fn an_unexpected_completion_is_an_error_that_does_not_stop_the_queue() {
    let mut bench = Bench::new(full());
    let rig = &mut bench.rig;
    rig.unit
        .complete_device_invalidation(rig.memory, SourceId::from_raw(0x99), 0);
    assert!(rig.fault_status().ice());
    assert_eq!(rig.queue_error().completion_source().raw(), 0x99);
    rig.submit(&[descriptor::wait_status(STATUS, 4)]);
    assert_eq!(rig.peek(STATUS), 4);
    rig.write32(offset::FSTS, 1 << 5);
    assert_eq!(rig.fault_status().raw_value(), 0);
}

#[test]
fn a_time_out_stops_the_queue_and_the_pending_wait_never_completes() {
    let mut bench = Bench::new(full());
    let rig = &mut bench.rig;
    let source = SourceId::from_raw(NIC);
    rig.submit(&[
        descriptor::device_tlb_page(NIC, 0x1000),
        descriptor::wait_status(STATUS, 1),
    ]);
    let message = rig.unit.take_device_invalidation().expect("a message");
    assert_eq!((message.first.raw(), message.order), (0x1000, 0));
    rig.unit.time_out_device_invalidation(source, message.tag);
    assert!(rig.fault_status().ite());
    assert_eq!(rig.queue_error().timeout_source(), source);
    rig.submit(&[descriptor::wait_status(STATUS + 8, 2)]);
    assert_eq!(rig.peek(STATUS + 8), 0, "nothing is fetched");
    rig.write32(offset::FSTS, 1 << 6);
    assert_eq!((rig.peek(STATUS), rig.peek(STATUS + 8)), (0, 2));
}

#[test]
fn the_queue_stands_still_while_all_tags_are_in_use() {
    let mut bench = Bench::new(full());
    let rig = &mut bench.rig;
    rig.submit(&[descriptor::device_tlb_all(NIC); 40]);
    assert_eq!(rig.read64(offset::IQH), 32 * 32);
    let message = rig.unit.take_device_invalidation().expect("a message");
    rig.unit
        .complete_device_invalidation(rig.memory, message.source, message.tag);
    assert_eq!(rig.read64(offset::IQH), 33 * 32);
}
