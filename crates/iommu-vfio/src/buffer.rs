//! Buffers that devices and the program share, at addresses that a policy chooses.

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_iova::{CachedAllocator, CoreCache, IovaAllocator, IovaRequest, IovaSpace, Lease};
use iommu_types::{AddrRange, Iova, PAGE_SIZE, PageSize, Perms};

use crate::backend::{Backend, DmaMemory};
use crate::container::{Container, Type1};
use crate::error::VfioError;
use crate::software::Software;

/// Who chooses the addresses at which devices find buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum IovaPolicy {
    /// The pool does, from what the IOMMU can map, below this address (inclusive): [`Iova::MAX`] for devices that drive
    /// all address lines. Buffers of 2 MiB and more start on a multiple of 2 MiB.
    Allocated {
        /// The last address that devices drive.
        last: Iova,
    },
    /// The address that the program uses: devices and program speak of the same numbers.
    #[default]
    Identity,
}

/// Makes [`DmaBuffer`]s in a container.
///
/// A cheap handle; clones make buffers in the same container. Addresses that the program maps by itself must lie outside
/// of what the policy chooses from, else a buffer can meet [`VfioError::Exists`].
pub struct DmaPool<B: Backend = Software> {
    inner: Arc<Inner<B>>,
}

impl<B: Backend> Clone for DmaPool<B> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<B: Backend> fmt::Debug for DmaPool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaPool")
            .field("container", &self.inner.container)
            .field("policy", &self.inner.policy)
            .finish_non_exhaustive()
    }
}

struct Inner<B: Backend> {
    container: Container<Type1, B>,
    policy: IovaPolicy,
    /// With [`IovaPolicy::Allocated`].
    iovas: Option<Iovas>,
}

struct Iovas {
    allocator: CachedAllocator,
    core: Mutex<CoreCache>,
}

impl Iovas {
    fn core(&self) -> MutexGuard<'_, CoreCache> {
        // A call that panicked may have lost addresses, never handed one out twice.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The addresses of `ranges` as a space: what lies between them is reserved. `None` without ranges.
fn space(ranges: &[AddrRange<Iova>]) -> Option<IovaSpace> {
    let hull = ranges.iter().copied().reduce(AddrRange::hull)?;
    let mut space = IovaSpace::new(hull).ok()?;
    for (below, above) in ranges.iter().zip(ranges.iter().skip(1)) {
        let first = below.last().checked_add(1)?;
        let last = above.first().checked_sub(1)?;
        if let Some(hole) = AddrRange::new(first, last) {
            space = space.reserve(hole);
        }
    }
    Some(space)
}

impl<B: Backend> DmaPool<B> {
    /// A pool over `container`, which it keeps.
    ///
    /// # Errors
    /// What the kernel answers when it is asked for valid ranges; [`VfioError::NoAddresses`] if there are none to choose
    /// from.
    pub fn new(container: Container<Type1, B>, policy: IovaPolicy) -> Result<Self, VfioError> {
        let iovas = match policy {
            IovaPolicy::Identity => None,
            IovaPolicy::Allocated { .. } => {
                let mut ranges = container.info()?.ranges;
                if ranges.is_empty() {
                    // Everything is valid; 48 bits are what any unit can do.
                    ranges.extend(AddrRange::from_base_len(Iova::ZERO, 1 << 48));
                }
                let space = space(&ranges).ok_or(VfioError::NoAddresses { bytes: 0 })?;
                let allocator = CachedAllocator::new(space);
                let core = Mutex::new(allocator.new_core());
                Some(Iovas { allocator, core })
            }
        };
        Ok(Self {
            inner: Arc::new(Inner {
                container,
                policy,
                iovas,
            }),
        })
    }

    /// The container.
    #[must_use]
    pub fn container(&self) -> &Container<Type1, B> {
        &self.inner.container
    }

    /// A zeroed buffer of `bytes`, rounded up to whole pages, that devices may read and write.
    ///
    /// # Errors
    /// As [`Self::buffer_with`].
    pub fn buffer(&self, bytes: u64) -> Result<DmaBuffer<B>, VfioError> {
        self.buffer_with(bytes, Perms::READ_WRITE)
    }

