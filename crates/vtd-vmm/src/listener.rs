//! What the unit tells the VMM by itself.

use vtd_model::cache::InterruptInvalidation;
use vtd_model::{DeviceInvalidation, EventMessage};

/// Receives what the unit does on its own account. Methods are called without any lock of the unit held, on the thread
/// whose access caused the event: a vCPU that wrote a register, or a device thread that left a section.
///
/// The methods may call back into the unit.
pub trait Listener: Send + Sync {
    /// The unit sends an interrupt of its own (fault event, invalidation completion): a write of `data` to `address`, in
    /// the form of [`vtd_model::EventMessage`]. It is not remapped (VT-d §5.1.6).
    fn event(&self, message: EventMessage);

    /// Software dropped cached interrupt entries (VT-d §6.5.2.8): interrupts that were remapped in advance (KVM routes,
    /// irqfds) have to be remapped again. The wait that follows the command does not complete before this returns.
    fn interrupt_entries_changed(&self, what: InterruptInvalidation);

    /// A device is to drop entries of its device-TLB (VT-d §6.5.2.5). True says that it uses none of them any more; after
    /// false somebody has to call [`crate::VmmUnit::complete_device_invalidation`] or
    /// [`crate::VmmUnit::time_out_device_invalidation`] for it, and the wait that follows is held until then.
    ///
    /// By default true: right for VMMs whose devices keep no translations beyond a section.
    fn device_tlb_invalidated(&self, what: DeviceInvalidation) -> bool {
        let _ = what;
        true
    }
}

/// Drops everything: for a unit whose interrupts nobody takes, in front of devices that keep no translations.
impl Listener for () {
    fn event(&self, _: EventMessage) {}
    fn interrupt_entries_changed(&self, _: InterruptInvalidation) {}
}

impl<L: Listener + ?Sized> Listener for std::sync::Arc<L> {
    fn event(&self, message: EventMessage) {
        (**self).event(message);
    }
    fn interrupt_entries_changed(&self, what: InterruptInvalidation) {
        (**self).interrupt_entries_changed(what);
    }
    fn device_tlb_invalidated(&self, what: DeviceInvalidation) -> bool {
        (**self).device_tlb_invalidated(what)
    }
}
