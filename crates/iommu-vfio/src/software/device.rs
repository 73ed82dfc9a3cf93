//! A function of a machine in software in the hands of a user.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_groups::pci::{acs, advanced, bar, capability, express, header, msi, msix};
use iommu_types::{Bdf, SourceId};
use soft_platform::{FunctionInfo, Machine};
use vmm_sys_util::eventfd::EventFd;
use vtd_driver::{EventMessage, InterruptBlock, InterruptError, InterruptSource, InterruptTarget};

use crate::backend::{DeviceBackend, InterruptKind, RegionInfo};
use crate::container::ContainerInner;
use crate::error::VfioError;
use crate::platform::{Driver, DriverUnit};

/// Capabilities that fit into the first 256 bytes: the bound of a walk over the list.
const MAX_CAPABILITIES: usize = 48;

/// Base address registers of a function.
const BARS: u8 = 6;

/// A function of a machine in software that a user has open.
pub struct SoftDevice {
    container: Arc<ContainerInner>,
    function: Bdf,
    interrupts: Mutex<Interrupts>,
    /// Where the table of MSI-X is, which belongs to the host.
    table: Option<Table>,
}

/// What the device may interrupt.
#[derive(Default)]
struct Interrupts {
    /// Remapping entries of its messages.
    block: Option<InterruptBlock>,
    /// Vectors that count in somebody's events.
    targets: Vec<InterruptTarget>,
    /// What the line counts in, and whether it was seen and is masked.
    line: Option<(EventFd, bool)>,
}

impl fmt::Debug for SoftDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftDevice")
            .field("function", &self.function)
            .finish_non_exhaustive()
    }
}

/// Whether the two byte ranges share a byte.
fn touches(offset: u16, len: usize, first: u16, size: u16) -> bool {
    let end = usize::from(offset).saturating_add(len);
    usize::from(offset) < usize::from(first) + usize::from(size) && usize::from(first) < end
}

