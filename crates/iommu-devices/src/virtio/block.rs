//! The block device.

use std::fmt;

use bumpalo::Bump;
use iommu_groups::pci::{PortType, header};
use iommu_types::Iova;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use super::disk::Disk;
use super::queues::{Outcome, Queues, feature};
use super::registers::{self as reg, capability, common, kind};
use super::request::{
    BUFFER, Broken, MAX_DATA_SEGMENTS, MAX_SEGMENT_LEN, MAX_SEGMENTS, MAX_ZERO_SECTORS, SECTOR, Segment, Worker,
};
use super::ring::{Step, next_request, wants_interrupt};
use crate::bus::{Bus, DmaError};
use crate::config::{Bar, BarKind, ConfigBuilder, ConfigSpace, Effects, MsiX, ResetKind, VendorSpecific};
use crate::function::{Function, may_issue};

/// How often a ring is emptied for one notification. A driver on another processor can add requests as fast as they
/// are served; what is left then is served at the next write to the device, or when it is told to settle.
const MAX_PASSES: u32 = 4;

/// What can be chosen about a [`VirtioBlk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioBlkOptions {
    /// Queues, 1 to [`Self::MAX_QUEUES`].
    pub queues: u16,
    /// Most entries of a queue: a power of two from 2 to [`Self::MAX_QUEUE_SIZE`].
    pub queue_size: u16,
    /// Block size in bytes that the driver is told: a power of two from 512 to 4096. Requests are checked in sectors of
    /// 512 bytes, as the specification has it.
    pub block_size: u32,
    /// Serial number: ASCII, padded with zeros.
    pub serial: [u8; 20],
    /// Whether a driver that declines `VIRTIO_F_ACCESS_PLATFORM` is turned away. Such a driver would use host physical
    /// addresses, which the device cannot reach behind an IOMMU.
    pub require_access_platform: bool,
    /// Whether a request may bring a table of its buffers (`VIRTIO_RING_F_INDIRECT_DESC`). A driver behind an IOMMU maps the
    /// table too, which is one more mapping of each request; without it, requests share the entries of the queue.
    pub indirect: bool,
}

impl VirtioBlkOptions {
    /// The most queues a device can have.
    pub const MAX_QUEUES: u16 = 16;
    /// The most entries a queue can have.
    pub const MAX_QUEUE_SIZE: u16 = 1024;
}

impl Default for VirtioBlkOptions {
    /// One queue of 256 entries, 512-byte blocks, translation required, tables of buffers offered.
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 256,
            block_size: 512,
            serial: *b"portcullis\0\0\0\0\0\0\0\0\0\0",
            require_access_platform: true,
            indirect: true,
        }
    }
}

/// A block device that cannot be made as described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VirtioBlkError {
    /// The registers need a BAR to stand in.
    #[error("BAR 0 must be a memory BAR of at least {needed:#x} bytes; start from `VirtioBlk::describe`", needed = reg::BAR_SIZE)]
    NoWindow,
    /// The capabilities that lead a driver to the registers are missing.
    #[error("the virtio or MSI-X capabilities are missing; start from `VirtioBlk::describe`")]
    NoCapabilities,
    /// An option out of bounds.
    #[error("{what} {value} is not possible, {allowed}")]
    Option {
        /// Which one.
        what: &'static str,
        /// Its value.
        value: u32,
        /// What is possible.
        allowed: &'static str,
    },
}

/// A virtio block device on PCI: modern transport, split rings, several queues, MSI-X.
///
/// Requests are served by the thread that notifies, before the write returns, and only while Bus Master Enable is set.
/// A driver that breaks the rules of rings or chains, or whose rings cannot be reached, is told with
/// `DEVICE_NEEDS_RESET` and a configuration interrupt; requests whose data cannot be reached fail with an I/O error.
///
/// Offered: `VERSION_1`, `ACCESS_PLATFORM`, `EVENT_IDX`, `INDIRECT_DESC` unless the options say no; `SIZE_MAX`, `SEG_MAX`,
/// `BLK_SIZE`, `FLUSH`, `WRITE_ZEROES` or `RO`, and `MQ` with more than one queue. Not offered: packed rings, discard,
/// configuration of the write cache (writes reach the backing at once, durability is what `FLUSH` asks for).
pub struct VirtioBlk {
    config: ConfigSpace,
    options: VirtioBlkOptions,
    disk: Box<dyn Disk>,
    queues: Queues,
    /// Offset of the configuration window among the capabilities.
    window: u16,
    /// Queues to look at when there is a bus again, a bit each.
    waiting: u16,
    arena: Bump,
    buffer: Vec<u8>,
    segments: Vec<Segment>,
    stopped: Option<DmaError>,
    served: u64,
}

