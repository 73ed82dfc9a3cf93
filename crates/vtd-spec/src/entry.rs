//! Structures in memory that a unit walks: root, context and PASID tables, paging entries, host permission table, interrupt
//! remapping table, posted interrupt descriptors, page request descriptors. VT-d chapter 9.
//!
//! All pointers are host physical addresses unless said otherwise, all tables are 4-KiB aligned. An entry's present
//! bit guards the checks: reserved bits of an entry that is not present mean nothing.

mod context;
mod first_stage;
mod host_permission;
mod irte;
mod page_request;
mod pasid;
mod pasid_directory;
mod posted;
mod root;
mod scalable_context;
mod scalable_root;
mod second_stage;

pub use context::{ContextEntry, ContextTranslation};
pub use first_stage::FirstStageEntry;
pub use host_permission::{
    HptPageEntry, HptTableEntry, hpt_index, hpt_pair_index, hpt_pair_perms, hpt_root_address_bits,
};
pub use irte::{Irte, SourceValidation};
pub use page_request::PageRequestDescriptor;
pub use pasid::{
    FirstStagePagingMode, PasidControl, PasidEntry, PasidFirstStage, PasidHostPermission, PasidHostPermissionTag,
    PasidTags, PasidTranslation,
};
pub use pasid_directory::PasidDirectoryEntry;
pub use posted::{PostedInterruptControl, PostedInterruptDescriptor, PostedIrte};
pub use root::RootEntry;
pub use scalable_context::ScalableContextEntry;
pub use scalable_root::ScalableRootEntry;
pub use second_stage::SecondStageEntry;
