//! Descriptors of the invalidation queue. VT-d §6.5.2, §7.6.1.
//!
//! Each descriptor is a 128-bit type; with 256-bit queues the upper 128 bits are zero. `DEFAULT` carries the type
//! code and nothing else. Bits that no field names are reserved: `RESERVED` of each type, whose violation is
//! [`QueueError::RESERVED_FIELD`](crate::register::QueueError::RESERVED_FIELD).

mod any;
mod context_cache;
mod device_tlb;
mod host_permission;
mod interrupt_entry;
mod iotlb;
mod kind;
mod page_group_response;
mod pasid_cache;
mod pasid_device_tlb;
mod pasid_iotlb;
mod wait;

pub use any::Descriptor;
pub use context_cache::ContextCacheInvalidation;
pub use device_tlb::DeviceTlbInvalidation;
pub use host_permission::HostPermissionInvalidation;
pub use interrupt_entry::InterruptEntryInvalidation;
pub use iotlb::IotlbInvalidation;
pub use kind::DescriptorType;
pub use page_group_response::{PageGroupResponse, ResponseCode};
pub use pasid_cache::PasidCacheInvalidation;
pub use pasid_device_tlb::PasidDeviceTlbInvalidation;
pub use pasid_iotlb::PasidIotlbInvalidation;
pub use wait::WaitDescriptor;

/// Adds what every descriptor type has in common.
macro_rules! descriptor {
    ($name:ident, $kind:ident) => {
        words128!($name);

        impl $name {
            /// The type code of this descriptor.
            pub const TYPE: $crate::descriptor::DescriptorType = $crate::descriptor::DescriptorType::$kind;

            /// The four words of the descriptor in a queue of 256-bit descriptors.
            #[must_use]
            pub const fn to_words_256(self) -> [u64; 4] {
                let [low, high] = self.to_words();
                [low, high, 0, 0]
            }
        }
    };
}
use descriptor;
