//! One cache line that many threads read and few write.

use iommu_types::sync::Ordering;

use super::word::Word;

/// Words of payload: with the sequence number they fill the 64 bytes of a cache line.
pub const WORDS: usize = 7;

/// Seven words under a sequence lock.
///
/// The sequence number is odd while a writer is inside. A reader copies what it needs and keeps the copy only if the
/// number was even and has not moved, so it never sees words of two writes together; it writes nothing, so readers do
/// not disturb each other. Nobody spins in here: a reader or writer that meets a writer is told so and does without.
#[derive(Debug)]
#[repr(align(64))]
pub struct Line<W> {
    sequence: W,
    words: [W; WORDS],
}

impl<W: Word> Default for Line<W> {
    fn default() -> Self {
        Self {
            sequence: W::new(0),
            words: core::array::from_fn(|_| W::new(0)),
        }
    }
}

impl<W: Word> Line<W> {
    /// What `look` makes of the words; `None` if `look` says so or if a writer interfered. `look` loads with
    /// [`Ordering::Relaxed`] and must cope with words that do not belong together.
    #[inline]
    pub fn read<R>(&self, look: impl FnOnce(&[W; WORDS]) -> Option<R>) -> Option<R> {
        let before = self.sequence.load(Ordering::Acquire);
        let found = look(&self.words)?;
        // The loads of `look` come before the second load of the sequence number.
        W::fence(Ordering::Acquire);
        (before & 1 == 0 && self.sequence.load(Ordering::Relaxed) == before).then_some(found)
    }

    /// All words.
    #[inline]
    pub fn snapshot(&self) -> Option<[u64; WORDS]> {
        self.read(|words| {
            Some(core::array::from_fn(|at| {
                words.get(at).map_or(0, |word| word.load(Ordering::Relaxed))
            }))
        })
    }

    /// The right to write, if nobody else has it.
    #[inline]
    pub fn try_lock(&self) -> Option<LineGuard<'_, W>> {
        let now = self.sequence.load(Ordering::Relaxed);
        if now & 1 == 1 {
            return None;
        }
        let odd = now.wrapping_add(1);
        self.sequence
            .compare_exchange(now, odd, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        // A reader that sees any word written from here on also sees the odd number.
        W::fence(Ordering::Release);
        Some(LineGuard { line: self, odd })
    }
}

/// The right to write to a [`Line`]; gives it back when dropped.
#[derive(Debug)]
pub struct LineGuard<'a, W: Word> {
    line: &'a Line<W>,
    odd: u64,
}

impl<W: Word> LineGuard<'_, W> {
    /// The word at `at`; 0 outside the line.
    #[inline]
    #[must_use]
    pub fn get(&self, at: usize) -> u64 {
        self.line.words.get(at).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Writes the word at `at`.
    #[inline]
    pub fn set(&self, at: usize, value: u64) {
        if let Some(word) = self.line.words.get(at) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

impl<W: Word> Drop for LineGuard<'_, W> {
    #[inline]
    fn drop(&mut self) {
        self.line.sequence.store(self.odd.wrapping_add(1), Ordering::Release);
    }
}
