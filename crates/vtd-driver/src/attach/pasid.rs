//! Requests with a PASID: address spaces of their own, beside the one of their requester.

use alloc::sync::Arc;

use iommu_types::omission::{Step, kept};
use iommu_types::{Pasid, Registers, SourceId};

use super::{AttachError, DetachError, NOT_PRESENT, Structures, Target};
use crate::invalidate::Invalidation;
use crate::options::DeviceTlb;
use crate::scalable::{MAX_PASIDS, NO_PASID};
use crate::shared::{Host, Shared};
use crate::space::{Holder, Space, Stages};
use crate::structures::Tables;

impl Structures {
    /// Sends requests of `rid` with `pasid` to `space`.
    pub(crate) fn attach_pasid<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        rid: SourceId,
        pasid: Pasid,
        space: &Arc<Space>,
    ) -> Result<(), AttachError> {
        shared.require_health()?;
        let bits = u32::from(shared.capabilities.ecap.pasid_bits());
        let usable = pasid != NO_PASID && pasid.raw() < MAX_PASIDS.min(1 << bits);
        let attached = |owner: &&super::Owner| !owner.cleared && !owner.users.is_empty();
        let Tables::Scalable(tables) = &mut self.tables else {
            return Err(AttachError::NoPasid { pasid });
        };
        let owner = self.owners.get(&rid).filter(attached).filter(|_| usable);
        let owner = owner.ok_or(AttachError::NoPasid { pasid })?;
        let function = owner.device_tlb;
        if function.is_some_and(|function| !function.pasid) && kept(Step::PasidBeforeAts) {
            return Err(AttachError::PasidAfterAts { requester: rid });
        }
        if let Some(other) = self.pasids.get(&(rid, pasid)) {
            return Err(AttachError::AlreadyAttached {
                requester: rid,
                domain: other.id,
            });
        }
        let target = Target::Space(space.clone());
        // Recorded before the entry is present, so that every flush from now on covers it.
        space.add_pasid(pasid);
        if let Some(function) = function {
            space.add_holder(holder(rid, pasid, function));
        }
        if let Err(error) = tables.publish_pasid(shared, rid, pasid, &target) {
            space.remove_pasid(pasid);
            space.remove_holder(rid, Some(pasid));
            return Err(error.into());
        }
        self.pasids.insert((rid, pasid), space.clone());
        let confirmed = if shared.capabilities.caching_mode() && kept(Step::AbsentEntryForgotten) {
            shared.invalidate_in_turn(&[
                &[Invalidation::PasidCacheDomain(NOT_PRESENT)],
                &[Invalidation::IotlbDomain(space.id)],
            ])
        } else {
            shared.flush_write_buffer()
        };
        confirmed.map_err(|cause| self.unconfirmed(rid, &target, cause).into())
    }

    /// Blocks requests of `rid` with `pasid` (`VT-d §6.5.3.3`, PASID entry made not present). What the function holds
    /// in its device-TLB goes last, when the unit cannot give it the same again.
    pub(crate) fn detach_pasid<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        rid: SourceId,
        pasid: Pasid,
    ) -> Result<(), DetachError> {
        let (Tables::Scalable(tables), Some(space)) = (&self.tables, self.pasids.get(&(rid, pasid)).cloned()) else {
            return Err(DetachError::NotAttached { requester: rid });
        };
        let domain = space.id;
        if kept(Step::PresenceFirst) {
            tables.clear_pasid(shared, rid, pasid)?;
        } else {
            tables.zero_pasid(shared, rid, pasid)?;
        }
        let translations = match space.stages {
            Stages::Second { .. } => Invalidation::IotlbDomain(domain),
            Stages::First { .. } | Stages::Nested { .. } => Invalidation::PasidIotlbAll { domain, pasid },
        };
        let entry = [Invalidation::PasidCacheEntry { domain, pasid }];
        let entry = entry.get(usize::from(!kept(Step::PasidCacheForgotten))..);
        shared
            .invalidate_in_turn(&[entry.unwrap_or_default(), &[translations]])
            .and_then(|()| space.empty_holder(shared, rid, Some(pasid)))
            .map_err(|cause| self.unconfirmed(rid, &Target::Space(space.clone()), cause))?;
        tables.zero_pasid(shared, rid, pasid)?;
        self.pasids.remove(&(rid, pasid));
        space.remove_pasid(pasid);
        space.remove_holder(rid, Some(pasid));
        Ok(())
    }

    /// Whether any PASID of `rid` is attached.
    pub(super) fn has_pasids(&self, rid: SourceId) -> bool {
        self.pasids.range((rid, NO_PASID)..=(rid, Pasid::MAX)).next().is_some()
    }
}

const fn holder(source: SourceId, pasid: Pasid, function: DeviceTlb) -> Holder {
    Holder {
        source,
        pasid: Some(pasid),
        function,
    }
}
