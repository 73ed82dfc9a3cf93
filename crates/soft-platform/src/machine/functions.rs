//! Functions: their configuration space, BARs and resets, as the processors reach them.

use std::any::Any;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLockReadGuard};

use iommu_devices::{Bar, BarKind, Bus, DmaEngine, Effects, Function, ResetKind};
use iommu_groups::ConfigAccess;
use iommu_groups::pci::header;
use iommu_types::{AddrRange, Bdf, BusError, HostPhys, PAGE_SIZE};

use super::{Machine, Service};
use crate::description::FunctionKind;
use crate::fabric::Decodes;
use crate::route::Decode;

/// What is known about a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionInfo {
    /// Where it is.
    pub bdf: Bdf,
    /// What people call it.
    pub name: String,
    /// What it is.
    pub kind: FunctionKind,
    /// The port or bridge above it; `None` on a root bus.
    pub parent: Option<Bdf>,
    /// Whether it has a DMA engine.
    pub engine: bool,
    /// Address bits it puts on the bus.
    pub dma_bits: u8,
    /// Made up, since the table implies that something is there but does not name it.
    pub synthetic: bool,
    /// Who looks at its DMA.
    pub service: Service,
}

/// There is no such function, or it is not what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoFunction {
    /// Nothing stands at this address.
    #[error("there is no function {0}; `Machine::functions` lists those that are there")]
    Absent(Bdf),
    /// The function has no DMA engine.
    #[error("function {0} has no DMA engine; give it `engine = true` in the machine file")]
    NoEngine(Bdf),
    /// The registers of a replacement do not fit where the old ones were.
    #[error("the registers of the replacement for {function} take {needed:#x} bytes and there is room for {room:#x}")]
    NoRoom {
        /// Where.
        function: Bdf,
        /// Size of BAR 0 of the replacement, in bytes.
        needed: u64,
        /// Size of BAR 0 of what is there, in bytes.
        room: u64,
    },
}

/// A function in its place.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) info: FunctionInfo,
    pub(crate) function: Mutex<Box<dyn Function>>,
}

impl Slot {
    /// The function. One whose holder panicked is as consistent as a device that was interrupted.
    fn lock(&self) -> MutexGuard<'_, Box<dyn Function>> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    /// All functions; ports and bridges before what is below them.
    pub fn functions(&self) -> impl ExactSizeIterator<Item = &FunctionInfo> {
        self.shared.functions.iter().map(|slot| &slot.info)
    }

    /// The function at `bdf`.
    #[must_use]
    pub fn function(&self, bdf: Bdf) -> Option<&FunctionInfo> {
        self.slot(bdf).map(|(_, slot)| &slot.info)
    }

    fn slot(&self, bdf: Bdf) -> Option<(usize, &Slot)> {
        let index = self.shared.tree.index_of(bdf)?;
        Some((index, self.shared.functions.get(index)?))
    }

    pub(crate) fn service_of(&self, index: usize) -> Option<Service> {
        Some(self.shared.functions.get(index)?.info.service)
    }

    pub(crate) fn decodes(&self) -> RwLockReadGuard<'_, Decodes> {
        self.shared.decodes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what function `index` answers to now.
    fn reroute(&self, index: usize, function: &dyn Function) {
        let decode = Decode::of(function.config());
        let mut decodes = self.shared.decodes.write().unwrap_or_else(PoisonError::into_inner);
        decodes.replace(index, decode);
    }

    /// Reads configuration space of `bdf` from byte `offset`; all-ones where there is nothing.
    pub fn config_read(&self, bdf: Bdf, offset: u16, into: &mut [u8]) {
        match self.slot(bdf) {
            Some((_, slot)) => slot.lock().config_read(offset, into),
            None => into.fill(0xff),
        }
    }

