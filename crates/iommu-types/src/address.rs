//! Addresses, one type for each address space.

use core::fmt;

use crate::page::{PAGE_SIZE, PageSize};

/// What the address types have in common, for code that is generic over them ([`crate::AddrRange`]).
pub trait Address: Copy + Ord + fmt::Debug + fmt::LowerHex {
    /// The address of byte `raw`.
    fn from_raw(raw: u64) -> Self;
    /// The byte number.
    fn to_raw(self) -> u64;
}

macro_rules! address {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address of the first byte.
            pub const ZERO: Self = Self(0);
            /// The address of the last byte of the 64-bit space.
            pub const MAX: Self = Self(u64::MAX);

            /// The address of byte `raw`.
            #[must_use]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The byte number.
            #[must_use]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// The address `bytes` further up, or `None` past the end of the 64-bit space.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// The address `bytes` further down, or `None` below zero.
            #[must_use]
            pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
                match self.0.checked_sub(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// Bytes from `base` up to this address, or `None` if it lies below `base`.
            #[must_use]
            pub const fn offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }

            /// The start of the `size` page that holds this address.
            #[must_use]
            pub const fn align_down(self, size: PageSize) -> Self {
                Self(self.0 & !(size.bytes() - 1))
            }

            /// Whether the address is the start of a page of `size`.
            #[must_use]
            pub const fn is_aligned(self, size: PageSize) -> bool {
                self.0 & (size.bytes() - 1) == 0
            }

            /// The start of the 4 KiB page that holds this address.
            #[must_use]
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// Bytes between the start of the 4 KiB page and this address.
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }
        }

        impl Address for $name {
            fn from_raw(raw: u64) -> Self {
                Self(raw)
            }
            fn to_raw(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// An address as a device issues it: what the IOMMU takes as input.
    Iova
}
address! {
    /// An address as the memory controller sees it: what the IOMMU puts out.
    HostPhys
}
address! {
    /// An address that a virtual machine takes for physical.
    GuestPhys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_stops_at_both_ends_of_the_space() {
        assert_eq!(Iova::MAX.checked_add(1), None);
        assert_eq!(Iova::ZERO.checked_sub(1), None);
        assert_eq!(Iova::new(0x1000).checked_add(0xfff), Some(Iova::new(0x1fff)));
        assert_eq!(HostPhys::new(3).offset_from(HostPhys::new(4)), None);
    }

    #[test]
    fn alignment_follows_the_page_size() {
        let a = HostPhys::new(0x4020_1234);
        assert_eq!(a.page(), HostPhys::new(0x4020_1000));
        assert_eq!(a.page_offset(), 0x234);
        assert_eq!(a.align_down(PageSize::Size2M), HostPhys::new(0x4020_0000));
        assert_eq!(a.align_down(PageSize::Size1G), HostPhys::new(0x4000_0000));
        assert!(HostPhys::new(0x4000_0000).is_aligned(PageSize::Size1G));
    }
}
