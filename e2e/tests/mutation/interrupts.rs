//! Interrupt remapping.

use iommu_types::{Registers, SourceId};
use vtd_driver::{
    ApicMode, EventMessage, InterruptBlock, InterruptError, InterruptOptions, InterruptSource, InterruptTarget,
};
use vtd_model::Interrupt;
use vtd_spec::register::{GlobalCommand, offset};

use crate::machine::Machine;
use crate::rig::{How, Miss, Must, TestUnit, Verdict, board, clean, ensure, miss, silicon, source, up};

fn nic() -> SourceId {
    source("02:00.0")
}

/// Interrupt remapping on, and one entry for the device.
fn one(unit: &TestUnit<'_>, mode: ApicMode) -> Result<(InterruptBlock, EventMessage), Miss> {
    let options = InterruptOptions { entries: 256, mode };
    unit.start_interrupt_remapping(options).must()?;
    let block = unit.allocate_interrupts(1, InterruptSource::Requester(nic())).must()?;
    let message = block.message(0).ok_or("none").must()?;
    Ok((block, message))
}

fn aim(unit: &TestUnit<'_>, block: &InterruptBlock, vector: u8, destination: u32) -> Verdict {
    let target = InterruptTarget::fixed(vector, destination);
    unit.set_interrupt(block, 0, Some(target)).must()
}

fn arrives(machine: &Machine, from: SourceId, message: EventMessage, vector: u8, destination: u32) -> Verdict {
    match machine.interrupt(from, message.address, message.data) {
        Ok(Interrupt::Remapped(arrived)) if (arrived.vector, arrived.destination) == (vector, destination) => Ok(()),
        other => miss(How::Interrupted, format_args!("{other:?}")),
    }
}

fn stopped(machine: &Machine, from: SourceId, message: EventMessage) -> Verdict {
    match machine.interrupt(from, message.address, message.data) {
        Err(_) => Ok(()),
        Ok(arrived) => miss(How::Interrupted, format_args!("{arrived:?}")),
    }
}

pub(crate) fn nobody_else_raises_the_interrupt() -> Verdict {
    let machine = board(silicon());
    let unit = up(&machine)?;
    let (block, message) = one(&unit, ApicMode::XApic)?;
    aim(&unit, &block, 0x41, 1)?;
    arrives(&machine, nic(), message, 0x41, 1)?;
    stopped(&machine, source("02:00.1"), message)?;
    clean(&machine)
}

pub(crate) fn an_interrupt_follows_its_target() -> Verdict {
    let machine = board(silicon());
    let unit = up(&machine)?;
    let (block, message) = one(&unit, ApicMode::XApic)?;
    aim(&unit, &block, 0x41, 1)?;
    arrives(&machine, nic(), message, 0x41, 1)?;
    aim(&unit, &block, 0x52, 2)?;
    arrives(&machine, nic(), message, 0x52, 2)?;
    unit.set_interrupt(&block, 0, None).must()?;
    stopped(&machine, nic(), message)?;
    clean(&machine)
}

pub(crate) fn the_previous_owners_interrupts_are_gone() -> Verdict {
    let machine = board(silicon());
    let message = {
        let old = up(&machine)?;
        let (block, message) = one(&old, ApicMode::XApic)?;
        aim(&old, &block, 0x41, 1)?;
        arrives(&machine, nic(), message, 0x41, 1)?;
        message
    };
    let unit = up(&machine)?;
    unit.start_interrupt_remapping(InterruptOptions::default()).must()?;
    stopped(&machine, nic(), message)?;
    clean(&machine)
}

pub(crate) fn compatibility_format_is_blocked() -> Verdict {
    let machine = board(silicon());
    // Whoever had the unit before let them pass.
    let command = GlobalCommand::DEFAULT.with_cfi(true).raw_value();
    Registers::write32(&&machine, offset::GCMD, command);
    machine.settle();
    let unit = up(&machine)?;
    unit.start_interrupt_remapping(InterruptOptions::default()).must()?;
    let forged = EventMessage {
        address: 0xfee0_1000,
        data: 0x31,
    };
    stopped(&machine, nic(), forged)?;
    clean(&machine)
}

pub(crate) fn wide_destinations_need_a_unit_that_has_them() -> Verdict {
    let machine = board(silicon().extended_interrupts(false));
    let unit = up(&machine)?;
    let options = InterruptOptions {
        entries: 256,
        mode: ApicMode::X2Apic,
    };
    if let Err(refused) = unit.start_interrupt_remapping(options) {
        return ensure(
            refused == InterruptError::WrongMode(ApicMode::X2Apic),
            How::Allowed,
            refused,
        );
    }
    let block = unit.allocate_interrupts(1, InterruptSource::Requester(nic())).must()?;
    let message = block.message(0).ok_or("none").must()?;
    aim(&unit, &block, 0x41, 0x1_0002)?;
    arrives(&machine, nic(), message, 0x41, 0x1_0002)
}
