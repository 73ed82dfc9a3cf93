//! Attaching and detaching that fails at step N.

use std::cell::Cell;

use iommu_types::{GuestPhys, HostPhys, Iova, PAGE_SIZE, Pasid, Perms, SystemMemory};
use vtd_driver::{AttachError, DetachError, DomainOptions, GuestTable, MapError, Reachable, Requester, Unconfirmed};
use vtd_model::{Profile, UnitConfig};

use super::{A, ABORT, AT, B, Bench, DEAFEN, FRAME, FUNCTION, Kind, Moments, RESERVED, at_every_step, hard_and};
use crate::machine::{Machine, source};

fn every(_: &Kind) -> bool {
    true
}

fn with_ats(kind: &Kind) -> bool {
    kind.ats
}

/// What the error admits.
fn doubt(result: &Result<(), AttachError>) -> Option<Unconfirmed> {
    match result {
        Err(AttachError::Unconfirmed(unconfirmed)) => Some(*unconfirmed),
        Ok(()) | Err(_) => None,
    }
}

fn detach(bench: &Bench<'_>, device: &Requester) -> Result<(), DetachError> {
    if bench.kind.ats && device.rid == bench.nic.rid {
        bench.unit.detach_with_ats(device, || {})
    } else {
        bench.unit.detach(device)
    }
}

#[test]
pub(super) fn a_device_that_was_not_attached_is_where_it_was_or_in_doubt() {
    attach_at_every_step(|bench| &bench.disk);
}

#[test]
pub(super) fn a_device_with_two_ids_that_was_not_attached_is_where_it_was_or_in_doubt() {
    attach_at_every_step(|bench| &bench.bridged);
}

fn attach_at_every_step(which: for<'a> fn(&'a Bench<'_>) -> &'a Requester) {
    at_every_step(every, &hard_and(&[FRAME, ABORT]), |bench, moments| {
        let device = which(bench);
        moments.arm();
        let result = bench.unit.attach(device, &bench.b);
        moments.mend();
        bench.judge(doubt(&result));
        match result {
            Ok(()) => assert_eq!(bench.reach_as_all(device, AT), Some(B)),
            Err(AttachError::Unconfirmed(unconfirmed)) => {
                assert_eq!(unconfirmed.reachable, bench.everything_of(device, &bench.b));
            }
            Err(error) => assert_eq!(bench.reach_as_all(device, AT), None, "{error}"),
        }
        again_attached(bench, device, &result);
        result.is_ok()
    });
}

/// A unit that is good does it the next time; one that is not changes nothing any more.
fn again_attached(bench: &Bench<'_>, device: &Requester, first: &Result<(), AttachError>) {
    let (unit, b) = (&bench.unit, &bench.b);
    if first.is_ok() {
        return;
    }
    if !bench.is_good() {
        let before = bench.reach(device, AT);
        assert!(unit.attach(device, b).is_err());
        assert_eq!(bench.reach(device, AT), before);
        return;
    }
    if matches!(first, Err(AttachError::Unconfirmed(_))) {
        // It counts as attached.
        unit.detach(device).expect("attached");
        assert_eq!(bench.reach_as_all(device, AT), None);
    }
    unit.attach(device, b).expect("works again");
    bench.judge(None);
    assert_eq!(bench.reach_as_all(device, AT), Some(B));
    unit.detach(device).expect("attached");
    bench.judge(None);
    assert_eq!(bench.reach_as_all(device, AT), None);
}

#[test]
pub(super) fn a_device_that_was_not_detached_keeps_its_domain_from_being_destroyed() {
    at_every_step(every, &hard_and(&[DEAFEN, ABORT]), |bench, moments| {
        let nic = &bench.nic;
        moments.arm();
        let result = detach(bench, nic);
        moments.mend();
        match result {
            Ok(()) => {
                bench.judge(None);
                assert_eq!(bench.reach(nic, AT), None);
            }
            Err(DetachError::Unconfirmed(unconfirmed)) => {
                bench.judge(Some(unconfirmed));
                assert_eq!(unconfirmed.reachable, bench.everything_of(nic, &bench.a));
                if bench.is_good() {
                    detach(bench, nic).expect("works again");
                    bench.judge(None);
                    assert_eq!(bench.reach(nic, AT), None);
                } else {
                    assert!(detach(bench, nic).is_err());
                }
            }
            Err(error) => panic!("{error}"),
        }
        result.is_ok()
    });
}

