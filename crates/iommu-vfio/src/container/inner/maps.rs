//! The mappings of a container: made, found, looked through for dirty pages, and taken away.

use iommu_types::{AddrRange, HostPhys, Iova, PAGE_SIZE, Perms, UnmapRefused};
use vtd_driver::MapError;

use super::{Inner, Mapping, Runs, State};
use crate::container::{Found, MAX_MAPPINGS, MappingInfo};
use crate::dirty::DirtyBitmap;
use crate::error::VfioError;
use crate::memory::UserMemory;
use crate::rules;
use crate::user::NotYours;

impl Inner {
    pub(crate) fn mappings(&self) -> Vec<MappingInfo> {
        let state = self.state();
        let info = |mapping: &Mapping| MappingInfo {
            range: mapping.range,
            perms: mapping.perms,
            memory: mapping.runs.clone(),
        };
        state.mappings.iter().map(|(_, mapping)| info(mapping)).collect()
    }

    pub(in crate::container) fn find(&self, at: Iova) -> Option<Found> {
        let state = self.state();
        let (first, mapping) = state.mappings.at_or_below(at.raw())?;
        if !mapping.range.contains(at) {
            return None;
        }
        let offset = at.raw() - first;
        let phys = match mapping.runs.len() {
            1 => mapping.phys.checked_add(offset),
            _ => runs_at(&mapping.runs, offset),
        };
        Some(Found {
            range: mapping.range,
            phys: phys?,
            perms: mapping.perms,
        })
    }

    pub(crate) fn mapping_count(&self) -> usize {
        self.state().mappings.len()
    }

    pub(crate) fn dma_map(
        &self,
        iova: Iova,
        memory: &UserMemory,
        offset: u64,
        size: u64,
        perms: Perms,
    ) -> Result<(), VfioError> {
        let range = rules::check_map(iova, size, PAGE_SIZE, &[("offset", offset)], perms)?;
        let runs = memory.runs(offset, size)?;
        self.map(range, runs, perms)
    }

    pub(in crate::container) fn dma_map_phys(
        &self,
        iova: Iova,
        phys: HostPhys,
        size: u64,
        perms: Perms,
    ) -> Result<(), VfioError> {
        let range = rules::check_map(iova, size, PAGE_SIZE, &[("host address", phys.raw())], perms)?;
        let overflow = VfioError::Overflow { iova, size };
        let run = AddrRange::from_base_len(phys, size).ok_or(overflow)?;
        self.map(range, vec![run], perms)
    }

    pub(crate) fn track_dirty(&self, on: bool) {
        self.state().tracking = on;
    }

    pub(crate) fn dirty(&self, iova: Iova, size: u64, page_size: u64) -> Result<DirtyBitmap, VfioError> {
        self.state().dirty(iova, size, page_size)
    }

    pub(crate) fn unmap_dirty(&self, iova: Iova, size: u64) -> Result<(u64, DirtyBitmap), VfioError> {
        let mut state = self.state();
        let bitmap = state.dirty(iova, size, PAGE_SIZE)?;
        let keys = state.keys_in(rules::check_range(iova, size, PAGE_SIZE, &[])?);
        let bytes = self.remove(&mut state, &keys)?;
        Ok((bytes, bitmap))
    }

    fn map(&self, range: AddrRange<Iova>, runs: Runs, perms: Perms) -> Result<(), VfioError> {
        let mut state = self.state();
        if let Some(existing) = state.overlapping(range) {
            return Err(VfioError::Exists { range, existing });
        }
        if state.mappings.len() >= MAX_MAPPINGS {
            return Err(VfioError::TooManyMappings { limit: MAX_MAPPINGS });
        }
        let valid = self.valid(&state);
        if !valid.iter().any(|one| one.covers(range)) {
            return Err(VfioError::InvalidRange { range, valid });
        }
        self.pin(range, &runs)?;
        match self.map_runs(range, &runs, perms) {
            Ok(()) => {
                let phys = runs.first().map_or(HostPhys::ZERO, |run| run.first());
                let mapping = Mapping {
                    range,
                    perms,
                    phys,
                    runs,
                };
                state.mappings.insert(range.first().raw(), mapping);
                Ok(())
            }
            Err((error, confirmed)) => {
                if confirmed {
                    self.unpin(&runs);
                }
                Err(error)
            }
        }
    }

    /// Counts a mapping over `runs` in, all of which must belong to the container's user.
    fn pin(&self, range: AddrRange<Iova>, runs: &[AddrRange<HostPhys>]) -> Result<(), VfioError> {
        let mut state = self.platform.state();
        for run in runs {
            if let Err(NotYours { range, owner }) = state.pages.check(self.user, *run) {
                let owner = owner.map_or("the host".to_owned(), |owner| state.user_name(owner));
                let user = self.user;
                return Err(VfioError::ForeignPage { range, owner, user });
            }
        }
        let wanted = bytes(runs);
        let pinned = state
            .pinned
            .get(&self.user)
            .copied()
            .unwrap_or(0)
            .saturating_add(wanted);
        if let Some(limit) = self.platform.shared.options.pin_limit.filter(|limit| pinned > *limit) {
            return Err(VfioError::PinLimit { range, wanted, limit });
        }
        state.pinned.insert(self.user, pinned);
        for run in runs {
            state.pages.pin(*run, true);
        }
        Ok(())
    }

    fn unpin(&self, runs: &[AddrRange<HostPhys>]) {
        let mut state = self.platform.state();
        if let Some(pinned) = state.pinned.get_mut(&self.user) {
            *pinned = pinned.saturating_sub(bytes(runs));
        }
        for run in runs {
            state.pages.pin(*run, false);
        }
    }

