//! Virtio functions: the modern PCI transport and a block device over it.
//!
//! `Virtio §` means the Virtual I/O Device specification, version 1.3. Feature bits and request numbers come from
//! `virtio-bindings`, rings are parsed by `virtio-queue`; what is here is the register layout of the PCI transport and
//! what a disk does with a request.
//!
//! Every access to rings and buffers goes through the [`crate::Bus`] that the function is given, so it carries the
//! function's requester ID and is translated: the device offers `VIRTIO_F_ACCESS_PLATFORM` and, unless told otherwise,
//! does not work for a driver that declines it.

mod block;
mod disk;
mod memory;
mod queues;
pub mod registers;
mod request;
mod ring;

pub use self::block::{VirtioBlk, VirtioBlkError, VirtioBlkOptions};
pub use self::disk::{Disk, FileDisk, MemoryDisk};
