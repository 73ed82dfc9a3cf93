//! First-stage entries.

use iommu_types::{HostPhys, Iova, PageSize, Perms};
use vtd_spec::entry::FirstStageEntry;

use super::Format;
use crate::config::Levels;

/// First-stage tables: the processor's own 4- and 5-level format. VT-d §9.7 (First-Stage Paging Entries).
///
/// A present page can always be read, so a mapping for writing alone also grants reading. Only the lower half of the
/// canonical addresses is used (VT-d §3.6 (First-Stage Translation): the upper bits must repeat the highest used one).
/// Hardware walks these tables with 4 or 5 levels; 3 are accepted here because nested guests may use fewer bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct FirstStage {
    track_dirty: bool,
}

impl FirstStage {
    /// Leaves start clean, so that hardware sets their dirty bit on the first write. Otherwise both bits are set
    /// beforehand, which spares hardware the atomic update.
    #[must_use]
    pub const fn track_dirty(mut self) -> Self {
        self.track_dirty = true;
        self
    }
}

const fn decode(entry: u64) -> FirstStageEntry {
    FirstStageEntry::new_with_raw_value(entry)
}

impl Format for FirstStage {
    fn last_iova(self, levels: Levels) -> Iova {
        Iova::new((1 << (levels.address_bits() - 1)) - 1)
    }

    #[inline]
    fn granted(self, perms: Perms) -> Option<Perms> {
        (!perms.is_none()).then_some(Perms { read: true, ..perms })
    }

    #[inline]
    fn leaf(self, phys: HostPhys, size: PageSize, perms: Perms) -> u64 {
        FirstStageEntry::DEFAULT
            .with_p(true)
            .with_rw(perms.write)
            .with_us(true)
            .with_a(!self.track_dirty)
            .with_d(!self.track_dirty)
            .with_ps(size != PageSize::Size4K)
            .with_address(phys)
            .raw_value()
    }

    fn link(self, table: HostPhys) -> u64 {
        FirstStageEntry::DEFAULT
            .with_p(true)
            .with_rw(true)
            .with_us(true)
            .with_a(true)
            .with_address(table)
            .raw_value()
    }

    #[inline]
    fn is_present(self, entry: u64) -> bool {
        decode(entry).p()
    }

    #[inline]
    fn is_plain_link(self, entry: u64) -> bool {
        const LINK: u64 = FirstStageEntry::DEFAULT
            .with_p(true)
            .with_rw(true)
            .with_us(true)
            .raw_value();
        const MASK: u64 = LINK | FirstStageEntry::DEFAULT.with_ps(true).raw_value();
        entry & MASK == LINK
    }

    #[inline]
    fn is_leaf(self, entry: u64, level: u8) -> bool {
        decode(entry).is_leaf(level)
    }

    #[inline]
    fn table(self, entry: u64) -> HostPhys {
        decode(entry).address()
    }

    fn page(self, entry: u64, size: PageSize) -> HostPhys {
        decode(entry).page(size)
    }

    fn perms(self, entry: u64) -> Perms {
        let entry = decode(entry);
        // Requests are user requests unless a PASID entry says otherwise: without U/S nothing is granted.
        Perms {
            read: entry.p() && entry.us(),
            write: entry.p() && entry.us() && entry.rw(),
        }
    }

    fn dirty_mask(self) -> u64 {
        if self.track_dirty {
            FirstStageEntry::DEFAULT.with_d(true).raw_value()
        } else {
            0
        }
    }
}
