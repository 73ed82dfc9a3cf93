//! Fault status and fault recording registers.

use arbitrary_int::{u20, u52};
use bitbybit::{bitenum, bitfield};
use iommu_types::{Iova, Pasid};

use crate::encoding::AddressType;
use crate::fault::FaultReason;

/// Fault Status Register. VT-d §11.4.7.1 (FSTS_REG). 32 bits.
///
/// Earlier revisions used bits 2 and 3 (advanced fault log) and 7 (page request overflow).
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct FaultStatus {
    /// PFO: primary fault overflow; a fault found no free record. Cleared by writing 1.
    #[bit(0, rw)]
    pfo: bool,
    /// PPF: primary pending fault; some fault record has F set. Read only.
    #[bit(1, rw)]
    ppf: bool,
    /// IQE: invalidation queue error. Cleared by writing 1.
    #[bit(4, rw)]
    iqe: bool,
    /// ICE: invalidation completion error. Cleared by writing 1.
    #[bit(5, rw)]
    ice: bool,
    /// ITE: invalidation time-out error. Cleared by writing 1.
    #[bit(6, rw)]
    ite: bool,
    /// FRI: index of the first pending fault record, valid while PPF is set. Read only.
    #[bits(8..=15, rw)]
    fri: u8,
}

/// What kind of request a fault record is about: T1 and T2. VT-d §11.4.7.6 (FRCD_REG).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultedRequest {
    /// T1 T2 = 00: a write.
    Write,
    /// T1 T2 = 01: a page request.
    PageRequest,
    /// T1 T2 = 10: a read, also of zero length.
    Read,
    /// T1 T2 = 11: an AtomicOp.
    Atomic,
}

/// PRIV: privilege of the request that a record is about. VT-d §11.4.7.6 (FRCD_REG).
#[bitenum(u1, exhaustive = true)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// User.
    User = 0,
    /// Supervisor.
    Supervisor = 1,
}

/// Fault Recording Register. VT-d §11.4.7.6 (FRCD_REG). 128 bits, read with 32- or 64-bit accesses.
///
/// Valid while F is set; F is cleared by writing 1, all other fields are read only.
#[bitfield(u128, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct FaultRecord {
    /// FI: fault information; see [`Self::address`] and [`Self::interrupt_index`].
    #[bits(12..=63, rw)]
    fi: u52,
    /// SID: source identifier.
    #[bits(64..=79, rw)]
    sid: u16,
    /// T2: second bit of the request type; see [`Self::request`].
    #[bit(92, rw)]
    t2: bool,
    /// PRIV: privilege that the request asked for, valid with PP.
    #[bits(93..=93, rw)]
    privilege: Privilege,
    /// EXE: execute permission was asked for, valid with PP for reads.
    #[bit(94, rw)]
    exe: bool,
    /// PP: the request had a PASID.
    #[bit(95, rw)]
    pp: bool,
    /// FR: fault reason; see [`Self::reason`].
    #[bits(96..=103, rw)]
    fr: u8,
    /// PV: PASID, valid with PP; see [`Self::pasid`].
    #[bits(104..=123, rw)]
    pv: u20,
    /// AT: address type of the request, for translation faults of reads, writes and atomics.
    #[bits(124..=125, rw)]
    at: AddressType,
    /// T1: first bit of the request type; see [`Self::request`].
    #[bit(126, rw)]
    t1: bool,
    /// F: the record holds a fault. Cleared by writing 1.
    #[bit(127, rw)]
    f: bool,
}

words128!(FaultRecord);
source_field!(
    FaultRecord,
    /// Who sent the request.
    source, with_source => sid, with_sid
);
page_address!(
    FaultRecord,
    Iova,
    /// The page that a DMA request went to. Meaningless for interrupt faults.
    address, with_address => fi, with_fi
);

impl FaultRecord {
    /// Why the request was blocked.
    #[must_use]
    pub const fn reason(self) -> FaultReason {
        FaultReason(self.fr())
    }

    /// The record with another reason.
    #[must_use]
    pub const fn with_reason(self, reason: FaultReason) -> Self {
        self.with_fr(reason.0)
    }

