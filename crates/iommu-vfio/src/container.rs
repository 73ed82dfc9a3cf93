//! Containers: a memory map and the groups that see memory through it.

mod inner;

use std::sync::Arc;

use iommu_types::{AddrRange, Bdf, HostPhys, Iova, Perms};

use self::inner::Inner;
use crate::device::Device;
use crate::error::VfioError;
use crate::group::{Group, GroupId, Refused, Viable};
use crate::memory::{GuestMemory, UserMemory};
use crate::platform::Platform;
use crate::user::UserId;

pub(crate) use self::inner::Inner as ContainerInner;

/// Most mappings of a container, as Linux has it.
pub const MAX_MAPPINGS: usize = 65535;

/// State of a [`Container`]: no IOMMU chosen, nothing can be mapped.
#[derive(Clone, Copy, Debug)]
pub struct NoIommu;

/// State of a [`Container`]: a type 1 IOMMU (version 2 rules) is behind it.
#[derive(Clone, Copy, Debug)]
pub struct Type1;

/// A user's memory map and the groups that see memory through it.
///
/// The order of VFIO is the order of types: groups go in, then the IOMMU is chosen, then memory is mapped.
///
/// ```compile_fail
/// # use iommu_types::{Iova, Perms};
/// # use iommu_vfio::{Container, NoIommu, UserMemory};
/// fn too_early(container: &Container<NoIommu>, memory: &UserMemory) {
///     let _ = container.dma_map(Iova::new(0), memory, 0, 4096, Perms::READ); // no such method yet
/// }
/// ```
///
/// ```compile_fail
/// # use iommu_types::Bdf;
/// # use iommu_vfio::{Container, NoIommu};
/// fn too_early(container: &Container<NoIommu>, function: Bdf) {
///     let _ = container.open_device(function); // no such method yet
/// }
/// ```
///
/// Dropping a container and every device opened from it unmaps everything and leaves the devices blocked.
#[derive(Debug)]
pub struct Container<S> {
    inner: Arc<Inner>,
    _state: S,
}

/// A mapping of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingInfo {
    /// The addresses as devices use them.
    pub range: AddrRange<Iova>,
    /// What devices may do.
    pub perms: Perms,
    /// The host memory behind it, in order.
    pub memory: Vec<AddrRange<HostPhys>>,
}

impl<S> Container<S> {
    /// Whose container it is.
    #[must_use]
    pub fn user(&self) -> UserId {
        self.inner.user
    }

    /// The groups in it.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        self.inner.state().groups.keys().copied().collect()
    }
}

impl Container<NoIommu> {
    /// An empty container of `user`.
    #[must_use]
    pub fn new(platform: &Platform, user: UserId) -> Self {
        Self {
            inner: Arc::new(Inner::new(platform.clone(), user)),
            _state: NoIommu,
        }
    }

    /// Puts a group in. Its devices are blocked from now on, and belong to the container's user.
    ///
    /// # Errors
    /// [`Refused`] with [`VfioError::GroupOwned`] or [`VfioError::OtherPlatform`].
    pub fn attach(&mut self, group: Group<Viable>) -> Result<(), Refused<Group<Viable>>> {
        self.inner.add_group(group)
    }

    /// Chooses a type 1 IOMMU and attaches every device of every group, under each of its requester IDs.
    ///
    /// # Errors
    /// [`Refused`] with [`VfioError::NoGroupAttached`] or [`VfioError::Attach`]; no device is attached then.
    pub fn set_iommu(self) -> Result<Container<Type1>, Refused<Self>> {
        match self.inner.attach_all() {
            Ok(()) => Ok(Container {
                inner: self.inner,
                _state: Type1,
            }),
            Err(cause) => Err(Refused { cause, object: self }),
        }
    }
}

impl Container<Type1> {
    /// Puts another group in and attaches its devices: they see what is mapped.
    ///
    /// # Errors
    /// [`Refused`]; the group is as it was.
    pub fn attach(&self, group: Group<Viable>) -> Result<(), Refused<Group<Viable>>> {
        self.inner.join(group)
    }

    /// Takes a group out; its devices are blocked. The mappings stay.
    ///
    /// # Errors
    /// [`VfioError::NoGroup`] if it is not in the container, [`VfioError::DevicesOpen`].
    pub fn detach(&self, group: GroupId) -> Result<(), VfioError> {
        self.inner.leave(group)
    }

