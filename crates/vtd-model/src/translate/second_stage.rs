//! Second-stage tables (VT-d §3.7, §9.8).

use iommu_types::{HostPhys, PageSize, Perms, SystemMemory};
use vtd_spec::entry::SecondStageEntry;
use vtd_spec::{level_shift, table_index};

use super::{Walk, low_bits};
use crate::cache::{AddressSpaceTag, CachedPage, CachedTable, TranslationCache};
use crate::config::UnitConfig;

/// A tree of second-stage tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct SecondStage {
    /// Host address of the top table.
    pub(super) root: HostPhys,
    /// Number of levels, 3 to 5.
    pub(super) levels: u8,
}

impl SecondStage {
    /// The last address that the tables translate: the smaller of CAP.MGAW and the width of the tree
    /// (VT-d §3.7).
    pub(super) const fn address_limit(&self, config: &UnitConfig) -> u64 {
        let guest = config.capability().max_guest_address_width();
        let tree = 12 + 9 * self.levels;
        low_bits(if guest < tree { guest } else { tree })
    }
}

/// Why second-stage tables gave no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecondStop {
    /// The top table cannot be read.
    TopUnreadable,
    /// Another table cannot be read.
    Unreadable,
    /// Reserved bits in a present entry.
    Reserved,
    /// An entry without R and W.
    NotPresent,
}

impl<M: SystemMemory, C: TranslationCache> Walk<'_, M, C> {
    /// Walks `tables` for `address`. Each turn goes one level down, so there are at most five.
    pub(super) fn second_stage(
        &mut self,
        tables: &SecondStage,
        tag: &AddressSpaceTag,
        address: u64,
    ) -> Result<CachedPage, SecondStop> {
        let cached = self.cache.table(tag, address, tables.levels);
        self.report.paging.count(cached.is_some());
        let start = cached.unwrap_or(CachedTable {
            level: tables.levels,
            table: tables.root.raw(),
            perms: Perms::READ_WRITE,
        });
        let (mut table, mut perms) = (start.table, start.perms);
        for level in (1..=start.level.min(tables.levels)).rev() {
            let entry = self
                .read_second_stage(table, address, level)
                .ok_or(if level == tables.levels {
                    SecondStop::TopUnreadable
                } else {
                    SecondStop::Unreadable
                })?;
            if entry.perms().is_none() {
                return Err(SecondStop::NotPresent);
            }
            // Entries with reserved bits set are unusable, whatever they permit: reserved bits first at each level,
            // the permissions of all levels together at the end.
            if entry.raw_value() & entry.reserved(level, self.config.features(), false) != 0 {
                return Err(SecondStop::Reserved);
            }
            perms = perms.intersect(entry.perms());
            if entry.is_leaf(level) {
                return PageSize::at_level(level)
                    .map(|size| leaf(entry, size, address, perms))
                    .ok_or(SecondStop::Reserved);
            }
            table = entry.address().raw();
            let below = CachedTable {
                level: level - 1,
                table,
                perms,
            };
            self.cache.fill_table(self.stamp, tag, address, below);
        }
        // Not reached: entries of level 1 are leaves.
        Err(SecondStop::Reserved)
    }

    fn read_second_stage(&mut self, table: u64, address: u64, level: u8) -> Option<SecondStageEntry> {
        self.report.reads.second_stage += 1;
        let offset = u64::try_from(table_index(address, level)).ok()? * 8;
        let at = HostPhys::new(table).checked_add(offset)?;
        self.memory.read_u64(at).ok().map(SecondStageEntry::new_with_raw_value)
    }
}

fn leaf(entry: SecondStageEntry, size: PageSize, address: u64, perms: Perms) -> CachedPage {
    let shift = level_shift(size.level());
    CachedPage {
        base: address >> shift << shift,
        shift: u8::try_from(shift).unwrap_or(u8::MAX),
        phys: entry.page(size).raw(),
        user: perms,
        supervisor: perms,
        user_allowed: true,
        dirty: true,
        snoop: entry.snp(),
        fault: None,
    }
}
