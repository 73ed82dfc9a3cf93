//! Memory-mapped registers. VT-d chapter 11.
//!
//! [`offset`] holds the byte offsets from the base of the unit's register block, the types hold the layouts, and
//! [`crate::access`] holds what a write does.

mod capability;
mod event;
mod extended_capability;
mod fault_status;
mod global;
mod interrupt_table;
mod invalidate;
mod invalidation_queue;
pub mod offset;
mod protected_memory;
mod root_table;
mod version;

pub use capability::Capability;
pub use event::{EventAddress, EventControl, EventData, EventUpperAddress};
pub use extended_capability::ExtendedCapability;
pub use fault_status::{FaultRecord, FaultStatus, FaultedRequest, Privilege};
pub use global::{GSTS_PERSISTENT, GlobalCommand, GlobalStatus};
pub use interrupt_table::InterruptRemapTableAddress;
pub use invalidate::{ContextCommand, InvalidateAddress, IotlbInvalidate};
pub use invalidation_queue::{
    DescriptorWidth, InvalidationCompletionStatus, InvalidationQueueAddress, InvalidationQueueErrorRecord,
    InvalidationQueueHead, InvalidationQueueTail, QueueError,
};
pub use protected_memory::{ProtectedMemoryEnable, protected_granule_bits, protected_region};
pub use root_table::{RootTableAddress, TranslationTableMode};
pub use version::Version;
