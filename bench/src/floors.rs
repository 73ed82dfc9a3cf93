//! The least that the work takes: the floors that limit ratios are over, measured in the same process as their subjects.
//!
//! Each is the smallest code that does what nobody can leave out, without any check that is not part of it.

use std::hint::black_box;

use iommu_types::TableMemory;
use iommu_types::sync::{AtomicU64, Ordering, fence};
use iommu_types::{FrameRequest, HostPhys};

use crate::pagetable::Arena;
use crate::pair::Random;
use crate::peers::PAGE;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Slots of the invalidation queue.
const QUEUE: usize = 256;
/// Entries of the translation cache.
const PROBED: usize = 1024;

/// Addresses that are free, in an array: what one thread needs for an allocator.
pub(crate) struct Magazine {
    slots: [u64; 128],
    free: usize,
    ring: Vec<u64>,
    at: usize,
}

impl Magazine {
    /// Half full, with `live` addresses handed out.
    pub(crate) fn new(live: usize) -> Self {
        Self {
            slots: std::array::from_fn(|slot| slot as u64),
            free: 64,
            ring: (0..live as u64).map(|address| address + 128).collect(),
            at: 0,
        }
    }

    /// Gives the oldest address back and takes one.
    #[inline]
    pub(crate) fn turn(&mut self) -> u64 {
        let Some(oldest) = self.ring.get_mut(self.at) else {
            return 0;
        };
        if let Some(slot) = self.slots.get_mut(self.free) {
            *slot = *oldest;
            self.free += 1;
        }
        // What was given back goes to memory before something is taken: they are two calls.
        black_box(&mut self.slots);
        let Some(oldest) = self.ring.get_mut(self.at) else {
            return 0;
        };
        self.free = self.free.saturating_sub(1);
        *oldest = self.slots.get(self.free).copied().unwrap_or(0);
        let address = *oldest;
        self.at += 1;
        if self.at == self.ring.len() {
            self.at = 0;
        }
        address
    }
}

/// Everything that one strict unmap and map need, with one translation by the device.
pub(crate) struct Strict {
    magazine: Magazine,
    arena: Arena,
    root: HostPhys,
    queue: Vec<[AtomicU64; 2]>,
    tail: usize,
    doorbell: AtomicU64,
    iotlb: Vec<[u64; 2]>,
    section: AtomicU64,
}

impl Strict {
    /// With `live` pages mapped.
    pub(crate) fn new(live: usize) -> Outcome<Self> {
        let arena = Arena::new(64);
        let page =
            || Ok::<_, Box<dyn std::error::Error>>(arena.allocate(FrameRequest::page(None, HostPhys::MAX))?.base());
        let (root, upper, middle) = (page()?, page()?, page()?);
        let entry = |at: HostPhys, index: usize| arena.table(at).and_then(|table| table.get(index));
        for (at, index, to) in [(root, 0, upper), (upper, 0, middle)] {
            let entry = entry(at, index).ok_or("no table")?;
            entry.store(to.raw() | 3, Ordering::Relaxed);
        }
        for index in 0..(live + 256).div_ceil(512) {
            let leaf = page()?;
            let entry = entry(middle, index).ok_or("too many pages")?;
            entry.store(leaf.raw() | 3, Ordering::Relaxed);
        }
        Ok(Self {
            magazine: Magazine::new(live),
            arena,
            root,
            queue: (0..QUEUE).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect(),
            tail: 0,
            doorbell: AtomicU64::new(0),
            iotlb: vec![[0; 2]; PROBED],
            section: AtomicU64::new(0),
        })
    }

    /// The table that has the entry of a page, three steps down.
    #[inline]
    fn table_of(&self, page: u64) -> Option<&iommu_types::Table> {
        let mut table = self.root;
        for level in [27, 18, 9] {
            let entry = self
                .arena
                .table(table)?
                .get(usize::try_from(page >> level & 511).ok()?)?;
            let word = entry.load(Ordering::Acquire);
            if word & 3 == 0 {
                return None;
            }
            table = HostPhys::new(word & !(PAGE - 1));
        }
        self.arena.table(table)
    }

    /// The entry of a page.
    #[inline]
    fn walk(&self, page: u64) -> Option<&AtomicU64> {
        self.table_of(page)?.get(usize::try_from(page & 511).ok()?)
    }

    /// Two descriptors and the tail.
    #[inline]
    pub(crate) fn submit(&mut self, page: u64) {
        for words in [[2, page], [5, page]] {
            if let Some([low, high]) = self.queue.get(self.tail) {
                low.store(words[0], Ordering::Relaxed);
                high.store(words[1], Ordering::Relaxed);
            }
            self.tail = (self.tail + 1) % QUEUE;
        }
        self.doorbell.store(self.tail as u64, Ordering::Release);
    }

    /// One pair with its translation. Tells whether all of it was there.
    #[inline]
    pub(crate) fn turn(&mut self) -> bool {
        let page = black_box(self.magazine.turn());
        let Some(entry) = self.walk(page) else { return false };
        entry.store(0, Ordering::Release);
        self.submit(page);
        let Some(entry) = self.walk(page) else { return false };
        let free = entry.load(Ordering::Relaxed) & 3 == 0;
        entry.store((page << 12) | 3, Ordering::Release);
        self.section.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let place = usize::try_from(page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54).unwrap_or(0);
        let found = self.iotlb.get(place).is_some_and(|[tag, _]| *tag == page);
        self.section.store(0, Ordering::Release);
        black_box(found);
        free
    }

    /// As many pages mapped and unmapped as one list, laid out first: the floor of scatter-gather lists.
    #[inline]
    pub(crate) fn list(&mut self, buffers: &[(u64, u64)]) -> bool {
        let page = black_box(self.magazine.turn()) & !511;
        let mut len = 0;
        for &(at, bytes) in buffers {
            len += (at % PAGE + bytes).next_multiple_of(PAGE);
        }
        let Some(table) = self.table_of(page) else {
            return false;
        };
        for (entry, &(at, _)) in table.iter().zip(buffers) {
            entry.store(at | 3, Ordering::Release);
        }
        for entry in table.iter().take(buffers.len()) {
            entry.store(0, Ordering::Release);
        }
        self.submit(page);
        black_box(len) > 0
    }
}

/// Loads of which each needs the one before, one for each line of memory that no cache holds.
pub(crate) struct Cold {
    next: Vec<usize>,
    at: usize,
}

impl Cold {
    /// Over 64 MiB.
    pub(crate) fn new() -> Self {
        let lines = 1 << 20;
        // One cycle through all lines in random order (Sattolo's shuffle).
        let mut order: Vec<usize> = (0..lines).collect();
        let mut random = Random::new(0xC01D);
        for last in (1..lines).rev() {
            let other = usize::try_from(random.next() % last as u64).unwrap_or(0);
            order.swap(last, other);
        }
        let mut next = vec![0; lines * 8];
        for (from, to) in order.iter().zip(order.iter().cycle().skip(1)) {
            next[from * 8] = to * 8;
        }
        Self { next, at: 0 }
    }

    /// `steps` loads.
    #[inline]
    pub(crate) fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.at = self.next.get(self.at).copied().unwrap_or(0);
        }
        black_box(self.at);
    }
}
