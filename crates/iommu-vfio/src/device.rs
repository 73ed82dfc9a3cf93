//! Devices: one function in the hands of a user.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_groups::pci::{acs, advanced, bar, capability, express, header, msi};
use iommu_types::{Bdf, SourceId};
use soft_platform::{FunctionInfo, Machine};
use vtd_driver::{EventMessage, InterruptBlock, InterruptSource, InterruptTarget};

use crate::container::ContainerInner;
use crate::error::VfioError;
use crate::platform::{Driver, DriverUnit};

/// Capabilities that fit into the first 256 bytes: the bound of a walk over the list.
const MAX_CAPABILITIES: usize = 48;

/// Base address registers of a function.
const BARS: u8 = 6;

/// A function that a user has open.
///
/// It keeps its container's mappings alive. Dropping it turns bus mastering and interrupts off and resets it.
pub struct Device {
    container: Arc<ContainerInner>,
    function: Bdf,
    interrupts: Mutex<Option<InterruptBlock>>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("function", &self.function)
            .finish_non_exhaustive()
    }
}

/// Whether the two byte ranges share a byte.
fn touches(offset: u16, len: usize, first: u16, size: u16) -> bool {
    let end = usize::from(offset).saturating_add(len);
    usize::from(offset) < usize::from(first) + usize::from(size) && usize::from(first) < end
}

impl Device {
    pub(crate) fn open(container: &Arc<ContainerInner>, function: Bdf) -> Result<Self, VfioError> {
        if !container.has(function) {
            return Err(VfioError::NotInContainer(function));
        }
        let platform = &container.platform;
        let is_bridge = platform.topology().get(function).is_none_or(|f| f.is_bridge());
        if is_bridge || platform.driver(function) != Driver::Vfio {
            return Err(VfioError::NotForUsers(function));
        }
        if !container.state().open.insert(function) {
            return Err(VfioError::DeviceOpen(function));
        }
        Ok(Self {
            container: container.clone(),
            function,
            interrupts: Mutex::new(None),
        })
    }

    fn machine(&self) -> &Machine {
        self.container.platform.machine()
    }

    /// Where it is.
    #[must_use]
    pub const fn function(&self) -> Bdf {
        self.function
    }

    /// What is known about it.
    #[must_use]
    pub fn info(&self) -> Option<&FunctionInfo> {
        self.machine().function(self.function)
    }

    /// Reads configuration space from byte `offset` on; all-ones where there is nothing.
    pub fn config_read(&self, offset: u16, into: &mut [u8]) {
        self.machine().config_read(self.function, offset, into);
    }

    /// Writes configuration space. A user may write the command and status registers, the cache line size and
    /// the interrupt line; everything else belongs to the host.
    ///
    /// # Errors
    /// [`VfioError::Protected`] names what is there and what to use instead.
    pub fn config_write(&self, offset: u16, from: &[u8]) -> Result<(), VfioError> {
        let end = u16::try_from(usize::from(offset) + from.len()).unwrap_or(u16::MAX);
        let inside = |first: u16, size: u16| offset >= first && end <= first + size;
        let free =
            inside(header::COMMAND, 4) || inside(header::CACHE_LINE_SIZE, 1) || inside(header::INTERRUPT_LINE, 1);
        if free {
            self.machine().config_write(self.function, offset, from);
            return Ok(());
        }
        let bars = touches(offset, from.len(), header::BAR0, 4 * u16::from(BARS));
        let interrupts = self
            .capability(capability::MSI)
            .is_some_and(|at| touches(offset, from.len(), at, msi::LEN));
        let (what, instead) = match (bars, interrupts) {
            (true, _) => (
                "base address registers",
                "they keep the addresses that firmware gave them",
            ),
            (_, true) => ("the MSI capability", "use Device::enable_msi"),
            _ => ("not a register of the user", "use reset, enable_msi and set_bus_master"),
        };
        Err(VfioError::Protected {
            function: self.function,
            offset,
            end,
            what,
            instead,
        })
    }

    /// Allows the device to send requests, or forbids it (Bus Master Enable).
    pub fn set_bus_master(&self, on: bool) {
        self.machine()
            .set_command(self.function, header::COMMAND_BUS_MASTER, on);
    }

    /// Size of the region behind BAR `region` in bytes; `None` if there is none, or it does not answer.
    #[must_use]
    pub fn region_size(&self, region: u8) -> Option<u64> {
        self.machine().bar_range(self.function, region)?.len()
    }

