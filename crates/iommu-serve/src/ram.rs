//! Memory of the client, as one connection shares it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use iommu_types::{BusError, HostPhys, SystemMemory};
use rustix::fs::SealFlags;
use rustix::io::Errno;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use vtd_vmm::GuestBus;

use crate::protocol::{Command, DMA_MAPS_MAX, DmaRange, Refusal};

/// A window that the client told of.
#[derive(Debug)]
struct Window {
    range: DmaRange,
    readable: bool,
    writable: bool,
    /// Mapped here; other windows are reached through messages.
    mapped: bool,
}

/// How a range of addresses is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It is mapped here.
    Mapped,
    /// The client has to be asked.
    Messages,
    /// There is nothing, or the access is not allowed.
    Nothing,
}

/// The windows of one connection. Their files are mapped shared, so that both sides see one memory without copying.
#[derive(Debug, Default)]
pub(crate) struct Ram {
    mapped: GuestMemoryMmap,
    windows: Vec<Window>,
}

impl Ram {
    /// Adds a window, with the file that backs it if there is one.
    ///
    /// A file that could shrink is not mapped: touching what is gone would end this process. QEMU's memfd backends seal
    /// their files against that unless told otherwise.
    pub(crate) fn map(
        &mut self,
        range: DmaRange,
        readable: bool,
        writable: bool,
        file: Option<(OwnedFd, u64)>,
    ) -> Result<(), Refusal> {
        let refuse = |errno, why: String| Refusal::with(Command::DMA_MAP, errno, why);
        if self.windows.len() >= DMA_MAPS_MAX {
            return Err(refuse(
                Errno::NOSPC,
                format!("{DMA_MAPS_MAX} windows are mapped already"),
            ));
        }
        if let Some(other) = self.overlapping(range) {
            return Err(refuse(
                Errno::EXIST,
                format!(
                    "{:#x} is mapped already, from {:#x} on",
                    range.address, other.range.address
                ),
            ));
        }
        let mapped = match file {
            // Pages that devices must not write are not mapped writable, and are reached through messages instead.
            Some((file, offset)) if writable => {
                self.map_file(range, file, offset)?;
                true
            }
            _ => false,
        };
        let at = self
            .windows
            .partition_point(|window| window.range.address < range.address);
        self.windows.insert(
            at,
            Window {
                range,
                readable,
                writable,
                mapped,
            },
        );
        Ok(())
    }

    fn map_file(&mut self, range: DmaRange, file: OwnedFd, offset: u64) -> Result<(), Refusal> {
        let refuse = |errno, why: String| Refusal::with(Command::DMA_MAP, errno, why);
        let file = File::from(file);
        let sealed = rustix::fs::fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        if !sealed {
            return Err(refuse(
                Errno::PERM,
                "the file can shrink while it is mapped: share memory as a memfd that is sealed against shrinking \
                 (QEMU: -object memory-backend-memfd,share=on, with seal=on, its default)"
                    .to_owned(),
            ));
        }
        let held = file.metadata().map_or(0, |file| file.len());
        if offset.checked_add(range.len).is_none_or(|end| end > held) {
            return Err(refuse(
                Errno::INVAL,
                format!("{:#x} bytes from {offset:#x} are more than the file has", range.len),
            ));
        }
        let len = usize::try_from(range.len).map_err(|_| refuse(Errno::NOMEM, "too long for this host".to_owned()))?;
        let region = GuestRegionMmap::from_range(GuestAddress(range.address), len, Some(FileOffset::new(file, offset)))
            .map_err(|why| refuse(Errno::NOMEM, format!("cannot be mapped: {why}")))?;
        self.mapped = self
            .mapped
            .insert_region(Arc::new(region))
            .map_err(|why| refuse(Errno::INVAL, why.to_string()))?;
        Ok(())
    }

    /// Removes a window, which has to be one that was mapped. Nobody uses it any more on return: whoever uses memory of this
    /// connection borrows it.
    pub(crate) fn unmap(&mut self, range: DmaRange) -> Result<(), Refusal> {
        let Some(at) = self.windows.iter().position(|window| window.range == range) else {
            return Err(Refusal::with(
                Command::DMA_UNMAP,
                Errno::NOENT,
                format!(
                    "{:#x} bytes at {:#x} are not a window that was mapped",
                    range.len, range.address
                ),
            ));
        };
        if self.windows.remove(at).mapped {
            let (rest, _region) = self
                .mapped
                .remove_region(GuestAddress(range.address), range.len)
                .map_err(|why| Refusal::invalid(Command::DMA_UNMAP, why.to_string()))?;
            self.mapped = rest;
        }
        Ok(())
    }

    /// Forgets everything, as when the client is gone.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// How `len` bytes from `at` on are reached, and for how many of them the answer holds.
    pub(crate) fn reach(&self, at: u64, len: u64, write: bool) -> (Reach, u64) {
        let after = self.windows.partition_point(|window| window.range.address <= at);
        let before = after.checked_sub(1).and_then(|index| self.windows.get(index));
        match before.filter(|window| at <= window.range.last()) {
            Some(window) => {
                let left = (window.range.last() - at).saturating_add(1).min(len);
                let reach = match (if write { window.writable } else { window.readable }, window.mapped) {
                    (false, _) => Reach::Nothing,
                    (true, true) => Reach::Mapped,
                    (true, false) => Reach::Messages,
                };
                (reach, left)
            }
            None => (Reach::Nothing, len),
        }
    }

