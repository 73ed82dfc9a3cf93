//! The bus as guest memory of rust-vmm, for the rings.

use std::cell::{Cell, RefCell};
use std::iter::FusedIterator;

use bumpalo::Bump;
use iommu_types::Iova;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryResult, Permissions, VolatileSlice,
};
use zerocopy::IntoBytes;

use crate::bus::{Bus, DmaError, DmaErrorKind};

/// Longest access in bytes. Ring words and descriptors are at most 16 bytes long; buffers do not go this way.
const MAX_ACCESS: usize = 64;
/// Most accesses of one object, of which each takes up to [`MAX_ACCESS`] bytes of the arena: a chain of descriptors and
/// what belongs to it.
pub(super) const MAX_ACCESSES: usize = 1024;

/// What a requester's rings look like through its bus: reads are fetched when a slice is asked for, writes are kept and
/// go out in order, before the next read and at [`Self::commit`].
///
/// That fits accessors that use a slice at once (`load`, `store`, `read_obj`, `write_obj`), which is all that ring code
/// does. It is made for one descriptor chain and dropped, which bounds what it keeps.
pub(super) struct RingMemory<'m> {
    arena: &'m Bump,
    bus: &'m dyn Bus,
    kept: RefCell<Vec<(Iova, VolatileSlice<'m>)>>,
    accesses: Cell<usize>,
    failed: Cell<Option<DmaError>>,
}

impl<'m> RingMemory<'m> {
    pub(super) fn new(arena: &'m Bump, bus: &'m dyn Bus) -> Self {
        Self {
            arena,
            bus,
            kept: RefCell::default(),
            accesses: Cell::new(0),
            failed: Cell::new(None),
        }
    }

    /// Sends what was written.
    ///
    /// # Errors
    /// The first error of any access so far.
    pub(super) fn commit(&self) -> Result<(), DmaError> {
        for (at, slice) in self.kept.borrow_mut().drain(..) {
            let mut bytes = [0; MAX_ACCESS];
            let n = slice.len().min(MAX_ACCESS);
            if let Some(bytes) = bytes.get_mut(..n) {
                slice.copy_to(bytes);
                if let Err(error) = self.bus.dma_write(at, bytes) {
                    self.fail(error);
                }
            }
        }
        self.failed.get().map_or(Ok(()), Err)
    }

    /// The first access that went wrong.
    pub(super) fn error(&self) -> Option<DmaError> {
        self.failed.get()
    }

    fn fail(&self, error: DmaError) -> GuestMemoryError {
        if self.failed.get().is_none() {
            self.failed.set(Some(error));
        }
        GuestMemoryError::IOError(std::io::Error::other(error))
    }
}

impl std::fmt::Debug for RingMemory<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RingMemory")
            .field("accesses", &self.accesses)
            .finish_non_exhaustive()
    }
}

/// One slice, or none.
pub(super) struct Once<'m>(Option<VolatileSlice<'m>>);

impl<'m> Iterator for Once<'m> {
    type Item = GuestMemoryResult<VolatileSlice<'m>>;
    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(Ok)
    }
}
impl FusedIterator for Once<'_> {}
impl<'m> GuestMemorySliceIterator<'m, ()> for Once<'m> {}

impl GuestMemory for RingMemory<'_> {
    /// There is none that could be had without the bus; the type is one that is never made.
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        count == 0 || u64::try_from(count - 1).is_ok_and(|beyond| addr.0.checked_add(beyond).is_some())
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, ()>> {
        let at = Iova::new(addr.0);
        if count == 0 {
            return Ok(Once(None));
        }
        let accesses = self.accesses.get() + 1;
        self.accesses.set(accesses);
        if count > MAX_ACCESS || accesses > MAX_ACCESSES || !self.check_range(addr, count, access) {
            return Err(self.fail(DmaError::new(at, DmaErrorKind::OutOfRange)));
        }
        // Words, so that atomic accesses find the alignment they want.
        let words = self.arena.alloc_slice_fill_copy(count.div_ceil(8), 0u64);
        let bytes = words.as_mut_bytes().get_mut(..count).unwrap_or_default();
        if access != Permissions::Write {
            if let Err(error) = self.commit() {
                return Err(self.fail(error));
            }
            if let Err(error) = self.bus.dma_read(at, bytes) {
                return Err(self.fail(error));
            }
        }
        let slice = VolatileSlice::from(bytes);
        if access.has_write() {
            self.kept.borrow_mut().push((at, slice));
        }
        Ok(Once(Some(slice)))
    }
}
