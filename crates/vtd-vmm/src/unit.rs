//! The unit that threads share.

use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_types::SourceId;
use iommu_types::sync::{AtomicU64, AtomicUsize, Ordering};
use thiserror::Error;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend};
use vtd_model::{
    AccessWidth, Counters, DrainToken, Fault, Finding, InterruptOutcome, InterruptRequest, Latched, Outcome, Profile,
    Request, RestoreError, Unit, UnitConfig, Use,
};

use crate::bus::GuestBus;
use crate::interrupt::{InterruptDropped, RoutedInterrupt};
use crate::listener::Listener;
use crate::protocol::{Readers, Ticket};
use crate::requester::Requester;
use crate::section::{Place, Section};
use crate::store::{Announcement, Store, StoreHandle, Walked};
use crate::tally::{Tallies, Tally};

/// Sections that can be open at the same time before they share a counter.
const READERS: usize = 32;

/// Turns of one access: as many descriptors as the longest queue has, and a wait behind each. What another processor
/// adds meanwhile is that processor's to carry out.
const TURNS_MAX: usize = 1 << 16;

/// Why there is no unit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VmmError {
    /// Waits would complete while other threads still use old translations.
    #[error("the unit completes waits without asking: build its configuration with two_phase_waits(true)")]
    OnePhaseWaits,
    /// Nobody would step the unit.
    #[error("profile {0:?} works only when it is stepped: choose Profile::Spec")]
    Asynchronous(Profile),
    /// The saved unit cannot be restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// What changes only under the lock.
#[derive(Debug)]
struct Core {
    unit: Unit<StoreHandle>,
    published: Latched,
    /// What the drain under way is reported as.
    active: Option<DrainToken>,
    /// What the next drain is reported as, if one is asked for.
    next: Option<DrainToken>,
    /// Threads that are telling the listener something: no drain begins before they are through.
    telling: usize,
}

/// One remapping unit in front of the memory of a guest, for any number of threads.
///
/// vCPU threads access its registers ([`Self::read`], [`Self::write`]), device threads open sections
/// ([`Self::section`]). Once an invalidation is complete, by whatever way the guest learns of it (the status write of a
/// wait, its interrupt, a register), no section that used an older translation is open, and none can be opened. The
/// thread that asked for the invalidation does not wait for that: if sections are open, the one that closes last
/// completes it.
///
/// `S` says where the guest's memory is: `&M` or `Arc<M>` for memory that stays as it is, `GuestMemoryAtomic<M>` for
/// memory that is plugged in and out while the unit runs. Each section, each walk and each queue run takes one snapshot
/// of it; a section that is open when the memory is replaced goes on with the old one, which lives until it closes.
#[derive(Debug)]
pub struct VmmUnit<S, L = ()> {
    memory: S,
    listener: L,
    pub(crate) store: Arc<Store>,
    pub(crate) readers: Readers<AtomicU64>,
    tallies: Tallies,
    core: Mutex<Core>,
    window_len: u32,
}

impl<S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> VmmUnit<S, L> {
    /// A unit after reset in front of `memory`. `listener` hears of interrupts that the unit sends; `()` drops them.
    ///
    /// # Errors
    /// [`VmmError`] says which setting of `config` does not go with threads.
    pub fn new(config: UnitConfig, memory: S, listener: L) -> Result<Self, VmmError> {
        let store = Self::store(config)?;
        let unit = Unit::with_cache(config, StoreHandle(Arc::clone(&store)));
        Ok(Self::with_parts(memory, listener, store, unit))
    }

    /// The unit that [`Self::save`] wrote, in front of the memory that was saved along with it. Waits and commands through
    /// registers that were open are completed before this returns, with all that follows from it: the status write, the
    /// listener, the rest of the queue.
    ///
    /// # Errors
    /// [`VmmError`]; the bytes may come from anywhere.
    pub fn restore(config: UnitConfig, bytes: &[u8], memory: S, listener: L) -> Result<Self, VmmError> {
        let store = Self::store(config)?;
        let unit = Unit::restore_with_cache(config, StoreHandle(Arc::clone(&store)), bytes)?;
        store.publish(*unit.latched());
        let restored = Self::with_parts(memory, listener, store, unit);
        restored.poll();
        Ok(restored)
    }

