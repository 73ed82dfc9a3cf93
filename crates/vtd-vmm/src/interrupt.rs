//! Interrupts on their way out: what is to be delivered, and the messages that hypervisors take.

use thiserror::Error;
use vtd_model::{Fault, Interrupt};
use vtd_spec::encoding::DeliveryMode;
use vtd_spec::message::{CompatibilityAddress, CompatibilityData};

/// How a destination is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationMode {
    /// An APIC ID.
    Physical,
    /// A set of processors.
    Logical,
}

/// How an interrupt is triggered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// Once for each message.
    Edge,
    /// Until the handler says that it is done.
    Level,
}

/// An interrupt as it is to be delivered, remapped or in compatibility format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RoutedInterrupt {
    /// APIC ID or logical destination.
    pub destination: u32,
    /// How to read the destination.
    pub mode: DestinationMode,
    /// Vector.
    pub vector: u8,
    /// Delivery mode.
    pub delivery: DeliveryMode,
    /// Trigger mode.
    pub trigger: Trigger,
    /// Redirection hint: one processor of the destination is enough.
    pub redirection_hint: bool,
}

/// An interrupt that is not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InterruptDropped {
    /// The unit blocked it.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// It passed unchanged, and asks for a delivery mode that does not exist.
    #[error(
        "interrupt message {address:#x} with data {data:#x} has a reserved delivery mode; the guest has to correct it"
    )]
    DeliveryMode {
        /// Address as written.
        address: u64,
        /// Data as written.
        data: u32,
    },
}

/// A message that has no room for its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("APIC ID {destination:#x} does not fit the {bits} bits of this message format: use a format with more")]
pub struct DestinationTooLarge {
    /// The destination.
    pub destination: u32,
    /// What the format has room for.
    pub bits: u32,
}

/// A message-signalled interrupt as hypervisors take it (`KVM_SIGNAL_MSI`, MSI routes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Bits 31:0 of the address.
    pub address_low: u32,
    /// Bits 63:32 of the address.
    pub address_high: u32,
    /// Data.
    pub data: u32,
}

/// Bits of a destination in compatibility format (VT-d §5.1.2.1).
const PLAIN_BITS: u32 = 8;
/// Bits of an extended destination: `KVM_FEATURE_MSI_EXT_DEST_ID` and other hypervisors give 7 unused address bits to it.
const EXTENDED_BITS: u32 = 15;
/// Where bits 14:8 of an extended destination stand in the address: a convention of hypervisors, unknown to VT-d.
const EXTENDED_SHIFT: u32 = 5;

impl TryFrom<Interrupt> for RoutedInterrupt {
    type Error = InterruptDropped;

    fn try_from(interrupt: Interrupt) -> Result<Self, InterruptDropped> {
        match interrupt {
            Interrupt::Remapped(remapped) => Ok(Self {
                destination: remapped.destination,
                mode: if remapped.logical {
                    DestinationMode::Logical
                } else {
                    DestinationMode::Physical
                },
                vector: remapped.vector,
                delivery: remapped.delivery_mode,
                trigger: if remapped.level { Trigger::Level } else { Trigger::Edge },
                redirection_hint: remapped.redirection_hint,
            }),
            Interrupt::Unmodified { address, data } => {
                let dropped = InterruptDropped::DeliveryMode { address, data };
                let parsed = CompatibilityData::new_with_raw_value(data);
                let at = CompatibilityAddress::new_with_raw_value(u32::try_from(address).map_err(|_| dropped)?);
                Ok(Self {
                    destination: u32::from(at.destination()),
                    mode: if at.dm() {
                        DestinationMode::Logical
                    } else {
                        DestinationMode::Physical
                    },
                    vector: parsed.vector(),
                    delivery: parsed.delivery_mode().ok_or(dropped)?,
                    trigger: if parsed.tm() { Trigger::Level } else { Trigger::Edge },
                    redirection_hint: at.rh(),
                })
            }
        }
    }
}

impl RoutedInterrupt {
    /// The message for xAPIC destinations, 8 bits.
    ///
    /// # Errors
    /// [`DestinationTooLarge`] above 255.
    pub fn to_xapic(self) -> Result<MsiMessage, DestinationTooLarge> {
        self.fits(PLAIN_BITS)?;
        Ok(self.message(0, 0))
    }

    /// The message for KVM with `KVM_X2APIC_API_USE_32BIT_IDS`: destination bits 31:8 stand in bits 31:8 of the upper
    /// address, the others where compatibility format has them.
    #[must_use]
    pub const fn to_kvm_x2apic(self) -> MsiMessage {
        self.message(0, self.destination & !0xff)
    }

    /// The message for hypervisors with extended destination IDs (`KVM_FEATURE_MSI_EXT_DEST_ID`), 15 bits: destination bits
    /// 14:8 stand in address bits 11:5.
    ///
    /// # Errors
    /// [`DestinationTooLarge`] above 32767.
    pub fn to_extended(self) -> Result<MsiMessage, DestinationTooLarge> {
        self.fits(EXTENDED_BITS)?;
        Ok(self.message(self.destination >> PLAIN_BITS << EXTENDED_SHIFT, 0))
    }

