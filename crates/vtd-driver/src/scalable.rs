//! Root, context and PASID tables of scalable mode (`VT-d §3.4.3`, `§9.2`, `§9.4` to `§9.6`).
//!
//! Requests without PASID go by PASID 0: units that can name another in the context entry (`ECAP_REG.RPS`) and
//! units that cannot then behave alike. Each requester ID has a PASID directory and PASID tables of its own.

use alloc::collections::{BTreeMap, btree_map};

use iommu_types::{DomainId, HostPhys, Pasid, Registers, SourceId, TableFrame, TableMemory};
use vtd_spec::Agaw;
use vtd_spec::entry::{
    FirstStagePagingMode, PasidControl, PasidDirectoryEntry, PasidEntry, PasidFirstStage, PasidTags, PasidTranslation,
    ScalableContextEntry, ScalableRootEntry,
};

use crate::attach::Target;
use crate::error::TableError;
use crate::shared::{Host, Shared};
use crate::space::Stages;
use crate::structures::{ContextChange, Entry, Flags, empty_page};

/// PASID directory and PASID tables of one requester ID.
#[derive(Debug)]
struct PasidTables {
    directory: TableFrame,
    /// By index in the directory; the first is always there.
    tables: BTreeMap<u32, TableFrame>,
}

/// PASIDs that a directory of the smallest size leads to (`VT-d §9.4`, PDTS = 0).
pub(crate) const MAX_PASIDS: u32 = 128 * 64;

/// The PASID of requests without one.
pub(crate) const NO_PASID: Pasid = match Pasid::new(0) {
    Some(pasid) => pasid,
    // Not reached: 0 fits any width.
    None => Pasid::MAX,
};

impl PasidTables {
    /// A directory whose first entry leads to a table without entries.
    fn new<R: Registers, P: Host>(shared: &Shared<R, P>) -> Result<Self, TableError> {
        let mut this = Self {
            directory: empty_page(shared)?,
            tables: BTreeMap::new(),
        };
        match this.add(shared, NO_PASID) {
            Ok(()) => Ok(this),
            Err(error) => {
                // Nothing leads there yet.
                shared.host.free(this.directory);
                Err(error)
            }
        }
    }

    /// Makes sure that there is a table for `pasid`.
    fn add<R: Registers, P: Host>(&mut self, shared: &Shared<R, P>, pasid: Pasid) -> Result<(), TableError> {
        let index = PasidDirectoryEntry::index(pasid);
        if let btree_map::Entry::Vacant(vacant) = self.tables.entry(index) {
            let slot = Entry::<1>::of(&shared.host, self.directory.base(), index.into())?;
            let table = empty_page(shared)?;
            let entry = PasidDirectoryEntry::DEFAULT.with_p(true).with_pasid_table(table.base());
            slot.publish(shared, [entry.raw_value()]);
            vacant.insert(table);
        }
        Ok(())
    }

    /// The entry of `pasid`, whose table was added.
    fn entry<'a, P: TableMemory>(&self, host: &'a P, pasid: Pasid) -> Result<Entry<'a, 8>, TableError> {
        let none = TableError::NotTableMemory {
            at: self.directory.base(),
        };
        let table = self.tables.get(&PasidDirectoryEntry::index(pasid)).ok_or(none)?;
        Entry::of(host, table.base(), PasidEntry::index(pasid).into())
    }
}

/// All tables of a unit in scalable mode. They live as long as the unit is driven.
#[derive(Debug)]
pub(crate) struct ScalableTables {
    root: TableFrame,
    /// By bus and half of the bus.
    contexts: BTreeMap<(u8, usize), TableFrame>,
    pasids: BTreeMap<SourceId, PasidTables>,
}

fn half(source: SourceId) -> (u8, usize) {
    (source.bus(), ScalableRootEntry::half(source.devfn()))
}

impl ScalableTables {
    pub(crate) fn new(root: TableFrame) -> Self {
        Self {
            root,
            contexts: BTreeMap::new(),
            pasids: BTreeMap::new(),
        }
    }

    pub(crate) fn root(&self) -> HostPhys {
        self.root.base()
    }