    fn store(config: UnitConfig) -> Result<Arc<Store>, VmmError> {
        if config.profile() == Profile::Silicon {
            return Err(VmmError::Asynchronous(config.profile()));
        }
        if !config.two_phase_waits() {
            return Err(VmmError::OnePhaseWaits);
        }
        Ok(Arc::new(Store::new(config)))
    }

    fn with_parts(memory: S, listener: L, store: Arc<Store>, unit: Unit<StoreHandle>) -> Self {
        Self {
            memory,
            listener,
            readers: Readers::new(READERS),
            tallies: Tallies::new(READERS),
            window_len: unit.window_len(),
            core: Mutex::new(Core {
                published: *unit.latched(),
                unit,
                active: None,
                next: None,
                telling: 0,
            }),
            store,
        }
    }

    /// Length of the register window in bytes.
    pub const fn window_len(&self) -> u32 {
        self.window_len
    }

    /// Where the memory behind the unit is, as it was given.
    pub const fn memory(&self) -> &S {
        &self.memory
    }

    /// Most bytes that a unit of `config` holds, whatever its guest does: its registers, what it keeps of tables, and
    /// itself. Guest memory, the listener and open sections are the embedder's.
    #[must_use]
    pub fn memory_bound(config: &UnitConfig) -> usize {
        size_of::<Self>()
            .saturating_add(Store::memory_bound(config))
            .saturating_add(config.memory_bound_without_caches())
            .saturating_add(Readers::<AtomicU64>::memory_bound(READERS))
            .saturating_add(Tallies::memory_bound(READERS))
    }

    /// What the unit did so far. Translations that were found are not counted, to keep the threads that find them apart;
    /// walks are, and so are faults, commands and interrupts.
    pub fn counters(&self) -> Counters {
        let mut counters = self.lock().unit.counters();
        self.tallies.add_to(&mut counters);
        counters
    }

    /// The next broken rule that the sanitizer saw ([`vtd_model::UnitConfigBuilder::sanitizer`]).
    ///
    /// A unit with a sanitizer judges every access, those included that need no walk, one after the other. Without one,
    /// none of this costs anything.
    pub fn take_finding(&self) -> Option<Finding> {
        self.lock().unit.take_finding()
    }

    /// How many findings were lost because nobody took them.
    pub fn findings_lost(&self) -> u64 {
        self.lock().unit.findings_lost()
    }

    /// Reads a register; see [`Unit::read`].
    pub fn read(&self, offset: u32, width: AccessWidth) -> u64 {
        self.lock().unit.read(offset, width)
    }

    /// Writes a register and does what the write asks for; see [`Unit::write`].
    ///
    /// On return everything is done except what has to wait for open sections. Reading back the status of a command
    /// tells: it completes when they are closed.
    pub fn write(&self, offset: u32, width: AccessWidth, value: u64) {
        let mut core = self.lock();
        let memory = self.memory.memory();
        core.unit.write(&GuestBus(&*memory), offset, width, value);
        self.settle(core, &memory);
    }

    /// The device `source` uses none of the entries any more that the invalidation `tag` named
    /// ([`Listener::device_tlb_invalidated`]).
    pub fn complete_device_invalidation(&self, source: SourceId, tag: u8) {
        let mut core = self.lock();
        let memory = self.memory.memory();
        core.unit.complete_device_invalidation(&GuestBus(&*memory), source, tag);
        self.settle(core, &memory);
    }

    /// The device `source` did not answer the invalidation `tag`: the queue stops with an invalidation time-out error
    /// (VT-d §6.5.2.11).
    pub fn time_out_device_invalidation(&self, source: SourceId, tag: u8) {
        let mut core = self.lock();
        core.unit.time_out_device_invalidation(source, tag);
        self.settle(core, &self.memory.memory());
    }

    /// The unit as bytes, at any moment; see [`Unit::save`]. Sections may be open: what waits for them is saved as waiting.
    pub fn save(&self) -> Vec<u8> {
        self.lock().unit.save()
    }

