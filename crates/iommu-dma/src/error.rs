//! Why memory could not be made reachable.

use iommu_types::{BusError, HostPhys, Iova};
use thiserror::Error;

/// A mapping that was not made; the device can reach nothing of it, except after [`Self::Unconfirmed`].
#[derive(Debug, Error)]
pub enum DmaError<E: core::error::Error + 'static> {
    /// No buffer, or one without a byte.
    #[error("buffer {index} has no byte; a device cannot be given an empty buffer")]
    Empty {
        /// Which buffer of the list; 0 if the list is empty.
        index: usize,
    },
    /// A buffer passes the end of the address space.
    #[error("{len:#x} bytes from {phys} pass the end of the 64-bit space")]
    Wraps {
        /// First byte of the buffer.
        phys: HostPhys,
        /// Length in bytes.
        len: u64,
    },
    /// Coherent memory is mapped in whole pages.
    #[error("{len:#x} bytes from {phys} are not whole 4 KiB pages, as coherent memory must be")]
    NotPages {
        /// First byte of the buffer.
        phys: HostPhys,
        /// Length in bytes.
        len: u64,
    },
    /// The device cannot address the memory, and nothing translates.
    #[error(
        "{len:#x} bytes from {phys} are not one run at or below {mask}, the last address of the device, and no IOMMU \
         translates; use other memory, or give the interface a bounce pool"
    )]
    Unreachable {
        /// First byte of the buffer.
        phys: HostPhys,
        /// Length in bytes.
        len: u64,
        /// The last address the device drives.
        mask: Iova,
    },
    /// A copy is needed, and there is no pool for it.
    #[error(
        "{len:#x} bytes from {phys} share pages with other data, which an untrusted device must not see, and there is \
         no bounce pool; use whole pages, or give the interface a pool"
    )]
    NoPool {
        /// First byte of the buffer.
        phys: HostPhys,
        /// Length in bytes.
        len: u64,
    },
    /// The buffer is longer than the pool can hold in one piece.
    #[error("{len:#x} bytes from {phys} are more than one bounce buffer holds ({max:#x}); split the transfer")]
    BounceTooLarge {
        /// First byte of the buffer.
        phys: HostPhys,
        /// Length in bytes.
        len: u64,
        /// What one bounce buffer can hold.
        max: u64,
    },
    /// The pool is full.
    #[error("no {len:#x} bytes are free in the bounce pool at or below {mask}; unmap something, or use a larger pool")]
    PoolFull {
        /// Length in bytes.
        len: u64,
        /// The last address that would do.
        mask: Iova,
    },
    /// No memory to note the mapping down.
    #[error("no memory to note down a mapping of {buffers} buffers; map fewer at a time")]
    NoMemory {
        /// Buffers of the mapping.
        buffers: usize,
    },
    /// Copying to or from a bounce buffer failed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// What translates refused.
    #[error(transparent)]
    Backend(E),
    /// The hardware did not confirm: the device may reach the buffers although they are not mapped. Addresses and copies
    /// stay out of use for ever, and so must the buffers.
    #[error("not mapped, but the device may reach the memory all the same; do not use it for anything else: {0}")]
    Unconfirmed(E),
}
