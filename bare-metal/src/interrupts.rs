//! Checks of interrupt remapping: the device's message arrives where its entry leads, and nowhere else.

use alloc::format;

use vtd_driver::{EventMessage, FaultReport, InterruptBlock, InterruptOptions, InterruptSource, InterruptTarget};
use vtd_spec::fault::FaultReason;
use vtd_spec::message::RemappableAddress;

use crate::rig::{Checked, Rig, ensure, text};
use crate::translation::Check;

/// In the order in which they run.
pub(crate) const CHECKS: &[Check] = &[
    ("interrupts are remapped, and follow a change", remapped),
    ("a blocked entry raises nothing", blocked),
    ("an entry of another device is refused", of_another),
    ("an entry that nobody programmed is refused", unprogrammed),
    ("an index beyond the table is refused", beyond),
    ("the messages of one device go to vectors of their own", several),
];

/// Interrupts of the device.
fn source(rig: &Rig<'_>) -> InterruptSource {
    InterruptSource::Requester(rig.edu.source())
}

fn target(rig: &Rig<'_>, vector: u8) -> InterruptTarget {
    InterruptTarget::fixed(vector, rig.apic.id().into())
}

/// The device sends a message; the vector has to arrive.
fn arrives(rig: &Rig<'_>, message: EventMessage, vector: u8) -> Checked {
    ensure(!rig.apic.requested(vector), "the interrupt came before its message")?;
    rig.edu.interrupt(message);
    rig.no_fault()?;
    ensure(rig.apic.requested(vector), "the interrupt did not arrive")
}

/// The device sends a message; the unit has to refuse it.
fn refused(rig: &Rig<'_>, message: EventMessage, index: u16, reason: FaultReason) -> Checked {
    rig.edu.interrupt(message);
    let faults = rig.faults()?;
    if !rig.expected.interrupt_faults {
        return ensure(faults.is_empty(), "this QEMU records blocked interrupts after all");
    }
    let [FaultReport { record, .. }] = faults.as_slice() else {
        return Err(format!("{} faults recorded, not 1", faults.len()));
    };
    let found = (record.source(), record.interrupt_index(), record.reason());
    let expected = (rig.edu.source(), index, reason);
    if found == expected {
        Ok(())
    } else {
        Err(format!("the fault record says {found:x?}, expected {expected:x?}"))
    }
}

/// A message that names an entry the device was not given.
fn forged(index: u16) -> EventMessage {
    let address = RemappableAddress::DEFAULT.with_handle(index);
    EventMessage {
        address: address.raw_value().into(),
        data: 0,
    }
}

fn message(block: &InterruptBlock, number: u16) -> Result<EventMessage, &'static str> {
    block.message(number).ok_or("the block is too small")
}

fn remapped(rig: &Rig<'_>) -> Checked {
    let on = rig.unit.start_interrupt_remapping(InterruptOptions::default());
    on.map_err(text)?;
    let block = rig.unit.allocate_interrupts(1, source(rig)).map_err(text)?;
    for vector in [0x51, 0x52] {
        let target = target(rig, vector);
        rig.unit.set_interrupt(&block, 0, Some(target)).map_err(text)?;
        arrives(rig, message(&block, 0)?, vector)?;
    }
    release(rig, block)
}

fn release(rig: &Rig<'_>, block: InterruptBlock) -> Checked {
    rig.unit.release_interrupts(block).map_err(|(error, _)| text(error))
}

fn blocked(rig: &Rig<'_>) -> Checked {
    let block = rig.unit.allocate_interrupts(1, source(rig)).map_err(text)?;
    let (index, used) = (block.first(), message(&block, 0)?);
    refused(rig, used, index, FaultReason::IRTE_NOT_PRESENT)?;
    rig.unit
        .set_interrupt(&block, 0, Some(target(rig, 0x53)))
        .map_err(text)?;
    arrives(rig, used, 0x53)?;
    // The vector of a blocked entry is 0 and raises nothing; the one it had waits already, so take another.
    rig.unit
        .set_interrupt(&block, 0, Some(target(rig, 0x54)))
        .map_err(text)?;
    rig.unit.set_interrupt(&block, 0, None).map_err(text)?;
    refused(rig, used, index, FaultReason::IRTE_NOT_PRESENT)?;
    rig.unit
        .set_interrupt(&block, 0, Some(target(rig, 0x55)))
        .map_err(text)?;
    release(rig, block)?;
    refused(rig, used, index, FaultReason::IRTE_NOT_PRESENT)?;
    let silent = [0x54, 0x55].into_iter().all(|vector| !rig.apic.requested(vector));
    ensure(silent, "an interrupt arrived through a blocked entry")
}

/// Either device sends the other's message.
fn of_another(rig: &Rig<'_>) -> Checked {
    let there = rig.exchanged();
    for (owner, thief, vectors) in [(rig, &there, [0x56, 0x57]), (&there, rig, [0x5c, 0x5d])] {
        let [stolen, own] = vectors;
        let block = rig.unit.allocate_interrupts(1, source(owner)).map_err(text)?;
        let message = message(&block, 0)?;
        rig.unit
            .set_interrupt(&block, 0, Some(target(rig, stolen)))
            .map_err(text)?;
        refused(thief, message, block.first(), FaultReason::INTERRUPT_SOURCE_INVALID)?;
        ensure(!rig.apic.requested(stolen), "the interrupt of another device arrived")?;
        rig.unit
            .set_interrupt(&block, 0, Some(target(rig, own)))
            .map_err(text)?;
        arrives(owner, message, own)?;
        release(rig, block)?;
    }
    Ok(())
}

fn unprogrammed(rig: &Rig<'_>) -> Checked {
    refused(rig, forged(200), 200, FaultReason::IRTE_NOT_PRESENT)
}

fn beyond(rig: &Rig<'_>) -> Checked {
    let index = 0x1000;
    refused(rig, forged(index), index, FaultReason::INTERRUPT_INDEX_BEYOND_TABLE)
}

fn several(rig: &Rig<'_>) -> Checked {
    let block = rig.unit.allocate_interrupts(4, source(rig)).map_err(text)?;
    for (number, vector) in [(0, 0x58), (1, 0x59), (2, 0x5a), (3, 0x5b)] {
        let target = target(rig, vector);
        rig.unit.set_interrupt(&block, number, Some(target)).map_err(text)?;
    }
    // Entry by entry in the address, and by the data as a device with several messages has it.
    arrives(rig, message(&block, 1)?, 0x59)?;
    let third = EventMessage {
        data: 2,
        ..block.multi_message()
    };
    arrives(rig, third, 0x5a)?;
    let others = [0x58, 0x5b].into_iter().all(|vector| !rig.apic.requested(vector));
    ensure(others, "a message raised more than one interrupt")?;
    release(rig, block)
}
