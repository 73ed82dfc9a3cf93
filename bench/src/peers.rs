//! The peers: what Rust VMMs and kernels use today.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use iommu_types::sync::{AtomicU64, Ordering};
use iommu_types::{BusError, HostPhys, SystemMemory, Table};
use vm_memory::iommu::Iotlb;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, Permissions};
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

/// Keeps the calling thread on one of the processors that the program may use: the same one for the same number. Left
/// out where there is none of that number.
#[cfg(target_os = "linux")]
pub(crate) fn pin(number: usize) {
    use std::sync::OnceLock;
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    let allowed = ALLOWED.get_or_init(|| {
        // SAFETY: a set of processors is plain bits, of which zero is the empty set.
        #[expect(unsafe_code, reason = "the type has no constructor")]
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a set of the length that is given, ours to write.
        #[expect(unsafe_code, reason = "a system call")]
        let done = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
        let all = 0..usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
        let holds = |cpu: &usize| {
            // SAFETY: the number is below the size of the set.
            #[expect(unsafe_code, reason = "a macro of C")]
            let holds = unsafe { libc::CPU_ISSET(*cpu, &set) };
            holds
        };
        all.filter(|cpu| done == 0 && holds(cpu)).collect()
    });
    let Some(&cpu) = allowed.get(number) else { return };
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "the type has no constructor")]
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number was in a set of the same size.
    #[expect(unsafe_code, reason = "a macro of C")]
    let () = unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the pointer is to a set of the length that is given.
    #[expect(unsafe_code, reason = "a system call")]
    let _stays_where_it_is = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
}

/// Elsewhere threads run where they are put.
#[cfg(not(target_os = "linux"))]
pub(crate) fn pin(_number: usize) {}

/// The pages of guest memory as tables are seen: words that the processor and a unit share.
pub(crate) struct GuestTables {
    first: std::ptr::NonNull<Table>,
    pages: usize,
    /// Keeps the mapping.
    _memory: Arc<GuestMemoryMmap>,
}

impl GuestTables {
    /// The first `len` bytes of `memory`, which lie in one region.
    pub(crate) fn new(memory: &Arc<GuestMemoryMmap>, len: usize) -> Option<Self> {
        let slice = memory.get_slice(GuestAddress(0), len).ok()?;
        Some(Self {
            first: std::ptr::NonNull::new(slice.ptr_guard_mut().as_ptr())?.cast(),
            pages: len / size_of::<Table>(),
            _memory: Arc::clone(memory),
        })
    }

    /// The page at `at`.
    #[inline]
    pub(crate) fn get(&self, at: HostPhys) -> Option<&Table> {
        let page = usize::try_from(at.raw() / PAGE).ok()?;
        if at.page_offset() != 0 || page >= self.pages {
            return None;
        }
        // SAFETY: the page is one of those in the mapping.
        #[expect(unsafe_code, reason = "the memory of a guest is a raw mapping")]
        let table = unsafe { self.first.add(page) };
        // SAFETY: the mapping lives as long as `self`, the page begins on a page boundary, and it is only reached as
        // atomic words, here and by the unit's walker; device data never lies in it.
        #[expect(unsafe_code, reason = "the memory of a guest is a raw mapping")]
        let table = unsafe { table.as_ref() };
        Some(table)
    }
}

/// A ring of slots between one thread that fills it and one that empties it.
pub(crate) struct Channel<T> {
    slots: Box<[UnsafeCell<Option<T>>]>,
    /// Slots filled so far, and emptied so far.
    filled: AtomicU64,
    emptied: AtomicU64,
}

// SAFETY: a slot is written by the one sender before `filled` passes it and read by the one receiver after, and the other
// way round with `emptied`; so no slot is reached by two threads at once.
#[expect(unsafe_code, reason = "a ring without locks, as the reference has it")]
unsafe impl<T: Send> Sync for Channel<T> {}

/// The end of a [`Channel`] that fills.
pub(crate) struct Sender<'a, T>(&'a Channel<T>);
/// The end of a [`Channel`] that empties.
pub(crate) struct Receiver<'a, T>(&'a Channel<T>);

impl<T> Channel<T> {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            slots: (0..slots).map(|_| UnsafeCell::new(None)).collect(),
            filled: AtomicU64::new(0),
            emptied: AtomicU64::new(0),
        }
    }

    /// Its two ends: there are no others, since the ring is borrowed for as long as they live.
    pub(crate) const fn ends(&mut self) -> (Sender<'_, T>, Receiver<'_, T>) {
        (Sender(self), Receiver(self))
    }

    fn slot(&self, number: u64) -> Option<*mut Option<T>> {
        let at = usize::try_from(number).ok()?.checked_rem(self.slots.len())?;
        self.slots.get(at).map(UnsafeCell::get)
    }
}

/// Lets other threads of the processor run now and then while one waits.
fn wait(turns: &mut u32) {
    *turns += 1;
    if turns.is_multiple_of(4096) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

impl<T> Sender<'_, T> {
    /// Sends a value; waits for a free slot.
    #[inline]
    pub(crate) fn send(&mut self, value: T) {
        let number = self.0.filled.load(Ordering::Relaxed);
        let mut turns = 0;
        while number - self.0.emptied.load(Ordering::Acquire) >= self.0.slots.len() as u64 {
            wait(&mut turns);
        }
        if let Some(slot) = self.0.slot(number) {
            // SAFETY: the slot is empty, and the receiver does not look at it before `filled` passes it.
            #[expect(unsafe_code, reason = "see the type")]
            unsafe {
                *slot = Some(value);
            }
        }
        self.0.filled.store(number + 1, Ordering::Release);
    }
}

impl<T> Receiver<'_, T> {
    /// Waits for a value.
    #[inline]
    pub(crate) fn receive(&mut self) -> Option<T> {
        let number = self.0.emptied.load(Ordering::Relaxed);
        let mut turns = 0;
        while self.0.filled.load(Ordering::Acquire) == number {
            wait(&mut turns);
        }
        let slot = self.0.slot(number)?;
        // SAFETY: the slot is filled, and the sender does not touch it before `emptied` passes it.
        #[expect(unsafe_code, reason = "see the type")]
        let value = unsafe { (*slot).take() };
        self.0.emptied.store(number + 1, Ordering::Release);
        value
    }
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
