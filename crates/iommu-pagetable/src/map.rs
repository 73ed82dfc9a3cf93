//! Making mappings.
//!
//! Three steps, so that nothing is left behind when one fails: look through the range for overlap and count the
//! missing tables; obtain them; write. The last step cannot fail while callers keep to their own ranges.

use alloc::vec::Vec;

use iommu_types::sync::Ordering;
use iommu_types::{Coherence, FrameRequest, HostPhys, Iova, PAGE_SIZE, PageSize, Perms, TableFrame, TableMemory};

use crate::error::MapError;
use crate::format::Format;
use crate::span::{Slot, Span, index};
use crate::table::{Node, PageTable, Walk};

impl<F: Format> PageTable<F> {
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
    pub fn map<M: TableMemory + Coherence>(
        &self,
        memory: &M,
        iova: Iova,
        phys: HostPhys,
        len: u64,
        perms: Perms,
    ) -> Result<(), MapError> {
        let span = self.check_map(iova, phys, len, perms)?;
        let damaged = |table| MapError::Damaged { iova, table };
        if self.config.coherent {
            // All tables are there: the usual case of a small mapping.
            let walk = self.walk(memory);
            let root = self.root_node(memory).map_err(damaged)?;
            if let Some(leaves) = walk.leaf_table(root, span).map_err(damaged)? {
                if len == PAGE_SIZE {
                    let entry = leaves.entry(index(span.first, 1));
                    if self.format.is_present(entry.load(Ordering::Relaxed)) {
                        return Err(MapError::Overlap { at: iova });
                    }
                    entry.store(self.format.leaf(phys, PageSize::Size4K, perms), Ordering::Release);
                    return Ok(());
                }
                walk.check_free(leaves, span)?;
                walk.write_leaves(leaves, span, phys.raw(), perms);
                return Ok(());
            }
        }
        self.map_far(memory, iova, phys, len, perms)
    }

    /// Maps a range for which tables are missing, or that needs more than one.
    #[inline(never)]
    fn map_far<M: TableMemory + Coherence>(
        &self,
        memory: &M,
        iova: Iova,
        phys: HostPhys,
        len: u64,
        perms: Perms,
    ) -> Result<(), MapError> {
        let mut supply = Vec::new();
        let done = self.map_with(memory, iova, phys, len, perms, &mut supply);
        for spare in supply {
            // Never linked: no hardware has seen it.
            memory.free(spare);
        }
        done
    }

    /// Maps with table pages from `supply` first; what is left of them stays there.
    pub(crate) fn map_with<M: TableMemory + Coherence>(
        &self,
        memory: &M,
        iova: Iova,
        phys: HostPhys,
        len: u64,
        perms: Perms,
        supply: &mut Vec<TableFrame>,
    ) -> Result<(), MapError> {
        let span = self.check_map(iova, phys, len, perms)?;
        let walk = self.walk(memory);
        let damaged = |table| MapError::Damaged { iova, table };
        let root = self.root_node(memory).map_err(damaged)?;
        let node = walk.descend(root, span).map_err(damaged)?;
        if node.level == 1 {
            walk.check_free(node, span)?;
            walk.write_leaves(node, span, phys.raw(), perms);
        } else {
            let needed = walk.plan(node, span, phys.raw())?;
            walk.supply(needed, supply)?;
            walk.fill(node, span, phys.raw(), perms, supply)?;
        }
        if !self.config.coherent && self.linking.load(Ordering::SeqCst) != 0 {
            // Somebody is between linking a table and writing that link back, and this mapping may lie below it.
            walk.write_back_links(root, span).map_err(damaged)?;
        }
        Ok(())
    }

