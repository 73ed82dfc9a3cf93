//! Containers: a memory map and the groups that see memory through it.

mod inner;
mod ranges;

use std::sync::Arc;

use iommu_types::{AddrRange, Bdf, HostPhys, Iova, Perms};

use self::inner::Inner;
use crate::backend::{Backend, Type1Info};
use crate::device::Device;
use crate::dirty::DirtyBitmap;
use crate::error::VfioError;
use crate::group::{Group, GroupId, Refused, Viable};
use crate::memory::GuestMemory;
use crate::platform::Platform;
use crate::software::{SoftSpace, Software};
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
pub struct Container<S, B: Backend = Software> {
    space: B::Space,
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

/// Where an address of a container leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The mapping that holds it.
    pub range: AddrRange<Iova>,
    /// Where in host memory it leads.
    pub phys: HostPhys,
    /// What devices may do.
    pub perms: Perms,
}

impl<S> Container<S, Software> {
    /// Whose container it is.
    #[must_use]
    pub fn user(&self) -> UserId {
        self.space.0.user
    }
}

impl<S, B: Backend> Container<S, B> {
    /// The groups in it.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        B::groups(&self.space)
    }
}

impl Container<NoIommu, Software> {
    /// An empty container of `user`.
    #[must_use]
    pub fn new(platform: &Platform, user: UserId) -> Self {
        Self {
            space: SoftSpace(Arc::new(Inner::new(platform.clone(), user))),
            _state: NoIommu,
        }
    }
}

impl<B: Backend> Container<NoIommu, B> {
    /// An empty container on `backend`.
    ///
    /// # Errors
    /// On Linux, what `/dev/vfio/vfio` answers.
    pub fn open(backend: &B) -> Result<Self, VfioError> {
        Ok(Self {
            space: backend.space()?,
            _state: NoIommu,
        })
    }

    /// Puts a group in. Its devices are blocked from now on, and belong to the container's user.
    ///
    /// # Errors
    /// [`Refused`] with [`VfioError::GroupOwned`] or [`VfioError::OtherPlatform`].
    pub fn attach(&mut self, group: Group<Viable, B>) -> Result<(), Refused<Group<Viable, B>>> {
        attach(&self.space, group)
    }

    /// Chooses a type 1 IOMMU and attaches every device of every group, under each of its requester IDs.
    ///
    /// # Errors
    /// [`Refused`] with [`VfioError::NoGroupAttached`] or [`VfioError::Attach`]; no device is attached then.
    pub fn set_iommu(self) -> Result<Container<Type1, B>, Refused<Self>> {
        match B::set_iommu(&self.space) {
            Ok(()) => Ok(Container {
                space: self.space,
                _state: Type1,
            }),
            Err(cause) => Err(Refused { cause, object: self }),
        }
    }
}

/// Puts a group in, whatever the state of the container.
fn attach<B: Backend>(space: &B::Space, group: Group<Viable, B>) -> Result<(), Refused<Group<Viable, B>>> {
    B::attach(space, group.handle).map_err(|(cause, handle)| Refused {
        cause,
        object: Group::viable_again(handle),
    })
}

impl<B: Backend> Container<Type1, B> {
    /// Puts another group in and attaches its devices: they see what is mapped.
    ///
    /// # Errors
    /// [`Refused`]; the group is as it was.
    pub fn attach(&self, group: Group<Viable, B>) -> Result<(), Refused<Group<Viable, B>>> {
        attach(&self.space, group)
    }

    /// Takes a group out; its devices are blocked. Linux unmaps everything when the last group leaves; in software the
    /// mappings stay.
    ///
    /// # Errors
    /// [`VfioError::NoGroup`] if it is not in the container, [`VfioError::DevicesOpen`].
    pub fn detach(&self, group: GroupId) -> Result<(), VfioError> {
        B::detach(&self.space, group)
    }

    /// What the IOMMU can do: page sizes, addresses, mappings left, dirty tracking.
    ///
    /// # Errors
    /// On Linux, what the kernel answers.
    pub fn info(&self) -> Result<Type1Info, VfioError> {
        B::info(&self.space)
    }

    /// The addresses that can be mapped: what every unit can translate, without interrupts and without what
    /// firmware reserves for devices of the container. None if the kernel does not answer.
    #[must_use]
    pub fn iova_ranges(&self) -> Vec<AddrRange<Iova>> {
        B::info(&self.space).map(|info| info.ranges).unwrap_or_default()
    }

    /// Zeroed memory of `bytes`, rounded up to whole pages, for devices and for the program.
    ///
    /// # Errors
    /// [`VfioError::OutOfMemory`] or [`VfioError::NoMemory`].
    pub fn allocate(&self, bytes: u64) -> Result<B::Memory, VfioError> {
        B::allocate(&self.space, bytes)
    }

