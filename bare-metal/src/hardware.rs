//! The machine: everything that needs `unsafe`, and nothing else.
//!
//! The kernel runs on one processor with interrupts off, in an identity mapping of the first 4 GiB.
#![allow(unsafe_code, reason = "ports, device registers, firmware tables and the heap")]

use core::alloc::{GlobalAlloc, Layout};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::ptr::{null_mut, with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicUsize, Ordering};

use iommu_types::Registers;

global_asm!(include_str!("boot.s"), main = sym crate::kernel, options(att_syntax));

/// End of the identity mapping.
const MAPPED: u64 = 1 << 32;

/// Where the kernel and all its memory lie: from 1 MiB on, far less than this.
const KERNEL: core::ops::Range<u64> = 0x10_0000..0x200_0000;

/// Bytes of the heap.
const HEAP: usize = 4 << 20;

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
            // SAFETY: the ports written are COM1, PCI configuration, the timer and the exit device. What PCI
            // configuration can make devices do to memory is confined to the DMA buffers of `edu`.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                    options(nostack, preserves_flags));
            }
        }
    };
}

ports!(in8, out8, u8, "al");
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
    if at == 0 || end > MAPPED || (at < KERNEL.end && end > KERNEL.start) {
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