    /// A zeroed buffer of `bytes`, rounded up to whole pages, with these rights for devices.
    ///
    /// # Errors
    /// As [`Container::allocate`] and [`Container::dma_map`]; [`VfioError::NoAddresses`].
    pub fn buffer_with(&self, bytes: u64, perms: Perms) -> Result<DmaBuffer<B>, VfioError> {
        let memory = self.inner.container.allocate(bytes)?;
        let size = memory.size();
        let placed = self.place(&memory, size).and_then(|(iova, lease)| {
            match self.inner.container.dma_map(iova, &memory, 0, size, perms) {
                Ok(()) => Ok((iova, lease)),
                Err(error) => {
                    self.inner.release(lease);
                    Err(error)
                }
            }
        });
        match placed {
            Ok((iova, lease)) => Ok(DmaBuffer {
                pool: self.inner.clone(),
                memory: Some(memory),
                iova,
                size,
                lease,
            }),
            Err(error) => {
                // Nothing is mapped, so it is not pinned.
                let _ = memory.give_back();
                Err(error)
            }
        }
    }

    fn place(&self, memory: &B::Memory, size: u64) -> Result<(Iova, Option<Lease>), VfioError> {
        let none = VfioError::NoAddresses { bytes: size };
        match (&self.inner.iovas, self.inner.policy) {
            (Some(iovas), IovaPolicy::Allocated { last }) => {
                let mut request = IovaRequest::pages(size / PAGE_SIZE).below(last);
                if size >= PageSize::Size2M.bytes() {
                    request = request.aligned_to(PageSize::Size2M);
                }
                let lease = iovas.allocator.allocate(&mut iovas.core(), request).map_err(|_| none)?;
                Ok((lease.iova(), Some(lease)))
            }
            _ => {
                let address = memory.pointer().map(|pointer| pointer.addr().get());
                let address = address.and_then(|address| u64::try_from(address).ok());
                Ok((Iova::new(address.ok_or(none)?), None))
            }
        }
    }
}

impl<B: Backend> Inner<B> {
    /// Gives addresses back that no device can use any more.
    fn release(&self, lease: Option<Lease>) {
        if let (Some(iovas), Some(lease)) = (&self.iovas, lease) {
            iovas.allocator.free(&mut iovas.core(), lease);
        }
    }
}

/// Memory that devices of a container and the program share.
///
/// Dropping it unmaps it, waits until no device can use it, and gives memory and addresses back; if a unit does not
/// confirm, both stay out of use.
pub struct DmaBuffer<B: Backend = Software> {
    pool: Arc<Inner<B>>,
    /// `None` only while it is dropped.
    memory: Option<B::Memory>,
    iova: Iova,
    size: u64,
    lease: Option<Lease>,
}

impl<B: Backend> fmt::Debug for DmaBuffer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaBuffer")
            .field("iova", &self.iova)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl<B: Backend> DmaBuffer<B> {
    /// Where devices find it.
    #[must_use]
    pub const fn iova(&self) -> Iova {
        self.iova
    }

    /// Length in bytes: whole pages.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    fn outside(&self, offset: u64, size: usize) -> VfioError {
        VfioError::OutsideMemory {
            offset,
            size: u64::try_from(size).unwrap_or(u64::MAX),
            len: self.size,
        }
    }

    /// Fills `into` from byte `offset` on.
    ///
    /// # Errors
    /// [`VfioError::OutsideMemory`].
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), VfioError> {
        match &self.memory {
            Some(memory) => memory.read_at(offset, into),
            None => Err(self.outside(offset, into.len())),
        }
    }

    /// Copies `from` to byte `offset` and after.
    ///
    /// # Errors
    /// [`VfioError::OutsideMemory`].
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), VfioError> {
        match &self.memory {
            Some(memory) => memory.write_at(offset, from),
            None => Err(self.outside(offset, from.len())),
        }
    }

    /// Its first byte; see [`DmaMemory::pointer`].
    #[must_use]
    pub fn pointer(&self) -> Option<NonNull<u8>> {
        self.memory.as_ref().and_then(DmaMemory::pointer)
    }

    /// `size` bytes from byte `offset`, for a list of pieces.
    ///
    /// # Errors
    /// [`VfioError::OutsideMemory`].
    pub fn piece(&self, offset: u64, size: u64) -> Result<DmaPiece<'_, B>, VfioError> {
        let outside = VfioError::OutsideMemory {
            offset,
            size,
            len: self.size,
        };
        match (offset.checked_add(size), self.iova.checked_add(offset)) {
            (Some(end), Some(iova)) if end <= self.size && size > 0 => Ok(DmaPiece {
                buffer: self,
                iova,
                offset,
                size,
            }),
            _ => Err(outside),
        }
    }
}

