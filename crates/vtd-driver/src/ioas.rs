//! One memory map for devices of several units.

use core::fmt;
use core::mem::ManuallyDrop;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_types::omission::{Step, kept};
use iommu_types::sync::{AtomicU64, Ordering};
use iommu_types::{AddrRange, AddressSpace, HostPhys, Iova, PageSize, Perms, Registers, UnmapRefused};
use spin::Mutex;
use thiserror::Error;

use crate::attach::{AttachError, DetachError};
use crate::domain::{
    DestroyError, Domain, DomainError, DomainOptions, FlushError, MapError, NotDestroyed, PendingFlush, SpaceError,
    UnmapError,
};
use crate::options::Requester;
use crate::owners::{Foreign, OwnerId, PageOwners};
use crate::shared::Host;
use crate::unit::{TakenOver, Unit};

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// A device could not join a memory map.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The unit could not give it a domain.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// What is mapped already cannot be mapped on the unit, for instance because its tables are narrower.
    #[error("the mapping at {iova} cannot be repeated on the unit that serves the device: {cause}")]
    Replay {
        /// Where the mapping begins.
        iova: Iova,
        /// Why.
        cause: MapError,
    },
    /// Attaching.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The memory map was destroyed in part, see [`Ioas::destroy`].
    #[error("the device is of a unit that no device of the memory map was attached on")]
    OtherUnit,
    /// Detaching.
    #[error(transparent)]
    Detach(#[from] DetachError),
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    phys: HostPhys,
    len: u64,
    perms: Perms,
}

impl Mapping {
    fn range(&self, iova: Iova) -> Option<AddrRange<Iova>> {
        AddrRange::from_base_len(iova, self.len)
    }

    fn memory(&self) -> Option<AddrRange<HostPhys>> {
        AddrRange::from_base_len(self.phys, self.len)
    }
}

/// For whom a memory map is, and where to ask what is theirs.
#[derive(Debug)]
struct Owner {
    id: OwnerId,
    pages: Arc<PageOwners>,
}

struct State<R, P> {
    domains: Vec<Domain<R, P>>,
    mappings: BTreeMap<Iova, Mapping>,
}

/// A memory map, such as a guest's, that devices behind any units are attached to.
///
/// It has one domain on each unit that serves one of its devices. Units differ in width, coherency and snooping,
/// and their tables lie on the NUMA node of their own, so tables are not shared between units; what is mapped is
/// repeated when the first device of another unit joins. A domain stays until [`Self::destroy`], also when its
/// last device has left.
///
/// Mapping and unmapping are serialised; for the fastest path on one unit use [`Domain`].
///
/// With [`Self::owned_by`] it maps only memory that was granted to its owner, which keeps one guest's devices off the
/// pages of another and of the host. [`Domain`] asks nobody: what is mapped there is the kernel's own business.
pub struct Ioas<R, P> {
    serial: u64,
    options: DomainOptions,
    owner: Option<Box<Owner>>,
    /// Apart, so that a map that could not be destroyed travels cheaply in the error.
    state: Box<Mutex<State<R, P>>>,
}

impl<R, P> fmt::Debug for Ioas<R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ioas")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// As [`PendingFlush`], over all units of a memory map.
#[must_use = "devices can use the unmapped memory until the token is flushed; dropping it leaks the addresses"]
pub struct IoasPending<L> {
    lease: ManuallyDrop<L>,
    range: AddrRange<Iova>,
    /// One for each unit that has not confirmed yet.
    parts: Vec<PendingFlush<()>>,
    /// The memory that was mapped, which has an owner until the flush.
    memory: Vec<AddrRange<HostPhys>>,
    serial: u64,
}

impl<L> IoasPending<L> {
    /// The addresses that were unmapped.
    #[must_use]
    pub const fn range(&self) -> AddrRange<Iova> {
        self.range
    }
}

impl<L> fmt::Debug for IoasPending<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoasPending")
            .field("range", &self.range)
            .field("units", &self.parts.len())
            .finish_non_exhaustive()
    }
}

/// Of many unmaps, some were flushed.
#[derive(Debug)]
pub struct PartlyFlushed<L> {
    /// The first error.
    pub error: FlushError,
    /// The leases of what every unit has confirmed.
    pub confirmed: Vec<L>,
    /// What some unit has not.
    pub kept: Vec<IoasPending<L>>,
}

impl<R: Registers, P: Host> Ioas<R, P> {
    /// An empty memory map without devices.
    #[must_use]
    pub fn new(options: DomainOptions) -> Self {
        Self {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            options,
            owner: None,
            state: Box::new(Mutex::new(State {
                domains: Vec::new(),
                mappings: BTreeMap::new(),
            })),
        }
    }

