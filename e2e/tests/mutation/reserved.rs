//! Memory that firmware keeps for devices (RMRR).

use iommu_types::{AddrRange, HostPhys};
use vtd_driver::{DomainOptions, Requester, ReservedRegion};

use crate::machine::Machine;
use crate::rig::{Miss, Must, TestUnit, Verdict, board, reaches, silicon, source, taken_over};

const USB: &str = "00:14.0";
const FIRST: u64 = 0x7_0000;
/// Ends in the middle of a page.
const LEN: u64 = 0x2345;

fn up(machine: &Machine) -> Result<TestUnit<'_>, Miss> {
    let mut unit = taken_over(machine)?;
    let region = ReservedRegion {
        range: AddrRange::from_base_len(HostPhys::new(FIRST), LEN).expect("a range"),
        requesters: vec![Requester::new(source(USB))],
        relaxable: false,
    };
    unit.reserve(&region).must()?;
    unit.enable().map_err(|error| error.cause).must()
}

fn reaches_its_memory(machine: &Machine, at: u64) -> Verdict {
    reaches(machine, source(USB), FIRST + at, FIRST + at)
}

pub(crate) fn firmware_keeps_its_memory_from_the_start() -> Verdict {
    let machine = board(silicon());
    let _unit = up(&machine)?;
    reaches_its_memory(&machine, 0)
}

pub(crate) fn firmware_keeps_its_memory_in_a_domain() -> Verdict {
    let machine = board(silicon());
    let unit = up(&machine)?;
    let domain = unit.create_domain(DomainOptions::default()).must()?;
    unit.attach(&Requester::new(source(USB)), &domain).must()?;
    reaches_its_memory(&machine, 0)
}

pub(crate) fn firmware_has_its_memory_again_after_a_detach() -> Verdict {
    let machine = board(silicon());
    let unit = up(&machine)?;
    let domain = unit.create_domain(DomainOptions::default()).must()?;
    let usb = Requester::new(source(USB));
    unit.attach(&usb, &domain).must()?;
    unit.detach(&usb).must()?;
    reaches_its_memory(&machine, 0)
}

pub(crate) fn the_limit_of_a_region_belongs_to_it() -> Verdict {
    let machine = board(silicon());
    let _unit = up(&machine)?;
    reaches_its_memory(&machine, 0)?;
    reaches_its_memory(&machine, LEN - 8)
}
