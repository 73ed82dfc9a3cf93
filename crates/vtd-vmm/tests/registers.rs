//! Registers on a bus, interrupts, and guests that mean harm.
#![allow(clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::sync::{Arc, Mutex, OnceLock};

use common::{DEVICE, DOMAIN, Guest, Memory, config, device};
use iommu_testkit::raw::{self, RawTables, descriptor};
use iommu_types::{SourceId, SystemMemory};
use proptest::prelude::*;
use vm_device::bus::MmioAddress;
use vm_device::{DeviceMmio, MutDeviceMmio};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};
use vtd_model::cache::InterruptInvalidation;
use vtd_model::{AccessWidth, EventMessage, EventSource, InterruptRequest, Profile, UnitConfig};
use vtd_spec::register::offset;
use vtd_vmm::{InterruptDropped, Listener, MsiMessage, VmmError, VmmUnit};

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum News {
    Event(EventMessage),
    Entries(InterruptInvalidation, u32),
}

/// Notes what it hears, together with the status word at that moment.
#[derive(Clone, Default)]
struct Notes {
    heard: Arc<Mutex<Vec<News>>>,
    memory: Arc<OnceLock<Arc<Memory>>>,
}

impl Notes {
    fn take(&self) -> Vec<News> {
        core::mem::take(&mut self.heard.lock().expect("not poisoned"))
    }
}

impl Listener for Notes {
    fn event(&self, message: EventMessage) {
        self.heard.lock().expect("not poisoned").push(News::Event(message));
    }
    fn interrupt_entries_changed(&self, what: InterruptInvalidation) {
        let status = self.memory.get().map_or(0, |memory| {
            memory
                .load(GuestAddress(common::STATUS), std::sync::atomic::Ordering::Acquire)
                .expect("memory")
        });
        self.heard
            .lock()
            .expect("not poisoned")
            .push(News::Entries(what, status));
    }
}

/// Its interrupt remapping table: the third page of the tables.
const IRT: u64 = 0x10_2000;

fn entry(guest: &Guest<Notes>, index: u32, words: [u64; 2]) {
    let bus = guest.bus();
    RawTables::new(&bus, 0).irte(IRT, index, words);
}

fn guest() -> (Guest<Notes>, Notes) {
    let notes = Notes::default();
    let guest = Guest::with(config(), notes.clone());
    notes.memory.set(Arc::clone(guest.unit.memory())).expect("once");
    notes.take();
    (guest, notes)
}

fn request(handle: u16) -> InterruptRequest {
    InterruptRequest {
        source: SourceId::from_raw(DEVICE),
        address: raw::remappable_address(handle, false),
        data: 0,
    }
}

#[test]
fn an_interrupt_comes_out_as_the_entry_says() {
    let (guest, _) = guest();
    entry(&guest, 5, raw::irte(0x41, 0x300, raw::exact_source(DEVICE)));
    let expected = MsiMessage {
        address_low: 0xFEE0_3000,
        address_high: 0,
        data: 0x41,
    };
    for _ in 0..2 {
        // Without EIME the destination is 8 bits of the entry, bits 15:8 of the field.
        assert_eq!(
            guest.unit.interrupt(&request(5), |interrupt| interrupt.to_xapic()),
            Ok(Ok(expected))
        );
    }
    let stranger = InterruptRequest {
        source: SourceId::from_raw(DEVICE + 8),
        ..request(5)
    };
    let dropped = guest.unit.interrupt(&stranger, |_| ()).expect_err("validated");
    assert!(matches!(dropped, InterruptDropped::Fault(fault) if fault.reason == vtd_spec::FaultReason(0x26)));
    assert_eq!(guest.unit.counters().faults_recorded, 1);
}

