//! The backend on Linux: `/dev/vfio` with a type 1 IOMMU.
//!
//! The kernel judges; this crate asks it every time, and then says which rule it applied. Where none fits, the error is
//! [`VfioError::Kernel`] with what was asked.

mod caps;
mod device;
mod space;
mod sys;
mod sysfs;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use iommu_types::{Bdf, Iova, PAGE_SIZE, Perms};
use vfio_bindings::bindings::vfio::VFIO_GROUP_FLAGS_VIABLE;
use vm_memory::Bytes;

use self::space::Shared;
use self::sys::Mapping;
use crate::backend::{Backend, DmaMemory, Type1Info, sealed};
use crate::dirty::DirtyBitmap;
use crate::error::{Errno, VfioError};
use crate::group::GroupId;

pub use self::device::{LinuxDevice, RegionMap};

/// Linux's own VFIO.
#[derive(Clone, Debug)]
pub struct Linux {
    /// Where the nodes are, and where the kernel shows devices and groups.
    roots: Arc<(PathBuf, PathBuf)>,
}

impl Default for Linux {
    fn default() -> Self {
        Self::new()
    }
}

impl Linux {
    /// The VFIO of this machine: `/dev/vfio` and `/sys`. Nothing is opened yet.
    #[must_use]
    pub fn new() -> Self {
        Self::at("/dev/vfio", "/sys")
    }

    /// The same with other roots, for containers that mount them elsewhere.
    #[must_use]
    pub fn at(vfio: impl AsRef<Path>, sys: impl AsRef<Path>) -> Self {
        Self {
            roots: Arc::new((vfio.as_ref().to_owned(), sys.as_ref().to_owned())),
        }
    }

    fn vfio(&self) -> &Path {
        &self.roots.0
    }

    fn sys(&self) -> &Path {
        &self.roots.1
    }

    /// The driver of a function, by name; `None` if it has none.
    #[must_use]
    pub fn driver(&self, function: Bdf) -> Option<String> {
        sysfs::driver(self.sys(), function)
    }
}

/// Advice for a node that cannot be opened.
const ACCESS: &str = "run as root, or give the user access to the node under /dev/vfio";

fn refused(what: String, errno: Errno, advice: &'static str) -> VfioError {
    VfioError::Kernel { what, errno, advice }
}

fn open(path: &Path) -> Result<File, Errno> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| error.raw_os_error().map_or(Errno::Eio, Errno::from_raw))
}

/// A group of this machine that is open.
#[derive(Debug)]
pub struct LinuxGroup {
    id: GroupId,
    file: File,
    host: Linux,
}

/// A memory map in the kernel.
#[derive(Clone)]
pub struct LinuxSpace(Arc<Shared>);

impl fmt::Debug for LinuxSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LinuxSpace").field(&self.0.groups()).finish()
    }
}

impl sealed::Sealed for Linux {}

impl Backend for Linux {
    type Group = LinuxGroup;
    type Space = LinuxSpace;
    type Memory = LinuxMemory;
    type Device = LinuxDevice;

    fn group_of(&self, function: Bdf) -> Result<GroupId, VfioError> {
        sysfs::group_of(self.sys(), function)
    }

    fn members(&self, group: GroupId) -> Result<Vec<Bdf>, VfioError> {
        sysfs::members(self.sys(), group).ok_or(VfioError::NoGroup(group))
    }

    fn open(&self, id: GroupId) -> Result<LinuxGroup, VfioError> {
        if sysfs::members(self.sys(), id).is_none() {
            return Err(VfioError::NoGroup(id));
        }
        match open(&self.vfio().join(id.to_string())) {
            Ok(file) => Ok(LinuxGroup {
                id,
                file,
                host: self.clone(),
            }),
            // The node exists while one member at least is on a VFIO driver.
            Err(Errno::Enoent | Errno::Enodev) => Err(VfioError::NoVfioDriver(id)),
            Err(Errno::Ebusy) => Err(VfioError::GroupOpen(id)),
            Err(errno) => Err(refused(format!("group {id} cannot be opened"), errno, ACCESS)),
        }
    }

    fn space(&self) -> Result<LinuxSpace, VfioError> {
        Shared::open(self, &self.vfio().join("vfio")).map(|shared| LinuxSpace(Arc::new(shared)))
    }

    fn group_id(group: &LinuxGroup) -> GroupId {
        group.id
    }

    fn check_viable(group: &LinuxGroup) -> Result<(), VfioError> {
        let flags = sys::group_status(&group.file)
            .map_err(|errno| refused(format!("the status of group {}", group.id), errno, ACCESS))?;
        if flags & VFIO_GROUP_FLAGS_VIABLE != 0 {
            return Ok(());
        }
        let members = sysfs::members(group.host.sys(), group.id).unwrap_or_default();
        let in_the_way = members.into_iter().find(|member| {
            let driver = group.host.driver(*member);
            driver.is_some_and(|driver| !sysfs::is_harmless(&driver))
        });
        Err(match in_the_way {
            Some(member) => VfioError::NotViable {
                group: group.id,
                member,
            },
            None => refused(
                format!("group {} is not viable", group.id),
                Errno::Eperm,
                "another program may own one of its devices; close it there first",
            ),
        })
    }

