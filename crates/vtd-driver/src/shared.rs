//! What all handles of one unit share.

use iommu_types::omission::{Step, kept};
use iommu_types::{Clock, Coherence, HostPhys, Registers, TableMemory};
use spin::Mutex;

use crate::attach::Structures;
use crate::capabilities::Capabilities;
use crate::command::{Command, Shadow};
use crate::error::HardwareError;
use crate::fault::FaultWatch;
use crate::health::{Health, Loss, Poison};
use crate::interrupt::InterruptTable;
use crate::invalidate::{Invalidation, Invalidator};
use crate::options::{TableMode, UnitOptions};

/// What the driver needs of its host: memory for tables, cache write-back, time.
///
/// Implemented for everything that has the three; hosts implement the parts. One value serves one unit, so a
/// host hands out references or reference-counted handles.
pub trait Host: TableMemory + Coherence + Clock {}

impl<T: TableMemory + Coherence + Clock> Host for T {}

/// A unit that was taken over.
///
/// Lock order: structures or interrupts, then the queue's or the command lock. Page tables need no lock. None
/// of the locks is taken to look at faults, except the one that keeps two drains apart.
pub(crate) struct Shared<R, P> {
    pub(crate) registers: R,
    pub(crate) host: P,
    pub(crate) capabilities: Capabilities,
    pub(crate) options: UnitOptions,
    pub(crate) command: Mutex<Shadow>,
    pub(crate) invalidator: Invalidator,
    /// Where the root table is: for looking at it without the lock.
    pub(crate) root: HostPhys,
    pub(crate) structures: Mutex<Structures>,
    pub(crate) interrupts: Mutex<Option<InterruptTable>>,
    pub(crate) faults: Mutex<FaultWatch>,
    pub(crate) poison: Poison,
}

impl<R: Registers, P: Host> Shared<R, P> {
    pub(crate) fn health(&self) -> Health {
        self.poison.health()
    }

    /// Fails if the unit has lost something before.
    pub(crate) fn require_health(&self) -> Result<(), HardwareError> {
        let health = self.health();
        if health.is_good() {
            Ok(())
        } else {
            Err(HardwareError::Poisoned(health))
        }
    }

    /// Remembers what an error means for the unit.
    pub(crate) fn note<T>(&self, result: Result<T, HardwareError>) -> Result<T, HardwareError> {
        match &result {
            Err(HardwareError::Gone { .. }) => self.poison.record(Loss::Gone),
            Err(HardwareError::CommandTimeout { .. }) => self.poison.record(Loss::Command),
            Err(HardwareError::InvalidationTimeout { .. }) if !kept(Step::WaitsStayApart) => {}
            Err(
                HardwareError::InvalidationTimeout { .. }
                | HardwareError::DescriptorRefused { .. }
                | HardwareError::InvalidationIgnored { .. },
            ) => self.poison.record(Loss::Invalidation),
            // A device that does not answer says nothing about the unit; what was asked can be asked again.
            Err(HardwareError::Poisoned(_) | HardwareError::DeviceTimeout { .. }) | Ok(_) => {}
        }
        result
    }

    /// Issues one global command and waits for its acknowledgement.
    pub(crate) fn command(&self, command: Command) -> Result<(), HardwareError> {
        self.require_health()?;
        let mut shadow = self.command.lock();
        let limit = self.options.timeouts.command_ns;
        let result = shadow.issue(&self.registers, &self.host, command, limit);
        self.note(result)
    }

    /// Invalidates, in this order, and waits until the unit has confirmed all of it.
    pub(crate) fn invalidate(&self, batch: &[Invalidation]) -> Result<(), HardwareError> {
        self.require_health()?;
        self.note(self.invalidator.run(self, batch))
    }

    /// Invalidates step by step: each is confirmed before the next is asked for, since a unit may carry out what is
    /// behind one wait in any order, and fill one cache from another in between (rule D1, `VT-d §6.5.2.9`, FN).
    pub(crate) fn invalidate_in_turn(&self, steps: &[&[Invalidation]]) -> Result<(), HardwareError> {
        if !kept(Step::DependentWaits) {
            return self.invalidate(&steps.concat());
        }
        let mut steps = steps.iter().filter(|step| !step.is_empty());
        steps.try_for_each(|step| self.invalidate(step))
    }

    /// Has the unit confirm an empty batch.
    pub(crate) fn try_queue(&self) -> Result<(), HardwareError> {
        self.note(self.invalidator.confirm(self))
    }

    /// Invalidates everything about translation, each cache before those that are filled from it (rule D1).
    pub(crate) fn invalidate_globally(&self) -> Result<(), HardwareError> {
        let pasids = match self.options.mode {
            TableMode::Legacy => &[][..],
            TableMode::Scalable => &[Invalidation::PasidCacheGlobal],
        };
        self.invalidate_in_turn(&[&[Invalidation::ContextGlobal], pasids, &[Invalidation::IotlbGlobal]])
    }

    /// The largest address mask of page-selective invalidation; `None` if there is none.
    pub(crate) fn page_selective(&self) -> Option<u8> {
        let mask = self.capabilities.page_selective()?;
        Some(mask.min(self.options.quirks.max_address_mask.unwrap_or(mask)))
    }

    /// Makes `len` bytes of tables at `at` visible to a unit whose walks do not snoop (rule D11).
    pub(crate) fn write_back(&self, at: HostPhys, len: u64) {
        if !self.walks_snoop() && kept(Step::StructuresWrittenBack) {
            self.host.write_back(at, len);
        }
    }

    /// Whether the unit's walks see the processors' caches, for every kind of table in the mode it is driven
    /// in (`ECAP_REG.C`, and `ECAP_REG.SMPWCS` in scalable mode).
    pub(crate) fn walks_snoop(&self) -> bool {
        let scalable = self.options.mode == TableMode::Scalable;
        self.capabilities.coherent() && (!scalable || self.capabilities.ecap.smpwcs())
    }

    /// What a unit without caching mode needs after an entry became present: the write buffers flushed, if it
    /// has any that software must care for (`VT-d §6.8`, `CAP_REG.RWBF`).
    pub(crate) fn flush_write_buffer(&self) -> Result<(), HardwareError> {
        let wanted = self.capabilities.cap.rwbf() || self.options.quirks.flush_write_buffers;
        if wanted && kept(Step::WriteBuffersFlushed) {
            self.command(Command::FlushWriteBuffer)?;
        }
        Ok(())
    }
}
