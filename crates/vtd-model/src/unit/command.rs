//! Global commands (VT-d §11.4.4, GCMD_REG and GSTS_REG).

use iommu_types::SystemMemory;
use vtd_spec::register::{
    GlobalCommand, GlobalStatus, InterruptRemapTableAddress, InvalidationQueueAddress, InvalidationQueueHead,
    RootTableAddress, TranslationTableMode, offset,
};

use super::Unit;
use super::drain::Completion;
use crate::cache::{
    ContextInvalidation, InterruptInvalidation, Invalidation, IotlbInvalidation, PasidInvalidation, TranslationCache,
};
use crate::sanitizer::{DueInvalidations, Rule};

/// The one thing that a GCMD write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Translation(bool),
    RootPointer,
    WriteBuffer,
    Queue(bool),
    Interrupts(bool),
    InterruptPointer,
    Compatibility(bool),
}

impl<C: TranslationCache> Unit<C> {
    /// Software wrote GCMD. A write that changes more than one field is undefined (VT-d §11.4.4.1); this unit ignores
    /// it, so that the driver's poll of GSTS fails where the mistake is.
    pub(super) fn global_command<M: SystemMemory>(&mut self, memory: &M, command: GlobalCommand) {
        if self.pending.is_some() || self.holds_global() && self.config.qemu().is_none() {
            self.misuse(Rule::CommandInProgress);
            return;
        }
        // D-44: QEMU carries all of them out.
        if self.config.qemu().is_some() {
            for change in self.changes(command).into_iter().flatten() {
                self.carry_out(memory, change);
            }
            return;
        }
        match self.change(command) {
            Ok(None) => {}
            Err(()) => self.misuse(Rule::OneField),
            Ok(Some(change)) => {
                self.begin(change);
                if self.is_asynchronous() {
                    self.pending = Some(command);
                } else {
                    self.carry_out(memory, change);
                }
            }
        }
    }

    /// The delayed half of a command.
    pub(super) fn complete_command<M: SystemMemory>(&mut self, memory: &M, command: GlobalCommand) {
        if let Ok(Some(change)) = self.change(command) {
            self.carry_out(memory, change);
        }
    }

    /// What `command` changes; `Err` if that is more than one thing. Fields of features that the unit does not have
    /// are reserved and ignored.
    fn change(&self, command: GlobalCommand) -> Result<Option<Change>, ()> {
        let mut wanted = self.changes(command).into_iter().flatten();
        match (wanted.next(), wanted.next()) {
            (first, None) => Ok(first),
            _ => Err(()),
        }
    }

    /// Everything that `command` changes.
    fn changes(&self, command: GlobalCommand) -> [Option<Change>; 7] {
        let (status, cap, ecap) = (
            self.status(),
            self.config.capability(),
            self.config.extended_capability(),
        );
        [
            (command.te() != status.tes(), Change::Translation(command.te())),
            (command.srtp(), Change::RootPointer),
            (command.wbf() && cap.rwbf(), Change::WriteBuffer),
            (
                ecap.qi() && command.qie() != status.qies(),
                Change::Queue(command.qie()),
            ),
            (
                ecap.ir() && command.ire() != status.ires(),
                Change::Interrupts(command.ire()),
            ),
            (ecap.ir() && command.sirtp(), Change::InterruptPointer),
            (
                // D-28: QEMU ignores CFI.
                ecap.ir() && command.cfi() != status.cfis() && self.config.qemu().is_none(),
                Change::Compatibility(command.cfi()),
            ),
        ]
        .map(|(asked, change)| asked.then_some(change))
    }

    /// What the status shows from the moment of the write: a one-shot command is in progress.
    fn begin(&mut self, change: Change) {
        let status = self.status();
        match change {
            Change::RootPointer => self.set_status(status.with_rtps(false)),
            Change::InterruptPointer => self.set_status(status.with_irtps(false)),
            Change::WriteBuffer => self.set_status(status.with_wbfs(true)),
            _ => {}
        }
    }

