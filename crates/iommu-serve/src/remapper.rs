//! The unit, shared by the connections of all functions.

use std::sync::{Mutex, MutexGuard, PoisonError};

use iommu_types::{HostPhys, SourceId, SystemMemory};
use vtd_model::{AccessWidth, Counters, EventMessage, Fault, Finding, Request, Translation, Unit, UnitConfig};

use crate::device_tlb::{DeviceTlbs, Way};
use crate::protocol::{DmaRange, Refusal};
use crate::ram::Ram;
use crate::report::{Journal, Report};
use crate::trace::{Operation, Recorder, TraceFile, Watched};

/// Steps that one access may set off: as many descriptors as the longest queue has, and a wait behind each. What is left
/// over goes on with the next access.
const STEPS_MAX: usize = 1 << 17;

/// What the unit sends by itself: interrupts.
pub(crate) trait Outlet: Send {
    /// Writes an interrupt message to the client.
    fn interrupt(&self, message: EventMessage);
}

struct Core {
    unit: Unit,
    /// Memory of the unit's own connection: what its table walks see.
    ram: Ram,
    outlet: Option<Box<dyn Outlet>>,
    /// What functions with ATS keep.
    device_tlbs: DeviceTlbs,
    journal: Journal,
}

/// One remapping unit in front of the memory that its client shares.
///
/// A translation and the copy that uses it happen under one lock, so no access can use what an invalidation has dropped.
/// A request of a disk takes longer by orders of magnitude than that lock is held.
pub struct Remapper {
    config: UnitConfig,
    core: Mutex<Core>,
}

impl std::fmt::Debug for Remapper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remapper")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Remapper {
    /// A unit after reset. What happens to it goes to `report`.
    pub fn new(config: UnitConfig, report: Box<dyn Report>) -> Self {
        Self {
            config,
            core: Mutex::new(Core {
                unit: Unit::new(config),
                ram: Ram::default(),
                outlet: None,
                device_tlbs: DeviceTlbs::default(),
                journal: Journal::new(report),
            }),
        }
    }

    /// What the unit was built to do.
    pub const fn config(&self) -> &UnitConfig {
        &self.config
    }

    /// What the unit has done since its last reset.
    pub fn counters(&self) -> Counters {
        self.lock().unit.counters()
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic elsewhere leaves the unit in a state that every other message could have left it in.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn connect(&self, outlet: Box<dyn Outlet>) {
        self.lock().outlet = Some(outlet);
    }

    /// The client is gone, and its memory with it.
    pub(crate) fn disconnect(&self) {
        let mut core = self.lock();
        core.outlet = None;
        core.ram.clear();
    }

    pub(crate) fn map(
        &self,
        range: DmaRange,
        rights: (bool, bool),
        file: Option<(std::os::fd::OwnedFd, u64)>,
    ) -> Result<(), Refusal> {
        self.lock().ram.map(range, rights.0, rights.1, file)
    }

    pub(crate) fn unmap(&self, range: DmaRange) -> Result<(), Refusal> {
        self.lock().ram.unmap(range)
    }

    /// Writes everything that happens from here on into `trace`; what was written so far comes back.
    pub fn set_trace(&self, trace: Option<TraceFile>) -> Option<TraceFile> {
        std::mem::replace(&mut self.lock().journal.trace, trace)
    }

    /// Reads a 64-bit word of the memory that the unit sees; `None` where there is none.
    pub fn peek(&self, at: HostPhys) -> Option<u64> {
        self.lock().ram.read_u64(at).ok()
    }

    /// Changes a 64-bit word of the memory that the unit sees, behind the guest's back: for tests that break something on
    /// purpose. False where there is none.
    pub fn poke(&self, at: HostPhys, value: u64) -> bool {
        self.lock().ram.write_u64(at, value).is_ok()
    }

    /// Reads a register.
    pub fn read(&self, offset: u32, width: AccessWidth) -> u64 {
        let mut core = self.lock();
        let value = core.unit.read(offset, width);
        let operation = Operation::Read { offset, width, value };
        core.journal.operation(operation, &Watched::default());
        core.journal.settle();
        value
    }

    /// Writes a register and does what the write asks for.
    pub fn write(&self, offset: u32, width: AccessWidth, value: u64) {
        let mut core = self.lock();
        let ((), watched) = core.drive(|unit, memory| unit.write(memory, offset, width, value));
        core.journal
            .operation(Operation::Write { offset, width, value }, &watched);
        core.pass_on(None, &watched);
        core.journal.settle();
    }

    /// Puts the unit into its state after reset. The client's memory stays mapped.
    pub fn reset(&self) {
        let mut core = self.lock();
        core.unit = Unit::new(self.config);
        core.device_tlbs.clear();
        core.journal.operation(Operation::Reset, &Watched::default());
        core.journal.settle();
    }

    /// The function at `source` keeps no translation any more: its ATS is disabled, or it was reset.
    pub(crate) fn forget_device(&self, source: SourceId) {
        self.lock().device_tlbs.forget(source);
    }

    /// Translates as much of `request` as one answer holds for, and lets `work` use the place: its address and how many bytes.
    /// Nothing that concerns the translation is invalidated meanwhile. A function with `ats` keeps what it is told.
    pub(crate) fn access<R>(
        &self,
        request: &Request,
        ats: bool,
        work: impl FnOnce(HostPhys, u64) -> R,
    ) -> Result<R, Fault> {
        let mut core = self.lock();
        let (answer, left) = core.answer(request, ats);
        core.journal.settle();
        answer.map(|at| work(at, left))
    }
}

