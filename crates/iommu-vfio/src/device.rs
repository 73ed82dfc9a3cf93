//! Devices: one function in the hands of a user.

use iommu_types::Bdf;
use soft_platform::FunctionInfo;
use vmm_sys_util::eventfd::EventFd;
use vtd_driver::{EventMessage, InterruptSource, InterruptTarget};

use crate::backend::{Backend, DeviceBackend, InterruptKind, RegionInfo};
use crate::error::VfioError;
use crate::software::Software;

/// A function that a user has open.
///
/// It keeps its container's mappings alive. Dropping it turns bus mastering and interrupts off and resets it.
#[derive(Debug)]
pub struct Device<B: Backend = Software> {
    pub(crate) inner: B::Device,
}

impl<B: Backend> Device<B> {
    /// Where it is.
    #[must_use]
    pub fn function(&self) -> Bdf {
        self.inner.function()
    }

    /// Reads configuration space from byte `offset` on; all-ones where there is nothing.
    pub fn config_read(&self, offset: u16, into: &mut [u8]) {
        self.inner.config_read(offset, into);
    }

    /// Writes configuration space. A user may write the command and status registers, the cache line size and
    /// the interrupt line; everything else belongs to the host, which Linux pretends to write where it can.
    ///
    /// # Errors
    /// [`VfioError::Protected`] names what is there and what to use instead.
    pub fn config_write(&self, offset: u16, from: &[u8]) -> Result<(), VfioError> {
        self.inner.config_write(offset, from)
    }

    /// Allows the device to send requests, or forbids it (Bus Master Enable).
    pub fn set_bus_master(&self, on: bool) {
        self.inner.set_bus_master(on);
    }

    /// What is behind BAR `region`; `None` if there is none, or it does not answer.
    #[must_use]
    pub fn region(&self, region: u8) -> Option<RegionInfo> {
        self.inner.region(region)
    }

    /// Size of the region behind BAR `region` in bytes; `None` if there is none, or it does not answer.
    #[must_use]
    pub fn region_size(&self, region: u8) -> Option<u64> {
        self.inner.region(region).map(|info| info.size)
    }

    /// Reads from the region behind BAR `region`. The table of MSI-X belongs to the host and reads all-ones.
    ///
    /// # Errors
    /// [`VfioError::OutsideRegion`].
    pub fn region_read(&self, region: u8, offset: u64, into: &mut [u8]) -> Result<(), VfioError> {
        self.inner.region_read(region, offset, into)
    }

    /// Writes to the region behind BAR `region`. In software, DMA that the write starts is complete on return. Writes to
    /// the table of MSI-X are dropped.
    ///
    /// # Errors
    /// [`VfioError::OutsideRegion`].
    pub fn region_write(&self, region: u8, offset: u64, from: &[u8]) -> Result<(), VfioError> {
        self.inner.region_write(region, offset, from)
    }

    /// How many interrupts of `kind` the device has.
    #[must_use]
    pub fn interrupts(&self, kind: InterruptKind) -> u32 {
        self.inner.interrupts(kind)
    }

    /// Has interrupt `n` of `kind` counted in `events[n]`, and turns them on. Replaces what was set before. A line that
    /// was seen is masked until [`Self::unmask_line`].
    ///
    /// # Errors
    /// [`VfioError::InterruptCount`] if there are no events, or more than interrupts (MSI in software: not a power of
    /// two); [`VfioError::Interrupts`].
    pub fn enable_interrupts(&self, kind: InterruptKind, events: &[&EventFd]) -> Result<(), VfioError> {
        self.inner.enable_interrupts(kind, events)
    }

    /// Turns interrupts of `kind` off.
    ///
    /// # Errors
    /// [`VfioError::Interrupts`].
    pub fn disable_interrupts(&self, kind: InterruptKind) -> Result<(), VfioError> {
        self.inner.disable_interrupts(kind)
    }

    /// Lets the interrupt line be seen again; if it is still pulled, its event is counted at once.
    ///
    /// # Errors
    /// On Linux, what the kernel answers.
    pub fn unmask_line(&self) -> Result<(), VfioError> {
        self.inner.unmask_line()
    }

    /// Resets the function and nothing else. Its addresses and access control come back; bus mastering and
    /// interrupts are off afterwards.
    ///
    /// # Errors
    /// [`VfioError::NoReset`], [`VfioError::Interrupts`].
    pub fn reset(&self) -> Result<(), VfioError> {
        self.inner.reset()
    }
}

impl Device<Software> {
    /// What is known about it.
    #[must_use]
    pub fn info(&self) -> Option<&FunctionInfo> {
        self.inner.info()
    }

    /// The requesters that may use the device's interrupt entries: only itself, or, behind a bridge that takes
    /// requests over, the buses that its requester IDs are on (VT-d §5.1.3, SVT = 10).
    #[must_use]
    pub fn interrupt_source(&self) -> InterruptSource {
        self.inner.interrupt_source()
    }

    /// Routes the device's message-signalled interrupts to `targets`, one for each, through interrupt-remapping
    /// entries that only this device can use. Replaces what was set before.
    ///
    /// # Errors
    /// [`VfioError::InterruptCount`] if `targets` is not a power of two or more than the device has;
    /// [`VfioError::Interrupts`].
    pub fn enable_msi(&self, targets: &[InterruptTarget]) -> Result<EventMessage, VfioError> {
        self.inner.enable_msi(targets)
    }

    /// The first interrupt-remapping entry of the device and how many it has, while interrupts are enabled.
    #[must_use]
    pub fn interrupt_entries(&self) -> Option<(u16, u16)> {
        self.inner.interrupt_entries()
    }

    /// Turns message-signalled interrupts off and gives the entries back.
    ///
    /// # Errors
    /// [`VfioError::Interrupts`]; the entries stay taken then.
    pub fn disable_msi(&self) -> Result<(), VfioError> {
        self.inner.disable_messages()
    }
}
