//! Descriptor type codes.

iommu_types::open_enum! {
    /// Type of an invalidation descriptor: 7 bits, of which bits 11:9 of the descriptor are the upper and 3:0 the lower
    /// part. VT-d §6.5.2.
    pub struct DescriptorType(u8) {
        /// Context-cache invalidation.
        CONTEXT_CACHE = 0x1,
        /// IOTLB invalidation.
        IOTLB = 0x2,
        /// Device-TLB invalidation.
        DEVICE_TLB = 0x3,
        /// Interrupt entry cache invalidation.
        INTERRUPT_ENTRY = 0x4,
        /// Wait.
        WAIT = 0x5,
        /// PASID-based IOTLB invalidation; 256-bit queues only.
        PASID_IOTLB = 0x6,
        /// PASID-cache invalidation; 256-bit queues only.
        PASID_CACHE = 0x7,
        /// PASID-based device-TLB invalidation; 256-bit queues only.
        PASID_DEVICE_TLB = 0x8,
        /// Page group response; 256-bit queues only.
        PAGE_GROUP_RESPONSE = 0x9,
        /// Host permission table cache invalidation; 256-bit queues only.
        HOST_PERMISSION = 0xA,
    }
}

impl DescriptorType {
    /// The type in the first word of a descriptor.
    #[must_use]
    pub const fn of(first_word: u64) -> Self {
        Self((first_word & 0xF) as u8 | (first_word >> 5 & 0x70) as u8)
    }

    /// Whether the type exists only in queues of 256-bit descriptors.
    #[must_use]
    pub const fn needs_256_bits(self) -> bool {
        self.0 >= Self::PASID_IOTLB.0 && self.0 <= Self::HOST_PERMISSION.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_joins_its_two_parts() {
        assert_eq!(DescriptorType::of(0x0000_0002_0000_0025), DescriptorType::WAIT);
        assert_eq!(DescriptorType::of(0x0E0F), DescriptorType(0x7F));
        assert_eq!(DescriptorType::of(0xFFFF_FFFF_FFFF_F1F0), DescriptorType(0));
        assert_eq!(DescriptorType::of(0x0205), DescriptorType(0x15));
    }

    #[test]
    fn types_6_to_a_need_wide_queues() {
        let wide = (0..=0xB).filter(|&t| DescriptorType(t).needs_256_bits());
        assert!(wide.eq(6..=0xA));
    }
}
