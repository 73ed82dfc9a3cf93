//! One run of physical memory: its bytes, and which of its pages are in use.

use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use iommu_types::sync::{AtomicU64, Ordering};
use iommu_types::{AddrRange, HostPhys, NodeId, PAGE_SHIFT, PAGE_SIZE, TABLE_ENTRIES, Table};
use zerocopy::FromZeros;

use super::extents::Extents;

/// Pages that are committed together: 2 MiB.
const CHUNK_PAGES: usize = 512;
/// Bytes that are committed together.
const CHUNK_BYTES: usize = CHUNK_PAGES * TABLE_ENTRIES * 8;

/// Words that are committed together.
const CHUNK_WORDS: usize = CHUNK_PAGES * TABLE_ENTRIES;

/// Committed memory. Its pages start on pages of this process too, so that drivers that want page-aligned buffers can use
/// it in place.
struct Chunk {
    /// One page more than are used.
    pages: Vec<Table>,
    /// Words before the first page boundary.
    skip: usize,
}

impl Chunk {
    fn zeroed() -> Option<Self> {
        let pages = Table::new_vec_zeroed(CHUNK_PAGES + 1).ok()?;
        let page = TABLE_ENTRIES * 8;
        // Words are aligned to themselves, so the distance is whole words.
        let skip = (page - pages.as_ptr().addr() % page) % page / 8;
        Some(Self { pages, skip })
    }

    fn words(&self) -> &[AtomicU64] {
        let words = self.pages.as_flattened();
        words.get(self.skip..self.skip + CHUNK_WORDS).unwrap_or_default()
    }

    fn page(&self, index: usize) -> Option<&Table> {
        let first = index * TABLE_ENTRIES;
        self.words().get(first..first + TABLE_ENTRIES)?.try_into().ok()
    }
}

/// A run of memory on one node. Chunks that nobody has written take no host memory and read as zero.
pub(super) struct Region {
    node: NodeId,
    range: AddrRange<HostPhys>,
    chunks: Vec<OnceLock<Chunk>>,
    /// One bit a page: handed out as table memory. Read without the lock by [`Region::table`].
    tables: Vec<AtomicU64>,
    state: Mutex<State>,
}

/// Who uses which page.
#[derive(Debug)]
pub(super) struct State {
    pub(super) free: Extents,
    /// One bit a page: was handed out before, so its bytes may not be zero.
    used_before: Vec<u64>,
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("node", &self.node)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// A word and a bit of a bitmap over pages.
fn bit(page: usize) -> (usize, u64) {
    (page / 64, 1 << (page % 64))
}

impl Region {
    /// Memory over `range`, which consists of whole pages; `None` if the host's address space is too small.
    pub(super) fn new(node: NodeId, range: AddrRange<HostPhys>) -> Option<Self> {
        let pages = usize::try_from(range.page_count()).ok()?;
        let words = pages.div_ceil(64);
        Some(Self {
            node,
            range,
            chunks: (0..pages.div_ceil(CHUNK_PAGES)).map(|_| OnceLock::new()).collect(),
            tables: (0..words).map(|_| AtomicU64::new(0)).collect(),
            state: Mutex::new(State {
                free: Extents::new(range.first().raw() >> PAGE_SHIFT, range.page_count()),
                used_before: vec![0; words],
            }),
        })
    }

    pub(super) fn node(&self) -> NodeId {
        self.node
    }

    pub(super) fn range(&self) -> AddrRange<HostPhys> {
        self.range
    }

    /// Byte offset of `at` in the region.
    pub(super) fn offset(&self, at: HostPhys) -> Option<usize> {
        if !self.range.contains(at) {
            return None;
        }
        usize::try_from(at.offset_from(self.range.first())?).ok()
    }

