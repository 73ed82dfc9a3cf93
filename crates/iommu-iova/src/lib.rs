//! Allocators for I/O virtual addresses.
//!
//! # Purpose
//!
//! A device reaches memory through addresses that software chooses. Two buffers must never share one, an address
//! must not be used again before the hardware has forgotten its old meaning, and some addresses must never be
//! chosen at all: page 0, and the window in which a write is an interrupt. This crate chooses them.
//!
//! The right to use a range of addresses is a value, the [`Lease`]. It cannot be copied, and dropping it takes the
//! range out of circulation for good: what was not given back on purpose is not given to somebody else. An unmap
//! takes the lease along and returns it once the invalidation is confirmed (see `iommu_types::AddressSpace`).
//!
//! # Place in the stack
//!
//! Layer 2: `no_std + alloc`, above `iommu-types`, below `iommu-dma`. It knows nothing of page tables or hardware.
//!
//! | type | what it is |
//! |---|---|
//! | [`IovaSpace`] | which addresses may be handed out: an aperture without its reserved ranges |
//! | [`IovaRequest`] | what a caller asks for: pages, alignment, the device's DMA mask |
//! | [`IovaAllocator`] | what an allocator does; every call passes the core's own cache as `&mut` |
//! | [`CachedAllocator`] | the fast one: stock for each core, in front of a tree of gaps |
//! | [`ReferenceAllocator`] | slow, and obviously right: the judge of the other |
//!
//! # Example
//!
//! ```
//! use iommu_iova::{CachedAllocator, IovaAllocator, IovaRequest, IovaSpace};
//! use iommu_types::{AddrRange, Iova};
//!
//! let aperture = AddrRange::new(Iova::ZERO, Iova::new((1 << 39) - 1)).expect("not empty");
//! let iovas = CachedAllocator::new(IovaSpace::new(aperture)?);
//! let mut core = iovas.new_core();
//!
//! // Sixteen pages for a device that drives 32 address lines.
//! let lease = iovas.allocate(&mut core, IovaRequest::pages(16).below(Iova::new(0xffff_ffff)))?;
//! assert!(lease.range().last() <= Iova::new(0xffff_ffff));
//!
//! // … map, use, unmap, wait for the invalidation …
//! iovas.free(&mut core, lease);
//! iovas.retire(core);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it does not do
//!
//! It does not wait for invalidations: whoever frees a lease states that no device can use the range any more.
//! It does not hand out less than a page, and never more than [`MAX_PAGES`] in one lease.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod allocator;
mod class;
mod error;
mod fast;
mod lease;
mod lock;
mod reference;
mod request;
mod space;
mod tree;

pub use allocator::IovaAllocator;
pub use error::{AllocError, ClaimError, SpaceError};
pub use fast::{CacheCounters, CachedAllocator, CoreCache};
pub use lease::Lease;
pub use lock::{Exclusive, LockKind, SpinLock};
pub use reference::ReferenceAllocator;
pub use request::{IovaRequest, MAX_PAGES};
pub use space::{IovaSpace, LOW_LAST, MSI_WINDOW_FIRST, MSI_WINDOW_LAST};
