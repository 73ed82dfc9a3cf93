//! The atomics that table memory is made of, in one place so that a model checker can replace them.
//!
//! Concurrent code of this workspace takes its atomics from here, never from `core` directly.

pub use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