    /// The bookkeeping. A thread that panicked while it held the lock leaves it consistent: every change of
    /// [`Extents`] is complete before control returns.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The committed chunk with number `index`, committing it first if need be.
    fn commit(&self, index: usize) -> Option<&Chunk> {
        let slot = self.chunks.get(index)?;
        if let Some(chunk) = slot.get() {
            return Some(chunk);
        }
        let fresh = Chunk::zeroed()?;
        Some(slot.get_or_init(|| fresh))
    }

    /// The word at byte `offset`, for reading: `None` while its chunk is not committed (it reads as zero).
    pub(super) fn peek_word(&self, offset: usize) -> Option<&AtomicU64> {
        let chunk = self.chunks.get(offset / CHUNK_BYTES)?.get()?;
        chunk.words().get((offset % CHUNK_BYTES) / 8)
    }

    /// The word at byte `offset`, committed.
    pub(super) fn word(&self, offset: usize) -> Option<&AtomicU64> {
        let chunk = self.commit(offset / CHUNK_BYTES)?;
        chunk.words().get((offset % CHUNK_BYTES) / 8)
    }

    /// The words from byte `offset`, a multiple of 8, committed: as many of `bytes` as the region and the chunk have.
    pub(super) fn words(&self, offset: usize, bytes: usize) -> Option<&[AtomicU64]> {
        let count = self.limit(offset, bytes) / 8;
        let chunk = self.commit(offset / CHUNK_BYTES)?;
        let first = (offset % CHUNK_BYTES) / 8;
        chunk.words().get(first..first + count)
    }

    /// Copies memory at byte `offset` to `into`, up to the end of the region or of the chunk, whichever comes
    /// first; tells how many bytes that were.
    pub(super) fn read(&self, offset: usize, into: &mut [u8]) -> usize {
        let limit = self.limit(offset, into.len());
        let Some(into) = into.get_mut(..limit) else { return 0 };
        let Some(slot) = self.chunks.get(offset / CHUNK_BYTES) else {
            return 0;
        };
        match slot.get() {
            None => into.fill(0),
            Some(chunk) => copy_out(chunk.words(), offset % CHUNK_BYTES, into),
        }
        limit
    }

    /// Copies `from` to memory at byte `offset`, as far as [`Region::read`] would.
    pub(super) fn write(&self, offset: usize, from: &[u8]) -> usize {
        let limit = self.limit(offset, from.len());
        let Some(from) = from.get(..limit) else { return 0 };
        let Some(chunk) = self.commit(offset / CHUNK_BYTES) else {
            return 0;
        };
        copy_in(chunk.words(), offset % CHUNK_BYTES, from);
        limit
    }

    /// How much of `wanted` bytes from `offset` lies in the same chunk and in the region.
    fn limit(&self, offset: usize, wanted: usize) -> usize {
        let in_chunk = CHUNK_BYTES - offset % CHUNK_BYTES;
        let size = usize::try_from(self.range.page_count() * PAGE_SIZE).unwrap_or(usize::MAX);
        wanted.min(in_chunk).min(size.saturating_sub(offset))
    }

    /// Index of the page with absolute number `pfn`.
    fn page_index(&self, pfn: u64) -> Option<usize> {
        usize::try_from(pfn.checked_sub(self.range.first().raw() >> PAGE_SHIFT)?).ok()
    }

    fn page(&self, index: usize) -> Option<&Table> {
        self.commit(index / CHUNK_PAGES)?.page(index % CHUNK_PAGES)
    }

    /// The page at `at` if it was handed out as table memory.
    pub(super) fn table(&self, at: HostPhys) -> Option<&Table> {
        let index = self.page_index(at.raw() >> PAGE_SHIFT)?;
        let (word, mask) = bit(index);
        (self.tables.get(word)?.load(Ordering::Acquire) & mask != 0).then(|| self.page(index))?
    }

    /// Commits `count` pages from page `pfn` and marks them as tables; false if the host has no memory left.
    pub(super) fn make_tables(&self, pfn: u64, count: u64) -> bool {
        let pages = || (pfn..pfn + count).map_while(|pfn| self.page_index(pfn));
        if !pages().all(|index| self.page(index).is_some()) {
            return false;
        }
        for index in pages() {
            let (word, mask) = bit(index);
            if let Some(tables) = self.tables.get(word) {
                tables.fetch_or(mask, Ordering::Release);
            }
        }
        true
    }

