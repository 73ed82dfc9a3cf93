//! One remapping unit, two makers: the same programs on QEMU's `intel-iommu` and on the model.
//!
//! A [`Twin`] is a machine with 512 MiB of memory, one unit and one requester. Programs write tables and
//! registers as a driver would, let the requester read or write four bytes, and look at what can be observed:
//! memory, the fault status and the fault record.

use iommu_testkit::SparseMemory;
use iommu_types::{Access, HostPhys, Iova, SourceId, SystemMemory};
use vtd_model::{AccessWidth, Condition, Interrupt, InterruptRequest, Profile, Request, Unit, UnitConfig};
use vtd_spec::message;
use vtd_spec::register::offset;
use vtd_spec::register::{Capability, ExtendedCapability};

use crate::qtest::{EDU_SOURCE, Qemu, QtestError, UNIT};

/// Memory that programs may use, clear of the legacy holes of a PC.
pub const MEMORY: (u64, u64) = (0x100_0000, 0x20_0000);

/// A machine of either maker.
pub trait Twin {
    /// Reads a word of memory.
    ///
    /// # Errors
    /// [`QtestError`] if the other process is gone.
    fn read(&mut self, at: u64) -> Result<u64, QtestError>;
    /// Writes a word of memory.
    ///
    /// # Errors
    /// [`QtestError`] if the other process is gone.
    fn write(&mut self, at: u64, value: u64) -> Result<(), QtestError>;
    /// Reads a 32-bit register.
    ///
    /// # Errors
    /// [`QtestError`] if the other process is gone.
    fn register(&mut self, offset: u32) -> Result<u32, QtestError>;
    /// Reads a 64-bit register.
    ///
    /// # Errors
    /// [`QtestError`] if the other process is gone.
    fn register64(&mut self, offset: u32) -> Result<u64, QtestError>;
    /// Writes a 32-bit register.
    ///
    /// # Errors
    /// [`QtestError`] if the other process is gone.
    fn set_register(&mut self, offset: u32, value: u32) -> Result<(), QtestError>;
    /// Writes a 64-bit register.
    ///
    /// # Errors
    /// [`QtestError`] if the other process is gone.
    fn set_register64(&mut self, offset: u32, value: u64) -> Result<(), QtestError>;
    /// The requester writes four bytes.
    ///
    /// # Errors
    /// [`QtestError`] if the other process is gone.
    fn dma_write(&mut self, iova: u64, value: u32) -> Result<(), QtestError>;
    /// The requester reads four bytes; [`Self::dma_write_back`] shows which.
    ///
    /// # Errors
    /// [`QtestError`] if the other process is gone.
    fn dma_read(&mut self, iova: u64) -> Result<(), QtestError>;
    /// The requester writes the four bytes it read last.
    ///
    /// # Errors
    /// [`QtestError`] if the other process is gone.
    fn dma_write_back(&mut self, iova: u64) -> Result<(), QtestError>;
    /// The interrupts that the unit has passed on since the last call, as messages: address and data.
    ///
    /// # Errors
    /// [`QtestError`] if the other process is gone.
    fn take_interrupts(&mut self) -> Result<Vec<(u64, u32)>, QtestError>;
}

impl Twin for Qemu {
    fn read(&mut self, at: u64) -> Result<u64, QtestError> {
        self.read64(at)
    }
    fn write(&mut self, at: u64, value: u64) -> Result<(), QtestError> {
        self.write64(at, value)
    }
    fn register(&mut self, offset: u32) -> Result<u32, QtestError> {
        self.read32(UNIT + u64::from(offset))
    }
    fn register64(&mut self, offset: u32) -> Result<u64, QtestError> {
        self.read64(UNIT + u64::from(offset))
    }
    fn set_register(&mut self, offset: u32, value: u32) -> Result<(), QtestError> {
        self.write32(UNIT + u64::from(offset), value)
    }
    fn set_register64(&mut self, offset: u32, value: u64) -> Result<(), QtestError> {
        self.write64(UNIT + u64::from(offset), value)
    }
    fn dma_write(&mut self, iova: u64, value: u32) -> Result<(), QtestError> {
        Qemu::dma_write(self, iova, value)
    }
    fn dma_read(&mut self, iova: u64) -> Result<(), QtestError> {
        Qemu::dma_read(self, iova)
    }
    fn dma_write_back(&mut self, iova: u64) -> Result<(), QtestError> {
        Qemu::dma_write_back(self, iova)
    }
    fn take_interrupts(&mut self) -> Result<Vec<(u64, u32)>, QtestError> {
        Qemu::take_interrupts(self)
    }
}

/// The model with memory and a requester.
#[derive(Debug)]
pub struct Modelled {
    unit: Unit,
    memory: SparseMemory,
    /// What the requester read last.
    buffer: u32,
    /// Why the last DMA or interrupt was blocked, if it was.
    blocked: Option<Blocked>,
    delivered: Vec<(u64, u32)>,
}

/// Why the model let a request not through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The condition of the specification; `None` where there is none.
    pub condition: Option<Condition>,
    /// Whether it was recorded.
    pub recorded: bool,
}

impl Modelled {
    /// A unit that reports the given capabilities, with 48 address bits as QEMU has them.
    ///
    /// # Errors
    /// The rule that the capabilities break.
    pub fn resembling(profile: Profile, capability: u64, extended: u64) -> Result<Self, vtd_model::ConfigError> {
        let config = UnitConfig::builder()
            .profile(profile)
            .resembling(
                Capability::new_with_raw_value(capability),
                ExtendedCapability::new_with_raw_value(extended),
            )
            // QEMU sets flags whether or not it reports that walks snoop (E-05); programs ask for it.
            .scalable_walk_coherency(ExtendedCapability::new_with_raw_value(extended).smts())
            .version((1, 0))
            .host_address_width(48)
            .build()?;
        let memory = SparseMemory::builder().data(MEMORY.0, MEMORY.1).build();
        Ok(Self {
            unit: Unit::new(config),
            memory,
            buffer: 0,
            blocked: None,
            delivered: Vec::new(),
        })
    }

