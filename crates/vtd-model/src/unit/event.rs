//! The unit's own interrupts (VT-d §5.1.6, §7.3, §6.5.2.10): one state machine for all sources.

use vtd_spec::register::{EventAddress, EventControl, EventData, InvalidationCompletionStatus, offset};

use super::Unit;
use crate::cache::TranslationCache;

/// Why the unit sends an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventSource {
    /// A fault was recorded, or the invalidation queue has an error.
    Fault,
    /// A wait descriptor with the interrupt flag completed.
    InvalidationCompletion,
}

impl EventSource {
    /// Offset of the control register; data, address and upper address follow it.
    pub(super) const fn control(self) -> u32 {
        match self {
            Self::Fault => offset::FECTL,
            Self::InvalidationCompletion => offset::IECTL,
        }
    }
}

/// An interrupt of the unit itself: a posted write that the platform delivers without remapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventMessage {
    /// Which event.
    pub source: EventSource,
    /// Where to write.
    pub address: u64,
    /// What to write.
    pub data: u32,
}

/// Messages that the embedder has not taken: at most one for each source, since a source raises no second event
/// before software has cleared the status of the first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Messages {
    pub(super) fault: Option<EventMessage>,
    pub(super) invalidation: Option<EventMessage>,
}

impl Messages {
    fn put(&mut self, message: EventMessage) {
        match message.source {
            EventSource::Fault => self.fault = Some(message),
            EventSource::InvalidationCompletion => self.invalidation = Some(message),
        }
    }

    pub(super) fn take(&mut self) -> Option<EventMessage> {
        self.invalidation.take().or_else(|| self.fault.take())
    }
}

impl<C: TranslationCache> Unit<C> {
    /// An event condition arose while none of the source's status bits was set (VT-d §7.3): IP is set, and the
    /// message goes out unless masked.
    pub(super) fn raise_event(&mut self, source: EventSource) {
        self.set_event_control(source, self.event_control(source).with_ip(true));
        self.send_if_unmasked(source);
    }

    /// Software wrote the control register: clearing IM lets a pending message go.
    pub(super) fn event_mask_written(&mut self, source: EventSource) {
        self.send_if_unmasked(source);
    }

    /// Software wrote the status register: when no status bit is left, a pending interrupt is forgotten.
    pub(super) fn event_status_written(&mut self, source: EventSource) {
        if !self.has_status(source) {
            self.set_event_control(source, self.event_control(source).with_ip(false));
        }
    }

    /// Whether any status bit of the source is set.
    pub(super) fn has_status(&self, source: EventSource) -> bool {
        match source {
            EventSource::Fault => {
                let status = self.fault_status();
                status.ppf() || status.pfo() || status.iqe() || status.ice() || status.ite()
            }
            EventSource::InvalidationCompletion => {
                InvalidationCompletionStatus::new_with_raw_value(self.registers.get32(offset::ICS)).iwc()
            }
        }
    }

    fn send_if_unmasked(&mut self, source: EventSource) {
        let control = self.event_control(source);
        if control.im() || !control.ip() {
            return;
        }
        self.set_event_control(source, control.with_ip(false));
        let at = source.control();
        let low = self.registers.get32(at + 8) & EventAddress::ma_mask();
        self.messages.put(EventMessage {
            source,
            address: u64::from(low) | u64::from(self.registers.get32(at + 12)) << 32,
            data: self.registers.get32(at + 4) & EventData::MESSAGE_DATA,
        });
        self.counters.messages += 1;
    }

    fn set_event_control(&mut self, source: EventSource, control: EventControl) {
        self.registers.set32(source.control(), control.raw_value());
    }
}
