//! Memory type range registers. Present with ECAP.MTS.

use arbitrary_int::u52;
use bitbybit::bitfield;
use iommu_types::HostPhys;

use super::offset;

/// Number of fixed-range registers.
pub const MTRR_FIXED_COUNT: u8 = 11;
/// Number of variable-range register pairs for which there is room.
pub const MTRR_VARIABLE_COUNT: u8 = 10;

/// MTRR Capability Register. VT-d §11.4.12.1 (MTRRCAP_REG). 64 bits, read only.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct MtrrCapability {
    /// VCNT: number of variable ranges.
    #[bits(0..=7, rw)]
    vcnt: u8,
    /// FIX: fixed ranges are supported.
    #[bit(8, rw)]
    fix: bool,
    /// WC: write combining is supported.
    #[bit(10, rw)]
    wc: bool,
}

/// MTRR Default Type Register. VT-d §11.4.12.2 (MTRRDEF_REG). 64 bits, read-write.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct MtrrDefaultType {
    /// TYPE: memory type outside all ranges; see [`crate::encoding::MemoryType`].
    #[bits(0..=7, rw)]
    memory_type: u8,
    /// FE: fixed ranges enabled.
    #[bit(10, rw)]
    fe: bool,
    /// E: MTRRs enabled; otherwise all memory is uncacheable.
    #[bit(11, rw)]
    e: bool,
}

/// Fixed-range MTRR: eight memory types, lowest address first. VT-d §11.4.12.3. 64 bits, read-write.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct MtrrFixed {
    /// Memory types of the eight sub-ranges; see [`crate::encoding::MemoryType`].
    #[bits(0..=7, rw)]
    memory_type: [u8; 8],
}

/// Base of a variable-range MTRR. VT-d §11.4.12.4. 64 bits, read-write.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct MtrrVariableBase {
    /// TYPE: memory type of the range; see [`crate::encoding::MemoryType`].
    #[bits(0..=7, rw)]
    memory_type: u8,
    /// PHYSBASE: base, bits HAW-1:12.
    #[bits(12..=63, rw)]
    physbase: u52,
}

page_address!(
    MtrrVariableBase,
    HostPhys,
    /// Host physical address of the range.
    base, with_base => physbase, with_physbase
);

/// Mask of a variable-range MTRR. VT-d §11.4.12.4. 64 bits, read-write.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct MtrrVariableMask {
    /// V: valid.
    #[bit(11, rw)]
    v: bool,
    /// PHYSMASK: mask, bits HAW-1:12; the range holds the addresses that equal the base in the bits set here.
    #[bits(12..=63, rw)]
    physmask: u52,
}

/// Offset of fixed-range register `index` (0 to 10, by address); `None` beyond. VT-d §11.4.12.3.
#[must_use]
pub const fn mtrr_fixed_offset(index: u8) -> Option<u32> {
    if index < MTRR_FIXED_COUNT {
        Some(offset::MTRR_FIX64K_00000 + 8 * index as u32)
    } else {
        None
    }
}

/// Offset of the base register of variable range `index` (0 to 9); `None` beyond. The mask register follows 8 bytes later.
/// VT-d §11.4.12.4.
#[must_use]
pub const fn mtrr_variable_offset(index: u8) -> Option<u32> {
    if index < MTRR_VARIABLE_COUNT {
        Some(offset::MTRR_PHYSBASE0 + 16 * index as u32)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_match_the_processor_format() {
        let c = MtrrCapability::new_with_raw_value(0x50A);
        assert_eq!((c.vcnt(), c.fix(), c.wc()), (10, true, true));
        let d = MtrrDefaultType::new_with_raw_value(0xC06);
        assert_eq!((d.memory_type(), d.fe(), d.e()), (6, true, true));
        let b = MtrrVariableBase::new_with_raw_value(0x0000_000F_C000_0006);
        assert_eq!((b.memory_type(), b.base()), (6, HostPhys::new(0xF_C000_0000)));
        let m = MtrrVariableMask::new_with_raw_value(0x0000_3FFF_C000_0800);
        assert!(m.v());
        assert_eq!(m.physmask().value(), 0x3_FFFC_0000);
        assert_eq!(MtrrFixed::new_with_raw_value(0x0600_0000_0000_0005).memory_type(7), 6);
    }

    #[test]
    fn offsets_run_to_the_last_register_of_each_kind() {
        assert_eq!(
            [0, 1, 2, 3, 10].map(mtrr_fixed_offset),
            [0x120, 0x128, 0x130, 0x138, 0x170].map(Some)
        );
        assert_eq!(mtrr_fixed_offset(11), None);
        assert_eq!(
            (mtrr_variable_offset(0), mtrr_variable_offset(9)),
            (Some(0x180), Some(0x210))
        );
        assert_eq!(mtrr_variable_offset(10), None);
        assert_eq!(offset::MTRR_PHYSMASK0 + 16 * 9, 0x218);
        assert_eq!(offset::MTRR_FIX4K_C0000, 0x138);
    }
}
