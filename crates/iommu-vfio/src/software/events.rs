//! Interrupts that are counted in eventfds: vectors of processors that nobody has, handed out one by one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use soft_platform::Arrival;
use vmm_sys_util::eventfd::EventFd;
use vtd_driver::InterruptTarget;

/// APIC IDs of the processors whose vectors are handed out: high ones, so that programs that choose their own targets
/// find the low ones free.
const PROCESSORS: std::ops::RangeInclusive<u32> = 0xc0..=0xfe;
/// Vectors of a processor that are handed out: above those of exceptions.
const VECTORS: std::ops::RangeInclusive<u8> = 0x20..=0xef;

/// Where an interrupt arrives: the processor and the vector.
type Target = (u32, u8);

/// The vectors that are in use, and what they count in.
#[derive(Default)]
pub(crate) struct Events {
    taken: Mutex<BTreeMap<Target, EventFd>>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("taken", &self.lock().len()).finish()
    }
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Target, EventFd>> {
        // One insertion or removal at a time: a panic leaves nothing half done.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free vector that counts in `event` from now on; `None` if there is none, or the event cannot be kept.
    pub(super) fn take(&self, event: &EventFd) -> Option<InterruptTarget> {
        let event = event.try_clone().ok()?;
        let mut taken = self.lock();
        let all = PROCESSORS.flat_map(|processor| VECTORS.map(move |vector| (processor, vector)));
        // Both are sorted: the first that differs is free.
        let mut used = taken.keys().copied().peekable();
        let free = all.into_iter().find(|target| used.next_if_eq(target).is_none())?;
        drop(used);
        taken.insert(free, event);
        Some(InterruptTarget::fixed(free.1, free.0))
    }

    /// Gives a vector back.
    pub(super) fn release(&self, target: InterruptTarget) {
        self.lock().remove(&(target.destination, target.vector));
    }

    /// Counts an arrival; false if it is nobody's.
    pub(crate) fn arrived(&self, arrival: &Arrival) -> bool {
        match self.lock().get(&(arrival.destination, arrival.vector)) {
            // A counter that is full has been told.
            Some(event) => {
                let _ = event.write(1);
                true
            }
            None => false,
        }
    }
}
