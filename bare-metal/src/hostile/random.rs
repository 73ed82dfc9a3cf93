//! Numbers of all kinds, from a seed.

use crate::hardware::{Playground, Window};

/// Bytes of a page.
const PAGE: u64 = 0x1000;
/// Memory of the machine that is not the kernel's: what lies between these.
const MEMORY: core::ops::Range<u64> = 0x200_0000..0x2000_0000;
/// Every random word has one of these bits set. Taken for an address of a page of up to 1 GiB, or for an offset in one, it
/// then does not lead to the kernel, which lies below them all.
const AWAY: u64 = 0x1f00_0000;

/// Addresses at the ends of what is possible, and where something else than memory is.
const EDGES: [u64; 14] = [
    0,
    0xfff,
    0x1fff_f000,
    0x1fff_fff8,
    0x2000_0000,
    0xfee0_1000,
    0xfeef_fffc,
    0xfff_ffff_f000,
    1 << 38,
    1 << 39,
    1 << 47,
    1 << 48,
    0xffff_ffff_ffff_f000,
    u64::MAX - 7,
];

/// A generator (SplitMix64).
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any 64 bits.
    pub(super) fn raw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.raw() % end
    }

    /// A number of 32 bits below `end`, which is not 0.
    pub(super) fn below32(&mut self, end: u32) -> u32 {
        u32::try_from(self.below(end.into())).unwrap_or(0)
    }

    /// True in one of `turns`.
    pub(super) fn once_in(&mut self, turns: u64) -> bool {
        self.below(turns) == 0
    }

    /// One of these.
    pub(super) fn one<T: Copy, const N: usize>(&mut self, of: [T; N]) -> T {
        let last = u64::try_from(N).unwrap_or(1);
        let index = usize::try_from(self.below(last)).unwrap_or(0);
        of[index]
    }

    /// Any 64 bits that lead away from the kernel.
    pub(super) fn word(&mut self) -> u64 {
        let word = self.raw();
        if word & AWAY == 0 { word | AWAY } else { word }
    }

    /// The lower half of such a word.
    pub(super) fn word32(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.word().to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Any 16 bits.
    pub(super) fn word16(&mut self) -> u16 {
        let [a, b, ..] = self.raw().to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    /// A page whose contents are random.
    pub(super) fn page(&mut self) -> u64 {
        Playground::FIRST + self.below(Playground::LEN / PAGE) * PAGE
    }

    /// An address: mostly of a page of random contents, sometimes elsewhere.
    pub(super) fn address(&mut self) -> u64 {
        match self.below(16) {
            0..=9 => self.page(),
            10..=12 => self.page() + self.below(PAGE),
            13 => MEMORY.start + self.below(MEMORY.end - MEMORY.start),
            14 => self.one(EDGES),
            _ => self.word(),
        }
    }

    /// Something to write into a register of 64 bits.
    pub(super) fn value(&mut self) -> u64 {
        match self.below(4) {
            0 => self.address(),
            1 => self.below(64),
            2 => u64::MAX,
            _ => self.word(),
        }
    }

    /// Reads or writes somewhere below `end`, with any width.
    pub(super) fn access(&mut self, registers: Window, end: u32) {
        let offset = self.below32(end);
        self.access_at(registers, offset);
    }

    /// Reads or writes with any width; mostly aligned.
    pub(super) fn access_at(&mut self, registers: Window, offset: u32) {
        let aligned = |width: u32, skewed: bool| if skewed { offset } else { offset & !(width - 1) };
        let skewed = self.once_in(8);
        let [a, b, c, d, ..] = self.value().to_le_bytes();
        match self.below(8) {
            0 => registers.any_write8(offset, a),
            1 => registers.any_write16(aligned(2, skewed), u16::from_le_bytes([a, b])),
            2 => registers.any_write32(aligned(4, skewed), u32::from_le_bytes([a, b, c, d])),
            3 => registers.any_write64(aligned(8, skewed), self.value()),
            4 => _ = registers.any_read8(offset),
            5 => _ = registers.any_read16(aligned(2, skewed)),
            6 => _ = registers.any_read32(aligned(4, skewed)),
            _ => _ = registers.any_read64(aligned(8, skewed)),
        }
    }
}
