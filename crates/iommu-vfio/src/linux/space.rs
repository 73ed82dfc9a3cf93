//! A container: the requests to it, and what is known to explain its answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use iommu_types::{AddrRange, Bdf, Iova, Perms};
use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_ALL, VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
    VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP, VFIO_TYPE1v2_IOMMU, VFIO_UNMAP_ALL,
};

use super::{ACCESS, Linux, LinuxGroup, LinuxMemory, caps, open, refused, sys, sysfs};
use crate::backend::{DmaMemory, Type1Info};
use crate::dirty::DirtyBitmap;
use crate::error::{Errno, VfioError};
use crate::group::GroupId;
use crate::rules;

/// What a container and the devices opened from it share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) host: Linux,
    file: File,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    groups: BTreeMap<GroupId, LinuxGroup>,
    /// A type was asked for; the kernel forgets it when the last group leaves.
    wanted: bool,
    /// The kernel has a type.
    set: bool,
    /// What is mapped, to say what is in the way.
    mappings: BTreeMap<Iova, AddrRange<Iova>>,
    pub(super) open: BTreeSet<Bdf>,
    tracking: bool,
}

impl State {
    fn at(&self, at: Iova) -> Option<AddrRange<Iova>> {
        let (_, range) = self.mappings.range(..=at).next_back()?;
        range.contains(at).then_some(*range)
    }

    fn overlapping(&self, range: AddrRange<Iova>) -> Option<AddrRange<Iova>> {
        let (_, mapping) = self.mappings.range(..=range.last()).next_back()?;
        mapping.overlaps(range).then_some(*mapping)
    }

    fn forget(&mut self, iova: Iova, size: u64) {
        if let Some(range) = AddrRange::from_base_len(iova, size) {
            self.mappings.retain(|first, _| !range.contains(*first));
        }
    }
}

/// The rule that the kernel applied, if it has the same number; else the number, with the rule as what was asked.
fn explain(rule: VfioError, errno: Errno) -> VfioError {
    if rule.errno() == errno {
        rule
    } else {
        refused(rule.to_string(), errno, "this kernel gives the rule another number")
    }
}

