//! Macros and conversions behind the layouts.

use iommu_types::Pasid;

/// Adds conversions between a 128-bit structure and its two 64-bit words in memory order.
macro_rules! words128 {
    ($name:ident) => {
        words128!($name, 16);
    };
    // A structure of 32 bytes whose upper half is reserved.
    ($name:ident padded) => {
        words128!($name, 32);

        impl $name {
            /// The four words of the structure in memory; the upper two are reserved and 0.
            #[must_use]
            pub const fn to_words_256(self) -> [u64; 4] {
                let [low, high] = self.to_words();
                [low, high, 0, 0]
            }
        }
    };
    ($name:ident, $bytes:literal) => {
        impl $name {
            /// Number of bytes of the structure in memory.
            pub const BYTES: u64 = $bytes;

            /// From the 64-bit words, lowest address first.
            #[must_use]
            pub const fn from_words(words: [u64; 2]) -> Self {
                Self::new_with_raw_value($crate::layout::join(words))
            }

            /// The 64-bit words, lowest address first.
            #[must_use]
            pub const fn to_words(self) -> [u64; 2] {
                $crate::layout::split(self.raw_value())
            }
        }
    };
}

/// Adds accessors that show a 52-bit page-frame field (bits 63:12 of a word) as an address.
macro_rules! page_address {
    ($name:ident, $kind:ident, $(#[$meta:meta])* $get:ident, $with:ident => $field:ident, $with_field:ident) => {
        impl $name {
            $(#[$meta])*
            #[must_use]
            pub const fn $get(self) -> $kind {
                $kind::new(self.$field().value() << 12)
            }

            $(#[$meta])*
            ///
            /// Bits 11:0 of the argument are dropped.
            #[must_use]
            pub const fn $with(self, address: $kind) -> Self {
                self.$with_field(arbitrary_int::u52::extract_u64(address.raw(), 12))
            }
        }
    };
}

/// Adds accessors that show a 16-bit number as a domain identifier or a source identifier.
macro_rules! domain_field {
    ($name:ident, $(#[$meta:meta])* $get:ident, $with:ident => $field:ident, $with_field:ident) => {
        impl $name {
            $(#[$meta])*
            #[must_use]
            pub const fn $get(self) -> iommu_types::DomainId {
                iommu_types::DomainId(self.$field())
            }

            $(#[$meta])*
            #[must_use]
            pub const fn $with(self, domain: iommu_types::DomainId) -> Self {
                self.$with_field(domain.0)
            }
        }
    };
}

/// Adds accessors that show a 16-bit number as a source identifier.
macro_rules! source_field {
    ($name:ident, $(#[$meta:meta])* $get:ident, $with:ident => $field:ident, $with_field:ident) => {
        impl $name {
            $(#[$meta])*
            #[must_use]
            pub const fn $get(self) -> iommu_types::SourceId {
                iommu_types::SourceId::from_raw(self.$field())
            }

            $(#[$meta])*
            #[must_use]
            pub const fn $with(self, source: iommu_types::SourceId) -> Self {
                self.$with_field(source.raw())
            }
        }
    };
}

/// Adds accessors that show a 20-bit number as a PASID.
macro_rules! pasid_field {
    ($name:ident, $(#[$meta:meta])* $get:ident, $with:ident => $field:ident, $with_field:ident) => {
        impl $name {
            $(#[$meta])*
            #[must_use]
            pub const fn $get(self) -> iommu_types::Pasid {
                $crate::layout::pasid(self.$field())
            }

            $(#[$meta])*
            #[must_use]
            pub const fn $with(self, pasid: iommu_types::Pasid) -> Self {
                self.$with_field(arbitrary_int::u20::extract_u32(pasid.raw(), 0))
            }
        }
    };
}

/// Two 64-bit words in memory order as one 128-bit number.
pub(crate) const fn join(words: [u64; 2]) -> u128 {
    words[0] as u128 | (words[1] as u128) << 64
}

/// A 128-bit number as two 64-bit words in memory order.
pub(crate) const fn split(raw: u128) -> [u64; 2] {
    [(raw & 0xFFFF_FFFF_FFFF_FFFF) as u64, (raw >> 64) as u64]
}

/// A 20-bit field as the PASID it holds.
pub(crate) const fn pasid(raw: arbitrary_int::u20) -> Pasid {
    match Pasid::new(raw.value()) {
        Some(pasid) => pasid,
        // Not reached: a 20-bit number is always a PASID.
        None => Pasid::MAX,
    }
}

/// A mask of bits `high:low` of a 64-bit word, empty when `high < low`.
pub(crate) const fn bits64(high: u8, low: u8) -> u64 {
    if high < low || low > 63 {
        return 0;
    }
    let up_to_high = if high >= 63 { u64::MAX } else { (1 << (high + 1)) - 1 };
    up_to_high & !((1 << low) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_lowest_address_first() {
        assert_eq!(join([1, 2]), 0x0000_0000_0000_0002_0000_0000_0000_0001);
        assert_eq!(
            split(0x1122_3344_5566_7788_99AA_BBCC_DDEE_FF00),
            [0x99AA_BBCC_DDEE_FF00, 0x1122_3344_5566_7788]
        );
    }

    #[test]
    fn bit_masks_are_inclusive_and_empty_when_reversed() {
        assert_eq!(bits64(63, 46), 0xFFFF_C000_0000_0000);
        assert_eq!(bits64(63, 0), u64::MAX);
        assert_eq!(bits64(51, 52), 0);
        assert_eq!(bits64(63, 64), 0);
        assert_eq!(bits64(3, 3), 8);
    }
}
