//! A set-associative store of fixed size.

use alloc::vec::Vec;

/// Entries in a set: as many as a lookup compares.
const WAYS: usize = 4;

/// Up to `capacity` values, found by hash and comparison; new values displace old ones.
#[derive(Clone, Debug)]
pub(super) struct SetCache<T> {
    slots: Vec<Option<T>>,
    ways: usize,
    sets: usize,
    /// Chooses the victim; a plain counter is enough, what counts is that every way gets its turn.
    turn: usize,
}

/// Mixes `word` so that neighbouring keys spread over the sets (Fibonacci hashing).
pub(super) const fn spread(word: u64) -> u64 {
    let mixed = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

impl<T> SetCache<T> {
    /// Room for about `capacity` values: at least half of it, never more. 0 stores nothing.
    pub(super) fn new(capacity: usize) -> Self {
        let ways = capacity.min(WAYS);
        let sets = match capacity.checked_div(ways) {
            Some(sets) => 1 << sets.ilog2(),
            None => 0,
        };
        // Exactly so much: the bound on a unit's memory counts on it.
        let mut slots = Vec::with_capacity(ways * sets);
        slots.resize_with(ways * sets, || None);
        Self {
            slots,
            ways,
            sets,
            turn: 0,
        }
    }

    /// Most bytes on the heap with room for `capacity` values.
    pub(super) const fn memory_bound(capacity: usize) -> usize {
        capacity.saturating_mul(size_of::<Option<T>>())
    }

    /// Bytes on the heap.
    pub(super) const fn memory_held(&self) -> usize {
        Self::memory_bound(self.slots.capacity())
    }

    fn set(&self, hash: u64) -> core::ops::Range<usize> {
        // The mask keeps the hash below the number of sets, so the conversion cannot fail.
        let index = usize::try_from(hash & (self.sets as u64).wrapping_sub(1)).unwrap_or(0);
        let start = if self.sets == 0 { 0 } else { index * self.ways };
        start..start + self.ways
    }

    /// The value of the set of `hash` for which `same` holds.
    pub(super) fn find(&self, hash: u64, mut same: impl FnMut(&T) -> bool) -> Option<&T> {
        self.slots
            .get(self.set(hash))?
            .iter()
            .flatten()
            .find(|value| same(value))
    }

    /// Stores `value`, in place of one for which `replace` holds, of an empty slot, or of the next in turn.
    pub(super) fn put(&mut self, hash: u64, value: T, mut replace: impl FnMut(&T) -> bool) {
        let range = self.set(hash);
        let turn = self.turn;
        let Some(set) = self.slots.get_mut(range).filter(|set| !set.is_empty()) else {
            return;
        };
        let len = set.len();
        let place = set
            .iter()
            .position(|slot| slot.as_ref().is_some_and(&mut replace))
            .or_else(|| set.iter().position(Option::is_none))
            .unwrap_or_else(|| turn % len);
        if let Some(slot) = set.get_mut(place) {
            *slot = Some(value);
        }
        self.turn = turn.wrapping_add(1);
    }

    /// Drops the values of the set of `hash` for which `gone` holds.
    pub(super) fn drop_in_set(&mut self, hash: u64, mut gone: impl FnMut(&T) -> bool) {
        let range = self.set(hash);
        for slot in self.slots.get_mut(range).unwrap_or_default() {
            if slot.as_ref().is_some_and(&mut gone) {
                *slot = None;
            }
        }
    }

    /// Drops every value for which `gone` holds.
    pub(super) fn drop_all(&mut self, mut gone: impl FnMut(&T) -> bool) {
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(&mut gone) {
                *slot = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_never_holds_more_than_its_capacity() {
        for capacity in [0, 1, 2, 3, 5, 64, 100] {
            let mut cache = SetCache::new(capacity);
            for key in 0..1000u64 {
                cache.put(spread(key), key, |held| *held == key);
            }
            let held = (0..1000u64)
                .filter(|key| cache.find(spread(*key), |k| k == key).is_some())
                .count();
            assert!(held <= capacity, "{held} of {capacity}");
            assert!(held * 2 >= capacity, "{held} of {capacity}");
        }
    }

    #[test]
    fn a_value_replaces_the_one_with_the_same_key() {
        let mut cache = SetCache::new(4);
        cache.put(0, (1, 'a'), |held| held.0 == 1);
        cache.put(0, (1, 'b'), |held| held.0 == 1);
        assert_eq!(cache.find(0, |held| held.0 == 1), Some(&(1, 'b')));
        cache.drop_in_set(0, |held| held.0 == 1);
        assert_eq!(cache.find(0, |held| held.0 == 1), None);
    }
}
