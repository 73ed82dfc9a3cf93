//! Taking mappings out.
//!
//! Two steps: look through the range, so that a refusal changes nothing and all memory that the second step needs is
//! at hand; then clear entries and unlink tables.

use alloc::vec::Vec;

use iommu_types::sync::Ordering;
use iommu_types::{AddrRange, FrameRequest, HostPhys, Iova, PageSize, Perms, TableFrame};

use crate::error::{MapError, UnmapError};
use crate::format::Format;
use crate::span::{Slot, Span};
use crate::table::{Node, PageTable, Walk};
use crate::unmapped::{Piece, Remainder, Unmapped};
use crate::word::{Tables, Word};

/// What to do with a superpage of which only a part is to be unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Partial {
    /// Refuse: [`UnmapError::Split`].
    #[default]
    Refuse,
    /// Remove the superpage, and hand the rest back as a [`Remainder`].
    Split,
}

/// What to do with pages of the range that are not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Holes {
    /// Refuse: [`UnmapError::NotMapped`].
    #[default]
    Refuse,
    /// Step over them.
    Skip,
}

/// How strict an unmap is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct UnmapRules {
    /// Superpages of which a part is outside the range.
    pub superpages: Partial,
    /// Pages that are not mapped.
    pub holes: Holes,
}

impl UnmapRules {
    /// Exactly what is mapped.
    pub const STRICT: Self = Self {
        superpages: Partial::Refuse,
        holes: Holes::Refuse,
    };
    /// Whatever is mapped in the range, superpages only as a whole.
    pub const SKIP_HOLES: Self = Self {
        superpages: Partial::Refuse,
        holes: Holes::Skip,
    };
}

/// What the first step found.
#[derive(Default)]
struct Census {
    /// Pages that are mapped, in 4 KiB.
    pages: u64,
    /// Tables that the range covers.
    tables: usize,
    /// Tables that the remainder needs.
    needed: usize,
    pieces: [Option<Piece>; 2],
    /// Superpages that are cut at the lower and the upper end.
    cut: [Option<AddrRange<Iova>>; 2],
}

impl<F: Format, W: Word> PageTable<F, W> {
    /// Removes what is mapped in `range`.
    ///
    /// Tables that translate nothing outside the range are unlinked too. The caller owns the range, see the crate's
    /// front page.
    ///
    /// # Errors
    /// [`UnmapError`]; nothing has changed then.
    #[inline]
    pub fn unmap<M: Tables<Word = W>>(
        &self,
        memory: &M,
        range: AddrRange<Iova>,
        rules: UnmapRules,
    ) -> Result<Unmapped, UnmapError> {
        if self.is_small(range)
            && let Some(leaves) = self.leaf_table(memory, range.first().raw())
            && let Ok(pages) = self.walk(memory).unmap_leaves(leaves, Span::of(range), rules)
        {
            // A part of one leaf table, which stays: the usual case of a small mapping.
            return Ok(Unmapped::of_leaves(range, pages));
        }
        self.unmap_slowly(memory, range, rules)
    }

    /// Whether a range is a part of one leaf table, and can be unmapped without looking further.
    #[inline(always)]
    pub(crate) fn is_small(&self, range: AddrRange<Iova>) -> bool {
        let span = Span::of(range);
        range.is_aligned(PageSize::Size4K)
            && span.last <= self.aperture().last().raw()
            && span.is_in_one_leaf_table()
            && !span.fills_a_leaf_table()
    }

    /// What can be said of an unmap without looking at the tables.
    fn check_unmap(&self, range: AddrRange<Iova>) -> Result<(), UnmapError> {
        if !range.is_aligned(PageSize::Size4K) {
            return Err(UnmapError::Misaligned { range });
        }
        let aperture = self.aperture();
        if !aperture.covers(range) {
            return Err(UnmapError::OutsideAperture { range, aperture });
        }
        Ok(())
    }

    /// Unmaps what is not small, not usual or not right, and says what is wrong.
    #[cold]
    #[inline(never)]
    fn unmap_slowly<M: Tables<Word = W>>(
        &self,
        memory: &M,
        range: AddrRange<Iova>,
        rules: UnmapRules,
    ) -> Result<Unmapped, UnmapError> {
        self.check_unmap(range)?;
        let walk = self.walk(memory);
        let span = Span::of(range);
        let damaged = |table| UnmapError::Damaged {
            iova: range.first(),
            table,
        };
        let root = self.root_node(memory).map_err(damaged)?;
        let node = walk.descend(root, span).map_err(damaged)?;
        let mut census = Census::default();
        walk.census(node, span, rules, &mut census)?;
        let mut out = walk.prepare(range, &census)?;
        walk.clear(node, span, &mut out.freed);
        if !out.freed.is_empty() {
            self.unlinked.fetch_add(1, Ordering::Release);
        }
        Ok(out)
    }

