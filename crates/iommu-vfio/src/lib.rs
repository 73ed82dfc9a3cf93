//! Containers, groups and devices: VFIO over the software platform.
//!
//! # Purpose
//!
//! VFIO is how Linux hands devices to guests and user-space drivers: devices that cannot be kept apart form a
//! *group*, groups go into a *container*, the container's memory map is what their DMA sees. This crate gives the
//! same objects and the same rules (type 1, version 2) over a machine in software, so that an assignment can be
//! rehearsed without hardware, root or risk, and every refusal says what was asked, which rule it breaks, and
//! what to do.
//!
//! # Place in the stack
//!
//! Layer 6. It joins `soft-platform` (the machine) and `vtd-driver` (what drives its units), groups functions with
//! `iommu-groups`, and reads the firmware's table with `acpi-dmar`. [`Platform`] is the host's side, [`Group`],
//! [`Container`] and [`Device`] the user's; their order is the order of types.
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
//! # What it does not do
//!
//! No Linux backend, no dirty tracking, no type 1 version 1, no mediated devices, no MSI-X, no PASID. A mapping's
//! memory is host memory of the machine, not of this process. Groups are formed once: there is no hot-plug.

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
