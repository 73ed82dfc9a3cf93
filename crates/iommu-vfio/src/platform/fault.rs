//! What the units recorded about blocked requests.

use std::fmt;

use iommu_types::{Bdf, DomainId, Iova, SourceId};
use vtd_driver::{FaultReport, HardwareError};
use vtd_spec::fault::FaultReason;
use vtd_spec::register::FaultedRequest;

use super::{Owner, Platform};

/// Most drains of one unit in one call: a device can fault faster than software reads.
const MAX_DRAINS: usize = 64;

/// A blocked request as a unit recorded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The unit.
    pub unit: usize,
    /// The requester ID.
    pub source: SourceId,
    /// The functions whose requests can carry that ID.
    pub functions: Vec<Bdf>,
    /// What was asked for.
    pub access: FaultedAccess,
    /// Why it was blocked.
    pub reason: FaultReason,
    /// The domain that the requester is in.
    pub domain: Option<DomainId>,
    /// Who has the functions, by name; `None` for the host.
    pub owner: Option<String>,
}

/// What a blocked request asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultedAccess {
    /// Memory: what kind of request, and the page it went to.
    Memory(FaultedRequest, Iova),
    /// An interrupt, by its index in the remapping table.
    Interrupt(u16),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {}: {}", self.unit, self.source)?;
        match self.functions.as_slice() {
            [one] if one.source == self.source => {}
            functions => {
                let names: Vec<String> = functions.iter().map(Bdf::to_string).collect();
                if !names.is_empty() {
                    write!(f, " ({})", names.join(" or "))?;
                }
            }
        }
        match self.access {
            FaultedAccess::Memory(request, page) => {
                let what = match request {
                    FaultedRequest::Write => "write to",
                    FaultedRequest::Read => "read from",
                    FaultedRequest::Atomic => "atomic access to",
                    FaultedRequest::PageRequest => "page request for",
                };
                write!(f, " {what} {page}")?;
            }
            FaultedAccess::Interrupt(index) => write!(f, " interrupt with index {index}")?,
        }
        write!(f, " blocked: {:#04x}, {}", self.reason.0, self.reason.description())
    }
}

/// What a drain of all units brought.
#[derive(Clone, Debug, Default)]
pub struct FaultDrain {
    /// The faults, unit by unit, oldest first.
    pub faults: Vec<Fault>,
    /// Units that blocked more than they could record.
    pub overflowed: Vec<usize>,
    /// Units that do not answer.
    pub gone: Vec<(usize, HardwareError)>,
}

impl Platform {
    /// Reads and clears what the units recorded about blocked requests.
    #[must_use]
    pub fn drain_faults(&self) -> FaultDrain {
        let mut drain = FaultDrain::default();
        for (index, unit) in self.shared.units.iter().enumerate() {
            let Ok(unit) = unit else { continue };
            for _ in 0..MAX_DRAINS {
                let result = unit.drain_faults(|report| drain.faults.push(self.fault(index, &report)));
                match result {
                    Err(error) => {
                        drain.gone.push((index, error));
                        break;
                    }
                    Ok(drained) => {
                        if drained.overflowed && drain.overflowed.last() != Some(&index) {
                            drain.overflowed.push(index);
                        }
                        if !drained.more {
                            break;
                        }
                    }
                }
            }
        }
        drain
    }

    fn fault(&self, unit: usize, report: &FaultReport) -> Fault {
        let record = report.record;
        let source = record.source();
        let functions: Vec<Bdf> = self
            .shared
            .machine
            .functions()
            .filter(|info| info.service.unit() == Some(unit))
            .map(|info| info.bdf)
            .filter(|bdf| {
                self.shared
                    .topology
                    .aliases(*bdf)
                    .iter()
                    .any(|alias| alias.source == source)
            })
            .collect();
        let reason = record.reason();
        let access = if reason.is_interrupt() {
            FaultedAccess::Interrupt(record.interrupt_index())
        } else {
            FaultedAccess::Memory(record.request(), record.address())
        };
        let owner = functions.first().and_then(|bdf| self.group_of(*bdf)).and_then(|group| {
            let state = self.state();
            match state.owners.get(&group.id) {
                Some(Owner::User(user)) => Some(state.user_name(*user)),
                Some(Owner::Host) | None => None,
            }
        });
        Fault {
            unit,
            source,
            functions,
            access,
            reason,
            domain: report.domain,
            owner,
        }
    }
}
