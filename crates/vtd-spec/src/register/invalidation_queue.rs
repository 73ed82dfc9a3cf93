//! Registers of the invalidation queue.

use arbitrary_int::{u3, u4, u15, u52};
use bitbybit::{bitenum, bitfield};
use iommu_types::HostPhys;

/// DW: size of the descriptors in the invalidation queue. VT-d §11.4.9.3 (IQA_REG).
#[bitenum(u1, exhaustive = true)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum DescriptorWidth {
    /// 16 bytes.
    Bits128 = 0,
    /// 32 bytes. Needs scalable mode or abort-DMA mode support.
    Bits256 = 1,
}

impl DescriptorWidth {
    /// Size of one descriptor in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bits128 => 16,
            Self::Bits256 => 32,
        }
    }
}

/// Invalidation Queue Head Register. VT-d §11.4.9.1 (IQH_REG). 64 bits, read only.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct InvalidationQueueHead {
    /// QH: index of the next descriptor to process, in units of 16 bytes whatever the descriptor width.
    #[bits(4..=18, rw)]
    qh: u15,
}

impl InvalidationQueueHead {
    /// Offset in bytes from the queue base.
    #[must_use]
    pub const fn byte_offset(self) -> u64 {
        (self.qh().value() as u64) << 4
    }

    /// The register with a byte offset from the queue base; bits 3:0 and those above 18 are dropped.
    #[must_use]
    pub const fn with_byte_offset(self, offset: u64) -> Self {
        self.with_qh(u15::extract_u64(offset, 4))
    }
}

/// Invalidation Queue Tail Register. VT-d §11.4.9.2 (IQT_REG). 64 bits, read-write.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct InvalidationQueueTail {
    /// QT: index of the next free slot, in units of 16 bytes whatever the descriptor width; even for 256-bit descriptors.
    #[bits(4..=18, rw)]
    qt: u15,
}

impl InvalidationQueueTail {
    /// Offset in bytes from the queue base.
    #[must_use]
    pub const fn byte_offset(self) -> u64 {
        (self.qt().value() as u64) << 4
    }

    /// The register with a byte offset from the queue base; bits 3:0 and those above 18 are dropped.
    #[must_use]
    pub const fn with_byte_offset(self, offset: u64) -> Self {
        self.with_qt(u15::extract_u64(offset, 4))
    }

    /// Whether the tail names a whole slot for descriptors of a width. 256-bit descriptors need bit 4 clear.
    #[must_use]
    pub const fn is_aligned(self, width: DescriptorWidth) -> bool {
        match width {
            DescriptorWidth::Bits128 => true,
            DescriptorWidth::Bits256 => self.qt().value() & 1 == 0,
        }
    }
}

/// Invalidation Queue Address Register. VT-d §11.4.9.3 (IQA_REG). 64 bits, read-write.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct InvalidationQueueAddress {
    /// QS: queue size; 2^QS pages of 4 KiB.
    #[bits(0..=2, rw)]
    qs: u3,
    /// DW: descriptor width.
    #[bits(11..=11, rw)]
    dw: DescriptorWidth,
    /// IQA: queue base, bits 63:12.
    #[bits(12..=63, rw)]
    iqa: u52,
}

page_address!(
    InvalidationQueueAddress,
    HostPhys,
    /// Host physical address of the queue.
    base, with_base => iqa, with_iqa
);

impl InvalidationQueueAddress {
    /// Length of the queue in bytes.
    #[must_use]
    pub const fn byte_len(self) -> u64 {
        4096 << self.qs().value()
    }

    /// Number of descriptor slots: 2^(QS+8) of 16 bytes or 2^(QS+7) of 32 bytes. One stays unused.
    #[must_use]
    pub const fn entries(self) -> u64 {
        self.byte_len() / self.dw().bytes()
    }
}

/// Invalidation Completion Status Register. VT-d §11.4.9.4 (ICS_REG). 32 bits.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct InvalidationCompletionStatus {
    /// IWC: a wait descriptor with the interrupt flag completed; cleared by writing 1.
    #[bit(0, rw)]
    iwc: bool,
}