#[test]
fn entries_are_kept_until_they_are_invalidated_and_the_listener_knows_before_the_wait_completes() {
    let (guest, notes) = guest();
    entry(&guest, 5, raw::irte(0x41, 0x300, 0));
    let vector = || guest.unit.interrupt(&request(5), |interrupt| interrupt.vector);
    assert_eq!(vector(), Ok(0x41));
    entry(&guest, 5, raw::irte(0x42, 0x300, 0));
    assert_eq!(vector(), Ok(0x41), "cached");
    guest.invalidate(descriptor::interrupt_entries(5, 0), 1);
    assert_eq!(vector(), Ok(0x42));
    assert_eq!(guest.status(), 1);
    let entries = InterruptInvalidation::Indexes { first: 5, last: 5 };
    assert_eq!(
        notes.take(),
        [News::Entries(entries, 0)],
        "told while the wait was open"
    );
    guest.invalidate(descriptor::INTERRUPT_GLOBAL, 2);
    assert_eq!(notes.take(), [News::Entries(InterruptInvalidation::Global, 1)]);
}

#[test]
fn an_interrupt_under_delivery_holds_the_invalidation_of_its_entry() {
    let (guest, _) = guest();
    entry(&guest, 5, raw::irte(0x41, 0x300, 0));
    guest
        .unit
        .interrupt(&request(5), |_| {
            guest.invalidate(descriptor::INTERRUPT_GLOBAL, 1);
            assert_eq!(guest.status(), 0);
        })
        .expect("present");
    assert_eq!(guest.status(), 1);
}

#[test]
fn the_completion_event_goes_out_when_the_section_closes() {
    let (guest, notes) = guest();
    guest.unit.write(offset::IEADDR, AccessWidth::Dword, 0xFEE0_1000);
    guest.unit.write(offset::IEDATA, AccessWidth::Dword, 0x55);
    guest.unit.write(offset::IECTL, AccessWidth::Dword, 0);
    let section = guest.unit.enter(device());
    guest.submit(&[descriptor::iotlb_domain(DOMAIN), descriptor::WAIT_INTERRUPT]);
    assert_eq!(notes.take(), []);
    drop(section);
    let source = EventSource::InvalidationCompletion;
    assert_eq!(
        notes.take(),
        [News::Event(EventMessage {
            source,
            address: 0xFEE0_1000,
            data: 0x55
        })]
    );
}

#[test]
fn a_fault_event_goes_out_on_the_thread_that_faulted() {
    let (guest, notes) = guest();
    guest.unit.write(offset::FEADDR, AccessWidth::Dword, 0xFEE0_2000);
    guest.unit.write(offset::FEDATA, AccessWidth::Dword, 0x66);
    guest.unit.write(offset::FECTL, AccessWidth::Dword, 0);
    assert!(
        guest
            .unit
            .section(device(), |dma| dma.read_obj::<u8>(GuestAddress(0)))
            .is_err()
    );
    let source = EventSource::Fault;
    assert_eq!(
        notes.take(),
        [News::Event(EventMessage {
            source,
            address: 0xFEE0_2000,
            data: 0x66
        })]
    );
}

#[test]
fn a_bus_reaches_the_registers_and_odd_accesses_do_nothing() {
    let mut guest = Guest::new();
    let base = MmioAddress(0xFED9_0000);
    let mut word = [0; 4];
    DeviceMmio::mmio_read(&guest.unit, base, u64::from(offset::VER), &mut word);
    assert_eq!(word, [0x50, 0, 0, 0]);
    let mut long = [0; 8];
    MutDeviceMmio::mmio_read(&mut guest.unit, base, u64::from(offset::CAP), &mut long);
    assert_eq!(
        u64::from_le_bytes(long),
        guest.unit.read(offset::CAP, AccessWidth::Qword)
    );
    for (at, len) in [
        (0, 1),
        (0, 2),
        (1, 4),
        (2, 4),
        (4, 8),
        (u64::MAX, 4),
        (1 << 40, 8),
        (0, 0),
        (0, 16),
    ] {
        let mut odd = vec![0; len];
        DeviceMmio::mmio_read(&guest.unit, base, at, &mut odd);
        assert!(odd.iter().all(|byte| *byte == 0xFF), "{len} bytes at {at:#x}: {odd:?}");
        DeviceMmio::mmio_write(&guest.unit, base, at, &odd);
        MutDeviceMmio::mmio_write(&mut guest.unit, base, at, &odd);
    }
    assert_eq!(guest.unit.read(offset::GSTS, AccessWidth::Dword) >> 31, 1);
}

