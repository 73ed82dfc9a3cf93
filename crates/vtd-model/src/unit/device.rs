//! Device-TLB invalidation (VT-d §4.3, §6.5.2.5, §6.5.2.6): messages to devices, their completions and time-outs.

use iommu_types::{Iova, Pasid, SourceId, SystemMemory};
use vtd_spec::register::{InvalidationQueueErrorRecord, offset};

use super::{EventSource, Unit};
use crate::cache::TranslationCache;

/// Invalidation tags: messages that can be under way at once. The queue stands still while all are in use.
const TAGS: usize = 32;

/// Which PASIDs a device-TLB invalidation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PasidScope {
    /// Every PASID (GI).
    All,
    /// One PASID.
    One(Pasid),
}

/// A message that tells a device to drop entries of its device-TLB.
///
/// The embedder delivers it and reports back with [`Unit::complete_device_invalidation`] when the device uses none of
/// the entries any more, or with [`Unit::time_out_device_invalidation`]. Wait descriptors complete after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceInvalidation {
    /// Names the message in the report.
    pub tag: u8,
    /// The function.
    pub source: SourceId,
    /// Entries with PASID; `None` for entries of requests without.
    pub pasid: Option<PasidScope>,
    /// First address.
    pub first: Iova,
    /// Base-2 logarithm of the number of 4 KiB pages; 52 and more mean every address.
    pub order: u8,
}

/// The wait descriptor at the head of the queue while device-TLB invalidations are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeldWait {
    /// There is none.
    None,
    /// It was fetched and waits for completions.
    Pending,
    /// A time-out aborted it: it is passed over without completing.
    Aborted,
}

/// The invalidation tags of a unit.
#[derive(Clone, Debug, Default)]
pub(super) struct Devices {
    /// Message of each tag, and whether the embedder has taken it.
    pub(super) tags: [Option<(DeviceInvalidation, bool)>; TAGS],
}

impl Devices {
    /// Whether any message is unanswered.
    pub(super) fn is_waiting(&self) -> bool {
        self.tags.iter().any(Option::is_some)
    }
}

impl<C: TranslationCache> Unit<C> {
    /// Takes the next message for a device. Units without device-TLBs have none.
    pub fn take_device_invalidation(&mut self) -> Option<DeviceInvalidation> {
        let (message, taken) = self.devices.tags.iter_mut().flatten().find(|(_, taken)| !*taken)?;
        *taken = true;
        Some(*message)
    }

    /// The device answered the message with `tag`; the queue goes on. A completion that no message of `source` waits
    /// for is an invalidation completion error (VT-d §4.3, FSTS.ICE).
    pub fn complete_device_invalidation<M: SystemMemory>(&mut self, memory: &M, source: SourceId, tag: u8) {
        if self.free_tag(source, tag) {
            self.run_queue(memory);
            return;
        }
        let quiet = !self.has_status(EventSource::Fault);
        if !self.fault_status().ice() {
            self.set_error_record(|record| record.with_completion_source(source));
            self.set_fault_status(self.fault_status().with_ice(true));
        }
        if quiet {
            self.raise_event(EventSource::Fault);
        }
    }

    /// The device did not answer the message with `tag` in time (FSTS.ITE): the queue stops until software has cleared
    /// the error. The wait that is pending is never completed; software submits again what it still wants. A tag that is not in use is ignored.
    pub fn time_out_device_invalidation(&mut self, source: SourceId, tag: u8) {
        if !self.free_tag(source, tag) {
            return;
        }
        let quiet = !self.has_status(EventSource::Fault);
        if !self.fault_status().ite() {
            self.set_error_record(|record| record.with_timeout_source(source));
            self.set_fault_status(self.fault_status().with_ite(true));
        }
        // A wait that was fetched already is never completed.
        if self.held_wait == HeldWait::Pending {
            self.held_wait = HeldWait::Aborted;
        }
        if quiet {
            self.raise_event(EventSource::Fault);
        }
    }

    /// Sends a message; false if no tag is free.
    pub(super) fn send_device_invalidation(
        &mut self,
        source: SourceId,
        pasid: Option<PasidScope>,
        first: Iova,
        order: u8,
    ) -> bool {
        let free = (0u8..).zip(&mut self.devices.tags).find(|(_, slot)| slot.is_none());
        let Some((tag, slot)) = free else {
            return false;
        };
        let message = DeviceInvalidation {
            tag,
            source,
            pasid,
            first,
            order,
        };
        *slot = Some((message, false));
        self.counters.invalidations.device += 1;
        true
    }

    fn free_tag(&mut self, source: SourceId, tag: u8) -> bool {
        let Some(slot) = self.devices.tags.get_mut(usize::from(tag)) else {
            return false;
        };
        let known = slot.is_some_and(|(message, _)| message.source == source);
        if known {
            *slot = None;
        }
        known
    }

    fn set_error_record(&mut self, change: impl FnOnce(InvalidationQueueErrorRecord) -> InvalidationQueueErrorRecord) {
        let record = InvalidationQueueErrorRecord::new_with_raw_value(self.registers.get64(offset::IQERCD));
        self.registers.set64(offset::IQERCD, change(record).raw_value());
    }
}
