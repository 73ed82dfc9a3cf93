//! The fault log and the fault event.

use iommu_types::{Access, Iova, PAGE_SIZE};
use vtd_driver::EventMessage;
use vtd_spec::register::{EventControl, offset};

use crate::machine::Machine;
use crate::rig::{How, Miss, Must, TestUnit, Verdict, board, ensure, silicon, source, up};

/// Lets a device fault at page `page`.
fn fault(machine: &Machine, page: u64) -> Verdict {
    let blocked = machine.dma(source("02:00.0"), Iova::new(page * PAGE_SIZE), Access::Read);
    ensure(blocked.is_err(), How::Reached, "nothing is mapped")
}

/// The pages of the faults that are drained, in order.
fn drain(unit: &TestUnit<'_>) -> Result<Vec<u64>, Miss> {
    let mut pages = Vec::new();
    unit.drain_faults(|report| pages.push(report.record.address().raw() / PAGE_SIZE))
        .must()?;
    Ok(pages)
}

fn logged(unit: &TestUnit<'_>, expected: &[u64]) -> Verdict {
    let pages = drain(unit)?;
    ensure(
        pages == expected,
        How::Log,
        format_args!("drained {pages:?}, not {expected:?}"),
    )
}

pub(crate) fn a_fault_is_reported_once() -> Verdict {
    let machine = board(silicon().fault_records(3));
    let unit = up(&machine)?;
    fault(&machine, 1)?;
    logged(&unit, &[1])?;
    logged(&unit, &[])
}

pub(crate) fn the_log_goes_on_at_its_first_record() -> Verdict {
    let machine = board(silicon().fault_records(3));
    let unit = up(&machine)?;
    for page in [1, 2] {
        fault(&machine, page)?;
    }
    logged(&unit, &[1, 2])?;
    for page in [3, 4] {
        fault(&machine, page)?;
    }
    logged(&unit, &[3, 4])
}

pub(crate) fn recording_goes_on_after_an_overflow() -> Verdict {
    let machine = board(silicon().fault_records(2));
    let unit = up(&machine)?;
    for page in 1..5 {
        fault(&machine, page)?;
    }
    logged(&unit, &[1, 2])?;
    fault(&machine, 9)?;
    logged(&unit, &[9])
}

pub(crate) fn a_unit_that_is_handed_on_is_silent() -> Verdict {
    let machine = board(silicon());
    let unit = up(&machine)?;
    unit.set_fault_event(Some(EventMessage {
        address: 0xfee0_0000,
        data: 0x41,
    }));
    unit.shut_down().must()?;
    let control = EventControl::new_with_raw_value(machine.register32(offset::FECTL));
    ensure(
        control.im(),
        How::Words,
        "the unit may still interrupt whoever has it now",
    )
}
