//! Traces: everything that went into a unit and came out of it, as text.
//!
//! A trace is what a unit did once, in a form that another run can do again with no VM around it: a bug seen once becomes a
//! file, and the file a test. It also is a notation for short stories of one's own, such as a driver's mistake.
//!
//! # Format
//!
//! One record a line, in order of time; fields are separated by single spaces; numbers are hexadecimal with `0x`, or decimal.
//! Empty lines and lines that begin with `#` mean nothing.
//!
//! | record | meaning |
//! |---|---|
//! | `portcullis-trace 1` | the first line: format and its version |
//! | `unit cap=C ecap=E haw=B version=M.m caches=…` | the second: CAP_REG, ECAP_REG, host address width in bits, architecture version, entries of the context, PASID, page, table and interrupt caches |
//! | `word A V` | before the next operation, the 64-bit word at host address A holds V |
//! | `read W R V` | operation: register R (offset) is read, W bits, and reads V |
//! | `write W R V` | operation: V is written to register R, W bits |
//! | `dma S K A L ok P` | operation: source S does K (`read`, `write`, `atomic`) of L bytes at IOVA A, and reaches host address P |
//! | `dma S K A L fault N` | operation: the same, blocked for reason N |
//! | `ask …`, `hit …` | as `dma`, but of a device-TLB: a translation request, and a request with the host address A that it was told |
//! | `reset` | operation: the unit is reset |
//! | `set A V` | effect of the operation before: the unit writes the 64-bit word V at A (flags, status of 64 bits) |
//! | `set32 A V` | effect: the unit writes 32 bits |
//! | `event A D` | effect: the unit sends the interrupt message D to A |
//! | `broken RULE …` | effect: the sanitizer finds a rule broken; the rest of the line is for people |
//!
//! `word` lines hold what the unit read during the operation that follows them, so a trace has no more of the guest's memory
//! than its tables and descriptors. An operation and its effects are in the file once they are done: a trace can be replayed
//! whatever ended the server. A unit with the sanitizer reads more, and only its traces can be judged again.

mod record;
mod recorder;
mod replay;
mod show;

pub use record::{Answer, Effect, Operation, Record, Story, TraceError};
pub use recorder::TraceFile;
pub(crate) use recorder::{Recorder, Watched};
pub use replay::{Difference, Outcome, replay};
pub use show::show;

/// Name and version of the format.
pub(crate) const FORMAT: &str = "portcullis-trace 1";
