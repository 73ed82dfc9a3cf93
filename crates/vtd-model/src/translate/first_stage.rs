//! First-stage tables, alone or through second-stage tables (VT-d §3.6, §3.8, §9.7).

use iommu_types::{Access, HostPhys, PageSize, Perms, SystemMemory};
use vtd_spec::entry::FirstStageEntry;
use vtd_spec::{level_shift, table_index};

use super::flags::Updates;
use super::second_stage::{LEVELS_MAX, SecondStage, SecondStop};
use super::{Walk, low_bits};
use crate::cache::{AddressSpaceTag, CachedTable, TranslationCache};
use crate::condition::Condition;

/// A tree of first-stage tables and how it is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstStage {
    /// FSPTPTR: host physical, or guest physical if `below` is there.
    pub(super) root: u64,
    /// 4 or 5.
    pub(super) levels: u8,
    /// Bits of an address; those above repeat the highest.
    pub(super) width: u8,
    /// The extended accessed flag is maintained (EAFE).
    pub(super) extended_flag: bool,
    /// Walks snoop processor caches; without it flags cannot be set (SFS.9).
    pub(super) snooped: bool,
    /// Nested: the second stage that table addresses go through, and its tag.
    pub(super) below: Option<(SecondStage, AddressSpaceTag)>,
}

/// An entry that a walk used.
#[derive(Clone, Copy, Debug)]
struct Step {
    at: HostPhys,
    entry: FirstStageEntry,
    /// The second stage lets hardware write the entry.
    writable: bool,
}

/// The page that a first-stage walk ended at.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstPage {
    /// Base-2 logarithm of the page's size.
    pub(super) shift: u8,
    /// Where the address lies: host physical, or guest physical when nested.
    pub(super) output: u64,
    /// U/S at every level.
    pub(super) user: bool,
    /// R/W at every level.
    pub(super) writable: bool,
    /// D is set, or about to be.
    pub(super) dirty: bool,
    path: [Option<Step>; LEVELS_MAX],
}

impl FirstPage {
    /// Notes the flags that an access has to set: A (and EA) in every entry, D in the leaf if `writes`
    /// (SFS.9, SFS.8).
    pub(super) fn note_flags(
        &mut self,
        tables: &FirstStage,
        writes: bool,
        updates: &mut Updates,
    ) -> Result<(), Condition> {
        let mut steps = self.path.iter().flatten().peekable();
        while let Some(step) = steps.next() {
            let leaf = steps.peek().is_none();
            let mut wanted = step.entry.with_a(true);
            if tables.extended_flag {
                wanted = wanted.with_ea(true);
            }
            if leaf && writes {
                wanted = wanted.with_d(true);
            }
            let set = wanted.raw_value() & !step.entry.raw_value();
            if set != 0 && !tables.snooped {
                return Err(Condition::Sfs9);
            }
            if set != 0 && !step.writable {
                return Err(Condition::Sfs8);
            }
            updates.push(step.at, step.entry.raw_value(), set, Condition::Sfs10);
        }
        self.dirty |= writes;
        Ok(())
    }
}

/// The condition that a second-stage stop is in scalable mode.
pub(super) const fn scalable_condition(stop: SecondStop) -> Condition {
    match stop {
        SecondStop::TopUnreadable => Condition::Sss4,
        SecondStop::Unreadable => Condition::Sss1,
        SecondStop::Reserved => Condition::Sss3,
        SecondStop::NotPresent => Condition::Sss2,
    }
}

