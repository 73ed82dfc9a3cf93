//! Register accesses as buses of VMMs bring them: bytes at an offset.

use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_device::{DeviceMmio, MutDeviceMmio};
use vm_memory::{GuestAddressSpace, GuestMemoryBackend};
use vtd_model::AccessWidth;

use crate::listener::Listener;
use crate::unit::VmmUnit;

impl<S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> VmmUnit<S, L> {
    /// Reads registers into `data`, little-endian: 4 or 8 bytes at an offset that is a multiple of their number. Anything
    /// else reads all ones (VT-d §11.1).
    pub fn read_bytes(&self, offset: u64, data: &mut [u8]) {
        AccessWidth::read_bytes(data, |width| Some(self.read(u32::try_from(offset).ok()?, width)));
    }

    /// Writes registers, little-endian: 4 or 8 bytes at an offset that is a multiple of their number. Anything else is
    /// ignored (VT-d §11.1).
    pub fn write_bytes(&self, offset: u64, data: &[u8]) {
        if let (Some((width, value)), Ok(offset)) = (AccessWidth::of_bytes(data), u32::try_from(offset)) {
            self.write(offset, width, value);
        }
    }
}

impl<S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> DeviceMmio for VmmUnit<S, L> {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.read_bytes(offset, data);
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.write_bytes(offset, data);
    }
}

impl<S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> MutDeviceMmio for VmmUnit<S, L> {
    fn mmio_read(&mut self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.read_bytes(offset, data);
    }

    fn mmio_write(&mut self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.write_bytes(offset, data);
    }
}
