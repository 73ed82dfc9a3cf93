//! The requests of `/dev/vfio` and mappings of memory: the one file of the crate that is unsafe.
//!
//! Each function is safe to call: it owns what the kernel reads and writes, and says how long it is.
#![allow(unsafe_code, reason = "ioctl and mmap have no safe form")]

use std::ffi::{CStr, c_int, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
    VFIO_TYPE, vfio_bitmap, vfio_device_info, vfio_group_status, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
    vfio_irq_info, vfio_region_info,
};
use vm_memory::VolatileSlice;
use vmm_sys_util::ioctl::{
    _IOC_NONE, ioctl, ioctl_expr, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val,
};

use crate::error::Errno;

/// The number of a request.
const fn request(number: u32) -> c_ulong {
    ioctl_expr(_IOC_NONE, VFIO_TYPE as u32, VFIO_BASE + number, 0)
}

const GET_API_VERSION: c_ulong = request(0);
const CHECK_EXTENSION: c_ulong = request(1);
const SET_IOMMU: c_ulong = request(2);
const GROUP_GET_STATUS: c_ulong = request(3);
const GROUP_SET_CONTAINER: c_ulong = request(4);
const GROUP_UNSET_CONTAINER: c_ulong = request(5);
const GROUP_GET_DEVICE_FD: c_ulong = request(6);
const DEVICE_GET_INFO: c_ulong = request(7);
const DEVICE_GET_REGION_INFO: c_ulong = request(8);
const DEVICE_GET_IRQ_INFO: c_ulong = request(9);
const DEVICE_SET_IRQS: c_ulong = request(10);
const DEVICE_RESET: c_ulong = request(11);
const IOMMU_GET_INFO: c_ulong = request(12);
const IOMMU_MAP_DMA: c_ulong = request(13);
const IOMMU_UNMAP_DMA: c_ulong = request(14);
const IOMMU_DIRTY_PAGES: c_ulong = request(17);

fn answer(result: c_int) -> Result<c_int, Errno> {
    if result >= 0 {
        return Ok(result);
    }
    let raw = io::Error::last_os_error().raw_os_error();
    Err(raw.map_or(Errno::Eio, Errno::from_raw))
}

/// Length of a structure as the kernel wants to be told.
fn size_of<T>() -> u32 {
    u32::try_from(std::mem::size_of::<T>()).unwrap_or(u32::MAX)
}

pub(super) fn api_version(container: &File) -> Result<c_int, Errno> {
    // SAFETY: the request takes no argument.
    answer(unsafe { ioctl(container, GET_API_VERSION) })
}

pub(super) fn has_extension(container: &File, id: u32) -> Result<bool, Errno> {
    // SAFETY: the argument is a number.
    answer(unsafe { ioctl_with_val(container, CHECK_EXTENSION, id.into()) }).map(|answer| answer > 0)
}

pub(super) fn set_iommu(container: &File, id: u32) -> Result<(), Errno> {
    // SAFETY: the argument is a number.
    answer(unsafe { ioctl_with_val(container, SET_IOMMU, id.into()) }).map(drop)
}

/// The flags of a group.
pub(super) fn group_status(group: &File) -> Result<u32, Errno> {
    let mut status = vfio_group_status {
        argsz: size_of::<vfio_group_status>(),
        flags: 0,
    };
    // SAFETY: the structure is as long as it says.
    answer(unsafe { ioctl_with_mut_ref(group, GROUP_GET_STATUS, &mut status) })?;
    Ok(status.flags)
}

pub(super) fn set_container(group: &File, container: &File) -> Result<(), Errno> {
    let container: c_int = container.as_raw_fd();
    // SAFETY: the argument is a reference to a file descriptor, which the kernel reads.
    answer(unsafe { ioctl_with_ref(group, GROUP_SET_CONTAINER, &container) }).map(drop)
}

