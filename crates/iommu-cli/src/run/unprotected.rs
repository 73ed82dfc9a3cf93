//! The same machine without IOMMU: what the same accesses do there.

use iommu_types::Iova;

use super::grid::{Attempt, COMPATIBILITY_MESSAGE, FOREIGN_VECTOR, On};
use super::kind::Bench;
use super::matrix::Tally;
use super::probe::{Place, Probed, Prober};

/// Tries everything again on a machine without units, where memory and registers have the same addresses.
pub(crate) fn try_again(bench: &Bench, attempts: &[Attempt]) -> Result<Tally, String> {
    let mut probed = Probed::default();
    let machine = &bench.machine;
    let prober = Prober::without_unit(bench);
    for attempt in attempts {
        let requester = attempt.requester;
        machine.set_command(requester, iommu_groups::pci::header::COMMAND_BUS_MASTER, true);
        match attempt.on {
            On::Memory(at) => {
                prober.write(requester, Iova::new(at.raw()), Place::Memory(at), &mut probed)?;
                prober.read(requester, Iova::new(at.raw()), at, &mut probed)?;
            }
            On::Register(at) => {
                prober.write(requester, Iova::new(at.raw()), Place::Register(at), &mut probed)?;
            }
            On::Interrupt => {
                let data = u32::from(FOREIGN_VECTOR);
                prober.message(requester, COMPATIBILITY_MESSAGE, data, FOREIGN_VECTOR, &mut probed)?;
            }
        }
    }
    Ok(probed.tally)
}

/// How many accesses the attempts are.
pub(crate) fn accesses(attempts: &[Attempt]) -> u64 {
    attempts
        .iter()
        .map(|attempt| if matches!(attempt.on, On::Memory(_)) { 2 } else { 1 })
        .sum()
}
