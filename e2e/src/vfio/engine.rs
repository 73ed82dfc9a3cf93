//! The function that moves data: QEMU's `edu`, or a DMA engine with its registers.

use std::thread;
use std::time::{Duration, Instant};

use iommu_types::{Bdf, Iova};
use iommu_vfio::{Backend, Container, Device, Type1, VfioError};
use thiserror::Error;

/// The BAR with the registers.
const REGISTERS: u8 = 0;
const IDENTIFICATION: u64 = 0x00;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
/// Bits of the command register.
const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;
/// The device's own buffer of 4096 bytes, as the registers name it.
const BUFFER: u64 = 0x4_0000;
/// How long a transfer may take; the device starts it after 100 ms. Against hanging only.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at the command register.
const LOOK: Duration = Duration::from_millis(1);

/// Why the engine could not be used.
#[derive(Debug, Error)]
pub enum EngineError {
    /// VFIO refused a step.
    #[error("{0}")]
    Vfio(#[from] VfioError),
    /// The function has other registers.
    #[error("{function} identifies itself as {found:#x}: it is no DMA engine of this kind")]
    OtherDevice {
        /// Where it is.
        function: Bdf,
        /// What its first register says.
        found: u32,
    },
    /// A transfer did not end.
    #[error("a transfer of {0} did not end")]
    Hangs(Bdf),
}

/// A function that is open, with its requests allowed.
#[derive(Debug)]
pub struct Engine<B: Backend> {
    device: Device<B>,
}

impl<B: Backend> Engine<B> {
    /// Opens the function and lets it make requests.
    ///
    /// # Errors
    /// [`EngineError`] if it cannot be opened or is something else.
    pub fn open(container: &Container<Type1, B>, function: Bdf) -> Result<Self, EngineError> {
        let device = container.open_device(function)?;
        let mut found = [0; 4];
        device.region_read(REGISTERS, IDENTIFICATION, &mut found)?;
        let found = u32::from_le_bytes(found);
        if found & 0xff != 0xed {
            return Err(EngineError::OtherDevice { function, found });
        }
        device.set_bus_master(true);
        Ok(Self { device })
    }

    /// The device itself.
    #[must_use]
    pub const fn device(&self) -> &Device<B> {
        &self.device
    }

    /// Starts to copy from memory into its buffer.
    ///
    /// # Errors
    /// [`EngineError::Vfio`].
    pub fn start_load(&self, from: Iova, bytes: u64) -> Result<(), EngineError> {
        self.start(from.raw(), BUFFER, bytes, RUN)
    }

    /// Copies from memory into its buffer, and waits until that has ended, one way or the other.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn load(&self, from: Iova, bytes: u64) -> Result<(), EngineError> {
        self.start_load(from, bytes)?;
        self.finish()
    }

    /// Starts to copy its buffer to memory.
    ///
    /// # Errors
    /// [`EngineError::Vfio`].
    pub fn start_store(&self, to: Iova, bytes: u64) -> Result<(), EngineError> {
        self.start(BUFFER, to.raw(), bytes, RUN | TO_MEMORY)
    }

    /// Copies its buffer to memory, and waits until that has ended, one way or the other.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn store(&self, to: Iova, bytes: u64) -> Result<(), EngineError> {
        self.start_store(to, bytes)?;
        self.finish()
    }

    fn start(&self, source: u64, destination: u64, bytes: u64, command: u64) -> Result<(), EngineError> {
        for (register, value) in [
            (SOURCE, source),
            (DESTINATION, destination),
            (COUNT, bytes),
            (COMMAND, command),
        ] {
            self.device.region_write(REGISTERS, register, &value.to_le_bytes())?;
        }
        Ok(())
    }

    /// Waits until no transfer is under way.
    ///
    /// # Errors
    /// [`EngineError::Hangs`].
    pub fn finish(&self) -> Result<(), EngineError> {
        let start = Instant::now();
        loop {
            let mut command = [0; 8];
            self.device.region_read(REGISTERS, COMMAND, &mut command)?;
            if u64::from_le_bytes(command) & RUN == 0 {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                return Err(EngineError::Hangs(self.device.function()));
            }
            thread::sleep(LOOK);
        }
    }
}
