//! What every allocator of I/O virtual addresses does.

use core::fmt;

use iommu_types::{AddrRange, Iova};

use crate::error::{AllocError, ClaimError};
use crate::lease::Lease;
use crate::request::IovaRequest;
use crate::space::IovaSpace;

/// Hands out ranges of I/O virtual addresses and takes them back.
///
/// Every call passes `core`, a cache that belongs to the calling core (or thread) alone. Allocators that keep
/// one never touch shared memory while it serves them; the others take `()`. Which core frees a lease does not
/// matter.
///
/// What holds for every implementation:
///
/// * a live lease overlaps no other live lease;
/// * it lies inside the space's aperture, outside its reserved ranges and at or below the request's limit, on
///   whatever path it was found;
/// * an address is handed out again only after its lease was passed to [`Self::free`].
pub trait IovaAllocator {
    /// The part of the allocator that a core keeps to itself.
    type Core: fmt::Debug;

    /// A new, empty cache for a core.
    fn new_core(&self) -> Self::Core;

    /// Hands out a range that satisfies `request`.
    ///
    /// # Errors
    /// [`AllocError`]: what was asked for does not exist, or there is no room for it.
    fn allocate(&self, core: &mut Self::Core, request: IovaRequest) -> Result<Lease, AllocError>;

    /// Hands out exactly the pages of `range`, as identity mappings need it.
    ///
    /// # Errors
    /// [`ClaimError`]: some of it is reserved, handed out, or held in a core's cache.
    fn claim(&self, core: &mut Self::Core, range: AddrRange<Iova>) -> Result<Lease, ClaimError>;

    /// Takes a range back. The caller states that no device can reach anything through it any more.
    ///
    /// The lease must come from this allocator. One that is seen not to (outside the aperture, already free) is
    /// dropped, so that its addresses stay out of use.
    fn free(&self, core: &mut Self::Core, lease: Lease);

    /// Gives everything that `core` holds back to all cores; for a core that goes away.
    fn retire(&self, core: Self::Core);

    /// Which addresses may be handed out.
    fn space(&self) -> &IovaSpace;
}

impl<A: IovaAllocator + ?Sized> IovaAllocator for &A {
    type Core = A::Core;

    fn new_core(&self) -> Self::Core {
        (**self).new_core()
    }
    fn allocate(&self, core: &mut Self::Core, request: IovaRequest) -> Result<Lease, AllocError> {
        (**self).allocate(core, request)
    }
    fn claim(&self, core: &mut Self::Core, range: AddrRange<Iova>) -> Result<Lease, ClaimError> {
        (**self).claim(core, range)
    }
    fn free(&self, core: &mut Self::Core, lease: Lease) {
        (**self).free(core, lease);
    }
    fn retire(&self, core: Self::Core) {
        (**self).retire(core);
    }
    fn space(&self) -> &IovaSpace {
        (**self).space()
    }
}
