//! Memory accesses as the processor and as hardware make them.

use std::sync::atomic::Ordering;

use iommu_types::sync::AtomicU64;
use iommu_types::{BusError, HostPhys, PAGE_SHIFT, SystemMemory};

use super::SparseMemory;
use super::pages::{Page, Use};

/// Memory as remapping hardware and devices see it.
///
/// On a coherent [`SparseMemory`] this is the same as the memory itself. On a
/// [non-coherent](super::SparseMemoryBuilder::non_coherent) one, a cache line of a table frame shows its old
/// contents until [`iommu_types::Coherence::write_back`] covered it. What hardware writes is seen by both sides.
#[derive(Clone, Copy, Debug)]
pub struct HardwareView<'m> {
    pub(super) memory: &'m SparseMemory,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Processor,
    Hardware,
}

/// One word, and the other side's copy of it where hardware has its own.
struct Word<'m> {
    seen: &'m AtomicU64,
    copy: Option<&'m AtomicU64>,
}

fn in_page(at: u64) -> usize {
    // Nine bits: always fits, and always lies inside a table.
    usize::try_from((at >> 3) & 0x1ff).unwrap_or(0)
}

fn pick(memory: &SparseMemory, page: &Page, side: Side) -> bool {
    memory.non_coherent && side == Side::Hardware && matches!(page.used_for(), Use::Table | Use::Freed)
}

impl SparseMemory {
    /// The first address of `at..at+len` that does not answer.
    fn answer(&self, at: HostPhys, len: u64) -> Result<(), BusError> {
        let last = at.raw().checked_add(len - 1).ok_or(BusError { at: HostPhys::MAX })?;
        if self.region_of(at.raw() >> PAGE_SHIFT).is_none() {
            return Err(BusError { at });
        }
        if self.has_bad.load(Ordering::Acquire) {
            let bad = self.bad.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let hit = bad
                .iter()
                .filter(|r| r.first().raw() <= last && at <= r.last())
                .map(|r| r.first().max(at))
                .min();
            if let Some(at) = hit {
                return Err(BusError { at });
            }
        }
        Ok(())
    }

    fn load(&self, at: HostPhys, side: Side) -> u64 {
        let number = at.raw() >> PAGE_SHIFT;
        let Some(page) = self.region_of(number).and_then(|r| r.peek(number)) else {
            return 0;
        };
        let words = if pick(self, page, side) {
            page.uncached()
        } else {
            &page.words
        };
        words[in_page(at.raw())].load(Ordering::Acquire)
    }

