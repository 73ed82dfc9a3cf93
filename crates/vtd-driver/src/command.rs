//! Global commands (`VT-d §11.4.4 (GCMD_REG, GSTS_REG)`).
//!
//! The command register is write-only and every write carries the whole lasting state, so the driver keeps a
//! shadow. It is seeded once from the status register with the one-shot bits dropped; status never flows back
//! into it, because a pointer-set status bit stays 1 for ever and would repeat its command with every later
//! write (rule D22).

use core::fmt;

use iommu_types::omission::{Step, kept};
use iommu_types::{Clock, Registers};
use vtd_spec::register::offset;
use vtd_spec::register::{GlobalCommand, GlobalStatus, ProtectedMemoryEnable};

use crate::error::HardwareError;
use crate::wait::poll;

/// A global command: one field of `GCMD_REG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// TE: DMA translation on or off.
    Translation(bool),
    /// SRTP: use the root table that `RTADDR_REG` names.
    SetRootTable,
    /// WBF: flush the unit's write buffers.
    FlushWriteBuffer,
    /// QIE: queued invalidation on or off.
    Queue(bool),
    /// IRE: interrupt remapping on or off.
    InterruptRemapping(bool),
    /// SIRTP: use the interrupt-remapping table that `IRTA_REG` names.
    SetInterruptTable,
    /// CFI: let compatibility-format interrupts pass, or block them.
    CompatibilityInterrupts(bool),
    /// EPM of `PMEN_REG`: protected memory regions on or off. Not a global command, but bound by the same rule
    /// of one command at a time.
    ProtectedMemory(bool),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = |on| if on { "on" } else { "off" };
        match *self {
            Self::Translation(value) => write!(f, "switching translation {} (GCMD.TE)", on(value)),
            Self::SetRootTable => f.write_str("setting the root table pointer (GCMD.SRTP)"),
            Self::FlushWriteBuffer => f.write_str("flushing the write buffers (GCMD.WBF)"),
            Self::Queue(value) => write!(f, "switching the invalidation queue {} (GCMD.QIE)", on(value)),
            Self::InterruptRemapping(value) => write!(f, "switching interrupt remapping {} (GCMD.IRE)", on(value)),
            Self::SetInterruptTable => f.write_str("setting the interrupt-remapping table pointer (GCMD.SIRTP)"),
            Self::CompatibilityInterrupts(value) => {
                write!(f, "switching compatibility-format interrupts {} (GCMD.CFI)", on(value))
            }
            Self::ProtectedMemory(value) => write!(f, "switching protected memory {} (PMEN.EPM)", on(value)),
        }
    }
}

/// The lasting bits of the command register, as last commanded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shadow(GlobalCommand);

impl Shadow {
    /// Reads the state that whoever ran the unit before has left.
    pub(crate) fn seed<R: Registers>(registers: &R) -> Result<Self, HardwareError> {
        Ok(Self(status(registers)?.lasting_command()))
    }

    pub(crate) const fn translation(self) -> bool {
        self.0.te()
    }

    pub(crate) const fn interrupt_remapping(self) -> bool {
        self.0.ire()
    }

    pub(crate) const fn queue(self) -> bool {
        self.0.qie()
    }

    pub(crate) const fn compatibility_interrupts(self) -> bool {
        self.0.cfi()
    }

    /// Issues one command and waits until the status register shows it. The caller holds the lock that keeps
    /// other commands of this unit away until then.
    pub(crate) fn issue<R: Registers, C: Clock>(
        &mut self,
        registers: &R,
        clock: &C,
        command: Command,
        limit_ns: u64,
    ) -> Result<(), HardwareError> {
        let lasting = self.0;
        let (next, write) = match command {
            Command::Translation(on) => (lasting.with_te(on), lasting.with_te(on)),
            Command::Queue(on) => (lasting.with_qie(on), lasting.with_qie(on)),
            Command::InterruptRemapping(on) => (lasting.with_ire(on), lasting.with_ire(on)),
            Command::CompatibilityInterrupts(on) => (lasting.with_cfi(on), lasting.with_cfi(on)),
            Command::SetRootTable => (lasting, lasting.with_srtp(true)),
            Command::SetInterruptTable => (lasting, lasting.with_sirtp(true)),
            Command::FlushWriteBuffer => (lasting, lasting.with_wbf(true)),
            Command::ProtectedMemory(on) => return protected_memory(registers, clock, on, limit_ns),
        };
        let write = if kept(Step::OneCommand) {
            write.raw_value()
        } else {
            // As if status could be written back.
            let kept = registers.read32(offset::GSTS) & !(lasting.raw_value() & !next.raw_value());
            kept | write.raw_value()
        };
        registers.write32(offset::GCMD, write);
        // What was commanded is the base of the next command, acknowledged or not.
        self.0 = next;
        let done = |status: GlobalStatus| match command {
            Command::Translation(on) => status.tes() == on,
            Command::Queue(on) => status.qies() == on,
            Command::InterruptRemapping(on) => status.ires() == on,
            Command::CompatibilityInterrupts(on) => status.cfis() == on,
            Command::SetRootTable => status.rtps(),
            Command::SetInterruptTable => status.irtps(),
            // The one status bit that is set *while* the command runs (rule D23).
            Command::FlushWriteBuffer => !status.wbfs() || !kept(Step::WriteBufferWait),
            Command::ProtectedMemory(_) => true,
        };
        poll(clock, limit_ns, || match status(registers) {
            Ok(status) => done(status).then_some(Ok(())),
            Err(gone) => Some(Err(gone)),
        })
        .unwrap_or_else(|waited_ns| Err(HardwareError::CommandTimeout { command, waited_ns }))
    }
}

