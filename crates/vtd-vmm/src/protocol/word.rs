//! The atomic word that everything here is made of.

use iommu_types::sync::{self, AtomicU64, Ordering};

/// A 64-bit atomic: [`AtomicU64`], or what a model checker puts in its place.
pub trait Word: sync::Word {
    /// Writes the word and tells what it was.
    fn swap(&self, value: u64, order: Ordering) -> u64;
    /// Subtracts from the word, wrapping, and tells what it was.
    fn fetch_sub(&self, value: u64, order: Ordering) -> u64;
    /// Sets bits of the word and tells what it was.
    fn fetch_or(&self, value: u64, order: Ordering) -> u64;
    /// Orders the accesses before it against those after it.
    fn fence(order: Ordering);
}

impl Word for AtomicU64 {
    #[inline]
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.swap(value, order)
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
    fn fence(order: Ordering) {
        sync::fence(order);
    }
}
