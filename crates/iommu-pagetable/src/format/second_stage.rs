//! Second-stage entries.

use iommu_types::{HostPhys, Iova, PageSize, Perms};
use vtd_spec::entry::SecondStageEntry;

use super::Format;
use crate::config::Levels;

/// Second-stage tables: input addresses are those of the device (or of a guest), rights are read and write.
/// VT-d §9.8 (Second-Stage Paging Entries).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SecondStage {
    snoop: bool,
    track_dirty: bool,
}

impl SecondStage {
    /// Leaves force snooping of processor caches, whatever the request says. Only for units with `ECAP.SC`: the bit
    /// is reserved elsewhere, and every access would fault.
    #[must_use]
    pub const fn force_snoop(mut self) -> Self {
        self.snoop = true;
        self
    }

    /// Hardware notes accesses and writes in the entries (`ECAP.SSADS`, and SSADE in the PASID entry).
    #[must_use]
    pub const fn track_dirty(mut self) -> Self {
        self.track_dirty = true;
        self
    }
}

const fn decode(entry: u64) -> SecondStageEntry {
    SecondStageEntry::new_with_raw_value(entry)
}

impl Format for SecondStage {
    fn last_iova(self, levels: Levels) -> Iova {
        Iova::new((1 << levels.address_bits()) - 1)
    }

    #[inline]
    fn granted(self, perms: Perms) -> Option<Perms> {
        (!perms.is_none()).then_some(perms)
    }

    #[inline]
    fn leaf(self, phys: HostPhys, size: PageSize, perms: Perms) -> u64 {
        SecondStageEntry::DEFAULT
            .with_perms(perms)
            .with_ps(size != PageSize::Size4K)
            .with_snp(self.snoop)
            .with_address(phys)
            .raw_value()
    }

    fn link(self, table: HostPhys) -> u64 {
        SecondStageEntry::DEFAULT
            .with_perms(Perms::READ_WRITE)
            .with_address(table)
            .raw_value()
    }

    #[inline]
    fn is_present(self, entry: u64) -> bool {
        decode(entry).is_present()
    }

    #[inline]
    fn is_plain_link(self, entry: u64) -> bool {
        const LINK: u64 = SecondStageEntry::DEFAULT.with_perms(Perms::READ_WRITE).raw_value();
        const MASK: u64 = LINK | SecondStageEntry::DEFAULT.with_ps(true).raw_value();
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
        decode(entry).perms()
    }

    fn dirty_mask(self) -> u64 {
        if self.track_dirty {
            SecondStageEntry::DEFAULT.with_d(true).raw_value()
        } else {
            0
        }
    }
}
