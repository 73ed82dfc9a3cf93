//! The machine: everything that needs `unsafe`, and nothing else.
//!
//! The kernel runs on one processor with interrupts off, in an identity mapping of the first 4 GiB.
#![allow(unsafe_code, reason = "ports, device registers, firmware tables and the heap")]

use core::alloc::{GlobalAlloc, Layout};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut, with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_dma::Direction;
use iommu_types::{BusError, HostPhys, PAGE_SIZE, Registers, SourceId, SystemMemory};
use spin::Mutex;
use virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};
use virtio_drivers::transport::Transport;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::memory::{BOUNCE, Pages};
use crate::pci::Function;
use crate::{console, dma};

global_asm!(include_str!("boot.s"), main = sym crate::kernel, options(att_syntax));

/// End of the identity mapping.
const MAPPED: u64 = 1 << 32;

/// Where the kernel and all its memory lie: from 1 MiB on, far less than this.
const KERNEL: core::ops::Range<u64> = 0x10_0000..0x200_0000;

/// Memory of the same size at the first address that takes 29 bits: nothing of the kernel's is there.
const FAR: core::ops::Range<u64> = 1 << 28..(1 << 28) + KERNEL.end;
const FAR_PAGES: usize = (KERNEL.end / PAGE_SIZE) as usize;

/// Bytes of the heap.
const HEAP: usize = 8 << 20;

macro_rules! ports {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads an I/O port.
        pub(crate) fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: reading a port touches no memory of this program; no device here does DMA because of it.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                    options(nomem, nostack, preserves_flags));
            }
            value
        }

        /// Writes an I/O port.
        pub(crate) fn $write(port: u16, value: $type) {
            // SAFETY: the ports written are COM1, PCI configuration, the timer, power management and the exit device.
            // What PCI configuration can make devices do to memory is confined to the DMA buffers of `edu`; a hostile
            // run, which aims elsewhere, says so itself (`hostile`).
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                    options(nostack, preserves_flags));
            }
        }
    };
}

ports!(in8, out8, u8, "al");
ports!(in16, out16, u16, "ax");
ports!(in32, out32, u32, "eax");

/// The processor's time stamp counter.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: `rdtsc` is there on every x86-64 processor and not disabled (CR4.TSD is clear).
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Writes the cache line that holds `at` back to memory.
pub(crate) fn flush_line(at: u64) {
    if at < MAPPED {
        // SAFETY: the address is mapped, and a write-back changes no contents.
        unsafe { asm!("clflush [{}]", in(reg) at, options(nostack, preserves_flags)) };
    }
}

/// Orders cache write-backs before later stores.
pub(crate) fn fence() {
    // SAFETY: a fence has no operands; SSE2 is part of x86-64.
    unsafe { asm!("mfence", options(nostack, preserves_flags)) };
}

/// Stops the processor.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off, so that nothing runs any more; that is what is wanted.
        unsafe { asm!("cli", "hlt", options(nostack)) };
    }
}

/// Bytes that firmware or the loader left in memory; `None` outside of what is mapped.
///
/// For tables that nobody writes any more.
pub(crate) fn firmware_bytes(at: u64, len: usize) -> Option<&'static [u8]> {
    let end = at.checked_add(u64::try_from(len).ok()?)?;
    let used = |range: &core::ops::Range<u64>| at < range.end && end > range.start;
    if at == 0 || end > MAPPED || used(&KERNEL) || used(&FAR) {
        return None;
    }
    let start = with_exposed_provenance::<u8>(usize::try_from(at).ok()?);
    // SAFETY: the range is mapped, any bytes are valid `u8`, no Rust object lives there, and firmware does not run any
    // more.
    Some(unsafe { core::slice::from_raw_parts(start, len) })
}

/// A block of memory-mapped registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    base: usize,
    len: u32,
}

impl Window {
    /// The registers at physical address `base`; `None` outside of what is mapped.
    pub(crate) fn new(base: u64, len: u32) -> Option<Self> {
        let above_memory = base >= 1 << 31;
        let mapped = base.checked_add(len.into())? <= MAPPED;
        (above_memory && mapped && base.is_multiple_of(8)).then_some(Self {
            base: usize::try_from(base).ok()?,
            len,
        })
    }

    /// The address of an aligned register of `size` bytes, if it is in the window.
    fn register(self, offset: u32, size: u32) -> Option<usize> {
        let inside = offset.checked_add(size)? <= self.len && offset.is_multiple_of(size);
        inside.then_some(self.base + usize::try_from(offset).ok()?)
    }
}