    /// As [`Self::new`], for `owner`: only memory that `pages` say is theirs can be mapped.
    #[must_use]
    pub fn owned_by(options: DomainOptions, owner: OwnerId, pages: Arc<PageOwners>) -> Self {
        Self {
            owner: Some(Box::new(Owner { id: owner, pages })),
            ..Self::new(options)
        }
    }

    /// Claims `memory` for a mapping.
    fn pin(&self, memory: AddrRange<HostPhys>) -> Result<(), MapError> {
        let Some(Owner { id, pages }) = self.owner.as_deref() else {
            return Ok(());
        };
        pages
            .pin(*id, memory)
            .map_err(|Foreign { range, owner }| MapError::ForeignPages { range, owner, by: *id })
    }

    /// No device can reach `memory` through one mapping less.
    fn unpin(&self, memory: impl IntoIterator<Item = AddrRange<HostPhys>>) {
        if let Some(Owner { pages, .. }) = self.owner.as_deref() {
            memory.into_iter().for_each(|range| pages.unpin(range));
        }
    }

    /// Attaches a device. If it is the first on its unit, everything mapped is repeated there before.
    ///
    /// # Errors
    /// [`JoinError`]; the device is where it was, unless the cause is unconfirmed.
    pub fn attach<S: TakenOver>(&self, unit: &Unit<R, P, S>, requester: &Requester) -> Result<(), JoinError> {
        let mut state = self.state.lock();
        let known = state.domains.iter().position(|domain| unit.owns(domain));
        if let Some(domain) = known.and_then(|index| state.domains.get(index)) {
            return Ok(unit.attach(requester, domain)?);
        }
        let domain = unit.create_domain(self.options)?;
        let replayed = state.mappings.iter().try_for_each(|(&iova, mapping)| {
            domain
                .map(iova, mapping.phys, mapping.len, mapping.perms)
                .map_err(|cause| JoinError::Replay { iova, cause })
        });
        let joined = replayed.and_then(|()| Ok(unit.attach(requester, &domain)?));
        match joined {
            // Whether its device is there or not is in doubt: the domain stays.
            Ok(()) | Err(JoinError::Attach(AttachError::Unconfirmed(_))) => state.domains.push(domain),
            Err(_) => {
                if let Err(NotDestroyed { domain, .. }) = domain.destroy() {
                    state.domains.push(domain);
                }
            }
        }
        joined
    }

    /// Takes a device out. Its unit's domain stays.
    ///
    /// # Errors
    /// [`JoinError::OtherUnit`], [`JoinError::Detach`].
    pub fn detach<S: TakenOver>(&self, unit: &Unit<R, P, S>, requester: &Requester) -> Result<(), JoinError> {
        let state = self.state.lock();
        if !state.domains.iter().any(|domain| unit.owns(domain)) {
            return Err(JoinError::OtherUnit);
        }
        Ok(unit.detach(requester)?)
    }

    /// The addresses that every device attached so far can use. Without devices, what the options ask for.
    #[must_use]
    pub fn aperture(&self) -> AddrRange<Iova> {
        let bits = u32::from(self.options.width.clamp(12, 64));
        let last = 1u64.checked_shl(bits).map_or(u64::MAX, |end| end - 1);
        let wanted = AddrRange::new(Iova::ZERO, Iova::new(last));
        let wanted = wanted.unwrap_or(AddrRange::page_around(Iova::ZERO, PageSize::Size4K));
        let state = self.state.lock();
        let apertures = state.domains.iter().map(Domain::aperture);
        apertures.fold(wanted, |all, one| all.intersection(one).unwrap_or(one))
    }

