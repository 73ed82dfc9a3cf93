//! What an unmap leaves to be done.

use alloc::vec::Vec;

use iommu_types::{AddrRange, HostPhys, Iova, Perms, TableFrame};

/// Entries were removed, and hardware may still have them cached.
///
/// The owner invalidates [`Self::range`], waits for the confirmation, and only then gives the table pages back
/// ([`Self::into_frames`]) and lets anybody use the addresses again. Dropping this leaks the pages, which is safe.
///
/// Dirty bits of what was unmapped are gone; [`crate::PageTable::read_dirty`] comes first where they matter.
#[derive(Debug)]
#[must_use = "hardware may still use what was unmapped: invalidate its range, wait, then free its frames"]
pub struct Unmapped {
    pub(crate) range: AddrRange<Iova>,
    pub(crate) pages: u64,
    pub(crate) freed: Vec<TableFrame>,
    pub(crate) remainder: Option<Remainder>,
}

impl Unmapped {
    /// Entries of a leaf table, which stays.
    #[inline]
    pub(crate) const fn of_leaves(range: AddrRange<Iova>, pages: u64) -> Self {
        Self {
            range,
            pages,
            freed: Vec::new(),
            remainder: None,
        }
    }

    /// The addresses to invalidate: those that were asked for, widened to the superpages they cut.
    #[must_use]
    pub const fn range(&self) -> AddrRange<Iova> {
        self.range
    }

    /// How many 4 KiB pages lost their mapping, those of [`Self::remainder`] included.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether table pages were unlinked, so that cached table pointers must be invalidated too (no IH hint).
    /// VT-d §6.5.2.3 (IOTLB Invalidate).
    #[must_use]
    pub const fn structure_changed(&self) -> bool {
        !self.freed.is_empty()
    }

    /// The table pages that wait for the flush.
    pub fn frames(&self) -> &[TableFrame] {
        &self.freed
    }

    /// What belongs to the cut superpages but not to the range; to be mapped again after the flush, with
    /// [`crate::PageTable::restore`].
    #[must_use]
    pub const fn remainder(&self) -> Option<&Remainder> {
        self.remainder.as_ref()
    }

    /// Takes the remainder out.
    pub const fn take_remainder(&mut self) -> Option<Remainder> {
        self.remainder.take()
    }

    /// The table pages. The caller states that the invalidation of the range is confirmed.
    ///
    /// A remainder that was not taken is lost, and its table pages with it.
    #[must_use]
    pub fn into_frames(self) -> Vec<TableFrame> {
        self.freed
    }
}

/// A mapping that was taken out only because a superpage was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) iova: Iova,
    pub(crate) phys: HostPhys,
    pub(crate) len: u64,
    pub(crate) perms: Perms,
}

/// The parts of cut superpages that stay mapped, with the table pages to map them.
///
/// A page must not change its size in place: the superpage is removed, the removal is invalidated, and then the
/// smaller pages are written. VT-d §6.5.3.3 (Guidance to Software for Invalidations). Devices fault on these
/// addresses in between.
#[derive(Debug)]
#[must_use = "these addresses stay unmapped until PageTable::restore is called, after the flush"]
pub struct Remainder {
    /// At most one below the range and one above it.
    pub(crate) pieces: Vec<Piece>,
    pub(crate) frames: Vec<TableFrame>,
}

impl Remainder {
    /// The addresses that are to be mapped again.
    pub fn ranges(&self) -> impl Iterator<Item = AddrRange<Iova>> + '_ {
        let pieces = self.pieces.iter();
        pieces.filter_map(|piece| AddrRange::from_base_len(piece.iova, piece.len))
    }
}
