//! Physical memory on NUMA nodes.

mod extents;
mod region;

use iommu_types::sync::{AtomicU64, Ordering};
use iommu_types::{
    AddrRange, BusError, FrameRequest, HostPhys, NodeId, OutOfFrames, PAGE_SHIFT, PAGE_SIZE, SystemMemory, Table,
    TableFrame, TableMemory,
};
use region::Region;

/// The last address below 4 GiB.
pub const LAST_32_BIT: HostPhys = HostPhys::new(0xffff_ffff);

/// Most pages one table frame may have, as a power of two: 4 MiB, four times what the largest interrupt
/// remapping table takes.
const MAX_TABLE_ORDER: u8 = 10;

/// One page in this many is kept for tables: buffers cannot starve the driver's page tables.
const TABLE_RESERVE: u64 = 64;

/// A run of memory for [`MachineMemory::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// The node its memory controller belongs to.
    pub node: NodeId,
    /// Its addresses: whole 4 KiB pages.
    pub range: AddrRange<HostPhys>,
}

/// Memory that a machine cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryLayoutError {
    /// An end lies inside a page.
    #[error("memory {0} does not consist of whole 4 KiB pages: align both ends")]
    Unaligned(AddrRange<HostPhys>),
    /// Two runs share addresses.
    #[error("memory {0} overlaps memory {1}: give each node addresses of its own")]
    Overlap(AddrRange<HostPhys>, AddrRange<HostPhys>),
    /// More than this program can address.
    #[error("memory {0} is larger than this program can address: make it smaller")]
    TooLarge(AddrRange<HostPhys>),
}

/// Where pages for a buffer may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Zone {
    /// Anywhere.
    #[default]
    Any,
    /// Below 4 GiB, where devices with 32 address lines reach without help.
    Below4G,
    /// At or above 4 GiB.
    Above4G,
}

impl Zone {
    /// First and last page number.
    fn pages(self) -> (u64, u64) {
        let border = (LAST_32_BIT.raw() >> PAGE_SHIFT) + 1;
        match self {
            Self::Any => (0, u64::MAX),
            Self::Below4G => (0, border - 1),
            Self::Above4G => (border, u64::MAX),
        }
    }
}

impl std::fmt::Display for Zone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Any => "anywhere",
            Self::Below4G => "below 4 GiB",
            Self::Above4G => "at or above 4 GiB",
        })
    }
}

/// How the pages of a buffer lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Placement {
    /// One run.
    #[default]
    Contiguous,
    /// Runs of at most `extent` bytes, of which no two neighbours in the buffer are neighbours in memory: the
    /// memory of a guest.
    Scattered {
        /// Longest run, in bytes; rounded down to whole pages, at least one page.
        extent: u64,
    },
}

/// What [`MachineMemory::allocate_pages`] is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PageRequest {
    /// Length in bytes; rounded up to whole pages.
    pub bytes: u64,
    /// The node it must come from; any if `None`.
    pub node: Option<NodeId>,
    /// The addresses it may have.
    pub zone: Zone,
    /// How the pages lie.
    pub placement: Placement,
    /// The lowest address that any of them may have.
    pub floor: HostPhys,
    /// Each run starts on a multiple of this many bytes, a power of two; pages are what there is at least.
    pub align: u64,
}

impl PageRequest {
    /// `bytes` in one run anywhere.
    #[must_use]
    pub const fn contiguous(bytes: u64) -> Self {
        Self {
            bytes,
            node: None,
            zone: Zone::Any,
            placement: Placement::Contiguous,
            floor: HostPhys::ZERO,
            align: PAGE_SIZE,
        }
    }

    /// `bytes` in runs of at most `extent` bytes, anywhere.
    #[must_use]
    pub const fn scattered(bytes: u64, extent: u64) -> Self {
        Self {
            bytes,
            node: None,
            zone: Zone::Any,
            placement: Placement::Scattered { extent },
            floor: HostPhys::ZERO,
            align: PAGE_SIZE,
        }
    }

    /// The same in `zone`.
    #[must_use]
    pub const fn zone(mut self, zone: Zone) -> Self {
        self.zone = zone;
        self
    }

    /// The same, but no page lies below `floor`.
    #[must_use]
    pub const fn at_or_above(mut self, floor: HostPhys) -> Self {
        self.floor = floor;
        self
    }