    const fn fits(self, bits: u32) -> Result<(), DestinationTooLarge> {
        let destination = self.destination;
        if destination >> bits == 0 {
            Ok(())
        } else {
            Err(DestinationTooLarge { destination, bits })
        }
    }

    /// Compatibility format with bits 7:0 of the destination, and what a hypervisor adds to it.
    const fn message(self, extended: u32, address_high: u32) -> MsiMessage {
        let [low, ..] = self.destination.to_le_bytes();
        let address = CompatibilityAddress::DEFAULT
            .with_destination(low)
            .with_dm(matches!(self.mode, DestinationMode::Logical))
            .with_rh(self.redirection_hint);
        let level = matches!(self.trigger, Trigger::Level);
        let data = CompatibilityData::DEFAULT
            .with_vector(self.vector)
            .with_delivery_mode(self.delivery)
            .with_tm(level)
            .with_level(level);
        MsiMessage {
            address_low: address.raw_value() | extended,
            address_high,
            data: data.raw_value(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERRUPT: RoutedInterrupt = RoutedInterrupt {
        destination: 0x12,
        mode: DestinationMode::Physical,
        vector: 0x41,
        delivery: DeliveryMode::Fixed,
        trigger: Trigger::Edge,
        redirection_hint: false,
    };

    #[test]
    fn an_xapic_message_holds_eight_bits_of_destination() {
        let expected = MsiMessage {
            address_low: 0xFEE1_2000,
            address_high: 0,
            data: 0x41,
        };
        assert_eq!(INTERRUPT.to_xapic(), Ok(expected));
        let wide = RoutedInterrupt {
            destination: 0x100,
            ..INTERRUPT
        };
        assert_eq!(
            wide.to_xapic(),
            Err(DestinationTooLarge {
                destination: 0x100,
                bits: 8
            })
        );
    }

    #[test]
    fn mode_hint_delivery_and_trigger_stand_where_the_processor_looks() {
        let all = RoutedInterrupt {
            destination: 0xFF,
            mode: DestinationMode::Logical,
            vector: 0xFE,
            delivery: DeliveryMode::LowestPriority,
            trigger: Trigger::Level,
            redirection_hint: true,
        };
        let expected = MsiMessage {
            address_low: 0xFEEF_F00C,
            address_high: 0,
            data: 0xC1FE,
        };
        assert_eq!(all.to_xapic(), Ok(expected));
    }

    #[test]
    fn a_kvm_message_carries_the_upper_destination_in_the_upper_address() {
        let wide = RoutedInterrupt {
            destination: 0x1234_5678,
            ..INTERRUPT
        };
        let expected = MsiMessage {
            address_low: 0xFEE7_8000,
            address_high: 0x1234_5600,
            data: 0x41,
        };
        assert_eq!(wide.to_kvm_x2apic(), expected);
        assert_eq!(INTERRUPT.to_kvm_x2apic().address_high, 0);
    }

    #[test]
    fn an_extended_destination_uses_the_seven_spare_address_bits() {
        let wide = RoutedInterrupt {
            destination: 0x7FA5,
            ..INTERRUPT
        };
        let expected = MsiMessage {
            address_low: 0xFEEA_5FE0,
            address_high: 0,
            data: 0x41,
        };
        assert_eq!(wide.to_extended(), Ok(expected));
        let wide = RoutedInterrupt {
            destination: 0x100,
            ..INTERRUPT
        };
        let expected = MsiMessage {
            address_low: 0xFEE0_0020,
            address_high: 0,
            data: 0x41,
        };
        assert_eq!(wide.to_extended(), Ok(expected));
        let wider = RoutedInterrupt {
            destination: 0x8000,
            ..INTERRUPT
        };
        assert_eq!(
            wider.to_extended(),
            Err(DestinationTooLarge {
                destination: 0x8000,
                bits: 15
            })
        );
    }

    #[test]
    fn a_compatibility_message_survives_the_way_through_the_structure() {
        let interrupt = Interrupt::Unmodified {
            address: 0xFEE3_400C,
            data: 0xC1FE,
        };
        let routed = RoutedInterrupt::try_from(interrupt).expect("delivery mode 1");
        let expected = MsiMessage {
            address_low: 0xFEE3_400C,
            address_high: 0,
            data: 0xC1FE,
        };
        assert_eq!(routed.to_xapic(), Ok(expected));
        let reserved = Interrupt::Unmodified {
            address: 0xFEE0_0000,
            data: 0x0300,
        };
        let dropped = InterruptDropped::DeliveryMode {
            address: 0xFEE0_0000,
            data: 0x0300,
        };
        assert_eq!(RoutedInterrupt::try_from(reserved), Err(dropped));
    }
}