#[test]
fn configurations_that_do_not_go_with_threads_are_refused() {
    let memory = || Arc::new(Memory::from_ranges(&[(GuestAddress(0), 4096)]).expect("memory"));
    let plain = UnitConfig::builder().build().expect("consistent");
    assert_eq!(
        VmmUnit::new(plain, memory(), ()).expect_err("refused"),
        VmmError::OnePhaseWaits
    );
    let silicon = UnitConfig::builder()
        .profile(Profile::Silicon)
        .two_phase_waits(true)
        .build()
        .expect("consistent");
    let refused = VmmUnit::new(silicon, memory(), ()).expect_err("refused");
    assert_eq!(refused, VmmError::Asynchronous(Profile::Silicon));
}

#[test]
fn a_queue_full_of_waits_is_carried_out_in_one_write() {
    let guest = Guest::new();
    for turn in 0..4 {
        let descriptors: Vec<_> = (0..127)
            .flat_map(|n| {
                [
                    descriptor::iotlb_domain(DOMAIN),
                    descriptor::wait_status(common::STATUS, turn * 1000 + n),
                ]
            })
            .collect();
        guest.submit(&descriptors);
        assert_eq!(guest.status(), turn * 1000 + 126);
    }
}

#[test]
fn a_broken_queue_stops_and_leaves_translation_working() {
    let guest = Guest::new();
    guest.submit(&[[0xF, 0], descriptor::wait_status(common::STATUS, 9)]);
    assert_eq!(guest.status(), 0);
    assert_eq!(guest.unit.read(offset::FSTS, AccessWidth::Dword) & 0x10, 0x10, "IQE");
    assert!(
        guest
            .unit
            .section(device(), |dma| dma.read_obj::<u8>(GuestAddress(0)))
            .is_err()
    );
}

#[test]
fn a_unit_saved_in_the_middle_of_a_wait_completes_it_where_it_is_restored() {
    let mut guest = Guest::new();
    guest.map(0x7000_0000, 0x20_0000, 1, common::RW);
    let section = guest.unit.enter(device());
    guest.submit(&[
        descriptor::iotlb_domain(DOMAIN),
        descriptor::wait_status(common::STATUS, 1),
        descriptor::wait_status(common::STATUS, 2),
    ]);
    assert_eq!(guest.status(), 0);
    let saved = guest.unit.save();
    let restored = VmmUnit::restore(config(), &saved, Arc::clone(guest.unit.memory()), ()).expect("just saved");
    assert_eq!(guest.status(), 2, "the memory is shared here");
    assert_eq!(
        restored.read(offset::IQH, AccessWidth::Qword),
        restored.read(offset::IQT, AccessWidth::Qword)
    );
    restored
        .section(device(), |dma| dma.write_obj(7u8, GuestAddress(0x7000_0000)))
        .expect("mapped");
    let outside = restored.section(device(), |dma| dma.read_obj::<u8>(GuestAddress(0x7000_1000)));
    assert!(outside.is_err());
    drop(section);
    for len in [0, 1, saved.len() / 2, saved.len() - 1] {
        let cut = VmmUnit::restore(config(), &saved[..len], Arc::clone(guest.unit.memory()), ());
        assert!(matches!(cut, Err(VmmError::Restore(_))), "{len} bytes");
    }
}

