//! How a function reaches the world.

use core::fmt;

use iommu_types::Iova;

/// First address of the range in which a 4-byte write is an interrupt message on x86.
/// VT-d §3.15 (Handling Requests to Interrupt Address Range).
pub const MSI_BASE: Iova = Iova::new(0xfee0_0000);

/// The fabric as one function sees it.
///
/// The fabric knows who is asking: an implementation is made for one requester and stamps that function's
/// requester ID on everything that goes through it. A function cannot choose another one.
///
/// Requests may be of any length and alignment; the fabric splits them where hardware would. They complete
/// before the call returns. Real writes are posted, and their sender never learns that they were dropped; here
/// both directions report, so that a test can tell "blocked" from "arrived".
pub trait Bus {
    /// Reads `into.len()` bytes at `iova` into `into`.
    ///
    /// # Errors
    /// [`DmaError`] names the first address that was not read; `into` may be partly filled.
    fn dma_read(&self, iova: Iova, into: &mut [u8]) -> Result<(), DmaError>;

    /// Writes `from` at `iova`. A 4-byte write into the interrupt range is an interrupt message.
    ///
    /// # Errors
    /// [`DmaError`] names the first address that was not written; bytes before it may have been written.
    fn dma_write(&self, iova: Iova, from: &[u8]) -> Result<(), DmaError>;

    /// Delivers interrupt vector `vector` in the platform's own way; false if the function has to send its message
    /// itself, which is what hardware does.
    ///
    /// VFIO keeps the message tables of a function on its own side and takes vector numbers instead: there a function
    /// does not know where its messages go.
    fn raise(&self, vector: u16) -> bool {
        let _ = vector;
        false
    }
}

impl<B: Bus + ?Sized> Bus for &B {
    fn dma_read(&self, iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        (**self).dma_read(iova, into)
    }
    fn dma_write(&self, iova: Iova, from: &[u8]) -> Result<(), DmaError> {
        (**self).dma_write(iova, from)
    }
    fn raise(&self, vector: u16) -> bool {
        (**self).raise(vector)
    }
}

/// A bus on which nothing answers: for functions that are not plugged in anywhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBus;

impl Bus for NoBus {
    fn dma_read(&self, iova: Iova, _into: &mut [u8]) -> Result<(), DmaError> {
        Err(DmaError::new(iova, DmaErrorKind::Unclaimed))
    }
    fn dma_write(&self, iova: Iova, _from: &[u8]) -> Result<(), DmaError> {
        Err(DmaError::new(iova, DmaErrorKind::Unclaimed))
    }
}

/// Who or what stopped a DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DmaErrorKind {
    /// The remapping unit found no mapping that allows the access.
    Blocked,
    /// No memory and no function answers at the address.
    Unclaimed,
    /// A port on the way refused the request (source validation, blocking, a bridge that does not forward).
    Refused,
    /// The function's own Bus Master Enable is clear: nothing was sent.
    BusMasterDisabled,
    /// The range does not lie in the function's internal buffer, or passes the end of the address space:
    /// nothing was sent.
    OutOfRange,
}

impl DmaErrorKind {
    /// A number for device registers; zero is left for "no error".
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Blocked => 1,
            Self::Unclaimed => 2,
            Self::Refused => 3,
            Self::BusMasterDisabled => 4,
            Self::OutOfRange => 5,
        }
    }

    /// The kind that [`Self::code`] gives `code` to.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Blocked,
            2 => Self::Unclaimed,
            3 => Self::Refused,
            4 => Self::BusMasterDisabled,
            5 => Self::OutOfRange,
            _ => return None,
        })
    }
}

impl fmt::Display for DmaErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blocked => "blocked by the remapping unit",
            Self::Unclaimed => "nothing answers at this address",
            Self::Refused => "refused by a port on the way",
            Self::BusMasterDisabled => "not sent, because Bus Master Enable is clear in the command register",
            Self::OutOfRange => "not sent, because the range is outside the buffer or the address space",
        })
    }
}

/// A DMA that did not happen, or not entirely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("DMA at {address}: {kind}")]
pub struct DmaError {
    /// The first address that was not reached, as the function issued it.
    pub address: Iova,
    /// What stopped it.
    pub kind: DmaErrorKind,
}

impl DmaError {
    /// The error `kind` at `address`.
    #[must_use]
    pub const fn new(address: Iova, kind: DmaErrorKind) -> Self {
        Self { address, kind }
    }
}

/// An interrupt as PCI sends it: a 4-byte write. PCIe §7.7.1 (MSI Capability Structures).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Where the write goes; software put it into the function's MSI capability.
    pub address: Iova,
    /// What is written.
    pub data: u32,
}
