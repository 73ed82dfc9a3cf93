//! Who owns which page of host memory, so that no guest's devices are given another's.

use core::fmt;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use iommu_types::{AddrRange, HostPhys};
use spin::Mutex;
use thiserror::Error;

/// A guest, a process: whoever memory is lent to. The number is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId(pub u64);

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "owner {}", self.0)
    }
}

/// Ownership was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OwnershipError {
    /// A page has one owner.
    #[error("{range} of host memory belongs to {owner} already; a page has one owner")]
    Owned {
        /// The first pages that are taken.
        range: AddrRange<HostPhys>,
        /// Whose they are.
        owner: OwnerId,
    },
    /// What is to be given back is not theirs.
    #[error("{range} of host memory does not belong to {owner}")]
    NotOwned {
        /// The first pages that are not.
        range: AddrRange<HostPhys>,
        /// Who was said to own them.
        owner: OwnerId,
    },
    /// Devices can reach it.
    #[error("{range} of host memory is mapped for devices of {owner}, or unmapped and not flushed; flush it first")]
    InUse {
        /// The pages.
        range: AddrRange<HostPhys>,
        /// Whose they are.
        owner: OwnerId,
    },
}

/// Pages that are not the owner's who wants to use them, and whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub(crate) range: AddrRange<HostPhys>,
    pub(crate) owner: Option<OwnerId>,
}

#[derive(Debug, Default)]
struct State {
    /// Runs of pages with one owner, by first address, without overlap. What is in none is the host's.
    runs: BTreeMap<HostPhys, (HostPhys, OwnerId)>,
    /// What devices may reach, and how many mappings lead there.
    mapped: BTreeMap<(HostPhys, HostPhys), u64>,
}

/// Which host memory is whose: one registry for all [`crate::Ioas`] of a machine.
///
/// What is granted to nobody belongs to the host. An [`crate::Ioas::owned_by`] some owner maps only what was granted to
/// that owner, and a grant is taken back only when no device can reach the memory any more: after every unmap of it was
/// flushed and confirmed. A token that was dropped keeps its pages with their owner for ever.
#[derive(Debug, Default)]
pub struct PageOwners {
    state: Mutex<State>,
}

impl PageOwners {
    /// Everything is the host's.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                runs: BTreeMap::new(),
                mapped: BTreeMap::new(),
            }),
        }
    }

    /// Makes `owner` the owner of `range`, rounded outwards to pages.
    ///
    /// # Errors
    /// [`OwnershipError::Owned`] if a page has an owner already, also if it is the same one.
    pub fn grant(&self, owner: OwnerId, range: AddrRange<HostPhys>) -> Result<(), OwnershipError> {
        let range = range.to_pages();
        let mut state = self.state.lock();
        if let Some((range, owner)) = state.first_run(range) {
            return Err(OwnershipError::Owned { range, owner });
        }
        state.runs.insert(range.first(), (range.last(), owner));
        Ok(())
    }

    /// Takes `range`, rounded outwards to pages, back from `owner`: it is the host's again. Part of a grant may be
    /// taken back, and several at once.
    ///
    /// # Errors
    /// [`OwnershipError::NotOwned`], [`OwnershipError::InUse`]; nothing changed then.
    pub fn revoke(&self, owner: OwnerId, range: AddrRange<HostPhys>) -> Result<(), OwnershipError> {
        let range = range.to_pages();
        let mut state = self.state.lock();
        if let Err(Foreign { range, .. }) = state.check(owner, range) {
            return Err(OwnershipError::NotOwned { range, owner });
        }
        if let Some(range) = state.first_mapped(range) {
            return Err(OwnershipError::InUse { range, owner });
        }
        let touched: Vec<AddrRange<HostPhys>> = state.overlapping(range).map(|(run, _)| run).collect();
        for run in touched {
            state.runs.remove(&run.first());
            // What a grant has below and above the range stays.
            if run.first() < range.first()
                && let Some(last) = range.first().checked_sub(1)
            {
                state.runs.insert(run.first(), (last, owner));
            }
            if run.last() > range.last()
                && let Some(first) = range.last().checked_add(1)
            {
                state.runs.insert(first, (run.last(), owner));
            }
        }
        Ok(())
    }

    /// Whose the page at `at` is; `None` for the host's.
    #[must_use]
    pub fn owner_of(&self, at: HostPhys) -> Option<OwnerId> {
        let state = self.state.lock();
        let (_, (last, owner)) = state.runs.range(..=at).next_back()?;
        (*last >= at).then_some(*owner)
    }

    /// Counts a mapping of `range`, all of which has to be `owner`'s.
    pub(crate) fn pin(&self, owner: OwnerId, range: AddrRange<HostPhys>) -> Result<(), Foreign> {
        let mut state = self.state.lock();
        state.check(owner, range)?;
        let count = state.mapped.entry((range.first(), range.last())).or_insert(0);
        *count = count.saturating_add(1);
        Ok(())
    }

    /// A mapping that [`Self::pin`] counted is gone, and every unit has confirmed it.
    pub(crate) fn unpin(&self, range: AddrRange<HostPhys>) {
        let key = (range.first(), range.last());
        let mut state = self.state.lock();
        match state.mapped.get_mut(&key) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) => {
                state.mapped.remove(&key);
            }
            None => {}
        }
    }
}

impl State {
    /// The runs that share a page with `range`.
    fn overlapping(&self, range: AddrRange<HostPhys>) -> impl Iterator<Item = (AddrRange<HostPhys>, OwnerId)> {
        let below = self.runs.range(..range.first()).next_back();
        let runs = below.into_iter().chain(self.runs.range(range.first()..=range.last()));
        runs.filter_map(|(first, (last, owner))| Some((AddrRange::new(*first, *last)?, *owner)))
            .filter(move |(run, _)| run.overlaps(range))
    }

