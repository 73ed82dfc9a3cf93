//! The unit that threads share.

mod held;

use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_types::SourceId;
use iommu_types::sync::{AtomicU64, AtomicUsize, Ordering};
use thiserror::Error;
use vm_memory::GuestMemoryBackend;
use vtd_model::{
    AccessWidth, Counters, DrainToken, Fault, InterruptRequest, Latched, Profile, RestoreError, Unit, UnitConfig,
};

use crate::bus::GuestBus;
use crate::interrupt::{InterruptDropped, RoutedInterrupt};
use crate::listener::Listener;
use crate::protocol::{Readers, Ticket};
use crate::section::Section;
use crate::store::{Announcement, Requester, Store, StoreHandle};

use held::Held;

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

/// What a drain is for.
#[derive(Clone, Copy, Debug, Default)]
struct Purpose {
    /// A wait descriptor.
    token: Option<DrainToken>,
    /// A command through registers, whose completion software cannot see yet.
    registers: bool,
}

impl Purpose {
    const fn is_none(&self) -> bool {
        self.token.is_none() && !self.registers
    }
}

/// What changes only under the lock.
#[derive(Debug)]
struct Core {
    unit: Unit<StoreHandle>,
    published: Latched,
    /// The drain under way.
    active: Option<Purpose>,
    /// What the next drain is for.
    next: Purpose,
    /// Threads that are telling the listener something: no drain begins before they are through.
    telling: usize,
    held: Held,
}

/// One remapping unit in front of the memory of a guest, for any number of threads.
///
/// vCPU threads access its registers ([`Self::read`], [`Self::write`]), device threads open sections
/// ([`Self::section`]). Once an invalidation is complete, by whatever way the guest learns of it (the status write of a
/// wait, its interrupt, a register), no section that used an older translation is open, and none can be opened. The
/// thread that asked for the invalidation does not wait for that: if sections are open, the one that closes last
/// completes it.
#[derive(Debug)]
pub struct VmmUnit<M, L = ()> {
    memory: M,
    listener: L,
    pub(crate) store: Arc<Store>,
    pub(crate) readers: Readers<AtomicU64>,
    core: Mutex<Core>,
    window_len: u32,
}

impl<M: GuestMemoryBackend, L: Listener> VmmUnit<M, L> {
    /// A unit after reset in front of `memory`. `listener` hears of interrupts that the unit sends; `()` drops them.
    ///
    /// `memory` is fixed for the life of the unit: memory that is plugged in later is not seen.
    ///
    /// # Errors
    /// [`VmmError`] says which setting of `config` does not go with threads.
    pub fn new(config: UnitConfig, memory: M, listener: L) -> Result<Self, VmmError> {
        let store = Self::store(config)?;
        let unit = Unit::with_cache(config, StoreHandle(Arc::clone(&store)));
        Ok(Self::with_parts(config, memory, listener, store, unit))
    }