    /// The same, with each run on a multiple of `bytes`, a power of two.
    #[must_use]
    pub const fn aligned_to(mut self, bytes: u64) -> Self {
        self.align = bytes;
        self
    }

    /// The same on `node`.
    #[must_use]
    pub const fn node(mut self, node: NodeId) -> Self {
        self.node = Some(node);
        self
    }
}

/// There is not enough free memory of the wanted kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no {} of memory free {}{}{}: ask for less or describe a machine with more memory",
    Size(.0.bytes), .0.zone, Floor(.0.floor), .0.node.map_or(String::new(), |node| format!(" on node {node}"))
)]
pub struct OutOfPages(pub PageRequest);

/// A length in bytes, in the largest unit that it is a multiple of.
struct Size(u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let whole = |shift: &u32| self.0 != 0 && self.0.is_multiple_of(1 << shift);
        match UNITS.iter().find(|(_, shift)| whole(shift)) {
            Some((unit, shift)) => write!(f, "{} {unit}", self.0 >> shift),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// A lowest address, where there is one.
struct Floor(HostPhys);

impl std::fmt::Display for Floor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            HostPhys::ZERO => Ok(()),
            floor => write!(f, ", not below {floor}"),
        }
    }
}

/// Pages for a buffer, owned by whoever holds this.
///
/// Dropping it leaks the pages (a device might still reach them); [`MachineMemory::release_pages`] gives them
/// back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropping pages leaks them; give them back with MachineMemory::release_pages"]
pub struct Pages {
    extents: Vec<AddrRange<HostPhys>>,
}

impl Pages {
    /// The runs in the order of the buffer, each of whole pages.
    #[must_use]
    pub fn extents(&self) -> &[AddrRange<HostPhys>] {
        &self.extents
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.page_count() * PAGE_SIZE).sum()
    }

    /// Where byte `offset` of the buffer lies; `None` past its end.
    #[must_use]
    pub fn at(&self, offset: u64) -> Option<HostPhys> {
        let mut rest = offset;
        for extent in &self.extents {
            let len = extent.page_count() * PAGE_SIZE;
            if rest < len {
                return extent.first().checked_add(rest);
            }
            rest -= len;
        }
        None
    }
}

/// The memory of a machine: bytes that any number of threads reach at once, and who uses which page.
///
/// Host memory is committed when it is first written, 2 MiB at a time, so a machine may have much more of it
/// than the tests touch. Tables come from the top of a node, buffers from the bottom; one page in 64 is kept
/// for tables.
///
/// Words are accessed with acquire and release order, bulk data relaxed. That is enough for a device that
/// writes data first and a status word after it.
#[derive(Debug)]
pub struct MachineMemory {
    /// Sorted by address.
    regions: Vec<Region>,
}

impl MachineMemory {
    /// Memory over `ranges`; the pages that `reserved` touches exist but are never handed out (firmware's).
    ///
    /// # Errors
    /// [`MemoryLayoutError`] names the range that cannot be.
    pub fn new(ranges: &[MemoryRange], reserved: &[AddrRange<HostPhys>]) -> Result<Self, MemoryLayoutError> {
        let mut sorted = ranges.to_vec();
        sorted.sort_by_key(|range| range.range.first());
        for (a, b) in sorted.iter().zip(sorted.iter().skip(1)) {
            if a.range.overlaps(b.range) {
                return Err(MemoryLayoutError::Overlap(a.range, b.range));
            }
        }
        let mut regions = Vec::with_capacity(sorted.len());
        for MemoryRange { node, range } in sorted {
            if range.to_pages() != range {
                return Err(MemoryLayoutError::Unaligned(range));
            }
            let region = Region::new(node, range).ok_or(MemoryLayoutError::TooLarge(range))?;
            for hole in reserved {
                let (first, last) = (hole.first().raw() >> PAGE_SHIFT, hole.last().raw() >> PAGE_SHIFT);
                region.state().free.carve(first, last);
            }
            regions.push(region);
        }
        Ok(Self { regions })
    }

