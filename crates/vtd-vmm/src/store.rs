//! What the threads of one unit share: the state that decides, and what walks found.

mod recorder;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, RwLock};

use iommu_types::sync::{AtomicU64, Ordering};
use iommu_types::{AddrRange, Iova, PageSize, Perms, SourceId, SystemMemory};
use vm_memory::GuestMemoryBackend;
use vtd_model::cache::Stage;
use vtd_model::cache::{
    AddressSpaceTag, CachedContext, CachedPasid, InterruptInvalidation, Invalidation, IotlbInvalidation,
};
use vtd_model::{
    DirectWalker, InterruptOutcome, InterruptRequest, Latched, Outcome, Request, RequestKind, Translation, UnitConfig,
};
use vtd_spec::message;

use crate::bus::{GuestBus, Near};
use crate::protocol::{Fill, Hit, Iotlb, Line, Page, Sample, View};
use crate::requester::Requester;

use recorder::Recorder;
pub(crate) use recorder::StoreHandle;

/// Copies of the latched state, so that threads do not meet on one lock.
const SHARDS: usize = 8;
/// Requesters whose view is kept; others are looked up again.
const VIEWS: usize = 256;
/// Context and PASID entries kept, each.
const CONTEXTS: usize = 256;
/// Interrupt remapping entries kept.
const INTERRUPTS: usize = 1024;
/// Address spaces that have a number at the same time. More make all of them get new ones.
const SPACES_MAX: usize = 4096;
/// Interrupt entry invalidations remembered one by one for the listener; more become a global one.
const ENTRY_NEWS_MAX: usize = 64;

/// The requester of an untranslated request that does not ask for execution: what the fast path answers.
fn plain(request: &Request) -> Option<Requester> {
    (request.kind == RequestKind::Untranslated && !request.execute).then_some(Requester {
        source: request.source,
        pasid: request.pasid,
        privileged: request.privileged && request.pasid.is_some(),
    })
}

/// An address space tag in words that compare quickly.
type TagWords = [u64; 3];

/// In the first of the tag's words: a miss needs nothing but a walk of legacy second-stage tables, whose levels and top
/// table are the other words.
const DIRECT: u64 = 1 << 63;

fn tag_words(tag: &AddressSpaceTag, direct: bool) -> TagWords {
    let [first, second] = tag.roots;
    let direct = if direct { DIRECT } else { 0 };
    let low = u64::from(tag.domain.0) | u64::from(tag.pasid) << 16 | (tag.stage as u64) << 48;
    [low | direct, first, second]
}

/// The domain in the first of the tag's words: its low 16 bits.
#[inline]
fn domain_of(word: u64) -> usize {
    let [low, high, ..] = word.to_le_bytes();
    usize::from(u16::from_le_bytes([low, high]))
}

/// The address spaces that have a number, by requester.
///
/// Requesters of one domain do not share a number: what is kept are answers, and an answer also depends on the
/// requester's context (privilege of requests without PASID, for one).
#[derive(Debug)]
struct Spaces {
    numbers: HashMap<u64, (View, TagWords)>,
    last: u64,
}

/// An entry together with the epoch in which it was read.
type Slot<T> = RwLock<Option<(u64, T)>>;

/// Everything that is shared without the unit's lock.
#[derive(Debug)]
pub(crate) struct Store {
    config: UnitConfig,
    walker: Option<DirectWalker>,
    latched: [RwLock<Latched>; SHARDS],
    pub(crate) iotlb: Iotlb<AtomicU64>,
    views: Box<[Line<AtomicU64>]>,
    spaces: Mutex<Spaces>,
    /// Number after which space numbers start again.
    last_space: u64,
    contexts: Box<[Slot<(SourceId, CachedContext)>]>,
    pasids: Box<[Slot<(SourceId, u32, CachedPasid)>]>,
    interrupts: Box<[Line<AtomicU64>]>,
    interrupt_epoch: AtomicU64,
    /// How often anything was invalidated.
    invalidations: AtomicU64,
    entry_news: Mutex<Vec<InterruptInvalidation>>,
}

/// Legacy second-stage tables that a requester's misses need nothing but a walk of, and the view that goes with them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirectTables {
    pub(crate) view: View,
    root: u64,
    levels: u8,
}

/// A page that a miss found by itself.
pub(crate) struct Direct {
    pub(crate) hit: Hit,
    /// Table entries read.
    pub(crate) reads: u8,
}

