//! Who owns which page of host memory.

use std::collections::BTreeMap;
use std::fmt;

use iommu_types::{AddrRange, HostPhys};

/// A user of the platform: a guest, a process. Memory, groups and containers belong to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(pub(crate) u32);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}", self.0)
    }
}

/// A run of pages with one owner.
#[derive(Debug)]
struct Run {
    last: HostPhys,
    user: UserId,
    /// Mappings that a device may be using.
    pins: u64,
}

/// The runs that users own. What is in no run belongs to the host.
#[derive(Debug, Default)]
pub(crate) struct PageOwners {
    runs: BTreeMap<HostPhys, Run>,
}

/// Why pages cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotYours {
    /// The first bytes that are not.
    pub(crate) range: AddrRange<HostPhys>,
    /// Whose they are; `None` for the host's.
    pub(crate) owner: Option<UserId>,
}

impl PageOwners {
    /// Makes `user` the owner of `extents`, which nobody owns.
    pub(crate) fn insert(&mut self, user: UserId, extents: &[AddrRange<HostPhys>]) {
        for extent in extents {
            self.runs.insert(
                extent.first(),
                Run {
                    last: extent.last(),
                    user,
                    pins: 0,
                },
            );
        }
    }

    /// How many mappings use `extents`.
    pub(crate) fn pins(&self, extents: &[AddrRange<HostPhys>]) -> u64 {
        extents
            .iter()
            .filter_map(|extent| self.runs.get(&extent.first()))
            .map(|run| run.pins)
            .sum()
    }

    /// Nobody owns `extents` any more.
    pub(crate) fn remove(&mut self, extents: &[AddrRange<HostPhys>]) {
        for extent in extents {
            self.runs.remove(&extent.first());
        }
    }

    /// The run that holds `at`, or the stretch up to the next run that nobody owns.
    fn around(&self, at: HostPhys, last: HostPhys) -> Result<(HostPhys, &Run), AddrRange<HostPhys>> {
        if let Some((first, run)) = self.runs.range(..=at).next_back()
            && run.last >= at
        {
            return Ok((*first, run));
        }
        let end = self
            .runs
            .range(at..=last)
            .next()
            .and_then(|(next, _)| next.checked_sub(1))
            .unwrap_or(last);
        Err(AddrRange::new(at, end).unwrap_or(AddrRange::page_around(at, iommu_types::PageSize::Size4K)))
    }

    /// Checks that all of `range` belongs to `user`.
    pub(crate) fn check(&self, user: UserId, range: AddrRange<HostPhys>) -> Result<(), NotYours> {
        let mut at = range.first();
        loop {
            let (_, run) = self
                .around(at, range.last())
                .map_err(|range| NotYours { range, owner: None })?;
            if run.user != user {
                let foreign = AddrRange::new(at, run.last.min(range.last())).unwrap_or(range);
                return Err(NotYours {
                    range: foreign,
                    owner: Some(run.user),
                });
            }
            match run.last.checked_add(1) {
                Some(next) if next <= range.last() => at = next,
                _ => return Ok(()),
            }
        }
    }

    /// Counts a mapping over `range` in (`true`) or out.
    pub(crate) fn pin(&mut self, range: AddrRange<HostPhys>, on: bool) {
        let first = self
            .runs
            .range(..=range.first())
            .next_back()
            .map_or(range.first(), |(first, _)| *first);
        for (_, run) in self.runs.range_mut(first..=range.last()) {
            if run.last >= range.first() {
                run.pins = if on { run.pins + 1 } else { run.pins.saturating_sub(1) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, len: u64) -> AddrRange<HostPhys> {
        AddrRange::from_base_len(HostPhys::new(first), len).expect("range")
    }

    #[test]
    fn a_page_of_another_user_or_of_the_host_is_found_inside_a_range() {
        let mut owners = PageOwners::default();
        owners.insert(UserId(1), &[range(0x1000, 0x2000), range(0x3000, 0x1000)]);
        owners.insert(UserId(2), &[range(0x4000, 0x1000)]);
        assert_eq!(owners.check(UserId(1), range(0x1000, 0x3000)), Ok(()));
        assert_eq!(
            owners.check(UserId(1), range(0x2000, 0x4000)),
            Err(NotYours {
                range: range(0x4000, 0x1000),
                owner: Some(UserId(2))
            })
        );
        assert_eq!(
            owners.check(UserId(2), range(0x4000, 0x3000)),
            Err(NotYours {
                range: range(0x5000, 0x2000),
                owner: None
            })
        );
        assert_eq!(
            owners.check(UserId(1), range(0, 0x2000)),
            Err(NotYours {
                range: range(0, 0x1000),
                owner: None
            })
        );
    }

    #[test]
    fn pins_count_every_run_that_a_mapping_touches() {
        let mut owners = PageOwners::default();
        let extents = [range(0x1000, 0x2000), range(0x3000, 0x1000)];
        owners.insert(UserId(1), &extents);
        owners.pin(range(0x2000, 0x2000), true);
        owners.pin(range(0x2000, 0x1000), true);
        assert_eq!(owners.pins(&extents), 3);
        owners.pin(range(0x2000, 0x2000), false);
        assert_eq!(owners.pins(&extents), 1);
        owners.pin(range(0x2000, 0x1000), false);
        assert_eq!(owners.pins(&extents), 0);
    }
}
