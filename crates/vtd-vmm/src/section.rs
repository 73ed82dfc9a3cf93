//! DMA sections: the only way to guest memory through the unit.

mod memory;

use std::cell::{Cell, OnceCell};
use std::fmt;

use iommu_types::{Access, HostPhys, Iova};
use vm_memory::{GuestAddressSpace, GuestMemoryBackend};
use vtd_model::{Fault, Request, Translation};

use crate::bus::GuestBus;
use crate::listener::Listener;
use crate::protocol::{Ticket, View};
use crate::requester::Requester;
use crate::store::DirectTables;
use crate::tally::Tally;
use crate::unit::{VmmUnit, thread_hint};

pub use memory::Slices;

/// Guest memory as one requester sees it, while its accesses are in flight.
///
/// The section implements [`vm_memory::GuestMemory`], so device models that are written for guest memory work behind the
/// unit unchanged: addresses are IOVAs, every access is translated and judged, faults go to the unit's log. Slices that
/// it gives out borrow from it, so none outlives it, and no invalidation that concerns them completes before:
///
/// ```compile_fail,E0505
/// # use std::sync::Arc;
/// # use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};
/// # use vtd_vmm::{Requester, VmmUnit};
/// fn keep(unit: &VmmUnit<Arc<GuestMemoryMmap>>, requester: Requester) {
///     let section = unit.enter(requester);
///     let mut slices = section.get_slices(GuestAddress(0x1000), 4, Permissions::Read).unwrap();
///     drop(section); // the slices still borrow from it
///     let _ = slices.next();
/// }
/// ```
///
/// Open a section for one request or one batch and drop it: while it is open, invalidations that the guest waits for do
/// not complete. A section that is forgotten blocks them for ever; memory stays safe.
pub struct Section<'u, S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener = ()> {
    unit: &'u VmmUnit<S, L>,
    requester: Requester,
    view: Cell<View>,
    /// Where the last miss that needed nothing else walked.
    tables: Cell<Option<DirectTables>>,
    /// Guest memory as it was when the section first touched it.
    memory: OnceCell<S::T>,
    /// Taken out when the section closes.
    ticket: Option<Ticket>,
}

/// Where a byte that a requester names lies in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The address in guest memory.
    pub phys: HostPhys,
    /// Bytes from there on for which the answer holds, at most as many as were asked for.
    pub len: u64,
}

impl Place {
    /// The place that a walk found for `request`.
    pub(crate) fn of(found: &Translation, request: &Request) -> Self {
        // The page holds the address, so the difference is below the page's length.
        let left = (found.page.last().raw() - request.address.raw()).saturating_add(1);
        Self {
            phys: found.phys,
            len: left.min(request.len),
        }
    }
}

impl<'u, S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> Section<'u, S, L> {
    #[inline]
    pub(crate) fn new(unit: &'u VmmUnit<S, L>, requester: Requester) -> Self {
        // The view first, while nothing waits: it is judged against the generations at each lookup, and these are read
        // after entering.
        let view = unit.store.view(&requester).unwrap_or(View::NONE);
        let ticket = unit.readers.enter(thread_hint());
        Self {
            unit,
            requester,
            view: Cell::new(view),
            tables: Cell::new(None),
            memory: OnceCell::new(),
            ticket: Some(ticket),
        }
    }

    /// Whose accesses these are.
    #[must_use]
    pub const fn requester(&self) -> Requester {
        self.requester
    }

