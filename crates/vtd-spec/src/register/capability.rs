//! Capability register.

use arbitrary_int::{u3, u4, u5, u6, u10};
use bitbybit::bitfield;

use crate::agaw::Agaw;

/// Capability Register. VT-d §11.4.2 (CAP_REG). 64 bits, read only.
///
/// Bits 3 (AFL, advanced fault logging) and 23 (ISOCH) had a meaning in earlier revisions; they are reserved now.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct Capability {
    /// ND: number of domains, as a code; see [`Self::domain_id_bits`].
    #[bits(0..=2, rw)]
    nd: u3,
    /// RWBF: required write-buffer flushing.
    #[bit(4, rw)]
    rwbf: bool,
    /// PLMR: protected low-memory region.
    #[bit(5, rw)]
    plmr: bool,
    /// PHMR: protected high-memory region.
    #[bit(6, rw)]
    phmr: bool,
    /// CM: caching mode; entries that are not present may be cached.
    #[bit(7, rw)]
    cm: bool,
    /// SAGAW: supported adjusted guest address widths, bit n for AW code n; see [`Self::supports_agaw`].
    #[bits(8..=12, rw)]
    sagaw: u5,
    /// MGAW: maximum guest address width minus 1; see [`Self::max_guest_address_width`].
    #[bits(16..=21, rw)]
    mgaw: u6,
    /// ZLR: zero-length reads to write-only pages succeed.
    #[bit(22, rw)]
    zlr: bool,
    /// FRO: offset of the fault recording registers in units of 16 bytes; see [`Self::fault_record_offset`].
    #[bits(24..=33, rw)]
    fro: u10,
    /// SSLPS: second-stage large pages, bit 0 2 MiB, bit 1 1 GiB.
    #[bits(34..=37, rw)]
    sslps: u4,
    /// PSI: page-selective invalidation.
    #[bit(39, rw)]
    psi: bool,
    /// NFR: number of fault recording registers minus 1; see [`Self::fault_record_count`].
    #[bits(40..=47, rw)]
    nfr: u8,
    /// MAMV: maximum address mask value of page-selective invalidation, valid with PSI.
    #[bits(48..=53, rw)]
    mamv: u6,
    /// DWD: write draining.
    #[bit(54, rw)]
    dwd: bool,
    /// DRD: read draining.
    #[bit(55, rw)]
    drd: bool,
    /// FS1GP: first-stage 1-GiB pages.
    #[bit(56, rw)]
    fs1gp: bool,
    /// PI: posted interrupts.
    #[bit(59, rw)]
    pi: bool,
    /// FS5LP: first-stage 5-level paging.
    #[bit(60, rw)]
    fs5lp: bool,
    /// ECMDS: enhanced command interface.
    #[bit(61, rw)]
    ecmds: bool,
    /// ESIRTPS: setting the interrupt remapping table pointer invalidates the interrupt entry cache by itself.
    #[bit(62, rw)]
    esirtps: bool,
    /// ESRTPS: setting the root table pointer invalidates the DMA translation caches by itself.
    #[bit(63, rw)]
    esrtps: bool,
}

impl Capability {
    /// Width of domain identifiers in bits, 4 to 16. The reserved code 7 counts as 16, the width of the fields.
    #[must_use]
    pub const fn domain_id_bits(self) -> u8 {
        let bits = 4 + 2 * self.nd().value();
        if bits > 16 { 16 } else { bits }
    }

    /// Number of domain identifiers, 16 to 65536. With CM set, identifier 0 is not usable.
    #[must_use]
    pub const fn domain_count(self) -> u32 {
        1 << self.domain_id_bits()
    }

    /// Whether second-stage tables of a width are supported.
    #[must_use]
    pub const fn supports_agaw(self, agaw: Agaw) -> bool {
        self.sagaw().value() & (1 << agaw.code()) != 0
    }

    /// The widest supported second-stage tables; `None` if the unit has no second stage.
    #[must_use]
    pub const fn largest_agaw(self) -> Option<Agaw> {
        if self.supports_agaw(Agaw::Bits57) {
            Some(Agaw::Bits57)
        } else if self.supports_agaw(Agaw::Bits48) {
            Some(Agaw::Bits48)
        } else if self.supports_agaw(Agaw::Bits39) {
            Some(Agaw::Bits39)
        } else {
            None
        }
    }

    /// The smallest supported second-stage width of at least `bits` address bits, else `None`.
    #[must_use]
    pub const fn smallest_agaw(self, bits: u8) -> Option<Agaw> {
        if bits <= 39 && self.supports_agaw(Agaw::Bits39) {
            Some(Agaw::Bits39)
        } else if bits <= 48 && self.supports_agaw(Agaw::Bits48) {
            Some(Agaw::Bits48)
        } else if bits <= 57 && self.supports_agaw(Agaw::Bits57) {
            Some(Agaw::Bits57)
        } else {
            None
        }
    }

