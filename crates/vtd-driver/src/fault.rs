//! Reading what the unit recorded about blocked requests (`VT-d §7.2.1`, rule D16).

use alloc::collections::BTreeMap;

use iommu_types::omission::{Step, kept};
use iommu_types::{DomainId, HostPhys, Registers, SourceId};
use vtd_spec::register::{EventControl, FaultRecord, FaultStatus, offset};

use crate::error::HardwareError;
use crate::shared::{Host, Shared};
use crate::structures::lookup;

/// Most rounds through the fault recording registers in one drain: a device can fault faster than software
/// reads.
const MAX_ROUNDS: u32 = 2;

/// A blocked request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultReport {
    /// The record as the unit made it: who, where, why.
    pub record: FaultRecord,
    /// The domain that the requester is attached to while the record is read; `None` if it is attached to
    /// none, which for a translation fault means that it was blocked as a whole.
    pub domain: Option<DomainId>,
    /// The requester has used up its budget of faults for now ([`FaultBudget`]): consider
    /// [`crate::Unit::silence`], and turning its bus mastering off.
    pub storm: bool,
}

/// How many faults a requester may cause before its reports are marked as a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultBudget {
    /// Faults a requester has in one window.
    pub faults: u32,
    /// Length of a window in nanoseconds.
    pub window_ns: u64,
}

impl Default for FaultBudget {
    /// 64 faults a second.
    fn default() -> Self {
        Self {
            faults: 64,
            window_ns: 1_000_000_000,
        }
    }
}

/// Most requesters that are counted at the same time.
const MAX_WATCHED: usize = 256;

/// Counts the faults of each requester in the current window.
#[derive(Debug, Default)]
pub(crate) struct FaultWatch {
    window: u64,
    counts: BTreeMap<SourceId, u32>,
}

impl FaultWatch {
    /// Counts a fault; tells whether the requester is over its budget.
    fn count(&mut self, source: SourceId, now_ns: u64, budget: FaultBudget) -> bool {
        let window = now_ns / budget.window_ns.max(1);
        if window != self.window {
            self.window = window;
            self.counts.clear();
        }
        if !self.counts.contains_key(&source) && self.counts.len() >= MAX_WATCHED {
            // So many requesters at once are a storm of their own.
            return true;
        }
        let count = self.counts.entry(source).or_insert(0);
        *count = count.saturating_add(1);
        *count > budget.faults
    }
}

/// What a drain did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Records handed to the sink.
    pub records: u32,
    /// More requests were blocked than the unit had registers for: those were blocked, but not recorded.
    pub overflowed: bool,
    /// The bound of one drain was reached and records are left; drain again.
    pub more: bool,
}

/// Where the unit sends its fault event: the address and data of a message-signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventMessage {
    /// The address written.
    pub address: u64,
    /// The data written.
    pub data: u32,
}

impl<R: Registers, P: Host> Shared<R, P> {
    /// Hands every recorded fault to `sink`, frees its register, and lets recording go on after an overflow.
    pub(crate) fn drain_faults(
        &self,
        root: HostPhys,
        mut sink: impl FnMut(FaultReport),
    ) -> Result<Drained, HardwareError> {
        let mut watch = self.faults.lock();
        let mut drained = Drained::default();
        let status = self.note(fault_status(&self.registers))?;
        let count = u32::from(self.capabilities.cap.fault_record_count());
        if status.ppf() {
            // The ring starts at FRI and wraps after the last register.
            let mut index = u32::from(status.fri()) % count;
            for _ in 0..count * MAX_ROUNDS {
                let Some(record) = take_record(self, index)? else { break };
                drained.records += 1;
                let mode = self.options.mode;
                let domain = lookup(&self.host, mode, root, record.source(), record.pasid());
                let storm = watch.count(record.source(), self.host.now_ns(), self.options.fault_budget);
                sink(FaultReport { record, domain, storm });
                index += 1;
                if index == count {
                    if !kept(Step::RingWraps) {
                        break;
                    }
                    index = 0;
                }
            }
        }
        let status = self.note(fault_status(&self.registers))?;
        drained.overflowed = status.pfo();
        drained.more = status.ppf();
        if status.pfo() && !status.ppf() && kept(Step::OverflowCleared) {
            // Last, when every record is free: recording resumes with this write.
            self.registers
                .write32(offset::FSTS, FaultStatus::DEFAULT.with_pfo(true).raw_value());
        }
        Ok(drained)
    }

