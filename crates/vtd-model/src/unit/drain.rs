//! Drains: what software must not see as complete before the accesses in flight are over.
//!
//! An embedder that translates on several threads asks for them ([`crate::UnitConfigBuilder::two_phase_waits`]). Commands
//! take effect at once; whatever tells software that they are complete waits for the embedder: the wait descriptor
//! (VT-d §6.5.2.9), CCMD_REG.ICC and IOTLB_REG.IVT (§6.5.1), the fields of GSTS_REG (§11.4.4.1) and PMEN_REG.PRS (§11.4.8).

use iommu_types::SystemMemory;
use vtd_spec::encoding::{ContextGranularity, IotlbGranularity};
use vtd_spec::register::{GlobalStatus, ProtectedMemoryEnable, offset};

use super::Unit;
use crate::cache::TranslationCache;

/// Names one request to drain: every memory access that was translated before it was issued has to be complete when
/// it is reported back. Later tokens are greater, and cover what earlier ones ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DrainToken(pub u64);

/// A wait descriptor that waits for the embedder.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DrainState {
    /// The drain that has to be reported before the queue goes on.
    pub(super) awaited: Option<DrainToken>,
    /// Whether the embedder has been told.
    pub(super) announced: bool,
    /// The descriptor under the head needs no further drain.
    pub(super) done: bool,
}

/// How software sees that a command through registers is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completion {
    /// Fields of GSTS_REG: those set in the first take the values that they have in the second.
    Global(GlobalStatus, GlobalStatus),
    /// PMEN_REG.PRS.
    Protected(bool),
    /// CCMD_REG.ICC is cleared, CAIG is this.
    Context(ContextGranularity),
    /// IOTLB_REG.IVT is cleared, IAIG is this.
    Iotlb(IotlbGranularity),
}

/// Commands through registers that are carried out and do not show as complete yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldCommands {
    pub(super) token: DrainToken,
    pub(super) announced: bool,
    /// Which fields of GSTS_REG change, and their values.
    pub(super) global: (GlobalStatus, GlobalStatus),
    pub(super) protected: Option<bool>,
    pub(super) context: Option<ContextGranularity>,
    pub(super) iotlb: Option<IotlbGranularity>,
}

impl HeldCommands {
    /// Nothing is held, for the drain `token`.
    pub(super) const fn none(token: DrainToken) -> Self {
        Self {
            token,
            announced: false,
            global: (GlobalStatus::DEFAULT, GlobalStatus::DEFAULT),
            protected: None,
            context: None,
            iotlb: None,
        }
    }

    fn add(&mut self, completion: Completion) {
        match completion {
            Completion::Global(fields, values) => {
                let (held, before) = self.global;
                self.global = (
                    GlobalStatus::new_with_raw_value(held.raw_value() | fields.raw_value()),
                    merged(before, fields, values),
                );
            }
            Completion::Protected(on) => self.protected = Some(on),
            Completion::Context(actual) => self.context = Some(actual),
            Completion::Iotlb(actual) => self.iotlb = Some(actual),
        }
    }

    /// Whether a global command is among them.
    fn has_global(&self) -> bool {
        self.global.0 != GlobalStatus::DEFAULT
    }

    /// `status` as it will be.
    pub(super) fn status_after(&self, status: GlobalStatus) -> GlobalStatus {
        merged(status, self.global.0, self.global.1)
    }
}

/// `status`, with the fields that are set in `fields` from `values`.
const fn merged(status: GlobalStatus, fields: GlobalStatus, values: GlobalStatus) -> GlobalStatus {
    let fields = fields.raw_value();
    GlobalStatus::new_with_raw_value(status.raw_value() & !fields | values.raw_value() & fields)
}

impl<C: TranslationCache> Unit<C> {
    /// The next drain that the embedder has to carry out, each told once: for a wait descriptor, or for commands through
    /// registers ([`crate::UnitConfig::two_phase_waits`]). Two can be outstanding; reporting the greater one is enough.
    pub fn take_drain(&mut self) -> Option<DrainToken> {
        if let Some(held) = self.held_commands.as_mut().filter(|held| !held.announced) {
            held.announced = true;
            return Some(held.token);
        }
        if self.drain.announced {
            return None;
        }
        self.drain.announced = true;
        self.drain.awaited
    }

    /// The embedder reports that the accesses in flight at the time of `token` are complete: commands through registers
    /// show as complete, a wait descriptor completes and the queue goes on. Older drains are complete along with it; a
    /// token that was never issued is ignored.
    pub fn drained<M: SystemMemory>(&mut self, memory: &M, token: DrainToken) {
        if token.0 > self.next_token {
            return;
        }
        if self.held_commands.is_some_and(|held| held.token <= token) {
            self.release_held();
        }
        if self.drain.awaited.is_some_and(|awaited| awaited <= token) {
            self.drain = DrainState {
                done: true,
                ..DrainState::default()
            };
            self.drain_needed = false;
            self.run_queue(memory);
        }
    }

    /// Shows the commands that were held as complete.
    pub(super) fn release_held(&mut self) {
        let Some(held) = self.held_commands.take() else { return };
        let (fields, values) = held.global;
        let completions = [
            Some(Completion::Global(fields, values)),
            held.protected.map(Completion::Protected),
            held.context.map(Completion::Context),
            held.iotlb.map(Completion::Iotlb),
        ];
        for completion in completions.into_iter().flatten() {
            self.show(completion);
        }
    }

    /// The token of a drain that begins now.
    pub(super) const fn new_token(&mut self) -> DrainToken {
        self.next_token += 1;
        DrainToken(self.next_token)
    }

    /// A command through registers is carried out: shows it, at once or when the accesses in flight are over.
    pub(super) fn complete(&mut self, completion: Completion) {
        if !self.config.two_phase_waits() {
            self.show(completion);
            return;
        }
        // Commands of before wait for this drain too; they may, since software has not waited for them.
        let token = self.new_token();
        let held = self.held_commands.get_or_insert(HeldCommands::none(token));
        (held.token, held.announced) = (token, false);
        held.add(completion);
    }

    fn show(&mut self, completion: Completion) {
        match completion {
            Completion::Global(fields, values) => {
                let status = merged(self.status(), fields, values);
                self.set_status(status);
            }
            Completion::Protected(on) => {
                let enable = ProtectedMemoryEnable::new_with_raw_value(self.registers.get32(offset::PMEN));
                self.registers.set32(offset::PMEN, enable.with_prs(on).raw_value());
            }
            Completion::Context(actual) => {
                let done = self.context_register().with_icc(false).with_caig(actual);
                self.registers.set64(offset::CCMD, done.raw_value());
            }
            Completion::Iotlb(actual) => {
                let done = self.iotlb_register().with_ivt(false).with_iaig(actual);
                let at = self.config.extended_capability().iotlb_offset();
                self.registers.set64(at, done.raw_value());
            }
        }
    }

    /// Whether a global command waits for a drain.
    pub(super) fn holds_global(&self) -> bool {
        self.held_commands.is_some_and(|held| held.has_global())
    }

    /// Whether a context command waits for a drain.
    pub(super) fn holds_context(&self) -> bool {
        self.held_commands.is_some_and(|held| held.context.is_some())
    }

    /// Whether an IOTLB command waits for a drain.
    pub(super) fn holds_iotlb(&self) -> bool {
        self.held_commands.is_some_and(|held| held.iotlb.is_some())
    }
}
