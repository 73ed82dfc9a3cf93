//! What `virtio-drivers` needs to drive a device of a container: its PCI transport, with translation and MSI-X.
//!
//! The crate's own transport maps registers into the process, declines `VIRTIO_F_ACCESS_PLATFORM` and programs no
//! MSI-X. This one goes through [`Device`], accepts translation on behalf of the driver (its addresses are IOVAs), and
//! gives each queue a vector. What is missing is a `Hal`, which is process-global and stays with the program; the example
//! `block_driver` has one over [`PageMap`].

use iommu_groups::pci::{capability, header};
use iommu_types::{Bdf, Iova};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{PAGE_SIZE, PhysAddr};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::backend::{Backend, InterruptKind};
use crate::device::Device;
use crate::error::VfioError;

/// Capabilities that fit into the first 256 bytes: the bound of a walk over the list.
const MAX_CAPABILITIES: usize = 48;
/// Feature bit of translation. Virtio 1.3 §6 (Reserved Feature Bits).
const ACCESS_PLATFORM: u64 = 1 << 33;

/// Kinds of structure. Virtio 1.3 §4.1.4 (Virtio Structure PCI Capabilities).
mod kind {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
}

/// From the common configuration. Virtio 1.3 §4.1.4.3.
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0;
    pub(super) const DEVICE_FEATURE: u64 = 4;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(super) const DRIVER_FEATURE: u64 = 12;
    pub(super) const CONFIG_VECTOR: u64 = 16;
    pub(super) const STATUS: u64 = 20;
    pub(super) const GENERATION: u64 = 21;
    pub(super) const QUEUE_SELECT: u64 = 22;
    pub(super) const QUEUE_SIZE: u64 = 24;
    pub(super) const QUEUE_VECTOR: u64 = 26;
    pub(super) const QUEUE_ENABLE: u64 = 28;
    pub(super) const QUEUE_NOTIFY: u64 = 30;
    pub(super) const QUEUE_DESCRIPTORS: u64 = 32;
    pub(super) const QUEUE_DRIVER: u64 = 40;
    pub(super) const QUEUE_DEVICE: u64 = 48;
    pub(super) const LEN: u64 = 56;
}

/// How a transport reaches a PCI function: a [`Device`], or whatever else a program has.
pub trait PciFunction {
    /// Where it is, for messages.
    fn function(&self) -> Bdf;
    /// Reads configuration space.
    fn config_read(&self, offset: u16, into: &mut [u8]);
    /// Reads from the region behind BAR `bar`; all-ones where nothing answers.
    fn read(&self, bar: u8, offset: u64, into: &mut [u8]);
    /// Writes to the region behind BAR `bar`.
    fn write(&self, bar: u8, offset: u64, from: &[u8]);
}

impl<B: Backend> PciFunction for Device<B> {
    fn function(&self) -> Bdf {
        Self::function(self)
    }
    fn config_read(&self, offset: u16, into: &mut [u8]) {
        Self::config_read(self, offset, into);
    }
    fn read(&self, bar: u8, offset: u64, into: &mut [u8]) {
        if self.region_read(bar, offset, into).is_err() {
            into.fill(0xff);
        }
    }
    fn write(&self, bar: u8, offset: u64, from: &[u8]) {
        // What lies outside is lost, as on hardware.
        let _ = self.region_write(bar, offset, from);
    }
}

/// A structure in a BAR.
#[derive(Clone, Copy, Debug)]
struct Place {
    bar: u8,
    offset: u64,
    len: u64,
}

/// The PCI transport of a virtio device.
///
/// Dropping it resets the device, so that it uses no memory any more.
#[derive(Debug)]
pub struct VirtioTransport<F: PciFunction> {
    function: F,
    kind: DeviceType,
    common: Place,
    notify: Place,
    stride: u64,
    isr: Place,
    config: Option<Place>,
    /// How many vectors there are; 0 leaves interrupts alone.
    vectors: u16,
}

impl<B: Backend> VirtioTransport<Device<B>> {
    /// The transport of `device`, which may use memory from now on. Vector `n` counts in `events[n]`: the first is that
    /// of configuration changes, the others are shared out among the queues. Without events there are no interrupts.
    ///
    /// # Errors
    /// [`VfioError::NotVirtio`]; as [`Device::enable_interrupts`].
    pub fn open(device: Device<B>, events: &[&EventFd]) -> Result<Self, VfioError> {
        let mut command = [0; 2];
        device.config_read(header::COMMAND, &mut command);
        let command = u16::from_le_bytes(command) | header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER;
        device.config_write(header::COMMAND, &command.to_le_bytes())?;
        if !events.is_empty() {
            device.enable_interrupts(InterruptKind::MsiX, events)?;
        }
        Self::new(device, u16::try_from(events.len()).unwrap_or(u16::MAX))
    }
}

