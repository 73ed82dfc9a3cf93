//! An IOMMU with an address space for the device.

use alloc::vec::Vec;
use core::fmt;

use iommu_iova::{AllocError, IovaAllocator, IovaRequest, Lease};
use iommu_types::omission::{Step, kept};
use iommu_types::{AddrRange, AddressSpace, HostPhys, Iova, Perms, Piece};
use thiserror::Error;

use crate::backend::{Backend, Kind, NotMapped, When};
use crate::device::{Buffer, Device};

/// When the hardware is told about an unmap, chosen for each address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Invalidation {
    /// Every unmap waits: when it returns, the device has no access.
    #[default]
    Strict,
    /// Unmaps are collected, and confirmed together.
    ///
    /// Until then the device still reaches the memory, and the addresses stay out of use. The window ends when the
    /// queue of the core is full or [`crate::DmaApi::flush`] is called; a timer that calls it (10 ms is usual) bounds
    /// it in time. Only for trusted devices: untrusted ones, and buffers that were bounced, are always strict.
    Deferred {
        /// How many unmaps a core collects; 256 is usual. 0 means strict.
        entries: usize,
    },
}

/// An address space, and the allocator of its addresses.
#[derive(Debug)]
pub struct Translated<S, A> {
    space: S,
    iovas: A,
    invalidation: Invalidation,
}

impl<S: AddressSpace, A: IovaAllocator> Translated<S, A> {
    /// Mappings in `space` at addresses from `iovas`.
    ///
    /// Addresses that `iovas` hands out beyond what `space` can translate are never used.
    pub const fn new(space: S, iovas: A, invalidation: Invalidation) -> Self {
        Self {
            space,
            iovas,
            invalidation,
        }
    }

    /// The address space.
    pub const fn space(&self) -> &S {
        &self.space
    }

    /// The allocator of its addresses.
    pub const fn iovas(&self) -> &A {
        &self.iovas
    }
}

/// What a core keeps for a [`Translated`] backend: its cache of addresses, and the unmaps it put off.
pub struct TranslatedCore<S: AddressSpace, A: IovaAllocator> {
    iova: A::Core,
    queue: Vec<S::Pending<Option<Lease>>>,
    invalidations: u64,
}

impl<S: AddressSpace, A: IovaAllocator> fmt::Debug for TranslatedCore<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TranslatedCore")
            .field("iova", &self.iova)
            .field("queued", &self.queue.len())
            .field("invalidations", &self.invalidations)
            .finish()
    }
}

/// What keeps a mapping in an address space.
#[derive(Debug)]
#[must_use = "a mapping that is dropped stays mapped for ever"]
pub struct Leased {
    lease: Lease,
    /// What is mapped inside the lease; empty if that is all of it.
    parts: Vec<AddrRange<Iova>>,
}

/// An unmap that the hardware has not confirmed.
#[must_use = "the device may still reach the memory; try again, or leave the memory and the addresses alone for ever"]
pub struct TranslatedStuck<S: AddressSpace> {
    lease: Option<Lease>,
    mapped: Vec<AddrRange<Iova>>,
    pending: Vec<S::Pending<Option<Lease>>>,
}

impl<S: AddressSpace> fmt::Debug for TranslatedStuck<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TranslatedStuck")
            .field("lease", &self.lease)
            .field("mapped", &self.mapped)
            .field("pending", &self.pending.len())
            .finish()
    }
}

/// Why a mapping in an address space could not be made or removed.
#[derive(Debug, Error)]
pub enum TranslatedError<E: core::error::Error + 'static> {
    /// No addresses.
    #[error(transparent)]
    Iova(#[from] AllocError),
    /// The address space refused.
    #[error(transparent)]
    Space(E),
    /// No memory to note down what is mapped.
    #[error("no memory to note down a mapping of {pieces} pieces; map fewer at a time")]
    NoMemory {
        /// Pieces of the mapping.
        pieces: usize,
    },
}

