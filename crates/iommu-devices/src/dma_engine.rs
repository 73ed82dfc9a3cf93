//! A DMA engine with the register layout of QEMU's `edu` device.

pub mod registers;

use iommu_groups::pci::PortType;
use iommu_types::Iova;

use self::registers as reg;
use crate::bus::{Bus, DmaError, DmaErrorKind};
use crate::config::{Bar, BarKind, ConfigBuilder, ConfigSpace, ResetKind};
use crate::function::Function;

/// From here on a factorial has 32 factors of two or more, so that its low 32 bits are zero.
const FACTORIAL_IS_ZERO_FROM: u32 = 34;

/// What can be chosen about a [`DmaEngine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaEngineOptions {
    /// How many address bits the engine drives, 1 to 64. Higher bits of a programmed address are lost without
    /// notice, as QEMU's `dma_mask` property has it; [`reg::STATUS_ADDRESS_CUT`] tells.
    pub address_bits: u8,
    /// Length of the internal buffer in bytes: a multiple of 4096, at most [`Self::MAX_BUFFER`].
    pub buffer_len: u32,
}

impl DmaEngineOptions {
    /// The largest internal buffer, in bytes.
    pub const MAX_BUFFER: u32 = 256 << 20;

    /// What `edu` is: 28 address bits, a 4 KiB buffer.
    pub const EDU: Self = Self {
        address_bits: 28,
        buffer_len: 4096,
    };

    /// Size of BAR 0 in bytes: 1 MiB, or more if the buffer does not fit.
    #[must_use]
    pub fn bar_size(self) -> u64 {
        (reg::BUFFER + u64::from(self.buffer_len))
            .next_power_of_two()
            .max(1 << 20)
    }

    /// The largest address the engine can drive.
    #[must_use]
    pub const fn address_mask(self) -> u64 {
        match self.address_bits {
            0 => 0,
            bits if bits >= 64 => u64::MAX,
            bits => (1 << bits) - 1,
        }
    }
}

impl Default for DmaEngineOptions {
    /// All 64 address bits, a 4 KiB buffer.
    fn default() -> Self {
        Self {
            address_bits: 64,
            ..Self::EDU
        }
    }
}

/// A DMA engine that cannot be made as described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaEngineError {
    /// The engine's registers need a BAR to stand in.
    #[error("BAR 0 must be a memory BAR of at least {needed:#x} bytes; start from `DmaEngine::describe`")]
    NoWindow {
        /// The size that registers and buffer need, in bytes.
        needed: u64,
    },
    /// The buffer cannot have this length.
    #[error("a buffer of {0:#x} bytes is not possible: a multiple of 0x1000, at most {max:#x}", max = DmaEngineOptions::MAX_BUFFER)]
    BufferLength(u32),
    /// An engine drives 1 to 64 address bits.
    #[error("{0} address bits are not possible, 1 to 64 are")]
    AddressBits(u8),
}

/// A PCI function that copies between its internal buffer and the bus.
///
/// The layout is that of QEMU's `edu` (see [`registers`]), so that one driver serves both. Three things differ:
/// a DMA is complete when the write to the command register returns; the buffer can be larger and can be read
/// and written through BAR 0; and four more registers tell what became of a DMA, which `edu` does not.
///
/// A command moves whole slices: one bus call, whatever the count.
#[derive(Debug)]
pub struct DmaEngine {
    config: ConfigSpace,
    options: DmaEngineOptions,
    buffer: Vec<u8>,
    state: State,
}

/// What a reset clears.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    liveness: u32,
    factorial: u32,
    factorial_interrupts: bool,
    interrupt: u32,
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
    status: u32,
    error: Option<DmaError>,
    moved: u64,
}

