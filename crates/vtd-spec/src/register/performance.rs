//! Performance monitoring registers. Present with ECAP.PMS.
//!
//! The blocks of counter registers are where the four offset registers say; the byte offsets *within* a block are in
//! [`perf_offset`].

use arbitrary_int::{u2, u3, u4, u5, u7, u20, u28};
use bitbybit::bitfield;

/// Performance Monitoring Capability Register. VT-d §11.4.13.2 (PERFCAP_REG). 64 bits, read only.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PerfCapability {
    /// NCNTR: number of counters.
    #[bits(0..=15, rw)]
    ncntr: u16,
    /// CW: counter width in bits.
    #[bits(16..=22, rw)]
    cw: u7,
    /// EGCNT: number of event groups.
    #[bits(24..=28, rw)]
    egcnt: u5,
    /// Filtering by requester identifier is supported.
    #[bit(32, rw)]
    rid_filter: bool,
    /// Filtering by domain identifier is supported.
    #[bit(33, rw)]
    did_filter: bool,
    /// Filtering by PASID is supported.
    #[bit(34, rw)]
    pasid_filter: bool,
    /// Filtering by address type is supported.
    #[bit(35, rw)]
    at_filter: bool,
    /// Filtering by page table level is supported.
    #[bit(36, rw)]
    level_filter: bool,
    /// CWE: counters can be written while they are enabled.
    #[bit(48, rw)]
    cwe: bool,
    /// GFS: global freeze on overflow is supported.
    #[bit(49, rw)]
    gfs: bool,
    /// IOS: interrupt on overflow is supported.
    #[bit(50, rw)]
    ios: bool,
    /// PCCS: capabilities of each counter are reported.
    #[bit(51, rw)]
    pccs: bool,
    /// CS: distance of counters; see [`Self::counter_stride`].
    #[bits(52..=54, rw)]
    cs: u3,
}

impl PerfCapability {
    /// Distance of two counter registers in bytes: 2^(CS+10).
    #[must_use]
    pub const fn counter_stride(self) -> u32 {
        1024 << self.cs().value()
    }
}

/// Performance Monitoring Interrupt Status Register. VT-d §11.4.13.7 (PERFINTRSTS_REG). 32 bits.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PerfInterruptStatus {
    /// PIS: a counter overflowed. Cleared by writing 1.
    #[bit(0, rw)]
    pis: bool,
}

/// Performance Monitoring Event Capability Register of an event group. VT-d §11.4.13.14 (PERFEVNTCAP_REG). 64 bits, read only.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PerfEventCapability {
    /// ES: events of the group that are supported, one bit each; see [`PerfEvent`].
    #[bits(0..=27, rw)]
    es: u28,
}

/// Performance Monitoring Counter Configuration Register. VT-d §11.4.13.15 (PERFCNTRCFG_REG). 64 bits; read only while EN.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PerfCounterConfig {
    /// EN: the counter is enabled; set and cleared by enhanced commands; read only.
    #[bit(0, rw)]
    en: bool,
    /// IO: interrupt on overflow.
    #[bit(1, rw)]
    io: bool,
    /// GFO: global freeze on overflow.
    #[bit(2, rw)]
    gfo: bool,
    /// EGI: event group.
    #[bits(8..=11, rw)]
    egi: u4,
    /// ES: events of the group that are counted, one bit each; see [`PerfEvent`].
    #[bits(32..=59, rw)]
    es: u28,
}

/// Filter by requester identifier. VT-d §11.4.13.16 (PERFCNTR_RIDFLTR_REG). 32 bits.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PerfRequesterFilter {
    /// Requester identifier.
    #[bits(0..=15, rw)]
    rid: u16,
    /// EN: the filter is used.
    #[bit(31, rw)]
    en: bool,
}

/// Filter by domain identifier. VT-d §11.4.13.17 (PERFCNTR_DIDFLTR_REG). 32 bits.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PerfDomainFilter {
    /// Domain identifier.
    #[bits(0..=15, rw)]
    did: u16,
    /// EN: the filter is used.
    #[bit(31, rw)]
    en: bool,
}

/// Filter by PASID. VT-d §11.4.13.18 (PERFCNTR_PASIDFLTR_REG). 32 bits.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PerfPasidFilter {
    /// PASID, for mode 0; see [`Self::pasid`].
    #[bits(0..=19, rw)]
    pasid_value: u20,
    /// PFM: mode; 0 requests with this PASID, 1 with any PASID, 2 without PASID.
    #[bits(20..=21, rw)]
    pfm: u2,
    /// EN: the filter is used.
    #[bit(31, rw)]
    en: bool,
}