    /// Maps run by run; on failure takes back what was mapped and tells whether the units confirmed that nothing is left of
    /// it, the run that failed included.
    fn map_runs(
        &self,
        range: AddrRange<Iova>,
        runs: &[AddrRange<HostPhys>],
        perms: Perms,
    ) -> Result<(), (VfioError, bool)> {
        let Some(space) = &self.space else {
            return Err((VfioError::NoGroupAttached, true));
        };
        let mut next = range.first();
        for run in runs {
            let len = run.page_count() * PAGE_SIZE;
            if let Err(cause) = space.map(next, run.first(), len, perms) {
                let doubt = matches!(cause, MapError::Unconfirmed(_));
                let error = VfioError::Map { range, perms, cause };
                let done = next.checked_sub(1).and_then(|last| AddrRange::new(range.first(), last));
                let confirmed = match done {
                    None => true,
                    Some(done) => match space.unmap(done, ()) {
                        Ok(pending) => space.flush(pending).is_ok(),
                        Err(_) => false,
                    },
                };
                return Err((error, confirmed && !doubt));
            }
            // The last run may end at the last address, after which nothing is mapped.
            next = next.checked_add(len).unwrap_or(Iova::MAX);
        }
        Ok(())
    }

    pub(crate) fn unmap(&self, iova: Iova, size: u64) -> Result<u64, VfioError> {
        let range = rules::check_range(iova, size, PAGE_SIZE, &[])?;
        let mut state = self.state();
        rules::check_whole(range, |at| state.at(at))?;
        let keys = state.keys_in(range);
        self.remove(&mut state, &keys)
    }

    pub(crate) fn unmap_all(&self) -> Result<u64, VfioError> {
        let mut state = self.state();
        let keys: Vec<Iova> = state.mappings.iter().map(|(key, _)| Iova::new(key)).collect();
        self.remove(&mut state, &keys)
    }

    /// Removes whole mappings: all out of the tables first, then one wait each. The first error is reported;
    /// everything is tried.
    pub(super) fn remove(&self, state: &mut State, keys: &[Iova]) -> Result<u64, VfioError> {
        let Some(space) = &self.space else { return Ok(0) };
        let mut bytes = 0;
        let mut first = None;
        let mut pending = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(mapping) = state.mappings.remove(key.raw()) else {
                continue;
            };
            let Mapping { range, perms, phys, .. } = mapping;
            match space.unmap(range, mapping.runs) {
                Ok(token) => pending.push((range, token)),
                Err(UnmapRefused { error, lease }) => {
                    // Nothing changed: the mapping is still there.
                    state.mappings.insert(
                        key.raw(),
                        Mapping {
                            range,
                            perms,
                            phys,
                            runs: lease,
                        },
                    );
                    first.get_or_insert(VfioError::Unmap { range, cause: error });
                }
            }
        }
        for (range, token) in pending {
            match space.flush(token) {
                Ok(runs) => {
                    self.unpin(&runs);
                    bytes += range.page_count() * PAGE_SIZE;
                }
                Err((cause, token)) => {
                    state.unconfirmed.push(token);
                    first.get_or_insert(VfioError::Unconfirmed { range, cause });
                }
            }
        }
        first.map_or(Ok(bytes), Err)
    }
}

impl State {
    /// The mapping that holds `at`.
    fn at(&self, at: Iova) -> Option<AddrRange<Iova>> {
        let (_, mapping) = self.mappings.at_or_below(at.raw())?;
        mapping.range.contains(at).then_some(mapping.range)
    }

    /// The mappings that start in `range`.
    fn keys_in(&self, range: AddrRange<Iova>) -> Vec<Iova> {
        let inside = self.mappings.range(range.first().raw()..=range.last().raw());
        inside.map(|(key, _)| Iova::new(key)).collect()
    }

    /// Which pages may have been written. Type 1 without help of a device's driver cannot look: every page that devices
    /// can reach counts, whatever they may do with it.
    fn dirty(&self, iova: Iova, size: u64, page_size: u64) -> Result<DirtyBitmap, VfioError> {
        let range = rules::check_dirty(iova, size, page_size, PAGE_SIZE, self.tracking)?;
        let mut bitmap = DirtyBitmap::clean(iova, size, page_size)?;
        rules::check_whole(range, |at| self.at(at))?;
        for (first, mapping) in self.mappings.range(range.first().raw()..=range.last().raw()) {
            let page = (first - iova.raw()) / page_size;
            bitmap.mark(page, mapping.range.page_count());
        }
        Ok(bitmap)
    }

    pub(super) fn overlapping(&self, range: AddrRange<Iova>) -> Option<AddrRange<Iova>> {
        let (_, mapping) = self.mappings.at_or_below(range.last().raw())?;
        mapping.range.overlaps(range).then_some(mapping.range)
    }
}

/// Bytes of all runs.
fn bytes(runs: &[AddrRange<HostPhys>]) -> u64 {
    runs.iter().map(|run| run.page_count() * PAGE_SIZE).sum()
}

/// Where byte `offset` of `runs` lies.
fn runs_at(runs: &[AddrRange<HostPhys>], offset: u64) -> Option<HostPhys> {
    let mut left = offset;
    for run in runs {
        let bytes = run.page_count() * PAGE_SIZE;
        if left < bytes {
            return run.first().checked_add(left);
        }
        left -= bytes;
    }
    None
}
