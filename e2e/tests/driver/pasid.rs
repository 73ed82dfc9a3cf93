//! Address spaces of single PASIDs of a device.

use iommu_types::{Access, HostPhys, Iova, PAGE_SIZE, Pasid, Perms};
use vtd_driver::{AtsListing, AttachError, DetachError, DeviceTlb, DomainOptions, Requester, Stage, TableMode};
use vtd_model::{Profile, UnitConfig};

use crate::machine::{Machine, range, source};

fn machine(caching: bool) -> Machine {
    let config = UnitConfig::builder()
        .profile(Profile::Silicon)
        .device_tlb(true)
        .sanitizer(true)
        .caching_mode(caching)
        .scalable_mode(true)
        .scalable_second_stage(true)
        .first_stage(true)
        .pasid_bits(Some(20));
    Machine::new(config.build().expect("valid")).in_mode(TableMode::Scalable)
}

fn pasid(raw: u32) -> Pasid {
    Pasid::new(raw).expect("20 bits")
}

#[test]
fn each_pasid_has_its_own_space_and_loses_what_is_unmapped_there() {
    for (caching, stage) in [
        (false, Stage::First),
        (true, Stage::First),
        (false, Stage::Second),
        (true, Stage::Second),
    ] {
        let machine = machine(caching);
        let unit = machine.translating();
        let options = DomainOptions {
            stage,
            ..DomainOptions::default()
        };
        let [whole, process] =
            [DomainOptions::default(), options].map(|options| unit.create_domain(options).expect("a domain"));
        let gpu = Requester::new(source("03:00.0"));
        unit.attach(&gpu, &whole).expect("attached");
        // Two tables of the directory.
        let (low, high) = (pasid(5), pasid(0x105));
        let at = Iova::new(0x8000);
        let reach = |pasid| machine.dma_with_pasid(gpu.rid, pasid, at).ok();
        assert_eq!([reach(low), reach(high)], [None, None]);
        for pasid in [low, high] {
            unit.attach_pasid(gpu.rid, pasid, &process).expect("attached");
        }
        assert_eq!([reach(low), reach(high)], [None, None]);
        process
            .map(at, HostPhys::new(0x9000), PAGE_SIZE, Perms::READ)
            .expect("mapped");
        assert_eq!(
            [reach(low), reach(high)],
            [Some(HostPhys::new(0x9000)); 2],
            "{caching} {stage:?}"
        );
        assert!(
            machine.dma(gpu.rid, at, Access::Read).is_err(),
            "requests without PASID go elsewhere"
        );

        // The fault of a PASID is put down to its own domain.
        unit.drain_faults(|_| {}).expect("answers");
        assert!(machine.dma_with_pasid(gpu.rid, high, Iova::new(0xf000)).is_err());
        let mut domains = Vec::new();
        unit.drain_faults(|report| domains.push(report.domain))
            .expect("answers");
        assert_eq!(domains, [Some(process.id())]);

        let pending = process.unmap(range(at.raw(), PAGE_SIZE), ()).expect("mapped");
        process.flush(pending).expect("flushed");
        assert_eq!([reach(low), reach(high)], [None, None]);

        process
            .map(at, HostPhys::new(0xa000), PAGE_SIZE, Perms::READ)
            .expect("mapped");
        assert_eq!(reach(low), Some(HostPhys::new(0xa000)));
        unit.detach_pasid(gpu.rid, low).expect("detached");
        assert_eq!([reach(low), reach(high)], [None, Some(HostPhys::new(0xa000))]);

        assert!(matches!(unit.detach(&gpu), Err(DetachError::PasidsAttached { .. })));
        let refused = process.destroy().expect_err("a PASID is attached");
        unit.detach_pasid(gpu.rid, high).expect("detached");
        unit.detach(&gpu).expect("detached");
        refused.domain.destroy().expect("destroyed");
        assert_eq!(machine.memory.violations(), []);
    }
}

#[test]
fn pasids_that_cannot_work_are_refused() {
    let machine = machine(false);
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let gpu = Requester::new(source("03:00.0"));
    let attach = |number| unit.attach_pasid(gpu.rid, pasid(number), &domain);
    assert!(
        matches!(attach(5), Err(AttachError::NoPasid { .. })),
        "the device is not attached"
    );
    unit.attach(&gpu, &domain).expect("attached");
    for number in [0, 8192] {
        assert!(matches!(attach(number), Err(AttachError::NoPasid { .. })), "{number}");
    }
    attach(8191).expect("the last");
    assert!(matches!(attach(8191), Err(AttachError::AlreadyAttached { .. })));
    assert!(matches!(
        unit.detach_pasid(gpu.rid, pasid(7)),
        Err(DetachError::NotAttached { .. })
    ));
}

