//! One base address register.

/// What a base address register decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes two registers.
    Memory64,
}

/// A base address register as the device has it: kind and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bar {
    kind: BarKind,
    size: u64,
    prefetchable: bool,
    base: u64,
}

impl Bar {
    /// Smallest memory BAR in bytes: the low four bits of the register have other meanings.
    pub const MIN_MEMORY: u64 = 16;
    /// Smallest I/O BAR in bytes.
    pub const MIN_IO: u64 = 4;

    const fn new(kind: BarKind, size: u64) -> Self {
        Self {
            kind,
            size,
            prefetchable: false,
            base: 0,
        }
    }

    /// `size` bytes of memory below 4 GiB.
    #[must_use]
    pub const fn memory32(size: u64) -> Self {
        Self::new(BarKind::Memory32, size)
    }

    /// `size` bytes of memory anywhere.
    #[must_use]
    pub const fn memory64(size: u64) -> Self {
        Self::new(BarKind::Memory64, size)
    }

    /// `size` bytes of I/O ports.
    #[must_use]
    pub const fn io(size: u64) -> Self {
        Self::new(BarKind::Io, size)
    }

    /// Reading has no side effects: bridges may prefetch.
    #[must_use]
    pub const fn prefetchable(mut self) -> Self {
        self.prefetchable = true;
        self
    }

    /// The address firmware programmed; zero (unassigned) otherwise. A reset clears it.
    #[must_use]
    pub const fn at(mut self, base: u64) -> Self {
        self.base = base;
        self
    }

    /// Memory or I/O.
    #[must_use]
    pub const fn kind(self) -> BarKind {
        self.kind
    }

    /// Size in bytes, a power of two.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.size
    }

    /// Whether it is prefetchable memory.
    #[must_use]
    pub const fn is_prefetchable(self) -> bool {
        self.prefetchable
    }

    /// The address that [`Self::at`] gave.
    pub(super) const fn programmed(self) -> u64 {
        self.base
    }

    /// Whether size and programmed address are ones that the register can hold.
    pub(super) const fn is_possible(self) -> bool {
        let (min, max) = match self.kind {
            BarKind::Io => (Self::MIN_IO, 1 << 16),
            BarKind::Memory32 => (Self::MIN_MEMORY, 1 << 31),
            BarKind::Memory64 => (Self::MIN_MEMORY, 1 << 62),
        };
        let reachable = match self.kind {
            BarKind::Memory64 => true,
            BarKind::Io | BarKind::Memory32 => self.base <= u32::MAX as u64,
        };
        self.size.is_power_of_two()
            && self.size >= min
            && self.size <= max
            && self.base & (self.size - 1) == 0
            && reachable
    }
}