    /// The address in region `region` at byte `offset`, if `len` bytes from there are inside.
    fn region(&self, region: u8, offset: u64, len: usize) -> Result<iommu_types::HostPhys, VfioError> {
        let range = self.machine().bar_range(self.function, region);
        let size = range.and_then(iommu_types::AddrRange::len).unwrap_or(0);
        let outside = VfioError::OutsideRegion {
            function: self.function,
            region,
            offset,
            len,
            size,
        };
        let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
        match (range, end) {
            (Some(range), Some(end)) if end <= size => range.first().checked_add(offset).ok_or(outside),
            _ => Err(outside),
        }
    }

    /// Reads from the region behind BAR `region`.
    ///
    /// # Errors
    /// [`VfioError::OutsideRegion`].
    pub fn region_read(&self, region: u8, offset: u64, into: &mut [u8]) -> Result<(), VfioError> {
        let at = self.region(region, offset, into.len())?;
        // The function was there a moment ago; if it was reset meanwhile, nothing answers.
        if self.machine().mmio_read(at, into).is_err() {
            into.fill(0xff);
        }
        Ok(())
    }

    /// Writes to the region behind BAR `region`. DMA that the write starts is complete on return.
    ///
    /// # Errors
    /// [`VfioError::OutsideRegion`].
    pub fn region_write(&self, region: u8, offset: u64, from: &[u8]) -> Result<(), VfioError> {
        let at = self.region(region, offset, from.len())?;
        // As above: a write that nobody takes is lost, as on hardware.
        let _ = self.machine().mmio_write(at, from);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<InterruptBlock>> {
        self.interrupts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unit(&self) -> Result<&DriverUnit, VfioError> {
        let function = self.function;
        self.container
            .platform
            .unit_of(function)
            .map_err(|why| VfioError::NotContained { function, why })
    }

    /// The requesters that may use the device's interrupt entries: only itself, or, behind a bridge that takes
    /// requests over, the buses that its requester IDs are on (VT-d §5.1.3, SVT = 10).
    #[must_use]
    pub fn interrupt_source(&self) -> InterruptSource {
        let requester = self.container.platform.requester(self.function);
        let buses = || requester.aliases.iter().map(|alias: &SourceId| alias.bus());
        match (buses().min(), buses().max()) {
            (Some(first), Some(last)) => InterruptSource::BusRange {
                first: first.min(requester.rid.bus()),
                last: last.max(requester.rid.bus()),
            },
            _ => InterruptSource::Requester(requester.rid),
        }
    }

    /// Routes the device's message-signalled interrupts to `targets`, one for each, through interrupt-remapping
    /// entries that only this device can use. Replaces what was set before.
    ///
    /// # Errors
    /// [`VfioError::InterruptCount`] if `targets` is not a power of two or more than the device has;
    /// [`VfioError::Interrupts`].
    pub fn enable_msi(&self, targets: &[InterruptTarget]) -> Result<EventMessage, VfioError> {
        let function = self.function;
        let at = self.capability(capability::MSI);
        let control = at.map_or(0, |at| self.machine().config_read16(function, at + msi::CONTROL));
        let available = at.map_or(0, |_| 1u16 << (control >> msi::CAPABLE_SHIFT & msi::COUNT_MASK).min(5));
        let wanted = u16::try_from(targets.len()).unwrap_or(u16::MAX);
        let (Some(at), true) = (at, wanted.is_power_of_two() && wanted <= available) else {
            return Err(VfioError::InterruptCount {
                function,
                available,
                wanted,
            });
        };
        let unit = self.unit()?;
        let failed = |cause| VfioError::Interrupts { function, cause };
        self.disable_msi()?;
        let block = unit
            .allocate_interrupts(wanted, self.interrupt_source())
            .map_err(failed)?;
        let set = (0..wanted)
            .zip(targets)
            .try_for_each(|(number, target)| unit.set_interrupt(&block, number, Some(*target)));
        // With one interrupt the handle alone names the entry; with several the device adds the number.
        let message = if wanted == 1 {
            block.message(0)
        } else {
            Some(block.multi_message())
        };
        let (Ok(()), Some(message)) = (set, message) else {
            let cause = set
                .err()
                .unwrap_or(vtd_driver::InterruptError::OutOfBlock { number: 0, count: 0 });
            // What could not be given back stays taken.
            let _ = unit.release_interrupts(block);
            return Err(failed(cause));
        };
        let write = |offset: u16, bytes: &[u8]| self.machine().config_write(function, at + offset, bytes);
        let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
        write(msi::ADDRESS, &[a, b, c, d]);
        write(msi::ADDRESS_UPPER, &[e, f, g, h]);
        let [low, high, ..] = message.data.to_le_bytes();
        write(msi::DATA, &[low, high]);
        let log2 = u16::try_from(wanted.trailing_zeros()).unwrap_or(0);
        let control = (control & !(msi::COUNT_MASK << msi::ENABLED_SHIFT)) | log2 << msi::ENABLED_SHIFT | msi::ENABLE;
        write(msi::CONTROL, &control.to_le_bytes());
        *self.lock() = Some(block);
        Ok(message)
    }

    /// The first interrupt-remapping entry of the device and how many it has, while MSI is enabled.
    #[must_use]
    pub fn interrupt_entries(&self) -> Option<(u16, u16)> {
        self.lock().as_ref().map(|block| (block.first(), block.count()))
    }

    /// Turns message-signalled interrupts off and gives the entries back.
    ///
    /// # Errors
    /// [`VfioError::Interrupts`]; the entries stay taken then.
    pub fn disable_msi(&self) -> Result<(), VfioError> {
        let function = self.function;
        if let Some(at) = self.capability(capability::MSI) {
            let control = self.machine().config_read16(function, at + msi::CONTROL) & !msi::ENABLE;
            self.machine()
                .config_write(function, at + msi::CONTROL, &control.to_le_bytes());
        }
        let Some(block) = self.lock().take() else {
            return Ok(());
        };
        match self.unit()?.release_interrupts(block) {
            Ok(()) => Ok(()),
            Err((cause, block)) => {
                *self.lock() = Some(block);
                Err(VfioError::Interrupts { function, cause })
            }
        }
    }

    /// Resets the function and nothing else. Its addresses and access control come back; bus mastering and
    /// interrupts are off afterwards.
    ///
    /// # Errors
    /// [`VfioError::NoReset`], [`VfioError::Interrupts`].
    pub fn reset(&self) -> Result<(), VfioError> {
        let function = self.function;
        let (at, trigger) = self.reset_trigger().ok_or(VfioError::NoReset(function))?;
        self.disable_msi()?;
        let machine = self.machine();
        let bars: Vec<u32> = (0..BARS)
            .map(|index| machine.config_read32(function, bar_offset(index)))
            .collect();
        let command = machine.config_read16(function, header::COMMAND) & !header::COMMAND_BUS_MASTER;
        let access = machine
            .with_function(function, |function, _| function.config().acs_at())
            .ok()
            .flatten()
            .map(|at| (at, machine.config_read16(function, at + acs::CONTROL)));
        machine.config_write(function, at, &trigger.to_le_bytes());
        for (index, value) in (0..BARS).zip(bars) {
            // Flag bits are read-only, so the whole register may be written back.
            if value & bar::MEMORY_ADDRESS != 0 {
                machine.config_write(function, bar_offset(index), &value.to_le_bytes());
            }
        }
        if let Some((at, control)) = access {
            machine.config_write(function, at + acs::CONTROL, &control.to_le_bytes());
        }
        machine.config_write(function, header::COMMAND, &command.to_le_bytes());
        Ok(())
    }

    /// The register and the value that reset the function.
    fn reset_trigger(&self) -> Option<(u16, u16)> {
        let machine = self.machine();
        if let Some(at) = self.capability(capability::PCI_EXPRESS) {
            let able = machine.config_read32(self.function, at + express::DEVICE_CAPABILITIES);
            if able & express::FLR_CAPABLE != 0 {
                let control = machine.config_read16(self.function, at + express::DEVICE_CONTROL);
                return Some((at + express::DEVICE_CONTROL, control | express::INITIATE_FLR));
            }
        }
        let at = self.capability(capability::ADVANCED_FEATURES)?;
        let mut able = [0; 1];
        self.config_read(at + advanced::CAPABILITIES, &mut able);
        let flr = able.iter().any(|able| able & advanced::FLR_CAPABLE != 0);
        flr.then(|| (at + advanced::CONTROL, u16::from(advanced::INITIATE_FLR)))
    }

    /// The offset of a capability in the first 256 bytes.
    fn capability(&self, wanted: u8) -> Option<u16> {
        let machine = self.machine();
        let byte = |offset: u16| {
            let mut byte = [0; 1];
            machine.config_read(self.function, offset, &mut byte);
            u16::from(u8::from_le_bytes(byte))
        };
        if machine.config_read16(self.function, header::STATUS) & header::STATUS_CAPABILITIES == 0 {
            return None;
        }
        let mut at = byte(header::CAPABILITIES) & !3;
        for _ in 0..MAX_CAPABILITIES {
            if at < capability::FIRST {
                return None;
            }
            if byte(at) == u16::from(wanted) {
                return Some(at);
            }
            at = byte(at + capability::NEXT) & !3;
        }
        None
    }
}

fn bar_offset(index: u8) -> u16 {
    header::BAR0 + 4 * u16::from(index)
}

impl Drop for Device {
    fn drop(&mut self) {
        self.set_bus_master(false);
        // A device without a reset keeps its state, as with VFIO; it stays blocked in any case.
        if self.reset().is_err() {
            let _ = self.disable_msi();
        }
        self.container.state().open.remove(&self.function);
    }
}
