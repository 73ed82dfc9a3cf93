//! Memory of users and guests.

use iommu_types::{AddrRange, BusError, GuestPhys, HostPhys, PAGE_SIZE, SystemMemory};
use soft_platform::Pages;

use crate::error::VfioError;
use crate::platform::Platform;
use crate::user::UserId;

/// Memory that belongs to one user: what a process would have behind its virtual addresses.
///
/// It lies in host memory in runs that need not be next to each other; offsets count from its start. Dropping it
/// keeps the pages reserved; [`UserMemory::release`] gives them back.
#[derive(Debug)]
#[must_use = "dropping memory keeps its pages reserved; give them back with UserMemory::release"]
pub struct UserMemory {
    platform: Platform,
    user: UserId,
    pages: Pages,
}

impl UserMemory {
    pub(crate) fn new(platform: Platform, user: UserId, pages: Pages) -> Self {
        Self { platform, user, pages }
    }

    /// Whose it is.
    #[must_use]
    pub const fn user(&self) -> UserId {
        self.user
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.pages.bytes()
    }

    /// Always false: there is at least a page. Present because `len` is.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// The runs of host memory, in the order of offsets.
    #[must_use]
    pub fn extents(&self) -> &[AddrRange<HostPhys>] {
        self.pages.extents()
    }

    /// The words of the memory, if all of them lie side by side in this process.
    pub(crate) fn words(&self) -> Option<&[iommu_types::sync::AtomicU64]> {
        let [extent] = self.extents() else { return None };
        let words = self.platform.machine().memory().words(extent.first(), self.len())?;
        (u64::try_from(words.len()).ok()? * 8 == self.len()).then_some(words)
    }

    /// Where byte `offset` lies in host memory.
    #[must_use]
    pub fn at(&self, offset: u64) -> Option<HostPhys> {
        self.pages.at(offset)
    }

    /// The runs of host memory behind `size` bytes from `offset`, neighbours joined.
    ///
    /// # Errors
    /// [`VfioError::OutsideMemory`].
    pub fn runs(&self, offset: u64, size: u64) -> Result<Vec<AddrRange<HostPhys>>, VfioError> {
        let len = self.len();
        if offset.checked_add(size).is_none_or(|end| end > len) {
            return Err(VfioError::OutsideMemory { offset, size, len });
        }
        let mut runs: Vec<AddrRange<HostPhys>> = Vec::new();
        let (mut skip, mut left) = (offset, size);
        for extent in self.extents() {
            let bytes = extent.page_count() * PAGE_SIZE;
            if skip >= bytes {
                skip -= bytes;
                continue;
            }
            let take = left.min(bytes - skip);
            let first = extent.first().checked_add(skip);
            skip = 0;
            left -= take;
            if let Some(run) = first.and_then(|first| AddrRange::from_base_len(first, take)) {
                match runs
                    .last_mut()
                    .and_then(|last| joined(*last, run).map(|both| (last, both)))
                {
                    Some((last, both)) => *last = both,
                    None => runs.push(run),
                }
            }
            if left == 0 {
                break;
            }
        }
        Ok(runs)
    }

    /// Fills `into` from byte `offset` on.
    ///
    /// # Errors
    /// [`VfioError::OutsideMemory`].
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), VfioError> {
        let runs = self.runs(offset, length(into.len()))?;
        let mut rest = into;
        for run in runs {
            let (part, tail) = rest.split_at_mut(usize::try_from(run.len().unwrap_or(0)).unwrap_or(0).min(rest.len()));
            self.memory(|machine| machine.read(run.first(), part));
            rest = tail;
        }
        Ok(())
    }

    /// Copies `from` to byte `offset` and after.
    ///
    /// # Errors
    /// [`VfioError::OutsideMemory`].
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), VfioError> {
        let runs = self.runs(offset, length(from.len()))?;
        let mut rest = from;
        for run in runs {
            let (part, tail) = rest.split_at(usize::try_from(run.len().unwrap_or(0)).unwrap_or(0).min(rest.len()));
            self.memory(|machine| machine.write(run.first(), part));
            rest = tail;
        }
        Ok(())
    }

    /// Reaches memory that was allocated from the machine, where something always answers.
    fn memory(&self, access: impl FnOnce(&soft_platform::Machine) -> Result<(), BusError>) {
        let answered = access(self.platform.machine());
        debug_assert!(answered.is_ok(), "allocated memory answers: {answered:?}");
    }

    /// Gives the pages back to the host.
    ///
    /// # Errors
    /// [`VfioError::Pinned`] with the memory, while a device may be using it.
    pub fn release(self) -> Result<(), (VfioError, Self)> {
        let mut state = self.platform.state();
        let pins = state.pages.pins(self.pages.extents());
        if pins > 0 {
            drop(state);
            return Err((VfioError::Pinned { pins }, self));
        }
        state.pages.remove(self.pages.extents());
        drop(state);
        self.platform.machine().memory().release_pages(self.pages);
        Ok(())
    }
}