impl DmaEngine {
    /// The identity of `edu` with a BAR 0 that fits `options`, as a PCI Express endpoint with MSI and FLR. The
    /// caller adds what it likes before handing the result to [`Self::new`].
    #[must_use]
    pub fn describe(options: DmaEngineOptions) -> ConfigBuilder {
        ConfigSpace::function(reg::VENDOR, reg::DEVICE)
            .class(0x00_ff_00)
            .revision(0x10)
            .interrupt_pin(1)
            .bar(0, Bar::memory64(options.bar_size()))
            .express(PortType::ENDPOINT)
            .flr()
            .msi(0)
    }

    /// An engine with this configuration space.
    ///
    /// # Errors
    /// [`DmaEngineError`] if BAR 0 is no memory BAR of [`DmaEngineOptions::bar_size`], or the options are
    /// out of bounds.
    pub fn new(config: ConfigSpace, options: DmaEngineOptions) -> Result<Self, DmaEngineError> {
        if !options.buffer_len.is_multiple_of(4096) || !(1..=DmaEngineOptions::MAX_BUFFER).contains(&options.buffer_len)
        {
            return Err(DmaEngineError::BufferLength(options.buffer_len));
        }
        if !(1..=64).contains(&options.address_bits) {
            return Err(DmaEngineError::AddressBits(options.address_bits));
        }
        let needed = options.bar_size();
        let fits = |bar: Bar| bar.kind() != BarKind::Io && bar.size() >= needed;
        if !config.bar(0).is_some_and(fits) {
            return Err(DmaEngineError::NoWindow { needed });
        }
        let len = usize::try_from(options.buffer_len).map_err(|_| DmaEngineError::BufferLength(options.buffer_len))?;
        Ok(Self {
            config,
            options,
            buffer: vec![0; len],
            state: State::default(),
        })
    }

    /// What the engine was made with.
    #[must_use]
    pub const fn options(&self) -> DmaEngineOptions {
        self.options
    }

    /// The internal buffer.
    #[must_use]
    pub fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    /// The internal buffer, to fill from outside the machine.
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// What stopped the last DMA or interrupt message, if something did.
    #[must_use]
    pub const fn last_error(&self) -> Option<DmaError> {
        self.state.error
    }

    /// Bytes moved by DMA since the last reset.
    #[must_use]
    pub const fn bytes_moved(&self) -> u64 {
        self.state.moved
    }

    /// Whether the engine pulls its interrupt line: a cause is pending, MSI is off and the line is not disabled.
    #[must_use]
    pub fn line_asserted(&self) -> bool {
        use iommu_groups::pci::header::COMMAND_INTX_DISABLE;
        self.state.interrupt != 0
            && self.config.msi_message(0).is_none()
            && self.config.command() & COMMAND_INTX_DISABLE == 0
    }

    /// Copies `len` bytes from the bus at `from` into the buffer at `offset`, as a command would.
    ///
    /// # Errors
    /// [`DmaError`] as the error registers would show it.
    pub fn fetch(&mut self, bus: &dyn Bus, from: Iova, offset: u64, len: u64) -> Result<(), DmaError> {
        self.copy(
            bus,
            reg::COMMAND_START,
            from.raw(),
            reg::BUFFER.saturating_add(offset),
            len,
        )
    }

    /// Copies `len` bytes from the buffer at `offset` to the bus at `to`, as a command would.
    ///
    /// # Errors
    /// [`DmaError`] as the error registers would show it.
    pub fn store(&mut self, bus: &dyn Bus, to: Iova, offset: u64, len: u64) -> Result<(), DmaError> {
        let command = reg::COMMAND_START | reg::COMMAND_TO_BUS;
        self.copy(bus, command, reg::BUFFER.saturating_add(offset), to.raw(), len)
    }

    fn copy(&mut self, bus: &dyn Bus, command: u64, from: u64, to: u64, len: u64) -> Result<(), DmaError> {
        self.state.source = from;
        self.state.destination = to;
        self.state.count = len;
        self.run(command, bus);
        self.state.error.map_or(Ok(()), Err)
    }

