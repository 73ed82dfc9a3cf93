//! A virtio disk behind the unit: its function, and the transport as devices behind an IOMMU need it.
//!
//! `virtio-drivers` accepts neither `VIRTIO_F_ACCESS_PLATFORM` nor MSI-X; the wrapper here adds both.

use core::fmt::Debug;

use iommu_types::{Registers, SourceId};
use virtio_drivers::PhysAddr;
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::{DeviceFunction, PciRoot};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use vtd_driver::EventMessage;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use alloc::string::String;

use crate::hardware::{Configuration, Dma, Window};
use crate::pci::Function;
use crate::rig::text;

/// Vendor 1af4h, device 1042h: a block device without the legacy interface (virtio 1.2 §4.1.2).
const IDENTITY: u32 = 0x1042_1af4;
/// `VIRTIO_F_ACCESS_PLATFORM`: the device's addresses are those of the platform, not of memory (virtio 1.2 §6).
const ACCESS_PLATFORM: u64 = 1 << 33;

/// Identifier of vendor capabilities, and the type of the one that leads to the common configuration (§4.1.4).
pub(crate) const VENDOR: u8 = 0x09;
pub(crate) const COMMON: u8 = 1;
/// In a vendor capability: number of the BAR, and offset in it.
pub(crate) const VENDOR_BAR: u8 = 4;
pub(crate) const VENDOR_OFFSET: u8 = 8;
/// Bytes of the common configuration.
const COMMON_LEN: u32 = 56;
/// In the common configuration: which MSI-X entry tells of used buffers, of the selected queue.
const QUEUE_VECTOR: u32 = 26;

/// Identifier of the MSI-X capability; the upper half of its first word is the control register.
const MSI_X: u8 = 0x11;
const MSI_X_ENABLE: u32 = 1 << 31;
/// In it: offset of the table, with the number of the BAR in the lowest bits.
const MSI_X_TABLE: u8 = 4;
/// Bytes of a table entry: address, data, and a mask bit.
const MSI_X_ENTRY: u32 = 16;

/// The disk.
pub(crate) struct Disk {
    function: Function,
    common: Window,
}

impl Disk {
    /// Finds it, and turns memory decoding and bus mastering on.
    pub(crate) fn find() -> Option<Self> {
        let function = Function::find(IDENTITY).next()?;
        function.enable();
        let common = function.capabilities(VENDOR).find(|at| {
            let [.., kind] = function.read(*at).to_le_bytes();
            kind == COMMON
        })?;
        let [bar, ..] = function.read(common + VENDOR_BAR).to_le_bytes();
        let base = function.memory(bar) + u64::from(function.read(common + VENDOR_OFFSET));
        let common = Window::new(base, COMMON_LEN)?;
        Some(Self { function, common })
    }

    /// Its requester ID.
    pub(crate) const fn source(&self) -> SourceId {
        self.function.0
    }

    /// A new transport; the device is reset when it is dropped.
    pub(crate) fn transport(&self, platform: Platform) -> Result<Translated, String> {
        let [bus, devfn] = self.source().raw().to_be_bytes();
        let at = DeviceFunction {
            bus,
            device: devfn >> 3,
            function: devfn & 7,
        };
        let inner = PciTransport::new::<Dma, _>(&mut PciRoot::new(Configuration), at).map_err(text)?;
        Ok(Translated {
            inner,
            common: self.common,
            platform,
        })
    }

    /// Makes the first MSI-X entry send `message`.
    pub(crate) fn set_message(&self, message: EventMessage) -> Result<(), &'static str> {
        let capability = self
            .function
            .capabilities(MSI_X)
            .next()
            .ok_or("the disk has no MSI-X")?;
        let place = self.function.read(capability + MSI_X_TABLE);
        let [bar, ..] = (place & 7).to_le_bytes();
        let at = self.function.memory(bar) + u64::from(place & !7);
        let table = Window::new(at, MSI_X_ENTRY).ok_or("the MSI-X table is not mapped")?;
        let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
        table.write32(0, u32::from_le_bytes([a, b, c, d]));
        table.write32(4, u32::from_le_bytes([e, f, g, h]));
        table.write32(8, message.data);
        table.write32(12, 0);
        let control = self.function.read(capability);
        self.function.write(capability, control | MSI_X_ENABLE);
        Ok(())
    }

    /// Turns MSI-X off.
    pub(crate) fn no_messages(&self) {
        for capability in self.function.capabilities(MSI_X) {
            let control = self.function.read(capability);
            self.function.write(capability, control & !MSI_X_ENABLE);
        }
    }
}

/// How a driver meets the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Platform {
    /// Accepts that addresses are translated.
    pub(crate) accept: bool,
    /// The MSI-X entry that tells of used buffers.
    pub(crate) vector: Option<u16>,
}

/// The transport over PCI, for a device whose accesses are translated.
pub(crate) struct Translated {
    inner: PciTransport,
    common: Window,
    platform: Platform,
}

impl Transport for Translated {
    fn write_driver_features(&mut self, features: u64) {
        let offered = if self.platform.accept {
            self.inner.read_device_features()
        } else {
            0
        };
        self.inner.write_driver_features(features | offered & ACCESS_PLATFORM);
    }

    fn queue_set(&mut self, queue: u16, size: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        if let Some(vector) = self.platform.vector {
            // Asking for a queue's size selects it.
            self.inner.max_queue_size(queue);
            self.common.write16(QUEUE_VECTOR, vector);
        }
        self.inner.queue_set(queue, size, descriptors, driver, device);
    }

    fn device_type(&self) -> DeviceType {
        self.inner.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.inner.read_device_features()
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.inner.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        self.inner.notify(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        self.inner.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.inner.set_status(status);
    }

    fn set_guest_page_size(&mut self, size: u32) {
        self.inner.set_guest_page_size(size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.inner.requires_legacy_layout()
    }

    fn queue_unset(&mut self, queue: u16) {
        self.inner.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.inner.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.inner.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.inner.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        self.inner.read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> virtio_drivers::Result {
        self.inner.write_config_space(offset, value)
    }
}

impl Debug for Disk {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Disk").field(&self.source()).finish()
    }
}