    /// Maps `size` bytes of `memory` from `offset` at `iova`, for every device of the container.
    ///
    /// # Errors
    /// In this order: [`VfioError::NoRights`], [`VfioError::Empty`], [`VfioError::Misaligned`],
    /// [`VfioError::Overflow`], [`VfioError::OutsideMemory`], [`VfioError::Exists`],
    /// [`VfioError::TooManyMappings`], [`VfioError::InvalidRange`], [`VfioError::ForeignPage`],
    /// [`VfioError::PinLimit`], [`VfioError::Map`]; on Linux [`VfioError::Kernel`] where none of these says why.
    /// Nothing is mapped then.
    pub fn dma_map(
        &self,
        iova: Iova,
        memory: &B::Memory,
        offset: u64,
        size: u64,
        perms: Perms,
    ) -> Result<(), VfioError> {
        B::map(&self.space, iova, memory, offset, size, perms)
    }

    /// Removes every mapping that lies in `size` bytes from `iova`, and waits until no device can use it. Tells
    /// how many bytes that were; 0 if nothing was mapped.
    ///
    /// # Errors
    /// [`VfioError::Empty`], [`VfioError::Misaligned`], [`VfioError::Overflow`], and [`VfioError::Bisects`] if
    /// the range ends inside a mapping; nothing changed then. [`VfioError::Unconfirmed`] if a unit did not
    /// confirm: the memory of that mapping stays reserved.
    pub fn dma_unmap(&self, iova: Iova, size: u64) -> Result<u64, VfioError> {
        B::unmap(&self.space, iova, size)
    }

    /// Removes every mapping. Tells how many bytes that were.
    ///
    /// # Errors
    /// As [`Self::dma_unmap`].
    pub fn dma_unmap_all(&self) -> Result<u64, VfioError> {
        B::unmap_all(&self.space)
    }

    /// As [`Self::dma_unmap`], and tells which pages devices may have written.
    ///
    /// # Errors
    /// As [`Self::dma_unmap`]; [`VfioError::NotTracking`], [`VfioError::BitmapTooLong`].
    pub fn dma_unmap_dirty(&self, iova: Iova, size: u64) -> Result<(u64, DirtyBitmap), VfioError> {
        B::unmap_dirty(&self.space, iova, size)
    }

    /// Starts to note which pages devices write; no change if it is on. A type 1 IOMMU cannot look: it reports every
    /// page that devices can reach.
    ///
    /// # Errors
    /// On Linux, what the kernel answers.
    pub fn start_dirty_tracking(&self) -> Result<(), VfioError> {
        B::track_dirty(&self.space, true)
    }

    /// Stops what [`Self::start_dirty_tracking`] started; no change if it is off.
    ///
    /// # Errors
    /// On Linux, what the kernel answers.
    pub fn stop_dirty_tracking(&self) -> Result<(), VfioError> {
        B::track_dirty(&self.space, false)
    }

    /// Which pages of `page_size` bytes in `size` bytes from `iova` devices may have written.
    ///
    /// # Errors
    /// [`VfioError::NotTracking`], [`VfioError::BitmapPageSize`] unless it is the smallest page,
    /// [`VfioError::BitmapTooLong`], and as [`Self::dma_unmap`] for the range.
    pub fn dirty_pages(&self, iova: Iova, size: u64, page_size: u64) -> Result<DirtyBitmap, VfioError> {
        B::dirty(&self.space, iova, size, page_size)
    }

    /// Opens a device of the container.
    ///
    /// # Errors
    /// [`VfioError::NotInContainer`], [`VfioError::NotForUsers`], [`VfioError::DeviceOpen`].
    pub fn open_device(&self, function: Bdf) -> Result<Device<B>, VfioError> {
        let inner = B::open_device(&self.space, function)?;
        Ok(Device { inner })
    }

    /// Unmaps everything, takes all groups out, and leaves their devices blocked. What a drop does, with the
    /// errors.
    ///
    /// # Errors
    /// [`VfioError::DevicesOpen`] while a device is open; [`VfioError::Unconfirmed`] if a unit did not confirm.
    pub fn close(self) -> Result<(), VfioError> {
        B::close(&self.space)
    }
}

impl Container<Type1, Software> {
    /// What is mapped, by address.
    #[must_use]
    pub fn mappings(&self) -> Vec<MappingInfo> {
        self.space.0.mappings()
    }

    /// The mapping that holds `at`, and where in host memory it leads.
    #[must_use]
    pub fn find(&self, at: Iova) -> Option<Found> {
        self.space.0.find(at)
    }

    /// Maps `size` bytes of host memory at `phys`, which must belong to the container's user.
    ///
    /// # Errors
    /// As [`Self::dma_map`].
    pub fn dma_map_phys(&self, iova: Iova, phys: HostPhys, size: u64, perms: Perms) -> Result<(), VfioError> {
        self.space.0.dma_map_phys(iova, phys, size, perms)
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
}