    fn overlapping(&self, range: DmaRange) -> Option<&Window> {
        self.windows
            .iter()
            .find(|window| window.range.address <= range.last() && range.address <= window.range.last())
    }
}

/// What is mapped, as hardware reaches it; nothing else answers.
impl SystemMemory for Ram {
    fn read_u64(&self, at: HostPhys) -> Result<u64, BusError> {
        GuestBus(&self.mapped).read_u64(at)
    }
    fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BusError> {
        GuestBus(&self.mapped).write_u64(at, value)
    }
    fn write_u32(&self, at: HostPhys, value: u32) -> Result<(), BusError> {
        GuestBus(&self.mapped).write_u32(at, value)
    }
    fn compare_exchange_u64(&self, at: HostPhys, current: u64, new: u64) -> Result<u64, BusError> {
        GuestBus(&self.mapped).compare_exchange_u64(at, current, new)
    }
    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError> {
        GuestBus(&self.mapped).read(at, into)
    }
    fn write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError> {
        GuestBus(&self.mapped).write(at, from)
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;

    fn memfd(len: u64, seals: SealFlags) -> OwnedFd {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, len).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    }

    const fn range(address: u64, len: u64) -> DmaRange {
        DmaRange { address, len }
    }

    #[test]
    fn a_sealed_file_is_shared_both_ways_until_it_is_unmapped() {
        let file = memfd(0x3000, SealFlags::SHRINK);
        let theirs = file.try_clone().unwrap();
        let mut ram = Ram::default();
        ram.map(range(0x10_0000, 0x2000), true, true, Some((file, 0x1000)))
            .unwrap();
        ram.write_u64(HostPhys::new(0x10_0008), 0x1122_3344_5566_7788).unwrap();
        let mut seen = [0; 8];
        rustix::io::pread(&theirs, &mut seen, 0x1008).unwrap();
        assert_eq!(u64::from_le_bytes(seen), 0x1122_3344_5566_7788);
        rustix::io::pwrite(&theirs, &[9], 0x2fff).unwrap();
        let mut last = [0];
        ram.read(HostPhys::new(0x10_1fff), &mut last).unwrap();
        assert_eq!(last, [9]);
        assert_eq!(ram.reach(0x10_1ff0, 0x100, true), (Reach::Mapped, 0x10));
        ram.unmap(range(0x10_0000, 0x2000)).unwrap();
        assert!(ram.read_u64(HostPhys::new(0x10_0008)).is_err());
        assert_eq!(ram.reach(0x10_0000, 8, false).0, Reach::Nothing);
    }

    #[test]
    fn a_file_that_may_shrink_is_not_mapped() {
        let mut ram = Ram::default();
        let refused = ram.map(
            range(0, 0x1000),
            true,
            true,
            Some((memfd(0x1000, SealFlags::empty()), 0)),
        );
        assert_eq!(refused.unwrap_err().errno, Errno::PERM);
        assert!(ram.windows.is_empty());
        let short = ram.map(
            range(0, 0x2000),
            true,
            true,
            Some((memfd(0x1000, SealFlags::SHRINK), 0)),
        );
        assert_eq!(short.unwrap_err().errno, Errno::INVAL);
        let far = ram.map(
            range(0, 0x1000),
            true,
            true,
            Some((memfd(0x1000, SealFlags::SHRINK), u64::MAX)),
        );
        assert_eq!(far.unwrap_err().errno, Errno::INVAL);
    }

    #[test]
    fn windows_do_not_overlap_and_are_unmapped_as_they_were_mapped() {
        let mut ram = Ram::default();
        ram.map(range(0x1000, 0x2000), true, false, None).unwrap();
        for (first, len) in [(0x1000, 0x2000), (0, 0x1001), (0x2fff, 1), (0, u64::MAX)] {
            let refused = ram.map(range(first, len), true, true, None);
            assert_eq!(refused.unwrap_err().errno, Errno::EXIST);
        }
        assert_eq!(ram.reach(0x1000, 4, false), (Reach::Messages, 4));
        assert_eq!(ram.reach(0x1000, 4, true), (Reach::Nothing, 4));
        assert_eq!(ram.unmap(range(0x1000, 0x1000)).unwrap_err().errno, Errno::NOENT);
        ram.unmap(range(0x1000, 0x2000)).unwrap();
        ram.map(range(0, 0x1_0000), true, true, None).unwrap();
    }

    #[test]
    fn a_client_cannot_map_more_windows_than_agreed() {
        let mut ram = Ram::default();
        for index in 0..DMA_MAPS_MAX {
            let at = u64::try_from(index).unwrap() * 0x1000;
            ram.map(range(at, 0x1000), true, true, None).unwrap();
        }
        let refused = ram.map(range(1 << 40, 0x1000), true, true, None);
        assert_eq!(refused.unwrap_err().errno, Errno::NOSPC);
    }
}
