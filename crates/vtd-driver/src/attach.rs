//! Which requester is in which domain: attaching, detaching, and the protocol between them.
//!
//! Ownership is recorded before an entry becomes present and removed only after the unit has confirmed that it
//! forgot the entry, so that a lost acknowledgement can never make an ID look free that is not.

mod error;
mod pasid;
mod reserved;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_types::omission::{Step, kept};
use iommu_types::{DomainId, Pasid, Registers, SourceId};

pub use self::error::{AtsRefusal, AttachError, DetachError};
pub(crate) use self::reserved::Reserved;
use self::reserved::unconfirmed_region;
use crate::domain::DomainError;
use crate::error::{HardwareError, Reachable, TableError, Unconfirmed};
use crate::ids::DomainIds;
use crate::invalidate::Invalidation;
use crate::options::{AtsListing, DeviceTlb, PassThrough, Requester, TableMode};
use crate::shared::{Host, Shared};
use crate::space::{Holder, Space, Stages};
use crate::structures::{ContextChange, Flags, Tables};

/// The identifier with which units tag what they cache about entries that are not present (`VT-d §6.1`).
const NOT_PRESENT: DomainId = DomainId(0);

/// Where a requester's translations come from.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Space(Arc<Space>),
    PassThrough(DomainId),
}

impl Target {
    pub(crate) fn id(&self) -> DomainId {
        match self {
            Self::Space(space) => space.id,
            Self::PassThrough(id) => *id,
        }
    }

    /// Whether functions may hold translations of it in device-TLBs that this driver keeps clean.
    fn caches_in_devices(&self) -> bool {
        matches!(self, Self::Space(space) if !matches!(space.stages, Stages::Nested { .. }))
    }

    /// The domain as [`Reachable`] names it.
    fn reported(&self) -> Option<DomainId> {
        match self {
            Self::Space(space) => Some(space.id),
            Self::PassThrough(_) => None,
        }
    }
}

/// Who has an ID.
#[derive(Debug)]
struct Owner {
    target: Target,
    /// The requesters that were attached with this ID; none while it is only parked for its reserved regions.
    users: Vec<SourceId>,
    /// The function that may hold translations in a device-TLB.
    device_tlb: Option<DeviceTlb>,
    /// The entry is not present any more, and the unit has not confirmed yet that it forgot it.
    cleared: bool,
}

/// Tables, identifiers and owners of one unit.
#[derive(Debug)]
pub(crate) struct Structures {
    pub(crate) tables: Tables,
    pub(crate) ids: DomainIds,
    owners: BTreeMap<SourceId, Owner>,
    /// Where IDs with reserved regions are while nobody has attached them.
    pub(crate) homes: BTreeMap<SourceId, Arc<Space>>,
    pub(crate) reserved: Vec<Reserved>,
    /// Where requests with a PASID go, by requester and PASID.
    pasids: BTreeMap<(SourceId, Pasid), Arc<Space>>,
    /// IDs whose faults are not recorded.
    silenced: BTreeSet<SourceId>,
    /// The one identifier that all pass-through entries share (rule D10).
    pass_through: Option<DomainId>,
    /// A root entry became present, and the unit has not been made to notice yet.
    root_pending: bool,
}

impl Structures {
    pub(crate) fn new(tables: Tables, ids: DomainIds) -> Self {
        Self {
            tables,
            ids,
            owners: BTreeMap::new(),
            homes: BTreeMap::new(),
            reserved: Vec::new(),
            pasids: BTreeMap::new(),
            silenced: BTreeSet::new(),
            pass_through: None,
            root_pending: false,
        }
    }

    /// Whether any ID is in `space`.
    pub(crate) fn uses(&self, space: &Arc<Space>) -> bool {
        let here = |target: &Target| matches!(target, Target::Space(other) if Arc::ptr_eq(other, space));
        self.owners.values().any(|owner| here(&owner.target))
            || self.pasids.values().any(|other| Arc::ptr_eq(other, space))
    }

    /// The target of pass-through entries, if policy and hardware allow it.
    pub(crate) fn pass_through<R: Registers, P: Host>(&mut self, shared: &Shared<R, P>) -> Result<Target, AttachError> {
        if shared.options.pass_through != PassThrough::AllowedForTrustedDevices {
            return Err(AttachError::PassThroughRefused);
        }
        if !shared.capabilities.ecap.pt() {
            return Err(AttachError::NoPassThrough);
        }
        let id = match self.pass_through {
            Some(id) => id,
            None => self.ids.allocate().map_err(DomainError::from)?,
        };
        self.pass_through = Some(id);
        Ok(Target::PassThrough(id))
    }