    fn carry_out<M: SystemMemory>(&mut self, memory: &M, change: Change) {
        let status = self.status();
        match change {
            Change::Translation(on) => self.set_translation(status, on),
            Change::RootPointer => self.set_root_pointer(status),
            // Nothing is buffered, so the flush is complete at once.
            Change::WriteBuffer => self.set_status(status.with_wbfs(false)),
            Change::Queue(true) => {
                // IQA takes effect here; later writes to it wait for the next enable (VT-d §6.5.2).
                self.queue = InvalidationQueueAddress::new_with_raw_value(self.registers.get64(offset::IQA));
                self.registers
                    .set64(offset::IQH, InvalidationQueueHead::DEFAULT.raw_value());
                self.set_status(status.with_qies(true));
                self.run_queue(memory);
            }
            Change::Queue(false) => {
                let (head, tail) = (self.registers.get64(offset::IQH), self.registers.get64(offset::IQT));
                if head != tail {
                    self.misuse(Rule::QueueNotEmpty);
                }
                // D-18.
                if self.config.qemu().is_some() && (head != tail || !self.last_was_wait) {
                    return;
                }
                // IQH restarts at 0; descriptors that were not processed are forgotten (VT-d §11.4.9.1).
                self.registers
                    .set64(offset::IQH, InvalidationQueueHead::DEFAULT.raw_value());
                self.drain = super::drain::DrainState::default();
                self.held_wait = super::device::HeldWait::None;
                self.set_status(status.with_qies(false));
            }
            Change::Interrupts(on) => self.set_interrupts(status, on),
            Change::InterruptPointer => {
                let table = InterruptRemapTableAddress::new_with_raw_value(self.registers.get64(offset::IRTA));
                if status.ires() && table.eime() != self.latched.interrupt_table.eime() {
                    self.misuse(Rule::EimeWhileEnabled);
                }
                self.latched.interrupt_table = table;
                self.sanitize(|sanitizer| sanitizer.interrupt_due = true);
                // VT-d §11.4.2 (CAP_REG.ESIRTPS).
                if self.config.capability().esirtps() {
                    self.invalidate(Invalidation::Interrupt(InterruptInvalidation::Global));
                }
                self.complete_global(true, |status, set| status.with_irtps(set));
            }
            Change::Compatibility(on) => {
                self.latched.compatibility_interrupts = on;
                self.complete_global(on, |status, set| status.with_cfis(set));
            }
        }
    }

    /// VT-d §11.4.4.1 (GCMD_REG.TE). Translation through a root table that was never set is refused: TES stays 0.
    fn set_translation(&mut self, status: GlobalStatus, on: bool) {
        // D-32: QEMU does not ask.
        if on && !status.rtps() && self.config.qemu().is_none() {
            self.misuse(Rule::TeWithoutRoot);
            return;
        }
        if on
            && self
                .sanitizer
                .as_ref()
                .is_some_and(|sanitizer| sanitizer.root != DueInvalidations::default())
        {
            self.misuse(Rule::RootNotInvalidated);
        }
        self.latched.translation_enabled = on;
        self.complete_global(on, |status, set| status.with_tes(set));
        if !on {
            // With scalable mode support, switching off drops the translation caches.
            if self.config.extended_capability().smts() {
                self.drop_dma_caches();
            }
            self.reset_fault_index();
        }
    }

    /// VT-d §11.4.4.1 (GCMD_REG.SRTP).
    fn set_root_pointer(&mut self, status: GlobalStatus) {
        let root = RootTableAddress::new_with_raw_value(self.registers.get64(offset::RTADDR));
        let enhanced = self.config.capability().esrtps();
        let mode_changes = root.ttm() != self.latched.root.ttm() || root.ssirwe() != self.latched.root.ssirwe();
        if status.tes() && mode_changes && !enhanced {
            self.misuse(Rule::ModeWhileEnabled);
        }
        self.latched.root = root;
        let scalable = root.ttm() == TranslationTableMode::Scalable;
        self.sanitize(|sanitizer| {
            sanitizer.root = DueInvalidations {
                context: true,
                pasid: scalable,
                iotlb: true,
            };
        });
        // VT-d §11.4.2 (CAP_REG.ESRTPS): the command itself invalidates.
        if enhanced {
            self.drop_dma_caches();
        }
        self.complete_global(true, |status, set| status.with_rtps(set));
    }

    /// VT-d §11.4.4.1 (GCMD_REG.IRE). Remapping through a table that was never set is refused: IRES stays 0.
    fn set_interrupts(&mut self, status: GlobalStatus, on: bool) {
        if on && !status.irtps() {
            self.misuse(Rule::IreWithoutTable);
            return;
        }
        if on && self.sanitizer.as_ref().is_some_and(|sanitizer| sanitizer.interrupt_due) {
            self.misuse(Rule::TableNotInvalidated);
        }
        self.latched.interrupts_enabled = on;
        self.complete_global(on, |status, set| status.with_ires(set));
        if !on {
            if self.config.capability().esirtps() {
                self.invalidate(Invalidation::Interrupt(InterruptInvalidation::Global));
            }
            self.reset_fault_index();
        }
    }

    /// A command is carried out whose field of GSTS is to become `value`, when accesses in flight are over
    /// (VT-d §11.4.4.1: hardware drains before it reflects the status).
    fn complete_global(&mut self, value: bool, field: impl Fn(GlobalStatus, bool) -> GlobalStatus) {
        let none = GlobalStatus::DEFAULT;
        self.complete(Completion::Global(field(none, true), field(none, value)));
    }

    fn drop_dma_caches(&mut self) {
        for what in [
            Invalidation::Context(ContextInvalidation::Global),
            Invalidation::Pasid(PasidInvalidation::Global),
            Invalidation::Iotlb(IotlbInvalidation::Global),
        ] {
            self.invalidate(what);
        }
    }
}
