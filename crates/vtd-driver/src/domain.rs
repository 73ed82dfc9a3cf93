//! Domains: address spaces that devices are attached to.

use core::fmt;
use core::mem::ManuallyDrop;

use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_types::omission::{Step, kept};
use iommu_types::{
    AddrRange, AddressSpace, DomainId, HostPhys, Iova, OutOfFrames, Perms, Piece, Registers, TableFrame, UnmapRefused,
};
use thiserror::Error;
use vtd_spec::Agaw;

use crate::error::{HardwareError, Reachable, Unconfirmed};
use crate::ids::OutOfIds;
use crate::invalidate::Invalidation;
use crate::options::TableMode;
use crate::owners::OwnerId;
use crate::pages::{MAX_BLOCKS, Stale};
use crate::shared::{Host, Shared};
use crate::space::Space;

/// What a domain should be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainOptions {
    /// Address bits that devices in the domain use. The domain gets the smallest table depth of the unit that
    /// has so many, or the largest if none has; [`Domain::aperture`] tells.
    pub width: u8,
    /// Whether pages of 2 MiB and 1 GiB are used where the unit, the addresses and the length allow.
    pub superpages: bool,
    /// The format of the tables.
    pub stage: Stage,
    /// Whether the unit notes which pages devices write ([`Domain::read_dirty`]). Second-stage tables on units in
    /// scalable mode with `ECAP_REG.SSADS`.
    pub track_writes: bool,
}

/// The format of a domain's tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Second-stage tables: every mode.
    #[default]
    Second,
    /// First-stage tables, the processor's own format: scalable mode. A mapping for writing also grants reading,
    /// and new mappings need no invalidation also in caching mode.
    First,
}

impl Default for DomainOptions {
    /// 48 bits, with superpages, second stage, writes not noted.
    fn default() -> Self {
        Self {
            width: 48,
            superpages: true,
            stage: Stage::Second,
            track_writes: false,
        }
    }
}

/// A domain could not be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DomainError {
    /// All identifiers of the unit are in use (`CAP_REG.ND`).
    #[error("all {usable} domain identifiers of the unit are in use; destroy a domain first")]
    OutOfIds {
        /// How many there are.
        usable: u32,
    },
    /// The unit translates nothing.
    #[error("the unit supports no second-stage tables (CAP.SAGAW); it can only remap interrupts")]
    NoTranslation,
    /// First-stage tables need scalable mode and `ECAP_REG.FSTS`.
    #[error("first-stage tables need scalable mode and a unit with ECAP.FSTS")]
    NoFirstStage,
    /// The unit cannot note writes in these tables.
    #[error("writes are noted in second-stage tables, in scalable mode, on units with ECAP.SSADS whose walks snoop")]
    NoDirtyTracking,
    /// A guest's tables cannot be used here.
    #[error("nesting needs scalable mode, ECAP.NEST, a second-stage parent and a page-aligned guest root inside it")]
    NotNestable,
    /// Memory for the root of the tables.
    #[error("{0}")]
    OutOfFrames(OutOfFrames),
}

impl From<OutOfIds> for DomainError {
    fn from(error: OutOfIds) -> Self {
        Self::OutOfIds {
            usable: error.count - 1,
        }
    }
}

impl From<OutOfFrames> for DomainError {
    fn from(error: OutOfFrames) -> Self {
        Self::OutOfFrames(error)
    }
}

