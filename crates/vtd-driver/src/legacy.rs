//! Root and context tables of legacy mode (`VT-d §3.4.2`, `§9.1`, `§9.3`).

use alloc::collections::BTreeMap;

use iommu_types::{DomainId, HostPhys, Registers, SourceId, TableFrame, TableMemory};
use vtd_spec::entry::{ContextEntry, ContextTranslation, RootEntry};

use crate::attach::Target;
use crate::error::TableError;
use crate::shared::{Host, Shared};
use crate::space::Stages;
use crate::structures::{ContextChange, Entry, Flags, empty_page};

/// The root table and the context tables below it. They live as long as the unit is driven: a context table
/// of a bus is not given back when its last device is detached.
#[derive(Debug)]
pub(crate) struct LegacyTables {
    root: TableFrame,
    contexts: BTreeMap<u8, TableFrame>,
}

impl LegacyTables {
    pub(crate) fn new(root: TableFrame) -> Self {
        Self {
            root,
            contexts: BTreeMap::new(),
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
        if self.contexts.contains_key(&source.bus()) {
            return Ok(false);
        }
        let root = Entry::<2>::of(&shared.host, self.root.base(), source.bus().into())?;
        let frame = empty_page(shared)?;
        let entry = RootEntry::DEFAULT.with_p(true).with_context_table(frame.base());
        root.publish(shared, entry.to_words());
        self.contexts.insert(source.bus(), frame);
        Ok(true)
    }

    /// The context entry of `source`.
    fn context<'a, P: TableMemory>(&self, host: &'a P, source: SourceId) -> Result<Entry<'a, 2>, TableError> {
        let none = TableError::NotTableMemory { at: self.root.base() };
        let table = self.contexts.get(&source.bus()).ok_or(none)?;
        Entry::of(host, table.base(), source.devfn().raw().into())
    }

    pub(crate) fn publish<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
        target: &Target,
        flags: Flags,
    ) -> Result<(), TableError> {
        let entry = context_entry(shared, target).with_fpd(flags.silent);
        let entry = if flags.device_tlb {
            entry.with_tt(ContextTranslation::WithDeviceTlb)
        } else {
            entry
        };
        self.context(&shared.host, source)?.publish(shared, entry.to_words());
        Ok(())
    }

    pub(crate) fn change<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
        change: ContextChange,
    ) -> Result<(), TableError> {
        let context = self.context(&shared.host, source)?;
        let entry = ContextEntry::from_words(context.load());
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
        Ok(())
    }
}

fn context_entry<R: Registers, P: Host>(shared: &Shared<R, P>, target: &Target) -> ContextEntry {
    let entry = ContextEntry::DEFAULT.with_p(true).with_domain(target.id());
    match target {
        Target::Space(space) => match &space.stages {
            Stages::Second { agaw, table, .. } => entry
                .with_tt(ContextTranslation::Untranslated)
                .with_agaw(*agaw)
                .with_second_stage_table(table.root()),
            // Not created on a unit in legacy mode; blocked all the same.
            Stages::First { .. } | Stages::Nested { .. } => entry.with_p(false),
        },
        Target::PassThrough(_) => {
            // VT-d §9.3: for pass-through the width must be the largest that the unit supports.
            let entry = entry.with_tt(ContextTranslation::PassThrough);
            let largest = shared.capabilities.pass_through_agaw();
            largest.map_or(entry, |agaw| entry.with_agaw(agaw))
        }
    }
}

pub(crate) fn lookup<P: TableMemory>(host: &P, root: HostPhys, source: SourceId) -> Option<DomainId> {
    let root = Entry::<2>::of(host, root, source.bus().into()).ok()?.load();
    let root = Some(RootEntry::from_words(root)).filter(|root| root.p())?;
    let context = Entry::<2>::of(host, root.context_table(), source.devfn().raw().into())
        .ok()?
        .load();
    let context = Some(ContextEntry::from_words(context)).filter(|context| context.p())?;
    Some(context.domain())
}
