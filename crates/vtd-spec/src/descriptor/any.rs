//! A descriptor of whatever type.

use super::{
    ContextCacheInvalidation, DescriptorType, DeviceTlbInvalidation, HostPermissionInvalidation,
    InterruptEntryInvalidation, IotlbInvalidation, PageGroupResponse, PasidCacheInvalidation,
    PasidDeviceTlbInvalidation, PasidIotlbInvalidation, WaitDescriptor,
};

macro_rules! any_descriptor {
    ($( $(#[$meta:meta])* $variant:ident($type:ident) ),* $(,)?) => {
        /// A descriptor of any type of this revision. VT-d §6.5.2, §7.6.1.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Descriptor {
            $( $(#[$meta])* $variant($type), )*
        }

        impl Descriptor {
            /// The descriptor in the lower 128 bits of a queue slot. Whether the type is allowed in the present mode and width
            /// is not asked.
            ///
            /// # Errors
            ///
            /// The type code, if this revision does not define it.
            pub const fn from_words(words: [u64; 2]) -> Result<Self, DescriptorType> {
                let kind = DescriptorType::of(words[0]);
                match kind {
                    $( $type::TYPE => Ok(Self::$variant($type::from_words(words))), )*
                    unknown => Err(unknown),
                }
            }

            /// The lower 128 bits of the queue slot; the upper half of a 256-bit slot is 0.
            #[must_use]
            pub const fn to_words(self) -> [u64; 2] {
                match self {
                    $( Self::$variant(descriptor) => descriptor.to_words(), )*
                }
            }

            /// The type code.
            #[must_use]
            pub const fn kind(self) -> DescriptorType {
                match self {
                    $( Self::$variant(_) => $type::TYPE, )*
                }
            }

            /// The reserved bits that are set, as words; 0 in a well-formed descriptor.
            #[must_use]
            pub const fn reserved_set(self) -> [u64; 2] {
                crate::layout::split(match self {
                    $( Self::$variant(descriptor) => descriptor.raw_value() & $type::RESERVED, )*
                })
            }
        }

        $(
            impl From<$type> for Descriptor {
                fn from(descriptor: $type) -> Self {
                    Self::$variant(descriptor)
                }
            }
        )*
    };
}

any_descriptor! {
    /// Type 1.
    ContextCache(ContextCacheInvalidation),
    /// Type 2.
    Iotlb(IotlbInvalidation),
    /// Type 3.
    DeviceTlb(DeviceTlbInvalidation),
    /// Type 4.
    InterruptEntry(InterruptEntryInvalidation),
    /// Type 5.
    Wait(WaitDescriptor),
    /// Type 6.
    PasidIotlb(PasidIotlbInvalidation),
    /// Type 7.
    PasidCache(PasidCacheInvalidation),
    /// Type 8.
    PasidDeviceTlb(PasidDeviceTlbInvalidation),
    /// Type 9.
    PageGroupResponse(PageGroupResponse),
    /// Type Ah.
    HostPermission(HostPermissionInvalidation),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_1_to_a_decode_to_their_kind_and_back() {
        for code in 1..=0xA {
            let d = Descriptor::from_words([code, 0]).expect("defined");
            assert_eq!(u64::from(d.kind().0), code);
            assert_eq!(d.to_words(), [code, 0]);
            assert_eq!(d.reserved_set(), [0, 0]);
        }
    }

    #[test]
    fn other_types_are_returned_as_they_are() {
        assert_eq!(Descriptor::from_words([0, 0]), Err(DescriptorType(0)));
        assert_eq!(Descriptor::from_words([0xB, 0]), Err(DescriptorType(0xB)));
        // A wait with the upper part of the type set is another type.
        assert_eq!(Descriptor::from_words([0x205, 0]), Err(DescriptorType(0x15)));
    }

    #[test]
    fn set_reserved_bits_are_shown() {
        let d = Descriptor::from_words([0x1_0000_0100_0005, 3]).expect("a wait");
        assert_eq!(d.reserved_set(), [0x100_0000, 3]);
    }
}
