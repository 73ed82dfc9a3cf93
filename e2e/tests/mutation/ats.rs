//! Functions that keep translations themselves.

use iommu_types::{HostPhys, Iova, Pasid, Perms};
use vtd_driver::{AtsListing, AttachError, DeviceTlb, DomainOptions, Requester};

use crate::machine::{Machine, range};
use crate::rig::{
    How, Must, TestDomain, TestUnit, Verdict, board, clean, ensure, map, miss, scalable, scalable_board, silicon,
    source, unmap, up,
};

const FUNCTION: DeviceTlb = DeviceTlb {
    queue_depth: 8,
    page_aligned: true,
    pasid: false,
    physical_function: None,
    listed: Some(AtsListing::RootPort),
    trusted: true,
    twice: false,
};

/// Memory that nobody was given.
const SECRET: HostPhys = HostPhys::new(0x66_6000);

fn gpu() -> Requester {
    Requester::new(source("03:00.0"))
}

fn holds(machine: &Machine, at: u64, expected: Option<u64>) -> Verdict {
    let reached = machine.dma_with_ats(gpu().rid, None, Iova::new(at));
    let expected = expected.map(HostPhys::new);
    if reached == expected {
        return Ok(());
    }
    let how = if reached.is_some() { How::Reached } else { How::Blocked };
    miss(how, format_args!("at {at:#x} {reached:?} is reached, not {expected:?}"))
}

pub(crate) fn what_was_unmapped_is_gone_from_the_function() -> Verdict {
    let machine = board(silicon().device_tlb(true));
    let unit = up(&machine)?;
    let domain = unit.create_domain(DomainOptions::default()).must()?;
    map(&domain, 0x1000, 0x9000, 0x2000)?;
    unit.attach_with_ats(&gpu(), &domain, FUNCTION, || {}).must()?;
    holds(&machine, 0x1000, Some(0x9000))?;
    unmap(&domain, 0x1000, 0x2000)?;
    holds(&machine, 0x1000, None)?;
    clean(&machine)
}

pub(crate) fn a_function_that_asks_again_gets_nothing_old() -> Verdict {
    let machine = board(silicon().device_tlb(true));
    let unit = up(&machine)?;
    let domain = unit.create_domain(DomainOptions::default()).must()?;
    map(&domain, 0x1000, 0x9000, 0x1000)?;
    unit.attach_with_ats(&gpu(), &domain, FUNCTION, || {}).must()?;
    holds(&machine, 0x1000, Some(0x9000))?;
    machine.eager.set(Some((gpu().rid, Iova::new(0x1000))));
    unmap(&domain, 0x1000, 0x1000)?;
    machine.eager.set(None);
    holds(&machine, 0x1000, None)?;
    clean(&machine)
}

pub(crate) fn a_function_may_ask_as_soon_as_it_can() -> Verdict {
    let machine = board(silicon().device_tlb(true));
    let unit = up(&machine)?;
    let domain = unit.create_domain(DomainOptions::default()).must()?;
    map(&domain, 0x1000, 0x9000, 0x1000)?;
    let mut first = Ok(());
    unit.attach_with_ats(&gpu(), &domain, FUNCTION, || {
        first = holds(&machine, 0x1000, Some(0x9000))
    })
    .must()?;
    first
}

/// Attached with ATS and detached again.
fn visit<'m>(machine: &Machine, unit: &TestUnit<'m>, domain: &TestDomain<'m>, phys: u64) -> Verdict {
    unit.attach_with_ats(&gpu(), domain, FUNCTION, || {}).must()?;
    holds(machine, 0x1000, Some(phys))?;
    unit.detach_with_ats(&gpu(), || {}).must()
}

pub(crate) fn a_function_takes_nothing_along() -> Verdict {
    let machine = board(silicon().device_tlb(true));
    let unit = up(&machine)?;
    let [one, other] = [0x9000, 0xa000].map(|phys| {
        let domain = unit.create_domain(DomainOptions::default()).must()?;
        map(&domain, 0x1000, phys, 0x1000).map(|()| domain)
    });
    visit(&machine, &unit, &one?, 0x9000)?;
    visit(&machine, &unit, &other?, 0xa000)?;
    clean(&machine)
}

/// With ATS a function says by itself which host address it was given.
fn has_no_ats(function: DeviceTlb) -> Verdict {
    let machine = board(silicon().device_tlb(true));
    let unit = up(&machine)?;
    let domain = unit.create_domain(DomainOptions::default()).must()?;
    if let Err(refused) = unit.attach_with_ats(&gpu(), &domain, function, || {}) {
        let expected = matches!(refused, AttachError::AtsRefused { .. });
        ensure(expected, How::Allowed, refused)?;
    }
    match machine.dma_translated(gpu().rid, SECRET) {
        None => Ok(()),
        Some(reached) => miss(How::Reached, format_args!("{reached} was never mapped for it")),
    }
}

pub(crate) fn a_function_that_firmware_does_not_list_has_no_ats() -> Verdict {
    has_no_ats(DeviceTlb {
        listed: None,
        ..FUNCTION
    })
}

pub(crate) fn a_function_that_is_not_trusted_has_no_ats() -> Verdict {
    has_no_ats(DeviceTlb {
        trusted: false,
        ..FUNCTION
    })
}

pub(crate) fn pasid_after_ats_is_refused() -> Verdict {
    let machine = scalable_board(scalable().device_tlb(true));
    let unit = up(&machine)?;
    let domain = unit.create_domain(DomainOptions::default()).must()?;
    unit.attach_with_ats(&gpu(), &domain, FUNCTION, || {}).must()?;
    let pasid = Pasid::new(5).ok_or("none").must()?;
    // What a function does whose PASID capability is switched under ATS is undefined, so that nothing can show it.
    match unit.attach_pasid(gpu().rid, pasid, &domain) {
        Err(AttachError::PasidAfterAts { .. }) => Ok(()),
        other => miss(How::Allowed, format_args!("{other:?}")),
    }
}

pub(crate) fn a_virtual_function_is_told_by_its_own_name() -> Verdict {
    // The unit has no ECAP.DIT, so that PFSID is reserved.
    let machine = board(silicon().device_tlb(true));
    let unit = up(&machine)?;
    let domain = unit.create_domain(DomainOptions::default()).must()?;
    let function = DeviceTlb {
        physical_function: Some(source("03:00.1")),
        ..FUNCTION
    };
    unit.attach_with_ats(&gpu(), &domain, function, || {}).must()?;
    domain
        .map(Iova::new(0x1000), HostPhys::new(0x9000), 0x1000, Perms::READ)
        .must()?;
    holds(&machine, 0x1000, Some(0x9000))?;
    let pending = domain.unmap(range(0x1000, 0x1000), ()).must()?;
    domain.flush(pending).map_err(|(error, _)| error).must()?;
    holds(&machine, 0x1000, None)
}