/// The answer to a request, and through what the requester sees memory.
pub(crate) struct Walked {
    pub(crate) outcome: Outcome,
    pub(crate) view: Option<View>,
    /// What has to be announced before the answer can be kept.
    pub(crate) unannounced: Option<Announcement>,
}

/// Kinds of pages that the IOTLB is about to see for the first time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Announcement {
    size: Option<PageSize>,
    first_stage: Option<usize>,
}

impl Store {
    pub(crate) fn new(config: UnitConfig) -> Self {
        let domains = usize::try_from(config.capability().domain_count()).unwrap_or(0);
        Self {
            config,
            walker: DirectWalker::new(&config).filter(|_| !config.sanitizer()),
            latched: core::array::from_fn(|_| RwLock::new(Latched::RESET)),
            iotlb: Iotlb::new(config.caches().pages, domains),
            views: (0..VIEWS).map(|_| Line::default()).collect(),
            // All at once: a table that grows holds two for a while.
            spaces: Mutex::new(Spaces {
                numbers: HashMap::with_capacity(SPACES_MAX),
                last: 0,
            }),
            last_space: (1 << crate::protocol::SPACE_BITS) - 1,
            contexts: (0..CONTEXTS).map(|_| RwLock::new(None)).collect(),
            pasids: (0..CONTEXTS).map(|_| RwLock::new(None)).collect(),
            interrupts: (0..INTERRUPTS).map(|_| Line::default()).collect(),
            interrupt_epoch: AtomicU64::new(1),
            invalidations: AtomicU64::new(0),
            entry_news: Mutex::new(Vec::new()),
        }
    }

