//! The invalidation queue (`VT-d §6.5.2`).
//!
//! A ring of descriptors in table memory. A batch is written behind the tail, closed by a wait descriptor, and
//! announced by one write of the tail register. The batch is complete when the wait descriptor's *status
//! write* has arrived in memory that the ring owns; that the head has reached the tail only means that the
//! descriptors were fetched (rule D6).
//!
//! Each wait writes a number of its own to a slot of its own. A wait that was given up keeps its slot until the
//! write was seen, so a late write can neither complete another wait nor land in memory that serves something
//! else by then (rule D5).

use alloc::vec;
use alloc::vec::Vec;

use arbitrary_int::u3;
use iommu_types::omission::{Step, kept};
use iommu_types::sync::{Ordering, fence};
use iommu_types::{Clock, FrameRequest, HostPhys, PAGE_SIZE, Registers, SourceId, TABLE_ENTRIES, TableMemory};
use spin::Mutex;
use vtd_spec::descriptor::WaitDescriptor;
use vtd_spec::register::{
    DescriptorWidth, FaultStatus, InvalidationQueueAddress, InvalidationQueueErrorRecord, InvalidationQueueHead,
    InvalidationQueueTail, offset,
};

use crate::error::{HardwareError, TableError};
use crate::wait::poll;

/// Base-2 logarithm of the pages of the ring.
const RING_ORDER: u8 = 0;
/// Status slots: one page of 64-bit words, of which the low half receives the status.
const SLOTS: usize = TABLE_ENTRIES;
/// Most descriptors announced by one doorbell, the wait descriptor not counted. Far below the ring's size, so
/// that several submitters fit.
pub(crate) const MAX_BATCH: usize = 32;
/// Most refused descriptors repaired in the life of a queue. A driver whose descriptors are refused this often
/// does not understand the unit.
const MAX_REPAIRS: u32 = 1024;

/// A descriptor as its four words; the upper two are zero and not stored in a ring of 128-bit descriptors.
pub(crate) type Words = [u64; 4];

/// How a batch ended, other than well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueError {
    /// The unit refused one descriptor of the batch; the others were processed.
    Refused { info: u8, words: [u64; 2] },
    /// A device-TLB invalidation timed out, and the batch's wait was aborted with it: submit it again.
    Aborted { device: Option<SourceId> },
    /// The wait ended without an answer, or the queue is beyond repair. The queue must not be used again.
    Lost { waited_ns: u64 },
    /// The registers read all-ones.
    Gone,
    /// The host does not know the ring's memory.
    Table(TableError),
}

impl From<QueueError> for HardwareError {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Refused { info, words } => Self::DescriptorRefused { info, words },
            QueueError::Aborted { device } => Self::DeviceTimeout { device },
            QueueError::Lost { waited_ns } => Self::InvalidationTimeout { waited_ns },
            QueueError::Gone => Self::Gone { offset: offset::FSTS },
            QueueError::Table(_) => Self::InvalidationTimeout { waited_ns: 0 },
        }
    }
}

/// What became of a batch, as far as known.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Pending,
    Refused { info: u8, words: [u64; 2] },
    Aborted { device: Option<SourceId> },
}

/// A batch between doorbell and completion.
#[derive(Clone, Copy, Debug)]
struct Batch {
    /// Ring index of the first descriptor.
    first: u32,
    /// Descriptors, the wait included.
    count: u32,
    /// What the wait writes.
    sequence: u32,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug)]
enum Slot {
    Free,
    Waiting(Batch),
    /// Given up by its waiter; free again once `sequence` was written after all.
    Retired {
        sequence: u32,
    },
    /// The unit said that it aborted the wait. It writes nothing then (`VT-d §6.5.2.11`), at the latest not when a
    /// younger wait was written: then the slot is free again.
    Aborted {
        sequence: u32,
    },
}

/// A lock around a value: the spin lock, or a model checker's.
pub(crate) trait Guarded<T> {
    fn new(value: T) -> Self;
    fn with<A>(&self, work: impl FnOnce(&mut T) -> A) -> A;
}

impl<T> Guarded<T> for Mutex<T> {
    fn new(value: T) -> Self {
        Self::new(value)
    }
    fn with<A>(&self, work: impl FnOnce(&mut T) -> A) -> A {
        work(&mut self.lock())
    }
}

/// What submitters and waiters share.
#[derive(Debug)]
pub(crate) struct State {
    /// Ring index of the next free descriptor.
    tail: u32,
    /// The head when it was last read.
    head: u32,
    sequence: u32,
    /// Number of the youngest wait that was seen to be written.
    confirmed: u32,
    next_slot: usize,
    slots: Vec<Slot>,
    repairs: u32,
}