impl<F: PciFunction> VirtioTransport<F> {
    /// The transport of a function whose memory space and bus mastering are on, and whose first `vectors` of MSI-X are
    /// set up.
    ///
    /// # Errors
    /// [`VfioError::NotVirtio`].
    pub fn new(function: F, vectors: u16) -> Result<Self, VfioError> {
        /// Vendor of virtio devices, and their device number less the type. Virtio 1.3 §4.1.2 (PCI Device Discovery).
        const VENDOR: u16 = 0x1af4;
        const MODERN: u16 = 0x1040;
        let bdf = function.function();
        let missing = |what| VfioError::NotVirtio { function: bdf, what };
        let (vendor, device) = (word(&function, header::VENDOR_ID), word(&function, header::DEVICE_ID));
        let kind = device
            .checked_sub(MODERN)
            .filter(|_| vendor == VENDOR)
            .and_then(|kind| DeviceType::try_from(kind).ok())
            .ok_or(missing("identity of a modern virtio device"))?;
        let mut structures = [None; 5];
        let mut stride = 0;
        for at in vendor_capabilities(&function) {
            // Kind at 3, BAR at 4, offset at 8, length at 12; of notifications the stride at 16. The first of a kind
            // counts.
            let [kind, bar] = [byte(&function, at + 3), byte(&function, at + 4)];
            let Some(slot) = structures.get_mut(usize::from(kind)).filter(|slot| slot.is_none()) else {
                continue;
            };
            *slot = Some(Place {
                bar,
                offset: long(&function, at + 8).into(),
                len: long(&function, at + 12).into(),
            });
            if kind == kind::NOTIFY {
                stride = long(&function, at + 16).into();
            }
        }
        let found = |kind: u8| structures.get(usize::from(kind)).copied().flatten();
        let long_enough = |place: &Place| place.len >= common::LEN;
        Ok(Self {
            kind,
            common: found(kind::COMMON)
                .filter(long_enough)
                .ok_or(missing("common configuration"))?,
            notify: found(kind::NOTIFY).ok_or(missing("notifications"))?,
            stride,
            isr: found(kind::ISR).ok_or(missing("interrupt status"))?,
            config: found(kind::DEVICE),
            vectors,
            function,
        })
    }

    /// The function.
    #[must_use]
    pub const fn function(&self) -> &F {
        &self.function
    }

    fn read<const N: usize>(&self, place: Place, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.function.read(place.bar, place.offset + offset, &mut bytes);
        bytes
    }

    fn write(&self, place: Place, offset: u64, bytes: &[u8]) {
        self.function.write(place.bar, place.offset + offset, bytes);
    }

    fn set(&self, offset: u64, bytes: &[u8]) {
        self.write(self.common, offset, bytes);
    }

    /// An address, by halves: not every path to the registers carries 8 bytes at once.
    fn set_address(&self, offset: u64, address: PhysAddr) {
        let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
        self.set(offset, &[a, b, c, d]);
        self.set(offset + 4, &[e, f, g, h]);
    }

    /// Gives the selected queue its vector: queues share what comes after the vector of configuration changes.
    fn set_vector(&self, queue: u16) {
        if self.vectors > 0 {
            let vector = match self.vectors - 1 {
                0 => 0,
                others => 1 + queue % others,
            };
            self.set(common::QUEUE_VECTOR, &vector.to_le_bytes());
        }
    }
}

fn byte(function: &impl PciFunction, offset: u16) -> u8 {
    let mut bytes = [0; 1];
    function.config_read(offset, &mut bytes);
    u8::from_le_bytes(bytes)
}

fn word(function: &impl PciFunction, offset: u16) -> u16 {
    let mut bytes = [0; 2];
    function.config_read(offset, &mut bytes);
    u16::from_le_bytes(bytes)
}

