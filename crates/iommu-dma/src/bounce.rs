//! Memory that is copied through, where the device cannot or must not reach the buffer itself.

use alloc::vec::Vec;

use iommu_types::{AddrRange, BusError, HostPhys, PAGE_SIZE, SystemMemory};
use spin::Mutex;
use thiserror::Error;

/// Bytes of a slot.
pub const SLOT: u64 = 2048;
/// The most slots one bounce buffer takes: 256 KiB.
pub const MAX_RUN: u64 = 128;
/// Slots in a page.
const PAGE_SLOTS: u64 = PAGE_SIZE / SLOT;
/// Slots that one word of a map tells about.
const WORD: u64 = 64;

/// A pool that cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// The memory does not consist of whole pages, or holds none.
    #[error(
        "{len:#x} bytes from {base} are no bounce pool: it consists of whole 4 KiB pages, at least one for each area"
    )]
    Misaligned {
        /// First byte.
        base: HostPhys,
        /// Length in bytes.
        len: u64,
    },
    /// No memory for the maps of free slots.
    #[error("no memory to keep track of {slots} slots")]
    NoMemory {
        /// Slots of the pool.
        slots: u64,
    },
}

/// Memory cut into slots of 2 KiB, in areas with a lock each.
///
/// For devices with a narrow DMA mask the pool must lie at or below that mask. For untrusted devices slots are given
/// out in whole pages, so that two devices never share one.
#[derive(Debug)]
pub struct BouncePool {
    base: HostPhys,
    area_slots: u64,
    areas: Vec<Mutex<Area>>,
}

/// Which slots of an area are in use, one bit each. On lines of its own: cores with areas of their own share nothing.
#[derive(Debug)]
#[repr(align(128))]
struct Area {
    used: Vec<u64>,
    slots: u64,
    /// Where the last run ended: the next search begins here.
    hint: u64,
}

/// Slots that are in use.
#[derive(Debug)]
#[must_use = "slots that are dropped stay in use for ever; give them back with BouncePool::free"]
pub(crate) struct Slots {
    area: usize,
    first: u64,
    count: u64,
    phys: HostPhys,
}

impl Slots {
    pub(crate) const fn phys(&self) -> HostPhys {
        self.phys
    }
}

/// How a run of slots must lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Bytes.
    pub(crate) len: u64,
    /// Whole pages that nobody else uses.
    pub(crate) pages: bool,
    /// The last address that will do.
    pub(crate) last: u64,
    /// No multiple of this plus one is crossed.
    pub(crate) boundary: u64,
}

impl Area {
    /// The first used slot of a run, if any.
    fn first_used(&self, first: u64, count: u64) -> Option<u64> {
        let mut at = first;
        while at < first + count {
            let word = usize::try_from(at / WORD)
                .ok()
                .and_then(|index| self.used.get(index))
                .copied();
            let used = word.unwrap_or(u64::MAX) >> (at % WORD);
            if used != 0 {
                let hit = at + u64::from(used.trailing_zeros());
                return (hit < first + count).then_some(hit);
            }
            at = (at / WORD + 1) * WORD;
        }
        None
    }

    fn set(&mut self, first: u64, count: u64, in_use: bool) {
        for slot in first..first + count {
            let word = usize::try_from(slot / WORD)
                .ok()
                .and_then(|index| self.used.get_mut(index));
            if let Some(word) = word {
                let bit = 1 << (slot % WORD);
                *word = if in_use { *word | bit } else { *word & !bit };
            }
        }
    }

    /// A free run whose start is a multiple of `align` slots, from `from` on. Each step passes a used slot, a
    /// boundary or the limit, so there are at most as many as slots in the area.
    fn find(&self, base: u64, from: u64, count: u64, align: u64, place: Place) -> Option<u64> {
        let mut at = from.next_multiple_of(align);
        while at + count <= self.slots {
            let first = base + at * SLOT;
            let last = first + count * SLOT - 1;
            if last > place.last {
                return None;
            }
            at = if let Some(used) = self.first_used(at, count) {
                used + 1
            } else if first & !place.boundary != last & !place.boundary {
                ((last & !place.boundary) - base).div_ceil(SLOT)
            } else {
                return Some(at);
            }
            .next_multiple_of(align);
        }
        None
    }
}