    /// The addresses that can be mapped: what every unit can translate, without interrupts and without what
    /// firmware reserves for devices of the container.
    #[must_use]
    pub fn iova_ranges(&self) -> Vec<AddrRange<Iova>> {
        self.inner.valid_ranges()
    }

    /// What is mapped, by address.
    #[must_use]
    pub fn mappings(&self) -> Vec<MappingInfo> {
        self.inner.mappings()
    }

    /// Maps `size` bytes of `memory` from `offset` at `iova`, for every device of the container.
    ///
    /// # Errors
    /// In this order: [`VfioError::NoRights`], [`VfioError::Empty`], [`VfioError::Misaligned`],
    /// [`VfioError::Overflow`], [`VfioError::Exists`], [`VfioError::TooManyMappings`],
    /// [`VfioError::InvalidRange`], [`VfioError::OutsideMemory`], [`VfioError::ForeignPage`],
    /// [`VfioError::Map`]. Nothing is mapped then.
    pub fn dma_map(
        &self,
        iova: Iova,
        memory: &UserMemory,
        offset: u64,
        size: u64,
        perms: Perms,
    ) -> Result<(), VfioError> {
        let range = self.inner.check_map(iova, size, &[("offset", offset)], perms)?;
        let runs = memory.runs(offset, size)?;
        self.inner.map(range, runs, perms)
    }

    /// Maps `size` bytes of host memory at `phys`, which must belong to the container's user.
    ///
    /// # Errors
    /// As [`Self::dma_map`].
    pub fn dma_map_phys(&self, iova: Iova, phys: HostPhys, size: u64, perms: Perms) -> Result<(), VfioError> {
        let range = self
            .inner
            .check_map(iova, size, &[("host address", phys.raw())], perms)?;
        let overflow = VfioError::Overflow { iova, size };
        let run = AddrRange::from_base_len(phys, size).ok_or(overflow)?;
        self.inner.map(range, vec![run], perms)
    }

    /// Maps a guest's memory at the guest's own addresses: devices then use guest physical addresses. Each range
    /// of the guest becomes one mapping.
    ///
    /// # Errors
    /// As [`Self::dma_map`]; ranges before the one that failed stay mapped.
    pub fn map_guest(&self, guest: &GuestMemory, perms: Perms) -> Result<(), VfioError> {
        for (range, offset) in guest.ranges() {
            let size = range.page_count() * iommu_types::PAGE_SIZE;
            self.dma_map(Iova::new(range.first().raw()), guest.memory(), *offset, size, perms)?;
        }
        Ok(())
    }

    /// Removes every mapping that lies in `size` bytes from `iova`, and waits until no device can use it. Tells
    /// how many bytes that were; 0 if nothing was mapped.
    ///
    /// # Errors
    /// [`VfioError::Empty`], [`VfioError::Misaligned`], [`VfioError::Overflow`], and [`VfioError::Bisects`] if
    /// the range ends inside a mapping; nothing changed then. [`VfioError::Unconfirmed`] if a unit did not
    /// confirm: the memory of that mapping stays reserved.
    pub fn dma_unmap(&self, iova: Iova, size: u64) -> Result<u64, VfioError> {
        self.inner.unmap(iova, size)
    }

    /// Removes every mapping. Tells how many bytes that were.
    ///
    /// # Errors
    /// As [`Self::dma_unmap`].
    pub fn dma_unmap_all(&self) -> Result<u64, VfioError> {
        self.inner.unmap_all()
    }

    /// Opens a device of the container.
    ///
    /// # Errors
    /// [`VfioError::NotInContainer`], [`VfioError::NotForUsers`], [`VfioError::DeviceOpen`].
    pub fn open_device(&self, function: Bdf) -> Result<Device, VfioError> {
        Device::open(&self.inner, function)
    }

    /// Unmaps everything, takes all groups out, and leaves their devices blocked. What a drop does, with the
    /// errors.
    ///
    /// # Errors
    /// [`VfioError::DevicesOpen`] while a device is open; [`VfioError::Unconfirmed`] if a unit did not confirm.
    pub fn close(self) -> Result<(), VfioError> {
        self.inner.close()
    }
}
