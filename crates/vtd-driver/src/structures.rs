//! The structures through which a unit finds the tables of a request: root and context tables, and PASID tables
//! in scalable mode.

use iommu_types::sync::{AtomicU64, Ordering, fence};
use iommu_types::{DomainId, FrameRequest, HostPhys, PAGE_SIZE, Pasid, Registers, SourceId, TableFrame, TableMemory};

use crate::attach::Target;
use crate::error::TableError;
use crate::legacy::{self, LegacyTables};
use crate::options::TableMode;
use crate::queue::table_word;
use crate::scalable::{self, ScalableTables};
use crate::shared::{Host, Shared};

/// What a context entry says besides where translations come from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags {
    /// Do not record faults.
    pub(crate) silent: bool,
    /// The function may ask for translations and use them.
    pub(crate) device_tlb: bool,
}

/// A change of the first word of a context entry, which leaves the rest of the entry alone (rule D2).
#[derive(Clone, Copy, Debug)]
pub(crate) enum ContextChange {
    /// P: not present any more.
    Absent,
    /// FPD: whether faults are recorded. It counts also in an entry that is not present (`VT-d §9.3`).
    Silent(bool),
}

/// The tables of one unit, in the mode that it is driven in.
#[derive(Debug)]
pub(crate) enum Tables {
    Legacy(LegacyTables),
    Scalable(ScalableTables),
}

impl Tables {
    /// A root table in which no bus is present: every request is blocked.
    pub(crate) fn new(mode: TableMode, root: TableFrame) -> Self {
        match mode {
            TableMode::Legacy => Self::Legacy(LegacyTables::new(root)),
            TableMode::Scalable => Self::Scalable(ScalableTables::new(root)),
        }
    }

    pub(crate) fn root(&self) -> HostPhys {
        match self {
            Self::Legacy(tables) => tables.root(),
            Self::Scalable(tables) => tables.root(),
        }
    }

    /// Makes sure that all tables for `source` exist; tells whether a root entry became present.
    pub(crate) fn add<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        source: SourceId,
    ) -> Result<bool, TableError> {
        match self {
            Self::Legacy(tables) => tables.add(shared, source),
            Self::Scalable(tables) => tables.add(shared, source),
        }
    }

    /// Makes `source`, whose tables were added and whose entry is not present, use `target`.
    pub(crate) fn publish<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
        target: &Target,
        flags: Flags,
    ) -> Result<(), TableError> {
        match self {
            Self::Legacy(tables) => tables.publish(shared, source, target, flags),
            Self::Scalable(tables) => tables.publish(shared, source, target, flags),
        }
    }

    /// Changes the context entry of `source`, whose tables were added, as long as the unit may be reading it.
    pub(crate) fn change<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
        change: ContextChange,
    ) -> Result<(), TableError> {
        match self {
            Self::Legacy(tables) => tables.change(shared, source, change),
            Self::Scalable(tables) => tables.change(shared, source, change),
        }
    }

    /// Zeroes what `source` had, which is not present and which the unit has been made to forget.
    pub(crate) fn zero<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
    ) -> Result<(), TableError> {
        match self {
            Self::Legacy(tables) => tables.zero(shared, source),
            Self::Scalable(tables) => tables.zero(shared, source),
        }
    }
}

/// The domain that a unit would use for `source`, read from memory alone: for attributing faults without a lock.
pub(crate) fn lookup<P: TableMemory>(
    host: &P,
    mode: TableMode,
    root: HostPhys,
    source: SourceId,
    pasid: Option<Pasid>,
) -> Option<DomainId> {
    match mode {
        TableMode::Legacy => legacy::lookup(host, root, source),
        TableMode::Scalable => scalable::lookup(host, root, source, pasid),
    }
}

/// A zeroed page for a structure, in memory before anything leads to it.
pub(crate) fn empty_page<R: Registers, P: Host>(shared: &Shared<R, P>) -> Result<TableFrame, TableError> {
    let request: FrameRequest = shared.options.page();
    let frame = shared.host.allocate(request)?;
    shared.write_back(frame.base(), PAGE_SIZE);
    Ok(frame)
}

/// A structure of `N` words, of which the first holds the presence bit.
pub(crate) struct Entry<'a, const N: usize> {
    at: HostPhys,
    words: [&'a AtomicU64; N],
}

impl<'a, const N: usize> Entry<'a, N> {
    /// Entry `index` of the table at `table`.
    pub(crate) fn of<P: TableMemory>(host: &'a P, table: HostPhys, index: u64) -> Result<Self, TableError> {
        let unknown = TableError::NotTableMemory { at: table };
        let size = u64::try_from(N * 8).map_err(|_| unknown)?;
        let at = index
            .checked_mul(size)
            .and_then(|offset| table.checked_add(offset))
            .ok_or(unknown)?;
        let first = table_word(host, at)?;
        let mut words = [first; N];
        for (offset, word) in (0u64..).step_by(8).zip(&mut words) {
            *word = table_word(host, at.checked_add(offset).ok_or(unknown)?)?;
        }
        Ok(Self { at, words })
    }

    pub(crate) fn load(&self) -> [u64; N] {
        self.words.map(|word| word.load(Ordering::Acquire))
    }

    /// Writes an entry so that hardware sees it whole or not at all: the word with the presence bit last.
    pub(crate) fn publish<R: Registers, P: Host>(&self, shared: &Shared<R, P>, values: [u64; N]) {
        for (word, value) in self.words.iter().zip(values).skip(1) {
            word.store(value, Ordering::Relaxed);
        }
        if let (Some(word), Some(value)) = (self.words.first(), values.first()) {
            // Release: the other words, and all tables that the entry leads to, come before its presence.
            word.store(*value, Ordering::Release);
        }
        self.write_back(shared);
    }

    /// Replaces the first word alone, before the doorbell of the invalidation that follows.
    pub(crate) fn replace_first<R: Registers, P: Host>(&self, shared: &Shared<R, P>, value: u64) {
        if let Some(word) = self.words.first() {
            word.store(value, Ordering::Release);
        }
        self.write_back(shared);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn zero<R: Registers, P: Host>(&self, shared: &Shared<R, P>) {
        self.publish(shared, [0; N]);
    }

    fn write_back<R: Registers, P: Host>(&self, shared: &Shared<R, P>) {
        shared.write_back(self.at, u64::try_from(N * 8).unwrap_or(PAGE_SIZE));
    }
}