/// Nothing was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MapError {
    /// Devices in this domain cannot use these addresses.
    #[error("{range} leaves {aperture}, which is what the domain translates on this unit")]
    OutsideAperture {
        /// What was asked for.
        range: AddrRange<Iova>,
        /// What there is.
        aperture: AddrRange<Iova>,
    },
    /// The addresses are interrupts on this platform, as input or as output.
    #[error("{len:#x} bytes from {iova} to {phys} touch 0xfee00000..=0xfeefffff, where writes are interrupts")]
    InterruptWindow {
        /// First input address.
        iova: Iova,
        /// First output address.
        phys: HostPhys,
        /// Length in bytes.
        len: u64,
    },
    /// Guests' tables lead through the domain, and the unit lets writes of theirs past a mapping without the right
    /// to write.
    #[error("{at} cannot be mapped for reading only: the unit ignores that under guests' tables (erratum 772415)")]
    ReadOnlyParent {
        /// The first input address.
        at: Iova,
    },
    /// Somebody else owns the memory, or nobody that may give it to devices.
    #[error("{range} of host memory is not {by}'s but {}'s; it is not mapped for its devices", of(.owner))]
    ForeignPages {
        /// The first pages that are not theirs.
        range: AddrRange<HostPhys>,
        /// Whose they are; `None` for the host's own.
        owner: Option<OwnerId>,
        /// For whom they were to be mapped.
        by: OwnerId,
    },
    /// The domain's tables are a guest's.
    #[error("the guest maps in its own tables; map in the parent domain")]
    GuestTables,
    /// The tables refused it.
    #[error(transparent)]
    Table(#[from] iommu_pagetable::MapError),
    /// The unit did not confirm that it noticed the new entries. They were taken out again.
    #[error(transparent)]
    Unconfirmed(#[from] Unconfirmed),
}

/// An owner, or the host itself, in an error message.
fn of(owner: &Option<OwnerId>) -> impl fmt::Display {
    struct Named(Option<OwnerId>);
    impl fmt::Display for Named {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self.0 {
                Some(owner) => owner.fmt(f),
                None => f.write_str("the host"),
            }
        }
    }
    Named(*owner)
}

/// Nothing was unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnmapError {
    /// The tables refused it.
    #[error(transparent)]
    Table(#[from] iommu_pagetable::UnmapError),
    /// The range holds a part of what one call mapped.
    #[error("{range} cuts a mapping; unmap whole mappings")]
    Split {
        /// What was asked for.
        range: AddrRange<Iova>,
    },
}

/// A flush that did not happen or was not confirmed; the pending unmap comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FlushError {
    /// The token belongs to another domain; nothing was done.
    #[error("the pending unmap is of another domain; flush it there")]
    OtherDomain,
    /// The unit did not confirm.
    #[error(transparent)]
    Unconfirmed(#[from] Unconfirmed),
}

/// Any failure of a domain as an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SpaceError {
    /// Mapping.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Unmapping.
    #[error(transparent)]
    Unmap(#[from] UnmapError),
    /// Waiting for the unit.
    #[error(transparent)]
    Flush(#[from] FlushError),
}

impl SpaceError {
    /// Whether a mapping was taken out again without the unit's confirmation that it forgot it.
    pub(crate) const fn is_unconfirmed_mapping(&self) -> bool {
        matches!(self, Self::Map(MapError::Unconfirmed(_)))
    }
}

/// A domain that was not destroyed.
#[derive(Debug, Error)]
#[error("{cause}")]
pub struct NotDestroyed<D> {
    /// Why.
    #[source]
    pub cause: DestroyError,
    /// The domain, as it was.
    pub domain: D,
}

/// Why a domain was not destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DestroyError {
    /// Devices are attached.
    #[error("devices are attached to domain {0}; detach them first")]
    Attached(DomainId),
    /// Nested domains translate through it.
    #[error("nested domains translate through domain {0}; destroy them first")]
    Parent(DomainId),
    /// The unit did not confirm that it forgot the domain.
    #[error(transparent)]
    Unconfirmed(#[from] Unconfirmed),
}

/// An unmap that the unit has not confirmed yet. Devices may still use the old translation.
///
/// Owns the caller's lease on the addresses and the table pages that came free. Only a confirmed flush gives
/// them back; dropping the token keeps both out of circulation for ever, which is safe (rule D4). The lease's
/// own destructor does not run then.
#[must_use = "devices can use the unmapped memory until the token is flushed; dropping it leaks the addresses"]
pub struct PendingFlush<L> {
    lease: ManuallyDrop<L>,
    range: AddrRange<Iova>,
    frames: Vec<TableFrame>,
    leaf_only: bool,
    serial: u64,
}

impl<L> PendingFlush<L> {
    /// The addresses that were unmapped.
    #[must_use]
    pub const fn range(&self) -> AddrRange<Iova> {
        self.range
    }

    /// Whether table pages wait for the flush.
    #[must_use]
    pub const fn holds_tables(&self) -> bool {
        !self.leaf_only
    }

    /// What the unit has to forget.
    const fn stale(&self) -> Stale {
        Stale {
            range: self.range,
            leaf_only: self.leaf_only,
        }
    }

    /// Frees the tables and takes the lease out. The caller has the unit's confirmation.
    fn confirmed<R: Registers, P: Host>(self, shared: &Shared<R, P>) -> L {
        for frame in self.frames {
            shared.host.free(frame);
        }
        ManuallyDrop::into_inner(self.lease)
    }
}

impl<L> fmt::Debug for PendingFlush<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingFlush")
            .field("range", &self.range)
            .field("frames", &self.frames.len())
            .finish_non_exhaustive()
    }
}