impl fmt::Debug for VirtioBlk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioBlk")
            .field("disk", &self.disk)
            .field("options", &self.options)
            .field("status", &self.queues.status())
            .field("served", &self.served)
            .finish_non_exhaustive()
    }
}

/// The bus, while the function may use it.
struct Gate<'a> {
    config: &'a ConfigSpace,
    bus: &'a dyn Bus,
}

impl Bus for Gate<'_> {
    fn dma_read(&self, iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        may_issue(self.config, iova, into.len())?;
        self.bus.dma_read(iova, into)
    }
    fn dma_write(&self, iova: Iova, from: &[u8]) -> Result<(), DmaError> {
        may_issue(self.config, iova, from.len())?;
        self.bus.dma_write(iova, from)
    }
}

/// The body of a capability that points at a structure in BAR 0.
fn structure(kind: u8, offset: u64, len: u64, extra: &[u8]) -> VendorSpecific {
    let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    // Kind, BAR 0, identifier and padding.
    let mut body = vec![kind, 0, 0, 0, 0];
    body.extend(word(offset));
    body.extend(word(len));
    body.extend(extra);
    VendorSpecific {
        body,
        writable: Vec::new(),
    }
}

/// The window: everything from the BAR number on belongs to the driver.
fn window() -> VendorSpecific {
    let mut window = structure(kind::PCI_CONFIG, 0, 0, &[0; 4]);
    window.writable = vec![0xff; window.body.len()];
    if let Some(kind) = window.writable.first_mut() {
        *kind = 0;
    }
    window
}

impl VirtioBlk {
    /// A block device as a PCI Express endpoint with FLR, MSI-X and BAR 0 of [`reg::BAR_SIZE`] bytes. The caller adds
    /// what it likes before handing the result to [`Self::new`].
    #[must_use]
    pub fn describe(options: VirtioBlkOptions) -> ConfigBuilder {
        let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let stride = word(reg::NOTIFY_STRIDE).to_le_bytes();
        let notify_len = reg::NOTIFY_STRIDE * u64::from(options.queues.max(1));
        ConfigSpace::function(reg::VENDOR, reg::BLOCK_DEVICE)
            .class(reg::BLOCK_CLASS)
            .revision(1)
            .subsystem(reg::VENDOR, reg::BLOCK_DEVICE)
            .interrupt_pin(1)
            .bar(0, Bar::memory64(reg::BAR_SIZE))
            .express(PortType::ENDPOINT)
            .flr()
            .msi_x(MsiX {
                vectors: options.queues.saturating_add(1),
                bar: 0,
                table: word(reg::MSI_X_TABLE),
                pending: word(reg::MSI_X_PENDING),
            })
            .vendor_specific(structure(kind::COMMON, reg::COMMON, common::LEN, &[]))
            .vendor_specific(structure(kind::NOTIFY, reg::NOTIFY, notify_len, &stride))
            .vendor_specific(structure(kind::ISR, reg::ISR, 4, &[]))
            .vendor_specific(structure(kind::DEVICE, reg::DEVICE, DEVICE_LEN as u64, &[]))
            .vendor_specific(window())
    }