impl SoftDevice {
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
        let mut device = Self {
            container: container.clone(),
            function,
            interrupts: Mutex::default(),
            table: None,
        };
        device.table = device.find_table();
        Ok(device)
    }

    fn machine(&self) -> &Machine {
        self.container.platform.machine()
    }

    pub(crate) fn info(&self) -> Option<&FunctionInfo> {
        self.machine().function(self.function)
    }

    /// The address in region `region` at byte `offset`, if `len` bytes from there are inside.
    fn place(&self, region: u8, offset: u64, len: usize) -> Result<iommu_types::HostPhys, VfioError> {
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

    /// Whether an access touches the table of MSI-X, which belongs to the host.
    fn in_table(&self, region: u8, offset: u64, len: usize) -> bool {
        self.table.is_some_and(|table| {
            let end = offset.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
            table.bar == region && offset < table.offset + table.len() && table.offset < end
        })
    }

    fn lock(&self) -> MutexGuard<'_, Interrupts> {
        self.interrupts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unit(&self) -> Result<&DriverUnit, VfioError> {
        let function = self.function;
        self.container
            .platform
            .unit_of(function)
            .map_err(|why| VfioError::NotContained { function, why })
    }

    pub(crate) fn interrupt_source(&self) -> InterruptSource {
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

    pub(crate) fn enable_msi(&self, targets: &[InterruptTarget]) -> Result<EventMessage, VfioError> {
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
        self.disable_messages()?;
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
            let cause = set.err().unwrap_or(InterruptError::OutOfBlock { number: 0, count: 0 });
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
        self.lock().block = Some(block);
        Ok(message)
    }

    pub(crate) fn interrupt_entries(&self) -> Option<(u16, u16)> {
        self.lock().block.as_ref().map(|block| (block.first(), block.count()))
    }

    /// Turns messages off and gives the entries back.
    pub(crate) fn disable_messages(&self) -> Result<(), VfioError> {
        let function = self.function;
        for (id, control, enable) in [
            (capability::MSI, msi::CONTROL, msi::ENABLE),
            (capability::MSI_X, msix::CONTROL, msix::ENABLE),
        ] {
            if let Some(at) = self.capability(id) {
                let value = self.machine().config_read16(function, at + control) & !enable;
                self.machine()
                    .config_write(function, at + control, &value.to_le_bytes());
            }
        }
        let mut interrupts = self.lock();
        let targets = std::mem::take(&mut interrupts.targets);
        let released = match interrupts.block.take() {
            None => Ok(()),
            Some(block) => match self.unit()?.release_interrupts(block) {
                Ok(()) => Ok(()),
                Err((cause, block)) => {
                    interrupts.block = Some(block);
                    Err(VfioError::Interrupts { function, cause })
                }
            },
        };
        drop(interrupts);
        for target in targets {
            self.container.platform.shared.events.release(target);
        }
        released
    }

    fn find_table(&self) -> Option<Table> {
        let at = self.capability(capability::MSI_X)?;
        let machine = self.machine();
        let place = machine.config_read32(self.function, at + msix::TABLE);
        Some(Table {
            capability: at,
            bar: u8::try_from(place & msix::BAR).ok()?,
            offset: u64::from(place & !msix::BAR),
            vectors: (machine.config_read16(self.function, at + msix::CONTROL) & msix::SIZE) + 1,
        })
    }

    /// How many messages MSI has.
    fn msi_count(&self) -> u16 {
        self.capability(capability::MSI).map_or(0, |at| {
            let control = self.machine().config_read16(self.function, at + msi::CONTROL);
            1 << (control >> msi::CAPABLE_SHIFT & msi::COUNT_MASK).min(msi::MAX_LOG2_VECTORS.into())
        })
    }

    /// Vectors that count in `events`.
    fn targets(&self, events: &[&EventFd]) -> Result<Vec<InterruptTarget>, VfioError> {
        let pool = &self.container.platform.shared.events;
        let mut targets = Vec::with_capacity(events.len());
        for event in events {
            match pool.take(event) {
                Some(target) => targets.push(target),
                None => {
                    for target in targets {
                        pool.release(target);
                    }
                    return Err(VfioError::NoVectors(self.function));
                }
            }
        }
        Ok(targets)
    }

    fn enable_msi_x(&self, table: Table, targets: &[InterruptTarget]) -> Result<(), VfioError> {
        let function = self.function;
        let failed = |cause| VfioError::Interrupts { function, cause };
        let unit = self.unit()?;
        let count = u16::try_from(targets.len()).unwrap_or(u16::MAX);
        let block = unit
            .allocate_interrupts(count, self.interrupt_source())
            .map_err(failed)?;
        for (number, target) in (0..count).zip(targets) {
            let set = unit.set_interrupt(&block, number, Some(*target));
            let out_of_block = InterruptError::OutOfBlock { number, count };
            let message = set.and_then(|()| block.message(number).ok_or(out_of_block));
            let row = table.offset + msix::ENTRY_LEN * u64::from(number);
            match message {
                Ok(message) => {
                    let write = |at: u64, bytes: &[u8]| {
                        let _ = self.machine().with_function(function, |function, bus| {
                            function.bar_write(table.bar, row + at, bytes, bus);
                        });
                    };
                    write(msix::ENTRY_ADDRESS, &message.address.to_le_bytes());
                    write(msix::ENTRY_DATA, &message.data.to_le_bytes());
                    write(msix::ENTRY_CONTROL, &0u32.to_le_bytes());
                }
                Err(cause) => {
                    // What could not be given back stays taken.
                    let _ = unit.release_interrupts(block);
                    return Err(failed(cause));
                }
            }
        }
        self.lock().block = Some(block);
        let at = table.capability + msix::CONTROL;
        let control = self.machine().config_read16(function, at) & !msix::MASK | msix::ENABLE;
        self.machine().config_write(function, at, &control.to_le_bytes());
        Ok(())
    }

    /// Looks at the line and counts it if it is pulled, which masks it. Devices of the machine work while they are
    /// accessed, so each access of their user is a time to look.
    fn look_at_line(&self) {
        let status = self.machine().config_read16(self.function, header::STATUS);
        let command = self.machine().config_read16(self.function, header::COMMAND);
        if status & header::STATUS_INTX == 0 || command & header::COMMAND_INTX_DISABLE != 0 {
            return;
        }
        if let Some((event, masked)) = &mut self.lock().line
            && !*masked
        {
            *masked = true;
            let _ = event.write(1);
        }
    }

    /// Resets the function and puts back what belongs to the host.
    fn reset_function(&self) -> Result<(), VfioError> {
        let function = self.function;
        let (at, trigger) = self.reset_trigger().ok_or(VfioError::NoReset(function))?;
        self.disable_messages()?;
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
        self.machine()
            .config_read(self.function, at + advanced::CAPABILITIES, &mut able);
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

/// Where the table of MSI-X is.
#[derive(Clone, Copy)]
struct Table {
    /// Offset of the capability.
    capability: u16,
    bar: u8,
    offset: u64,
    vectors: u16,
}

impl Table {
    fn len(self) -> u64 {
        msix::ENTRY_LEN * u64::from(self.vectors)
    }
}

impl DeviceBackend for SoftDevice {
    fn function(&self) -> Bdf {
        self.function
    }

    fn config_read(&self, offset: u16, into: &mut [u8]) {
        self.machine().config_read(self.function, offset, into);
    }

    fn config_write(&self, offset: u16, from: &[u8]) -> Result<(), VfioError> {
        let end = u16::try_from(usize::from(offset) + from.len()).unwrap_or(u16::MAX);
        let inside = |first: u16, size: u16| offset >= first && end <= first + size;
        let free =
            inside(header::COMMAND, 4) || inside(header::CACHE_LINE_SIZE, 1) || inside(header::INTERRUPT_LINE, 1);
        if free {
            self.machine().config_write(self.function, offset, from);
            self.look_at_line();
            return Ok(());
        }
        let bars = touches(offset, from.len(), header::BAR0, 4 * u16::from(BARS));
        let messages = [(capability::MSI, msi::LEN), (capability::MSI_X, msix::LEN)];
        let interrupts = messages.into_iter().any(|(id, len)| {
            self.capability(id)
                .is_some_and(|at| touches(offset, from.len(), at, len))
        });
        let (what, instead) = match (bars, interrupts) {
            (true, _) => (
                "base address registers",
                "they keep the addresses that firmware gave them",
            ),
            (_, true) => (
                "the MSI or MSI-X capability",
                "use Device::enable_interrupts or Device::enable_msi",
            ),
            _ => (
                "not a register of the user",
                "use reset, enable_interrupts and set_bus_master",
            ),
        };
        Err(VfioError::Protected {
            function: self.function,
            offset,
            end,
            what,
            instead,
        })
    }

    fn region(&self, index: u8) -> Option<RegionInfo> {
        let size = self.machine().bar_range(self.function, index)?.len()?;
        Some(RegionInfo {
            size,
            readable: true,
            writable: true,
            mappable: false,
        })
    }

    fn region_read(&self, index: u8, offset: u64, into: &mut [u8]) -> Result<(), VfioError> {
        let at = self.place(index, offset, into.len())?;
        // The function was there a moment ago; if it was reset meanwhile, nothing answers.
        if self.in_table(index, offset, into.len()) || self.machine().mmio_read(at, into).is_err() {
            into.fill(0xff);
        }
        Ok(())
    }

    fn region_write(&self, index: u8, offset: u64, from: &[u8]) -> Result<(), VfioError> {
        let at = self.place(index, offset, from.len())?;
        if !self.in_table(index, offset, from.len()) {
            // As above: a write that nobody takes is lost, as on hardware.
            let _ = self.machine().mmio_write(at, from);
            self.look_at_line();
        }
        Ok(())
    }

    fn interrupts(&self, kind: InterruptKind) -> u32 {
        let mut pin = [0; 1];
        self.machine()
            .config_read(self.function, header::INTERRUPT_PIN, &mut pin);
        match kind {
            InterruptKind::Line => u32::from(pin != [0]),
            InterruptKind::Msi => self.msi_count().into(),
            InterruptKind::MsiX => self.table.map_or(0, |table| table.vectors.into()),
        }
    }

    fn enable_interrupts(&self, kind: InterruptKind, events: &[&EventFd]) -> Result<(), VfioError> {
        let function = self.function;
        let available = u16::try_from(self.interrupts(kind)).unwrap_or(u16::MAX);
        let wanted = u16::try_from(events.len()).unwrap_or(u16::MAX);
        if !(1..=available).contains(&wanted) {
            return Err(VfioError::InterruptCount {
                function,
                available,
                wanted,
            });
        }
        self.disable_interrupts(kind)?;
        match (kind, events, self.table) {
            (InterruptKind::Line, [event, ..], _) => {
                let event = event.try_clone().map_err(|_| VfioError::NoVectors(function))?;
                self.lock().line = Some((event, false));
                self.look_at_line();
                Ok(())
            }
            (InterruptKind::Msi, _, _) => {
                let targets = self.targets(events)?;
                self.keep(self.enable_msi(&targets).map(drop), targets)
            }
            (InterruptKind::MsiX, _, Some(table)) => {
                self.disable_messages()?;
                let targets = self.targets(events)?;
                self.keep(self.enable_msi_x(table, &targets), targets)
            }
            _ => Err(VfioError::InterruptCount {
                function,
                available: 0,
                wanted,
            }),
        }
    }

    fn disable_interrupts(&self, kind: InterruptKind) -> Result<(), VfioError> {
        match kind {
            InterruptKind::Line => {
                self.lock().line = None;
                Ok(())
            }
            InterruptKind::Msi | InterruptKind::MsiX => self.disable_messages(),
        }
    }

    fn unmask_line(&self) -> Result<(), VfioError> {
        if let Some((_, masked)) = &mut self.lock().line {
            *masked = false;
        }
        self.look_at_line();
        Ok(())
    }

    fn set_bus_master(&self, on: bool) {
        self.machine()
            .set_command(self.function, header::COMMAND_BUS_MASTER, on);
    }

    fn reset(&self) -> Result<(), VfioError> {
        self.reset_function()
    }
}

impl SoftDevice {
    /// Keeps the vectors of messages that were turned on, or gives them back.
    fn keep(&self, enabled: Result<(), VfioError>, targets: Vec<InterruptTarget>) -> Result<(), VfioError> {
        match enabled {
            Ok(()) => self.lock().targets = targets,
            Err(_) => {
                for target in targets {
                    self.container.platform.shared.events.release(target);
                }
            }
        }
        enabled
    }
}

fn bar_offset(index: u8) -> u16 {
    header::BAR0 + 4 * u16::from(index)
}

impl Drop for SoftDevice {
    fn drop(&mut self) {
        self.set_bus_master(false);
        // A device without a reset keeps its state, as with VFIO; it stays blocked in any case.
        if self.reset_function().is_err() {
            let _ = self.disable_messages();
        }
        self.container.state().open.remove(&self.function);
    }
}
