//! The IOTLB: set-associative lines, and generations that make invalidation cheap.

use iommu_types::sync::Ordering;
use iommu_types::{AddrRange, HostPhys, PageSize, Perms};

use super::line::{Line, LineGuard};
use super::word::Word;

/// Pages of one line. A line is one cache line: a sequence number, three keys, three values, whose turn it is.
const WAYS: usize = 3;
const VALUES: usize = WAYS;
const TURN: usize = 2 * WAYS;

/// Pages up to which a command looks for each of them; beyond, the whole domain is dropped.
const PROBES_MAX: u64 = 8;
/// Turns that an invalidation tries for a line that is being filled before it drops the whole domain instead.
const LOCK_TURNS: u32 = 64;

/// Layout of a key: page number above, then size (never 0, so that a key of 0 is an empty way), then the low part of the
/// space number.
const NUMBER_SHIFT: u32 = 19;
const SIZE_SHIFT: u32 = 17;
const SPACE_LOW: u64 = (1 << SIZE_SHIFT) - 1;
/// Layout of a value: page frame below, rights, then the high part of the space number.
const FRAME_BITS: u32 = 40;
const READ: u64 = 1 << FRAME_BITS;
const WRITE: u64 = READ << 1;
const SPACE_HIGH_SHIFT: u32 = FRAME_BITS + 2;
/// Bits of a space number: what key and value have room for.
pub(crate) const SPACE_BITS: u32 = SIZE_SHIFT + (64 - SPACE_HIGH_SHIFT);
/// Input addresses wider than this are not kept: their page number would not fit a key.
const ADDRESS_BITS: u32 = 64 - NUMBER_SHIFT + 12;

/// Of a domain's word: pages of a first stage may be kept for it, which a page-selective command cannot find by
/// address (VT-d §6.5.2.3). The generation counts above.
const FIRST_STAGE: u64 = 1;
const GENERATION: u64 = 2;

/// What a requester's accesses go through, as long as nothing it rests on was invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Number of the address space. Never used again for another one, and a space gets a new one after each
    /// invalidation of its domain, so entries of the past are never found.
    pub space: u64,
    /// Index of the domain.
    pub domain: usize,
    /// The domain's word when the space got its number.
    pub generation: u64,
    /// The cache's epoch when the requester's context was read.
    pub epoch: u64,
}

impl View {
    /// A view that nothing is seen through.
    pub const NONE: Self = Self {
        space: 0,
        domain: 0,
        generation: u64::MAX,
        epoch: u64::MAX,
    };
}

/// A moment before a walk: a fill is refused if something that may concern it was invalidated since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Epoch of everything.
    pub epoch: u64,
    /// Number of page-selective invalidations.
    pub pages: u64,
}

/// A page to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// First input address; aligned to the size.
    pub base: u64,
    /// Size.
    pub size: PageSize,
    /// Host address of the first byte; aligned to 4 KiB.
    pub phys: u64,
    /// What may be done with it without another walk.
    pub perms: Perms,
}

/// A page found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Host address of the byte asked for.
    pub phys: HostPhys,
    /// Bytes from there to the end of the page.
    pub left: u64,
}

/// What became of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The page is kept.
    Kept,
    /// The page cannot be kept in this cache, or someone else was writing to its line.
    Skipped,
    /// Something was invalidated since the walk began.
    Raced,
    /// Page commands do not look for pages of this kind yet: [`Iotlb::announce`] it.
    Unannounced,
}

/// Which pages an invalidation names.
pub type PageSet = AddrRange<iommu_types::Iova>;

#[derive(Debug)]
#[repr(align(64))]
struct Own<W>(W);

/// Translated pages of all address spaces of a unit, of fixed size.
///
/// The line of a page follows from its number and its domain, because that is what a page-selective command names;
/// whose page it is stands in the key as the number of a *space* ([`View::space`]). A domain is dropped by moving its
/// word, everything by moving the epoch: views made before are refused, and new ones carry new space numbers.
///
/// A walk that began before an invalidation must not fill in what it read (S5). Against the two generations the view
/// protects: what the walk found is filed under a space number that no later view has. Against page-selective commands
/// the line does: the command moves the counter of [`Sample::pages`] and then takes the line, the fill takes the line
/// and then compares the counter, so whoever is second sees the other.
#[derive(Debug)]
pub struct Iotlb<W> {
    lines: Box<[Line<W>]>,
    mask: u64,
    domains: Box<[W]>,
    epoch: Own<W>,
    pages: Own<W>,
    /// Which page sizes may be present, one bit each in the order of [`PageSize::ALL`].
    sizes: Own<W>,
}

impl<W: Word> Iotlb<W> {
    /// Room for about `pages` pages of `domains` domains: at most that many, at least a third (but one line).
    #[must_use]
    pub fn new(pages: usize, domains: usize) -> Self {
        let lines = 1usize << (pages / WAYS).max(1).ilog2();
        Self {
            lines: (0..lines).map(|_| Line::default()).collect(),
            mask: lines as u64 - 1,
            domains: (0..domains).map(|_| W::new(0)).collect(),
            epoch: Own(W::new(1)),
            pages: Own(W::new(1)),
            sizes: Own(W::new(0)),
        }
    }