    /// All memory, in address order.
    pub fn ranges(&self) -> impl Iterator<Item = MemoryRange> + '_ {
        self.regions.iter().map(|region| MemoryRange {
            node: region.node(),
            range: region.range(),
        })
    }

    /// The words of memory from `at`, a multiple of 8, on: as many of `bytes` as lie side by side in this process, which
    /// holds to the end of each 2 MiB counted from the start of a range of memory. `None` where there is no memory.
    ///
    /// For drivers that reach their buffers by reference, as they would through a mapping; the words stay where they are
    /// as long as the machine exists.
    #[must_use]
    pub fn words(&self, at: HostPhys, bytes: u64) -> Option<&[AtomicU64]> {
        let (region, offset) = self.region(at)?;
        region.words(offset, usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// The node of the memory at `at`; `None` where there is no memory.
    #[must_use]
    pub fn node_of(&self, at: HostPhys) -> Option<NodeId> {
        self.region(at).map(|(region, _)| region.node())
    }

    /// Bytes that are free, on `node` or altogether.
    #[must_use]
    pub fn free_bytes(&self, node: Option<NodeId>) -> u64 {
        self.regions
            .iter()
            .filter(|region| node.is_none_or(|node| region.node() == node))
            .map(|region| region.state().free.free_pages() * PAGE_SIZE)
            .sum()
    }

    /// Takes zeroed pages for a buffer.
    ///
    /// # Errors
    /// [`OutOfPages`]; nothing was taken then.
    pub fn allocate_pages(&self, request: PageRequest) -> Result<Pages, OutOfPages> {
        let pages = request.bytes.div_ceil(PAGE_SIZE).max(1);
        let longest = match request.placement {
            Placement::Contiguous => pages,
            Placement::Scattered { extent } => (extent / PAGE_SIZE).max(1),
        };
        let mut extents = Vec::new();
        let mut left = pages;
        while left > 0 {
            let count = left.min(longest);
            let Some(extent) = self.take_extent(request, count) else {
                self.release_pages(Pages { extents });
                return Err(OutOfPages(request));
            };
            extents.push(extent);
            left -= count;
        }
        if matches!(request.placement, Placement::Scattered { .. }) {
            // Odd ones first, then even ones: no two neighbours of the result are neighbours in memory. The
            // last extent may be shorter, which does not matter.
            let odd = extents.iter().skip(1).step_by(2);
            let even = extents.iter().step_by(2);
            extents = odd.chain(even).copied().collect();
        }
        Ok(Pages { extents })
    }

    fn take_extent(&self, request: PageRequest, count: u64) -> Option<AddrRange<HostPhys>> {
        let (first, last) = request.zone.pages();
        let first = first.max(request.floor.raw().div_ceil(PAGE_SIZE));
        let mut regions = self
            .regions
            .iter()
            .filter(|region| request.node.is_none_or(|node| region.node() == node));
        regions.find_map(|region| {
            let mut state = region.state();
            let reserve = region.range().page_count() / TABLE_RESERVE;
            if state.free.free_pages() < count.checked_add(reserve)? {
                return None;
            }
            let pfn = state
                .free
                .take_low(count, first, last, (request.align / PAGE_SIZE).max(1))?;
            region.zero_if_used_before(&mut state, pfn, count);
            AddrRange::from_base_len(HostPhys::new(pfn << PAGE_SHIFT), count << PAGE_SHIFT)
        })
    }

    /// Takes pages back. The caller states that no device can reach them any more.
    pub fn release_pages(&self, pages: Pages) {
        for extent in pages.extents {
            if let Some((region, _)) = self.region(extent.first()) {
                region
                    .state()
                    .free
                    .give(extent.first().raw() >> PAGE_SHIFT, extent.page_count());
            }
        }
    }

    /// How many of `len` bytes from `at` lie in memory without a gap.
    pub(crate) fn reach(&self, at: HostPhys, len: u64) -> u64 {
        self.region(at).map_or(0, |(region, _)| {
            let last = region.range().last().raw();
            len.min((last - at.raw()).saturating_add(1))
        })
    }

    fn region(&self, at: HostPhys) -> Option<(&Region, usize)> {
        self.regions
            .iter()
            .find_map(|region| region.offset(at).map(|offset| (region, offset)))
    }

    /// The word at the aligned address `at`, committed.
    fn word(&self, at: HostPhys) -> Result<&AtomicU64, BusError> {
        if !at.raw().is_multiple_of(8) {
            return Err(BusError { at });
        }
        let (region, offset) = self.region(at).ok_or(BusError { at })?;
        region.word(offset).ok_or(BusError { at })
    }
}

impl SystemMemory for MachineMemory {
    fn read_u64(&self, at: HostPhys) -> Result<u64, BusError> {
        if !at.raw().is_multiple_of(8) {
            return Err(BusError { at });
        }
        let (region, offset) = self.region(at).ok_or(BusError { at })?;
        Ok(region.peek_word(offset).map_or(0, |word| word.load(Ordering::Acquire)))
    }

    fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BusError> {
        self.word(at)?.store(value, Ordering::Release);
        Ok(())
    }

    fn write_u32(&self, at: HostPhys, value: u32) -> Result<(), BusError> {
        if !at.raw().is_multiple_of(4) {
            return Err(BusError { at });
        }
        let upper = at.raw() % 8 == 4;
        let word = self.word(HostPhys::new(at.raw() & !7)).map_err(|_| BusError { at })?;
        // Always succeeds: the closure never declines. The other half stays as it is, whoever writes it.
        let _ = word.fetch_update(Ordering::Release, Ordering::Relaxed, |old| {
            let (keep, shift) = if upper { (0xffff_ffff, 32) } else { (!0xffff_ffff, 0) };
            Some((old & keep) | (u64::from(value) << shift))
        });
        Ok(())
    }

    fn compare_exchange_u64(&self, at: HostPhys, current: u64, new: u64) -> Result<u64, BusError> {
        let word = self.word(at)?;
        Ok(
            match word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(before) | Err(before) => before,
            },
        )
    }

    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError> {
        let (mut at, mut rest) = (at, into);
        while !rest.is_empty() {
            let (region, offset) = self.region(at).ok_or(BusError { at })?;
            let done = region.read(offset, rest);
            at = advance(at, done)?;
            rest = rest.get_mut(done..).unwrap_or_default();
        }
        Ok(())
    }

    fn write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError> {
        let (mut at, mut rest) = (at, from);
        while !rest.is_empty() {
            let (region, offset) = self.region(at).ok_or(BusError { at })?;
            let done = region.write(offset, rest);
            at = advance(at, done)?;
            rest = rest.get(done..).unwrap_or_default();
        }
        Ok(())
    }
}

