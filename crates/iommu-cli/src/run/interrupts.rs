//! An interrupt that arrives, and one that is forged.

use iommu_devices::registers;
use iommu_types::{Bdf, Iova};
use iommu_vfio::Platform;
use vtd_driver::InterruptTarget;

use super::guests::Guest;
use super::matrix::Tally;
use super::probe::{Probed, Prober};

/// The vector that the guest's device raises.
const VECTOR: u8 = 0x41;
/// Where it goes.
const DESTINATION: u32 = 3;

/// What was seen.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Lines for people.
    pub(crate) lines: Vec<String>,
    /// What did not come out as it should.
    pub(crate) failed: Vec<String>,
    /// The forged accesses.
    pub(crate) forged: Tally,
}

/// Raises an interrupt of the first device of `guest` and has another function send the same message.
pub(crate) fn show(platform: &Platform, guest: &Guest) -> Result<Seen, String> {
    let mut seen = Seen {
        lines: Vec::new(),
        failed: Vec::new(),
        forged: Tally::default(),
    };
    let machine = platform.machine();
    let has_engine = |bdf: Bdf| machine.function(bdf).is_some_and(|function| function.engine);
    let Some(device) = guest.devices.iter().find(|device| has_engine(device.function())) else {
        let name = &guest.name;
        seen.lines
            .push(format!("not tried: no function of {name} has a DMA engine"));
        return Ok(seen);
    };
    let function = device.function();
    let unit = |bdf: Bdf| machine.function(bdf).and_then(|function| function.service.unit());
    let message = match device.enable_msi(&[InterruptTarget::fixed(VECTOR, DESTINATION)]) {
        Ok(message) => message,
        Err(why) => {
            // Where the unit remaps nothing there is nothing to try; where it does, this should not happen.
            let report = platform.report();
            let remaps = unit(function).is_some_and(|unit| {
                report
                    .units
                    .iter()
                    .any(|step| step.unit == unit && step.interrupts.is_ok())
            });
            let text = format!("{function}: interrupts are not remapped: {why}");
            if remaps { &mut seen.failed } else { &mut seen.lines }.push(text);
            return Ok(seen);
        }
    };
    let entry = device.interrupt_entries().map_or(0, |(first, _)| first);
    seen.lines.push(format!(
        "{function}: MSI {:#x}/{:#x} names entry {entry} of its unit's interrupt remapping table",
        message.address, message.data
    ));
    let _ = platform.take_interrupts();
    device
        .region_write(0, registers::INTERRUPT_RAISE, &1u32.to_le_bytes())
        .map_err(|why| why.to_string())?;
    let arrivals = platform.take_interrupts();
    device
        .region_write(0, registers::INTERRUPT_ACKNOWLEDGE, &1u32.to_le_bytes())
        .map_err(|why| why.to_string())?;
    match arrivals.as_slice() {
        [one] if one.vector == VECTOR && one.destination == DESTINATION && one.entry == Some(entry) => {
            seen.lines.push(format!("arrived: {one}"));
        }
        other => seen
            .failed
            .push(format!("{function}'s interrupt did not arrive as it should: {other:?}")),
    }

    // The same message from a function that the entry was not made for: one on the same unit, if there is one.
    let mut others: Vec<Bdf> = machine
        .functions()
        .filter(|other| other.engine && other.bdf != function && other.service.unit().is_some())
        .map(|other| other.bdf)
        .collect();
    others.sort_by_key(|other| unit(*other) != unit(function));
    if others.is_empty() {
        seen.lines
            .push("not forged: no other function that a unit serves has a DMA engine".to_owned());
    }
    if let Some(forger) = others.first().copied() {
        machine.set_command(forger, iommu_groups::pci::header::COMMAND_BUS_MASTER, true);
        let mut probed = Probed::default();
        let prober = Prober::new(platform);
        prober.message(forger, message.address, message.data, VECTOR, &mut probed)?;
        seen.forged = probed.tally;
        match (&probed.logged, probed.reached) {
            (Some(logged), 0) => {
                let at = Iova::new(message.address);
                seen.lines.push(format!(
                    "forged by {forger} at {at}: blocked, {}: {}",
                    logged.source, logged.reason
                ));
            }
            _ => seen.failed.push(format!(
                "{forger} forged an interrupt of {function}: {}",
                probed.evidence
            )),
        }
    }
    device.disable_msi().map_err(|why| why.to_string())?;
    Ok(seen)
}
