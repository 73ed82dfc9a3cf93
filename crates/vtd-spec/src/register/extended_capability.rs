//! Extended capability register.

use arbitrary_int::{u4, u5, u10};
use bitbybit::bitfield;

/// Extended Capability Register. VT-d §11.4.3 (ECAP_REG). 64 bits, read only.
///
/// Earlier revisions gave a meaning to bits 24 (extended context), 27 (deferred invalidation), 28 (first PASID bit) and 30
/// (execute requests); they are reserved now.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct ExtendedCapability {
    /// C: page-walk coherency; accesses to root, context and PASID structures, legacy second-stage tables and the
    /// interrupt remapping table snoop processor caches.
    #[bit(0, rw)]
    c: bool,
    /// QI: queued invalidation.
    #[bit(1, rw)]
    qi: bool,
    /// DT: device-TLB.
    #[bit(2, rw)]
    dt: bool,
    /// IR: interrupt remapping.
    #[bit(3, rw)]
    ir: bool,
    /// EIM: extended interrupt mode (32-bit APIC IDs).
    #[bit(4, rw)]
    eim: bool,
    /// PT: pass-through.
    #[bit(6, rw)]
    pt: bool,
    /// SC: snoop control.
    #[bit(7, rw)]
    sc: bool,
    /// IRO: offset of the IVA and IOTLB registers in units of 16 bytes; see [`Self::iotlb_offset`].
    #[bits(8..=17, rw)]
    iro: u10,
    /// MHMV: maximum handle mask value of interrupt entry cache invalidation.
    #[bits(20..=23, rw)]
    mhmv: u4,
    /// MTS: memory type support.
    #[bit(25, rw)]
    mts: bool,
    /// NEST: nested translation.
    #[bit(26, rw)]
    nest: bool,
    /// PRS: page requests.
    #[bit(29, rw)]
    prs: bool,
    /// SRS: supervisor requests.
    #[bit(31, rw)]
    srs: bool,
    /// NWFS: the no-write flag of translation requests is honoured.
    #[bit(33, rw)]
    nwfs: bool,
    /// EAFS: extended accessed flag.
    #[bit(34, rw)]
    eafs: bool,
    /// PSS: PASID width minus 1; see [`Self::pasid_bits`].
    #[bits(35..=39, rw)]
    pss: u5,
    /// PASID: process address space identifiers.
    #[bit(40, rw)]
    pasid: bool,
    /// DIT: device-TLB invalidation throttle.
    #[bit(41, rw)]
    dit: bool,
    /// PDS: page-request draining by wait descriptors.
    #[bit(42, rw)]
    pds: bool,
    /// SMTS: scalable mode.
    #[bit(43, rw)]
    smts: bool,
    /// VCS: virtual command interface.
    #[bit(44, rw)]
    vcs: bool,
    /// SSADS: second-stage accessed and dirty flags.
    #[bit(45, rw)]
    ssads: bool,
    /// SSTS: second-stage translation in scalable mode.
    #[bit(46, rw)]
    ssts: bool,
    /// FSTS: first-stage translation.
    #[bit(47, rw)]
    fsts: bool,
    /// SMPWCS: scalable-mode page-walk coherency.
    #[bit(48, rw)]
    smpwcs: bool,
    /// RPS: the RID_PASID field; without it, requests without PASID use PASID 0.
    #[bit(49, rw)]
    rps: bool,
    /// TDXCS: TDX Connect extensions.
    #[bit(50, rw)]
    tdxcs: bool,
    /// PMS: performance monitoring.
    #[bit(51, rw)]
    pms: bool,
    /// ADMS: abort-DMA mode.
    #[bit(52, rw)]
    adms: bool,
    /// RPRIVS: the RID_PRIV field; without it, requests without PASID are unprivileged.
    #[bit(53, rw)]
    rprivs: bool,
    /// HPTS: host permission table.
    #[bit(55, rw)]
    hpts: bool,
    /// PTRS: PASID in translated requests.
    #[bit(56, rw)]
    ptrs: bool,
    /// SSIRWS: second-stage I/O read and write permissions.
    #[bit(57, rw)]
    ssirws: bool,
    /// SMS: a stop marker that cannot be queued is dropped.
    #[bit(58, rw)]
    sms: bool,
    /// HPT1GPS: 1-GiB pages in the host permission table.
    #[bit(59, rw)]
    hpt1gps: bool,
    /// RDTS: resource director technology tags.
    #[bit(60, rw)]
    rdts: bool,
    /// EIMER: only extended interrupt mode works.
    #[bit(61, rw)]
    eimer: bool,
    /// IRREQ: interrupts are blocked while interrupt remapping is off.
    #[bit(62, rw)]
    irreq: bool,
}

