//! Registers of the page request queue.

use arbitrary_int::{u3, u14, u52};
use bitbybit::bitfield;
use iommu_types::HostPhys;

/// Page Request Queue Head Register. VT-d §11.4.11.1 (PQH_REG). 64 bits, read-write.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PageRequestQueueHead {
    /// PQH: index of the next descriptor that software reads, in units of 32 bytes.
    #[bits(5..=18, rw)]
    pqh: u14,
}

impl PageRequestQueueHead {
    /// Offset in bytes from the queue base.
    #[must_use]
    pub const fn byte_offset(self) -> u64 {
        (self.pqh().value() as u64) << 5
    }

    /// The register with a byte offset from the queue base; bits 4:0 and those above 18 are dropped.
    #[must_use]
    pub const fn with_byte_offset(self, offset: u64) -> Self {
        self.with_pqh(u14::extract_u64(offset, 5))
    }
}

/// Page Request Queue Tail Register. VT-d §11.4.11.2 (PQT_REG). 64 bits; advanced by hardware.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PageRequestQueueTail {
    /// PQT: index of the slot that hardware writes next, in units of 32 bytes.
    #[bits(5..=18, rw)]
    pqt: u14,
}

impl PageRequestQueueTail {
    /// Offset in bytes from the queue base.
    #[must_use]
    pub const fn byte_offset(self) -> u64 {
        (self.pqt().value() as u64) << 5
    }

    /// The register with a byte offset from the queue base; bits 4:0 and those above 18 are dropped.
    #[must_use]
    pub const fn with_byte_offset(self, offset: u64) -> Self {
        self.with_pqt(u14::extract_u64(offset, 5))
    }
}

/// Page Request Queue Address Register. VT-d §11.4.11.3 (PQA_REG). 64 bits, read-write.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PageRequestQueueAddress {
    /// PQS: queue size; 2^PQS pages of 4 KiB.
    #[bits(0..=2, rw)]
    pqs: u3,
    /// PQA: queue base, bits 63:12.
    #[bits(12..=63, rw)]
    pqa: u52,
}

page_address!(
    PageRequestQueueAddress,
    HostPhys,
    /// Host physical address of the queue.
    base, with_base => pqa, with_pqa
);

impl PageRequestQueueAddress {
    /// Length of the queue in bytes.
    #[must_use]
    pub const fn byte_len(self) -> u64 {
        4096 << self.pqs().value()
    }

    /// Number of descriptor slots: 2^(PQS+7). One stays unused.
    #[must_use]
    pub const fn entries(self) -> u64 {
        self.byte_len() / 32
    }
}

/// Page Request Status Register. VT-d §11.4.11.4 (PRS_REG). 32 bits.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PageRequestStatus {
    /// PPR: pending page request. Cleared by writing 1.
    #[bit(0, rw)]
    ppr: bool,
    /// PRO: page request overflow; requests were lost. Cleared by writing 1.
    #[bit(1, rw)]
    pro: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_tail_and_address_match_the_figures() {
        assert_eq!(
            PageRequestQueueHead::new_with_raw_value(0x7_FFE0).byte_offset(),
            0x7_FFE0
        );
        assert_eq!(
            PageRequestQueueTail::DEFAULT.with_byte_offset(0x7_FFFF).raw_value(),
            0x7_FFE0
        );
        let a = PageRequestQueueAddress::new_with_raw_value(0x1234_5001);
        assert_eq!(
            (a.base(), a.byte_len(), a.entries()),
            (HostPhys::new(0x1234_5000), 8192, 256)
        );
    }

    #[test]
    fn status_has_pending_below_overflow() {
        assert!(PageRequestStatus::new_with_raw_value(1).ppr());
        assert!(PageRequestStatus::new_with_raw_value(2).pro());
    }
}
