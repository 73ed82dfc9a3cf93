//! A remapping unit and the states of its bring-up.

use core::fmt;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_types::{AddrRange, HostPhys, PAGE_SIZE, Registers, SourceId};
use spin::Mutex;
use thiserror::Error;
use vtd_spec::register::{
    InvalidationQueueHead, InvalidationQueueTail, ProtectedMemoryEnable, RootTableAddress, TranslationTableMode, offset,
};

use crate::attach::{AttachError, DetachError, Reserved, Structures, Target};
use crate::capabilities::Capabilities;
use crate::command::{Command, Shadow};
use crate::domain::{Domain, DomainError, DomainOptions, Stage};
use crate::error::{HardwareError, TableError, UnitError};
use crate::fault::{Drained, EventMessage, FaultReport, clear_all, fault_status};
use crate::health::{Health, Poison};
use crate::ids::DomainIds;
use crate::interrupt::{InterruptBlock, InterruptError, InterruptOptions, InterruptSource, InterruptTarget};
use crate::invalidate::{Invalidation, Invalidator};
use crate::nested::NestedDomain;
use crate::options::{DeviceTlb, Requester, ReservedRegion, TableMode, UnitOptions};
use crate::queue::Queue;
use crate::shared::{Host, Shared};
use crate::space::{GuestTable, MAX_RESERVED_BYTES, Space};
use crate::structures::Tables;
use crate::wait::poll;

mod sealed {
    pub trait Sealed {}
}

/// A step of the bring-up.
pub trait State: sealed::Sealed {
    /// What the driver knows of the unit in this state.
    #[doc(hidden)]
    type Data<R, P>;
}

/// A state in which the driver owns the unit.
pub trait TakenOver: State + Sized {
    /// What all handles share.
    #[doc(hidden)]
    fn shared<R, P>(data: &Self::Data<R, P>) -> SharedHandle<'_, R, P>;
}

/// Keeps the driver's inner types out of its public names.
#[doc(hidden)]
pub struct SharedHandle<'a, R, P>(pub(crate) &'a Arc<Shared<R, P>>);

impl<R, P> fmt::Debug for SharedHandle<'_, R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedHandle")
    }
}

/// The data of a unit that was found and not touched yet.
#[doc(hidden)]
pub struct Discovered<R, P> {
    registers: R,
    host: P,
    capabilities: Capabilities,
    options: UnitOptions,
}

/// The data of a unit that was taken over.
#[doc(hidden)]
pub struct Owned<R, P>(Arc<Shared<R, P>>);

impl<R, P> fmt::Debug for Discovered<R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovered")
            .field("capabilities", &self.capabilities)
            .finish_non_exhaustive()
    }
}

impl<R, P> fmt::Debug for Owned<R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owned")
    }
}

macro_rules! states {
    ($($(#[$meta:meta])* $name:ident => $data:ident;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;
        impl sealed::Sealed for $name {}
        impl State for $name {
            type Data<R, P> = $data<R, P>;
        }
    )*};
}

states! {
    /// Found, not touched: it does what firmware or a previous kernel told it to.
    Found => Discovered;
    /// Taken over: its own queue and empty tables are installed and its caches are clean, so that every device
    /// is blocked from the moment translation is enabled, except those whose reserved regions were mapped.
    Blocked => Owned;
    /// Translation is on.
    Translating => Owned;
}

impl TakenOver for Blocked {
    fn shared<R, P>(data: &Owned<R, P>) -> SharedHandle<'_, R, P> {
        SharedHandle(&data.0)
    }
}

impl TakenOver for Translating {
    fn shared<R, P>(data: &Owned<R, P>) -> SharedHandle<'_, R, P> {
        SharedHandle(&data.0)
    }
}

/// A remapping unit.
///
/// `R` are its registers, `P` is the host; hosts hand out references, one for each unit. A unit that translates
/// is a handle: cloning it gives another to the same unit.
pub struct Unit<R, P, S: State> {
    data: S::Data<R, P>,
}

impl<R, P> Clone for Unit<R, P, Translating> {
    fn clone(&self) -> Self {
        Self {
            data: Owned(self.data.0.clone()),
        }
    }
}

impl<R, P, S: State> fmt::Debug for Unit<R, P, S>
where
    S::Data<R, P>: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unit").field("data", &self.data).finish()
    }
}