    /// Why the last DMA or interrupt was blocked, if it was.
    #[must_use]
    pub const fn blocked(&self) -> Option<Blocked> {
        self.blocked
    }

    fn note<T>(&mut self, result: Result<T, vtd_model::Fault>) -> Option<T> {
        self.blocked = result.as_ref().err().map(|fault| Blocked {
            condition: fault.condition,
            recorded: fault.recorded,
        });
        result.ok()
    }

    /// A message of the requester with number `source`.
    pub fn interrupt(&mut self, source: u16, address: u64, data: u32) {
        let request = InterruptRequest {
            source: SourceId::from_raw(source),
            address,
            data,
        };
        let result = self.unit.interrupt(&self.memory, &request);
        if let Some(interrupt) = self.note(result) {
            self.delivered.push(message_of(&interrupt));
        }
    }

    /// Where the request ends up, if it is let through.
    fn translate(&mut self, iova: u64, access: Access) -> Option<HostPhys> {
        let request = Request::new(SourceId::from_raw(EDU_SOURCE), Iova::new(iova), 4, access);
        let result = self.unit.dma(&self.memory, &request);
        self.note(result).map(|translation| translation.phys)
    }
}

impl Twin for Modelled {
    fn read(&mut self, at: u64) -> Result<u64, QtestError> {
        // Where QEMU has no memory either, reads give zero.
        Ok(self.memory.read_u64(HostPhys::new(at)).unwrap_or(0))
    }
    fn write(&mut self, at: u64, value: u64) -> Result<(), QtestError> {
        let _ = self.memory.write_u64(HostPhys::new(at), value);
        Ok(())
    }
    fn register(&mut self, offset: u32) -> Result<u32, QtestError> {
        Ok(u32::try_from(self.unit.read(offset, AccessWidth::Dword)).unwrap_or(u32::MAX))
    }
    fn register64(&mut self, offset: u32) -> Result<u64, QtestError> {
        Ok(self.unit.read(offset, AccessWidth::Qword))
    }
    fn set_register(&mut self, offset: u32, value: u32) -> Result<(), QtestError> {
        self.unit
            .write(&self.memory, offset, AccessWidth::Dword, u64::from(value));
        Ok(())
    }
    fn set_register64(&mut self, offset: u32, value: u64) -> Result<(), QtestError> {
        self.unit.write(&self.memory, offset, AccessWidth::Qword, value);
        Ok(())
    }
    fn dma_write(&mut self, iova: u64, value: u32) -> Result<(), QtestError> {
        if message::is_interrupt_address(iova) {
            self.interrupt(EDU_SOURCE, iova, value);
        } else if let Some(at) = self.translate(iova, Access::Write) {
            let _ = self.memory.write(at, &value.to_le_bytes());
        }
        Ok(())
    }
    fn dma_read(&mut self, iova: u64) -> Result<(), QtestError> {
        if let Some(at) = self.translate(iova, Access::Read) {
            let mut bytes = [0; 4];
            let _ = self.memory.read(at, &mut bytes);
            self.buffer = u32::from_le_bytes(bytes);
        }
        Ok(())
    }
    fn dma_write_back(&mut self, iova: u64) -> Result<(), QtestError> {
        self.dma_write(iova, self.buffer)
    }
    fn take_interrupts(&mut self) -> Result<Vec<(u64, u32)>, QtestError> {
        Ok(std::mem::take(&mut self.delivered))
    }
}

/// The message by which a processor gets `interrupt` (VT-d §5.1.2, the compatibility format).
fn message_of(interrupt: &Interrupt) -> (u64, u32) {
    match interrupt {
        Interrupt::Unmodified { address, data } => (*address, *data),
        Interrupt::Remapped(remapped) => {
            let destination = u64::from(remapped.destination);
            let address = message::INTERRUPT_RANGE_FIRST
                | (destination & 0xff) << 12
                | u64::from(remapped.redirection_hint) << 3
                | u64::from(remapped.logical) << 2
                | (destination >> 8) << 40;
            // Bit 14: asserted, as every message is.
            let data = u32::from(remapped.vector)
                | 1 << 14
                | u32::from(remapped.delivery_mode.raw_value().value()) << 8
                | u32::from(remapped.level) << 15;
            (address, data)
        }
    }
}

/// What the fault log of a unit with one record shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultLog {
    /// FSTS without the index of the record, which is 0 with one record.
    pub status: u32,
    /// The record's address word.
    pub information: u64,
    /// The record's word with source, reason and type.
    pub details: u64,
}

impl FaultLog {
    /// The fault reason.
    #[must_use]
    pub const fn reason(&self) -> u8 {
        self.details.to_be_bytes()[3]
    }
}

/// Reads the fault log and clears it, as a driver does.
///
/// # Errors
/// [`QtestError`] if the other process is gone.
pub fn take_faults(twin: &mut dyn Twin) -> Result<FaultLog, QtestError> {
    let capability = Capability::new_with_raw_value(twin.register64(offset::CAP)?);
    let record = capability.fault_record_offset(0);
    let log = FaultLog {
        status: twin.register(offset::FSTS)? & 0xff,
        information: twin.register64(record)?,
        details: twin.register64(record + 8)?,
    };
    if log.status != 0 {
        twin.set_register(record + 12, 0x8000_0000)?;
        twin.set_register(offset::FSTS, 0xff)?;
    }
    Ok(log)
}
