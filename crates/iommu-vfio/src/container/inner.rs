//! What a container and the devices opened from it share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use iommu_types::{AddrRange, Bdf, HostPhys, Iova, PAGE_SIZE, Perms, UnmapRefused};
use vtd_driver::{DomainOptions, IoasPending, Requester};
use vtd_spec::message::{INTERRUPT_RANGE_FIRST, INTERRUPT_RANGE_LAST};

use super::ranges::ByAddress;
use super::{Found, MAX_MAPPINGS, MappingInfo};
use crate::dirty::DirtyBitmap;
use crate::error::{Uncontained, VfioError};
use crate::group::{Group, GroupHandle, GroupId, Refused, Viable};
use crate::memory::UserMemory;
use crate::platform::{Owner, Platform, Space};
use crate::rules;
use crate::software::SoftGroup;
use crate::user::{NotYours, UserId};

/// The runs of host memory behind a mapping: what has to stay reserved until devices cannot reach it.
type Runs = Vec<AddrRange<HostPhys>>;

#[derive(Debug)]
struct Mapping {
    range: AddrRange<Iova>,
    perms: Perms,
    /// Where the first run starts: most mappings have one.
    phys: HostPhys,
    runs: Runs,
}

/// A device that sees memory through the container.
#[derive(Debug)]
struct Member {
    function: Bdf,
    requester: Requester,
}

#[derive(Debug)]
pub(crate) struct InGroup {
    /// Keeps the group open for others.
    _handle: GroupHandle,
    members: Vec<Member>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) groups: BTreeMap<GroupId, InGroup>,
    mappings: ByAddress<Mapping>,
    /// What firmware reserves for devices of the container.
    reserved: Vec<(GroupId, AddrRange<Iova>)>,
    pub(crate) open: BTreeSet<Bdf>,
    /// Unmaps that no unit confirmed; their memory stays pinned for ever.
    unconfirmed: Vec<IoasPending<Runs>>,
    attached: bool,
    /// Dirty pages are asked for.
    tracking: bool,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) platform: Platform,
    pub(crate) user: UserId,
    /// `None` only while the container is torn down.
    space: Option<Space>,
    state: Mutex<State>,
}

