//! What containers, groups and devices stand on: a machine in software, or Linux.

use std::fmt;
use std::ptr::NonNull;

use iommu_types::{AddrRange, Bdf, Iova, Perms};
use vmm_sys_util::eventfd::EventFd;

use crate::dirty::DirtyBitmap;
use crate::error::VfioError;
use crate::group::GroupId;

pub(crate) mod sealed {
    /// Backends are this crate's: the rules of type 1 are theirs to keep.
    pub trait Sealed {}
}

/// Where groups come from and what keeps the memory map: [`crate::Software`] or [`crate::Linux`].
///
/// [`crate::Container`], [`crate::Group`] and [`crate::Device`] call these functions in the order that their types allow;
/// a program uses the types, and is generic over `B: Backend` when it is to run on both.
pub trait Backend: Clone + fmt::Debug + sealed::Sealed {
    /// A group that is open.
    type Group: fmt::Debug;
    /// A memory map and the groups that see memory through it; shared by a container and its devices.
    type Space: fmt::Debug;
    /// Memory that devices can be given.
    type Memory: DmaMemory;
    /// A device that is open.
    type Device: DeviceBackend;

    /// The group of a function.
    ///
    /// # Errors
    /// [`VfioError::NoFunction`].
    fn group_of(&self, function: Bdf) -> Result<GroupId, VfioError>;

    /// The functions of a group, bridges included, ascending.
    ///
    /// # Errors
    /// [`VfioError::NoGroup`].
    fn members(&self, group: GroupId) -> Result<Vec<Bdf>, VfioError>;

    /// Opens a group, which can be open once.
    ///
    /// # Errors
    /// [`VfioError::NoGroup`], [`VfioError::GroupOpen`]; on Linux also [`VfioError::NoVfioDriver`], since without one
    /// there is nothing to open.
    fn open(&self, group: GroupId) -> Result<Self::Group, VfioError>;

    /// An empty memory map.
    ///
    /// # Errors
    /// On Linux, what `/dev/vfio/vfio` answers.
    fn space(&self) -> Result<Self::Space, VfioError>;

    /// The number of an open group.
    fn group_id(group: &Self::Group) -> GroupId;

    /// Whether the group can be given to a user.
    ///
    /// # Errors
    /// As [`crate::Group::viable`].
    fn check_viable(group: &Self::Group) -> Result<(), VfioError>;

    /// Puts a group in, before ([`crate::NoIommu`]) or after an IOMMU was chosen.
    ///
    /// # Errors
    /// As [`crate::Container::attach`], with the group.
    fn attach(space: &Self::Space, group: Self::Group) -> Result<(), (VfioError, Self::Group)>;

    /// Chooses a type 1 IOMMU.
    ///
    /// # Errors
    /// As [`crate::Container::set_iommu`].
    fn set_iommu(space: &Self::Space) -> Result<(), VfioError>;

    /// Takes a group out.
    ///
    /// # Errors
    /// As [`crate::Container::detach`].
    fn detach(space: &Self::Space, group: GroupId) -> Result<(), VfioError>;

    /// The groups that are in.
    fn groups(space: &Self::Space) -> Vec<GroupId>;

    /// Unmaps everything and takes all groups out.
    ///
    /// # Errors
    /// As [`crate::Container::close`].
    fn close(space: &Self::Space) -> Result<(), VfioError>;

    /// What the IOMMU can do.
    ///
    /// # Errors
    /// On Linux, what the kernel answers.
    fn info(space: &Self::Space) -> Result<Type1Info, VfioError>;

    /// Zeroed memory of `bytes`, rounded up to whole pages, for the user of `space`.
    ///
    /// # Errors
    /// [`VfioError::OutOfMemory`] or [`VfioError::NoMemory`].
    fn allocate(space: &Self::Space, bytes: u64) -> Result<Self::Memory, VfioError>;

    /// MAP_DMA.
    ///
    /// # Errors
    /// As [`crate::Container::dma_map`].
    fn map(
        space: &Self::Space,
        iova: Iova,
        memory: &Self::Memory,
        offset: u64,
        size: u64,
        perms: Perms,
    ) -> Result<(), VfioError>;

    /// UNMAP_DMA.
    ///
    /// # Errors
    /// As [`crate::Container::dma_unmap`].
    fn unmap(space: &Self::Space, iova: Iova, size: u64) -> Result<u64, VfioError>;

    /// UNMAP_DMA of everything.
    ///
    /// # Errors
    /// As [`crate::Container::dma_unmap_all`].
    fn unmap_all(space: &Self::Space) -> Result<u64, VfioError>;

    /// UNMAP_DMA with the pages that were written.
    ///
    /// # Errors
    /// As [`crate::Container::dma_unmap_dirty`].
    fn unmap_dirty(space: &Self::Space, iova: Iova, size: u64) -> Result<(u64, DirtyBitmap), VfioError>;

    /// Starts or stops dirty tracking.
    ///
    /// # Errors
    /// On Linux, what the kernel answers.
    fn track_dirty(space: &Self::Space, on: bool) -> Result<(), VfioError>;

    /// The pages that were written, in pages of `page_size` bytes.
    ///
    /// # Errors
    /// As [`crate::Container::dirty_pages`].
    fn dirty(space: &Self::Space, iova: Iova, size: u64, page_size: u64) -> Result<DirtyBitmap, VfioError>;