    pub(crate) fn add<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        source: SourceId,
    ) -> Result<bool, TableError> {
        if let btree_map::Entry::Vacant(vacant) = self.pasids.entry(source) {
            vacant.insert(PasidTables::new(shared)?);
        }
        let key @ (bus, upper) = half(source);
        if self.contexts.contains_key(&key) {
            return Ok(false);
        }
        // The halves of a root entry are words of their own, each with its presence bit.
        let index = u64::from(bus) * 2 + u64::from(upper == 1);
        let root = Entry::<1>::of(&shared.host, self.root.base(), index)?;
        let frame = empty_page(shared)?;
        let entry = ScalableRootEntry::DEFAULT
            .with_lp(true)
            .with_lower_context_table(frame.base())
            .with_up(true)
            .with_upper_context_table(frame.base());
        let value = entry.to_words().get(upper).copied().unwrap_or(0);
        root.publish(shared, [value]);
        self.contexts.insert(key, frame);
        Ok(true)
    }

    fn context<'a, P: TableMemory>(&self, host: &'a P, source: SourceId) -> Result<Entry<'a, 4>, TableError> {
        let none = TableError::NotTableMemory { at: self.root.base() };
        let table = self.contexts.get(&half(source)).ok_or(none)?;
        let index = ScalableContextEntry::byte_offset(source.devfn()) / ScalableContextEntry::BYTES;
        Entry::of(host, table.base(), index)
    }

    fn pasid_tables(&self, source: SourceId) -> Result<&PasidTables, TableError> {
        self.pasids
            .get(&source)
            .ok_or(TableError::NotTableMemory { at: self.root.base() })
    }

    pub(crate) fn publish<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
        target: &Target,
        flags: Flags,
    ) -> Result<(), TableError> {
        let pasids = self.pasid_tables(source)?;
        // The PASID entry first: the context entry makes the way to it present.
        let entry = pasid_entry(shared, target);
        pasids.entry(&shared.host, NO_PASID)?.publish(shared, entry.to_words());
        let context = ScalableContextEntry::DEFAULT
            .with_p(true)
            .with_pasid_directory(pasids.directory.base())
            .with_paside(shared.capabilities.ecap.pasid())
            .with_fpd(flags.silent)
            .with_dte(flags.device_tlb);
        let [low, high] = context.to_words();
        self.context(&shared.host, source)?.publish(shared, [low, high, 0, 0]);
        Ok(())
    }

    pub(crate) fn change<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
        change: ContextChange,
    ) -> Result<(), TableError> {
        let context = self.context(&shared.host, source)?;
        let [low, high, ..] = context.load();
        let entry = ScalableContextEntry::from_words([low, high]);
        let [first, _] = match change {
            ContextChange::Absent => entry.with_p(false),
            ContextChange::Silent(silent) => entry.with_fpd(silent),
        }
        .to_words();
        context.replace_first(shared, first);
        Ok(())
    }

    pub(crate) fn zero<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
    ) -> Result<(), TableError> {
        self.context(&shared.host, source)?.zero(shared);
        self.zero_pasid(shared, source, NO_PASID)
    }

    /// Makes requests of `source` with `pasid`, whose entry is not present, use `target`.
    pub(crate) fn publish_pasid<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        source: SourceId,
        pasid: Pasid,
        target: &Target,
    ) -> Result<(), TableError> {
        let at = self.root.base();
        let pasids = self.pasids.get_mut(&source).ok_or(TableError::NotTableMemory { at })?;
        pasids.add(shared, pasid)?;
        pasids
            .entry(&shared.host, pasid)?
            .publish(shared, pasid_entry(shared, target).to_words());
        Ok(())
    }

    /// Takes the presence from the PASID entry and leaves the rest of it (rule D2).
    pub(crate) fn clear_pasid<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
        pasid: Pasid,
    ) -> Result<(), TableError> {
        let entry = self.pasid_tables(source)?.entry(&shared.host, pasid)?;
        let control = PasidEntry::from_words(entry.load()).control.with_p(false);
        entry.replace_first(shared, control.raw_value());
        Ok(())
    }

    /// Zeroes a PASID entry that the unit has been made to forget.
    pub(crate) fn zero_pasid<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
        pasid: Pasid,
    ) -> Result<(), TableError> {
        self.pasid_tables(source)?.entry(&shared.host, pasid)?.zero(shared);
        Ok(())
    }
}