impl Window {
    /// Writes an aligned 16-bit register.
    pub(crate) fn write16(&self, offset: u32, value: u16) {
        if let Some(at) = self.register(offset, 2) {
            // SAFETY: aligned, mapped, and above all memory (`Window::new`), so no Rust object is there.
            unsafe { with_exposed_provenance_mut::<u16>(at).write_volatile(value) }
        }
    }
}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty, $size:literal) => {
        fn $read(&self, offset: u32) -> $type {
            let Some(at) = self.register(offset, $size) else {
                return <$type>::MAX;
            };
            // SAFETY: aligned, mapped, and above all memory (`Window::new`), so no Rust object is there.
            unsafe { with_exposed_provenance::<$type>(at).read_volatile() }
        }

        fn $write(&self, offset: u32, value: $type) {
            if let Some(at) = self.register(offset, $size) {
                // SAFETY: as for reading. What the device does to memory because of it is the caller's to mean.
                unsafe { with_exposed_provenance_mut::<$type>(at).write_volatile(value) }
            }
        }
    };
}

impl Registers for Window {
    access!(read32, write32, u32, 4);
    access!(read64, write64, u64, 8);

    fn window_len(&self) -> u32 {
        self.len
    }
}

macro_rules! any_offset {
    ($read:ident, $write:ident, $type:ty, $size:literal, $register:ident, $modifier:literal) => {
        /// Reads at any offset, aligned or not.
        pub(crate) fn $read(self, offset: u32) -> $type {
            let Some(at) = self.place(offset, $size) else {
                return <$type>::MAX;
            };
            let value: $type;
            // SAFETY: mapped, and above all memory (`Window::new`), so no Rust object is there.
            unsafe {
                asm!(concat!("mov {value", $modifier, "}, [{at}]"), value = out($register) value, at = in(reg) at,
                    options(nostack, preserves_flags));
            }
            value
        }

        /// Writes at any offset, aligned or not.
        pub(crate) fn $write(self, offset: u32, value: $type) {
            if let Some(at) = self.place(offset, $size) {
                // SAFETY: as for reading. What the device does to memory because of it is the caller's to mean.
                unsafe {
                    asm!(concat!("mov [{at}], {value", $modifier, "}"), value = in($register) value, at = in(reg) at,
                        options(nostack, preserves_flags));
                }
            }
        }
    };
}

/// Accesses that no driver makes.
impl Window {
    /// Where `size` bytes are, if they are in the window.
    fn place(self, offset: u32, size: u32) -> Option<usize> {
        let inside = offset.checked_add(size)? <= self.len;
        inside.then_some(self.base + usize::try_from(offset).ok()?)
    }

    any_offset!(any_read8, any_write8, u8, 1, reg_byte, "");
    any_offset!(any_read16, any_write16, u16, 2, reg, ":x");
    any_offset!(any_read32, any_write32, u32, 4, reg, ":e");
    any_offset!(any_read64, any_write64, u64, 8, reg, "");
}

/// Memory beside the kernel that devices may be aimed at: nothing of the kernel's is there.
pub(crate) struct Playground;

impl Playground {
    /// Its first byte, and how many there are.
    pub(crate) const FIRST: u64 = 0x400_0000;
    pub(crate) const LEN: u64 = 1 << 20;

    /// Writes the aligned word at an address; outside nothing is written.
    pub(crate) fn write(at: u64, value: u64) {
        let inside = at.wrapping_sub(Self::FIRST) < Self::LEN && at.is_multiple_of(8);
        if let (true, Ok(at)) = (inside, usize::try_from(at)) {
            // SAFETY: aligned, mapped, and beyond `KERNEL`: no Rust object is there.
            unsafe { with_exposed_provenance_mut::<u64>(at).write_volatile(value) }
        }
    }
}

const _: () = assert!(Playground::FIRST >= KERNEL.end && Playground::FIRST + Playground::LEN <= MAPPED);

/// Memory that devices with 28 address lines cannot address: `at(page)` is 256 MiB above that page of the first 32 MiB.
///
/// A machine with less than 288 MiB has none there: what is written does not come back then.
pub(crate) fn far() -> &'static Pages<FAR_PAGES> {
    let at = with_exposed_provenance::<Pages<FAR_PAGES>>(1 << 28);
    // SAFETY: page aligned, mapped, and neither firmware (`firmware_bytes`) nor any other object is there; its words
    // are atomic, and valid with any bits.
    unsafe { &*at }
}

const _: () = assert!(size_of::<Pages<FAR_PAGES>>() as u64 == FAR.end - FAR.start);
const _: () = assert!(Playground::FIRST + Playground::LEN <= FAR.start);

/// Memory for the heap, aligned for anything that is allocated.
#[repr(C, align(4096))]
struct HeapBytes(UnsafeCell<[u8; HEAP]>);

