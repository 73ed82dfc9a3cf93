//! What can go wrong, with the number that Linux gives it.

use std::fmt;

use acpi_dmar::Doubt;
use iommu_types::{AddrRange, Bdf, GuestPhys, HostPhys, Iova, Perms};
use soft_platform::OutOfPages;
use vtd_driver::{FlushError, InterruptError, JoinError, MapError, UnmapError};

use crate::group::GroupId;
use crate::user::UserId;

/// The error numbers of VFIO, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    /// Not permitted.
    Eperm,
    /// Nothing there.
    Enoent,
    /// Input or output failed.
    Eio,
    /// No memory.
    Enomem,
    /// In use.
    Ebusy,
    /// Exists already.
    Eexist,
    /// No such device.
    Enodev,
    /// Invalid argument.
    Einval,
    /// Nothing left to give.
    Enospc,
    /// A sum passes the end of the address space.
    Eoverflow,
    /// Not allowed for this user.
    Eacces,
    /// An address that is not mapped in the process.
    Efault,
    /// A file that is not open.
    Ebadf,
    /// A request that is not known.
    Enotty,
    /// Another one, by its number on Linux.
    Other(i32),
}

impl Errno {
    /// The name as C spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eperm => "EPERM",
            Self::Enoent => "ENOENT",
            Self::Eio => "EIO",
            Self::Enomem => "ENOMEM",
            Self::Ebusy => "EBUSY",
            Self::Eexist => "EEXIST",
            Self::Enodev => "ENODEV",
            Self::Einval => "EINVAL",
            Self::Enospc => "ENOSPC",
            Self::Eoverflow => "EOVERFLOW",
            Self::Eacces => "EACCES",
            Self::Efault => "EFAULT",
            Self::Ebadf => "EBADF",
            Self::Enotty => "ENOTTY",
            Self::Other(_) => "an error of another kind",
        }
    }

    /// The error with this number on Linux.
    #[cfg(target_os = "linux")]
    #[must_use]
    pub const fn from_raw(raw: i32) -> Self {
        match raw {
            libc::EPERM => Self::Eperm,
            libc::ENOENT => Self::Enoent,
            libc::EIO => Self::Eio,
            libc::ENOMEM => Self::Enomem,
            libc::EBUSY => Self::Ebusy,
            libc::EEXIST => Self::Eexist,
            libc::ENODEV => Self::Enodev,
            libc::EINVAL => Self::Einval,
            libc::ENOSPC => Self::Enospc,
            libc::EOVERFLOW => Self::Eoverflow,
            libc::EACCES => Self::Eacces,
            libc::EFAULT => Self::Efault,
            libc::EBADF => Self::Ebadf,
            libc::ENOTTY => Self::Enotty,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A request of a user that was refused.
///
/// Each says what was asked, which rule it breaks and what to do. [`VfioError::errno`] is what Linux's VFIO
/// answers in the same case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioError {
    /// There is no such group.
    #[error("there is no group {0}; `Platform::groups` lists them")]
    NoGroup(GroupId),
    /// There is no such function.
    #[error("there is no function {0}; `Machine::functions` lists them")]
    NoFunction(Bdf),
    /// The kernel has no IOMMU on for the function.
    #[error(
        "{0} is in no IOMMU group: the kernel does not use an IOMMU for it; turn it on (`intel_iommu=on` on the kernel's \
         command line, VT-d in the firmware)"
    )]
    NoIommu(Bdf),
    /// A group can be open once.
    #[error("group {0} is open already; close it there first")]
    GroupOpen(GroupId),
    /// A driver of the host uses a member.
    #[error(
        "group {group} is not viable: {member} is used by a host driver, and the members of a group cannot be told \
         apart; bind {member} to a VFIO driver too, or to none"
    )]
    NotViable {
        /// The group.
        group: GroupId,
        /// The member that is in the way.
        member: Bdf,
    },
    /// Nobody of the group is on a VFIO driver.
    #[error("group {0} has no member on a VFIO driver; bind the device that is to be assigned first")]
    NoVfioDriver(GroupId),
    /// Someone else has the group.
    #[error("group {group} belongs to {owner}; every device of a group has one owner")]
    GroupOwned {
        /// The group.
        group: GroupId,
        /// Who has it.
        owner: String,
    },
    /// The group belongs to another user than the container.
    #[error("group {0} was opened on another platform than the container")]
    OtherPlatform(GroupId),
    /// A function that no unit contains.
    #[error(
        "{function} cannot be assigned: no unit translates its DMA ({why}); a device that nothing contains reaches all \
         memory: leave it to the host, or have the firmware's table corrected"
    )]
    NotContained {
        /// The function.
        function: Bdf,
        /// Why no unit does.
        why: Uncontained,
    },
    /// Interrupts of the group could be forged.
    #[error(
        "group {0} cannot be assigned: its unit does not remap interrupts, so a guest could raise any interrupt of the \
         host; enable interrupt remapping in the firmware, or, where every guest is trusted, allow it"
    )]
    UnsafeInterrupts(GroupId),
    /// A type is chosen when there is a group.
    #[error("the container has no group, so there is no IOMMU to choose; attach a group first")]
    NoGroupAttached,
    /// Devices of the group are open.
    #[error("group {0} has open devices; close them first")]
    DevicesOpen(GroupId),
    /// The function is in no group of the container.
    #[error("{0} is in no group of this container; attach its group first")]
    NotInContainer(Bdf),
    /// The function is open.
    #[error("{0} is open already; close it first")]
    DeviceOpen(Bdf),
    /// The function is not for users.
    #[error("{0} is a bridge or is not on a VFIO driver; only endpoints on a VFIO driver can be opened")]
    NotForUsers(Bdf),
    /// A unit or its driver refused to take a device.
    #[error("{function} could not be attached to the container's memory map: {cause}")]
    Attach {
        /// The function.
        function: Bdf,
        /// Why.
        #[source]
        cause: JoinError,
    },
    /// What is mapped lies where the group needs an identity mapping.
    #[error(
        "group {group} cannot join: {mapped} is mapped, and firmware needs {reserved} for a device of the group (RMRR); \
         unmap it first"
    )]
    ReservedConflict {
        /// The group.
        group: GroupId,
        /// What is mapped.
        mapped: AddrRange<Iova>,
        /// What is reserved.
        reserved: AddrRange<Iova>,
    },
    /// A mapping must allow something.
    #[error("a mapping at {iova} without rights; give READ, WRITE or both")]
    NoRights {
        /// Where.
        iova: Iova,
    },
    /// A rule of alignment or size.
    #[error("{what} {value:#x} is not a multiple of {granule:#x}, the smallest page of the container")]
    Misaligned {
        /// Which argument.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The granule in bytes.
        granule: u64,
    },
    /// Nothing to do.
    #[error("a size of 0 at {iova}; the smallest is one page")]
    Empty {
        /// Where.
        iova: Iova,
    },
    /// The range passes the end of the address space.
    #[error("{size:#x} bytes from {iova} pass the end of the address space")]
    Overflow {
        /// Where.
        iova: Iova,
        /// Length in bytes.
        size: u64,
    },
    /// Something is mapped there.
    #[error("{range} overlaps {existing}, which is mapped; unmap that first, as a whole")]
    Exists {
        /// What was asked for.
        range: AddrRange<Iova>,
        /// What is there.
        existing: AddrRange<Iova>,
    },
    /// The limit on mappings.
    #[error("the container has {limit} mappings, which is the limit; unmap some, or map larger ranges")]
    TooManyMappings {
        /// The limit.
        limit: usize,
    },
    /// The range is not inside what devices can use.
    #[error("{range} does not lie within one of the ranges that the container's devices can use: {}", Ranges(.valid))]
    InvalidRange {
        /// What was asked for.
        range: AddrRange<Iova>,
        /// What there is.
        valid: Vec<AddrRange<Iova>>,
    },
    /// The memory belongs to someone else.
    #[error("{range} of host memory belongs to {owner}, not to {user}; a page has one owner")]
    ForeignPage {
        /// The memory.
        range: AddrRange<HostPhys>,
        /// Whose it is.
        owner: String,
        /// Who asked.
        user: UserId,
    },
    /// The range passes the end of the user's memory.
    #[error("{size:#x} bytes from offset {offset:#x} pass the end of the memory, which has {len:#x}")]
    OutsideMemory {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        size: u64,
        /// Length of the memory in bytes.
        len: u64,
    },
    /// The guest has no memory there.
    #[error("the guest has no memory at {0}")]
    NoGuestMemory(GuestPhys),
    /// The memory is mapped for a device.
    #[error("the memory is still mapped for devices ({pins} mappings); unmap it first")]
    Pinned {
        /// How many mappings.
        pins: u64,
    },
    /// An unmap that would cut a mapping.
    #[error(
        "{range} would cut the mapping {mapping} in two; type1 v2 removes whole mappings only: unmap all of it, or map \
         in smaller pieces"
    )]
    Bisects {
        /// What was asked for.
        range: AddrRange<Iova>,
        /// The mapping.
        mapping: AddrRange<Iova>,
    },
    /// The driver refused a mapping.
    #[error("{range} could not be mapped with {perms}: {cause}")]
    Map {
        /// What was asked for.
        range: AddrRange<Iova>,
        /// The rights asked for.
        perms: Perms,
        /// Why.
        #[source]
        cause: MapError,
    },
    /// The driver refused to unmap; nothing changed.
    #[error("{range} could not be unmapped: {cause}")]
    Unmap {
        /// The mapping.
        range: AddrRange<Iova>,
        /// Why.
        #[source]
        cause: UnmapError,
    },
    /// A unit did not confirm that it forgot a translation. The memory stays out of use.
    #[error(
        "{range} was unmapped, but a unit did not confirm it; devices may still reach the memory, which stays reserved: {cause}"
    )]
    Unconfirmed {
        /// The mapping.
        range: AddrRange<Iova>,
        /// Why.
        #[source]
        cause: FlushError,
    },
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfPages),
    /// Interrupts could not be set up.
    #[error("interrupts of {function}: {cause}")]
    Interrupts {
        /// The function.
        function: Bdf,
        /// Why.
        #[source]
        cause: InterruptError,
    },
    /// The function cannot send so many interrupts.
    #[error("{function} has {available} interrupts, {wanted} were asked for")]
    InterruptCount {
        /// The function.
        function: Bdf,
        /// How many it has.
        available: u16,
        /// How many were asked for.
        wanted: u16,
    },
    /// A register that the user may not write.
    #[error("{function}: configuration bytes {offset:#x}..{end:#x} belong to the host ({what}); {instead}")]
    Protected {
        /// The function.
        function: Bdf,
        /// First byte.
        offset: u16,
        /// Byte after the last.
        end: u16,
        /// What is there.
        what: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// An access outside a region.
    #[error("{function}: {len} bytes at offset {offset:#x} are outside region {region}, which has {size:#x} bytes")]
    OutsideRegion {
        /// The function.
        function: Bdf,
        /// Number of the BAR.
        region: u8,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: usize,
        /// Size of the region in bytes; 0 if there is none.
        size: u64,
    },
    /// Dirty pages were asked for while nobody notes them.
    #[error("dirty pages are not noted; call start_dirty_tracking first")]
    NotTracking,
    /// Dirty pages are told in the smallest pages only.
    #[error("dirty pages of {page_size:#x} bytes cannot be told; ask for pages of {granule:#x} bytes")]
    BitmapPageSize {
        /// Bytes of a page that was asked for.
        page_size: u64,
        /// Bytes of a page that can be told.
        granule: u64,
    },
    /// A bitmap that is too long.
    #[error("a bitmap for {size:#x} bytes from {iova} is longer than {longest:#x} bytes; ask for less at a time")]
    BitmapTooLong {
        /// The first address.
        iova: Iova,
        /// How many bytes.
        size: u64,
        /// The longest bitmap in bytes.
        longest: u64,
    },
    /// A user may not have so much memory pinned.
    #[error(
        "{range} cannot be pinned for devices: {wanted:#x} bytes more than the {limit:#x} that the user may have pinned; \
         raise the limit (RLIMIT_MEMLOCK, `ulimit -l`) or map less"
    )]
    PinLimit {
        /// What was asked for.
        range: AddrRange<Iova>,
        /// Bytes that were asked for.
        wanted: u64,
        /// Bytes that the user may have pinned.
        limit: u64,
    },
    /// The process gets no memory.
    #[error("the process gets no {bytes:#x} bytes of memory ({why}); ask for less, or for smaller pages")]
    NoMemory {
        /// Bytes that were asked for.
        bytes: u64,
        /// What the kernel said.
        why: String,
    },
    /// There are no interrupt vectors left, or no files for them.
    #[error("no vectors are left for the interrupts of {0}; close devices or use fewer interrupts")]
    NoVectors(Bdf),
    /// The kernel refused a request, and no rule that this crate knows says why.
    #[error("{what}: the kernel answers {errno}; {advice}")]
    Kernel {
        /// What was asked for.
        what: String,
        /// What it answered.
        errno: Errno,
        /// What to do.
        advice: &'static str,
    },
    /// No addresses are left to choose for a buffer.
    #[error(
        "no addresses are left for a buffer of {bytes:#x} bytes, or the memory is not in one piece; drop buffers, ask for \
         less, or choose another policy"
    )]
    NoAddresses {
        /// Bytes that were asked for.
        bytes: u64,
    },
    /// A function that is no virtio device, or lacks something.
    #[error("{function} cannot be driven as a virtio device: it has no {what}")]
    NotVirtio {
        /// The function.
        function: Bdf,
        /// What is missing.
        what: &'static str,
    },
    /// There is no way to reset the function alone.
    #[error("{0} has no function level reset; reset the bus above it, with everything on it")]
    NoReset(Bdf),
}