impl BouncePool {
    /// A pool of `len` bytes of memory at `base`, which nobody else uses, in `areas` parts: one for each core is best.
    ///
    /// # Errors
    /// [`PoolError`] if that is not whole pages, or there is no memory to keep track of them.
    pub fn new(base: HostPhys, len: u64, areas: usize) -> Result<Self, PoolError> {
        let misaligned = PoolError::Misaligned { base, len };
        let count = u64::try_from(areas.max(1)).unwrap_or(u64::MAX);
        let aligned = base.page() == base && len.is_multiple_of(PAGE_SIZE) && base.checked_add(len).is_some();
        let area_slots = len / PAGE_SIZE / count * PAGE_SLOTS;
        if !aligned || area_slots == 0 {
            return Err(misaligned);
        }
        let no_memory = PoolError::NoMemory {
            slots: area_slots * count,
        };
        let words = usize::try_from(area_slots.div_ceil(WORD)).map_err(|_| no_memory)?;
        let mut all = Vec::new();
        all.try_reserve_exact(areas.max(1)).map_err(|_| no_memory)?;
        for _ in 0..areas.max(1) {
            let mut used = Vec::new();
            used.try_reserve_exact(words).map_err(|_| no_memory)?;
            used.resize(words, 0);
            all.push(Mutex::new(Area {
                used,
                slots: area_slots,
                hint: 0,
            }));
        }
        Ok(Self {
            base,
            area_slots,
            areas: all,
        })
    }

    /// The memory of the pool.
    #[must_use]
    pub fn range(&self) -> AddrRange<HostPhys> {
        let len = self.area_slots * SLOT * u64::try_from(self.areas.len()).unwrap_or(1);
        // Checked when the pool was made; the page stands for the impossible case only.
        AddrRange::from_base_len(self.base, len)
            .unwrap_or(AddrRange::page_around(self.base, iommu_types::PageSize::Size4K))
    }

    /// How many slots are in use.
    pub fn used_slots(&self) -> u64 {
        let areas = self
            .areas
            .iter()
            .map(|area| area.lock().used.iter().map(|w| u64::from(w.count_ones())).sum::<u64>());
        areas.sum()
    }

    /// The memory of an area starts here.
    fn area_base(&self, area: usize) -> u64 {
        self.base.raw() + u64::try_from(area).unwrap_or(0) * self.area_slots * SLOT
    }

    /// Takes a run of slots, from area `own` if it has one, else from the next that does.
    pub(crate) fn allocate(&self, own: usize, place: Place) -> Option<Slots> {
        let align = if place.pages || place.len >= PAGE_SIZE {
            PAGE_SLOTS
        } else {
            1
        };
        let count = place.len.div_ceil(SLOT).max(1);
        let count = if place.pages {
            count.next_multiple_of(PAGE_SLOTS)
        } else {
            count
        };
        if count > MAX_RUN {
            return None;
        }
        // A run longer than the distance between boundaries crosses one wherever it lies; its segments are cut there.
        let crosses = count * SLOT - 1 > place.boundary;
        let place = Place {
            boundary: if crosses { u64::MAX } else { place.boundary },
            ..place
        };
        let areas = self.areas.len();
        for turn in 0..areas {
            let index = (own % areas + turn) % areas;
            let base = self.area_base(index);
            let Some(mut area) = self.areas.get(index).map(Mutex::lock) else {
                continue;
            };
            let hint = area.hint;
            let found = area
                .find(base, hint, count, align, place)
                .or_else(|| area.find(base, 0, count, align, place));
            if let Some(first) = found {
                area.set(first, count, true);
                area.hint = first + count;
                return Some(Slots {
                    area: index,
                    first,
                    count,
                    phys: HostPhys::new(base + first * SLOT),
                });
            }
        }
        None
    }

    /// Takes slots back. The caller states that no device can reach them.
    pub(crate) fn free(&self, slots: Slots) {
        if let Some(area) = self.areas.get(slots.area) {
            let mut area = area.lock();
            area.set(slots.first, slots.count, false);
            // The slots just used are the warmest.
            area.hint = slots.first;
        }
    }
}