    /// Maps the rest of cut superpages again, after the flush of what [`PageTable::unmap`] took out.
    ///
    /// # Errors
    /// [`MapError::Overlap`] if something was mapped there meanwhile; other variants of [`MapError`] only if the
    /// tables are damaged. The remainder is lost then.
    pub fn restore<M: Tables<Word = W>>(&self, memory: &M, remainder: Remainder) -> Result<(), MapError> {
        let Remainder { pieces, mut frames } = remainder;
        let mut restore = |piece: Piece| {
            let span = self.check_map(piece.iova, piece.phys, piece.len, piece.perms)?;
            self.map_far(memory, span, piece.phys, piece.perms, &mut frames)
        };
        let done = pieces.into_iter().try_for_each(&mut restore);
        for spare in frames {
            // Never linked: no hardware has seen it.
            memory.free(spare);
        }
        done
    }

    /// Unlinks tables inside `range` that map nothing, so that superpages can take their place or memory comes free.
    ///
    /// Tables that `range` does not cover entirely stay. The caller owns the range; whoever owns the whole aperture
    /// can give all empty tables back.
    ///
    /// # Errors
    /// [`UnmapError`]; nothing has changed then.
    pub fn prune<M: Tables<Word = W>>(&self, memory: &M, range: AddrRange<Iova>) -> Result<Unmapped, UnmapError> {
        let aperture = self.aperture();
        if !aperture.covers(range) {
            return Err(UnmapError::OutsideAperture { range, aperture });
        }
        let walk = self.walk(memory);
        let damaged = |table| UnmapError::Damaged {
            iova: range.first(),
            table,
        };
        let root = self.root_node(memory).map_err(damaged)?;
        let span = Span::of(range);
        let mut freed = Vec::new();
        let tables = walk.empty_tables(root, span)?.1;
        if freed.try_reserve_exact(tables).is_err() {
            return Err(UnmapError::NoMemory { tables });
        }
        walk.unlink_empty(root, span, &mut freed);
        if !freed.is_empty() {
            self.unlinked.fetch_add(1, Ordering::Release);
        }
        Ok(Unmapped {
            range,
            pages: 0,
            freed,
            remainder: None,
        })
    }
}

impl<'a, F: Format, M: Tables> Walk<'a, F, M> {
    /// The first step: refuses what the rules refuse, counts the rest.
    fn census(
        &self,
        node: Node<'a, M::Word>,
        span: Span,
        rules: UnmapRules,
        census: &mut Census,
    ) -> Result<(), UnmapError> {
        if node.level == 1 {
            census.pages += self.count_leaves(node, span, rules)?;
            return Ok(());
        }
        for slot in span.slots(node.level) {
            let entry = node.load(slot.index);
            let at = Iova::new(slot.span.first);
            if !self.format.is_present(entry) {
                if rules.holes == Holes::Refuse {
                    return Err(UnmapError::NotMapped { at });
                }
            } else if self.format.is_leaf(entry, node.level) {
                self.census_leaf(node.level, &slot, entry, rules, census)?;
            } else {
                let child = self.child(entry, node.level);
                let child = child.map_err(|table| UnmapError::Damaged { iova: at, table })?;
                census.tables += usize::from(slot.whole);
                self.census(child, slot.span, rules, census)?;
            }
        }
        Ok(())
    }

    /// Counts a superpage, and cuts it where the rules allow.
    fn census_leaf(
        &self,
        level: u8,
        slot: &Slot,
        entry: u64,
        rules: UnmapRules,
        census: &mut Census,
    ) -> Result<(), UnmapError> {
        let whole = Span::around(slot.span.first, level);
        census.pages += whole.range().page_count();
        if slot.whole {
            return Ok(());
        }
        let page = whole.range();
        let (Partial::Split, Some(size)) = (rules.superpages, PageSize::at_level(level)) else {
            return Err(UnmapError::Split { page });
        };
        let phys = self.format.page(entry, size).raw();
        let perms: Perms = self.format.perms(entry);
        let below = (whole.first < slot.span.first).then(|| Span {
            first: whole.first,
            last: slot.span.first - 1,
        });
        let above = (slot.span.last < whole.last).then(|| Span {
            first: slot.span.last + 1,
            last: whole.last,
        });
        // Only the first superpage of a range can be cut from below, and only the last from above.
        for (end, span) in [below, above].into_iter().enumerate() {
            let Some(span) = span else { continue };
            let phys = phys + (span.first - whole.first);
            census.needed += 1 + self.tables_below(level - 1, span, phys);
            census.cut[end] = Some(page);
            census.pieces[end] = Some(Piece {
                iova: Iova::new(span.first),
                phys: HostPhys::new(phys),
                len: span.last - span.first + 1,
                perms,
            });
        }
        Ok(())
    }