    fn attach(space: &LinuxSpace, group: LinuxGroup) -> Result<(), (VfioError, LinuxGroup)> {
        space.0.attach(group)
    }

    fn set_iommu(space: &LinuxSpace) -> Result<(), VfioError> {
        space.0.set_iommu()
    }

    fn detach(space: &LinuxSpace, group: GroupId) -> Result<(), VfioError> {
        space.0.detach(group)
    }

    fn groups(space: &LinuxSpace) -> Vec<GroupId> {
        space.0.groups()
    }

    fn close(space: &LinuxSpace) -> Result<(), VfioError> {
        space.0.close()
    }

    fn info(space: &LinuxSpace) -> Result<Type1Info, VfioError> {
        space.0.info()
    }

    fn allocate(_space: &LinuxSpace, bytes: u64) -> Result<LinuxMemory, VfioError> {
        LinuxMemory::new(bytes)
    }

    fn map(
        space: &LinuxSpace,
        iova: Iova,
        memory: &LinuxMemory,
        offset: u64,
        size: u64,
        perms: Perms,
    ) -> Result<(), VfioError> {
        space.0.map(iova, memory, offset, size, perms)
    }

    fn unmap(space: &LinuxSpace, iova: Iova, size: u64) -> Result<u64, VfioError> {
        space.0.unmap(iova, size)
    }

    fn unmap_all(space: &LinuxSpace) -> Result<u64, VfioError> {
        space.0.unmap_all()
    }

    fn unmap_dirty(space: &LinuxSpace, iova: Iova, size: u64) -> Result<(u64, DirtyBitmap), VfioError> {
        space.0.unmap_dirty(iova, size)
    }

    fn track_dirty(space: &LinuxSpace, on: bool) -> Result<(), VfioError> {
        space.0.track_dirty(on)
    }

    fn dirty(space: &LinuxSpace, iova: Iova, size: u64, page_size: u64) -> Result<DirtyBitmap, VfioError> {
        space.0.dirty(iova, size, page_size)
    }

    fn open_device(space: &LinuxSpace, function: Bdf) -> Result<LinuxDevice, VfioError> {
        LinuxDevice::open(&space.0, function)
    }
}

/// Memory of this process for devices: of large pages where there are any.
#[derive(Debug)]
pub struct LinuxMemory {
    mapping: Mapping,
}

impl LinuxMemory {
    fn new(bytes: u64) -> Result<Self, VfioError> {
        let none = |why: String| VfioError::NoMemory { bytes, why };
        let rounded = bytes.max(1).checked_next_multiple_of(PAGE_SIZE);
        let len = rounded.and_then(|len| usize::try_from(len).ok());
        let len = len.ok_or_else(|| none("it is more than a process can address".to_owned()))?;
        let mapping = Mapping::memory(len).map_err(|error| none(error.to_string()))?;
        Ok(Self { mapping })
    }

    fn outside(&self, offset: u64, size: u64) -> VfioError {
        VfioError::OutsideMemory {
            offset,
            size,
            len: self.size(),
        }
    }

    /// Where `len` bytes from `offset` are in the mapping.
    fn place(&self, offset: u64, len: usize) -> Result<usize, VfioError> {
        let outside = || self.outside(offset, u64::try_from(len).unwrap_or(u64::MAX));
        let at = usize::try_from(offset).map_err(|_| outside())?;
        match at.checked_add(len) {
            Some(end) if end <= self.mapping.len() => Ok(at),
            _ => Err(outside()),
        }
    }
}

impl DmaMemory for LinuxMemory {
    fn size(&self) -> u64 {
        u64::try_from(self.mapping.len()).unwrap_or(u64::MAX)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), VfioError> {
        let at = self.place(offset, into.len())?;
        let done = self.mapping.slice().read_slice(into, at);
        done.map_err(|_| self.outside(offset, u64::try_from(into.len()).unwrap_or(u64::MAX)))
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), VfioError> {
        let at = self.place(offset, from.len())?;
        let done = self.mapping.slice().write_slice(from, at);
        done.map_err(|_| self.outside(offset, u64::try_from(from.len()).unwrap_or(u64::MAX)))
    }

    fn pointer(&self) -> Option<NonNull<u8>> {
        Some(self.mapping.pointer())
    }

    fn give_back(self) -> Result<(), (VfioError, Self)> {
        // Pages that are still mapped for devices stay with the kernel until they are unmapped.
        Ok(())
    }
}
