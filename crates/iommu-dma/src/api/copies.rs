//! Copies: what of a buffer is bounced, and how its bytes get there and back.

use alloc::vec::Vec;

use iommu_types::omission::{Step, kept};
use iommu_types::{BusError, HostPhys, Iova, PAGE_SIZE, Piece, SystemMemory};

use super::{DmaApi, DmaCore, Prepared};
use crate::backend::{Backend, When};
use crate::bounce::{MAX_RUN, Place, SLOT, zero};
use crate::device::{Buffer, Device, Direction, Trust};
use crate::error::DmaError;
use crate::layout::{Segments, round_up};
use crate::mapping::{Bounce, Mapping, UnmapError};

impl<B: Backend, M: SystemMemory> DmaApi<B, M>
where
    B::Error: 'static,
{
    /// Decides what of a buffer the device reaches itself and what is copied: for untrusted devices, the first and the
    /// last page if they hold other data as well.
    pub(super) fn prepare(
        &self,
        core: &mut DmaCore<B::Core>,
        device: &Device,
        buffer: Buffer,
        offset: u64,
        at: u64,
        prepared: &mut Prepared,
    ) -> Result<(), DmaError<B::Error>> {
        let head = buffer.phys.page_offset();
        let pages = round_up(head + buffer.len).unwrap_or(u64::MAX);
        let tail = pages - head - buffer.len;
        let mut direct = Piece {
            offset,
            phys: buffer.phys.page(),
            len: pages,
        };
        let trusted = device.trust == Trust::Trusted || !self.kind().isolates() || !kept(Step::UntrustedBounced);
        if trusted || (head == 0 && tail == 0) {
            prepared.pieces.push(direct);
            return Ok(());
        }
        core.counters.bounced_buffers += 1;
        let first = (head != 0 || pages == PAGE_SIZE).then(|| buffer.len.min(PAGE_SIZE - head));
        if let Some(len) = first {
            let phys = self.bounce_page(core, buffer.phys, len, at, prepared)?;
            prepared.pieces.push(Piece {
                offset,
                phys,
                len: PAGE_SIZE,
            });
            direct.offset += PAGE_SIZE;
            direct.phys = direct.phys.checked_add(PAGE_SIZE).unwrap_or(direct.phys);
            direct.len -= PAGE_SIZE;
        }
        let last = (tail != 0 && direct.len != 0).then_some(PAGE_SIZE - tail);
        if last.is_some() {
            direct.len -= PAGE_SIZE;
        }
        if direct.len != 0 {
            prepared.pieces.push(direct);
        }
        if let Some(len) = last {
            let original = direct.phys.checked_add(direct.len).unwrap_or(direct.phys);
            let phys = self.bounce_page(core, original, len, at + buffer.len - len, prepared)?;
            let offset = direct.offset + direct.len;
            prepared.pieces.push(Piece {
                offset,
                phys,
                len: PAGE_SIZE,
            });
        }
        Ok(())
    }

    /// Copies a part of a page to the same place in a page of the pool, with zeroes around it.
    pub(super) fn bounce_page(
        &self,
        core: &mut DmaCore<B::Core>,
        original: HostPhys,
        len: u64,
        at: u64,
        prepared: &mut Prepared,
    ) -> Result<HostPhys, DmaError<B::Error>> {
        let Some(pool) = &self.pool else {
            return Err(DmaError::NoPool { phys: original, len });
        };
        let place = Place {
            len: PAGE_SIZE,
            pages: true,
            last: u64::MAX,
            boundary: u64::MAX,
        };
        if prepared.bounces.try_reserve(1).is_err() {
            return Err(DmaError::NoMemory { buffers: 1 });
        }
        let slots = pool
            .allocate(core.area, place)
            .ok_or(DmaError::PoolFull { len, mask: Iova::MAX })?;
        let page = slots.phys();
        let copy = page.checked_add(original.page_offset()).unwrap_or(page);
        prepared.bounces.push(Bounce {
            slots,
            copy,
            original,
            len,
            at,
        });
        zero(&self.memory, page, PAGE_SIZE)?;
        self.copy_in(core, original, copy, len)?;
        Ok(page)
    }

    /// The memory's own addresses, and copies where the device cannot drive those.
    pub(super) fn map_untranslated(
        &self,
        core: &mut DmaCore<B::Core>,
        device: &Device,
        buffers: &[Buffer],
        direction: Direction,
    ) -> Result<Mapping<B>, DmaError<B::Error>> {
        let mut segments = Segments::new(device);
        let mut bounces = Vec::new();
        let mut len = 0;
        for &buffer in buffers {
            let start = if device.reaches(buffer) {
                Ok(buffer.phys)
            } else {
                self.bounce_whole(core, device, buffer, len, &mut bounces)
            };
            match start {
                Ok(start) => segments.push(Iova::new(start.raw()), buffer.len),
                Err(error) => {
                    // The device was told nothing of the copies made so far.
                    self.free_slots(bounces);
                    return Err(error);
                }
            }
            len += buffer.len;
        }
        Ok(Mapping {
            segments: segments.finish(),
            direction,
            held: None,
            bounces,
            len,
            when: When::Now,
        })
    }

    /// Copies a buffer to slots that the device can address.
    pub(super) fn bounce_whole(
        &self,
        core: &mut DmaCore<B::Core>,
        device: &Device,
        buffer: Buffer,
        at: u64,
        bounces: &mut Vec<Bounce>,
    ) -> Result<HostPhys, DmaError<B::Error>> {
        let Buffer { phys, len } = buffer;
        let mask = device.mask;
        let Some(pool) = &self.pool else {
            return Err(DmaError::Unreachable { phys, len, mask });
        };
        let offset = phys.raw() & device.min_align_mask;
        let max = MAX_RUN * SLOT - offset;
        if len > max {
            return Err(DmaError::BounceTooLarge { phys, len, max });
        }
        if bounces.try_reserve(1).is_err() {
            return Err(DmaError::NoMemory { buffers: 1 });
        }
        let place = Place {
            len: offset + len,
            // Address bits at and above a slot's size are kept by beginning on a page.
            pages: device.min_align_mask >= SLOT,
            last: mask.raw(),
            boundary: device.boundary,
        };
        let slots = pool
            .allocate(core.area, place)
            .ok_or(DmaError::PoolFull { len, mask })?;
        let start = slots.phys();
        let copy = start.checked_add(offset).unwrap_or(start);
        bounces.push(Bounce {
            slots,
            copy,
            original: phys,
            len,
            at,
        });
        core.counters.bounced_buffers += 1;
        self.copy_in(core, phys, copy, len)?;
        Ok(copy)
    }

    /// Fills a copy, whatever the direction: a device may write a part only, and the rest must neither be lost nor be
    /// what another mapping left there.
    pub(super) fn copy_in(
        &self,
        core: &mut DmaCore<B::Core>,
        from: HostPhys,
        to: HostPhys,
        len: u64,
    ) -> Result<(), BusError> {
        core.counters.bounced_bytes += len;
        self.memory.copy(from, to, len)
    }

    /// Copies the parts of `from..from + len` that are bounced, between the places that `ends` names.
    pub(super) fn sync(
        &self,
        core: &mut DmaCore<B::Core>,
        mapping: &Mapping<B>,
        from: u64,
        len: u64,
        ends: impl Fn(&Bounce, u64) -> (HostPhys, HostPhys, u64),
    ) -> Result<(), BusError> {
        let end = from.saturating_add(len).min(mapping.len);
        for bounce in &mapping.bounces {
            let first = bounce.at.max(from);
            let last = (bounce.at + bounce.len).min(end);
            if first >= last {
                continue;
            }
            let (source, target, offset) = ends(bounce, first - bounce.at);
            let (source, target) = (source.checked_add(offset), target.checked_add(offset));
            let at = bounce.copy;
            let (source, target) = (source.ok_or(BusError { at })?, target.ok_or(BusError { at })?);
            core.counters.bounced_bytes += last - first;
            self.memory.copy(source, target, last - first)?;
        }
        Ok(())
    }

    /// Brings what the device wrote to the caller's buffers and gives the slots back. The device has no access any
    /// more (or never was kept from anything).
    pub(super) fn release(
        &self,
        core: &mut DmaCore<B::Core>,
        bounces: Vec<Bounce>,
        direction: Direction,
    ) -> Result<(), UnmapError<B>> {
        let mut done = Ok(());
        if direction.device_writes() {
            for bounce in &bounces {
                core.counters.bounced_bytes += bounce.len;
                done = done.and(self.memory.copy(bounce.copy, bounce.original, bounce.len));
            }
        }
        self.free_slots(bounces);
        done.map_err(UnmapError::Lost)
    }

    pub(super) fn free_slots(&self, bounces: Vec<Bounce>) {
        if let Some(pool) = &self.pool {
            // The last one first: the next mapping then begins to look where the first of these was, finds all of them
            // in turn, and their memory is still in the caches.
            for bounce in bounces.into_iter().rev() {
                pool.free(bounce.slots);
            }
        }
    }
}
