//! The mutable half: registers, commands, the invalidation queue, the fault log.

mod command;
mod device;
mod drain;
mod event;
mod fault_log;
mod invalidate;
mod protected;
mod queue;
mod save;

use alloc::boxed::Box;

use iommu_types::SystemMemory;
use vtd_spec::register::{
    ContextCommand, EventControl, FaultStatus, GlobalCommand, GlobalStatus, InvalidationQueueAddress, IotlbInvalidate,
    offset,
};

use crate::cache::{Caches, TranslationCache};
use crate::config::{Profile, UnitConfig};
use crate::counters::Counters;
use crate::interrupt::{Interrupt, InterruptRequest, remap_interrupt};
use crate::latched::Latched;
use crate::registers::{AccessWidth, RegisterFile, split};
use crate::request::{Fault, Request, Translation};
use crate::sanitizer::{Finding, NoCache, Rule, Sanitizer, Use, judge_interrupt};
use crate::translate::{answer, inspect};

pub use device::{DeviceInvalidation, PasidScope};
pub use drain::DrainToken;
pub use event::{EventMessage, EventSource};
pub use queue::DESCRIPTORS_PER_WRITE;
pub use save::RestoreError;

/// What a read of an address where no register answers gives.
const NO_ANSWER: u64 = u64::MAX;

/// The last double word of the protected memory registers.
const PROTECTED_LAST: u32 = offset::PHMLIMIT + 4;

/// One remapping unit.
///
/// It has no locks, threads or clocks: it changes only inside its `&mut self` methods. The caches can be replaced by a
/// store of the embedder's ([`Unit::with_cache`]).
#[derive(Clone, Debug)]
pub struct Unit<C = Caches> {
    config: UnitConfig,
    registers: RegisterFile,
    latched: Latched,
    cache: C,
    counters: Counters,
    /// Index of the next fault recording register (VT-d §7.2.1).
    fault_index: u8,
    /// IQA as it was when queued invalidation was enabled.
    queue: InvalidationQueueAddress,
    /// Invalidations since the last drain: a wait must not complete before they are drained.
    drain_needed: bool,
    drain: drain::DrainState,
    held_commands: Option<drain::HeldCommands>,
    /// The descriptor that was fetched last was a wait.
    last_was_wait: bool,
    /// The number of the last drain token.
    next_token: u64,
    devices: device::Devices,
    /// What becomes of the wait descriptor at the head that device-TLB invalidations hold up.
    held_wait: device::HeldWait,
    /// A command that software has written and hardware has not carried out (asynchronous profiles).
    pending: Option<GlobalCommand>,
    messages: event::Messages,
    sanitizer: Option<Box<Sanitizer>>,
}

impl Unit<Caches> {
    /// A unit after reset, with caches of its own.
    #[must_use]
    pub fn new(config: UnitConfig) -> Self {
        let domains = usize::try_from(config.capability().domain_count()).unwrap_or(0);
        Self::with_cache(config, Caches::new(config.caches(), domains))
    }

    /// Bytes that the unit holds now, on the heap and in itself: never more than [`UnitConfig::memory_bound`].
    #[must_use]
    pub fn memory_held(&self) -> usize {
        size_of::<Self>()
            + self.cache.memory_held()
            + self.registers.memory_held()
            + self.sanitizer.as_ref().map_or(0, |sanitizer| sanitizer.memory_held())
    }
}

impl<C: TranslationCache> Unit<C> {
    /// A unit after reset that keeps translations in `cache`, which has to be empty.
    #[must_use]
    pub fn with_cache(config: UnitConfig, cache: C) -> Self {
        Self {
            registers: RegisterFile::new(&config),
            latched: Latched::RESET,
            config,
            cache,
            counters: Counters::default(),
            fault_index: 0,
            queue: InvalidationQueueAddress::DEFAULT,
            drain_needed: false,
            drain: drain::DrainState::default(),
            held_commands: None,
            last_was_wait: false,
            next_token: 0,
            devices: device::Devices::default(),
            held_wait: device::HeldWait::None,
            pending: None,
            messages: event::Messages::default(),
            sanitizer: config.sanitizer().then(Box::default),
        }
    }

    /// What the unit was built to do.
    #[must_use]
    pub const fn config(&self) -> &UnitConfig {
        &self.config
    }

    /// Length of the register window in bytes.
    #[must_use]
    pub const fn window_len(&self) -> u32 {
        self.config.window_len()
    }

    /// The state that translations depend on, for [`translate`](crate::translate()) on other threads.
    #[must_use]
    pub const fn latched(&self) -> &Latched {
        &self.latched
    }

