//! The DMA API over any address space, and the lesser IOMMUs.
//!
//! # Purpose
//!
//! A driver has buffers and a device that reads and writes memory by itself. This crate makes the buffers reachable for
//! the device and says at which addresses, takes the access back, and hides what stands in between:
//!
//! * [`Translated`]: an IOMMU. Buffers that lie apart become one run of addresses, no address is too high for a
//!   narrow device, and the device reaches nothing else;
//! * [`Aperture`]: a classic IOMMU. One window in low memory, shared by all devices: it joins pages and helps narrow
//!   devices, and protects nothing;
//! * [`Direct`]: nothing. The device uses the memory's own addresses; buffers it cannot address are copied through a
//!   pool; nothing is protected, and [`Kind`] says so.
//!
//! # Place in the stack
//!
//! Layer 3: `no_std + alloc`, above `iommu-types` and `iommu-iova`; it works on every `iommu_types::AddressSpace` and knows
//! no hardware. Copies go through `iommu_types::SystemMemory`.
//!
//! # Example
//!
//! Two pages that lie apart become one transfer of 8 KiB:
//!
//! ```
//! use iommu_dma::{Buffer, Device, Direction, DmaApi, Invalidation, Translated};
//! use iommu_iova::{IovaSpace, ReferenceAllocator};
//! use iommu_testkit::SparseMemory;
//! use iommu_types::{AddressSpace, HostPhys};
//! # use iommu_types::{AddrRange, Iova, Perms, UnmapRefused};
//! # #[derive(Debug)] struct Never;
//! # impl std::fmt::Display for Never { fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { Ok(()) } }
//! # impl std::error::Error for Never {}
//! # struct Domain;
//! # impl AddressSpace for Domain {
//! #     type Error = Never;
//! #     type Pending<L> = L;
//! #     fn aperture(&self) -> AddrRange<Iova> { AddrRange::new(Iova::ZERO, Iova::new((1 << 39) - 1)).unwrap() }
//! #     fn map(&self, _: Iova, _: HostPhys, _: u64, _: Perms) -> Result<(), Never> { Ok(()) }
//! #     fn unmap<L>(&self, _: AddrRange<Iova>, lease: L) -> Result<L, UnmapRefused<Never, L>> { Ok(lease) }
//! #     fn flush<L>(&self, pending: L) -> Result<L, (Never, L)> { Ok(pending) }
//! # }
//! # let domain = Domain;
//!
//! let iovas = ReferenceAllocator::new(IovaSpace::new(domain.aperture())?);
//! let api = DmaApi::new(Translated::new(domain, iovas, Invalidation::Strict), SparseMemory::new(1 << 20));
//! let mut core = api.new_core();
//! let nic = Device::with_address_bits(32);
//!
//! let pages = [0x7000, 0x3000].map(|at| Buffer::new(HostPhys::new(at), 0x1000));
//! let mapping = api.map_sg(&mut core, &nic, &pages, Direction::FromDevice)?;
//! let whole = mapping.segment().expect("one segment");
//! assert_eq!(whole.len, 0x2000);
//!
//! // … the device writes 8 KiB at whole.address …
//! api.unmap(&mut core, mapping)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it does not do
//!
//! It allocates no buffers, and keeps no processor cache coherent: devices are expected to snoop.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod aperture;
mod api;
mod backend;
mod bounce;
mod counters;
mod device;
mod direct;
mod error;
mod layout;
mod mapping;
mod translated;

pub use aperture::{
    Aperture, ApertureCore, ApertureError, ApertureFault, ApertureRegisters, ApertureUnit, InWindow, MAX_WINDOW,
    MIN_WINDOW, aperture_runs, aperture_table_len,
};
pub use api::{DmaApi, DmaCore};
pub use backend::{Backend, Kind, NotMapped, When};
pub use bounce::{BouncePool, MAX_RUN, PoolError, SLOT};
pub use counters::Counters;
pub use device::{Buffer, Device, Direction, DmaSegment, Trust};
pub use direct::{Direct, NotTranslated, Unprotected};
pub use error::DmaError;
pub use iommu_types::Piece;
pub use mapping::{Mapping, Unconfirmed, UnmapError};
pub use translated::{Invalidation, Leased, Translated, TranslatedCore, TranslatedError, TranslatedStuck};
