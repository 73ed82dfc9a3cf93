//! Pages that come into being when they are first written, with references that stay valid.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use iommu_types::sync::AtomicU64;
use iommu_types::{NodeId, TABLE_ENTRIES, Table};

/// Children of one inner node of a region.
const FANOUT: usize = 512;
/// Pages below one top-level slot of a region.
const SLAB_PAGES: u64 = (FANOUT * FANOUT) as u64;

type Chunk = [OnceLock<Box<Page>>; FANOUT];
type Slab = [OnceLock<Box<Chunk>>; FANOUT];

/// What a page is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Use {
    /// Memory like any other.
    Plain = 0,
    /// Part of a frame that was handed out.
    Table = 1,
    /// Part of a frame that came back.
    Freed = 2,
    /// Part of a frame that was handed out, which hardware reads through the processor's caches.
    Snooped = 3,
}

/// One 4 KiB page, as the processor and as hardware see it.
#[derive(Debug)]
pub(super) struct Page {
    /// What the processor sees.
    pub(super) words: Table,
    /// What a walker that does not snoop sees; only for table frames of a non-coherent memory.
    uncached: OnceLock<Box<Table>>,
    used_for: AtomicU8,
}

fn zeroes() -> Table {
    [const { AtomicU64::new(0) }; TABLE_ENTRIES]
}

impl Page {
    fn new() -> Self {
        Self {
            words: zeroes(),
            uncached: OnceLock::new(),
            used_for: AtomicU8::new(Use::Plain as u8),
        }
    }

    pub(super) fn used_for(&self) -> Use {
        match self.used_for.load(Ordering::Acquire) {
            1 => Use::Table,
            2 => Use::Freed,
            3 => Use::Snooped,
            _ => Use::Plain,
        }
    }

    pub(super) fn set_use(&self, used_for: Use) {
        self.used_for.store(used_for as u8, Ordering::Release);
    }

    /// The hardware side, made on first use with the contents that the processor sees now.
    pub(super) fn uncached(&self) -> &Table {
        self.uncached.get_or_init(|| {
            let copy = Box::new(zeroes());
            for (to, from) in copy.iter().zip(&self.words) {
                to.store(from.load(Ordering::Acquire), Ordering::Release);
            }
            copy
        })
    }

    /// Fills both sides.
    pub(super) fn fill(&self, processor: u64, hardware: Option<u64>) {
        for word in &self.words {
            word.store(processor, Ordering::Release);
        }
        if let Some(value) = hardware {
            for word in self.uncached() {
                word.store(value, Ordering::Release);
            }
        }
    }
}

/// A contiguous run of memory.
#[derive(Debug)]
pub(super) struct Region {
    /// Page number of the first page.
    pub(super) first_page: u64,
    /// Length in pages.
    pub(super) pages: u64,
    /// The node the memory belongs to.
    pub(super) node: Option<NodeId>,
    /// Whether table frames may come from here.
    pub(super) frames: bool,
    slabs: Vec<OnceLock<Box<Slab>>>,
}

fn split(offset: u64) -> Option<(usize, usize, usize)> {
    let fanout = u64::try_from(FANOUT).ok()?;
    Some((
        usize::try_from(offset / SLAB_PAGES).ok()?,
        usize::try_from(offset / fanout % fanout).ok()?,
        usize::try_from(offset % fanout).ok()?,
    ))
}

impl Region {
    pub(super) fn new(first_page: u64, pages: u64, node: Option<NodeId>, frames: bool) -> Self {
        let slabs = (0..pages.div_ceil(SLAB_PAGES)).map(|_| OnceLock::new()).collect();
        Self {
            first_page,
            pages,
            node,
            frames,
            slabs,
        }
    }

    pub(super) fn contains(&self, page: u64) -> bool {
        page.checked_sub(self.first_page)
            .is_some_and(|offset| offset < self.pages)
    }

    /// Page number `page`, if it was ever touched.
    pub(super) fn peek(&self, page: u64) -> Option<&Page> {
        let (slab, chunk, leaf) = split(page.checked_sub(self.first_page)?)?;
        let page = self.slabs.get(slab)?.get()?.get(chunk)?.get()?.get(leaf)?.get()?;
        Some(page)
    }

    /// Numbers of the pages that were ever touched, lowest first.
    pub(super) fn touched(&self) -> impl Iterator<Item = u64> + '_ {
        let fanout = FANOUT as u64;
        let filled = |slot: &OnceLock<Box<Page>>| slot.get().is_some();
        (self.first_page..)
            .step_by(FANOUT * FANOUT)
            .zip(&self.slabs)
            .filter_map(|(base, slab)| Some((base, slab.get()?)))
            .flat_map(move |(base, slab)| (base..).step_by(FANOUT).zip(slab.iter()))
            .filter_map(|(base, chunk)| Some((base, chunk.get()?)))
            .flat_map(move |(base, chunk)| {
                (base..base.saturating_add(fanout))
                    .zip(chunk.iter())
                    .filter(move |(_, slot)| filled(slot))
                    .map(|(number, _)| number)
            })
    }

    /// Page number `page`, made now if need be; `None` outside the region.
    pub(super) fn page(&self, page: u64) -> Option<&Page> {
        if !self.contains(page) {
            return None;
        }
        let (slab, chunk, leaf) = split(page - self.first_page)?;
        let slab = self
            .slabs
            .get(slab)?
            .get_or_init(|| Box::new([const { OnceLock::new() }; FANOUT]));
        let chunk = slab
            .get(chunk)?
            .get_or_init(|| Box::new([const { OnceLock::new() }; FANOUT]));
        Some(chunk.get(leaf)?.get_or_init(|| Box::new(Page::new())))
    }
}