    /// Carries out a command that has its start bit set.
    fn run(&mut self, command: u64, bus: &dyn Bus) {
        self.state.status = 0;
        self.state.error = None;
        let to_bus = command & reg::COMMAND_TO_BUS != 0;
        let (outside, inside) = if to_bus {
            (self.state.destination, self.state.source)
        } else {
            (self.state.source, self.state.destination)
        };
        let address = outside & self.options.address_mask();
        if address != outside {
            self.state.status |= reg::STATUS_ADDRESS_CUT;
        }
        match self.transfer(to_bus, Iova::new(address), inside, bus) {
            Ok(()) => {
                self.state.status |= reg::STATUS_DONE;
                self.state.moved = self.state.moved.saturating_add(self.state.count);
            }
            Err(error) => self.fail(reg::STATUS_ERROR, error),
        }
        // The start bit clears itself when the engine is idle again.
        self.state.command = command & !reg::COMMAND_START;
        if command & reg::COMMAND_INTERRUPT != 0 {
            self.raise(reg::INTERRUPT_DMA, bus);
        }
    }

    fn transfer(&mut self, to_bus: bool, iova: Iova, inside: u64, bus: &dyn Bus) -> Result<(), DmaError> {
        // The part of the buffer that the guest names: both its ends must lie inside.
        let out_of_range = DmaError::new(iova, DmaErrorKind::OutOfRange);
        let start = inside.checked_sub(reg::BUFFER).ok_or(out_of_range)?;
        let end = start.checked_add(self.state.count).ok_or(out_of_range)?;
        let start = usize::try_from(start).map_err(|_| out_of_range)?;
        let end = usize::try_from(end).map_err(|_| out_of_range)?;
        if to_bus {
            let part = self.buffer.get(start..end).ok_or(out_of_range)?;
            self.dma_write(bus, iova, part)
        } else {
            // Taken out for the call, since the function is borrowed to check its command register.
            let mut buffer = core::mem::take(&mut self.buffer);
            let result = match buffer.get_mut(start..end) {
                Some(part) => self.dma_read(bus, iova, part),
                None => Err(out_of_range),
            };
            self.buffer = buffer;
            result
        }
    }

    fn fail(&mut self, flag: u32, error: DmaError) {
        self.state.status &= !reg::STATUS_REASON;
        self.state.status |= flag | u32::from(error.kind.code()) << reg::STATUS_REASON_SHIFT;
        self.state.error = Some(error);
    }

    /// Adds interrupt causes and tells the processor, by MSI where it is enabled.
    fn raise(&mut self, causes: u32, bus: &dyn Bus) {
        self.state.interrupt |= causes;
        if self.state.interrupt == 0 {
            return;
        }
        if let Err(error) = self.send_msi(bus, 0) {
            self.fail(reg::STATUS_INTERRUPT_LOST, error);
        }
        self.show_line();
    }

    fn show_line(&mut self) {
        let pending = self.state.interrupt != 0 && self.config.msi_message(0).is_none();
        self.config.set_intx_status(pending);
    }

    /// The register at `offset` in an access of `width` bytes; `None` where nothing decodes.
    fn register(&self, offset: u64, width: usize) -> Option<u64> {
        // As in edu: registers below 0x80 are 4 bytes wide, the others 4 or 8.
        if !(width == 4 || (width == 8 && offset >= reg::SOURCE)) {
            return None;
        }
        let s = &self.state;
        Some(match offset {
            reg::ID => reg::ID_VALUE.into(),
            reg::LIVENESS => s.liveness.into(),
            reg::FACTORIAL => s.factorial.into(),
            reg::STATUS => {
                if s.factorial_interrupts {
                    reg::FACTORIAL_INTERRUPT.into()
                } else {
                    0
                }
            }
            reg::INTERRUPT_STATUS => s.interrupt.into(),
            reg::SOURCE => s.source,
            reg::DESTINATION => s.destination,
            reg::COUNT => s.count,
            reg::COMMAND => s.command,
            reg::DMA_STATUS => s.status.into(),
            reg::ERROR_ADDRESS => s.error.map_or(0, |error| error.address.raw()),
            reg::BUFFER_LEN => self.options.buffer_len.into(),
            reg::BYTES_MOVED => s.moved,
            _ => return None,
        })
    }

