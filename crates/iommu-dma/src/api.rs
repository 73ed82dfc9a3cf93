//! The interface that drivers use.

mod copies;

use alloc::vec::Vec;

use iommu_iova::IovaRequest;
use iommu_types::omission::{Step, kept};
use iommu_types::sync::{AtomicUsize, Ordering};
use iommu_types::{BusError, HostPhys, Iova, PAGE_SIZE, Piece, SystemMemory};

use crate::backend::{Backend, Kind, NotMapped, When};
use crate::bounce::BouncePool;
use crate::counters::Counters;
use crate::device::{Buffer, Device, Direction, DmaSegment, Trust};
use crate::error::DmaError;
use crate::layout::{Layout, SegmentList, Segments, round_up};
use crate::mapping::{Bounce, Mapping, Unconfirmed, UnmapError};

/// The DMA interface over a [`Backend`], with memory to copy in and, if given, a pool to copy through.
#[derive(Debug)]
pub struct DmaApi<B, M> {
    backend: B,
    memory: M,
    pool: Option<BouncePool>,
    next_area: AtomicUsize,
}

/// What a core (or thread) keeps to itself. Every call that maps or unmaps passes it.
#[derive(Debug)]
#[must_use = "addresses in a core's cache are lost when it is dropped; give it back with DmaApi::retire"]
pub struct DmaCore<C> {
    inner: C,
    area: usize,
    counters: Counters,
}

/// A list of buffers on its way to becoming a mapping.
struct Prepared {
    pieces: Vec<Piece>,
    bounces: Vec<Bounce>,
}