iommu_types::open_enum! {
    /// IQEI: what an invalidation queue error was about. VT-d §11.4.9.9 (IQERCD_REG).
    ///
    /// Valid while FSTS.IQE is set; codes 8 to 15 are not defined.
    pub struct QueueError(u8) {
        /// The unit gives no details.
        NO_INFORMATION = 0,
        /// The tail lies outside the queue.
        TAIL_OUT_OF_RANGE = 1,
        /// Reading a descriptor failed.
        FETCH_FAILED = 2,
        /// The descriptor type is unknown or not supported in this mode.
        INVALID_TYPE = 3,
        /// A reserved field of a descriptor is set.
        RESERVED_FIELD = 4,
        /// The descriptor width does not fit the translation table mode, or is not supported.
        INVALID_WIDTH = 5,
        /// The tail is not aligned to 256-bit descriptors.
        TAIL_MISALIGNED = 6,
        /// The translation table mode is the reserved one.
        INVALID_TABLE_MODE = 7,
    }
}

impl QueueError {
    /// What happened, as a fragment of a sentence.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::NO_INFORMATION => "the unit gives no details",
            Self::TAIL_OUT_OF_RANGE => "the queue tail lies outside the queue",
            Self::FETCH_FAILED => "reading a descriptor from the queue failed",
            Self::INVALID_TYPE => "a descriptor has a type that is unknown or not supported in this mode",
            Self::RESERVED_FIELD => "a descriptor has a reserved field set",
            Self::INVALID_WIDTH => "the descriptor width does not fit the translation table mode",
            Self::TAIL_MISALIGNED => "the queue tail is not aligned to 256-bit descriptors",
            Self::INVALID_TABLE_MODE => "the translation table mode is the reserved one",
            _ => "the error code is not defined",
        }
    }
}

/// Invalidation Queue Error Record Register. VT-d §11.4.9.9 (IQERCD_REG). 64 bits, read only; units older than revision
/// 3.1 read 0.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct InvalidationQueueErrorRecord {
    /// IQEI: error code, valid while FSTS.IQE is set; see [`Self::error`].
    #[bits(0..=3, rw)]
    iqei: u4,
    /// ITESID: source of the device-TLB invalidation that timed out, valid while FSTS.ITE is set; 0 if not reported.
    #[bits(32..=47, rw)]
    itesid: u16,
    /// ICESID: source of the unexpected completion, valid while FSTS.ICE is set; 0 if not reported.
    #[bits(48..=63, rw)]
    icesid: u16,
}

impl InvalidationQueueErrorRecord {
    /// What the queue error was about, valid while FSTS.IQE is set.
    #[must_use]
    pub const fn error(self) -> QueueError {
        QueueError(self.iqei().value())
    }

    /// The record with another error code; bits above 3:0 of the code are dropped.
    #[must_use]
    pub const fn with_error(self, error: QueueError) -> Self {
        self.with_iqei(u4::extract_u8(error.0, 0))
    }
}

source_field!(
    InvalidationQueueErrorRecord,
    /// The source whose device-TLB invalidation timed out.
    timeout_source, with_timeout_source => itesid, with_itesid
);
source_field!(
    InvalidationQueueErrorRecord,
    /// The source whose invalidation completion was unexpected.
    completion_source, with_completion_source => icesid, with_icesid
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_and_tail_hold_byte_offsets_in_place() {
        assert_eq!(InvalidationQueueHead::new_with_raw_value(0x120).byte_offset(), 0x120);
        assert_eq!(
            InvalidationQueueTail::DEFAULT.with_byte_offset(0x7_FFFF).raw_value(),
            0x7_FFF0
        );
        let tail = InvalidationQueueTail::new_with_raw_value(0x10);
        assert!(tail.is_aligned(DescriptorWidth::Bits128) && !tail.is_aligned(DescriptorWidth::Bits256));
    }

    #[test]
    fn address_register_gives_base_width_and_length() {
        let narrow = InvalidationQueueAddress::new_with_raw_value(0x1234_5000);
        assert_eq!(
            (narrow.base(), narrow.dw()),
            (HostPhys::new(0x1234_5000), DescriptorWidth::Bits128)
        );
        assert_eq!((narrow.entries(), narrow.byte_len()), (256, 4096));
        let wide = InvalidationQueueAddress::new_with_raw_value(0x1234_5801);
        assert_eq!((wide.entries(), wide.byte_len()), (256, 8192));
        assert_eq!(InvalidationQueueAddress::new_with_raw_value(7).entries(), 32768);
    }

    #[test]
    fn error_record_separates_code_and_sources() {
        let r = InvalidationQueueErrorRecord::new_with_raw_value(0x0218_0018_0000_0004);
        assert_eq!(r.error(), QueueError::RESERVED_FIELD);
        assert_eq!(r.timeout_source().raw(), 0x0018);
        assert_eq!(r.completion_source().raw(), 0x0218);
        assert_eq!(QueueError(9).description(), "the error code is not defined");
        assert!(InvalidationCompletionStatus::new_with_raw_value(1).iwc());
    }
}
