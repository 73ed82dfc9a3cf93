//! Guest memory as the unit's table walker sees it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use iommu_types::{BusError, HostPhys, SystemMemory};
use vm_memory::bitmap::Bitmap;
use vm_memory::bitmap::MS;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, MemoryRegionAddress, VolatileMemory, VolatileSlice};

/// [`SystemMemory`] over the memory of a guest: host addresses of the unit are the guest's physical addresses.
///
/// Words are little-endian in memory, as hardware has them. Writes are noted in the dirty bitmap.
#[derive(Debug)]
pub struct GuestBus<'m, M: ?Sized>(pub &'m M);

impl<'m, M: GuestMemoryBackend + ?Sized> GuestBus<'m, M> {
    /// The memory from `at` to the end of its region, at most `len` bytes of it.
    #[inline]
    pub(crate) fn run(self, at: HostPhys, len: usize) -> Option<VolatileSlice<'m, MS<'m, M>>> {
        use vm_memory::{Address, GuestMemoryRegion};
        let at = GuestAddress(at.raw());
        let region = self.0.find_region(at)?;
        let offset = at.checked_sub(region.start_addr().raw_value())?.raw_value();
        let left = usize::try_from(region.len().checked_sub(offset)?).unwrap_or(usize::MAX);
        region.get_slice(MemoryRegionAddress(offset), len.min(left)).ok()
    }

    #[inline]
    fn whole(&self, at: HostPhys, len: usize) -> Result<VolatileSlice<'m, MS<'m, M>>, BusError> {
        GuestBus(self.0)
            .run(at, len)
            .filter(|slice| slice.len() == len)
            .ok_or(BusError { at })
    }
}

/// Reads words of which most lie in one region, and finds that region once.
pub(crate) struct Near<'m, M: GuestMemoryBackend> {
    bus: GuestBus<'m, M>,
    /// The region that was found last, and its first address.
    region: Option<(u64, VolatileSlice<'m, MS<'m, M>>)>,
}

impl<'m, M: GuestMemoryBackend> Near<'m, M> {
    pub(crate) const fn new(bus: GuestBus<'m, M>) -> Self {
        Self { bus, region: None }
    }

    /// The aligned word at `at`.
    #[inline]
    pub(crate) fn read_u64(&mut self, at: HostPhys) -> Option<u64> {
        if let Some((first, region)) = &self.region
            && let Some(offset) = at.raw().checked_sub(*first)
            && let Ok(offset) = usize::try_from(offset)
            && offset < region.len()
        {
            let word = region.get_atomic_ref::<AtomicU64>(offset).ok()?;
            return Some(u64::from_le(word.load(Ordering::Acquire)));
        }
        self.find(at)
    }

    #[inline]
    fn find(&mut self, at: HostPhys) -> Option<u64> {
        use vm_memory::{Address, GuestMemoryRegion};
        let region = self.bus.0.find_region(GuestAddress(at.raw()))?;
        let (first, len) = (region.start_addr().raw_value(), usize::try_from(region.len()).ok()?);
        let slice = region.get_slice(MemoryRegionAddress(0), len).ok()?;
        let offset = usize::try_from(at.raw().checked_sub(first)?).ok()?;
        let word = slice.get_atomic_ref::<AtomicU64>(offset).ok()?;
        let word = u64::from_le(word.load(Ordering::Acquire));
        self.region = Some((first, slice));
        Some(word)
    }
}

impl<M: ?Sized> Clone for GuestBus<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: ?Sized> Copy for GuestBus<'_, M> {}

impl<M: GuestMemoryBackend + ?Sized> SystemMemory for GuestBus<'_, M> {
    #[inline]
    fn read_u64(&self, at: HostPhys) -> Result<u64, BusError> {
        let slice = self.whole(at, 8)?;
        let word = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| BusError { at })?;
        Ok(u64::from_le(word.load(Ordering::Acquire)))
    }

    #[inline]
    fn read_words<const N: usize>(&self, at: HostPhys) -> Result<[u64; N], BusError> {
        // One look for the region serves all words; structures do not cross regions, or are read word by word.
        let Some(slice) = self.run(at, N * 8).filter(|slice| slice.len() == N * 8) else {
            let mut words = [0; N];
            for (word, offset) in words.iter_mut().zip((0u64..).step_by(8)) {
                *word = self.read_u64(at.checked_add(offset).ok_or(BusError { at })?)?;
            }
            return Ok(words);
        };
        let mut words = [0; N];
        for (word, offset) in words.iter_mut().zip((0..).step_by(8)) {
            let held = slice.get_atomic_ref::<AtomicU64>(offset).map_err(|_| BusError { at })?;
            *word = u64::from_le(held.load(Ordering::Acquire));
        }
        Ok(words)
    }

    fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BusError> {
        let slice = self.whole(at, 8)?;
        slice
            .store(value.to_le(), 0, Ordering::Release)
            .map_err(|_| BusError { at })
    }

    fn write_u32(&self, at: HostPhys, value: u32) -> Result<(), BusError> {
        let slice = self.whole(at, 4)?;
        let word = slice.get_atomic_ref::<AtomicU32>(0).map_err(|_| BusError { at })?;
        word.store(value.to_le(), Ordering::Release);
        slice.bitmap().mark_dirty(0, 4);
        Ok(())
    }

    fn compare_exchange_u64(&self, at: HostPhys, current: u64, new: u64) -> Result<u64, BusError> {
        let slice = self.whole(at, 8)?;
        let word = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| BusError { at })?;
        match word.compare_exchange(current.to_le(), new.to_le(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(before) => {
                slice.bitmap().mark_dirty(0, 8);
                Ok(u64::from_le(before))
            }
            Err(before) => Ok(u64::from_le(before)),
        }
    }

    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError> {
        let mut rest = into;
        let mut at = at;
        while !rest.is_empty() {
            let slice = self
                .run(at, rest.len())
                .filter(|slice| !slice.is_empty())
                .ok_or(BusError { at })?;
            let (now, later) = rest.split_at_mut(slice.len());
            slice.copy_to(now);
            at = at.checked_add(now.len() as u64).ok_or(BusError { at })?;
            rest = later;
        }
        Ok(())
    }

    fn write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError> {
        let mut rest = from;
        let mut at = at;
        while !rest.is_empty() {
            let slice = self
                .run(at, rest.len())
                .filter(|slice| !slice.is_empty())
                .ok_or(BusError { at })?;
            let (now, later) = rest.split_at(slice.len());
            slice.copy_from(now);
            at = at.checked_add(now.len() as u64).ok_or(BusError { at })?;
            rest = later;
        }
        Ok(())
    }
}
