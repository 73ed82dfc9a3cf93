//! Interrupt remapping table address.

use arbitrary_int::{u4, u52};
use bitbybit::bitfield;
use iommu_types::HostPhys;

/// Interrupt Remapping Table Address Register. VT-d §11.4.10 (IRTA_REG). 64 bits, read-write.
///
/// Takes effect when GCMD.SIRTP is written.
#[bitfield(u64, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct InterruptRemapTableAddress {
    /// S: size; 2^(S+1) entries.
    #[bits(0..=3, rw)]
    s: u4,
    /// EIME: extended interrupt mode enable; destinations are 32-bit x2APIC IDs.
    #[bit(11, rw)]
    eime: bool,
    /// IRTA: table base, bits 63:12.
    #[bits(12..=63, rw)]
    irta: u52,
}

page_address!(
    InterruptRemapTableAddress,
    HostPhys,
    /// Host physical address of the table.
    table, with_table => irta, with_irta
);

impl InterruptRemapTableAddress {
    /// Number of entries, 2 to 65536.
    #[must_use]
    pub const fn entries(self) -> u32 {
        2 << self.s().value()
    }

    /// Length of the table in bytes.
    #[must_use]
    pub const fn byte_len(self) -> u64 {
        self.entries() as u64 * 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_15_is_65536_entries_in_one_mebibyte() {
        let r = InterruptRemapTableAddress::new_with_raw_value(0x0000_0001_2340_080F);
        assert_eq!(r.table(), HostPhys::new(0x1_2340_0000));
        assert!(r.eime());
        assert_eq!((r.entries(), r.byte_len()), (65536, 1 << 20));
        assert_eq!(InterruptRemapTableAddress::DEFAULT.entries(), 2);
    }
}