    /// Lets queue entries progress that are left over from other processors. Nothing is ever left over unless several
    /// processors write to the queue's tail at the same time.
    pub fn poll(&self) {
        self.settle(self.lock(), &self.memory.memory());
    }

    /// Opens a section for `requester`: from here until it is dropped, its accesses are in flight as far as
    /// invalidations are concerned. Sections are for one request or one batch, not for the life of a device.
    #[inline]
    pub fn enter(&self, requester: impl Into<Requester>) -> Section<'_, S, L> {
        Section::new(self, requester.into())
    }

    /// Runs `work` in a section for `requester`.
    #[inline]
    pub fn section<R>(&self, requester: impl Into<Requester>, work: impl FnOnce(&Section<'_, S, L>) -> R) -> R {
        work(&self.enter(requester))
    }

    /// Answers an interrupt request and hands the interrupt to `deliver`, which has to have delivered it on return: until
    /// then an invalidation of interrupt entries does not complete.
    ///
    /// # Errors
    /// [`InterruptDropped`] says why the interrupt is dropped; a fault is in the fault log.
    pub fn interrupt<R>(
        &self,
        request: &InterruptRequest,
        deliver: impl FnOnce(RoutedInterrupt) -> R,
    ) -> Result<R, InterruptDropped> {
        let section = self.enter(request.source);
        let memory = section.memory();
        let outcome = if self.store.is_watched() {
            self.watched_interrupt(memory, request)
        } else {
            self.store.remap(&GuestBus(memory), request, thread_hint())
        };
        section.tally().interrupt(&outcome.report);
        let result = match outcome.result {
            Ok(interrupt) => RoutedInterrupt::try_from(interrupt).map(deliver),
            Err(fault) => Err(InterruptDropped::Fault(fault)),
        };
        drop(section);
        if let Err(InterruptDropped::Fault(fault)) = &result {
            self.log(fault);
        }
        result
    }

    pub(crate) fn log(&self, fault: &Fault) {
        let mut core = self.lock();
        core.unit.log(fault);
        self.settle(core, &self.memory.memory());
    }

    pub(crate) fn tally(&self, slot: Option<usize>) -> Tally<'_> {
        self.tallies.at(slot)
    }

    /// Lets commands know of pages of a new kind before the first of them is kept.
    #[cold]
    pub(crate) fn announce(&self, what: Announcement) {
        // Commands are carried out under this lock: those before did not know, and have moved the counters that the
        // next fill looks at; those after know.
        let _core = self.lock();
        self.store.announce(what);
    }

    #[inline]
    pub(crate) fn leave(&self, ticket: Ticket) {
        if self.readers.leave(ticket) {
            self.last_left();
        }
    }

    /// The last section that a drain waited for is closed.
    #[cold]
    fn last_left(&self) {
        let mut core = self.lock();
        let memory = self.memory.memory();
        drained(&mut core, &*memory);
        self.settle(core, &memory);
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // Nothing in here panics halfway; should it, the state is still one that registers can describe.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does everything that is to be done now: tells other threads of new state, the listener of news, begins drains and
    /// goes on with the queue behind them.
    fn settle<'a>(&'a self, mut core: MutexGuard<'a, Core>, memory: &S::M) {
        let bus = GuestBus(memory);
        for _ in 0..TURNS_MAX {
            if *core.unit.latched() != core.published {
                core.published = *core.unit.latched();
                self.store.publish(core.published);
            }
            // At most two: of a wait and of the registers. One drain serves both.
            while let Some(token) = core.unit.take_drain() {
                core.next = core.next.max(Some(token));
            }
            let news = self.store.take_entry_news();
            let message = core.unit.take_message();
            let device = core.unit.take_device_invalidation();
            if !news.is_empty() || message.is_some() || device.is_some() {
                core.telling += 1;
                drop(core);
                let dropped = device.filter(|what| self.listener.device_tlb_invalidated(*what));
                for what in news {
                    self.listener.interrupt_entries_changed(what);
                }
                if let Some(message) = message {
                    self.listener.event(message);
                }
                core = self.lock();
                core.telling -= 1;
                if let Some(what) = dropped {
                    core.unit.complete_device_invalidation(&bus, what.source, what.tag);
                }
            } else if core.active.is_none() && core.next.is_some() && core.telling == 0 {
                // Nobody is with the listener: routes that it keeps were renewed.
                core.active = core.next.take();
                if self.readers.begin_drain() {
                    drained(&mut core, memory);
                }
            } else if !core.unit.step(&bus) {
                return;
            }
        }
    }

    /// Answers a request under the eyes of the sanitizer: with the lock held, so that no command changes what is kept.
    pub(crate) fn watched(
        &self,
        memory: &S::M,
        requester: &Requester,
        request: &Request,
        tally: Tally<'_>,
    ) -> Result<Place, Fault> {
        let mut core = self.lock();
        let bus = GuestBus(memory);
        let once = || {
            if let Some(hit) = self.store.watched_hit(requester, request) {
                let place = Place {
                    phys: hit.phys,
                    len: hit.left.min(request.len),
                };
                return (Some(Use::Answered(hit.phys, request.access.needs())), Ok(place));
            }
            let Walked {
                outcome, unannounced, ..
            } = self.store.walk(&bus, request, thread_hint());
            tally.request(&outcome.report);
            if let Some(what) = unannounced {
                self.store.announce(what);
            }
            (use_of(&outcome), outcome.result.map(|found| Place::of(&found, request)))
        };
        watch(&mut core, &bus, request, once)
    }

    /// As [`Self::watched`], for requests of any kind.
    pub(crate) fn watched_answer(&self, memory: &S::M, request: &Request) -> Outcome {
        let mut core = self.lock();
        let bus = GuestBus(memory);
        watch(&mut core, &bus, request, || {
            let outcome = self.store.walk(&bus, request, thread_hint()).outcome;
            (use_of(&outcome), outcome)
        })
    }

    fn watched_interrupt(&self, memory: &S::M, request: &InterruptRequest) -> InterruptOutcome {
        let mut core = self.lock();
        let bus = GuestBus(memory);
        let once = || self.store.remap(&bus, request, thread_hint());
        let stale = |core: &Core, outcome: &InterruptOutcome| {
            let kept = outcome.report.interrupt.hits > 0;
            kept.then(|| core.unit.judge_interrupt(&bus, request, &outcome.result))
                .flatten()
        };
        let outcome = once();
        if stale(&core, &outcome).is_none() {
            return outcome;
        }
        let outcome = once();
        let finding = stale(&core, &outcome);
        core.unit.report(finding);
        outcome
    }
}

