//! Configuration space as far as it was seen.

use iommu_groups::pci;

/// Configuration space of one function, byte by byte known or unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    /// One bit a byte.
    known: Vec<u64>,
}

const WORD: usize = 64;

impl ConfigSpace {
    /// What a read of the space returned: its first `bytes`; more than 4096 are ignored.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut space = Self::default();
        space.put(0, bytes);
        space
    }

    /// Marks `bytes` from `offset` as known. What lies beyond 4096 is ignored.
    pub fn put(&mut self, offset: u16, bytes: &[u8]) {
        let from = usize::from(offset);
        for (at, byte) in (from..usize::from(pci::EXTENDED_LEN)).zip(bytes) {
            if self.bytes.len() <= at {
                self.bytes.resize(at + 1, 0);
                self.known.resize(at / WORD + 1, 0);
            }
            if let (Some(place), Some(word)) = (self.bytes.get_mut(at), self.known.get_mut(at / WORD)) {
                *place = *byte;
                *word |= 1 << (at % WORD);
            }
        }
    }

    /// Marks `bytes` from `offset` as known where nothing is known yet.
    pub fn put_missing(&mut self, offset: u16, bytes: &[u8]) {
        for (at, byte) in (offset..pci::EXTENDED_LEN).zip(bytes) {
            if self.byte(at).is_none() {
                self.put(at, &[*byte]);
            }
        }
    }

    /// The byte at `offset`, if it is known.
    #[must_use]
    pub fn byte(&self, offset: u16) -> Option<u8> {
        let at = usize::from(offset);
        let word = self.known.get(at / WORD)?;
        (word >> (at % WORD) & 1 != 0).then(|| self.bytes.get(at).copied())?
    }

    /// The dword at `offset`, if all of it is known.
    #[must_use]
    pub fn read32(&self, offset: u16) -> Option<u32> {
        let mut bytes = [0; 4];
        for (at, byte) in (offset..).zip(&mut bytes) {
            *byte = self.byte(at)?;
        }
        Some(u32::from_le_bytes(bytes))
    }

    /// How many bytes are known from the start without a gap.
    #[must_use]
    pub fn known_len(&self) -> usize {
        (0..pci::EXTENDED_LEN).take_while(|at| self.byte(*at).is_some()).count()
    }

    /// Everything that is known from the start without a gap.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        self.bytes.get(..self.known_len()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_stay_unknown_and_dwords_need_all_four_bytes() {
        let mut space = ConfigSpace::from_bytes(&[0x86, 0x80, 0x41]);
        assert_eq!(space.read32(0), None);
        space.put(3, &[0x46]);
        assert_eq!(space.read32(0), Some(0x4641_8086));
        space.put(0x100, &[1, 2, 3, 4]);
        assert_eq!((space.read32(0x100), space.read32(0xfc)), (Some(0x0403_0201), None));
        assert_eq!(space.known_len(), 4);
        space.put(0xffe, &[1, 2, 3, 4]);
        assert_eq!((space.byte(0xfff), space.read32(0xffc)), (Some(2), None));
        space.put_missing(0, &[0; 8]);
        assert_eq!((space.read32(0), space.read32(4)), (Some(0x4641_8086), Some(0)));
    }
}