    /// The 32-bit configuration register of `bdf` at `offset`; all-ones where there is nothing.
    #[must_use]
    pub fn config_read32(&self, bdf: Bdf, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.config_read(bdf, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// The 16-bit configuration register of `bdf` at `offset`; all-ones where there is nothing.
    #[must_use]
    pub fn config_read16(&self, bdf: Bdf, offset: u16) -> u16 {
        let mut bytes = [0; 2];
        self.config_read(bdf, offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Writes configuration space of `bdf` at byte `offset`, with everything that follows from it: routing, a
    /// reset of the function, a reset of all that is below a bridge.
    pub fn config_write(&self, bdf: Bdf, offset: u16, from: &[u8]) {
        let Some((index, slot)) = self.slot(bdf) else { return };
        let mut function = slot.lock();
        let effects: Effects = function.config_write(offset, from);
        if effects.routing {
            self.reroute(index, &**function);
        }
        if let Some(bus) = self.bus(bdf) {
            function.settle(&bus);
        }
        drop(function);
        if effects.secondary_reset {
            self.reset_below(index);
        }
    }

    /// A conventional reset of everything below function `index`. A parent has a lower index than its child.
    fn reset_below(&self, index: usize) {
        let mut reset = vec![false; self.shared.functions.len()];
        for (child, description) in self.shared.description.functions.iter().enumerate() {
            let below = description
                .parent
                .is_some_and(|parent| parent == index || reset.get(parent) == Some(&true));
            if let (true, Some(flag), Some(slot)) = (below, reset.get_mut(child), self.shared.functions.get(child)) {
                *flag = true;
                let mut function = slot.lock();
                function.reset(ResetKind::Conventional);
                self.reroute(child, &**function);
            }
        }
    }

    /// Sets or clears bits of the command register of `bdf`: [`header::COMMAND_BUS_MASTER`] and its like.
    pub fn set_command(&self, bdf: Bdf, bits: u16, on: bool) {
        let command = self.config_read16(bdf, header::COMMAND);
        let command = if on { command | bits } else { command & !bits };
        self.config_write(bdf, header::COMMAND, &command.to_le_bytes());
    }

    /// The addresses where BAR `bar` of `bdf` answers; `None` while it does not.
    #[must_use]
    pub fn bar_range(&self, bdf: Bdf, bar: u8) -> Option<AddrRange<HostPhys>> {
        self.slot(bdf)?.1.lock().config().bar_range(bar)
    }

    /// Reads registers of functions at `at`, as a processor does.
    ///
    /// # Errors
    /// [`BusError`] if no function answers there.
    pub fn mmio_read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError> {
        let (bdf, bar, offset) = self.decode(at).ok_or(BusError { at })?;
        let (_, slot) = self.slot(bdf).ok_or(BusError { at })?;
        slot.lock().bar_read(bar, offset, into);
        Ok(())
    }

    /// Writes registers of functions at `at`, as a processor does. DMA that the write starts is complete when
    /// this returns.
    ///
    /// # Errors
    /// [`BusError`] if no function answers there.
    pub fn mmio_write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError> {
        let (bdf, bar, offset) = self.decode(at).ok_or(BusError { at })?;
        let (_, slot) = self.slot(bdf).ok_or(BusError { at })?;
        let bus = self.bus(bdf).ok_or(BusError { at })?;
        slot.lock().bar_write(bar, offset, from, &bus);
        Ok(())
    }

    /// Runs `action` with the function at `bdf` and the bus as it sees it, without a driver in between.
    ///
    /// # Errors
    /// [`NoFunction::Absent`].
    pub fn with_function<R>(
        &self,
        bdf: Bdf,
        action: impl FnOnce(&mut dyn Function, &dyn Bus) -> R,
    ) -> Result<R, NoFunction> {
        let (index, slot) = self.slot(bdf).ok_or(NoFunction::Absent(bdf))?;
        let bus = self.bus(bdf).ok_or(NoFunction::Absent(bdf))?;
        let mut function = slot.lock();
        let result = action(&mut **function, &bus);
        // The action may have changed the configuration by the back door.
        self.reroute(index, &**function);
        Ok(result)
    }

    /// Puts another card into the slot of `bdf` and returns the one that was there. BAR 0 of `function` gets the
    /// address that firmware gave the old one's; it must not be larger. For use before a driver looks at the machine.
    ///
    /// # Errors
    /// [`NoFunction::Absent`], [`NoFunction::NoRoom`] if its BAR 0 is larger than the old one's.
    pub fn replace(&self, bdf: Bdf, mut function: Box<dyn Function>) -> Result<Box<dyn Function>, NoFunction> {
        let (index, slot) = self.slot(bdf).ok_or(NoFunction::Absent(bdf))?;
        let mut place = slot.lock();
        let (old, new) = (place.config().bar(0), function.config().bar(0));
        let (room, needed) = (old.map_or(0, Bar::size), new.map_or(0, Bar::size));
        // Placement gives each function whole pages.
        if needed > room.max(PAGE_SIZE) || (needed > 0 && room == 0) {
            return Err(NoFunction::NoRoom {
                function: bdf,
                needed,
                room,
            });
        }
        if let Some(base) = place.config().bar_base(0) {
            let base = base.to_le_bytes();
            let width = if new.is_some_and(|bar| bar.kind() == BarKind::Memory64) {
                8
            } else {
                4
            };
            let _ = function.config_write(header::BAR0, base.get(..width).unwrap_or_default());
        }
        let command = place.config().command();
        let _ = function.config_write(header::COMMAND, &command.to_le_bytes());
        let old = std::mem::replace(&mut *place, function);
        self.reroute(index, &**place);
        Ok(old)
    }

    /// Runs `action` with the DMA engine at `bdf` and the bus as it sees it.
    ///
    /// # Errors
    /// [`NoFunction`] if there is no function, or one without an engine.
    pub fn with_engine<R>(
        &self,
        bdf: Bdf,
        action: impl FnOnce(&mut DmaEngine, &dyn Bus) -> R,
    ) -> Result<R, NoFunction> {
        let (_, slot) = self.slot(bdf).ok_or(NoFunction::Absent(bdf))?;
        let bus = self.bus(bdf).ok_or(NoFunction::Absent(bdf))?;
        let mut function = slot.lock();
        let any: &mut dyn Any = &mut **function;
        match any.downcast_mut::<DmaEngine>() {
            Some(engine) => Ok(action(engine, &bus)),
            None => Err(NoFunction::NoEngine(bdf)),
        }
    }
}

/// For `iommu-groups`, which forms groups from configuration space.
impl ConfigAccess for Machine {
    fn read32(&self, function: Bdf, offset: u16) -> Option<u32> {
        Some(self.config_read32(function, offset))
    }
}
