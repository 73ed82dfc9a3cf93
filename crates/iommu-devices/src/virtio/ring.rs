//! Taking requests out of a ring, and whether the driver wants to hear of them.

use std::sync::atomic::Ordering;

use bumpalo::Bump;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::memory::RingMemory;
use super::request::{Broken, MAX_SEGMENTS, Segment, Worker};
use crate::bus::Bus;

/// What a look at a ring came to.
pub(super) enum Step {
    /// A request was served.
    Served,
    /// The driver added something while the ring was put to rest.
    More,
    /// There is nothing left, and the driver will notify.
    Empty,
}

/// Serves the next request of a ring, if there is one.
pub(super) fn next_request(
    ring: &mut Queue,
    arena: &Bump,
    bus: &dyn Bus,
    segments: &mut Vec<Segment>,
    worker: &mut Worker<'_>,
) -> Result<Step, Broken> {
    let memory = RingMemory::new(arena, bus);
    let broken = |otherwise| memory.error().map_or(otherwise, Broken::Dma);
    let chain = ring.iter(&memory).map_err(|_| broken(Broken::Ring))?.next();
    let Some(chain) = chain else {
        if let Some(error) = memory.error() {
            return Err(Broken::Dma(error));
        }
        // The index at which the driver is to notify again goes out before the last look at the ring. Without the
        // feature drivers always notify.
        let more = ring.event_idx_enabled() && ring.enable_notification(&memory).map_err(|_| broken(Broken::Ring))?;
        memory.commit().map_err(Broken::Dma)?;
        return Ok(if more { Step::More } else { Step::Empty });
    };
    let head = chain.head_index();
    segments.clear();
    segments.extend(chain.take(MAX_SEGMENTS + 1).map(|descriptor| Segment {
        at: descriptor.addr().0,
        len: descriptor.len(),
        writable: descriptor.is_write_only(),
    }));
    if let Some(error) = memory.error() {
        return Err(Broken::Dma(error));
    }
    let written = worker.serve(segments)?;
    ring.add_used(&memory, head, written)
        .map_err(|_| broken(Broken::Ring))?;
    memory.commit().map_err(Broken::Dma)?;
    Ok(Step::Served)
}

/// Whether the driver wants to be interrupted for what was used since it was last asked.
pub(super) fn wants_interrupt(ring: &mut Queue, arena: &Bump, bus: &dyn Bus) -> Result<bool, Broken> {
    let memory = RingMemory::new(arena, bus);
    let broken = || memory.error().map_or(Broken::Ring, Broken::Dma);
    if ring.event_idx_enabled() {
        return ring.needs_notification(&memory).map_err(|_| broken());
    }
    // `virtio-queue` leaves this flag to the device.
    let flags: u16 = memory
        .load(GuestAddress(ring.avail_ring()), Ordering::Relaxed)
        .map_err(|_| broken())?;
    Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}
