//! What the engine must know of an entry.

mod first_stage;
mod second_stage;

use core::fmt;

use iommu_types::{HostPhys, Iova, PageSize, Perms};

use crate::config::Levels;

pub use first_stage::FirstStage;
pub use second_stage::SecondStage;

/// How entries of one kind of table are written and read.
///
/// An entry is one 64-bit word; 0 is never present. Implementations hold the choices that every entry of a table
/// shares (snooping, dirty tracking); they are small and copied freely.
pub trait Format: Copy + fmt::Debug + Send + Sync {
    /// The last input address that tables of this depth translate.
    fn last_iova(self, levels: Levels) -> Iova;

    /// The rights that a leaf asked to grant `perms` really grants: a format may be unable to express less.
    ///
    /// `None` if it cannot grant them at all.
    fn granted(self, perms: Perms) -> Option<Perms>;

    /// The leaf entry that maps a page of `size` at `phys` with at least the rights `perms`.
    fn leaf(self, phys: HostPhys, size: PageSize, perms: Perms) -> u64;

    /// The entry that leads to the table at `table`, and takes no right away.
    fn link(self, table: HostPhys) -> u64;

    /// Whether hardware uses the entry.
    ///
    /// Presence only grows with bits: more bits than those of a present entry are present too. Of several entries,
    /// none is present exactly if their union is not.
    fn is_present(self, entry: u64) -> bool;

    /// Whether an entry above the lowest level is of the usual kind: a link as [`Self::link`] makes them, whatever
    /// hardware noted in it since. False is always right, and slower.
    fn is_plain_link(self, entry: u64) -> bool;

    /// Whether a present entry of a table at `level` (1 is the lowest) is a leaf.
    fn is_leaf(self, entry: u64, level: u8) -> bool;

    /// Where a present entry that is no leaf leads.
    fn table(self, entry: u64) -> HostPhys;

    /// Where the page of a leaf of `size` begins.
    fn page(self, entry: u64, size: PageSize) -> HostPhys;

    /// The rights that a present entry grants, by itself.
    fn perms(self, entry: u64) -> Perms;

    /// The bit of a leaf that hardware sets on a write, while writes are tracked; 0 while they are not.
    fn dirty_mask(self) -> u64;
}
