//! What every emulated PCI function can do.

use core::any::Any;
use core::fmt;

use iommu_types::Iova;

use crate::bus::{Bus, DmaError, DmaErrorKind};
use crate::config::{ConfigSpace, Effects, ResetKind};

/// An emulated PCI function.
///
/// A platform owns functions, decodes addresses with their [`ConfigSpace`] and hands each a [`Bus`] that
/// carries its requester ID. Functions hold no lock and know no other function, so a platform may keep each one
/// behind a lock of its own.
///
/// To get at a concrete function, go through [`Any`]:
/// `(function as &dyn Any).downcast_ref::<DmaEngine>()`.
pub trait Function: Any + Send + fmt::Debug {
    /// The configuration space.
    fn config(&self) -> &ConfigSpace;

    /// The configuration space, to change. Software's writes go through [`Self::config_write`] instead, which
    /// also carries out the resets they ask for.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// Reads from BAR `bar` at byte `offset`. Bytes that nothing decodes read all-ones.
    fn bar_read(&mut self, bar: u8, offset: u64, into: &mut [u8]);

    /// Writes to BAR `bar` at byte `offset`. Bytes that nothing decodes are dropped.
    ///
    /// A write that starts a DMA completes it through `bus` before returning; what became of it is in the
    /// function's registers, as on hardware.
    fn bar_write(&mut self, bar: u8, offset: u64, from: &[u8], bus: &dyn Bus);

    /// Does what a configuration write made possible and needs the bus for: sends interrupts that were held back.
    /// A platform calls it after [`Self::config_write`].
    fn settle(&mut self, _bus: &dyn Bus) {}

    /// Puts the function into its state after reset, configuration space included.
    fn reset(&mut self, kind: ResetKind);

    /// Reads configuration space; bytes past its end read all-ones.
    fn config_read(&self, offset: u16, into: &mut [u8]) {
        self.config().read(offset, into);
    }

    /// Writes configuration space as software does, and resets the function if the write asks for it.
    fn config_write(&mut self, offset: u16, from: &[u8]) -> Effects {
        let effects = self.config_mut().write(offset, from);
        if let Some(kind) = effects.reset {
            self.reset(kind);
        }
        effects
    }

    /// Issues a read of this function on its `bus`, as far as its command register allows it to.
    ///
    /// # Errors
    /// [`DmaErrorKind::BusMasterDisabled`], or what the bus reports.
    fn dma_read(&self, bus: &dyn Bus, iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        may_issue(self.config(), iova, into.len())?;
        bus.dma_read(iova, into)
    }

    /// Issues a write of this function on its `bus`, as far as its command register allows it to.
    ///
    /// # Errors
    /// [`DmaErrorKind::BusMasterDisabled`], or what the bus reports.
    fn dma_write(&self, bus: &dyn Bus, iova: Iova, from: &[u8]) -> Result<(), DmaError> {
        may_issue(self.config(), iova, from.len())?;
        bus.dma_write(iova, from)
    }

    /// Sends MSI vector `vector`; returns whether MSI was enabled.
    ///
    /// # Errors
    /// As [`Self::dma_write`]: an interrupt message is a write.
    fn send_msi(&self, bus: &dyn Bus, vector: u8) -> Result<bool, DmaError> {
        match self.config().msi_message(vector) {
            None => Ok(false),
            Some(_) if bus.raise(vector.into()) => Ok(true),
            Some(message) => self
                .dma_write(bus, message.address, &message.data.to_le_bytes())
                .map(|()| true),
        }
    }
}

/// Whether a function with this configuration may send a request of `len` bytes at `iova`.
pub(crate) fn may_issue(config: &ConfigSpace, iova: Iova, len: usize) -> Result<(), DmaError> {
    if !config.bus_master() {
        return Err(DmaError::new(iova, DmaErrorKind::BusMasterDisabled));
    }
    let fits = match u64::try_from(len) {
        Ok(0) => true,
        Ok(len) => iova.checked_add(len - 1).is_some(),
        Err(_) => false,
    };
    if fits {
        Ok(())
    } else {
        Err(DmaError::new(iova, DmaErrorKind::OutOfRange))
    }
}
