//! The atomic word that everything here is made of.

use core::fmt::Debug;

use iommu_types::sync::{AtomicU64, Ordering, fence};

/// A 64-bit atomic: [`AtomicU64`], or what a model checker puts in its place.
pub trait Word: Debug {
    /// A word that holds `value`.
    fn new(value: u64) -> Self;
    /// Reads the word.
    fn load(&self, order: Ordering) -> u64;
    /// Writes the word.
    fn store(&self, value: u64, order: Ordering);
    /// Writes the word and tells what it was.
    fn swap(&self, value: u64, order: Ordering) -> u64;
    /// Writes `new` if the word is `current`.
    ///
    /// # Errors
    /// The word, if it is something else.
    fn compare_exchange(&self, current: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64>;
    /// Adds to the word, wrapping, and tells what it was.
    fn fetch_add(&self, value: u64, order: Ordering) -> u64;
    /// Subtracts from the word, wrapping, and tells what it was.
    fn fetch_sub(&self, value: u64, order: Ordering) -> u64;
    /// Sets bits of the word and tells what it was.
    fn fetch_or(&self, value: u64, order: Ordering) -> u64;
    /// Clears the bits of the word that are 0 in `value` and tells what it was.
    fn fetch_and(&self, value: u64, order: Ordering) -> u64;
    /// Orders the accesses before it against those after it.
    fn fence(order: Ordering);
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
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.swap(value, order)
    }
    #[inline]
    fn compare_exchange(&self, current: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        self.compare_exchange(current, new, success, failure)
    }
    #[inline]
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_add(value, order)
    }
    #[inline]
    fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_sub(value, order)
    }
    #[inline]
    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_or(value, order)
    }
    #[inline]
    fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_and(value, order)
    }
    #[inline]
    fn fence(order: Ordering) {
        fence(order);
    }
}
