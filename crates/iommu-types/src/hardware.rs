//! How a driver reaches hardware: registers, table memory, caches and time.
//!
//! The traits are small and statically dispatched, so that one driver runs on a model in a unit test, on an
//! emulator as a bare-metal kernel, and on a real machine.

use core::fmt;

use crate::address::HostPhys;
use crate::domain::NodeId;
use crate::page::PAGE_SIZE;
use crate::sync::AtomicU64;

/// Entries in one 4 KiB translation table.
pub const TABLE_ENTRIES: usize = 512;

/// A translation table, queue page or context page as software and hardware share it.
pub type Table = [AtomicU64; TABLE_ENTRIES];

/// A block of memory-mapped registers.
///
/// Accesses are uncached and take effect in program order. A window that no longer answers reads all-ones;
/// callers probe for that.
pub trait Registers {
    /// Reads the aligned 32-bit register at byte `offset`.
    fn read32(&self, offset: u32) -> u32;
    /// Reads the aligned 64-bit register at byte `offset`.
    fn read64(&self, offset: u32) -> u64;
    /// Writes the aligned 32-bit register at byte `offset`.
    fn write32(&self, offset: u32, value: u32);
    /// Writes the aligned 64-bit register at byte `offset`.
    fn write64(&self, offset: u32, value: u64);
    /// Length of the window in bytes. Register blocks that a capability places beyond it cannot be used.
    fn window_len(&self) -> u32;
}

/// What a driver asks of [`TableMemory::allocate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRequest {
    /// Base-2 logarithm of the number of 4 KiB pages.
    pub order: u8,
    /// The NUMA node to prefer (from the RHSA structure of the unit), if one is known.
    pub node: Option<NodeId>,
    /// The last address that the hardware can reach.
    pub last: HostPhys,
}

impl FrameRequest {
    /// One page anywhere below `last`, on `node` if possible.
    #[must_use]
    pub const fn page(node: Option<NodeId>, last: HostPhys) -> Self {
        Self { order: 0, node, last }
    }
}

/// The memory for a table could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfFrames(pub FrameRequest);

impl fmt::Display for OutOfFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no {} KiB of table memory left at or below {}",
            (PAGE_SIZE / 1024) << self.0.order,
            self.0.last
        )
    }
}

impl core::error::Error for OutOfFrames {}

/// Ownership of table memory that hardware may be walking.
///
/// It is neither `Copy` nor freed on drop: memory that hardware might still read is leaked rather than
/// reused. Only [`TableMemory::free`] gives it back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropping a table frame leaks it; give it back with TableMemory::free once hardware cannot reach it"]
pub struct TableFrame {
    base: HostPhys,
    order: u8,
}

impl TableFrame {
    /// For implementors of [`TableMemory`]: the frame of `2^order` pages at `base`, just handed out.
    pub const fn from_allocator(base: HostPhys, order: u8) -> Self {
        Self { base, order }
    }

    /// The first address, naturally aligned to the frame's size.
    #[must_use]
    pub const fn base(&self) -> HostPhys {
        self.base
    }

    /// Base-2 logarithm of the number of 4 KiB pages.
    #[must_use]
    pub const fn order(&self) -> u8 {
        self.order
    }
}

/// Memory for structures that hardware walks.
pub trait TableMemory {
    /// Hands out `2^order` zeroed, naturally aligned, contiguous pages.
    ///
    /// # Errors
    /// [`OutOfFrames`] if no such memory is left.
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames>;

    /// Takes a frame back. The caller states that no hardware can reach it any more.
    fn free(&self, frame: TableFrame);

    /// The 4 KiB page at `at` as software sees it; `None` if `at` is not page aligned or not table memory.
    ///
    /// Addresses found *in* tables are looked up here too, so an implementation must not trust them.
    fn table(&self, at: HostPhys) -> Option<&Table>;
}

/// Makes stores visible to hardware that does not snoop the processor's caches.
pub trait Coherence {
    /// Writes the cache lines of `len` bytes at `at` back to memory and orders that before later stores.
    fn write_back(&self, at: HostPhys, len: u64);
}

/// Time, for waits that must end.
pub trait Clock {
    /// Nanoseconds since some fixed moment; never goes back.
    fn now_ns(&self) -> u64;
    /// Called in every turn of a polling loop. On a model this lets the hardware take a step.
    fn relax(&self);
}

impl<T: TableMemory + ?Sized> TableMemory for &T {
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        (**self).allocate(request)
    }
    fn free(&self, frame: TableFrame) {
        (**self).free(frame);
    }
    fn table(&self, at: HostPhys) -> Option<&Table> {
        (**self).table(at)
    }
}

impl<T: Coherence + ?Sized> Coherence for &T {
    fn write_back(&self, at: HostPhys, len: u64) {
        (**self).write_back(at, len);
    }
}

impl<T: Clock + ?Sized> Clock for &T {
    fn now_ns(&self) -> u64 {
        (**self).now_ns()
    }
    fn relax(&self) {
        (**self).relax();
    }
}
