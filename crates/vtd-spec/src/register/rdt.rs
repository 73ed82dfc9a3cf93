//! Resource director technology tags. Present with ECAP.RDTS.

use arbitrary_int::{u5, u12};
use bitbybit::bitfield;

/// RDT Configuration Register: tags of the unit's own memory accesses. VT-d §11.4.15 (RDTC_REG). 64 bits, read-write.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct RdtConfig {
    /// RMID: resource monitoring identifier.
    #[bits(0..=11, rw)]
    rmid: u12,
    /// CLOS: class of service.
    #[bits(32..=36, rw)]
    clos: u5,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_match_the_figure() {
        let r = RdtConfig::new_with_raw_value(0x0000_001F_0000_0ABC);
        assert_eq!((r.rmid().value(), r.clos().value()), (0xABC, 0x1F));
    }
}