impl<S, A> Translated<S, A>
where
    S: AddressSpace,
    S::Error: 'static,
    A: IovaAllocator,
{
    /// Flushes the queue of a core as one.
    fn flush_queue(&self, core: &mut TranslatedCore<S, A>) -> Result<(), TranslatedError<S::Error>> {
        if core.queue.is_empty() {
            return Ok(());
        }
        core.invalidations += 1;
        let mut kept = Vec::new();
        let TranslatedCore { iova, queue, .. } = core;
        let done = self.space.flush_all(
            queue.drain(..),
            |lease| {
                if let Some(lease) = lease {
                    self.iovas.free(iova, lease);
                }
            },
            |pending| kept.push(pending),
        );
        queue.append(&mut kept);
        done.map_err(TranslatedError::Space)
    }

    /// Maps several pieces, or one that leaves holes, at the addresses of a lease.
    fn map_list(
        &self,
        core: &mut TranslatedCore<S, A>,
        lease: Lease,
        pieces: &[Piece],
        perms: Perms,
    ) -> Result<(Iova, Leased), NotMapped<TranslatedError<S::Error>>> {
        let (base, len) = (lease.iova(), lease.range().len().unwrap_or(0));
        let Some(parts) = parts(base, len, pieces) else {
            self.iovas.free(&mut core.iova, lease);
            return Err(TranslatedError::NoMemory { pieces: pieces.len() }.into());
        };
        if let Err((done, error)) = self.space.map_pieces(base, pieces, perms) {
            let lost = in_doubt::<S>(&error);
            let undone = self.undo(core, lease, lost, pieces.get(..done).unwrap_or(pieces));
            return Err(NotMapped {
                error: TranslatedError::Space(error),
                in_doubt: lost || !undone,
            });
        }
        Ok((base, Leased { lease, parts }))
    }

    /// Takes a mapping back of which only these pieces were made; whether all of it is gone for certain. The addresses
    /// stay out of use for ever if not, or if devices may use what is not in the tables any more (`lost`).
    #[cold]
    fn undo(&self, core: &mut TranslatedCore<S, A>, lease: Lease, lost: bool, mapped: &[Piece]) -> bool {
        let base = lease.iova();
        let lease = if lost {
            drop(lease);
            None
        } else {
            Some(lease)
        };
        if mapped.is_empty() {
            if let Some(lease) = lease {
                // The addresses are as good as before.
                self.iovas.free(&mut core.iova, lease);
            }
            return true;
        }
        let ranges = mapped
            .iter()
            .filter_map(|piece| AddrRange::from_base_len(base.checked_add(piece.offset)?, piece.len));
        let stuck = TranslatedStuck {
            mapped: ranges.collect(),
            lease,
            pending: Vec::new(),
        };
        // What is not confirmed is dropped: neither the addresses nor the table pages come back. A leak, and nothing
        // worse.
        self.advance(core, stuck).map_err(drop).is_ok()
    }

    /// Carries an unmap as far as it goes: removes what is mapped, has it confirmed, frees the addresses.
    fn advance(
        &self,
        core: &mut TranslatedCore<S, A>,
        mut stuck: TranslatedStuck<S>,
    ) -> Result<(), (TranslatedError<S::Error>, TranslatedStuck<S>)> {
        while let Some(range) = stuck.mapped.pop() {
            match self.space.unmap(range, None) {
                Ok(pending) => stuck.pending.push(pending),
                Err(refused) => {
                    stuck.mapped.push(range);
                    return Err((TranslatedError::Space(refused.error), stuck));
                }
            }
        }
        core.invalidations += 1;
        let pending = core::mem::take(&mut stuck.pending);
        let (lease, kept) = (&mut stuck.lease, &mut stuck.pending);
        let done = self.space.flush_all(
            pending.into_iter(),
            |confirmed| {
                if confirmed.is_some() {
                    *lease = confirmed;
                }
            },
            |pending| kept.push(pending),
        );
        match done {
            Err(error) => Err((TranslatedError::Space(error), stuck)),
            Ok(()) => {
                if let Some(lease) = stuck.lease {
                    self.iovas.free(&mut core.iova, lease);
                }
                Ok(())
            }
        }
    }
}

/// Whether devices may use what was to be mapped.
fn in_doubt<S: AddressSpace>(error: &S::Error) -> bool {
    S::may_be_reachable(error) && kept(Step::DoubtKept)
}

/// The parts of a block that pieces map, adjacent ones joined; empty if they map all `len` bytes.
fn parts(base: Iova, len: u64, pieces: &[Piece]) -> Option<Vec<AddrRange<Iova>>> {
    let end = pieces
        .iter()
        .try_fold(0, |end: u64, piece| (piece.offset == end).then_some(end + piece.len));
    if end == Some(len) {
        return Some(Vec::new());
    }
    let mut parts: Vec<AddrRange<Iova>> = Vec::new();
    parts.try_reserve(pieces.len()).ok()?;
    for piece in pieces {
        let mut range = AddrRange::from_base_len(base.checked_add(piece.offset)?, piece.len)?;
        if let Some(before) = parts.pop_if(|before| before.last().checked_add(1) == Some(range.first())) {
            range = AddrRange::new(before.first(), range.last())?;
        }
        parts.push(range);
    }
    Some(parts)
}