impl Core {
    /// Does `work` with the unit, lets it finish what it began, and notes what is done with memory if anybody wants to know.
    fn drive<R>(&mut self, work: impl FnOnce(&mut Unit, &Recorder<'_, Ram>) -> R) -> (R, Watched) {
        let wanted = self.journal.trace.is_some() || self.unit.config().sanitizer();
        let recorder = Recorder::new(&self.ram, wanted);
        let result = work(&mut self.unit, &recorder);
        for _ in 0..STEPS_MAX {
            while let Some(what) = self.unit.take_device_invalidation() {
                // No access is under way while the unit is locked, so the device-TLB is clean at once.
                self.device_tlbs.invalidate(&what);
                self.unit.complete_device_invalidation(&recorder, what.source, what.tag);
            }
            if !self.unit.step(&recorder) {
                break;
            }
        }
        (result, recorder.finish())
    }

    /// Where a request goes, and for how many bytes that holds.
    fn answer(&mut self, request: &Request, ats: bool) -> (Result<HostPhys, Fault>, u64) {
        if ats {
            if let Way::Ask(ask) = self.device_tlbs.way(*request)
                && let Ok(answer) = self.request(&ask)
            {
                self.device_tlbs.keep(request, &answer);
            }
            if let Way::Translated(translated, left) = self.device_tlbs.way(*request) {
                return (self.request(&translated).map(|answer| answer.phys), left);
            }
        }
        match self.request(request) {
            Ok(answer) => {
                // The page holds the address, so the difference is below the page's length.
                let left = (answer.page.last().raw() - request.address.raw()).saturating_add(1);
                (Ok(answer.phys), left.min(request.len))
            }
            Err(fault) => (Err(fault), 0),
        }
    }

    /// Sends one request through the unit, with all that comes of it.
    fn request(&mut self, request: &Request) -> Result<Translation, Fault> {
        let (answer, watched) = self.drive(|unit, memory| unit.dma(memory, request));
        self.journal.dma(request, &answer, &watched);
        let broken = self.pass_on(answer.as_ref().ok(), &watched);
        if let (Ok(translation), false, true) = (&answer, broken, self.unit.config().sanitizer()) {
            self.journal.remember(request, translation, &watched);
        }
        answer
    }

    /// Passes on what came out of the unit. `used` is the translation that a request just got. True if a rule was broken.
    fn pass_on(&mut self, used: Option<&Translation>, watched: &Watched) -> bool {
        let mut broken = false;
        while let Some(finding) = self.unit.take_finding() {
            broken = true;
            self.journal.broken(finding, used, watched);
        }
        while let Some(message) = self.unit.take_message() {
            self.journal.event(message);
            if let Some(outlet) = &self.outlet {
                outlet.interrupt(message);
            }
        }
        broken
    }
}

/// The findings of the sanitizer, for those who only want them printed.
pub(crate) fn describe(finding: &Finding) -> String {
    let mut text = finding.rule.name().to_owned();
    if let Some(request) = finding.request {
        text.push_str(&format!(": {request}"));
    }
    if let Some(used) = finding.used {
        text.push_str(&format!("; it went to {used}"));
    }
    if let Some(fresh) = finding.fresh {
        text.push_str(&format!(", the tables lead to {fresh}"));
    } else if finding.used.is_some() {
        text.push_str(", the tables lead nowhere");
    }
    text
}
