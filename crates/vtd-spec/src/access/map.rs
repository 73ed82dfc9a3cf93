//! The register map as data. VT-d §11.4.

use super::Presence::{
    Always, EnhancedCommands, ExtendedInterrupts, InterruptRemapping, MemoryTypes, PageRequests, PageRequestsExtended,
    PerformanceMonitoring, ProtectedHigh, ProtectedLow, Queue, QueueExtended, RdtTags, VirtualCommands,
};
use super::RegisterWidth::{Bits32, Bits64};
use super::{AccessMasks, Presence, RegisterSpec, RegisterWidth};

#[expect(clippy::too_many_arguments, reason = "one argument a column of the tables below")]
const fn spec(
    name: &'static str,
    offset: u32,
    width: RegisterWidth,
    presence: Presence,
    rw: u64,
    w1c: u64,
    wo: u64,
    reset: u64,
    sticky: u64,
) -> RegisterSpec {
    RegisterSpec {
        name,
        offset,
        width,
        presence,
        masks: AccessMasks { rw, w1c, wo },
        reset,
        sticky,
    }
}

/// Every register at a fixed offset, by offset.
///
/// The bits of protected memory base and limit registers that a unit implements depend on its granule; all are listed.
#[rustfmt::skip] // one register a line: name, offset, width, presence, RW, RW1C, WO, reset, sticky
pub const REGISTERS: &[RegisterSpec] = &[
    spec("VER", 0x000, Bits32, Always, 0, 0, 0, 0, 0),
    spec("CAP", 0x008, Bits64, Always, 0, 0, 0, 0, 0),
    spec("ECAP", 0x010, Bits64, Always, 0, 0, 0, 0, 0),
    spec("GCMD", 0x018, Bits32, Always, 0, 0, 0xCF80_0000, 0, 0),
    spec("GSTS", 0x01C, Bits32, Always, 0, 0, 0, 0, 0),
    spec("RTADDR", 0x020, Bits64, Always, 0xFFFF_FFFF_FFFF_FC80, 0, 0, 0, 0),
    spec("CCMD", 0x028, Bits64, Always, 0xE000_0000_0000_FFFF, 0, 0x0003_FFFF_0000, 0, 0),
    spec("FSTS", 0x034, Bits32, Always, 0, 0x0071, 0, 0, 0xFF73),
    spec("FECTL", 0x038, Bits32, Always, 0x8000_0000, 0, 0, 0x8000_0000, 0),
    spec("FEDATA", 0x03C, Bits32, Always, 0xFFFF, 0, 0, 0, 0),
    spec("FEADDR", 0x040, Bits32, Always, 0xFFFF_FFFC, 0, 0, 0, 0),
    spec("FEUADDR", 0x044, Bits32, ExtendedInterrupts, 0xFFFF_FFFF, 0, 0, 0, 0),
    spec("PMEN", 0x064, Bits32, Always, 0x8000_0000, 0, 0, 0, 0),
    spec("PLMBASE", 0x068, Bits32, ProtectedLow, 0xFFFF_FFFF, 0, 0, 0, 0),
    spec("PLMLIMIT", 0x06C, Bits32, ProtectedLow, 0xFFFF_FFFF, 0, 0, 0, 0),
    spec("PHMBASE", 0x070, Bits64, ProtectedHigh, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("PHMLIMIT", 0x078, Bits64, ProtectedHigh, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("IQH", 0x080, Bits64, Queue, 0, 0, 0, 0, 0),
    spec("IQT", 0x088, Bits64, Queue, 0x0007_FFF0, 0, 0, 0, 0),
    spec("IQA", 0x090, Bits64, Queue, 0xFFFF_FFFF_FFFF_F807, 0, 0, 0, 0),
    spec("ICS", 0x09C, Bits32, Queue, 0, 0x0001, 0, 0, 0x0001),
    spec("IECTL", 0x0A0, Bits32, Queue, 0x8000_0000, 0, 0, 0x8000_0000, 0),
    spec("IEDATA", 0x0A4, Bits32, Queue, 0xFFFF, 0, 0, 0, 0),
    spec("IEADDR", 0x0A8, Bits32, Queue, 0xFFFF_FFFC, 0, 0, 0, 0),
    spec("IEUADDR", 0x0AC, Bits32, QueueExtended, 0xFFFF_FFFF, 0, 0, 0, 0),
    spec("IQERCD", 0x0B0, Bits64, Queue, 0, 0, 0, 0, 0xFFFF_FFFF_0000_000F),
    spec("IRTA", 0x0B8, Bits64, InterruptRemapping, 0xFFFF_FFFF_FFFF_F80F, 0, 0, 0, 0),
    spec("PQH", 0x0C0, Bits64, PageRequests, 0x0007_FFE0, 0, 0, 0, 0),
    spec("PQT", 0x0C8, Bits64, PageRequests, 0x0007_FFE0, 0, 0, 0, 0),
    spec("PQA", 0x0D0, Bits64, PageRequests, 0xFFFF_FFFF_FFFF_F007, 0, 0, 0, 0),
    spec("PRS", 0x0DC, Bits32, PageRequests, 0, 0x0003, 0, 0, 0x0003),
    spec("PECTL", 0x0E0, Bits32, PageRequests, 0x8000_0000, 0, 0, 0x8000_0000, 0),
    spec("PEDATA", 0x0E4, Bits32, PageRequests, 0xFFFF, 0, 0, 0, 0),
    spec("PEADDR", 0x0E8, Bits32, PageRequests, 0xFFFF_FFFC, 0, 0, 0, 0),
    spec("PEUADDR", 0x0EC, Bits32, PageRequestsExtended, 0xFFFF_FFFF, 0, 0, 0, 0),
    spec("MTRRCAP", 0x100, Bits64, MemoryTypes, 0, 0, 0, 0, 0),
    spec("MTRRDEF", 0x108, Bits64, MemoryTypes, 0x0CFF, 0, 0, 0, 0),
    spec("MTRR_FIX64K_00000", 0x120, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("MTRR_FIX16K_80000", 0x128, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("MTRR_FIX16K_A0000", 0x130, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("MTRR_FIX4K_C0000", 0x138, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("MTRR_FIX4K_C8000", 0x140, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("MTRR_FIX4K_D0000", 0x148, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("MTRR_FIX4K_D8000", 0x150, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("MTRR_FIX4K_E0000", 0x158, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("MTRR_FIX4K_E8000", 0x160, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("MTRR_FIX4K_F0000", 0x168, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("MTRR_FIX4K_F8000", 0x170, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("MTRR_PHYSBASE0", 0x180, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F0FF, 0, 0, 0, 0),
    spec("MTRR_PHYSMASK0", 0x188, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F800, 0, 0, 0, 0),
    spec("MTRR_PHYSBASE1", 0x190, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F0FF, 0, 0, 0, 0),
    spec("MTRR_PHYSMASK1", 0x198, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F800, 0, 0, 0, 0),
    spec("MTRR_PHYSBASE2", 0x1A0, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F0FF, 0, 0, 0, 0),
    spec("MTRR_PHYSMASK2", 0x1A8, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F800, 0, 0, 0, 0),
    spec("MTRR_PHYSBASE3", 0x1B0, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F0FF, 0, 0, 0, 0),
    spec("MTRR_PHYSMASK3", 0x1B8, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F800, 0, 0, 0, 0),
    spec("MTRR_PHYSBASE4", 0x1C0, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F0FF, 0, 0, 0, 0),
    spec("MTRR_PHYSMASK4", 0x1C8, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F800, 0, 0, 0, 0),
    spec("MTRR_PHYSBASE5", 0x1D0, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F0FF, 0, 0, 0, 0),
    spec("MTRR_PHYSMASK5", 0x1D8, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F800, 0, 0, 0, 0),
    spec("MTRR_PHYSBASE6", 0x1E0, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F0FF, 0, 0, 0, 0),
    spec("MTRR_PHYSMASK6", 0x1E8, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F800, 0, 0, 0, 0),
    spec("MTRR_PHYSBASE7", 0x1F0, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F0FF, 0, 0, 0, 0),
    spec("MTRR_PHYSMASK7", 0x1F8, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F800, 0, 0, 0, 0),
    spec("MTRR_PHYSBASE8", 0x200, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F0FF, 0, 0, 0, 0),
    spec("MTRR_PHYSMASK8", 0x208, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F800, 0, 0, 0, 0),
    spec("MTRR_PHYSBASE9", 0x210, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F0FF, 0, 0, 0, 0),
    spec("MTRR_PHYSMASK9", 0x218, Bits64, MemoryTypes, 0xFFFF_FFFF_FFFF_F800, 0, 0, 0, 0),
    spec("PERFCAP", 0x300, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFCFGOFF", 0x310, Bits32, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFFRZOFF", 0x314, Bits32, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFOVFOFF", 0x318, Bits32, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFCNTROFF", 0x31C, Bits32, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFINTRSTS", 0x324, Bits32, PerformanceMonitoring, 0, 0x0001, 0, 0, 0),
    spec("PERFINTRCTL", 0x328, Bits32, PerformanceMonitoring, 0x8000_0000, 0, 0, 0x8000_0000, 0),
    spec("PERFINTRDATA", 0x32C, Bits32, PerformanceMonitoring, 0xFFFF, 0, 0, 0, 0),
    spec("PERFINTRADDR", 0x330, Bits32, PerformanceMonitoring, 0xFFFF_FFFC, 0, 0, 0, 0),
    spec("PERFINTRUADDR", 0x334, Bits32, PerformanceMonitoring, 0xFFFF_FFFF, 0, 0, 0, 0),
    spec("PERFEVNTCAP_0", 0x380, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_1", 0x388, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_2", 0x390, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_3", 0x398, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_4", 0x3A0, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_5", 0x3A8, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_6", 0x3B0, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_7", 0x3B8, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_8", 0x3C0, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_9", 0x3C8, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_10", 0x3D0, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_11", 0x3D8, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_12", 0x3E0, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_13", 0x3E8, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("PERFEVNTCAP_14", 0x3F0, Bits64, PerformanceMonitoring, 0, 0, 0, 0, 0),
    spec("ECMD", 0x400, Bits64, EnhancedCommands, 0, 0, 0xFFFF_FFFF_FFFF_00FF, 0, 0),
    spec("ECEO", 0x408, Bits64, EnhancedCommands, 0, 0, 0xFFFF_FFFF_FFFF_FFFF, 0, 0),
    spec("ECRSP", 0x410, Bits64, EnhancedCommands, 0, 0, 0, 0, 0),
    spec("ECSTS_0", 0x420, Bits64, EnhancedCommands, 0, 0, 0, 0, 0),
    spec("ECSTS_1", 0x428, Bits64, EnhancedCommands, 0, 0, 0, 0, 0),
    spec("ECCAP_0", 0x430, Bits64, EnhancedCommands, 0, 0, 0, 0, 0),
    spec("ECCAP_1", 0x438, Bits64, EnhancedCommands, 0, 0, 0, 0, 0),
    spec("ECCAP_2", 0x440, Bits64, EnhancedCommands, 0, 0, 0, 0, 0),
    spec("ECCAP_3", 0x448, Bits64, EnhancedCommands, 0, 0, 0, 0, 0),
    spec("RDTC", 0xDC0, Bits64, RdtTags, 0x001F_0000_0FFF, 0, 0, 0, 0),
    spec("VCMD", 0xE00, Bits64, VirtualCommands, 0xFFFF_FFFF_FFFF_00FF, 0, 0, 0, 0),
    spec("VCMD_EO", 0xE08, Bits64, VirtualCommands, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    spec("VCRSP", 0xE10, Bits64, VirtualCommands, 0, 0, 0, 0, 0),
    spec("VCCAP", 0xE30, Bits64, VirtualCommands, 0, 0, 0, 0, 0),
];

/// Registers of one performance counter, with offsets from the start of its block; see
/// [`perf_offset`](crate::register::perf_offset). While a counter is enabled, all of them are read only.
#[rustfmt::skip] // columns as above
pub const COUNTER_REGISTERS: &[RegisterSpec] = &[
    spec("PERFCNTRCFG", 0x000, Bits64, PerformanceMonitoring, 0x0FFF_FFFF_0000_0F06, 0, 0, 0, 0),
    spec("PERFCNTR_RIDFLTR", 0x008, Bits32, PerformanceMonitoring, 0x8000_FFFF, 0, 0, 0, 0),
    spec("PERFCNTR_DIDFLTR", 0x00C, Bits32, PerformanceMonitoring, 0x8000_FFFF, 0, 0, 0, 0),
    spec("PERFCNTR_PASIDFLTR", 0x010, Bits32, PerformanceMonitoring, 0x803F_FFFF, 0, 0, 0, 0),
    spec("PERFCNTR_ATFLTR", 0x014, Bits32, PerformanceMonitoring, 0x8000_001F, 0, 0, 0, 0),
    spec("PERFCNTR_PTLFLTR", 0x018, Bits32, PerformanceMonitoring, 0x8000_001F, 0, 0, 0, 0),
    spec("PERFCNTRCAP", 0x080, Bits32, PerformanceMonitoring, 0, 0, 0, 0, 0),
];

/// Lower half of a fault recording register; offset from the start of the register. VT-d §11.4.7.6 (FRCD_REG).
#[rustfmt::skip]
pub const FAULT_RECORD_LOW: RegisterSpec = spec("FRCD", 0x000, Bits64, Always, 0, 0, 0, 0, 0xFFFF_FFFF_FFFF_F000);
/// Upper half of a fault recording register; offset from the start of the register. VT-d §11.4.7.6 (FRCD_REG).
#[rustfmt::skip]
pub const FAULT_RECORD_HIGH: RegisterSpec = spec("FRCD", 0x008, Bits64, Always, 0, 0x8000_0000_0000_0000, 0, 0, 0xFFFF_FFFF_F000_FFFF);
/// Invalidate address register; offset from the start of the pair that ECAP.IRO names. VT-d §11.4.6.4 (IVA_REG).
#[rustfmt::skip]
pub const INVALIDATE_ADDRESS: RegisterSpec = spec("IVA", 0x000, Bits64, Always, 0, 0, 0xFFFF_FFFF_FFFF_F07F, 0, 0);
/// IOTLB invalidate register; offset from the start of the pair that ECAP.IRO names. VT-d §11.4.6.3 (IOTLB_REG).
#[rustfmt::skip]
pub const IOTLB_INVALIDATE: RegisterSpec = spec("IOTLB", 0x008, Bits64, Always, 0xB003_FFFF_0000_0000, 0, 0, 0, 0);
