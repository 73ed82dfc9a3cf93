//! The second-stage and first-stage walks (VT-d §3.6, §3.7, §9.7, §9.8).

use iommu_types::SystemMemory;

use super::{FlagUpdate, OracleKind, Trouble, Walk, qualified};

/// Second-stage tables and how they are used.
#[derive(Clone, Copy, Debug)]
pub(super) struct SecondStage {
    pub(super) root: u64,
    /// Address-width code: 1, 2, 3 for 3, 4, 5 levels.
    pub(super) aw: u64,
    /// SSADE: accessed and dirty flags are kept.
    pub(super) flags: bool,
    /// The walk snoops the processor's caches.
    pub(super) snooped: bool,
}

/// Why a second-stage walk ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WalkStop {
    /// The first entry could not be read.
    TopAccess,
    /// A later entry could not be read.
    Access,
    /// A present entry has reserved bits set.
    Reserved,
    /// An entry has R = W = 0.
    NotPresent,
}

/// Where a second-stage walk ends.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    /// The host address of the address walked for.
    pub(super) host: u64,
    pub(super) shift: u32,
    pub(super) read: bool,
    pub(super) write: bool,
    /// The entries used, top first: host address and contents.
    entries: Vec<(u64, u64)>,
}

impl SecondStage {
    /// Walks for `address`, which is within the limit of [`super::OracleUnit::last_guest`].
    pub(super) fn walk<M: SystemMemory>(&self, walk: &Walk<'_, M>, address: u64) -> Result<Leaf, WalkStop> {
        let unit = walk.unit;
        // SSIRWE: bits 61 and 62 take the place of bits 0 and 1.
        let (read_bit, write_bit) = if unit.ssirwe() { (61, 62) } else { (0, 1) };
        let top = u32::try_from(self.aw + 2).unwrap_or(5);
        let (mut table, mut read, mut write) = (self.root, true, true);
        let mut entries = Vec::new();
        for level in (1..=top).rev() {
            let low_bit = 12 + 9 * (level - 1);
            let at = table + 8 * (address >> low_bit & 0x1ff);
            let entry = walk.load(at).ok_or(if level == top {
                WalkStop::TopAccess
            } else {
                WalkStop::Access
            })?;
            let (r, w) = (entry >> read_bit & 1 == 1, entry >> write_bit & 1 == 1);
            if !r && !w {
                return Err(WalkStop::NotPresent);
            }
            let large = entry >> 7 & 1 == 1;
            // CAP.SSLPS: bit 34 for 2 MiB, bit 35 for 1 GiB.
            let large_allowed = match level {
                2 => unit.cap_bit(34),
                3 => unit.cap_bit(35),
                _ => false,
            };
            let leaf = level == 1 || large;
            // VT-d §9.8: 51:HAW; bit 62 without SSIRWE; bit 11 in non-leaves, and in leaves without ECAP.SC
            // (bit 7); PS where no such page exists; address bits below a large page.
            let mut reserved = unit.above_haw() & ((1 << 52) - 1);
            if !unit.ssirwe() {
                reserved |= 1 << 62;
            }
            if !leaf || !unit.ecap_bit(7) {
                reserved |= 1 << 11;
            }
            if level > 1 && large {
                if large_allowed {
                    reserved |= ((1 << low_bit) - 1) & !0xfff;
                } else {
                    reserved |= 1 << 7;
                }
            }
            if entry & reserved != 0 {
                return Err(WalkStop::Reserved);
            }
            read &= r;
            write &= w;
            entries.push((at, entry));
            if leaf {
                let offset = (1 << low_bit) - 1;
                return Ok(Leaf {
                    host: entry & ((1 << 52) - 1) & !offset | address & offset,
                    shift: low_bit,
                    read,
                    write,
                    entries,
                });
            }
            table = entry & ((1 << 52) - 1) & !0xfff;
        }
        Err(WalkStop::NotPresent)
    }

    /// The walk in scalable mode: conditions SSS.1 to SSS.5, and the flags to set (VT-d §3.7.2).
    ///
    /// `dirties` says whether the access counts as a write.
    pub(super) fn walk_scalable<M: SystemMemory>(
        &self,
        walk: &mut Walk<'_, M>,
        address: u64,
        dirties: bool,
    ) -> Result<Leaf, Trouble> {
        let leaf = self.walk(walk, address).map_err(|stop| match stop {
            WalkStop::TopAccess => qualified(0x7b, "SSS.4"),
            WalkStop::Access => qualified(0x78, "SSS.1"),
            WalkStop::Reserved => qualified(0x7a, "SSS.3"),
            WalkStop::NotPresent => qualified(0x79, "SSS.2"),
        })?;
        if !leaf.read && !leaf.write {
            return Err(qualified(0x79, "SSS.2"));
        }
        if self.flags {
            let mut updates = Vec::new();
            for (at, entry) in &leaf.entries {
                let mut wanted = 1 << 8;
                if leaf.entries.last().is_some_and(|(last, _)| last == at) && dirties && leaf.write {
                    wanted |= 1 << 9;
                }
                updates.push(FlagUpdate {
                    at: *at,
                    set: wanted & !entry,
                });
            }
            if updates.iter().any(|u| u.set != 0) && !self.snooped {
                return Err(qualified(0x7c, "SSS.5"));
            }
            walk.updates.extend(updates);
        }
        Ok(leaf)
    }
}

