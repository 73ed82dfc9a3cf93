//! Containers, groups and devices: VFIO on Linux and over a machine in software.
//!
//! # Purpose
//!
//! VFIO is how Linux hands devices to guests and user-space drivers: devices that cannot be kept apart form a
//! *group*, groups go into a *container*, the container's memory map is what their DMA sees. This crate gives those
//! objects with their rules (type 1, version 2) over two backends: [`Software`], a machine in software on which an
//! assignment can be rehearsed or a driver written without hardware, root or risk, and `Linux`, which is `/dev/vfio`.
//! One program runs on both. Every refusal says what was asked, which rule it breaks, and what to do.
//!
//! # Place in the stack
//!
//! Layer 6. In software it joins `soft-platform` (the machine) and `vtd-driver` (what drives its units), groups functions
//! with `iommu-groups`, and reads the firmware's table with `acpi-dmar`. [`Platform`] is the host's side there;
//! [`Group`], [`Container`] and [`Device`] are the user's, on either backend, and their order is the order of types.
//!
//! | what | for |
//! |---|---|
//! | [`Container`], [`Group`], [`Device`], generic over [`Backend`] | the objects of VFIO: maps, dirty pages, regions, interrupts in eventfds, reset |
//! | [`DmaPool`], [`DmaBuffer`], [`SgList`], [`IovaPolicy`] | a user-space driver's buffers |
//! | [`GuestAddressSpace`] | a VMM's guest: one map for all its devices |
//! | `virtio` (feature) | what the crate `virtio-drivers` needs to drive a virtio device |
//! | `conformance` (feature) | the rules as a list of cases that any backend must answer alike |
//!
//! # Example
//!
//! ```
//! use iommu_types::{Bdf, Iova, Perms};
//! use iommu_vfio::{Container, Driver, GuestMemory, Platform, PlatformOptions};
//! use soft_platform::{Machine, MachineDescription, PageRequest};
//!
//! // The host: a machine whose units are in service, everything blocked.
//! let description = MachineDescription::two_socket()?;
//! let machine = Machine::build(&description, &description.to_dmar()?)?;
//! let platform = Platform::bring_up(machine, PlatformOptions::default())?;
//!
//! // The user: a guest with memory that lies in pieces all over the host.
//! let user = platform.user("guest");
//! let guest = GuestMemory::new(platform.allocate(user, PageRequest::scattered(1 << 20, 64 << 10))?);
//!
//! // Group, container, device.
//! let disk: Bdf = "03:00.0".parse()?;
//! platform.bind(disk, Driver::Vfio)?;
//! let group = platform.group_of(disk).ok_or("no such function")?.id;
//! let mut container = Container::new(&platform, user);
//! container.attach(platform.open_group(group)?.viable()?)?;
//! let container = container.set_iommu()?;
//! container.map_guest(&guest, Perms::READ_WRITE)?;
//! let device = container.open_device(disk)?;
//! device.set_bus_master(true);
//!
//! // Its DMA uses the guest's addresses; what is not mapped is blocked and logged.
//! platform.machine().with_engine(disk, |engine, bus| engine.store(bus, Iova::new(0x4_2000), 0, 512))??;
//! let beyond = platform.machine().with_engine(disk, |engine, bus| engine.store(bus, Iova::new(1 << 20), 0, 512))?;
//! assert!(beyond.is_err());
//! println!("{}", platform.drain_faults().faults[0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Whole programs, which run in software or on the devices that they are given: `examples/assignment.rs` (a VMM: one map for all
//! devices of a guest, memory plugged in later, dirty pages) and `examples/block_driver.rs` (a user-space disk driver, feature
//! `virtio`).
//!
//! # Rules
//!
//! | what | rule |
//! |---|---|
//! | a group goes to one owner as a whole; every endpoint on a VFIO driver or on none | [`Group::viable`] |
//! | a device is attached under every requester ID that its requests can carry | VT-d §3.4, [`Platform::requester`] |
//! | no assignment without a unit, or where interrupts could be forged | [`VfioError::NotContained`], [`VfioError::UnsafeInterrupts`] |
//! | one owner a page: memory of another user, or of the host, is not mapped | [`VfioError::ForeignPage`] |
//! | overlap, alignment, reserved ranges, no bisecting on unmap | [`Container::dma_map`], [`Container::dma_unmap`] |
//! | memory stays reserved until every unit confirmed that it forgot it | [`VfioError::Unconfirmed`] |
//! | reserved memory (RMRR) of USB and display controllers ends with assignment, other reserved memory does not | [`RegionStep`] |
//!
//! # Where the backends differ
//!
//! | what | in software | on Linux |
//! |---|---|---|
//! | no unit, or unsafe interrupts | told by [`Group::viable`] | told by [`Container::set_iommu`] |
//! | memory of another user | refused ([`VfioError::ForeignPage`]) | cannot be named |
//! | the last group leaves | mappings stay | the kernel drops them |
//! | protected configuration registers | refused ([`VfioError::Protected`]) | the kernel pretends to write them |
//! | a range that passes 2^64 (exception 1) | EOVERFLOW | EINVAL up to 6.17, EOVERFLOW since |
//! | unmapping a range that ends with 2^64 (exception 3) | its mappings go | nothing goes up to 6.17 |
//! | reading what is mapped for writing alone (exception 4) | blocked | passes |
//!
//! The numbers are those of `conformance::EXCEPTIONS`; Linux before 5.10 does not tell how many mappings are left (2).
//!
//! # What it does not do
//!
//! No type 1 version 1, no mediated devices, no PASID, no iommufd. In software a mapping's memory is host memory of the
//! machine, which this process reaches in place up to 2 MiB at a time; groups are formed once: there is no hot-plug.

mod backend;
mod buffer;
#[cfg(feature = "conformance")]
pub mod conformance;
mod container;
mod device;
mod dirty;
mod error;
mod group;
mod guest_space;
mod host;
#[cfg(target_os = "linux")]
mod linux;
mod memory;
mod platform;
mod rules;
mod software;
mod user;
#[cfg(feature = "virtio")]
pub mod virtio;

pub use backend::{Backend, DeviceBackend, DirtyInfo, DmaMemory, InterruptKind, RegionInfo, Type1Info};
pub use buffer::{DmaBuffer, DmaPiece, DmaPool, IovaPolicy, SgList};
pub use container::{Container, Found, MAX_MAPPINGS, MappingInfo, NoIommu, Type1};
pub use device::Device;
pub use dirty::{DirtyBitmap, LONGEST_BITMAP};
pub use error::{Errno, Uncontained, VfioError};
pub use group::{Group, GroupId, Opened, Refused, Viable};
pub use guest_space::{GuestAddressSpace, GuestRange};
pub use host::HostSpace;
#[cfg(target_os = "linux")]
pub use linux::{Linux, LinuxDevice, LinuxGroup, LinuxMemory, LinuxSpace, RegionMap};
pub use memory::{GuestMemory, UserMemory};
pub use platform::{
    AcsStep, BringUp, Driver, DriverUnit, Fault, FaultDrain, FaultedAccess, GroupInfo, Platform, PlatformError,
    PlatformOptions, RegionOutcome, RegionStep, UnitStep,
};
pub use software::{SoftDevice, SoftGroup, SoftSpace, Software};
pub use user::UserId;
pub use vmm_sys_util::eventfd::EventFd;
