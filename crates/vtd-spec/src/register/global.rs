//! Global command and global status.

use bitbybit::bitfield;

/// Bits of GSTS that stand for a lasting state. The rest (RTPS, FLS, WBFS, IRTPS) belongs to one-shot commands and must be 0
/// in a GCMD write that does not mean them. VT-d §11.4.4.1 (GCMD_REG).
pub const GSTS_PERSISTENT: u32 = 0x96FF_FFFF;

/// Global Command Register. VT-d §11.4.4.1 (GCMD_REG). 32 bits, write only.
///
/// Each write carries the complete state of the lasting bits (TE, QIE, IRE, CFI) and changes one field:
/// start from [`GlobalStatus::lasting_command`].
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct GlobalCommand {
    /// CFI: compatibility-format interrupts pass (while IRES = 1 and EIME = 0).
    #[bit(23, rw)]
    cfi: bool,
    /// SIRTP: set interrupt remapping table pointer; one-shot.
    #[bit(24, rw)]
    sirtp: bool,
    /// IRE: interrupt remapping enable.
    #[bit(25, rw)]
    ire: bool,
    /// QIE: queued invalidation enable.
    #[bit(26, rw)]
    qie: bool,
    /// WBF: write buffer flush; one-shot.
    #[bit(27, rw)]
    wbf: bool,
    /// EAFL: enable advanced fault logging. Removed in revision 4.0.
    #[bit(28, rw)]
    eafl: bool,
    /// SFL: set fault log; one-shot. Removed in revision 4.0.
    #[bit(29, rw)]
    sfl: bool,
    /// SRTP: set root table pointer; one-shot.
    #[bit(30, rw)]
    srtp: bool,
    /// TE: translation enable.
    #[bit(31, rw)]
    te: bool,
}

impl GlobalCommand {
    /// The bits of one-shot commands.
    pub const ONE_SHOT: u32 = !GSTS_PERSISTENT;
}

/// Global Status Register. VT-d §11.4.4.2 (GSTS_REG). 32 bits, read only.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct GlobalStatus {
    /// CFIS: compatibility-format interrupts pass.
    #[bit(23, rw)]
    cfis: bool,
    /// IRTPS: the interrupt remapping table pointer is in use; 0 while SIRTP is in progress.
    #[bit(24, rw)]
    irtps: bool,
    /// IRES: interrupt remapping enabled.
    #[bit(25, rw)]
    ires: bool,
    /// QIES: queued invalidation enabled.
    #[bit(26, rw)]
    qies: bool,
    /// WBFS: write buffer flush in progress.
    #[bit(27, rw)]
    wbfs: bool,
    /// AFLS: advanced fault logging enabled. Removed in revision 4.0.
    #[bit(28, rw)]
    afls: bool,
    /// FLS: fault log set. Removed in revision 4.0.
    #[bit(29, rw)]
    fls: bool,
    /// RTPS: the root table pointer is in use; 0 while SRTP is in progress.
    #[bit(30, rw)]
    rtps: bool,
    /// TES: translation enabled.
    #[bit(31, rw)]
    tes: bool,
}

impl GlobalStatus {
    /// The command word that repeats the lasting state and asks for no one-shot operation: the base of every GCMD write.
    #[must_use]
    pub const fn lasting_command(self) -> GlobalCommand {
        GlobalCommand::new_with_raw_value(self.raw_value() & GSTS_PERSISTENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_bits_match_the_figure() {
        assert_eq!(GlobalCommand::DEFAULT.with_te(true).raw_value(), 0x8000_0000);
        assert_eq!(GlobalCommand::DEFAULT.with_srtp(true).raw_value(), 0x4000_0000);
        assert_eq!(GlobalCommand::DEFAULT.with_sfl(true).raw_value(), 0x2000_0000);
        assert_eq!(GlobalCommand::DEFAULT.with_eafl(true).raw_value(), 0x1000_0000);
        assert_eq!(GlobalCommand::DEFAULT.with_wbf(true).raw_value(), 0x0800_0000);
        assert_eq!(GlobalCommand::DEFAULT.with_qie(true).raw_value(), 0x0400_0000);
        assert_eq!(GlobalCommand::DEFAULT.with_ire(true).raw_value(), 0x0200_0000);
        assert_eq!(GlobalCommand::DEFAULT.with_sirtp(true).raw_value(), 0x0100_0000);
        assert_eq!(GlobalCommand::DEFAULT.with_cfi(true).raw_value(), 0x0080_0000);
    }

    #[test]
    fn status_bits_match_the_figure() {
        let s = |raw| GlobalStatus::new_with_raw_value(raw);
        assert!(s(0x8000_0000).tes() && s(0x4000_0000).rtps() && s(0x2000_0000).fls() && s(0x1000_0000).afls());
        assert!(s(0x0800_0000).wbfs() && s(0x0400_0000).qies() && s(0x0200_0000).ires() && s(0x0100_0000).irtps());
        assert!(s(0x0080_0000).cfis());
    }

    #[test]
    fn one_shot_bits_do_not_return_in_the_next_command() {
        // TES, RTPS, QIES, IRES, IRTPS set: only TE, QIE, IRE come back.
        let status = GlobalStatus::new_with_raw_value(0xC700_0000);
        assert_eq!(status.lasting_command().raw_value(), 0x8600_0000);
        assert_eq!(GlobalCommand::ONE_SHOT, 0x6900_0000);
    }
}
