//! What a device asks for and what a mapping grants.

use core::fmt;

/// What a request wants to do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read memory.
    Read,
    /// Write memory.
    Write,
    /// Read and write in one indivisible step (PCIe AtomicOp).
    Atomic,
}

impl Access {
    /// The rights a mapping must grant for this request.
    #[must_use]
    pub const fn needs(self) -> Perms {
        match self {
            Self::Read => Perms::READ,
            Self::Write => Perms::WRITE,
            Self::Atomic => Perms::READ_WRITE,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Atomic => "atomic",
        })
    }
}

/// Rights that a mapping grants to devices.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Perms {
    /// Devices may read.
    pub read: bool,
    /// Devices may write.
    pub write: bool,
}

impl Perms {
    /// No access.
    pub const NONE: Self = Self {
        read: false,
        write: false,
    };
    /// Reading only.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };
    /// Writing only.
    pub const WRITE: Self = Self {
        read: false,
        write: true,
    };
    /// Reading and writing.
    pub const READ_WRITE: Self = Self {
        read: true,
        write: true,
    };

    /// Whether everything in `other` is granted by `self`.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        (self.read || !other.read) && (self.write || !other.write)
    }

    /// Whether a request of kind `access` may pass.
    #[must_use]
    pub const fn allows(self, access: Access) -> bool {
        self.contains(access.needs())
    }

    /// What both grant: how permissions of table levels combine.
    #[must_use]
    pub const fn intersect(self, other: Self) -> Self {
        Self {
            read: self.read && other.read,
            write: self.write && other.write,
        }
    }

    /// Whether nothing is granted.
    #[must_use]
    pub const fn is_none(self) -> bool {
        !self.read && !self.write
    }
}

impl fmt::Debug for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Perms({self})")
    }
}

impl fmt::Display for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.read, self.write) {
            (true, true) => "rw",
            (true, false) => "r-",
            (false, true) => "-w",
            (false, false) => "--",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atomic_needs_both_rights() {
        assert!(Perms::READ_WRITE.allows(Access::Atomic));
        assert!(!Perms::READ.allows(Access::Atomic));
        assert!(!Perms::WRITE.allows(Access::Atomic));
        assert!(Perms::WRITE.allows(Access::Write));
        assert!(!Perms::WRITE.allows(Access::Read));
    }
}
