//! Emulated PCI functions over a bus trait.
//!
//! # Purpose
//!
//! Something has to issue the DMA that an IOMMU translates or blocks. This crate holds PCI functions in
//! software: configuration space with the behaviour of each bit, BARs, resets, a DMA engine that moves real
//! bytes at memory speed and says exactly what became of a request that was stopped, and a [`virtio`] block device.
//!
//! # Place in the stack
//!
//! Layer 4. It knows PCI (offsets come from `iommu-groups`) and addresses, but no remapping unit and no
//! machine: a [`Function`] reaches the world only through the [`Bus`] it is handed, which carries its requester
//! ID. `soft-platform` implements that bus.
//!
//! # Example
//!
//! ```
//! use iommu_devices::{Bus, DmaEngine, DmaEngineOptions, DmaError, Function, registers};
//! use iommu_types::Iova;
//!
//! /// A machine whose memory holds 0x5a everywhere and cannot be written.
//! #[derive(Debug)]
//! struct Bench;
//! impl Bus for Bench {
//!     fn dma_read(&self, _iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
//!         into.fill(0x5a);
//!         Ok(())
//!     }
//!     fn dma_write(&self, iova: Iova, _from: &[u8]) -> Result<(), DmaError> {
//!         Err(DmaError::new(iova, iommu_devices::DmaErrorKind::Blocked))
//!     }
//! }
//!
//! let options = DmaEngineOptions::default();
//! let mut engine = DmaEngine::new(DmaEngine::describe(options).bus_master().build()?, options)?;
//!
//! // The way a driver does it: source, destination, count, start.
//! engine.bar_write(0, registers::SOURCE, &0x1_0000u64.to_le_bytes(), &Bench);
//! engine.bar_write(0, registers::DESTINATION, &registers::BUFFER.to_le_bytes(), &Bench);
//! engine.bar_write(0, registers::COUNT, &64u64.to_le_bytes(), &Bench);
//! engine.bar_write(0, registers::COMMAND, &registers::COMMAND_START.to_le_bytes(), &Bench);
//! assert_eq!(engine.buffer()[..64], [0x5a; 64]);
//!
//! // The short way; the error is the one that the engine's registers show.
//! let refused = engine.store(&Bench, Iova::new(0x2_0000), 0, 64);
//! assert_eq!(refused.unwrap_err().address, Iova::new(0x2_0000));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it does not do
//!
//! No device-TLB, no PASID on requests; MSI-X tables of functions other than [`virtio`]'s are memory without
//! behaviour; virtual functions have a configuration space, but their BARs are decoded by nobody. Link, slot and error-reporting registers
//! hold what software expects to read and do nothing.
#![forbid(unsafe_code)]

mod bus;
mod config;
mod dma_engine;
mod function;
mod msi_x;
mod plain;
pub mod virtio;

pub use bus::{Bus, DmaError, DmaErrorKind, MSI_BASE, MsiMessage, NoBus};
pub use config::{
    Acs, Ats, BARS, Bar, BarKind, ConfigBuilder, ConfigError, ConfigSpace, Effects, MsiX, ResetKind, SoftReset, Sriov,
    VendorSpecific,
};
pub use dma_engine::{DmaEngine, DmaEngineError, DmaEngineOptions, registers};
pub use function::Function;
pub use msi_x::MsiXTable;
pub use plain::{INERT_LIMIT, PlainFunction};
