//! Who is inside a section, and the drain that waits for them.

use iommu_types::sync::Ordering;

use super::word::Word;

/// Slots that one reader at a time occupies; one word of bits, two of them taken by the shared slots.
const SLOTS_MAX: usize = 62;

/// Someone is inside. In a shared slot: a step of the count.
const INSIDE: u64 = 2;
/// A drain has looked at this slot since it was last entered: who leaves tells the drain.
const WATCHED: u64 = 1;

#[derive(Debug)]
#[repr(align(128))]
struct Slot<W>(W);

/// Proof of having entered; to be handed back to [`Readers::leave`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Ticket(u32);

impl Ticket {
    /// The slot that its holder has for itself; `None` for one who shares.
    #[must_use]
    pub fn own_slot(&self) -> Option<usize> {
        usize::try_from(self.0).ok().filter(|slot| *slot < SLOTS_MAX)
    }
}

/// The readers of one unit.
///
/// A reader enters by an atomic read-modify-write of a slot of its own and leaves by another. A drain does one
/// read-modify-write on every slot. On each slot these form one order, which is the whole proof:
///
/// * a reader that enters after the drain was there reads from the drain's write, so it sees every invalidation made
///   before the drain began, and cannot find what was invalidated;
/// * a reader that entered before is seen by the drain, which marks the slot; the reader finds the mark when it leaves,
///   and the last of them completes the drain, whose completer therefore sees everything they did.
///
/// Nobody waits in here. Readers beyond the number of slots share two counted slots, of which new readers use one and
/// the drain waits for the other, so that a stream of them cannot hold up a drain for ever.
#[derive(Debug)]
pub struct Readers<W> {
    slots: Box<[Slot<W>]>,
    shared: [Slot<W>; 2],
    /// Which shared slot new readers use: the parity.
    phase: W,
    /// Slots that the drain under way still waits for, one bit each; 0 when there is none.
    awaited: Slot<W>,
}

impl<W: Word> Readers<W> {
    /// Room for `slots` readers (at most 62) before they share.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self {
            slots: (0..slots.min(SLOTS_MAX)).map(|_| Slot(W::new(0))).collect(),
            shared: [Slot(W::new(0)), Slot(W::new(0))],
            phase: W::new(0),
            awaited: Slot(W::new(0)),
        }
    }

    /// Bytes on the heap with `slots` slots.
    #[must_use]
    pub const fn memory_bound(slots: usize) -> usize {
        slots.saturating_mul(size_of::<Slot<W>>())
    }

    /// Enters, preferably at slot `hint`: threads with different hints do not meet.
    #[inline]
    pub fn enter(&self, hint: usize) -> Ticket {
        let count = self.slots.len();
        // A division costs as much as the rest; most hints are small.
        let first = if hint < count { hint } else { hint % count.max(1) };
        if let Some(ticket) = self.enter_at(first) {
            return ticket;
        }
        self.enter_elsewhere(first)
    }

    #[inline]
    fn enter_at(&self, index: usize) -> Option<Ticket> {
        let Slot(slot) = self.slots.get(index)?;
        let mut seen = slot.load(Ordering::Relaxed);
        // A drain may set the mark in between, once for each drain.
        while seen & INSIDE == 0 {
            match slot.compare_exchange(seen, INSIDE, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(Ticket(u32::try_from(index).unwrap_or(0))),
                Err(now) => seen = now,
            }
        }
        None
    }

    /// A hint that is taken is rare: a section inside a section, or more threads than slots.
    #[cold]
    fn enter_elsewhere(&self, first: usize) -> Ticket {
        let others = (first + 1..self.slots.len()).chain(0..first);
        others
            .into_iter()
            .find_map(|index| self.enter_at(index))
            .unwrap_or_else(|| self.enter_shared())
    }

    fn enter_shared(&self) -> Ticket {
        let [even, odd] = &self.shared;
        let (index, slot) = if self.phase.load(Ordering::Relaxed) & 1 == 0 {
            (SLOTS_MAX, even)
        } else {
            (SLOTS_MAX + 1, odd)
        };
        let mut seen = slot.0.load(Ordering::Relaxed);
        // Who comes into the empty slot takes an old mark away: it belongs to a drain that did not wait for this slot.
        while let Err(now) = slot.0.compare_exchange(
            seen,
            if seen < INSIDE {
                INSIDE
            } else {
                seen.wrapping_add(INSIDE)
            },
            Ordering::AcqRel,
            Ordering::Relaxed,
        ) {
            seen = now;
        }
        Ticket(u32::try_from(index).unwrap_or(0))
    }

    /// Leaves. True if the drain under way waited for this reader and for no other: the caller completes it.
    #[inline]
    #[must_use]
    pub fn leave(&self, ticket: Ticket) -> bool {
        let Ticket(index) = ticket;
        match usize::try_from(index).ok().and_then(|at| self.slots.get(at)) {
            Some(Slot(slot)) => slot.swap(0, Ordering::AcqRel) & WATCHED != 0 && self.tell(1 << index),
            None => self.leave_shared(index),
        }
    }

    #[cold]
    fn leave_shared(&self, index: u32) -> bool {
        let [even, odd] = &self.shared;
        let slot = if usize::try_from(index) == Ok(SLOTS_MAX) {
            even
        } else {
            odd
        };
        slot.0.fetch_sub(INSIDE, Ordering::AcqRel) == INSIDE | WATCHED && self.tell(1 << index)
    }

    /// Strikes out `done` from what the drain waits for; true if that was the rest.
    #[cold]
    fn tell(&self, done: u64) -> bool {
        let before = self.awaited.0.fetch_and(!done, Ordering::AcqRel);
        before != 0 && before & !done == 0
    }

    /// Begins a drain: when it is complete, all who were inside at this moment have left. True if it is complete at
    /// once; otherwise one [`Self::leave`] will say so. Must not be called while a drain is under way.
    #[must_use]
    pub fn begin_drain(&self) -> bool {
        self.phase.fetch_add(1, Ordering::AcqRel);
        let own = 1u64
            .checked_shl(u32::try_from(self.slots.len()).unwrap_or(0))
            .map_or(u64::MAX, |bit| bit - 1);
        let slots = self.slots.iter().chain(&self.shared);
        let bits = (0..self.slots.len())
            .chain(SLOTS_MAX..SLOTS_MAX + 2)
            .map(|at| 1u64 << at);
        // All bits first: a reader that leaves while the drain still looks strikes out its own.
        self.awaited.0.store(own | 0b11 << SLOTS_MAX, Ordering::Relaxed);
        let mut idle = 0;
        for (Slot(slot), bit) in slots.zip(bits) {
            if slot.fetch_or(WATCHED, Ordering::AcqRel) < INSIDE {
                idle |= bit;
            }
        }
        self.tell(idle)
    }
}