    /// A device with this configuration space over `disk`.
    ///
    /// # Errors
    /// [`VirtioBlkError`].
    pub fn new(config: ConfigSpace, disk: Box<dyn Disk>, options: VirtioBlkOptions) -> Result<Self, VirtioBlkError> {
        let bounds = |what, value: u32, ok: bool, allowed| match ok {
            true => Ok(()),
            false => Err(VirtioBlkError::Option { what, value, allowed }),
        };
        let (queues, size, block) = (options.queues, options.queue_size, options.block_size);
        let max_queues = VirtioBlkOptions::MAX_QUEUES;
        bounds(
            "number of queues",
            queues.into(),
            (1..=max_queues).contains(&queues),
            "1 to 16",
        )?;
        let size_ok = size.is_power_of_two() && (2..=VirtioBlkOptions::MAX_QUEUE_SIZE).contains(&size);
        bounds("queue size", size.into(), size_ok, "a power of two from 2 to 1024")?;
        let block_ok = block.is_power_of_two() && (512..=4096).contains(&block);
        bounds("block size", block, block_ok, "a power of two from 512 to 4096")?;
        let fits = |bar: Bar| bar.kind() != BarKind::Io && bar.size() >= reg::BAR_SIZE;
        if !config.bar(0).is_some_and(fits) {
            return Err(VirtioBlkError::NoWindow);
        }
        let window = config
            .capabilities(iommu_groups::pci::capability::VENDOR_SPECIFIC)
            .find(|at| config.read8(at + capability::KIND) == kind::PCI_CONFIG);
        let (Some(window), Some(_)) = (window, config.msi_x_at()) else {
            return Err(VirtioBlkError::NoCapabilities);
        };
        let offered = features(&*disk, options);
        Ok(Self {
            config,
            options,
            disk,
            queues: Queues::new(offered, options.require_access_platform, queues, size),
            window,
            waiting: 0,
            arena: Bump::new(),
            buffer: vec![0; BUFFER],
            segments: Vec::with_capacity(MAX_SEGMENTS),
            stopped: None,
            served: 0,
        })
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// The disk, to look at or change from outside the machine.
    pub fn disk_mut(&mut self) -> &mut dyn Disk {
        &mut *self.disk
    }

    /// Requests served since the device was made.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.served
    }

    /// What stopped the last DMA that did not get through, rings, buffers and interrupt messages alike. A reset of the
    /// function clears it.
    #[must_use]
    pub const fn last_error(&self) -> Option<DmaError> {
        self.stopped
    }

    /// The device status register. Virtio §2.1.
    #[must_use]
    pub const fn status(&self) -> u8 {
        self.queues.status()
    }

    /// Whether the device pulls its interrupt line: there is a reason, MSI-X is off and the line is not disabled.
    #[must_use]
    pub fn line_asserted(&self) -> bool {
        let off = self.config.command() & header::COMMAND_INTX_DISABLE != 0;
        self.queues.isr() != 0 && !self.config.msi_x_enabled() && !off
    }

    fn show_line(&mut self) {
        let pending = self.queues.isr() != 0 && !self.config.msi_x_enabled();
        self.config.set_intx_status(pending);
    }

    /// Sends what is pending, as far as it may be sent.
    fn send_messages(&mut self, bus: &dyn Bus) {
        self.queues.messages.offer(|vector| bus.raise(vector));
        if self.config.msi_x_delivers() {
            while let Some(message) = self.queues.messages.take_due() {
                if let Err(error) = self.dma_write(bus, message.address, &message.data.to_le_bytes()) {
                    self.stopped = Some(error);
                }
            }
        }
        self.show_line();
    }

    /// The device gives up until its driver resets it, and says so.
    fn break_down(&mut self, why: Broken) {
        if let Broken::Dma(error) = why {
            self.stopped = Some(error);
        }
        self.queues.break_down();
        self.queues.raise_config();
    }