impl<M: SystemMemory, C: TranslationCache> Walk<'_, M, C> {
    /// Walks `tables` for `address` and writes nothing: SGN.1, SFS.4 to SFS.7, SFS.1 to SFS.3. Each turn goes one
    /// level down, so there are at most five.
    pub(super) fn first_stage(
        &mut self,
        tables: &FirstStage,
        tag: &AddressSpaceTag,
        address: u64,
        updates: &mut Updates,
    ) -> Result<FirstPage, Condition> {
        // SGN.1: bits above the width repeat its highest bit.
        let upper = address >> (tables.width - 1);
        if upper != 0 && upper != u64::MAX >> (tables.width - 1) {
            return Err(Condition::Sgn1);
        }
        // Pointers to nested tables are not cached: their second-stage part would need tags of its own.
        let cached = if tables.below.is_none() {
            self.cache.table(tag, address, tables.levels)
        } else {
            None
        };
        self.report.paging.count(cached.is_some());
        let start = cached.unwrap_or(CachedTable {
            level: tables.levels,
            table: tables.root,
            perms: Perms::READ_WRITE,
            user: true,
        });
        let (mut table, mut user, mut writable) = (start.table, start.user, start.perms.write);
        let mut path = [None; LEVELS_MAX];
        let mut accessed = true;
        for (level, step) in (1..=start.level.min(tables.levels)).rev().zip(&mut path) {
            let top = level == tables.levels;
            let (page, table_writable) = self.first_stage_table(tables, table, top, updates)?;
            let (at, entry) = self.read_first_stage(page, address, level).ok_or(if top {
                Condition::Sfs4
            } else {
                Condition::Sfs1
            })?;
            if !entry.p() {
                return Err(Condition::Sfs2);
            }
            if self.config.qemu().is_some() {
                self.judge_as_qemu(entry)?;
            }
            if entry.raw_value() & entry.reserved(level, self.config.features()) != 0 {
                return Err(Condition::Sfs3);
            }
            if self.config.qemu().is_some() && !self.keeps_tables_unchanged {
                self.set_flags_as_qemu(at, entry, level)?;
            }
            user &= entry.us();
            writable &= entry.rw();
            *step = Some(Step {
                at,
                entry,
                writable: table_writable,
            });
            if entry.is_leaf(level) {
                let size = PageSize::at_level(level).ok_or(Condition::Sfs3)?;
                let shift = u8::try_from(level_shift(level)).unwrap_or(u8::MAX);
                return Ok(FirstPage {
                    shift,
                    output: entry.page(size).raw() | address & low_bits(shift),
                    user,
                    writable,
                    dirty: entry.d(),
                    path,
                });
            }
            table = entry.address().raw();
            accessed &= entry.a() && (!tables.extended_flag || entry.ea());
            if accessed && tables.below.is_none() {
                let below = CachedTable {
                    level: level - 1,
                    table,
                    perms: Perms {
                        read: true,
                        write: writable,
                    },
                    user,
                };
                self.cache.fill_table(self.stamp, tag, address, below);
            }
        }
        // Not reached: entries of level 1 are leaves.
        Err(Condition::Sfs3)
    }

    /// E-03: permissions of one entry.
    fn judge_as_qemu(&self, entry: FirstStageEntry) -> Result<(), Condition> {
        if !entry.us() {
            return Err(Condition::Sgn2);
        }
        if self.request.access != Access::Read && !entry.rw() {
            return Err(Condition::Sgn6);
        }
        Ok(())
    }

    /// E-04, D-01: A, and D for a write through a leaf, at once; nothing if any of them is there already.
    fn set_flags_as_qemu(&self, at: HostPhys, entry: FirstStageEntry, level: u8) -> Result<(), Condition> {
        let dirty = entry.is_leaf(level) && self.request.access != Access::Read;
        if entry.a() || dirty && entry.d() {
            return Ok(());
        }
        let wanted = entry.with_a(true).with_d(entry.d() || dirty);
        self.memory
            .compare_exchange_u64(at, entry.raw_value(), wanted.raw_value())
            .map(drop)
            .map_err(|_| Condition::Sfs10)
    }

    /// Where the first-stage table at `table` lies in host memory, and whether hardware may write it (VT-d §3.8).
    fn first_stage_table(
        &mut self,
        tables: &FirstStage,
        table: u64,
        top: bool,
        updates: &mut Updates,
    ) -> Result<(u64, bool), Condition> {
        let Some((below, tag)) = tables.below else {
            return Ok((table, true));
        };
        if table > below.address_limit(self.config) {
            return Err(Condition::Sfs5);
        }
        let mut page = self.second_stage(&below, &tag, table).map_err(scalable_condition)?;
        if page.perms.is_none() {
            return Err(Condition::Sss2);
        }
        // With SSADE a read of a first-stage table counts as a write of its page, since its flags may have to be set.
        page.note_flags(&below, below.flags, updates)?;
        if !page.perms.read || below.flags && !page.perms.write {
            return Err(if top { Condition::Sfs6 } else { Condition::Sfs7 });
        }
        Ok((page.host(table), page.perms.write))
    }

    fn read_first_stage(&mut self, table: u64, address: u64, level: u8) -> Option<(HostPhys, FirstStageEntry)> {
        self.report.reads.first_stage += 1;
        let offset = u64::try_from(table_index(address, level)).ok()? * 8;
        let at = HostPhys::new(table).checked_add(offset)?;
        let entry = self.memory.read_u64(at).ok().map(FirstStageEntry::new_with_raw_value)?;
        Some((at, entry))
    }
}
