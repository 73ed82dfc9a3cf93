//! Large mappings: missing subtrees are built in private, then published.
//!
//! A table page is written while it is still in the cache from being zeroed, and nobody sees it before it is complete.
//! An entry that the mapping covers in part can be given a table by somebody else in the meantime. Then what was built
//! moves over entry by entry, and the page that nobody saw goes back.

use alloc::vec::Vec;

use iommu_types::sync::Ordering;
use iommu_types::{FrameRequest, HostPhys, Iova, Perms, TableFrame};

use crate::error::MapError;
use crate::format::Format;
use crate::span::{Slot, Span};
use crate::table::{Node, Walk};
use crate::word::{Tables, Word};

/// A subtree that nobody sees, and the entry that is to lead to it.
struct Graft<'a, W> {
    parent: Node<'a, W>,
    index: usize,
    /// What the entry held.
    old: u64,
    child: Node<'a, W>,
    frame: TableFrame,
}

/// A mapping on its way.
pub(crate) struct Private<'w, 'a, F, M: Tables> {
    walk: &'w Walk<'a, F, M>,
    perms: Perms,
    /// Table pages that are used before memory is asked.
    supply: &'w mut Vec<TableFrame>,
    /// In the order in which a walk through the range meets their entries; once all are built, in reverse.
    grafts: Vec<Graft<'a, M::Word>>,
}

impl<'w, 'a, F: Format, M: Tables> Private<'w, 'a, F, M> {
    pub(crate) const fn new(walk: &'w Walk<'a, F, M>, perms: Perms, supply: &'w mut Vec<TableFrame>) -> Self {
        Self {
            walk,
            perms,
            supply,
            grafts: Vec::new(),
        }
    }

    /// Maps `span`, which lies in a table that others see, to `phys`.
    ///
    /// On an error, what was built is freed again; nothing is visible unless the error says so.
    pub(crate) fn map(mut self, node: Node<'a, M::Word>, span: Span, phys: u64) -> Result<(), MapError> {
        let mut done = self.build(node, span, phys);
        if done.is_ok() {
            self.grafts.reverse();
            done = self.publish(node, span, phys);
        }
        for graft in self.grafts {
            self.walk.free_below(graft.child);
            self.walk.memory.free(graft.frame);
        }
        done
    }

    /// Looks for overlap in a table that others see, and builds what is missing below it.
    fn build(&mut self, node: Node<'a, M::Word>, span: Span, phys: u64) -> Result<(), MapError> {
        if node.level == 1 {
            return self.walk.check_free(node, span);
        }
        for slot in span.slots(node.level) {
            let entry = node.load(slot.index);
            let phys = phys + (slot.span.first - span.first);
            let iova = Iova::new(slot.span.first);
            if self.walk.format.is_present(entry) {
                if self.walk.format.is_leaf(entry, node.level) {
                    return Err(MapError::Overlap { at: iova });
                }
                let child = self.walk.child(entry, node.level);
                let child = child.map_err(|table| MapError::Damaged { iova, table })?;
                self.build(child, slot.span, phys)?;
            } else if self.walk.leaf_size(&slot, node.level, phys).is_none() {
                if self.grafts.try_reserve(1).is_err() {
                    return Err(MapError::NoMemory { tables: 1 });
                }
                let (frame, child) = self.subtree(node.level - 1, slot.span, phys)?;
                self.grafts.push(Graft {
                    parent: node,
                    index: slot.index,
                    old: entry,
                    child,
                    frame,
                });
            }
        }
        Ok(())
    }

    /// Builds a table at `level` that maps `span` to `phys`, and all tables below it. Nobody sees them.
    fn subtree(&mut self, level: u8, span: Span, phys: u64) -> Result<(TableFrame, Node<'a, M::Word>), MapError> {
        let (frame, node) = self.table(level, Iova::new(span.first))?;
        match self.populate(node, span, phys) {
            Ok(()) => {
                // Hardware must find zeroes in the rest of the page before it can find the page.
                self.walk.write_back(node, 0, node.entries.len());
                Ok((frame, node))
            }
            Err(error) => {
                self.walk.free_below(node);
                self.walk.memory.free(frame);
                Err(error)
            }
        }
    }

    /// A new, empty table, from the supply or from memory.
    fn table(&mut self, level: u8, iova: Iova) -> Result<(TableFrame, Node<'a, M::Word>), MapError> {
        let Walk { memory, config, .. } = *self.walk;
        let frame = match self.supply.pop() {
            Some(frame) => frame,
            None => memory.allocate(FrameRequest::page(config.node, config.last_phys))?,
        };
        let at = frame.base();
        match memory.entries(at) {
            Some(entries) => Ok((frame, Node { level, at, entries })),
            None => {
                memory.free(frame);
                Err(MapError::Damaged { iova, table: at })
            }
        }
    }

