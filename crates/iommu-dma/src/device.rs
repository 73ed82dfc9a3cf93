//! What the API must know of a device, and of the memory it is given.

use iommu_types::{HostPhys, Iova, Perms};

/// Which way data moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The device reads memory.
    ToDevice,
    /// The device writes memory.
    FromDevice,
    /// Both.
    Bidirectional,
}

impl Direction {
    /// The rights the device needs.
    #[must_use]
    pub const fn perms(self) -> Perms {
        match self {
            Self::ToDevice => Perms::READ,
            Self::FromDevice => Perms::WRITE,
            Self::Bidirectional => Perms::READ_WRITE,
        }
    }

    /// Whether the device may change the memory.
    #[must_use]
    pub const fn device_writes(self) -> bool {
        matches!(self, Self::FromDevice | Self::Bidirectional)
    }
}

/// Whether a device is believed to use only what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Trust {
    /// Built in, with firmware one trusts. Page-granular rights and deferred invalidation are good enough.
    #[default]
    Trusted,
    /// Behind an external port, or with firmware of unknown origin. It never sees a byte outside a buffer, and
    /// nothing it had is reused before the invalidation is confirmed.
    Untrusted,
}

/// What a device can address, and how it takes lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    pub(crate) mask: Iova,
    pub(crate) max_segment: u64,
    pub(crate) boundary: u64,
    pub(crate) min_align_mask: u64,
    pub(crate) trust: Trust,
    pub(crate) low_first: bool,
}

impl Device {
    /// A trusted device that drives addresses up to and including `mask`, without limits on segments.
    #[must_use]
    pub const fn new(mask: Iova) -> Self {
        Self {
            mask,
            max_segment: u64::MAX,
            boundary: u64::MAX,
            min_align_mask: 0,
            trust: Trust::Trusted,
            low_first: false,
        }
    }

    /// A device that drives this many address lines (1 to 64).
    #[must_use]
    pub const fn with_address_bits(bits: u32) -> Self {
        let mask = if bits == 0 {
            0
        } else if bits >= u64::BITS {
            u64::MAX
        } else {
            (1 << bits) - 1
        };
        Self::new(Iova::new(mask))
    }

    /// Segments of a list are at most `bytes` long; 0 counts as 1.
    #[must_use]
    pub const fn max_segment(mut self, bytes: u64) -> Self {
        self.max_segment = if bytes == 0 { 1 } else { bytes };
        self
    }

    /// No segment crosses a multiple of `mask + 1`, a power of two of at least a page; other masks are widened to one.
    #[must_use]
    pub const fn boundary_mask(mut self, mask: u64) -> Self {
        let page = iommu_types::PAGE_SIZE - 1;
        let wanted = if mask < page { page } else { mask };
        self.boundary = u64::MAX >> wanted.leading_zeros();
        self
    }

    /// Bits of a buffer's address that the device relies on; a copy keeps them.
    #[must_use]
    pub const fn min_align_mask(mut self, mask: u64) -> Self {
        self.min_align_mask = mask & (iommu_types::PAGE_SIZE - 1);
        self
    }

    /// How far the device is believed.
    #[must_use]
    pub const fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// Addresses below 4 GiB are tried first.
    #[must_use]
    pub const fn low_first(mut self) -> Self {
        self.low_first = true;
        self
    }

    /// The last address the device drives.
    #[must_use]
    pub const fn mask(&self) -> Iova {
        self.mask
    }

    /// Whether the device can put the addresses of `buffer` on the bus, untranslated.
    #[must_use]
    pub const fn reaches(&self, buffer: Buffer) -> bool {
        match buffer.phys.raw().checked_add(buffer.len.saturating_sub(1)) {
            Some(last) => last <= self.mask.raw(),
            None => false,
        }
    }
}

/// A piece of memory, contiguous for the memory controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The first byte.
    pub phys: HostPhys,
    /// Length in bytes.
    pub len: u64,
}

impl Buffer {
    /// `len` bytes at `phys`.
    #[must_use]
    pub const fn new(phys: HostPhys, len: u64) -> Self {
        Self { phys, len }
    }
}

/// A piece of memory, contiguous for the device: what goes into a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaSegment {
    /// The first address the device uses.
    pub address: Iova,
    /// Length in bytes.
    pub len: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_inclusive_and_powers_of_two() {
        assert_eq!(Device::with_address_bits(32).mask(), Iova::new(0xffff_ffff));
        assert_eq!(Device::with_address_bits(64).mask(), Iova::MAX);
        assert_eq!(Device::with_address_bits(32).boundary_mask(0x1_0000).boundary, 0x1_ffff);
        assert_eq!(Device::with_address_bits(32).boundary_mask(0).boundary, 0xfff);
        let device = Device::with_address_bits(32);
        assert!(device.reaches(Buffer::new(HostPhys::new(0xffff_f000), 0x1000)));
        assert!(!device.reaches(Buffer::new(HostPhys::new(0xffff_f000), 0x1001)));
        assert!(!device.reaches(Buffer::new(HostPhys::MAX, 2)));
    }
}