    /// The unit that translates.
    #[must_use]
    pub const fn unit(&self) -> &'u VmmUnit<S, L> {
        self.unit
    }

    /// The memory of the guest, the same for the whole section.
    #[inline]
    pub(crate) fn memory(&self) -> &S::M {
        self.memory.get_or_init(|| self.unit.memory().memory())
    }

    /// Where this section's walks are counted.
    pub(crate) fn tally(&self) -> Tally<'_> {
        self.unit.tally(self.ticket.as_ref().and_then(Ticket::own_slot))
    }

    /// Where `address` lies, for an access of `len` bytes. The answer may hold for fewer: whoever asks goes on from there.
    ///
    /// The place may be used until the section is dropped.
    ///
    /// # Errors
    /// [`Fault`] says why the access is blocked; it is in the fault log.
    #[inline]
    pub fn translate(&self, address: Iova, len: u64, access: Access) -> Result<Place, Fault> {
        match self.hit(address, len, access) {
            Some(place) => Ok(place),
            None => self
                .miss(address, len, access)
                .inspect_err(|fault| self.unit.log(fault)),
        }
    }

    /// As [`Self::translate`], but a block leaves no trace: for checks whose outcome no device sees. Accessed and dirty
    /// flags are set as by an access.
    ///
    /// # Errors
    /// [`Fault`] says why an access would be blocked.
    #[inline]
    pub fn probe(&self, address: Iova, len: u64, access: Access) -> Result<Place, Fault> {
        self.hit(address, len, access)
            .map_or_else(|| self.miss(address, len, access), Ok)
    }

    /// Answers a request of any kind, translation requests of a device-TLB included.
    ///
    /// # Errors
    /// [`Fault`] says why the request must not proceed; it is in the fault log.
    pub fn answer(&self, request: &Request) -> Result<Translation, Fault> {
        let outcome = if self.unit.store.is_watched() {
            self.unit.watched_answer(self.memory(), request)
        } else {
            self.unit
                .store
                .walk(&GuestBus(self.memory()), request, thread_hint())
                .outcome
        };
        self.tally().request(&outcome.report);
        outcome.result.inspect_err(|fault| self.unit.log(fault))
    }

    #[inline(always)]
    pub(crate) fn hit(&self, address: Iova, len: u64, access: Access) -> Option<Place> {
        let hit = self
            .unit
            .store
            .iotlb
            .lookup(&self.view.get(), address.raw(), access.needs())?;
        Some(Place {
            phys: hit.phys,
            len: hit.left.min(len),
        })
    }

    /// A miss that takes nothing but a walk of legacy tables.
    #[inline]
    fn miss_directly(&self, address: Iova, len: u64, access: Access) -> Option<Place> {
        let store = &self.unit.store;
        if len == 0 || self.requester.pasid.is_some() {
            return None;
        }
        let (bus, at, needs) = (GuestBus(self.memory()), address.raw(), access.needs());
        let again = self.tables.get();
        let again = again.and_then(|tables| store.walk_directly(bus, &tables, at, needs));
        let found = match again {
            Some(found) => found,
            None => {
                // Not walked for in this section yet, or the requester has moved.
                let tables = store.direct_tables(&self.requester)?;
                let found = store.walk_directly(bus, &tables, at, needs)?;
                self.view.set(tables.view);
                self.tables.set(Some(tables));
                found
            }
        };
        self.tally().direct_request(found.reads);
        Some(Place {
            phys: found.hit.phys,
            len: found.hit.left.min(len),
        })
    }

    #[cold]
    fn miss(&self, address: Iova, len: u64, access: Access) -> Result<Place, Fault> {
        if let Some(place) = self.miss_directly(address, len, access) {
            return Ok(place);
        }
        let (store, bus) = (&self.unit.store, GuestBus(self.memory()));
        let request = self.requester.request(address, len, access);
        if store.is_watched() {
            return self
                .unit
                .watched(self.memory(), &self.requester, &request, self.tally());
        }
        let walked = store.walk(&bus, &request, thread_hint());
        self.tally().request(&walked.outcome.report);
        if let Some(view) = walked.view {
            self.view.set(view);
        }
        if let Some(what) = walked.unannounced {
            self.unit.announce(what);
        }
        walked.outcome.result.map(|found| Place::of(&found, &request))
    }
}

impl<S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> Drop for Section<'_, S, L> {
    #[inline]
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.unit.leave(ticket);
        }
    }
}

impl<S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> fmt::Debug for Section<'_, S, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Section")
            .field("requester", &self.requester)
            .finish_non_exhaustive()
    }
}
