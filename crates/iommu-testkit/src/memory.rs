//! Host memory that costs only what is touched, and that watches how it is used.

mod frames;
mod pages;
mod view;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use iommu_types::{
    AddrRange, Coherence, FrameRequest, HostPhys, NodeId, OutOfFrames, PAGE_SHIFT, PAGE_SIZE, Table, TableFrame,
    TableMemory,
};

use frames::Frames;
pub use frames::{FrameCounters, Violation};
use pages::{Region, Use};
pub use view::HardwareView;

/// What every word of a freed table frame holds.
///
/// As an entry of any VT-d structure it is present and has bits above every usual host address width set, so
/// hardware that still walks the frame reports a reserved field rather than something plausible.
pub const POISON: u64 = 0x6b6b_6b6b_6b6b_6b6b;

/// Bytes of a cache line: what a write-back covers at least.
const LINE: u64 = 64;

/// Host memory for tests: [`iommu_types::SystemMemory`], [`TableMemory`] and [`Coherence`] in one.
///
/// Memory reads as zero until it is written. Table frames come from the *highest* free addresses that satisfy
/// a request, so that code which forgets its address limit is given an address beyond it, and low addresses
/// stay free for hand-made tables. [`TableMemory::table`] knows only frames that are out (and pages named to
/// [`Self::adopt`]).
#[derive(Debug)]
pub struct SparseMemory {
    regions: Vec<Region>,
    non_coherent: bool,
    frames: Mutex<Frames>,
    bad: Mutex<Vec<AddrRange<HostPhys>>>,
    has_bad: AtomicBool,
    written_back: Mutex<Vec<AddrRange<HostPhys>>>,
}

/// Where memory lies and how it behaves: [`SparseMemory::builder`].
#[derive(Debug, Default)]
pub struct SparseMemoryBuilder {
    regions: Vec<Region>,
    non_coherent: bool,
}

fn whole_pages(base: u64, len: u64) -> (u64, u64) {
    assert!(
        base.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE) && len != 0,
        "memory comes in whole pages, not {len:#x} bytes at {base:#x}"
    );
    (base >> PAGE_SHIFT, len >> PAGE_SHIFT)
}

impl SparseMemoryBuilder {
    fn region(mut self, base: u64, len: u64, node: Option<NodeId>, frames: bool) -> Self {
        let (first, pages) = whole_pages(base, len);
        assert!(first + pages <= 1 << (64 - PAGE_SHIFT), "memory ends at 2^64");
        assert!(
            self.regions
                .iter()
                .all(|r| first + pages <= r.first_page || r.first_page + r.pages <= first),
            "memory at {base:#x} is there already"
        );
        self.regions.push(Region::new(first, pages, node, frames));
        self
    }

    /// `len` bytes of memory at `base`, of no particular node.
    #[must_use]
    pub fn ram(self, base: u64, len: u64) -> Self {
        self.region(base, len, None, true)
    }

    /// `len` bytes of memory at `base` that belong to `node`.
    #[must_use]
    pub fn ram_on_node(self, base: u64, len: u64, node: NodeId) -> Self {
        self.region(base, len, Some(node), true)
    }

    /// `len` bytes of memory at `base` that table frames are never taken from.
    #[must_use]
    pub fn data(self, base: u64, len: u64) -> Self {
        self.region(base, len, None, false)
    }

    /// Hardware does not snoop the processor's caches when it walks tables.
    ///
    /// Through [`SparseMemory::hardware`], a cache line of a table frame then keeps its old contents until a
    /// write-back covers it; a new frame shows [`POISON`] until its zeroes are written back. Other memory, and
    /// frames named to [`SparseMemory::snoop`], are seen as they are.
    #[must_use]
    pub fn non_coherent(mut self) -> Self {
        self.non_coherent = true;
        self
    }

