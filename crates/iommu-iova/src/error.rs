//! Why addresses were not handed out.

use iommu_types::{AddrRange, Iova};
use thiserror::Error;

use crate::request::MAX_PAGES;

/// An aperture nothing can be handed out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SpaceError {
    /// No whole page is left between the ends, page 0 and the MSI window.
    #[error("no page of {aperture} can be handed out (page 0 and the MSI window never are); give a wider aperture")]
    Empty {
        /// What was given.
        aperture: AddrRange<Iova>,
    },
}

/// A request that was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AllocError {
    /// Zero pages.
    #[error("a range of zero pages has no address; ask for at least one page")]
    ZeroPages,
    /// More than one lease can hold.
    #[error("{pages} pages are more than one lease can hold ({MAX_PAGES}); split the request")]
    TooLarge {
        /// What was asked for, in 4 KiB pages.
        pages: u64,
    },
    /// No free range is large and low enough.
    #[error(
        "no free range of {pages} pages (aligned to {align}) at or below {last}; unmap what is not needed, or use a \
         device with a wider DMA mask"
    )]
    Exhausted {
        /// What was asked for, in 4 KiB pages.
        pages: u64,
        /// The alignment asked for, in 4 KiB pages.
        align: u64,
        /// The last address the device can use.
        last: Iova,
    },
    /// The allocator's own bookkeeping found no memory.
    #[error("no memory to note down another range; free some memory and try again")]
    NoMemory,
    /// The cache passed belongs to another allocator.
    #[error("the core cache passed was made by another allocator; pass the one this allocator's new_core returned")]
    ForeignCore,
}

/// A fixed range that was not handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ClaimError {
    /// Some of the range is not free.
    #[error("{range} is not free: part of it is outside the aperture, reserved, handed out, or cached by a core")]
    Taken {
        /// What was asked for, widened to whole pages.
        range: AddrRange<Iova>,
    },
    /// More than one lease can hold.
    #[error("{range} is longer than one lease can hold ({MAX_PAGES} pages); split it")]
    TooLarge {
        /// What was asked for, widened to whole pages.
        range: AddrRange<Iova>,
    },
    /// The allocator's own bookkeeping found no memory.
    #[error("no memory to note down another range; free some memory and try again")]
    NoMemory,
    /// The cache passed belongs to another allocator.
    #[error("the core cache passed was made by another allocator; pass the one this allocator's new_core returned")]
    ForeignCore,
}