/// A batch that was announced to the unit. It has to be waited for.
#[derive(Debug)]
#[must_use = "the batch is not complete before it was waited for"]
pub(crate) struct Ticket {
    slot: usize,
    sequence: u32,
}

/// The ring, its status page and who waits for what.
#[derive(Debug)]
pub(crate) struct Queue<L = Mutex<State>> {
    base: HostPhys,
    status: HostPhys,
    entries: u32,
    /// 64-bit words a descriptor.
    stride: u32,
    state: L,
}

impl<L: Guarded<State>> Queue<L> {
    /// Allocates a ring of 128-bit descriptors, or of 256-bit ones if `wide`.
    ///
    /// The memory is never given back: a unit may write a status word long after it was told to stop.
    pub(crate) fn new<P: TableMemory>(host: &P, page: FrameRequest, wide: bool) -> Result<Self, TableError> {
        let ring = host.allocate(FrameRequest {
            order: RING_ORDER,
            ..page
        })?;
        let status = match host.allocate(page) {
            Ok(status) => status,
            Err(error) => {
                host.free(ring);
                return Err(error.into());
            }
        };
        let stride = if wide { 4 } else { 2 };
        let bytes = u32::try_from(PAGE_SIZE).unwrap_or(4096) << RING_ORDER;
        Ok(Self {
            base: ring.base(),
            status: status.base(),
            entries: bytes / (stride * 8),
            stride,
            state: L::new(State {
                tail: 0,
                head: 0,
                sequence: 0,
                confirmed: 0,
                next_slot: 0,
                slots: vec![Slot::Free; SLOTS],
                repairs: 0,
            }),
        })
    }

    /// The value of `IQA_REG` (`VT-d §11.4.9.3`).
    pub(crate) fn address_register(&self) -> InvalidationQueueAddress {
        InvalidationQueueAddress::DEFAULT
            .with_base(self.base)
            .with_dw(if self.stride == 4 {
                DescriptorWidth::Bits256
            } else {
                DescriptorWidth::Bits128
            })
            .with_qs(u3::extract_u8(RING_ORDER, 0))
    }

    /// Byte offset of a ring index, as head and tail registers hold it.
    fn byte_offset(&self, index: u32) -> u64 {
        u64::from(index) * u64::from(self.stride) * 8
    }

    /// Ring index of the head; `None` if the register holds none of this ring.
    fn head<R: Registers>(&self, registers: &R) -> Option<u32> {
        let head = InvalidationQueueHead::new_with_raw_value(registers.read64(offset::IQH)).byte_offset();
        let size = u64::from(self.stride) * 8;
        let index = u32::try_from(head / size).ok()?;
        (head.is_multiple_of(size) && index < self.entries).then_some(index)
    }