    /// The unit that [`Self::save`] wrote, in front of the memory that was saved along with it. Waits that were open are
    /// completed before this returns, with all that follows from it: the status write, the listener, the rest of the
    /// queue.
    ///
    /// # Errors
    /// [`VmmError`]; the bytes may come from anywhere.
    pub fn restore(config: UnitConfig, bytes: &[u8], memory: M, listener: L) -> Result<Self, VmmError> {
        let store = Self::store(config)?;
        let unit = Unit::restore_with_cache(config, StoreHandle(Arc::clone(&store)), bytes)?;
        store.publish(*unit.latched());
        let restored = Self::with_parts(config, memory, listener, store, unit);
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

    fn with_parts(config: UnitConfig, memory: M, listener: L, store: Arc<Store>, unit: Unit<StoreHandle>) -> Self {
        Self {
            memory,
            listener,
            readers: Readers::new(READERS),
            window_len: unit.window_len(),
            core: Mutex::new(Core {
                published: *unit.latched(),
                unit,
                active: None,
                next: Purpose::default(),
                telling: 0,
                held: Held::new(&config),
            }),
            store,
        }
    }

    /// Length of the register window in bytes.
    pub const fn window_len(&self) -> u32 {
        self.window_len
    }

    /// The memory behind the unit, as the unit itself reaches it: without translation.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// What the unit did so far. Translations are not counted, to keep them apart from each other; faults, commands and
    /// interrupts are.
    pub fn counters(&self) -> Counters {
        self.lock().unit.counters()
    }

    /// Reads a register; see [`Unit::read`].
    pub fn read(&self, offset: u32, width: AccessWidth) -> u64 {
        let mut core = self.lock();
        let value = core.unit.read(offset, width);
        core.held.shown(offset, width, value)
    }

    /// Writes a register and does what the write asks for; see [`Unit::write`].
    ///
    /// On return everything is done except what has to wait for open sections. Reading back the status of a command
    /// tells: it completes when they are closed.
    pub fn write(&self, offset: u32, width: AccessWidth, value: u64) {
        let mut core = self.lock();
        let watched = core.held.concerns(offset, width);
        let before_it = watched.then(|| held::Status::of(&mut core.unit));
        let before = self.store.invalidations();
        core.unit.write(&self.bus(), offset, width, value);
        if let Some(status) = before_it {
            let latched = *core.unit.latched() != core.published;
            if latched || self.store.invalidations() != before {
                // Before it shows as done, what was translated under the old state has to be over
                // (VT-d §11.4.4.1 for TE and SRTP, §6.5.1 for CCMD and IOTLB, §11.4.8 for PMEN).
                core.held.hold(offset, width, status);
                core.next.registers = true;
            }
        }
        self.settle(core);
    }

    /// The device `source` uses none of the entries any more that the invalidation `tag` named
    /// ([`Listener::device_tlb_invalidated`]).
    pub fn complete_device_invalidation(&self, source: SourceId, tag: u8) {
        let mut core = self.lock();
        core.unit.complete_device_invalidation(&self.bus(), source, tag);
        self.settle(core);
    }

    /// The device `source` did not answer the invalidation `tag`: the queue stops with an invalidation time-out error
    /// (VT-d §6.5.2.10).
    pub fn time_out_device_invalidation(&self, source: SourceId, tag: u8) {
        let mut core = self.lock();
        core.unit.time_out_device_invalidation(source, tag);
        self.settle(core);
    }

    /// The unit as bytes, at any moment; see [`Unit::save`]. Sections may be open: what waits for them is saved as waiting.
    /// Commands through registers that are held back for them are saved as done, since no section goes along.
    pub fn save(&self) -> Vec<u8> {
        self.lock().unit.save()
    }

    /// Lets queue entries progress that are left over from other processors. Nothing is ever left over unless several
    /// processors write to the queue's tail at the same time.
    pub fn poll(&self) {
        self.settle(self.lock());
    }

    /// Opens a section for `requester`: from here until it is dropped, its accesses are in flight as far as
    /// invalidations are concerned. Sections are for one request or one batch, not for the life of a device.
    #[inline]
    pub fn enter(&self, requester: impl Into<Requester>) -> Section<'_, M, L> {
        Section::new(self, requester.into())
    }

    /// Runs `work` in a section for `requester`.
    #[inline]
    pub fn section<R>(&self, requester: impl Into<Requester>, work: impl FnOnce(&Section<'_, M, L>) -> R) -> R {
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
        let outcome = self.store.remap(&self.bus(), request, thread_hint());
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

    pub(crate) const fn bus(&self) -> GuestBus<'_, M> {
        GuestBus(&self.memory)
    }

    pub(crate) fn log(&self, fault: &Fault) {
        let mut core = self.lock();
        core.unit.log(fault);
        self.settle(core);
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
        self.drained(&mut core);
        self.settle(core);
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // Nothing in here panics halfway; should it, the state is still one that registers can describe.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The drain under way is complete.
    fn drained(&self, core: &mut Core) {
        let Some(purpose) = core.active.take() else { return };
        if purpose.registers && !core.next.registers {
            core.held.release();
        }
        if let Some(token) = purpose.token {
            core.unit.drained(&self.bus(), token);
        }
    }

    /// Does everything that is to be done now: tells other threads of new state, the listener of news, begins drains and
    /// goes on with the queue behind them.
    fn settle<'a>(&'a self, mut core: MutexGuard<'a, Core>) {
        for _ in 0..TURNS_MAX {
            if *core.unit.latched() != core.published {
                core.published = *core.unit.latched();
                self.store.publish(core.published);
            }
            let token = core.unit.take_drain();
            core.next.token = token.or(core.next.token);
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
                    core.unit
                        .complete_device_invalidation(&self.bus(), what.source, what.tag);
                }
            } else if core.active.is_none() && !core.next.is_none() && core.telling == 0 {
                // Nobody is with the listener: routes that it keeps were renewed.
                core.active = Some(core::mem::take(&mut core.next));
                if self.readers.begin_drain() {
                    self.drained(&mut core);
                }
            } else if !core.unit.step(&self.bus()) {
                return;
            }
        }
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
