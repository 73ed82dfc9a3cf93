//! A configuration space under construction.

use iommu_groups::pci::{self, capability, extended, header};

use super::super::{Bar, BarKind, Image};
use super::ConfigError;

/// The image under construction and where the next capability goes.
pub(super) struct Layout {
    pub(super) image: Image,
    /// Where the offset of the next capability is to be written.
    link: u16,
    next: u16,
    /// The header of the last extended capability.
    extended_link: Option<u16>,
    extended_next: u16,
}

impl Layout {
    pub(super) fn new(is_express: bool) -> Self {
        Self {
            image: Image::new(if is_express {
                pci::EXTENDED_LEN
            } else {
                pci::CONVENTIONAL_LEN
            }),
            link: header::CAPABILITIES,
            next: capability::FIRST,
            extended_link: None,
            extended_next: extended::FIRST,
        }
    }

    fn store(bytes: &mut [u8], at: u16, value: &[u8]) {
        let at = usize::from(at);
        if let Some(place) = bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }

    pub(super) fn set(&mut self, at: u16, value: &[u8]) {
        Self::store(&mut self.image.bytes, at, value);
    }
    pub(super) fn set8(&mut self, at: u16, value: u8) {
        self.set(at, &[value]);
    }
    pub(super) fn set16(&mut self, at: u16, value: u16) {
        self.set(at, &value.to_le_bytes());
    }
    pub(super) fn set32(&mut self, at: u16, value: u32) {
        self.set(at, &value.to_le_bytes());
    }
    pub(super) fn writable(&mut self, at: u16, mask: &[u8]) {
        Self::store(&mut self.image.writable, at, mask);
    }
    pub(super) fn cleared_by_one(&mut self, at: u16, mask: &[u8]) {
        Self::store(&mut self.image.cleared_by_one, at, mask);
    }

    /// A BAR answers sizing by itself: address bits below its size are read-only zeros.
    pub(super) fn base_register(&mut self, at: u16, bar: Bar) {
        let (flags, address) = match bar.kind() {
            BarKind::Io => (pci::bar::IO, pci::bar::IO_ADDRESS),
            BarKind::Memory32 => (0, pci::bar::MEMORY_ADDRESS),
            BarKind::Memory64 => (pci::bar::TYPE_64, pci::bar::MEMORY_ADDRESS),
        };
        let prefetchable = if bar.is_prefetchable() {
            pci::bar::PREFETCHABLE
        } else {
            0
        };
        self.set32(at, flags | prefetchable);
        let mask = (!(bar.size() - 1)).to_le_bytes();
        let low = match mask {
            [a, b, c, d, ..] => u32::from_le_bytes([a, b, c, d]) & address,
        };
        self.writable(at, &low.to_le_bytes());
        if bar.kind() == BarKind::Memory64 {
            self.writable(at + 4, mask.get(4..).unwrap_or_default());
        }
    }

    pub(super) fn place(&mut self, name: &'static str, id: u8, len: u16) -> Result<u16, ConfigError> {
        let at = self.next;
        if at + len > pci::CONVENTIONAL_LEN {
            return Err(ConfigError::NoRoom(name));
        }
        self.set8(at, id);
        self.set(self.link, &at.to_le_bytes()[..1]);
        self.set16(header::STATUS, header::STATUS_CAPABILITIES);
        self.link = at + capability::NEXT;
        self.next = (at + len).next_multiple_of(4);
        Ok(at)
    }

    pub(super) fn place_extended(&mut self, name: &'static str, id: u16, len: u16) -> Result<u16, ConfigError> {
        let at = self.extended_next;
        if self.image.bytes.len() < usize::from(pci::EXTENDED_LEN) {
            return Err(ConfigError::NeedsExpress(name));
        }
        if at + len > pci::EXTENDED_LEN {
            return Err(ConfigError::NoRoom(name));
        }
        self.set32(at, 1 << extended::VERSION_SHIFT | u32::from(id));
        if let Some(previous) = self.extended_link {
            // The next offset takes the upper 12 bits of the header, above the version.
            self.set16(previous + 2, at << (extended::NEXT_SHIFT - 16) | 1);
        }
        self.extended_link = Some(at);
        self.extended_next = (at + len).next_multiple_of(4);
        Ok(at)
    }
}