    fn set_register(&mut self, offset: u64, width: usize, value: u64, bus: &dyn Bus) {
        if !(width == 4 || (width == 8 && offset >= reg::SOURCE)) {
            return;
        }
        let low = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        match offset {
            reg::LIVENESS => self.state.liveness = !low,
            reg::FACTORIAL => {
                self.state.factorial = factorial(low);
                if self.state.factorial_interrupts {
                    self.raise(reg::INTERRUPT_FACTORIAL, bus);
                }
            }
            reg::STATUS => self.state.factorial_interrupts = low & reg::FACTORIAL_INTERRUPT != 0,
            reg::INTERRUPT_RAISE => self.raise(low, bus),
            reg::INTERRUPT_ACKNOWLEDGE => {
                self.state.interrupt &= !low;
                self.show_line();
            }
            reg::SOURCE => self.state.source = value,
            reg::DESTINATION => self.state.destination = value,
            reg::COUNT => self.state.count = value,
            reg::COMMAND if value & reg::COMMAND_START != 0 => self.run(value & reg::COMMAND_BITS, bus),
            reg::DMA_STATUS => {
                self.state.status &= !(low & reg::STATUS_FLAGS);
                if self.state.status & (reg::STATUS_ERROR | reg::STATUS_INTERRUPT_LOST) == 0 {
                    self.state.status &= !reg::STATUS_REASON;
                    self.state.error = None;
                }
            }
            _ => {}
        }
    }

    /// The part of the buffer that an access at BAR offset `offset` reaches, as start and length.
    fn buffer_part(&self, offset: u64, len: usize) -> Option<(usize, usize)> {
        let start = usize::try_from(offset.checked_sub(reg::BUFFER)?).ok()?;
        Some((start, self.buffer.len().checked_sub(start)?.min(len)))
    }
}

impl Function for DmaEngine {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, bar: u8, offset: u64, into: &mut [u8]) {
        if bar != 0 {
            into.fill(0xff);
        } else if let Some((start, n)) = self.buffer_part(offset, into.len()) {
            let (inside, outside) = into.split_at_mut(n);
            inside.copy_from_slice(self.buffer.get(start..start + n).unwrap_or_default());
            outside.fill(0xff);
        } else {
            let value = self.register(offset, into.len()).unwrap_or(u64::MAX).to_le_bytes();
            match value.get(..into.len()) {
                Some(bytes) => into.copy_from_slice(bytes),
                None => into.fill(0xff),
            }
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, from: &[u8], bus: &dyn Bus) {
        if bar != 0 {
            return;
        }
        if let Some((start, n)) = self.buffer_part(offset, from.len()) {
            if let (Some(place), Some(bytes)) = (self.buffer.get_mut(start..start + n), from.get(..n)) {
                place.copy_from_slice(bytes);
            }
            return;
        }
        let mut value = [0; 8];
        if let Some(place) = value.get_mut(..from.len()) {
            place.copy_from_slice(from);
            self.set_register(offset, from.len(), u64::from_le_bytes(value), bus);
        }
    }

    fn reset(&mut self, _kind: ResetKind) {
        self.config.reset();
        self.state = State::default();
        self.buffer.fill(0);
    }
}

/// `n!` modulo 2^32, as edu's 32-bit multiplication gives it.
fn factorial(n: u32) -> u32 {
    if n >= FACTORIAL_IS_ZERO_FROM {
        return 0;
    }
    (1..=n).fold(1, u32::wrapping_mul)
}

#[cfg(test)]
mod tests;
