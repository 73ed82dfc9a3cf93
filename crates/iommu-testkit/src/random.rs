//! Numbers that look random and are the same in each run.

/// A generator with a seed that is not 0 (xorshift64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`, which is far below 2^40; 0 if there is none.
    pub fn below(&mut self, limit: u64) -> u64 {
        // The low bits of one number depend on those of the one before.
        (self.next() >> 24) % limit.max(1)
    }

    /// A place in something of `len` things.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a usize")
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: impl AsRef<[T]>) -> T {
        let choices = choices.as_ref();
        choices[self.index(choices.len())]
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    /// A number whose interesting values are likely: small, one bit, near the top, anything.
    pub fn word(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(16),
            1 => 1 << self.below(64),
            2 => u64::MAX - self.below(0x2000),
            _ => self.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn every_choice_is_made_and_none_outside() {
        let mut random = Random(1);
        let mut seen = [0; 5];
        for _ in 0..1000 {
            seen[random.index(5)] += 1;
            assert!(random.pick([3, 5]) % 2 == 1);
        }
        assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
        assert_eq!(random.below(0), 0);
    }
}
