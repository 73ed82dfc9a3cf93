//! The peers: what Rust VMMs and kernels use today.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::sync::RwLock;

use iommu_types::sync::AtomicU64;
use iommu_types::{BusError, HostPhys, SystemMemory};
use vm_memory::iommu::Iotlb;
use vm_memory::{GuestAddress, Permissions};
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

/// Bytes in a page.
pub(crate) const PAGE: u64 = 4096;

/// `vm-memory`'s IOTLB: what rust-vmm devices look addresses up in.
pub(crate) struct VmMemoryIotlb(Iotlb);

impl VmMemoryIotlb {
    /// `pages` mappings, no two of which can be merged.
    pub(crate) fn new(pages: u64, host_page: impl Fn(u64) -> u64) -> Self {
        let mut iotlb = Iotlb::new();
        for page in 0..pages {
            let (iova, host) = (GuestAddress(page * PAGE), GuestAddress(host_page(page) * PAGE));
            if iotlb.set_mapping(iova, host, 4096, Permissions::ReadWrite).is_err() {
                eprintln!("vm-memory refused a mapping: its rows mean nothing");
            }
        }
        Self(iotlb)
    }

    /// The host address of `iova`, or 0.
    pub(crate) fn lookup(&self, iova: u64) -> u64 {
        Iotlb::lookup(&self.0, GuestAddress(iova), 64, Permissions::Read)
            .ok()
            .and_then(|mut ranges| ranges.next())
            .map_or(0, |range| range.base.0)
    }
}

/// One locked ordered map for each address space: what virtio-iommu devices of VMMs do.
pub(crate) struct LockedMap(RwLock<BTreeMap<u64, (u64, bool)>>);

impl LockedMap {
    /// `pages` mappings.
    pub(crate) fn new(pages: u64, host_page: impl Fn(u64) -> u64) -> Self {
        Self(RwLock::new(
            (0..pages)
                .map(|page| (page * PAGE, (host_page(page) * PAGE, true)))
                .collect(),
        ))
    }

    /// The host address of `iova`, or 0.
    pub(crate) fn lookup(&self, iova: u64) -> u64 {
        let Ok(map) = self.0.read() else { return 0 };
        match map.range(..=iova).next_back() {
            Some((&first, &(host, true))) if iova - first < PAGE => host + (iova - first),
            _ => 0,
        }
    }

    /// Maps one page and unmaps it again.
    pub(crate) fn map_unmap(&self, iova: u64, host: u64) {
        if let Ok(mut map) = self.0.write() {
            map.insert(iova, (host, true));
        }
        if let Ok(mut map) = self.0.write() {
            map.remove(&iova);
        }
    }
}

/// The page tables of the `x86_64` crate, over an arena of our own.
pub(crate) struct X86Tables {
    tables: OffsetPageTable<'static>,
    frames: Frames,
}

struct Frames;

// SAFETY: each frame comes from a fresh page-aligned allocation that is never freed, so it is unused and unique.
#[expect(unsafe_code, reason = "the trait of the peer is unsafe to implement")]
unsafe impl FrameAllocator<Size4KiB> for Frames {
    fn allocate_frame(&mut self) -> Option<PhysFrame<Size4KiB>> {
        let table: &'static mut PageTable = Box::leak(Box::new(PageTable::new()));
        // "Physical" addresses are our own virtual ones: the offset of the mapping is 0.
        PhysFrame::from_start_address(PhysAddr::new(std::ptr::from_mut(table).expose_provenance() as u64)).ok()
    }
}

impl X86Tables {
    /// Empty tables.
    pub(crate) fn new() -> Self {
        let root: &'static mut PageTable = Box::leak(Box::new(PageTable::new()));
        // SAFETY: every "physical" address in these tables is one of a leaked `PageTable` at that same virtual
        // address, because `Frames` makes them so.
        #[expect(unsafe_code, reason = "the constructor of the peer is unsafe")]
        let tables = unsafe { OffsetPageTable::new(root, VirtAddr::new(0)) };
        Self { tables, frames: Frames }
    }

    /// Maps one page and unmaps it again.
    pub(crate) fn map_unmap(&mut self, iova: u64, host: u64) {
        self.map(iova, host);
        self.unmap(iova);
    }

    /// Maps one page.
    #[inline]
    pub(crate) fn map(&mut self, iova: u64, host: u64) {
        let page: Page<Size4KiB> = Page::containing_address(VirtAddr::new(iova));
        let frame = PhysFrame::containing_address(PhysAddr::new(host));
        let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
        // SAFETY: the tables are never loaded by a processor, so no mapping can alias memory.
        #[expect(unsafe_code, reason = "mapping is unsafe in the peer")]
        let mapped = unsafe { self.tables.map_to(page, frame, flags, &mut self.frames) };
        if let Ok(flush) = mapped {
            flush.ignore();
        }
    }

