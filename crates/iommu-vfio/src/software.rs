//! The backend in software: a machine of `soft-platform` driven by `vtd-driver`.

mod device;
mod events;

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use iommu_types::{Bdf, Iova, PageSize, Perms};
use soft_platform::PageRequest;

use crate::backend::{Backend, DirtyInfo, DmaMemory, Type1Info, sealed};
use crate::container::{ContainerInner, MAX_MAPPINGS};
use crate::dirty::{DirtyBitmap, LONGEST_BITMAP};
use crate::error::VfioError;
use crate::group::{Group, GroupHandle, GroupId, Refused};
use crate::memory::UserMemory;
use crate::platform::Platform;
use crate::user::UserId;

pub use self::device::SoftDevice;
pub(crate) use self::events::Events;

/// A user of a machine in software.
#[derive(Clone, Debug)]
pub struct Software {
    platform: Platform,
    user: UserId,
}

impl Software {
    /// The backend of `user` on `platform`.
    #[must_use]
    pub fn new(platform: &Platform, user: UserId) -> Self {
        Self {
            platform: platform.clone(),
            user,
        }
    }

    /// The platform.
    #[must_use]
    pub const fn platform(&self) -> &Platform {
        &self.platform
    }

    /// The user.
    #[must_use]
    pub const fn user(&self) -> UserId {
        self.user
    }
}

/// A group of a machine in software that is open.
pub struct SoftGroup(pub(crate) GroupHandle);

impl fmt::Debug for SoftGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SoftGroup").field(&self.0.id).finish()
    }
}

/// A memory map of a machine in software.
#[derive(Clone)]
pub struct SoftSpace(pub(crate) Arc<ContainerInner>);

impl fmt::Debug for SoftSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SoftSpace").field(&self.0.user).finish()
    }
}

impl sealed::Sealed for Software {}

impl Backend for Software {
    type Group = SoftGroup;
    type Space = SoftSpace;
    type Memory = UserMemory;
    type Device = SoftDevice;

    fn group_of(&self, function: Bdf) -> Result<GroupId, VfioError> {
        let info = self
            .platform
            .group_of(function)
            .ok_or(VfioError::NoFunction(function))?;
        Ok(info.id)
    }

    fn members(&self, group: GroupId) -> Result<Vec<Bdf>, VfioError> {
        let info = self.platform.group(group).ok_or(VfioError::NoGroup(group))?;
        Ok(info.members)
    }

    fn open(&self, group: GroupId) -> Result<SoftGroup, VfioError> {
        self.platform.open_handle(group).map(SoftGroup)
    }

    fn space(&self) -> Result<SoftSpace, VfioError> {
        Ok(SoftSpace(Arc::new(ContainerInner::new(
            self.platform.clone(),
            self.user,
        ))))
    }

    fn group_id(group: &SoftGroup) -> GroupId {
        group.0.id
    }

    fn check_viable(group: &SoftGroup) -> Result<(), VfioError> {
        group.0.check()
    }

    fn attach(space: &SoftSpace, group: SoftGroup) -> Result<(), (VfioError, SoftGroup)> {
        space
            .0
            .join(Group::viable_again(group))
            .map_err(|Refused { cause, object }| (cause, object.handle))
    }

    fn set_iommu(space: &SoftSpace) -> Result<(), VfioError> {
        space.0.attach_all()
    }

    fn detach(space: &SoftSpace, group: GroupId) -> Result<(), VfioError> {
        space.0.leave(group)
    }

    fn groups(space: &SoftSpace) -> Vec<GroupId> {
        space.0.state().groups.keys().copied().collect()
    }

    fn close(space: &SoftSpace) -> Result<(), VfioError> {
        space.0.close()
    }

    fn info(space: &SoftSpace) -> Result<Type1Info, VfioError> {
        let sizes = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
        let free = MAX_MAPPINGS.saturating_sub(space.0.mapping_count());
        Ok(Type1Info {
            page_sizes: sizes.iter().fold(0, |bits, size| bits | size.bytes()),
            ranges: space.0.valid_ranges(),
            free_mappings: u32::try_from(free).ok(),
            dirty: Some(DirtyInfo {
                page_sizes: PageSize::Size4K.bytes(),
                longest_bitmap: LONGEST_BITMAP,
            }),
        })
    }

    fn allocate(space: &SoftSpace, bytes: u64) -> Result<UserMemory, VfioError> {
        let inner = &space.0;
        // On its own size, so that it can be mapped with large pages and reached as one; anywhere if there is no such run.
        let natural = bytes
            .max(1)
            .checked_next_power_of_two()
            .unwrap_or(PageSize::Size2M.bytes());
        let align = natural.min(PageSize::Size2M.bytes());
        let allocate = |request| inner.platform.allocate(inner.user, request);
        let request = PageRequest::contiguous(bytes);
        allocate(request.aligned_to(align)).or_else(|_| allocate(request))
    }

    fn map(
        space: &SoftSpace,
        iova: Iova,
        memory: &UserMemory,
        offset: u64,
        size: u64,
        perms: Perms,
    ) -> Result<(), VfioError> {
        space.0.dma_map(iova, memory, offset, size, perms)
    }

    fn unmap(space: &SoftSpace, iova: Iova, size: u64) -> Result<u64, VfioError> {
        space.0.unmap(iova, size)
    }

    fn unmap_all(space: &SoftSpace) -> Result<u64, VfioError> {
        space.0.unmap_all()
    }

    fn unmap_dirty(space: &SoftSpace, iova: Iova, size: u64) -> Result<(u64, DirtyBitmap), VfioError> {
        space.0.unmap_dirty(iova, size)
    }

    fn track_dirty(space: &SoftSpace, on: bool) -> Result<(), VfioError> {
        space.0.track_dirty(on);
        Ok(())
    }

    fn dirty(space: &SoftSpace, iova: Iova, size: u64, page_size: u64) -> Result<DirtyBitmap, VfioError> {
        space.0.dirty(iova, size, page_size)
    }

    fn open_device(space: &SoftSpace, function: Bdf) -> Result<SoftDevice, VfioError> {
        SoftDevice::open(&space.0, function)
    }
}

impl DmaMemory for UserMemory {
    fn size(&self) -> u64 {
        self.len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), VfioError> {
        self.read(offset, into)
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), VfioError> {
        self.write(offset, from)
    }

    fn pointer(&self) -> Option<NonNull<u8>> {
        let words = self.words()?;
        Some(NonNull::from(words).cast())
    }

    fn give_back(self) -> Result<(), (VfioError, Self)> {
        self.release()
    }
}