impl<B: Backend, M: SystemMemory> DmaApi<B, M>
where
    B::Error: 'static,
{
    /// The interface without bounce buffers: what would need one is refused.
    pub const fn new(backend: B, memory: M) -> Self {
        Self {
            backend,
            memory,
            pool: None,
            next_area: AtomicUsize::new(0),
        }
    }

    /// Copies through `pool` where a device cannot or must not reach a buffer itself.
    #[must_use]
    pub fn with_pool(mut self, pool: BouncePool) -> Self {
        self.pool = Some(pool);
        self
    }

    /// What stands between devices and memory. Print it: it says loudly when that is nothing.
    pub fn kind(&self) -> Kind {
        self.backend.kind()
    }

    /// What stands between devices and memory, itself.
    pub const fn backend(&self) -> &B {
        &self.backend
    }

    /// The pool, if there is one.
    pub const fn pool(&self) -> Option<&BouncePool> {
        self.pool.as_ref()
    }

    /// What a new core needs.
    pub fn new_core(&self) -> DmaCore<B::Core> {
        DmaCore {
            inner: self.backend.new_core(),
            area: self.next_area.fetch_add(1, Ordering::Relaxed),
            counters: Counters::default(),
        }
    }

    /// What a core has done so far.
    pub fn counters(&self, core: &DmaCore<B::Core>) -> Counters {
        Counters {
            invalidations: self.backend.invalidations(&core.inner),
            ..core.counters
        }
    }

    /// Gives everything back that a core holds; for a core that goes away.
    ///
    /// # Errors
    /// The hardware did not confirm unmaps that were put off: their addresses stay out of use.
    pub fn retire(&self, core: DmaCore<B::Core>) -> Result<Counters, B::Error> {
        let counters = self.counters(&core);
        self.backend.retire(core.inner)?;
        Ok(counters)
    }

    /// Has every unmap of this core confirmed that was put off. Call it from a timer, and before memory that was
    /// unmapped changes its owner.
    ///
    /// # Errors
    /// The hardware did not confirm all of them; the rest stays queued.
    pub fn flush(&self, core: &mut DmaCore<B::Core>) -> Result<(), B::Error> {
        self.backend.flush(&mut core.inner)
    }

    /// Lets a device use one buffer, once (a streaming mapping).
    ///
    /// The buffer belongs to the device until [`Self::unmap`], or between [`Self::sync_for_device`] and
    /// [`Self::sync_for_cpu`].
    ///
    /// # Errors
    /// [`DmaError`]; the device can reach nothing of it then.
    // Inlined, so that a mapping is written where the caller keeps it: copied while it is on its way to memory, it
    // stalls a processor for longer than all the rest takes.
    #[inline(always)]
    pub fn map(
        &self,
        core: &mut DmaCore<B::Core>,
        device: &Device,
        buffer: Buffer,
        direction: Direction,
    ) -> Result<Mapping<B>, DmaError<B::Error>> {
        let buffers = [buffer];
        let pages = round_up(buffer.phys.page_offset().saturating_add(buffer.len));
        let plain = device.trust == Trust::Trusted && device.boundary == u64::MAX && buffer.len <= device.max_segment;
        let (true, true, Some(pages)) = (plain, buffer.len != 0, pages) else {
            return self.map_sg(core, device, &buffers, direction);
        };
        if !self.backend.translates(device, &buffers) || buffer.phys.page().checked_add(pages - 1).is_none() {
            return self.map_sg(core, device, &buffers, direction);
        }
        // The usual case, without any list: one run, one segment, no copy.
        let request = IovaRequest::bytes(pages).below(device.mask);
        let request = if device.low_first { request.low_first() } else { request };
        let (page, perms) = (buffer.phys.page(), direction.perms());
        let (base, held) = match self.backend.map_run(&mut core.inner, request, page, pages, perms) {
            Ok(run) => run,
            // The longer way has the reason, or another way out.
            Err(None) => return self.map_sg(core, device, &buffers, direction),
            Err(Some(error)) => return Err(DmaError::Unconfirmed(error)),
        };
        core.counters.buffers += 1;
        let address = base.checked_add(buffer.phys.page_offset()).unwrap_or(base);
        let mapping = Mapping {
            segments: SegmentList::One(DmaSegment {
                address,
                len: buffer.len,
            }),
            direction,
            held: Some(held),
            bounces: Vec::new(),
            len: buffer.len,
            when: When::Later,
        };
        Self::count(core, &mapping);
        Ok(mapping)
    }

    /// Lets a device use a list of buffers, once.
    ///
    /// Where addresses are translated, all of them become one block, and buffers that begin and end on page
    /// boundaries become one segment. [`Mapping::segments`] honours the device's limits; there are at most as many
    /// segments as buffers if every buffer by itself honours them.
    ///
    /// # Errors
    /// [`DmaError`]; the device can reach nothing of it then.
    pub fn map_sg(
        &self,
        core: &mut DmaCore<B::Core>,
        device: &Device,
        buffers: &[Buffer],
        direction: Direction,
    ) -> Result<Mapping<B>, DmaError<B::Error>> {
        self.check(buffers)?;
        let mapping = if self.backend.translates(device, buffers) {
            let natural = device.boundary != u64::MAX;
            match self.map_translated(core, device, buffers, direction, natural) {
                // A full window is no reason to give up where addresses also work as they are.
                Err(DmaError::Backend(_)) if !self.kind().isolates() => {
                    self.map_untranslated(core, device, buffers, direction)?
                }
                done => done?,
            }
        } else {
            self.map_untranslated(core, device, buffers, direction)?
        };
        core.counters.buffers += u64::try_from(buffers.len()).unwrap_or(0);
        Self::count(core, &mapping);
        Ok(mapping)
    }

    /// Lets a device use memory for long, at the same time as the processor (a coherent mapping): rings, mailboxes.
    ///
    /// The pages become one block of addresses, aligned to its size rounded up to a power of two. Nothing is ever
    /// copied, so [`Self::sync_for_cpu`] is never needed.
    ///
    /// # Errors
    /// [`DmaError::NotPages`] if a buffer is not whole pages; [`DmaError::Unreachable`] if nothing translates and the
    /// memory is not one run that the device can address.
    pub fn map_coherent(
        &self,
        core: &mut DmaCore<B::Core>,
        device: &Device,
        pages: &[Buffer],
    ) -> Result<Mapping<B>, DmaError<B::Error>> {
        self.check(pages)?;
        for page in pages {
            if page.phys.page_offset() != 0 || !page.len.is_multiple_of(PAGE_SIZE) {
                let Buffer { phys, len } = *page;
                return Err(DmaError::NotPages { phys, len });
            }
        }
        // Limits on segments are for lists; this is one piece of memory, however long.
        let device = Device {
            max_segment: u64::MAX,
            boundary: u64::MAX,
            ..*device
        };
        let mapping = if self.backend.translates(&device, pages) {
            self.map_translated(core, &device, pages, Direction::Bidirectional, true)?
        } else {
            let mut segments = Segments::new(&device);
            for page in pages {
                segments.push(Iova::new(page.phys.raw()), page.len);
            }
            let segments = segments.finish();
            let reachable = pages.iter().all(|&page| device.reaches(page));
            if segments.as_slice().len() != 1 || !reachable {
                let (phys, len) = pages.first().map_or((HostPhys::ZERO, 0), |page| (page.phys, page.len));
                let mask = device.mask;
                return Err(DmaError::Unreachable { phys, len, mask });
            }
            Mapping {
                segments,
                direction: Direction::Bidirectional,
                held: None,
                bounces: Vec::new(),
                len: pages.iter().map(|page| page.len).sum(),
                when: When::Now,
            }
        };
        Self::count(core, &mapping);
        Ok(mapping)
    }

    /// Gives `len` bytes from byte `from` of a mapping to the processor: what the device wrote becomes visible.
    ///
    /// # Errors
    /// [`BusError`] if a copy failed.
    pub fn sync_for_cpu(
        &self,
        core: &mut DmaCore<B::Core>,
        mapping: &Mapping<B>,
        from: u64,
        len: u64,
    ) -> Result<(), BusError> {
        if !mapping.direction.device_writes() {
            return Ok(());
        }
        self.sync(core, mapping, from, len, |bounce, at| {
            (bounce.copy, bounce.original, at)
        })
    }

    /// Gives `len` bytes from byte `from` of a mapping to the device: what the processor wrote becomes visible.
    ///
    /// # Errors
    /// [`BusError`] if a copy failed.
    pub fn sync_for_device(
        &self,
        core: &mut DmaCore<B::Core>,
        mapping: &Mapping<B>,
        from: u64,
        len: u64,
    ) -> Result<(), BusError> {
        self.sync(core, mapping, from, len, |bounce, at| {
            (bounce.original, bounce.copy, at)
        })
    }

    /// Takes the memory back: ends the device's access and brings what it wrote to the caller's buffers.
    ///
    /// With [`crate::Invalidation::Deferred`] a trusted device may keep its access until [`Self::flush`].
    ///
    /// # Errors
    /// [`UnmapError::Unconfirmed`]: the hardware did not confirm. The memory must not be used for anything else until
    /// [`Self::retry`] succeeds.
    pub fn unmap(&self, core: &mut DmaCore<B::Core>, mapping: Mapping<B>) -> Result<(), UnmapError<B>> {
        let Mapping {
            held,
            bounces,
            direction,
            when,
            ..
        } = mapping;
        core.counters.unmaps += 1;
        if let Some(held) = held
            && let Err((error, stuck)) = self.backend.unmap(&mut core.inner, held, when)
        {
            return Err(UnmapError::Unconfirmed(Unconfirmed {
                error,
                stuck,
                bounces,
                direction,
            }));
        }
        self.release(core, bounces, direction)
    }

    /// Tries again to finish an unmap.
    ///
    /// # Errors
    /// As [`Self::unmap`].
    pub fn retry(&self, core: &mut DmaCore<B::Core>, unconfirmed: Unconfirmed<B>) -> Result<(), UnmapError<B>> {
        let Unconfirmed {
            stuck,
            bounces,
            direction,
            ..
        } = unconfirmed;
        match self.backend.retry(&mut core.inner, stuck) {
            Ok(()) => self.release(core, bounces, direction),
            Err((error, stuck)) => Err(UnmapError::Unconfirmed(Unconfirmed {
                error,
                stuck,
                bounces,
                direction,
            })),
        }
    }

    fn check(&self, buffers: &[Buffer]) -> Result<(), DmaError<B::Error>> {
        if buffers.is_empty() {
            return Err(DmaError::Empty { index: 0 });
        }
        for (index, &Buffer { phys, len }) in buffers.iter().enumerate() {
            if len == 0 {
                return Err(DmaError::Empty { index });
            }
            // The last page must have an end, too.
            let end = phys.page_offset().checked_add(len).and_then(round_up);
            if end.and_then(|len| phys.page().checked_add(len - 1)).is_none() {
                return Err(DmaError::Wraps { phys, len });
            }
        }
        Ok(())
    }

    fn count(core: &mut DmaCore<B::Core>, mapping: &Mapping<B>) {
        let counters = &mut core.counters;
        counters.maps += 1;
        counters.bytes += mapping.len;
        counters.segments += u64::try_from(mapping.segments().len()).unwrap_or(0);
        counters.iovas += u64::from(mapping.held.is_some());
    }

    /// One block of translated addresses for all buffers.
    fn map_translated(
        &self,
        core: &mut DmaCore<B::Core>,
        device: &Device,
        buffers: &[Buffer],
        direction: Direction,
        natural: bool,
    ) -> Result<Mapping<B>, DmaError<B::Error>> {
        let no_memory = || DmaError::NoMemory { buffers: buffers.len() };
        let mut prepared = Prepared {
            pieces: Vec::new(),
            bounces: Vec::new(),
        };
        // An untrusted device costs a buffer at most two copied pages besides what it reaches.
        let most = if device.trust == Trust::Untrusted { 3 } else { 1 };
        prepared
            .pieces
            .try_reserve_exact(buffers.len() * most)
            .map_err(|_| no_memory())?;

        let mut layout = Layout::new(device.boundary);
        let (mut len, mut result) = (0, Ok(()));
        for &buffer in buffers {
            let room = round_up(buffer.phys.page_offset() + buffer.len).unwrap_or(u64::MAX);
            let Some(offset) = layout.place(room) else {
                let Buffer { phys, len } = buffer;
                result = Err(DmaError::Wraps { phys, len });
                break;
            };
            result = self.prepare(core, device, buffer, offset, len, &mut prepared);
            if result.is_err() {
                break;
            }
            len += buffer.len;
        }
        let mapped = result.and_then(|()| {
            let request = IovaRequest::bytes(layout.len()).below(device.mask);
            let request = if natural { request.naturally_aligned() } else { request };
            let request = if device.low_first { request.low_first() } else { request };
            let mapped = self
                .backend
                .map(&mut core.inner, request, &prepared.pieces, direction.perms());
            mapped.map_err(|NotMapped { error, in_doubt }| match in_doubt {
                true => DmaError::Unconfirmed(error),
                false => DmaError::Backend(error),
            })
        });
        let (base, held) = match mapped {
            Ok(mapped) => mapped,
            Err(error @ DmaError::Unconfirmed(_)) => {
                // A device may see the copies: they are nobody else's any more.
                drop(prepared.bounces);
                return Err(error);
            }
            Err(error) => {
                // Nothing was mapped: no device has seen the copies.
                self.free_slots(prepared.bounces);
                return Err(error);
            }
        };
        let segments = match joined(device, buffers, len) {
            Some(head) => SegmentList::One(DmaSegment {
                address: base.checked_add(head).unwrap_or(base),
                len,
            }),
            None => Self::segments(device, buffers, base),
        };
        let bounced = !prepared.bounces.is_empty();
        Ok(Mapping {
            segments,
            direction,
            held: Some(held),
            bounces: prepared.bounces,
            len,
            when: if bounced || (device.trust == Trust::Untrusted && kept(Step::UntrustedStrict)) {
                When::Now
            } else {
                When::Later
            },
        })
    }
    /// What the device is told of a block that begins at `base`.
    fn segments(device: &Device, buffers: &[Buffer], base: Iova) -> SegmentList {
        let mut segments = Segments::new(device);
        let mut layout = Layout::new(device.boundary);
        for buffer in buffers {
            let room = round_up(buffer.phys.page_offset() + buffer.len).unwrap_or(u64::MAX);
            // The same sums as when the block was laid out, which had a result; it lies inside the address space.
            let offset = layout.place(room).unwrap_or(0) + buffer.phys.page_offset();
            segments.push(base.checked_add(offset).unwrap_or(base), buffer.len);
        }
        segments.finish()
    }
}

/// Where the only segment of a block begins, if it is certain without looking at addresses that there is only one:
/// buffers meet on page boundaries, and no limit is reached.
fn joined(device: &Device, buffers: &[Buffer], len: u64) -> Option<u64> {
    let (first, rest) = buffers.split_first()?;
    if device.boundary != u64::MAX || len > device.max_segment {
        return None;
    }
    // Offsets in their pages of all ends where two buffers meet: joined by "or", since usually all of them are zero.
    let mut met = 0;
    let mut end = first.phys.raw().wrapping_add(first.len);
    for buffer in rest {
        met |= end | buffer.phys.raw();
        end = buffer.phys.raw().wrapping_add(buffer.len);
    }
    (met & (PAGE_SIZE - 1) == 0).then_some(first.phys.page_offset())
}
