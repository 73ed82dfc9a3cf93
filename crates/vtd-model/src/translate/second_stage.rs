//! Second-stage tables (VT-d §3.7, §9.8).

use iommu_types::{HostPhys, PageSize, Perms, SystemMemory};
use vtd_spec::entry::SecondStageEntry;
use vtd_spec::{level_shift, table_index};

use super::flags::Updates;
use super::{Walk, low_bits};
use crate::cache::{AddressSpaceTag, CachedTable, TranslationCache};
use crate::condition::Condition;
use crate::config::UnitConfig;

/// Levels of the deepest tree.
pub(super) const LEVELS_MAX: usize = 5;

/// A tree of second-stage tables and how it is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct SecondStage {
    /// Host address of the top table.
    pub(super) root: HostPhys,
    /// Number of levels, 3 to 5.
    pub(super) levels: u8,
    /// Accessed and dirty flags are maintained (SSADE).
    pub(super) flags: bool,
    /// Walks snoop processor caches; without it flags cannot be set (SSS.5).
    pub(super) snooped: bool,
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

/// The page that a second-stage walk ended at.
#[derive(Clone, Copy, Debug)]
pub(super) struct SecondPage {
    /// Base-2 logarithm of the page's size.
    pub(super) shift: u8,
    /// Host address of the page.
    pub(super) phys: HostPhys,
    /// What all levels together permit.
    pub(super) perms: Perms,
    /// The leaf's SNP.
    pub(super) snoop: bool,
    /// Writes need no flag any more: flags are not kept, or D is set.
    pub(super) dirty: bool,
    /// Entries used, top first: where, and what they held.
    path: [Option<(HostPhys, SecondStageEntry)>; LEVELS_MAX],
}

impl SecondPage {
    /// Where byte `address` of the page lies.
    pub(super) const fn host(&self, address: u64) -> u64 {
        self.phys.raw() | address & low_bits(self.shift)
    }

    /// Notes the flags that an access has to set: A in every entry, D in the leaf if the access counts as a write
    /// that the tables permit. `Err` if there are some and the walk does not snoop (SSS.5).
    pub(super) fn note_flags(
        &mut self,
        tables: &SecondStage,
        writes: bool,
        updates: &mut Updates,
    ) -> Result<(), Condition> {
        if !tables.flags {
            return Ok(());
        }
        let writes = writes && self.perms.write;
        let mut entries = self.path.iter().flatten().peekable();
        while let Some((at, entry)) = entries.next() {
            let leaf = entries.peek().is_none();
            let wanted = entry.with_a(true);
            let wanted = if leaf && writes { wanted.with_d(true) } else { wanted };
            let set = wanted.raw_value() & !entry.raw_value();
            if set != 0 && !tables.snooped {
                return Err(Condition::Sss5);
            }
            updates.push(*at, entry.raw_value(), set, Condition::Sss6);
        }
        self.dirty |= writes;
        Ok(())
    }
}

impl<M: SystemMemory, C: TranslationCache> Walk<'_, M, C> {
    /// Walks `tables` for `address` and writes nothing. Each turn goes one level down, so there are at most five.
    pub(super) fn second_stage(
        &mut self,
        tables: &SecondStage,
        tag: &AddressSpaceTag,
        address: u64,
    ) -> Result<SecondPage, SecondStop> {
        let cached = self.cache.table(tag, address, tables.levels);
        self.report.paging.count(cached.is_some());
        let start = cached.unwrap_or(CachedTable {
            level: tables.levels,
            table: tables.root.raw(),
            perms: Perms::READ_WRITE,
            user: true,
        });
        let (mut table, mut perms) = (start.table, start.perms);
        let mut path = [None; LEVELS_MAX];
        // Whether every entry so far has its A flag, so that a pointer may be cached (VT-d §3.7.2).
        let mut accessed = true;
        for (level, step) in (1..=start.level.min(tables.levels)).rev().zip(&mut path) {
            let (at, entry) = self
                .read_second_stage(table, address, level)
                .ok_or(if level == tables.levels {
                    SecondStop::TopUnreadable
                } else {
                    SecondStop::Unreadable
                })?;
            // E-03: QEMU judges permissions here.
            let denied = self.config.qemu().is_some() && !entry.perms().allows(self.request.access);
            if entry.perms().is_none() || denied {
                return Err(SecondStop::NotPresent);
            }
            // Entries with reserved bits set are unusable, whatever they permit: reserved bits first at each level,
            // the permissions of all levels together at the end.
            if entry.raw_value() & entry.reserved(level, self.config.features(), false) != 0 {
                return Err(SecondStop::Reserved);
            }
            perms = perms.intersect(entry.perms());
            *step = Some((at, entry));
            if entry.is_leaf(level) {
                let size = PageSize::at_level(level).ok_or(SecondStop::Reserved)?;
                return Ok(SecondPage {
                    shift: u8::try_from(level_shift(level)).unwrap_or(u8::MAX),
                    phys: entry.page(size),
                    perms,
                    snoop: entry.snp(),
                    dirty: !tables.flags || entry.d(),
                    path,
                });
            }
            table = entry.address().raw();
            accessed &= !tables.flags || entry.a();
            if accessed {
                let below = CachedTable {
                    level: level - 1,
                    table,
                    perms,
                    user: true,
                };
                self.cache.fill_table(self.stamp, tag, address, below);
            }
        }
        // Not reached: entries of level 1 are leaves.
        Err(SecondStop::Reserved)
    }

    fn read_second_stage(&mut self, table: u64, address: u64, level: u8) -> Option<(HostPhys, SecondStageEntry)> {
        self.report.reads.second_stage += 1;
        let offset = u64::try_from(table_index(address, level)).ok()? * 8;
        let at = HostPhys::new(table).checked_add(offset)?;
        let entry = self
            .memory
            .read_u64(at)
            .ok()
            .map(SecondStageEntry::new_with_raw_value)?;
        Some((at, entry))
    }
}
