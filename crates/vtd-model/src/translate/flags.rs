//! Accessed and dirty flags (VT-d §3.6.2, §3.7.2): collected on the way, set when the request is known to pass.

use iommu_types::{HostPhys, SystemMemory};

use crate::condition::Condition;

/// Entries that one translation can use at most: five first-stage entries, and for each of their tables and for the
/// final page a second-stage walk of five.
const ENTRIES_MAX: usize = 5 + 6 * 5;

/// Flags that an entry lacks.
#[derive(Clone, Copy, Debug)]
struct Update {
    at: HostPhys,
    /// The entry as the walk saw it.
    seen: u64,
    /// Bits to set.
    set: u64,
    /// What it means if the entry cannot be written.
    failure: Condition,
}

/// The flags that a translation has to set before its request completes.
#[derive(Clone, Debug)]
pub(super) struct Updates {
    list: [Option<Update>; ENTRIES_MAX],
    len: usize,
}

/// What setting the flags came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// All are set.
    Done,
    /// Software changed an entry meanwhile: the walk has to start again.
    Changed,
    /// An entry cannot be written.
    Failed(Condition),
}

impl Updates {
    pub(super) const fn new() -> Self {
        Self {
            list: [None; ENTRIES_MAX],
            len: 0,
        }
    }

    /// Notes that the entry at `at`, seen as `seen`, lacks the bits `set`. Entries that several walks share are
    /// noted once.
    pub(super) fn push(&mut self, at: HostPhys, seen: u64, set: u64, failure: Condition) {
        if set == 0 {
            return;
        }
        let known = self
            .list
            .iter_mut()
            .take(self.len)
            .flatten()
            .find(|update| update.at == at);
        if let Some(update) = known {
            update.set |= set;
        } else if let Some(free) = self.list.get_mut(self.len) {
            *free = Some(Update { at, seen, set, failure });
            self.len += 1;
        }
    }

    /// Sets the flags, each with a compare-exchange against the entry as it was seen (VT-d §3.6.2: locked, with a
    /// re-check).
    pub(super) fn apply<M: SystemMemory>(&self, memory: &M) -> Applied {
        for update in self.list.iter().take(self.len).flatten() {
            match memory.compare_exchange_u64(update.at, update.seen, update.seen | update.set) {
                Ok(before) if before == update.seen => {}
                Ok(_) => return Applied::Changed,
                Err(_) => return Applied::Failed(update.failure),
            }
        }
        Applied::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iommu_testkit::SparseMemory;

    #[test]
    fn an_entry_that_two_walks_use_is_updated_once() {
        let memory = SparseMemory::new(0x1000);
        let mut updates = Updates::new();
        updates.push(HostPhys::new(8), 0, 1, Condition::Sss6);
        updates.push(HostPhys::new(8), 0, 2, Condition::Sss6);
        updates.push(HostPhys::new(16), 0, 0, Condition::Sss6);
        assert_eq!(updates.len, 1);
        assert_eq!(updates.apply(&memory), Applied::Done);
        assert_eq!(memory.read_u64(HostPhys::new(8)), Ok(3));
        assert_eq!(updates.apply(&memory), Applied::Changed);
        updates.push(HostPhys::new(0x2000), 0, 1, Condition::Sfs10);
        memory.write_u64(HostPhys::new(8), 0).expect("memory");
        assert_eq!(updates.apply(&memory), Applied::Failed(Condition::Sfs10));
    }
}