impl Shared {
    pub(super) fn open(host: &Linux, path: &Path) -> Result<Self, VfioError> {
        const LOAD: &str = "load the module vfio_iommu_type1 and give the user access to /dev/vfio/vfio";
        let asked = |what: &str, errno| refused(format!("{} {what}", path.display()), errno, LOAD);
        let file = open(path).map_err(|errno| asked("cannot be opened", errno))?;
        let version = sys::api_version(&file).map_err(|errno| asked("does not tell its version", errno))?;
        let type1 = sys::has_extension(&file, VFIO_TYPE1v2_IOMMU);
        if version != 0 || !type1.map_err(|errno| asked("does not tell its types", errno))? {
            return Err(asked("has no type 1 IOMMU, version 2", Errno::Enodev));
        }
        Ok(Self {
            host: host.clone(),
            file,
            state: Mutex::default(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // The kernel has the truth; what a panic leaves behind here only makes an explanation poorer.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn groups(&self) -> Vec<GroupId> {
        self.state().groups.keys().copied().collect()
    }

    pub(super) fn attach(&self, group: LinuxGroup) -> Result<(), (VfioError, LinuxGroup)> {
        let mut state = self.state();
        if let Err(errno) = sys::set_container(&group.file, &self.file) {
            let owner = || "another program or driver".to_owned();
            let id = group.id;
            let error = match errno {
                Errno::Ebusy => VfioError::GroupOwned {
                    group: id,
                    owner: owner(),
                },
                Errno::Eperm => VfioError::UnsafeInterrupts(id),
                errno => refused(
                    format!("group {id} cannot join the container"),
                    errno,
                    "look whether something is mapped where firmware reserves memory for it",
                ),
            };
            return Err((error, group));
        }
        // The kernel forgot the type with the last group.
        if state.wanted
            && !state.set
            && let Err(error) = self.choose(&mut state, group.id)
        {
            let _ = sys::unset_container(&group.file);
            return Err((error, group));
        }
        state.groups.insert(group.id, group);
        Ok(())
    }

    fn choose(&self, state: &mut State, group: GroupId) -> Result<(), VfioError> {
        match sys::set_iommu(&self.file, VFIO_TYPE1v2_IOMMU) {
            Ok(()) => {
                state.set = true;
                state.wanted = true;
                Ok(())
            }
            // No interrupt remapping, and the module was not told that this is accepted.
            Err(Errno::Eperm) => Err(VfioError::UnsafeInterrupts(group)),
            Err(errno) => Err(refused(
                "a type 1 IOMMU for the container".to_owned(),
                errno,
                "look into the kernel's log for what it says about the IOMMU",
            )),
        }
    }

    pub(super) fn set_iommu(&self) -> Result<(), VfioError> {
        let mut state = self.state();
        let Some(group) = state.groups.keys().next().copied() else {
            return Err(VfioError::NoGroupAttached);
        };
        self.choose(&mut state, group)
    }

    pub(super) fn detach(&self, id: GroupId) -> Result<(), VfioError> {
        let mut state = self.state();
        let group = state.groups.get(&id).ok_or(VfioError::NoGroup(id))?;
        if self.is_open(&state, id) {
            return Err(VfioError::DevicesOpen(id));
        }
        match sys::unset_container(&group.file) {
            Ok(()) => {}
            Err(Errno::Ebusy) => return Err(VfioError::DevicesOpen(id)),
            Err(errno) => return Err(refused(format!("group {id} cannot leave the container"), errno, ACCESS)),
        }
        state.groups.remove(&id);
        if state.groups.is_empty() {
            state.set = false;
            state.tracking = false;
            state.mappings.clear();
        }
        Ok(())
    }

    /// Whether a device of a group is open.
    fn is_open(&self, state: &State, id: GroupId) -> bool {
        let members = sysfs::members(self.host.sys(), id).unwrap_or_default();
        members.iter().any(|member| state.open.contains(member))
    }

    /// The file of the group that `function` is in, if it is in the container.
    pub(super) fn with_group<R>(&self, function: Bdf, action: impl FnOnce(&File, &mut State) -> R) -> Option<R> {
        let id = sysfs::group_of(self.host.sys(), function).ok()?;
        let mut state = self.state();
        let file = state.groups.get(&id)?.file.try_clone().ok()?;
        Some(action(&file, &mut state))
    }

    pub(super) fn close(&self) -> Result<(), VfioError> {
        let ids = self.groups();
        let state = self.state();
        if let Some(id) = ids.iter().find(|id| self.is_open(&state, **id)) {
            return Err(VfioError::DevicesOpen(*id));
        }
        drop(state);
        self.unmap_all()?;
        ids.into_iter().try_for_each(|id| self.detach(id))
    }

    pub(super) fn info(&self) -> Result<Type1Info, VfioError> {
        let bytes = sys::iommu_info(&self.file)
            .map_err(|errno| refused("what the IOMMU can do".to_owned(), errno, "attach a group first"))?;
        Ok(caps::info(&bytes))
    }

    pub(super) fn map(
        &self,
        iova: Iova,
        memory: &LinuxMemory,
        offset: u64,
        size: u64,
        perms: Perms,
    ) -> Result<(), VfioError> {
        let mut state = self.state();
        if !state.set {
            return Err(VfioError::NoGroupAttached);
        }
        // Devices get nothing of the process but this memory, whatever the numbers are.
        let len = memory.size();
        if offset.checked_add(size).is_none_or(|end| end > len) {
            return Err(VfioError::OutsideMemory { offset, size, len });
        }
        let read = if perms.contains(Perms::READ) {
            VFIO_DMA_MAP_FLAG_READ
        } else {
            0
        };
        let write = if perms.contains(Perms::WRITE) {
            VFIO_DMA_MAP_FLAG_WRITE
        } else {
            0
        };
        match sys::map(&self.file, read | write, &memory.mapping, offset, size, iova.raw()) {
            Ok(()) => {
                if let Some(range) = AddrRange::from_base_len(iova, size) {
                    state.mappings.insert(iova, range);
                }
                Ok(())
            }
            Err(errno) => Err(self.explain_map(&state, iova, offset, size, perms, errno)),
        }
    }

    /// Which rule a mapping broke.
    fn explain_map(&self, state: &State, iova: Iova, offset: u64, size: u64, perms: Perms, errno: Errno) -> VfioError {
        let info = self.info().ok();
        let granule = info.as_ref().map_or(iommu_types::PAGE_SIZE, Type1Info::granule);
        let range = match rules::check_map(iova, size, granule, &[("offset", offset)], perms) {
            Ok(range) => range,
            Err(rule) => return explain(rule, errno),
        };
        let valid = info.map(|info| info.ranges).unwrap_or_default();
        let invalid = !valid.is_empty() && !valid.iter().any(|one| one.covers(range));
        match (errno, state.overlapping(range)) {
            (Errno::Eexist, Some(existing)) => VfioError::Exists { range, existing },
            (Errno::Enospc, _) => VfioError::TooManyMappings {
                limit: state.mappings.len(),
            },
            (Errno::Einval, _) if invalid => VfioError::InvalidRange { range, valid },
            (Errno::Enomem, _) => match sysfs::pin_limit() {
                Some(limit) => VfioError::PinLimit {
                    range,
                    wanted: size,
                    limit,
                },
                None => refused(
                    format!("{range} could not be mapped with {perms}"),
                    errno,
                    "the kernel has no memory for it; map less",
                ),
            },
            _ => refused(
                format!("{range} could not be mapped with {perms}"),
                errno,
                "look into the kernel's log for what it says about the IOMMU",
            ),
        }
    }

    pub(super) fn unmap(&self, iova: Iova, size: u64) -> Result<u64, VfioError> {
        let mut state = self.state();
        if !state.set {
            return rules::check_range(iova, size, iommu_types::PAGE_SIZE, &[]).map(|_| 0);
        }
        match sys::unmap(&self.file, 0, iova.raw(), size) {
            Ok(bytes) => {
                state.forget(iova, size);
                Ok(bytes)
            }
            Err(errno) => Err(explain_range(&state, iova, size, errno)),
        }
    }

    pub(super) fn unmap_all(&self) -> Result<u64, VfioError> {
        let mut state = self.state();
        if !state.set {
            return Ok(0);
        }
        if sys::has_extension(&self.file, VFIO_UNMAP_ALL) == Ok(true) {
            let bytes = sys::unmap(&self.file, VFIO_DMA_UNMAP_FLAG_ALL, 0, 0)
                .map_err(|errno| refused("everything could not be unmapped".to_owned(), errno, ACCESS))?;
            state.mappings.clear();
            return Ok(bytes);
        }
        // Older kernels: one by one.
        let mut bytes = 0;
        while let Some((first, range)) = state.mappings.pop_first() {
            let size = range.len().unwrap_or(0);
            bytes += sys::unmap(&self.file, 0, first.raw(), size)
                .map_err(|errno| explain_range(&state, first, size, errno))?;
        }
        Ok(bytes)
    }

    pub(super) fn track_dirty(&self, on: bool) -> Result<(), VfioError> {
        let flag = match on {
            true => VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
            false => VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
        };
        let mut state = self.state();
        sys::track_dirty(&self.file, flag).map_err(|errno| {
            refused(
                "dirty tracking could not be changed".to_owned(),
                errno,
                "attach a group first; kernels before 5.8 have none",
            )
        })?;
        state.tracking = on;
        Ok(())
    }

    pub(super) fn dirty(&self, iova: Iova, size: u64, page_size: u64) -> Result<DirtyBitmap, VfioError> {
        let mut bitmap = DirtyBitmap::clean(iova, size, page_size)?;
        let state = self.state();
        match sys::dirty(&self.file, iova.raw(), size, page_size, bitmap.words_mut()) {
            Ok(()) => Ok(bitmap),
            Err(errno) => Err(explain_dirty(&state, iova, size, page_size, errno)),
        }
    }

    pub(super) fn unmap_dirty(&self, iova: Iova, size: u64) -> Result<(u64, DirtyBitmap), VfioError> {
        let granule = self.info()?.granule();
        let mut bitmap = DirtyBitmap::clean(iova, size, granule)?;
        let mut state = self.state();
        match sys::unmap_dirty(&self.file, iova.raw(), size, granule, bitmap.words_mut()) {
            Ok(bytes) => {
                state.forget(iova, size);
                Ok((bytes, bitmap))
            }
            Err(errno) => Err(explain_dirty(&state, iova, size, granule, errno)),
        }
    }
}

/// Which rule about ranges a request broke.
fn explain_range(state: &State, iova: Iova, size: u64, errno: Errno) -> VfioError {
    let whole = rules::check_range(iova, size, iommu_types::PAGE_SIZE, &[])
        .and_then(|range| rules::check_whole(range, |at| state.at(at)));
    match whole {
        Err(rule) => explain(rule, errno),
        Ok(()) => refused(
            format!("{size:#x} bytes from {iova}"),
            errno,
            "look into the kernel's log for what it says about the IOMMU",
        ),
    }
}

/// Which rule about dirty pages a request broke.
fn explain_dirty(state: &State, iova: Iova, size: u64, page_size: u64, errno: Errno) -> VfioError {
    match rules::check_dirty(iova, size, page_size, iommu_types::PAGE_SIZE, state.tracking) {
        Err(rule) => explain(rule, errno),
        Ok(_) => explain_range(state, iova, size, errno),
    }
}
