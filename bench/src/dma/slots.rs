//! B12's peers: pools behind one lock, as they are described, written anew.
//!
//! Slots of 2 KiB in segments of 128. For each slot the pool keeps how many free slots follow it in its segment, itself
//! included, so a search looks at one number for each place; taking and giving back rewrites the numbers before the
//! run. A search goes on behind the last run, so the slots of a large pool come round cold: that is in the figures, and so
//! it is in the original. What a slot was taken for is found by its number, or, in the other form, in a hash table keyed by address.

use std::collections::HashMap;

use iommu_iova::{Exclusive, LockKind, SpinLock};
use iommu_types::{HostPhys, SystemMemory};

use crate::peers::FlatMemory;

type Spin<T> = <SpinLock as LockKind>::Lock<T>;

/// Bytes of a slot.
const SLOT: u64 = 2048;
/// Slots of a segment; no run crosses into the next one.
const SEGMENT: usize = 128;

/// A pool of slots at host address 0.
pub(super) struct RunLengths(Spin<State>);

struct State {
    /// Free slots from here on in the segment; 0 for a slot in use.
    free: Vec<usize>,
    next: usize,
    notes: Notes,
}

/// Where it is written what a run of slots stands for: where the caller's bytes are, and how many they are.
enum Notes {
    Numbered(Vec<(u64, u64)>),
    Hashed(HashMap<u64, (u64, u64)>),
}

impl RunLengths {
    /// A pool of `len` bytes.
    pub(super) fn new(len: u64, hashed: bool) -> Self {
        let slots = usize::try_from(len / SLOT).unwrap_or(0) / SEGMENT * SEGMENT;
        Self(Exclusive::new(State {
            free: (0..slots).map(|slot| SEGMENT - slot % SEGMENT).collect(),
            next: 0,
            notes: match hashed {
                true => Notes::Hashed(HashMap::new()),
                false => Notes::Numbered(vec![(0, 0); slots]),
            },
        }))
    }

    /// Takes slots and fills them; tells where they are.
    pub(super) fn map(&self, memory: &FlatMemory, original: HostPhys, len: u64) -> Option<HostPhys> {
        let slot = self.0.with(|state| state.take(original.raw(), len))?;
        let at = HostPhys::new(slot as u64 * SLOT);
        memory.copy(original, at, len).ok()?;
        Some(at)
    }

    /// Copies back, if the device wrote, and frees the slots.
    pub(super) fn unmap(&self, memory: &FlatMemory, at: HostPhys, back: bool) -> Option<()> {
        let slot = usize::try_from(at.raw() / SLOT).ok()?;
        if back {
            let (original, len) = self.0.with(|state| state.note(slot))?;
            memory.copy(at, HostPhys::new(original), len).ok()?;
        }
        self.0.with(|state| state.give_back(slot))
    }
}

impl State {
    fn take(&mut self, original: u64, len: u64) -> Option<usize> {
        let count = usize::try_from(len.div_ceil(SLOT)).ok()?;
        // A page or more begins on a page.
        let step = if count > 1 { 2 } else { 1 };
        let slots = self.free.len();
        let from = self.next.next_multiple_of(step);
        let fits = |&slot: &usize| self.free.get(slot).is_some_and(|&free| free >= count);
        let found = (from..slots).step_by(step).find(fits);
        let slot = found.or_else(|| (0..from.min(slots)).step_by(step).find(fits))?;
        self.free[slot..slot + count].fill(0);
        self.renumber_below(slot, 0);
        self.next = (slot + count) % slots;
        match &mut self.notes {
            Notes::Numbered(notes) => notes[slot] = (original, len),
            Notes::Hashed(notes) => drop(notes.insert(slot as u64 * SLOT, (original, len))),
        }
        Some(slot)
    }

    fn note(&self, slot: usize) -> Option<(u64, u64)> {
        match &self.notes {
            Notes::Numbered(notes) => notes.get(slot).copied(),
            Notes::Hashed(notes) => notes.get(&(slot as u64 * SLOT)).copied(),
        }
    }

    fn give_back(&mut self, slot: usize) -> Option<()> {
        let (_, len) = self.note(slot)?;
        if let Notes::Hashed(notes) = &mut self.notes {
            notes.remove(&(slot as u64 * SLOT));
        }
        let count = usize::try_from(len.div_ceil(SLOT)).ok()?;
        let end = slot + count;
        let mut run = if end.is_multiple_of(SEGMENT) { 0 } else { self.free[end] };
        for free in self.free[slot..end].iter_mut().rev() {
            run += 1;
            *free = run;
        }
        self.renumber_below(slot, run);
        Some(())
    }

    /// Numbers the free slots below `slot` in its segment anew; `run` free slots begin at it.
    fn renumber_below(&mut self, slot: usize, mut run: usize) {
        let start = slot / SEGMENT * SEGMENT;
        for free in self.free[start..slot].iter_mut().rev() {
            if *free == 0 {
                break;
            }
            run += 1;
            *free = run;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back_and_runs_never_share_one() {
        for hashed in [false, true] {
            let memory = FlatMemory::new(2 << 20);
            let pool = RunLengths::new(1 << 20, hashed);
            let all = |pool: &RunLengths| pool.0.with(|state| state.free.clone());
            let fresh = all(&pool);
            let lens = [64, 4096, 1500, 65_536, 2049, 10_000];
            let mut live: Vec<(HostPhys, u64)> = Vec::new();
            for turn in 0..500_usize {
                let len = lens[turn % lens.len()];
                let at = pool.map(&memory, HostPhys::new(1 << 20), len).expect("there is room");
                for &(other, others) in &live {
                    let apart = at.raw() + len <= other.raw() || other.raw() + others <= at.raw();
                    assert!(apart, "{at} and {other}");
                }
                live.push((at, len));
                if live.len() > 7 {
                    let (at, _) = live.remove(turn % 5);
                    pool.unmap(&memory, at, turn % 2 == 0).expect("it was taken");
                }
            }
            for (at, _) in live {
                pool.unmap(&memory, at, true).expect("it was taken");
            }
            assert_eq!(all(&pool), fresh);
        }
    }
}
