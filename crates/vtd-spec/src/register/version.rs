//! Version register.

use arbitrary_int::u4;
use bitbybit::bitfield;

/// Version Register. VT-d §11.4.1 (VER_REG). 32 bits, read only.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct Version {
    /// MIN: minor version of the architecture.
    #[bits(0..=3, rw)]
    min: u4,
    /// MAX: major version of the architecture.
    #[bits(4..=7, rw)]
    max: u4,
}

impl Version {
    /// Whether IOTLB invalidations always drain reads and writes in flight (major version 2 and later).
    #[must_use]
    pub const fn always_drains(self) -> bool {
        self.max().value() >= 2
    }

    /// Whether CCMD_REG and IOTLB_REG ignore commands (major version 6 and later).
    #[must_use]
    pub const fn ignores_register_invalidation(self) -> bool {
        self.max().value() >= 6
    }

    /// Whether an execute request with PASID faults with RTA.5 (34h) (major version 8 and later).
    #[must_use]
    pub const fn faults_execute_requests(self) -> bool {
        self.max().value() >= 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_6_0_splits_into_major_and_minor() {
        let v = Version::new_with_raw_value(0x60);
        assert_eq!((v.max().value(), v.min().value()), (6, 0));
        assert!(v.ignores_register_invalidation() && v.always_drains() && !v.faults_execute_requests());
        let qemu = Version::new_with_raw_value(0x10);
        assert!(!qemu.ignores_register_invalidation() && !qemu.always_drains());
    }
}
