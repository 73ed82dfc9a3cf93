//! Remapping units as the machine holds them, and their registers as a driver sees them.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use iommu_types::{HostPhys, NodeId, Registers, Segment};
use vtd_model::{AccessWidth, Counters, Unit, UnitConfig};

use crate::interrupts::{Arrival, Sender};
use crate::machine::Machine;

/// What is known about a unit from the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitInfo {
    /// Position among the machine's units.
    pub index: usize,
    /// Positions of its DRHD structures among all of the table; more than one if firmware repeats itself.
    pub drhds: Vec<usize>,
    /// Where its registers are.
    pub base: HostPhys,
    /// The segment it serves.
    pub segment: Segment,
    /// The node for its structures (RHSA).
    pub node: Option<NodeId>,
    /// Whether it serves what no other unit names.
    pub include_pci_all: bool,
}

/// A DRHD structure from which no unit was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedUnit {
    /// Position among the DRHD structures of the table.
    pub drhd: usize,
    /// Offset of the structure in the table, in bytes.
    pub offset: usize,
    /// The base address it gives.
    pub base: HostPhys,
    /// Why.
    pub why: UnitRefusal,
}

/// Why a DRHD structure is not a unit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitRefusal {
    /// The base is 0 or all ones.
    #[error("its register base is 0 or all ones, so there is nothing to drive; the firmware has to name the address")]
    NoBase,
    /// The base does not start a page.
    #[error("its register base is not a multiple of 4 KiB; the firmware has to name the start of the register set")]
    Unaligned,
    /// The base is an address of memory.
    #[error("its register base is an address of memory; the firmware has to name the address of the registers")]
    InMemory,
    /// An earlier structure has the same base: it describes the same unit, which serves the devices of both.
    #[error("it repeats the base of unit {0}, which serves the devices of both")]
    Duplicate(usize),
}

impl fmt::Display for RefusedUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "DRHD at offset {:#x} (base {}) is not used: {}",
            self.offset, self.base, self.why
        )
    }
}

/// A unit of the machine.
#[derive(Debug)]
pub(crate) struct UnitSlot {
    pub(crate) info: UnitInfo,
    window_len: u32,
    unit: Mutex<Unit>,
}

impl UnitSlot {
    pub(crate) fn new(info: UnitInfo, config: UnitConfig) -> Self {
        let unit = Unit::new(config);
        Self {
            info,
            window_len: unit.window_len(),
            unit: Mutex::new(unit),
        }
    }

    /// The unit. Its state is consistent after a panic of another holder as far as the model goes: the model
    /// does not panic, and everything that can is outside of it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Unit> {
        self.unit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Unit>> {
        match self.unit.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Machine {
    /// The units that were made from the table, in its order.
    pub fn units(&self) -> impl ExactSizeIterator<Item = &UnitInfo> {
        self.shared.units.iter().map(|slot| &slot.info)
    }

    /// DRHD structures that are no unit of their own, with the reason.
    #[must_use]
    pub fn refused_units(&self) -> &[RefusedUnit] {
        &self.shared.refused
    }

    /// The register window of unit `index`.
    #[must_use]
    pub fn registers(&self, index: usize) -> Option<UnitRegisters> {
        self.shared.units.get(index)?;
        Some(UnitRegisters {
            machine: self.clone(),
            index,
        })
    }

    /// The unit whose registers are at `base`.
    #[must_use]
    pub fn unit_at(&self, base: HostPhys) -> Option<&UnitInfo> {
        self.units().find(|unit| unit.base == base)
    }

    /// What unit `index` has done so far.
    #[must_use]
    pub fn unit_counters(&self, index: usize) -> Option<Counters> {
        Some(self.shared.units.get(index)?.lock().counters())
    }

    /// Runs `action` with the model of unit `index`: for inspection by tests and tools, not for drivers.
    pub fn with_unit<R>(&self, index: usize, action: impl FnOnce(&mut Unit) -> R) -> Option<R> {
        let slot = self.shared.units.get(index)?;
        let mut unit = slot.lock();
        let result = action(&mut unit);
        self.deliver_events(index, &mut unit);
        Some(result)
    }

    /// Lets queued work of all units progress; true if something was done. A unit that another thread is
    /// using is left alone: that thread makes progress.
    pub(crate) fn step_units(&self) -> bool {
        let mut progress = false;
        for slot in &self.shared.units {
            if let Some(mut unit) = slot.try_lock() {
                progress |= unit.step(&self.shared.memory);
                self.deliver_events(slot.info.index, &mut unit);
            }
        }
        progress
    }

    /// Passes the unit's own messages on. They are not remapped (VT-d §5.1.6).
    pub(crate) fn deliver_events(&self, index: usize, unit: &mut Unit) {
        // Bounded: each event source of a unit keeps one message.
        while let Some(message) = unit.take_message() {
            self.shared
                .interrupts
                .push(Arrival::unmodified(Sender::Unit(index), message.address, message.data));
        }
    }
}

/// The registers of one unit: what a driver maps. Cheap to clone.
///
/// An access takes effect before it returns. Work that the unit does by itself progresses in
/// [`iommu_types::Clock::relax`] of the machine.
#[derive(Clone, Debug)]
pub struct UnitRegisters {
    machine: Machine,
    index: usize,
}

impl UnitRegisters {
    /// Position of the unit among the machine's units.
    #[must_use]
    pub const fn unit(&self) -> usize {
        self.index
    }

    fn access<R>(&self, gone: R, action: impl FnOnce(&mut Unit, &Machine) -> R) -> R {
        let Some(slot) = self.machine.shared.units.get(self.index) else {
            return gone;
        };
        let mut unit = slot.lock();
        let result = action(&mut unit, &self.machine);
        self.machine.deliver_events(self.index, &mut unit);
        result
    }

    fn write(&self, offset: u32, width: AccessWidth, value: u64) {
        self.access((), |unit, machine| {
            unit.write(&machine.shared.memory, offset, width, value)
        });
    }
}

impl Registers for UnitRegisters {
    fn read32(&self, offset: u32) -> u32 {
        let value = self.access(u64::MAX, |unit, _| unit.read(offset, AccessWidth::Dword));
        u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX)
    }

    fn read64(&self, offset: u32) -> u64 {
        self.access(u64::MAX, |unit, _| unit.read(offset, AccessWidth::Qword))
    }

    fn write32(&self, offset: u32, value: u32) {
        self.write(offset, AccessWidth::Dword, value.into());
    }

    fn write64(&self, offset: u32, value: u64) {
        self.write(offset, AccessWidth::Qword, value);
    }

    fn window_len(&self) -> u32 {
        self.machine
            .shared
            .units
            .get(self.index)
            .map_or(0, |slot| slot.window_len)
    }
}