/// The address behind `done` bytes; an error if there was no progress, so that copying always ends.
fn advance(at: HostPhys, done: usize) -> Result<HostPhys, BusError> {
    match u64::try_from(done) {
        Ok(bytes) if bytes > 0 => at.checked_add(bytes).ok_or(BusError { at }),
        _ => Err(BusError { at }),
    }
}

impl TableMemory for MachineMemory {
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        if request.order > MAX_TABLE_ORDER {
            return Err(OutOfFrames(request));
        }
        let count = 1u64 << request.order;
        let last = ((request.last.raw() >> PAGE_SHIFT) + u64::from(request.last.page_offset() == PAGE_SIZE - 1))
            .checked_sub(1)
            .ok_or(OutOfFrames(request))?;
        // The wanted node first, then the others: far memory is slower, none is worse.
        let near = |region: &&Region| request.node.is_none_or(|node| region.node() == node);
        let order = self
            .regions
            .iter()
            .rev()
            .filter(near)
            .chain(self.regions.iter().rev().filter(|region| !near(region)));
        for region in order {
            let mut state = region.state();
            let Some(pfn) = state.free.take_high_aligned(count, last) else {
                continue;
            };
            region.zero_if_used_before(&mut state, pfn, count);
            if region.make_tables(pfn, count) {
                return Ok(TableFrame::from_allocator(
                    HostPhys::new(pfn << PAGE_SHIFT),
                    request.order,
                ));
            }
            state.free.give(pfn, count);
        }
        Err(OutOfFrames(request))
    }

    fn free(&self, frame: TableFrame) {
        let Some((region, _)) = self.region(frame.base()) else {
            return;
        };
        let mut state = region.state();
        let (pfn, count) = (
            frame.base().raw() >> PAGE_SHIFT,
            1u64 << frame.order().min(MAX_TABLE_ORDER),
        );
        // A frame that was not handed out here stays out of circulation.
        if region.unmake_tables(pfn, count) {
            state.free.give(pfn, count);
        }
    }

    fn table(&self, at: HostPhys) -> Option<&Table> {
        if at.page_offset() != 0 {
            return None;
        }
        self.region(at)?.0.table(at)
    }
}

#[cfg(test)]
mod tests;