    /// The interrupt index (bits 63:48), for interrupt faults other than 20h, 25h, 29h, 2Ah and 2Bh.
    #[must_use]
    pub const fn interrupt_index(self) -> u16 {
        (self.fi().value() >> 36 & 0xFFFF) as u16
    }

    /// The record of an interrupt fault: index in bits 63:48, bits 47:12 zero.
    #[must_use]
    pub const fn with_interrupt_index(self, index: u16) -> Self {
        self.with_fi(u52::extract_u64((index as u64) << 36, 0))
    }

    /// The kind of request. Meaningless for interrupt faults.
    #[must_use]
    pub const fn request(self) -> FaultedRequest {
        match (self.t1(), self.t2()) {
            (false, false) => FaultedRequest::Write,
            (false, true) => FaultedRequest::PageRequest,
            (true, false) => FaultedRequest::Read,
            (true, true) => FaultedRequest::Atomic,
        }
    }

    /// The record with another kind of request.
    #[must_use]
    pub const fn with_request(self, request: FaultedRequest) -> Self {
        let (t1, t2) = match request {
            FaultedRequest::Write => (false, false),
            FaultedRequest::PageRequest => (false, true),
            FaultedRequest::Read => (true, false),
            FaultedRequest::Atomic => (true, true),
        };
        self.with_t1(t1).with_t2(t2)
    }

    /// The PASID of the request, if it had one.
    #[must_use]
    pub const fn pasid(self) -> Option<Pasid> {
        if self.pp() {
            Some(crate::layout::pasid(self.pv()))
        } else {
            None
        }
    }

    /// The record with PP and PV set for a request with or without PASID.
    #[must_use]
    pub const fn with_pasid(self, pasid: Option<Pasid>) -> Self {
        match pasid {
            Some(pasid) => self.with_pp(true).with_pv(u20::extract_u32(pasid.raw(), 0)),
            None => self.with_pp(false).with_pv(u20::extract_u32(0, 0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_bits_match_the_figure() {
        let s = FaultStatus::new_with_raw_value(0x0000_0573);
        assert!(s.pfo() && s.ppf() && s.iqe() && s.ice() && s.ite());
        assert_eq!(s.fri(), 5);
        assert!(FaultStatus::new_with_raw_value(0x10).iqe());
        assert!(FaultStatus::new_with_raw_value(0x20).ice());
        assert!(FaultStatus::new_with_raw_value(0x40).ite());
    }

    #[test]
    fn record_of_a_read_decodes_from_its_words() {
        // Read (T1), SID 0018h, reason 6, page 1234_5000h.
        let r = FaultRecord::from_words([0x1234_5000, 0xC000_0006_0000_0018]);
        assert!(r.f());
        assert_eq!(r.request(), FaultedRequest::Read);
        assert_eq!(r.source().raw(), 0x0018);
        assert_eq!(r.reason(), FaultReason(6));
        assert_eq!(r.address(), Iova::new(0x1234_5000));
        assert_eq!(r.pasid(), None);
        assert_eq!(r.at(), AddressType::Untranslated);
    }

    #[test]
    fn record_with_pasid_carries_value_privilege_and_address_type() {
        // AT = 10, PV = 12345h, PP, EXE, PRIV, T2.
        let r = FaultRecord::from_words([0, 0x2123_4571_F000_0000]);
        assert_eq!(r.pasid(), Pasid::new(0x12345));
        assert_eq!(r.at(), AddressType::Translated);
        assert_eq!(r.reason().0, 0x71);
        assert_eq!(r.privilege(), Privilege::Supervisor);
        assert!(r.exe());
        assert_eq!(r.request(), FaultedRequest::PageRequest);
        assert!(!r.f());
    }

    #[test]
    fn interrupt_fault_keeps_its_index_in_the_top_16_bits() {
        let r = FaultRecord::DEFAULT
            .with_interrupt_index(0x1234)
            .with_reason(FaultReason(0x22));
        assert_eq!(r.to_words(), [0x1234_0000_0000_0000, 0x22_0000_0000]);
        assert_eq!(r.interrupt_index(), 0x1234);
    }
}
