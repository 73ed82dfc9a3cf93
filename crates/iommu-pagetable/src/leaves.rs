//! Runs of entries of one leaf table.
//!
//! Entries are looked at eight at a time: the union of some entries is not present exactly if none of them is, and
//! their intersection is present only if all of them are. See [`Format::is_present`].

use iommu_types::sync::Ordering;
use iommu_types::{HostPhys, Iova, PAGE_SIZE, PageSize, Perms};

use crate::error::{MapError, UnmapError};
use crate::format::Format;
use crate::span::Span;
use crate::table::{Node, Walk};
use crate::unmap::{Holes, UnmapRules};
use crate::word::{Tables, Word};

/// Entries that are looked at together.
const TOGETHER: usize = 8;

fn union<W: Word>(entries: &[W]) -> u64 {
    entries
        .iter()
        .fold(0, |union, entry| union | entry.load(Ordering::Relaxed))
}

fn intersection<W: Word>(entries: &[W]) -> u64 {
    entries
        .iter()
        .fold(u64::MAX, |common, entry| common & entry.load(Ordering::Relaxed))
}

/// The input address of the entry that is `pages` entries behind the first of a span.
fn nth(span: Span, pages: usize) -> Iova {
    Iova::new(span.first + u64::try_from(pages).unwrap_or(0) * PAGE_SIZE)
}

impl<'a, F: Format, M: Tables> Walk<'a, F, M> {
    /// Refuses a span of a leaf table in which anything is mapped.
    #[inline]
    pub(crate) fn check_free(&self, node: Node<'a, M::Word>, span: Span) -> Result<(), MapError> {
        let (first, last) = span.indices(1);
        let entries = &node.entries[first..=last];
        let (groups, rest) = entries.as_chunks::<TOGETHER>();
        let is_free = |entries: &[M::Word]| !self.format.is_present(union(entries));
        if groups.iter().all(|group| is_free(group)) && is_free(rest) {
            return Ok(());
        }
        let taken = |entry: &M::Word| self.format.is_present(entry.load(Ordering::Relaxed));
        let pages = entries.iter().position(taken).unwrap_or(0);
        Err(MapError::Overlap { at: nth(span, pages) })
    }

    /// Writes the entries of a leaf table for a span.
    #[inline]
    pub(crate) fn write_leaves(
        &self,
        node: Node<'a, M::Word>,
        span: Span,
        phys: u64,
        perms: Perms,
        order: Ordering,
    ) -> (usize, usize) {
        let (first, last) = span.indices(1);
        // Entries of neighbouring pages differ by the same number, whatever the format. It is known when this is
        // compiled, so that no word depends on the one before.
        let leaf = |phys| self.format.leaf(HostPhys::new(phys), PageSize::Size4K, perms);
        let step = leaf(PAGE_SIZE) ^ leaf(0);
        let mut word = leaf(phys);
        let (groups, rest) = node.entries[first..=last].as_chunks::<TOGETHER>();
        for group in groups {
            let mut here = word;
            for entry in group {
                entry.store(here, order);
                here = here.wrapping_add(step);
            }
            word = here;
        }
        for entry in rest {
            entry.store(word, order);
            word = word.wrapping_add(step);
        }
        (first, last)
    }

    /// Maps a span that is a part of a leaf table, if nothing of it is mapped.
    #[inline(always)]
    pub(crate) fn map_leaves(
        &self,
        node: Node<'a, M::Word>,
        span: Span,
        phys: u64,
        perms: Perms,
    ) -> Result<(), MapError> {
        if span.last - span.first < PAGE_SIZE {
            let (index, _) = span.indices(1);
            let entry = node.entry(index);
            if self.format.is_present(entry.load(Ordering::Relaxed)) {
                return Err(MapError::Overlap { at: nth(span, 0) });
            }
            let leaf = self.format.leaf(HostPhys::new(phys), PageSize::Size4K, perms);
            entry.store(leaf, Ordering::Release);
            self.write_back(node, index, 1);
            return Ok(());
        }
        self.check_free(node, span)?;
        let (first, last) = self.write_leaves(node, span, phys, perms, Ordering::Release);
        self.write_back(node, first, last + 1 - first);
        Ok(())
    }

    /// How many pages of a span of a leaf table are mapped; refuses holes if the rules do.
    #[inline]
    pub(crate) fn count_leaves(
        &self,
        node: Node<'a, M::Word>,
        span: Span,
        rules: UnmapRules,
    ) -> Result<u64, UnmapError> {
        let (first, last) = span.indices(1);
        let entries = &node.entries[first..=last];
        let absent = |entry: &M::Word| !self.format.is_present(entry.load(Ordering::Relaxed));
        let holes = |entries: &[M::Word]| {
            if self.format.is_present(intersection(entries)) {
                return 0;
            }
            entries.iter().filter(|entry| absent(entry)).count()
        };
        let (groups, rest) = entries.as_chunks::<TOGETHER>();
        let holes = groups.iter().map(|group| holes(group)).sum::<usize>() + holes(rest);
        if holes != 0 && rules.holes == Holes::Refuse {
            let pages = entries.iter().position(absent).unwrap_or(0);
            return Err(UnmapError::NotMapped { at: nth(span, pages) });
        }
        Ok(u64::try_from(entries.len() - holes).unwrap_or(0))
    }

    /// Clears the entries of a leaf table for a span.
    #[inline]
    pub(crate) fn clear_leaves(&self, node: Node<'a, M::Word>, span: Span) {
        let (first, last) = span.indices(1);
        let (groups, rest) = node.entries[first..=last].as_chunks::<TOGETHER>();
        // Stores, not swaps: the caller owns the range, and reads dirty bits before it unmaps.
        for group in groups {
            for entry in group {
                entry.store(0, Ordering::Release);
            }
        }
        for entry in rest {
            entry.store(0, Ordering::Release);
        }
        self.write_back(node, first, last + 1 - first);
    }

    /// Unmaps a span that is a part of a leaf table; tells how many pages were mapped.
    #[inline(always)]
    pub(crate) fn unmap_leaves(
        &self,
        node: Node<'a, M::Word>,
        span: Span,
        rules: UnmapRules,
    ) -> Result<u64, UnmapError> {
        if span.last - span.first < PAGE_SIZE {
            let (index, _) = span.indices(1);
            let entry = node.entry(index);
            if self.format.is_present(entry.load(Ordering::Relaxed)) {
                entry.store(0, Ordering::Release);
                self.write_back(node, index, 1);
                return Ok(1);
            }
        }
        let pages = self.count_leaves(node, span, rules)?;
        self.clear_leaves(node, span);
        Ok(pages)
    }
}