/// Bytes written at a time.
const CHUNK: usize = 1024;

/// Fills memory with zeroes.
pub(crate) fn zero<M: SystemMemory>(memory: &M, at: HostPhys, len: u64) -> Result<(), BusError> {
    let zeroes = [0; CHUNK];
    let mut done = 0;
    while done < len {
        let part = usize::try_from(len - done).unwrap_or(CHUNK).min(CHUNK);
        memory.write(at.checked_add(done).ok_or(BusError { at })?, &zeroes[..part])?;
        done += u64::try_from(part).unwrap_or(len);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Place = Place {
        len: 1,
        pages: false,
        last: u64::MAX,
        boundary: u64::MAX,
    };

    fn pool(len: u64, areas: usize) -> BouncePool {
        BouncePool::new(HostPhys::new(0x10_0000), len, areas).expect("whole pages")
    }

    #[test]
    fn slots_are_two_kib_and_pages_are_not_shared() {
        let pool = pool(0x4000, 1);
        let small = pool.allocate(0, ANY).expect("empty");
        assert_eq!(small.phys(), HostPhys::new(0x10_0000));
        let next = pool.allocate(0, Place { len: SLOT, ..ANY }).expect("room");
        assert_eq!(next.phys(), HostPhys::new(0x10_0800));
        pool.free(next);
        let page = pool.allocate(0, Place { pages: true, ..ANY }).expect("room");
        assert_eq!(page.phys(), HostPhys::new(0x10_1000), "not beside the first");
        assert_eq!(pool.used_slots(), 3);
        let large = pool.allocate(0, Place { len: 0x2000, ..ANY }).expect("room");
        assert_eq!(
            large.phys(),
            HostPhys::new(0x10_2000),
            "a page or more starts on a page"
        );
        assert!(pool.allocate(0, Place { pages: true, ..ANY }).is_none());
        assert!(pool.allocate(0, ANY).is_some(), "the half page that is left");
        pool.free(small);
        pool.free(page);
        pool.free(large);
        assert_eq!(pool.used_slots(), 1);
    }

    #[test]
    fn runs_respect_limit_boundary_and_length() {
        let pool = pool(0x10_0000, 1);
        let place = Place {
            len: 0x3000,
            boundary: 0x3fff,
            ..ANY
        };
        let first = pool.allocate(0, place).expect("room");
        let second = pool.allocate(0, place).expect("room");
        assert_eq!((first.phys().raw(), second.phys().raw()), (0x10_0000, 0x10_4000));
        assert!(pool.allocate(0, Place { last: 0x10_0fff, ..ANY }).is_none());
        assert!(pool.allocate(0, Place { last: 0x10_37ff, ..ANY }).is_some());
        assert!(
            pool.allocate(
                0,
                Place {
                    len: MAX_RUN * SLOT,
                    ..ANY
                }
            )
            .is_some()
        );
        assert!(
            pool.allocate(
                0,
                Place {
                    len: MAX_RUN * SLOT + 1,
                    ..ANY
                }
            )
            .is_none()
        );
    }

    #[test]
    fn a_full_area_borrows_from_the_next() {
        let pool = pool(0x2000, 2);
        let own = pool.allocate(1, Place { pages: true, ..ANY }).expect("room");
        let other = pool.allocate(1, Place { pages: true, ..ANY }).expect("room");
        assert_eq!((own.phys().raw(), other.phys().raw()), (0x10_1000, 0x10_0000));
        assert!(pool.allocate(1, ANY).is_none());
        pool.free(own);
        assert_eq!(pool.allocate(0, ANY).map(|slots| slots.phys().raw()), Some(0x10_1000));
    }

    #[test]
    fn a_pool_is_whole_pages() {
        assert!(BouncePool::new(HostPhys::new(0x800), 0x1000, 1).is_err());
        assert!(BouncePool::new(HostPhys::new(0), 0x1800, 1).is_err());
        assert!(BouncePool::new(HostPhys::new(0), 0x1000, 2).is_err());
    }
}
