//! The unit's caches (VT-d §6.2): what they are asked, how they are filled, what an invalidation drops.
//!
//! [`TranslationCache`] is the seam between the pure translation and whoever stores its results. [`Caches`]
//! is the store of one thread that [`crate::Unit`] uses by default; an embedder with many threads implements
//! the trait for a reference to its own shared store.

mod local;
mod set;

use crate::condition::Condition;
use iommu_types::{DomainId, Perms, SourceId};

pub use local::{CacheSizes, Caches};

/// A moment in the life of a cache, taken before a walk starts reading tables.
///
/// A shared cache refuses a fill whose stamp is older than an invalidation that covers it: the walk may have
/// read tables from before the change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub u64);

/// How a legacy context entry lets requests through (TT field, VT-d §9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegacyContext {
    /// TT = 10: untranslated requests pass unchanged.
    pub pass_through: bool,
    /// TT = 01: translation and translated requests are served.
    pub device_tlb: bool,
    /// Domain identifier.
    pub domain: DomainId,
    /// Host address of the top second-stage table.
    pub root: u64,
    /// Levels of the second-stage tables, 3 to 5; also fixes the address width.
    pub levels: u8,
}

/// The fields of a scalable-mode context entry that translation needs (VT-d §9.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScalableContext {
    /// DTE: translation and translated requests are served.
    pub device_tlb: bool,
    /// PASIDE: requests with PASID are served.
    pub pasid_enable: bool,
    /// PRE: page requests are accepted.
    pub page_requests: bool,
    /// EPTR: translated requests may carry a PASID.
    pub translated_pasid: bool,
    /// Number of PASIDs that the directory covers.
    pub pasid_count: u32,
    /// Host address of the PASID directory.
    pub directory: u64,
    /// PASID of requests without PASID.
    pub rid_pasid: u32,
    /// Privilege of requests without PASID.
    pub rid_privileged: bool,
}

/// A context entry, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// From a legacy table.
    Legacy(LegacyContext),
    /// From a scalable-mode table.
    Scalable(ScalableContext),
}

/// What the context cache holds for one requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedContext {
    /// The entry, or why it cannot be used (kept only in caching mode).
    pub entry: Result<Context, Condition>,
    /// Fault processing disable, as read.
    pub fault_processing_disabled: bool,
    /// Which table format the entry was read as: an entry never serves the other mode.
    pub scalable: bool,
}

impl CachedContext {
    /// The domain identifier that invalidations match: 0 for a faulting entry (VT-d §6.1).
    #[must_use]
    pub const fn domain(&self) -> DomainId {
        match self.entry {
            Ok(Context::Legacy(context)) => context.domain,
            Ok(Context::Scalable(_)) | Err(_) => DomainId(0),
        }
    }
}

/// Which tables a translation went through: the PGTT field, and legacy mode as second-stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Second-stage tables only.
    Second,
    /// First-stage tables only.
    First,
    /// First-stage tables whose addresses go through second-stage tables.
    Nested,
    /// No tables.
    PassThrough,
}

impl Stage {
    /// Whether first-stage tables took part, which decides what an IOTLB command drops.
    #[must_use]
    pub const fn uses_first(self) -> bool {
        matches!(self, Self::First | Self::Nested)
    }
}

/// A PASID-table entry, decoded (VT-d §9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasidContext {
    /// PGTT.
    pub stage: Stage,
    /// Domain identifier.
    pub domain: DomainId,
    /// Host address of the top second-stage table.
    pub second_root: u64,
    /// Levels of the second-stage tables.
    pub second_levels: u8,
    /// Second-stage accessed and dirty flags are maintained (SSADE).
    pub second_dirty: bool,
    /// Address of the top first-stage table: host physical, or guest physical when nested.
    pub first_root: u64,
    /// Levels of the first-stage tables, 4 or 5.
    pub first_levels: u8,
    /// Bits of a first-stage address, 1 to 64; those above repeat the highest.
    pub canonical_bits: u8,
    /// Privileged requests are allowed (SRE).
    pub supervisor: bool,
    /// Privileged writes respect R/W (WPE).
    pub write_protect: bool,
    /// Extended accessed flag (EAFE).
    pub extended_accessed: bool,
    /// Table walks snoop processor caches (PWSNP and SMPWCS).
    pub walk_snoops: bool,
    /// Accesses to the final page are forced to snoop (PGSNP).
    pub page_snoops: bool,
}