impl<S, A> Backend for Translated<S, A>
where
    S: AddressSpace,
    S::Error: 'static,
    A: IovaAllocator,
{
    type Core = TranslatedCore<S, A>;
    type Held = Leased;
    type Stuck = TranslatedStuck<S>;
    type Error = TranslatedError<S::Error>;

    fn kind(&self) -> Kind {
        Kind::Translated
    }

    fn new_core(&self) -> Self::Core {
        TranslatedCore {
            iova: self.iovas.new_core(),
            queue: Vec::new(),
            invalidations: 0,
        }
    }

    fn translates(&self, _device: &Device, _buffers: &[Buffer]) -> bool {
        true
    }

    fn map(
        &self,
        core: &mut Self::Core,
        request: IovaRequest,
        pieces: &[Piece],
        perms: Perms,
    ) -> Result<(Iova, Leased), NotMapped<Self::Error>> {
        let request = request.below(self.space.aperture().last());
        let lease = self.iovas.allocate(&mut core.iova, request);
        let lease = lease.map_err(TranslatedError::from)?;
        self.map_list(core, lease, pieces, perms)
    }

    #[inline(always)]
    fn map_run(
        &self,
        core: &mut Self::Core,
        request: IovaRequest,
        phys: HostPhys,
        len: u64,
        perms: Perms,
    ) -> Result<(Iova, Leased), Option<Self::Error>> {
        let request = request.below(self.space.aperture().last());
        let lease = self.iovas.allocate(&mut core.iova, request).map_err(|_| None)?;
        let base = lease.iova();
        if let Err(error) = self.space.map(base, phys, len, perms) {
            let lost = in_doubt::<S>(&error);
            self.undo(core, lease, lost, &[]);
            return Err(lost.then_some(TranslatedError::Space(error)));
        }
        let parts = Vec::new();
        Ok((base, Leased { lease, parts }))
    }

    fn unmap(&self, core: &mut Self::Core, held: Leased, when: When) -> Result<(), (Self::Error, TranslatedStuck<S>)> {
        let Leased { lease, parts } = held;
        if !parts.is_empty() {
            let stuck = TranslatedStuck {
                lease: Some(lease),
                mapped: parts,
                pending: Vec::new(),
            };
            return self.advance(core, stuck);
        }
        let range = lease.range();
        let pending = match self.space.unmap(range, Some(lease)) {
            Ok(pending) => pending,
            Err(refused) => {
                let stuck = TranslatedStuck {
                    lease: refused.lease,
                    mapped: Vec::from([range]),
                    pending: Vec::new(),
                };
                return Err((TranslatedError::Space(refused.error), stuck));
            }
        };
        if let (When::Later, Invalidation::Deferred { entries }) = (when, self.invalidation) {
            if core.queue.len() >= entries {
                // Full: everything that waits is confirmed now. What is not stays queued for the next flush, and this
                // unmap then finds no place and waits for itself, which tells the caller of the trouble.
                let _told_below = self.flush_queue(core);
            }
            if core.queue.len() < entries && core.queue.try_reserve(1).is_ok() {
                core.queue.push(pending);
                return Ok(());
            }
        }
        core.invalidations += 1;
        match self.space.flush(pending) {
            Ok(Some(lease)) => {
                self.iovas.free(&mut core.iova, lease);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err((error, pending)) => {
                let stuck = TranslatedStuck {
                    lease: None,
                    mapped: Vec::new(),
                    pending: Vec::from([pending]),
                };
                Err((TranslatedError::Space(error), stuck))
            }
        }
    }

    fn retry(&self, core: &mut Self::Core, stuck: TranslatedStuck<S>) -> Result<(), (Self::Error, TranslatedStuck<S>)> {
        self.advance(core, stuck)
    }

    fn flush(&self, core: &mut Self::Core) -> Result<(), Self::Error> {
        self.flush_queue(core)
    }

    fn retire(&self, mut core: Self::Core) -> Result<(), Self::Error> {
        let done = self.flush_queue(&mut core);
        self.iovas.retire(core.iova);
        done
    }

    fn invalidations(&self, core: &Self::Core) -> u64 {
        core.invalidations
    }
}