    /// Most bytes on the heap for a unit of `config`, itself included.
    pub(crate) fn memory_bound(config: &UnitConfig) -> usize {
        let domains = usize::try_from(config.capability().domain_count()).unwrap_or(0);
        // A hash table keeps an eighth free, doubles, and has a byte of control for each place.
        let places = (SPACES_MAX * 8 / 7).next_power_of_two();
        let spaces = places * (size_of::<(u64, (View, TagWords))>() + 1) + 16;
        [
            size_of::<Self>() + 2 * size_of::<usize>(),
            Iotlb::<AtomicU64>::memory_bound(config.caches().pages, domains),
            VIEWS * size_of::<Line<AtomicU64>>(),
            spaces,
            CONTEXTS * size_of::<Slot<(SourceId, CachedContext)>>(),
            CONTEXTS * size_of::<Slot<(SourceId, u32, CachedPasid)>>(),
            INTERRUPTS * size_of::<Line<AtomicU64>>(),
            // The list, and one of before that the listener is being told of.
            2 * ENTRY_NEWS_MAX.next_power_of_two() * size_of::<InterruptInvalidation>(),
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }

    /// Whether a sanitizer sees every access: then no view is found without the lock.
    pub(crate) const fn is_watched(&self) -> bool {
        self.config.sanitizer()
    }

    /// What the IOTLB would have answered, where no view is found without the lock.
    pub(crate) fn watched_hit(&self, requester: &Requester, request: &Request) -> Option<Hit> {
        let spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        let (view, _) = spaces.numbers.get(&requester.key())?;
        self.iotlb.lookup(view, request.address.raw(), request.access.needs())
    }

    /// Makes a new latched state known: whatever was found under the old one is not used any more.
    pub(crate) fn publish(&self, latched: Latched) {
        for shard in &self.latched {
            *shard.write().unwrap_or_else(PoisonError::into_inner) = latched;
        }
        self.iotlb.drop_all();
        self.interrupt_epoch.fetch_add(1, Ordering::AcqRel);
    }

    fn latched(&self, hint: usize) -> Latched {
        let [first, ..] = &self.latched;
        *self
            .latched
            .get(hint % SHARDS)
            .unwrap_or(first)
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How often anything was invalidated so far.
    pub(crate) fn invalidations(&self) -> u64 {
        self.invalidations.load(Ordering::Acquire)
    }

    /// The interrupt entry invalidations since the last call.
    pub(crate) fn take_entry_news(&self) -> Vec<InterruptInvalidation> {
        core::mem::take(&mut *self.entry_news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What `requester` sees memory through, if that is known.
    #[inline]
    pub(crate) fn view(&self, requester: &Requester) -> Option<View> {
        let wanted = requester.key();
        self.view_line(wanted)?
            .read(|[held, space, domain, generation, epoch, _, _]| {
                let word = |word: &AtomicU64| word.load(Ordering::Relaxed);
                (word(held) == wanted).then(|| View {
                    space: word(space),
                    domain: domain_of(word(domain)),
                    generation: word(generation),
                    epoch: word(epoch),
                })
            })
    }

    /// The view together with its whole tag.
    fn known_view(&self, key: u64) -> Option<(View, TagWords)> {
        let [held, space, domain, generation, epoch, first, second] = self.view_line(key)?.snapshot()?;
        (held == key).then(|| {
            let view = View {
                space,
                domain: domain_of(domain),
                generation,
                epoch,
            };
            (view, [domain, first, second])
        })
    }

    #[inline]
    fn view_line(&self, key: u64) -> Option<&Line<AtomicU64>> {
        let hash = key ^ key >> 32 ^ key >> 40;
        self.views.get(usize::try_from(hash % VIEWS as u64).ok()?)
    }

    /// Answers `request` by walking, keeps what it finds. Logs nothing.
    #[cold]
    pub(crate) fn walk<M: SystemMemory>(&self, memory: &M, request: &Request, hint: usize) -> Walked {
        // Before anything is read: what this walk finds counts as found at this moment (S5).
        let sample = self.iotlb.sample();
        let latched = self.latched(hint);
        let mut recorder = Recorder::new(self, sample);
        let outcome = vtd_model::translate(&latched, &self.config, memory, &mut recorder, request);
        let (tag, dirty) = (recorder.tag, recorder.dirty);
        let mut walked = Walked {
            outcome,
            view: None,
            unannounced: None,
        };
        let (Ok(translation), Some((tag, generation)), Some(requester)) = (&outcome.result, tag, plain(request)) else {
            return walked;
        };
        if tag.stage.uses_first() && !Iotlb::<AtomicU64>::knows_first_stage(generation) {
            walked.unannounced = Some(Announcement {
                size: None,
                first_stage: Some(usize::from(tag.domain.0)),
            });
            return walked;
        }
        // A protected region would have to be looked for in every answer.
        let direct = self.walker.is_some()
            && tag.stage == Stage::Second
            && tag.pasid == AddressSpaceTag::LEGACY
            && latched.protected == [None; 2];
        walked.view = self.name(&requester, &tag_words(&tag, direct), sample.epoch, generation);
        if let (Some(view), Some(dirty), true) = (walked.view, dirty, request.len != 0) {
            walked.unannounced = self.keep(&sample, &view, request, translation, dirty);
        }
        walked
    }

    /// The tables of a requester whose context entry is known, if its misses need nothing else.
    pub(crate) fn direct_tables(&self, requester: &Requester) -> Option<DirectTables> {
        let (view, [low, levels, root]) = self.known_view(requester.key())?;
        let levels = u8::try_from(levels).ok()?;
        (low & DIRECT != 0).then_some(DirectTables { view, root, levels })
    }

    /// The page at `address`, if it is found in `tables` and they are still the requester's. Keeps what it finds.
    #[inline]
    pub(crate) fn walk_directly<M: GuestMemoryBackend>(
        &self,
        bus: GuestBus<'_, M>,
        tables: &DirectTables,
        address: u64,
        needs: Perms,
    ) -> Option<Direct> {
        let walker = self.walker.as_ref()?;
        let DirectTables { view, root, levels } = *tables;
        // Before anything is read (S5).
        let sample = self.iotlb.sample();
        if view.epoch != sample.epoch || view.generation != self.iotlb.generation(view.domain) {
            return None;
        }
        let mut near = Near::new(bus);
        let found = walker.page(root, levels, address, |at| near.read_u64(at))?;
        if !found.perms.contains(needs) {
            return None;
        }
        let page = Page {
            base: found.base,
            size: found.size,
            phys: found.phys.raw(),
            perms: found.perms,
        };
        // Within a page that holds interrupt addresses the answer differs from byte to byte.
        if touches_interrupts(&page) || self.iotlb.fill(&sample, &view, &page) == Fill::Unannounced {
            return None;
        }
        let offset = address - found.base;
        Some(Direct {
            hit: Hit {
                phys: found.phys.checked_add(offset)?,
                left: found.size.bytes() - offset,
            },
            reads: found.reads,
        })
    }

    /// Announces new kinds of pages; under the lock that invalidations are made under.
    pub(crate) fn announce(&self, what: Announcement) {
        self.iotlb.announce(what.size, what.first_stage);
    }

    /// The view of a requester whose requests belong to `tag`.
    fn name(&self, requester: &Requester, tag: &TagWords, epoch: u64, generation: u64) -> Option<View> {
        let (key, tag) = (requester.key(), *tag);
        let [low, first, second] = tag;
        let domain = domain_of(low);
        let fits = |view: &View| view.epoch == epoch && view.generation == generation;
        if let Some((view, _)) = self.known_view(key).filter(|(view, held)| *held == tag && fits(view)) {
            return Some(view);
        }
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        let view = match spaces.numbers.get(&key) {
            Some((view, held)) if *held == tag && fits(view) => *view,
            // Someone with a later sample was here: what this walk found is out of date.
            Some((view, _)) if view.epoch > epoch => return None,
            _ => {
                if spaces.numbers.len() >= SPACES_MAX {
                    spaces.numbers.clear();
                }
                if spaces.last >= self.last_space {
                    spaces.numbers.clear();
                    spaces.last = 0;
                    // Moves the epoch too, so this walk's view is already out of date.
                    self.iotlb.clear();
                    return None;
                }
                spaces.last += 1;
                let view = View {
                    space: spaces.last,
                    domain,
                    generation,
                    epoch,
                };
                spaces.numbers.insert(key, (view, tag));
                view
            }
        };
        drop(spaces);
        if self.is_watched() {
            return Some(view);
        }
        if let Some(line) = self.view_line(key).and_then(Line::try_lock) {
            for (at, word) in [key, view.space, low, generation, epoch, first, second]
                .into_iter()
                .enumerate()
            {
                line.set(at, word);
            }
        }
        Some(view)
    }

    /// Keeps an answer, if it is one that the IOTLB can give by itself.
    fn keep(
        &self,
        sample: &Sample,
        view: &View,
        request: &Request,
        translation: &Translation,
        dirty: bool,
    ) -> Option<Announcement> {
        let whole = translation.page;
        let size = PageSize::ALL
            .into_iter()
            .find(|size| whole.len() == Some(size.bytes()))?;
        let offset = request.address.offset_from(whole.first())?;
        let phys = translation.phys.checked_sub(offset)?;
        let perms = Perms {
            read: translation.perms.read,
            // A page that is not marked dirty yet has to be walked for by the first write.
            write: translation.perms.write && dirty,
        };
        let page = Page {
            base: whole.first().raw(),
            size,
            phys: phys.raw(),
            perms,
        };
        // Within such a page the answer differs from byte to byte.
        if touches_interrupts(&page) {
            return None;
        }
        match self.iotlb.fill(sample, view, &page) {
            Fill::Unannounced => Some(Announcement {
                size: Some(size),
                first_stage: None,
            }),
            Fill::Kept | Fill::Skipped | Fill::Raced => None,
        }
    }

    /// Answers an interrupt request. Logs nothing.
    pub(crate) fn remap<M: SystemMemory>(
        &self,
        memory: &M,
        request: &InterruptRequest,
        hint: usize,
    ) -> InterruptOutcome {
        let epoch = self.interrupt_epoch.load(Ordering::Acquire);
        let latched = self.latched(hint);
        let mut recorder = Recorder::new(self, Sample { epoch: 0, pages: 0 }).for_interrupts(epoch);
        vtd_model::remap_interrupt(&latched, &self.config, memory, &mut recorder, request)
    }

    /// Drops what an invalidation covers, and more where that is cheaper.
    fn invalidate(&self, what: &Invalidation) {
        // Only the unit invalidates, under its lock: nobody else writes this.
        self.invalidations.store(self.invalidations() + 1, Ordering::Release);
        match what {
            // Rare commands: every requester's context is looked up again.
            Invalidation::Context(_) | Invalidation::Pasid(_) | Invalidation::Iotlb(IotlbInvalidation::Global) => {
                self.iotlb.drop_all();
            }
            Invalidation::Iotlb(
                IotlbInvalidation::Domain(domain)
                | IotlbInvalidation::Pasid { domain, .. }
                | IotlbInvalidation::PasidPages { domain, .. },
            ) => self.iotlb.drop_domain(usize::from(domain.0)),
            Invalidation::Iotlb(IotlbInvalidation::Pages { domain, pages }) => {
                let block = AddrRange::new(Iova::new(pages.first), Iova::new(pages.last));
                match block {
                    Some(block) => self.iotlb.drop_pages(usize::from(domain.0), block),
                    None => self.iotlb.drop_domain(usize::from(domain.0)),
                }
            }
            Invalidation::Interrupt(what) => {
                self.interrupt_epoch.fetch_add(1, Ordering::AcqRel);
                let mut news = self.entry_news.lock().unwrap_or_else(PoisonError::into_inner);
                if news.len() >= ENTRY_NEWS_MAX {
                    news.clear();
                    news.push(InterruptInvalidation::Global);
                } else {
                    news.push(*what);
                }
            }
        }
    }
}

/// Whether a page covers interrupt addresses, on either side.
#[inline]
fn touches_interrupts(page: &Page) -> bool {
    [page.base, page.phys].into_iter().any(|first| {
        let last = first.saturating_add(page.size.bytes() - 1);
        first <= message::INTERRUPT_RANGE_LAST && message::INTERRUPT_RANGE_FIRST <= last
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use iommu_types::{Access, DomainId};

    const TAG: AddressSpaceTag = AddressSpaceTag {
        domain: DomainId(3),
        pasid: AddressSpaceTag::LEGACY,
        stage: Stage::Second,
        roots: [4, 0x1000],
    };

    fn store() -> Store {
        let config = UnitConfig::builder().build().expect("consistent");
        Store::new(config)
    }

    fn name(store: &Store, requester: &Requester) -> Option<View> {
        let tag = tag_words(&TAG, false);
        store.name(requester, &tag, store.iotlb.sample().epoch, store.iotlb.generation(3))
    }

    #[test]
    fn a_requester_keeps_its_number_until_its_domain_is_dropped() {
        let store = store();
        let (one, other) = (
            Requester::new(SourceId::from_raw(1)),
            Requester::new(SourceId::from_raw(2)),
        );
        let first = name(&store, &one).expect("a number");
        assert_eq!(name(&store, &one), Some(first));
        assert_ne!(name(&store, &other).expect("a number").space, first.space);
        store.iotlb.drop_domain(3);
        assert!(!store.iotlb.is_current(&first));
        assert_ne!(name(&store, &one).expect("a number").space, first.space);
    }

    #[test]
    fn a_walk_from_before_an_invalidation_gets_no_number_after_a_later_one() {
        let store = store();
        let requester = Requester::new(SourceId::from_raw(1));
        let old = store.iotlb.sample().epoch;
        store.iotlb.drop_all();
        assert!(name(&store, &requester).is_some());
        let tag = tag_words(&TAG, false);
        assert_eq!(store.name(&requester, &tag, old, store.iotlb.generation(3)), None);
    }

    #[test]
    fn when_numbers_run_out_every_page_is_forgotten_before_they_start_again() {
        let mut store = store();
        store.last_space = 2;
        let requester = Requester::new(SourceId::from_raw(1));
        let fill = |store: &Store| {
            let sample = store.iotlb.sample();
            let view = name(store, &requester)?;
            let page = Page {
                base: 0x1000,
                size: PageSize::Size4K,
                phys: 0xA000,
                perms: Perms::READ,
            };
            let fill = store.iotlb.fill(&sample, &view, &page);
            Some((view, fill))
        };
        assert_eq!(fill(&store).map(|(_, fill)| fill), Some(Fill::Unannounced));
        store.announce(Announcement {
            size: Some(PageSize::Size4K),
            first_stage: None,
        });
        let (first, _) = fill(&store).expect("a number");
        assert!(store.iotlb.lookup(&first, 0x1000, Access::Read.needs()).is_some());
        store.iotlb.drop_domain(3);
        assert_eq!(fill(&store).map(|(view, _)| view.space), Some(2));
        store.iotlb.drop_domain(3);
        assert_eq!(fill(&store), None, "the last number was given out");
        let (again, _) = fill(&store).expect("a number");
        assert_eq!(again.space, first.space);
        let current = View {
            epoch: again.epoch,
            generation: again.generation,
            ..first
        };
        assert!(
            store.iotlb.lookup(&current, 0x1000, Access::Read.needs()).is_some(),
            "filled just now"
        );
        store.iotlb.drop_all();
        let second = View {
            epoch: again.epoch + 1,
            generation: again.generation,
            space: 2,
            domain: 3,
        };
        assert_eq!(
            store.iotlb.lookup(&second, 0x1000, Access::Read.needs()),
            None,
            "space 2 of the first round"
        );
    }

    #[test]
    fn more_requesters_than_numbers_in_use_only_cost_lookups() {
        let store = store();
        for source in 0..u16::try_from(SPACES_MAX).expect("small") + 10 {
            assert!(name(&store, &Requester::new(SourceId::from_raw(source))).is_some());
        }
        assert!(store.spaces.lock().expect("not poisoned").numbers.len() <= SPACES_MAX);
    }
}
