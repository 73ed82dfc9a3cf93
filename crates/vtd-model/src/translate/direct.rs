//! The common case of a walk by itself: second-stage tables of legacy mode whose context entry is known (VT-d §3.7).

use iommu_types::{HostPhys, PageSize, Perms};
use vtd_spec::entry::SecondStageEntry;
use vtd_spec::{level_shift, message, table_index};

use super::second_stage::{LEVELS_MAX, SecondStage};
use crate::config::{Profile, UnitConfig};

/// Walks second-stage tables for embedders that keep context entries themselves and only miss a page.
///
/// It gives the answer of [`crate::translate()`] for an untranslated request without PASID that the tables let through, and
/// no answer for everything else: faults, pages and addresses of the interrupt range. Then the full translation has to be
/// asked. What the embedder answers for: the context entry is present and current, its tables are the ones named, and no
/// memory region is protected.
#[derive(Clone, Debug)]
pub struct DirectWalker {
    /// Bits that must be 0 in an entry, from level 1 up: of one that points to a table, of a leaf.
    reserved: [[u64; 2]; LEVELS_MAX],
    /// The last address that tables translate, from 1 level up.
    limits: [u64; LEVELS_MAX],
}

/// A page that a [`DirectWalker`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectPage {
    /// First input address.
    pub base: u64,
    /// Size.
    pub size: PageSize,
    /// Host address of the first byte.
    pub phys: HostPhys,
    /// What the tables permit.
    pub perms: Perms,
    /// Table entries read.
    pub reads: u8,
}

impl DirectWalker {
    /// A walker for a unit of `config`; `None` if its profile does more on a walk than look.
    #[must_use]
    pub fn new(config: &UnitConfig) -> Option<Self> {
        if config.profile() != Profile::Spec {
            return None;
        }
        let features = config.features();
        let mut walker = Self {
            reserved: [[0; 2]; LEVELS_MAX],
            limits: [0; LEVELS_MAX],
        };
        for (level, (reserved, limit)) in (1..).zip(walker.reserved.iter_mut().zip(&mut walker.limits)) {
            *reserved = [false, true].map(|large| {
                let entry = SecondStageEntry::DEFAULT.with_ps(large);
                entry.reserved(level, features, false)
            });
            let tables = SecondStage {
                root: HostPhys::new(0),
                levels: level,
                flags: false,
                snooped: false,
            };
            *limit = tables.address_limit(config);
        }
        Some(walker)
    }

    /// The page that holds `address` in the tables of `levels` levels at `root`. `read` reads the aligned word at a host
    /// address; it is called once a level at most.
    #[inline]
    pub fn page(
        &self,
        root: u64,
        levels: u8,
        address: u64,
        mut read: impl FnMut(HostPhys) -> Option<u64>,
    ) -> Option<DirectPage> {
        let limit = *self.limits.get(usize::from(levels).checked_sub(1)?)?;
        if address > limit || message::is_interrupt_address(address) {
            return None;
        }
        let (mut table, mut perms) = (root, Perms::READ_WRITE);
        for level in (1..=levels).rev() {
            let offset = u64::try_from(table_index(address, level)).ok()? * 8;
            let entry = SecondStageEntry::new_with_raw_value(read(HostPhys::new(table.checked_add(offset)?))?);
            perms = perms.intersect(entry.perms());
            let [table_reserved, large_reserved] = *self.reserved.get(usize::from(level).checked_sub(1)?)?;
            let reserved = if entry.ps() { large_reserved } else { table_reserved };
            if !entry.is_present() || entry.raw_value() & reserved != 0 {
                return None;
            }
            if entry.is_leaf(level) {
                let size = PageSize::at_level(level)?;
                let offset = (1u64 << level_shift(level)) - 1;
                let phys = entry.page(size);
                if message::is_interrupt_address(phys.raw() | address & offset) {
                    return None;
                }
                return Some(DirectPage {
                    base: address & !offset,
                    size,
                    phys,
                    perms,
                    reads: levels - level + 1,
                });
            }
            table = entry.address().raw();
        }
        None
    }
}