    /// What can be said of a mapping without looking at the tables.
    #[inline]
    fn check_map(&self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Result<Span, MapError> {
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

impl<'a, F: Format, M: TableMemory + Coherence> Walk<'a, F, M> {
    /// The leaf that can map all of `slot` in a table at `level` to `phys`, if one can.
    fn leaf_size(&self, slot: &Slot, level: u8, phys: u64) -> Option<PageSize> {
        let size = PageSize::at_level(level)?;
        let fits = slot.whole && self.config.sizes.allows(size) && HostPhys::new(phys).is_aligned(size);
        fits.then_some(size)
    }

    /// Refuses a span of a leaf table in which anything is mapped.
    #[inline]
    fn check_free(&self, node: Node<'a>, span: Span) -> Result<(), MapError> {
        let (first, last) = span.indices(1);
        let mut entries = node.entries[first..=last].iter();
        match entries.position(|entry| self.format.is_present(entry.load(Ordering::Relaxed))) {
            None => Ok(()),
            Some(pages) => {
                let at = Iova::new(span.first + u64::try_from(pages).unwrap_or(0) * PAGE_SIZE);
                Err(MapError::Overlap { at })
            }
        }
    }

    /// Writes the entries of a leaf table for a span.
    #[inline]
    fn write_leaves(&self, node: Node<'a>, span: Span, phys: u64, perms: Perms) {
        let (first, last) = span.indices(1);
        // Entries of neighbouring pages differ by the same number, whatever the format.
        let leaf = |phys| self.format.leaf(HostPhys::new(phys), PageSize::Size4K, perms);
        let mut word = leaf(phys);
        let step = leaf(phys ^ PAGE_SIZE).abs_diff(word);
        for entry in &node.entries[first..=last] {
            entry.store(word, Ordering::Release);
            word = word.wrapping_add(step);
        }
        self.write_back(node, first, last + 1 - first);
    }

    /// Looks for overlap, and counts the tables that mapping `span` to `phys` needs.
    pub(crate) fn plan(&self, node: Node<'a>, span: Span, phys: u64) -> Result<usize, MapError> {
        if node.level == 1 {
            return self.check_free(node, span).map(|()| 0);
        }
        let mut needed = 0;
        for slot in span.slots(node.level) {
            let entry = node.load(slot.index);
            let phys = phys + (slot.span.first - span.first);
            if !self.format.is_present(entry) {
                if self.leaf_size(&slot, node.level, phys).is_none() {
                    needed += 1 + self.tables_below(node.level - 1, slot.span, phys);
                }
            } else if self.format.is_leaf(entry, node.level) {
                let at = Iova::new(slot.span.first);
                return Err(MapError::Overlap { at });
            } else {
                let child = self.child(entry, node.level).map_err(|table| {
                    let iova = Iova::new(slot.span.first);
                    MapError::Damaged { iova, table }
                })?;
                needed += self.plan(child, slot.span, phys)?;
            }
        }
        Ok(needed)
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

    /// Fills `supply` up to `needed` table pages.
    pub(crate) fn supply(&self, needed: usize, supply: &mut Vec<TableFrame>) -> Result<(), MapError> {
        let missing = needed.saturating_sub(supply.len());
        if supply.try_reserve_exact(missing).is_err() {
            return Err(MapError::NoMemory { tables: needed });
        }
        for _ in 0..missing {
            let frame = self
                .memory
                .allocate(FrameRequest::page(self.config.node, self.config.last_phys))?;
            let table = frame.base();
            supply.push(frame);
            if self.memory.table(table).is_none() {
                return Err(MapError::Damaged {
                    iova: Iova::ZERO,
                    table,
                });
            }
        }
        Ok(())
    }

    /// Writes the entries that map `span` to `phys`, with tables from `supply` where they are missing.
    pub(crate) fn fill(
        &self,
        node: Node<'a>,
        span: Span,
        phys: u64,
        perms: Perms,
        supply: &mut Vec<TableFrame>,
    ) -> Result<(), MapError> {
        if node.level == 1 {
            self.write_leaves(node, span, phys, perms);
            return Ok(());
        }
        let (first, last) = span.indices(node.level);
        let mut written = false;
        for slot in span.slots(node.level) {
            let phys = phys + (slot.span.first - span.first);
            let entry = node.load(slot.index);
            if self.format.is_present(entry) {
                let iova = Iova::new(slot.span.first);
                if self.format.is_leaf(entry, node.level) {
                    return Err(MapError::Contended { at: iova });
                }
                let child = self
                    .child(entry, node.level)
                    .map_err(|table| MapError::Damaged { iova, table })?;
                self.fill(child, slot.span, phys, perms, supply)?;
            } else if let Some(size) = self.leaf_size(&slot, node.level, phys) {
                let leaf = self.format.leaf(HostPhys::new(phys), size, perms);
                node.entry(slot.index).store(leaf, Ordering::Release);
                written = true;
            } else {
                written |= self.grow(node, &slot, entry, phys, perms, supply)?;
            }
        }
        if written {
            self.write_back(node, first, last + 1 - first);
        }
        Ok(())
    }

    /// Puts a table under an entry that has none, and maps `slot` below it. Tells whether the entry was written.
    fn grow(
        &self,
        node: Node<'a>,
        slot: &Slot,
        old: u64,
        phys: u64,
        perms: Perms,
        supply: &mut Vec<TableFrame>,
    ) -> Result<bool, MapError> {
        let iova = Iova::new(slot.span.first);
        let frame = supply.pop().ok_or(MapError::Contended { at: iova })?;
        let link = self.format.link(frame.base());
        let child = self
            .child(link, node.level)
            .map_err(|table| MapError::Damaged { iova, table })?;
        if slot.whole {
            // Nobody else has business below this entry: complete the table first, then link it.
            self.fill(child, slot.span, phys, perms, supply)?;
            node.entry(slot.index).store(link, Ordering::Release);
            return Ok(true);
        }
        // Hardware must find zeroes in the whole page before it can find the page.
        self.write_back(child, 0, child.entries.len());
        let won = self.link(node, slot.index, old, link);
        let child = match won {
            Ok(()) => child,
            Err(theirs) => {
                supply.push(frame);
                if !self.format.is_present(theirs) || self.format.is_leaf(theirs, node.level) {
                    return Err(MapError::Contended { at: iova });
                }
                self.child(theirs, node.level)
                    .map_err(|table| MapError::Damaged { iova, table })?
            }
        };
        self.fill(child, slot.span, phys, perms, supply)?;
        Ok(false)
    }

    /// Replaces the missing entry `old` by `link`, or tells what somebody else put there.
    fn link(&self, node: Node<'a>, index: usize, old: u64, link: u64) -> Result<(), u64> {
        let exchange = || {
            let won = node
                .entry(index)
                .compare_exchange(old, link, Ordering::AcqRel, Ordering::Acquire);
            won.map(|_| ())
        };
        if self.config.coherent {
            return exchange();
        }
        // Others descend through the link as soon as they see it, and rely on hardware seeing it as well.
        self.linking.fetch_add(1, Ordering::SeqCst);
        let won = exchange();
        self.write_back(node, index, 1);
        self.linking.fetch_sub(1, Ordering::SeqCst);
        won
    }

    /// Writes back every link that leads to `span`.
    fn write_back_links(&self, node: Node<'a>, span: Span) -> Result<(), HostPhys> {
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