/// An address space on one unit, in second-stage tables of its own, under a domain identifier of its own.
///
/// All methods take `&self`; tables of disjoint ranges are worked on concurrently. Dropping a domain gives
/// nothing back: use [`Self::destroy`].
pub struct Domain<R, P> {
    pub(crate) shared: Arc<Shared<R, P>>,
    pub(crate) space: Arc<Space>,
}

impl<R, P> fmt::Debug for Domain<R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("id", &self.space.id)
            .field("agaw", &self.space.agaw())
            .finish_non_exhaustive()
    }
}

impl<R: Registers, P: Host> Domain<R, P> {
    /// The identifier on the unit.
    #[must_use]
    pub fn id(&self) -> DomainId {
        self.space.id
    }

    /// The depth of the tables.
    #[must_use]
    pub fn agaw(&self) -> Agaw {
        self.space.agaw()
    }

    /// Where the root of the tables lies.
    #[must_use]
    pub fn root(&self) -> HostPhys {
        // Every space behind a `Domain` has tables of its own.
        self.space.root().unwrap_or(HostPhys::ZERO)
    }

    /// The addresses that devices in the domain can use. The interrupt window inside it cannot be mapped.
    #[must_use]
    pub fn aperture(&self) -> AddrRange<Iova> {
        self.space.aperture
    }

