//! A device that is open.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_groups::pci::header;
use iommu_types::Bdf;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
    vfio_region_info,
};
use vm_memory::{AtomicAccess, Bytes};
use vmm_sys_util::eventfd::EventFd;

use super::space::Shared;
use super::sys::Mapping;
use super::{Linux, refused, sys};
use crate::backend::{DeviceBackend, InterruptKind, RegionInfo};
use crate::device::Device;
use crate::error::{Errno, VfioError};

/// Base address registers of a function.
const BARS: u8 = 6;

/// A function that the kernel handed to this process.
pub struct LinuxDevice {
    space: Arc<Shared>,
    function: Bdf,
    file: File,
    /// Behind the base address registers.
    regions: Vec<Option<vfio_region_info>>,
    config: vfio_region_info,
    resets: bool,
    /// The kind of interrupts that is on.
    enabled: Mutex<Option<InterruptKind>>,
}

impl fmt::Debug for LinuxDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinuxDevice")
            .field("function", &self.function)
            .finish_non_exhaustive()
    }
}

fn index(kind: InterruptKind) -> u32 {
    match kind {
        InterruptKind::Line => VFIO_PCI_INTX_IRQ_INDEX,
        InterruptKind::Msi => VFIO_PCI_MSI_IRQ_INDEX,
        InterruptKind::MsiX => VFIO_PCI_MSIX_IRQ_INDEX,
    }
}

impl LinuxDevice {
    pub(super) fn open(space: &Arc<Shared>, function: Bdf) -> Result<Self, VfioError> {
        let opened = space.with_group(function, |group, state| {
            if state.open.contains(&function) {
                return Err(VfioError::DeviceOpen(function));
            }
            let name = CString::new(function.to_string()).map_err(|_| VfioError::NoFunction(function))?;
            let file = sys::open_device(group, &name).map_err(|errno| match errno {
                // In the group, but on no VFIO driver.
                Errno::Enodev | Errno::Einval => VfioError::NotForUsers(function),
                errno => refused(
                    format!("{function} cannot be opened"),
                    errno,
                    "look into the kernel's log for what it says about the device",
                ),
            })?;
            state.open.insert(function);
            Ok(file)
        });
        let file = opened.ok_or(VfioError::NotInContainer(function))??;
        let device = Self::describe(space, function, file);
        if device.is_err() {
            space.state().open.remove(&function);
        }
        device
    }

    fn describe(space: &Arc<Shared>, function: Bdf, file: File) -> Result<Self, VfioError> {
        let silent = |errno| {
            refused(
                format!("what {function} has"),
                errno,
                "look into the kernel's log for what it says about the device",
            )
        };
        let info = sys::device_info(&file).map_err(silent)?;
        let regions = (0..BARS)
            .map(|index| sys::region_info(&file, index.into()).ok().filter(|info| info.size > 0))
            .collect();
        let config = sys::region_info(&file, VFIO_PCI_CONFIG_REGION_INDEX).map_err(silent)?;
        Ok(Self {
            space: space.clone(),
            function,
            file,
            regions,
            config,
            resets: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            enabled: Mutex::new(None),
        })
    }

    fn enabled(&self) -> MutexGuard<'_, Option<InterruptKind>> {
        self.enabled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bar(&self, index: u8) -> Option<&vfio_region_info> {
        self.regions.get(usize::from(index))?.as_ref()
    }

    /// Where `len` bytes from `offset` of a region are in the device's file.
    fn place(&self, region: u8, offset: u64, len: usize) -> Result<u64, VfioError> {
        let size = self.bar(region).map_or(0, |info| info.size);
        let outside = VfioError::OutsideRegion {
            function: self.function,
            region,
            offset,
            len,
            size,
        };
        let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
        match (self.bar(region), end) {
            (Some(info), Some(end)) if end <= size => info.offset.checked_add(offset).ok_or(outside),
            _ => Err(outside),
        }
    }

    fn interrupts_refused(&self, kind: InterruptKind, errno: Errno) -> VfioError {
        refused(
            format!("{kind} interrupts of {}", self.function),
            errno,
            "use no more than the device has, and one kind at a time",
        )
    }
}

impl DeviceBackend for LinuxDevice {
    fn function(&self) -> Bdf {
        self.function
    }

    fn config_read(&self, offset: u16, into: &mut [u8]) {
        let end = u64::from(offset).saturating_add(u64::try_from(into.len()).unwrap_or(u64::MAX));
        let at = self.config.offset + u64::from(offset);
        if end > self.config.size || self.file.read_exact_at(into, at).is_err() {
            into.fill(0xff);
        }
    }

    fn config_write(&self, offset: u16, from: &[u8]) -> Result<(), VfioError> {
        let end = usize::from(offset).saturating_add(from.len());
        let protected = |what| VfioError::Protected {
            function: self.function,
            offset,
            end: u16::try_from(end).unwrap_or(u16::MAX),
            what,
            instead: "use reset, enable_interrupts and set_bus_master",
        };
        if u64::try_from(end).is_ok_and(|end| end > self.config.size) {
            return Err(protected("nothing"));
        }
        let at = self.config.offset + u64::from(offset);
        self.file
            .write_all_at(from, at)
            .map_err(|_| protected("not a register of the user"))
    }

    fn region(&self, index: u8) -> Option<RegionInfo> {
        let info = self.bar(index)?;
        let has = |flag: u32| info.flags & flag != 0;
        Some(RegionInfo {
            size: info.size,
            readable: has(VFIO_REGION_INFO_FLAG_READ),
            writable: has(VFIO_REGION_INFO_FLAG_WRITE),
            mappable: has(VFIO_REGION_INFO_FLAG_MMAP),
        })
    }

