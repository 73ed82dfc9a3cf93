//! Memory-mapped registers. VT-d chapter 11.
//!
//! [`offset`] holds the byte offsets from the base of the unit's register block, the types hold the layouts, and
//! [`crate::access`] holds what a write does.

mod capability;
mod enhanced_command;
mod event;
mod extended_capability;
mod fault_status;
mod global;
mod interrupt_table;
mod invalidate;
mod invalidation_queue;
mod mtrr;
pub mod offset;
mod page_request;
mod performance;
mod protected_memory;
mod rdt;
mod root_table;
mod version;
mod virtual_command;

pub use capability::Capability;
pub use enhanced_command::{
    EnhancedCommand, EnhancedCommandCapability3, EnhancedCommandCode, EnhancedCommandResponse, EnhancedCommandStatus,
};
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
pub use mtrr::{
    MTRR_FIXED_COUNT, MTRR_VARIABLE_COUNT, MtrrCapability, MtrrDefaultType, MtrrFixed, MtrrVariableBase,
    MtrrVariableMask, mtrr_fixed_offset, mtrr_variable_offset,
};
pub use page_request::{PageRequestQueueAddress, PageRequestQueueHead, PageRequestQueueTail, PageRequestStatus};
pub use performance::{
    PerfAddressTypeFilter, PerfCapability, PerfCounterCapability, PerfCounterConfig, PerfCounterEventCapability,
    PerfDomainFilter, PerfEvent, PerfEventCapability, PerfInterruptStatus, PerfLevelFilter, PerfPasidFilter,
    PerfRequesterFilter, perf_offset,
};
pub use protected_memory::{ProtectedMemoryEnable, protected_granule_bits, protected_region};
pub use rdt::RdtConfig;
pub use root_table::{RootTableAddress, TranslationTableMode};
pub use version::Version;
pub use virtual_command::{
    VirtualCommand, VirtualCommandCapability, VirtualCommandCode, VirtualCommandResponse, VirtualCommandStatus,
};