/// Whether entries that were kept helped with an answer, and what became of it.
fn use_of(outcome: &Outcome) -> Option<Use> {
    let report = &outcome.report;
    (report.context.hits + report.pasid.hits > 0).then(|| Use::of(&outcome.result))
}

/// Has a request answered and the answer judged. Software may change its tables between the two: what looks stale is done
/// again, and only what was stale before it was used is reported.
fn watch<R, M: GuestMemoryBackend>(
    core: &mut Core,
    bus: &GuestBus<'_, M>,
    request: &Request,
    once: impl Fn() -> (Option<Use>, R),
) -> R {
    let (used, answer) = once();
    if used.and_then(|used| core.unit.judge(bus, request, &used)).is_none() {
        return answer;
    }
    let (used, answer) = once();
    let finding = used.and_then(|used| core.unit.judge(bus, request, &used));
    core.unit.report(finding);
    answer
}

/// The drain under way is complete.
fn drained<M: GuestMemoryBackend>(core: &mut Core, memory: &M) {
    if let Some(token) = core.active.take() {
        core.unit.drained(&GuestBus(memory), token);
    }
}

/// A number that differs between threads as far as possible.
#[inline]
pub(crate) fn thread_hint() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static HINT: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    HINT.with(|hint| {
        if hint.get() == usize::MAX {
            hint.set(NEXT.fetch_add(1, Ordering::Relaxed) & (usize::MAX >> 1));
        }
        hint.get()
    })
}