    /// The first pages of `range` that have an owner.
    fn first_run(&self, range: AddrRange<HostPhys>) -> Option<(AddrRange<HostPhys>, OwnerId)> {
        let (run, owner) = self.overlapping(range).next()?;
        Some((run.intersection(range)?, owner))
    }

    /// The first pages of `range` that a mapping leads to. Looks at every mapping below its end: giving memory back is
    /// rare, mapping is not.
    fn first_mapped(&self, range: AddrRange<HostPhys>) -> Option<AddrRange<HostPhys>> {
        self.mapped
            .range(..=(range.last(), HostPhys::MAX))
            .find_map(|((first, last), _)| AddrRange::new(*first, *last)?.intersection(range))
    }

    /// Checks that all of `range` is `owner`'s.
    fn check(&self, owner: OwnerId, range: AddrRange<HostPhys>) -> Result<(), Foreign> {
        let mut at = range.first();
        for (run, whose) in self.overlapping(range) {
            if let Some(last) = run.first().checked_sub(1)
                && let Some(range) = AddrRange::new(at, last)
            {
                return Err(Foreign { range, owner: None });
            }
            if whose != owner {
                let range = run.intersection(range).unwrap_or(run);
                let owner = Some(whose);
                return Err(Foreign { range, owner });
            }
            match run.last().checked_add(1) {
                Some(next) if next <= range.last() => at = next,
                _ => return Ok(()),
            }
        }
        let range = AddrRange::new(at, range.last()).unwrap_or(range);
        Err(Foreign { range, owner: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: OwnerId = OwnerId(1);
    const TWO: OwnerId = OwnerId(2);

    fn pages(first: u64, count: u64) -> AddrRange<HostPhys> {
        AddrRange::from_base_len(HostPhys::new(first << 12), count << 12).expect("a range")
    }

    #[test]
    fn a_page_has_one_owner_and_the_rest_is_the_hosts() {
        let owners = PageOwners::new();
        owners.grant(ONE, pages(4, 4)).expect("free");
        let (range, owner) = (pages(6, 2), ONE);
        assert_eq!(
            owners.grant(TWO, pages(6, 4)),
            Err(OwnershipError::Owned { range, owner })
        );
        owners.grant(TWO, pages(8, 2)).expect("just behind");
        let whose = [3, 4, 7, 8, 9, 10].map(|page: u64| owners.owner_of(HostPhys::new(page << 12 | 0x123)));
        assert_eq!(whose, [None, Some(ONE), Some(ONE), Some(TWO), Some(TWO), None]);
    }

    #[test]
    fn a_mapping_needs_every_page_and_the_first_that_is_missing_is_named() {
        let owners = PageOwners::new();
        owners.grant(ONE, pages(4, 2)).expect("free");
        owners.grant(ONE, pages(6, 2)).expect("free");
        owners.grant(TWO, pages(8, 1)).expect("free");
        owners.pin(ONE, pages(5, 2)).expect("two grants of one owner");
        let foreign = |first, count, owner| {
            let range = pages(first, count);
            Err(Foreign { range, owner })
        };
        assert_eq!(owners.pin(ONE, pages(7, 3)), foreign(8, 1, Some(TWO)));
        assert_eq!(owners.pin(TWO, pages(8, 3)), foreign(9, 2, None));
        assert_eq!(owners.pin(TWO, pages(1, 4)), foreign(1, 3, None));
        assert_eq!(owners.pin(TWO, pages(20, 1)), foreign(20, 1, None));
    }

    #[test]
    fn what_devices_reach_is_not_given_back() {
        let owners = PageOwners::new();
        owners.grant(ONE, pages(4, 8)).expect("free");
        let (range, owner) = (pages(6, 1), ONE);
        owners.pin(ONE, range).expect("owned");
        owners.pin(ONE, range).expect("owned");
        let in_use = Err(OwnershipError::InUse { range, owner });
        assert_eq!(owners.revoke(ONE, pages(4, 8)), in_use);
        owners.unpin(range);
        assert_eq!(owners.revoke(ONE, pages(5, 2)), in_use);
        // Beside it may go: the grant is cut in two.
        owners.revoke(ONE, pages(8, 2)).expect("unused");
        assert!(matches!(
            owners.revoke(ONE, pages(8, 1)),
            Err(OwnershipError::NotOwned { .. })
        ));
        assert!(matches!(
            owners.revoke(TWO, pages(4, 1)),
            Err(OwnershipError::NotOwned { .. })
        ));
        owners.unpin(range);
        owners.revoke(ONE, pages(4, 4)).expect("unused");
        owners.revoke(ONE, pages(10, 2)).expect("the upper part");
        assert!(owners.state.lock().runs.is_empty());
    }

    #[test]
    fn the_ends_of_the_address_space_do_not_overflow() {
        let owners = PageOwners::new();
        let all = AddrRange::new(HostPhys::ZERO, HostPhys::MAX).expect("ordered");
        owners.grant(ONE, all).expect("free");
        owners.pin(ONE, all).expect("owned");
        assert_eq!(
            owners.revoke(ONE, all),
            Err(OwnershipError::InUse { range: all, owner: ONE })
        );
        owners.unpin(all);
        owners.revoke(ONE, pages(0, 1)).expect("unused");
        assert_eq!(owners.owner_of(HostPhys::MAX), Some(ONE));
    }
}
