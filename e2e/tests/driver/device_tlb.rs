//! Functions that keep translations themselves.

use std::cell::Cell;

use iommu_types::{Access, HostPhys, Iova, PAGE_SIZE, Perms};
use vtd_driver::{
    AtsListing, AtsRefusal, AttachError, DetachError, DeviceTlb, DomainOptions, FlushError, HardwareError, Requester,
    Stage, TableMode,
};
use vtd_model::{Profile, UnitConfig};
use vtd_spec::register::offset;

use crate::machine::{Machine, range, source};

const FUNCTION: DeviceTlb = DeviceTlb {
    queue_depth: 8,
    page_aligned: true,
    pasid: false,
    physical_function: None,
    listed: Some(AtsListing::RootPort),
    trusted: true,
    twice: false,
};

fn machine(mode: TableMode) -> Machine {
    let scalable = mode == TableMode::Scalable;
    let config = UnitConfig::builder()
        .profile(Profile::Silicon)
        .device_tlb(true)
        .scalable_mode(scalable)
        .scalable_second_stage(scalable)
        .first_stage(scalable);
    Machine::new(config.build().expect("valid")).in_mode(mode)
}

#[test]
fn what_a_function_holds_is_gone_before_the_lease_comes_back() {
    for (mode, stage) in [
        (TableMode::Legacy, Stage::Second),
        (TableMode::Scalable, Stage::Second),
        (TableMode::Scalable, Stage::First),
    ] {
        let machine = machine(mode);
        let unit = machine.translating();
        let options = DomainOptions {
            stage,
            ..DomainOptions::default()
        };
        let domain = unit.create_domain(options).expect("a domain");
        let gpu = Requester::new(source("03:00.0"));
        domain
            .map(Iova::new(0x8000), HostPhys::new(0x9000), 0x2000, Perms::READ_WRITE)
            .expect("mapped");
        let enabled = Cell::new(false);
        unit.attach_with_ats(&gpu, &domain, FUNCTION, || {
            // The entry is valid when ATS is turned on.
            assert_eq!(machine.ask(gpu.rid, Iova::new(0x8000)), Ok(HostPhys::new(0x9000)));
            enabled.set(true);
        })
        .expect("attached");
        assert!(enabled.get());

        let pending = domain.unmap(range(0x8000, 0x2000), ()).expect("mapped");
        assert!(machine.take_device_messages().is_empty());
        domain.flush(pending).expect("flushed");
        let [message] = machine.take_device_messages()[..] else {
            panic!("one message")
        };
        assert_eq!(
            (message.source, message.first, message.order),
            (gpu.rid, Iova::new(0x8000), 1),
            "{mode:?} {stage:?}"
        );

        // Plain detaching is refused while the function may hold translations.
        assert!(matches!(unit.detach(&gpu), Err(DetachError::AtsOn { .. })));
        unit.detach_with_ats(&gpu, || enabled.set(false)).expect("detached");
        assert!(!enabled.get());
        let [message] = machine.take_device_messages()[..] else {
            panic!("one message")
        };
        assert!(message.order >= 52, "everything");
        assert!(machine.dma(gpu.rid, Iova::new(0x8000), Access::Read).is_err());

        // The next domain flush asks nobody.
        domain
            .map(Iova::new(0x8000), HostPhys::new(0x9000), PAGE_SIZE, Perms::READ)
            .expect("mapped");
        let pending = domain.unmap(range(0x8000, PAGE_SIZE), ()).expect("mapped");
        domain.flush(pending).expect("flushed");
        assert!(machine.take_device_messages().is_empty());
    }
}

#[test]
fn a_function_that_does_not_answer_keeps_the_token_and_leaves_the_unit_usable() {
    let machine = machine(TableMode::Legacy);
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let gpu = Requester::new(source("03:00.0"));
    unit.attach_with_ats(&gpu, &domain, FUNCTION, || {}).expect("attached");
    domain
        .map(Iova::new(0x8000), HostPhys::new(0x9000), PAGE_SIZE, Perms::READ)
        .expect("mapped");
    let pending = domain.unmap(range(0x8000, PAGE_SIZE), "lease").expect("mapped");
    machine.deaf.set(Some(gpu.rid));
    let (error, pending) = domain.flush(pending).expect_err("the device is silent");
    let FlushError::Unconfirmed(unconfirmed) = error else {
        panic!("{error}")
    };
    assert_eq!(
        unconfirmed.cause,
        HardwareError::DeviceTimeout { device: Some(gpu.rid) }
    );
    assert!(unit.health().is_good(), "the unit itself lost nothing");
    machine.deaf.set(None);
    assert_eq!(domain.flush(pending).expect("it answers again"), "lease");
}

