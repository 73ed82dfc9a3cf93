//! Structures in memory that a unit walks: root, context and PASID tables, paging entries, host permission table, interrupt
//! remapping table, posted interrupt descriptors, page request descriptors. VT-d chapter 9.
//!
//! All pointers are host physical addresses unless said otherwise, all tables are 4-KiB aligned. An entry's present
//! bit guards the checks: reserved bits of an entry that is not present mean nothing.

mod context;
mod first_stage;
mod irte;
mod pasid_directory;
mod root;
mod second_stage;

pub use context::{ContextEntry, ContextTranslation};
pub use first_stage::FirstStageEntry;
pub use irte::{Irte, SourceValidation};
pub use pasid_directory::PasidDirectoryEntry;
pub use root::RootEntry;
pub use second_stage::SecondStageEntry;