impl<B: Backend> Drop for DmaBuffer<B> {
    fn drop(&mut self) {
        // Without confirmation the lease is dropped, which takes the addresses out of use.
        if self.pool.container.dma_unmap(self.iova, self.size).is_ok() {
            self.pool.release(self.lease.take());
            if let Some(memory) = self.memory.take() {
                let _ = memory.give_back();
            }
        }
    }
}

/// Part of a buffer.
#[derive(Debug)]
pub struct DmaPiece<'b, B: Backend = Software> {
    buffer: &'b DmaBuffer<B>,
    iova: Iova,
    offset: u64,
    size: u64,
}

/// A list of pieces that together are one transfer: scatter-gather.
#[derive(Debug)]
pub struct SgList<'b, B: Backend = Software> {
    pieces: Vec<DmaPiece<'b, B>>,
}

impl<B: Backend> Default for SgList<'_, B> {
    fn default() -> Self {
        Self { pieces: Vec::new() }
    }
}

impl<'b, B: Backend> SgList<'b, B> {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a piece at the end.
    pub fn push(&mut self, piece: DmaPiece<'b, B>) {
        self.pieces.push(piece);
    }

    /// Bytes of all pieces.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.size).sum()
    }

    /// What a device is told: addresses and lengths, with neighbours joined as long as no segment is longer than `longest`
    /// bytes; longer pieces are cut.
    #[must_use]
    pub fn segments(&self, longest: u64) -> Vec<(Iova, u64)> {
        let longest = longest.max(1);
        let mut segments: Vec<(Iova, u64)> = Vec::new();
        for piece in &self.pieces {
            let mut done = 0;
            while done < piece.size {
                let Some(at) = piece.iova.checked_add(done) else { break };
                if let Some((first, len)) = segments.last_mut()
                    && first.checked_add(*len) == Some(at)
                    && *len < longest
                {
                    let more = (longest - *len).min(piece.size - done);
                    *len += more;
                    done += more;
                } else {
                    let len = longest.min(piece.size - done);
                    segments.push((at, len));
                    done += len;
                }
            }
        }
        segments
    }

    /// Fills `into` from the start of the list.
    ///
    /// # Errors
    /// [`VfioError::OutsideMemory`] if the list is shorter.
    pub fn gather(&self, into: &mut [u8]) -> Result<(), VfioError> {
        let mut rest = self.check(into.len()).map(|()| into)?;
        for piece in &self.pieces {
            let n = usize::try_from(piece.size).unwrap_or(usize::MAX).min(rest.len());
            let (part, tail) = rest.split_at_mut(n);
            piece.buffer.read(piece.offset, part)?;
            rest = tail;
        }
        Ok(())
    }

    /// Copies `from` to the start of the list.
    ///
    /// # Errors
    /// [`VfioError::OutsideMemory`] if the list is shorter.
    pub fn scatter(&self, from: &[u8]) -> Result<(), VfioError> {
        let mut rest = self.check(from.len()).map(|()| from)?;
        for piece in &self.pieces {
            let n = usize::try_from(piece.size).unwrap_or(usize::MAX).min(rest.len());
            let (part, tail) = rest.split_at(n);
            piece.buffer.write(piece.offset, part)?;
            rest = tail;
        }
        Ok(())
    }

    fn check(&self, wanted: usize) -> Result<(), VfioError> {
        let (len, size) = (self.size(), u64::try_from(wanted).unwrap_or(u64::MAX));
        if size <= len {
            Ok(())
        } else {
            Err(VfioError::OutsideMemory { offset: 0, size, len })
        }
    }
}
