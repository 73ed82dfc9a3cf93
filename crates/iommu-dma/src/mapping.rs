//! What a caller holds while a device may use memory.

use alloc::vec::Vec;
use core::fmt;

use iommu_types::{BusError, HostPhys};
use thiserror::Error;

use crate::backend::{Backend, When};
use crate::bounce::Slots;
use crate::device::{Direction, DmaSegment};
use crate::layout::SegmentList;

/// A part of a buffer that is copied through a bounce buffer.
#[derive(Debug)]
pub(crate) struct Bounce {
    pub(crate) slots: Slots,
    /// Where the copy is.
    pub(crate) copy: HostPhys,
    /// Where the caller's bytes are.
    pub(crate) original: HostPhys,
    pub(crate) len: u64,
    /// Bytes of the whole mapping before this part.
    pub(crate) at: u64,
}

/// Memory that a device may use, until [`crate::DmaApi::unmap`].
///
/// Dropping it leaves the memory reachable for ever, and its addresses out of use.
#[must_use = "a mapping that is dropped stays reachable for the device; unmap it"]
pub struct Mapping<B: Backend> {
    pub(crate) segments: SegmentList,
    pub(crate) direction: Direction,
    pub(crate) held: Option<B::Held>,
    pub(crate) bounces: Vec<Bounce>,
    pub(crate) len: u64,
    pub(crate) when: When,
}

impl<B: Backend> Mapping<B> {
    /// What goes into the device's descriptors, in the order of the buffers.
    #[must_use]
    pub const fn segments(&self) -> &[DmaSegment] {
        self.segments.as_slice()
    }

    /// All of it as one segment, if it is one.
    #[must_use]
    pub const fn segment(&self) -> Option<DmaSegment> {
        match self.segments.as_slice() {
            [only] => Some(*only),
            _ => None,
        }
    }

    /// Bytes of all buffers together.
    #[must_use]
    pub const fn byte_len(&self) -> u64 {
        self.len
    }

    /// Which way data moves.
    #[must_use]
    pub const fn direction(&self) -> Direction {
        self.direction
    }

    /// Bytes that are copied rather than reached by the device.
    #[must_use]
    pub fn bounced_bytes(&self) -> u64 {
        self.bounces.iter().map(|bounce| bounce.len).sum()
    }
}

impl<B: Backend> fmt::Debug for Mapping<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("segments", &self.segments.as_slice())
            .field("direction", &self.direction)
            .field("translated", &self.held.is_some())
            .field("bounces", &self.bounces)
            .finish_non_exhaustive()
    }
}

/// An unmap that is not finished: the device may still reach the memory, so it must not be used for anything else.
#[must_use = "the device may still reach the memory; try again with DmaApi::retry"]
pub struct Unconfirmed<B: Backend> {
    pub(crate) error: B::Error,
    pub(crate) stuck: B::Stuck,
    pub(crate) bounces: Vec<Bounce>,
    pub(crate) direction: Direction,
}

impl<B: Backend> Unconfirmed<B> {
    /// Why the hardware did not confirm.
    pub const fn error(&self) -> &B::Error {
        &self.error
    }
}

impl<B: Backend> fmt::Debug for Unconfirmed<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unconfirmed")
            .field("error", &self.error)
            .field("bounces", &self.bounces)
            .finish_non_exhaustive()
    }
}

/// Why an unmap did not end as it should.
#[derive(Error)]
pub enum UnmapError<B: Backend> {
    /// The hardware did not confirm the invalidation.
    #[error("the unmap is not confirmed, the device may still reach the memory ({}); retry it", .0.error)]
    Unconfirmed(Unconfirmed<B>),
    /// The memory is unmapped, but what the device wrote could not be copied back.
    #[error("unmapped, but data from the device was lost on its way out of a bounce buffer: {0}")]
    Lost(BusError),
}

impl<B: Backend> fmt::Debug for UnmapError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unconfirmed(unconfirmed) => f.debug_tuple("Unconfirmed").field(unconfirmed).finish(),
            Self::Lost(error) => f.debug_tuple("Lost").field(error).finish(),
        }
    }
}