/// A step of the bring-up failed; the unit comes back in the state before it, as far as it could be left there.
#[derive(Debug, Error)]
#[error("{cause}")]
pub struct BringUpError<U: fmt::Debug> {
    /// Why.
    #[source]
    pub cause: UnitError,
    /// The unit. Trying again is allowed.
    pub unit: Box<U>,
}

/// A reserved region could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// The region is larger than firmware may reserve here.
    #[error("a reserved region of more than {limit:#x} bytes at {first} is not believed; check the firmware table")]
    TooLarge {
        /// Its first address.
        first: HostPhys,
        /// The limit in bytes.
        limit: u64,
    },
    /// No device is named.
    #[error("the reserved region at {first} names no device")]
    NoRequester {
        /// Its first address.
        first: HostPhys,
    },
    /// The domain for it.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// Mapping it, or sending the devices there.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

impl<R: Registers, P: Host> Unit<R, P, Found> {
    /// Looks at a unit: reads what it can do, changes nothing.
    ///
    /// # Errors
    /// [`UnitError::Absent`] if nothing answers, [`UnitError::WindowTooSmall`] if the capabilities place
    /// registers outside the window.
    pub fn found(registers: R, host: P, options: UnitOptions) -> Result<Self, UnitError> {
        let capabilities = Capabilities::read(&registers)?;
        Ok(Self {
            data: Discovered {
                registers,
                host,
                capabilities,
                options,
            },
        })
    }

    /// What the unit can do.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.data.capabilities
    }

    /// Takes the unit from whoever used it before: translation, interrupt remapping and the queue are turned
    /// off in this order, old faults are cleared, then the driver's own queue and an empty root table are
    /// installed and everything cached is invalidated (`VT-d §11.4.4`, `§6.2.2`).
    ///
    /// Until [`Unit::enable`] the unit lets requests through untranslated, as a unit does that is off. A
    /// platform that cannot bear that keeps bus mastering off until then.
    ///
    /// # Errors
    /// [`BringUpError`]; the unit may have been turned off already.
    pub fn take_over(self) -> Result<Unit<R, P, Blocked>, BringUpError<Self>> {
        match prepare(&self.data) {
            Ok(prepared) => {
                let Discovered {
                    registers,
                    host,
                    capabilities,
                    options,
                } = self.data;
                let Prepared {
                    shadow,
                    invalidator,
                    structures,
                } = prepared;
                let root = structures.tables.root();
                let shared = Shared {
                    registers,
                    host,
                    capabilities,
                    options,
                    command: Mutex::new(shadow),
                    invalidator,
                    root,
                    structures: Mutex::new(structures),
                    interrupts: Mutex::new(None),
                    faults: Mutex::default(),
                    poison: Poison::default(),
                };
                match install(&shared) {
                    Ok(()) => Ok(Unit {
                        data: Owned(Arc::new(shared)),
                    }),
                    Err(cause) => {
                        let Shared {
                            registers,
                            host,
                            capabilities,
                            options,
                            ..
                        } = shared;
                        let data = Discovered {
                            registers,
                            host,
                            capabilities,
                            options,
                        };
                        let unit = Box::new(Unit { data });
                        Err(BringUpError { cause, unit })
                    }
                }
            }
            Err(cause) => Err(BringUpError {
                cause,
                unit: Box::new(self),
            }),
        }
    }
}

/// What take-over makes before the unit is shared.
struct Prepared {
    shadow: Shadow,
    invalidator: Invalidator,
    structures: Structures,
}