    fn word(&self, at: HostPhys, side: Side) -> Result<Word<'_>, BusError> {
        let number = at.raw() >> PAGE_SHIFT;
        let page = self
            .region_of(number)
            .and_then(|r| r.page(number))
            .ok_or(BusError { at })?;
        let index = in_page(at.raw());
        Ok(if pick(self, page, side) {
            Word {
                seen: &page.uncached()[index],
                copy: Some(&page.words[index]),
            }
        } else {
            Word {
                seen: &page.words[index],
                copy: None,
            }
        })
    }

    fn aligned(at: HostPhys, bytes: u64) -> Result<(), BusError> {
        if at.raw() & (bytes - 1) == 0 {
            Ok(())
        } else {
            Err(BusError { at })
        }
    }

    fn read_u64_as(&self, at: HostPhys, side: Side) -> Result<u64, BusError> {
        Self::aligned(at, 8)?;
        self.answer(at, 8)?;
        Ok(self.load(at, side))
    }

    /// Replaces the bits of `mask` in the word at `at`.
    fn merge(&self, at: HostPhys, mask: u64, value: u64, side: Side) -> Result<(), BusError> {
        let word = self.word(at, side)?;
        for cell in [Some(word.seen), word.copy].into_iter().flatten() {
            if mask == u64::MAX {
                cell.store(value, Ordering::Release);
            } else {
                // The closure always answers, so the update cannot fail.
                let _ = cell.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
                    Some(old & !mask | value & mask)
                });
            }
        }
        Ok(())
    }

    fn write_u64_as(&self, at: HostPhys, value: u64, side: Side) -> Result<(), BusError> {
        Self::aligned(at, 8)?;
        self.answer(at, 8)?;
        self.merge(at, u64::MAX, value, side)
    }

    fn write_u32_as(&self, at: HostPhys, value: u32, side: Side) -> Result<(), BusError> {
        Self::aligned(at, 4)?;
        self.answer(at, 4)?;
        let shift = (at.raw() & 4) * 8;
        let word = HostPhys::new(at.raw() & !7);
        self.merge(word, 0xffff_ffff << shift, u64::from(value) << shift, side)
    }

    fn compare_exchange_as(&self, at: HostPhys, current: u64, new: u64, side: Side) -> Result<u64, BusError> {
        Self::aligned(at, 8)?;
        self.answer(at, 8)?;
        let word = self.word(at, side)?;
        match word
            .seen
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(before) => {
                if let Some(copy) = word.copy {
                    copy.store(new, Ordering::Release);
                }
                Ok(before)
            }
            Err(before) => Ok(before),
        }
    }

    fn read_as(&self, at: HostPhys, into: &mut [u8], side: Side) -> Result<(), BusError> {
        let mut next = at.raw();
        let mut rest = into;
        while !rest.is_empty() {
            let skip = usize::try_from(next & 7).unwrap_or(0);
            let count = (8 - skip).min(rest.len());
            self.answer(HostPhys::new(next), count as u64)?;
            let bytes = self.load(HostPhys::new(next & !7), side).to_le_bytes();
            let (head, tail) = rest.split_at_mut(count);
            head.copy_from_slice(&bytes[skip..skip + count]);
            rest = tail;
            next = next.wrapping_add(count as u64);
        }
        Ok(())
    }

    fn write_as(&self, at: HostPhys, from: &[u8], side: Side) -> Result<(), BusError> {
        let mut next = at.raw();
        let mut rest = from;
        while !rest.is_empty() {
            let skip = usize::try_from(next & 7).unwrap_or(0);
            let count = (8 - skip).min(rest.len());
            self.answer(HostPhys::new(next), count as u64)?;
            let (head, tail) = rest.split_at(count);
            let (mut value, mut mask) = ([0; 8], [0; 8]);
            value[skip..skip + count].copy_from_slice(head);
            mask[skip..skip + count].fill(0xff);
            let word = HostPhys::new(next & !7);
            self.merge(word, u64::from_le_bytes(mask), u64::from_le_bytes(value), side)?;
            rest = tail;
            next = next.wrapping_add(count as u64);
        }
        Ok(())
    }
}

macro_rules! system_memory {
    ($type:ty, $side:expr, $memory:ident => $access:expr) => {
        impl SystemMemory for $type {
            fn read_u64(&self, at: HostPhys) -> Result<u64, BusError> {
                let $memory = self;
                $access.read_u64_as(at, $side)
            }
            fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BusError> {
                let $memory = self;
                $access.write_u64_as(at, value, $side)
            }
            fn write_u32(&self, at: HostPhys, value: u32) -> Result<(), BusError> {
                let $memory = self;
                $access.write_u32_as(at, value, $side)
            }
            fn compare_exchange_u64(&self, at: HostPhys, current: u64, new: u64) -> Result<u64, BusError> {
                let $memory = self;
                $access.compare_exchange_as(at, current, new, $side)
            }
            fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError> {
                let $memory = self;
                $access.read_as(at, into, $side)
            }
            fn write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError> {
                let $memory = self;
                $access.write_as(at, from, $side)
            }
        }
    };
}

system_memory!(SparseMemory, Side::Processor, this => this);
system_memory!(HardwareView<'_>, Side::Hardware, this => this.memory);