    /// Programs the fault event (`VT-d §11.4.7.2 (FECTL_REG)`): masked while it changes.
    pub(crate) fn set_fault_event(&self, message: Option<EventMessage>) {
        let masked = EventControl::DEFAULT.with_im(true);
        self.registers.write32(offset::FECTL, masked.raw_value());
        if let Some(EventMessage { address, data }) = message {
            let [low, high] = halves(address);
            self.registers.write32(offset::FEDATA, data);
            self.registers.write32(offset::FEADDR, low);
            self.registers.write32(offset::FEUADDR, high);
            self.registers.write32(offset::FECTL, EventControl::DEFAULT.raw_value());
        }
    }
}

fn halves(address: u64) -> [u32; 2] {
    [address & u64::from(u32::MAX), address >> 32].map(|half| u32::try_from(half).unwrap_or(0))
}

pub(crate) fn fault_status<R: Registers>(registers: &R) -> Result<FaultStatus, HardwareError> {
    match registers.read32(offset::FSTS) {
        u32::MAX => Err(HardwareError::Gone { offset: offset::FSTS }),
        raw => Ok(FaultStatus::new_with_raw_value(raw)),
    }
}

/// Reads fault record `index` if it holds a fault, and frees it.
fn take_record<R: Registers, P>(shared: &Shared<R, P>, index: u32) -> Result<Option<FaultRecord>, HardwareError> {
    record(&shared.registers, shared.capabilities.cap, index)
}

/// As [`take_record`], before a unit is shared.
pub(crate) fn record<R: Registers>(
    registers: &R,
    cap: vtd_spec::register::Capability,
    index: u32,
) -> Result<Option<FaultRecord>, HardwareError> {
    let at = cap.fault_record_offset(u8::try_from(index).unwrap_or(0));
    // F is in the upper half and is written last: while it is set, the lower half is valid.
    let high = registers.read64(at + 8);
    if high == u64::MAX {
        return Err(HardwareError::Gone { offset: at + 8 });
    }
    if !FaultRecord::from_words([0, high]).f() {
        return Ok(None);
    }
    let low = registers.read64(at);
    if kept(Step::RecordsFreed) {
        let [_, clear] = FaultRecord::DEFAULT.with_f(true).to_words();
        registers.write64(at + 8, clear);
    }
    Ok(Some(FaultRecord::from_words([low, high])))
}

/// Frees every fault record and clears every status that a previous owner left.
pub(crate) fn clear_all<R: Registers>(registers: &R, cap: vtd_spec::register::Capability) -> Result<(), HardwareError> {
    for index in 0..u32::from(cap.fault_record_count()) {
        record(registers, cap, index)?;
    }
    let all = FaultStatus::DEFAULT
        .with_pfo(true)
        .with_iqe(true)
        .with_ice(true)
        .with_ite(true);
    registers.write32(offset::FSTS, all.raw_value());
    fault_status(registers).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requester_over_its_budget_is_a_storm_until_the_next_window() {
        let budget = FaultBudget {
            faults: 2,
            window_ns: 100,
        };
        let mut watch = FaultWatch::default();
        let [noisy, quiet] = [1, 2].map(SourceId::from_raw);
        let storms = [10, 20, 30, 99].map(|now| watch.count(noisy, now, budget));
        assert_eq!(storms, [false, false, true, true]);
        assert!(!watch.count(quiet, 99, budget));
        assert!(!watch.count(noisy, 100, budget));
    }

    #[test]
    fn forged_requesters_do_not_make_the_watch_grow() {
        let mut watch = FaultWatch::default();
        let storms = (0..0x1_0000u32).filter(|raw| {
            let source = SourceId::from_raw(u16::try_from(*raw).expect("16 bits"));
            watch.count(source, 0, FaultBudget::default())
        });
        assert_eq!(storms.count(), 0x1_0000 - MAX_WATCHED);
        assert_eq!(watch.counts.len(), MAX_WATCHED);
    }
}
