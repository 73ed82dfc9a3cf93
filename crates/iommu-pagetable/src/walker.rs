//! Many small operations, each near the one before.

use iommu_types::sync::Ordering;
use iommu_types::{AddrRange, HostPhys, Iova, PAGE_SIZE, PageSize, Perms, Piece};

use crate::error::{MapError, UnmapError};
use crate::format::Format;
use crate::span::{Span, index, shift};
use crate::table::{Node, PageTable};
use crate::unmap::UnmapRules;
use crate::unmapped::Unmapped;
use crate::word::{Tables, Word};

/// A position in a tree: it remembers the leaf table of the last operation, so that the next one near it starts there
/// instead of at the root.
///
/// It may be kept for as long as the tree lives. Whenever any table page of the tree is unlinked, it forgets.
#[derive(Debug)]
pub struct Walker<'a, F, M: Tables> {
    table: &'a PageTable<F, M::Word>,
    memory: &'a M,
    /// Number of the leaf table among all that are possible, and the table.
    near: Option<(u64, Node<'a, M::Word>)>,
    /// How many table pages had been unlinked when the position was taken.
    unlinked: u64,
}

impl<F: Format, W: Word> PageTable<F, W> {
    /// A position in the tree, nowhere yet.
    pub fn walker<'a, M: Tables<Word = W>>(&'a self, memory: &'a M) -> Walker<'a, F, M> {
        Walker {
            table: self,
            memory,
            near: None,
            unlinked: self.unlinked.load(Ordering::Acquire),
        }
    }

    /// Maps every piece of a block that begins at `base`; the way down the tree is walked once for neighbours.
    ///
    /// # Errors
    /// [`MapError`] for a piece, with the number of pieces before it: those are mapped.
    pub fn map_pieces<M: Tables<Word = W>>(
        &self,
        memory: &M,
        base: Iova,
        pieces: &[Piece],
        perms: Perms,
    ) -> Result<(), (usize, MapError)> {
        let mut walker = self.walker(memory);
        let mut done = 0;
        while let Some((piece, _)) = pieces.get(done..).and_then(<[Piece]>::split_first) {
            let (single, settled) = walker.map_pages(base, pieces.get(done..).unwrap_or(&[]), perms);
            done += single;
            settled.map_err(|error| (done, error))?;
            if single > 0 {
                continue;
            }
            // Longer than a page, or a table is missing, or not right.
            let (phys, len) = (piece.phys, piece.len);
            let iova = base.checked_add(piece.offset).ok_or_else(|| MapError::OutsideAperture {
                iova: base,
                len,
                aperture: self.aperture(),
            });
            iova.and_then(|iova| walker.map(iova, phys, len, perms))
                .map_err(|error| (done, error))?;
            done += 1;
        }
        Ok(())
    }
}

impl<'a, F: Format, M: Tables> Walker<'a, F, M> {
    /// As [`PageTable::map`].
    ///
    /// # Errors
    /// As [`PageTable::map`].
    #[inline]
    pub fn map(&mut self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Result<(), MapError> {
        if let Some(span) = self.table.small(iova, phys, len, perms)
            && let Some(leaves) = self.leaf_table(span.first)
            && self
                .table
                .walk(self.memory)
                .map_leaves(leaves, span, phys.raw(), perms)
                .is_ok()
        {
            return self.table.settle(self.memory, span);
        }
        self.table.map(self.memory, iova, phys, len, perms)
    }

    /// Maps the pieces at the front that are single pages of one leaf table, as long as nothing is in their way. Tells
    /// how many they were, and whether hardware sees them.
    fn map_pages(&mut self, base: Iova, pieces: &[Piece], perms: Perms) -> (usize, Result<(), MapError>) {
        let table = self.table;
        let Some(first) = pieces.first() else {
            return (0, Ok(()));
        };
        let start = base.raw().wrapping_add(first.offset);
        if start > table.aperture().last().raw() || table.format.granted(perms).is_none() {
            return (0, Ok(()));
        }
        let Some(node) = self.leaf_table(start) else {
            return (0, Ok(()));
        };
        let last_phys = table.config.last_phys.raw();
        let mut span = Span {
            first: start,
            last: start,
        };
        let mut done = 0;
        for piece in pieces {
            let (iova, phys) = (base.raw().wrapping_add(piece.offset), piece.phys.raw());
            let near = (iova ^ start) >> shift(2) == 0;
            let aligned = (iova | phys) & (PAGE_SIZE - 1) == 0 && piece.len == PAGE_SIZE;
            // Aligned, so that the page ends before the sum can wrap.
            if !near || !aligned || phys | (PAGE_SIZE - 1) > last_phys {
                break;
            }
            let entry = node.entry(index(iova, 1));
            if table.format.is_present(entry.load(Ordering::Relaxed)) {
                break;
            }
            let leaf = table.format.leaf(piece.phys, PageSize::Size4K, perms);
            entry.store(leaf, Ordering::Release);
            span.first = span.first.min(iova);
            span.last = span.last.max(iova);
            done += 1;
        }
        if done > 0 && !table.config.coherent {
            // One write-back for all of them: a cache line holds eight entries.
            let (first, last) = span.indices(1);
            table.walk(self.memory).write_back(node, first, last + 1 - first);
            return (done, table.settle(self.memory, span));
        }
        (done, Ok(()))
    }

    /// As [`PageTable::unmap`].
    ///
    /// # Errors
    /// As [`PageTable::unmap`].
    #[inline]
    pub fn unmap(&mut self, range: AddrRange<Iova>, rules: UnmapRules) -> Result<Unmapped, UnmapError> {
        if self.table.is_small(range)
            && let Some(leaves) = self.leaf_table(range.first().raw())
            && let Ok(pages) = self
                .table
                .walk(self.memory)
                .unmap_leaves(leaves, Span::of(range), rules)
        {
            return Ok(Unmapped::of_leaves(range, pages));
        }
        self.table.unmap(self.memory, range, rules)
    }

    /// The leaf table for `iova`, if everything on the way to it is as usual.
    #[inline]
    fn leaf_table(&mut self, iova: u64) -> Option<Node<'a, M::Word>> {
        let number = iova >> shift(2);
        // The caller owns the page, so its table cannot be unlinked now. If that happened before the caller owned it,
        // then whoever did it counted first.
        let unlinked = self.table.unlinked.load(Ordering::Acquire);
        if let Some((here, node)) = self.near
            && here == number
            && unlinked == self.unlinked
        {
            return Some(node);
        }
        self.unlinked = unlinked;
        let found = self.table.leaf_table(self.memory, iova);
        self.near = found.map(|node| (number, node));
        found
    }
}
