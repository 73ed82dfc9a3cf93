//! Memory for tables and for DMA, caches and time: the host that the driver is given.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use iommu_types::{
    Clock, Coherence, FrameRequest, HostPhys, OutOfFrames, PAGE_SIZE, TABLE_ENTRIES, Table, TableFrame, TableMemory,
};

use crate::hardware::{fence, flush_line, in8, out8, time_stamp};

/// Bytes of a cache line.
const LINE: u64 = 64;

/// Page-aligned memory at its physical address (the mapping is the identity). Words are atomic, since devices
/// read and write them.
#[repr(C, align(4096))]
pub(crate) struct Pages<const N: usize>([Table; N]);

impl<const N: usize> Pages<N> {
    const fn new() -> Self {
        Self([const { [const { AtomicU64::new(0) }; TABLE_ENTRIES] }; N])
    }

    /// The physical address of page `index`.
    pub(crate) fn at(&self, index: usize) -> HostPhys {
        let base = u64::try_from(self.0.as_ptr().expose_provenance()).unwrap_or(u64::MAX);
        HostPhys::new(base + u64::try_from(index).unwrap_or(0) * PAGE_SIZE)
    }

    /// Which page is at an address.
    pub(crate) fn index(&self, at: HostPhys) -> Option<usize> {
        let offset = at.offset_from(self.at(0))?;
        let index = usize::try_from(offset / PAGE_SIZE).ok()?;
        (offset.is_multiple_of(PAGE_SIZE) && index < N).then_some(index)
    }

    /// The words of page `index`.
    pub(crate) fn words(&self, index: usize) -> &[AtomicU64] {
        self.0.get(index).map_or(&[], |page| page.as_slice())
    }

    /// Fills page `index` with a pattern that depends on the position.
    pub(crate) fn fill(&self, index: usize, seed: u64) {
        for (position, word) in (0u64..).zip(self.words(index)) {
            word.store(pattern(seed, position), Ordering::SeqCst);
        }
    }

    /// Whether the first `bytes` of page `index` hold the pattern of a seed.
    pub(crate) fn holds(&self, index: usize, seed: u64, bytes: u64) -> bool {
        let words = usize::try_from(bytes / 8).unwrap_or(0);
        let page = self.words(index);
        page.len() >= words
            && (0u64..)
                .zip(page.iter().take(words))
                .all(|(position, word)| word.load(Ordering::SeqCst) == pattern(seed, position))
    }
}

impl<const N: usize> Pages<N> {
    /// Length in bytes.
    pub(crate) const fn bytes(&self) -> u64 {
        (N * TABLE_ENTRIES * size_of::<AtomicU64>()) as u64
    }

    /// Clears page `index`.
    pub(crate) fn clear(&self, index: usize) {
        for word in self.words(index) {
            word.store(0, Ordering::SeqCst);
        }
    }
}

/// A word that tells seed and position.
fn pattern(seed: u64, position: u64) -> u64 {
    seed << 32 | (seed ^ 0xa5a5) << 16 | position
}

/// Pages for tables.
const TABLE_PAGES: usize = 512;
static TABLES: Pages<TABLE_PAGES> = Pages::new();

/// Pages for DMA.
pub(crate) static BUFFERS: Pages<32> = Pages::new();

/// Pages for rings.
pub(crate) static RINGS: Pages<16> = Pages::new();

/// Pages to copy through.
pub(crate) static BOUNCE: Pages<64> = Pages::new();

/// A 2 MiB page for DMA.
#[repr(C, align(0x20_0000))]
pub(crate) struct Large(pub(crate) Pages<512>);
pub(crate) static LARGE: Large = Large(Pages::new());

/// The host.
pub(crate) struct Board {
    used: [AtomicBool; TABLE_PAGES],
    /// Time stamp ticks in a millisecond.
    ticks_per_ms: AtomicU64,
}

/// The one there is.
pub(crate) static BOARD: Board = Board {
    used: [const { AtomicBool::new(false) }; TABLE_PAGES],
    ticks_per_ms: AtomicU64::new(1_000_000),
};

/// Rate of the interval timer in Hz.
const TIMER_RATE: u64 = 1_193_182;
/// Milliseconds of calibration.
const CALIBRATION_MS: u64 = 10;

impl Board {
    /// How many table pages are in use.
    pub(crate) fn table_pages(&self) -> usize {
        self.used.iter().filter(|used| used.load(Ordering::SeqCst)).count()
    }

    /// Measures the time stamp counter by channel 2 of the interval timer.
    pub(crate) fn calibrate(&self) {
        const GATE: u16 = 0x61;
        const CHANNEL: u16 = 0x42;
        const CONTROL: u16 = 0x43;
        let [low, high, ..] = (TIMER_RATE * CALIBRATION_MS / 1000).to_le_bytes();
        // Gate on, speaker off; then mode 0, both bytes.
        out8(GATE, in8(GATE) & !2 | 1);
        out8(CONTROL, 0xb0);
        out8(CHANNEL, low);
        out8(CHANNEL, high);
        let start = time_stamp();
        // The bound is for a machine without the timer: the default stays then.
        for _ in 0..10_000_000u32 {
            if in8(GATE) & 1 << 5 != 0 {
                let ticks = (time_stamp() - start) / CALIBRATION_MS;
                self.ticks_per_ms.store(ticks.max(1), Ordering::SeqCst);
                return;
            }
        }
    }

    /// The first of `count` free pages, aligned to their number.
    fn find(&self, count: usize) -> Option<usize> {
        // Alignment counts from address 0.
        let first = usize::try_from(TABLES.at(0).raw() / PAGE_SIZE).ok()?;
        let start = first.next_multiple_of(count) - first;
        (start..TABLE_PAGES).step_by(count).find(|&page| {
            let run = self.used.get(page..page + count);
            run.is_some_and(|run| run.iter().all(|used| !used.load(Ordering::SeqCst)))
        })
    }

    fn mark(&self, first: usize, count: usize, used: bool) {
        for page in self.used.iter().skip(first).take(count) {
            page.store(used, Ordering::SeqCst);
        }
    }
}

impl TableMemory for Board {
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        let none = OutOfFrames(request);
        let count = 1usize.checked_shl(request.order.into()).ok_or(none)?;
        let first = self.find(count).ok_or(none)?;
        let last = TABLES.at(first + count).raw() - 1;
        if last > request.last.raw() {
            return Err(none);
        }
        self.mark(first, count, true);
        for index in first..first + count {
            for word in TABLES.words(index) {
                word.store(0, Ordering::SeqCst);
            }
        }
        Ok(TableFrame::from_allocator(TABLES.at(first), request.order))
    }

    fn free(&self, frame: TableFrame) {
        if let Some(first) = TABLES.index(frame.base()) {
            self.mark(first, 1 << frame.order(), false);
        }
    }

    fn table(&self, at: HostPhys) -> Option<&Table> {
        TABLES.0.get(TABLES.index(at)?)
    }
}

impl Coherence for Board {
    fn write_back(&self, at: HostPhys, len: u64) {
        let first = at.raw() / LINE * LINE;
        for line in (first..at.raw().saturating_add(len)).step_by(64) {
            flush_line(line);
        }
        fence();
    }
}

impl Clock for Board {
    fn now_ns(&self) -> u64 {
        let ticks = u128::from(time_stamp()) * 1_000_000;
        u64::try_from(ticks / u128::from(self.ticks_per_ms.load(Ordering::SeqCst))).unwrap_or(u64::MAX)
    }

    fn relax(&self) {
        core::hint::spin_loop();
    }
}