/// Quiets the unit and allocates what it will use.
fn prepare<R: Registers, P: Host>(data: &Discovered<R, P>) -> Result<Prepared, UnitError> {
    let Discovered {
        registers,
        host,
        capabilities,
        options,
    } = data;
    if !capabilities.ecap.qi() && !capabilities.register_invalidation() {
        let major = capabilities.version.max().value();
        return Err(UnitError::NoInvalidation { major });
    }
    if options.mode == TableMode::Scalable && !capabilities.ecap.smts() {
        return Err(UnitError::NoScalableMode);
    }
    let limit = options.timeouts.command_ns;
    let mut shadow = Shadow::seed(registers)?;
    // The consumers of the queue's work go first, the queue last (rules 31 and 111).
    if shadow.translation() && !options.quirks.keep_translation_on {
        shadow.issue(registers, host, Command::Translation(false), limit)?;
    }
    if shadow.interrupt_remapping() {
        shadow.issue(registers, host, Command::InterruptRemapping(false), limit)?;
    }
    if shadow.queue() {
        drain_foreign_queue(registers, host, limit)?;
        shadow.issue(registers, host, Command::Queue(false), limit)?;
    }
    clear_all(registers, capabilities.cap)?;
    let page = options.page();
    let root = host.allocate(page).map_err(TableError::from)?;
    let invalidator = if capabilities.ecap.qi() {
        Invalidator::Queue(
            // 256-bit descriptors must be in place before the unit walks scalable tables (VT-d §6.5.2).
            Queue::new(host, page, options.mode == TableMode::Scalable)?,
        )
    } else {
        Invalidator::Registers
    };
    let ids = DomainIds::new(capabilities.cap.domain_count());
    Ok(Prepared {
        shadow,
        invalidator,
        structures: Structures::new(Tables::new(options.mode, root), ids),
    })
}

/// The queue of a previous owner may be turned off only when it stands still (`VT-d §6.5.2`): empty, or stopped
/// by an error.
fn drain_foreign_queue<R: Registers, P: Host>(registers: &R, host: &P, limit_ns: u64) -> Result<(), UnitError> {
    poll(host, limit_ns, || match fault_status(registers) {
        Err(gone) => Some(Err(gone)),
        Ok(status) => {
            let head = InvalidationQueueHead::new_with_raw_value(registers.read64(offset::IQH)).byte_offset();
            let tail = InvalidationQueueTail::new_with_raw_value(registers.read64(offset::IQT)).byte_offset();
            (status.iqe() || status.ite() || head == tail).then_some(Ok(()))
        }
    })
    .map_err(|waited_ns| UnitError::QueueNotQuiet { waited_ns })?
    .map_err(UnitError::from)
}

/// Switches the driver's own queue and tables in.
fn install<R: Registers, P: Host>(shared: &Shared<R, P>) -> Result<(), UnitError> {
    if let Invalidator::Queue(queue) = &shared.invalidator {
        shared
            .registers
            .write64(offset::IQT, InvalidationQueueTail::DEFAULT.raw_value());
        shared
            .registers
            .write64(offset::IQA, queue.address_register().raw_value());
        shared.command(Command::Queue(true))?;
    }
    // Translation structures exist only on units that translate.
    if !translates(shared) {
        return Ok(());
    }
    shared.write_back(shared.root, PAGE_SIZE);
    shared.flush_write_buffer()?;
    let root = RootTableAddress::DEFAULT
        .with_root_table(shared.root)
        .with_ttm(match shared.options.mode {
            TableMode::Legacy => TranslationTableMode::Legacy,
            TableMode::Scalable => TranslationTableMode::Scalable,
        });
    shared.registers.write64(offset::RTADDR, root.raw_value());
    shared.command(Command::SetRootTable)?;
    if !shared.capabilities.cap.esrtps() {
        shared.invalidate_globally()?;
    }
    Ok(())
}

impl<R: Registers, P: Host> Unit<R, P, Blocked> {
    /// Identity-maps memory that firmware lets devices use (RMRR), for the devices that it names, and sends
    /// them there. They keep the region through every later attach and detach, unless it is relaxable.
    ///
    /// # Errors
    /// [`ReserveError`]; enabling translation would then block the device.
    pub fn reserve(&mut self, region: &ReservedRegion) -> Result<(), ReserveError> {
        let shared = &self.data.0;
        let first = region.range.first();
        let fits = region
            .range
            .to_pages()
            .len()
            .is_some_and(|len| len <= MAX_RESERVED_BYTES);
        if !fits {
            let limit = MAX_RESERVED_BYTES;
            return Err(ReserveError::TooLarge { first, limit });
        }
        if region.requesters.is_empty() {
            return Err(ReserveError::NoRequester { first });
        }
        let mut structures = shared.structures.lock();
        let mut all: Vec<SourceId> = region.requesters.iter().flat_map(Requester::ids).collect();
        all.sort_unstable();
        all.dedup();
        for requester in &region.requesters {
            let ids = requester.ids();
            // Devices that share an ID share the domain of their regions.
            let home = match ids.iter().find_map(|id| structures.homes.get(id)) {
                Some(home) => home.clone(),
                None => {
                    let id = structures.ids.allocate().map_err(DomainError::from)?;
                    Arc::new(Space::new(shared, id, home_options(shared))?)
                }
            };
            home.map_identity(shared, region.range)
                .map_err(|cause| AttachError::Reserved {
                    requester: requester.rid,
                    range: region.range,
                    cause,
                })?;
            for id in &ids {
                structures.homes.entry(*id).or_insert_with(|| home.clone());
            }
            structures.park(shared, &ids, &home)?;
        }
        structures.reserved.push(Reserved {
            range: region.range,
            ids: all,
            relaxable: region.relaxable,
        });
        Ok(())
    }