/// The global status; all-ones means that nobody answers.
pub(crate) fn status<R: Registers>(registers: &R) -> Result<GlobalStatus, HardwareError> {
    match registers.read32(offset::GSTS) {
        u32::MAX => Err(HardwareError::Gone { offset: offset::GSTS }),
        raw => Ok(GlobalStatus::new_with_raw_value(raw)),
    }
}

/// `VT-d §11.4.8.1 (PMEN_REG)`.
fn protected_memory<R: Registers, C: Clock>(
    registers: &R,
    clock: &C,
    on: bool,
    limit_ns: u64,
) -> Result<(), HardwareError> {
    let command = Command::ProtectedMemory(on);
    let now = ProtectedMemoryEnable::new_with_raw_value(registers.read32(offset::PMEN));
    registers.write32(offset::PMEN, now.with_epm(on).raw_value());
    poll(clock, limit_ns, || match registers.read32(offset::PMEN) {
        u32::MAX => Some(Err(HardwareError::Gone { offset: offset::PMEN })),
        raw => (ProtectedMemoryEnable::new_with_raw_value(raw).prs() == on).then_some(Ok(())),
    })
    .unwrap_or_else(|waited_ns| Err(HardwareError::CommandTimeout { command, waited_ns }))
}

#[cfg(test)]
mod tests {
    use core::cell::{Cell, RefCell};

    use alloc::vec::Vec;

    use super::*;

    /// A unit of which only the two global registers work, and that counts time by being looked at.
    #[derive(Default)]
    struct Globals {
        status: Cell<u32>,
        written: RefCell<Vec<u32>>,
        /// Status bits that never change.
        stuck: u32,
        time: Cell<u64>,
    }

    impl Registers for Globals {
        fn read32(&self, at: u32) -> u32 {
            assert_eq!(at, offset::GSTS);
            self.status.get()
        }
        fn read64(&self, _: u32) -> u64 {
            0
        }
        fn write32(&self, at: u32, value: u32) {
            assert_eq!(at, offset::GCMD);
            self.written.borrow_mut().push(value);
            let one_shot = value & GlobalCommand::ONE_SHOT & !GlobalCommand::DEFAULT.with_wbf(true).raw_value();
            let kept = self.status.get() & GlobalCommand::ONE_SHOT;
            let next = value & !GlobalCommand::ONE_SHOT | kept | one_shot;
            self.status.set(next & !self.stuck | self.status.get() & self.stuck);
        }
        fn write64(&self, _: u32, _: u64) {}
        fn window_len(&self) -> u32 {
            0x1000
        }
    }

    impl Clock for Globals {
        fn now_ns(&self) -> u64 {
            self.time.get()
        }
        fn relax(&self) {
            self.time.set(self.time.get() + 1);
        }
    }

    fn issue(unit: &Globals, shadow: &mut Shadow, command: Command) -> Result<(), HardwareError> {
        shadow.issue(unit, unit, command, 5)
    }

    #[test]
    fn a_pointer_that_was_set_is_not_set_again_by_later_commands() {
        let unit = Globals::default();
        let mut shadow = Shadow::seed(&unit).expect("answers");
        for command in [Command::Queue(true), Command::SetRootTable, Command::Translation(true)] {
            issue(&unit, &mut shadow, command).expect("acknowledged");
        }
        assert_eq!(*unit.written.borrow(), [0x0400_0000, 0x4400_0000, 0x8400_0000]);
    }

    #[test]
    fn one_shot_status_left_by_firmware_is_dropped_from_the_shadow() {
        let unit = Globals::default();
        unit.status.set(0xc700_0000);
        let mut shadow = Shadow::seed(&unit).expect("answers");
        issue(&unit, &mut shadow, Command::Translation(false)).expect("acknowledged");
        assert_eq!(*unit.written.borrow(), [0x0600_0000]);
    }

    #[test]
    fn a_command_that_is_not_acknowledged_ends_with_its_name() {
        let unit = Globals {
            stuck: 0x8000_0000,
            ..Globals::default()
        };
        let mut shadow = Shadow::seed(&unit).expect("answers");
        assert_eq!(
            issue(&unit, &mut shadow, Command::Translation(true)),
            Err(HardwareError::CommandTimeout {
                command: Command::Translation(true),
                waited_ns: 5
            })
        );
    }

    #[test]
    fn a_write_buffer_flush_waits_for_its_status_to_clear() {
        let unit = Globals {
            stuck: 0x0800_0000,
            ..Globals::default()
        };
        let mut shadow = Shadow::seed(&unit).expect("answers");
        issue(&unit, &mut shadow, Command::FlushWriteBuffer).expect("status is clear");
        unit.status.set(0x0800_0000);
        assert!(issue(&unit, &mut shadow, Command::FlushWriteBuffer).is_err());
    }

    #[test]
    fn all_ones_is_a_unit_that_is_gone_and_not_one_with_everything_enabled() {
        let unit = Globals::default();
        unit.status.set(u32::MAX);
        assert!(matches!(Shadow::seed(&unit), Err(HardwareError::Gone { .. })));
    }
}
