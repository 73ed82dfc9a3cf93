//! Who is inside a section, and the drain that waits for them.

use iommu_types::sync::Ordering;

use super::word::Word;

/// Slots that one reader at a time occupies; one word of bits, two of them taken by the shared slots.
const SLOTS_MAX: usize = 62;

/// Someone is inside. In a shared slot: a step of the count.
const INSIDE: u64 = 2;
/// A drain has looked at this slot since it was last entered: who leaves tells the drain.
const WATCHED: u64 = 1;
/// Nobody was ever in this slot, so drains leave it out.
const UNUSED: u64 = 1 << 63;
/// The shared slots among the bits of slots.
const SHARED: u64 = 0b11 << SLOTS_MAX;

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
/// read-modify-write on every slot that was ever used. On each slot these form one order, which is the whole proof:
///
/// * a reader that enters after the drain was there reads from the drain's write, so it sees every invalidation made
///   before the drain began, and cannot find what was invalidated;
/// * a reader that entered before is seen by the drain, which marks the slot; the reader finds the mark when it leaves,
///   and the last of them completes the drain, whose completer therefore sees everything they did.
///
/// The first reader of a slot announces it in a word of bits, which a drain reads by a read-modify-write too: either the drain
/// sees the bit, or whoever enters sees every invalidation made before the drain began. So a drain costs as many
/// operations as there are threads, not as there is room for.
///
/// Nobody waits in here. Readers beyond the number of slots share two counted slots, of which new readers use one and
/// the drain waits for the other, so that a stream of them cannot hold up a drain for ever.
#[derive(Debug)]
pub struct Readers<W> {
    slots: Box<[Slot<W>]>,
    shared: [Slot<W>; 2],
    /// Which shared slot new readers use: the parity.
    phase: W,
    /// Slots that were ever used, one bit each.
    used: W,
    /// Slots that the drain under way still waits for, one bit each; 0 when there is none.
    awaited: Slot<W>,
}

impl<W: Word> Readers<W> {
    /// Room for `slots` readers (at most 62) before they share.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self {
            slots: (0..slots.min(SLOTS_MAX)).map(|_| Slot(W::new(UNUSED))).collect(),
            shared: [Slot(W::new(0)), Slot(W::new(0))],
            phase: W::new(0),
            used: W::new(0),
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
        while seen & (INSIDE | UNUSED) == 0 {
            match slot.compare_exchange(seen, INSIDE, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(Ticket(u32::try_from(index).unwrap_or(0))),
                Err(now) => seen = now,
            }
        }
        None
    }

    /// A hint that is taken is rare: a section inside a section, or more threads than slots. So is a slot's first reader.
    #[cold]
    fn enter_elsewhere(&self, first: usize) -> Ticket {
        let mut all = (first..self.slots.len()).chain(0..first);
        all.find_map(|index| {
            self.open(index);
            self.enter_at(index)
        })
        .unwrap_or_else(|| self.enter_shared())
    }

    /// Tells drains of a slot before its first reader enters.
    fn open(&self, index: usize) {
        let Some(Slot(slot)) = self.slots.get(index) else {
            return;
        };
        if slot.load(Ordering::Relaxed) & UNUSED != 0 {
            self.used.fetch_or(1 << index, Ordering::AcqRel);
            // Whoever sees the slot open has what this thread has seen by announcing it.
            slot.fetch_and(!UNUSED, Ordering::AcqRel);
        }
    }

    fn enter_shared(&self) -> Ticket {
        if self.used.load(Ordering::Acquire) & SHARED != SHARED {
            self.used.fetch_or(SHARED, Ordering::AcqRel);
        }
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
        // Changes nothing; a read-modify-write has its place in the order of those that announce.
        let used = self.used.fetch_add(0, Ordering::AcqRel);
        if used == 0 {
            return true;
        }
        // All bits first: a reader that leaves while the drain still looks strikes out its own.
        self.awaited.0.store(used, Ordering::Relaxed);
        let mut idle = 0;
        let mut left = used;
        while left != 0 {
            let (index, bit) = (left.trailing_zeros(), left & left.wrapping_neg());
            left &= !bit;
            if self.slot(index).fetch_or(WATCHED, Ordering::AcqRel) & !UNUSED < INSIDE {
                idle |= bit;
            }
        }
        self.tell(idle)
    }

    /// The slot of bit `index`.
    fn slot(&self, index: u32) -> &W {
        let [even, odd] = &self.shared;
        let own = usize::try_from(index).ok().and_then(|index| self.slots.get(index));
        let Slot(slot) = own.unwrap_or(if index & 1 == 0 { even } else { odd });
        slot
    }
}