    /// Takes the mark of [`Region::make_tables`] off; false (and nothing changed) if a page does not bear it.
    pub(super) fn unmake_tables(&self, pfn: u64, count: u64) -> bool {
        let marked = |pfn| {
            let index = self.page_index(pfn)?;
            let (word, mask) = bit(index);
            let tables = self.tables.get(word)?;
            (tables.load(Ordering::Acquire) & mask != 0).then_some((tables, mask))
        };
        if !(pfn..pfn + count).all(|pfn| marked(pfn).is_some()) {
            return false;
        }
        for (tables, mask) in (pfn..pfn + count).filter_map(marked) {
            tables.fetch_and(!mask, Ordering::Release);
        }
        true
    }

    /// Makes `count` pages from page `pfn`, just taken, read as zero.
    pub(super) fn zero_if_used_before(&self, state: &mut State, pfn: u64, count: u64) {
        for index in (pfn..pfn + count).filter_map(|pfn| self.page_index(pfn)) {
            let (word, mask) = bit(index);
            let Some(used) = state.used_before.get_mut(word) else {
                continue;
            };
            if *used & mask != 0
                && let Some(page) = self.page(index)
            {
                page.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            }
            *used |= mask;
        }
    }
}

/// Copies bytes out of words, starting `offset` bytes into `words`.
///
/// Relaxed word accesses: what a memory controller promises to bulk data. The caller checked the length.
fn copy_out(words: &[AtomicU64], offset: usize, into: &mut [u8]) {
    let load = |index: usize| {
        words
            .get(index)
            .map_or(0, |word| word.load(Ordering::Relaxed))
            .to_le_bytes()
    };
    let mut at = offset / 8;
    let skew = offset % 8;
    let mut rest = into;
    if skew != 0 {
        let (head, tail) = rest.split_at_mut((8 - skew).min(rest.len()));
        for (to, from) in head.iter_mut().zip(load(at).into_iter().skip(skew)) {
            *to = from;
        }
        rest = tail;
        at += 1;
    }
    let (whole, tail) = rest.as_chunks_mut::<8>();
    let source = words.get(at..).unwrap_or_default();
    for (to, from) in whole.iter_mut().zip(source) {
        *to = from.load(Ordering::Relaxed).to_le_bytes();
    }
    at += whole.len();
    for (to, from) in tail.iter_mut().zip(load(at)) {
        *to = from;
    }
}

/// Copies bytes into words, starting `offset` bytes into `words`; bytes beside them are untouched even if
/// another thread writes those at the same time.
fn copy_in(words: &[AtomicU64], offset: usize, from: &[u8]) {
    let mut at = offset / 8;
    let skew = offset % 8;
    let mut rest = from;
    if skew != 0 {
        let (head, tail) = rest.split_at((8 - skew).min(rest.len()));
        merge(words.get(at), skew, head);
        rest = tail;
        at += 1;
    }
    let (whole, tail) = rest.as_chunks::<8>();
    let target = words.get(at..).unwrap_or_default();
    for (from, to) in whole.iter().zip(target) {
        to.store(u64::from_le_bytes(*from), Ordering::Relaxed);
    }
    if !tail.is_empty() {
        merge(words.get(at + whole.len()), 0, tail);
    }
}

/// Replaces `bytes.len()` bytes of a word from byte `skew`.
fn merge(word: Option<&AtomicU64>, skew: usize, bytes: &[u8]) {
    let Some(word) = word else { return };
    // Always succeeds: the closure never declines.
    let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
        let mut new = old.to_le_bytes();
        for (to, from) in new.iter_mut().skip(skew).zip(bytes) {
            *to = *from;
        }
        Some(u64::from_le_bytes(new))
    });
}
