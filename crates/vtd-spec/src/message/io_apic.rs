//! I/O APIC redirection entries in remappable form.

use arbitrary_int::u3;
use bitbybit::bitfield;

/// I/O APIC redirection table entry in remappable form. VT-d §5.1.5.1.
///
/// For a level interrupt, vector and trigger mode must equal those of the interrupt remapping table entry: the end of
/// interrupt is matched by vector.
#[bitfield(u64, default = 0x0001_0000_0000_0000, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct IoApicEntry {
    /// Vector.
    #[bits(0..=7, rw)]
    vector: u8,
    /// Must be 000.
    #[bits(8..=10, rw)]
    zero: u3,
    /// Delivery status; read only.
    #[bit(12, rw)]
    delivery_status: bool,
    /// Interrupt input polarity: 1 is active low.
    #[bit(13, rw)]
    polarity: bool,
    /// Remote IRR; read only.
    #[bit(14, rw)]
    remote_irr: bool,
    /// Trigger mode: 1 is level.
    #[bit(15, rw)]
    tm: bool,
    /// Mask.
    #[bit(16, rw)]
    mask: bool,
    /// Interrupt format: 1 for remappable.
    #[bit(48, rw)]
    format: bool,
    /// Interrupt index: bits 14:0 from bits 63:49, bit 15 from bit 11.
    #[bits([49..=63, 11..=11], rw)]
    index: u16,
}

impl IoApicEntry {
    /// Bits that must be 0.
    pub const RESERVED: u64 = 0x0000_FFFF_FFFE_0700;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_encodes() {
        let e = IoApicEntry::DEFAULT.with_index(0x1234).with_vector(0x31);
        assert_eq!(e.raw_value(), 0x2469_0000_0000_0031);
        assert_eq!(e.raw_value() & IoApicEntry::RESERVED, 0);
    }

    #[test]
    fn index_bit_15_stands_apart() {
        let e = IoApicEntry::new_with_raw_value(0x0001_0000_0001_8800);
        assert_eq!(e.index(), 0x8000);
        assert!(e.mask() && e.tm() && e.format());
    }
}
