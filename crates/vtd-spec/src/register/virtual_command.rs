//! Virtual command interface of emulated units. Present with ECAP.VCS.

use arbitrary_int::{u7, u20, u48};
use bitbybit::bitfield;
use iommu_types::Pasid;

iommu_types::open_enum! {
    /// Command codes of the virtual command interface. VT-d §11.4.16.1 (VCMD_REG).
    pub struct VirtualCommandCode(u8) {
        /// Does nothing.
        NULL = 0,
        /// Allocate a PASID.
        ALLOCATE_PASID = 1,
        /// Free a PASID.
        FREE_PASID = 2,
    }
}

iommu_types::open_enum! {
    /// SC: outcome of a virtual command. VT-d §11.4.16.3 (VCRSP_REG).
    pub struct VirtualCommandStatus(u8) {
        /// Done.
        SUCCESS = 0,
        /// The command is not defined.
        UNDEFINED_COMMAND = 1,
        /// Allocation: no PASID is left. Freeing: the PASID is not valid.
        PASID_REFUSED = 16,
    }
}

/// Virtual Command Register. VT-d §11.4.16.1 (VCMD_REG). 64 bits, read-write; writes are dropped while VCRSP.IP is 1.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct VirtualCommand {
    /// Command code; see [`VirtualCommandCode`].
    #[bits(0..=7, rw)]
    command: u8,
    /// Operand; for [`VirtualCommandCode::FREE_PASID`] the PASID.
    #[bits(16..=63, rw)]
    operand: u48,
}

impl VirtualCommand {
    /// The PASID in the operand (register bits 35:16).
    #[must_use]
    pub const fn pasid(self) -> Pasid {
        crate::layout::pasid(u20::extract_u64(self.raw_value(), 16))
    }
}

/// Virtual Command Response Register. VT-d §11.4.16.3 (VCRSP_REG). 64 bits, read only.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct VirtualCommandResponse {
    /// IP: a command is in progress.
    #[bit(0, rw)]
    ip: bool,
    /// SC: status code; see [`Self::status`].
    #[bits(1..=7, rw)]
    sc: u7,
    /// Result; for [`VirtualCommandCode::ALLOCATE_PASID`] the PASID.
    #[bits(16..=63, rw)]
    result: u48,
}

impl VirtualCommandResponse {
    /// The outcome, valid while IP is 0.
    #[must_use]
    pub const fn status(self) -> VirtualCommandStatus {
        VirtualCommandStatus(self.sc().value())
    }

    /// The response with another outcome; bit 7 of the code is dropped.
    #[must_use]
    pub const fn with_status(self, status: VirtualCommandStatus) -> Self {
        self.with_sc(u7::extract_u8(status.0, 0))
    }

    /// The PASID in the result (register bits 35:16).
    #[must_use]
    pub const fn pasid(self) -> Pasid {
        crate::layout::pasid(u20::extract_u64(self.raw_value(), 16))
    }
}

/// Virtual Command Capability Register. VT-d §11.4.16.4 (VCCAP_REG). 64 bits, read only.
///
/// Linux takes bit 0 for PASID support, where an earlier layout had it; an emulated unit that offers PASID commands does well to
/// set bits 0 to 2.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct VirtualCommandCapability {
    /// NS: the null command is supported.
    #[bit(0, rw)]
    ns: bool,
    /// PAS: allocating PASIDs is supported.
    #[bit(1, rw)]
    pas: bool,
    /// FPS: freeing PASIDs is supported.
    #[bit(2, rw)]
    fps: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_match_the_figures() {
        let c = VirtualCommand::new_with_raw_value(0x0000_0001_2345_0002);
        assert_eq!(VirtualCommandCode(c.command()), VirtualCommandCode::FREE_PASID);
        assert_eq!(c.pasid().raw(), 0x12345);
        let r = VirtualCommandResponse::new_with_raw_value(0x0000_000F_FFFF_0020);
        assert!(!r.ip());
        assert_eq!(r.status(), VirtualCommandStatus::PASID_REFUSED);
        assert_eq!(r.pasid(), Pasid::MAX);
        let v = VirtualCommandCapability::new_with_raw_value(6);
        assert!(!v.ns() && v.pas() && v.fps());
    }
}