    /// Opens a device.
    ///
    /// # Errors
    /// As [`crate::Container::open_device`].
    fn open_device(space: &Self::Space, function: Bdf) -> Result<Self::Device, VfioError>;
}

/// Memory that devices can be given, as the program reaches it.
pub trait DmaMemory: fmt::Debug + Sized {
    /// Length in bytes: whole pages.
    fn size(&self) -> u64;

    /// Fills `into` from byte `offset` on.
    ///
    /// # Errors
    /// [`VfioError::OutsideMemory`].
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), VfioError>;

    /// Copies `from` to byte `offset` and after.
    ///
    /// # Errors
    /// [`VfioError::OutsideMemory`].
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), VfioError>;

    /// Its first byte, if all of it lies side by side in this process: always on Linux, up to 2 MiB without crossing a
    /// multiple of that on the software backend. Valid for reads and writes of [`Self::size`] bytes as long as the memory
    /// exists; devices may change it at any time.
    fn pointer(&self) -> Option<NonNull<u8>>;

    /// Gives the memory back.
    ///
    /// # Errors
    /// [`VfioError::Pinned`] with the memory, while a device may be using it. Linux keeps mapped pages by itself.
    fn give_back(self) -> Result<(), (VfioError, Self)>;
}

/// What can be asked of a device that is open.
pub trait DeviceBackend: fmt::Debug {
    /// Where it is.
    fn function(&self) -> Bdf;
    /// Reads configuration space; all-ones where there is nothing.
    fn config_read(&self, offset: u16, into: &mut [u8]);
    /// Writes configuration space.
    ///
    /// # Errors
    /// As [`crate::Device::config_write`].
    fn config_write(&self, offset: u16, from: &[u8]) -> Result<(), VfioError>;
    /// What is behind BAR `index`.
    fn region(&self, index: u8) -> Option<RegionInfo>;
    /// Reads from the region behind BAR `index`.
    ///
    /// # Errors
    /// As [`crate::Device::region_read`].
    fn region_read(&self, index: u8, offset: u64, into: &mut [u8]) -> Result<(), VfioError>;
    /// Writes to the region behind BAR `index`.
    ///
    /// # Errors
    /// As [`crate::Device::region_write`].
    fn region_write(&self, index: u8, offset: u64, from: &[u8]) -> Result<(), VfioError>;
    /// How many interrupts of a kind there are.
    fn interrupts(&self, kind: InterruptKind) -> u32;
    /// Has interrupt `n` of a kind counted in `events[n]`.
    ///
    /// # Errors
    /// As [`crate::Device::enable_interrupts`].
    fn enable_interrupts(&self, kind: InterruptKind, events: &[&EventFd]) -> Result<(), VfioError>;
    /// Turns interrupts of a kind off.
    ///
    /// # Errors
    /// As [`crate::Device::disable_interrupts`].
    fn disable_interrupts(&self, kind: InterruptKind) -> Result<(), VfioError>;
    /// Lets the interrupt line be seen again.
    ///
    /// # Errors
    /// As [`crate::Device::unmask_line`].
    fn unmask_line(&self) -> Result<(), VfioError>;
    /// Allows requests of the device, or forbids them.
    fn set_bus_master(&self, on: bool);
    /// Resets the function and nothing else.
    ///
    /// # Errors
    /// As [`crate::Device::reset`].
    fn reset(&self) -> Result<(), VfioError>;
}

/// What a type 1 IOMMU tells about itself (IOMMU_GET_INFO).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type1Info {
    /// Page sizes in bytes, a bit each; the lowest is the granule of all requests.
    pub page_sizes: u64,
    /// The addresses that can be mapped: what every unit can translate, without interrupts and without what firmware
    /// reserves for devices of the container. An empty list allows everything.
    pub ranges: Vec<AddrRange<Iova>>,
    /// How many mappings can be added; `None` if the kernel does not say.
    pub free_mappings: Option<u32>,
    /// How dirty pages are told; `None` if they are not.
    pub dirty: Option<DirtyInfo>,
}

impl Type1Info {
    /// The granule in bytes: the smallest page.
    #[must_use]
    pub const fn granule(&self) -> u64 {
        match self.page_sizes {
            0 => iommu_types::PAGE_SIZE,
            sizes => 1 << sizes.trailing_zeros(),
        }
    }
}

/// How dirty pages are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyInfo {
    /// Page sizes in bytes that a bitmap can have, a bit each.
    pub page_sizes: u64,
    /// Longest bitmap in bytes.
    pub longest_bitmap: u64,
}

/// What is behind a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// Length in bytes.
    pub size: u64,
    /// Whether it can be read.
    pub readable: bool,
    /// Whether it can be written.
    pub writable: bool,
    /// Whether it can be mapped into the process.
    pub mappable: bool,
}

/// Kinds of interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InterruptKind {
    /// The interrupt line (INTA to INTD).
    Line,
    /// Message-signalled.
    Msi,
    /// Message-signalled with a table.
    MsiX,
}

impl InterruptKind {
    /// The kinds, in the order in which VFIO numbers them.
    pub const ALL: [Self; 3] = [Self::Line, Self::Msi, Self::MsiX];

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Line => "INTx",
            Self::Msi => "MSI",
            Self::MsiX => "MSI-X",
        }
    }
}

impl fmt::Display for InterruptKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