    /// What the unit has done so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Reads a register (VT-d §11.1). An offset outside the window or not aligned to the width reads all ones, an
    /// offset inside it that is no register reads 0.
    pub fn read(&mut self, offset: u32, width: AccessWidth) -> u64 {
        if !self.answers(offset, width) {
            return match width {
                AccessWidth::Dword => u64::from(u32::MAX),
                AccessWidth::Qword => NO_ANSWER,
            };
        }
        // D-20.
        if self.config.qemu().is_some() && (offset::IQA..offset::IQA + 8).contains(&offset) {
            let (low, high) = split(self.queue_address_of_qemu());
            return match width {
                AccessWidth::Qword => u64::from(low) | u64::from(high) << 32,
                AccessWidth::Dword if offset == offset::IQA => u64::from(low),
                AccessWidth::Dword => u64::from(high),
            };
        }
        let low = u64::from(self.registers.read(offset));
        match width {
            AccessWidth::Dword => low,
            AccessWidth::Qword => low | u64::from(self.registers.read(offset + 4)) << 32,
        }
    }

    /// Writes a register (VT-d §11.1) and does what the write asks for; [`Profile::Spec`] has done it on return. An
    /// offset outside the window or not aligned to the width is ignored, and so is the upper half of a 32-bit
    /// write's `value`.
    ///
    /// A 64-bit write that covers two 32-bit registers acts as two 32-bit writes, lower one first.
    pub fn write<M: SystemMemory>(&mut self, memory: &M, offset: u32, width: AccessWidth, value: u64) {
        if !self.answers(offset, width) {
            return;
        }
        let (low, high) = split(value);
        self.registers.write(offset, low);
        if width == AccessWidth::Qword {
            self.registers.write(offset + 4, high);
        }
        self.act(memory, offset, low);
        if width == AccessWidth::Qword {
            self.act(memory, offset + 4, high);
        }
    }

    /// D-20: the base in use with the size that was written last.
    fn queue_address_of_qemu(&self) -> u64 {
        let written = InvalidationQueueAddress::new_with_raw_value(self.registers.get64(offset::IQA));
        self.queue.with_qs(written.qs()).raw_value()
    }

    const fn answers(&self, offset: u32, width: AccessWidth) -> bool {
        offset.is_multiple_of(width.bytes()) && offset < self.config.window_len()
    }

    /// What a write to the double word at `at` sets in motion; the register file already holds the result.
    fn act<M: SystemMemory>(&mut self, memory: &M, at: u32, written: u32) {
        let (cap, ecap) = (self.config.capability(), self.config.extended_capability());
        match at {
            offset::GCMD => self.global_command(memory, GlobalCommand::new_with_raw_value(written)),
            // CCMD and IOTLB start when the half with the start bit is written (VT-d §11.4.6).
            _ if at == offset::CCMD + 4 => self.context_command(),
            _ if at == ecap.iotlb_offset() + 4 => self.iotlb_command(),
            offset::FSTS => self.fault_status_written(memory),
            offset::PMEN => self.protected_memory_written(),
            offset::PLMBASE..=PROTECTED_LAST if self.latched.protected != [None; 2] => {
                self.misuse(Rule::ProtectedWhileEnabled);
            }
            offset::FECTL => self.event_mask_written(EventSource::Fault),
            offset::IQT if ecap.qi() => self.run_queue(memory),
            offset::ICS if ecap.qi() => self.event_status_written(EventSource::InvalidationCompletion),
            offset::IECTL if ecap.qi() => self.event_mask_written(EventSource::InvalidationCompletion),
            _ => {
                let first = cap.fault_record_offset(0);
                let end = first + u32::from(cap.fault_record_count()) * 16;
                if (first..end).contains(&at) {
                    self.fault_record_written();
                }
            }
        }
    }

    /// Lets work that is under way progress: a command of an asynchronous profile, or one descriptor of the
    /// invalidation queue. True if something was done.
    pub fn step<M: SystemMemory>(&mut self, memory: &M) -> bool {
        if let Some(command) = self.pending.take() {
            self.complete_command(memory, command);
            return true;
        }
        self.step_register_invalidation() || self.step_queue(memory)
    }

    /// Answers a request for memory, fills the caches, logs a fault.
    ///
    /// # Errors
    /// [`Fault`] says why the request must not proceed and what its sender sees.
    pub fn dma<M: SystemMemory>(&mut self, memory: &M, request: &Request) -> Result<Translation, Fault> {
        self.counters.requests += 1;
        let walks = &mut self.counters.walks;
        let hits = walks.translation_hits();
        let result = answer(&self.latched, &self.config, memory, &mut self.cache, request, walks);
        if self.sanitizer.is_some() && walks.translation_hits() != hits {
            let finding = self.judge(memory, request, &Use::of(&result));
            self.report(finding);
        }
        result.inspect_err(|fault| self.log(fault))
    }