impl Inner {
    pub(crate) fn new(platform: Platform, user: UserId) -> Self {
        Self {
            platform,
            user,
            space: Some(Space::new(DomainOptions::default())),
            state: Mutex::new(State::default()),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // What a panic could leave half done is a mapping without its record, which stays reserved.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_group(&self, group: Group<Viable>) -> Result<(), Refused<Group<Viable>>> {
        let id = group.id();
        let same = std::sync::Arc::ptr_eq(&group.handle.0.platform.shared, &self.platform.shared);
        let claimed = if same {
            self.platform.claim(id, Owner::User(self.user))
        } else {
            Err(VfioError::OtherPlatform(id))
        };
        if let Err(cause) = claimed {
            return Err(Refused { cause, object: group });
        }
        let members = group
            .info()
            .members
            .into_iter()
            // Bridges that no unit serves cannot send anything that a unit would see.
            .filter(|function| self.platform.unit_of(*function).is_ok())
            .map(|function| Member {
                function,
                requester: self.platform.requester(function),
            })
            .collect();
        let Group {
            handle: SoftGroup(handle),
            ..
        } = group;
        self.state().groups.insert(
            id,
            InGroup {
                _handle: handle,
                members,
            },
        );
        Ok(())
    }

    pub(crate) fn attach_all(&self) -> Result<(), VfioError> {
        let mut state = self.state();
        if state.groups.is_empty() {
            return Err(VfioError::NoGroupAttached);
        }
        let ids: Vec<GroupId> = state.groups.keys().copied().collect();
        for (done, id) in ids.iter().enumerate() {
            if let Err(cause) = self.attach_group(&mut state, *id) {
                for id in ids.iter().take(done) {
                    let _ = self.detach_group(&mut state, *id);
                }
                return Err(cause);
            }
        }
        state.attached = true;
        Ok(())
    }

    pub(crate) fn join(&self, group: Group<Viable>) -> Result<(), Refused<Group<Viable>>> {
        let id = group.id();
        // Taking the group in and out again must give the caller the same group back.
        self.add_group(group)?;
        let mut state = self.state();
        if !state.attached {
            // Attached with the others, when an IOMMU is chosen.
            return Ok(());
        }
        match self.attach_group(&mut state, id) {
            Ok(()) => Ok(()),
            Err(cause) => {
                let group = state.groups.remove(&id);
                drop(state);
                self.platform.unclaim(id);
                match group {
                    Some(InGroup { _handle: handle, .. }) => Err(Refused {
                        cause,
                        object: Group::viable_again(SoftGroup(handle)),
                    }),
                    // Nobody else can have taken it out: the state was locked.
                    None => Ok(()),
                }
            }
        }
    }

    /// Attaches every device of a group; none if one fails.
    fn attach_group(&self, state: &mut State, id: GroupId) -> Result<(), VfioError> {
        let Some(space) = &self.space else {
            return Err(VfioError::NoGroupAttached);
        };
        let Some(group) = state.groups.get(&id) else {
            return Err(VfioError::NoGroup(id));
        };
        let mut reserved = Vec::new();
        for (done, member) in group.members.iter().enumerate() {
            let function = member.function;
            let result = self
                .platform
                .unit_of(function)
                .map_err(|why: Uncontained| VfioError::NotContained { function, why })
                .and_then(|unit| {
                    let regions = unit.reserved_regions(&member.requester);
                    for region in &regions {
                        reserved.push((id, iova_of(*region)));
                    }
                    if let Some(conflict) = state.conflict(id, &reserved) {
                        return Err(conflict);
                    }
                    space
                        .attach(unit, &member.requester)
                        .map_err(|cause| VfioError::Attach { function, cause })
                });
            if let Err(error) = result {
                for member in group.members.iter().take(done) {
                    self.detach_member(space, member);
                }
                return Err(error);
            }
        }
        state.reserved.extend(reserved);
        Ok(())
    }

    /// Detaches a device. One whose unit does not confirm stays recorded with the driver, which will not attach
    /// it again.
    fn detach_member(&self, space: &Space, member: &Member) {
        if let Ok(unit) = self.platform.unit_of(member.function) {
            let _ = space.detach(unit, &member.requester);
        }
    }

    fn detach_group(&self, state: &mut State, id: GroupId) -> Result<(), VfioError> {
        let (Some(space), Some(group)) = (&self.space, state.groups.get(&id)) else {
            return Err(VfioError::NoGroup(id));
        };
        for member in &group.members {
            self.detach_member(space, member);
        }
        state.reserved.retain(|(group, _)| *group != id);
        Ok(())
    }

    pub(crate) fn leave(&self, id: GroupId) -> Result<(), VfioError> {
        let mut state = self.state();
        let group = state.groups.get(&id).ok_or(VfioError::NoGroup(id))?;
        if group.members.iter().any(|member| state.open.contains(&member.function)) {
            return Err(VfioError::DevicesOpen(id));
        }
        self.detach_group(&mut state, id)?;
        let group = state.groups.remove(&id);
        drop(state);
        self.platform.unclaim(id);
        // Last: closes the group for the next user.
        drop(group);
        Ok(())
    }

    /// Whether `function` is in a group of the container.
    pub(crate) fn has(&self, function: Bdf) -> bool {
        let state = self.state();
        state
            .groups
            .values()
            .any(|group| group.members.iter().any(|member| member.function == function))
    }

    pub(crate) fn valid_ranges(&self) -> Vec<AddrRange<Iova>> {
        self.valid(&self.state())
    }

    fn valid(&self, state: &State) -> Vec<AddrRange<Iova>> {
        let mut valid: Vec<AddrRange<Iova>> = self.space.iter().map(Space::aperture).collect();
        let interrupts = AddrRange::new(Iova::new(INTERRUPT_RANGE_FIRST), Iova::new(INTERRUPT_RANGE_LAST));
        for hole in interrupts
            .into_iter()
            .chain(state.reserved.iter().map(|(_, range)| *range))
        {
            valid = valid.into_iter().flat_map(|range| without(range, hole)).collect();
        }
        valid
    }

    pub(crate) fn mappings(&self) -> Vec<MappingInfo> {
        let state = self.state();
        let info = |mapping: &Mapping| MappingInfo {
            range: mapping.range,
            perms: mapping.perms,
            memory: mapping.runs.clone(),
        };
        state.mappings.iter().map(|(_, mapping)| info(mapping)).collect()
    }

    pub(super) fn find(&self, at: Iova) -> Option<Found> {
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

    pub(super) fn dma_map_phys(&self, iova: Iova, phys: HostPhys, size: u64, perms: Perms) -> Result<(), VfioError> {
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

    /// Maps run by run; on failure takes back what was mapped and tells whether that was confirmed.
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
                let error = VfioError::Map { range, perms, cause };
                let done = next.checked_sub(1).and_then(|last| AddrRange::new(range.first(), last));
                let confirmed = match done {
                    None => true,
                    Some(done) => match space.unmap(done, ()) {
                        Ok(pending) => space.flush(pending).is_ok(),
                        Err(_) => false,
                    },
                };
                return Err((error, confirmed));
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
    fn remove(&self, state: &mut State, keys: &[Iova]) -> Result<u64, VfioError> {
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

    pub(crate) fn close(&self) -> Result<(), VfioError> {
        let state = self.state();
        let busy = state
            .groups
            .iter()
            .find(|(_, group)| group.members.iter().any(|member| state.open.contains(&member.function)));
        if let Some((id, _)) = busy {
            return Err(VfioError::DevicesOpen(*id));
        }
        drop(state);
        self.tear_down()
    }

    /// Devices out first: nothing they still send is translated any more. Then the mappings.
    fn tear_down(&self) -> Result<(), VfioError> {
        let mut state = self.state();
        let ids: Vec<GroupId> = state.groups.keys().copied().collect();
        if state.attached {
            for id in &ids {
                let _ = self.detach_group(&mut state, *id);
            }
            state.attached = false;
        }
        let keys: Vec<Iova> = state.mappings.iter().map(|(key, _)| Iova::new(key)).collect();
        let removed = self.remove(&mut state, &keys);
        let groups = std::mem::take(&mut state.groups);
        drop(state);
        for id in ids {
            self.platform.unclaim(id);
        }
        drop(groups);
        removed.map(|_| ())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody is left to report to; what was not confirmed stays reserved.
        let _ = self.tear_down();
        if let Some(space) = self.space.take() {
            let _ = space.destroy();
        }
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

    fn overlapping(&self, range: AddrRange<Iova>) -> Option<AddrRange<Iova>> {
        let (_, mapping) = self.mappings.at_or_below(range.last().raw())?;
        mapping.range.overlaps(range).then_some(mapping.range)
    }

    /// The first of the reserved ranges that something is mapped in.
    fn conflict(&self, group: GroupId, reserved: &[(GroupId, AddrRange<Iova>)]) -> Option<VfioError> {
        reserved.iter().find_map(|(_, reserved)| {
            let mapped = self.overlapping(*reserved)?;
            Some(VfioError::ReservedConflict {
                group,
                mapped,
                reserved: *reserved,
            })
        })
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

/// Reserved memory as input addresses: it is identity-mapped.
fn iova_of(range: AddrRange<HostPhys>) -> AddrRange<Iova> {
    let pages = range.to_pages();
    let (first, last) = (Iova::new(pages.first().raw()), Iova::new(pages.last().raw()));
    AddrRange::new(first, last).unwrap_or(AddrRange::page_around(first, iommu_types::PageSize::Size4K))
}

/// What `range` has below and above `hole`.
fn without(range: AddrRange<Iova>, hole: AddrRange<Iova>) -> impl Iterator<Item = AddrRange<Iova>> {
    let parts = if range.overlaps(hole) {
        [
            hole.first()
                .checked_sub(1)
                .and_then(|last| AddrRange::new(range.first(), last)),
            hole.last()
                .checked_add(1)
                .and_then(|first| AddrRange::new(first, range.last())),
        ]
    } else {
        [Some(range), None]
    };
    parts.into_iter().flatten()
}
