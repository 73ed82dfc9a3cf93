//! Memory maps of the host's own drivers.

use iommu_types::{AddrRange, AddressSpace, Bdf, HostPhys, Iova, Perms, Piece, UnmapRefused};
use vtd_driver::{DomainOptions, IoasPending, Requester, SpaceError};

use crate::error::VfioError;
use crate::group::GroupId;
use crate::platform::{Driver, Owner, Platform, Space};

/// The memory map of a group that a host driver uses: what the DMA API (`iommu-dma`) works on.
///
/// Dropping it detaches the group's devices, which are blocked then.
#[derive(Debug)]
pub struct HostSpace {
    platform: Platform,
    group: GroupId,
    /// `None` only while it is torn down.
    space: Option<Space>,
    attached: Vec<(Bdf, Requester)>,
}

impl Platform {
    /// An empty memory map for the group of `function`, whose devices are attached to it. As long as it lives,
    /// the group cannot be given to a user.
    ///
    /// # Errors
    /// [`VfioError::NoFunction`], [`VfioError::NotForUsers`] if `function` is not on a host driver,
    /// [`VfioError::NotContained`] if no unit translates its DMA, [`VfioError::GroupOwned`],
    /// [`VfioError::Attach`].
    pub fn host_space(&self, function: Bdf) -> Result<HostSpace, VfioError> {
        let info = self.group_of(function).ok_or(VfioError::NoFunction(function))?;
        if self.driver(function) != Driver::Host {
            return Err(VfioError::NotForUsers(function));
        }
        self.unit_of(function)
            .map_err(|why| VfioError::NotContained { function, why })?;
        self.claim(info.id, Owner::Host)?;
        // From here on dropping the space takes everything back.
        let mut host = HostSpace {
            platform: self.clone(),
            group: info.id,
            space: Some(Space::new(DomainOptions::default())),
            attached: Vec::new(),
        };
        for function in info.members {
            let (Ok(unit), Some(space)) = (self.unit_of(function), &host.space) else {
                continue;
            };
            let requester = self.requester(function);
            space
                .attach(unit, &requester)
                .map_err(|cause| VfioError::Attach { function, cause })?;
            host.attached.push((function, requester));
        }
        Ok(host)
    }
}

impl HostSpace {
    /// The group.
    #[must_use]
    pub const fn group(&self) -> GroupId {
        self.group
    }
}

impl Drop for HostSpace {
    fn drop(&mut self) {
        let Some(space) = self.space.take() else { return };
        for (function, requester) in &self.attached {
            if let Ok(unit) = self.platform.unit_of(*function) {
                // A unit that does not confirm keeps the device recorded: nobody else gets its IDs.
                let _ = space.detach(unit, requester);
            }
        }
        let _ = space.destroy();
        self.platform.unclaim(self.group);
    }
}

impl HostSpace {
    fn space(&self) -> Option<&Space> {
        self.space.as_ref()
    }
}

impl AddressSpace for HostSpace {
    type Error = SpaceError;
    type Pending<L> = IoasPending<L>;

    fn aperture(&self) -> AddrRange<Iova> {
        match self.space() {
            Some(space) => space.aperture(),
            None => AddrRange::page_around(Iova::ZERO, iommu_types::PageSize::Size4K),
        }
    }

    fn map(&self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Result<(), SpaceError> {
        match self.space() {
            Some(space) => AddressSpace::map(space, iova, phys, len, perms),
            None => Ok(()),
        }
    }

    fn map_pieces(&self, base: Iova, pieces: &[Piece], perms: Perms) -> Result<(), (usize, SpaceError)> {
        match self.space() {
            Some(space) => AddressSpace::map_pieces(space, base, pieces, perms),
            None => Ok(()),
        }
    }

    fn may_be_reachable(error: &SpaceError) -> bool {
        <Space as AddressSpace>::may_be_reachable(error)
    }

    fn unmap<L>(&self, range: AddrRange<Iova>, lease: L) -> Result<IoasPending<L>, UnmapRefused<SpaceError, L>> {
        match self.space() {
            Some(space) => AddressSpace::unmap(space, range, lease),
            None => Err(UnmapRefused {
                error: SpaceError::Unmap(vtd_driver::UnmapError::Split { range }),
                lease,
            }),
        }
    }

    fn flush<L>(&self, pending: IoasPending<L>) -> Result<L, (SpaceError, IoasPending<L>)> {
        match self.space() {
            Some(space) => AddressSpace::flush(space, pending),
            None => Err((SpaceError::Flush(vtd_driver::FlushError::OtherDomain), pending)),
        }
    }

    fn flush_all<L>(
        &self,
        pending: impl Iterator<Item = IoasPending<L>>,
        confirmed: impl FnMut(L),
        mut kept: impl FnMut(IoasPending<L>),
    ) -> Result<(), SpaceError> {
        match self.space() {
            Some(space) => AddressSpace::flush_all(space, pending, confirmed, kept),
            None => {
                pending.for_each(&mut kept);
                Err(SpaceError::Flush(vtd_driver::FlushError::OtherDomain))
            }
        }
    }
}
