//! Saving and restoring: what goes on, and what is refused.

use iommu_testkit::raw::{self, descriptor, translation_type};
use iommu_types::{SourceId, SystemMemory};
use proptest::prelude::*;
use vtd_model::{Profile, RestoreError, Unit};
use vtd_spec::register::{GlobalCommand, offset};

use crate::rig::{DID, NIC, Rig, STATUS, spec};

/// Replaces the unit by its restored copy.
fn reload(rig: &mut Rig) {
    let saved = rig.unit.save();
    rig.unit = Unit::restore(*rig.unit.config(), &saved).expect("its own bytes");
    assert_eq!(rig.unit.save(), saved);
}

#[test]
fn a_unit_reloaded_at_every_step_behaves_as_one_that_was_not() {
    let run = |reloads: bool| {
        let mut rig = Rig::new(spec().profile(Profile::Silicon).fault_records(2));
        let mut seen = Vec::new();
        let pause = |rig: &mut Rig| {
            if reloads {
                reload(rig);
            }
        };
        rig.enable_queue();
        rig.write64(offset::RTADDR, rig.root);
        rig.write32(
            offset::GCMD,
            (1 << 26) | GlobalCommand::DEFAULT.with_srtp(true).raw_value(),
        );
        pause(&mut rig);
        rig.settle();
        rig.command(|c| c.with_te(true));
        pause(&mut rig);
        let top = rig.tables.page();
        rig.context(NIC, translation_type::UNTRANSLATED, top, 2, DID);
        rig.map(top, 0x1000, 0x5000);
        seen.push(rig.host(NIC, 0x1000));
        rig.enqueue(&[
            descriptor::IOTLB_GLOBAL,
            descriptor::wait_status(STATUS, 1),
            descriptor::WAIT_INTERRUPT,
            [0xF, 0],
            descriptor::wait_status(STATUS, 2),
        ]);
        rig.write64(offset::IQT, 0x50);
        for _ in 0..8 {
            pause(&mut rig);
            let _ = rig.unit.step(rig.memory);
            seen.push(rig.peek(STATUS));
            seen.push(rig.read64(offset::IQH));
            seen.push(rig.host(NIC, 0x1000));
            let _ = rig.read(0x99, 0x1000);
        }
        pause(&mut rig);
        rig.tables
            .put_words(crate::rig::QUEUE + 0x30, &descriptor::CONTEXT_GLOBAL);
        rig.write32(offset::FSTS, 0x10);
        rig.settle();
        pause(&mut rig);
        seen.extend(
            (0..rig.unit.window_len())
                .step_by(4)
                .map(|at| u64::from(rig.read32(at))),
        );
        seen.push(rig.peek(STATUS));
        rig.write32(offset::IECTL, 0);
        pause(&mut rig);
        seen.push(rig.unit.take_message().map_or(0, |message| u64::from(message.data) + 1));
        seen
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn outstanding_drains_and_device_invalidations_are_asked_for_again() {
    let mut rig = Rig::new(spec().two_phase_waits(true).device_tlb(true));
    rig.enable_queue();
    rig.submit(&[
        descriptor::IOTLB_GLOBAL,
        descriptor::wait_status(STATUS, 1),
        descriptor::device_tlb_all(NIC),
    ]);
    let token = rig.unit.take_drain().expect("asked for");
    reload(&mut rig);
    assert_eq!(rig.unit.take_drain(), Some(token));
    rig.unit.drained(rig.memory, token);
    assert_eq!(rig.peek(STATUS), 1);
    let message = rig.unit.take_device_invalidation().expect("a message");
    reload(&mut rig);
    assert_eq!(rig.unit.take_device_invalidation(), Some(message));
    rig.unit
        .complete_device_invalidation(rig.memory, SourceId::from_raw(NIC), message.tag);
    assert_eq!(rig.fault_status().raw_value(), 0);
}

#[test]
fn protected_regions_survive() {
    let mut rig = Rig::new(spec().protected_memory(true));
    rig.write32(offset::PLMBASE, 0x40_0000);
    rig.write32(offset::PLMLIMIT, 0x40_0000);
    rig.write32(offset::PMEN, 1 << 31);
    reload(&mut rig);
    assert!(rig.read(NIC, 0x40_0000).is_err());
}

#[test]
fn bytes_of_another_kind_form_or_unit_are_refused() {
    let config = spec().build().expect("consistent");
    let saved = Unit::new(config).save();
    let restore = |bytes: &[u8]| Unit::restore(config, bytes).err();
    assert_eq!(restore(&saved), None);
    assert_eq!(restore(b"ELF"), Some(RestoreError::NotAUnit));
    let mut newer = saved.clone();
    newer[4] = 3;
    assert_eq!(restore(&newer), Some(RestoreError::Version(3)));
    assert_eq!(
        restore(&saved[..saved.len() - 1]),
        Some(RestoreError::Truncated(saved.len() - 1))
    );
    let longer = [&saved[..], &[0]].concat();
    assert_eq!(restore(&longer), Some(RestoreError::Trailing(1)));
    let other = spec().caching_mode(true).build().expect("consistent");
    let refused = Unit::restore(other, &saved).err();
    assert!(
        matches!(
            refused,
            Some(RestoreError::OtherUnit {
                register: "CAP_REG",
                ..
            })
        ),
        "{refused:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Bytes from anywhere: refused, or a unit that works without panic.
    #[test]
    fn damaged_bytes_never_panic(
        damage in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..40),
        cut in any::<u16>(),
        keep in any::<bool>(),
    ) {
        let mut rig = Rig::legacy(spec().device_tlb(true).protected_memory(true));
        rig.submit(&[descriptor::device_tlb_all(NIC), descriptor::wait_status(STATUS, 1), [0xF, 0]]);
        let mut bytes = rig.unit.save();
        for (at, value) in damage {
            let len = bytes.len();
            // The identity is left alone in half of the cases, so that the rest is reached.
            let at = usize::from(at) % len;
            if at >= 42 || !keep {
                bytes[at] = value;
            }
        }
        if cut % 4 == 0 {
            bytes.truncate(usize::from(cut) % bytes.len());
        }
        if let Ok(unit) = Unit::restore(*rig.unit.config(), &bytes) {
            rig.unit = unit;
            let _ = rig.read(NIC, 0x1000);
            let _ = rig.interrupt(NIC, raw::remappable_address(3, false), 0);
            rig.write64(offset::IQT, 0x100);
            rig.write32(offset::FSTS, 0x71);
            while let Some(message) = rig.unit.take_device_invalidation() {
                rig.unit.complete_device_invalidation(rig.memory, message.source, message.tag);
            }
            rig.settle();
            let _ = rig.unit.take_message();
            let _ = rig.memory.read_u64(iommu_types::HostPhys::new(0));
        }
    }
}