    fn region_read(&self, index: u8, offset: u64, into: &mut [u8]) -> Result<(), VfioError> {
        let at = self.place(index, offset, into.len())?;
        // Memory space may be disabled, or the device in reset: nothing answers then.
        if self.file.read_exact_at(into, at).is_err() {
            into.fill(0xff);
        }
        Ok(())
    }

    fn region_write(&self, index: u8, offset: u64, from: &[u8]) -> Result<(), VfioError> {
        let at = self.place(index, offset, from.len())?;
        // As above: a write that nobody takes is lost, as on hardware.
        let _ = self.file.write_all_at(from, at);
        Ok(())
    }

    fn interrupts(&self, kind: InterruptKind) -> u32 {
        sys::irq_info(&self.file, index(kind)).map_or(0, |info| info.count)
    }

    fn enable_interrupts(&self, kind: InterruptKind, events: &[&EventFd]) -> Result<(), VfioError> {
        let available = self.interrupts(kind);
        let wanted = u32::try_from(events.len()).unwrap_or(u32::MAX);
        if !(1..=available).contains(&wanted) {
            return Err(VfioError::InterruptCount {
                function: self.function,
                available: u16::try_from(available).unwrap_or(u16::MAX),
                wanted: u16::try_from(wanted).unwrap_or(u16::MAX),
            });
        }
        // The kernel has one kind at a time, and does not change how many there are.
        for kind in InterruptKind::ALL {
            self.disable_interrupts(kind)?;
        }
        let files: Vec<i32> = events.iter().map(|event| event.as_raw_fd()).collect();
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        sys::set_irqs(&self.file, flags, index(kind), wanted, &files)
            .map_err(|errno| self.interrupts_refused(kind, errno))?;
        *self.enabled() = Some(kind);
        Ok(())
    }

    fn disable_interrupts(&self, kind: InterruptKind) -> Result<(), VfioError> {
        let mut enabled = self.enabled();
        if *enabled != Some(kind) {
            return Ok(());
        }
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        sys::set_irqs(&self.file, flags, index(kind), 0, &[]).map_err(|errno| self.interrupts_refused(kind, errno))?;
        *enabled = None;
        Ok(())
    }

    fn unmask_line(&self) -> Result<(), VfioError> {
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK;
        let kind = InterruptKind::Line;
        sys::set_irqs(&self.file, flags, index(kind), 1, &[]).map_err(|errno| self.interrupts_refused(kind, errno))
    }

    fn set_bus_master(&self, on: bool) {
        let mut command = [0; 2];
        self.config_read(header::COMMAND, &mut command);
        let command = u16::from_le_bytes(command);
        let command = match on {
            true => command | header::COMMAND_BUS_MASTER,
            false => command & !header::COMMAND_BUS_MASTER,
        };
        // A device that is gone takes no writes, and sends nothing either.
        let _ = self.config_write(header::COMMAND, &command.to_le_bytes());
    }

    fn reset(&self) -> Result<(), VfioError> {
        if !self.resets {
            return Err(VfioError::NoReset(self.function));
        }
        for kind in InterruptKind::ALL {
            self.disable_interrupts(kind)?;
        }
        sys::reset(&self.file).map_err(|errno| {
            refused(
                format!("{} could not be reset", self.function),
                errno,
                "look into the kernel's log for what it says about the device",
            )
        })?;
        self.set_bus_master(false);
        Ok(())
    }
}

impl Drop for LinuxDevice {
    fn drop(&mut self) {
        self.set_bus_master(false);
        // Closing the file does the rest: interrupts off, and a reset where the device has one.
        for kind in InterruptKind::ALL {
            let _ = self.disable_interrupts(kind);
        }
        self.space.state().open.remove(&self.function);
    }
}

/// Registers of a device in this process: accesses go to the device, not to the kernel.
#[derive(Debug)]
pub struct RegionMap {
    mapping: Mapping,
}

impl RegionMap {
    /// Length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        u64::try_from(self.mapping.len()).unwrap_or(u64::MAX)
    }

    /// Reads the register at byte `offset` in its width; `None` outside the map or off its alignment.
    #[must_use]
    pub fn read<T: AtomicAccess>(&self, offset: u64) -> Option<T> {
        let at = usize::try_from(offset).ok()?;
        self.mapping.slice().load(at, Ordering::Acquire).ok()
    }

    /// Writes the register at byte `offset` in its width; false outside the map or off its alignment.
    pub fn write<T: AtomicAccess>(&self, offset: u64, value: T) -> bool {
        let Ok(at) = usize::try_from(offset) else { return false };
        self.mapping.slice().store(value, at, Ordering::Release).is_ok()
    }
}

impl Device<Linux> {
    /// Maps `size` bytes from byte `offset` of the region behind BAR `region` into the process. Offset and size are whole
    /// pages.
    ///
    /// # Errors
    /// [`VfioError::OutsideRegion`], [`VfioError::Kernel`] if the region cannot be mapped.
    pub fn map_region(&self, region: u8, offset: u64, size: u64) -> Result<RegionMap, VfioError> {
        let device = &self.inner;
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        let at = device.place(region, offset, len)?;
        let cannot = |errno| {
            refused(
                format!(
                    "region {region} of {} cannot be mapped into the process",
                    device.function
                ),
                errno,
                "use region_read and region_write",
            )
        };
        let info = device.region(region);
        if !info.is_some_and(|info| info.mappable) {
            return Err(cannot(Errno::Einval));
        }
        let writable = info.is_some_and(|info| info.writable);
        let mapping = Mapping::registers(&device.file, at, len, writable)
            .map_err(|error| cannot(error.raw_os_error().map_or(Errno::Eio, Errno::from_raw)))?;
        Ok(RegionMap { mapping })
    }
}
