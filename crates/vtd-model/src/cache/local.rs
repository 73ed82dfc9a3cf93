//! The caches of a unit that one thread drives.

use alloc::vec;
use alloc::vec::Vec;

use iommu_types::{DomainId, PageSize, SourceId};

use super::set::{SetCache, spread};
use super::{
    AddressSpaceTag, CachedContext, CachedInterrupt, CachedPage, CachedPasid, CachedTable, ContextInvalidation,
    InterruptInvalidation, Invalidation, IotlbInvalidation, PageBlock, PasidInvalidation, Stamp, TranslationCache,
};

/// Pages of one size up to which a page-selective command looks for each page; above, it scans the cache.
const PROBES_MAX: u64 = 16;

/// Levels of table pointers that a lookup in the paging-structure cache tries: tables of level 1 to 4.
const TABLE_LEVELS: u8 = 4;

/// How many entries each cache has room for. 0 switches a cache off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSizes {
    /// Context entries.
    pub contexts: usize,
    /// PASID entries.
    pub pasids: usize,
    /// Translated pages.
    pub pages: usize,
    /// Pointers to tables.
    pub tables: usize,
    /// Interrupt remapping entries.
    pub interrupts: usize,
}

impl CacheSizes {
    /// Most bytes that [`Caches`] of these sizes take on the heap, with `domains` domain identifiers.
    #[must_use]
    pub const fn memory_bound(&self, domains: usize) -> usize {
        SetCache::<(SourceId, CachedContext)>::memory_bound(self.contexts)
            .saturating_add(SetCache::<(SourceId, u32, CachedPasid)>::memory_bound(self.pasids))
            .saturating_add(SetCache::<PageSlot>::memory_bound(self.pages))
            .saturating_add(SetCache::<TableSlot>::memory_bound(self.tables))
            .saturating_add(SetCache::<(u16, CachedInterrupt)>::memory_bound(self.interrupts))
            .saturating_add(domains.saturating_mul(size_of::<DomainEpochs>()))
    }
}

#[derive(Clone, Copy, Debug)]
struct PageSlot {
    tag: AddressSpaceTag,
    page: CachedPage,
    filled: Stamp,
}

#[derive(Clone, Copy, Debug)]
struct TableSlot {
    tag: AddressSpaceTag,
    /// First address the table serves.
    base: u64,
    table: CachedTable,
}

/// Moments of the last invalidation of a whole domain.
#[derive(Clone, Copy, Debug, Default)]
struct DomainEpochs {
    all: u64,
    first_stage: u64,
}

/// Context, PASID, paging-structure and interrupt entry caches and the IOTLB of one unit (VT-d §6.2).
#[derive(Clone, Debug)]
pub struct Caches {
    contexts: SetCache<(SourceId, CachedContext)>,
    pasids: SetCache<(SourceId, u32, CachedPasid)>,
    pages: SetCache<PageSlot>,
    tables: SetCache<TableSlot>,
    interrupts: SetCache<(u16, CachedInterrupt)>,
    now: u64,
    global: u64,
    /// One for each domain identifier, so that dropping a domain is one store.
    domains: Vec<DomainEpochs>,
    /// Which page sizes may be present; spares lookups for sizes that nobody maps.
    sizes: [bool; PageSize::ALL.len()],
}

impl Caches {
    /// Empty caches for `domains` domain identifiers.
    #[must_use]
    pub fn new(sizes: CacheSizes, domains: usize) -> Self {
        Self {
            contexts: SetCache::new(sizes.contexts),
            pasids: SetCache::new(sizes.pasids),
            pages: SetCache::new(sizes.pages),
            tables: SetCache::new(sizes.tables),
            interrupts: SetCache::new(sizes.interrupts),
            now: 1,
            global: 0,
            domains: vec![DomainEpochs::default(); domains],
            sizes: [false; PageSize::ALL.len()],
        }
    }

    /// Bytes that the caches take on the heap now.
    #[must_use]
    pub const fn memory_held(&self) -> usize {
        self.contexts.memory_held()
            + self.pasids.memory_held()
            + self.pages.memory_held()
            + self.tables.memory_held()
            + self.interrupts.memory_held()
            + self.domains.capacity() * size_of::<DomainEpochs>()
    }

    fn live(&self, slot: &PageSlot) -> bool {
        is_live(slot, self.global, &self.domains)
    }