impl ExtendedCapability {
    /// Offset in bytes of the IOTLB invalidate register from the base of the register block.
    #[must_use]
    pub const fn iotlb_offset(self) -> u32 {
        self.invalidate_address_offset() + 8
    }

    /// Offset in bytes of the invalidate address register from the base of the register block.
    #[must_use]
    pub const fn invalidate_address_offset(self) -> u32 {
        self.iro().value() as u32 * 16
    }

    /// Width of PASIDs in bits, 1 to 20; 0 without PASID support.
    #[must_use]
    pub const fn pasid_bits(self) -> u8 {
        if !self.pasid() {
            return 0;
        }
        let bits = self.pss().value() + 1;
        if bits > 20 { 20 } else { bits }
    }

    /// Largest mask of an interrupt entry cache invalidation: base-2 logarithm of the number of entries.
    #[must_use]
    pub const fn max_handle_mask(self) -> u8 {
        self.mhmv().value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn desktop_unit_decodes() {
        let e = ExtendedCapability::new_with_raw_value(0x00F0_50DA);
        assert!(!e.c() && e.qi() && !e.dt() && e.ir() && e.eim() && e.pt() && e.sc());
        assert_eq!((e.invalidate_address_offset(), e.iotlb_offset()), (0x500, 0x508));
        assert_eq!(e.max_handle_mask(), 15);
        assert_eq!(e.pasid_bits(), 0);
    }

    #[test]
    fn graphics_unit_decodes() {
        let e = ExtendedCapability::new_with_raw_value(0x0000_019E_2FF0_505E);
        assert!(e.dt() && e.pt() && e.prs() && !e.smts());
        assert_eq!(e.pss().value(), 19);
        assert_eq!(e.pasid_bits(), 20);
    }

    #[test]
    fn server_older_and_qemu_units_decode() {
        let server = ExtendedCapability::new_with_raw_value(0x00F0_20DF);
        assert!(server.c() && server.qi() && server.dt() && server.ir() && server.eim() && server.pt() && server.sc());
        assert_eq!(server.invalidate_address_offset(), 0x200);
        let older = ExtendedCapability::new_with_raw_value(0x00F0_105A);
        assert!(!older.sc() && older.qi() && older.ir() && older.eim() && older.pt());
        let qemu = ExtendedCapability::new_with_raw_value(0x00F0_0F5A);
        assert!(qemu.qi() && qemu.ir() && qemu.eim() && qemu.pt() && !qemu.sc());
        assert_eq!(qemu.invalidate_address_offset(), 0xF0);
    }

    #[test]
    fn each_flag_stands_at_its_bit() {
        let bit = |n: u32| ExtendedCapability::new_with_raw_value(1 << n);
        assert!(bit(25).mts() && bit(26).nest() && bit(29).prs() && bit(31).srs() && bit(33).nwfs() && bit(34).eafs());
        assert!(
            bit(40).pasid() && bit(41).dit() && bit(42).pds() && bit(43).smts() && bit(44).vcs() && bit(45).ssads()
        );
        assert!(
            bit(46).ssts() && bit(47).fsts() && bit(48).smpwcs() && bit(49).rps() && bit(50).tdxcs() && bit(51).pms()
        );
        assert!(
            bit(52).adms() && bit(53).rprivs() && bit(55).hpts() && bit(56).ptrs() && bit(57).ssirws() && bit(58).sms()
        );
        assert!(bit(59).hpt1gps() && bit(60).rdts() && bit(61).eimer() && bit(62).irreq());
    }
}
