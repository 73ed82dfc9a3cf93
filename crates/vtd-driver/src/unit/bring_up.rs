//! From found to translating, and off again.

use core::fmt;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_types::omission::{Step, kept};
use iommu_types::{HostPhys, PAGE_SIZE, Registers, SourceId};
use spin::Mutex;
use thiserror::Error;
use vtd_spec::register::{
    InvalidationQueueHead, InvalidationQueueTail, ProtectedMemoryEnable, RootTableAddress, TranslationTableMode, offset,
};

use super::{Blocked, Discovered, Found, Owned, Translating, Unit};
use crate::attach::{AttachError, Reserved, Structures};
use crate::capabilities::Capabilities;
use crate::command::{Command, Shadow};
use crate::domain::{DomainError, DomainOptions, Stage};
use crate::error::{HardwareError, TableError, UnitError};
use crate::fault::{clear_all, fault_status};
use crate::health::Poison;
use crate::ids::DomainIds;
use crate::invalidate::{Invalidation, Invalidator};
use crate::options::{Requester, ReservedRegion, TableMode, UnitOptions};
use crate::queue::Queue;
use crate::shared::{Host, Shared};
use crate::space::{MAX_RESERVED_BYTES, Space};
use crate::structures::Tables;
use crate::wait::poll;

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
    if shadow.translation() && options.quirks.keep_translation_on {
        let now = RootTableAddress::new_with_raw_value(registers.read64(offset::RTADDR));
        mode_fits(now, options.mode, capabilities)?;
    }
    // The consumers of the queue's work go first, the queue last (rules 31 and 111).
    let old = kept(Step::OldOwnerOff);
    if old && shadow.translation() && !options.quirks.keep_translation_on {
        shadow.issue(registers, host, Command::Translation(false), limit)?;
    }
    if old && shadow.interrupt_remapping() {
        shadow.issue(registers, host, Command::InterruptRemapping(false), limit)?;
    }
    if old && shadow.queue() {
        drain_foreign_queue(registers, host, limit)?;
        shadow.issue(registers, host, Command::Queue(false), limit)?;
    }
    clear_all(registers, capabilities.cap)?;
    let page = options.page();
    let root = host.allocate(page).map_err(TableError::from)?;
    let invalidator = if capabilities.ecap.qi() {
        Invalidator::Queue(
            // 256-bit descriptors must be in place before the unit walks scalable tables, and as long as it still has
            // those of a previous owner (VT-d §6.5.2); legacy mode takes them as well.
            match Queue::new(host, page, capabilities.ecap.smts()) {
                Ok(queue) => queue,
                Err(error) => {
                    // No hardware has seen it.
                    host.free(root);
                    return Err(error.into());
                }
            },
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

/// The mode of the tables may change while the unit translates only if it invalidates by itself when the root table is
/// set (`VT-d §11.4.5`).
fn mode_fits(now: RootTableAddress, wanted: TableMode, capabilities: &Capabilities) -> Result<(), UnitError> {
    let mode = match now.ttm() {
        TranslationTableMode::Legacy => TableMode::Legacy,
        TranslationTableMode::Scalable => TableMode::Scalable,
        // Nothing passes: that is as good as off.
        TranslationTableMode::AbortDma | TranslationTableMode::Reserved => wanted,
    };
    if mode == wanted || capabilities.cap.esrtps() {
        Ok(())
    } else {
        Err(UnitError::ModeLocked(mode))
    }
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
        // Shows that the queue works before anything depends on it; where the unit invalidates on its own when the
        // root table is set, the first flush would show it. QEMU also never turns a queue off that ran no wait.
        shared.try_queue()?;
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
    if !shared.capabilities.cap.esrtps() && kept(Step::RootForgotten) {
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
                    let space = Space::new(shared, id, home_options(shared));
                    // Nothing was ever cached under the identifier of a space that was not made.
                    Arc::new(space.inspect_err(|_| structures.ids.release(id))?)
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
            if kept(Step::ReservedBeforeTranslation) {
                structures.park(shared, &ids, &home)?;
            }
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
    // A command that was not acknowledged counts as given: that it was is not enough to say that the unit translates.
    shared.require_health()?;
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
        if kept(Step::EventMasked) {
            shared.set_fault_event(None);
        }
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
