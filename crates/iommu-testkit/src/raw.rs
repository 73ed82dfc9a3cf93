//! Tables as hardware reads them, built by hand from plain numbers.
//!
//! Nothing here checks anything: a test that wants a reserved bit set sets it. Addresses are host physical
//! unless said otherwise; source IDs are the raw 16 bits.

pub mod descriptor;
mod interrupt;
mod legacy;
mod scalable;
mod tables;

pub use interrupt::{bus_range, exact_source, irte, irte_posted, posted_descriptor, remappable_address};
pub use legacy::{legacy_context_entry, legacy_root_entry, levels_of_aw, second_stage_entry, translation_type};
pub use scalable::{
    FS_ACCESSED, FS_DIRTY, FS_PRESENT, FS_USER, FS_WRITE, SS_ACCESSED, SS_DIRTY, pasid_directory_entry,
    pasid_first_stage, pasid_nested, pasid_pass_through, pasid_second_stage, pasid_translation, scalable_context_entry,
    scalable_root_half,
};
pub use tables::RawTables;

/// Bit 0, second stage: devices may read.
pub const SS_READ: u64 = 1;
/// Bit 1, second stage: devices may write.
pub const SS_WRITE: u64 = 2;
/// Bit 7, both stages: the entry maps a large page.
pub const PAGE_SIZE_BIT: u64 = 1 << 7;

#[cfg(test)]
mod tests;