    /// Unmaps one page.
    #[inline]
    pub(crate) fn unmap(&mut self, iova: u64) {
        let page: Page<Size4KiB> = Page::containing_address(VirtAddr::new(iova));
        if let Ok((_, flush)) = self.tables.unmap(page) {
            flush.ignore();
        }
    }
}

/// Writes the cache lines of some entries to memory, and waits for that. Tells how many they were.
#[cfg(target_arch = "x86_64")]
pub(crate) fn flush_lines(entries: &[AtomicU64]) -> u64 {
    use std::arch::x86_64::{_mm_clflush, _mm_sfence};
    let mut lines = 0;
    let mut last = usize::MAX;
    for entry in entries {
        let line = std::ptr::from_ref(entry).addr() / 64;
        if line != last {
            // SAFETY: the address is that of a live entry; flushing a line changes nothing that software can read.
            #[expect(unsafe_code, reason = "there is no safe way to name an instruction")]
            unsafe {
                _mm_clflush(std::ptr::from_ref(entry).cast());
            }
            (last, lines) = (line, lines + 1);
        }
    }
    // SAFETY: a fence has no operands.
    #[expect(unsafe_code, reason = "there is no safe way to name an instruction")]
    unsafe {
        _mm_sfence();
    }
    lines
}

/// Elsewhere nothing is flushed: both sides of a comparison leave it out.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn flush_lines(entries: &[AtomicU64]) -> u64 {
    entries.len().div_ceil(8) as u64
}

/// Bytes that several threads reach at once, as memory is: host address 0 is its first byte.
pub(crate) struct FlatMemory(Box<[UnsafeCell<u8>]>);

// SAFETY: threads of a benchmark keep to bytes of their own, as drivers keep to their buffers, and the benchmark judges
// bytes only after all threads are done.
#[expect(unsafe_code, reason = "safe shared bytes would cost more than the copies")]
unsafe impl Sync for FlatMemory {}

impl FlatMemory {
    pub(crate) fn new(len: usize) -> Self {
        Self(
            (0..len)
                .map(|byte| UnsafeCell::new(u8::try_from(byte % 251).unwrap_or(0)))
                .collect(),
        )
    }

    /// The bytes, if all of them are memory.
    fn bytes(&self, at: HostPhys, len: u64) -> Result<*mut u8, BusError> {
        let first = usize::try_from(at.raw()).map_err(|_| BusError { at })?;
        let end = usize::try_from(len).ok().and_then(|len| first.checked_add(len));
        let bytes = end.and_then(|end| self.0.get(first..end)).ok_or(BusError { at })?;
        Ok(UnsafeCell::raw_get(bytes.as_ptr()))
    }
}

impl SystemMemory for FlatMemory {
    fn read_u64(&self, at: HostPhys) -> Result<u64, BusError> {
        let mut word = [0; 8];
        self.read(at, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }
    fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BusError> {
        self.write(at, &value.to_le_bytes())
    }
    fn write_u32(&self, at: HostPhys, value: u32) -> Result<(), BusError> {
        self.write(at, &value.to_le_bytes())
    }
    fn compare_exchange_u64(&self, at: HostPhys, _current: u64, _new: u64) -> Result<u64, BusError> {
        // Nothing that is timed here exchanges words.
        Err(BusError { at })
    }
    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError> {
        let from = self.bytes(at, into.len() as u64)?;
        // SAFETY: as many bytes as `into` has are ours to read, and no reference to them exists.
        #[expect(unsafe_code, reason = "see the type")]
        unsafe {
            from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len());
        }
        Ok(())
    }
    fn write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError> {
        let to = self.bytes(at, from.len() as u64)?;
        // SAFETY: as many bytes as `from` has are ours to write, and no reference to them exists.
        #[expect(unsafe_code, reason = "see the type")]
        unsafe {
            to.copy_from_nonoverlapping(from.as_ptr(), from.len());
        }
        Ok(())
    }
    #[inline]
    fn copy(&self, from: HostPhys, to: HostPhys, len: u64) -> Result<(), BusError> {
        let (source, target) = (self.bytes(from, len)?, self.bytes(to, len)?);
        let len = usize::try_from(len).map_err(|_| BusError { at: from })?;
        // SAFETY: both runs are ours, and a copy that allows overlap needs no more.
        #[expect(unsafe_code, reason = "see the type")]
        unsafe {
            source.copy_to(target, len);
        }
        Ok(())
    }
}
