//! Kernel logs: DMA and interrupt faults, and what the kernel said about its IOMMUs at boot.
//!
//! [`read`] takes the bytes of a log as somebody sent it: the output of `dmesg`, a syslog file, a serial console
//! that lost characters, a mail that broke lines. What it can decode becomes a [`Record`] with its line number;
//! a line that looks like a fault but cannot be decoded is an [`Unread`], and never guessed.
//!
//! The shapes of a fault line, by kernel:
//!
//! | kernels | shape |
//! |---|---|
//! | to 4.x | `DMAR:[DMA Write] Request device [03:00.1] fault addr fffc0000`, the reason on a line of its own |
//! | 4.x | the same with ` [fault reason 05] text` on the line |
//! | 5.x | with `PASID ffffffff` before `fault addr`; ffffffff means none |
//! | 5.14 | `[DMA Read NO_PASID] Request device [0x00:0x02.0] fault addr 0x… [fault reason 0x06] text` |
//! | 5.15 on | the same with `[81:00.0]`; `[DMA Write PASID 0x2]` |
//! | all | `[INTR-REMAP] Request device [64:00.5] fault index 0x8800 [fault reason 0x25] text` |
//!
//! The reason is decimal up to 5.13 and hexadecimal with `0x` since; the address is that of a page.

mod boot;
mod cursor;
mod fault;
mod line;
mod queue;

pub use boot::{BootEvent, IrqMode};
pub use fault::{Fault, Request};
pub use line::Stamp;
pub use queue::QueueError;

use boot::read_boot;
use fault::{Partial, Piece};
use line::{Line, clean_lines};

/// Bytes of a log that are looked at; the rest is left out, and [`Log::cut`] says so.
pub const MAX_BYTES: usize = 64 << 20;
/// Records that are kept.
pub const MAX_RECORDS: usize = 200_000;
/// Unread lines that are kept; all are counted.
pub const MAX_UNREAD: usize = 1_000;
/// Lines that a fault may be broken over.
const MAX_PIECES: usize = 4;
/// Follow-up lines that are kept with a fault.
const MAX_DETAILS: usize = 16;

/// What a log says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// What was decoded, in the order of the lines.
    pub records: Vec<Record>,
    /// Lines that look like faults and could not be decoded, at most [`MAX_UNREAD`].
    pub unread: Vec<Unread>,
    /// How many such lines there are.
    pub unread_count: usize,
    /// Lines that were looked at.
    pub lines: usize,
    /// Faults that the kernel did not print, as it says itself: counts of faults are lower bounds.
    pub suppressed: u64,
    /// Whether something was left out because the log is too large.
    pub cut: bool,
}

/// Something that a log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Number of the (first) line, from 1.
    pub line: usize,
    /// The kernel's time stamp, if the line has one.
    pub stamp: Option<Stamp>,
    /// What it says.
    pub event: Event,
}

/// The kinds of things that logs say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A request was blocked.
    Fault(Fault),
    /// A unit announces faults with its fault status register. VT-d §11.4.7.1 (FSTS_REG).
    Status(u32),
    /// The kernel left out so many messages about faults.
    Suppressed(u64),
    /// The invalidation queue of a unit stopped.
    Queue(QueueError),
    /// Something about how the machine started.
    Boot(BootEvent),
}

/// A line that looks like a fault but cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Its number, from 1.
    pub line: usize,
    /// Its text, cut to a sensible length.
    pub text: String,
    /// Why not.
    pub why: Why,
}

/// Why a line could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// It ends, or goes on with something else, before the address.
    CutShort,
    /// A part of it is not what it should be; serial consoles lose characters.
    Garbled,
    /// It is a fault of another kind of IOMMU.
    OtherIommu,
    /// A reason on its own, without the request that it belongs to.
    ReasonAlone,
}

impl core::fmt::Display for Why {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::CutShort => "it is cut short",
            Self::Garbled => "a part of it is garbled",
            Self::OtherIommu => "it is from another kind of IOMMU than Intel's",
            Self::ReasonAlone => "it is a reason without the request that it belongs to",
        })
    }
}

impl Log {
    /// The faults, with their line numbers and stamps.
    pub fn faults(&self) -> impl Iterator<Item = (&Record, &Fault)> {
        self.records.iter().filter_map(|record| match &record.event {
            Event::Fault(fault) => Some((record, fault)),
            _ => None,
        })
    }

    /// What the log says about the start of the machine, with line numbers.
    pub fn boot(&self) -> impl Iterator<Item = (usize, &BootEvent)> {
        self.records.iter().filter_map(|record| match &record.event {
            Event::Boot(event) => Some((record.line, event)),
            _ => None,
        })
    }
}