// SAFETY: only handed out in disjoint parts, by an atomic counter.
unsafe impl Sync for HeapBytes {}

static HEAP_BYTES: HeapBytes = HeapBytes(UnsafeCell::new([0; HEAP]));

/// A heap that only grows: the kernel runs for a second.
struct Heap {
    used: AtomicUsize,
}

// SAFETY: every block is a part of `HEAP_BYTES` of its own, aligned as asked for, and never reused.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start: *mut u8 = HEAP_BYTES.0.get().cast();
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            // The heap is page aligned, which is more than any type here asks for.
            let first = used.next_multiple_of(layout.align());
            let Some(end) = first.checked_add(layout.size()).filter(|end| *end <= HEAP) else {
                return null_mut();
            };
            if layout.align() > 4096 {
                return null_mut();
            }
            match self
                .used
                .compare_exchange(used, end, Ordering::Relaxed, Ordering::Relaxed)
            {
                // SAFETY: `first` lies inside the heap.
                Ok(_) => return unsafe { start.add(first) },
                Err(now) => used = now,
            }
        }
    }

    unsafe fn dealloc(&self, _block: *mut u8, _layout: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Heap = Heap {
    used: AtomicUsize::new(0),
};

/// Memory that the DMA interface may copy: the bounce pool, far memory, and what a driver has lent to its device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lent;

/// First byte and length of each buffer that is lent.
static LENT: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());

impl Lent {
    /// The address of `len` bytes, if they are all lent and aligned as asked for.
    fn range(at: HostPhys, len: usize, align: u64) -> Result<usize, BusError> {
        let inside = |first: u64, bytes: u64| {
            let len = u64::try_from(len).unwrap_or(u64::MAX);
            at.raw() >= first && at.raw() - first <= bytes && len <= bytes - (at.raw() - first)
        };
        let pool = inside(BOUNCE.at(0).raw(), BOUNCE.bytes());
        let far = inside(FAR.start, FAR.end - FAR.start);
        let lent = || LENT.lock().iter().any(|&(first, bytes)| inside(first, bytes));
        match usize::try_from(at.raw()) {
            Ok(address) if at.raw().is_multiple_of(align) && (pool || far || lent()) => Ok(address),
            _ => Err(BusError { at }),
        }
    }

    /// An aligned word.
    fn word(at: HostPhys) -> Result<&'static AtomicU64, BusError> {
        let at = with_exposed_provenance_mut(Self::range(at, 8, 8)?);
        // SAFETY: aligned, and lent: nothing else uses it while the DMA interface does.
        Ok(unsafe { AtomicU64::from_ptr(at) })
    }
}

impl SystemMemory for Lent {
    fn read_u64(&self, at: HostPhys) -> Result<u64, BusError> {
        Self::word(at).map(|word| word.load(Ordering::SeqCst))
    }

    fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BusError> {
        Self::word(at).map(|word| word.store(value, Ordering::SeqCst))
    }

    fn write_u32(&self, at: HostPhys, value: u32) -> Result<(), BusError> {
        let at = with_exposed_provenance_mut::<u32>(Self::range(at, 4, 4)?);
        // SAFETY: aligned, and lent: nothing else uses it while the DMA interface does.
        unsafe { at.write_volatile(value) };
        Ok(())
    }