pub(super) fn unset_container(group: &File) -> Result<(), Errno> {
    // SAFETY: the request takes no argument.
    answer(unsafe { ioctl(group, GROUP_UNSET_CONTAINER) }).map(drop)
}

pub(super) fn open_device(group: &File, name: &CStr) -> Result<File, Errno> {
    // SAFETY: the name ends with a zero byte.
    let fd = answer(unsafe { vmm_sys_util::ioctl::ioctl_with_ptr(group, GROUP_GET_DEVICE_FD, name.as_ptr()) })?;
    // SAFETY: the kernel just opened it for us, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

pub(super) fn device_info(device: &File) -> Result<vfio_device_info, Errno> {
    let mut info = vfio_device_info {
        argsz: size_of::<vfio_device_info>(),
        ..vfio_device_info::default()
    };
    // SAFETY: the structure is as long as it says.
    answer(unsafe { ioctl_with_mut_ref(device, DEVICE_GET_INFO, &mut info) })?;
    Ok(info)
}

pub(super) fn region_info(device: &File, index: u32) -> Result<vfio_region_info, Errno> {
    let mut info = vfio_region_info {
        argsz: size_of::<vfio_region_info>(),
        index,
        ..vfio_region_info::default()
    };
    // SAFETY: the structure is as long as it says.
    answer(unsafe { ioctl_with_mut_ref(device, DEVICE_GET_REGION_INFO, &mut info) })?;
    Ok(info)
}

pub(super) fn irq_info(device: &File, index: u32) -> Result<vfio_irq_info, Errno> {
    let mut info = vfio_irq_info {
        argsz: size_of::<vfio_irq_info>(),
        index,
        ..vfio_irq_info::default()
    };
    // SAFETY: the structure is as long as it says.
    answer(unsafe { ioctl_with_mut_ref(device, DEVICE_GET_IRQ_INFO, &mut info) })?;
    Ok(info)
}

/// Sets `count` interrupts of a kind from the first on. `events` are file descriptors, as many as `count`, or none if
/// `flags` say so.
pub(super) fn set_irqs(device: &File, flags: u32, index: u32, count: u32, events: &[c_int]) -> Result<(), Errno> {
    /// Words before the data: argsz, flags, index, start, count.
    const HEADER: usize = 5;
    if !events.is_empty() && u32::try_from(events.len()).ok() != Some(count) {
        return Err(Errno::Einval);
    }
    let len = HEADER + events.len();
    let argsz = u32::try_from(len * 4).map_err(|_| Errno::Einval)?;
    let mut words = vec![argsz, flags, index, 0, count];
    words.extend(events.iter().map(|event| u32::from_ne_bytes(event.to_ne_bytes())));
    // SAFETY: the words are as many as the first says.
    answer(unsafe { ioctl_with_mut_ptr(device, DEVICE_SET_IRQS, words.as_mut_ptr()) }).map(drop)
}

pub(super) fn reset(device: &File) -> Result<(), Errno> {
    // SAFETY: the request takes no argument.
    answer(unsafe { ioctl(device, DEVICE_RESET) }).map(drop)
}

/// What the IOMMU tells about itself, with capabilities: the bytes of the structure.
pub(super) fn iommu_info(container: &File) -> Result<Vec<u8>, Errno> {
    /// More than all capabilities take; the kernel is asked again if not.
    const FIRST: usize = 4096;
    /// Longest answer that is believed, in bytes.
    const LONGEST: usize = 1 << 20;
    let mut len = FIRST;
    loop {
        let mut words = vec![0u32; len / 4];
        if let Some(argsz) = words.first_mut() {
            *argsz = u32::try_from(len).map_err(|_| Errno::Einval)?;
        }
        // SAFETY: the words are as long as the first says.
        answer(unsafe { ioctl_with_mut_ptr(container, IOMMU_GET_INFO, words.as_mut_ptr()) })?;
        let needed = words
            .first()
            .map_or(0, |argsz| usize::try_from(*argsz).unwrap_or(LONGEST));
        if needed <= len {
            return Ok(words.iter().flat_map(|word| word.to_ne_bytes()).collect());
        }
        if needed > LONGEST {
            return Err(Errno::Einval);
        }
        len = needed.next_multiple_of(8);
    }
}

/// Maps `size` bytes of `memory` from `offset`; the numbers are the kernel's to judge, except that nothing outside of
/// the memory is mapped.
pub(super) fn map(
    container: &File,
    flags: u32,
    memory: &Mapping,
    offset: u64,
    size: u64,
    iova: u64,
) -> Result<(), Errno> {
    let len = u64::try_from(memory.len).unwrap_or(u64::MAX);
    if offset.checked_add(size).is_none_or(|end| end > len) {
        return Err(Errno::Efault);
    }
    let base = u64::try_from(memory.base.as_ptr().addr()).map_err(|_| Errno::Efault)?;
    if flags & VFIO_DMA_MAP_FLAG_WRITE == 0 {
        memory.populate(offset, size);
    }
    let map = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>(),
        flags,
        vaddr: base + offset,
        iova,
        size,
    };
    // SAFETY: the structure is as long as it says, and devices get memory that nothing in this process has references
    // to; the kernel keeps the pages when the process unmaps them.
    answer(unsafe { ioctl_with_ref(container, IOMMU_MAP_DMA, &map) }).map(drop)
}