    fn advance(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Drops pages of `block` for which `gone` holds: by looking for each if there are few, else by scanning.
    fn drop_pages(&mut self, domain: DomainId, block: &PageBlock, gone: impl Fn(&PageSlot) -> bool) {
        for (size, present) in PageSize::ALL.into_iter().zip(self.sizes) {
            if !present {
                continue;
            }
            let (first, last) = (block.first >> size.shift(), block.last >> size.shift());
            if last - first < PROBES_MAX {
                for number in first..=last {
                    self.pages.drop_in_set(page_hash(domain, number), |slot| {
                        slot.tag.domain == domain
                            && u32::from(slot.page.shift) == size.shift()
                            && slot.page.base >> size.shift() == number
                            && gone(slot)
                    });
                }
            } else {
                self.pages.drop_all(|slot| {
                    slot.tag.domain == domain
                        && u32::from(slot.page.shift) == size.shift()
                        && block.overlaps(slot.page.base, slot.page.shift)
                        && gone(slot)
                });
            }
        }
    }

    fn invalidate_contexts(&mut self, what: ContextInvalidation) {
        match what {
            ContextInvalidation::Global => self.contexts.drop_all(|_| true),
            // Scalable entries carry no domain: the command acts on all of them (VT-d §6.5.2.1).
            ContextInvalidation::Domain(domain) => {
                self.contexts
                    .drop_all(|(_, context)| context.scalable || context.domain() == domain);
            }
            ContextInvalidation::Device { source, ignore, domain } => {
                let matches = |(held, context): &(SourceId, CachedContext)| {
                    (held.raw() ^ source.raw()) & !ignore == 0 && (context.scalable || context.domain() == domain)
                };
                if ignore == 0 {
                    self.contexts.drop_in_set(source_hash(source), matches);
                } else {
                    self.contexts.drop_all(matches);
                }
            }
        }
    }

    fn invalidate_pasids(&mut self, what: PasidInvalidation) {
        self.pasids.drop_all(|(_, pasid, entry)| match what {
            PasidInvalidation::Global => true,
            PasidInvalidation::Domain(domain) => entry.domain() == domain,
            PasidInvalidation::Pasid(domain, wanted) => entry.domain() == domain && *pasid == wanted,
        });
    }

    fn invalidate_iotlb(&mut self, what: IotlbInvalidation) {
        match what {
            IotlbInvalidation::Global => {
                self.global = self.advance();
                self.sizes = [false; PageSize::ALL.len()];
                self.tables.drop_all(|_| true);
            }
            IotlbInvalidation::Domain(domain) => {
                let now = self.advance();
                if let Some(epochs) = self.domains.get_mut(usize::from(domain.0)) {
                    epochs.all = now;
                }
                self.tables.drop_all(|slot| slot.tag.domain == domain);
            }
            IotlbInvalidation::Pages { domain, pages } => {
                // First-stage and nested entries go whatever their address: the command names second-stage
                // addresses (VT-d §6.5.2.3).
                let now = self.advance();
                if let Some(epochs) = self.domains.get_mut(usize::from(domain.0)) {
                    epochs.first_stage = now;
                }
                self.drop_pages(domain, &pages, |_| true);
                self.tables.drop_all(|slot| {
                    slot.tag.domain == domain
                        && (slot.tag.stage.uses_first()
                            || (!pages.leaf_only && pages.overlaps(slot.base, slot.shift())))
                });
            }
            IotlbInvalidation::Pasid { domain, pasid } => {
                self.pages
                    .drop_all(|slot| slot.tag.domain == domain && slot.tag.pasid == pasid);
                self.tables.drop_all(|slot| {
                    slot.tag.domain == domain && slot.tag.pasid == pasid && slot.tag.stage.uses_first()
                });
            }
            IotlbInvalidation::PasidPages { domain, pasid, pages } => {
                self.drop_pages(domain, &pages, |slot| {
                    slot.tag.pasid == pasid && slot.tag.stage.uses_first()
                });
                if !pages.leaf_only {
                    self.tables.drop_all(|slot| {
                        slot.tag.domain == domain
                            && slot.tag.pasid == pasid
                            && slot.tag.stage.uses_first()
                            && pages.overlaps(slot.base, slot.shift())
                    });
                }
            }
        }
    }

    fn invalidate_interrupts(&mut self, what: InterruptInvalidation) {
        self.interrupts.drop_all(|(index, _)| match what {
            InterruptInvalidation::Global => true,
            InterruptInvalidation::Indexes { first, last } => (first..=last).contains(index),
        });
    }
}

impl TableSlot {
    /// Base-2 logarithm of the bytes that the table serves.
    const fn shift(&self) -> u8 {
        table_shift(self.table.level)
    }
}

/// Whether no invalidation of everything or of the domain came after the entry.
fn is_live(slot: &PageSlot, global: u64, domains: &[DomainEpochs]) -> bool {
    let epochs = domains.get(usize::from(slot.tag.domain.0)).copied().unwrap_or_default();
    slot.filled.0 >= global
        && slot.filled.0 >= epochs.all
        && !(slot.tag.stage.uses_first() && slot.filled.0 < epochs.first_stage)
}

/// Base-2 logarithm of the bytes that a table of `level` serves: 9 bits a level above the page offset.
const fn table_shift(level: u8) -> u8 {
    12 + 9 * level
}

fn source_hash(source: SourceId) -> u64 {
    spread(u64::from(source.raw()))
}

fn pasid_hash(source: SourceId, pasid: u32) -> u64 {
    spread(u64::from(source.raw()) << 32 | u64::from(pasid))
}

/// The set of a page. PASID and roots stay out of it, so that a command that names only the domain and the
/// address finds all candidates in one set.
fn page_hash(domain: DomainId, number: u64) -> u64 {
    spread(number ^ u64::from(domain.0) << 48)
}

fn table_hash(tag: &AddressSpaceTag, level: u8, base: u64) -> u64 {
    spread(base ^ u64::from(tag.domain.0) ^ u64::from(level) << 56)
}

impl TranslationCache for Caches {
    fn stamp(&mut self) -> Stamp {
        Stamp(self.now)
    }

