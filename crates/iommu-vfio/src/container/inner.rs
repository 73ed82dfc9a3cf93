//! What a container and the devices opened from it share: groups, devices, and what is mapped ([`maps`]).

mod maps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use iommu_types::{AddrRange, Bdf, HostPhys, Iova, Perms};
use vtd_driver::{DomainOptions, IoasPending, Requester};
use vtd_spec::message::{INTERRUPT_RANGE_FIRST, INTERRUPT_RANGE_LAST};

use super::ranges::ByAddress;
use crate::error::{Uncontained, VfioError};
use crate::group::{Group, GroupHandle, GroupId, Refused, Viable};
use crate::platform::{Owner, Platform, Space};
use crate::software::SoftGroup;
use crate::user::UserId;

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