    /// Most bytes on the heap with room for `pages` pages of `domains` domains.
    #[must_use]
    pub const fn memory_bound(pages: usize, domains: usize) -> usize {
        let lines = if pages < WAYS { 1 } else { pages / WAYS };
        lines
            .saturating_mul(size_of::<Line<W>>())
            .saturating_add(domains.saturating_mul(size_of::<W>()))
    }

    /// The present moment; to be taken before anything is read that decides about a translation.
    #[inline]
    pub fn sample(&self) -> Sample {
        // The epoch last: with an old epoch nothing is kept, so a counter that is newer than it does no harm.
        let pages = self.pages.0.load(Ordering::Acquire);
        Sample {
            epoch: self.epoch.0.load(Ordering::Acquire),
            pages,
        }
    }

    /// The word of a domain; to be taken before its tables are read.
    #[inline]
    pub fn generation(&self, domain: usize) -> u64 {
        self.domains
            .get(domain)
            .map_or(u64::MAX, |word| word.load(Ordering::Acquire))
    }

    /// Whether `view` still holds.
    #[inline]
    pub fn is_current(&self, view: &View) -> bool {
        // Relaxed is enough: whoever asks is inside a section, which made everything visible that it has to see.
        self.epoch.0.load(Ordering::Relaxed) == view.epoch
            && self
                .domains
                .get(view.domain)
                .is_some_and(|word| word.load(Ordering::Relaxed) == view.generation)
    }

    /// The page of `view` that holds `address`, if it is kept and allows `needs`.
    #[inline]
    pub fn lookup(&self, view: &View, address: u64, needs: Perms) -> Option<Hit> {
        if !self.is_current(view) {
            return None;
        }
        let rights = rights(needs);
        let sizes = self.sizes.0.load(Ordering::Relaxed);
        // Small pages first: they are the common case.
        let small = if sizes & bit(PageSize::Size4K) == 0 {
            None
        } else {
            self.look(view, address, PageSize::Size4K, rights)
        };
        if small.is_some() || sizes & !bit(PageSize::Size4K) == 0 {
            return small;
        }
        self.look(view, address, PageSize::Size2M, rights)
            .or_else(|| self.look(view, address, PageSize::Size1G, rights))
    }

    /// The page of `size` around `address`.
    #[inline]
    fn look(&self, view: &View, address: u64, size: PageSize, rights: u64) -> Option<Hit> {
        let key = key(view.space, address, size)?;
        let line = self.line(view.domain, address >> size.shift(), size)?;
        let value = line.read(|words| {
            let [a, b, c, first, second, third, _] = words;
            // One after the other: most pages are in the way that was filled first.
            let value = if a.load(Ordering::Relaxed) == key {
                first
            } else if b.load(Ordering::Relaxed) == key {
                second
            } else if c.load(Ordering::Relaxed) == key {
                third
            } else {
                return None;
            };
            Some(value.load(Ordering::Relaxed))
        })?;
        let offset = address & (size.bytes() - 1);
        (value >> SPACE_HIGH_SHIFT == view.space >> SIZE_SHIFT && value & rights == rights).then(|| Hit {
            phys: HostPhys::new(((value & (READ - 1)) << 12) + offset),
            left: size.bytes() - offset,
        })
    }

    /// Keeps a page that a walk found which began at `sample`.
    pub fn fill(&self, sample: &Sample, view: &View, page: &Page) -> Fill {
        let Some(key) = key(view.space, page.base, page.size) else {
            return Fill::Skipped;
        };
        let frame = page.phys >> 12;
        if frame >= READ {
            return Fill::Skipped;
        }
        // Acquire: with the announcement, every page command that did not know of it is seen too.
        if self.sizes.0.load(Ordering::Acquire) & bit(page.size) == 0 {
            return Fill::Unannounced;
        }
        let Some(line) = self.line(view.domain, page.base >> page.size.shift(), page.size) else {
            return Fill::Skipped;
        };
        let Some(guard) = line.try_lock() else {
            return Fill::Skipped;
        };
        // The epoch too: clearing takes the lines as page commands do.
        let moved = self.pages.0.load(Ordering::Acquire) != sample.pages;
        if moved || self.epoch.0.load(Ordering::Relaxed) != view.epoch {
            return Fill::Raced;
        }
        let way = (0..WAYS)
            .find(|way| guard.get(*way) == key)
            .or_else(|| (0..WAYS).find(|way| guard.get(*way) == 0))
            .unwrap_or_else(|| victim(&guard));
        guard.set(way, key);
        guard.set(
            VALUES + way,
            frame | rights(page.perms) | (view.space >> SIZE_SHIFT) << SPACE_HIGH_SHIFT,
        );
        Fill::Kept
    }

    /// Whether first-stage pages of `domain` are announced, by a domain's word.
    #[must_use]
    pub const fn knows_first_stage(generation: u64) -> bool {
        generation & FIRST_STAGE != 0
    }