    /// Number of guest address bits that second-stage translation accepts, 1 to 64.
    #[must_use]
    pub const fn max_guest_address_width(self) -> u8 {
        self.mgaw().value() + 1
    }

    /// Whether second-stage leaves of 2 MiB are supported.
    #[must_use]
    pub const fn second_stage_2m(self) -> bool {
        self.sslps().value() & 1 != 0
    }

    /// Whether second-stage leaves of 1 GiB are supported.
    #[must_use]
    pub const fn second_stage_1g(self) -> bool {
        self.sslps().value() & 2 != 0
    }

    /// Number of fault recording registers, 1 to 256.
    #[must_use]
    pub const fn fault_record_count(self) -> u16 {
        self.nfr() as u16 + 1
    }

    /// Offset in bytes of fault recording register `index` from the base of the register block.
    #[must_use]
    pub const fn fault_record_offset(self, index: u8) -> u32 {
        (self.fro().value() as u32 + index as u32) * 16
    }

    /// Largest address mask of a page-selective invalidation: base-2 logarithm of the number of 4-KiB pages. 0 when only
    /// domain and global invalidation exist.
    #[must_use]
    pub const fn max_address_mask(self) -> u8 {
        if self.psi() { self.mamv().value() } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that real units report.
    const DESKTOP: Capability = Capability::new_with_raw_value(0x00D2_008C_4066_0462);
    const GRAPHICS: Capability = Capability::new_with_raw_value(0x01C0_000C_4066_0462);
    const SERVER: Capability = Capability::new_with_raw_value(0x08D2_078C_106F_0466);
    const OLDER: Capability = Capability::new_with_raw_value(0x00C9_0080_2066_0262);
    const QEMU: Capability = Capability::new_with_raw_value(0x00D2_008C_222F_0686);

    #[test]
    fn desktop_unit_decodes() {
        let c = DESKTOP;
        assert_eq!((c.domain_id_bits(), c.domain_count()), (8, 256));
        assert!(c.plmr() && c.phmr() && !c.cm() && !c.rwbf() && c.zlr());
        assert_eq!(Agaw::ALL.map(|a| c.supports_agaw(a)), [false, true, false]);
        assert_eq!(c.max_guest_address_width(), 39);
        assert_eq!((c.fault_record_offset(0), c.fault_record_count()), (0x400, 1));
        assert!(c.second_stage_2m() && c.second_stage_1g() && c.psi() && c.drd() && c.dwd());
        assert_eq!(c.max_address_mask(), 18);
    }

    #[test]
    fn graphics_unit_without_page_selective_invalidation_decodes() {
        let c = GRAPHICS;
        assert!(!c.psi() && c.fs1gp());
        assert_eq!(c.max_address_mask(), 0);
        assert_eq!(c.fault_record_offset(0), 0x400);
    }

    #[test]
    fn server_unit_decodes() {
        let c = SERVER;
        assert_eq!((c.domain_id_bits(), c.domain_count()), (16, 65536));
        assert_eq!(c.largest_agaw(), Some(Agaw::Bits48));
        assert_eq!(c.max_guest_address_width(), 48);
        assert_eq!((c.fault_record_offset(0), c.fault_record_count()), (0x100, 8));
        assert_eq!(c.fault_record_offset(7), 0x170);
        assert_eq!(c.max_address_mask(), 18);
        assert!(c.pi());
    }

    #[test]
    fn older_unit_with_three_levels_decodes() {
        let c = OLDER;
        assert_eq!(c.largest_agaw(), Some(Agaw::Bits39));
        assert_eq!(c.smallest_agaw(40), None);
        assert_eq!(c.max_guest_address_width(), 39);
        assert_eq!(c.fault_record_offset(0), 0x200);
        assert!(!c.second_stage_2m() && !c.second_stage_1g());
        assert_eq!(c.max_address_mask(), 9);
    }

    #[test]
    fn qemu_unit_in_caching_mode_decodes() {
        let c = QEMU;
        assert_eq!(Agaw::ALL.map(|a| c.supports_agaw(a)), [true, true, false]);
        assert_eq!(c.smallest_agaw(30), Some(Agaw::Bits39));
        assert_eq!(c.smallest_agaw(48), Some(Agaw::Bits48));
        assert_eq!((c.fault_record_offset(0), c.fault_record_count()), (0x220, 1));
        assert!(c.cm() && !c.zlr());
        assert_eq!(c.domain_id_bits(), 16);
        assert_eq!(c.max_guest_address_width(), 48);
    }

    #[test]
    fn upper_flags_stand_where_the_figure_has_them() {
        assert!(Capability::new_with_raw_value(1 << 63).esrtps());
        assert!(Capability::new_with_raw_value(1 << 62).esirtps());
        assert!(Capability::new_with_raw_value(1 << 61).ecmds());
        assert!(Capability::new_with_raw_value(1 << 60).fs5lp());
        assert_eq!(Capability::new_with_raw_value(7).domain_id_bits(), 16);
    }
}