pasid_field!(
    PerfPasidFilter,
    /// The PASID of mode 0.
    pasid, with_pasid => pasid_value, with_pasid_value
);

/// Filter by address type. VT-d §11.4.13.19 (PERFCNTR_ATFLTR_REG). 32 bits.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PerfAddressTypeFilter {
    /// Address types, one bit each: 0 untranslated, 1 translation request, 2 translated, 4 prefetch into the host permission
    /// table cache.
    #[bits(0..=4, rw)]
    at: u5,
    /// EN: the filter is used.
    #[bit(31, rw)]
    en: bool,
}

/// Filter by page table level. VT-d §11.4.13.20 (PERFCNTR_PTLFLTR_REG). 32 bits.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PerfLevelFilter {
    /// Levels, one bit each: 0 page table (4 KiB) up to 4 PML5 table; for host permission table events 0 to 3 stand for levels 1
    /// to 4.
    #[bits(0..=4, rw)]
    level: u5,
    /// EN: the filter is used.
    #[bit(31, rw)]
    en: bool,
}

/// Performance Monitoring Counter Capability Register. VT-d §11.4.13.21 (PERFCNTRCAP_REG). 32 bits, read only.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PerfCounterCapability {
    /// PCC: the counter has capabilities of its own.
    #[bit(0, rw)]
    pcc: bool,
    /// CW: counter width in bits.
    #[bits(8..=15, rw)]
    cw: u8,
    /// IOS: interrupt on overflow is supported.
    #[bit(16, rw)]
    ios: bool,
    /// GFS: global freeze on overflow is supported.
    #[bit(17, rw)]
    gfs: bool,
    /// EGCNT: number of event groups.
    #[bits(28..=31, rw)]
    egcnt: u4,
}

/// Performance Monitoring Counter Event Capability Register. VT-d §11.4.13.22 (PERFCNTREVCAP_REG). 32 bits, read only.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PerfCounterEventCapability {
    /// ES: events that the counter can count, one bit each; see [`PerfEvent`].
    #[bits(0..=27, rw)]
    es: u28,
    /// EGI: event group.
    #[bits(28..=31, rw)]
    egi: u4,
}

/// Byte offsets within the register block of one counter, which starts at PERFCFGOFF + 100h times the counter number.
/// VT-d §11.4.13.1.
pub mod perf_offset {
    /// Distance of two counters' register blocks.
    pub const BLOCK: u32 = 0x100;
    /// [`PerfCounterConfig`](super::PerfCounterConfig).
    pub const CNTRCFG: u32 = 0x00;
    /// [`PerfRequesterFilter`](super::PerfRequesterFilter).
    pub const RID_FILTER: u32 = 0x08;
    /// [`PerfDomainFilter`](super::PerfDomainFilter).
    pub const DID_FILTER: u32 = 0x0C;
    /// [`PerfPasidFilter`](super::PerfPasidFilter).
    pub const PASID_FILTER: u32 = 0x10;
    /// [`PerfAddressTypeFilter`](super::PerfAddressTypeFilter).
    pub const AT_FILTER: u32 = 0x14;
    /// [`PerfLevelFilter`](super::PerfLevelFilter).
    pub const LEVEL_FILTER: u32 = 0x18;
    /// [`PerfCounterCapability`](super::PerfCounterCapability).
    pub const CNTRCAP: u32 = 0x80;
    /// First [`PerfCounterEventCapability`](super::PerfCounterEventCapability), one each 4 bytes.
    pub const CNTREVCAP: u32 = 0x84;
}

/// An event that can be counted: group, and bit within the group. VT-d §10.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PerfEvent {
    /// Event group.
    pub group: u8,
    /// Bit number in event selects of the group.
    pub bit: u8,
}

