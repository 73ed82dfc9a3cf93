//! Sparse memory, raw table builders and a naive oracle for tests.
#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "an aid of tests reports by panicking"
)]

mod clock;
mod memory;
pub mod oracle;
pub mod raw;

pub use clock::TestClock;
pub use memory::{FrameCounters, HardwareView, POISON, SparseMemory, SparseMemoryBuilder, Violation};
