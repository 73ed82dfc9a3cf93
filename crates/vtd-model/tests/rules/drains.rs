//! Two-phase completion: nothing shows as complete before accesses in flight are over (VT-d §6.5.1, §6.5.2.9,
//! §11.4.4.1).

use iommu_testkit::raw::{descriptor, translation_type};
use iommu_types::{Pasid, SourceId};
use vtd_model::{DrainToken, Profile, RestoreError, Unit};
use vtd_spec::encoding::{ContextGranularity, IotlbGranularity};
use vtd_spec::register::{
    ContextCommand, GSTS_PERSISTENT, GlobalCommand, IotlbInvalidate, ProtectedMemoryEnable, offset,
};

use crate::rig::{DID, NIC, Rig, STATUS, spec};

/// Reports every drain that is asked for.
fn drain(rig: &mut Rig) {
    while let Some(token) = rig.unit.take_drain() {
        rig.unit.drained(rig.memory, token);
    }
}

/// A command as [`Rig::command`], with the drains that it asks for.
fn command(rig: &mut Rig, change: impl Fn(GlobalCommand) -> GlobalCommand) {
    rig.command(change);
    drain(rig);
}

fn iotlb_at(rig: &Rig) -> u32 {
    rig.unit.config().extended_capability().iotlb_offset()
}

fn context_command() -> ContextCommand {
    ContextCommand::DEFAULT
        .with_icc(true)
        .with_cirg(ContextGranularity::Global)
}

fn iotlb_command() -> IotlbInvalidate {
    IotlbInvalidate::DEFAULT
        .with_ivt(true)
        .with_iirg(IotlbGranularity::Domain)
        .with_did(DID)
}