#[test]
fn the_twice_quirk_sends_each_message_two_times() {
    let machine = machine(TableMode::Legacy);
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let qat = Requester::new(source("6b:00.0"));
    let twice = DeviceTlb {
        twice: true,
        ..FUNCTION
    };
    unit.attach_with_ats(&qat, &domain, twice, || {}).expect("attached");
    domain
        .map(Iova::new(0x8000), HostPhys::new(0x9000), PAGE_SIZE, Perms::READ)
        .expect("mapped");
    let pending = domain.unmap(range(0x8000, PAGE_SIZE), ()).expect("mapped");
    domain.flush(pending).expect("flushed");
    assert_eq!(machine.take_device_messages().len(), 2);
}

#[test]
fn ats_is_refused_without_device_tlb_support_and_with_aliases() {
    let plain = Machine::new(UnitConfig::builder().build().expect("valid"));
    let unit = plain.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let gpu = Requester::new(source("03:00.0"));
    let never = || panic!("ATS must stay off");
    assert_eq!(
        unit.attach_with_ats(&gpu, &domain, FUNCTION, never),
        Err(AttachError::NoDeviceTlb)
    );

    let machine = machine(TableMode::Legacy);
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let aliased = Requester::with_aliases(source("03:00.0"), [source("02:00.0")]);
    assert_eq!(
        unit.attach_with_ats(&aliased, &domain, FUNCTION, never),
        Err(AttachError::NoDeviceTlb)
    );
}

#[test]
fn ats_stays_off_where_firmware_or_policy_do_not_allow_it() {
    let required = Some(AtsListing::Integrated { required: true });
    let cases = [
        (
            DeviceTlb {
                listed: None,
                ..FUNCTION
            },
            AtsRefusal::NotListed,
        ),
        (
            DeviceTlb {
                trusted: false,
                ..FUNCTION
            },
            AtsRefusal::NotTrusted,
        ),
        (
            DeviceTlb {
                page_aligned: false,
                ..FUNCTION
            },
            AtsRefusal::NotPageAligned,
        ),
        (
            DeviceTlb {
                listed: required,
                ..FUNCTION
            },
            AtsRefusal::HardwareManaged,
        ),
    ];
    let legacy = machine(TableMode::Legacy);
    let unit = legacy.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let gpu = Requester::new(source("03:00.0"));
    for (function, why) in cases {
        let requester = gpu.rid;
        assert_eq!(
            unit.attach_with_ats(&gpu, &domain, function, || panic!("ATS must stay off")),
            Err(AttachError::AtsRefused { requester, why })
        );
    }
    // Hardware leaves an integrated endpoint to software in scalable mode.
    let scalable = machine(TableMode::Scalable);
    let unit = scalable.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let function = DeviceTlb {
        listed: required,
        ..FUNCTION
    };
    unit.attach_with_ats(&gpu, &domain, function, || {}).expect("attached");
}

#[test]
fn all_functions_of_a_domain_are_told_behind_one_wait() {
    let machine = machine(TableMode::Legacy);
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    for function in ["03:00.0", "03:00.1", "04:00.0"] {
        unit.attach_with_ats(&Requester::new(source(function)), &domain, FUNCTION, || {})
            .expect("attached");
    }
    domain
        .map(Iova::new(0x8000), HostPhys::new(0x9000), PAGE_SIZE, Perms::READ)
        .expect("mapped");
    let pending = domain.unmap(range(0x8000, PAGE_SIZE), ()).expect("mapped");
    machine.take_writes();
    domain.flush(pending).expect("flushed");
    let doorbells = machine
        .take_writes()
        .iter()
        .filter(|(at, _)| *at == offset::IQT)
        .count();
    assert_eq!(
        (machine.take_device_messages().len(), doorbells),
        (3, 2),
        "the unit's own caches, then all functions"
    );
}
