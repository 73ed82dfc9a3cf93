//! Where the registers of a virtio function stand: all in BAR 0, a page for each structure, so that a VMM can treat each
//! its own way.

/// PCI vendor of virtio functions. Virtio §4.1.2 (PCI Device Discovery).
pub const VENDOR: u16 = 0x1af4;
/// PCI device number of a block device: 0x1040 and the virtio device number, 2.
pub const BLOCK_DEVICE: u16 = 0x1042;
/// PCI class of a block device: mass storage, other.
pub const BLOCK_CLASS: u32 = 0x01_80_00;

/// Size of BAR 0 in bytes.
pub const BAR_SIZE: u64 = 0x1_0000;
/// In BAR 0: common configuration.
pub const COMMON: u64 = 0x0000;
/// In BAR 0: interrupt status.
pub const ISR: u64 = 0x1000;
/// In BAR 0: what only this type of device has.
pub const DEVICE: u64 = 0x2000;
/// In BAR 0: notifications.
pub const NOTIFY: u64 = 0x3000;
/// In BAR 0: the MSI-X table.
pub const MSI_X_TABLE: u64 = 0x8000;
/// In BAR 0: the MSI-X pending bits.
pub const MSI_X_PENDING: u64 = 0xc000;
/// Bytes from one queue's notification register to the next.
pub const NOTIFY_STRIDE: u64 = 4;
/// Length of the structures in BAR 0 that take a page, in bytes.
pub const PAGE: u64 = 0x1000;

/// Kinds of structure that a vendor-specific capability can name. Virtio §4.1.4 (Virtio Structure PCI Capabilities).
pub mod kind {
    /// Common configuration.
    pub const COMMON: u8 = 1;
    /// Notifications.
    pub const NOTIFY: u8 = 2;
    /// Interrupt status.
    pub const ISR: u8 = 3;
    /// Device-specific configuration.
    pub const DEVICE: u8 = 4;
    /// A window through which configuration accesses reach the BAR.
    pub const PCI_CONFIG: u8 = 5;
}

/// From a capability of the kinds above. Virtio §4.1.4.
pub mod capability {
    /// The kind (8 bits).
    pub const KIND: u16 = 3;
    /// The BAR (8 bits).
    pub const BAR: u16 = 4;
    /// Offset in the BAR (32 bits).
    pub const OFFSET: u16 = 8;
    /// Length in bytes (32 bits).
    pub const LENGTH: u16 = 12;
    /// Of notifications: the stride (32 bits). Of the window: its data.
    pub const EXTRA: u16 = 16;
}

/// From the common configuration. Virtio §4.1.4.3 (Common Configuration Structure Layout).
pub mod common {
    /// Which 32 of the device's features [`DEVICE_FEATURE`] shows (32 bits).
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    /// Features of the device (32 bits, read-only).
    pub const DEVICE_FEATURE: u64 = 4;
    /// Which 32 of the driver's features [`DRIVER_FEATURE`] is (32 bits).
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    /// Features that the driver accepts (32 bits).
    pub const DRIVER_FEATURE: u64 = 12;
    /// Vector of configuration changes (16 bits).
    pub const CONFIG_VECTOR: u64 = 16;
    /// How many queues there are (16 bits, read-only).
    pub const QUEUES: u64 = 18;
    /// Device status (8 bits).
    pub const STATUS: u64 = 20;
    /// Changes with the device configuration (8 bits, read-only).
    pub const GENERATION: u64 = 21;
    /// Which queue the registers from here on are of (16 bits).
    pub const QUEUE_SELECT: u64 = 22;
    /// Entries of the queue (16 bits).
    pub const QUEUE_SIZE: u64 = 24;
    /// Vector of the queue (16 bits).
    pub const QUEUE_VECTOR: u64 = 26;
    /// Whether the queue is in use (16 bits).
    pub const QUEUE_ENABLE: u64 = 28;
    /// Number of the queue's notification register (16 bits, read-only).
    pub const QUEUE_NOTIFY: u64 = 30;
    /// Address of the descriptor table (64 bits).
    pub const QUEUE_DESCRIPTORS: u64 = 32;
    /// Address of the available ring (64 bits).
    pub const QUEUE_DRIVER: u64 = 40;
    /// Address of the used ring (64 bits).
    pub const QUEUE_DEVICE: u64 = 48;
    /// Length of the structure in bytes.
    pub const LEN: u64 = 56;
    /// No vector.
    pub const NO_VECTOR: u16 = 0xffff;
}

/// Interrupt status: a queue has used buffers. Virtio §4.1.4.5 (ISR status capability).
pub const ISR_QUEUE: u8 = 1 << 0;
/// Interrupt status: the device's configuration or status changed.
pub const ISR_CONFIG: u8 = 1 << 1;
