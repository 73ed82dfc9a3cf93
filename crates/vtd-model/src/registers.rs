//! The register file: what software reads, and what a write leaves behind (VT-d §11.1, §11.4).
//!
//! Storage is one 32-bit word for each double word of the window, with the access class of every bit beside it. What a
//! write *does* is not decided here.

use alloc::vec;
use alloc::vec::Vec;

use vtd_spec::register::{
    ContextCommand, EventAddress, EventControl, EventData, FaultRecord, FaultStatus, InterruptRemapTableAddress,
    InvalidateAddress, InvalidationCompletionStatus, InvalidationQueueAddress, InvalidationQueueTail, IotlbInvalidate,
    RootTableAddress, offset,
};

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
}

/// What a double word lets software do, bit by bit. Bits in no mask are read-only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Class {
    /// Takes the written value.
    writable: u32,
    /// Cleared by writing 1.
    clear_on_one: u32,
    /// Reads as 0 whatever is stored.
    hidden: u32,
}

/// All registers of one unit.
#[derive(Clone, Debug)]
pub(crate) struct RegisterFile {
    words: Vec<u32>,
    classes: Vec<Class>,
}

impl RegisterFile {
    /// The registers after reset.
    pub(crate) fn new(config: &UnitConfig) -> Self {
        let count = usize::try_from(config.window_len() / 4).unwrap_or(0);
        let mut file = Self {
            words: vec![0; count],
            classes: vec![Class::default(); count],
        };
        let (cap, ecap) = (config.capability(), config.extended_capability());
        file.set32(offset::VER, config.version().raw_value());
        file.set64(offset::CAP, cap.raw_value());
        file.set64(offset::ECAP, ecap.raw_value());
        file.declare_dma(config);
        if ecap.qi() {
            file.declare_queue(config);
        }
        if ecap.ir() {
            let eime = if ecap.eim() {
                InterruptRemapTableAddress::eime_mask()
            } else {
                0
            };
            let mask = InterruptRemapTableAddress::irta_mask() | InterruptRemapTableAddress::s_mask() | eime;
            file.class64(offset::IRTA, mask, 0, 0);
        }
        file
    }

    fn declare_dma(&mut self, config: &UnitConfig) {
        let (cap, ecap) = (config.capability(), config.extended_capability());
        self.class32(offset::GCMD, 0, 0, u32::MAX);
        let ssirwe = if ecap.ssirws() {
            RootTableAddress::ssirwe_mask()
        } else {
            0
        };
        self.class64(
            offset::RTADDR,
            RootTableAddress::rta_mask() | RootTableAddress::ttm_mask() | ssirwe,
            0,
            0,
        );
        let write_only = ContextCommand::sid_mask() | ContextCommand::fm_mask();
        let command = ContextCommand::icc_mask() | ContextCommand::cirg_mask() | ContextCommand::did_mask();
        self.class64(offset::CCMD, command | write_only, 0, write_only);
        let queue = if ecap.qi() { FaultStatus::iqe_mask() } else { 0 };
        let device = if ecap.dt() {
            FaultStatus::ice_mask() | FaultStatus::ite_mask()
        } else {
            0
        };
        self.class32(offset::FSTS, 0, FaultStatus::pfo_mask() | queue | device, 0);
        self.declare_event(offset::FECTL, ecap.eim());
        let address = InvalidateAddress::addr_mask() | InvalidateAddress::ih_mask() | InvalidateAddress::am_mask();
        self.class64(ecap.invalidate_address_offset(), address, 0, u64::MAX);
        let drain = IotlbInvalidate::dr_mask() | IotlbInvalidate::dw_mask();
        let command = IotlbInvalidate::ivt_mask() | IotlbInvalidate::iirg_mask() | IotlbInvalidate::did_mask() | drain;
        self.class64(ecap.iotlb_offset(), command, 0, 0);
        for index in 0..=cap.nfr() {
            let [low, high] = FaultRecord::new_with_raw_value(FaultRecord::f_mask()).to_words();
            self.class64(cap.fault_record_offset(index), 0, low, 0);
            self.class64(cap.fault_record_offset(index) + 8, 0, high, 0);
        }
    }

    fn declare_queue(&mut self, config: &UnitConfig) {
        self.class64(offset::IQT, InvalidationQueueTail::qt_mask(), 0, 0);
        let address = InvalidationQueueAddress::iqa_mask()
            | InvalidationQueueAddress::dw_mask()
            | InvalidationQueueAddress::qs_mask();
        self.class64(offset::IQA, address, 0, 0);
        self.class32(offset::ICS, 0, InvalidationCompletionStatus::iwc_mask(), 0);
        self.declare_event(offset::IECTL, config.extended_capability().eim());
    }

    /// The quadruple of an event: control, data, address, upper address (VT-d §11.4.7.2 to §11.4.7.5).
    fn declare_event(&mut self, control: u32, extended: bool) {
        self.set32(control, EventControl::RESET.raw_value());
        self.class32(control, EventControl::im_mask(), 0, 0);
        self.class32(control + 4, EventData::MESSAGE_DATA, 0, 0);
        self.class32(control + 8, EventAddress::ma_mask(), 0, 0);
        if extended {
            // MUA is the whole register.
            self.class32(control + 12, u32::MAX, 0, 0);
        }
    }

    fn class32(&mut self, at: u32, writable: u32, clear_on_one: u32, hidden: u32) {
        if let Some(class) = index(at).and_then(|index| self.classes.get_mut(index)) {
            *class = Class {
                writable,
                clear_on_one,
                hidden,
            };
        }
    }

    fn class64(&mut self, at: u32, writable: u64, clear_on_one: u64, hidden: u64) {
        let ((w, w_high), (c, c_high), (h, h_high)) = (split(writable), split(clear_on_one), split(hidden));
        self.class32(at, w, c, h);
        self.class32(at + 4, w_high, c_high, h_high);
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
            .and_then(|index| self.classes.get(index))
            .map_or(0, |class| class.hidden);
        self.get32(at) & !hidden
    }

    /// What software's write of `value` to the double word at `at` leaves behind.
    pub(crate) fn write(&mut self, at: u32, value: u32) {
        let Some(index) = index(at) else { return };
        if let (Some(word), Some(class)) = (self.words.get_mut(index), self.classes.get(index)) {
            *word = (*word & !class.writable | value & class.writable) & !(value & class.clear_on_one);
        }
    }

    /// Every stored word, for saving.
    #[cfg_attr(not(test), expect(dead_code, reason = "saving a unit comes with its format"))]
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