/// Why no unit translates the DMA of a function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Uncontained {
    /// The table covers it with no unit.
    #[error("the firmware table covers it with no unit")]
    NotCovered,
    /// It cannot be known which unit serves it.
    #[error("{0}")]
    Unknown(Doubt),
    /// Its unit could not be brought up.
    #[error("unit {unit} is not in service: {why}")]
    UnitFailed {
        /// The unit.
        unit: usize,
        /// What went wrong.
        why: String,
    },
}

/// A list of ranges, for messages.
struct Ranges<'a>(&'a [AddrRange<Iova>]);

impl fmt::Display for Ranges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("there are none");
        }
        for (index, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl VfioError {
    /// What Linux's VFIO type1 answers in the same case.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NoGroup(_) | Self::NoGuestMemory(_) => Errno::Enoent,
            Self::NoFunction(_) | Self::NoIommu(_) | Self::NoVfioDriver(_) | Self::NotInContainer(_) => Errno::Enodev,
            Self::GroupOpen(_) | Self::GroupOwned { .. } | Self::DevicesOpen(_) | Self::DeviceOpen(_) => Errno::Ebusy,
            Self::Pinned { .. } => Errno::Ebusy,
            Self::NotViable { .. } | Self::NotContained { .. } | Self::UnsafeInterrupts(_) => Errno::Eperm,
            Self::NotForUsers(_) | Self::ForeignPage { .. } | Self::Protected { .. } => Errno::Eperm,
            Self::Overflow { .. } => Errno::Eoverflow,
            Self::Exists { .. } => Errno::Eexist,
            Self::TooManyMappings { .. } => Errno::Enospc,
            Self::OutOfMemory(_) | Self::PinLimit { .. } | Self::NoMemory { .. } => Errno::Enomem,
            Self::NoVectors(_) | Self::NoAddresses { .. } => Errno::Enospc,
            Self::NotVirtio { .. } => Errno::Enodev,
            Self::Kernel { errno, .. } => *errno,
            Self::Unconfirmed { .. } | Self::Map { .. } | Self::Unmap { .. } | Self::Interrupts { .. } => Errno::Eio,
            Self::OtherPlatform(_)
            | Self::NoGroupAttached
            | Self::Attach { .. }
            | Self::ReservedConflict { .. }
            | Self::NoRights { .. }
            | Self::Misaligned { .. }
            | Self::Empty { .. }
            | Self::InvalidRange { .. }
            | Self::OutsideMemory { .. }
            | Self::Bisects { .. }
            | Self::InterruptCount { .. }
            | Self::OutsideRegion { .. }
            | Self::NotTracking
            | Self::BitmapPageSize { .. }
            | Self::BitmapTooLong { .. }
            | Self::NoReset(_) => Errno::Einval,
        }
    }
}