    /// Reads BAR 0.
    fn read_registers(&self, offset: u64, into: &mut [u8]) {
        match offset {
            reg::COMMON..reg::ISR => self.queues.read(offset - reg::COMMON, into),
            reg::ISR => {
                into.fill(0);
                if let Some(byte) = into.first_mut() {
                    *byte = self.queues.take_isr();
                }
            }
            reg::DEVICE..reg::NOTIFY => {
                let image = self.device_image();
                for (byte, at) in into.iter_mut().zip(offset - reg::DEVICE..) {
                    let found = usize::try_from(at).ok().and_then(|at| image.get(at));
                    *byte = found.copied().unwrap_or(0xff);
                }
            }
            reg::NOTIFY..reg::MSI_X_TABLE => into.fill(0),
            reg::MSI_X_TABLE..reg::MSI_X_PENDING => self.queues.messages.read(offset - reg::MSI_X_TABLE, into),
            reg::MSI_X_PENDING..reg::BAR_SIZE => self.queues.messages.read_pending(offset - reg::MSI_X_PENDING, into),
            _ => into.fill(0xff),
        }
    }

    /// Writes BAR 0, up to what needs the bus.
    fn write_registers(&mut self, offset: u64, from: &[u8]) {
        match offset {
            reg::COMMON..reg::ISR => match self.queues.write(offset - reg::COMMON, from) {
                Outcome::Stored => {}
                Outcome::Reset => {
                    self.queues.reset();
                    self.waiting = 0;
                }
                Outcome::Broken => self.break_down(Broken::Ring),
            },
            reg::NOTIFY..reg::MSI_X_TABLE => {
                let queue = (offset - reg::NOTIFY) / reg::NOTIFY_STRIDE;
                if queue < u64::from(self.options.queues) {
                    self.waiting |= 1 << queue;
                }
            }
            reg::MSI_X_TABLE..reg::MSI_X_PENDING => self.queues.messages.write(offset - reg::MSI_X_TABLE, from),
            _ => {}
        }
    }

    /// The device-specific configuration. Virtio §5.2.4 (Device configuration layout of block devices).
    fn device_image(&self) -> [u8; DEVICE_LEN] {
        let mut image = [0; DEVICE_LEN];
        let mut put = |at: usize, value: &[u8]| {
            if let Some(place) = image.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        };
        put(device::CAPACITY, &(self.disk.len() / SECTOR).to_le_bytes());
        put(device::SIZE_MAX, &MAX_SEGMENT_LEN.to_le_bytes());
        put(device::SEG_MAX, &MAX_DATA_SEGMENTS.to_le_bytes());
        put(device::BLOCK_SIZE, &self.options.block_size.to_le_bytes());
        put(device::QUEUES, &self.options.queues.to_le_bytes());
        put(device::MAX_ZERO_SECTORS, &MAX_ZERO_SECTORS.to_le_bytes());
        put(device::MAX_ZERO_RANGES, &1u32.to_le_bytes());
        image
    }

    /// Serves the queues that wait, and sends the interrupts that follow.
    fn work(&mut self, bus: &dyn Bus) {
        let waiting = std::mem::take(&mut self.waiting);
        for index in 0..self.options.queues {
            if waiting >> index & 1 != 0 {
                self.serve_queue(index, bus);
            }
        }
        self.send_messages(bus);
    }

    fn serve_queue(&mut self, index: u16, bus: &dyn Bus) {
        if !self.queues.runs() {
            return;
        }
        let write_through = !self.queues.accepted(VIRTIO_BLK_F_FLUSH);
        let Some(queue) = self.queues.each.get_mut(usize::from(index)) else {
            return;
        };
        let vector = queue.vector;
        let Some(ring) = queue.ring.as_mut() else { return };
        let gate = Gate {
            config: &self.config,
            bus,
        };
        let mut worker = Worker {
            disk: &mut *self.disk,
            buffer: &mut self.buffer,
            bus: &gate,
            id: &self.options.serial,
            write_through,
            stopped: &mut self.stopped,
        };
        let most = MAX_PASSES * u32::from(ring.size());
        let mut served = 0u32;
        let mut turns = 0u32;
        let result = loop {
            if turns >= most {
                self.waiting |= 1 << index;
                break Ok(());
            }
            turns += 1;
            self.arena.reset();
            match next_request(ring, &self.arena, &gate, &mut self.segments, &mut worker) {
                Ok(Step::Served) => served += 1,
                Ok(Step::More) => {}
                Ok(Step::Empty) => break Ok(()),
                Err(broken) => break Err(broken),
            }
        };
        self.served += u64::from(served);
        self.arena.reset();
        let interrupts = result.and_then(|()| match served {
            0 => Ok(false),
            _ => wants_interrupt(ring, &self.arena, &gate),
        });
        match interrupts {
            Ok(true) => self.queues.raise(reg::ISR_QUEUE, vector),
            Ok(false) => {}
            Err(broken) => self.break_down(broken),
        }
    }
}

