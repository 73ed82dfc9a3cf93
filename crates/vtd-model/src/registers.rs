//! The register file: what software reads, and what a write leaves behind (VT-d §11.1, §11.4).
//!
//! Storage is one 32-bit word for each double word of the window, with the access class of every bit beside it. What a
//! write *does* is not decided here.

use alloc::vec;
use alloc::vec::Vec;

use vtd_spec::access::{self, AccessMasks, RegisterSpec, RegisterWidth};
use vtd_spec::register::offset;

use crate::config::UnitConfig;

/// Width of a register access. Others do not exist (VT-d §11.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessWidth {
    /// 32 bits, 4-byte aligned.
    Dword,
    /// 64 bits, 8-byte aligned.
    Qword,
}

impl AccessWidth {
    /// Number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// The width of an access of `len` bytes.
    #[must_use]
    pub const fn from_len(len: usize) -> Option<Self> {
        match len {
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// Answers an access for `into` as a bus brings it: `read`'s value in little-endian bytes, or all ones where it has none
    /// or where no register access is so long.
    pub fn read_bytes(into: &mut [u8], read: impl FnOnce(Self) -> Option<u64>) {
        let value = Self::from_len(into.len()).and_then(read).unwrap_or(u64::MAX);
        into.fill(u8::MAX);
        for (byte, read) in into.iter_mut().zip(value.to_le_bytes()) {
            *byte = read;
        }
    }

    /// Width and value of an access that a bus brings as `from`, in little-endian bytes; `None` where no register access is
    /// so long.
    #[must_use]
    pub fn of_bytes(from: &[u8]) -> Option<(Self, u64)> {
        let width = Self::from_len(from.len())?;
        let mut bytes = [0; 8];
        for (byte, written) in bytes.iter_mut().zip(from) {
            *byte = *written;
        }
        Some((width, u64::from_le_bytes(bytes)))
    }
}

/// Base-2 logarithm of the granule of protected memory regions (VT-d §11.4.8.2, PLMBASE_REG): 2 MiB.
pub(crate) const PROTECTED_GRANULE_BITS: u8 = 21;

/// The access classes of a double word: one half of [`AccessMasks`] where the register has 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Masks {
    rw: u32,
    w1c: u32,
    wo: u32,
}

/// All registers of one unit.
#[derive(Clone, Debug)]
pub(crate) struct RegisterFile {
    words: Vec<u32>,
    masks: Vec<Masks>,
}

impl RegisterFile {
    /// The registers after reset, from the register map of the specification.
    pub(crate) fn new(config: &UnitConfig) -> Self {
        let (cap, ecap) = (config.capability(), config.extended_capability());
        let count = usize::try_from(config.window_len() / 4).unwrap_or(0);
        let mut file = Self {
            words: vec![0; count],
            masks: vec![Masks::default(); count],
        };
        for register in access::REGISTERS
            .iter()
            .filter(|register| register.presence.is_met(config.features()))
        {
            let mut masks = register.masks_on(config.features());
            match register.offset {
                // A descriptor width that the unit does not know has to stop the queue (IQEI 5), so it is kept.
                offset::IQA => masks = register.masks,
                // Base and limit have the granule that this unit protects.
                offset::PLMBASE | offset::PLMLIMIT | offset::PHMBASE | offset::PHMLIMIT => {
                    masks = masks.without((1 << PROTECTED_GRANULE_BITS) - 1);
                }
                // E-13.
                offset::IEDATA if config.qemu().is_some() => masks.rw = u64::from(u32::MAX),
                // D-27: QEMU's hold nothing.
                offset::FEUADDR | offset::IEUADDR if config.qemu().is_some() => masks = masks.without(u64::MAX),
                _ => {}
            }
            file.declare(register, register.offset, masks);
        }
        let pair = ecap.invalidate_address_offset();
        for register in [&access::INVALIDATE_ADDRESS, &access::IOTLB_INVALIDATE] {
            file.declare(register, pair + register.offset, register.masks);
        }
        for index in 0..=cap.nfr() {
            for register in [&access::FAULT_RECORD_LOW, &access::FAULT_RECORD_HIGH] {
                file.declare(
                    register,
                    cap.fault_record_offset(index) + register.offset,
                    register.masks,
                );
            }
        }
        file.set32(offset::VER, config.version().raw_value());
        file.set64(offset::CAP, cap.raw_value());
        file.set64(offset::ECAP, ecap.raw_value());
        file
    }

    /// Most bytes that the registers of a window of `window_len` bytes take on the heap.
    pub(crate) fn memory_bound(window_len: u32) -> usize {
        usize::try_from(window_len / 4)
            .unwrap_or(usize::MAX)
            .saturating_mul(size_of::<u32>() + size_of::<Masks>())
    }