/// The PASID entry that sends requests to `target`.
fn pasid_entry<R: Registers, P: Host>(shared: &Shared<R, P>, target: &Target) -> PasidEntry {
    let ecap = shared.capabilities.ecap;
    let control = PasidControl::DEFAULT.with_p(true);
    let first = PasidFirstStage::DEFAULT;
    let (control, first_stage) = match target {
        Target::PassThrough(_) => (control.with_translation(PasidTranslation::PassThrough), first),
        Target::Space(space) => match &space.stages {
            Stages::Second { agaw, table, flags } => {
                let control = control.with_translation(PasidTranslation::SecondStage);
                (second_stage(control, *agaw, table.root(), *flags), first)
            }
            Stages::First { five_levels, table } => {
                let control = control.with_translation(PasidTranslation::FirstStage);
                let widest = shared.capabilities.cap.largest_agaw();
                let control = match widest.filter(|_| shared.options.quirks.first_stage_width) {
                    Some(agaw) => control.with_agaw(agaw),
                    None => control,
                };
                let first = first.with_fspm(paging_mode(*five_levels)).with_table(table.root());
                (control, first)
            }
            Stages::Nested { parent, guest } => {
                let control = control.with_translation(PasidTranslation::Nested);
                let control = match &parent.stages {
                    Stages::Second { agaw, table, flags } => second_stage(control, *agaw, table.root(), *flags),
                    // Parents are second-stage spaces; anything else is blocked.
                    Stages::First { .. } | Stages::Nested { .. } => control.with_p(false),
                };
                let first = first
                    .with_fspm(paging_mode(guest.five_levels))
                    .with_nested_table(guest.root);
                (control, first)
            }
        },
    };
    let tags = PasidTags::DEFAULT
        .with_domain(target.id())
        .with_pwsnp(ecap.smpwcs())
        .with_pgsnp(ecap.sc());
    PasidEntry {
        control,
        tags,
        first_stage,
        ..PasidEntry::default()
    }
}

fn second_stage(control: PasidControl, agaw: Agaw, root: HostPhys, flags: bool) -> PasidControl {
    control.with_agaw(agaw).with_second_stage_table(root).with_ssade(flags)
}

const fn paging_mode(five_levels: bool) -> FirstStagePagingMode {
    if five_levels {
        FirstStagePagingMode::FiveLevel
    } else {
        FirstStagePagingMode::FourLevel
    }
}

pub(crate) fn lookup<P: TableMemory>(
    host: &P,
    root: HostPhys,
    source: SourceId,
    pasid: Option<Pasid>,
) -> Option<DomainId> {
    let pasid = pasid.unwrap_or(NO_PASID);
    let root = ScalableRootEntry::from_words(Entry::<2>::of(host, root, source.bus().into()).ok()?.load());
    let table = root.context_table(source.devfn())?;
    let index = ScalableContextEntry::byte_offset(source.devfn()) / ScalableContextEntry::BYTES;
    let [low, high, ..] = Entry::<4>::of(host, table, index).ok()?.load();
    let context = Some(ScalableContextEntry::from_words([low, high])).filter(|context| context.p())?;
    // The directories made here have one page; a PASID beyond has no entry.
    let index = PasidDirectoryEntry::index(pasid);
    if pasid.raw() >= MAX_PASIDS {
        return None;
    }
    let [directory] = Entry::<1>::of(host, context.pasid_directory(), index.into())
        .ok()?
        .load();
    let directory = PasidDirectoryEntry::new_with_raw_value(directory);
    let entry = Entry::<8>::of(host, directory.pasid_table(), PasidEntry::index(pasid).into()).ok()?;
    let entry = PasidEntry::from_words(entry.load());
    (directory.p() && entry.control.p()).then(|| entry.tags.domain())
}

#[cfg(test)]
mod tests;
