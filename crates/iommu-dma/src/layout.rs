//! Scatter-gather: where each buffer lies in one block of addresses, and which segments the device is told.

use alloc::vec::Vec;

use iommu_types::{Iova, PAGE_SIZE};

use crate::device::{Device, DmaSegment};

/// Lays buffers out one behind the other, each widened to whole pages, and padded so that none that is shorter than
/// the device's boundary crosses it (driver rule: the block is aligned to its own size, so offsets tell).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    boundary: u64,
    len: u64,
}

impl Layout {
    pub(crate) const fn new(boundary: u64) -> Self {
        Self { boundary, len: 0 }
    }

    /// Places a buffer of `len` whole pages and tells its offset; `None` if the sum passes the 64-bit space.
    pub(crate) fn place(&mut self, len: u64) -> Option<u64> {
        let to_boundary = self.boundary.wrapping_sub(self.len).wrapping_add(1) & self.boundary;
        if to_boundary != 0 && to_boundary < len.saturating_sub(1) {
            self.len = self.len.checked_add(to_boundary)?;
        }
        let offset = self.len;
        self.len = self.len.checked_add(len)?;
        Some(offset)
    }

    /// Bytes laid out so far, pads included.
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }
}

/// Rounds up to whole pages; `None` past the end of the 64-bit space.
pub(crate) const fn round_up(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(PAGE_SIZE)
}

/// Collects the segments that the device is told: adjacent bytes are joined as far as its limits allow.
#[derive(Debug)]
pub(crate) struct Segments {
    max: u64,
    boundary: u64,
    done: Vec<DmaSegment>,
    current: Option<DmaSegment>,
}

impl Segments {
    pub(crate) const fn new(device: &Device) -> Self {
        Self {
            max: device.max_segment,
            boundary: device.boundary,
            done: Vec::new(),
            current: None,
        }
    }

    /// Appends `len` bytes at `address`, cut where the limits demand it.
    ///
    /// At most one turn for each boundary and each maximum length inside the bytes.
    pub(crate) fn push(&mut self, mut address: Iova, mut len: u64) {
        while len > 0 {
            // Bytes up to and including the last one before the next boundary, less one so that it cannot overflow.
            let room = self.boundary - (address.raw() & self.boundary);
            let part = (len - 1).min(room).min(self.max - 1) + 1;
            self.join(DmaSegment { address, len: part });
            len -= part;
            match address.checked_add(part) {
                Some(next) => address = next,
                None => break,
            }
        }
    }

    /// Joins a part that honours the limits to the current segment, or begins a new one.
    fn join(&mut self, part: DmaSegment) {
        if let Some(current) = &mut self.current {
            let adjacent = current.address.checked_add(current.len) == Some(part.address);
            let inside = part.address.raw() & self.boundary != 0 && part.len <= self.max.saturating_sub(current.len);
            if adjacent && inside {
                current.len += part.len;
                return;
            }
        }
        self.done.extend(self.current.replace(part));
    }

    pub(crate) fn finish(mut self) -> SegmentList {
        match self.current.take() {
            Some(only) if self.done.is_empty() => SegmentList::One(only),
            last => {
                self.done.extend(last);
                SegmentList::Many(self.done)
            }
        }
    }
}

/// The segments of a mapping; most have one.
#[derive(Debug)]
pub(crate) enum SegmentList {
    One(DmaSegment),
    Many(Vec<DmaSegment>),
}

impl SegmentList {
    pub(crate) const fn as_slice(&self) -> &[DmaSegment] {
        match self {
            Self::One(segment) => core::slice::from_ref(segment),
            Self::Many(segments) => segments.as_slice(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(boundary: u64, lens: &[u64]) -> (Vec<u64>, u64) {
        let mut layout = Layout::new(boundary);
        let offsets = lens.iter().map(|&len| layout.place(len).expect("fits")).collect();
        (offsets, layout.len())
    }

    #[test]
    fn padding_keeps_buffers_off_boundaries() {
        let mask = 0xffff;
        assert_eq!(
            offsets(mask, &[0x8000, 0x9000, 0x1000]),
            (Vec::from([0, 0x1_0000, 0x1_9000]), 0x1_a000)
        );
        assert_eq!(
            offsets(mask, &[0xf000, 0x1000, 0x2000]),
            (Vec::from([0, 0xf000, 0x1_0000]), 0x1_2000)
        );
        assert_eq!(
            offsets(0xffff_ffff, &[0x8000, 0x9000]),
            (Vec::from([0, 0x8000]), 0x1_1000)
        );
        assert_eq!(offsets(u64::MAX, &[0x8000, 0x9000]), (Vec::from([0, 0x8000]), 0x1_1000));
    }

    fn segments(device: &Device, parts: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut segments = Segments::new(device);
        for &(address, len) in parts {
            segments.push(Iova::new(address), len);
        }
        let list = segments.finish();
        list.as_slice().iter().map(|s| (s.address.raw(), s.len)).collect()
    }

    #[test]
    fn adjacent_bytes_join_and_gaps_do_not() {
        let any = Device::with_address_bits(64);
        assert_eq!(
            segments(&any, &[(0x1000, 0x1000), (0x2000, 0x1000)]),
            [(0x1000, 0x2000)]
        );
        assert_eq!(
            segments(&any, &[(0x1000, 0x800), (0x2000, 0x800)]),
            [(0x1000, 0x800), (0x2000, 0x800)]
        );
        assert_eq!(segments(&any, &[(0x1800, 0x800), (0x2000, 0x800)]), [(0x1800, 0x1000)]);
        assert_eq!(
            segments(&any, &[(u64::MAX - 0xfff, 0x1000)]),
            [(u64::MAX - 0xfff, 0x1000)]
        );
    }

    #[test]
    fn limits_cut_segments() {
        let bounded = Device::with_address_bits(64).boundary_mask(0xffff);
        assert_eq!(
            segments(&bounded, &[(0x2_0000, 0xf000), (0x2_f000, 0x1000), (0x3_0000, 0x2000)]),
            [(0x2_0000, 0x1_0000), (0x3_0000, 0x2000)]
        );
        let short = Device::with_address_bits(64).max_segment(0x1800);
        assert_eq!(
            segments(&short, &[(0x1000, 0x1000), (0x2000, 0x1000)]),
            [(0x1000, 0x1000), (0x2000, 0x1000)]
        );
        assert_eq!(
            segments(&short, &[(0x1000, 0x2000)]),
            [(0x1000, 0x1800), (0x2800, 0x800)]
        );
        assert_eq!(
            segments(&short, &[(0x1000, 0x2000), (0x3000, 0x1000)]),
            [(0x1000, 0x1800), (0x2800, 0x1800)]
        );
    }
}