    fn compare_exchange_u64(&self, at: HostPhys, current: u64, new: u64) -> Result<u64, BusError> {
        let word = Self::word(at)?;
        match word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(before) | Err(before) => Ok(before),
        }
    }

    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError> {
        let from = with_exposed_provenance::<u8>(Self::range(at, into.len(), 1)?);
        // SAFETY: the whole range is lent, so that nothing else writes it meanwhile; `into` is another object, since
        // lent memory is nobody's to borrow.
        unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError> {
        let to = with_exposed_provenance_mut::<u8>(Self::range(at, from.len(), 1)?);
        // SAFETY: as for reading.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }
}

/// What `virtio-drivers` asks of its machine: all of it goes through the DMA interface of the adapter.
#[derive(Debug)]
pub(crate) struct Dma;

/// Which way data moves.
const fn direction(direction: BufferDirection) -> Direction {
    match direction {
        BufferDirection::DriverToDevice => Direction::ToDevice,
        BufferDirection::DeviceToDriver => Direction::FromDevice,
        BufferDirection::Both => Direction::Bidirectional,
    }
}

/// Where a buffer lies: the mapping of memory is the identity.
fn lies_at(buffer: NonNull<[u8]>) -> (HostPhys, u64) {
    let first = buffer.cast::<u8>().as_ptr().expose_provenance();
    let number = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
    (HostPhys::new(number(first)), number(buffer.len()))
}

// SAFETY: ring pages are handed out once until they come back, zeroed, and by no other way; registers are where
// `Window::new` finds no memory; a buffer that is shared stays where it is.
unsafe impl Hal for Dma {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let made = dma::allocate(pages).and_then(|(address, at)| {
            let at = with_exposed_provenance_mut(usize::try_from(at.raw()).ok()?);
            Some((address.raw(), NonNull::new(at)?))
        });
        // Address 0 says that there is none.
        made.unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(address: PhysAddr, at: NonNull<u8>, _pages: usize) -> i32 {
        let (at, _) = lies_at(NonNull::slice_from_raw_parts(at, 0));
        if dma::release(address, at) { 0 } else { -1 }
    }

    unsafe fn mmio_phys_to_virt(at: PhysAddr, size: usize) -> NonNull<u8> {
        let window = u32::try_from(size).ok().and_then(|size| Window::new(at & !7, size));
        let registers = window.and_then(|window| {
            let offset = usize::try_from(at & 7).ok()?;
            NonNull::new(with_exposed_provenance_mut(window.base + offset))
        });
        registers.unwrap_or_else(|| {
            console::line(format_args!("FAIL registers at {at:#x} are not mapped"));
            console::exit(false)
        })
    }

    unsafe fn share(buffer: NonNull<[u8]>, way: BufferDirection) -> PhysAddr {
        let (at, len) = lies_at(buffer);
        LENT.lock().push((at.raw(), len));
        dma::share(at, len, direction(way))
    }

    unsafe fn unshare(address: PhysAddr, buffer: NonNull<[u8]>, _way: BufferDirection) {
        dma::unshare(address);
        let (at, len) = lies_at(buffer);
        let mut lent = LENT.lock();
        if let Some(position) = lent.iter().position(|range| *range == (at.raw(), len)) {
            lent.swap_remove(position);
        }
    }
}

/// Configuration space for `virtio-drivers`.
pub(crate) struct Configuration;

fn function(at: DeviceFunction) -> Function {
    let devfn = at.device << 3 | at.function & 7;
    Function(SourceId::from_raw(u16::from_be_bytes([at.bus, devfn])))
}

impl ConfigurationAccess for Configuration {
    fn read_word(&self, at: DeviceFunction, register: u8) -> u32 {
        function(at).read(register)
    }

    fn write_word(&mut self, at: DeviceFunction, register: u8, value: u32) {
        function(at).write(register, value);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// Which way a request to a disk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Read,
    Write,
}

/// A request to a disk, with memory of its own.
pub(crate) struct Request {
    header: BlkReq,
    response: BlkResp,
    data: Vec<u8>,
    /// The data begin here.
    from: usize,
}

/// How a request ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The device answered; the data are those that were read or written.
    Done(virtio_drivers::Result, Vec<u8>),
    /// It did not. The device owns the memory until it is reset; then the data can be looked at there.
    Never(HostPhys),
}

impl Request {
    /// A request whose data are those of `data` from byte `from` on.
    pub(crate) fn new(data: Vec<u8>, from: usize) -> Box<Self> {
        Box::new(Self {
            header: BlkReq::default(),
            response: BlkResp::default(),
            data,
            from,
        })
    }

    /// Sends it, and waits until it is done or `tired`. A disk on which a request did not end is to be reset.
    pub(crate) fn run<T: Transport>(
        mut self: Box<Self>,
        disk: &mut VirtIOBlk<Dma, T>,
        order: Order,
        sector: usize,
        mut tired: impl FnMut() -> bool,
    ) -> virtio_drivers::Result<Ended> {
        let Self {
            header,
            response,
            data,
            from,
        } = &mut *self;
        let data = data.get_mut(*from..).unwrap_or_default();
        let (at, _) = lies_at(NonNull::from(&mut *data));
        let token = match order {
            // SAFETY: the buffers are on the heap, and stay there until the request is done, or for ever.
            Order::Read => unsafe { disk.read_blocks_nb(sector, header, data, response) },
            // SAFETY: the same.
            Order::Write => unsafe { disk.write_blocks_nb(sector, header, data, response) },
        }?;
        while disk.peek_used() != Some(token) {
            if tired() {
                Box::leak(self);
                return Ok(Ended::Never(at));
            }
        }
        let done = match order {
            // SAFETY: the buffers of this request.
            Order::Read => unsafe { disk.complete_read_blocks(token, header, data, response) },
            // SAFETY: the same.
            Order::Write => unsafe { disk.complete_write_blocks(token, header, data, response) },
        };
        Ok(Ended::Done(done, self.data))
    }
}
