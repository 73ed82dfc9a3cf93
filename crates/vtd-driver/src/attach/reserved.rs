//! Reserved regions: identity-mapped wherever their devices are, and the domains where those are parked (rule D14).

use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_types::omission::{Step, kept};
use iommu_types::{AddrRange, HostPhys, Registers, SourceId};

use super::{AttachError, DetachError, Structures, Target};
use crate::error::{HardwareError, Reachable, Unconfirmed};
use crate::shared::{Host, Shared};
use crate::space::Space;

/// A reserved region and everybody whose requests may go there.
#[derive(Debug)]
pub(crate) struct Reserved {
    pub(crate) range: AddrRange<HostPhys>,
    pub(crate) ids: Vec<SourceId>,
    pub(crate) relaxable: bool,
}

impl Structures {
    /// Identity-maps the reserved regions of `ids` in `space` (rule D14).
    pub(super) fn map_reserved<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        requester: SourceId,
        ids: &[SourceId],
        space: &Arc<Space>,
    ) -> Result<(), AttachError> {
        let here = |region: &&Reserved| !region.relaxable && region.ids.iter().any(|id| ids.contains(id));
        for region in self.reserved.iter().filter(here) {
            if let Err(cause) = space.map_identity(shared, region.range) {
                let range = region.range;
                // What was mapped for this attempt goes again; that the attempt failed is the error to report, unless
                // that is not certain.
                self.release_identity(shared, space)
                    .map_err(|cause| unconfirmed_region(requester, space, cause))?;
                return Err(AttachError::Reserved {
                    requester,
                    range,
                    cause,
                });
            }
        }
        Ok(())
    }

    /// The unit did not confirm that `requester` left the domain of its reserved regions, so it did not get to `target`:
    /// takes out there what was mapped for it, and says what is in doubt.
    pub(super) fn still_parked<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        requester: SourceId,
        parked: &[SourceId],
        target: &Target,
        cause: HardwareError,
    ) -> Unconfirmed {
        let home = parked.iter().find_map(|id| self.owners.get(id));
        let home = home.map_or(target, |owner| &owner.target);
        let Target::Space(space) = target else {
            return self.unconfirmed(requester, home, cause);
        };
        match self.release_identity(shared, space) {
            Ok(()) => self.unconfirmed(requester, home, cause),
            Err(_) => unconfirmed_region(requester, space, cause),
        }
    }

    /// Takes identity mappings out of `space` that no ID in it needs any more. The domain in which IDs are parked keeps
    /// its own.
    pub(super) fn release_identity<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        space: &Arc<Space>,
    ) -> Result<(), HardwareError> {
        if self.homes.values().any(|home| Arc::ptr_eq(home, space)) {
            return Ok(());
        }
        let needs = |id: &SourceId| {
            let here = |target: &Target| matches!(target, Target::Space(other) if Arc::ptr_eq(other, space));
            let owner = self.owners.get(id);
            owner.is_some_and(|owner| here(&owner.target) && !owner.cleared)
        };
        let wanted: Vec<AddrRange<HostPhys>> = self
            .reserved
            .iter()
            .filter(|region| region.ids.iter().any(needs))
            .map(|region| region.range)
            .collect();
        space.keep_identity(shared, &wanted)
    }

    /// Parks `ids` in `home`, the domain with their reserved regions only.
    pub(crate) fn park<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        ids: &[SourceId],
        home: &Arc<Space>,
    ) -> Result<(), AttachError> {
        let target = Target::Space(home.clone());
        let free: Vec<SourceId> = ids.iter().copied().filter(|id| !self.owners.contains_key(id)).collect();
        self.add_tables(shared, &free)?;
        self.publish(shared, &free, &target, None, None)
    }

    /// Gives `ids`, which `requester` had, back to the domains of their reserved regions: all that can be (rule D14).
    pub(super) fn send_home<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        requester: SourceId,
        ids: &[SourceId],
    ) -> Result<(), DetachError> {
        let mut result = Ok(());
        for &id in ids.iter().filter(|_| kept(Step::ReservedAfterDetach)) {
            let Some(home) = self.homes.get(&id).cloned() else {
                continue;
            };
            if let Err(error) = self.park(shared, &[id], &home) {
                if let Some(owner) = self.owners.get_mut(&id) {
                    // The requester counts as attached, so that it can be detached again.
                    owner.users = [requester].into();
                    owner.cleared = true;
                }
                let cause = match error {
                    AttachError::Hardware(cause) | AttachError::Unconfirmed(Unconfirmed { cause, .. }) => cause,
                    _ => HardwareError::Poisoned(shared.health()),
                };
                result = result.and(Err(DetachError::ReservedBlocked { requester, cause }));
            }
        }
        result
    }
}

/// The reserved regions of `requester` were taken out of `space`, and the unit did not confirm it.
pub(super) fn unconfirmed_region(requester: SourceId, space: &Arc<Space>, cause: HardwareError) -> Unconfirmed {
    let domain = space.id;
    Unconfirmed {
        reachable: Reachable::Reserved { requester, domain },
        cause,
    }
}
