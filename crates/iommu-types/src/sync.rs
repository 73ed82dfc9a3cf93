//! The atomics that table memory is made of, in one place so that a model checker can replace them.
//!
//! Concurrent code of this workspace takes its atomics from here, never from `core` directly.

use core::fmt;

pub use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// 64 bits that several threads and hardware change, one access at a time.
///
/// It is an [`AtomicU64`] everywhere but under a model checker, which brings its own and explores every order of
/// accesses that the memory model allows.
pub trait Word: fmt::Debug + Send + Sync {
    /// A word that holds `value`.
    fn new(value: u64) -> Self;
    /// Reads it.
    fn load(&self, order: Ordering) -> u64;
    /// Writes it.
    fn store(&self, value: u64, order: Ordering);
    /// Writes `new` if it holds `current`.
    ///
    /// # Errors
    /// What it holds instead.
    fn compare_exchange(&self, current: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64>;
    /// Clears all bits but those in `value`; tells what it held.
    fn fetch_and(&self, value: u64, order: Ordering) -> u64;
    /// Adds `value`, wrapping; tells what it held.
    fn fetch_add(&self, value: u64, order: Ordering) -> u64;
}

impl Word for AtomicU64 {
    fn new(value: u64) -> Self {
        Self::new(value)
    }
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }
    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }
    #[inline]
    fn compare_exchange(&self, current: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        self.compare_exchange(current, new, success, failure)
    }
    #[inline]
    fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_and(value, order)
    }
    #[inline]
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_add(value, order)
    }
}
