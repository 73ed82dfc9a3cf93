//! Tables as hardware reads them, built by hand from plain numbers.
//!
//! Nothing here checks anything: a test that wants a reserved bit set sets it. Addresses are host physical
//! unless said otherwise; source IDs are the raw 16 bits.

mod legacy;
mod tables;

pub use legacy::{legacy_context_entry, legacy_root_entry, levels_of_aw, second_stage_entry, translation_type};
pub use tables::RawTables;

/// Bit 0, second stage: devices may read.
pub const SS_READ: u64 = 1;
/// Bit 1, second stage: devices may write.
pub const SS_WRITE: u64 = 2;
/// Bit 7, both stages: the entry maps a large page.
pub const PAGE_SIZE_BIT: u64 = 1 << 7;

#[cfg(test)]
mod tests;
