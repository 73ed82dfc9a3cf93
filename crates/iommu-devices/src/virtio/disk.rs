//! What a block device keeps its sectors in.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Bytes with a length, read and written in place.
///
/// The device checks ranges before it asks, so `offset` and the length of the buffer lie inside.
pub trait Disk: Send + fmt::Debug {
    /// Length in bytes; it does not change.
    fn len(&self) -> u64;

    /// Whether there is nothing on it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it can only be read.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Fills `into` from byte `offset`.
    ///
    /// # Errors
    /// As the backing reports them; the request fails then.
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes `from` at byte `offset`.
    ///
    /// # Errors
    /// As the backing reports them; the request fails then.
    fn write_at(&mut self, offset: u64, from: &[u8]) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// As the backing reports them; the request fails then.
    fn flush(&mut self) -> io::Result<()>;
}

/// A disk in memory.
#[derive(Clone)]
pub struct MemoryDisk {
    bytes: Vec<u8>,
    read_only: bool,
}

impl MemoryDisk {
    /// A disk of `len` zero bytes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self::with_bytes(vec![0; len])
    }

    /// A disk that holds `bytes`.
    #[must_use]
    pub const fn with_bytes(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            read_only: false,
        }
    }

    /// The same, but it cannot be written.
    #[must_use]
    pub const fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// What is on it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDisk")
            .field("len", &self.bytes.len())
            .field("read_only", &self.read_only)
            .finish()
    }
}

fn outside() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "range outside the disk")
}

fn part(offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(|_| outside())?;
    Ok(start..start.checked_add(len).ok_or_else(outside)?)
}

impl Disk for MemoryDisk {
    fn len(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap_or(u64::MAX)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let part = part(offset, into.len())?;
        into.copy_from_slice(self.bytes.get(part).ok_or_else(outside)?);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        let part = part(offset, from.len())?;
        self.bytes.get_mut(part).ok_or_else(outside)?.copy_from_slice(from);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk in a file of the host.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    len: u64,
    read_only: bool,
}

impl FileDisk {
    /// A disk over `file`, as long as the file is now. With `read_only`, nothing is written to it.
    ///
    /// # Errors
    /// If the length of the file cannot be had.
    pub fn new(mut file: File, read_only: bool) -> io::Result<Self> {
        // Block devices have a length too, which metadata does not tell.
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, len, read_only })
    }
}

impl Disk for FileDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.read_exact(into)
    }

    fn write_at(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.write_all(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}
