//! Register accesses as buses of VMMs bring them: bytes at an offset.

use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_device::{DeviceMmio, MutDeviceMmio};
use vm_memory::{GuestAddressSpace, GuestMemoryBackend};
use vtd_model::AccessWidth;

use crate::listener::Listener;
use crate::unit::VmmUnit;

fn width(len: usize) -> Option<AccessWidth> {
    match len {
        4 => Some(AccessWidth::Dword),
        8 => Some(AccessWidth::Qword),
        _ => None,
    }
}

impl<S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> VmmUnit<S, L> {
    /// Reads registers into `data`, little-endian: 4 or 8 bytes at an offset that is a multiple of their number. Anything
    /// else reads all ones (VT-d §11.1).
    pub fn read_bytes(&self, offset: u64, data: &mut [u8]) {
        let value = match (width(data.len()), u32::try_from(offset)) {
            (Some(width), Ok(offset)) => self.read(offset, width),
            _ => u64::MAX,
        };
        data.fill(u8::MAX);
        for (byte, read) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = read;
        }
    }

    /// Writes registers, little-endian: 4 or 8 bytes at an offset that is a multiple of their number. Anything else is
    /// ignored (VT-d §11.1).
    pub fn write_bytes(&self, offset: u64, data: &[u8]) {
        if let (Some(width), Ok(offset)) = (width(data.len()), u32::try_from(offset)) {
            let mut bytes = [0; 8];
            for (byte, written) in bytes.iter_mut().zip(data) {
                *byte = *written;
            }
            self.write(offset, width, u64::from_le_bytes(bytes));
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