    /// Turns translation on. From here on every request is translated or blocked.
    ///
    /// # Errors
    /// [`BringUpError`]; translation may be on or off then.
    pub fn enable(self) -> Result<Unit<R, P, Translating>, BringUpError<Self>> {
        let shared = &self.data.0;
        match enable(shared) {
            Ok(()) => Ok(Unit { data: self.data }),
            Err(cause) => Err(BringUpError {
                cause,
                unit: Box::new(self),
            }),
        }
    }
}

/// The domain of reserved regions: second-stage tables where the unit has them.
fn home_options<R: Registers, P: Host>(shared: &Shared<R, P>) -> DomainOptions {
    let first = shared.options.mode == TableMode::Scalable && !shared.capabilities.ecap.ssts();
    DomainOptions {
        stage: if first { Stage::First } else { Stage::Second },
        ..DomainOptions::default()
    }
}

/// Whether the unit can translate in the mode that it is driven in.
fn translates<R: Registers, P: Host>(shared: &Shared<R, P>) -> bool {
    let Capabilities { cap, ecap, .. } = shared.capabilities;
    let second_stage = cap.largest_agaw().is_some();
    match shared.options.mode {
        TableMode::Legacy => second_stage,
        TableMode::Scalable => ecap.fsts() || (ecap.ssts() && second_stage),
    }
}

fn enable<R: Registers, P: Host>(shared: &Shared<R, P>) -> Result<(), UnitError> {
    if !translates(shared) {
        let sagaw = shared.capabilities.cap.sagaw().value();
        return Err(UnitError::NoTranslation { sagaw });
    }
    let on = shared.command.lock().translation();
    if !on {
        shared.command(Command::Translation(true))?;
    }
    // The regions that firmware protected are protected by translation now (VT-d §5.1 of the software rules:
    // after TE, never before).
    let cap = shared.capabilities.cap;
    if cap.plmr() || cap.phmr() {
        let now = ProtectedMemoryEnable::new_with_raw_value(shared.registers.read32(offset::PMEN));
        if now.epm() || now.prs() {
            shared.command(Command::ProtectedMemory(false))?;
        }
    }
    Ok(())
}

impl<R: Registers, P: Host> Unit<R, P, Translating> {
    /// Turns translation and interrupt remapping off, then the queue: for handing the unit on. Devices reach
    /// all memory untranslated afterwards, so their bus mastering must be off.
    ///
    /// Attached devices stay recorded; the unit cannot be enabled again through this handle.
    ///
    /// # Errors
    /// [`HardwareError`] of the first command that was not acknowledged.
    pub fn shut_down(&self) -> Result<(), HardwareError> {
        let shared = &self.data.0;
        shared.set_fault_event(None);
        if !shared.options.quirks.keep_translation_on {
            shared.command(Command::Translation(false))?;
        }
        let interrupts = shared.command.lock().interrupt_remapping();
        if interrupts {
            shared.command(Command::InterruptRemapping(false))?;
            if !shared.capabilities.cap.esirtps() {
                shared.invalidate(&[Invalidation::InterruptsGlobal])?;
            }
        }
        let queue = shared.command.lock().queue();
        if queue {
            shared.command(Command::Queue(false))?;
        }
        Ok(())
    }
}