fn length(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Two runs as one, if the second begins where the first ends.
fn joined(a: AddrRange<HostPhys>, b: AddrRange<HostPhys>) -> Option<AddrRange<HostPhys>> {
    if a.last().checked_add(1) == Some(b.first()) {
        AddrRange::new(a.first(), b.last())
    } else {
        None
    }
}

/// First guest address that a PC's memory leaves to devices.
const HOLE: u64 = 3 << 30;
/// First guest address after that.
const ABOVE: u64 = 4 << 30;

/// A guest's memory: guest physical addresses over a user's memory.
///
/// As in a PC, memory stands below 3 GiB and, what does not fit there, from 4 GiB up; the gap belongs to devices
/// and interrupts.
#[derive(Debug)]
pub struct GuestMemory {
    memory: UserMemory,
    /// Guest addresses and the offset of each range in the memory.
    map: Vec<(AddrRange<GuestPhys>, u64)>,
}

impl GuestMemory {
    /// A guest whose memory is `memory`.
    #[must_use]
    pub fn new(memory: UserMemory) -> Self {
        let len = memory.len();
        let low = len.min(HOLE);
        let map = [(0, low, 0), (ABOVE, len - low, low)]
            .into_iter()
            .filter_map(|(base, len, offset)| Some((AddrRange::from_base_len(GuestPhys::new(base), len)?, offset)))
            .collect();
        Self { memory, map }
    }

    /// The memory itself.
    pub const fn memory(&self) -> &UserMemory {
        &self.memory
    }

    /// Gives the guest up and its memory back to the caller.
    pub fn into_memory(self) -> UserMemory {
        self.memory
    }

    /// The guest addresses that are memory, with the offset of each range in [`Self::memory`].
    #[must_use]
    pub fn ranges(&self) -> &[(AddrRange<GuestPhys>, u64)] {
        &self.map
    }

    /// The offset in the memory of `size` bytes from `at`, which lie in one range.
    ///
    /// # Errors
    /// [`VfioError::NoGuestMemory`].
    pub fn offset(&self, at: GuestPhys, size: u64) -> Result<u64, VfioError> {
        let wanted = AddrRange::from_base_len(at, size).ok_or(VfioError::NoGuestMemory(at))?;
        self.map
            .iter()
            .find(|(range, _)| range.covers(wanted))
            .and_then(|(range, offset)| Some(at.offset_from(range.first())? + offset))
            .ok_or(VfioError::NoGuestMemory(at))
    }

    /// Where guest address `at` lies in host memory.
    #[must_use]
    pub fn translate(&self, at: GuestPhys) -> Option<HostPhys> {
        self.memory.at(self.offset(at, 1).ok()?)
    }

    /// Reads guest memory.
    ///
    /// # Errors
    /// [`VfioError::NoGuestMemory`].
    pub fn read(&self, at: GuestPhys, into: &mut [u8]) -> Result<(), VfioError> {
        self.memory.read(self.offset(at, length(into.len()))?, into)
    }

    /// Writes guest memory.
    ///
    /// # Errors
    /// [`VfioError::NoGuestMemory`].
    pub fn write(&self, at: GuestPhys, from: &[u8]) -> Result<(), VfioError> {
        self.memory.write(self.offset(at, length(from.len()))?, from)
    }
}
