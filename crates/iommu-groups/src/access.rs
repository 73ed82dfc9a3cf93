//! How this crate reads configuration space, and facts that may be unknown.

use iommu_types::Bdf;

/// Configuration space as far as the caller can read it.
///
/// Implementations read a live machine, a saved dump, or functions in software. They are only ever asked for
/// aligned dwords.
pub trait ConfigAccess {
    /// The dword at byte `offset` (a multiple of 4, below 4096) of `function`.
    ///
    /// All-ones means what it means on the bus: no function answered. `None` means that the answer is not known:
    /// the dump ends before it, or reading it needs rights the caller lacks. The two are never mixed up, since
    /// "unknown" must not become "absent".
    fn read32(&self, function: Bdf, offset: u16) -> Option<u32>;
}

impl<T: ConfigAccess + ?Sized> ConfigAccess for &T {
    fn read32(&self, function: Bdf, offset: u16) -> Option<u32> {
        (**self).read32(function, offset)
    }
}

/// A register of one function, of the width its offset in [`crate::pci`] says.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a, A> {
    pub(crate) access: &'a A,
    pub(crate) function: Bdf,
}

impl<A: ConfigAccess> Reader<'_, A> {
    pub(crate) fn read32(&self, offset: u16) -> Option<u32> {
        self.access.read32(self.function, offset & !3)
    }

    pub(crate) fn read16(&self, offset: u16) -> Option<u16> {
        let [a, b, c, d] = self.read32(offset)?.to_le_bytes();
        Some(u16::from_le_bytes(if offset & 2 == 0 { [a, b] } else { [c, d] }))
    }

    pub(crate) fn read8(&self, offset: u16) -> Option<u8> {
        let bytes = self.read32(offset)?.to_le_bytes();
        bytes.get(usize::from(offset & 3)).copied()
    }
}

/// Something a function has, has not, or may have: what could not be read is unknown, not absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Presence<T> {
    /// The function has it.
    Present(T),
    /// The function does not have it; everything that would show it was read.
    Absent,
    /// It could not be read.
    #[default]
    Unknown,
}

impl<T> Presence<T> {
    /// The value, if the function has it for certain.
    #[must_use]
    pub fn present(self) -> Option<T> {
        match self {
            Self::Present(value) => Some(value),
            Self::Absent | Self::Unknown => None,
        }
    }

    /// A reference to the value.
    #[must_use]
    pub const fn as_ref(&self) -> Presence<&T> {
        match self {
            Self::Present(value) => Presence::Present(value),
            Self::Absent => Presence::Absent,
            Self::Unknown => Presence::Unknown,
        }
    }

    /// Whether the function has it for certain.
    #[must_use]
    pub const fn is_present(&self) -> bool {
        matches!(self, Self::Present(_))
    }

    /// Whether it could not be read.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown)
    }

    /// The same answer about something computed from the value.
    #[must_use]
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Presence<U> {
        match self {
            Self::Present(value) => Presence::Present(f(value)),
            Self::Absent => Presence::Absent,
            Self::Unknown => Presence::Unknown,
        }
    }
}
