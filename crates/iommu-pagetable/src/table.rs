//! A table tree and what can be asked of it.

use iommu_types::sync::{AtomicU64, AtomicUsize, Ordering};
use iommu_types::{
    AddrRange, Coherence, FrameRequest, HostPhys, Iova, OutOfFrames, PAGE_SIZE, PageSize, Perms, Table, TableFrame,
    TableMemory,
};

use crate::config::Config;
use crate::format::Format;
use crate::span::{Span, index, shift};

/// A tree of translation tables.
///
/// Dropping it leaks its pages: hardware may still walk them. [`PageTable::free`] gives them back.
#[derive(Debug)]
#[must_use = "dropping a page table leaks its pages; give them back with PageTable::free"]
pub struct PageTable<F> {
    pub(crate) format: F,
    pub(crate) config: Config,
    root: TableFrame,
    /// The last address that the tree can translate.
    last: Iova,
    /// Callers between linking a table and writing the link back, on tables that walkers do not snoop.
    pub(crate) linking: AtomicUsize,
}

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The host address that the looked-up address translates to.
    pub phys: HostPhys,
    /// The size of the leaf.
    pub size: PageSize,
    /// The rights of all levels together.
    pub perms: Perms,
    /// Everything the leaf maps.
    pub page: AddrRange<Iova>,
}

/// A view of the tree together with the memory it lies in; what the operations recurse with.
pub(crate) struct Walk<'a, F, M> {
    pub(crate) format: F,
    pub(crate) config: &'a Config,
    pub(crate) memory: &'a M,
    pub(crate) linking: &'a AtomicUsize,
}

/// One table during a walk: its level, its address and its entries.
#[derive(Clone, Copy)]
pub(crate) struct Node<'a> {
    pub(crate) level: u8,
    pub(crate) at: HostPhys,
    pub(crate) entries: &'a Table,
}

impl Node<'_> {
    pub(crate) fn load(&self, index: usize) -> u64 {
        self.entry(index).load(Ordering::Acquire)
    }

    pub(crate) fn entry(&self, index: usize) -> &AtomicU64 {
        // The mask shows the compiler that the index is in bounds.
        &self.entries[index & 0x1ff]
    }
}