/// A function whose PASID capability was on before its ATS.
const FUNCTION: DeviceTlb = DeviceTlb {
    queue_depth: 8,
    page_aligned: true,
    pasid: true,
    physical_function: None,
    listed: Some(AtsListing::Integrated { required: true }),
    trusted: true,
    twice: false,
};

#[test]
fn a_function_with_ats_forgets_each_pasid_on_its_own_and_last() {
    for (caching, stage) in [
        (false, Stage::First),
        (true, Stage::First),
        (false, Stage::Second),
        (true, Stage::Second),
    ] {
        let machine = machine(caching);
        let unit = machine.translating();
        let options = DomainOptions {
            stage,
            ..DomainOptions::default()
        };
        let [whole, process, other] =
            [DomainOptions::default(), options, options].map(|options| unit.create_domain(options).expect("a domain"));
        let gpu = Requester::new(source("03:00.0"));
        let (one, two) = (pasid(5), pasid(0x105));
        let at = Iova::new(0x8000);
        let reach = |pasid| machine.dma_with_ats(gpu.rid, pasid, at);
        for (domain, target) in [(&whole, 0x9000), (&process, 0xa000), (&other, 0xb000)] {
            domain
                .map(at, HostPhys::new(target), PAGE_SIZE, Perms::READ)
                .expect("mapped");
        }
        unit.attach_with_ats(&gpu, &whole, FUNCTION, || {}).expect("attached");
        unit.attach_pasid(gpu.rid, one, &process).expect("attached");
        unit.attach_pasid(gpu.rid, two, &other).expect("attached");
        let all = || [None, Some(one), Some(two)].map(reach);
        let [own, first, second] = [0x9000, 0xa000, 0xb000].map(|at| Some(HostPhys::new(at)));
        assert_eq!(all(), [own, first, second], "{caching} {stage:?}");

        // What is unmapped for one PASID is asked back from that PASID alone, after the unit itself forgot it.
        machine.take_device_messages();
        machine.take_descriptors();
        let pending = process.unmap(range(at.raw(), PAGE_SIZE), "lease").expect("mapped");
        assert_eq!(process.flush(pending).expect("flushed"), "lease");
        let kinds: Vec<u64> = machine.take_descriptors().iter().map(|words| words[0] & 0xf).collect();
        assert_eq!(
            kinds.last(),
            Some(&8),
            "the PASID-based device-TLB invalidation: {kinds:?}"
        );
        let [message] = machine.take_device_messages()[..] else {
            panic!("one message")
        };
        assert_eq!(message.pasid, Some(vtd_model::PasidScope::One(one)));
        assert_eq!(all(), [own, None, second]);

        // ATS cannot go while a PASID is there, and is not touched.
        let refused = unit.detach_with_ats(&gpu, || panic!("ATS stays on"));
        assert!(matches!(refused, Err(DetachError::PasidsAttached { .. })));
        unit.detach_pasid(gpu.rid, two).expect("detached");
        assert_eq!(all(), [own, None, None]);
        unit.detach_pasid(gpu.rid, one).expect("detached");
        unit.detach_with_ats(&gpu, || {}).expect("detached");
        assert_eq!(all(), [None; 3]);
        for domain in [whole, process, other] {
            domain.destroy().expect("destroyed");
        }
        assert_eq!(machine.take_findings(), []);
        assert_eq!(machine.memory.violations(), []);
    }
}

#[test]
fn pasid_is_enabled_before_ats_or_not_at_all() {
    let machine = machine(false);
    let unit = machine.translating();
    let domain = unit.create_domain(DomainOptions::default()).expect("a domain");
    let gpu = Requester::new(source("03:00.0"));
    let late = DeviceTlb {
        pasid: false,
        ..FUNCTION
    };
    unit.attach_with_ats(&gpu, &domain, late, || {}).expect("attached");
    let requester = gpu.rid;
    assert_eq!(
        unit.attach_pasid(gpu.rid, pasid(5), &domain),
        Err(AttachError::PasidAfterAts { requester })
    );
    unit.detach_with_ats(&gpu, || {}).expect("detached");
    unit.attach_with_ats(&gpu, &domain, FUNCTION, || {}).expect("attached");
    unit.attach_pasid(gpu.rid, pasid(5), &domain).expect("in order");
}
