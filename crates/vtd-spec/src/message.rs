//! Interrupt messages: what a device writes to the interrupt address range, what a unit sends for its own events, and the
//! I/O APIC entry that produces a remappable message. VT-d §5.1.2, §5.1.5, §5.1.6.

mod io_apic;
mod request;

pub use io_apic::IoApicEntry;
pub use request::{
    CompatibilityAddress, CompatibilityData, INTERRUPT_RANGE_FIRST, INTERRUPT_RANGE_LAST, MessageFormat,
    RemappableAddress, RemappableData, event_x2apic_message, event_xapic_message, is_interrupt_address,
};
