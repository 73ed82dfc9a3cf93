//! The register quadruple through which a unit raises its own interrupts: control, data, address, upper address.
//!
//! Fault events, invalidation completion events, page request events and performance monitoring interrupts share the
//! layout. How an APIC destination is written into address and data is in [`crate::message`].

use arbitrary_int::{u3, u30};
use bitbybit::bitfield;

/// Event control: FECTL, IECTL, PECTL, PERFINTRCTL. VT-d §11.4.7.2 (FECTL_REG). 32 bits.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct EventControl {
    /// IP: interrupt pending; read only.
    #[bit(30, rw)]
    ip: bool,
    /// IM: interrupt mask; 1 after reset.
    #[bit(31, rw)]
    im: bool,
}

impl EventControl {
    /// The value after reset: masked.
    pub const RESET: Self = Self::new_with_raw_value(0x8000_0000);
}

/// Event data: FEDATA, IEDATA, PEDATA, PERFINTRDATA. VT-d §11.4.7.3 (FEDATA_REG). 32 bits, read-write.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct EventData {
    /// Interrupt vector. VT-d §5.1.6.
    #[bits(0..=7, rw)]
    vector: u8,
    /// Delivery mode code; see [`crate::encoding::DeliveryMode`]. VT-d §5.1.6.
    #[bits(8..=10, rw)]
    dlm: u3,
}

impl EventData {
    /// IMD: the bits of the register that are implemented as message data.
    pub const MESSAGE_DATA: u32 = 0x0000_FFFF;
}

/// Event address: FEADDR, IEADDR, PEADDR, PERFINTRADDR. VT-d §11.4.7.4 (FEADDR_REG). 32 bits, read-write.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct EventAddress {
    /// MA: message address, bits 31:2.
    #[bits(2..=31, rw)]
    ma: u30,
}

/// Event upper address: FEUADDR, IEUADDR, PEUADDR, PERFINTRUADDR. VT-d §11.4.7.5 (FEUADDR_REG). 32 bits, read-write.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct EventUpperAddress {
    /// MUA: message address, bits 63:32.
    #[bits(0..=31, rw)]
    mua: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_is_masked_after_reset_and_has_pending_below_mask() {
        assert!(EventControl::RESET.im() && !EventControl::RESET.ip());
        assert!(EventControl::new_with_raw_value(0x4000_0000).ip());
    }

    #[test]
    fn address_drops_the_two_low_bits_and_data_splits() {
        assert_eq!(
            EventAddress::new_with_raw_value(0xFEE0_1000).ma().value(),
            0xFEE0_1000 >> 2
        );
        let d = EventData::new_with_raw_value(0x0131);
        assert_eq!((d.vector(), d.dlm().value()), (0x31, 1));
        assert_eq!(EventUpperAddress::new_with_raw_value(0x100).mua(), 0x100);
    }
}
