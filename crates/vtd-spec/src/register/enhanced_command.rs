//! Enhanced command interface. Present with CAP.ECMDS.

use arbitrary_int::{u7, u48};
use bitbybit::bitfield;

iommu_types::open_enum! {
    /// Command codes of the enhanced command interface. VT-d §11.4.14.5 (ECCAP_REG).
    pub struct EnhancedCommandCode(u8) {
        /// ECNTS: enable the counter that operand A names.
        ENABLE_COUNTER = 0xF0,
        /// DCNTS: disable the counter that operand A names.
        DISABLE_COUNTER = 0xF1,
        /// RCFGS: reset counter configuration, filters, freeze and overflow status, and disable all counters.
        RESET_CONFIGURATION = 0xF2,
        /// RCNTS: reset counter values.
        RESET_COUNTERS = 0xF3,
        /// FCNTS: freeze all counters.
        FREEZE_COUNTERS = 0xF4,
        /// UFCNTS: unfreeze all counters.
        UNFREEZE_COUNTERS = 0xF5,
    }
}

impl EnhancedCommandCode {
    /// Which of the four capability registers tells whether the command is supported, and the bit in it.
    #[must_use]
    pub const fn capability_bit(self) -> (u8, u8) {
        (self.0 >> 6, self.0 & 0x3F)
    }
}

iommu_types::open_enum! {
    /// SC: outcome of an enhanced command. VT-d §11.4.14.3 (ECRSP_REG).
    ///
    /// Codes from 16 on depend on the command.
    pub struct EnhancedCommandStatus(u8) {
        /// Done.
        SUCCESS = 0,
        /// The command is not defined.
        UNDEFINED_COMMAND = 1,
        /// A GCMD or PMEN operation was in progress.
        ABORTED = 2,
        /// For the enable command: a check of the configuration failed. For the disable command: no such counter.
        COUNTER_REFUSED = 16,
    }
}

/// Enhanced Command Register. VT-d §11.4.14.1 (ECMD_REG). 64 bits, write only.
///
/// A write of the lower half submits the command; the upper half is written first.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct EnhancedCommand {
    /// Command code; see [`EnhancedCommandCode`].
    #[bits(0..=7, rw)]
    command: u8,
    /// Operand A.
    #[bits(16..=63, rw)]
    operand: u48,
}

/// Enhanced Command Response Register. VT-d §11.4.14.3 (ECRSP_REG). 64 bits, read only.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct EnhancedCommandResponse {
    /// IP: a command is in progress.
    #[bit(0, rw)]
    ip: bool,
    /// SC: status code; see [`Self::status`].
    #[bits(1..=7, rw)]
    sc: u7,
    /// Result.
    #[bits(16..=63, rw)]
    result: u48,
}

impl EnhancedCommandResponse {
    /// The outcome, valid while IP is 0.
    #[must_use]
    pub const fn status(self) -> EnhancedCommandStatus {
        EnhancedCommandStatus(self.sc().value())
    }

    /// The response with another outcome; bit 7 of the code is dropped.
    #[must_use]
    pub const fn with_status(self, status: EnhancedCommandStatus) -> Self {
        self.with_sc(u7::extract_u8(status.0, 0))
    }
}

/// Enhanced Command Capability Register 3: the performance monitoring commands. VT-d §11.4.14.5 (ECCAP_REG). 64 bits, read
/// only. Registers 0 to 2 have no defined bits.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct EnhancedCommandCapability3 {
    /// ECNTS: enable counter.
    #[bit(48, rw)]
    ecnts: bool,
    /// DCNTS: disable counter.
    #[bit(49, rw)]
    dcnts: bool,
    /// RCFGS: reset configuration.
    #[bit(50, rw)]
    rcfgs: bool,
    /// RCNTS: reset counters.
    #[bit(51, rw)]
    rcnts: bool,
    /// FCNTS: freeze counters.
    #[bit(52, rw)]
    fcnts: bool,
    /// UFCNTS: unfreeze counters.
    #[bit(53, rw)]
    ufcnts: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_and_response_match_the_figures() {
        let c = EnhancedCommand::new_with_raw_value(0x0003_00F0);
        assert_eq!(
            (EnhancedCommandCode(c.command()), c.operand().value()),
            (EnhancedCommandCode::ENABLE_COUNTER, 3)
        );
        let r = EnhancedCommandResponse::new_with_raw_value(0x1234_0000_0000_0021);
        assert!(r.ip());
        assert_eq!(r.status(), EnhancedCommandStatus::COUNTER_REFUSED);
        assert_eq!(r.result().value(), 0x1234_0000_0000);
    }

    #[test]
    fn capability_bits_of_the_counter_commands_are_48_to_53_of_register_3() {
        let bits = (0xF0..=0xF5).map(|c| EnhancedCommandCode(c).capability_bit());
        assert!(bits.eq((48..=53).map(|b| (3, b))));
        let c = EnhancedCommandCapability3::new_with_raw_value(0x0015_0000_0000_0000);
        assert!(c.ecnts() && !c.dcnts() && c.rcfgs() && !c.rcnts() && c.fcnts() && !c.ufcnts());
    }
}