    /// Obtains all memory that the second step needs.
    fn prepare(&self, range: AddrRange<Iova>, census: &Census) -> Result<Unmapped, UnmapError> {
        let mut freed = Vec::new();
        if freed.try_reserve_exact(census.tables).is_err() {
            return Err(UnmapError::NoMemory { tables: census.tables });
        }
        let mut widened = range;
        for page in census.cut.into_iter().flatten() {
            let (first, last) = (widened.first().min(page.first()), widened.last().max(page.last()));
            widened = AddrRange::new(first, last).unwrap_or(widened);
        }
        let remainder = if census.pieces.iter().any(Option::is_some) {
            let mut pieces = Vec::new();
            if pieces.try_reserve_exact(census.pieces.len()).is_err() {
                return Err(UnmapError::NoMemory { tables: census.needed });
            }
            pieces.extend(census.pieces.into_iter().flatten());
            let mut frames = Vec::new();
            if let Err(error) = self.supply(census.needed, &mut frames) {
                for spare in frames {
                    self.memory.free(spare);
                }
                return Err(error);
            }
            Some(Remainder { pieces, frames })
        } else {
            None
        };
        Ok(Unmapped {
            range: widened,
            pages: census.pages,
            freed,
            remainder,
        })
    }

    /// Fills `supply` with `needed` table pages.
    fn supply(&self, needed: usize, supply: &mut Vec<TableFrame>) -> Result<(), UnmapError> {
        if supply.try_reserve_exact(needed).is_err() {
            return Err(UnmapError::NoMemory { tables: needed });
        }
        for _ in 0..needed {
            let request = FrameRequest::page(self.config.node, self.config.last_phys);
            supply.push(self.memory.allocate(request)?);
        }
        Ok(())
    }

    /// The second step: clears the entries of `span` and unlinks the tables it covers.
    fn clear(&self, node: Node<'a, M::Word>, span: Span, freed: &mut Vec<TableFrame>) {
        if node.level == 1 {
            self.clear_leaves(node, span);
            return;
        }
        let (first, last) = span.indices(node.level);
        let mut written = false;
        for slot in span.slots(node.level) {
            let entry = node.load(slot.index);
            if !self.format.is_present(entry) {
                continue;
            }
            if slot.whole || self.format.is_leaf(entry, node.level) {
                node.entry(slot.index).store(0, Ordering::Release);
                written = true;
                if !self.format.is_leaf(entry, node.level)
                    && let Ok(child) = self.child(entry, node.level)
                {
                    self.collect(child, freed);
                }
            } else if let Ok(child) = self.child(entry, node.level) {
                self.clear(child, slot.span, freed);
            }
        }
        if written {
            self.write_back(node, first, last + 1 - first);
        }
    }

    /// Takes the pages of a table that was just unlinked, and of all below it. Their entries stay as they are:
    /// hardware may still walk them through cached pointers, and finds what it found before.
    fn collect(&self, node: Node<'a, M::Word>, freed: &mut Vec<TableFrame>) {
        if node.level > 1 {
            for index in 0..node.entries.len() {
                let entry = node.load(index);
                if self.format.is_present(entry)
                    && !self.format.is_leaf(entry, node.level)
                    && let Ok(child) = self.child(entry, node.level)
                {
                    self.collect(child, freed);
                }
            }
        }
        // The entry that linked the page owned it. Room was reserved; a page too many would only be leaked.
        if freed.len() < freed.capacity() {
            freed.push(TableFrame::from_allocator(node.at, 0));
        }
    }

    /// Whether the table maps nothing, and how many tables below it [`Self::unlink_empty`] would take out.
    fn empty_tables(&self, node: Node<'a, M::Word>, span: Span) -> Result<(bool, usize), UnmapError> {
        let (first, last) = span.indices(node.level);
        let whole = last + 1 - first == node.entries.len();
        if node.level == 1 {
            let empty = whole && (0..node.entries.len()).all(|index| !self.format.is_present(node.load(index)));
            return Ok((empty, 0));
        }
        let (mut empty, mut tables) = (whole, 0);
        for slot in span.slots(node.level) {
            let entry = node.load(slot.index);
            if !self.format.is_present(entry) {
                continue;
            }
            if self.format.is_leaf(entry, node.level) {
                empty = false;
                continue;
            }
            let iova = Iova::new(slot.span.first);
            let child = self
                .child(entry, node.level)
                .map_err(|table| UnmapError::Damaged { iova, table })?;
            let (child_empty, below) = self.empty_tables(child, slot.span)?;
            tables += below + usize::from(child_empty && slot.whole);
            empty &= child_empty;
        }
        Ok((empty, tables))
    }

    /// Unlinks the tables of `span` that map nothing. Tells whether `node` itself is empty now.
    fn unlink_empty(&self, node: Node<'a, M::Word>, span: Span, freed: &mut Vec<TableFrame>) -> bool {
        let (first, last) = span.indices(node.level);
        let whole = last + 1 - first == node.entries.len();
        if node.level > 1 {
            let mut written = false;
            for slot in span.slots(node.level) {
                let entry = node.load(slot.index);
                if !self.format.is_present(entry) || self.format.is_leaf(entry, node.level) {
                    continue;
                }
                let Ok(child) = self.child(entry, node.level) else {
                    continue;
                };
                if self.unlink_empty(child, slot.span, freed) && slot.whole && freed.len() < freed.capacity() {
                    node.entry(slot.index).store(0, Ordering::Release);
                    written = true;
                    freed.push(TableFrame::from_allocator(child.at, 0));
                }
            }
            if written {
                self.write_back(node, first, last + 1 - first);
            }
        }
        whole && (0..node.entries.len()).all(|index| !self.format.is_present(node.load(index)))
    }
}