#[test]
pub(super) fn a_domain_that_a_device_did_not_leave_for_sure_is_not_destroyed() {
    at_every_step(every, &hard_and(&[DEAFEN, ABORT]), |bench, moments| {
        let own = bench.unit.create_domain(DomainOptions {
            superpages: false,
            stage: bench.kind.stage,
            ..DomainOptions::default()
        });
        let own = own.expect("a domain");
        own.map(AT, A, PAGE_SIZE, Perms::READ).expect("mapped");
        let (unit, disk) = (&bench.unit, &bench.disk);
        if bench.kind.ats {
            unit.attach_with_ats(disk, &own, FUNCTION, || {}).expect("attached");
        } else {
            unit.attach(disk, &own).expect("attached");
        }
        moments.arm();
        let result = if bench.kind.ats {
            unit.detach_with_ats(disk, || {})
        } else {
            unit.detach(disk)
        };
        let left = result.is_ok();
        let destroyed = own.destroy();
        moments.mend();
        assert!(left || destroyed.is_err(), "the domain is in use");
        if destroyed.is_ok() {
            bench.judge(None);
        }
        left && destroyed.is_ok()
    });
}

#[test]
pub(super) fn a_device_with_reserved_regions_keeps_them_or_is_in_doubt() {
    at_every_step(every, &hard_and(&[FRAME, ABORT]), |bench, moments| {
        let (unit, usb, b) = (&bench.unit, &bench.usb, &bench.b);
        // Another device in the domain: what is mapped for `usb` there, it reaches too.
        unit.attach(&bench.disk, b).expect("attached");
        bench.joins(&bench.disk, b.id());
        bench.joins(usb, b.id());
        let regions = || RESERVED.map(|base| bench.reach(usb, Iova::new(base)));
        let both = RESERVED.map(|base| Some(HostPhys::new(base)));
        let others = || RESERVED.map(|base| bench.reach(&bench.disk, Iova::new(base)));
        moments.arm();
        let result = unit.attach(usb, b);
        moments.mend();
        match &result {
            Ok(()) => {
                bench.judge(None);
                assert_eq!((bench.reach(usb, AT), regions()), (Some(B), both));
            }
            Err(AttachError::Unconfirmed(unconfirmed)) => bench.judge(Some(*unconfirmed)),
            Err(AttachError::Reserved { cause, .. }) => {
                let unconfirmed = match cause {
                    MapError::Unconfirmed(unconfirmed) => Some(*unconfirmed),
                    _ => None,
                };
                bench.judge(unconfirmed);
                assert_eq!((bench.reach(usb, AT), regions()), (None, both), "where it was");
            }
            Err(error) => {
                bench.judge(None);
                assert_eq!((bench.reach(usb, AT), regions()), (None, both), "{error}");
            }
        }
        if bench.is_good() && result.is_err() {
            if !matches!(result, Err(AttachError::Unconfirmed(_))) {
                assert_eq!(others(), [None; 2], "nothing is left of the attempt");
            }
            match unit.attach(usb, b) {
                Ok(()) | Err(AttachError::AlreadyAttached { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            unit.detach(usb).expect("attached");
            bench.judge(None);
            assert_eq!(
                (bench.reach(usb, AT), regions()),
                (None, both),
                "firmware's memory is back"
            );
            assert_eq!(others(), [None; 2]);
        }
        result.is_ok()
    });
}

#[test]
pub(super) fn a_device_with_reserved_regions_has_them_again_when_it_left() {
    at_every_step(every, &hard_and(&[ABORT]), |bench, moments| {
        let (unit, usb, b) = (&bench.unit, &bench.usb, &bench.b);
        unit.attach(&bench.disk, b).expect("attached");
        unit.attach(usb, b).expect("attached");
        bench.joins(&bench.disk, b.id());
        bench.joins(usb, b.id());
        let regions = || RESERVED.map(|base| bench.reach(usb, Iova::new(base)));
        let both = RESERVED.map(|base| Some(HostPhys::new(base)));
        moments.arm();
        let result = unit.detach(usb);
        moments.mend();
        match &result {
            Ok(()) => {
                bench.judge(None);
                assert_eq!((bench.reach(usb, AT), regions()), (None, both));
            }
            Err(DetachError::Unconfirmed(unconfirmed)) => bench.judge(Some(*unconfirmed)),
            Err(DetachError::ReservedBlocked { .. }) => assert_eq!(bench.reach(usb, AT), None),
            Err(error) => panic!("{error}"),
        }
        if bench.is_good() && result.is_err() {
            match unit.detach(usb) {
                Ok(()) | Err(DetachError::NotAttached { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            assert_eq!(
                (bench.reach(usb, AT), regions()),
                (None, both),
                "firmware's memory is back"
            );
        }
        result.is_ok()
    });
}

#[test]
pub(super) fn ats_is_not_turned_on_for_a_device_that_was_not_attached() {
    at_every_step(with_ats, &hard_and(&[FRAME, ABORT]), |bench, moments| {
        let (unit, disk) = (&bench.unit, &bench.disk);
        let on = Cell::new(false);
        moments.arm();
        let result = unit.attach_with_ats(disk, &bench.b, FUNCTION, || on.set(true));
        moments.mend();
        assert_eq!(on.get(), result.is_ok());
        bench.judge(doubt(&result));
        match result {
            Ok(()) => assert_eq!(bench.machine.dma_with_ats(disk.rid, None, AT), Some(B)),
            Err(AttachError::Unconfirmed(unconfirmed)) => {
                assert_eq!(unconfirmed.reachable, bench.everything_of(disk, &bench.b));
            }
            Err(error) => assert_eq!(bench.reach(disk, AT), None, "{error}"),
        }
        if bench.is_good() && result.is_err() {
            match unit.attach_with_ats(disk, &bench.b, FUNCTION, || {}) {
                Ok(()) | Err(AttachError::AlreadyAttached { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            assert_eq!(bench.machine.dma_with_ats(disk.rid, None, AT), Some(B));
            unit.detach_with_ats(disk, || {}).expect("attached");
            assert_eq!(bench.machine.dma_with_ats(disk.rid, None, AT), None);
        }
        result.is_ok()
    });
}

#[test]
pub(super) fn a_pasid_that_was_not_attached_or_detached_is_blocked_or_in_doubt() {
    let pasid = Pasid::new(0x105).expect("20 bits");
    at_every_step(
        Kind::is_scalable,
        &hard_and(&[FRAME, DEAFEN, ABORT]),
        |bench, moments| {
            let (unit, nic, b) = (&bench.unit, bench.nic.rid, &bench.b);
            let reach = || {
                let by_the_unit = bench.machine.dma_with_pasid(nic, pasid, AT).ok();
                match bench.kind.ats {
                    true => bench.machine.dma_with_ats(nic, Some(pasid), AT).or(by_the_unit),
                    false => by_the_unit,
                }
            };
            moments.arm();
            let attached = unit.attach_pasid(nic, pasid, b);
            if attached.is_ok() && moments.armed() {
                assert_eq!(reach(), Some(B));
            }
            let detached = attached.is_ok().then(|| unit.detach_pasid(nic, pasid));
            moments.mend();
            bench.judge(None);
            assert!(reach().is_none_or(|reached| reached == B));
            let done = match (attached, detached) {
                (Ok(()), Some(Ok(()))) => {
                    assert_eq!(reach(), None);
                    true
                }
                (Ok(()), Some(Err(DetachError::Unconfirmed(unconfirmed))))
                | (Err(AttachError::Unconfirmed(unconfirmed)), None) => {
                    assert_eq!(unconfirmed.reachable, bench.everything_of(&bench.nic, b));
                    if bench.is_good() {
                        unit.detach_pasid(nic, pasid).expect("works again");
                        assert_eq!(reach(), None);
                    }
                    false
                }
                (Err(error), None) => {
                    assert_eq!(reach(), None, "{error}");
                    false
                }
                other => panic!("{other:?}"),
            };
            if bench.is_good() && !done {
                unit.attach_pasid(nic, pasid, b).expect("works again");
                assert_eq!(reach(), Some(B));
                unit.detach_pasid(nic, pasid).expect("attached");
                assert_eq!(reach(), None);
            }
            done
        },
    );
}

#[test]
pub(super) fn a_guests_tables_that_a_device_did_not_get_to_or_leave_are_in_doubt() {
    /// Where the guest's memory lies, and a page of it that its tables lead to.
    const GUEST: u64 = 0x800_0000;
    const PAGE: HostPhys = HostPhys::new(GUEST + 0x6000);
    at_every_step(Kind::can_nest, &hard_and(&[ABORT]), |bench, moments| {
        let (unit, disk) = (&bench.unit, &bench.disk);
        let parent = unit.create_domain(DomainOptions::default()).expect("a domain");
        parent
            .map(Iova::ZERO, HostPhys::new(GUEST), 0x20_0000, Perms::READ_WRITE)
            .expect("mapped");
        for (entry, to) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000), (0x4008, 0x6000)] {
            // Present, writable, for user requests, accessed and dirty.
            let at = HostPhys::new(GUEST + entry);
            bench.machine.memory.write_u64(at, to | 0x67).expect("guest memory");
        }
        let guest = GuestTable {
            root: GuestPhys::new(0x1000),
            five_levels: false,
        };
        let nested = unit.create_nested(&parent, guest).expect("a domain");
        // The tables for the device's ID are there already.
        unit.attach(disk, &bench.b).expect("attached");
        unit.detach(disk).expect("attached");
        moments.arm();
        let attached = unit.attach_nested(disk, &nested);
        let detached = attached.is_ok().then(|| unit.detach(disk));
        moments.mend();
        let reached = bench.reach(disk, AT);
        assert!(reached.is_none_or(|reached| reached == PAGE), "{reached:?}");
        match (attached, detached) {
            (Ok(()), Some(Ok(()))) => {
                assert_eq!(reached, None);
                nested.destroy().expect("unused");
                parent.destroy().expect("unused");
                true
            }
            (Ok(()), Some(Err(DetachError::Unconfirmed(unconfirmed))))
            | (Err(AttachError::Unconfirmed(unconfirmed)), None) => {
                let domain = Some(nested.id());
                let requester = disk.rid;
                assert_eq!(unconfirmed.reachable, Reachable::Requester { requester, domain });
                assert!(parent.destroy().is_err(), "guests' tables go through it");
                assert!(nested.destroy().is_err(), "the domain is in use");
                false
            }
            (Err(error), None) => {
                assert_eq!(reached, None, "{error}");
                false
            }
            other => panic!("{other:?}"),
        }
    });
}

/// So that [`Moments`] can be asked before it mends.
impl Moments<'_> {
    /// Whether the failure is still to come.
    fn armed(&self) -> bool {
        self.machine.breaks.get().is_some()
    }
}

#[test]
fn the_unit_is_told_of_a_new_bus_also_by_the_second_attempt() {
    let config = UnitConfig::builder().profile(Profile::Silicon).device_tlb(true);
    let machine = Machine::new(config.caching_mode(true).build().expect("valid"));
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let disk = Requester::new(source("03:00.0"));
    machine.aborts.set(true);
    let error = unit.attach(&disk, &domain).expect_err("every wait is aborted");
    assert!(
        matches!(error, AttachError::Hardware(_)),
        "{error}: no entry has changed"
    );
    machine.mend();
    machine.take_descriptors();
    unit.attach(&disk, &domain).expect("works again");
    // Context cache, global (VT-d §6.5.2.1).
    let global = machine.take_descriptors().iter().any(|words| words[0] & 0x3f == 0x11);
    assert!(global, "absence of the whole bus may be cached");
}