impl<'a, F: Format, M: TableMemory + Coherence> Walk<'a, F, M> {
    /// The table that an entry for `iova` leads to, or the address where none is.
    #[inline]
    pub(crate) fn child(&self, entry: u64, level: u8) -> Result<Node<'a>, HostPhys> {
        let at = self.format.table(entry);
        let entries = self.memory.table(at).ok_or(at)?;
        Ok(Node {
            level: level - 1,
            at,
            entries,
        })
    }

    /// Where walkers do not snoop, makes `count` entries from `index` on visible to them.
    #[inline]
    pub(crate) fn write_back(&self, node: Node<'_>, index: usize, count: usize) {
        if self.config.coherent || count == 0 {
            return;
        }
        let offset = u64::try_from(index * size_of::<u64>()).unwrap_or(0);
        let len = u64::try_from(count * size_of::<u64>()).unwrap_or(PAGE_SIZE);
        if let Some(at) = node.at.checked_add(offset) {
            self.memory.write_back(at, len);
        }
    }

    /// The leaf table that a span lies in, if it is a part of one table and all tables down to that one exist.
    ///
    /// This is what small mappings ask for, and the part of [`Self::descend`] that needs no care about spans.
    #[inline]
    pub(crate) fn leaf_table(&self, root: Node<'a>, span: Span) -> Result<Option<Node<'a>>, HostPhys> {
        let table = shift(2);
        if span.first >> table != span.last >> table || span.last - span.first == (1 << table) - 1 {
            return Ok(None);
        }
        let mut node = root;
        while node.level > 1 {
            let entry = node.load(index(span.first, node.level));
            if !self.format.is_present(entry) || self.format.is_leaf(entry, node.level) {
                return Ok(None);
            }
            node = self.child(entry, node.level)?;
        }
        Ok(Some(node))
    }

    /// The lowest existing table whose entry for the span is the only one the span touches, and its entries.
    ///
    /// Ends above a leaf or a missing entry.
    #[inline]
    pub(crate) fn descend(&self, root: Node<'a>, span: Span) -> Result<Node<'a>, HostPhys> {
        let mut node = root;
        while node.level > 1 {
            let (first, last) = span.indices(node.level);
            if first != last || Span::around(span.first, node.level) == span {
                break;
            }
            let entry = node.load(first);
            if !self.format.is_present(entry) || self.format.is_leaf(entry, node.level) {
                break;
            }
            node = self.child(entry, node.level)?;
        }
        Ok(node)
    }
}

impl<F: Format> PageTable<F> {
    /// An empty tree.
    ///
    /// # Errors
    /// [`OutOfFrames`] if there is no memory for the root table.
    pub fn new<M: TableMemory + Coherence>(format: F, config: Config, memory: &M) -> Result<Self, OutOfFrames> {
        let root = memory.allocate(FrameRequest::page(config.node, config.last_phys))?;
        if !config.coherent {
            memory.write_back(root.base(), PAGE_SIZE);
        }
        Ok(Self {
            format,
            config,
            root,
            last: format.last_iova(config.levels),
            linking: AtomicUsize::new(0),
        })
    }

    /// Where the root table lies: what a context or PASID entry points to.
    #[must_use]
    pub const fn root(&self) -> HostPhys {
        self.root.base()
    }

    /// How the tree was made.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The format of its entries.
    #[must_use]
    pub const fn format(&self) -> F
    where
        F: Copy,
    {
        self.format
    }

    /// The addresses that the tree can translate.
    #[must_use]
    #[inline]
    pub fn aperture(&self) -> AddrRange<Iova> {
        // Zero is below every address; the page stands for the impossible case only.
        AddrRange::new(Iova::ZERO, self.last).unwrap_or(AddrRange::page_around(Iova::ZERO, PageSize::Size4K))
    }

    pub(crate) const fn walk<'a, M>(&'a self, memory: &'a M) -> Walk<'a, F, M>
    where
        F: Copy,
    {
        Walk {
            format: self.format,
            config: &self.config,
            memory,
            linking: &self.linking,
        }
    }

    /// The root table, or its address if the memory does not know it.
    #[inline]
    pub(crate) fn root_node<'a, M: TableMemory>(&self, memory: &'a M) -> Result<Node<'a>, HostPhys> {
        let at = self.root.base();
        Ok(Node {
            level: self.config.levels.count(),
            at,
            entries: memory.table(at).ok_or(at)?,
        })
    }

    /// What `iova` translates to; `None` where a device would be refused.
    ///
    /// Walks the tables as hardware does, except that it sets no accessed or dirty bits.
    pub fn lookup<M: TableMemory + Coherence>(&self, memory: &M, iova: Iova) -> Option<Mapping> {
        if !self.aperture().contains(iova) {
            return None;
        }
        let walk = self.walk(memory);
        let mut node = self.root_node(memory).ok()?;
        let mut perms = Perms::READ_WRITE;
        // At most one turn for each level.
        loop {
            let entry = node.load(index(iova.raw(), node.level));
            if !self.format.is_present(entry) {
                return None;
            }
            perms = perms.intersect(self.format.perms(entry));
            if self.format.is_leaf(entry, node.level) {
                let size = PageSize::at_level(node.level)?;
                let page = AddrRange::page_around(iova, size);
                let offset = iova.offset_from(page.first())?;
                return Some(Mapping {
                    phys: self.format.page(entry, size).checked_add(offset)?,
                    size,
                    perms,
                    page,
                });
            }
            node = walk.child(entry, node.level).ok()?;
        }
    }

    /// Gives every table page back. The caller states that no hardware can reach the tree any more: the entries that
    /// pointed to it are gone, and their invalidation is confirmed.
    pub fn free<M: TableMemory + Coherence>(self, memory: &M) {
        if let Ok(root) = self.root_node(memory) {
            self.walk(memory).free_below(root);
        }
        memory.free(self.root);
    }
}

impl<F: Format, M: TableMemory + Coherence> Walk<'_, F, M> {
    /// Frees the tables that `node` leads to. At most 512 entries on each of at most four levels.
    fn free_below(&self, node: Node<'_>) {
        if node.level == 1 {
            return;
        }
        for index in 0..node.entries.len() {
            let entry = node.load(index);
            if !self.format.is_present(entry) || self.format.is_leaf(entry, node.level) {
                continue;
            }
            if let Ok(child) = self.child(entry, node.level) {
                self.free_below(child);
                // The entry that links a table page owns it.
                self.memory.free(TableFrame::from_allocator(child.at, 0));
            }
        }
    }
}
