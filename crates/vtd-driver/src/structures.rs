//! Root and context tables of legacy mode (`VT-d §3.4.2`, `§9.1`, `§9.3`): where entries are and in which order
//! their words are written.

use alloc::collections::BTreeMap;

use iommu_types::sync::{AtomicU64, Ordering, fence};
use iommu_types::{HostPhys, Registers, SourceId, TableFrame, TableMemory};
use vtd_spec::entry::{ContextEntry, RootEntry};

use crate::error::TableError;
use crate::queue::table_word;
use crate::shared::{Host, Shared};

/// Bytes of a root or context entry.
const ENTRY_BYTES: u64 = 16;

/// The root table and the context tables below it. They live as long as the unit is driven: a context table
/// of a bus is not given back when its last device is detached.
#[derive(Debug)]
pub(crate) struct Tables {
    root: TableFrame,
    contexts: BTreeMap<u8, TableFrame>,
}

impl Tables {
    /// A root table in which no bus is present: every request is blocked.
    pub(crate) fn new(root: TableFrame) -> Self {
        Self {
            root,
            contexts: BTreeMap::new(),
        }
    }

    pub(crate) fn root(&self) -> HostPhys {
        self.root.base()
    }

    /// Makes sure that the bus of `source` has a context table; tells whether one was added.
    pub(crate) fn add_bus<R: Registers, P: Host>(
        &mut self,
        shared: &Shared<R, P>,
        source: SourceId,
    ) -> Result<bool, TableError> {
        if self.contexts.contains_key(&source.bus()) {
            return Ok(false);
        }
        let at = entry_address(self.root.base(), source.bus());
        let words = Words::at(&shared.host, at)?;
        let frame = shared.host.allocate(shared.options.page())?;
        // The empty table must be in memory before the root entry leads to it.
        shared.write_back(frame.base(), iommu_types::PAGE_SIZE);
        let entry = RootEntry::DEFAULT.with_p(true).with_context_table(frame.base());
        words.publish(shared, entry.to_words());
        self.contexts.insert(source.bus(), frame);
        Ok(true)
    }

    /// The context entry of `source`; `None` if its bus has no table.
    fn context<'a, P: TableMemory>(&self, host: &'a P, source: SourceId) -> Option<Result<Words<'a>, TableError>> {
        let table = self.contexts.get(&source.bus())?;
        Some(Words::at(host, entry_address(table.base(), source.devfn().raw())))
    }

    /// Writes the entry of `source`, whose bus was added before and whose entry is not present.
    pub(crate) fn publish<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
        entry: ContextEntry,
    ) -> Result<(), TableError> {
        let at = self.root.base();
        let words = self
            .context(&shared.host, source)
            .unwrap_or(Err(TableError::NotTableMemory { at }))?;
        words.publish(shared, entry.to_words());
        Ok(())
    }

    /// Takes the presence from the entry of `source` and leaves the rest of it, as long as the unit may be
    /// reading it (rule D2). Nothing happens to an entry that has no table.
    pub(crate) fn clear_present<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
    ) -> Result<(), TableError> {
        if let Some(words) = self.context(&shared.host, source) {
            let words = words?;
            let entry = ContextEntry::from_words(words.load());
            words.low.store(entry.with_p(false).to_words()[0], Ordering::Release);
            shared.write_back(words.at, ENTRY_BYTES);
            // The store comes before the doorbell of the invalidation that follows.
            fence(Ordering::SeqCst);
        }
        Ok(())
    }

    /// Zeroes an entry that is not present and that the unit has been made to forget.
    pub(crate) fn zero<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
    ) -> Result<(), TableError> {
        if let Some(words) = self.context(&shared.host, source) {
            let words = words?;
            words.low.store(0, Ordering::Relaxed);
            words.high.store(0, Ordering::Relaxed);
            shared.write_back(words.at, ENTRY_BYTES);
        }
        Ok(())
    }
}

/// The entry that a unit would use for `source`, read from memory alone: for attributing faults without a lock.
pub(crate) fn lookup<P: TableMemory>(host: &P, root: HostPhys, source: SourceId) -> Option<ContextEntry> {
    let root = RootEntry::from_words(Words::at(host, entry_address(root, source.bus())).ok()?.load());
    if !root.p() {
        return None;
    }
    let words = Words::at(host, entry_address(root.context_table(), source.devfn().raw())).ok()?;
    Some(ContextEntry::from_words(words.load())).filter(|entry| entry.p())
}

fn entry_address(table: HostPhys, index: u8) -> HostPhys {
    HostPhys::new(table.raw() + u64::from(index) * ENTRY_BYTES)
}

/// The two words of an entry.
struct Words<'a> {
    at: HostPhys,
    low: &'a AtomicU64,
    high: &'a AtomicU64,
}

impl<'a> Words<'a> {
    fn at<P: TableMemory>(host: &'a P, at: HostPhys) -> Result<Self, TableError> {
        let high = at.checked_add(8).ok_or(TableError::NotTableMemory { at })?;
        Ok(Self {
            at,
            low: table_word(host, at)?,
            high: table_word(host, high)?,
        })
    }

    fn load(&self) -> [u64; 2] {
        [self.low.load(Ordering::Acquire), self.high.load(Ordering::Relaxed)]
    }

    /// Writes an entry so that hardware sees it whole or not at all: the word with the presence bit last.
    fn publish<R: Registers, P: Host>(&self, shared: &Shared<R, P>, [low, high]: [u64; 2]) {
        self.high.store(high, Ordering::Relaxed);
        // Release: the upper word, and all tables that the entry leads to, come before its presence.
        self.low.store(low, Ordering::Release);
        shared.write_back(self.at, ENTRY_BYTES);
    }
}
