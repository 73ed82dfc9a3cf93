//! Interrupt requests as memory writes.

use arbitrary_int::{u3, u12};
use bitbybit::bitfield;

use crate::encoding::DeliveryMode;
use crate::register::EventData;

/// First address of the interrupt range: writes of a DWORD here are interrupt requests. VT-d §3.15.
pub const INTERRUPT_RANGE_FIRST: u64 = 0xFEE0_0000;
/// Last address of the interrupt range. VT-d §3.15.
pub const INTERRUPT_RANGE_LAST: u64 = 0xFEEF_FFFF;

/// Whether an address lies in the interrupt range. VT-d §3.15.
#[must_use]
pub const fn is_interrupt_address(address: u64) -> bool {
    INTERRUPT_RANGE_FIRST <= address && address <= INTERRUPT_RANGE_LAST
}

/// Which of the two formats an interrupt request has: bit 4 of its address. VT-d §5.1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageFormat {
    /// Destination and vector stand in the request itself.
    Compatibility,
    /// The request names an interrupt remapping table entry.
    Remappable,
}

impl MessageFormat {
    /// The format of the request with this address.
    #[must_use]
    pub const fn of(address: u32) -> Self {
        if RemappableAddress::new_with_raw_value(address).format() {
            Self::Remappable
        } else {
            Self::Compatibility
        }
    }
}

/// Address of an interrupt request in remappable format. VT-d §5.1.2.2.
#[bitfield(u32, default = 0xFEE0_0010, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct RemappableAddress {
    /// HANDLE: interrupt handle, bits 14:0 from address bits 19:5 and bit 15 from address bit 2.
    #[bits([5..=19, 2..=2], rw)]
    handle: u16,
    /// SHV: the data carries a sub-handle.
    #[bit(3, rw)]
    shv: bool,
    /// Interrupt format: 1 for remappable.
    #[bit(4, rw)]
    format: bool,
    /// The interrupt range: FEEh.
    #[bits(20..=31, rw)]
    range: u12,
}

impl RemappableAddress {
    /// Index of the interrupt remapping table entry: the handle, plus the sub-handle if SHV is set. The sum can exceed 16
    /// bits.
    #[must_use]
    pub const fn interrupt_index(self, data: RemappableData) -> u32 {
        if self.shv() {
            self.handle() as u32 + data.subhandle() as u32
        } else {
            self.handle() as u32
        }
    }
}

/// Data of an interrupt request in remappable format. VT-d §5.1.2.2.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct RemappableData {
    /// SUBHANDLE: counts if SHV is set.
    #[bits(0..=15, rw)]
    subhandle: u16,
}

impl RemappableData {
    /// Bits that must be 0 if SHV is set; without SHV they are ignored.
    pub const RESERVED: u32 = 0xFFFF_0000;
}

/// Address of an interrupt request in compatibility format. VT-d §5.1.2.1.
#[bitfield(u32, default = 0xFEE0_0000, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct CompatibilityAddress {
    /// DM: destination mode; 1 is logical.
    #[bit(2, rw)]
    dm: bool,
    /// RH: redirection hint.
    #[bit(3, rw)]
    rh: bool,
    /// Interrupt format: 0 for compatibility.
    #[bit(4, rw)]
    format: bool,
    /// Destination ID: 8-bit APIC ID.
    #[bits(12..=19, rw)]
    destination: u8,
    /// The interrupt range: FEEh.
    #[bits(20..=31, rw)]
    range: u12,
}

/// Data of an interrupt request in compatibility format. VT-d §5.1.2.1.
#[bitfield(u32, default = 0, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct CompatibilityData {
    /// Vector.
    #[bits(0..=7, rw)]
    vector: u8,
    /// Delivery mode; see [`Self::delivery_mode`].
    #[bits(8..=10, rw)]
    dlm: u3,
    /// Trigger mode level: 1 is assert.
    #[bit(14, rw)]
    level: bool,
    /// Trigger mode: 1 is level.
    #[bit(15, rw)]
    tm: bool,
}