#[test]
fn a_wait_stays_open_until_the_device_has_dropped_its_entries() {
    #[derive(Clone, Default)]
    struct Devices(Arc<Mutex<Vec<vtd_model::DeviceInvalidation>>>);
    impl Listener for Devices {
        fn event(&self, _: EventMessage) {}
        fn interrupt_entries_changed(&self, _: InterruptInvalidation) {}
        fn device_tlb_invalidated(&self, what: vtd_model::DeviceInvalidation) -> bool {
            self.0.lock().expect("not poisoned").push(what);
            false
        }
    }
    let config = UnitConfig::builder()
        .two_phase_waits(true)
        .device_tlb(true)
        .build()
        .expect("consistent");
    let devices = Devices::default();
    let guest = Guest::with(config, devices.clone());
    guest.submit(&[
        descriptor::device_tlb_page(DEVICE, 0x7000_0000),
        descriptor::wait_status(common::STATUS, 1),
    ]);
    assert_eq!(guest.status(), 0);
    let asked = devices.0.lock().expect("not poisoned").pop().expect("one message");
    assert_eq!(asked.source, SourceId::from_raw(DEVICE));
    guest.unit.complete_device_invalidation(asked.source, asked.tag);
    assert_eq!(guest.status(), 1);

    // Devices without translations of their own are done at once.
    let guest = Guest::with(config, ());
    guest.submit(&[
        descriptor::device_tlb_page(DEVICE, 0x7000_0000),
        descriptor::wait_status(common::STATUS, 1),
    ]);
    assert_eq!(guest.status(), 1);
}

/// Calls what it is given when it is told about entries.
#[derive(Clone, Default)]
struct Hook(Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>);

impl Listener for Hook {
    fn event(&self, _: EventMessage) {}
    fn interrupt_entries_changed(&self, _: InterruptInvalidation) {
        self.0.get().expect("set")();
    }
}

#[test]
fn a_wait_that_comes_while_the_listener_is_told_completes_afterwards() {
    let hook = Hook::default();
    let guest = Arc::new(Guest::with(config(), hook.clone()));
    let inner = Arc::clone(&guest);
    let set = hook.0.set(Box::new(move || {
        // As another processor would, while routes are being renewed.
        inner.submit(&[descriptor::wait_status(common::STATUS, 1)]);
        assert_eq!(inner.status(), 0);
    }));
    assert!(set.is_ok());
    guest.submit(&[descriptor::INTERRUPT_GLOBAL]);
    assert_eq!(guest.status(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest writes, and whatever is in its memory: no panic, an end, and no hold for ever.
    #[test]
    fn no_sequence_of_accesses_wedges_the_unit(
        accesses in prop::collection::vec((any::<bool>(), 0u64..0x1100, any::<u64>(), any::<bool>()), 1..80),
        garbage in prop::collection::vec(any::<u64>(), 256),
        open in any::<bool>(),
    ) {
        let guest = Guest::new();
        for (at, word) in (0x8_0000u64..).step_by(8).zip(&garbage) {
            guest.bus().write_u64(iommu_types::HostPhys::new(at), *word).expect("memory");
        }
        let section = open.then(|| guest.unit.enter(device()));
        for (wide, at, value, write) in accesses {
            let width = if wide { 8 } else { 4 };
            let at = at & !(width - 1);
            let bytes = &value.to_le_bytes()[..usize::try_from(width).expect("small")];
            if write {
                guest.unit.write_bytes(at, bytes);
            } else {
                guest.unit.read_bytes(at, &mut bytes.to_vec());
            }
            guest.unit.section(device(), |dma| {
                let _ = dma.check_range(GuestAddress(value), 0x3000, Permissions::Read);
                let _ = dma.read_obj::<u64>(GuestAddress(value & 0xFFFF_FFFF));
            });
        }
        drop(section);
        // Nothing is held any more: no command shows as under way.
        let ecap = guest.unit.read(offset::ECAP, AccessWidth::Qword);
        let iotlb = vtd_spec::register::ExtendedCapability::new_with_raw_value(ecap).iotlb_offset();
        prop_assert_eq!(guest.unit.read(iotlb, AccessWidth::Qword) >> 63, 0);
        prop_assert_eq!(guest.unit.read(offset::CCMD, AccessWidth::Qword) >> 63, 0);
    }
}