macro_rules! perf_events {
    ($( $(#[$meta:meta])* $name:ident = $group:literal . $bit:literal ),* $(,)?) => {
        impl PerfEvent {
            $( $(#[$meta])* pub const $name: Self = Self { group: $group, bit: $bit }; )*

            /// All events of this revision.
            pub const ALL: &'static [Self] = &[$( Self::$name ),*];
        }
    };
}

perf_events! {
    /// Clocks.
    CLOCKS = 0 . 0,
    /// Requests.
    REQUESTS = 0 . 1,
    /// Occupancy by page walks.
    PAGE_WALK_OCCUPANCY = 0 . 2,
    /// Clocks in which a translation request was blocked.
    ATS_BLOCKED = 0 . 3,
    /// Occupancy in total.
    TOTAL_OCCUPANCY = 0 . 5,
    /// Occupancy by memory accesses.
    MEMORY_OCCUPANCY = 0 . 6,
    /// Memory reads.
    MEMORY_READS = 1 . 0,
    /// Atomic updates of accessed and dirty flags.
    FLAG_UPDATES = 1 . 3,
    /// Clocks in which memory was blocked.
    MEMORY_BLOCKED = 1 . 5,
    /// Page requests that were queued.
    PAGE_REQUESTS_QUEUED = 1 . 6,
    /// Page requests that found the queue full.
    PAGE_REQUESTS_OVERFLOWED = 1 . 7,
    /// Context-cache lookups.
    CONTEXT_LOOKUPS = 2 . 0,
    /// Context-cache hits.
    CONTEXT_HITS = 2 . 1,
    /// PASID-cache lookups.
    PASID_LOOKUPS = 2 . 2,
    /// PASID-cache hits.
    PASID_HITS = 2 . 3,
    /// Second-stage lookups above the leaf.
    SECOND_STAGE_LOOKUPS = 2 . 4,
    /// Second-stage hits above the leaf.
    SECOND_STAGE_HITS = 2 . 5,
    /// First-stage lookups above the leaf.
    FIRST_STAGE_LOOKUPS = 2 . 6,
    /// First-stage hits above the leaf.
    FIRST_STAGE_HITS = 2 . 7,
    /// Host permission table lookups above the leaf.
    HPT_LOOKUPS = 2 . 8,
    /// Host permission table hits above the leaf.
    HPT_HITS = 2 . 9,
    /// IOTLB lookups.
    IOTLB_LOOKUPS = 3 . 0,
    /// IOTLB hits.
    IOTLB_HITS = 3 . 1,
    /// Host permission table leaf lookups.
    HPT_LEAF_LOOKUPS = 3 . 2,
    /// Host permission table leaf hits.
    HPT_LEAF_HITS = 3 . 3,
    /// Interrupt entry cache lookups.
    INTERRUPT_LOOKUPS = 4 . 0,
    /// Interrupt entry cache hits, not posted.
    INTERRUPT_HITS = 4 . 1,
    /// Interrupt entry cache hits, posted.
    INTERRUPT_HITS_POSTED = 4 . 2,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_matches_the_figure() {
        let c = PerfCapability::new_with_raw_value(0xF037_001F_0530_0004);
        assert_eq!((c.ncntr(), c.cw().value(), c.egcnt().value()), (4, 48, 5));
        assert!(c.rid_filter() && c.did_filter() && c.pasid_filter() && c.at_filter() && c.level_filter());
        assert!(c.cwe() && c.gfs() && c.ios() && !c.pccs());
        assert_eq!(c.counter_stride(), 8192);
    }

    #[test]
    fn counter_registers_match_the_figures() {
        let cfg = PerfCounterConfig::new_with_raw_value(0x0800_0001_0000_0407);
        assert!(cfg.en() && cfg.io() && cfg.gfo());
        assert_eq!((cfg.egi().value(), cfg.es().value()), (4, 0x800_0001));
        let p = PerfPasidFilter::new_with_raw_value(0x8021_2345);
        assert!(p.en());
        assert_eq!((p.pfm().value(), p.pasid().raw()), (2, 0x12345));
        let cap = PerfCounterCapability::new_with_raw_value(0x5003_3001);
        assert!(cap.pcc() && cap.ios() && cap.gfs());
        assert_eq!((cap.cw(), cap.egcnt().value()), (0x30, 5));
        let ev = PerfCounterEventCapability::new_with_raw_value(0x3000_0003);
        assert_eq!((ev.egi().value(), ev.es().value()), (3, 3));
        assert_eq!(PerfLevelFilter::new_with_raw_value(0x8000_0010).level().value(), 0x10);
        assert_eq!(PerfAddressTypeFilter::new_with_raw_value(0x8000_0004).at().value(), 4);
        assert_eq!(PerfRequesterFilter::new_with_raw_value(0x8000_0018).rid(), 0x18);
        assert_eq!(PerfDomainFilter::new_with_raw_value(0x8000_0005).did(), 5);
        assert_eq!(PerfEventCapability::new_with_raw_value(0x6F).es().value(), 0x6F);
        assert!(PerfInterruptStatus::new_with_raw_value(1).pis());
    }

    #[test]
    fn events_are_unique() {
        for (i, a) in PerfEvent::ALL.iter().enumerate() {
            assert!(!PerfEvent::ALL[..i].contains(a), "{a:?}");
        }
        assert_eq!(PerfEvent::IOTLB_HITS, PerfEvent { group: 3, bit: 1 });
    }
}
