//! The MSI-X table: one message and one mask for each vector. PCIe §7.7.2 (MSI-X Capability and Table Structure).

use iommu_groups::pci::msix;
use iommu_types::Iova;

use crate::bus::MsiMessage;

/// One vector's row.
#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// After a reset every vector is masked.
const AFTER_RESET: Entry = Entry {
    address: 0,
    data: 0,
    control: msix::ENTRY_MASKED,
};

/// The table and the pending bits of a function.
///
/// A vector that is raised while it may not be sent stays pending, once; what is pending is sent when nothing is in the
/// way any more.
#[derive(Clone, Debug)]
pub struct MsiXTable {
    entries: Vec<Entry>,
    pending: Vec<bool>,
}

impl MsiXTable {
    /// A table of `vectors` rows, at most [`msix::MAX_VECTORS`], all masked.
    #[must_use]
    pub fn new(vectors: u16) -> Self {
        let vectors = usize::from(vectors.min(msix::MAX_VECTORS));
        Self {
            entries: vec![AFTER_RESET; vectors],
            pending: vec![false; vectors],
        }
    }

    /// How many vectors there are.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.entries.len()).unwrap_or(msix::MAX_VECTORS)
    }

    /// Length of the table in bytes.
    #[must_use]
    pub fn table_len(&self) -> u64 {
        u64::from(self.vectors()) * msix::ENTRY_LEN
    }

    /// Length of the pending bits in bytes: whole words of 64 vectors.
    #[must_use]
    pub fn pending_len(&self) -> u64 {
        u64::from(self.vectors()).div_ceil(64) * 8
    }

    /// Masks everything and forgets what was pending.
    pub fn reset(&mut self) {
        self.entries.fill(AFTER_RESET);
        self.pending.fill(false);
    }

    /// The 32-bit field at byte `offset` of the table.
    fn field(&self, offset: u64) -> Option<u32> {
        let entry = self.entries.get(usize::try_from(offset / msix::ENTRY_LEN).ok()?)?;
        let half = |shift: u32| u32::try_from(entry.address >> shift & u64::from(u32::MAX)).ok();
        match offset % msix::ENTRY_LEN {
            msix::ENTRY_ADDRESS => half(0),
            4 => half(32),
            msix::ENTRY_DATA => Some(entry.data),
            msix::ENTRY_CONTROL => Some(entry.control),
            _ => None,
        }
    }

    fn set_field(&mut self, offset: u64, value: u32) {
        let index = usize::try_from(offset / msix::ENTRY_LEN).unwrap_or(usize::MAX);
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        match offset % msix::ENTRY_LEN {
            // Messages go to whole words: the low two bits of the address read as zero.
            msix::ENTRY_ADDRESS => entry.address = entry.address >> 32 << 32 | u64::from(value & !3),
            4 => entry.address = u64::from(value) << 32 | entry.address & u64::from(u32::MAX),
            msix::ENTRY_DATA => entry.data = value,
            msix::ENTRY_CONTROL => entry.control = value & msix::ENTRY_MASKED,
            _ => {}
        }
    }

    /// Reads the table from byte `offset`. Software may use aligned accesses of 4 or 8 bytes; others read all-ones.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        into.fill(0xff);
        if !is_allowed(offset, into.len()) {
            return;
        }
        for (part, at) in into.chunks_exact_mut(4).zip((offset..).step_by(4)) {
            if let Some(value) = self.field(at) {
                part.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    /// Writes the table from byte `offset`; accesses as for [`Self::read`], others are dropped.
    pub fn write(&mut self, offset: u64, from: &[u8]) {
        if !is_allowed(offset, from.len()) {
            return;
        }
        for (part, at) in from.chunks_exact(4).zip((offset..).step_by(4)) {
            if let Ok(bytes) = <[u8; 4]>::try_from(part) {
                self.set_field(at, u32::from_le_bytes(bytes));
            }
        }
    }

    /// Reads the pending bits from byte `offset`.
    pub fn read_pending(&self, offset: u64, into: &mut [u8]) {
        for (byte, at) in into.iter_mut().zip(offset..) {
            let first = usize::try_from(at.saturating_mul(8)).unwrap_or(usize::MAX);
            let bits = self.pending.iter().skip(first).take(8).enumerate();
            *byte = bits.fold(0, |byte, (bit, pending)| byte | u8::from(*pending) << bit);
        }
    }

    /// The vector wants to be sent. One that does not exist is ignored.
    pub fn raise(&mut self, vector: u16) {
        if let Some(pending) = self.pending.get_mut(usize::from(vector)) {
            *pending = true;
        }
    }

    /// Offers each pending vector to `deliver`, masked or not; those for which it says true are pending no more. For
    /// platforms that keep table and masks on their own side ([`crate::Bus::raise`]).
    pub fn offer(&mut self, mut deliver: impl FnMut(u16) -> bool) {
        for (pending, vector) in self.pending.iter_mut().zip(0u16..) {
            if *pending && deliver(vector) {
                *pending = false;
            }
        }
    }

    /// Takes the next message that is pending and not masked, lowest vector first. To be called only while the function
    /// delivers ([`crate::ConfigSpace::msi_x_delivers`]); ends after as many calls as there are vectors.
    pub fn take_due(&mut self) -> Option<MsiMessage> {
        let rows = self.entries.iter().zip(&mut self.pending);
        for (entry, pending) in rows {
            if *pending && entry.control & msix::ENTRY_MASKED == 0 {
                *pending = false;
                return Some(MsiMessage {
                    address: Iova::new(entry.address),
                    data: entry.data,
                });
            }
        }
        None
    }
}

/// PCIe §7.7.2: aligned DWORDs and QWORDs.
const fn is_allowed(offset: u64, len: usize) -> bool {
    match len {
        4 => offset.is_multiple_of(4),
        8 => offset.is_multiple_of(8),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_vector_waits_and_goes_once_when_it_is_unmasked() {
        let mut table = MsiXTable::new(3);
        table.write(16, &0xfee0_1003u64.to_le_bytes());
        table.write(24, &0x4321u32.to_le_bytes());
        table.raise(1);
        table.raise(1);
        assert_eq!(table.take_due(), None);
        let mut pending = [0; 8];
        table.read_pending(0, &mut pending);
        assert_eq!(pending, [0b10, 0, 0, 0, 0, 0, 0, 0]);
        table.write(28, &0u32.to_le_bytes());
        let message = MsiMessage {
            address: Iova::new(0xfee0_1000),
            data: 0x4321,
        };
        assert_eq!(table.take_due(), Some(message));
        assert_eq!(table.take_due(), None);
    }

    #[test]
    fn accesses_that_are_not_allowed_read_all_ones_and_change_nothing() {
        let mut table = MsiXTable::new(1);
        for (offset, len) in [(0, 2), (2, 4), (4, 8), (16, 4), (u64::MAX - 3, 4)] {
            let mut bytes = vec![0; len];
            table.read(offset, &mut bytes);
            assert!(bytes.iter().all(|byte| *byte == 0xff), "{offset} {len}");
            table.write(offset, &vec![0x55; len]);
        }
        let mut row = [0; 8];
        table.read(0, &mut row);
        assert_eq!(row, [0; 8]);
        table.read(8, &mut row);
        assert_eq!(row, [0, 0, 0, 0, 1, 0, 0, 0], "masked");
    }
}
