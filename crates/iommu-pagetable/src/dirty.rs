//! Which pages devices have written.

use iommu_types::sync::Ordering;
use iommu_types::{AddrRange, Iova, PageSize};
use thiserror::Error;

use crate::format::Format;
use crate::span::Span;
use crate::table::{Node, PageTable, Walk};
use crate::word::{Tables, Word};

/// Whether to look at dirty bits or to take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DirtyBits {
    /// Leave them as they are.
    Keep,
    /// Clear each one that is reported.
    Clear,
}

/// Why dirty bits were not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DirtyError {
    /// The format was made without tracking, so its entries say nothing.
    #[error("writes are not tracked in this table; make its format with track_dirty, and set SSADE where it applies")]
    NotTracked,
    /// The tables cannot translate these addresses.
    #[error("{range} leaves {aperture}, which is what tables of this depth translate")]
    OutsideAperture {
        /// What was asked for.
        range: AddrRange<Iova>,
        /// What the tables translate.
        aperture: AddrRange<Iova>,
    },
}

/// Dirty bits were cleared, and hardware may still have them cached as set.
///
/// Until [`Self::range`] is invalidated, a write through a cached translation sets no bit and goes unnoticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "writes go unnoticed until the range is invalidated"]
pub struct DirtyCleared {
    range: Option<AddrRange<Iova>>,
    pages: u64,
}

impl DirtyCleared {
    /// What must be invalidated; `None` if no bit was cleared.
    #[must_use]
    pub const fn range(&self) -> Option<AddrRange<Iova>> {
        self.range
    }

    /// How many 4 KiB pages were reported.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }
}

impl<F: Format, W: Word> PageTable<F, W> {
    /// Reports every leaf of `range` that was written since its bit was last cleared, lowest first.
    ///
    /// Bits are taken one by one in single atomic steps, so none that hardware sets meanwhile is lost. A superpage has
    /// one bit for all of it: it is reported whole, also where the range covers it in part. Dirty bits of mappings that
    /// are unmapped go with them; read them first, after the device has stopped.
    ///
    /// # Errors
    /// [`DirtyError`] if nothing is tracked, or the range cannot be translated.
    pub fn read_dirty<M: Tables<Word = W>>(
        &self,
        memory: &M,
        range: AddrRange<Iova>,
        bits: DirtyBits,
        mut report: impl FnMut(AddrRange<Iova>),
    ) -> Result<DirtyCleared, DirtyError> {
        let mask = self.format.dirty_mask();
        if mask == 0 {
            return Err(DirtyError::NotTracked);
        }
        let aperture = self.aperture();
        if !aperture.covers(range) {
            return Err(DirtyError::OutsideAperture { range, aperture });
        }
        let mut found = DirtyCleared { range: None, pages: 0 };
        if let Ok(root) = self.root_node(memory) {
            let sweep = Sweep {
                walk: self.walk(memory),
                mask,
                bits,
            };
            sweep.visit(root, Span::of(range.to_pages()), &mut |page| {
                found.pages += page.page_count();
                if bits == DirtyBits::Clear {
                    let before = found.range.unwrap_or(page);
                    let (first, last) = (before.first().min(page.first()), before.last().max(page.last()));
                    found.range = AddrRange::new(first, last);
                }
                report(page);
            });
        }
        Ok(found)
    }
}

/// One pass over the dirty bits of a range.
struct Sweep<'a, F, M: Tables> {
    walk: Walk<'a, F, M>,
    mask: u64,
    bits: DirtyBits,
}

impl<'a, F: Format, M: Tables> Sweep<'a, F, M> {
    fn visit(&self, node: Node<'a, M::Word>, span: Span, report: &mut impl FnMut(AddrRange<Iova>)) {
        for slot in span.slots(node.level) {
            let entry = node.load(slot.index);
            if !self.walk.format.is_present(entry) {
                continue;
            }
            if !self.walk.format.is_leaf(entry, node.level) {
                // An entry that leads nowhere maps nothing, so nothing below it was written.
                if let Ok(child) = self.walk.child(entry, node.level) {
                    self.visit(child, slot.span, report);
                }
                continue;
            }
            if entry & self.mask == 0 {
                continue;
            }
            if self.bits == DirtyBits::Clear {
                // Hardware changes the word as well: only the one bit may change here.
                node.entry(slot.index).fetch_and(!self.mask, Ordering::AcqRel);
                self.walk.write_back(node, slot.index, 1);
            }
            if let Some(size) = PageSize::at_level(node.level) {
                report(AddrRange::page_around(Iova::new(slot.span.first), size));
            }
        }
    }
}
