//! What the engine needs of memory, with the kind of word as a parameter.

use iommu_types::sync::AtomicU64;
pub use iommu_types::sync::Word;
use iommu_types::{Coherence, FrameRequest, HostPhys, OutOfFrames, TABLE_ENTRIES, TableFrame, TableMemory};

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
