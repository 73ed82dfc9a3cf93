//! The lock around what cores share, as a parameter.

use spin::Mutex;

/// A value that one caller at a time works on.
pub trait Exclusive<T>: Send + Sync {
    /// A lock around `value`.
    fn new(value: T) -> Self;

    /// Runs `work` on the value while nobody else does.
    fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R;
}

/// Which lock a [`crate::CachedAllocator`] puts around its shared part.
///
/// A kernel whose interrupt handlers map memory gives one that masks interrupts; a model checker gives its own. The
/// lock is held for a number of steps that is logarithmic in the number of gaps, times the length of one magazine.
pub trait LockKind {
    /// The lock.
    type Lock<T: Send>: Exclusive<T>;
}

/// A spin lock: right where holders are not interrupted for long.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpinLock;

impl LockKind for SpinLock {
    type Lock<T: Send> = Mutex<T>;
}

impl<T: Send> Exclusive<T> for Mutex<T> {
    fn new(value: T) -> Self {
        Self::new(value)
    }

    fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        work(&mut self.lock())
    }
}