    /// Says that pages of `size` may be kept from now on, and first-stage pages of the domain `first_stage`.
    ///
    /// Commands have to know before the first such page is kept, so this is serialised with the `drop_…` methods.
    pub fn announce(&self, size: Option<PageSize>, first_stage: Option<usize>) {
        if let Some(size) = size {
            self.sizes.0.fetch_or(bit(size), Ordering::AcqRel);
        }
        if let Some(word) = first_stage.and_then(|domain| self.domains.get(domain)) {
            word.fetch_or(FIRST_STAGE, Ordering::AcqRel);
        }
    }

    /// Drops everything, contexts included. May be called at any time.
    #[inline]
    pub fn drop_all(&self) {
        self.epoch.0.fetch_add(1, Ordering::AcqRel);
    }

    /// Drops everything of a domain. Calls are serialised by the caller.
    #[inline]
    pub fn drop_domain(&self, domain: usize) {
        match self.domains.get(domain) {
            Some(word) => {
                // One writer at a time, and no line is looked at after it: no locked addition is needed.
                let now = word.load(Ordering::Relaxed);
                word.store(now.wrapping_add(GENERATION), Ordering::Release);
            }
            None => self.drop_all(),
        }
    }

    /// Drops pages of a domain, and all its first-stage pages. Calls are serialised by the caller.
    #[inline]
    pub fn drop_pages(&self, domain: usize, pages: PageSet) {
        // One writer at a time, and fills see this through the line: no locked addition is needed.
        let count = self.pages.0.load(Ordering::Relaxed);
        self.pages.0.store(count.wrapping_add(1), Ordering::Release);
        let whole = self
            .domains
            .get(domain)
            .is_none_or(|word| word.load(Ordering::Acquire) & FIRST_STAGE != 0);
        if whole || !self.probe(domain, pages) {
            self.drop_domain(domain);
        }
    }

    /// Looks for each page of `pages` and drops it; false if they are too many or a line stays locked.
    fn probe(&self, domain: usize, pages: PageSet) -> bool {
        let sizes = self.sizes.0.load(Ordering::Acquire);
        let (first, last) = (pages.first().raw() >> 12, pages.last().raw() >> 12);
        if sizes == bit(PageSize::Size4K) && first == last {
            // One small page where there are only small pages: what strict drivers ask for all the time.
            return self.drop_page(domain, first, PageSize::Size4K);
        }
        PageSize::ALL
            .into_iter()
            .filter(|size| sizes & bit(*size) != 0)
            .all(|size| {
                let (first, last) = (pages.first().raw() >> size.shift(), pages.last().raw() >> size.shift());
                last - first < PROBES_MAX && (first..=last).all(|number| self.drop_page(domain, number, size))
            })
    }

    #[inline]
    fn drop_page(&self, domain: usize, number: u64, size: PageSize) -> bool {
        let (Some(key), Some(line)) = (key(0, number << size.shift(), size), self.line(domain, number, size)) else {
            // Addresses that have no key were never kept.
            return true;
        };
        let Some(guard) = (0..LOCK_TURNS).find_map(|_| line.try_lock()) else {
            return false;
        };
        for way in 0..WAYS {
            // Whatever the space: two domains that share a line and a page number lose a page too many. Written back
            // in any case: in which way a page is cannot be predicted, and the line is ours.
            let held = guard.get(way);
            guard.set(way, if held & !SPACE_LOW == key { 0 } else { held });
        }
        true
    }

    /// Forgets every page for good, so that space numbers can be used again. Fills under way are refused.
    pub fn clear(&self) {
        self.drop_all();
        for line in &self.lines {
            // A fill holds a line for a handful of stores.
            let guard = loop {
                match line.try_lock() {
                    Some(guard) => break guard,
                    None => std::thread::yield_now(),
                }
            };
            for way in 0..WAYS {
                guard.set(way, 0);
            }
        }
    }

    #[inline]
    fn line(&self, domain: usize, number: u64, size: PageSize) -> Option<&Line<W>> {
        // Neighbouring pages get neighbouring lines; the upper bits are folded in so that strides do not meet.
        let mixed = number ^ number >> 9 ^ number >> 20 ^ (domain as u64).wrapping_mul(0x9e37_79b9) ^ bit(size) << 5;
        self.lines.get(usize::try_from(mixed & self.mask).ok()?)
    }
}

/// The next way in turn.
fn victim<W: Word>(guard: &LineGuard<'_, W>) -> usize {
    let turn = guard.get(TURN);
    guard.set(TURN, turn.wrapping_add(1));
    usize::try_from(turn % WAYS as u64).unwrap_or(0)
}

#[inline]
const fn bit(size: PageSize) -> u64 {
    1 << size.level()
}

#[inline]
const fn rights(perms: Perms) -> u64 {
    (if perms.read { READ } else { 0 }) | (if perms.write { WRITE } else { 0 })
}

#[inline]
fn key(space: u64, address: u64, size: PageSize) -> Option<u64> {
    let number = address >> size.shift() << NUMBER_SHIFT;
    (address >> ADDRESS_BITS == 0).then_some(number | u64::from(size.level()) << SIZE_SHIFT | space & SPACE_LOW)
}