impl CompatibilityData {
    /// The delivery mode; `None` for the codes without meaning (3 and 6).
    #[must_use]
    pub const fn delivery_mode(self) -> Option<DeliveryMode> {
        DeliveryMode::from_code(self.dlm().value())
    }

    /// The data with another delivery mode.
    #[must_use]
    pub const fn with_delivery_mode(self, mode: DeliveryMode) -> Self {
        self.with_dlm(mode.raw_value())
    }
}

/// Address and data that make a unit send its own events to an 8-bit APIC ID with a vector, fixed and physical. The upper
/// address is 0. VT-d §5.1.6.1.
#[must_use]
pub const fn event_xapic_message(apic_id: u8, vector: u8) -> (u32, EventData) {
    let address = CompatibilityAddress::DEFAULT.with_destination(apic_id);
    (address.raw_value(), EventData::DEFAULT.with_vector(vector))
}

/// Address, upper address and data that make a unit send its own events to a 32-bit APIC ID with a vector, fixed and
/// physical. VT-d §5.1.6.2.
#[must_use]
pub const fn event_x2apic_message(apic_id: u32, vector: u8) -> (u32, u32, EventData) {
    let low = CompatibilityAddress::DEFAULT.with_destination((apic_id & 0xFF) as u8);
    (
        low.raw_value(),
        apic_id & 0xFFFF_FF00,
        EventData::DEFAULT.with_vector(vector),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remappable_examples_encode() {
        let plain = RemappableAddress::DEFAULT.with_handle(0x1234);
        assert_eq!(plain.raw_value(), 0xFEE2_4690);
        let with_subhandle = RemappableAddress::DEFAULT.with_handle(0x8005).with_shv(true);
        assert_eq!(with_subhandle.raw_value(), 0xFEE0_00BC);
    }

    #[test]
    fn index_is_the_sum_of_handle_and_sub_handle() {
        let data = RemappableData::new_with_raw_value(3);
        assert_eq!(
            RemappableAddress::new_with_raw_value(0xFEE0_00BC).interrupt_index(data),
            0x8008
        );
        assert_eq!(
            RemappableAddress::new_with_raw_value(0xFEE2_4690).interrupt_index(data),
            0x1234
        );
        let top = RemappableAddress::DEFAULT.with_handle(0xFFFF).with_shv(true);
        assert_eq!(
            top.interrupt_index(RemappableData::new_with_raw_value(0xFFFF)),
            0x1_FFFE
        );
    }

    #[test]
    fn format_is_bit_4_of_the_address() {
        assert_eq!(MessageFormat::of(0xFEE2_4690), MessageFormat::Remappable);
        assert_eq!(MessageFormat::of(0xFEE0_700C), MessageFormat::Compatibility);
    }

    #[test]
    fn compatibility_request_decodes() {
        let a = CompatibilityAddress::new_with_raw_value(0xFEE0_700C);
        assert_eq!(
            (a.destination(), a.rh(), a.dm(), a.range().value()),
            (7, true, true, 0xFEE)
        );
        let d = CompatibilityData::new_with_raw_value(0xC131);
        assert_eq!((d.vector(), d.level(), d.tm()), (0x31, true, true));
        assert_eq!(d.delivery_mode(), Some(DeliveryMode::LowestPriority));
    }

    #[test]
    fn event_messages_split_the_apic_id() {
        assert_eq!(
            event_xapic_message(7, 0x31),
            (0xFEE0_7000, EventData::new_with_raw_value(0x31))
        );
        assert_eq!(
            event_x2apic_message(0x0001_2307, 0x31),
            (0xFEE0_7000, 0x0001_2300, EventData::new_with_raw_value(0x31))
        );
    }

    #[test]
    fn interrupt_range_is_one_mebibyte() {
        assert!(is_interrupt_address(0xFEE0_0000) && is_interrupt_address(0xFEEF_FFFF));
        assert!(!is_interrupt_address(0xFEDF_FFFF) && !is_interrupt_address(0xFEF0_0000));
        assert!(!is_interrupt_address(0x1_FEE0_0000));
    }
}
