//! The seam to the model: what its walks ask of a cache, and what its commands tell one.

use std::sync::{Arc, PoisonError};

use iommu_types::SourceId;
use iommu_types::sync::Ordering;
use vtd_model::TranslationCache;
use vtd_model::cache::{AddressSpaceTag, CachedContext, CachedInterrupt, CachedPage, CachedPasid, Invalidation, Stamp};

use super::{CONTEXTS, INTERRUPTS, Slot, Store};
use crate::protocol::Sample;

/// The cache of one walk: answers from the store, and remembers what the walk went through.
///
/// Pages are not answered from here: a request gets this far because the IOTLB had none for it.
pub(super) struct Recorder<'s> {
    store: &'s Store,
    sample: Sample,
    interrupt_epoch: u64,
    /// The address space that the walk went to, and its domain's word before it read a table.
    pub(super) tag: Option<(AddressSpaceTag, u64)>,
    /// Whether the page found needs no dirty flag any more; `None` until a page of `tag` was found.
    pub(super) dirty: Option<bool>,
}

impl<'s> Recorder<'s> {
    pub(super) const fn new(store: &'s Store, sample: Sample) -> Self {
        Self {
            store,
            sample,
            interrupt_epoch: 0,
            tag: None,
            dirty: None,
        }
    }

    pub(super) const fn for_interrupts(mut self, epoch: u64) -> Self {
        self.interrupt_epoch = epoch;
        self
    }
}

fn get<T: Copy>(slots: &[Slot<T>], at: usize, epoch: u64) -> Option<T> {
    let slot = slots.get(at % CONTEXTS)?.read().unwrap_or_else(PoisonError::into_inner);
    slot.filter(|(filled, _)| *filled == epoch).map(|(_, entry)| entry)
}

fn put<T>(slots: &[Slot<T>], at: usize, epoch: u64, entry: T) {
    if let Some(slot) = slots.get(at % CONTEXTS) {
        // Filed under the epoch before the walk: an invalidation since then has made it void.
        *slot.write().unwrap_or_else(PoisonError::into_inner) = Some((epoch, entry));
    }
}

fn place(source: SourceId, pasid: u32) -> usize {
    usize::from(source.raw() ^ source.raw() >> 8) ^ usize::try_from(pasid).unwrap_or(0)
}

impl TranslationCache for Recorder<'_> {
    fn stamp(&mut self) -> Stamp {
        // The sample was taken before the latched state was read, which is earlier than this.
        Stamp(self.sample.epoch)
    }

    fn context(&mut self, source: SourceId) -> Option<CachedContext> {
        get(&self.store.contexts, place(source, 0), self.sample.epoch)
            .filter(|(held, _)| *held == source)
            .map(|(_, context)| context)
    }

    fn fill_context(&mut self, _: Stamp, source: SourceId, context: CachedContext) {
        put(
            &self.store.contexts,
            place(source, 0),
            self.sample.epoch,
            (source, context),
        );
    }

    fn pasid(&mut self, source: SourceId, pasid: u32) -> Option<CachedPasid> {
        get(&self.store.pasids, place(source, pasid), self.sample.epoch)
            .filter(|(held, number, _)| *held == source && *number == pasid)
            .map(|(_, _, entry)| entry)
    }

    fn fill_pasid(&mut self, _: Stamp, source: SourceId, pasid: u32, entry: CachedPasid) {
        put(
            &self.store.pasids,
            place(source, pasid),
            self.sample.epoch,
            (source, pasid, entry),
        );
    }

    fn page(&mut self, tag: &AddressSpaceTag, _: u64) -> Option<CachedPage> {
        self.tag = Some((*tag, self.store.iotlb.generation(usize::from(tag.domain.0))));
        self.dirty = None;
        None
    }

    fn fill_page(&mut self, _: Stamp, tag: &AddressSpaceTag, page: CachedPage) {
        if self.tag.is_some_and(|(held, _)| held == *tag) && page.fault.is_none() {
            self.dirty = Some(page.dirty);
        }
    }

    fn interrupt(&mut self, index: u16) -> Option<CachedInterrupt> {
        let line = self.store.interrupts.get(usize::from(index) % INTERRUPTS)?;
        let [held, epoch, low, high, ..] = line.snapshot()?;
        (held == u64::from(index) + 1 && epoch == self.interrupt_epoch)
            .then_some(CachedInterrupt { words: [low, high] })
    }

    fn fill_interrupt(&mut self, _: Stamp, index: u16, entry: CachedInterrupt) {
        let line = self.store.interrupts.get(usize::from(index) % INTERRUPTS);
        if let Some(guard) = line.and_then(|line| line.try_lock()) {
            let [low, high] = entry.words;
            for (at, word) in [u64::from(index) + 1, self.interrupt_epoch, low, high]
                .into_iter()
                .enumerate()
            {
                guard.set(at, word);
            }
        }
    }

    fn invalidate(&mut self, what: &Invalidation) {
        self.store.invalidate(what);
    }
}

/// The cache of the mutable unit: it only ever invalidates; translations do not go through it.
#[derive(Clone, Debug)]
pub(crate) struct StoreHandle(pub(crate) Arc<Store>);

impl TranslationCache for StoreHandle {
    fn stamp(&mut self) -> Stamp {
        Stamp(self.0.invalidations.load(Ordering::Relaxed))
    }
    fn invalidate(&mut self, what: &Invalidation) {
        self.0.invalidate(what);
    }
}