    fn populate(&mut self, node: Node<'a, M::Word>, span: Span, phys: u64) -> Result<(), MapError> {
        if node.level == 1 {
            self.walk.write_leaves(node, span, phys, self.perms, Ordering::Relaxed);
            return Ok(());
        }
        for slot in span.slots(node.level) {
            let phys = phys + (slot.span.first - span.first);
            let word = match self.walk.leaf_size(&slot, node.level, phys) {
                Some(size) => self.walk.format.leaf(HostPhys::new(phys), size, self.perms),
                None => {
                    let (below, _) = self.subtree(node.level - 1, slot.span, phys)?;
                    self.walk.format.link(below.base())
                }
            };
            node.entry(slot.index).store(word, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes everything visible: writes leaves into tables that others see, and links what was built.
    fn publish(&mut self, node: Node<'a, M::Word>, span: Span, phys: u64) -> Result<(), MapError> {
        if node.level == 1 {
            let (first, last) = self.walk.write_leaves(node, span, phys, self.perms, Ordering::Release);
            self.walk.write_back(node, first, last + 1 - first);
            return Ok(());
        }
        let (first, last) = span.indices(node.level);
        let mut written = false;
        for slot in span.slots(node.level) {
            let built = |graft: &mut Graft<'a, M::Word>| graft.parent.at == node.at && graft.index == slot.index;
            if let Some(graft) = self.grafts.pop_if(built) {
                written |= self.attach(graft, &slot)?;
                continue;
            }
            let phys = phys + (slot.span.first - span.first);
            let iova = Iova::new(slot.span.first);
            let entry = node.load(slot.index);
            if self.walk.format.is_present(entry) {
                if self.walk.format.is_leaf(entry, node.level) {
                    return Err(MapError::Contended { at: iova });
                }
                let child = self.walk.child(entry, node.level);
                let child = child.map_err(|table| MapError::Damaged { iova, table })?;
                self.publish(child, slot.span, phys)?;
                continue;
            }
            let size = self.walk.leaf_size(&slot, node.level, phys);
            let size = size.ok_or(MapError::Contended { at: iova })?;
            let leaf = self.walk.format.leaf(HostPhys::new(phys), size, self.perms);
            node.entry(slot.index).store(leaf, Ordering::Release);
            written = true;
        }
        if written {
            self.walk.write_back(node, first, last + 1 - first);
        }
        Ok(())
    }

    /// Links what was built. Tells whether the entry was written, and not yet written back.
    fn attach(&mut self, graft: Graft<'a, M::Word>, slot: &Slot) -> Result<bool, MapError> {
        let Graft {
            parent,
            index,
            old,
            child,
            frame,
        } = graft;
        let link = self.walk.format.link(frame.base());
        if slot.whole {
            // Nobody else has business below this entry.
            parent.entry(index).store(link, Ordering::Release);
            return Ok(true);
        }
        let Err(theirs) = self.walk.link(parent, index, old, link) else {
            return Ok(false);
        };
        // Somebody was faster. Nobody saw the page, so it can go back at once.
        let done = self.merge(child, parent.level, theirs, slot.span);
        self.walk.free_below(child);
        self.walk.memory.free(frame);
        done.map(|()| false)
    }

    /// Moves what `mine` holds for `span` to the table that `theirs`, an entry at level `above`, leads to.
    fn merge(&self, mine: Node<'a, M::Word>, above: u8, theirs: u64, span: Span) -> Result<(), MapError> {
        let iova = Iova::new(span.first);
        if !self.walk.format.is_present(theirs) || self.walk.format.is_leaf(theirs, above) {
            return Err(MapError::Contended { at: iova });
        }
        let theirs = self.walk.child(theirs, above);
        let theirs = theirs.map_err(|table| MapError::Damaged { iova, table })?;
        let (first, last) = span.indices(mine.level);
        for slot in span.slots(mine.level) {
            let word = mine.load(slot.index);
            let there = theirs.load(slot.index);
            let shared = !slot.whole && !self.walk.format.is_leaf(word, mine.level);
            if shared && let Err(other) = self.walk.link(theirs, slot.index, there, word) {
                let child = self.walk.child(word, mine.level);
                let child = child.map_err(|table| MapError::Damaged { iova, table })?;
                // The emptied page stays below mine, and is freed with it.
                self.merge(child, mine.level, other, slot.span)?;
                continue;
            }
            if !shared {
                if self.walk.format.is_present(there) {
                    return Err(MapError::Contended { at: iova });
                }
                theirs.entry(slot.index).store(word, Ordering::Release);
            }
            mine.entry(slot.index).store(0, Ordering::Relaxed);
        }
        self.walk.write_back(theirs, first, last + 1 - first);
        Ok(())
    }
}

impl<'a, F: Format, M: Tables> Walk<'a, F, M> {
    /// Replaces the missing entry `old` by `link`, or tells what somebody else put there.
    fn link(&self, node: Node<'a, M::Word>, index: usize, old: u64, link: u64) -> Result<(), u64> {
        let exchange = || {
            if self.format.is_present(old) {
                return Err(old);
            }
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
        self.linking.fetch_add(u64::MAX, Ordering::SeqCst);
        won
    }
}