    /// Answers an interrupt request, fills the interrupt entry cache, logs a fault.
    ///
    /// # Errors
    /// [`Fault`] says why the interrupt is dropped.
    pub fn interrupt<M: SystemMemory>(&mut self, memory: &M, request: &InterruptRequest) -> Result<Interrupt, Fault> {
        let outcome = remap_interrupt(&self.latched, &self.config, memory, &mut self.cache, request);
        self.counters.interrupts += 1;
        self.counters.walks.add(&outcome.report);
        if self.sanitizer.is_some() && outcome.report.interrupt.hits > 0 {
            let finding = self.judge_interrupt(memory, request, &outcome.result);
            self.report(finding);
        }
        outcome.result.inspect_err(|fault| self.log(fault))
    }

    /// What the sanitizer thinks of a use of translations that were kept, as the tables stand now: compares it with a fresh
    /// walk that sets no bits. `None` if nothing is wrong, or without a sanitizer. For embedders that keep translations
    /// themselves; nothing is reported yet ([`Self::report`]), since software may have changed the tables meanwhile.
    #[must_use]
    pub fn judge<M: SystemMemory>(&self, memory: &M, request: &Request, used: &Use) -> Option<Finding> {
        self.sanitizer.as_ref()?;
        let fresh = inspect(&self.latched, &self.config, memory, request);
        used.judge(request, &fresh.result)
    }

    /// As [`Self::judge`], of an interrupt that went by an entry that was kept.
    #[must_use]
    pub fn judge_interrupt<M: SystemMemory>(
        &self,
        memory: &M,
        request: &InterruptRequest,
        used: &Result<Interrupt, Fault>,
    ) -> Option<Finding> {
        self.sanitizer.as_ref()?;
        let fresh = remap_interrupt(&self.latched, &self.config, memory, &mut NoCache, request);
        judge_interrupt(request, used, &fresh.result)
    }

    /// Keeps a finding for [`Self::take_finding`].
    pub fn report(&mut self, finding: Option<Finding>) {
        if let (Some(sanitizer), Some(finding)) = (self.sanitizer.as_mut(), finding) {
            sanitizer.report(finding);
        }
    }

    /// The next broken rule that the sanitizer saw ([`crate::UnitConfigBuilder::sanitizer`]).
    pub fn take_finding(&mut self) -> Option<Finding> {
        self.sanitizer.as_mut().and_then(|sanitizer| sanitizer.take())
    }

    /// How many findings were lost because nobody took them.
    #[must_use]
    pub fn findings_lost(&self) -> u64 {
        self.sanitizer.as_ref().map_or(0, |sanitizer| sanitizer.lost())
    }

    /// Software did what the specification leaves undefined.
    fn misuse(&mut self, rule: Rule) {
        self.counters.misuses += 1;
        self.sanitize(|sanitizer| sanitizer.report(Finding::of(rule)));
    }

    fn sanitize(&mut self, act: impl FnOnce(&mut Sanitizer)) {
        if let Some(sanitizer) = self.sanitizer.as_mut() {
            act(sanitizer);
        }
    }

    /// Takes the next message that the unit itself sends: a write of `data` to `address`, which is not remapped
    /// (VT-d §5.1.6). To be asked after every call that may raise one; each event source keeps one message.
    pub fn take_message(&mut self) -> Option<EventMessage> {
        self.messages.take()
    }

    fn is_asynchronous(&self) -> bool {
        self.config.profile() == Profile::Silicon
    }

    fn status(&self) -> GlobalStatus {
        GlobalStatus::new_with_raw_value(self.registers.get32(offset::GSTS))
    }

    fn set_status(&mut self, status: GlobalStatus) {
        self.registers.set32(offset::GSTS, status.raw_value());
    }

    fn fault_status(&self) -> FaultStatus {
        FaultStatus::new_with_raw_value(self.registers.get32(offset::FSTS))
    }

    fn set_fault_status(&mut self, status: FaultStatus) {
        self.registers.set32(offset::FSTS, status.raw_value());
    }

    fn event_control(&self, source: EventSource) -> EventControl {
        EventControl::new_with_raw_value(self.registers.get32(source.control()))
    }

    fn context_register(&self) -> ContextCommand {
        ContextCommand::new_with_raw_value(self.registers.get64(offset::CCMD))
    }

    fn iotlb_register(&self) -> IotlbInvalidate {
        let at = self.config.extended_capability().iotlb_offset();
        IotlbInvalidate::new_with_raw_value(self.registers.get64(at))
    }
}