fn features(disk: &dyn Disk, options: VirtioBlkOptions) -> u64 {
    let common = feature(VIRTIO_F_VERSION_1)
        | feature(VIRTIO_F_ACCESS_PLATFORM)
        | feature(VIRTIO_RING_F_EVENT_IDX)
        | feature(VIRTIO_BLK_F_SIZE_MAX)
        | feature(VIRTIO_BLK_F_SEG_MAX)
        | feature(VIRTIO_BLK_F_BLK_SIZE)
        | feature(VIRTIO_BLK_F_FLUSH);
    let write = if disk.is_read_only() {
        feature(VIRTIO_BLK_F_RO)
    } else {
        feature(VIRTIO_BLK_F_WRITE_ZEROES)
    };
    let queues = if options.queues > 1 {
        feature(VIRTIO_BLK_F_MQ)
    } else {
        0
    };
    let tables = if options.indirect {
        feature(VIRTIO_RING_F_INDIRECT_DESC)
    } else {
        0
    };
    common | write | queues | tables
}

/// Length of the device-specific configuration in bytes.
const DEVICE_LEN: usize = 60;

/// From the device-specific configuration. Virtio §5.2.4.
mod device {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SIZE_MAX: usize = 8;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLOCK_SIZE: usize = 20;
    pub(super) const QUEUES: usize = 34;
    pub(super) const MAX_ZERO_SECTORS: usize = 48;
    pub(super) const MAX_ZERO_RANGES: usize = 52;
}

impl VirtioBlk {
    /// What the configuration window points at, if it points into BAR 0: offset and width.
    fn window_target(&self) -> Option<(u64, usize)> {
        let field = |offset: u16| self.config.read32(self.window + offset);
        let width = usize::try_from(field(capability::LENGTH)).ok()?;
        let here = self.config.read8(self.window + capability::BAR) == 0 && matches!(width, 1 | 2 | 4);
        here.then_some((field(capability::OFFSET).into(), width))
    }

    /// The part of an access at `offset` that lies in the window's data.
    fn in_window(&self, offset: u16, len: usize) -> bool {
        let data = self.window + capability::EXTRA;
        offset == data && len <= 4
    }
}

impl Function for VirtioBlk {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&self, offset: u16, into: &mut [u8]) {
        self.config.read(offset, into);
        if let (true, Some((at, width))) = (self.in_window(offset, into.len()), self.window_target()) {
            let n = width.min(into.len());
            self.read_registers(at, into.get_mut(..n).unwrap_or_default());
        }
    }

    fn config_write(&mut self, offset: u16, from: &[u8]) -> Effects {
        let effects = self.config.write(offset, from);
        if let Some(kind) = effects.reset {
            self.reset(kind);
        } else if let (true, Some((at, width))) = (self.in_window(offset, from.len()), self.window_target()) {
            self.write_registers(at, from.get(..width.min(from.len())).unwrap_or_default());
        }
        effects
    }

    fn settle(&mut self, bus: &dyn Bus) {
        self.work(bus);
    }

    fn bar_read(&mut self, bar: u8, offset: u64, into: &mut [u8]) {
        if bar != 0 {
            into.fill(0xff);
            return;
        }
        self.read_registers(offset, into);
        self.show_line();
    }

    fn bar_write(&mut self, bar: u8, offset: u64, from: &[u8], bus: &dyn Bus) {
        if bar == 0 {
            self.write_registers(offset, from);
            self.work(bus);
        }
    }

    fn reset(&mut self, _kind: ResetKind) {
        self.config.reset();
        self.queues.reset();
        self.queues.messages.reset();
        self.waiting = 0;
        self.stopped = None;
    }
}
