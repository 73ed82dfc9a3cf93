//! A table tree and what can be asked of it.

use iommu_types::sync::{AtomicU64, Ordering};
use iommu_types::{
    AddrRange, FrameRequest, HostPhys, Iova, OutOfFrames, PAGE_SIZE, PageSize, Perms, TABLE_ENTRIES, TableFrame,
};

use crate::config::Config;
use crate::format::Format;
use crate::span::{Span, index};
use crate::word::{Tables, Word};

/// A tree of translation tables.
///
/// Dropping it leaks its pages: hardware may still walk them. [`PageTable::free`] gives them back.
///
/// `W` is what an entry is made of; see [`Word`].
#[derive(Debug)]
#[must_use = "dropping a page table leaks its pages; give them back with PageTable::free"]
pub struct PageTable<F, W = AtomicU64> {
    pub(crate) format: F,
    pub(crate) config: Config,
    root: TableFrame,
    /// The last address that the tree can translate.
    last: Iova,
    /// Callers between linking a table and writing the link back, on tables that walkers do not snoop.
    pub(crate) linking: W,
    /// How often table pages were unlinked: a remembered position is good while this stands still.
    pub(crate) unlinked: W,
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
pub(crate) struct Walk<'a, F, M: Tables> {
    pub(crate) format: F,
    pub(crate) config: &'a Config,
    pub(crate) memory: &'a M,
    pub(crate) linking: &'a M::Word,
}

/// One table during a walk: its level, its address and its entries.
#[derive(Debug)]
pub(crate) struct Node<'a, W> {
    pub(crate) level: u8,
    pub(crate) at: HostPhys,
    pub(crate) entries: &'a [W; TABLE_ENTRIES],
}

impl<W> Clone for Node<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Node<'_, W> {}

impl<'a, W: Word> Node<'a, W> {
    #[inline]
    pub(crate) fn load(&self, index: usize) -> u64 {
        self.entry(index).load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) const fn entry(&self, index: usize) -> &'a W {
        // The mask shows the compiler that the index is in bounds.
        &self.entries[index & (TABLE_ENTRIES - 1)]
    }
}

impl<'a, F: Format, M: Tables> Walk<'a, F, M> {
    /// The table that an entry for `iova` leads to, or the address where none is.
    #[inline]
    pub(crate) fn child(&self, entry: u64, level: u8) -> Result<Node<'a, M::Word>, HostPhys> {
        let at = self.format.table(entry);
        let entries = self.memory.entries(at).ok_or(at)?;
        Ok(Node {
            level: level - 1,
            at,
            entries,
        })
    }

    /// Where walkers do not snoop, makes `count` entries from `index` on visible to them.
    #[inline]
    pub(crate) fn write_back(&self, node: Node<'_, M::Word>, index: usize, count: usize) {
        if self.config.coherent || count == 0 {
            return;
        }
        let offset = u64::try_from(index * size_of::<u64>()).unwrap_or(0);
        let len = u64::try_from(count * size_of::<u64>()).unwrap_or(PAGE_SIZE);
        if let Some(at) = node.at.checked_add(offset) {
            self.memory.write_back(at, len);
        }
    }

    /// The lowest existing table whose entry for the span is the only one the span touches, and its entries.
    ///
    /// Ends above a leaf or a missing entry.
    #[inline]
    pub(crate) fn descend(&self, root: Node<'a, M::Word>, span: Span) -> Result<Node<'a, M::Word>, HostPhys> {
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

impl<F: Format, W: Word> PageTable<F, W> {
    /// An empty tree.
    ///
    /// # Errors
    /// [`OutOfFrames`] if there is no memory for the root table.
    pub fn new<M: Tables<Word = W>>(format: F, config: Config, memory: &M) -> Result<Self, OutOfFrames> {
        let root = memory.allocate(FrameRequest::page(config.node, config.last_phys))?;
        if !config.coherent {
            memory.write_back(root.base(), PAGE_SIZE);
        }
        Ok(Self {
            format,
            config,
            root,
            last: format.last_iova(config.levels),
            linking: W::new(0),
            unlinked: W::new(0),
        })
    }
}

impl<F, W> PageTable<F, W> {
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
}

impl<F: Format, W: Word> PageTable<F, W> {
    pub(crate) const fn walk<'a, M: Tables<Word = W>>(&'a self, memory: &'a M) -> Walk<'a, F, M>
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
    pub(crate) fn root_node<'a, M: Tables<Word = W>>(&self, memory: &'a M) -> Result<Node<'a, W>, HostPhys> {
        let at = self.root.base();
        Ok(Node {
            level: self.config.levels.count(),
            at,
            entries: memory.entries(at).ok_or(at)?,
        })
    }

    /// The leaf table for `iova`, if everything on the way to it is as usual.
    ///
    /// This is what small mappings ask for; for everything else there is [`Walk::descend`].
    #[inline(always)]
    pub(crate) fn leaf_table<'a, M: Tables<Word = W>>(&self, memory: &'a M, iova: u64) -> Option<Node<'a, W>> {
        let at = self.root.base();
        let mut node = Node {
            level: self.config.levels.count(),
            at,
            entries: memory.entries(at)?,
        };
        // Written out, so that each level has its own, constant shift.
        if node.level >= 5 {
            node = self.below::<5, M>(memory, node, iova)?;
        }
        if node.level >= 4 {
            node = self.below::<4, M>(memory, node, iova)?;
        }
        node = self.below::<3, M>(memory, node, iova)?;
        self.below::<2, M>(memory, node, iova)
    }

    /// One step down from a table at `LEVEL`, through a link of the usual kind.
    #[inline(always)]
    fn below<'a, const LEVEL: u8, M: Tables<Word = W>>(
        &self,
        memory: &'a M,
        node: Node<'a, W>,
        iova: u64,
    ) -> Option<Node<'a, W>> {
        let entry = node.load(index(iova, LEVEL));
        if !self.format.is_plain_link(entry) {
            return None;
        }
        let at = self.format.table(entry);
        Some(Node {
            level: LEVEL - 1,
            at,
            entries: memory.entries(at)?,
        })
    }

    /// What `iova` translates to; `None` where a device would be refused.
    ///
    /// Walks the tables as hardware does, except that it sets no accessed or dirty bits.
    pub fn lookup<M: Tables<Word = W>>(&self, memory: &M, iova: Iova) -> Option<Mapping> {
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
    pub fn free<M: Tables<Word = W>>(self, memory: &M) {
        if let Ok(root) = self.root_node(memory) {
            self.walk(memory).free_below(root);
        }
        memory.free(self.root);
    }
}

impl<F: Format, M: Tables> Walk<'_, F, M> {
    /// Frees the tables that `node` leads to. At most 512 entries on each of at most four levels.
    pub(crate) fn free_below(&self, node: Node<'_, M::Word>) {
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