    /// The memory.
    #[must_use]
    pub fn build(self) -> SparseMemory {
        SparseMemory {
            frames: Mutex::new(Frames::new(&self.regions)),
            regions: self.regions,
            non_coherent: self.non_coherent,
            bad: Mutex::default(),
            has_bad: AtomicBool::new(false),
            written_back: Mutex::default(),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SparseMemory {
    /// `len` bytes of coherent memory from address 0.
    #[must_use]
    pub fn new(len: u64) -> Self {
        Self::builder().ram(0, len).build()
    }

    /// Memory in pieces.
    #[must_use]
    pub fn builder() -> SparseMemoryBuilder {
        SparseMemoryBuilder::default()
    }

    /// The memory as remapping hardware and devices see it.
    #[must_use]
    pub const fn hardware(&self) -> HardwareView<'_> {
        HardwareView { memory: self }
    }

    fn region_of(&self, page: u64) -> Option<&Region> {
        self.regions.iter().find(|r| r.contains(page))
    }

    /// Lets the allocation after the next `n` fail, once; `0` is the next one.
    pub fn fail_allocation(&self, n: u64) {
        locked(&self.frames).fail_nth(n);
    }

    /// Lets every allocation after the next `n` fail.
    pub fn fail_allocations_after(&self, n: u64) {
        locked(&self.frames).fail_after(n);
    }

    /// Lets allocations succeed again.
    pub fn heal_allocations(&self) {
        locked(&self.frames).heal();
    }

    /// Lets accesses to `range` answer with a bus error.
    pub fn break_bus(&self, range: AddrRange<HostPhys>) {
        locked(&self.bad).push(range);
        self.has_bad.store(true, Ordering::Release);
    }

    /// Lets all memory answer again.
    pub fn heal_bus(&self) {
        locked(&self.bad).clear();
        self.has_bad.store(false, Ordering::Release);
    }

    /// Makes the page at `at`, filled by hand, known to [`TableMemory::table`].
    pub fn adopt(&self, at: HostPhys) {
        let page = at.raw() >> PAGE_SHIFT;
        if let Some(page) = self.region_of(page).and_then(|r| r.page(page)) {
            page.set_use(Use::Table);
        }
    }

    /// Hardware reads the pages of `range` through the processor's caches from now on, as it always does with
    /// the invalidation queue.
    pub fn snoop(&self, range: AddrRange<HostPhys>) {
        for page in range.first().raw() >> PAGE_SHIFT..=range.last().raw() >> PAGE_SHIFT {
            if let Some(page) = self.region_of(page).and_then(|r| r.page(page))
                && page.used_for() == Use::Table
            {
                page.set_use(Use::Snooped);
            }
        }
    }

    /// How many frames were handed out and came back.
    #[must_use]
    pub fn counters(&self) -> FrameCounters {
        locked(&self.frames).counters
    }

    /// Frames that are out: base address and order, lowest first.
    #[must_use]
    pub fn live_frames(&self) -> Vec<(HostPhys, u8)> {
        locked(&self.frames).live().collect()
    }

    /// The broken rules so far. Freed frames that are not yet reused are looked through as well.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        let mut all = locked(&self.frames).violations.clone();
        for region in &self.regions {
            for number in region.touched() {
                let Some(page) = region.peek(number) else { continue };
                if page.used_for() == Use::Freed {
                    all.extend(Self::changed(page, number));
                }
            }
        }
        all
    }

    /// Panics if a frame is still out or a rule was broken.
    ///
    /// # Panics
    /// With the list of leaked frames and violations.
    #[track_caller]
    pub fn assert_clean(&self) {
        let (leaked, broken) = (self.live_frames(), self.violations());
        assert!(
            leaked.is_empty() && broken.is_empty(),
            "frames still out: {leaked:x?}; broken rules: {broken:x?}"
        );
    }

    /// The write-backs since the last call, in order.
    #[must_use]
    pub fn take_write_backs(&self) -> Vec<AddrRange<HostPhys>> {
        std::mem::take(&mut locked(&self.written_back))
    }

    /// Words of table frames that hardware would see with other contents than the processor, lowest first.
    ///
    /// Empty on coherent memory.
    #[must_use]
    pub fn unseen_by_hardware(&self) -> Vec<HostPhys> {
        let mut all = Vec::new();
        if !self.non_coherent {
            return all;
        }
        for region in &self.regions {
            for number in region.touched() {
                let Some(page) = region.peek(number) else { continue };
                if page.used_for() != Use::Table {
                    continue;
                }
                let pairs = page.words.iter().zip(page.uncached());
                for (at, (ours, theirs)) in (number << PAGE_SHIFT..).step_by(8).zip(pairs) {
                    if ours.load(Ordering::Acquire) != theirs.load(Ordering::Acquire) {
                        all.push(HostPhys::new(at));
                    }
                }
            }
        }
        all.sort_unstable();
        all
    }

    fn changed(page: &pages::Page, number: u64) -> Option<Violation> {
        (number << PAGE_SHIFT..)
            .step_by(8)
            .zip(&page.words)
            .map(|(at, word)| (at, word.load(Ordering::Acquire)))
            .find(|(_, found)| *found != POISON)
            .map(|(at, found)| Violation::WrittenAfterFree {
                at: HostPhys::new(at),
                found,
            })
    }
}

impl TableMemory for SparseMemory {
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        let mut frames = locked(&self.frames);
        let first = frames.take(&self.regions, request).ok_or(OutOfFrames(request))?;
        let region = self.region_of(first).ok_or(OutOfFrames(request))?;
        for number in first..first + (1 << request.order) {
            let Some(page) = region.page(number) else { continue };
            if page.used_for() == Use::Freed {
                frames.violations.extend(Self::changed(page, number));
            }
            page.fill(0, self.non_coherent.then_some(POISON));
            page.set_use(Use::Table);
        }
        Ok(TableFrame::from_allocator(
            HostPhys::new(first << PAGE_SHIFT),
            request.order,
        ))
    }

    fn free(&self, frame: TableFrame) {
        let first = frame.base().raw() >> PAGE_SHIFT;
        let mut frames = locked(&self.frames);
        if !frames.give_back(&self.regions, first, frame.order()) {
            return;
        }
        for number in first..first + (1 << frame.order()) {
            if let Some(page) = self.region_of(number).and_then(|r| r.page(number)) {
                page.fill(POISON, self.non_coherent.then_some(POISON));
                page.set_use(Use::Freed);
            }
        }
    }

    fn table(&self, at: HostPhys) -> Option<&Table> {
        if at.page_offset() != 0 {
            return None;
        }
        let number = at.raw() >> PAGE_SHIFT;
        let page = self.region_of(number)?.peek(number)?;
        matches!(page.used_for(), Use::Table | Use::Snooped).then_some(&page.words)
    }
}

impl Coherence for SparseMemory {
    fn write_back(&self, at: HostPhys, len: u64) {
        let Some(range) = AddrRange::from_base_len(at, len) else {
            return;
        };
        locked(&self.written_back).push(range);
        if !self.non_coherent {
            return;
        }
        let (mut word, last) = (range.first().raw() & !(LINE - 1), range.last().raw() | (LINE - 1));
        while word <= last {
            let number = word >> PAGE_SHIFT;
            if let Some(page) = self.region_of(number).and_then(|r| r.peek(number))
                && page.used_for() == Use::Table
                && let Ok(index) = usize::try_from((word >> 3) & 0x1ff)
            {
                page.uncached()[index].store(page.words[index].load(Ordering::Acquire), Ordering::Release);
            }
            let Some(next) = word.checked_add(8) else { break };
            word = next;
        }
    }
}

#[cfg(test)]
mod tests;