    fn word<'a, P: TableMemory>(
        &self,
        host: &'a P,
        index: u32,
        word: u32,
    ) -> Result<&'a iommu_types::sync::AtomicU64, TableError> {
        let byte = self.byte_offset(index) + u64::from(word) * 8;
        let at = HostPhys::new(self.base.raw() + byte);
        table_word(host, at)
    }

    fn store<P: TableMemory>(&self, host: &P, index: u32, words: &Words) -> Result<(), QueueError> {
        for (number, value) in (0..self.stride).zip(words) {
            let word = self.word(host, index, number).map_err(QueueError::Table)?;
            word.store(*value, Ordering::Relaxed);
        }
        Ok(())
    }

    fn status_address(&self, slot: usize) -> HostPhys {
        let offset = u64::try_from(slot).unwrap_or(0) * 8;
        HostPhys::new(self.status.raw() + offset)
    }

    /// What the unit has written to `slot`.
    fn status<P: TableMemory>(&self, host: &P, slot: usize) -> Option<u32> {
        let word = table_word(host, self.status_address(slot)).ok()?;
        u32::try_from(word.load(Ordering::Acquire) & u64::from(u32::MAX)).ok()
    }

    /// Puts `batch`, of at most [`MAX_BATCH`] descriptors, and a wait into the ring and rings the doorbell.
    pub(crate) fn submit<R: Registers, P: TableMemory + Clock>(
        &self,
        registers: &R,
        host: &P,
        batch: &[Words],
        limit_ns: u64,
    ) -> Result<Ticket, QueueError> {
        let count = u32::try_from(batch.len().min(MAX_BATCH)).unwrap_or(0) + 1;
        poll(host, limit_ns, || {
            self.state.with(|state| {
                // Room for the batch, its wait, and the gap that tells a full ring from an empty one.
                if self.free(state) < count + 1 {
                    match self.head(registers) {
                        Some(head) => state.head = head,
                        None => return Some(Err(QueueError::Gone)),
                    }
                }
                match self.free_slot(host, state) {
                    Some(slot) if self.free(state) > count => {
                        Some(self.announce(registers, host, state, slot, batch, count))
                    }
                    // Nothing drains while the queue stands still on an error.
                    _ => self.repair(registers, host, state).err().map(Err),
                }
            })
        })
        .map_err(|waited_ns| QueueError::Lost { waited_ns })?
    }

    /// Writes `batch` and a wait for `slot`, `count` descriptors for which there is room, and rings the doorbell.
    fn announce<R: Registers, P: TableMemory>(
        &self,
        registers: &R,
        host: &P,
        state: &mut State,
        slot: usize,
        batch: &[Words],
        count: u32,
    ) -> Result<Ticket, QueueError> {
        // 0 is what fresh memory holds.
        state.sequence = state.sequence.checked_add(1).unwrap_or(1);
        if !kept(Step::WaitsStayApart) {
            // One status word for everybody, reset before each use.
            state.sequence = 1;
            let word = table_word(host, self.status_address(slot)).map_err(QueueError::Table)?;
            word.store(0, Ordering::Release);
        }
        let sequence = state.sequence;
        let first = state.tail;
        let wait = WaitDescriptor::DEFAULT
            .with_sw(true)
            .with_status_address(self.status_address(slot))
            .with_status_data(sequence)
            .to_words_256();
        let mut at = first;
        for words in batch.iter().take(MAX_BATCH).chain([&wait]) {
            self.store(host, at, words)?;
            at = (at + 1) % self.entries;
        }
        if let Some(entry) = state.slots.get_mut(slot) {
            *entry = Slot::Waiting(Batch {
                first,
                count,
                sequence,
                outcome: Outcome::Pending,
            });
        }
        state.next_slot = (slot + 1) % SLOTS;
        state.tail = at;
        // The descriptors, and every table store they are about, come before the doorbell.
        fence(Ordering::SeqCst);
        let tail = InvalidationQueueTail::DEFAULT.with_byte_offset(self.byte_offset(at));
        registers.write64(offset::IQT, tail.raw_value());
        Ok(Ticket { slot, sequence })
    }

    /// Free descriptors by the last known head.
    fn free(&self, state: &State) -> u32 {
        let used = (state.tail + self.entries - state.head) % self.entries;
        self.entries - used
    }

    /// A slot that no wait can write to any more.
    fn free_slot<P: TableMemory>(&self, host: &P, state: &State) -> Option<usize> {
        if !kept(Step::WaitsStayApart) {
            return Some(0);
        }
        (0..SLOTS)
            .map(|step| (state.next_slot + step) % SLOTS)
            .find(|&slot| match state.slots.get(slot) {
                Some(Slot::Free) => true,
                Some(Slot::Retired { sequence }) => self.status(host, slot) == Some(*sequence),
                Some(Slot::Aborted { sequence }) => is_younger(state.confirmed, *sequence),
                Some(Slot::Waiting(_)) | None => false,
            })
    }

    /// Waits for a batch.
    pub(crate) fn wait<R: Registers, P: TableMemory + Clock>(
        &self,
        registers: &R,
        host: &P,
        ticket: &Ticket,
        limit_ns: u64,
    ) -> Result<(), QueueError> {
        let turn = |state: &mut State, done: bool| {
            if !done && let Err(error) = self.repair(registers, host, state) {
                return Some(Err(error));
            }
            let slot = state.slots.get_mut(ticket.slot)?;
            let Slot::Waiting(batch) = *slot else {
                return Some(Err(QueueError::Lost { waited_ns: 0 }));
            };
            match batch.outcome {
                Outcome::Aborted { device } => {
                    let sequence = ticket.sequence;
                    *slot = Slot::Aborted { sequence };
                    return Some(Err(QueueError::Aborted { device }));
                }
                _ if !done => return None,
                Outcome::Refused { .. } | Outcome::Pending => *slot = Slot::Free,
            }
            if is_younger(ticket.sequence, state.confirmed) {
                state.confirmed = ticket.sequence;
            }
            Some(match batch.outcome {
                Outcome::Refused { info, words } => Err(QueueError::Refused { info, words }),
                Outcome::Pending | Outcome::Aborted { .. } => Ok(()),
            })
        };
        let ended = poll(host, limit_ns, || {
            let done = self.is_done(registers, host, ticket);
            self.state.with(|state| turn(state, done))
        });
        ended.unwrap_or_else(|waited_ns| {
            self.state.with(|state| {
                if let Some(slot) = state.slots.get_mut(ticket.slot) {
                    *slot = Slot::Retired {
                        sequence: ticket.sequence,
                    };
                }
            });
            Err(QueueError::Lost { waited_ns })
        })
    }

    /// Whether the unit has written the status of the wait.
    fn is_done<R: Registers, P: TableMemory>(&self, registers: &R, host: &P, ticket: &Ticket) -> bool {
        if !kept(Step::StatusWrite) {
            // As if fetched were carried out.
            return self.head(registers) == Some(self.state.with(|state| state.tail));
        }
        self.status(host, ticket.slot) == Some(ticket.sequence)
    }

    /// Looks for queue errors and repairs what can be repaired (`VT-d §6.5.2.11`).
    fn repair<R: Registers, P: TableMemory>(
        &self,
        registers: &R,
        host: &P,
        state: &mut State,
    ) -> Result<(), QueueError> {
        let raw = registers.read32(offset::FSTS);
        if raw == u32::MAX {
            return Err(QueueError::Gone);
        }
        let status = FaultStatus::new_with_raw_value(raw);
        if !status.iqe() && !status.ite() && !status.ice() {
            return Ok(());
        }
        let record = InvalidationQueueErrorRecord::new_with_raw_value(registers.read64(offset::IQERCD));
        if status.iqe() {
            self.replace_refused(registers, host, state, record.error().0)?;
            registers.write32(offset::FSTS, FaultStatus::DEFAULT.with_iqe(true).raw_value());
        }
        if status.ite() {
            // Every wait in flight is aborted, whoever submitted it; fetching resumes at the head.
            let device = record.itesid();
            let device = (device != 0).then(|| SourceId::from_raw(device));
            for slot in &mut state.slots {
                if let Slot::Waiting(batch) = slot {
                    batch.outcome = Outcome::Aborted { device };
                }
            }
            registers.write32(offset::FSTS, FaultStatus::DEFAULT.with_ite(true).raw_value());
        }
        if status.ice() {
            // A device completed an invalidation that was not outstanding; nothing of ours hangs on it.
            registers.write32(offset::FSTS, FaultStatus::DEFAULT.with_ice(true).raw_value());
        }
        Ok(())
    }

    /// Overwrites the descriptor that the unit refused by a wait without effect, so that the rest of the ring
    /// is processed, and charges it to the batch it belongs to.
    fn replace_refused<R: Registers, P: TableMemory>(
        &self,
        registers: &R,
        host: &P,
        state: &mut State,
        info: u8,
    ) -> Result<(), QueueError> {
        state.repairs += 1;
        let head = self.head(registers);
        let (Some(head), true) = (head, state.repairs <= MAX_REPAIRS) else {
            return Err(QueueError::Lost { waited_ns: 0 });
        };
        let word = |number| {
            let word = self.word(host, head, number).map_err(QueueError::Table)?;
            Ok::<u64, QueueError>(word.load(Ordering::Relaxed))
        };
        let words = [word(0)?, word(1)?];
        // Ring indices repeat: of several batches that once held this one, the youngest is at the head.
        let owner = state
            .slots
            .iter_mut()
            .filter_map(|slot| match slot {
                Slot::Waiting(batch) if (head + self.entries - batch.first) % self.entries < batch.count => Some(batch),
                _ => None,
            })
            .max_by_key(|batch| batch.sequence);
        let Some(owner) = owner else {
            return Err(QueueError::Lost { waited_ns: 0 });
        };
        // The last descriptor of a batch is its wait; if that is refused the batch can never be confirmed.
        if (head + self.entries - owner.first) % self.entries + 1 == owner.count {
            return Err(QueueError::Lost { waited_ns: 0 });
        }
        owner.outcome = Outcome::Refused { info, words };
        self.store(host, head, &WaitDescriptor::DEFAULT.to_words_256())?;
        fence(Ordering::SeqCst);
        Ok(())
    }
}

/// Whether wait `one` was submitted after wait `other`. Numbers wrap; fewer than half of them are in use at once.
const fn is_younger(one: u32, other: u32) -> bool {
    let ahead = one.wrapping_sub(other);
    ahead != 0 && ahead < 1 << 31
}

/// The 64-bit word at `at` of table memory.
pub(crate) fn table_word<P: TableMemory>(host: &P, at: HostPhys) -> Result<&iommu_types::sync::AtomicU64, TableError> {
    let unknown = TableError::NotTableMemory { at };
    let index = usize::try_from(at.page_offset() / 8).map_err(|_| unknown)?;
    host.table(at.page()).and_then(|table| table.get(index)).ok_or(unknown)
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod tests;
