//! A remapping unit and the states of its bring-up.

mod bring_up;

use core::fmt;

use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_types::omission::{Step, kept};
use iommu_types::{AddrRange, HostPhys, Pasid, Registers, SourceId};

pub use self::bring_up::{BringUpError, ReserveError};
use crate::attach::{AttachError, DetachError, Reserved, Target};
use crate::capabilities::Capabilities;
use crate::domain::{Domain, DomainError, DomainOptions};
use crate::error::HardwareError;
use crate::fault::{Drained, EventMessage, FaultReport};
use crate::health::Health;
use crate::interrupt::{InterruptBlock, InterruptError, InterruptOptions, InterruptSource, InterruptTarget};
use crate::nested::NestedDomain;
use crate::options::{DeviceTlb, Requester, UnitOptions};
use crate::shared::{Host, Shared};
use crate::space::{GuestTable, Space};

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

impl<R: Registers, P: Host> Unit<R, P, Translating> {
    /// As [`Unit::attach`], for a function that keeps translations in a device-TLB of its own. `enable` turns
    /// ATS on in the function; it is called when the entry is valid (rule D12). If PASIDs of the function are to be
    /// attached, its PASID capability is on before, and [`DeviceTlb::pasid`] says so.
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
        let mut structures = shared.structures.lock();
        if kept(Step::AtsAfterEntry) {
            structures.attach(shared, requester, &target, Some(function))?;
            drop(structures);
            enable();
            return Ok(());
        }
        enable();
        structures.attach(shared, requester, &target, Some(function))
    }

    /// As [`Unit::detach`], for a function that was attached with ATS. `disable` turns ATS off in the function;
    /// then the function is made to forget its translations, and only then its entry goes.
    ///
    /// # Errors
    /// [`DetachError`]; the device counts as attached then, and detaching can be tried again. If the reason was there
    /// before, such as PASIDs that are attached, `disable` was not called.
    pub fn detach_with_ats(&self, requester: &Requester, disable: impl FnOnce()) -> Result<(), DetachError> {
        let shared = &self.data.0;
        shared.structures.lock().may_turn_ats_off(requester.rid)?;
        if !kept(Step::AtsOffFirst) {
            shared.structures.lock().detach(shared, requester)?;
            disable();
            return Ok(());
        }
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

    /// Sends the requests of a device that carry `pasid` to a domain. The device itself has to be attached;
    /// requests without PASID go where they went. Scalable mode only, PASIDs below 8192.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach_pasid(&self, requester: SourceId, pasid: Pasid, domain: &Domain<R, P>) -> Result<(), AttachError> {
        let shared = self.shared();
        if !Arc::ptr_eq(shared, &domain.shared) {
            return Err(AttachError::OtherUnit);
        }
        let mut structures = shared.structures.lock();
        structures.attach_pasid(shared, requester, pasid, &domain.space)
    }

    /// Blocks the requests of a device that carry `pasid`. Page requests are not drained: the device must have
    /// stopped using the PASID.
    ///
    /// # Errors
    /// [`DetachError`].
    pub fn detach_pasid(&self, requester: SourceId, pasid: Pasid) -> Result<(), DetachError> {
        let shared = self.shared();
        shared.structures.lock().detach_pasid(shared, requester, pasid)
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

#[cfg(test)]
mod tests {
    use iommu_types::{Clock, Coherence, FrameRequest, OutOfFrames, Table, TableFrame, TableMemory};

    use super::*;
    use crate::Ioas;

    struct Window;
    struct Board;

    impl Registers for Window {
        fn read32(&self, _: u32) -> u32 {
            0
        }
        fn read64(&self, _: u32) -> u64 {
            0
        }
        fn write32(&self, _: u32, _: u32) {}
        fn write64(&self, _: u32, _: u64) {}
        fn window_len(&self) -> u32 {
            0
        }
    }
    impl TableMemory for Board {
        fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
            Err(OutOfFrames(request))
        }
        fn free(&self, _: TableFrame) {}
        fn table(&self, _: HostPhys) -> Option<&Table> {
            None
        }
    }
    impl Coherence for Board {
        fn write_back(&self, _: HostPhys, _: u64) {}
    }
    impl Clock for Board {
        fn now_ns(&self) -> u64 {
            0
        }
        fn relax(&self) {}
    }

    fn shareable<T: Send + Sync>() {}

    #[test]
    fn handles_can_be_shared_between_threads_when_registers_and_host_can() {
        shareable::<Unit<Window, Board, Translating>>();
        shareable::<Unit<Window, Board, Blocked>>();
        shareable::<Domain<Window, Board>>();
        shareable::<NestedDomain<Window, Board>>();
        shareable::<Ioas<Window, Board>>();
    }
}