impl<R: Registers, P: Host> Unit<R, P, Translating> {
    /// As [`Unit::attach`], for a function that keeps translations in a device-TLB of its own. `enable` turns
    /// ATS on in the function; it is called when the entry is valid (rule D12). PASID, if used, is on before.
    ///
    /// Whether the function may do so is the caller's to know: it is trusted, and below a root port that the
    /// ATSR names, or listed by the SATC.
    ///
    /// # Errors
    /// [`AttachError`]; `enable` was not called then.
    pub fn attach_with_ats(
        &self,
        requester: &Requester,
        domain: &Domain<R, P>,
        function: DeviceTlb,
        enable: impl FnOnce(),
    ) -> Result<(), AttachError> {
        let shared = &self.data.0;
        if !Arc::ptr_eq(shared, &domain.shared) {
            return Err(AttachError::OtherUnit);
        }
        let target = Target::Space(domain.space.clone());
        shared
            .structures
            .lock()
            .attach(shared, requester, &target, Some(function))?;
        enable();
        Ok(())
    }

    /// As [`Unit::detach`], for a function that was attached with ATS. `disable` turns ATS off in the function;
    /// then the function is made to forget its translations, and only then its entry goes.
    ///
    /// # Errors
    /// [`DetachError`]; the device counts as attached then, and detaching can be tried again.
    pub fn detach_with_ats(&self, requester: &Requester, disable: impl FnOnce()) -> Result<(), DetachError> {
        let shared = &self.data.0;
        disable();
        let mut structures = shared.structures.lock();
        structures.empty_device_tlb(shared, requester.rid)?;
        structures.detach(shared, requester)
    }
}

impl<R: Registers, P: Host, S: TakenOver> Unit<R, P, S> {
    pub(crate) fn shared(&self) -> &Arc<Shared<R, P>> {
        S::shared(&self.data).0
    }

    /// What the unit can do.
    #[must_use]
    pub fn features(&self) -> &Capabilities {
        &self.shared().capabilities
    }