    /// Sends everything of `requester` to `target`.
    pub(crate) fn attach<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        requester: &Requester,
        target: &Target,
        device_tlb: Option<DeviceTlb>,
    ) -> Result<(), AttachError> {
        shared.require_health()?;
        let ids = requester.ids();
        if let Some(function) = device_tlb {
            if !(shared.capabilities.ecap.dt() && ids.len() == 1 && target.caches_in_devices()) {
                return Err(AttachError::NoDeviceTlb);
            }
            let requester = requester.rid;
            permitted(function, shared.options.mode).map_err(|why| AttachError::AtsRefused { requester, why })?;
        }
        let fresh = self.claimable(requester, &ids, target)?;
        self.add_tables(shared, &fresh)?;
        if let (Target::Space(space), true) = (target, kept(Step::ReservedThroughAttach)) {
            self.map_reserved(shared, requester.rid, &ids, space)?;
        }
        // IDs that are parked for their reserved regions leave there first.
        let parked: Vec<SourceId> = fresh
            .iter()
            .copied()
            .filter(|id| self.owners.contains_key(id))
            .collect();
        for &id in &parked {
            self.clear(shared, id)?;
        }
        if let Err(cause) = self.forget(shared, &parked) {
            return Err(self.still_parked(shared, requester.rid, &parked, target, cause).into());
        }
        self.remove(shared, &parked)?;
        if let (Target::Space(space), Some(function)) = (target, device_tlb) {
            // Recorded before the function can ask for its first translation.
            space.add_holder(Holder {
                source: requester.rid,
                pasid: None,
                function,
            });
        }
        self.publish(shared, &fresh, target, Some(requester.rid), device_tlb)?;
        for id in ids.iter().filter(|id| !fresh.contains(id)) {
            if let Some(owner) = self.owners.get_mut(id) {
                owner.users.push(requester.rid);
            }
        }
        Ok(())
    }

    /// The IDs that have to change for `requester` to get to `target`: all but those that a device in the same
    /// domain has already.
    fn claimable(
        &self,
        requester: &Requester,
        ids: &[SourceId],
        target: &Target,
    ) -> Result<Vec<SourceId>, AttachError> {
        let mut fresh = Vec::new();
        for &alias in ids {
            let Some(owner) = self.owners.get(&alias) else {
                fresh.push(alias);
                continue;
            };
            let domain = owner.target.id();
            // One that is parked is taken from there again, also if the unit did not confirm that before.
            if owner.cleared && !owner.users.is_empty() {
                return Err(AttachError::DetachUnconfirmed { alias });
            }
            if owner.users.contains(&requester.rid) {
                let requester = requester.rid;
                return Err(AttachError::AlreadyAttached { requester, domain });
            }
            match owner.users.first() {
                None => fresh.push(alias),
                Some(_) if domain == target.id() => {}
                Some(&owner) => {
                    return Err(AttachError::AliasInUse {
                        requester: requester.rid,
                        alias,
                        owner,
                        domain,
                    });
                }
            }
        }
        Ok(fresh)
    }

    /// Makes sure that there are tables for `ids`, and that the unit walks them.
    fn add_tables<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        ids: &[SourceId],
    ) -> Result<(), AttachError> {
        for &id in ids {
            self.root_pending |= self.tables.add(shared, id)?;
        }
        if self.root_pending {
            self.root_changed(shared)?;
            self.root_pending = false;
        }
        Ok(())
    }

    /// Makes the entries of `ids`, none of which is present, lead to `target`.
    fn publish<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        ids: &[SourceId],
        target: &Target,
        user: Option<SourceId>,
        device_tlb: Option<DeviceTlb>,
    ) -> Result<(), AttachError> {
        let Some(&first) = ids.first() else { return Ok(()) };
        for &id in ids {
            let owner = Owner {
                target: target.clone(),
                users: user.into_iter().collect(),
                device_tlb,
                cleared: false,
            };
            let silent = self.silenced.contains(&id);
            self.owners.insert(id, owner);
            let flags = Flags {
                silent,
                device_tlb: device_tlb.is_some(),
            };
            self.tables.publish(shared, id, target, flags)?;
        }
        let confirmed = if shared.capabilities.caching_mode() && kept(Step::AbsentEntryForgotten) {
            // VT-d §6.1: the entry was cached as not present under identifier 0, translations under the
            // domain's own (rule D3).
            let forget = |&source: &SourceId| Invalidation::ContextDevice {
                source,
                domain: NOT_PRESENT,
            };
            let contexts: Vec<Invalidation> = ids.iter().map(forget).collect();
            let pasids = match shared.options.mode {
                TableMode::Legacy => &[][..],
                TableMode::Scalable => &[Invalidation::PasidCacheDomain(NOT_PRESENT)],
            };
            shared.invalidate_in_turn(&[&contexts, pasids, &[Invalidation::IotlbDomain(target.id())]])
        } else {
            shared.flush_write_buffer()
        };
        confirmed.map_err(|cause| self.unconfirmed(user.unwrap_or(first), target, cause).into())
    }

    /// Takes `requester` out of its domain: blocked from then on, or back in the domain of its reserved regions.
    pub(crate) fn detach<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        requester: &Requester,
    ) -> Result<(), DetachError> {
        let rid = requester.rid;
        if self.holds_device_tlb(rid) && kept(Step::AtsOffFirst) {
            return Err(DetachError::AtsOn { requester: rid });
        }
        if self.has_pasids(rid) {
            return Err(DetachError::PasidsAttached { requester: rid });
        }
        let ids = requester.ids();
        let uses = |owner: &&Owner| owner.users.contains(&rid);
        let Some(target) = self.owners.get(&rid).filter(uses).map(|owner| owner.target.clone()) else {
            return Err(DetachError::NotAttached { requester: rid });
        };
        // An ID that another device in the domain uses too stays.
        let (leaving, shared_ids): (Vec<SourceId>, Vec<SourceId>) = ids
            .iter()
            .copied()
            .filter(|id| self.owners.get(id).is_some_and(|owner| owner.users.contains(&rid)))
            .partition(|id| self.owners.get(id).is_some_and(|owner| owner.users.len() == 1));
        for &id in &leaving {
            self.clear(shared, id)?;
        }
        self.forget(shared, &leaving)
            .map_err(|cause| self.unconfirmed(rid, &target, cause))?;
        if let Target::Space(space) = &target {
            // While the IDs are not free yet, so that detaching again asks for it again.
            self.release_identity(shared, space)
                .map_err(|cause| unconfirmed_region(rid, space, cause))?;
        }
        self.remove(shared, &leaving)?;
        for id in &shared_ids {
            if let Some(owner) = self.owners.get_mut(id) {
                owner.users.retain(|user| *user != rid);
            }
        }
        self.send_home(shared, rid, &leaving)
    }

    /// Whether the function may hold translations of its own.
    fn holds_device_tlb(&self, rid: SourceId) -> bool {
        self.owners.get(&rid).is_some_and(|owner| owner.device_tlb.is_some())
    }

    /// Whether [`Self::detach`] would get as far as needing ATS off: asked before that is done to the function.
    pub(crate) fn may_turn_ats_off(&self, rid: SourceId) -> Result<(), DetachError> {
        if !self.owners.get(&rid).is_some_and(|owner| owner.users.contains(&rid)) {
            return Err(DetachError::NotAttached { requester: rid });
        }
        if self.has_pasids(rid) {
            return Err(DetachError::PasidsAttached { requester: rid });
        }
        Ok(())
    }

    /// Makes a function whose ATS was turned off forget its translations: what [`Self::detach`] waits for.
    pub(crate) fn empty_device_tlb<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        rid: SourceId,
    ) -> Result<(), DetachError> {
        let Some(owner) = self.owners.get_mut(&rid).filter(|owner| owner.device_tlb.is_some()) else {
            return Ok(());
        };
        let target = owner.target.clone();
        if let Target::Space(space) = &target {
            space
                .empty_holder(shared, rid, None)
                .map_err(|cause| self.unconfirmed(rid, &target, cause))?;
            space.remove_holder(rid, None);
        }
        if let Some(owner) = self.owners.get_mut(&rid) {
            owner.device_tlb = None;
        }
        Ok(())
    }

    /// Stops or resumes recording the faults of `requester`.
    pub(crate) fn silence<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        requester: &Requester,
        silent: bool,
    ) -> Result<(), AttachError> {
        shared.require_health()?;
        let mut batch = Vec::new();
        for source in requester.ids() {
            self.add_tables(shared, &[source])?;
            self.tables.change(shared, source, ContextChange::Silent(silent))?;
            if silent {
                self.silenced.insert(source);
            } else {
                self.silenced.remove(&source);
            }
            // The flag of an entry that is not present is cached in caching mode only, under identifier 0.
            let domain = self.owners.get(&source).map_or(NOT_PRESENT, |owner| owner.target.id());
            batch.push(Invalidation::ContextDevice { source, domain });
        }
        Ok(shared.invalidate(&batch)?)
    }

    /// First half of taking an entry away: not present, nothing else changed.
    fn clear<R: Registers, P: Host>(&mut self, shared: &Shared<R, P>, id: SourceId) -> Result<(), TableError> {
        if kept(Step::PresenceFirst) {
            self.tables.change(shared, id, ContextChange::Absent)?;
        } else {
            self.tables.zero(shared, id)?;
        }
        if let Some(owner) = self.owners.get_mut(&id) {
            owner.cleared = true;
        }
        Ok(())
    }

    /// Makes the unit forget the entries of `ids`, which were cleared (`VT-d §6.5.3.3`, rule D1): the context
    /// cache under each ID, the PASID cache, then all translations of the domain.
    fn forget<R: Registers, P: Host>(&self, shared: &Shared<R, P>, ids: &[SourceId]) -> Result<(), HardwareError> {
        let (mut contexts, mut domains) = (Vec::new(), Vec::new());
        for &source in ids {
            if let Some(owner) = self.owners.get(&source) {
                let domain = owner.target.id();
                if kept(Step::ContextForgotten) {
                    contexts.push(Invalidation::ContextDevice { source, domain });
                }
                if !domains.contains(&domain) {
                    domains.push(domain);
                }
            }
        }
        let of_each = |forget: fn(DomainId) -> Invalidation, wanted: bool| -> Vec<Invalidation> {
            let domains = domains.iter().filter(|_| wanted);
            domains.copied().map(forget).collect()
        };
        let scalable = shared.options.mode == TableMode::Scalable;
        let pasids = of_each(
            Invalidation::PasidCacheDomain,
            scalable && kept(Step::PasidCacheForgotten),
        );
        let translations = of_each(Invalidation::IotlbDomain, kept(Step::TranslationsForgotten));
        shared.invalidate_in_turn(&[&contexts, &pasids, &translations])
    }

    /// Second half: the unit has forgotten the entries, so they can be zeroed and the IDs are free.
    fn remove<R: Registers, P: Host>(&mut self, shared: &Shared<R, P>, ids: &[SourceId]) -> Result<(), TableError> {
        for &id in ids {
            self.tables.zero(shared, id)?;
            if self.silenced.contains(&id) {
                self.tables.change(shared, id, ContextChange::Silent(true))?;
            }
            self.owners.remove(&id);
        }
        Ok(())
    }

    /// A root entry became present.
    fn root_changed<R: Registers, P: Host>(&self, shared: &Shared<R, P>) -> Result<(), HardwareError> {
        if shared.capabilities.caching_mode() && kept(Step::AbsentEntryForgotten) {
            shared.invalidate_globally()
        } else {
            shared.flush_write_buffer()
        }
    }

    fn unconfirmed(&self, requester: SourceId, target: &Target, cause: HardwareError) -> Unconfirmed {
        let domain = target.reported();
        Unconfirmed {
            reachable: Reachable::Requester { requester, domain },
            cause,
        }
    }
}

/// Whether firmware and policy let the function keep translations of its own (rules D12 and D24).
fn permitted(function: DeviceTlb, mode: TableMode) -> Result<(), AtsRefusal> {
    if !function.trusted && kept(Step::AtsNeedsTrust) {
        return Err(AtsRefusal::NotTrusted);
    }
    match function.listed {
        None if kept(Step::AtsListed) => Err(AtsRefusal::NotListed),
        // Hardware uses ATS for it on its own then (VT-d §8.8).
        Some(AtsListing::Integrated { required: true }) if mode == TableMode::Legacy && kept(Step::AtsListed) => {
            Err(AtsRefusal::HardwareManaged)
        }
        _ if !function.page_aligned => Err(AtsRefusal::NotPageAligned),
        _ => Ok(()),
    }
}
