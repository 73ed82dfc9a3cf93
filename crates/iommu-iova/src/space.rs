//! Which addresses may be handed out.

use alloc::vec::Vec;

use iommu_types::{AddrRange, Iova, PAGE_SHIFT};

use crate::error::SpaceError;

/// First address of the window in which an upstream write is an interrupt message, never a memory write.
/// VT-d §3.15 (Handling Requests to Interrupt Address Range).
pub const MSI_WINDOW_FIRST: Iova = Iova::new(0xfee0_0000);
/// Last address of the interrupt window.
pub const MSI_WINDOW_LAST: Iova = Iova::new(0xfeef_ffff);

/// Last address that fits 32 bits.
pub const LOW_LAST: Iova = Iova::new(0xffff_ffff);

/// A run of 4 KiB pages, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// The aperture of an address space without the ranges that must not be handed out.
///
/// Page 0 (a null pointer of many devices) and the MSI window are always reserved.
#[derive(Clone, Debug)]
pub struct IovaSpace {
    aperture: Run,
    /// Sorted, disjoint, not adjacent.
    reserved: Vec<Run>,
}

impl IovaSpace {
    /// The whole pages of `aperture`, except page 0 and the MSI window.
    ///
    /// # Errors
    /// [`SpaceError::Empty`] if no page is left.
    pub fn new(aperture: AddrRange<Iova>) -> Result<Self, SpaceError> {
        let empty = SpaceError::Empty { aperture };
        let first = aperture.first().raw().div_ceil(1 << PAGE_SHIFT);
        let last = match aperture.last().checked_add(1) {
            None => u64::MAX >> PAGE_SHIFT,
            Some(end) => (end.raw() >> PAGE_SHIFT).checked_sub(1).ok_or(empty)?,
        };
        if first > last {
            return Err(empty);
        }
        let mut space = Self {
            aperture: Run { first, last },
            reserved: Vec::new(),
        };
        space.reserve_run(Run { first: 0, last: 0 });
        space.reserve_run(Run {
            first: MSI_WINDOW_FIRST.raw() >> PAGE_SHIFT,
            last: MSI_WINDOW_LAST.raw() >> PAGE_SHIFT,
        });
        if space.free_runs().next().is_none() {
            return Err(empty);
        }
        Ok(space)
    }

    /// Keeps every page that `range` touches out of use: bridge windows, firmware regions (RMRR), holes.
    #[must_use]
    pub fn reserve(mut self, range: AddrRange<Iova>) -> Self {
        self.reserve_run(Run {
            first: range.first().raw() >> PAGE_SHIFT,
            last: range.last().raw() >> PAGE_SHIFT,
        });
        self
    }

    /// The pages between the lowest and the highest address that the space may use, reserved ones included.
    #[must_use]
    pub fn aperture(&self) -> AddrRange<Iova> {
        to_range(self.aperture)
    }

    /// The reserved ranges, lowest first, merged; parts outside the aperture included.
    pub fn reserved(&self) -> impl Iterator<Item = AddrRange<Iova>> + '_ {
        self.reserved.iter().map(|&run| to_range(run))
    }

    /// Inserts a run and merges what it touches.
    fn reserve_run(&mut self, run: Run) {
        let mut merged = run;
        self.reserved.retain(|other| {
            let apart = other.last.saturating_add(1) < merged.first || merged.last.saturating_add(1) < other.first;
            if !apart {
                merged.first = merged.first.min(other.first);
                merged.last = merged.last.max(other.last);
            }
            apart
        });
        let at = self.reserved.partition_point(|other| other.first < merged.first);
        self.reserved.insert(at, merged);
    }

    /// The runs that may be handed out, lowest first.
    pub(crate) fn free_runs(&self) -> impl Iterator<Item = Run> + '_ {
        let starts = core::iter::once(0).chain(self.reserved.iter().map(|run| run.last + 1));
        let ends = self
            .reserved
            .iter()
            .map(|run| run.first)
            .chain(core::iter::once(1 << (64 - PAGE_SHIFT)));
        let aperture = self.aperture;
        starts.zip(ends).filter_map(move |(start, end)| {
            let first = start.max(aperture.first);
            let last = end.checked_sub(1)?.min(aperture.last);
            (first <= last).then_some(Run { first, last })
        })
    }

    /// Number of the last page of the aperture.
    pub(crate) const fn last_page(&self) -> u64 {
        self.aperture.last
    }

    /// Number of the first page of the aperture.
    pub(crate) const fn first_page(&self) -> u64 {
        self.aperture.first
    }
}

/// The bytes of a run of pages.
fn to_range(run: Run) -> AddrRange<Iova> {
    let first = Iova::new(run.first << PAGE_SHIFT);
    let last = Iova::new(run.last << PAGE_SHIFT | ((1 << PAGE_SHIFT) - 1));
    // A run is ordered by construction; the single page is only what the type wants for the impossible case.
    AddrRange::new(first, last).unwrap_or(AddrRange::page_around(first, iommu_types::PageSize::Size4K))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> AddrRange<Iova> {
        AddrRange::new(Iova::new(first), Iova::new(last)).expect("ordered")
    }

    fn free(space: &IovaSpace) -> Vec<(u64, u64)> {
        space.free_runs().map(|run| (run.first, run.last)).collect()
    }

    #[test]
    fn page_zero_and_the_msi_window_are_always_reserved() {
        let space = IovaSpace::new(range(0, u64::MAX)).expect("large");
        assert_eq!(free(&space), [(1, 0xfedff), (0xfef00, (1 << 52) - 1)]);
        let in_window = IovaSpace::new(range(0xfee0_0000, 0xfeef_ffff));
        assert!(in_window.is_err());
        assert!(IovaSpace::new(range(0, 0xfff)).is_err());
        assert!(IovaSpace::new(range(0x1001, 0x2ffe)).is_err(), "no whole page inside");
    }

    #[test]
    fn reserved_ranges_widen_to_pages_and_merge() {
        let space = IovaSpace::new(range(0, 0xf_ffff)).expect("large");
        let space = space
            .reserve(range(0x1_0fff, 0x1_1000))
            .reserve(range(0x1_2000, 0x1_2000));
        assert_eq!(free(&space), [(1, 0xf), (0x13, 0xff)]);
        let reserved: Vec<_> = space.reserved().collect();
        assert_eq!(
            reserved,
            [
                range(0, 0xfff),
                range(0x1_0000, 0x1_2fff),
                range(0xfee0_0000, 0xfeef_ffff)
            ]
        );
        let space = space.reserve(range(0xf_f000, u64::MAX));
        assert_eq!(free(&space), [(1, 0xf), (0x13, 0xfe)]);
    }
}