    /// Maps `len` bytes from `iova` to `phys` for every device.
    ///
    /// # Errors
    /// [`MapError`] of the first unit that refused, [`MapError::ForeignPages`] if the memory is somebody else's;
    /// nothing is mapped then.
    pub fn map(&self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Result<(), MapError> {
        let mut state = self.state.lock();
        let mapping = Mapping { phys, len, perms };
        let misaligned = iommu_pagetable::MapError::Misaligned { iova, phys, len };
        let range = mapping
            .range(iova)
            .filter(|range| range.is_aligned(PageSize::Size4K))
            .ok_or(misaligned)?;
        if let Some(at) = state.first_overlap(range) {
            return Err(iommu_pagetable::MapError::Overlap { at }.into());
        }
        let memory = mapping.memory().ok_or(misaligned)?;
        self.pin(memory)?;
        for (done, domain) in state.domains.iter().enumerate() {
            if let Err(error) = domain.map(iova, phys, len, perms) {
                // All of them, also when one does not confirm; what is not confirmed to be gone is the error to report.
                let undone = state.domains.iter().take(done).map(|domain| undo(domain, range));
                let undone = undone.fold(Ok(()), Result::and);
                // And stays with its owner.
                if undone.is_ok() && !matches!(error, MapError::Unconfirmed(_)) {
                    self.unpin([memory]);
                }
                undone?;
                return Err(error);
            }
        }
        state.mappings.insert(iova, mapping);
        Ok(())
    }

    /// Takes the mappings of `range` out of all tables. Each must have been mapped by one call and lie in the
    /// range as a whole, without holes between.
    ///
    /// # Errors
    /// [`UnmapRefused`]; nothing changed then.
    pub fn unmap<L>(&self, range: AddrRange<Iova>, lease: L) -> Result<IoasPending<L>, UnmapRefused<UnmapError, L>> {
        let mut state = self.state.lock();
        let found = match state.whole(range) {
            Ok(found) => found,
            Err(error) => return Err(UnmapRefused { error, lease }),
        };
        let mut parts = Vec::new();
        for domain in &state.domains {
            match domain.unmap(range, ()) {
                Ok(part) => parts.push(part),
                Err(UnmapRefused { error, .. }) => {
                    // The tables are still as they were where it failed; elsewhere the same mappings go back.
                    for domain in state.domains.iter().take(parts.len()) {
                        for (&iova, mapping) in &found {
                            let _ = domain.map(iova, mapping.phys, mapping.len, mapping.perms);
                        }
                    }
                    return Err(UnmapRefused { error, lease });
                }
            }
        }
        for iova in found.keys() {
            state.mappings.remove(iova);
        }
        Ok(IoasPending {
            lease: ManuallyDrop::new(lease),
            range,
            parts,
            memory: found.values().filter_map(Mapping::memory).collect(),
            serial: self.serial,
        })
    }

    /// Waits until no device on any unit can use what was unmapped, then returns the lease. Every unit is asked,
    /// also when one does not confirm.
    ///
    /// # Errors
    /// The first unit's [`FlushError`] with the token, which then stands for the units that have not confirmed.
    pub fn flush<L>(&self, mut pending: IoasPending<L>) -> Result<L, (FlushError, IoasPending<L>)> {
        if pending.serial != self.serial {
            return Err((FlushError::OtherDomain, pending));
        }
        let state = self.state.lock();
        let mut first = None;
        for part in core::mem::take(&mut pending.parts) {
            if first.is_some() && !kept(Step::EveryUnitAsked) {
                pending.parts.push(part);
                continue;
            }
            let flushed = match state.domains.iter().find(|domain| domain.issued(&part)) {
                Some(domain) => domain.flush(part),
                None => Err((FlushError::OtherDomain, part)),
            };
            if let Err((error, part)) = flushed {
                first.get_or_insert(error);
                pending.parts.push(part);
            }
        }
        match first {
            None => Ok(self.confirmed(pending)),
            Some(error) => Err((error, pending)),
        }
    }

    /// Every unit has confirmed: the memory is its owner's alone, the lease the caller's.
    fn confirmed<L>(&self, pending: IoasPending<L>) -> L {
        self.unpin(pending.memory);
        ManuallyDrop::into_inner(pending.lease)
    }

    /// As [`Self::flush`], of many unmaps at once: each unit is asked once for all of them.
    ///
    /// # Errors
    /// [`PartlyFlushed`] with the tokens that stand for units that have not confirmed, and the leases of the others.
    pub fn flush_all<L>(&self, mut pending: Vec<IoasPending<L>>) -> Result<Vec<L>, PartlyFlushed<L>> {
        let state = self.state.lock();
        let own = |token: &IoasPending<L>| token.serial == self.serial;
        let mut first = (!pending.iter().all(own)).then_some(FlushError::OtherDomain);
        for domain in &state.domains {
            let (mut parts, mut whose) = (Vec::new(), Vec::new());
            for (index, token) in pending.iter_mut().enumerate().filter(|(_, token)| own(token)) {
                for part in token.parts.extract_if(.., |part| domain.issued(part)) {
                    parts.push(part);
                    whose.push(index);
                }
            }
            if let Err((error, parts)) = domain.flush_all(parts) {
                first.get_or_insert(error);
                for (part, index) in parts.into_iter().zip(whose) {
                    if let Some(token) = pending.get_mut(index) {
                        token.parts.push(part);
                    }
                }
            }
        }
        // A part of no domain is of one that was destroyed, and cannot be flushed any more.
        let done = |token: &mut IoasPending<L>| own(token) && token.parts.is_empty();
        let confirmed: Vec<L> = pending
            .extract_if(.., done)
            .map(|token| self.confirmed(token))
            .collect();
        if pending.is_empty() {
            return Ok(confirmed);
        }
        Err(PartlyFlushed {
            error: first.unwrap_or(FlushError::OtherDomain),
            confirmed,
            kept: pending,
        })
    }

    /// Destroys the domains on all units.
    ///
    /// # Errors
    /// The first [`DestroyError`], with a memory map of the domains that are left.
    pub fn destroy(self) -> Result<(), NotDestroyed<Self>> {
        let mut first: Option<DestroyError> = None;
        let mut state = self.state.lock();
        for domain in core::mem::take(&mut state.domains) {
            if let Err(NotDestroyed { cause, domain }) = domain.destroy() {
                first.get_or_insert(cause);
                state.domains.push(domain);
            }
        }
        if first.is_none() {
            // Nothing leads there any more, on any unit.
            self.unpin(state.mappings.values().filter_map(Mapping::memory));
        }
        drop(state);
        match first {
            None => Ok(()),
            Some(cause) => Err(NotDestroyed { cause, domain: self }),
        }
    }
}

/// Takes back what was just mapped.
fn undo<R: Registers, P: Host>(domain: &Domain<R, P>, range: AddrRange<Iova>) -> Result<(), MapError> {
    let Ok(pending) = domain.unmap(range, ()) else {
        return Ok(());
    };
    match domain.flush(pending) {
        Err((FlushError::Unconfirmed(unconfirmed), _)) => Err(unconfirmed.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl<R, P> State<R, P> {
    /// The first address of `range` that is mapped.
    fn first_overlap(&self, range: AddrRange<Iova>) -> Option<Iova> {
        let (iova, mapping) = self.mappings.range(..=range.last()).next_back()?;
        mapping.range(*iova)?.intersection(range).map(AddrRange::first)
    }

    /// The mappings that make up `range` exactly.
    fn whole(&self, range: AddrRange<Iova>) -> Result<BTreeMap<Iova, Mapping>, UnmapError> {
        let split = UnmapError::Split { range };
        let before = self.mappings.range(..range.first()).next_back();
        if before
            .and_then(|(iova, mapping)| mapping.range(*iova))
            .is_some_and(|other| other.overlaps(range))
        {
            return Err(split);
        }
        let mut found = BTreeMap::new();
        let mut next = Some(range.first());
        for (&iova, mapping) in self.mappings.range(range.first()..=range.last()) {
            let here = mapping.range(iova).filter(|here| range.covers(*here)).ok_or(split)?;
            if next != Some(iova) {
                break;
            }
            next = here.last().checked_add(1);
            found.insert(iova, *mapping);
        }
        if next == range.last().checked_add(1) {
            return Ok(found);
        }
        let at = next.unwrap_or(range.first());
        Err(iommu_pagetable::UnmapError::NotMapped { at }.into())
    }
}

impl<R: Registers, P: Host> AddressSpace for Ioas<R, P> {
    type Error = SpaceError;
    type Pending<L> = IoasPending<L>;

    fn aperture(&self) -> AddrRange<Iova> {
        Self::aperture(self)
    }

    fn map(&self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Result<(), SpaceError> {
        Ok(Self::map(self, iova, phys, len, perms)?)
    }

    fn may_be_reachable(error: &SpaceError) -> bool {
        error.is_unconfirmed_mapping()
    }

    fn unmap<L>(&self, range: AddrRange<Iova>, lease: L) -> Result<IoasPending<L>, UnmapRefused<SpaceError, L>> {
        Self::unmap(self, range, lease).map_err(|refused| UnmapRefused {
            error: refused.error.into(),
            lease: refused.lease,
        })
    }

    fn flush<L>(&self, pending: IoasPending<L>) -> Result<L, (SpaceError, IoasPending<L>)> {
        Self::flush(self, pending).map_err(|(error, pending)| (error.into(), pending))
    }

    /// Each unit is asked once for all of them.
    fn flush_all<L>(
        &self,
        pending: impl Iterator<Item = IoasPending<L>>,
        confirmed: impl FnMut(L),
        kept: impl FnMut(IoasPending<L>),
    ) -> Result<(), SpaceError> {
        match Self::flush_all(self, pending.collect()) {
            Ok(leases) => {
                leases.into_iter().for_each(confirmed);
                Ok(())
            }
            Err(partly) => {
                partly.confirmed.into_iter().for_each(confirmed);
                partly.kept.into_iter().for_each(kept);
                Err(partly.error.into())
            }
        }
    }
}

impl<R: Registers, P: Host, S: TakenOver> Unit<R, P, S> {
    /// Whether `domain` was created on this unit.
    fn owns(&self, domain: &Domain<R, P>) -> bool {
        Arc::ptr_eq(self.shared(), &domain.shared)
    }
}
