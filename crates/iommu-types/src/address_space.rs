//! The one thing the DMA API needs of an IOMMU: an address space that maps and unmaps.

use crate::access::Perms;
use crate::address::{HostPhys, Iova};
use crate::range::AddrRange;

/// An unmap that was refused before anything changed; the lease comes back.
#[derive(Debug)]
pub struct UnmapRefused<E, L> {
    /// Why.
    pub error: E,
    /// What the caller had handed in.
    pub lease: L,
}

/// A run of whole pages at a place in a block of I/O virtual addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes from the start of the block; a multiple of the page size.
    pub offset: u64,
    /// The first page.
    pub phys: HostPhys,
    /// Length in bytes; a multiple of the page size.
    pub len: u64,
}

/// An I/O virtual address space that devices are attached to.
///
/// [`Self::unmap`] takes the caller's *lease* on the addresses (whatever stands for the right to use them) and
/// returns it only through [`Self::flush`], once the hardware has confirmed that no device can use the old
/// translation. A pending unmap that is dropped keeps addresses and table pages out of circulation for ever:
/// a leak is safe, early reuse is not.
pub trait AddressSpace {
    /// Why mapping or unmapping failed.
    type Error: core::error::Error;
    /// An unmap whose invalidation is not yet confirmed; owns the lease and the freed table pages.
    type Pending<L>;

    /// The addresses this space can translate.
    fn aperture(&self) -> AddrRange<Iova>;

    /// Maps `len` bytes from `iova` to `phys`; all three are multiples of 4 KiB.
    ///
    /// On return devices can use the mapping.
    ///
    /// # Errors
    /// Overlap with an existing mapping, misalignment, addresses out of reach, memory for tables; nothing is
    /// mapped then, but see [`Self::may_be_reachable`].
    fn map(&self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Result<(), Self::Error>;

    /// Maps every piece of a block that begins at `base`.
    ///
    /// Implementations that can do more for a list than for its pieces one by one override this: walk the tables
    /// once, tell the hardware once.
    ///
    /// # Errors
    /// As [`Self::map`], with the number of pieces at the front that are mapped nevertheless; the others are not.
    fn map_pieces(&self, base: Iova, pieces: &[Piece], perms: Perms) -> Result<(), (usize, Self::Error)> {
        for (done, piece) in pieces.iter().enumerate() {
            // A block does not pass the end of the space; an address that would is refused by `map` as misaligned.
            let iova = base.checked_add(piece.offset).unwrap_or(Iova::MAX);
            self.map(iova, piece.phys, piece.len, perms)
                .map_err(|error| (done, error))?;
        }
        Ok(())
    }

    /// Whether devices may use what [`Self::map`] or [`Self::map_pieces`] was to map although it failed with `error`: the
    /// hardware did not confirm that it noticed, or that it forgot. Addresses and memory must stay out of use then.
    ///
    /// Spaces whose mappings need no confirmation leave this as it is.
    fn may_be_reachable(error: &Self::Error) -> bool {
        let _ = error;
        false
    }

    /// Removes the mappings in `range` from the tables. Devices may use them until [`Self::flush`] succeeds.
    ///
    /// # Errors
    /// [`UnmapRefused`] if the range does not consist of whole mappings; nothing changed then.
    fn unmap<L>(&self, range: AddrRange<Iova>, lease: L) -> Result<Self::Pending<L>, UnmapRefused<Self::Error, L>>;

    /// Waits until no device can use what was unmapped, frees table pages, returns the lease.
    ///
    /// # Errors
    /// The hardware did not confirm: the pending unmap comes back inside the error and the memory must be
    /// treated as reachable by devices.
    fn flush<L>(&self, pending: Self::Pending<L>) -> Result<L, (Self::Error, Self::Pending<L>)>;

    /// [`Self::flush`] for many at once. What is confirmed gives its lease to `confirmed`, what is not goes to `kept`.
    ///
    /// Implementations that can cover several ranges with one invalidation override this; here each waits for
    /// its own.
    ///
    /// # Errors
    /// The first error; everything was tried.
    fn flush_all<L>(
        &self,
        pending: impl Iterator<Item = Self::Pending<L>>,
        mut confirmed: impl FnMut(L),
        mut kept: impl FnMut(Self::Pending<L>),
    ) -> Result<(), Self::Error> {
        let mut done = Ok(());
        for pending in pending {
            match self.flush(pending) {
                Ok(lease) => confirmed(lease),
                Err((error, pending)) => {
                    kept(pending);
                    done = done.and(Err(error));
                }
            }
        }
        done
    }
}