    fn context(&mut self, source: SourceId) -> Option<CachedContext> {
        self.contexts
            .find(source_hash(source), |held| held.0 == source)
            .map(|held| held.1)
    }

    fn fill_context(&mut self, _: Stamp, source: SourceId, context: CachedContext) {
        self.contexts
            .put(source_hash(source), (source, context), |held| held.0 == source);
    }

    fn pasid(&mut self, source: SourceId, pasid: u32) -> Option<CachedPasid> {
        self.pasids
            .find(pasid_hash(source, pasid), |held| held.0 == source && held.1 == pasid)
            .map(|held| held.2)
    }

    fn fill_pasid(&mut self, _: Stamp, source: SourceId, pasid: u32, entry: CachedPasid) {
        self.pasids
            .put(pasid_hash(source, pasid), (source, pasid, entry), |held| {
                held.0 == source && held.1 == pasid
            });
    }

    fn page(&mut self, tag: &AddressSpaceTag, address: u64) -> Option<CachedPage> {
        PageSize::ALL
            .into_iter()
            .zip(self.sizes)
            .filter(|(_, present)| *present)
            .find_map(|(size, _)| {
                let hash = page_hash(tag.domain, address >> size.shift());
                self.pages
                    .find(hash, |slot| {
                        u32::from(slot.page.shift) == size.shift()
                            && slot.page.covers(address)
                            && slot.tag == *tag
                            && self.live(slot)
                    })
                    .map(|slot| slot.page)
            })
    }

    fn fill_page(&mut self, stamp: Stamp, tag: &AddressSpaceTag, page: CachedPage) {
        let Some(present) = PageSize::ALL
            .into_iter()
            .zip(&mut self.sizes)
            .find_map(|(size, present)| (size.shift() == u32::from(page.shift)).then_some(present))
        else {
            return;
        };
        *present = true;
        let slot = PageSlot {
            tag: *tag,
            page,
            filled: stamp,
        };
        let hash = page_hash(tag.domain, page.base >> page.shift);
        // Entries that an invalidation has overtaken make room first.
        let (global, domains) = (self.global, &self.domains);
        self.pages.drop_in_set(hash, |held| !is_live(held, global, domains));
        self.pages.put(hash, slot, |held| {
            held.tag == *tag && held.page.base == page.base && held.page.shift == page.shift
        });
    }

    fn table(&mut self, tag: &AddressSpaceTag, address: u64, below: u8) -> Option<CachedTable> {
        (1..below.min(TABLE_LEVELS + 1)).find_map(|level| {
            let base = address >> table_shift(level) << table_shift(level);
            self.tables
                .find(table_hash(tag, level, base), |slot| {
                    slot.tag == *tag && slot.table.level == level && slot.base == base
                })
                .map(|slot| slot.table)
        })
    }

    fn fill_table(&mut self, _: Stamp, tag: &AddressSpaceTag, address: u64, table: CachedTable) {
        if !(1..=TABLE_LEVELS).contains(&table.level) {
            return;
        }
        let shift = table_shift(table.level);
        let base = address >> shift << shift;
        let slot = TableSlot { tag: *tag, base, table };
        self.tables.put(table_hash(tag, table.level, base), slot, |held| {
            held.tag == *tag && held.table.level == table.level && held.base == base
        });
    }

    fn interrupt(&mut self, index: u16) -> Option<CachedInterrupt> {
        self.interrupts
            .find(spread(u64::from(index)), |held| held.0 == index)
            .map(|held| held.1)
    }

    fn fill_interrupt(&mut self, _: Stamp, index: u16, entry: CachedInterrupt) {
        self.interrupts
            .put(spread(u64::from(index)), (index, entry), |held| held.0 == index);
    }

    fn invalidate(&mut self, what: &Invalidation) {
        match *what {
            Invalidation::Context(what) => self.invalidate_contexts(what),
            Invalidation::Pasid(what) => self.invalidate_pasids(what),
            Invalidation::Iotlb(what) => self.invalidate_iotlb(what),
            Invalidation::Interrupt(what) => self.invalidate_interrupts(what),
        }
    }
}
