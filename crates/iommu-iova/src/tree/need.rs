//! What a gap offers, and what is asked of it.

/// What a gap must offer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    pub(super) pages: u64,
    pub(super) align: u64,
    /// Length from which a gap holds an aligned run wherever it begins.
    any: u64,
    /// Base-2 logarithm of a block that holds an aligned run and is itself aligned.
    order: u8,
}

impl Need {
    /// `pages` pages at a multiple of `align`, a power of two.
    pub(crate) const fn new(pages: u64, align: u64) -> Self {
        let block = pages.next_power_of_two();
        let block = if block < align { align } else { block };
        Self {
            pages,
            align,
            any: pages + align - 1,
            order: log2(block),
        }
    }

    pub(super) const fn fits(self, len: u64, order: u8) -> bool {
        len >= self.any || (order >= self.order && len >= self.pages)
    }
}

/// Base-2 logarithm, rounded down; of 0, 0.
const fn log2(value: u64) -> u8 {
    let [low, ..] = (u64::BITS - 1 - (value | 1).leading_zeros()).to_le_bytes();
    low
}

/// Base-2 logarithm of the largest naturally aligned block of pages inside a run.
pub(super) const fn largest_block(start: u64, len: u64) -> u8 {
    let order = log2(len);
    let block = 1 << order;
    // A run of 2^n pages may straddle every block of that size; it then holds one of half the size.
    let first = (start + block - 1) & !(block - 1);
    if first + block <= start + len {
        order
    } else {
        order.saturating_sub(1)
    }
}