fn long(function: &impl PciFunction, offset: u16) -> u32 {
    let mut bytes = [0; 4];
    function.config_read(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// The offsets of vendor-specific capabilities, in the order of the list.
fn vendor_capabilities(function: &impl PciFunction) -> Vec<u16> {
    let next = |at: u16| Some(u16::from(byte(function, at) & !3)).filter(|at| *at >= capability::FIRST);
    std::iter::successors(next(header::CAPABILITIES), |at| next(at + capability::NEXT))
        .take(MAX_CAPABILITIES)
        .filter(|at| byte(function, *at) == capability::VENDOR_SPECIFIC)
        .collect()
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}

impl<F: PciFunction> Transport for VirtioTransport<F> {
    fn device_type(&self) -> DeviceType {
        self.kind
    }

    fn read_device_features(&mut self) -> u64 {
        let half = |select: u32| {
            self.set(common::DEVICE_FEATURE_SELECT, &select.to_le_bytes());
            u64::from(u32::from_le_bytes(self.read(self.common, common::DEVICE_FEATURE)))
        };
        half(0) | half(1) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        let offered = self.read_device_features();
        let features = features | offered & ACCESS_PLATFORM;
        for (select, word) in [(0u32, low(features)), (1, low(features >> 32))] {
            self.set(common::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            self.set(common::DRIVER_FEATURE, &word.to_le_bytes());
        }
        if self.vectors > 0 {
            self.set(common::CONFIG_VECTOR, &0u16.to_le_bytes());
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.set(common::QUEUE_SELECT, &queue.to_le_bytes());
        u16::from_le_bytes(self.read(self.common, common::QUEUE_SIZE)).into()
    }

    fn notify(&mut self, queue: u16) {
        self.set(common::QUEUE_SELECT, &queue.to_le_bytes());
        let number = u16::from_le_bytes(self.read(self.common, common::QUEUE_NOTIFY));
        let offset = u64::from(number) * self.stride;
        if offset < self.notify.len {
            self.write(self.notify, offset, &queue.to_le_bytes());
        }
    }

    fn get_status(&self) -> DeviceStatus {
        let [status] = self.read(self.common, common::STATUS);
        DeviceStatus::from_bits_truncate(status.into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        let status = u8::try_from(status.bits()).unwrap_or_default();
        self.set(common::STATUS, &[status]);
    }

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        self.set(common::QUEUE_SELECT, &queue.to_le_bytes());
        let size = u16::try_from(size).unwrap_or_default();
        self.set(common::QUEUE_SIZE, &size.to_le_bytes());
        self.set_vector(queue);
        self.set_address(common::QUEUE_DESCRIPTORS, descriptors);
        self.set_address(common::QUEUE_DRIVER, driver);
        self.set_address(common::QUEUE_DEVICE, device);
        self.set(common::QUEUE_ENABLE, &1u16.to_le_bytes());
    }

    fn queue_unset(&mut self, _queue: u16) {
        // A queue stays until the device is reset.
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.set(common::QUEUE_SELECT, &queue.to_le_bytes());
        u16::from_le_bytes(self.read(self.common, common::QUEUE_ENABLE)) == 1
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let [status] = self.read(self.isr, 0);
        InterruptStatus::from_bits_retain(status.into())
    }

    fn read_config_generation(&self) -> u32 {
        let [generation] = self.read(self.common, common::GENERATION);
        generation.into()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let config = self.config.ok_or(virtio_drivers::Error::ConfigSpaceMissing)?;
        let short = virtio_drivers::Error::ConfigSpaceTooSmall;
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        let size = u64::try_from(size_of::<T>()).unwrap_or(u64::MAX);
        if offset.checked_add(size).is_none_or(|end| end > config.len) {
            return Err(short);
        }
        let mut value = T::new_zeroed();
        self.function
            .read(config.bar, config.offset + offset, value.as_mut_bytes());
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> virtio_drivers::Result<()> {
        let config = self.config.ok_or(virtio_drivers::Error::ConfigSpaceMissing)?;
        self.write(config, u64::try_from(offset).unwrap_or(u64::MAX), value.as_bytes());
        Ok(())
    }
}

impl<F: PciFunction> Drop for VirtioTransport<F> {
    fn drop(&mut self) {
        self.set_status(DeviceStatus::empty());
    }
}

/// Which pages of one run of shared memory are in use: what a `Hal` hands out.
#[derive(Clone, Debug)]
pub struct PageMap {
    base: Iova,
    used: Vec<bool>,
}

impl PageMap {
    /// All pages of `size` bytes from `base`, free.
    #[must_use]
    pub fn new(base: Iova, size: u64) -> Self {
        let pages = usize::try_from(size).unwrap_or(usize::MAX) / PAGE_SIZE;
        Self {
            base,
            used: vec![false; pages],
        }
    }

    /// Takes `pages` pages in a row, as an offset in bytes; `None` if there are none, or none are asked for.
    pub fn take(&mut self, pages: usize) -> Option<usize> {
        if pages == 0 {
            return None;
        }
        let first = self.used.windows(pages).position(|run| run.iter().all(|used| !used))?;
        self.used.get_mut(first..first + pages)?.fill(true);
        Some(first * PAGE_SIZE)
    }

    /// Gives pages back.
    pub fn give(&mut self, offset: usize, pages: usize) {
        let first = offset / PAGE_SIZE;
        if let Some(run) = self.used.get_mut(first..first.saturating_add(pages)) {
            run.fill(false);
        }
    }

    /// The address of byte `offset` as devices use it.
    #[must_use]
    pub fn address(&self, offset: usize) -> PhysAddr {
        self.base.raw() + u64::try_from(offset).unwrap_or(0)
    }

    /// The offset of an address that devices use.
    #[must_use]
    pub fn offset(&self, address: PhysAddr) -> Option<usize> {
        usize::try_from(address.checked_sub(self.base.raw())?).ok()
    }
}