    /// Maps `len` bytes from `iova` to `phys`, all multiples of 4 KiB. On return devices can use them.
    ///
    /// # Errors
    /// [`MapError`]; nothing is mapped then.
    pub fn map(&self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Result<(), MapError> {
        self.space.map(&self.shared, iova, phys, len, perms)
    }

    /// Takes the mappings of `range` out of the tables.
    ///
    /// Devices may use them until [`Self::flush`] succeeds on the token.
    ///
    /// # Errors
    /// [`UnmapRefused`] if the range does not consist of whole mappings; nothing changed then.
    pub fn unmap<L>(&self, range: AddrRange<Iova>, lease: L) -> Result<PendingFlush<L>, UnmapRefused<UnmapError, L>> {
        match self.space.unmap(&self.shared, range) {
            Ok(unmapped) => Ok(self.pending(range, unmapped.into_frames(), lease)),
            Err(error) => Err(UnmapRefused { error, lease }),
        }
    }

    /// Unlinks tables in `range` that map nothing any more, so that superpages can be mapped there or their memory
    /// comes free. The caller owns the range, of which nothing may be mapped or unmapped until the token is
    /// flushed: only then does the unit no longer walk the old tables (rule D8).
    ///
    /// # Errors
    /// [`UnmapRefused`]; nothing changed then.
    pub fn prune<L>(&self, range: AddrRange<Iova>, lease: L) -> Result<PendingFlush<L>, UnmapRefused<UnmapError, L>> {
        match self.space.prune(&self.shared, range) {
            Ok(unlinked) => {
                let mut frames = unlinked.into_frames();
                if !kept(Step::PrunedTablesFlushed) {
                    frames.drain(..).for_each(|frame| self.shared.host.free(frame));
                }
                Ok(self.pending(range, frames, lease))
            }
            Err(error) => Err(UnmapRefused { error, lease }),
        }
    }

    fn pending<L>(&self, range: AddrRange<Iova>, mut frames: Vec<TableFrame>, lease: L) -> PendingFlush<L> {
        let leaf_only = frames.is_empty() || !kept(Step::HintEarned);
        if !kept(Step::TablesWait) {
            frames.drain(..).for_each(|frame| self.shared.host.free(frame));
        }
        PendingFlush {
            lease: ManuallyDrop::new(lease),
            range,
            leaf_only,
            frames,
            serial: self.space.serial,
        }
    }

    /// Waits until no device can use what was unmapped; then frees table pages and returns the lease.
    ///
    /// # Errors
    /// The token comes back with [`FlushError`]. If the unit did not confirm, what the token stands for must be
    /// treated as reachable by the domain's devices.
    pub fn flush<L>(&self, pending: PendingFlush<L>) -> Result<L, (FlushError, PendingFlush<L>)> {
        if pending.serial != self.space.serial {
            return Err((FlushError::OtherDomain, pending));
        }
        if !kept(Step::LeaseWaits) {
            return Ok(pending.confirmed(&self.shared));
        }
        match self.space.invalidate(&self.shared, &[pending.stale()]) {
            Ok(()) => Ok(pending.confirmed(&self.shared)),
            Err(cause) => Err((self.unconfirmed(pending.range, cause).into(), pending)),
        }
    }

    /// Flushes many unmaps at once, for deferred unmapping: the pages of a few small ones behind one wait, the whole
    /// domain for more.
    ///
    /// # Errors
    /// As [`Self::flush`], with all tokens; one of another domain keeps all of them.
    pub fn flush_all<L>(&self, pending: Vec<PendingFlush<L>>) -> Result<Vec<L>, (FlushError, Vec<PendingFlush<L>>)> {
        if pending.iter().any(|token| token.serial != self.space.serial) {
            return Err((FlushError::OtherDomain, pending));
        }
        match self.forget(&pending) {
            Ok(()) => Ok(pending.into_iter().map(|token| token.confirmed(&self.shared)).collect()),
            Err(unconfirmed) => Err((unconfirmed.into(), pending)),
        }
    }

    /// Makes the unit forget what `pending`, all of this domain, stand for.
    fn forget<L>(&self, pending: &[PendingFlush<L>]) -> Result<(), Unconfirmed> {
        let Some(all) = pending.iter().map(PendingFlush::range).reduce(AddrRange::hull) else {
            return Ok(());
        };
        let forgotten = if pending.len() <= MAX_BLOCKS {
            let stale: Vec<Stale> = pending.iter().map(PendingFlush::stale).collect();
            self.space.invalidate(&self.shared, &stale)
        } else {
            self.space.invalidate_all(&self.shared)
        };
        forgotten.map_err(|cause| self.unconfirmed(all, cause))
    }

    /// Whether a token is of this domain.
    pub(crate) fn issued<L>(&self, pending: &PendingFlush<L>) -> bool {
        pending.serial == self.space.serial
    }

    fn unconfirmed(&self, range: AddrRange<Iova>, cause: HardwareError) -> Unconfirmed {
        let domain = self.space.id;
        Unconfirmed {
            reachable: Reachable::Range { domain, range },
            cause,
        }
    }

    /// Gives tables and identifier back, after the unit has forgotten everything under it.
    ///
    /// Tokens of unmaps that were not flushed cannot be flushed any more afterwards; flush them before.
    ///
    /// # Errors
    /// [`NotDestroyed`] with the domain, if devices are attached or the unit did not confirm.
    pub fn destroy(self) -> Result<(), NotDestroyed<Self>> {
        let Self { shared, space } = self;
        destroy(&shared, space).map_err(|(cause, space)| NotDestroyed {
            cause,
            domain: Self { shared, space },
        })
    }
}

/// Gives the tables and the identifier of a space back.
pub(crate) fn destroy<R: Registers, P: Host>(
    shared: &Arc<Shared<R, P>>,
    space: Arc<Space>,
) -> Result<(), (DestroyError, Arc<Space>)> {
    let mut structures = shared.structures.lock();
    let id = space.id;
    if structures.uses(&space) {
        return Err((DestroyError::Attached(id), space));
    }
    if space.is_parent() {
        return Err((DestroyError::Parent(id), space));
    }
    // VT-d §6.2.3.1: before an identifier is reused nothing may be cached under it.
    let forget = match shared.options.mode {
        TableMode::Legacy => Invalidation::ContextDomain(id),
        TableMode::Scalable => Invalidation::PasidCacheDomain(id),
    };
    let translations = [Invalidation::IotlbDomain(id)];
    let translations = translations.get(usize::from(!kept(Step::TranslationsForgotten))..);
    if let Err(cause) = shared.invalidate_in_turn(&[&[forget], translations.unwrap_or_default()]) {
        let reachable = Reachable::Range {
            domain: id,
            range: space.aperture,
        };
        return Err((Unconfirmed { reachable, cause }.into(), space));
    }
    // Somebody may hold the space a moment longer; then its tables and identifier are leaked.
    if let Some(space) = Arc::into_inner(space) {
        space.free(shared);
        structures.ids.release(id);
    }
    Ok(())
}

impl<R: Registers, P: Host> AddressSpace for Domain<R, P> {
    type Error = SpaceError;
    type Pending<L> = PendingFlush<L>;