/// First-stage tables and how they are used.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstStage {
    /// FSPTPTR: a host address, or a guest address if `below` is there.
    pub(super) root: u64,
    /// 4 or 5.
    pub(super) levels: u32,
    /// WPE.
    pub(super) write_protect: bool,
    /// EAFE.
    pub(super) extended_flag: bool,
    pub(super) snooped: bool,
    /// The request is a supervisor's.
    pub(super) supervisor: bool,
    /// Nested: the second stage that guest addresses go through.
    pub(super) below: Option<SecondStage>,
}

/// Where a first-stage walk ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstLeaf {
    /// Host address, or guest address if nested.
    pub(super) address: u64,
    pub(super) shift: u32,
    pub(super) write: bool,
}

impl FirstStage {
    /// Conditions SGN.1, SFS.1 to SFS.9, SGN.2, SGN.6 in this order (VT-d §3.6, §3.8).
    pub(super) fn walk<M: SystemMemory>(&self, walk: &mut Walk<'_, M>, address: u64) -> Result<FirstLeaf, Trouble> {
        let (unit, request) = (walk.unit, walk.request);
        let width = 12 + 9 * self.levels;
        let upper = address >> (width - 1);
        if upper != 0 && upper != u64::MAX >> (width - 1) {
            return Err(qualified(0x80, "SGN.1"));
        }
        let (mut table, mut user, mut write) = (self.root, true, true);
        // Entries used: host address, contents, and whether the second stage lets hardware write there.
        let mut entries: Vec<(u64, u64, bool)> = Vec::new();
        let mut found = None;
        for level in (1..=self.levels).rev() {
            let top = level == self.levels;
            let low_bit = 12 + 9 * (level - 1);
            let (page, writable) = self.table_page(walk, table, top)?;
            let at = page + 8 * (address >> low_bit & 0x1ff);
            let entry = walk.load(at).ok_or(if top {
                qualified(0x73, "SFS.4")
            } else {
                qualified(0x70, "SFS.1")
            })?;
            if entry & 1 == 0 {
                return Err(qualified(0x71, "SFS.2"));
            }
            // VT-d §9.7: 51:HAW; PS in PML5E, PML4E, and in PDPE without CAP.FS1GP (bit 56); address bits
            // below a large page except bit 12 (PAT).
            let large = level > 1 && entry >> 7 & 1 == 1;
            let mut reserved = unit.above_haw() & ((1 << 52) - 1);
            if large {
                let allowed = level == 2 || level == 3 && unit.cap_bit(56);
                reserved |= if allowed {
                    ((1 << low_bit) - 1) & !0x1fff
                } else {
                    1 << 7
                };
            }
            if entry & reserved != 0 {
                return Err(qualified(0x72, "SFS.3"));
            }
            user &= entry >> 2 & 1 == 1;
            write &= entry >> 1 & 1 == 1;
            entries.push((at, entry, writable));
            if level == 1 || large {
                let offset = (1 << low_bit) - 1;
                found = Some((entry & ((1 << 52) - 1) & !offset | address & offset, low_bit));
                break;
            }
            table = entry & ((1 << 52) - 1) & !0xfff;
        }
        let Some((address, shift)) = found else {
            return Err(qualified(0x71, "SFS.2"));
        };
        if !self.supervisor && !user {
            return Err(qualified(0x81, "SGN.2"));
        }
        let write = write || self.supervisor && !self.write_protect;
        let translation = request.kind == OracleKind::T;
        if !translation && request.writes() && !write {
            return Err(qualified(0x85, "SGN.6"));
        }
        let dirties = write
            && if translation {
                walk.translation_writes()
            } else {
                request.writes()
            };
        let last = entries.len() - 1;
        for (index, (at, entry, writable)) in entries.into_iter().enumerate() {
            let mut wanted = 1 << 5;
            if self.extended_flag {
                wanted |= 1 << 10;
            }
            if index == last && dirties {
                wanted |= 1 << 6;
            }
            let set = wanted & !entry;
            if set != 0 && !self.snooped {
                return Err(qualified(0x90, "SFS.9"));
            }
            if set != 0 && !writable {
                return Err(qualified(0x77, "SFS.8"));
            }
            walk.updates.push(FlagUpdate { at, set });
        }
        Ok(FirstLeaf { address, shift, write })
    }

    /// Where the first-stage table at `table` lies in host memory, and whether hardware may write it.
    fn table_page<M: SystemMemory>(
        &self,
        walk: &mut Walk<'_, M>,
        table: u64,
        top: bool,
    ) -> Result<(u64, bool), Trouble> {
        let Some(below) = self.below else {
            return Ok((table, true));
        };
        if table > walk.unit.last_guest(below.aw) {
            return Err(qualified(0x74, "SFS.5"));
        }
        // With SSADE a read of a first-stage table counts as a write of its page.
        let leaf = below.walk_scalable(walk, table, below.flags)?;
        if !leaf.read || below.flags && !leaf.write {
            return Err(if top {
                qualified(0x75, "SFS.6")
            } else {
                qualified(0x76, "SFS.7")
            });
        }
        Ok((leaf.host, leaf.write))
    }
}