    /// Bytes that the registers take on the heap now.
    pub(crate) const fn memory_held(&self) -> usize {
        self.words.capacity() * size_of::<u32>() + self.masks.capacity() * size_of::<Masks>()
    }

    fn declare(&mut self, register: &RegisterSpec, at: u32, masks: AccessMasks) {
        let halves = [
            split(masks.rw),
            split(masks.w1c),
            split(masks.wo),
            split(register.reset),
        ];
        let low = halves.map(|half| half.0);
        let high = halves.map(|half| half.1);
        self.declare_word(at, low);
        if register.width == RegisterWidth::Bits64 {
            self.declare_word(at + 4, high);
        }
    }

    fn declare_word(&mut self, at: u32, [rw, w1c, wo, reset]: [u32; 4]) {
        if let Some(masks) = index(at).and_then(|index| self.masks.get_mut(index)) {
            *masks = Masks { rw, w1c, wo };
        }
        self.set32(at, reset);
    }

    /// The stored double word at `at`; 0 outside the window.
    pub(crate) fn get32(&self, at: u32) -> u32 {
        index(at).and_then(|index| self.words.get(index)).copied().unwrap_or(0)
    }

    /// The stored 64 bits at `at`.
    pub(crate) fn get64(&self, at: u32) -> u64 {
        u64::from(self.get32(at)) | u64::from(self.get32(at.saturating_add(4))) << 32
    }

    /// Stores a double word as hardware does, access classes aside.
    pub(crate) fn set32(&mut self, at: u32, value: u32) {
        if let Some(word) = index(at).and_then(|index| self.words.get_mut(index)) {
            *word = value;
        }
    }

    /// Stores 64 bits as hardware does.
    pub(crate) fn set64(&mut self, at: u32, value: u64) {
        let (low, high) = split(value);
        self.set32(at, low);
        self.set32(at.saturating_add(4), high);
    }

    /// What software reads from the double word at `at`.
    pub(crate) fn read(&self, at: u32) -> u32 {
        let hidden = index(at)
            .and_then(|index| self.masks.get(index))
            .map_or(0, |masks| masks.wo);
        self.get32(at) & !hidden
    }

    /// What software's write of `value` to the double word at `at` leaves behind.
    pub(crate) fn write(&mut self, at: u32, value: u32) {
        let Some(index) = index(at) else { return };
        if let (Some(word), Some(masks)) = (self.words.get_mut(index), self.masks.get(index)) {
            let stored = masks.rw | masks.wo;
            *word = (*word & !stored | value & stored) & !(value & masks.w1c);
        }
    }

    /// Every stored word, for saving.
    pub(crate) fn words(&self) -> &[u32] {
        &self.words
    }
}

/// Index of the double word at byte offset `at`, if it is aligned.
fn index(at: u32) -> Option<usize> {
    if at.is_multiple_of(4) {
        usize::try_from(at / 4).ok()
    } else {
        None
    }
}

/// Low and high half.
pub(crate) fn split(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_event_masks_and_the_capabilities_are_not_zero_after_reset() {
        let config = UnitConfig::builder().build().expect("consistent");
        let file = RegisterFile::new(&config);
        let set: Vec<u32> = (0u32..)
            .step_by(4)
            .zip(file.words())
            .filter(|(_, word)| **word != 0)
            .map(|(at, _)| at)
            .collect();
        let capabilities = [offset::VER, offset::CAP, offset::CAP + 4, offset::ECAP];
        let expected: Vec<u32> = capabilities.into_iter().chain([offset::FECTL, offset::IECTL]).collect();
        assert_eq!(set, expected);
    }

    #[test]
    fn reserved_bits_of_every_register_read_as_zero_after_all_ones_were_written() {
        let config = UnitConfig::builder()
            .interrupt_remapping(false)
            .extended_interrupts(false)
            .build()
            .expect("ok");
        let mut file = RegisterFile::new(&config);
        for at in (0..config.window_len()).step_by(4) {
            file.write(at, u32::MAX);
        }
        assert_eq!(file.get64(offset::IRTA), 0);
        assert_eq!(file.read(offset::FEUADDR), 0);
        assert_eq!(file.read(offset::GCMD), 0);
        assert_eq!(file.get64(offset::RTADDR), 0xFFFF_FFFF_FFFF_FC00);
        assert_eq!(file.get64(offset::IQT), 0x7_FFF0);
        assert_eq!(file.get64(offset::IQA), 0xFFFF_FFFF_FFFF_F807);
        assert_eq!(file.read(0x0F0), 0);
        assert_eq!(file.get64(offset::CAP), config.capability().raw_value());
        assert_eq!(file.read(offset::FEADDR), 0xFFFF_FFFC);
        assert_eq!(file.read(offset::FEDATA), 0xFFFF);
    }
}