    fn aperture(&self) -> AddrRange<Iova> {
        Self::aperture(self)
    }

    fn map(&self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Result<(), SpaceError> {
        Ok(Self::map(self, iova, phys, len, perms)?)
    }

    fn map_pieces(&self, base: Iova, pieces: &[Piece], perms: Perms) -> Result<(), (usize, SpaceError)> {
        self.space
            .map_pieces(&self.shared, base, pieces, perms)
            .map_err(|(done, error)| (done, error.into()))
    }

    fn may_be_reachable(error: &SpaceError) -> bool {
        error.is_unconfirmed_mapping()
    }

    fn unmap<L>(&self, range: AddrRange<Iova>, lease: L) -> Result<PendingFlush<L>, UnmapRefused<SpaceError, L>> {
        Self::unmap(self, range, lease).map_err(|refused| UnmapRefused {
            error: refused.error.into(),
            lease: refused.lease,
        })
    }

    fn flush<L>(&self, pending: PendingFlush<L>) -> Result<L, (SpaceError, PendingFlush<L>)> {
        Self::flush(self, pending).map_err(|(error, pending)| (error.into(), pending))
    }

    /// One invalidation serves all of them.
    fn flush_all<L>(
        &self,
        pending: impl Iterator<Item = PendingFlush<L>>,
        confirmed: impl FnMut(L),
        mut kept: impl FnMut(PendingFlush<L>),
    ) -> Result<(), SpaceError> {
        let (own, foreign): (Vec<_>, Vec<_>) = pending.partition(|token| self.issued(token));
        let foreign = if foreign.is_empty() {
            Ok(())
        } else {
            foreign.into_iter().for_each(&mut kept);
            Err(FlushError::OtherDomain.into())
        };
        match Self::flush_all(self, own) {
            Ok(leases) => leases.into_iter().for_each(confirmed),
            Err((error, own)) => {
                own.into_iter().for_each(kept);
                return Err(error.into());
            }
        }
        foreign
    }
}