/// What the PASID cache holds for one requester and PASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedPasid {
    /// The entry, or why it cannot be used (kept only in caching mode).
    pub entry: Result<PasidContext, Condition>,
    /// Fault processing disable of the directory or the table entry, as read.
    pub fault_processing_disabled: bool,
}

impl CachedPasid {
    /// The domain identifier that invalidations match: 0 for a faulting entry (VT-d §6.1).
    #[must_use]
    pub const fn domain(&self) -> DomainId {
        match self.entry {
            Ok(entry) => entry.domain,
            Err(_) => DomainId(0),
        }
    }
}

/// What an IOTLB entry belongs to. The requester is not part of it: its view of the address space is its
/// context entry (and PASID entry), so one domain's requesters share entries and an invalidation by domain
/// reaches all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressSpaceTag {
    /// Domain identifier.
    pub domain: DomainId,
    /// PASID of the request or RID_PASID; [`AddressSpaceTag::LEGACY`] in legacy mode.
    pub pasid: u32,
    /// Tables walked.
    pub stage: Stage,
    /// Top tables, first-stage and second-stage. They keep a domain identifier that software gave to two
    /// address spaces (a programming error, VT-d §6.2.3.1) from mixing them. Zero where the configuration
    /// asks for tags as real hardware has them.
    pub roots: [u64; 2],
}

impl AddressSpaceTag {
    /// The PASID tag of legacy-mode entries: no PASID has this value.
    pub const LEGACY: u32 = u32::MAX;
}

/// A finished translation of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedPage {
    /// First input address of the page.
    pub base: u64,
    /// Base-2 logarithm of the page's size.
    pub shift: u8,
    /// Host address of the page's first byte.
    pub phys: u64,
    /// Rights of user requests (and of all requests where no first stage takes part).
    pub user: Perms,
    /// Rights of privileged requests.
    pub supervisor: Perms,
    /// The user flag of the first stage allows user requests at all.
    pub user_allowed: bool,
    /// Dirty flags need no update any more: a write may use the entry without a walk.
    pub dirty: bool,
    /// Snoop is forced on the final page by the leaf (SNP).
    pub snoop: bool,
    /// Why the page cannot be used at all (kept only in caching mode).
    pub fault: Option<Condition>,
}

impl CachedPage {
    /// Whether byte `address` is inside the page.
    #[must_use]
    pub const fn covers(&self, address: u64) -> bool {
        match address.checked_sub(self.base) {
            Some(offset) => offset >> self.shift == 0,
            None => false,
        }
    }
}

/// A pointer to a lower table with the rights collected on the way to it (paging-structure caches, VT-d §6.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedTable {
    /// Level of the table that `table` points to; level 1 holds the 4 KiB leaves.
    pub level: u8,
    /// Its host address.
    pub table: u64,
    /// Rights that all entries above grant; in first-stage tables only `write` is limited.
    pub perms: Perms,
    /// All entries above have the user flag (first stage).
    pub user: bool,
}

/// An interrupt remapping table entry as its words, already read and judged present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedInterrupt {
    /// The entry's two words.
    pub words: [u64; 2],
}

/// Context-cache invalidation (VT-d §6.5.1.1, §6.5.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextInvalidation {
    /// Every entry.
    Global,
    /// Entries tagged with a domain; in scalable mode every entry.
    Domain(DomainId),
    /// Entries of a source under a function mask; in legacy mode only those tagged with the domain.
    Device {
        /// Source identifier.
        source: SourceId,
        /// Bits of the source identifier that do not have to match.
        ignore: u16,
        /// Domain identifier.
        domain: DomainId,
    },
}

/// PASID-cache invalidation (VT-d §6.5.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasidInvalidation {
    /// Every entry.
    Global,
    /// Entries tagged with a domain.
    Domain(DomainId),
    /// Entries of one PASID tagged with a domain.
    Pasid(DomainId, u32),
}

/// IOTLB invalidation (VT-d §6.5.1.2, §6.5.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IotlbInvalidation {
    /// All IOTLB and paging-structure entries.
    Global,
    /// Everything tagged with a domain.
    Domain(DomainId),
    /// A block of pages of a domain.
    Pages {
        /// Domain identifier.
        domain: DomainId,
        /// The block.
        pages: PageBlock,
    },
    /// Everything of one PASID of a domain (PASID-based IOTLB).
    Pasid {
        /// Domain identifier.
        domain: DomainId,
        /// PASID.
        pasid: u32,
    },
    /// A block of first-stage or nested pages of one PASID (PASID-based IOTLB).
    PasidPages {
        /// Domain identifier.
        domain: DomainId,
        /// PASID.
        pasid: u32,
        /// The block.
        pages: PageBlock,
    },
}