/// Unmaps, and tells how many bytes.
pub(super) fn unmap(container: &File, flags: u32, iova: u64, size: u64) -> Result<u64, Errno> {
    let mut unmap = vfio_iommu_type1_dma_unmap {
        argsz: size_of::<vfio_iommu_type1_dma_unmap>(),
        flags,
        iova,
        size,
        ..vfio_iommu_type1_dma_unmap::default()
    };
    // SAFETY: the structure is as long as it says.
    answer(unsafe { ioctl_with_mut_ref(container, IOMMU_UNMAP_DMA, &mut unmap) })?;
    Ok(unmap.size)
}

/// A bitmap for the kernel to fill.
fn bitmap(page_size: u64, words: &mut [u64]) -> vfio_bitmap {
    vfio_bitmap {
        pgsize: page_size,
        size: u64::try_from(words.len()).unwrap_or(0) * 8,
        data: words.as_mut_ptr(),
    }
}

/// Unmaps, tells how many bytes, and fills `words` with the pages that were written.
pub(super) fn unmap_dirty(
    container: &File,
    iova: u64,
    size: u64,
    page_size: u64,
    words: &mut [u64],
) -> Result<u64, Errno> {
    #[repr(C)]
    struct Unmap {
        argsz: u32,
        flags: u32,
        iova: u64,
        size: u64,
        bitmap: vfio_bitmap,
    }
    let mut unmap = Unmap {
        argsz: size_of::<Unmap>(),
        flags: VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
        iova,
        size,
        bitmap: bitmap(page_size, words),
    };
    // SAFETY: structure and bitmap are as long as they say.
    answer(unsafe { ioctl_with_mut_ref(container, IOMMU_UNMAP_DMA, &mut unmap) })?;
    Ok(unmap.size)
}

/// Starts or stops dirty tracking.
pub(super) fn track_dirty(container: &File, flags: u32) -> Result<(), Errno> {
    let header = [8u32, flags];
    // SAFETY: the header is as long as it says; these two flags take no more.
    answer(unsafe { ioctl_with_ref(container, IOMMU_DIRTY_PAGES, &header) }).map(drop)
}

/// Fills `words` with the pages that were written.
pub(super) fn dirty(container: &File, iova: u64, size: u64, page_size: u64, words: &mut [u64]) -> Result<(), Errno> {
    #[repr(C)]
    struct Get {
        argsz: u32,
        flags: u32,
        iova: u64,
        size: u64,
        bitmap: vfio_bitmap,
    }
    let get = Get {
        argsz: size_of::<Get>(),
        flags: VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
        iova,
        size,
        bitmap: bitmap(page_size, words),
    };
    // SAFETY: structure and bitmap are as long as they say.
    answer(unsafe { ioctl_with_ref(container, IOMMU_DIRTY_PAGES, &get) }).map(drop)
}

