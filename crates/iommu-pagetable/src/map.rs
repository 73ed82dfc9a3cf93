//! Making mappings.
//!
//! A small mapping finds its leaf table and writes entries. A larger one is made in two steps, so that nothing is left
//! behind when one fails: subtrees that are missing are built where nobody sees them ([`crate::build`]), and then all
//! is published. The second step cannot fail while callers keep to their own ranges.

use alloc::vec::Vec;

use iommu_types::sync::Ordering;
use iommu_types::{HostPhys, Iova, PAGE_SIZE, PageSize, Perms, TableFrame};

use crate::build::Private;
use crate::error::MapError;
use crate::format::Format;
use crate::span::{Slot, Span};
use crate::table::{Node, PageTable, Walk};
use crate::word::{Tables, Word};

impl<F: Format, W: Word> PageTable<F, W> {
    /// Maps `len` bytes from `iova` to `phys`, with the largest leaves that alignment and hardware allow.
    ///
    /// On return hardware that did not look at the range before finds the mapping; what may have cached that nothing
    /// was there must be invalidated by the caller (VT-d §6.1 (Caching Mode)). The caller owns the range, see the
    /// crate's front page.
    ///
    /// Where an empty table is still linked in place of a superpage, smaller leaves are used: taking the table out
    /// needs a flush first, see [`PageTable::prune`].
    ///
    /// # Errors
    /// [`MapError`]. Nothing is mapped then, except where a variant says so.
    #[inline]
    pub fn map<M: Tables<Word = W>>(
        &self,
        memory: &M,
        iova: Iova,
        phys: HostPhys,
        len: u64,
        perms: Perms,
    ) -> Result<(), MapError> {
        if let Some(span) = self.small(iova, phys, len, perms)
            && let Some(leaves) = self.leaf_table(memory, span.first)
            && self.walk(memory).map_leaves(leaves, span, phys.raw(), perms).is_ok()
        {
            // All tables are there: the usual case of a small mapping.
            return self.settle(memory, span);
        }
        self.map_slowly(memory, iova, phys, len, perms)
    }

    /// Maps what is not small, not usual or not right, and says what is wrong.
    #[cold]
    #[inline(never)]
    fn map_slowly<M: Tables<Word = W>>(
        &self,
        memory: &M,
        iova: Iova,
        phys: HostPhys,
        len: u64,
        perms: Perms,
    ) -> Result<(), MapError> {
        let span = self.check_map(iova, phys, len, perms)?;
        self.map_far(memory, span, phys, perms, &mut Vec::new())
    }

    /// Maps a range for which tables are missing, or that needs more than one; with table pages from `supply` first.
    /// What is left of them stays there.
    pub(crate) fn map_far<M: Tables<Word = W>>(
        &self,
        memory: &M,
        span: Span,
        phys: HostPhys,
        perms: Perms,
        supply: &mut Vec<TableFrame>,
    ) -> Result<(), MapError> {
        let walk = self.walk(memory);
        let damaged = |table| MapError::Damaged {
            iova: Iova::new(span.first),
            table,
        };
        let root = self.root_node(memory).map_err(damaged)?;
        let node = walk.descend(root, span).map_err(damaged)?;
        if node.level == 1 {
            walk.map_leaves(node, span, phys.raw(), perms)?;
        } else {
            Private::new(&walk, perms, supply).map(node, span, phys.raw())?;
        }
        self.settle(memory, span)
    }

    /// Where walkers do not snoop: what was just mapped must not hang on a link that they cannot see yet.
    #[inline]
    pub(crate) fn settle<M: Tables<Word = W>>(&self, memory: &M, span: Span) -> Result<(), MapError> {
        if self.config.coherent || self.linking.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        self.settle_slowly(memory, span)
    }

    #[cold]
    #[inline(never)]
    fn settle_slowly<M: Tables<Word = W>>(&self, memory: &M, span: Span) -> Result<(), MapError> {
        // Somebody is between linking a table and writing that link back, and this mapping may lie below it.
        let damaged = |table| MapError::Damaged {
            iova: Iova::new(span.first),
            table,
        };
        let root = self.root_node(memory).map_err(damaged)?;
        self.walk(memory).write_back_links(root, span).map_err(damaged)
    }

    /// The span of a mapping that is right and lies in one leaf table; `None` for all others.
    #[inline(always)]
    pub(crate) fn small(&self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Option<Span> {
        // If the sum wraps, its ends do not lie in one leaf table.
        let (first, last) = (iova.raw(), iova.raw().wrapping_add(len.wrapping_sub(1)));
        let (last_phys, wraps) = phys.raw().overflowing_add(len.wrapping_sub(1));
        let whole_pages = (first | phys.raw() | len) & (PAGE_SIZE - 1) == 0 && len != 0;
        let fits = last <= self.aperture().last().raw() && !wraps && last_phys <= self.config.last_phys.raw();
        let right = whole_pages && fits && self.format.granted(perms).is_some();
        (right && Span { first, last }.is_in_one_leaf_table()).then_some(Span { first, last })
    }

    /// What can be said of a mapping without looking at the tables.
    #[inline(always)]
    pub(crate) fn check_map(&self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Result<Span, MapError> {
        if len == 0 || (iova.raw() | phys.raw() | len) & (PAGE_SIZE - 1) != 0 {
            return Err(MapError::Misaligned { iova, phys, len });
        }
        let last = iova.checked_add(len - 1).filter(|&last| self.aperture().contains(last));
        let Some(last) = last else {
            let aperture = self.aperture();
            return Err(MapError::OutsideAperture { iova, len, aperture });
        };
        let limit = self.config.last_phys;
        if phys.checked_add(len - 1).is_none_or(|last| last > limit) {
            return Err(MapError::OutsideHost { phys, len, last: limit });
        }
        if self.format.granted(perms).is_none() {
            return Err(MapError::NoRights { iova });
        }
        Ok(Span {
            first: iova.raw(),
            last: last.raw(),
        })
    }
}

impl<'a, F: Format, M: Tables> Walk<'a, F, M> {
    /// The leaf that can map all of `slot` in a table at `level` to `phys`, if one can.
    pub(crate) fn leaf_size(&self, slot: &Slot, level: u8, phys: u64) -> Option<PageSize> {
        let size = PageSize::at_level(level)?;
        let fits = slot.whole && self.config.sizes.allows(size) && HostPhys::new(phys).is_aligned(size);
        fits.then_some(size)
    }

    /// How many tables an empty table at `level` leads to once `span` is mapped to `phys` below it.
    pub(crate) fn tables_below(&self, level: u8, span: Span, phys: u64) -> usize {
        if level == 1 {
            return 0;
        }
        span.slots(level)
            .map(|slot| {
                let phys = phys + (slot.span.first - span.first);
                if self.leaf_size(&slot, level, phys).is_some() {
                    0
                } else {
                    1 + self.tables_below(level - 1, slot.span, phys)
                }
            })
            .sum()
    }

    /// Writes back every link that leads to `span`.
    fn write_back_links(&self, node: Node<'a, M::Word>, span: Span) -> Result<(), HostPhys> {
        if node.level == 1 {
            return Ok(());
        }
        let (first, last) = span.indices(node.level);
        self.write_back(node, first, last + 1 - first);
        for slot in span.slots(node.level) {
            let entry = node.load(slot.index);
            if self.format.is_present(entry) && !self.format.is_leaf(entry, node.level) {
                self.write_back_links(self.child(entry, node.level)?, slot.span)?;
            }
        }
        Ok(())
    }
}