/// A naturally aligned block of pages, as ADDR, AM and IH name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBlock {
    /// First input address.
    pub first: u64,
    /// Last input address.
    pub last: u64,
    /// IH: only leaf entries changed, paging-structure caches may keep theirs.
    pub leaf_only: bool,
}

impl PageBlock {
    /// The `2^order` pages of 4 KiB around `address`; an order that passes the 64-bit space means all of it.
    #[must_use]
    pub const fn new(address: u64, order: u8, leaf_only: bool) -> Self {
        let low = match 1u64.checked_shl(order as u32 + iommu_types::PAGE_SHIFT) {
            Some(bytes) => bytes - 1,
            None => u64::MAX,
        };
        Self {
            first: address & !low,
            last: address | low,
            leaf_only,
        }
    }

    /// Whether the block shares a byte with the `2^shift` bytes at `base`.
    #[must_use]
    pub const fn overlaps(&self, base: u64, shift: u8) -> bool {
        let size = match 1u64.checked_shl(shift as u32) {
            Some(size) => size - 1,
            None => u64::MAX,
        };
        base <= self.last && self.first <= base | size
    }
}

/// Interrupt entry cache invalidation (VT-d §6.5.2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptInvalidation {
    /// Every entry.
    Global,
    /// Entries `first..=last`.
    Indexes {
        /// First index.
        first: u16,
        /// Last index.
        last: u16,
    },
}

/// One invalidation of the unit's own caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// Context cache.
    Context(ContextInvalidation),
    /// PASID cache.
    Pasid(PasidInvalidation),
    /// IOTLB and paging-structure caches.
    Iotlb(IotlbInvalidation),
    /// Interrupt entry cache.
    Interrupt(InterruptInvalidation),
}

/// Storage for what walks found.
///
/// Every method may forget: a cache that always answers `None` is correct, and that is what the methods with a body here
/// do. What a cache may not do is answer with an entry that an earlier [`Self::invalidate`] covers, or that was filled
/// under a [`Stamp`] older than such an invalidation. The methods take `&mut self`; a store that many threads share
/// implements the trait for `&Store`.
pub trait TranslationCache {
    /// The present moment, taken before tables are read.
    fn stamp(&mut self) -> Stamp;
    /// Drops at least everything that `what` covers.
    fn invalidate(&mut self, what: &Invalidation);

    /// The context entry of `source`.
    fn context(&mut self, source: SourceId) -> Option<CachedContext> {
        let _ = source;
        None
    }
    /// Stores the context entry of `source`.
    fn fill_context(&mut self, stamp: Stamp, source: SourceId, context: CachedContext) {
        let _ = (stamp, source, context);
    }
    /// The PASID entry of `source` and `pasid`.
    fn pasid(&mut self, source: SourceId, pasid: u32) -> Option<CachedPasid> {
        let _ = (source, pasid);
        None
    }
    /// Stores the PASID entry of `source` and `pasid`.
    fn fill_pasid(&mut self, stamp: Stamp, source: SourceId, pasid: u32, entry: CachedPasid) {
        let _ = (stamp, source, pasid, entry);
    }
    /// The page of `tag` that holds `address`.
    fn page(&mut self, tag: &AddressSpaceTag, address: u64) -> Option<CachedPage> {
        let _ = (tag, address);
        None
    }
    /// Stores a page of `tag`.
    fn fill_page(&mut self, stamp: Stamp, tag: &AddressSpaceTag, page: CachedPage) {
        let _ = (stamp, tag, page);
    }
    /// The lowest cached table of `tag` on the way to `address`, of a level below `below`.
    fn table(&mut self, tag: &AddressSpaceTag, address: u64, below: u8) -> Option<CachedTable> {
        let _ = (tag, address, below);
        None
    }
    /// Stores a table of `tag` on the way to `address`.
    fn fill_table(&mut self, stamp: Stamp, tag: &AddressSpaceTag, address: u64, table: CachedTable) {
        let _ = (stamp, tag, address, table);
    }
    /// The interrupt remapping table entry at `index`.
    fn interrupt(&mut self, index: u16) -> Option<CachedInterrupt> {
        let _ = index;
        None
    }
    /// Stores the interrupt remapping table entry at `index`.
    fn fill_interrupt(&mut self, stamp: Stamp, index: u16, entry: CachedInterrupt) {
        let _ = (stamp, index, entry);
    }
}