/// Memory of the process, or registers of a device in it.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// What to unmap: more than the above where alignment took some.
    whole: (NonNull<c_void>, usize),
}

// SAFETY: the mapping belongs to nobody but its owner, and all access goes through volatile slices and raw pointers.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Large pages of x86.
const LARGE: usize = 2 << 20;

fn mmap(len: usize, protection: c_int, flags: c_int, file: c_int, offset: i64) -> io::Result<NonNull<c_void>> {
    // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, file, offset) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(at).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

impl Mapping {
    /// Zeroed memory of `len` bytes: of reserved 2 MiB pages where the length is whole ones and there are any, else on a
    /// multiple of 2 MiB, for the kernel to use large pages if it can.
    pub(super) fn memory(len: usize) -> io::Result<Self> {
        const RW: c_int = libc::PROT_READ | libc::PROT_WRITE;
        const PRIVATE: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let zero = || io::Error::from_raw_os_error(libc::EINVAL);
        if len == 0 {
            return Err(zero());
        }
        if len.is_multiple_of(LARGE)
            && let Ok(at) = mmap(len, RW, PRIVATE | libc::MAP_HUGETLB, -1, 0)
        {
            return Ok(Self {
                base: at.cast(),
                len,
                whole: (at, len),
            });
        }
        let spare = if len >= LARGE { LARGE } else { 0 };
        let total = len.checked_add(spare).ok_or_else(zero)?;
        let at = mmap(total, RW, PRIVATE, -1, 0)?;
        let skip = match spare {
            0 => 0,
            _ => at.addr().get().next_multiple_of(LARGE) - at.addr().get(),
        };
        // SAFETY: what is skipped is at most what was added to the length.
        let base = unsafe { at.cast::<u8>().add(skip) };
        if spare > 0 {
            // SAFETY: advice about memory of this mapping; refusal changes nothing.
            unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        }
        Ok(Self {
            base,
            len,
            whole: (at, total),
        })
    }

    /// `len` bytes of a device's region, `offset` bytes into its file.
    pub(super) fn registers(device: &File, offset: u64, len: usize, writable: bool) -> io::Result<Self> {
        let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let write = if writable { libc::PROT_WRITE } else { 0 };
        let at = mmap(
            len,
            libc::PROT_READ | write,
            libc::MAP_SHARED,
            device.as_raw_fd(),
            offset,
        )?;
        Ok(Self {
            base: at.cast(),
            len,
            whole: (at, len),
        })
    }

    /// Gives `size` bytes from `offset` pages of their own. Linux before 6.2 pins the shared page of zeros for a device that
    /// only reads memory that was never written; what the program writes later goes to another page.
    fn populate(&self, offset: u64, size: u64) {
        let (Ok(offset), Ok(size)) = (usize::try_from(offset), usize::try_from(size)) else {
            return;
        };
        if offset.checked_add(size).is_some_and(|end| end <= self.len) {
            let at = self.base.as_ptr().wrapping_add(offset);
            // SAFETY: the range lies within this mapping, and its contents stay. Kernels without this advice (before 5.14) and
            // ranges that are not whole pages are refused, which changes nothing.
            unsafe { libc::madvise(at.cast(), size, libc::MADV_POPULATE_WRITE) };
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn pointer(&self) -> NonNull<u8> {
        self.base
    }

    /// All of it, for volatile access: devices change it at any time.
    pub(super) fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: the mapping is that long and stays as long as `self`.
        unsafe { VolatileSlice::new(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (at, len) = self.whole;
        // SAFETY: the mapping is ours; slices of it borrow from `self`.
        unsafe { libc::munmap(at.as_ptr(), len) };
    }
}
