//! What the engine needs of memory, with the kind of word as a parameter.

use core::fmt;

use iommu_types::sync::{AtomicU64, Ordering};
use iommu_types::{Coherence, FrameRequest, HostPhys, OutOfFrames, TABLE_ENTRIES, TableFrame, TableMemory};

/// 64 bits that several threads and hardware change, one access at a time.
///
/// It is an [`AtomicU64`] everywhere but under a model checker, which brings its own and explores every order of
/// accesses that the memory model allows.
pub trait Word: fmt::Debug + Send + Sync {
    /// A word that holds `value`.
    fn new(value: u64) -> Self;
    /// Reads it.
    fn load(&self, order: Ordering) -> u64;
    /// Writes it.
    fn store(&self, value: u64, order: Ordering);
    /// Writes `new` if it holds `current`.
    ///
    /// # Errors
    /// What it holds instead.
    fn compare_exchange(&self, current: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64>;
    /// Clears all bits but those in `value`; tells what it held.
    fn fetch_and(&self, value: u64, order: Ordering) -> u64;
    /// Adds `value`, wrapping; tells what it held.
    fn fetch_add(&self, value: u64, order: Ordering) -> u64;
}

impl Word for AtomicU64 {
    fn new(value: u64) -> Self {
        Self::new(value)
    }
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }
    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }
    #[inline]
    fn compare_exchange(&self, current: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        self.compare_exchange(current, new, success, failure)
    }
    #[inline]
    fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_and(value, order)
    }
    #[inline]
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_add(value, order)
    }
}

/// Memory in which tables of words lie: every [`TableMemory`] with [`Coherence`] is one.
///
/// Implement those two, not this one; it exists so that a model checker can put its own words into the tables.
pub trait Tables {
    /// An entry.
    type Word: Word;

    /// As [`TableMemory::allocate`].
    ///
    /// # Errors
    /// [`OutOfFrames`] if no such memory is left.
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames>;

    /// As [`TableMemory::free`].
    fn free(&self, frame: TableFrame);

    /// As [`TableMemory::table`].
    fn entries(&self, at: HostPhys) -> Option<&[Self::Word; TABLE_ENTRIES]>;

    /// As [`Coherence::write_back`].
    fn write_back(&self, at: HostPhys, len: u64);
}

impl<M: TableMemory + Coherence> Tables for M {
    type Word = AtomicU64;

    #[inline]
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        TableMemory::allocate(self, request)
    }
    #[inline]
    fn free(&self, frame: TableFrame) {
        TableMemory::free(self, frame);
    }
    #[inline]
    fn entries(&self, at: HostPhys) -> Option<&[AtomicU64; TABLE_ENTRIES]> {
        self.table(at)
    }
    #[inline]
    fn write_back(&self, at: HostPhys, len: u64) {
        Coherence::write_back(self, at, len);
    }
}
