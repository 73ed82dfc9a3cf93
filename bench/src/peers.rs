//! The peers: what Rust VMMs and kernels use today.

use std::collections::BTreeMap;
use std::sync::RwLock;

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
        let page: Page<Size4KiB> = Page::containing_address(VirtAddr::new(iova));
        let frame = PhysFrame::containing_address(PhysAddr::new(host));
        let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
        // SAFETY: the tables are never loaded by a processor, so no mapping can alias memory.
        #[expect(unsafe_code, reason = "mapping is unsafe in the peer")]
        let mapped = unsafe { self.tables.map_to(page, frame, flags, &mut self.frames) };
        if let Ok(flush) = mapped {
            flush.ignore();
        }
        if let Ok((_, flush)) = self.tables.unmap(page) {
            flush.ignore();
        }
    }
}
