//! What is mapped, by first address: made for many mappings and a quick answer to "which holds this address".

use std::ops::RangeInclusive;

/// Most entries of a leaf: a search touches a few lines of its keys, an insertion moves half of them.
const LEAF: usize = 128;

/// Values by address. Two levels: the first address of each leaf, and leaves with keys apart from values.
#[derive(Debug)]
pub(super) struct ByAddress<V> {
    firsts: Vec<u64>,
    leaves: Vec<Leaf<V>>,
    len: usize,
}

#[derive(Debug)]
struct Leaf<V> {
    keys: Vec<u64>,
    values: Vec<V>,
}

impl<V> Default for ByAddress<V> {
    fn default() -> Self {
        Self {
            firsts: Vec::new(),
            leaves: Vec::new(),
            len: 0,
        }
    }
}

/// How many of the ascending `keys` are not above `at`.
///
/// Mappings mostly lie evenly, so the place is guessed from where `at` is between the ends, and searched for only if the
/// guess is wrong: a search waits for one load after the other.
#[inline]
fn count_up_to(keys: &[u64], at: u64) -> usize {
    let (Some(first), Some(last)) = (keys.first(), keys.last()) else {
        return 0;
    };
    if at >= *last {
        return keys.len();
    }
    let Some(part) = at.checked_sub(*first) else {
        return 0;
    };
    let guess = guess(part, *last - *first, keys.len() - 1);
    match (keys.get(guess), keys.get(guess + 1)) {
        (Some(low), Some(high)) if *low <= at && at < *high => guess + 1,
        _ => keys.partition_point(|key| *key <= at),
    }
}

/// `steps * part / whole`, roughly, where `part` is below `whole`: in 32 bits, where division is cheap.
#[inline]
fn guess(part: u64, whole: u64, steps: usize) -> usize {
    /// Bits of `whole` that count; the product with the steps has to fit.
    const BITS: u32 = 20;
    let shift = (u64::BITS - whole.leading_zeros()).saturating_sub(BITS);
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let (part, whole) = (narrow(part >> shift), narrow(whole >> shift));
    let steps = u32::try_from(steps).unwrap_or(u32::MAX);
    let place = part.saturating_mul(steps).checked_div(whole).unwrap_or(0);
    usize::try_from(place).unwrap_or(0)
}

impl<V> ByAddress<V> {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The leaf that holds `at` or would.
    fn leaf(&self, at: u64) -> usize {
        count_up_to(&self.firsts, at).saturating_sub(1)
    }

    /// The last entry at or below `at`.
    #[inline]
    pub(super) fn at_or_below(&self, at: u64) -> Option<(u64, &V)> {
        let leaf = self.leaves.get(self.leaf(at))?;
        let index = count_up_to(&leaf.keys, at).checked_sub(1)?;
        Some((*leaf.keys.get(index)?, leaf.values.get(index)?))
    }

    /// Adds an entry; the one that had the key goes.
    pub(super) fn insert(&mut self, key: u64, value: V) {
        let at = self.leaf(key);
        let Some(leaf) = self.leaves.get_mut(at) else {
            self.firsts.push(key);
            self.leaves.push(Leaf {
                keys: vec![key],
                values: vec![value],
            });
            self.len += 1;
            return;
        };
        match leaf.keys.binary_search(&key) {
            Ok(index) => {
                if let Some(old) = leaf.values.get_mut(index) {
                    *old = value;
                }
                return;
            }
            Err(index) => {
                leaf.keys.insert(index, key);
                leaf.values.insert(index, value);
                self.len += 1;
            }
        }
        if let (Some(first), Some(key)) = (self.firsts.get_mut(at), leaf.keys.first()) {
            *first = *key;
        }
        if leaf.keys.len() > LEAF {
            // Maps mostly grow at the end: full leaves then stay full.
            let cut = if leaf.keys.last() == Some(&key) { LEAF } else { LEAF / 2 };
            let keys = leaf.keys.split_off(cut);
            let values = leaf.values.split_off(cut);
            if let Some(first) = keys.first() {
                self.firsts.insert(at + 1, *first);
                self.leaves.insert(at + 1, Leaf { keys, values });
            }
        }
    }

    pub(super) fn remove(&mut self, key: u64) -> Option<V> {
        let at = self.leaf(key);
        let leaf = self.leaves.get_mut(at)?;
        let index = leaf.keys.binary_search(&key).ok()?;
        leaf.keys.remove(index);
        let value = leaf.values.remove(index);
        self.len -= 1;
        match leaf.keys.first() {
            Some(key) => {
                if let Some(first) = self.firsts.get_mut(at) {
                    *first = *key;
                }
            }
            None => {
                self.firsts.remove(at);
                self.leaves.remove(at);
            }
        }
        Some(value)
    }

    /// The entries with keys in `range`, ascending.
    pub(super) fn range(&self, range: RangeInclusive<u64>) -> impl Iterator<Item = (u64, &V)> {
        let (first, last) = range.into_inner();
        self.leaves
            .iter()
            .skip(self.leaf(first))
            .flat_map(|leaf| leaf.keys.iter().copied().zip(&leaf.values))
            .skip_while(move |(key, _)| *key < first)
            .take_while(move |(key, _)| *key <= last)
    }

    /// All entries, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        self.range(0..=u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_answers_as_the_standard_map_does() {
        let mut ours = ByAddress::default();
        let mut theirs = BTreeMap::new();
        let mut seed = 7u64;
        for turn in 0..40_000u64 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let key = if turn < 1000 { turn } else { seed % 4096 };
            match seed >> 60 {
                0..=6 => {
                    ours.insert(key, turn);
                    theirs.insert(key, turn);
                }
                7..=12 => assert_eq!(ours.remove(key), theirs.remove(&key)),
                _ => {
                    let expected = theirs.range(..=key).next_back().map(|(key, value)| (*key, value));
                    assert_eq!(ours.at_or_below(key), expected);
                    let end = key + 300;
                    let expected: Vec<_> = theirs.range(key..=end).map(|(key, value)| (*key, value)).collect();
                    assert_eq!(ours.range(key..=end).collect::<Vec<_>>(), expected);
                }
            }
            assert_eq!(ours.len(), theirs.len());
        }
        assert!(ours.iter().map(|(key, _)| key).eq(theirs.keys().copied()));
        for key in 0..4096 {
            ours.remove(key);
        }
        assert_eq!((ours.len(), ours.at_or_below(u64::MAX)), (0, None));
    }
}
