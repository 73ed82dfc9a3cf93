//! Byte offsets of registers from the base of the unit's register block. VT-d §11.4.
//!
//! The fault recording registers and the IVA/IOTLB pair are where the capabilities say:
//! [`Capability::fault_record_offset`](super::Capability::fault_record_offset) and
//! [`ExtendedCapability::iotlb_offset`](super::ExtendedCapability::iotlb_offset).

/// Version, 32 bits. §11.4.1 (VER_REG).
pub const VER: u32 = 0x000;
/// Capability, 64 bits. §11.4.2 (CAP_REG).
pub const CAP: u32 = 0x008;
/// Extended capability, 64 bits. §11.4.3 (ECAP_REG).
pub const ECAP: u32 = 0x010;
/// Global command, 32 bits. §11.4.4.1 (GCMD_REG).
pub const GCMD: u32 = 0x018;
/// Global status, 32 bits. §11.4.4.2 (GSTS_REG).
pub const GSTS: u32 = 0x01C;
/// Root table address, 64 bits. §11.4.5 (RTADDR_REG).
pub const RTADDR: u32 = 0x020;
/// Context command, 64 bits. §11.4.6.1 (CCMD_REG).
pub const CCMD: u32 = 0x028;
/// Fault status, 32 bits. §11.4.7.1 (FSTS_REG).
pub const FSTS: u32 = 0x034;
/// Fault event control, 32 bits. §11.4.7.2 (FECTL_REG).
pub const FECTL: u32 = 0x038;
/// Fault event data, 32 bits. §11.4.7.3 (FEDATA_REG).
pub const FEDATA: u32 = 0x03C;
/// Fault event address, 32 bits. §11.4.7.4 (FEADDR_REG).
pub const FEADDR: u32 = 0x040;
/// Fault event upper address, 32 bits. §11.4.7.5 (FEUADDR_REG).
pub const FEUADDR: u32 = 0x044;
/// Advanced fault log, 64 bits. Removed in revision 4.0; reserved since.
pub const AFLOG: u32 = 0x058;
/// Protected memory enable, 32 bits. §11.4.8.1 (PMEN_REG).
pub const PMEN: u32 = 0x064;
/// Protected low memory base, 32 bits. §11.4.8.2 (PLMBASE_REG).
pub const PLMBASE: u32 = 0x068;
/// Protected low memory limit, 32 bits. §11.4.8.3 (PLMLIMIT_REG).
pub const PLMLIMIT: u32 = 0x06C;
/// Protected high memory base, 64 bits. §11.4.8.4 (PHMBASE_REG).
pub const PHMBASE: u32 = 0x070;
/// Protected high memory limit, 64 bits. §11.4.8.5 (PHMLIMIT_REG).
pub const PHMLIMIT: u32 = 0x078;
/// Invalidation queue head, 64 bits. §11.4.9.1 (IQH_REG).
pub const IQH: u32 = 0x080;
/// Invalidation queue tail, 64 bits. §11.4.9.2 (IQT_REG).
pub const IQT: u32 = 0x088;
/// Invalidation queue address, 64 bits. §11.4.9.3 (IQA_REG).
pub const IQA: u32 = 0x090;
/// Invalidation completion status, 32 bits. §11.4.9.4 (ICS_REG).
pub const ICS: u32 = 0x09C;
/// Invalidation event control, 32 bits. §11.4.9.5 (IECTL_REG).
pub const IECTL: u32 = 0x0A0;
/// Invalidation event data, 32 bits. §11.4.9.6 (IEDATA_REG).
pub const IEDATA: u32 = 0x0A4;
/// Invalidation event address, 32 bits. §11.4.9.7 (IEADDR_REG).
pub const IEADDR: u32 = 0x0A8;
/// Invalidation event upper address, 32 bits. §11.4.9.8 (IEUADDR_REG).
pub const IEUADDR: u32 = 0x0AC;
/// Invalidation queue error record, 64 bits. §11.4.9.9 (IQERCD_REG).
pub const IQERCD: u32 = 0x0B0;
/// Interrupt remapping table address, 64 bits. §11.4.10 (IRTA_REG).
pub const IRTA: u32 = 0x0B8;
/// Page request queue head, 64 bits. §11.4.11.1 (PQH_REG).
pub const PQH: u32 = 0x0C0;
/// Page request queue tail, 64 bits. §11.4.11.2 (PQT_REG).
pub const PQT: u32 = 0x0C8;
/// Page request queue address, 64 bits. §11.4.11.3 (PQA_REG).
pub const PQA: u32 = 0x0D0;
/// Page request status, 32 bits. §11.4.11.4 (PRS_REG).
pub const PRS: u32 = 0x0DC;
/// Page request event control, 32 bits. §11.4.11.5 (PECTL_REG).
pub const PECTL: u32 = 0x0E0;
/// Page request event data, 32 bits. §11.4.11.6 (PEDATA_REG).
pub const PEDATA: u32 = 0x0E4;
/// Page request event address, 32 bits. §11.4.11.7 (PEADDR_REG).
pub const PEADDR: u32 = 0x0E8;
/// Page request event upper address, 32 bits. §11.4.11.8 (PEUADDR_REG).
pub const PEUADDR: u32 = 0x0EC;
/// MTRR capability, 64 bits. §11.4.12.1 (MTRRCAP_REG).
pub const MTRRCAP: u32 = 0x100;
/// MTRR default type, 64 bits. §11.4.12.2 (MTRRDEF_REG).
pub const MTRRDEF: u32 = 0x108;
/// Fixed-range MTRR 64K_00000, 64 bits. §11.4.12.3.
pub const MTRR_FIX64K_00000: u32 = 0x120;
/// Fixed-range MTRR 16K_80000, 64 bits. §11.4.12.3.
pub const MTRR_FIX16K_80000: u32 = 0x128;
/// Fixed-range MTRR 16K_A0000, 64 bits. §11.4.12.3.
pub const MTRR_FIX16K_A0000: u32 = 0x130;
/// First of the eight fixed-range MTRRs 4K_C0000 to 4K_F8000, 64 bits each. §11.4.12.3.
pub const MTRR_FIX4K_C0000: u32 = 0x138;
/// First of the ten variable-range MTRR base registers, 64 bits, one each 16 bytes. §11.4.12.4.
pub const MTRR_PHYSBASE0: u32 = 0x180;
/// First of the ten variable-range MTRR mask registers, 64 bits, one each 16 bytes. §11.4.12.4.
pub const MTRR_PHYSMASK0: u32 = 0x188;
/// Performance monitoring capability, 64 bits. §11.4.13.2 (PERFCAP_REG).
pub const PERFCAP: u32 = 0x300;
/// Performance monitoring configuration offset, 32 bits. §11.4.13.3 (PERFCFGOFF_REG).
pub const PERFCFGOFF: u32 = 0x310;
/// Performance monitoring freeze offset, 32 bits. §11.4.13.4 (PERFFRZOFF_REG).
pub const PERFFRZOFF: u32 = 0x314;
/// Performance monitoring overflow offset, 32 bits. §11.4.13.5 (PERFOVFOFF_REG).
pub const PERFOVFOFF: u32 = 0x318;
/// Performance monitoring counter offset, 32 bits. §11.4.13.6 (PERFCNTROFF_REG).
pub const PERFCNTROFF: u32 = 0x31C;
/// Performance monitoring interrupt status, 32 bits. §11.4.13.7 (PERFINTRSTS_REG).
pub const PERFINTRSTS: u32 = 0x324;
/// Performance monitoring interrupt control, 32 bits. §11.4.13.8 (PERFINTRCTL_REG).
pub const PERFINTRCTL: u32 = 0x328;
/// Performance monitoring interrupt data, 32 bits. §11.4.13.9 (PERFINTRDATA_REG).
pub const PERFINTRDATA: u32 = 0x32C;
/// Performance monitoring interrupt address, 32 bits. §11.4.13.10 (PERFINTRADDR_REG).
pub const PERFINTRADDR: u32 = 0x330;
/// Performance monitoring interrupt upper address, 32 bits. §11.4.13.11 (PERFINTRUADDR_REG).
pub const PERFINTRUADDR: u32 = 0x334;
/// First performance monitoring event capability register, 64 bits, one each 8 bytes and event group. §11.4.13.14
/// (PERFEVNTCAP_REG).
pub const PERFEVNTCAP: u32 = 0x380;
/// Enhanced command, 64 bits. §11.4.14.1 (ECMD_REG).
pub const ECMD: u32 = 0x400;
/// Enhanced command extended operand, 64 bits. §11.4.14.2 (ECEO_REG).
pub const ECEO: u32 = 0x408;
/// Enhanced command response, 64 bits. §11.4.14.3 (ECRSP_REG).
pub const ECRSP: u32 = 0x410;
/// First of two enhanced command status registers, 64 bits each. §11.4.14.4 (ECSTS_REG).
pub const ECSTS: u32 = 0x420;
/// First of four enhanced command capability registers, 64 bits each. §11.4.14.5 (ECCAP_REG).
pub const ECCAP: u32 = 0x430;
/// RDT configuration, 64 bits. §11.4.15 (RDTC_REG).
pub const RDTC: u32 = 0xDC0;
/// Virtual command, 64 bits. §11.4.16.1 (VCMD_REG).
pub const VCMD: u32 = 0xE00;
/// Virtual command extended operand, 64 bits. §11.4.16.2 (VCMD_EO_REG).
pub const VCMD_EO: u32 = 0xE08;
/// Virtual command response, 64 bits. §11.4.16.3 (VCRSP_REG).
pub const VCRSP: u32 = 0xE10;
/// Virtual command capability, 64 bits. §11.4.16.4 (VCCAP_REG).
pub const VCCAP: u32 = 0xE30;
