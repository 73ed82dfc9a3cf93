//! Adjusted guest address widths and the table levels they stand for.

use core::fmt;

use iommu_types::PAGE_SHIFT;

/// Address bits that one table level translates: 512 entries a table.
pub const TABLE_INDEX_BITS: u32 = 9;

/// An adjusted guest address width: how many address bits a second-stage table tree translates, which fixes its
/// number of levels. VT-d §9.3 (context entry, AW), §11.4.2 (CAP_REG.SAGAW).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Agaw {
    /// 39 bits, 3 levels, root table is a PDP table.
    Bits39,
    /// 48 bits, 4 levels, root table is a PML4 table.
    Bits48,
    /// 57 bits, 5 levels, root table is a PML5 table.
    Bits57,
}

impl Agaw {
    /// All widths, smallest first.
    pub const ALL: [Self; 3] = [Self::Bits39, Self::Bits48, Self::Bits57];

    /// The code in AW fields; also the bit number within CAP.SAGAW.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Bits39 => 1,
            Self::Bits48 => 2,
            Self::Bits57 => 3,
        }
    }

    /// The width that a code of an AW field names; `None` for the reserved codes 0 and 4 to 7.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Bits39),
            2 => Some(Self::Bits48),
            3 => Some(Self::Bits57),
            _ => None,
        }
    }

    /// Number of table levels.
    #[must_use]
    pub const fn levels(self) -> u8 {
        self.code() + 2
    }

    /// The width with `levels` table levels, where there is one (3, 4 or 5).
    #[must_use]
    pub const fn from_levels(levels: u8) -> Option<Self> {
        match levels.checked_sub(2) {
            Some(code) => Self::from_code(code),
            None => None,
        }
    }

    /// Number of address bits.
    #[must_use]
    pub const fn width(self) -> u8 {
        30 + 9 * self.code()
    }

    /// The smallest width of at least `bits` address bits; `None` above 57.
    #[must_use]
    pub const fn at_least(bits: u8) -> Option<Self> {
        if bits <= 39 {
            Some(Self::Bits39)
        } else if bits <= 48 {
            Some(Self::Bits48)
        } else if bits <= 57 {
            Some(Self::Bits57)
        } else {
            None
        }
    }

    /// The largest address the width holds.
    #[must_use]
    pub const fn max_address(self) -> u64 {
        (1 << self.width()) - 1
    }
}

impl fmt::Display for Agaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-bit ({}-level)", self.width(), self.levels())
    }
}

/// Lowest address bit that selects an entry of a table at `level`; level 1 is the lowest table. VT-d §3.6, §3.7.
///
/// Levels above 6 have no address bits left; they give the shift of level 6.
#[must_use]
pub const fn level_shift(level: u8) -> u32 {
    let below = level.saturating_sub(1);
    let below = if below > 5 { 5 } else { below };
    PAGE_SHIFT + TABLE_INDEX_BITS * below as u32
}

/// Index (0 to 511) of the entry for `address` in a table at `level`; level 1 is the lowest table. VT-d §3.6, §3.7.
#[must_use]
pub const fn table_index(address: u64, level: u8) -> usize {
    ((address >> level_shift(level)) & 0x1FF) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_levels_and_codes_follow_the_specification_table() {
        assert_eq!(
            Agaw::ALL.map(|a| (a.code(), a.width(), a.levels())),
            [(1, 39, 3), (2, 48, 4), (3, 57, 5)]
        );
        assert_eq!(Agaw::ALL.map(|a| Agaw::from_code(a.code())), Agaw::ALL.map(Some));
        assert_eq!(Agaw::ALL.map(|a| Agaw::from_levels(a.levels())), Agaw::ALL.map(Some));
        assert_eq!([0, 4, 7].map(Agaw::from_code), [None; 3]);
        assert_eq!([0, 1, 2, 6].map(Agaw::from_levels), [None; 4]);
        assert_eq!(Agaw::at_least(40), Some(Agaw::Bits48));
        assert_eq!(Agaw::at_least(58), None);
        assert_eq!(Agaw::Bits39.max_address(), 0x7F_FFFF_FFFF);
    }

    #[test]
    fn index_of_each_level_takes_its_own_nine_bits() {
        // 1 at the lowest bit of each index, level 1 upwards.
        let address = 1 << 12 | 2 << 21 | 3 << 30 | 4 << 39 | 5 << 48;
        assert_eq!([1, 2, 3, 4, 5].map(|l| table_index(address, l)), [1, 2, 3, 4, 5]);
        assert_eq!(table_index(u64::MAX, 5), 0x1FF);
        assert_eq!(level_shift(200), level_shift(6));
    }
}
