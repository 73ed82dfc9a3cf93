//! Domain identifiers of one unit.

use alloc::vec;
use alloc::vec::Vec;

use iommu_types::DomainId;
use iommu_types::omission::{Step, kept};

/// Which domain identifiers are in use.
///
/// `VT-d §11.4.2 (CAP_REG.ND)` gives the count. Identifier 0 is never handed out: units in caching mode tag
/// what they cache about faulting entries with it (`VT-d §6.1`, rule D10), and never using it costs nothing.
///
/// An identifier comes back only through [`Self::release`], which callers reach after the invalidation of
/// everything tagged with it was confirmed.
#[derive(Debug)]
pub(crate) struct DomainIds {
    used: Vec<u64>,
    count: u32,
    /// Where the next search starts, so that identifiers rotate instead of being reused at once.
    next: u32,
}

/// All identifiers of a unit are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfIds {
    pub(crate) count: u32,
}

impl DomainIds {
    /// `count` identifiers, 0 reserved.
    pub(crate) fn new(count: u32) -> Self {
        let count = if kept(Step::IdentifiersCounted) {
            count
        } else {
            1 << u16::BITS
        };
        let words = usize::try_from(count.div_ceil(u64::BITS)).unwrap_or(1);
        let mut ids = Self {
            used: vec![0; words],
            count,
            next: 1,
        };
        if kept(Step::ZeroUnused) {
            ids.set(0, true);
        } else {
            ids.next = 0;
        }
        ids
    }

    fn get(&self, id: u32) -> bool {
        let word = usize::try_from(id / u64::BITS)
            .ok()
            .and_then(|word| self.used.get(word));
        word.is_none_or(|word| word >> (id % u64::BITS) & 1 != 0)
    }

    fn set(&mut self, id: u32, used: bool) {
        if let Some(word) = usize::try_from(id / u64::BITS)
            .ok()
            .and_then(|word| self.used.get_mut(word))
        {
            let bit = 1 << (id % u64::BITS);
            *word = if used { *word | bit } else { *word & !bit };
        }
    }

    /// Takes a free identifier.
    pub(crate) fn allocate(&mut self) -> Result<DomainId, OutOfIds> {
        let start = self.next;
        let free = (start..self.count)
            .chain(1..start.min(self.count))
            .find(|&id| !self.get(id));
        let id = free.ok_or(OutOfIds { count: self.count })?;
        let id = if kept(Step::OwnIdentifier) { id } else { 1 };
        self.set(id, true);
        self.next = if id + 1 < self.count { id + 1 } else { 1 };
        u16::try_from(id)
            .map(DomainId)
            .map_err(|_| OutOfIds { count: self.count })
    }

    /// Gives an identifier back. The caller states that nothing cached carries it any more.
    pub(crate) fn release(&mut self, id: DomainId) {
        if id.0 != 0 {
            self.set(u32::from(id.0), false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_never_handed_out_and_running_out_is_an_error() {
        let mut ids = DomainIds::new(16);
        let all: Vec<u16> = (0..15).map(|_| ids.allocate().expect("free").0).collect();
        assert_eq!(all, (1..16).collect::<Vec<u16>>());
        assert_eq!(ids.allocate(), Err(OutOfIds { count: 16 }));
        ids.release(DomainId(0));
        assert_eq!(ids.allocate(), Err(OutOfIds { count: 16 }));
        ids.release(DomainId(7));
        assert_eq!(ids.allocate(), Ok(DomainId(7)));
    }

    #[test]
    fn the_widest_unit_ends_at_the_last_sixteen_bit_number() {
        let mut ids = DomainIds::new(0x1_0000);
        ids.next = 0xffff;
        assert_eq!(ids.allocate(), Ok(DomainId(0xffff)));
        assert_eq!(ids.allocate(), Ok(DomainId(1)));
    }

    #[test]
    fn a_released_identifier_rests_before_it_is_used_again() {
        let mut ids = DomainIds::new(16);
        let first = ids.allocate().expect("free");
        ids.release(first);
        assert_ne!(ids.allocate(), Ok(first));
    }
}