    /// Whether the unit has confirmed everything so far.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared().health()
    }

    /// Whether `other` is a handle to the same unit.
    #[must_use]
    pub fn is_same<T: TakenOver>(&self, other: &Unit<R, P, T>) -> bool {
        Arc::ptr_eq(self.shared(), other.shared())
    }

    /// An empty address space: devices in it reach nothing.
    ///
    /// # Errors
    /// [`DomainError`] if identifiers or memory are used up.
    pub fn create_domain(&self, options: DomainOptions) -> Result<Domain<R, P>, DomainError> {
        let shared = self.shared();
        let mut structures = shared.structures.lock();
        let id = structures.ids.allocate()?;
        match Space::new(shared, id, options) {
            Ok(space) => Ok(Domain {
                shared: shared.clone(),
                space: Arc::new(space),
            }),
            Err(error) => {
                // Nothing was ever cached under it.
                structures.ids.release(id);
                Err(error)
            }
        }
    }

    /// An address space of a guest's own first-stage tables, whose addresses go through `parent`. Scalable mode
    /// only.
    ///
    /// # Errors
    /// [`DomainError::NotNestable`], [`DomainError::OutOfIds`].
    pub fn create_nested(&self, parent: &Domain<R, P>, guest: GuestTable) -> Result<NestedDomain<R, P>, DomainError> {
        let shared = self.shared();
        if !Arc::ptr_eq(shared, &parent.shared) {
            return Err(DomainError::NotNestable);
        }
        let mut structures = shared.structures.lock();
        let id = structures.ids.allocate()?;
        match Space::nested(shared, id, &parent.space, guest) {
            Ok(space) => Ok(NestedDomain {
                shared: shared.clone(),
                space: Arc::new(space),
            }),
            Err(error) => {
                structures.ids.release(id);
                Err(error)
            }
        }
    }

    /// Sends all requests of a device to a guest's tables. Refused for devices with reserved regions that are
    /// not relaxable: the guest's tables need not map them.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach_nested(&self, requester: &Requester, domain: &NestedDomain<R, P>) -> Result<(), AttachError> {
        let shared = self.shared();
        if !Arc::ptr_eq(shared, &domain.shared) {
            return Err(AttachError::OtherUnit);
        }
        let target = Target::Space(domain.space.clone());
        shared.structures.lock().attach(shared, requester, &target, None)
    }

    /// Sends all requests of a device, under each of its IDs, to a domain. Its reserved regions are
    /// identity-mapped there first.
    ///
    /// A device that is attached to nothing is blocked.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(&self, requester: &Requester, domain: &Domain<R, P>) -> Result<(), AttachError> {
        let shared = self.shared();
        if !Arc::ptr_eq(shared, &domain.shared) {
            return Err(AttachError::OtherUnit);
        }
        let target = Target::Space(domain.space.clone());
        shared.structures.lock().attach(shared, requester, &target, None)
    }

    /// What stays identity-mapped wherever the device is attached: the reserved regions for any of its IDs that
    /// are not relaxable. These addresses cannot be mapped to anything else in its domain.
    #[must_use]
    pub fn reserved_regions(&self, requester: &Requester) -> Vec<AddrRange<HostPhys>> {
        let ids = requester.ids();
        let structures = self.shared().structures.lock();
        let here = |region: &&Reserved| !region.relaxable && region.ids.iter().any(|id| ids.contains(id));
        structures
            .reserved
            .iter()
            .filter(here)
            .map(|region| region.range.to_pages())
            .collect()
    }

    /// Lets a trusted device reach all memory untranslated. Refused unless
    /// [`UnitOptions::pass_through`](crate::UnitOptions) allows it.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach_pass_through(&self, requester: &Requester) -> Result<(), AttachError> {
        let shared = self.shared();
        let mut structures = shared.structures.lock();
        let target = structures.pass_through(shared)?;
        structures.attach(shared, requester, &target, None)
    }

    /// Takes a device out of where it is attached. It is blocked afterwards, but for its reserved regions.
    ///
    /// # Errors
    /// [`DetachError`].
    pub fn detach(&self, requester: &Requester) -> Result<(), DetachError> {
        let shared = self.shared();
        shared.structures.lock().detach(shared, requester)
    }

    /// Stops recording faults of a device, or resumes: against a device that floods the log. It stays blocked or
    /// translated as it is, through later attaches and detaches.
    ///
    /// # Errors
    /// [`AttachError::Table`], [`AttachError::Hardware`].
    pub fn silence(&self, requester: &Requester, silent: bool) -> Result<(), AttachError> {
        let shared = self.shared();
        shared.structures.lock().silence(shared, requester, silent)
    }

    /// Reads and clears what the unit recorded about blocked requests. At most two rounds through its
    /// registers a call; [`Drained::more`] tells whether to call again.
    ///
    /// # Errors
    /// [`HardwareError::Gone`] if the unit does not answer.
    pub fn drain_faults(&self, sink: impl FnMut(FaultReport)) -> Result<Drained, HardwareError> {
        let shared = self.shared();
        shared.drain_faults(shared.root, sink)
    }

    /// Where the unit sends its fault event; `None` masks it. The message does not go through interrupt
    /// remapping.
    pub fn set_fault_event(&self, message: Option<EventMessage>) {
        self.shared().set_fault_event(message);
    }

    /// Turns interrupt remapping on, with a table in which every entry is blocked, and compatibility-format
    /// interrupts off.
    ///
    /// The platform must have `INTR_REMAP` set in its DMAR table, and no device may send remappable messages
    /// before.
    ///
    /// # Errors
    /// [`InterruptError`].
    pub fn start_interrupt_remapping(&self, options: InterruptOptions) -> Result<(), InterruptError> {
        self.shared().start_interrupt_remapping(options)
    }

    /// Takes `count` consecutive interrupt entries that only `source` can use. They are blocked until
    /// [`Self::set_interrupt`].
    ///
    /// # Errors
    /// [`InterruptError::NotOn`], [`InterruptError::NoEntries`].
    pub fn allocate_interrupts(&self, count: u16, source: InterruptSource) -> Result<InterruptBlock, InterruptError> {
        self.shared().allocate_interrupts(count, source)
    }

    /// Makes interrupt `number` of a block go to `target`, or blocks it.
    ///
    /// # Errors
    /// [`InterruptError`]. If the change was not confirmed, the old target may still be interrupted.
    pub fn set_interrupt(
        &self,
        block: &InterruptBlock,
        number: u16,
        target: Option<InterruptTarget>,
    ) -> Result<(), InterruptError> {
        self.shared().set_interrupt(block, number, target)
    }

    /// Blocks the interrupts of a block and gives its entries back.
    ///
    /// # Errors
    /// [`InterruptError`] with the block.
    pub fn release_interrupts(&self, block: InterruptBlock) -> Result<(), (InterruptError, InterruptBlock)> {
        self.shared().release_interrupts(block)
    }
}