/// Reads a log. Never fails: what cannot be decoded is counted.
#[must_use]
pub fn read(bytes: &[u8]) -> Log {
    let cut = bytes.len() > MAX_BYTES;
    let bytes = bytes.get(..MAX_BYTES).unwrap_or(bytes);
    let mut reader = Reader::default();
    for line in clean_lines(bytes) {
        reader.line(&line);
    }
    reader.settle();
    reader.log.cut |= cut;
    reader.log
}

/// A fault whose lines are not complete yet.
#[derive(Debug)]
struct Pending {
    line: usize,
    stamp: Option<Stamp>,
    /// The pieces so far, joined.
    text: String,
    /// What was made of them.
    partial: Partial,
    pieces: usize,
}

#[derive(Debug, Default)]
struct Reader {
    log: Log,
    pending: Option<Pending>,
    /// Index of the latest fault's record, for the lines that follow it.
    latest: Option<usize>,
}

impl Reader {
    fn line(&mut self, line: &Line<'_>) {
        self.log.lines += 1;
        if self.pending.is_some() && self.continues(line) {
            return;
        }
        match fault::piece(&line.text) {
            Piece::Whole(fault) => {
                self.settle();
                self.fault(line.number, line.stamp, fault);
            }
            Piece::Part(partial) => {
                self.settle();
                self.pending = Some(Pending {
                    line: line.number,
                    stamp: line.stamp,
                    text: line.text.to_string(),
                    partial,
                    pieces: 1,
                });
            }
            Piece::Unread(why) => self.unread(line.number, &line.text, why),
            Piece::Other => self.other(line),
        }
    }

    /// Whether `line` completes or continues the pending fault.
    fn continues(&mut self, line: &Line<'_>) -> bool {
        let Some(pending) = &mut self.pending else { return false };
        pending.pieces += 1;
        let joined = format!("{} {}", pending.text, fault::without_prefix(&line.text));
        match fault::piece(&joined) {
            Piece::Whole(fault) if !fault::starts(&line.text) => {
                let (number, stamp) = (pending.line, pending.stamp);
                self.pending = None;
                self.fault(number, stamp, fault);
                true
            }
            // More of it, as mail clients break lines: only if the piece stands right behind, without stamp.
            Piece::Part(partial) if line.stamp.is_none() && partial > pending.partial && !fault::starts(&line.text) => {
                pending.partial = partial;
                pending.text = joined;
                let over = pending.pieces >= MAX_PIECES;
                if over {
                    self.settle();
                }
                true
            }
            _ => {
                if pending.pieces >= MAX_PIECES || !pending.partial.is_whole_but_reason() {
                    self.settle();
                }
                false
            }
        }
    }

    /// The pending fault gets no more lines: it counts if all but the reason is there.
    fn settle(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        match pending.partial.into_fault() {
            Some(fault) => self.fault(pending.line, pending.stamp, fault),
            None => self.unread(pending.line, &pending.text, Why::CutShort),
        }
    }

    fn other(&mut self, line: &Line<'_>) {
        if let Some(detail) = fault::detail(&line.text) {
            if let Some(Event::Fault(fault)) = self
                .latest
                .and_then(|index| self.log.records.get_mut(index))
                .map(|record| &mut record.event)
            {
                fault.unit = fault.unit.or(detail.unit);
                if fault.details.len() < MAX_DETAILS {
                    fault.details.push(detail.text);
                }
            }
            return;
        }
        if let Some(count) = fault::suppressed(&line.text) {
            self.log.suppressed = self.log.suppressed.saturating_add(count);
            self.push(line.number, line.stamp, Event::Suppressed(count));
        } else if let Some(status) = fault::status(&line.text) {
            self.push(line.number, line.stamp, Event::Status(status));
        } else if let Some(error) = queue::read_queue(&line.text) {
            self.push(line.number, line.stamp, Event::Queue(error));
        } else if let Some(event) = read_boot(&line.text) {
            self.push(line.number, line.stamp, Event::Boot(event));
        }
    }

    fn fault(&mut self, line: usize, stamp: Option<Stamp>, fault: Fault) {
        self.latest = Some(self.log.records.len());
        self.push(line, stamp, Event::Fault(fault));
    }

    fn push(&mut self, line: usize, stamp: Option<Stamp>, event: Event) {
        if self.log.records.len() < MAX_RECORDS {
            self.log.records.push(Record { line, stamp, event });
        } else {
            self.log.cut = true;
        }
    }

    fn unread(&mut self, line: usize, text: &str, why: Why) {
        self.log.unread_count += 1;
        if self.log.unread.len() < MAX_UNREAD {
            self.log.unread.push(Unread {
                line,
                text: text.chars().take(200).collect(),
                why,
            });
        }
    }
}

#[cfg(test)]
mod tests;