/// Each kind of descriptor that drops something, for a unit with everything.
fn invalidations() -> [(&'static str, [u64; 2]); 8] {
    let pasid = Pasid::new(3).expect("small");
    [
        ("context", descriptor::CONTEXT_GLOBAL),
        ("IOTLB", descriptor::IOTLB_GLOBAL),
        ("IOTLB pages", descriptor::iotlb_pages(DID, 0x1000, 0, true)),
        ("PASID cache", descriptor::PASID_GLOBAL),
        ("PASID IOTLB", descriptor::pasid_iotlb_all(DID, pasid.raw())),
        ("interrupt entries", descriptor::INTERRUPT_GLOBAL),
        ("device-TLB", descriptor::device_tlb_all(NIC)),
        (
            "device-TLB of a PASID",
            descriptor::pasid_device_tlb_all(NIC, pasid.raw()),
        ),
    ]
}

#[test]
fn a_wait_behind_any_single_invalidation_drains_first() {
    for (name, words) in invalidations() {
        let mut rig = Rig::new(spec().full_scalable_mode().two_phase_waits(true).device_tlb(true));
        rig.wide();
        command(&mut rig, |c| c.with_qie(true));
        rig.set_root(rig.root | 1 << 10);
        drain(&mut rig);
        rig.submit(&[words, descriptor::wait_status(STATUS, 1)]);
        if let Some(message) = rig.unit.take_device_invalidation() {
            rig.unit
                .complete_device_invalidation(rig.memory, SourceId::from_raw(NIC), message.tag);
        }
        assert_eq!(rig.fault_status().raw_value(), 0, "{name}");
        assert_eq!(rig.peek(STATUS), 0, "{name}");
        let token = rig.unit.take_drain();
        rig.unit.drained(rig.memory, token.expect(name));
        assert_eq!(rig.peek(STATUS), 1, "{name}");
        // A wait with nothing before it needs none.
        rig.submit(&[descriptor::wait_status(STATUS, 2)]);
        assert_eq!((rig.peek(STATUS), rig.unit.take_drain()), (2, None), "{name}");
    }
}

#[test]
fn each_global_command_shows_when_its_drain_is_reported() {
    let mut rig = Rig::new(spec().two_phase_waits(true));
    rig.write64(offset::RTADDR, rig.root);
    type Change = fn(GlobalCommand) -> GlobalCommand;
    let commands: [(Change, u32); 6] = [
        (|c| c.with_srtp(true), 0x4000_0000),
        (|c| c.with_te(true), 0xC000_0000),
        (|c| c.with_sirtp(true), 0xC100_0000),
        (|c| c.with_ire(true), 0xC300_0000),
        (|c| c.with_cfi(true), 0xC380_0000),
        (|c| c.with_te(false), 0x4380_0000),
    ];
    for (change, after) in commands {
        let before = rig.read32(offset::GSTS);
        rig.command(change);
        assert_eq!(rig.read32(offset::GSTS), before, "under way");
        let token = rig.unit.take_drain().expect("asked for");
        assert_eq!(rig.unit.take_drain(), None, "told once");
        rig.unit.drained(rig.memory, token);
        assert_eq!(rig.read32(offset::GSTS), after);
    }
    // Nothing in flight depends on the queue or on write buffers.
    rig.command(|c| c.with_qie(true));
    assert!(rig.status().qies());
    assert_eq!(rig.unit.take_drain(), None);
    assert_eq!(rig.unit.counters().misuses, 0);
}

#[test]
fn a_root_pointer_that_is_set_again_shows_as_under_way() {
    let mut rig = Rig::new(spec().two_phase_waits(true));
    rig.set_root(rig.root);
    drain(&mut rig);
    assert!(rig.status().rtps());
    rig.set_root(rig.root);
    assert!(!rig.status().rtps());
    drain(&mut rig);
    assert!(rig.status().rtps());
}

#[test]
fn a_command_takes_effect_before_it_shows() {
    let mut rig = Rig::new(spec().two_phase_waits(true));
    rig.set_root(rig.root);
    drain(&mut rig);
    rig.command(|c| c.with_te(true));
    assert!(!rig.status().tes());
    assert!(rig.read(NIC, 0x1000).is_err(), "no root entry");
}

#[test]
fn a_command_while_one_waits_for_its_drain_is_ignored() {
    let mut rig = Rig::new(spec().two_phase_waits(true));
    rig.set_root(rig.root);
    drain(&mut rig);
    rig.command(|c| c.with_te(true));
    rig.write32(
        offset::GCMD,
        GlobalCommand::DEFAULT.with_te(true).with_qie(true).raw_value(),
    );
    assert_eq!(rig.unit.counters().misuses, 1);
    drain(&mut rig);
    assert_eq!(rig.read32(offset::GSTS) & GSTS_PERSISTENT, 1 << 31);
}

/// Translation on, the NIC's page mapped, the queue off.
fn registers() -> Rig {
    let mut rig = Rig::new(spec().two_phase_waits(true).protected_memory(true));
    rig.set_root(rig.root);
    drain(&mut rig);
    command(&mut rig, |c| c.with_te(true));
    let top = rig.tables.page();
    rig.context(NIC, translation_type::UNTRANSLATED, top, 2, DID);
    rig.map(top, 0x1000, 0x5000);
    rig
}

#[test]
fn invalidations_through_registers_show_when_their_drain_is_reported() {
    let mut rig = registers();
    rig.write64(offset::CCMD, context_command().raw_value());
    assert!(ContextCommand::new_with_raw_value(rig.read64(offset::CCMD)).icc());
    let first = rig.unit.take_drain().expect("asked for");
    let at = iotlb_at(&rig);
    rig.write64(at, iotlb_command().raw_value());
    let second = rig.unit.take_drain().expect("asked for again");
    assert!(second > first);
    // The second command came after the first drain began: both wait for the second.
    rig.unit.drained(rig.memory, first);
    assert!(ContextCommand::new_with_raw_value(rig.read64(offset::CCMD)).icc());
    assert!(IotlbInvalidate::new_with_raw_value(rig.read64(at)).ivt());
    rig.unit.drained(rig.memory, second);
    let context = ContextCommand::new_with_raw_value(rig.read64(offset::CCMD));
    assert_eq!((context.icc(), context.caig()), (false, ContextGranularity::Global));
    let iotlb = IotlbInvalidate::new_with_raw_value(rig.read64(at));
    assert_eq!((iotlb.ivt(), iotlb.iaig()), (false, IotlbGranularity::Domain));
}

#[test]
fn software_cannot_declare_a_command_complete() {
    let mut rig = registers();
    let at = iotlb_at(&rig);
    rig.write64(offset::CCMD, context_command().raw_value());
    rig.write64(at, iotlb_command().raw_value());
    rig.write64(offset::CCMD, 0);
    rig.write32(at + 4, 0);
    assert!(ContextCommand::new_with_raw_value(rig.read64(offset::CCMD)).icc());
    assert!(IotlbInvalidate::new_with_raw_value(rig.read64(at)).ivt());
    drain(&mut rig);
    assert!(!ContextCommand::new_with_raw_value(rig.read64(offset::CCMD)).icc());
    assert!(!IotlbInvalidate::new_with_raw_value(rig.read64(at)).ivt());
}

#[test]
fn protected_memory_shows_when_its_drain_is_reported() {
    let mut rig = registers();
    rig.write32(offset::PLMLIMIT, 0x40_0000);
    let prs = |rig: &mut Rig| ProtectedMemoryEnable::new_with_raw_value(rig.read32(offset::PMEN)).prs();
    for on in [true, false] {
        let enable = ProtectedMemoryEnable::DEFAULT.with_epm(on);
        rig.write32(offset::PMEN, enable.raw_value());
        assert_eq!(rig.read(NIC, 0x1000).is_err(), on, "in effect");
        assert_eq!(prs(&mut rig), !on, "under way");
        drain(&mut rig);
        assert_eq!(prs(&mut rig), on);
    }
}

#[test]
fn the_later_of_two_drains_completes_both() {
    let mut rig = Rig::new(spec().two_phase_waits(true));
    rig.enable_queue();
    rig.submit(&[descriptor::CONTEXT_GLOBAL, descriptor::wait_status(STATUS, 1)]);
    let wait = rig.unit.take_drain().expect("for the wait");
    rig.set_root(rig.root);
    let pointer = rig.unit.take_drain().expect("for the pointer");
    assert!(pointer > wait);
    rig.unit.drained(rig.memory, DrainToken(pointer.0 + 1));
    assert_eq!((rig.peek(STATUS), rig.status().rtps()), (0, false), "never issued");
    rig.unit.drained(rig.memory, pointer);
    assert_eq!((rig.peek(STATUS), rig.status().rtps()), (1, true));
    rig.unit.drained(rig.memory, wait);
    assert_eq!(rig.peek(STATUS), 1);
}

#[test]
fn an_asynchronous_unit_drains_too() {
    let mut rig = Rig::new(spec().two_phase_waits(true).profile(Profile::Silicon));
    rig.set_root(rig.root);
    assert!(!rig.status().rtps());
    drain(&mut rig);
    assert!(rig.status().rtps());
    rig.write64(offset::CCMD, context_command().raw_value());
    rig.settle();
    assert!(ContextCommand::new_with_raw_value(rig.read64(offset::CCMD)).icc());
    assert_eq!(rig.unit.counters().invalidations.context, 1, "carried out once");
    drain(&mut rig);
    assert!(!ContextCommand::new_with_raw_value(rig.read64(offset::CCMD)).icc());
}

#[test]
fn commands_that_wait_for_their_drain_survive_saving() {
    let mut rig = registers();
    let at = iotlb_at(&rig);
    rig.command(|c| c.with_te(false));
    rig.write64(offset::CCMD, context_command().raw_value());
    rig.write64(at, iotlb_command().raw_value());
    rig.write32(offset::PMEN, ProtectedMemoryEnable::DEFAULT.with_epm(true).raw_value());
    let saved = rig.unit.save();
    let before = rig.unit.take_drain();
    rig.unit = Unit::restore(*rig.unit.config(), &saved).expect("its own bytes");
    assert_eq!(rig.unit.save(), saved);
    assert!(rig.status().tes(), "still under way");
    assert!(!rig.unit.latched().translation_enabled, "and in effect");
    assert_eq!(rig.unit.take_drain(), before);
    rig.unit.drained(rig.memory, before.expect("asked for"));
    assert!(!rig.status().tes());
    assert!(ProtectedMemoryEnable::new_with_raw_value(rig.read32(offset::PMEN)).prs());
    let context = ContextCommand::new_with_raw_value(rig.read64(offset::CCMD));
    assert_eq!((context.icc(), context.caig()), (false, ContextGranularity::Global));
    let iotlb = IotlbInvalidate::new_with_raw_value(rig.read64(at));
    assert_eq!((iotlb.ivt(), iotlb.iaig()), (false, IotlbGranularity::Domain));
}

#[test]
fn a_unit_restored_without_two_phase_waits_shows_what_was_held() {
    let mut rig = registers();
    rig.command(|c| c.with_te(false));
    let plain = spec().protected_memory(true).build().expect("consistent");
    rig.unit = Unit::restore(plain, &rig.unit.save()).expect("the same registers");
    assert!(!rig.status().tes());
    assert_eq!(rig.unit.take_drain(), None);
}

#[test]
fn saved_drain_numbers_that_would_run_over_are_refused() {
    let mut rig = Rig::new(spec().two_phase_waits(true));
    rig.enable_queue();
    rig.submit(&[descriptor::IOTLB_GLOBAL, descriptor::wait_status(STATUS, 1)]);
    let token = rig.unit.take_drain().expect("asked for").0;
    let saved = rig.unit.save();
    // The awaited token, a flag (the last descriptor was a wait), and the last token.
    let pair = [&token.to_le_bytes()[..], &[1], &token.to_le_bytes()].concat();
    let at = saved.windows(17).position(|bytes| bytes == pair).expect("in there");
    for (awaited, last) in [(token, u64::MAX), (token + 1, token), (u64::MAX, u64::MAX)] {
        let mut bytes = saved.clone();
        bytes[at..at + 8].copy_from_slice(&awaited.to_le_bytes());
        bytes[at + 9..at + 17].copy_from_slice(&last.to_le_bytes());
        let refused = Unit::restore(*rig.unit.config(), &bytes).err();
        assert_eq!(refused, Some(RestoreError::Value("number of the last drain")));
    }
}
