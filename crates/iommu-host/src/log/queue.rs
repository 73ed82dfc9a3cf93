//! Errors of the invalidation queue, as the kernel prints them.

use super::cursor::{Cursor, fit};

/// Why an invalidation queue stopped, or lost an answer. VT-d §11.4.7.1 (FSTS_REG: IQE, ICE, ITE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueError {
    /// A descriptor was refused; with the reason code of the unit.
    Refused(u8),
    /// A device did not answer an invalidation of its device-TLB in time; its requester ID (ffff: not known).
    TimedOut(u16),
    /// A device gave an answer to an invalidation that nobody asked for; its requester ID (ffff: not known).
    Unexpected(u16),
}

pub(super) fn read_queue(text: &str) -> Option<QueueError> {
    let mut at = Cursor::after(text, "VT-d detected Invalidation ")?;
    let number = |mut at: Cursor<'_>, label: &str| {
        at.literal(label)?;
        at.hex()
    };
    if at.literal("Queue Error:").is_some() {
        number(at, "Reason").and_then(fit).map(QueueError::Refused)
    } else if at.literal("Time-out Error:").is_some() {
        number(at, "SID").and_then(fit).map(QueueError::TimedOut)
    } else if at.literal("Completion Error:").is_some() {
        number(at, "SID").and_then(fit).map(QueueError::Unexpected)
    } else {
        None
    }
}
