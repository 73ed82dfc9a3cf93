//! Memory as hardware reaches it: what a remapping unit's walker and a device's DMA engine see.

use core::fmt;

use crate::address::HostPhys;

/// An access to an address where nothing answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusError {
    /// The first address that did not answer.
    pub at: HostPhys,
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no memory answers at host address {}", self.at)
    }
}

impl core::error::Error for BusError {}

/// Host memory, reached by physical address, from any number of agents at once.
///
/// The word operations are single-copy atomic for naturally aligned addresses, as a memory controller makes
/// them; the byte operations promise nothing about order or tearing between words. Numbers are little-endian.
pub trait SystemMemory {
    /// Reads the aligned 64-bit word at `at`.
    ///
    /// # Errors
    /// [`BusError`] if `at` is not 8-byte aligned or not memory.
    fn read_u64(&self, at: HostPhys) -> Result<u64, BusError>;

    /// Writes the aligned 64-bit word at `at`.
    ///
    /// # Errors
    /// As [`Self::read_u64`].
    fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BusError>;

    /// Writes the aligned 32-bit word at `at`.
    ///
    /// # Errors
    /// [`BusError`] if `at` is not 4-byte aligned or not memory.
    fn write_u32(&self, at: HostPhys, value: u32) -> Result<(), BusError>;

    /// Replaces the aligned 64-bit word at `at` with `new` if it still is `current`; tells what it was
    /// before. The exchange happened exactly if the answer equals `current`.
    ///
    /// # Errors
    /// As [`Self::read_u64`].
    fn compare_exchange_u64(&self, at: HostPhys, current: u64, new: u64) -> Result<u64, BusError>;

    /// Fills `into` from memory at `at`, any alignment.
    ///
    /// # Errors
    /// [`BusError`] names the first byte that is not memory; `into` may be partly filled.
    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError>;

    /// Copies `from` to memory at `at`, any alignment.
    ///
    /// # Errors
    /// [`BusError`] names the first byte that is not memory; bytes before it may have been written.
    fn write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError>;

    /// Copies `len` bytes from `from` to `to`, which do not overlap.
    ///
    /// Implementations that reach both at once override this; here bytes go through a buffer.
    ///
    /// # Errors
    /// [`BusError`] names the first byte that is not memory; bytes before it may have been written.
    fn copy(&self, from: HostPhys, to: HostPhys, len: u64) -> Result<(), BusError> {
        let mut buffer = [0; 1024];
        let mut done = 0;
        while done < len {
            let part = usize::try_from(len - done).unwrap_or(buffer.len()).min(buffer.len());
            let bytes = &mut buffer[..part];
            self.read(from.checked_add(done).ok_or(BusError { at: from })?, bytes)?;
            self.write(to.checked_add(done).ok_or(BusError { at: to })?, bytes)?;
            done += u64::try_from(part).unwrap_or(len);
        }
        Ok(())
    }

    /// Reads `N` consecutive 64-bit words from the aligned address `at`.
    ///
    /// Structures wider than a word are read word by word, lowest first.
    ///
    /// # Errors
    /// As [`Self::read_u64`].
    fn read_words<const N: usize>(&self, at: HostPhys) -> Result<[u64; N], BusError> {
        let mut words = [0; N];
        for (offset, word) in (0u64..).step_by(8).zip(words.iter_mut()) {
            *word = self.read_u64(at.checked_add(offset).ok_or(BusError { at })?)?;
        }
        Ok(words)
    }
}

impl<M: SystemMemory + ?Sized> SystemMemory for &M {
    fn read_u64(&self, at: HostPhys) -> Result<u64, BusError> {
        (**self).read_u64(at)
    }
    fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BusError> {
        (**self).write_u64(at, value)
    }
    fn write_u32(&self, at: HostPhys, value: u32) -> Result<(), BusError> {
        (**self).write_u32(at, value)
    }
    fn compare_exchange_u64(&self, at: HostPhys, current: u64, new: u64) -> Result<u64, BusError> {
        (**self).compare_exchange_u64(at, current, new)
    }
    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError> {
        (**self).read(at, into)
    }
    fn write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError> {
        (**self).write(at, from)
    }
    fn copy(&self, from: HostPhys, to: HostPhys, len: u64) -> Result<(), BusError> {
        (**self).copy(from, to, len)
    }
}
